"""Training helpers of the theory chapters: determinism, selective weight decay, the exponential schedule."""

from functools import partial

import pytest
import torch

import normsurvey as ns
from normsurvey.experiments.classifiers import (
    accuracy,
    batches,
    convnet,
    cross_entropy,
    hidden_weights,
    mlp,
    passing,
    sgd,
    train,
)
from normsurvey.experiments.exponential import contraction, run_exponential, run_with_decay

WIDTHS = (5, 8, 8, 3)
NORM = partial(ns.BatchNorm, eps=0.0, fused=False)


def test_a_convnet_halves_its_images_and_starts_from_the_same_weights_with_any_norm():
    plain, normed = convnet((4, 6), seed=1), convnet((4, 6), ns.BatchNorm, seed=1)
    images = torch.randn(5, 3, 8, 8, dtype=torch.float64)
    assert plain.conv2(plain.conv1(images)).shape == (5, 6, 4, 4) and plain(images).shape == (5, 10)
    assert hidden_weights(plain) == hidden_weights(normed) == ["conv1.weight", "conv2.weight"]
    assert all(torch.equal(plain.get_parameter(name), normed.get_parameter(name)) for name in hidden_weights(plain))
    assert plain.conv1.bias is not None and normed.conv1.bias is None and isinstance(normed.norm1, ns.BatchNorm)
    assert convnet((64, 64)).conv2.weight.var().item() == pytest.approx(2 / (64 * 9), rel=0.05)


@pytest.fixture
def data():
    random = torch.Generator().manual_seed(0)
    x = torch.randn(60, 5, dtype=torch.float64, generator=random)
    return x, (x[:, :3] + 0.3 * x[:, 2:]).argmax(1)


def test_a_run_is_determined_by_its_seeds(data):
    losses = [train(m := mlp(WIDTHS, NORM, seed=s), batches(data, 20, s), sgd(m, 0.1), 10) for s in (1, 1, 2)]
    assert torch.equal(losses[0], losses[1]) and not torch.equal(losses[0], losses[2])


def test_networks_with_and_without_norm_start_from_the_same_weights():
    plain, normed = mlp(WIDTHS, seed=3), mlp(WIDTHS, NORM, seed=3)
    assert hidden_weights(plain) == hidden_weights(normed) == ["linear1.weight", "linear2.weight"]
    assert all(torch.equal(plain.get_parameter(name), normed.get_parameter(name)) for name in hidden_weights(plain))


def test_batches_are_epochs_of_full_batches(data):
    stream = batches(data, 25, seed=0)
    first, second, _ = (next(stream)[0] for _ in range(3))
    assert len(torch.cat([first, second]).unique(dim=0)) == 50
    with pytest.raises(ValueError, match="batch_size=61"):
        next(batches(data, 61))


def test_weight_decay_acts_on_named_parameters_alone():
    model = mlp(WIDTHS, NORM)
    before = {name: p.clone() for name, p in model.named_parameters()}
    optimizer = sgd(model, 0.1, weight_decay=0.5, decayed=hidden_weights(model))
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), before[name] * (0.95 if name in hidden_weights(model) else 1))
    with pytest.raises(ValueError, match="nothing"):
        sgd(model, 0.1, decayed=["nothing"])


def test_passing_yields_each_level_in_order(data):
    model = mlp(WIDTHS, NORM)
    seen = []
    for level, steps in passing(model, data, [float("inf"), 0.5, 0.4], batches(data, 20), sgd(model, 0.3)):
        assert cross_entropy(data)(model) < level
        seen.append((level, steps))
    assert [level for level, _ in seen] == [float("inf"), 0.5, 0.4] and seen[0][1] == 0 < seen[1][1] <= seen[2][1]
    assert accuracy(model, data) > 0.7
    with pytest.raises(RuntimeError, match="max_steps=2"):
        list(passing(mlp(WIDTHS, NORM), data, [1e-9], batches(data, 20), sgd(model, 0.1), max_steps=2))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_exponential_schedule_is_weight_decay(data, momentum):
    options = dict(lr=0.05, weight_decay=0.05, momentum=momentum)
    names = hidden_weights(mlp(WIDTHS, NORM))
    decay = run_with_decay(mlp(WIDTHS, NORM), batches(data, 30), names, 50, **options)
    exponential = run_exponential(mlp(WIDTHS, NORM), batches(data, 30), names, 50, **options)
    alpha = contraction(**options)
    assert (decay.losses - exponential.losses).abs().max() < 1e-9
    torch.testing.assert_close(exponential.norms * alpha ** torch.arange(50, dtype=torch.float64), decay.norms)
    if momentum:
        wrong = run_exponential(mlp(WIDTHS, NORM), batches(data, 30), names, 50, **options, start="zero")
        assert (decay.losses - wrong.losses).abs().max() > 1e-3


def test_bad_schedules_are_named(data):
    with pytest.raises(ValueError, match="weight_decay=10"):
        contraction(1.0, 10, 0.9)
    with pytest.raises(ValueError, match="start='random'"):
        run_exponential(mlp(WIDTHS, NORM), batches(data, 30), [], 1, lr=0.1, weight_decay=0.1, start="random")
