"""Every layer of the catalogue against its reference: values, gradients, buffers, at every scale and option."""

import pytest
import torch
from contract import (
    COMMON,
    LAYERS,
    VALUES,
    assert_follows,
    build,
    draw,
    embedding,
    fitting,
    has_own_backward,
    options_of,
    repeats,
    variants,
)  # fmt: skip
from torch.func import functional_call

import normsurvey as ns
from normsurvey.reference import REFERENCES
from normsurvey.registry import INVARIANCES

pytestmark = pytest.mark.usefixtures("one_draw")
FUSED = pytest.mark.parametrize("fused", [True, False], ids=["fused", "composed"])
EVERY = pytest.mark.parametrize("method_id", LAYERS)
# With fewer than 16 positions the tensor is read itself, with more the moments per sample and channel.
SHAPES = {"NC": (4, 6), "NCL": (4, 6, 17), "NCHW": (4, 6, 3, 4), "NCDHW": (4, 6, 2, 3, 3)}


def test_every_layer_has_a_reference_and_values_for_its_options():
    assert len(LAYERS) >= 20
    assert set(LAYERS) <= set(REFERENCES)
    for method_id in LAYERS:
        assert set(options_of(ns.catalogue[method_id].build())) <= set(VALUES) | COMMON, method_id


@pytest.mark.parametrize("std", [0.1, 10.0])
@pytest.mark.parametrize("mean", [0.0, 1.0, 100.0])
@FUSED
@EVERY
def test_values_and_gradients_at_many_scales(method_id, fused, mean, std, device):
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-3)):
        where = {"dtype": dtype, "device": device}
        seeds = (0, 1) if dtype is torch.float64 else (0,)
        drawn = [draw(method_id, mean=mean, std=std, seed=seed, **where) for seed in seeds]
        layer = build(method_id, fused=fused, **where)
        steep = 1e-10 if dtype is torch.float64 else 1e-2  # slopes divide by the deviation once more
        assert_follows(layer, [x for x, _ in drawn], drawn[0][1], tolerance, steep)


def test_inputs_of_whitening_have_a_condition_number_of_at_most_100():
    for method_id in LAYERS:
        for seed in (0, 1):
            x = draw(method_id, seed=seed)[0]
            assert torch.linalg.cond(torch.cov(x.transpose(0, 1).flatten(1))) <= 100


CASES = [(method_id, options) for method_id in LAYERS for options in variants(method_id)]


@FUSED
@pytest.mark.parametrize(("method_id", "options"), CASES, ids=[f"{m}-{o}" for m, o in CASES])
def test_every_option(method_id, options, fused, device):
    layer = build(method_id, fused=fused, device=device, **options)
    seeds = (0, 1) if "momentum" in options else (0,)
    drawn = [draw(method_id, mean=0.5, seed=seed, device=device) for seed in seeds]
    condition = embedding(options_of(layer), drawn[0][1], device=device) if layer.recovery.condition else None
    assert_follows(layer, [x for x, _ in drawn], condition, 1e-10)


@pytest.mark.parametrize("channel_dim", [1, -1])
@pytest.mark.parametrize("name", SHAPES)
@FUSED
@EVERY
def test_every_shape(method_id, fused, name, channel_dim, device):
    layer = build(method_id, fused=fused, device=device, channel_dim=channel_dim)
    x, condition = draw(method_id, SHAPES[name], device=device)
    if isinstance(condition, torch.Tensor) and condition.dim() > 2 and channel_dim == -1:
        condition = condition.movedim(1, -1)
    inputs = x if channel_dim == 1 else x.movedim(1, -1)
    if name not in ns.catalogue[method_id].shapes:
        with pytest.raises(ValueError, match="at least 2|exists for"):
            layer(inputs, condition)
        return
    assert_follows(layer, [inputs], condition, 1e-10)
    first = build(method_id, fused=fused, device=device)
    if channel_dim == -1 and first.area.pattern == layer.area.pattern:
        plain = condition.movedim(-1, 1) if isinstance(condition, torch.Tensor) and condition.dim() > 2 else condition
        moved = build(method_id, fused=fused, device=device, channel_dim=-1)(inputs, condition).movedim(-1, 1)
        torch.testing.assert_close(moved, first(x, plain), rtol=1e-12, atol=1e-12)


