"""Layers on degenerate values, over many steps, and in inference: finite, flat in memory, each sample for itself."""

import gc

import pytest
import torch
from contract import LAYERS, build, draw, embedding, leaves, options_of, variants

import normsurvey as ns

EVERY = pytest.mark.parametrize("method_id", LAYERS)
FUSED = pytest.mark.parametrize("fused", [True, False], ids=["fused", "composed"])
# Methods that are more than means and variances take powers or products of values: they are held to 1e12.
LARGE = {"LpBatchNorm": 1e12, "MixtureNorm": 1e12, "ModeNorm": 1e12}


def large(method_id):
    """The largest size of values that a method has to bear in float32."""
    return LARGE.get(method_id, 1e12 if ns.catalogue[method_id].build().operation.mixes_channels else 1e18)


INPUTS = {
    "constant": lambda x, _: torch.full_like(x, 1.7),
    "zero": lambda x, _: torch.zeros_like(x),
    "one zero channel": lambda x, _: x.index_fill(1, torch.tensor(0, device=x.device), 0.0),
    "mean 1e4": lambda x, _: x + 1e4,
    "values 1e-20": lambda x, _: 1e-20 * x,
    "large values": lambda x, size: size * x / x.abs().max(),
}


def finite(layer, x, condition, slope=1.0):
    """Names of what is not finite: the output, gradients of the input and the parameters, buffers."""
    x, condition = leaves(x), leaves(condition)
    y = layer(x, condition)
    weight = slope * torch.linspace(-1, 1, y.numel()).view(y.shape).to(y)
    inputs = {"input": x} | dict(layer.named_parameters())
    with torch.autocast(x.device.type, enabled=False):  # torch asks for backward passes outside of autocast
        grads = torch.autograd.grad(y, inputs.values(), weight, allow_unused=True) if y.requires_grad else ()
    found = {"output": y} | dict(zip(inputs, grads, strict=bool(grads))) | dict(layer.named_buffers())
    return [name for name, value in found.items() if value is not None and not value.isfinite().all()]


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("kind", INPUTS)
@FUSED
@EVERY
def test_degenerate_values_give_finite_answers(method_id, fused, kind, training, device):
    x, condition = draw(method_id, dtype=torch.float32, device=device)
    layer = build(method_id, dtype=torch.float32, device=device, fused=fused)
    x = INPUTS[kind](x, large(method_id))
    assert finite(layer, x, condition) == []
    layer.train(training)
    assert finite(layer, x, condition) == []


OPTIONS = [(m, o) for m in LAYERS for o in variants(m)]


@pytest.mark.parametrize("kind", ["constant", "values 1e-20", "large values"])
@pytest.mark.parametrize(("method_id", "options"), OPTIONS, ids=[f"{m}-{o}" for m, o in OPTIONS])
def test_degenerate_values_under_every_option(method_id, options, kind, device):
    x, condition = draw(method_id, dtype=torch.float32, device=device)
    layer = build(method_id, dtype=torch.float32, device=device, **options)
    condition = embedding(options_of(layer), condition, torch.float32, device) if layer.recovery.condition else None
    assert finite(layer, INPUTS[kind](x, large(method_id)), condition) == []


@EVERY
def test_half_precision_under_autocast(method_id, device):
    x, condition = draw(method_id, dtype=torch.float32, device=device)
    layer = build(method_id, dtype=torch.float32, device=device)
    with torch.autocast(device.type, dtype=torch.float16 if device.type == "cuda" else torch.bfloat16):
        assert finite(layer, (1e4 * x / x.abs().max()).half(), condition) == []
        # a quantile takes the slopes of its whole area into one entry: over 1e-4 they must fit into half precision
        assert finite(layer, (1e-4 * x).half(), condition, slope=0.01) == []


def of_sample(condition, k):
    """What belongs to the k-th sample of a condition."""
    if isinstance(condition, tuple):
        return tuple(of_sample(part, k) for part in condition)
    return condition[k : k + 1] if isinstance(condition, torch.Tensor) else condition


@FUSED
@EVERY
def test_inference_is_deterministic_and_each_sample_for_itself(method_id, fused, device):
    layer = build(method_id, device=device, fused=fused)
    x, condition = draw(method_id, device=device)
    layer(x, condition)
    layer.eval()
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    whole = layer(x, condition)
    assert torch.equal(whole, layer(x, condition))
    assert all(torch.equal(v, before[k]) for k, v in layer.state_dict().items())
    for k in range(len(x)):
        alone = layer(x[k : k + 1], of_sample(condition, k))
        torch.testing.assert_close(alone, whole[k : k + 1], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("shape", [(4, 6, 5, 5), (4, 6)], ids=str)
@FUSED
@EVERY
def test_the_output_may_be_changed_in_place(method_id, fused, shape, device):
    """As residual connections and activations with ``inplace=True`` do."""
    shape = shape if "NC" in ns.catalogue[method_id].shapes or len(shape) > 2 else (4, 6, 5)
    if {2: "NC", 3: "NCL", 4: "NCHW"}[len(shape)] not in ns.catalogue[method_id].shapes:
        shape = ns.catalogue[method_id].example.shape
    x, condition = draw(method_id, shape, device=device)
    grads = []
    for change in (lambda y: (y + 1).relu(), lambda y: y.add_(1).relu_()):
        layer, leaf = build(method_id, device=device, fused=fused), leaves(x)
        change(layer(leaf, condition)).square().sum().backward()
        grads.append(leaf.grad)
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-12, atol=1e-12)


@EVERY
def test_training_leaves_memory_flat(method_id, device):
    layer = build(method_id, device=device)
    x, condition = draw(method_id, device=device)

    def alive():
        gc.collect()
        return sum(1 for o in gc.get_objects() if isinstance(o, torch.Tensor))

    counts = []
    for step in range(200):
        layer.zero_grad()
        layer(x.clone().requires_grad_(), condition).square().mean().backward()
        if step in (49, 199):
            counts.append(alive())
    assert counts[1] <= counts[0]
    assert not any(b.requires_grad or b.grad_fn is not None for b in layer.buffers())
