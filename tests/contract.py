"""What the tests of layers share: examples away from their start, inputs at any scale, and the reference's answer."""

import contextlib
import functools
import math
from unittest import mock

import torch
from torch import Tensor

import normsurvey as ns
from normsurvey.norm import DIMS
from normsurvey.reference import REFERENCES
from normsurvey.reference import activations as _activations  # noqa: F401  registers the references

LAYERS = tuple(method_id for method_id, record in ns.catalogue.items() if record.kind == "layer")

# Values under which every method with an option of that name is held against its reference; an option without
# values fails. The same word means the same in every method.
VALUES = {
    "activation_mode": ("mean",), "paper_form": (True,),
    "agnostic": (False,), "num_filters": (2,), "triangular": ("lower", "upper"),
    "sw_type": (3, 5), "tie_weight": (True,), "tied_diagonal_weights": (True,),
    "affine": (True, False), "alpha": (0.3,), "bias": (True, False), "condition_features": (5,), "correction": (0, 1),
    "d_max": (0.0, math.inf), "eps": (1e-2,), "eps_outside": (True,), "eps_relative": (True,),
    "example_weight": (0.4,), "gaussian": (True,),
    "ghost_size": (1, 8), "group_size": (1, 4, None), "hidden_features": (7,), "momentum": (None, 0.4),
    "num_classes": (5,), "num_groups": (1, 6), "num_iterations": (0, 1, 9), "p": (0.5, 1.0), "r_max": (1.0, math.inf),
    "running": ("covariance",), "track_running_stats": (True, False), "use_batch": (False,),
    "whitening": ("zca", "newton"),
    "component_scale": (False,), "gate_std": (0.5,), "initial_var": (0.0,), "max_batch_size": (1, 2, 16),
    "num_modes": (1, 3), "over": ("channels",), "reduction": (1, 5, 64), "start": ("instance", "layer", "batch"),
    "attention_eps": (1e-1,), "attention_mode": (0, 1, 3, 4, 5, 6), "base": ("instance",), "kernel_size": (1,),
    "center": (True,), "detach_mean": (True,), "detach_std": (True,), "deviation": ("standard", "median", "range"),
    "k": (1, 5), "power": (0.0, 1.0), "scale": (2.0,), "zero_start": (True,),
    "accumulation": (2,), "backward_momentum": (0.4,), "backward_weights": ((0.2, 0.3, 0.5),),
    "compensation": ("clamp", None), "divisor": ("running",), "forward_weights": ((0.2, 0.3, 0.5), (0, 0, 1)),
    "limit": (0.7,), "num_batches": (1, 3), "per_sample": (True,), "renorm_start": (0,), "scale_eps": (1e-2,),
    "warmup": (0, 5),
    "buffer_num": (0, 1, 3), "burnin": (0, 3), "form": ("linear",), "gamma": (1.0,), "max_ratio": (0.0,),
    "max_steps": (25,), "prediction_weight": (0.0, 0.3), "previous_features": (5,), "rho": (0.5,),
    "key_group_size": (1, 3, 6), "map_features": (3,),
    "alignment": ("authors",), "alpha_over_size": (False,), "beta": (0.5, 1.0, 0.3), "channels_per_group": (1, 6),
    "count_include_pad": (True,), "detach_stats": (True,), "learn_sigma": (True,), "sigma": (0.7,),
    "suppression_size": (1, 4), "window_size": (1, 2, 4, 9),
    "bn_lag": (0.0, 0.3), "estimated": (True,), "ideal_size": (4, 5), "memory_size": (1, 2), "own": ("layer",),
    "process_group": (None,), "ratio": (1.0, 0.9),
}  # fmt: skip
# Options without which another one has no effect.
COMPANIONS = {
    "tied_diagonal_weights": {"sw_type": 5},
    "eps_relative": {"eps": 1e-2},
    "form": {"previous_features": 5},
    "previous_features": {"form": "linear"},
    "limit": {"compensation": "clamp"},
    "momentum": {"track_running_stats": True},
    "renorm_start": {"warmup": 0, "num_batches": 1},
    "condition_features": {"num_classes": None},
    "hidden_features": {"num_classes": None, "condition_features": 5},
}
# Layout and path, which tests of their own vary; where the parameters are.
COMMON = {"channel_dim", "fused", "device", "dtype"}


def variants(method_id: str) -> list[dict]:
    """Options of a method, one of them moved away from its default at a time."""
    out = []
    for name in options_of(ns.catalogue[method_id].build()):
        if name not in COMMON:
            known = ns.catalogue[method_id].signature.parameters
            beside = {k: v for k, v in COMPANIONS.get(name, {}).items() if k in known}
            out += [beside | {name: value} for value in VALUES[name]]
    return out


