"""Layers that stand in for a convolution: every one of the kind against its reference, under every option."""

import copy
import pickle

import pytest
import torch
from contract import answers, assert_same, computed, distance, draw, leaves, named, repeats
from torch import nn

import normsurvey as ns
from normsurvey.reference import REFERENCES
from normsurvey.reference import activations as _activations  # noqa: F401  registers the references

IDS = tuple(m for m, record in ns.catalogue.items() if record.kind == "conv replacement")
EVERY = pytest.mark.parametrize("method_id", IDS)
# Values of each option besides the example's; an option without values fails.
VALUES = {
    "bias": ({"bias": False},),
    "block_size": ({"block_size": 3}, {"block_size": 4}, {"block_size": 1}),
    "dilation": ({"dilation": 2, "padding": 2},),
    "eps": ({"eps": 1e-2},),
    "freeze_after": ({"freeze_after": 1},),
    "groups": ({"groups": 2},),
    "local": ({"local": "l1"}, {"local": "window"}),
    "momentum": ({"momentum": None}, {"momentum": 0.4}),
    "num_iterations": ({"num_iterations": 0}, {"num_iterations": 9}),
    "padding": ({"padding": 1}, {"padding": (0, 2)}),
    "running": ({"running": "covariance"},),
    "sampling_stride": ({"sampling_stride": 2}, {"sampling_stride": 2, "kernel_size": 1, "stride": 2}),
    "stride": ({"stride": 2}, {"kernel_size": (1, 3), "stride": (1, 2)}),
    "window_size": ({"local": "window", "window_size": 3},),
}  # fmt: skip


def options_of(layer):
    """All arguments of a layer, positional ones included."""
    given = layer.record.signature.parameters
    defaults = {n: p.default for n, p in given.items() if p.default is not p.empty}
    sizes = dict(zip(("in_channels", "out_channels", "kernel_size"), layer.sizes, strict=True))
    return defaults | sizes | layer.options


def build(method_id, dtype=torch.float64, device="cpu", **options):
    """The example with buffers moved away from where they start."""
    torch.manual_seed(0)
    layer = ns.catalogue[method_id].build(dtype=dtype, device=device, **options)
    with torch.no_grad():
        layer.running_mean.add_(0.3 * torch.randn_like(layer.running_mean))
        for name in ("running_whitening", "running_cov"):
            if hasattr(layer, name):
                noise = 0.1 * torch.randn_like(getattr(layer, name))
                getattr(layer, name).add_(noise @ noise.mT)
    return layer


def expected(layer, x):
    """What the reference says: output, gradients and buffers after this input."""
    double = {"device": "cpu", "dtype": torch.float64}
    parameters = {k: leaves(v, **double) for k, v in layer.named_parameters()}
    buffers = {k: v.detach().clone().cpu().double() for k, v in layer.named_buffers()}
    x = leaves(x, **double)
    y, new = REFERENCES[layer.record.id](x, parameters | buffers, options_of(layer), layer.training)
    return answers(y, named(x, parameters, None)) | buffers | {k: v.double() for k, v in new.items()}


def follows(layer, batches, tolerance, steep=None):
    """Training on each batch, then inference on the last."""
    for training, x in [*((True, x) for x in batches), (False, batches[-1])]:
        layer.train(training)
        want = expected(layer, x)
        assert_same(computed(layer, x), want, tolerance, steep)


def test_every_conv_replacement_has_a_reference_a_case_and_values_for_its_options():
    assert {"NetworkDeconvolution", "InvarianceTransform"} <= set(IDS) <= set(REFERENCES)
    for method_id in IDS:
        record = ns.catalogue[method_id]
        names = {n for n, p in record.signature.parameters.items() if p.kind is p.KEYWORD_ONLY}
        assert names <= set(VALUES) | {"device", "dtype"}, method_id
        parts = (record.area, record.operation, record.statistics, record.recovery)
        assert all(parts) and record.equation and record.summary
        with pytest.raises(ValueError, match=f"{method_id}.*in_channels, out_channels, kernel_size"):
            ns.create(method_id, 6)


