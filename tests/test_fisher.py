"""The dual of the Fisher matrix against the matrix itself, built naively in float64."""

import copy

import pytest
import torch
from torch import nn

import normsurvey as ns
from normsurvey.analysis import OutputGram, linear_gram, output_gram, output_jacobian
from normsurvey.experiments.classifiers import mlp

NORMS = {
    "none": None,
    "torch BatchNorm1d": nn.BatchNorm1d,
    "torch LayerNorm": nn.LayerNorm,
    "torch GroupNorm": lambda c: nn.GroupNorm(2, c),
    "BatchNorm": ns.BatchNorm,
    "BatchNorm fused=False": lambda c: ns.BatchNorm(c, fused=False),
    "LayerNorm": ns.LayerNorm,
    "RMSNorm": ns.RMSNorm,
}
COUPLED = ("torch BatchNorm1d", "BatchNorm", "BatchNorm fused=False")


@pytest.fixture(params=NORMS)
def case(request):
    """A perceptron of every norm, in train mode at a generic point, and a batch of 7 for its 5 inputs and 3 outputs."""
    model = mlp((5, 6, 6, 3), NORMS[request.param], seed=1)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.2 * torch.randn_like(p)
    return request.param, model, torch.randn(7, 5, dtype=torch.float64)


def differences(model, x, step=1e-6):
    """The Jacobian by central differences, one parameter at a time."""
    columns, moved = [], copy.deepcopy(model).requires_grad_(False)
    for p in moved.parameters():
        for k in range(p.numel()):
            ends = []
            for shift in (step, -2 * step, step):
                p.view(-1)[k] += shift
                ends.append(moved(x).flatten())
            columns.append((ends[0] - ends[1]) / (2 * step))
    return torch.stack(columns, 1)


def dense_fisher(model, x, metric):
    """(D, D), as the expectation over labels of the squared score, sample by sample."""
    outputs = model(x)
    n, c = outputs.shape

    def score(value):
        gradients = torch.autograd.grad(value, list(model.parameters()), retain_graph=True, materialize_grads=True)
        return torch.cat([g.flatten() for g in gradients])

    fisher = 0
    for i in range(n):
        for k in range(c):
            if metric == "square":
                g, weight = score(outputs[i, k]), 1
            else:
                g, weight = score(outputs[i].log_softmax(0)[k]), outputs[i].softmax(0)[k].detach()
            fisher = fisher + weight * torch.outer(g, g) / n
    return fisher


def top(values, count):
    return values.flip(0)[:count]


def test_jacobian_is_that_of_finite_differences_in_chunks_and_one_by_one(case):
    _, model, x = case
    jacobian, outputs = output_jacobian(model, x)
    torch.testing.assert_close(jacobian, differences(model, x), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(outputs, model(x).detach())
    torch.testing.assert_close(output_jacobian(model, x, chunk_size=8)[0], jacobian, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("metric", ["square", "cross_entropy"])
def test_spectrum_is_that_of_the_dense_fisher(case, metric):
    _, model, x = case
    truth = top(torch.linalg.eigvalsh(dense_fisher(model, x, metric)), 21)
    found = output_gram(model, x).eigenvalues(metric)
    assert (found - truth).abs().max() < 1e-10 * truth[0]


def test_linear_layers_need_no_weight_gradients(case):
    name, model, x = case
    weights = [n for n, _ in model.named_parameters() if not n.startswith("norm")]
    truth = output_gram(model, x, weights)
    torch.testing.assert_close(linear_gram(model, x).kernel, truth.kernel, rtol=1e-12, atol=1e-12)
    one = output_gram(model, x, [n for n in weights if n.startswith("linear2")])
    torch.testing.assert_close(linear_gram(model, x, ["linear2"]).kernel, one.kernel, rtol=1e-12, atol=1e-12)
    if name in COUPLED:
        with pytest.raises(ValueError, match="per_sample=True"):
            linear_gram(model, x, per_sample=True)
    else:
        torch.testing.assert_close(linear_gram(model, x, per_sample=True).kernel, truth.kernel, rtol=1e-12, atol=1e-12)


def test_frozen_statistics_make_a_batch_norm_per_sample():
    model = mlp((5, 6, 3), nn.BatchNorm1d).eval()
    x = torch.randn(7, 5, dtype=torch.float64)
    torch.testing.assert_close(linear_gram(model, x, per_sample=True).kernel, linear_gram(model, x).kernel)


@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("eps", [0.0, 1e-2])
def test_normalized_outputs_are_a_product_with_the_jacobian_of_the_norm(case, scale, eps):
    _, model, x = case
    norm = ns.BatchNorm(3, eps=eps, affine=False, track_running_stats=False, fused=False)
    last = norm if scale else Centred()
    truth = output_gram(nn.Sequential(model, last), x)
    found = output_gram(model, x).batch_normalized(scale=scale, eps=eps)
    torch.testing.assert_close(found.kernel, truth.kernel, rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(found.outputs, truth.outputs)


class Centred(nn.Module):
    def forward(self, y):
        return y - y.mean(0)


def test_buffers_gradients_and_mode_are_left_alone():
    model = mlp((5, 6, 3), nn.BatchNorm1d)
    before = copy.deepcopy(model.state_dict())
    x = torch.randn(7, 5, dtype=torch.float64)
    for tool in (output_gram, linear_gram):
        tool(model, x)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters()) and model.training


def test_convolutions_and_single_parameters():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 2)).double()
    x = torch.randn(5, 1, 4, 4, dtype=torch.float64)
    truth = top(torch.linalg.eigvalsh(dense_fisher(model, x, "square")), 10)
    assert (output_gram(model, x, chunk_size=4).eigenvalues() - truth).abs().max() < 1e-10 * truth[0]
    assert output_jacobian(model, x, ["1.bias"])[0].shape == (10, 2)


def test_cross_entropy_sees_no_common_shift_of_the_logits():
    """One direction of the outputs per sample is free: at most N (C - 1) eigenvalues are not zero."""
    model = mlp((5, 40, 3))
    values = output_gram(model, torch.randn(6, 5, dtype=torch.float64)).eigenvalues("cross_entropy")
    assert values[11] > 1e-6 and values[12:].max() < 1e-12


def test_bad_input_is_named():
    model, x = mlp((5, 6, 3)), torch.randn(4, 5, dtype=torch.float64)
    gram = output_gram(model, x)
    cases = [
        (lambda: gram.eigenvalues("hinge"), "metric='hinge'.*square"),
        (lambda: output_jacobian(model, x, chunk_size=0), "chunk_size=0"),
        (lambda: linear_gram(model, x, ["relu1"]), r"layers=\['relu1'\].*head"),
        (lambda: output_gram(nn.Sequential(model, nn.Flatten(0)), x), "N=4"),
        (lambda: output_gram(nn.Sequential(nn.Linear(5, 2).double().requires_grad_(False)), x), "no parameter"),
        (lambda: OutputGram(gram.kernel, torch.ones(4, 3)).batch_normalized(), "constant over the batch"),
        (lambda: linear_gram(nn.Sequential(nn.Unflatten(1, (5, 1)), nn.Linear(1, 2).double()), x), "not once on"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()
