"""Routes to a second derivative at toy size, the explanation of the wrong ones, and what measuring does to buffers."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

import normsurvey as ns
from normsurvey.analysis import Hessian, top_eigenvalues
from normsurvey.experiments import classifiers as nets
from normsurvey.experiments import second_derivatives as second

WRONG = {"batch": partial(nn.BatchNorm1d, track_running_stats=False), "layer": nn.LayerNorm}


def small(norm=ns.BatchNorm, seed=0):
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(30, 5, dtype=torch.float64, generator=random)
    y = torch.randint(0, 3, (30,), generator=random)
    model = nets.mlp((5, 6, 3), norm, seed=seed)
    data = x, y
    nets.train(model, nets.batches(data, 15), nets.sgd(model, 0.05), 5)
    return model, nets.cross_entropy(data)


def test_differences_are_a_referee():
    """x^T A x / 2 has Hessian A; nothing was derived twice to find it."""
    model = nn.Linear(3, 2, bias=False, dtype=torch.float64)
    x = torch.randn(10, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = second.hessian_by_differences(model, lambda m: 0.5 * m(x).square().sum())
    torch.testing.assert_close(found, torch.block_diag(x.T @ x, x.T @ x), rtol=1e-10, atol=1e-10)


def test_all_routes_agree_on_elementary_operations():
    for norm in (partial(ns.create, "LayerNorm", fused=False), nn.RMSNorm):
        toy = second.Toy(norm)
        assert max(second.route_errors(toy, toy.loss).values()) < 1e-8


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_routes_and_their_explanation(kind):
    toy = second.Toy(WRONG[kind], seed=1)
    errors = second.route_errors(toy, toy.loss)
    assert errors["double backward"] < 1e-8 and errors["jvp of grad"] < 1e-8
    assert min(errors[r] for r in ("grad of jvp", "torch.func.hessian", "jacrev of jacrev")) > 1e-2
    wrong = second.hessian_by_route(toy, toy.loss, "torch.func.hessian")
    explained = second.hessian_with_constant_statistics(toy, dim=("batch", "layer").index(kind))
    assert second.relative(explained, wrong) < 1e-10
    other = second.hessian_with_constant_statistics(toy, dim=("layer", "batch").index(kind))
    assert second.relative(other, wrong) > 1e-2
    truth = second.hessian_by_route(toy, toy.loss, "double backward")
    differs = (wrong - truth).abs() > 1e-10
    assert differs[20:24, :20].any() and not differs[:20].any() and not differs[:, 20:].any()


def test_a_route_that_raises_is_no_number():
    toy = second.Toy(nn.BatchNorm1d)
    errors = second.route_errors(toy, toy.loss)
    assert errors["double backward"] < 1e-8 and errors["jvp of grad"] != errors["jvp of grad"]
    with pytest.raises(ValueError, match="route='magic'"):
        second.hessian_by_route(toy, toy.loss, "magic")


def test_consequences_of_a_known_error():
    """An off-diagonal entry that is missing on one side: trace right, eigenvalues in second order, products not."""
    right = torch.diag(torch.tensor([5.0, *torch.linspace(0.1, 1, 11).tolist()], dtype=torch.float64))
    wrong = right.clone()
    wrong[0, 1] = 0.2
    shown = second.consequences(right, wrong, torch.ones(12, dtype=torch.float64))
    assert shown["trace"] == 0 and shown["top eigenvalue"] < 1e-3
    assert shown["asymmetry"] > 0.05 and shown["product with a random vector"] > 0
    assert shown["Frobenius norm of the error"] == pytest.approx(0.2 / right.norm().item())
    assert set(second.consequences(right, right, torch.ones(12, dtype=torch.float64)).values()) == {0.0}


def test_second_difference_sees_the_curvature_of_the_mode():
    model, loss = small()
    model[2] = nn.Tanh()
    for training in (True, False):
        model.train(training)
        found = top_eigenvalues(Hessian(model, loss), 1, 1e-8)
        curvature = second.second_difference(model, loss, found.vectors[:, 0])
        assert curvature == pytest.approx(found.values[0].item(), rel=1e-4)


def test_rerunning_moves_statistics_and_a_hessian_does_not():
    model, loss = small()
    before = copy.deepcopy(model.state_dict())
    hessian = Hessian(model.train(), loss)
    for _ in range(3):
        hessian @ hessian.point
    second.second_difference(model, loss, hessian.point / hessian.point.norm())
    losses = second.descend(model, loss, 1e-3, 3)
    assert len(losses) == 4 and losses[3] < losses[0]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    second.products_by_rerunning(model, loss, 3)
    assert model.norm1.num_batches_tracked - before["norm1.num_batches_tracked"] == 3
    assert not torch.equal(model.norm1.running_mean, before["norm1.running_mean"])
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_full_scale_path_at_toy_size():
    """What the chapter does with a convolutional network, on a few images of photograph size."""
    from normsurvey.experiments.data import digits_on_photos

    x, y, x_test, y_test = digits_on_photos(30, 0, torch.float64)
    model = nets.convnet((2, 3), ns.BatchNorm)
    nets.train(model, nets.batches((x, y), 12), nets.sgd(model, 0.05), 2)
    loss = nets.cross_entropy((x, y))
    tops = {}
    for mode in (True, False):
        found = top_eigenvalues(Hessian(model.train(mode), loss), 1, 1e-3, min_steps=8)
        tops[mode] = found.values[0].item()
        assert 0 < found.errors[0] <= 1e-3 * tops[mode]
    assert tops[True] != tops[False]
    values = second.descend(model.train(), loss, 0.5 / tops[True], 2)
    assert values[2] < values[0]
    assert 0 <= nets.accuracy(model.eval(), (x_test, y_test)) <= 1
