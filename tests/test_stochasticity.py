"""Noise of batch statistics: tools against naive references, experiments at toy size, and what has to fail."""

import math

import pytest
import torch
from torch import nn

import normsurvey as ns
from normsurvey.analysis import (
    calibration_error,
    disturbance,
    estimation_shift,
    outputs_over_batches,
    predictions_over_batches,
    reliability,
)
from normsurvey.experiments import stochasticity as st


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network(norm=nn.BatchNorm1d, features=4):
    """Two norms, of which the first has seen data; biases and dropout, which must rest, included."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(6, features),
        norm(features),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(features, features),
        norm(features),
    )
    return model.double()


# --- Tools ----------------------------------------------------------------------------------------------


def naive_batch_norm(x):
    return (x - x.mean(0)) / (((x - x.mean(0)) ** 2).mean(0) + 1e-5).sqrt()


@pytest.mark.parametrize("size", [2, 5])
def test_outputs_over_batches_normalizes_each_sample_in_its_own_batches(size):
    samples, pool = random(3, 4), random(20, 4, seed=1)
    out = outputs_over_batches(nn.BatchNorm1d(4).double(), samples, pool, size, draws=7, seed=3)
    generator = torch.Generator().manual_seed(3)
    for p in range(3):
        for draw in range(7):
            others = pool[torch.randperm(20, generator=generator)[: size - 1]]
            expected = naive_batch_norm(torch.cat([samples[p : p + 1], others]))[0]
            assert torch.allclose(out[p, draw], expected, atol=1e-12)


def test_modules_called_with_one_seed_meet_the_same_batches_and_keep_their_buffers():
    samples, pool = random(2, 4), random(20, 4, seed=1)
    ours, torchs = ns.BatchNorm(4, dtype=torch.float64), nn.BatchNorm1d(4).double()
    state = {k: v.clone() for k, v in torchs.state_dict().items()}
    both = [outputs_over_batches(m, samples, pool, 6, draws=5) for m in (ours, torchs)]
    assert torch.allclose(*both, atol=1e-12)
    assert all(torch.equal(v, torchs.state_dict()[k]) for k, v in state.items()) and torchs.training


def test_disturbance_is_the_mean_distance_from_the_mean():
    out = random(3, 6, 2, 2)
    for p in range(3):
        center = sum(out[p]) / 6
        expected = sum(math.sqrt(((o - center) ** 2).sum()) for o in out[p]) / 6
        assert disturbance(out)[p].item() == pytest.approx(expected, rel=1e-12)
    scalars = random(3, 6)
    assert torch.allclose(disturbance(scalars), (scalars - scalars.mean(1, keepdim=True)).abs().mean(1))


@pytest.mark.parametrize("norm", [nn.BatchNorm1d, ns.BatchNorm])
def test_predictions_over_batches_uses_the_batch_alone(norm):
    model, x, pool = network(norm).eval(), random(3, 6), random(30, 6, seed=1)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    found = predictions_over_batches(model, x, pool, 8, draws=4, seed=5)
    generator = torch.Generator().manual_seed(5)
    for t in range(4):
        batch, rows = pool[torch.randperm(30, generator=generator)[:8]], x
        for layer in (model[0], model[1], model[2], model[4], model[5]):
            if isinstance(layer, type(model[1])):
                mean, var = batch.mean(0), batch.var(0, correction=0)
                batch, rows = ((v - mean) / (var + 1e-5).sqrt() for v in (batch, rows))
            else:
                batch, rows = layer(batch), layer(rows)
        assert torch.allclose(found[t], rows, atol=1e-10)
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in state.items())
    assert not any(m.training for m in model.modules())


def test_predictions_do_not_depend_on_who_else_is_predicted():
    model, x, pool = network(), random(5, 6), random(30, 6, seed=1)
    alone = predictions_over_batches(model, x[:1], pool, 8, draws=3)
    assert torch.allclose(predictions_over_batches(model, x, pool, 8, draws=3)[:, :1], alone, atol=1e-12)
    assert model.training and model[3].training


def test_estimation_shift_against_hand_made_statistics():
    model, x = network().eval(), random(50, 6)
    first, second = model[1], model[5]
    inputs = model[0](x).detach()
    first.running_mean.copy_(inputs.mean(0) + 0.5 * inputs.std(0, correction=0))
    first.running_var.copy_(inputs.var(0, correction=0) * math.exp(0.6))
    inputs = model[:5](x).detach()
    second.running_mean.copy_(inputs.mean(0))
    second.running_var.copy_(inputs.var(0, correction=0))
    shift = estimation_shift(model.train(), x)
    assert list(shift) == ["1", "5"] and model.training
    assert (shift["1"].mean, shift["1"].std) == pytest.approx((0.5, 0.3), rel=1e-9)
    assert max(shift["5"].mean, shift["5"].std) < 1e-9


def test_estimation_shift_leaves_out_dead_channels_and_refuses_constants():
    model = nn.Sequential(nn.BatchNorm1d(2)).double()
    x = torch.stack([random(9), torch.ones(9, dtype=torch.float64)], 1)
    assert math.isfinite(estimation_shift(model, x)["0"].std)
    with pytest.raises(ValueError, match="receives constants"):
        estimation_shift(model, torch.ones_like(x))


def test_calibration_error_against_a_loop():
    p, labels = random(200, 5).mul(2).softmax(1), torch.randint(5, (200,), generator=torch.Generator().manual_seed(1))
    expected, bins = 0.0, 7
    for k in range(bins):
        inside = [i for i in range(200) if k / bins < p[i].max() <= (k + 1) / bins]
        if inside:
            sure = sum(p[i].max().item() for i in inside) / len(inside)
            right = sum((p[i].argmax() == labels[i]).item() for i in inside) / len(inside)
            expected += len(inside) / 200 * abs(sure - right)
    assert calibration_error(p, labels, bins) == pytest.approx(expected, rel=1e-12)
    assert reliability(p, labels, bins)[2].sum().item() == pytest.approx(1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: outputs_over_batches(nn.Identity(), x, x, 10), "batch_size=10"),
        (lambda x: outputs_over_batches(nn.Identity(), x, x, 0), "batch_size=0"),
        (lambda x: outputs_over_batches(nn.Identity(), x, x, 2, draws=0), "draws=0"),
        (lambda x: disturbance(x[:, :1]), "two draws"),
        (lambda x: predictions_over_batches(network(), x, x, 9), "batch_size=9"),
        (lambda x: predictions_over_batches(network(), x, x, 4, draws=0), "draws=0"),
        (lambda x: predictions_over_batches(nn.Linear(6, 2).double(), x, x, 4), "no batch normalization"),
        (lambda x: estimation_shift(network(), x, ["0"]), "layers="),
        (lambda x: reliability(x, torch.zeros(8).long()), "softmax"),
        (lambda x: reliability(x.softmax(1), torch.zeros(3).long()), "shape"),
        (lambda x: calibration_error(x.softmax(1), torch.zeros(8).long(), 0), "bins=0"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(random(8, 6))


# --- Experiments ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["BatchNorm", "ZCA in groups of 4", "ZCA", "Cholesky"])
def test_first_order_predicts_large_batches(kind):
    sample = st.cloud(0, 5000, probes=2)[1]
    measured = st.disturbances(kind, 0, (400,), draws=60, count=5000, probes=2)[400]
    assert 0.85 < (measured / st.predicted(kind, sample, 400)).mean() < 1.1


def test_first_order_against_sampled_perturbations():
    """The formulas, from random symmetric matrices with the stated variances: the part of E x alone."""
    x, d, n = random(1, 6), 6, 40_000
    noise = random(n, d, d, seed=1)
    noise = (noise + noise.mT) / math.sqrt(2)  # variance 1 off the diagonal, 2 on it
    for kind, part in (
        ("ZCA", noise / 2),
        ("Cholesky", noise.tril() - torch.diag_embed(noise.diagonal(dim1=1, dim2=2)) / 2),
    ):
        square = (part @ x[0]).square().sum(1).mean().item() + d
        assert st.predicted(kind, x, 1).item() ** 2 == pytest.approx(square, rel=0.03)
    with pytest.raises(ValueError, match="kind='PCA'"):
        st.predicted("PCA", x, 8)


@pytest.mark.parametrize("kind", st.KINDS)
def test_batches_side_by_side_do_not_mix(kind):
    pool, samples = st.cloud(0, 100, probes=2)
    together = st.outputs(kind, samples, pool, 20, draws=3, seed=4)
    assert torch.allclose(together, outputs_over_batches(st.layer(kind), samples, pool, 20, draws=3, seed=4))


def test_the_disturbance_along_depth_is_that_of_the_network_cut_there():
    net = st.trained(0, widths=(16, 8), steps=3)
    found = st.along_depth(net, 8, probes=2, draws=3)
    assert list(found) == ["norm1", "norm2", "head"] and not net.model.training
    for cut, name in ((2, "norm1"), (5, "norm2"), (7, "head")):
        out = outputs_over_batches(net.model[:cut].train(), net.x_test[:2], net.x, 8, draws=3)
        relative = (disturbance(out) / out.norm(dim=2).mean(1)).mean().item()
        assert found[name] == pytest.approx(relative, rel=1e-9)


def test_pca_does_not_calm_down_on_a_round_cloud_and_does_where_variances_differ():
    sizes = (32, 512)
    words = dict(draws=12, count=2000, probes=2)
    assert st.slope(st.disturbances("PCA", 0, sizes, **words)) > -0.2
    assert st.slope(st.disturbances("PCA", 0, sizes, ratio=2.0, **words)) < -0.4
    assert st.slope(st.disturbances("ZCA", 0, sizes, **words)) < -0.4


def test_two_samples_leave_signs_and_two_positions_do_not():
    assert st.off_one(0) < 1e-12 < 0.1 < st.off_one(0, positions=2)


def test_sweep_has_finite_scores_and_learns():
    found = st.sweep((8, 32), (0, 1), images=64, batch=32, steps=25, width=32)
    assert list(found) == [8, 32] and found[8]["test"]["loss"].shape == (2,)
    assert all(found[32]["train"]["accuracy"] > 0.6) and all(found[32]["train"]["loss"] < 1.5)


def test_networks_side_by_side_are_those_of_one_seed_each():
    x, seeds = random(4, 2, 3, 32, 32).float(), (3, 5)
    both = st.convnets((4, 6), st.small_batch.normalizer("BatchNorm 2", 2), seeds)
    out = both(x.flatten(1)).unflatten(1, (2, 10))
    for k, seed in enumerate(seeds):
        alone = st.nets.convnet((4, 6), lambda c: ns.GhostBatchNorm(c, ghost_size=2), seed=seed, dtype=torch.float32)
        assert torch.allclose(out[:, k], alone(x[:, k]), atol=1e-5)


def test_the_sweep_of_the_full_scale_at_toy_size():
    found = st.photo_sweep((2, 8), (0, 1), count=60, batch=8, steps=2, channels=(4, 6))
    assert found[2]["test"]["loss"].isfinite().all() and found[8]["train"]["accuracy"].shape == (2,)


@pytest.fixture(scope="module")
def net():
    return st.trained(0, widths=(32,), batch=64, steps=40)


def test_a_batch_of_everything_leaves_nothing_random(net):
    everyone = st.monte_carlo(net, net.x_test, len(net.x), 2)
    assert (everyone - st.deterministic(net, net.x_test)).abs().max() < 1e-4
    some = st.monte_carlo(net, net.x_test, 16, 8)
    assert some.std(0).max() > 0.05 and (some.sum(2) - 1).abs().max() < 1e-12
    assert st.averaged(net, net.x_test, net.y_test, len(net.x), 2) == pytest.approx(1, abs=1e-4)
    losses = [st.likelihood(p, net.y_test) for p in (some.mean(0), st.deterministic(net, net.x_test))]
    assert st.averaged(net, net.x_test, net.y_test, 16, 8) == pytest.approx(losses[0] / losses[1], rel=1e-12)


def test_temperature_meets_its_confidence(net):
    p, temperature = st.cooled(net, net.x_test, 0.6)
    assert p.amax(1).mean().item() == pytest.approx(0.6, abs=1e-6) and temperature > 1
    assert (p.argmax(1) == st.deterministic(net, net.x_test).argmax(1)).all()


def test_scores_of_predictions():
    low, high = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([2.0, 3.0])
    assert st.detection(low, high) == pytest.approx(5.5 / 6) and st.detection(high, high) == 0.5
    assert st.entropy(torch.tensor([[1.0, 0.0], [0.5, 0.5]])).tolist() == pytest.approx([0, math.log(2)])
    assert st.likelihood(torch.tensor([[0.25, 0.75]]), torch.tensor([0])) == pytest.approx(math.log(4))


def test_noise_and_shuffling_keep_shape_and_depend_on_the_seed():
    x = torch.arange(12.0).view(2, 6)
    assert torch.equal(st.shuffled(x, 0).sort(1)[0], x) and not torch.equal(st.noisy(x, 1, 0), st.noisy(x, 1, 1))
    assert torch.equal(st.noisy(x, 0.0, 0), x)
    twice = st.noisy(x, 1.0, 0, copies=2)
    assert twice.shape == (4, 6) and not torch.equal(twice[:2], twice[2:])


def test_precise_statistics_shift_less_than_running_averages():
    found = st.large_rate(0, depth=2, width=32, steps=20)
    running, precise = found["running averages"][2], found["precise"][2]
    assert len(running) == 2 and all(p.std < r.std for p, r in zip(precise, running, strict=True))
