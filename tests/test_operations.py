"""Operations beyond standardizing: what each definition promises, and inputs at the edges of float32."""

import math

import pytest
import torch
from contract import draw

import normsurvey as ns
from normsurvey.experiments import operations as experiments

F64 = {"dtype": torch.float64}


def channels(y):
    """(N, C, ...) as (C, values)."""
    return y.transpose(0, 1).flatten(1)


def gradient(layer, x, g):
    """Of ``(g * layer(x)).sum()`` at x."""
    x = x.clone().requires_grad_()
    return torch.autograd.grad((g * layer(x)).sum(), x)[0]


@pytest.fixture
def x():
    return draw("BatchNorm", (8, 6, 5, 5), mean=0.7)[0]


# --- Sizes ----------------------------------------------------------------------------------------------


def test_the_mean_absolute_deviation_becomes_one(x):
    y = ns.L1BatchNorm(6, eps=0.0, affine=False, fused=False, **F64)(x)
    torch.testing.assert_close(channels(y).abs().mean(1), torch.ones(6, **F64))
    y = ns.L1BatchNorm(6, eps=0.0, gaussian=True, affine=False, fused=False, **F64)(x)
    torch.testing.assert_close(channels(y).abs().mean(1), torch.full((6,), math.sqrt(2 / math.pi), **F64))


def test_the_gaussian_form_is_batch_normalization_of_a_gaussian():
    z = 3 + 2 * torch.randn(2000, 4, 10, 10, **F64)
    y, want = (ns.create(m, 4, **o, **F64)(z) for m, o in (("L1BatchNorm", {"gaussian": True}), ("BatchNorm", {})))
    assert (y - want).abs().max() < 0.02 * want.abs().max()


