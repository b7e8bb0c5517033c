"""Moments by depth against autograd by hand, and rates of sequences that are known."""

import copy
import math

import pytest
import torch
from torch import nn

import normsurvey as ns
from normsurvey.analysis import growth_rate, propagate, scaling_exponent
from normsurvey.experiments.classifiers import cross_entropy, mlp


@pytest.mark.parametrize("norm", [None, nn.BatchNorm1d, nn.LayerNorm, ns.BatchNorm])
def test_moments_are_those_of_a_walk_by_hand(norm):
    model, data = mlp((5, 6, 6, 3), norm), (torch.randn(8, 5, dtype=torch.float64), torch.arange(8) % 3)
    names = ["linear1", "relu1", "relu2", "head"]
    found = propagate(model, cross_entropy(data), names)
    x, states = data[0], {}
    for name, module in copy.deepcopy(model).named_children():
        x = module(x)
        states[name] = x
    wanted = [states[name] for name in names]
    gradients = torch.autograd.grad(nn.functional.cross_entropy(x, data[1]), wanted)
    assert found.names == tuple(names)
    for k, (y, g) in enumerate(zip(wanted, gradients, strict=True)):
        y = y.detach()
        variance = sum(((y[:, c] - y[:, c].mean()) ** 2).mean() for c in range(y.shape[1])) / y.shape[1]
        torch.testing.assert_close(found.second_moment[k], (y**2).mean())
        torch.testing.assert_close(found.variance[k], variance)
        torch.testing.assert_close(found.gradient[k], (g**2).sum())


def test_positions_of_images_count_as_samples():
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(12, 1)).double()
    x = torch.randn(5, 2, 4, 4, dtype=torch.float64)
    found = propagate(model, lambda m: m(x).sum(), ["0"])
    y = model[0](x).detach().transpose(0, 1).reshape(3, -1)
    torch.testing.assert_close(found.variance[0], y.var(1, correction=0).mean())


def test_a_module_in_place_does_not_overwrite_what_was_recorded():
    layers = nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 1)
    x = torch.randn(6, 4)
    in_place = propagate(nn.Sequential(*layers), lambda m: m(x).sum(), ["0", "1"])
    layers[1].inplace = False
    apart = propagate(nn.Sequential(*layers), lambda m: m(x).sum(), ["0", "1"])
    for name in ("second_moment", "variance", "gradient"):
        torch.testing.assert_close(getattr(in_place, name), getattr(apart, name))
    assert in_place.second_moment[0] > in_place.second_moment[1]


def test_buffers_gradients_and_hooks_are_left_alone():
    model = mlp((5, 6, 3), nn.BatchNorm1d)
    before = copy.deepcopy(model.state_dict())
    propagate(model, cross_entropy((torch.randn(8, 5, dtype=torch.float64), torch.arange(8) % 3)), ["relu1"])
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks for m in model.modules())


def test_rates_of_a_scaling_network_are_exact():
    """Layers that multiply by a constant: forward by its square, backward by its square."""
    model = nn.Sequential(*[nn.Linear(3, 3, bias=False) for _ in range(9)]).double()
    for layer in model:
        layer.weight.data = math.sqrt(1.7) * torch.eye(3, dtype=torch.float64)
    x = torch.randn(4, 3, dtype=torch.float64)
    found = propagate(model, lambda m: m(x).sum(), [str(k) for k in range(9)])
    assert found.forward_rate() == pytest.approx(1.7) and found.backward_rate() == pytest.approx(1.7)


def test_rates_are_of_the_middle():
    values = [1e6, 1e6, 1e6, *(0.5**k for k in range(5)), 1e-30, 0.0, float("nan")]
    assert growth_rate(values) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="positive and finite"):
        growth_rate(values, drop=1)


def test_exponents_are_slopes_of_least_squares():
    sizes, noise = torch.tensor([2.0, 4.0, 8.0, 32.0]), torch.tensor([1.1, 0.9, 1.05, 1.0])
    values = 3 * sizes**1.5 * noise
    design = torch.stack([sizes.log(), torch.ones(4)], 1).double()
    slope = torch.linalg.lstsq(design, values.log().double()[:, None]).solution[0].item()
    assert scaling_exponent(sizes, values) == pytest.approx(slope, abs=1e-6)


def test_bad_input_is_named():
    model, x = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)), torch.randn(4, 3)
    twice = nn.Sequential(model[0], model[0])
    frozen = nn.Sequential(nn.Linear(3, 3).requires_grad_(False), nn.Linear(3, 1))
    cases = [
        (lambda: propagate(model, lambda m: m(x).sum(), ["2"]), r"modules=\['2'\].*'1'"),
        (lambda: propagate(model, lambda m: m(x).sum(), []), "name at least one"),
        (lambda: propagate(model, lambda m: m(x), ["0"]), "scalar"),
        (lambda: propagate(twice, lambda m: m(x).sum(), ["0"]), "exactly once"),
        (lambda: propagate(model, lambda m: (m(x) * 0 + m[0](x)).sum(), ["0"]), "exactly once"),
        (lambda: propagate(frozen, lambda m: m(x).sum(), ["0"]), r"\['0'\] put out"),
        (lambda: propagate(model, lambda m: m(x).detach().sum() + m[0].weight.sum(), ["1"]), "does not depend"),
        (lambda: growth_rate([1.0, 2.0, 4.0]), "drop=3 leaves fewer"),
        (lambda: growth_rate([1.0, 2.0, 4.0], drop=-1), "drop=-1"),
        (lambda: scaling_exponent([1, 2], [1, 2, 3]), "one length"),
        (lambda: scaling_exponent([2, 2], [1, 2]), "two sizes"),
        (lambda: scaling_exponent([1, 2], [0.0, 1.0]), "positive and finite"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()
