"""Targets, normalized least squares and what a batch norm behind a layer does, each against its definition."""

import math

import pytest
import torch
from torch import nn

import normsurvey as ns
from normsurvey.analysis import layer_rows
from normsurvey.experiments import classifiers, layerwise, linear
from normsurvey.experiments.classifiers import cross_entropy, mlp

DOUBLE = torch.float64
SMALL = dict(features=6, condition=10.0, samples=40)


def network(norm=None, samples=60, seed=0):
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, 5, dtype=DOUBLE, generator=random)
    data = x, torch.randint(0, 3, (samples,), generator=random)
    return mlp((5, 8, 8, 3), norm, seed=seed), data


def batch_norm(num_features):
    return ns.BatchNorm(num_features, fused=False, eps=0.0)


def test_backprop_is_a_gradient_step_on_the_layers_targets():
    model, data = network(batch_norm)
    rows = layer_rows(model, cross_entropy(data))
    cross_entropy(data)(model).backward()
    for name in ("linear2", "head"):
        layer = model.get_submodule(name)
        torch.testing.assert_close(layerwise.target_gradient(layer, rows[name]), layer.weight.grad)


def test_the_proximal_step_minimises_its_objective():
    model, data = network()
    layer, rows = model.linear2, layer_rows(model, cross_entropy(data))["linear2"]
    second = rows.input.T @ rows.input / 60
    tau = 7 / torch.linalg.eigvalsh(second)[-1]
    step = layerwise.proximal_step(rows, 7.0).requires_grad_()
    loss = 0.5 * (rows.input @ step.T + rows.output_gradient).square().sum() / 60 + 0.5 * step.square().sum() / tau
    (gradient,) = torch.autograd.grad(loss, step)
    assert gradient.norm() < 1e-12 * step.norm()
    explicit = -layerwise.target_gradient(layer, rows)
    assert layerwise.cosine(layerwise.proximal_step(rows, 1e-6), explicit) > 1 - 1e-8
    assert layerwise.cosine(layerwise.proximal_step(rows, 1e3), explicit) < 0.99


def test_whitened_inputs_make_the_implicit_step_parallel():
    model, data = network(batch_norm)
    layerwise.whiten_inputs(model, ["linear2"])
    rows = layer_rows(model, cross_entropy(data))["linear2.1"]
    torch.testing.assert_close(rows.input.T @ rows.input / 60, torch.eye(8, dtype=DOUBLE), rtol=0, atol=1e-9)
    explicit = -layerwise.target_gradient(model.linear2[1], rows)
    assert layerwise.cosine(layerwise.proximal_step(rows, 100.0), explicit) > 1 - 1e-12


def test_regression_blocks_are_those_of_the_outputs_jacobian():
    model, (x, _) = network()
    blocks = layerwise.regression_fisher_blocks(model, x)
    assert list(blocks) == ["linear1", "linear2", "head"]
    for name, block in blocks.items():
        weight = model.get_submodule(name).weight
        rows = torch.stack([torch.autograd.grad(v, weight, retain_graph=True)[0].flatten() for v in model(x).flatten()])
        torch.testing.assert_close(block.dense(), rows.T @ rows / len(x))


def test_without_relu_the_blocks_of_regression_factorise_and_with_it_they_do_not():
    model, (x, _) = network()
    linear = layerwise.without_relu(model)
    torch.testing.assert_close(linear(x) + linear(-x), 2 * linear(torch.zeros_like(x)))
    assert linear.linear2 is model.linear2
    for network_, low, high in ((linear, 0.0, 1e-12), (model, 0.05, 1.0)):
        block = layerwise.regression_fisher_blocks(network_, x, ["linear1"])["linear1"]
        dense = block.dense()
        assert low <= (dense - torch.kron(*block.moments)).norm() / dense.norm() < high


def test_deflated_inputs_span_the_gradient_behind_a_batch_norm_and_have_the_moment_of_cai():
    model, data = network(batch_norm)
    gradients = {}
    model.norm2.register_full_backward_hook(lambda _, inputs, outputs: gradients.update(out=outputs[0]))
    rows = layer_rows(model, cross_entropy(data), ["linear2"])["linear2"]
    cross_entropy(data)(model).backward()
    for k in range(8):
        weight = model.linear2.weight[k].detach()
        inputs = layerwise.deflated_inputs(rows.input, weight)
        scale = (rows.input @ weight).std(correction=0)
        torch.testing.assert_close(gradients["out"][:, k] @ inputs / scale, model.linear2.weight.grad[k])
        covariance = torch.cov(rows.input.T, correction=0)
        torch.testing.assert_close(inputs.T @ inputs / 60, layerwise.deflated(covariance, weight))


def test_prescribed_problems_are_as_prescribed():
    problem = layerwise.prescribed_problem(0, **SMALL)
    assert problem.condition_number == pytest.approx(10)
    assert problem.spectrum[-1].item() == pytest.approx(1)
    assert problem.inputs.mean(0).abs().max() < 1e-12
    assert problem.targets.square().mean().item() == pytest.approx(1)
    torch.testing.assert_close(problem.inputs @ problem.solution, problem.targets)