@pytest.mark.parametrize("fused", [True, False])
def test_the_second_power_is_batch_normalization_and_the_first_is_l1(x, fused):
    g = torch.randn_like(x)
    for p, twin in ((2.0, "BatchNorm"), (1.0, "L1BatchNorm")):
        layers = ns.LpBatchNorm(6, p=p, fused=fused, **F64), ns.create(twin, 6, fused=fused, **F64)
        torch.testing.assert_close(*(layer(x) for layer in layers), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(*(gradient(layer, x, g) for layer in layers), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("p", [0.5, 1.5, 3.0, 8.0])
def test_the_chosen_moment_becomes_one(x, p, fused):
    y = ns.LpBatchNorm(6, p=p, eps=1e-30, affine=False, fused=fused, **F64)(x)
    torch.testing.assert_close((channels(y).abs() ** p).mean(1), torch.ones(6, **F64))


def test_large_powers_approach_the_largest_deviation(x):
    y = ns.LpBatchNorm(6, p=200.0, eps=0.0, affine=False, fused=False, **F64)(x)
    n = x.numel() / 6
    assert ((1 <= channels(y).abs().amax(1)) & (channels(y).abs().amax(1) <= n ** (1 / 200) + 1e-12)).all()


def constant(n):
    return (1 + math.sqrt(math.pi * math.log(4))) / math.sqrt(8 * math.log(n))


def test_the_largest_deviation_has_a_fixed_size(x):
    y = ns.TopKBatchNorm(6, k=1, eps=0.0, affine=False, fused=False, **F64)(x)
    torch.testing.assert_close(channels(y).abs().amax(1), torch.full((6,), 1 / constant(200), **F64))


def test_all_deviations_are_the_mean_absolute_deviation(x):
    top, l1 = (ns.create(m, 6, eps=0.0, affine=False, fused=False, **o, **F64) for m, o in (
        ("TopKBatchNorm", {"k": 200}), ("L1BatchNorm", {})))  # fmt: skip
    torch.testing.assert_close(top(x), l1(x) / constant(200))


SIZES = [(1, 1000, 0.707), (1, 10000, 0.695), (10, 1000, 0.840), (10, 10000, 0.786)]


@pytest.mark.parametrize(("k", "n", "size"), SIZES)
def test_the_size_of_a_gaussian_that_the_largest_deviations_leave(k, n, size):
    y = ns.TopKBatchNorm(200, k=k, eps=0.0, affine=False, fused=False)(torch.randn(n, 200))
    assert abs(float(y.std(0).mean()) - size) < 0.02


def test_more_deviations_than_values_are_refused(x):
    with pytest.raises(ValueError, match="k=201 exceeds the 200 values"):
        ns.TopKBatchNorm(6, k=201, **F64)(x)
    mask = torch.zeros(8, 5, 5)
    mask[:, 0, 0] = 1
    with pytest.raises(ValueError, match="k=9 exceeds the 8 values"):
        ns.TopKBatchNorm(6, k=9, **F64)(x, mask=mask)
    for method_id in ("TopKBatchNorm", "GeneralizedBatchNorm"):
        with pytest.raises(ValueError, match="weights other than 0 and 1"):
            ns.create(method_id, 6, **F64)(x, mask=0.5 * torch.ones(8))


def test_wrong_options_are_explained():
    for build, words in (
        (lambda: ns.LpBatchNorm(6, p=0.0), "p=0.0 must be positive"),
        (lambda: ns.TopKBatchNorm(6, k=0), "k=0"),
        (lambda: ns.GeneralizedBatchNorm(6, deviation="variance"), "choose one of standard, median"),
        (lambda: ns.GeneralizedBatchNorm(6, alpha=1.0), "alpha=1.0"),
    ):
        with pytest.raises(ValueError, match=words):
            build()


# --- Pairs of a statistic and its deviation -------------------------------------------------------------


def risk(x, fused=False, **options):
    return ns.GeneralizedBatchNorm(6, affine=False, fused=fused, **options, **F64)(x)


def test_the_standard_pair_is_batch_normalization_but_for_where_eps_is(x):
    want = ns.BatchNorm(6, eps=1e-30, affine=False, **F64)(x)
    torch.testing.assert_close(risk(x, deviation="standard", eps=0.0), want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("fused", [True, False])
def test_half_of_the_values_are_not_above_the_median(x, fused):
    y = channels(risk(x, fused, deviation="median"))
    near = 1e-12  # the fused pass a x + b rounds
    assert ((y <= near).double().mean(1) >= 0.5).all() and ((y >= -near).double().mean(1) >= 0.5).all()
    torch.testing.assert_close(y, channels(risk(x, fused, alpha=0.5)))


def test_the_range_becomes_minus_one_to_one(x):
    y = channels(risk(x, deviation="range", eps=0.0))
    torch.testing.assert_close(torch.stack([y.amin(1), y.amax(1)]), torch.tensor([[-1.0], [1.0]], **F64).expand(2, 6))


@pytest.mark.parametrize("alpha", [0.3, 0.75, 0.9])
def test_the_superquantile_minimizes_the_tilted_distance(x, alpha):
    operation = ns.ScaleByRisk(alpha=alpha)
    found = operation.estimate(ns.Area("n c ... -> c"), entries(x))
    v = channels(x)[:, None]
    centres = torch.linspace(float(v.min()), float(v.max()), 4001, **F64)[None, :, None]
    tilted = (alpha / (1 - alpha) * (v - centres).relu() + (centres - v).relu()).mean(2)
    assert (found["deviation"].flatten() <= tilted.amin(1) + 1e-12).all()
    assert (found["deviation"].flatten() >= tilted.amin(1) - 1e-2).all()
    assert ((v[:, 0] <= found["location"].reshape(-1, 1)).double().mean(1) >= alpha).all()


def entries(x, **options):
    from normsurvey.entries import Entries

    return Entries(x.flatten(2), **options)


# --- Centring only, scaling only ------------------------------------------------------------------------


def test_centring_moves_the_mean_and_nothing_else(x):
    layer = ns.MeanOnlyBatchNorm(6, **F64)
    with torch.no_grad():
        layer.bias.copy_(torch.arange(6.0))
    y = layer(x)
    torch.testing.assert_close(channels(y).mean(1), layer.bias, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(channels(y).var(1), channels(x).var(1))
    g = gradient(layer, x, torch.randn_like(x))
    torch.testing.assert_close(channels(g).sum(1), torch.zeros(6, **F64), rtol=0, atol=1e-12)
    white = ns.BatchNorm(6, eps=1e-30, affine=False, **F64)(x)
    torch.testing.assert_close(ns.MeanOnlyBatchNorm(6, affine=False, **F64)(white), white)


def test_root_mean_squares(x):
    tokens = x.flatten(2).mT  # (N, L, C)
    y = ns.RMSNorm(6, eps=0.0, fused=False, channel_dim=-1, **F64)(tokens)
    torch.testing.assert_close(y.square().mean(-1), torch.ones(8, 25, **F64))
    full, part = (ns.RMSNorm(6, p=p, channel_dim=-1, **F64)(tokens) for p in (None, 1.0))
    torch.testing.assert_close(full, part)
    centred = tokens - tokens.mean(-1, keepdim=True)
    norms = [ns.create(m, 6, eps=1e-5, affine=False, channel_dim=-1, **F64) for m in ("RMSNorm", "LayerNorm")]
    torch.testing.assert_close(*(norm(centred) for norm in norms), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("channel_dim", [1, -1])
def test_variance_only_keeps_the_mean(x, channel_dim):
    x = x.flatten(2) if channel_dim == 1 else x.flatten(2).mT
    own = (1, 2) if channel_dim == 1 else (2,)
    y = ns.VarianceOnlyLayerNorm(6, eps=0.0, channel_dim=channel_dim, fused=False, **F64)(x)
    mean, std = x.mean(own, keepdim=True), x.var(own, keepdim=True, correction=0).sqrt()
    torch.testing.assert_close(y.var(own, correction=0), torch.ones_like(y.var(own)))
    torch.testing.assert_close(y.mean(own, keepdim=True), mean / std)
    plain = ns.LayerNorm(6, eps=0.0, affine=False, channel_dim=channel_dim, fused=False, **F64)(x)
    torch.testing.assert_close(y, plain + mean / std)
    simple = ns.VarianceOnlyLayerNorm(6, eps=0.0, center=True, channel_dim=channel_dim, fused=False, **F64)(x)
    torch.testing.assert_close(simple, plain)


def test_the_standardization_layer_is_batch_normalization_but_for_the_maximum(x):
    want = ns.BatchNorm(6, eps=1e-30, affine=False, **F64)(x)
    torch.testing.assert_close(ns.StandardizationLayer(6, **F64)(x), want)
    torch.testing.assert_close(ns.StandardizationLayer(6, eps=100.0, **F64)(x), (x - x.mean((0, 2, 3), True)) / 100)


# --- AdaNorm and DetachNorm -----------------------------------------------------------------------------


def test_adanorm_without_its_factor_is_layer_normalization(x):
    layers = ns.AdaNorm(6, k=0.0, **F64), ns.LayerNorm(6, affine=False, **F64)
    g = torch.randn_like(x)
    torch.testing.assert_close(*(layer(x) for layer in layers), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(*(gradient(layer, x, g) for layer in layers), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("correction", [0, 1])
def test_the_mean_of_adanorm(x, correction):
    y = ns.AdaNorm(6, scale=2.0, k=0.1, eps=0.0, correction=correction, fused=False, **F64)(x)
    n = x[0].numel()
    torch.testing.assert_close(y.mean((1, 2, 3)), torch.full((8,), -0.2 * (n - correction) / n, **F64))


def test_the_factor_of_adanorm_is_constant_in_the_backward_pass(x):
    plain, g = ns.LayerNorm(6, affine=False, **F64), torch.randn_like(x)
    want = gradient(plain, x, 2.0 * (1 - 0.1 * plain(x)) * g)
    torch.testing.assert_close(gradient(ns.AdaNorm(6, scale=2.0, **F64), x, g), want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("eps_outside", [False, True])
def test_detachnorm_divides_the_gradient_and_nothing_else(x, eps_outside):
    options = {"k": 0.0, "eps": 1e-2, "eps_outside": eps_outside}
    layer = ns.AdaNorm(6, detach_mean=True, detach_std=True, **options, **F64)
    torch.testing.assert_close(layer(x), ns.AdaNorm(6, **options, **F64)(x))
    var, g = x.var((1, 2, 3), keepdim=True, correction=0), torch.randn_like(x)
    deviation = var.sqrt() + 1e-2 if eps_outside else (var + 1e-2).sqrt()
    torch.testing.assert_close(gradient(layer, x, g), g / deviation)


# --- IsoBN ----------------------------------------------------------------------------------------------


def isotropic(x, **options):
    """IsoBN on the statistics of this batch alone."""
    layer = ns.IsoBN(x.shape[1], **({"momentum": 1.0, "eps": 1e-12} | options), **F64)
    return layer, layer(x)


def test_isotropic_scaling_keeps_the_total_variance(x):
    layer, y = isotropic(x)
    torch.testing.assert_close(y.var((0, 2, 3), correction=0).sum(), layer.running_cov.trace())
    g = torch.randn_like(x)
    torch.testing.assert_close(gradient(layer, x, g), g * (y / x))
    assert torch.allclose(isotropic(x, power=0.0)[1], x)


def test_what_isotropic_scaling_does_to_features_that_repeat_one_another():
    basis = torch.linalg.qr(torch.randn(50, 5, **F64) - 0.0)[0]
    basis = torch.linalg.qr(torch.cat([torch.ones(50, 1, **F64), basis], 1))[0][:, 1:5] * 50**0.5  # centred, white
    torch.testing.assert_close(isotropic(basis)[1], basis)
    twins = torch.cat([basis[:, :2], basis[:, 2:3], basis[:, 2:3]], 1)
    ratio = (isotropic(twins)[1] / twins)[0]
    torch.testing.assert_close(ratio[2] / ratio[0], torch.tensor(2**-0.5, **F64))


def test_the_authors_start_of_isotropic_scaling(x):
    layer = ns.IsoBN(6, zero_start=True, **F64)
    assert not layer.running_cov.any() and not layer.running_std.any()
    layer(x)
    cov = torch.cov(channels(x), correction=0)
    torch.testing.assert_close(layer.running_cov, 0.05 * cov)
    torch.testing.assert_close(layer.running_std, 0.05 * cov.diagonal().sqrt())


# --- The edges of float32 -------------------------------------------------------------------------------

LAYERS = {
    "L1BatchNorm": [{}, {"gaussian": True}], "LpBatchNorm": [{"p": p} for p in (0.5, 1.0, 1.5, 2.0, 3.0, 8.0)],
    "TopKBatchNorm": [{"k": 1}, {"k": 5}], "StandardizationLayer": [{}],
    "GeneralizedBatchNorm": [{"deviation": d} for d in ("standard", "median", "range", "superquantile")],
    "VarianceOnlyLayerNorm": [{}, {"channel_dim": -1}], "MeanOnlyBatchNorm": [{}],
    "RMSNorm": [{}, {"channel_dim": -1}, {"eps": 1e-8, "eps_outside": True}], "PixelNorm": [{}],
    "AdaNorm": [{}, {"channel_dim": -1}, {"eps_outside": True}, {"detach_mean": True, "detach_std": True}],
    "IsoBN": [{}, {"zero_start": True}],
}  # fmt: skip
CASES = [(method_id, options) for method_id, variants in LAYERS.items() for options in variants]
EXTREMES = {
    "constant": lambda z: torch.full_like(z, 3.3),
    "zero": torch.zeros_like,
    "one zero channel": lambda z: z * (torch.arange(6) > 0).view(1, 6, 1, 1),
    "mean 1e4": lambda z: z + 1e4,
    "mean 1e4, constant": lambda z: torch.full_like(z, 1e4 / 3),
    "1e-20": lambda z: z * 1e-20,
    "1e12": lambda z: z * 1e12,
    "1e18": lambda z: z * 1e18,
    "one outlier": lambda z: z.index_put((torch.tensor(0),) * 4, torch.tensor(1e12)),
}


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "composed"])
@pytest.mark.parametrize("extreme", EXTREMES)
@pytest.mark.parametrize(("method_id", "options"), CASES, ids=[f"{m}-{o}" for m, o in CASES])
def test_nothing_is_infinite_at_the_edges_of_float32(method_id, options, extreme, fused):
    x = EXTREMES[extreme](torch.randn(4, 6, 5, 5, generator=torch.Generator().manual_seed(0)))
    layer = ns.create(method_id, 6, fused=fused, **options)
    for training in (True, False):
        leaf = (x if options.get("channel_dim") != -1 else x.movedim(1, -1)).clone().requires_grad_()
        y = layer.train(training)(leaf)
        y.backward(torch.cos(torch.arange(600.0)).view_as(y))
        assert y.isfinite().all() and leaf.grad.isfinite().all()
        assert all(b.isfinite().all() for b in layer.buffers())
        assert all(p.grad.isfinite().all() for p in layer.parameters())


@pytest.mark.parametrize("name", list(experiments.DETACHED))
def test_the_closed_form_of_the_detached_variants_is_the_layers_own_gradient(name, eps=0.1):
    x, g = torch.randn(2, 3, 7, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    layer = experiments.detached(name, eps)
    one, other = (x.clone().requires_grad_() for _ in range(2))
    y, z = layer(one.flatten(0, 1)).view_as(x), experiments.normalize(other, name, eps)
    torch.testing.assert_close(y, z)
    torch.testing.assert_close(torch.autograd.grad(y, one, g), torch.autograd.grad(z, other, g))


def test_stacked_layers_start_as_those_of_torch_or_plain():
    layers = experiments.stacked_layers((8, 16, 4), seeds=(0, 1), copies=3)
    assert [p["weight"].shape for p in layers] == [(6, 8, 16), (6, 16, 4)] and layers[0]["gain"].shape == (6, 1, 16)
    assert layers[0]["weight"].abs().max() <= 8**-0.5 and layers[1]["bias"].abs().max() <= 16**-0.5
    for weight in (p["weight"] for p in layers):
        assert torch.equal(weight[0], weight[2]) and not torch.equal(weight[0], weight[3])
    plain = experiments.stacked_layers((400, 400, 4), seeds=(0,), copies=1, plain=True)
    assert [list(p) for p in plain] == [["weight"], ["weight"]]
    assert plain[0]["weight"].var().item() == pytest.approx(2 / 400, rel=0.05)


def test_runs_that_are_trained_together_do_not_notice_each_other():
    both = experiments.train_together("mean detached", (0.01, 0.1), (0, 1), steps=3, depth=2, width=8)
    alone = experiments.train_together("mean detached", (0.1,), (1,), steps=3, depth=2, width=8)
    torch.testing.assert_close(both[1, 1], alone[0, 0])
    assert not torch.allclose(both[1, 0], alone[0, 0])