def options_of(layer: ns.Norm) -> dict:
    """All options of a layer, defaults filled in."""
    parameters = layer.record.signature.parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY} | layer.options


def build(method_id: str, *, dtype=torch.float64, device="cpu", **options) -> ns.Norm:
    """The example layer with parameters and buffers moved away from where they start."""
    torch.manual_seed(0)  # networks inside a layer start at random
    layer = ns.catalogue[method_id].build(dtype=torch.float64, device=device, **options)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in layer.state_dict().items():
            noise = 0.3 * torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(tensor.device)
            name = name.rpartition(".")[2]  # a norm inside the layer has the same buffers
            if name == "gate":  # inside its interval, where it is a free parameter
                tensor.copy_(noise.sigmoid())
            elif name in ("running_whitening", "running_cov"):
                inside = tensor.diagonal(dim1=-2, dim2=-1)  # 0 where the last group has no channel
                tensor.add_(noise @ noise.mT * inside[:, None] * inside[..., None])
            elif name.startswith("running") and name != "running_mean":
                tensor.mul_(noise.exp())
            elif tensor.is_floating_point():
                tensor.add_(noise)
    return layer.to(dtype)  # the same start in every precision


def draw(method_id: str, shape=None, *, mean=0.0, std=1.0, seed=0, dtype=torch.float64, device="cpu"):
    """An input with correlated channels (condition number of the covariance below 100) and a condition."""
    example, generator = ns.catalogue[method_id].example, torch.Generator().manual_seed(seed)
    z = torch.randn(shape or example.shape, generator=generator, dtype=torch.float64)
    c = z.shape[1]
    rotation = torch.linalg.qr(torch.randn(c, c, generator=generator, dtype=torch.float64))[0]
    mix = rotation * torch.linspace(0.3, 1.5, c, dtype=torch.float64) @ rotation.T
    x = mean + std * torch.einsum("dc,nc...->nd...", mix, z)
    condition = example.condition and example.condition(generator, dtype, device)
    return x.to(device, dtype), condition


