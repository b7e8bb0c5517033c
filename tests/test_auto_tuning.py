"""Many runs at once against one at a time, the recursion of the effective rate, projected steps, granularity."""

import itertools
from functools import partial

import pytest
import torch
from torch import nn

import normsurvey as ns
from normsurvey.analysis import scale_invariance
from normsurvey.experiments.auto_tuning import (
    TangentialSteps,
    for_each,
    interrupted,
    momentum_growth,
    noisy_labels,
    tangential,
    train_together,
)
from normsurvey.experiments.classifiers import batches, convnet, cross_entropy, hidden_weights, mlp, sgd, train
from normsurvey.experiments.data import digits_on_photos

WIDTHS = (5, 8, 8, 3)
EXACT = dict(eps=1e-30, fused=False)
BN = partial(ns.BatchNorm, track_running_stats=False, **EXACT)
LN = partial(ns.LayerNorm, **EXACT)
NAMES = ["linear1.weight", "linear2.weight"]


def data(seed=0):
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(60, 5, dtype=torch.float64, generator=random)
    return x, (x[:, :3] + 0.3 * x[:, 2:]).argmax(1)


@pytest.mark.parametrize("norm", [BN, LN, None], ids=["BN", "LN", "none"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_runs_at_once_are_the_runs_one_by_one(norm, momentum):
    lrs, decays = [0.02, 0.1, 0.02], [0.0, 0.1, 0.3]
    models = [mlp(WIDTHS, norm, seed=seed) for seed in range(3)]
    runs = train_together(
        models, batches(data(), 20), NAMES, 12, lrs=lrs, weight_decays=decays, momenta=momentum, other_lr=0.05
    )
    for k, (lr, decay) in enumerate(zip(lrs, decays, strict=True)):
        model, norms = mlp(WIDTHS, norm, seed=k), []
        optimizer = sgd(model, lr, momentum=momentum, weight_decay=decay, decayed=NAMES)
        optimizer.param_groups[1].update(lr=0.05, momentum=0.0)
        weights = [model.get_parameter(n) for n in NAMES]
        losses = train(
            model, batches(data(), 20), optimizer, 12,
            before_step=lambda t, w=weights, to=norms: to.append(torch.cat([p.detach().flatten() for p in w]).norm()),
        )  # fmt: skip
        torch.testing.assert_close(runs.losses[:, k], losses)
        torch.testing.assert_close(runs.norms[:-1, k], torch.stack(norms))
    assert torch.equal(models[0].get_parameter(NAMES[0]), mlp(WIDTHS, norm, seed=0).get_parameter(NAMES[0]))


def test_each_run_may_have_its_own_batches():
    streams = [batches(data(seed), 20, seed) for seed in (0, 1)]
    both = train_together([mlp(WIDTHS, BN)] * 4, for_each(streams, 2), NAMES, 5, lrs=0.1)
    for k, seed in enumerate((0, 0, 1, 1)):
        alone = train_together([mlp(WIDTHS, BN)], batches(data(seed), 20, seed), NAMES, 5, lrs=0.1)
        torch.testing.assert_close(both.losses[:, k], alone.losses[:, 0])


def test_what_cannot_be_stacked_is_named():
    with pytest.raises(ValueError, match="track_running_stats=False"):
        train_together([mlp(WIDTHS, ns.BatchNorm)], batches(data(), 20), NAMES, 1, lrs=0.1)
    with pytest.raises(ValueError, match="lrs has 3 values for 2 models"):
        train_together([mlp(WIDTHS, BN)] * 2, batches(data(), 20), NAMES, 1, lrs=[0.1] * 3)


@pytest.mark.parametrize("norm", [BN, LN], ids=["BN", "LN"])
def test_rescaled_runs_are_the_same_and_the_control_is_not(norm):
    c = torch.tensor([1.0, 0.1, 30.0, 30.0], dtype=torch.float64)
    lrs, decays = 0.02 * c**2, 0.1 / c**2
    decays[-1] = 0.1
    models = [mlp(WIDTHS, norm) for _ in c]
    with torch.no_grad():
        for model, factor in zip(models, c, strict=True):
            for name in NAMES:
                model.get_parameter(name).mul_(factor)
    losses = train_together(models, batches(data(), 20), NAMES, 40, lrs=lrs, weight_decays=decays, momenta=0.9).losses
    gaps = (losses - losses[:, :1]).abs().amax(0)
    assert gaps[:3].max() < 1e-11 and gaps[3] > 1e-2


def test_the_inverse_rate_obeys_its_recursion_with_normalization_alone():
    rates = torch.logspace(-3, 5, 9, dtype=torch.float64)
    for norm, exact in ((BN, True), (None, False)):
        models = [mlp(WIDTHS, norm) for _ in rates]
        runs = train_together(models, itertools.repeat(data()), NAMES, 30, lrs=rates)
        s, sphere = runs.inverse_rates, runs.sphere
        law = ((s[1:] - s[:-1] - sphere.square() / s[:-1]) / s[1:]).abs()
        bound = (2 * sphere[0] / s[1]).max()
        if exact:
            assert runs.losses.isfinite().all() and law.max() < 1e-12 and bound <= 1 + 1e-12
            count = torch.arange(1, 31)[:, None]
            assert (sphere.cummin(0).values * count.sqrt() <= s[-1] * (1 + 1e-12)).all()
        else:
            assert law.nan_to_num(1).max() > 1e-2 and not (s[1] >= 2 * sphere[0]).all()


def test_rates_mirrored_about_the_fold_meet_after_one_step():
    probe = train_together([mlp(WIDTHS, BN)], itertools.repeat(data()), NAMES, 1, lrs=1.0)
    middle = probe.norms[0, 0] ** 2 / probe.sphere[0, 0]
    runs = train_together(
        [mlp(WIDTHS, BN)] * 3, itertools.repeat(data()), NAMES, 1, lrs=[middle / 50, middle, middle * 50]
    )
    torch.testing.assert_close(runs.inverse_rates[1, 0], runs.inverse_rates[1, 2])
    torch.testing.assert_close(runs.inverse_rates[1, 1], 2 * runs.sphere[0, 1])


def test_momentum_grows_the_norm_by_its_memory():
    moved = torch.rand(20, 2, dtype=torch.float64)
    naive = [moved[t] ** 2 + 2 * sum(0.7 ** (t - k) * moved[k] ** 2 for k in range(t)) for t in range(20)]
    torch.testing.assert_close(momentum_growth(moved, 0.7), torch.stack(naive))
    for norm, exact in ((BN, True), (LN, True), (None, False)):
        runs = train_together([mlp(WIDTHS, norm)], batches(data(), 20), NAMES, 40, lrs=0.1, momenta=0.9)
        growth = runs.norms.square().diff(dim=0)
        error = (momentum_growth(runs.moved, 0.9) - growth).abs().max() / growth.abs().max()
        assert error < 1e-12 if exact else error > 1e-2


def test_projected_runs_obey_pythagoras():
    runs = train_together(
        [mlp(WIDTHS, BN)] * 2, batches(data(), 20), NAMES, 40, lrs=0.1, momenta=0.9, projected=[True, False]
    )
    error = (runs.norms.square().diff(dim=0) - runs.moved.square()).abs() / runs.norms[1:].square()
    assert error[:, 0].max() < 1e-14 and error[:, 1].max() > 1e-3


@pytest.mark.parametrize("base", [partial(torch.optim.SGD, lr=0.1, momentum=0.9), partial(torch.optim.Adam, lr=0.01)])
@pytest.mark.parametrize(("norm", "rows"), [(BN, True), (LN, False)], ids=["BN", "LN"])
def test_projected_optimizer_against_a_naive_one(base, norm, rows):
    """The naive one knows which parameters are invariant; the buffers of both see the same gradients."""
    model, naive = mlp(WIDTHS, norm), mlp(WIDTHS, norm)
    train(model, batches(data(), 20), TangentialSteps(base(model.parameters()), delta=1e-6), 15)
    inner, stream = base(naive.parameters()), batches(data(), 20)
    for _ in range(15):
        inner.zero_grad()
        cross_entropy(next(stream))(naive).backward()
        old = {name: naive.get_parameter(name).detach().clone() for name in NAMES}
        inner.step()
        with torch.no_grad():
            for name, w in old.items():
                p = naive.get_parameter(name)
                for row in range(len(w)) if rows else [slice(None)]:
                    step = p[row] - w[row]
                    p[row] = w[row] + step - (step * w[row]).sum() / (w[row] ** 2).sum() * w[row]
    for (name, p), q in zip(model.named_parameters(), naive.parameters(), strict=True):
        torch.testing.assert_close(p, q, msg=name)


def test_tangential_steps_and_their_limits():
    w, step = torch.randn(2, 4, 3, 2, 2, dtype=torch.float64)
    assert (tangential(step, w) * w).flatten(1).sum(1).abs().max() < 1e-12
    assert torch.equal(tangential(step, torch.zeros_like(w)), step)
    model = mlp(WIDTHS)
    with pytest.raises(ValueError, match="weight_decay > 0"):
        TangentialSteps(torch.optim.AdamW(model.parameters()))
    optimizer = TangentialSteps(torch.optim.SGD(model.parameters(), lr=0.1))

    def closure():
        optimizer.zero_grad()
        (loss := cross_entropy(data())(model)).backward()
        return loss

    assert optimizer.step(closure) > optimizer.step(closure)


def test_a_share_of_the_labels_is_drawn_anew():
    y = torch.zeros(4000, dtype=torch.long)
    assert 0.13 < (noisy_labels(y, 0.2) != 0).double().mean() < 0.23
    assert torch.equal(noisy_labels(y, 0.0), y) and not torch.equal(noisy_labels(y, 0.2, seed=1), noisy_labels(y, 0.2))


def test_full_scale_networks_at_toy_size():
    x, y, *_ = digits_on_photos(60, dtype=torch.float64)
    models = [convnet((3, 4), BN, seed=seed) for seed in range(2)]
    names = [n for n, p in models[0].named_parameters() if p.dim() > 1 and not n.startswith("head")]
    runs = train_together(models, batches((x, y), 16), names, 3, lrs=[0.1, 1e3], momenta=0.9)
    growth = runs.norms.square().diff(dim=0)
    assert names == ["conv1.weight", "conv2.weight"]
    torch.testing.assert_close(momentum_growth(runs.moved, 0.9), growth, rtol=1e-9, atol=1e-9)


def test_every_tenth_batch_is_the_whole_data():
    x, y = data()
    seen = list(itertools.islice(interrupted((x, y), 7, every=10, seed=1), 20))
    assert [len(b[1]) for b in seen] == 2 * [*9 * [7], 60] and seen[9][0] is x
    again = next(interrupted((x, y), 7, every=10, seed=1))
    assert torch.equal(again[0], seen[0][0]) and not torch.equal(seen[0][0], seen[1][0])
    assert all((x == row).all(1).nonzero()[0] in (y == label).nonzero() for row, label in zip(*again, strict=True))


def test_growth_is_paid_for_with_loss_unless_gradients_are_noisy():
    rates = torch.tensor([0.1, 10.0], dtype=torch.float64)
    ratio = {}
    for name, stream in (("whole", itertools.repeat(data())), ("noisy", interrupted(data(), 10, every=2))):
        models = [mlp((5, 3)).append(BN(3, affine=False)) for _ in rates]
        runs = train_together(models, stream, ["head.weight"], 400, lrs=rates)
        s, losses = runs.inverse_rates, runs.losses
        ratio[name] = (s[-1] - s[1]) / (2 * (losses[1] - losses[-1])).abs()
    assert ((ratio["whole"] > 0.45) & (ratio["whole"] < 1)).all() and (ratio["noisy"] > 1).all()


def test_granularity_of_a_network_that_is_not_ours():
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic")
    model = transformers.ResNetForImageClassification(config).double()
    for m in model.modules():
        m.eps = 1e-30 if isinstance(m, nn.BatchNorm2d) else None
    x, y = torch.randn(4, 3, 32, 32, dtype=torch.float64), torch.tensor([0, 1, 1, 0])
    found = scale_invariance(model, lambda m: m(pixel_values=x, labels=y).loss)
    convolutions = {f"{n}.weight" for n, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    assert {n for n, kind in found.items() if kind == "row"} == convolutions and len(convolutions) >= 4
    assert {n for n, kind in found.items() if kind == "none"} == set(found) - convolutions != set()


def test_hidden_weights_are_the_invariant_ones():
    for norm, kind in ((BN, "row"), (LN, "tensor"), (None, "none")):
        model = mlp(WIDTHS, norm)
        found = scale_invariance(model, cross_entropy(data()))
        assert {found[n] for n in hidden_weights(model)} == {kind} and found["head.weight"] == "none"
