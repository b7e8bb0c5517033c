"""Probes of the landscape against naive dense references, and that they leave the model alone."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import normsurvey as ns
from normsurvey.analysis import covariate_shift, kurtosis, passed_energy, probe_gradient, signals
from normsurvey.experiments.classifiers import cross_entropy, hidden_weights, mlp

STEPS = (0.1, 0.5, 2.0)
WIDTHS = (5, 6, 7, 3)


def problem(norm=nn.BatchNorm1d, seed=0):
    """A perceptron at a generic point, and its loss on 12 samples."""
    random = torch.Generator().manual_seed(seed)
    model = mlp(WIDTHS, norm, seed=seed)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.2 * torch.randn(p.shape, generator=random, dtype=p.dtype)
    x = torch.randn(12, WIDTHS[0], generator=random, dtype=torch.float64)
    return model, cross_entropy((x, torch.arange(12) % 3))


def naive_gradients(model, loss):
    """Gradients by `backward` on a copy."""
    model = copy.deepcopy(model)
    loss(model).backward()
    return {name: p.grad for name, p in model.named_parameters()}


def stepped(model, gradients, step, names):
    """A copy of the model, its parameters `names` moved."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for name in names:
            model.get_parameter(name).sub_(step * gradients[name])
    return model


@pytest.mark.parametrize("norm", [None, nn.BatchNorm1d, nn.LayerNorm, ns.BatchNorm])
def test_probe_is_what_a_loop_over_copies_finds(norm):
    model, loss = problem(norm)
    first = naive_gradients(model, loss)
    probe = probe_gradient(model, loss, STEPS)
    length = torch.cat([g.flatten() for g in first.values()]).norm()
    assert probe.value == pytest.approx(loss(copy.deepcopy(model)).item(), rel=1e-12)
    assert probe.gradient_norm == pytest.approx(length.item(), rel=1e-12)
    for k, step in enumerate(STEPS):
        moved = stepped(model, first, step, first)
        change = sum((naive_gradients(moved, loss)[n] - first[n]).square().sum() for n in first).sqrt()
        assert probe.losses[k].item() == pytest.approx(loss(moved).item(), rel=1e-10)
        assert probe.changes[k].item() == pytest.approx(change.item(), rel=1e-9)
    assert probe.loss_range == pytest.approx((probe.losses.max() - probe.losses.min()).item())
    assert probe.gradient_change == probe.changes.max()
    ratios = [c / (s * length) for c, s in zip(probe.changes, STEPS, strict=True)]
    assert probe.smoothness == pytest.approx(max(ratios).item(), rel=1e-9)


def test_smoothness_of_a_quadratic_lies_below_its_largest_eigenvalue_and_reaches_it():
    model = nn.Linear(3, 1, bias=False, dtype=torch.float64)
    curvatures = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64)

    def loss(m):
        return 0.5 * (curvatures * m.weight[0] ** 2).sum()

    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 1.0, 1.0]]))
    assert 2 < probe_gradient(model, loss, STEPS).smoothness < 5
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.0, 0.0, 1.0]]))
    assert probe_gradient(model, loss, STEPS).smoothness == pytest.approx(5)


def test_a_probe_of_some_parameters_moves_those_alone():
    model, loss = problem()
    first, names = naive_gradients(model, loss), ["linear2.weight"]
    probe = probe_gradient(model, loss, [0.5], names)
    moved = stepped(model, first, 0.5, names)
    change = (naive_gradients(moved, loss)[names[0]] - first[names[0]]).norm()
    assert probe.changes.item() == pytest.approx(change.item(), rel=1e-9)


@pytest.mark.parametrize("norm", [None, nn.BatchNorm1d])
def test_covariate_shift_is_that_of_copies_whose_earlier_parameters_stepped(norm):
    model, loss = problem(norm)
    first, order = naive_gradients(model, loss), [n for n, _ in model.named_parameters()]
    weights = hidden_weights(model)[1:]
    shifts = covariate_shift(model, loss, 0.3, weights)
    assert list(shifts) == weights
    for name, shift in shifts.items():
        moved = stepped(model, first, 0.3, order[: order.index(name)])
        after = naive_gradients(moved, loss)[name]
        assert shift.distance == pytest.approx((after - first[name]).norm().item(), rel=1e-8)
        cosine = F.cosine_similarity(after.flatten(), first[name].flatten(), dim=0)
        assert shift.cosine == pytest.approx(cosine.item(), abs=1e-9)