def embedding(options: dict, condition, dtype=torch.float64, device="cpu"):
    """The condition, or embeddings where the options ask for them."""
    if options.get("condition_features"):
        return torch.randn(4, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(device, dtype)
    return condition


def each(condition, f):
    """The condition with ``f`` applied to its tensors; a pair stays a pair."""
    if isinstance(condition, (tuple, list)):
        return tuple(each(c, f) for c in condition)
    return f(condition) if isinstance(condition, Tensor) else condition


def fitting(method_id: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape, with more axes of positions where the method does not exist for it."""
    while DIMS[len(shape)] not in ns.catalogue[method_id].shapes:
        shape = (*shape[:2], 1, *shape[2:])
    return shape


def leaves(value, **to):
    """Copies of tensors that collect gradients; a pair stays a pair, labels stay labels."""
    if isinstance(value, (tuple, list)):
        return tuple(leaves(v, **to) for v in value)
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value.detach().clone().cpu() if to and isinstance(value, Tensor) else value
    return value.detach().to(**to, copy=True).requires_grad_()


def tensors(value) -> list[Tensor]:
    """The tensors of a condition."""
    return list(value) if isinstance(value, tuple) else [value] if isinstance(value, Tensor) else []


def incoming(y: Tensor) -> Tensor:
    """The fixed tensor that stands for the gradient of an output, in its shape and place."""
    fixed = torch.linspace(-1, 1, max(y.numel(), 1), dtype=torch.float64).sin_().mul_(9).cos_()[: y.numel()]
    return fixed.view(y.shape).to(y)


def answers(y: Tensor, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """An output and the gradients of its product with a fixed tensor, by name, in float64 on the CPU."""
    wanted = {k: v for k, v in inputs.items() if v.requires_grad}
    grads = torch.autograd.grad(y, wanted.values(), incoming(y), allow_unused=True) if wanted else ()
    found = {"output": y} | {
        f"gradient of {k}": torch.zeros_like(v) if g is None else g
        for (k, v), g in zip(wanted.items(), grads, strict=True)
    }
    return {k: v.detach().cpu().double() for k, v in found.items()}


def channels_second(x: Tensor) -> Tensor:
    """(N, C, ...) from (N, ..., C); references know no other layout."""
    return x.movedim(-1, 1)


def named(x: Tensor, parameters: dict, condition) -> dict[str, Tensor]:
    """Everything that a layer reads, by name."""
    return {"input": x} | parameters | {f"condition {k}": t for k, t in enumerate(tensors(condition))}


def expected(layer: ns.Norm, x: Tensor, condition=None, **more) -> dict[str, Tensor]:
    """What the reference says about the layer as it is now: output, gradients and buffers after this input."""
    double = {"device": "cpu", "dtype": torch.float64}
    parameters = {k: leaves(v, **double) for k, v in layer.named_parameters()}
    buffers = {k: v.detach().clone().cpu().double() for k, v in layer.named_buffers()}
    x, condition = leaves(x, **double), leaves(condition, **double)
    last = layer.channel_dim == -1
    given = channels_second(condition) if last and isinstance(condition, Tensor) and condition.dim() > 2 else condition
    state, options = parameters | buffers, options_of(layer) | more
    torch.manual_seed(0)  # the reference and the layer are given the same draw
    inputs, reference = channels_second(x) if last else x, REFERENCES[layer.record.id]
    if has_own_backward(layer.record.id):
        grad = channels_second(incoming(x)) if last else incoming(x)
        y, new, gradients = reference(inputs, state, options, layer.training, given, grad)
        wanted = {k: gradients.get(k, torch.zeros_like(v)) for k, v in {"input": inputs, **parameters}.items()}
        found = {"output": y} | {f"gradient of {k}": v for k, v in wanted.items()}
        found = {k: v.movedim(1, -1) if last and v.dim() > 1 else v for k, v in found.items()}
        return found | buffers | {k: v.double() for k, v in new.items()}
    with same_draws(layer):
        y, new = reference(inputs, state, options, layer.training, given)
    y = y.movedim(1, -1) if last else y
    return answers(y, named(x, parameters, condition)) | buffers | {k: v.double() for k, v in new.items()}


@contextlib.contextmanager
def same_draws(layer: ns.Norm):
    """Let the reference, which computes on the CPU, draw its random numbers where the layer draws them."""
    place = next(iter(layer.state_dict().values()), torch.empty(0)).device
    drawn = {f.__name__: functools.partial(_drawn, f, place) for f in (torch.rand, torch.randn)}
    with mock.patch.multiple(torch, **drawn):
        yield


def _drawn(f, place, *args, **options):
    return f(*args, **options, device=place).cpu()


def repeats(device) -> float:
    """How far two runs of one backward pass may differ: a GPU's convolutions add in any order."""
    return 1e-12 if torch.device(device).type == "cuda" else 0.0


def has_own_backward(method_id: str) -> bool:
    """Whether the backward pass is an algorithm of the paper with a memory, which the reference states itself."""
    return getattr(REFERENCES[method_id], "backward", False)


def computed(layer: ns.Norm, x: Tensor, condition=None, **more) -> dict[str, Tensor]:
    """The layer's own answers, in the same words."""
    x, condition = leaves(x), leaves(condition)
    torch.manual_seed(0)
    y = layer(x, **more) if condition is None else layer(x, condition, **more)
    found = answers(y, named(x, dict(layer.named_parameters()), condition))
    return found | {k: v.detach().cpu().double() for k, v in layer.named_buffers()}


def distance(got: Tensor, want: Tensor) -> float:
    """Largest difference, relative to the largest entry where that is above 1; infinite for NaN."""
    if got.shape != want.shape:
        raise AssertionError(f"shape {tuple(got.shape)} is not {tuple(want.shape)}")
    if got.numel() == 0:
        return 0.0
    far = float((got.detach() - want.detach()).abs().max() / want.detach().abs().max().clamp(min=1.0))
    return math.inf if math.isnan(far) else far


def assert_same(got: dict[str, Tensor], want: dict[str, Tensor], tolerance: float, steep: float | None = None) -> None:
    """Every answer is the expected one, gradients within ``steep`` where that is given."""
    assert set(got) == set(want)
    far = {k: distance(got[k], want[k]) for k in want}
    far = {k: d for k, d in far.items() if not d <= (steep if steep and k.startswith("gradient") else tolerance)}
    assert not far, f"beyond {tolerance:g}: {far}"


def assert_follows(layer: ns.Norm, batches, condition, tolerance: float, steep: float | None = None) -> None:
    """In training on each batch and then in inference on the last, the layer does what its reference does."""
    for mode, x in [*((True, x) for x in batches), (False, batches[-1])]:
        layer.train(mode)
        want = expected(layer, x, condition)
        assert_same(computed(layer, x, condition), want, tolerance, steep)