@pytest.mark.parametrize("std", [0.1, 10.0])
@pytest.mark.parametrize("mean", [0.0, 1.0, 100.0])
@EVERY
def test_values_and_gradients_at_many_scales(method_id, mean, std, device):
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 2e-2)):
        drawn = [draw(method_id, mean=mean, std=std, seed=k, dtype=dtype, device=device)[0] for k in (0, 1)]
        if dtype is torch.float64 or mean < 100:  # folding the mean into the bias costs digits at 1000 deviations
            follows(build(method_id, dtype=dtype, device=device), drawn, tolerance, 1e-1 if tolerance > 1e-9 else None)


def variants(method_id):
    """Options moved away from the example's, one at a time."""
    known = ns.catalogue[method_id].signature.parameters
    return [o for name, values in VALUES.items() if name in known for o in values if set(o) <= set(known)]


CASES = [(m, o) for m in IDS for o in variants(m)]


@pytest.mark.parametrize(("method_id", "options"), CASES, ids=[f"{m}-{o}" for m, o in CASES])
def test_every_option(method_id, options, device):
    drawn = [draw(method_id, mean=0.5, seed=seed, device=device)[0] for seed in (0, 1)]
    follows(build(method_id, device=device, **options), drawn, 1e-10)


@EVERY
def test_derivatives_round_trips_and_precisions(method_id, device):
    layer, x = build(method_id, device=device), draw(method_id, (2, 6, 5, 5), device=device)[0]
    for training in (True, False):
        layer.train(training)
        again = lambda x: copy.deepcopy(layer)(x)  # noqa: E731  the buffers move
        for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
            assert check(again, x.requires_grad_(), fast_mode=True, nondet_tol=repeats(device))
    twin = eval(repr(layer), vars(ns)).to(device, torch.float64)
    twin.load_state_dict(layer.state_dict())
    for other in (twin, pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer)):
        assert repr(other) == repr(layer) and torch.equal(other.eval()(x), layer.eval()(x))
    half = ns.catalogue[method_id].build(device=device)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        y = half(x.bfloat16())
    assert y.dtype == torch.bfloat16 and y.isfinite().all()


@EVERY
def test_degenerate_values_give_finite_outputs_and_slopes(method_id, device):
    shape = (4, 6, 8, 8)
    normal = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
    zero = normal.clone()
    zero[:, 2] = 0
    cases = {"constant": torch.full_like(normal, 3.0), "zero": torch.zeros_like(normal), "zero channel": zero,
             "mean 1e4": normal + 1e4, "tiny": normal * 1e-20, "large": normal * 1e12}  # fmt: skip
    for name, x in cases.items():
        for options in ({}, {"num_iterations": 50}, {"kernel_size": 1}, *({"local": k} for k in ("l1", "window"))):
            if set(options) <= set(ns.catalogue[method_id].signature.parameters):
                layer = ns.catalogue[method_id].build(device=device, **options)
                leaf = x.clone().requires_grad_()
                y = layer(leaf)
                y.mean().backward()
                grads = [leaf.grad, *(p.grad for p in layer.parameters())]
                assert all(t.isfinite().all() for t in [y, *grads, *layer.buffers()]), (name, options)


