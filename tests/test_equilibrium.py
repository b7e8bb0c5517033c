"""Many networks trained side by side are the networks trained alone; cycles, labels and the full scale's path."""

from functools import partial

import pytest
import torch

import normsurvey as ns
from normsurvey.analysis import equilibrium_angle_adamw, equilibrium_norm, equilibrium_norm_adamw
from normsurvey.experiments import classifiers as nets
from normsurvey.experiments import equilibrium as eq
from normsurvey.experiments.data import digits, digits_on_photos

NORM = partial(ns.BatchNorm, eps=1e-30, track_running_stats=False)
ARMS = {
    "sgd": eq.Arm(0.1, 0.02), "momentum": eq.Arm(0.05, 0.01, 0.9), "adamw": eq.Arm(0.01, 0.1, 0.9, "adamw"),
}  # fmt: skip
SEEDS = range(2)
WIDTHS = (64, 8, 6, 10)


def streams(data, batch=16):
    return [nets.batches(part, batch, seed) for seed, part in enumerate(data)]


@pytest.fixture(scope="module")
def data():
    return [digits(seed, torch.float64)[:2] for seed in SEEDS]


def alone(arm, seed, data, norm, steps):
    """The same training with torch's own loop, one network."""
    model = nets.mlp(WIDTHS, norm, seed=seed)
    names = nets.hidden_weights(model)
    weights = [model.get_parameter(name) for name in names]
    rest = [p for name, p in model.named_parameters() if name not in names]
    if arm.optimizer == "adamw":
        first = torch.optim.AdamW(weights, lr=arm.lr, weight_decay=arm.weight_decay)
    else:
        first = torch.optim.SGD(weights, lr=arm.lr, weight_decay=arm.weight_decay, momentum=arm.momentum)
    second, losses = torch.optim.SGD(rest, lr=0.1), []
    for _, batch in zip(range(steps), nets.batches(data[seed], 16, seed), strict=False):
        model.zero_grad()
        loss = nets.cross_entropy(batch)(model)
        loss.backward()
        first.step()
        second.step()
        losses.append(loss.detach())
    return torch.stack(losses), weights


@pytest.mark.parametrize("norm", [NORM, None], ids=["BatchNorm", "none"])
def test_side_by_side_is_alone(norm, data):
    ensemble = eq.population(ARMS, norm, seeds=SEEDS, widths=WIDTHS, dtype=torch.float64)
    got = eq.train_arms(ensemble, eq.side_by_side(streams(data)), ARMS, 12)
    assert got.losses.shape == (12, 3, 2)
    for k, (label, arm) in enumerate(ARMS.items()):
        for seed in SEEDS:
            losses, weights = alone(arm, seed, data, norm, 12)
            torch.testing.assert_close(got.losses[:, k, seed], losses, rtol=1e-9, atol=1e-9)
            for w, stacked in zip(weights, ensemble.weights[label].values(), strict=True):
                torch.testing.assert_close(stacked[seed], w, rtol=1e-7, atol=1e-9)
    assert (got.losses[:, 0, 0] - got.losses[:, 1, 0]).abs().max() > 1e-3, "arms differ"


def test_some_arms_go_on_alone(data):
    ensemble = eq.population(ARMS, NORM, seeds=SEEDS, widths=WIDTHS, dtype=torch.float64)
    eq.train_arms(ensemble, eq.side_by_side(streams(data)), ARMS, 3)
    some = {label: ARMS[label] for label in ("sgd", "adamw")}
    part = ensemble.only(list(some))
    alone = eq.train_arms(part, eq.side_by_side(streams(data)), some, 5)
    whole = eq.train_arms(ensemble, eq.side_by_side(streams(data)), ARMS, 5)
    torch.testing.assert_close(alone.losses, whole.losses[:, [0, 2]], rtol=1e-9, atol=1e-9)
    assert list(alone.rotations) == list(some)


def test_the_full_scale_path():
    images = [digits_on_photos(60, seed)[:2] for seed in SEEDS]
    ensemble = eq.population(ARMS, NORM, seeds=SEEDS, channels=(4, 6), dtype=torch.float32)
    x, _ = next(eq.side_by_side(streams(images)))
    logits = ensemble(x)
    for seed in SEEDS:
        member = nets.convnet((4, 6), NORM, seed=seed, dtype=torch.float32)
        for k in range(3):
            torch.testing.assert_close(logits[:, :, 2 * k + seed], member(x[:, seed]), rtol=1e-4, atol=1e-4)
    got = eq.train_arms(ensemble, eq.side_by_side(streams(images)), ARMS, 8, when=eq.last_quarter(8))
    table = eq.ratios(got, ARMS, ensemble, 8)
    assert len(table) == 3 * 2 * 2 and table[["angle_ratio", "norm_ratio"]].notna().all(axis=None)
    assert set(table.layer) == {"conv1", "conv2"}


