"""Constraint numbers and features against naive references; the experiments of their chapter at toy size."""

import math
from functools import partial

import pytest
import torch
from torch import nn

import normsurvey as ns
from normsurvey.analysis import (
    constraint_number,
    correlation,
    correlation_profile,
    effective_rank,
    layer_outputs,
    mean_correlation,
    participation_ratio,
)
from normsurvey.experiments import representation as lab
from normsurvey.experiments.classifiers import convnet
from normsurvey.experiments.data import digit_images, digits_on_photos


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- The count ------------------------------------------------------------------------------------------


def dense_rank(function, x, step=1e-6):
    """Rank by central differences, entry by entry: knows nothing of backpropagation."""
    columns = []
    for k in range(x.numel()):
        e = torch.zeros(x.numel(), dtype=x.dtype)
        e[k] = step
        e = e.view_as(x)
        columns.append((function(x + e) - function(x - e)).flatten() / (2 * step))
    values = torch.linalg.svdvals(torch.stack(columns, 1))
    return int((values > 1e-6 * values[0]).sum())


@pytest.mark.parametrize("module", [nn.LayerNorm(6), nn.BatchNorm1d(6, eps=1e-300), nn.Linear(6, 4), nn.Softmax(1)])
def test_the_count_agrees_with_finite_differences(module):
    module, x = module.double(), 1 + 2 * drawn(7, 6)
    if isinstance(module, nn.LayerNorm):
        module.eps = 0.0
    found = constraint_number(module, x)
    assert found.rank == dense_rank(module, x) and found.number == module(x).numel() - found.rank
    assert found.error < 1e-6 and found.gap < 1e-9


def test_a_map_that_keeps_everything_and_one_that_keeps_nothing():
    assert constraint_number(torch.sinh, drawn(3, 4)).number == 0
    signs = ns.LayerNorm(2, eps=0.0, fused=False, dtype=torch.float64)  # two channels become -1 and 1
    assert constraint_number(signs, drawn(5, 2)).number == 10


def test_buffers_stay_and_hidden_derivatives_show():
    layer, x = ns.BatchNorm(3, dtype=torch.float64), drawn(6, 3)
    before = {k: v.clone() for k, v in layer.named_buffers()}
    constraint_number(layer, x)
    assert all(torch.equal(v, before[k]) for k, v in layer.named_buffers())
    hidden = constraint_number(lambda x: x / x.detach().norm(), x)
    assert hidden.number == 0 and hidden.error > 1e-3, "backpropagation is told that nothing was taken"


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="float64"):
        constraint_number(torch.sinh, torch.zeros(2))
    with pytest.raises(ValueError, match="tolerance=2"):
        constraint_number(torch.sinh, drawn(2), tolerance=2)
    with pytest.raises(ValueError, match="does not depend"):
        constraint_number(lambda x: torch.ones_like(x), drawn(2))


def test_seven_formulas():
    assert all(found.number == formula for found, formula in lab.seven(5).values())


def test_every_whitening_of_the_catalogue_is_found_and_counted():
    names, kinds = set(), set()
    for label, layer, shape in lab.whitenings():
        names.add(label.split()[0])
        kinds.add(layer.operation.kind)
        if label in ("PCAWhitening", "CholeskyWhitening", "GroupWhitening (zca)"):
            assert lab.deficit(layer, shape, 7).number == lab.predicted(layer, shape), label
    assert names >= {"DecorrelatedBatchNorm", "PCAWhitening", "CholeskyWhitening", "IterNorm", "GroupWhitening"}
    assert kinds == {"zca", "pca", "cholesky", "newton"}