def test_frozen_parameters_do_not_step():
    model, loss = problem(None)
    for name, p in model.named_parameters():
        p.requires_grad_(name in ("linear2.bias", "head.weight"))
    first = naive_gradients(model, loss)
    after = naive_gradients(stepped(model, first, 0.3, ["linear2.bias"]), loss)["head.weight"]
    shift = covariate_shift(model, loss, 0.3, ["head.weight"])["head.weight"]
    assert shift.distance == pytest.approx((after - first["head.weight"]).norm().item(), rel=1e-8)


def test_signals_are_outputs_and_their_gradients():
    model, loss = problem()
    found = signals(model, loss, ["norm1", "linear2"])
    x = model.linear1(torch.zeros(0, WIDTHS[0], dtype=torch.float64))
    assert list(found) == ["norm1", "linear2"] and x.shape[1] == found["norm1"].output.shape[1]
    # a shift of a layer's output by a constant vector is that of its bias
    first = naive_gradients(model, loss)
    torch.testing.assert_close(found["norm1"].gradient.sum(0), first["norm1.bias"])
    weight = found["linear2"].gradient.T @ model.relu1(found["norm1"].output)
    torch.testing.assert_close(weight, first["linear2.weight"])


def test_the_model_is_left_as_it_was():
    model, loss = problem()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    versions = {name: t._version for name, t in model.state_dict(keep_vars=True).items()}
    probe_gradient(model, loss, STEPS)
    covariate_shift(model, loss, 0.1, hidden_weights(model)[1:])
    signals(model, loss, ["norm1"])
    after = model.state_dict(keep_vars=True)
    assert all(torch.equal(before[name], t) and versions[name] == t._version for name, t in after.items())
    assert all(p.grad is None for p in model.parameters())
    assert not model.norm1._forward_hooks


@pytest.mark.parametrize(("shape", "dim"), [((9, 4), 0), ((4, 9), 1), ((5, 3, 4, 2), (0, 2, 3))])
def test_passed_energy_is_that_of_autograd(shape, dim):
    y, u = torch.randn(2, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y.requires_grad_()
    deviation = y.std(dim, correction=0, keepdim=True)
    standardized = (y - y.mean(dim, keepdim=True)) / deviation
    (inner,) = torch.autograd.grad(standardized, y, u)
    passed = passed_energy(u, standardized.detach(), dim)
    torch.testing.assert_close(deviation**2 * inner.square().sum(dim, keepdim=True), passed, rtol=1e-12, atol=0)
    mean, along = u.sum(dim, keepdim=True), (u * standardized).sum(dim, keepdim=True)
    m = standardized.numel() / passed.numel()
    formula = u.square().sum(dim, keepdim=True) - mean**2 / m - along**2 / m
    torch.testing.assert_close(passed, formula, rtol=1e-12, atol=0)


def test_kurtosis_of_known_distributions():
    random = torch.Generator().manual_seed(0)
    assert kurtosis(torch.randn(10**6, generator=random)) == pytest.approx(3, abs=0.05)
    assert kurtosis(torch.rand(10**6, generator=random)) == pytest.approx(1.8, abs=0.02)
    assert kurtosis(torch.tensor([0.0, 0, 0, 4])) == pytest.approx(7 / 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, f: probe_gradient(m, f, []), "steps="),
        (lambda m, f: probe_gradient(m, f, [0.1, -1.0]), "steps="),
        (lambda m, f: probe_gradient(m, f, [0.1], ["nothing"]), "nothing"),
        (lambda m, f: probe_gradient(m, lambda m: 0 * f(m), [0.1]), "gradient of loss"),
        (lambda m, f: covariate_shift(m, f, 0.0, ["linear2.weight"]), "step=0"),
        (lambda m, f: covariate_shift(m, f, 0.1, ["linear1.weight"]), "leave it out"),
        (lambda m, f: signals(m, f, ["linear9"]), "linear9"),
        (lambda m, f: signals(m, lambda m: m(m.relu1(torch.zeros(4, 5).double())).sum(), ["relu1"]), "exactly once"),
        (lambda m, f: passed_energy(torch.zeros(3), torch.zeros(4)), "must agree"),
        (lambda m, f: passed_energy(torch.ones(4), torch.ones(4)), "mean square 1"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(*problem())