def as_function(layer, condition):
    """A layer as a function of its input, its parameters and its condition, and those arguments."""
    names, buffers = [k for k, _ in layer.named_parameters()], dict(layer.named_buffers())
    free = isinstance(condition, torch.Tensor) and condition.is_floating_point()
    last = [condition] if free else []

    def function(x, *rest):
        given = rest[len(names)] if free else condition
        state = dict(zip(names, rest[: len(names)], strict=True)) | {k: v.clone() for k, v in buffers.items()}
        return functional_call(layer, state, (x, given))

    return function, [t.detach().clone().requires_grad_() for t in [*layer.parameters(), *last]]


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("shape", [(4, 6, 4, 4), (4, 6, 3)], ids=str)
@FUSED
@pytest.mark.parametrize("method_id", [m for m in LAYERS if ns.catalogue[m].derivative])
def test_first_and_second_derivatives(method_id, fused, shape, training, device):
    layer = build(method_id, fused=fused, device=device).train(training)
    x, condition = draw(method_id, fitting(method_id, shape), device=device)
    function, rest = as_function(layer, condition)
    inputs = (x.requires_grad_(), *rest)
    for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
        assert check(function, inputs, fast_mode=True, nondet_tol=repeats(device))


@pytest.mark.parametrize("shape", [(4, 6, 4, 4), (4, 6)], ids=str)
@EVERY
def test_every_route_to_a_second_derivative_agrees(method_id, shape, device):
    """Double backward (plain, batched, composed), jvp of grad, hessian, and vmap give one Hessian, or raise."""
    shape = fitting(method_id, (4, 6, 3) if "NC" not in ns.catalogue[method_id].shapes and len(shape) == 2 else shape)
    x, condition = draw(method_id, shape, device=device)
    v, weight = (draw(method_id, shape, seed=seed, device=device)[0] for seed in (3, 4))
    if has_own_backward(method_id):
        return refuses_second_derivatives(build(method_id, device=device), x)
    products = {}
    for fused in (True, False):
        function, rest = as_function(build(method_id, fused=fused, device=device), condition)

        def loss(x, function=function, rest=rest):
            return (weight * function(x, *rest).sin()).sum()

        leaf = x.clone().requires_grad_()
        slope = torch.autograd.grad(loss(leaf), leaf, create_graph=True)[0]
        products[fused, "double backward"] = torch.autograd.grad(slope, leaf, v, retain_graph=True)[0]
        try:
            batched = torch.autograd.grad(slope, leaf, torch.stack([v, 2 * v]), is_grads_batched=True)[0]
            products[fused, "batched double backward"] = batched[1] / 2
        except RuntimeError:  # torch's own kernels refuse to be batched; a wrong number would be worse
            assert fused
        products[fused, "jvp of grad"] = torch.func.jvp(torch.func.grad(loss), (x,), (v,))[1]
        products[fused, "vmap of hvp"] = torch.func.vmap(
            lambda t, loss=loss: torch.func.jvp(torch.func.grad(loss), (x,), (t,))[1]
        )(torch.stack([v, 3 * v]))[0]
        if x.numel() < 100:
            full = torch.func.hessian(loss)(x).reshape(x.numel(), -1)
            exact = ns.catalogue[method_id].derivative
            assert (full - full.T).abs().max() < 1e-10 * full.abs().max().clamp(min=1) or not exact
            products[fused, "hessian"] = (full @ v.flatten()).view(x.shape)
    want = products[False, "double backward"]
    far = {k: float((p - want).detach().abs().max() / want.detach().abs().max()) for k, p in products.items()}
    assert max(far.values()) < 1e-9, far


def refuses_second_derivatives(layer, x):
    """A backward pass that is a running estimate is no derivative, and says so on every route to a second one."""
    leaf = x.clone().requires_grad_()
    routes = (
        lambda: torch.autograd.grad(layer(leaf).sin().sum(), leaf, create_graph=True),
        lambda: torch.func.grad(lambda t: layer(t).sin().sum())(x),
        lambda: torch.func.jvp(layer, (x,), (x,)),
    )
    for route in routes:
        with pytest.raises(RuntimeError, match="running estimate"):
            route()


@pytest.mark.parametrize("change", INVARIANCES["layer"])
@EVERY
def test_invariances_declared_and_denied(method_id, change):
    record = ns.catalogue[method_id]
    change_of_output = ns.invariances.measure(record, eps=0.0)[change]
    assert change_of_output < 1e-10 if change in record.invariances else change_of_output > 1e-2