def test_no_whitening_is_left_out_in_silence():
    layers = [n for n, r in ns.catalogue.items() if r.kind == "layer"]
    examples = {n: ns.create(n, e.num_features, **e.options) for n in layers if (e := ns.catalogue[n].example)}
    whiten = {n for n, layer in examples.items() if isinstance(layer.operation, ns.Whiten)}
    counted = {label.split()[0] for label, *_ in lab.whitenings()}
    assert whiten - counted == set(lab.EXCLUDED) == {"ChannelEquilibrium"} and not counted - whiten


def test_a_mixture_with_all_weight_on_one_covariance_is_counted_over_its_area():
    mixtures = {label: row for label, *row in lab.whitenings() if label.startswith("SwitchableWhitening")}
    for (label, (layer, shape)), formula in zip(mixtures.items(), (2 * 9, 2 * 2 * 9), strict=True):
        assert lab.predicted(layer, shape) == formula == lab.deficit(layer, shape, 7).number, label


def test_a_whitening_that_keeps_the_mean_takes_the_covariance_alone():
    found, formula = lab.channel_equilibrium(7)
    assert found.number == formula == 12 and found.gap < 1e-9


def test_plain_layers_of_the_catalogue_are_predicted_from_their_areas():
    layers = dict(lab.plain_layers())
    assert len(layers) >= 12 and {"BatchNorm", "PixelNorm", "MeanOnlyBatchNorm", "GhostBatchNorm"} <= layers.keys()
    for name in ("PixelNorm", "GhostBatchNorm", "MeanOnlyBatchNorm"):
        assert lab.deficit(layers[name], (4, 4, 2, 2), 7).number == lab.predicted(layers[name], (4, 4, 2, 2)), name


def test_newton_steps_take_only_means_and_a_scale_until_they_converge():
    assert [lab.newton_constraints(t, 7).number for t in (0, 2, 14)] == [6, 6, 20]


def test_eval_mode_takes_nothing():
    layer = lab.exact("DecorrelatedBatchNorm", 4, group_size=None)
    layer(lab.generic_input((9, 4), 1))
    assert lab.deficit(layer, (9, 4), 0).number > 0 == lab.deficit(layer.eval(), (9, 4), 0).number


# --- Features -------------------------------------------------------------------------------------------


def test_correlation_is_numpy_s():
    x = drawn(9, 3, 4) @ drawn(4, 4, seed=1)
    expected = torch.corrcoef(x.movedim(1, 0).flatten(1))
    torch.testing.assert_close(correlation(x), expected)
    torch.testing.assert_close(correlation(x.movedim(1, -1), channel_dim=-1), expected)
    off = expected[~torch.eye(3, dtype=torch.bool)]
    assert mean_correlation(x) == pytest.approx(off.abs().mean().item())


def test_constant_channels_are_left_out():
    x = drawn(50, 3)
    x[:, 1] = 7.3
    assert correlation(x)[1].isnan().all() and mean_correlation(x) == pytest.approx(mean_correlation(x[:, [0, 2]]))


def test_ranks_of_known_spectra():
    q = torch.linalg.qr(torch.cat([torch.ones(20, 1, dtype=torch.float64), drawn(20, 4)], 1))[0][:, 1:]  # centred
    assert effective_rank(q) == pytest.approx(4) and participation_ratio(q) == pytest.approx(4)
    s = torch.tensor([3.0, 2.0, 1.0, 1.0], dtype=torch.float64)
    p = s / s.sum()
    assert effective_rank(q * s + 5) == pytest.approx(math.exp(-(p * p.log()).sum().item()))
    assert participation_ratio(q * s + 5) == pytest.approx((s**2).sum().item() ** 2 / (s**4).sum().item())
    assert effective_rank(q[:, :1] @ torch.ones(1, 6, dtype=torch.float64)) == pytest.approx(1)
    with pytest.raises(ValueError, match="at least two samples"):
        effective_rank(drawn(1, 4))


