"""Experiments of the chapter Smoothness at toy size: a bank is its members, noise is noise, diverged runs end."""

import copy
import math

import pytest
import torch
from torch import nn

import normsurvey as ns
from normsurvey.analysis import kurtosis
from normsurvey.experiments import classifiers as nets
from normsurvey.experiments import learning_rates, smoothness
from normsurvey.experiments.banks import Bank
from normsurvey.experiments.smoothness import UnitNoise, balances, draw_noise

SEEDS = range(2)
WIDTHS = (5, 8, 8, 8, 3)


def samples(seed, count=96):
    """Three classes, one around each of three points."""
    random = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % 3
    x = torch.randn(count, WIDTHS[0], generator=random, dtype=torch.float64)
    return x + 2 * torch.eye(3, WIDTHS[0], dtype=torch.float64)[y], y


DATA = {seed: samples(seed) for seed in SEEDS}


def network(norm, widths=WIDTHS):
    """The model of a seed."""
    return lambda seed: nets.mlp(widths, norm, seed=seed)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("norm", [None, nn.BatchNorm1d, nn.LayerNorm])
def test_a_bank_trains_each_member_as_alone(norm, momentum):
    lrs = (0.01, 0.3)
    bank = Bank([network(norm)(seed) for seed in SEEDS], lrs, momentum)
    streams = [nets.batches(DATA[seed], 32, seed) for seed in SEEDS]
    together = []
    for batch in zip(*streams, strict=True):
        together.append(bank.step(*(torch.stack(part) for part in zip(*batch, strict=True))))
        if len(together) == 12:
            break
    for seed, model in bank.write().items():
        alone = network(norm)(seed)
        optimizer = nets.sgd(alone, lrs[seed], momentum=momentum)
        losses = nets.train(alone, nets.batches(DATA[seed], 32, seed), optimizer, 12)
        torch.testing.assert_close(torch.stack(together)[:, seed], losses, rtol=1e-9, atol=1e-12)
        for (name, ours), theirs in zip(model.state_dict().items(), alone.state_dict().values(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10, msg=name)


def test_members_that_leave_a_bank_do_not_disturb_the_others():
    models = [network(nn.BatchNorm1d)(seed) for seed in SEEDS]
    bank, left = Bank(models, (0.1, 0.1)), copy.deepcopy(models[0])
    x, y = (part.expand(2, *part.shape) for part in DATA[0])
    bank.keep(torch.tensor([False, True]))
    assert bank.alive == [1] and list(bank.write()) == [1]
    first = bank.step(x[:1], y[:1])
    assert first.item() == pytest.approx(nets.cross_entropy(DATA[0])(network(nn.BatchNorm1d)(1)).item())
    bank.write()
    assert all(torch.equal(a, b) for a, b in zip(models[0].parameters(), left.parameters(), strict=True))


def test_follow_probes_every_member_and_drops_what_diverges():
    moments = smoothness.follow(
        network(None), DATA, (0.05, 1e200), steps=7, at=(0, 3, 6), batch_size=32, shift_at=(0.05,)
    )
    calm = [m for m in moments if m.lr == 0.05]
    assert [(m.seed, m.step) for m in calm] == [(s, t) for t in (0, 3, 6) for s in SEEDS]
    assert all(-1 <= m.cosine <= 1 for m in calm)
    assert max(m.step for m in moments if m.lr == 1e200) < 6
    assert all(math.isnan(m.cosine) for m in moments if m.lr == 1e200)
    at_start = network(None)(1)
    batch = next(nets.batches(DATA[1], 32, 1))
    assert calm[1].probe.value == pytest.approx(nets.cross_entropy(batch)(at_start).item())
    assert calm[1].cosine == pytest.approx(smoothness.mean_cosine(at_start, nets.cross_entropy(batch), 0.05))


def test_follow_ends_where_all_have_diverged():
    moments = smoothness.follow(network(None), DATA, (1e200,), steps=9, at=range(9), batch_size=32)
    assert {m.step for m in moments} == {0}


def test_noise_is_kept_until_the_next_draw_and_absent_in_eval_mode():
    noise, x = UnitNoise(4), torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(noise(x), x), "no noise before the first draw"
    draw_noise(noise, 1)
    first = noise(x)
    assert torch.equal(first, noise(x)) and not torch.allclose(first, x)
    torch.testing.assert_close(first, x * noise.scale + noise.shift)
    draw_noise(noise, 2)
    assert not torch.allclose(first, noise(x))
    draw_noise(noise, 1)
    assert torch.equal(first, noise(x)), "determined by the seed"
    assert torch.equal(noise.eval()(x), x)
    assert noise.train()(x.view(9, 4, 1, 1)).shape == (9, 4, 1, 1)


def test_new_noise_shifts_gradients_and_frozen_noise_does_not():
    def noisy(width):
        return nn.Sequential(nn.BatchNorm1d(width), UnitNoise(width))

    options = dict(steps=21, every=5, batch_size=32)
    ran = smoothness.follow_noisy(network(noisy)(0), DATA[0], samples(9), 0.05, **options)
    assert len(ran.cosines["new"]) == len(ran.cosines["frozen"]) == 5
    mean = {kind: sum(values) / len(values) for kind, values in ran.cosines.items()}
    assert mean["frozen"] > mean["new"] + 0.2
    plain = smoothness.follow_noisy(network(nn.BatchNorm1d)(0), DATA[0], samples(9), 0.05, **options)
    assert plain.cosines["new"] == plain.cosines["frozen"], "the control: without noise nothing is new"
    assert 0.5 < plain.accuracy <= 1


def test_sweep_gives_zero_to_what_diverges_and_agrees_with_training_alone():
    lrs = (0.03, 1e200)
    found = learning_rates.sweep(network(None), DATA, {s: samples(9) for s in SEEDS}, lrs, steps=25, batch_size=32)
    assert list(found) == [(s, lr) for s in SEEDS for lr in lrs]
    for seed in SEEDS:
        alone = network(None)(seed)
        nets.train(alone, nets.batches(DATA[seed], 32, seed), nets.sgd(alone, 0.03, momentum=0.9), 25)
        assert found[seed, 0.03] == pytest.approx(nets.accuracy(alone.eval(), samples(9)))
        assert found[seed, 0.03] > 0.5 and found[seed, 1e200] == 0
    assert learning_rates.largest_working({lr: found[0, lr] for lr in lrs}, 0.5) == 0.03
    assert math.isnan(learning_rates.largest_working({0.1: 0.2}))


def test_accuracy_of_a_sweep_is_the_mean_of_its_last_looks():
    tests = {s: samples(9) for s in SEEDS}
    options = dict(lrs=(0.03,), batch_size=32)
    alone = [learning_rates.sweep(network(None), DATA, tests, steps=steps, **options) for steps in (6, 9, 12)]
    found = learning_rates.sweep(network(None), DATA, tests, steps=12, looks=3, apart=3, **options)
    for member, value in found.items():
        assert value == pytest.approx(sum(run[member] for run in alone) / 3)


def test_a_sweep_ends_what_is_hopeless_half_way():
    tests = {s: samples(9) for s in SEEDS}
    options = dict(lrs=(1e-9, 0.1), steps=40, batch_size=32)
    everything = learning_rates.sweep(network(None), DATA, tests, **options)
    first = nets.cross_entropy(DATA[0])(network(None)(0)).item()
    found = learning_rates.sweep(network(None), DATA, tests, hopeless=0.75 * first, **options)
    assert found[0, 1e-9] == 0 < everything[0, 1e-9]
    assert found[0, 0.1] == everything[0, 0.1] > 0


def test_explosion_with_depth_and_its_end():
    deep = (5, *[16] * 10, 3)
    plain = learning_rates.anatomy(network(None, deep)(0), nets.batches(DATA[0], 32), 3.0)
    normed = learning_rates.anatomy(network(nn.BatchNorm1d, deep)(0), nets.batches(DATA[0], 32), 3.0)
    assert plain.losses.isfinite().all() and plain.outputs.shape == plain.gradients.shape == (len(plain.losses), 10)
    assert (plain.outputs[:, -1] / plain.outputs[:, 0]).max() > 1e3
    assert (normed.outputs[:, -1] < 20 * normed.outputs[:, 0]).all()
    ended = learning_rates.anatomy(network(None, deep)(0), nets.batches(DATA[0], 32), 1e200)
    assert len(ended.losses) == 1, "the second loss is not finite"
    calm = learning_rates.anatomy(network(None, deep)(0), nets.batches(DATA[0], 32), 1e-4)
    assert len(calm.losses) == 10 and calm.outputs[-1, -1] < 5 * calm.outputs[-1, 0]


def test_middle_gradient_is_that_of_the_layer_in_the_middle():
    model = network(None)(0)
    found = learning_rates.middle_gradient(model, DATA[0])
    nets.cross_entropy(DATA[0])(model).backward()
    torch.testing.assert_close(found, model.linear2.weight.grad.flatten())
    assert 1 < kurtosis(found) < 100


def test_the_identity_is_exact_without_eps_only():
    def errors(eps):
        model = network(lambda width: ns.BatchNorm(width, eps=eps, fused=False))(0)
        with torch.no_grad():
            for p in model.parameters():
                p += 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()), dtype=p.dtype)
        linear, norms = [[f"{kind}{k}" for k in (1, 2, 3)] for kind in ("linear", "norm")]
        return balances(model, nets.cross_entropy(DATA[0]), linear, norms)

    assert max(b.error for b in errors(0.0).values()) < 1e-12
    assert min(b.error for b in errors(1e-3).values()) > 1e-8
    layer = errors(0.0)["norm2"]
    assert (layer.passed < layer.outer).all()
    assert layer.unprojected > 1e-3