@EVERY
def test_errors_name_argument_value_and_remedy(method_id):
    record = ns.catalogue[method_id]
    layer = record.build()
    for call, words in (
        (lambda: layer(torch.ones(2, 5, 8, 8)), ("(2, 5, 8, 8)", "(N, 6, H, W)")),
        (lambda: layer(torch.ones(2, 6, 8)), ("(2, 6, 8)",)),
        (lambda: layer(torch.ones(2, 6, 8, 8).long()), ("floating-point",)),
        (lambda: layer(torch.randn(1, 6, 3, 3)), ("at least 2", "eval()")),
        (lambda: record.build(groups=4), ("groups=4", "in_channels=6")),
        (lambda: record.build(running="mean"), ("running='mean'", "'covariance'")),
        (lambda: record.build(block_size=0), ("block_size=0",)),
    ):
        with pytest.raises(ValueError) as raised:
            call()
        assert all(word in str(raised.value) for word in words), raised.value
    with pytest.raises(TypeError, match="momentum"):
        record.build(momentun=0.1)
    assert layer.eval()(torch.ones(1, 6, 3, 3)).isfinite().all()
    before = copy.deepcopy(layer.state_dict())
    assert layer.train()(torch.ones(0, 6, 8, 8)).shape == (0, 4, 6, 6)
    assert all(torch.equal(v, before[k]) for k, v in layer.state_dict().items())


def test_statistics_of_patches_are_not_shared_and_are_refused_by_name():
    layers = [*(ns.catalogue[m].build() for m in IDS), ns.Delinear(6, 4), ns.ChannelDeconv(6)]
    assert all(ns.catalogue[m].merge == "not mergeable" for m in IDS)
    for layer in layers:
        with pytest.raises(ValueError, match=rf"1 \({type(layer).__name__}\).*cannot be merged"):
            ns.synchronize(nn.Sequential(nn.Identity(), layer))


def test_a_deconvolution_of_single_positions_is_a_convolution_of_the_whitened_input():
    x = draw("NetworkDeconvolution", mean=2.0)[0]
    layer = ns.NetworkDeconvolution(6, 4, 1, sampling_stride=1, num_iterations=60, dtype=torch.float64)
    white = ns.DecorrelatedBatchNorm(6, group_size=6, eps=1e-5, affine=False, dtype=torch.float64)(x)
    assert distance(layer(x), nn.functional.conv2d(white, layer.weight, layer.bias)) < 1e-10


def test_many_iterations_are_the_exact_root_and_the_patches_become_white():
    x = draw("NetworkDeconvolution", (16, 6, 8, 8), mean=2.0)[0]
    layer = ns.NetworkDeconvolution(6, 4, 3, sampling_stride=1, eps=1e-10, num_iterations=60, dtype=torch.float64)
    rows = layer.patches(x)
    mean, matrix = layer.whitening(rows)
    cov = (rows - mean[:, None]).mT @ (rows - mean[:, None]) / rows.shape[1]
    torch.testing.assert_close(matrix @ cov @ matrix, torch.eye(54, dtype=x.dtype)[None], rtol=0, atol=1e-6)


def test_a_delinear_layer_is_a_deconvolution_of_single_positions_and_its_blocks_are_consecutive():
    x = draw("NetworkDeconvolution", (50, 6), mean=1.0)[0]
    for running in ("whitening", "covariance"):
        linear = ns.Delinear(6, 4, running=running, dtype=torch.float64)
        conv = ns.NetworkDeconvolution(6, 4, 1, sampling_stride=1, running=running, dtype=torch.float64)
        conv.load_state_dict({k: v[..., None, None] if k == "weight" else v for k, v in linear.state_dict().items()})
        for training in (True, False):
            assert distance(linear.train(training)(x), conv.train(training)(x[..., None, None])[..., 0, 0]) < 1e-12
    blocks = ns.Delinear(6, 4, block_size=3, dtype=torch.float64)
    order = [0, 3, 1, 4, 2, 5]  # consecutive blocks, interleaved
    conv = ns.NetworkDeconvolution(6, 4, 1, block_size=3, sampling_stride=1, dtype=torch.float64)
    weight = blocks.state_dict()["weight"][:, order, None, None]
    conv.load_state_dict(blocks.state_dict() | {"weight": weight})
    assert distance(blocks(x), conv(x[:, order, None, None])[..., 0, 0]) < 1e-12