def test_profile_of_any_model_and_what_it_leaves_alone():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(144, 5))
    x, seen = torch.randn(6, 1, 8, 8), model[1].running_mean.clone()
    profile = correlation_profile(model, lambda m: m(x).mean(), ["0", "1", "2"])
    outputs = layer_outputs(model, lambda m: m(x), ["1", "4"])
    assert torch.equal(model[1].running_mean, seen) and not model[1]._forward_hooks
    assert outputs["1"].min() < 0, "a copy from before the activation in place"
    assert profile["1"].correlation == pytest.approx(mean_correlation(outputs["1"])) and profile["1"].channels == 4
    assert profile["0"].correlation == pytest.approx(profile["1"].correlation, abs=1e-4)
    assert list(layer_outputs(model, lambda m: m(x))) == ["0", "1", "2", "3", "4"]
    with pytest.raises(ValueError, match="no modules"):
        layer_outputs(model, lambda m: m(x), ["9"])
    with pytest.raises(ValueError, match="exactly once"):
        layer_outputs(model, lambda m: m(m(x).view(-1)[:4].view(1, 1, 2, 2).repeat(1, 1, 4, 4)), ["0"])


# --- Experiments at toy size ----------------------------------------------------------------------------


def test_wall():
    assert lab.left_over(4, 36) > 0 > lab.left_over(9, 36)
    assert lab.white_share(4, 36, 0) == pytest.approx(1, abs=1e-6)
    assert lab.white_share(9, 36, 0) == pytest.approx(3 / 9, rel=1e-3), "four columns, centred: rank 3 of 9"
    plain, restored = (lab.group_whitened(18, 0, channels=36, steps=21, restored=r) for r in (False, True))
    assert restored < plain


def test_batch_wall():
    assert lab.batch_white_share(12, 12, 5) == pytest.approx(11 / 12, abs=1e-4)
    assert lab.batch_white_share(12, 13, 5) == pytest.approx(1, abs=1e-3)


def test_simplex():
    before, after, spread = lab.batch_geometry(15, 16, 0, draws=3)
    assert spread < 1e-8 and after < before
    assert lab.batch_geometry(8, 16, 0, draws=3)[2] > 1e-2


def test_only_one_part_is_trained():
    model = lab.resnet((4, 8), partial(ns.create, "BatchNorm"), seed=0)
    counts = {arm: lab.train_only(arm, model, 0) for arm in ("gain and bias", "random weights", "head")}
    assert counts["gain and bias"] == counts["random weights"] == lab.gains(model).numel() * 2
    assert counts["head"] == 8 * 10 + 10
    x, y, *_ = digit_images()
    lab.train_only("random weights", model, 0)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    lab.nets.train(model, lab.nets.batches((x, y), 32), lab.nets.sgd(model, 0.5), 3)
    moved = {n: int((p != before[n]).sum()) for n, p in model.named_parameters()}
    assert 0 < sum(moved.values()) <= counts["random weights"]
    assert not any(moved[n] for n, p in model.named_parameters() if p.dim() == 1 or n.startswith("head"))
    with pytest.raises(ValueError, match="arm='bias'"):
        lab.train_only("bias", model)


def test_full_scale_path_at_toy_size():
    data = digits_on_photos(160)
    accuracy, model = lab.trained_only("gain and bias", 0, data, (4, 4, 8), 2, 1.0, wrap=lambda batches: batches)
    assert 0 <= accuracy <= 1 and lab.gains(model).numel() == 4 * 5 + 8 * 3
    net = convnet((4, 8), partial(ns.create, "GroupWhitening", num_groups=4), dtype=torch.float32)
    outputs = layer_outputs(net, lambda m: m(data[0][:16]), ["norm1", "norm2"])
    assert max(lab.within_samples(o, 4) for o in outputs.values()) < 0.3


def test_within_samples_is_the_naive_mean():
    h = drawn(3, 8, 5)
    naive = [mean_correlation(sample.view(4, 10), 0) for sample in h]
    assert lab.within_samples(h, 4) == pytest.approx(sum(naive) / 3)
