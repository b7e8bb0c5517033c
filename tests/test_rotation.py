"""How weights turn: the tracker against dense float64 loops, the predictions against simulated noise."""

import math

import pytest
import torch
from torch import nn

from normsurvey.analysis import (
    RotationTracker,
    equilibrium_angle,
    equilibrium_angle_adamw,
    equilibrium_norm,
    equilibrium_norm_adamw,
    predicted_norms,
)

OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.01),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01),
    "foreach": lambda p: torch.optim.SGD(p, lr=torch.tensor(0.1), foreach=True),
}


def network(dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)).to(dtype)


def step(model, optimizer, t):
    optimizer.zero_grad()
    x = torch.randn(8, 5, generator=torch.Generator().manual_seed(t), dtype=torch.float64).to(model[0].weight)
    model(x).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("per", ["tensor", "row"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_tracker_against_a_dense_loop(name, per):
    model = network()
    optimizer = OPTIMIZERS[name](model.parameters())
    w = model[2].weight
    rows = (lambda v: v.clone().detach()) if per == "row" else (lambda v: v.clone().detach().view(1, -1))
    path, slopes = [rows(w)], []
    with RotationTracker(model, optimizer, ["2.weight"], per=per) as track:
        for t in range(6):
            step(model, optimizer, t)
            path.append(rows(w))
            slopes.append(rows(w.grad).norm(dim=1))
    path, got = torch.stack(path), track["2.weight"]
    norms = path.norm(dim=2)
    cosines = (path[1:] * path[:-1]).sum(2) / (norms[1:] * norms[:-1])
    torch.testing.assert_close(got.norms, norms[:-1])
    torch.testing.assert_close(got.angles.cos(), cosines, rtol=1e-12, atol=0)
    torch.testing.assert_close(got.gradients, norms[:-1] * torch.stack(slopes))
    lr = float(optimizer.param_groups[0]["lr"])
    torch.testing.assert_close(got.effective_lr, lr / norms[:-1] ** 2, rtol=1e-6, atol=0)
    assert list(track) == ["2.weight"] and got.steps.tolist() == list(range(6))


def test_small_angles_keep_their_digits():
    layer = nn.Linear(2, 1, bias=False, dtype=torch.float32)
    layer.weight.data, layer.weight.grad = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    optimizer = torch.optim.SGD(layer.parameters(), lr=2.0**-13)
    with RotationTracker(layer, optimizer) as track:
        optimizer.step()
    assert track["weight"].angles.item() == pytest.approx(2.0**-13, rel=1e-6)


def test_a_right_turn_and_an_about_turn():
    layer = nn.Linear(2, 2, bias=False, dtype=torch.float64)
    layer.weight.data = torch.tensor([[1.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    layer.weight.grad = torch.tensor([[1.0, -1.0], [0.0, 3.0]], dtype=torch.float64)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    with RotationTracker(layer, optimizer, per="row") as track:
        optimizer.step()
    torch.testing.assert_close(track["weight"].angles, torch.tensor([[math.pi / 2, math.pi]], dtype=torch.float64))


def test_only_chosen_steps_are_recorded_and_hooks_go():
    model = network()
    optimizer = OPTIMIZERS["SGD"](model.parameters())
    with RotationTracker(model, optimizer, when=lambda t: t in (1, 4, 5)) as track:
        for t in range(7):
            step(model, optimizer, t)
    step(model, optimizer, 7)
    assert track["0.weight"].steps.tolist() == [1, 4, 5]
    assert set(track) == {"0.weight", "2.weight"} and len(track) == 2
    last = track["0.weight"].last(2)
    assert last.steps.tolist() == [4, 5] and last.angles.shape == (2, 1)
    torch.testing.assert_close(last.rms_angle, last.angles.square().mean(0).sqrt())
    assert not optimizer._optimizer_step_pre_hooks and not optimizer._optimizer_step_post_hooks


def test_training_is_not_disturbed():
    paths = []
    for tracked in (True, False):
        model = network()
        optimizer = OPTIMIZERS["AdamW"](model.parameters())
        if tracked:
            with RotationTracker(model, optimizer):
                step(model, optimizer, 0)
        else:
            step(model, optimizer, 0)
        paths.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*paths)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (dict(names=["3.weight"]), "no trainable parameters"),
        (dict(names=["0.weight"]), "not among the optimizer's parameters"),
        (dict(per="column"), "per='column'"),
        (dict(when=0), "when=0"),
    ],
)
def test_bad_arguments_are_named(options, said):
    model = network()
    with pytest.raises(ValueError, match=said):
        RotationTracker(model, torch.optim.SGD(model[2].parameters(), lr=0.1), **({"names": ["2.weight"]} | options))


def test_nothing_recorded_yet():
    model = network()
    track = RotationTracker(model, OPTIMIZERS["SGD"](model.parameters()))
    assert not len(track) and not list(track)
    with pytest.raises(KeyError, match="no step"):
        track["0.weight"]


def simulated(build, steps, size, start=1.0, dims=200, seed=0):
    """A scale-invariant weight under pure noise: gradients orthogonal to it, `size` / |w| long, of random direction."""
    random = torch.Generator().manual_seed(seed)
    layer = nn.Linear(dims, 1, bias=False, dtype=torch.float64)
    layer.weight.data *= start / layer.weight.data.norm()
    optimizer = build(layer.parameters())
    with RotationTracker(layer, optimizer, when=lambda t: t >= steps // 2) as track:
        for _ in range(steps):
            w = layer.weight.detach()
            g = torch.randn(w.shape, generator=random, dtype=torch.float64)
            g -= (g * w).sum() / w.square().sum() * w
            layer.weight.grad = g / g.norm() * size / w.norm()
            optimizer.step()
    return track["weight"]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_settles_where_predicted(momentum):
    lr, decay = 0.5 * (1 - momentum), 0.02
    got = simulated(lambda p: torch.optim.SGD(p, lr=lr, weight_decay=decay, momentum=momentum), 600, 3.0)
    assert got.rms_angle.item() == pytest.approx(equilibrium_angle(lr, decay, momentum), rel=0.02)
    assert got.rms_norm.item() == pytest.approx(
        equilibrium_norm(lr, decay, got.rms_gradient, momentum).item(), rel=0.02
    )
    assert got.rms_angle.item() != pytest.approx(equilibrium_angle(lr, 2 * decay, momentum), rel=0.2)


def test_adamw_settles_where_predicted():
    lr, decay = 0.02, 0.1
    want = equilibrium_norm_adamw(lr, decay, 200)
    got = simulated(lambda p: torch.optim.AdamW(p, lr=lr, weight_decay=decay, eps=1e-30), 800, 3.0, start=want)
    assert got.rms_angle.item() == pytest.approx(equilibrium_angle_adamw(lr, decay), rel=0.1)
    assert got.rms_norm.item() == pytest.approx(want, rel=0.1)
    assert got.rms_angle.item() != pytest.approx(equilibrium_angle(lr, decay), rel=0.5)


def test_the_way_to_equilibrium():
    got = simulated(lambda p: torch.optim.SGD(p, lr=0.5, weight_decay=0.02), 40, 3.0)
    want = predicted_norms(got.norms[0].item(), 3.0, len(got.norms) - 1, lr=0.5, weight_decay=0.02)
    torch.testing.assert_close(got.norms[:, 0], want)
    limit = equilibrium_norm(0.5, 0.02, torch.tensor(3.0)).item()
    assert predicted_norms(10.0, 3.0, 1000, 0.5, 0.02)[-1].item() == pytest.approx(limit, rel=0.01)


def test_bad_predictions_are_refused():
    with pytest.raises(ValueError, match="without decay nothing settles"):
        equilibrium_angle(0.1, 0.0)
    with pytest.raises(ValueError, match="momentum=1"):
        equilibrium_norm(0.1, 0.1, torch.tensor(1.0), 1)
    with pytest.raises(ValueError, match="beta1=-0.1"):
        equilibrium_angle_adamw(0.1, 0.1, -0.1)
    with pytest.raises(ValueError, match="start=0"):
        predicted_norms(0, 1.0, 1, 0.1, 0.1)