def test_normalized_descent_is_that_of_a_batch_norm_layer():
    problem = layerwise.prescribed_problem(1, **SMALL)
    w, rate, steps = layerwise.start(problem, 1), 3.0, 5
    model = nn.Sequential(nn.Linear(6, 1, bias=False, dtype=DOUBLE), batch_norm(1).double())
    with torch.no_grad():
        model[0].weight.copy_(w)
        outputs = problem.inputs @ w
        model[1].weight.copy_(problem.targets @ outputs / 40 / outputs.std(correction=0))
    optimizer = torch.optim.SGD([{"params": [model[0].weight], "lr": rate}, {"params": [model[1].weight], "lr": 1.0}])
    for _ in range(steps + 1):
        optimizer.zero_grad()
        loss = 0.5 * (model(problem.inputs)[:, 0] - problem.targets).square().mean()
        loss.backward()
        optimizer.step()
    ours = layerwise.descend_normalized(problem, w, torch.tensor([rate], dtype=DOUBLE), steps)
    assert ours["excess"].item() == pytest.approx(loss.item(), rel=1e-9)


def test_descent_with_the_best_length_follows_the_rayleigh_quotient():
    problem = layerwise.prescribed_problem(2, **SMALL)
    h, u = problem.hessian, problem.hessian @ problem.solution
    w = layerwise.start(problem, 2).requires_grad_()
    found = []
    for _ in range(4):
        quotient = -((u @ w) ** 2) / (w @ h @ w)
        found.append(0.5 * (quotient + u @ problem.solution).item())
        (gradient,) = torch.autograd.grad(quotient, w)
        rate = (w @ h @ w) / (2 * problem.spectrum[-1] * quotient.abs())  # the step size of Kohler et al.
        w = (w - rate * gradient).detach().requires_grad_()
    ours = layerwise.descend_with_best_length(problem, layerwise.start(problem, 2), 3)
    torch.testing.assert_close(ours, torch.tensor(found, dtype=DOUBLE))


def test_plain_descent_stops_at_its_limit_and_normalized_descent_does_not():
    problem, rates = layerwise.prescribed_problem(0, **SMALL), torch.tensor([1.0, 1.9, 2.1, 1e3], dtype=DOUBLE)
    w = layerwise.start(problem, 0)
    plain = layerwise.descend_plain(problem, w, rates, 3000)
    assert (plain[:2] < 1e-20).all() and (plain[2:] > 1e20).all()
    path = problem.descend(30, 1.0, start=w)
    torch.testing.assert_close(layerwise.descend_plain(problem, w, rates[:1], 30)[0], problem.excess(path[-1]))
    normalized = layerwise.descend_normalized(problem, w, rates, 3000)
    assert (normalized["excess"][:3] < 1e-20).all() and (normalized["largest"] <= 2).all()


def test_decades_counts_the_longest_run():
    rates = 10.0 ** torch.arange(5)
    passed = torch.tensor([True, False, True, True, True])
    assert layerwise.decades(rates, passed) == pytest.approx(2)
    assert layerwise.decades(rates, ~passed) == 0


def test_interlacing_fails_where_a_matrix_is_not_deflated(monkeypatch):
    problem = layerwise.prescribed_problem(0, **SMALL)
    w = layerwise.start(problem, 0)
    assert layerwise.interlacing_violation(problem.hessian, w) < 1e-14
    assert layerwise.condition_after_deflation(problem.hessian, w) < 1
    monkeypatch.setattr(layerwise, "deflated", lambda moment, _: 2 * moment)
    assert layerwise.interlacing_violation(problem.hessian, w) > 0.5


@pytest.mark.parametrize("name", ["digits", "photos"])
def test_networks_train_at_both_scales(name):
    data = layerwise.training_data(name, 0, count=40)
    data = data[0][:32], torch.arange(32) % 10
    model = layerwise.deep_network(data, 8, 2, ns.BatchNorm, 0)
    assert model.linear1.in_features == {"digits": 64, "photos": 3072}[name]
    times = dict(layerwise.trained(data, model, 0.1, (0, 5, 40), 0))
    assert list(times) == [0, 5, 40] and math.isnan(times[0]) and times[40] < times[5]


@pytest.mark.parametrize(
    "norm", [None, lambda c: ns.BatchNorm(c, track_running_stats=False)], ids=["none", "BatchNorm"]
)
def test_networks_side_by_side_train_as_each_alone(norm):
    data = {seed: network(seed=seed)[1] for seed in (0, 1)}
    members = [(0, 0.1), (1, 0.1), (1, 1e150), (0, 0.3)]
    losses = layerwise.train_side_by_side(lambda seed: network(norm, seed=seed)[0], data, members, 6)
    for (seed, lr), found in zip(members, losses, strict=True):
        if lr < 1:
            stream = classifiers.batches(data[seed], 60, seed)
            model = network(norm, seed=seed)[0]
            torch.testing.assert_close(found, classifiers.train(model, stream, classifiers.sgd(model, lr), 6))
    assert norm is not None or losses[2, -1] == math.inf
    assert math.isnan(layerwise.largest_stable({0.1: 3.0, 1.0: math.inf}, 2.0))


def test_an_unknown_data_set_is_refused():
    with pytest.raises(ValueError, match="name='cifar'.*'digits' or 'photos'"):
        layerwise.training_data("cifar", 0)
    assert isinstance(layerwise.prescribed_problem(0, **SMALL), linear.LeastSquares)