def test_an_equilibrium_is_reached_and_not_without_decay(data):
    arms = {"decay": eq.Arm(0.2, 0.05), "none": eq.Arm(0.2, 0.0)}
    ensemble = eq.population(arms, NORM, seeds=SEEDS, widths=WIDTHS, dtype=torch.float64)
    noisy = [eq.noisy(part, 0.2, seed) for seed, part in enumerate(data)]
    got = eq.train_arms(ensemble, eq.side_by_side(streams(noisy)), arms, 400, when=eq.last_quarter(400))
    table = eq.ratios(got, {"decay": arms["decay"]}, ensemble, 400)
    assert table.angle_ratio.between(0.93, 1.07).all() and table.norm_ratio.between(0.93, 1.07).all()
    for layer, r in got.rotations["none"].items():
        assert (r.last(100).rms_angle < 0.8 * got.rotations["decay"][layer].last(100).rms_angle).all()


def test_a_norm_that_is_not_steady_sets_the_angle(data):
    arms = {"long": eq.Arm(0.1, 0.02), "short": eq.Arm(0.1, 0.02)}
    ensemble = eq.population(arms, NORM, seeds=SEEDS, widths=WIDTHS, dtype=torch.float64)
    eq.rescale(ensemble, "short", 0.3)
    got = eq.train_arms(ensemble, eq.side_by_side(streams(data)), arms, 200)
    table = eq.ratios(got, arms, ensemble, 200)
    assert (table.drift - table.angle_ratio).abs().max() < 0.03 < (table.drift - 1).abs().max()


def test_adamw_starts_at_its_norm_and_nothing_else_does():
    ensemble = eq.population(ARMS, NORM, seeds=SEEDS, widths=WIDTHS, dtype=torch.float64)
    before = ensemble.weights["sgd"]["linear1"].clone()
    eq.settle(ensemble, ARMS)
    for w in ensemble.weights["adamw"].values():
        target = equilibrium_norm_adamw(0.01, 0.1, w[0].numel())
        torch.testing.assert_close(w.flatten(1).norm(dim=1), torch.full((2,), target, dtype=torch.float64))
    assert torch.equal(before, ensemble.weights["sgd"]["linear1"])


def test_frozen_head_and_scaled_weights(data):
    arms = {"one": eq.Arm(0.1, 0.0), "thirty": eq.Arm(0.1, 0.0)}
    ensemble = eq.population(arms, NORM, seeds=SEEDS, widths=WIDTHS, dtype=torch.float64)
    eq.enlarge_head(ensemble, 2.0)
    eq.rescale(ensemble, "thirty", torch.tensor([[30.0, 2.0], [5.0, 30.0]]))
    head = ensemble.others["head_weight"].clone()
    few = [tuple(t[:20] for t in part) for part in data]
    got = eq.train_arms(ensemble, eq.full_batches(few), arms, 2, rest_lr=None)
    torch.testing.assert_close(got.losses[0, 0], got.losses[0, 1])
    assert (got.losses[1, 0] - got.losses[1, 1]).abs().min() > 1e-6
    assert torch.equal(head, ensemble.others["head_weight"])
    one, thirty = (got.rotations[label]["linear1"].norms[0] for label in arms)
    torch.testing.assert_close(thirty / one, torch.tensor([30.0, 2.0], dtype=torch.float64))


def test_labels_are_redrawn(data):
    x, y = eq.noisy(data[0], 0.5)
    assert x is data[0][0] and 0.3 < (y != data[0][1]).double().mean() < 0.6


def test_cycles_are_counted():
    calm, burst = torch.full((50,), 0.01), torch.full((5,), 2.0)
    assert eq.count_cycles(torch.cat([burst, calm])) == 0, "the start is no cycle"
    assert eq.count_cycles(torch.cat([burst, calm, burst, calm, burst])) == 2
    assert eq.count_cycles(torch.cat([burst, calm + 0.1, burst])) == 0, "never learned"


def test_arms_predict_what_the_analysis_says():
    assert ARMS["adamw"].angle == equilibrium_angle_adamw(0.01, 0.1, 0.9)
    gradient = torch.tensor([1.0, 2.0])
    assert torch.equal(ARMS["momentum"].norm(gradient, 7), equilibrium_norm(0.05, 0.01, gradient, 0.9))
    assert eq.Arm(0.1, 0.2, 0.9, "adamw").norm(gradient, 4).tolist() == [1.0, 1.0]


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="optimizer='adam'"):
        eq.Arm(0.1, 0.1, optimizer="adam")
    with pytest.raises(ValueError, match="give one of them"):
        eq.population(ARMS, NORM)