def test_the_scale_of_a_sample_drops_out():
    x = draw("InvarianceTransform")[0]
    factors = torch.tensor([0.5, 2.0, 3.0, 7.0], dtype=x.dtype)[:, None, None, None]
    for local in ("layer", "l1", "window"):
        layer = build("InvarianceTransform", local=local, eps=0.0)
        assert distance(copy.deepcopy(layer)(factors * x), copy.deepcopy(layer)(x)) < 1e-10


def test_a_step_on_whitened_inputs_does_not_depend_on_the_basis():
    x = draw("NetworkDeconvolution", (200, 6), mean=1.0)[0]
    rotation = torch.linalg.qr(torch.randn(6, 6, dtype=x.dtype, generator=torch.Generator().manual_seed(0)))[0]
    first = ns.Delinear(6, 4, num_iterations=60, dtype=torch.float64)
    second = copy.deepcopy(first)
    with torch.no_grad():
        second.weight.copy_(first.weight @ rotation.T)  # the same function of the rotated input
    for layer, inputs in ((first, x), (second, x @ rotation.T)):
        layer(inputs).sin().sum().backward()
        with torch.no_grad():
            layer.weight -= 0.1 * layer.weight.grad
    assert distance(second(x @ rotation.T), first(x)) < 1e-10


def by_hand(x, size, eps, centred=True, steps=5):
    """ChannelDeconv in loops over the variables and the values that are left over."""
    whole = x.shape[1] - x.shape[1] % size
    each = whole // size
    rows = torch.stack([x[:, r * each : (r + 1) * each].transpose(0, 1).flatten() for r in range(size)])
    mu = torch.stack([row.sum() / len(row) for row in rows])
    about = rows - mu[:, None] if centred else rows
    cov = about @ about.T / rows.shape[1] + eps * torch.eye(size, dtype=x.dtype)
    norm = (cov**2).sum() ** 0.5
    y, z = cov / norm, torch.eye(size, dtype=x.dtype)
    for _ in range(steps):
        t = 0.5 * (3 * torch.eye(size, dtype=x.dtype) - z @ y)
        y, z = y @ t, t @ z
    white = z / norm**0.5 @ (rows - mu[:, None])
    out = [white[r].view(each, len(x), *x.shape[2:]).transpose(0, 1) for r in range(size)]
    if whole < x.shape[1]:
        rest = x[:, whole:]
        out.append((rest - rest.mean()) / (rest.var(correction=1) + eps) ** 0.5)
    return torch.cat(out, 1)


@pytest.mark.parametrize("size", [3, 4, 6, 8])
def test_channel_deconvolution(size, device):
    x = draw("NetworkDeconvolution", (4, 8, 5, 5), mean=1.0, device=device)[0].requires_grad_()
    for centred in (True, False):
        layer = ns.ChannelDeconv(8, block_size=size, centred=centred, dtype=torch.float64, device=device)
        y, want = layer(x), by_hand(x.cpu(), size, 1e-2, centred)
        assert distance(y.cpu(), want) < 1e-12
        assert distance(layer.eval()(x).cpu(), want) < 1e-12  # the first batch is copied
        weight = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)
        got, expect = (torch.autograd.grad((t * weight.to(t)).sum(), x)[0] for t in (y, want))
        assert distance(got, expect) < 1e-10
        layer.train()(2 * x)
        assert not any(b.requires_grad for b in layer.buffers())
        assert distance(layer.eval()(x).cpu(), want) > 1e-3
    vectors = torch.randn(50, 8, device=device)
    assert ns.ChannelDeconv(8, block_size=size, device=device)(vectors).shape == vectors.shape
    for bad in (torch.ones(3, 8, 1, 1, device=device)[:1], torch.ones(3, 7, device=device)):
        with pytest.raises(ValueError, match="at least 2|floating-point"):
            ns.ChannelDeconv(8, block_size=8, device=device)(bad)
    twin = eval(repr(layer), vars(ns)).to(device, torch.float64)
    twin.load_state_dict(layer.state_dict())
    assert torch.equal(twin.eval()(x), layer.eval()(x))
