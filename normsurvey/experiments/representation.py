"""What norms take from a representation: counted constraints, the wall of whitening, features that are only scaled."""

import inspect
import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from normsurvey import Area, Norm, catalogue, create
from normsurvey.analysis import Constraints, constraint_number
from normsurvey.experiments import classifiers as nets
from normsurvey.experiments.data import digits
from normsurvey.operations import Center, Scale, Standardize, Whiten
from normsurvey.operations.deviations import ScaleByDeviation, ScaleByLargest, ScaleByPower, ScaleByRisk
from normsurvey.recovery import Affine, Recovery
from normsurvey.statistics import Current, Running
from normsurvey.statistics.switched import SwitchedWhitening
from normsurvey.windows import Window

# Newton iterations that make a whitening exact in float64, for the small covariances of this module.
CONVERGED = 25
# A logit that leaves nothing to the others: its softmax or sigmoid is 1 in float64.
ALL = 1e4
# Layers that whiten and that f (f + 3) / 2 is not about, each with the reason.
EXCLUDED = {"ChannelEquilibrium": "whitens without taking the mean off, as one of two branches"}
# Constraints per area of the operations that are neither whitening nor local.
PER_AREA = {
    Center: 1, Scale: 1, Standardize: 2, ScaleByDeviation: 2, ScaleByPower: 2, ScaleByLargest: 2, ScaleByRisk: 2,
}  # fmt: skip

# --- Constraints ----------------------------------------------------------------------------------------


def generic_input(shape: tuple[int, ...], seed: int, device: torch.device | str = "cpu") -> Tensor:
    """A float64 input whose channels have means, deviations and correlations of their own."""
    random = torch.Generator().manual_seed(seed)
    n, c, *positions = shape
    x = torch.randn(n, c, math.prod(positions), generator=random, dtype=torch.float64)
    mixed = (torch.eye(c) + 0.3 * torch.randn(c, c, generator=random)).double() @ x
    return (mixed + torch.randn(1, c, 1, generator=random, dtype=torch.float64)).view(shape).to(device)


def exact(method_id: str, num_features: int, device: torch.device | str = "cpu", **options) -> Norm:
    """A layer of the catalogue in float64 without eps, where it has one, on the plain composed path."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        options = {"eps": 0.0} | options if "eps" in _options(method_id) else options
        return create(method_id, num_features, fused=False, dtype=torch.float64, device=device, **options)


def seven(seed: int, device: torch.device | str = "cpu") -> dict[str, tuple[Constraints, int]]:
    """Method -> (measured, formula) for seven norms, n samples of c channels each, written out by hand."""
    cases = {
        "BatchNorm, 2c": ("BatchNorm", {}, (10, 6), 2 * 6),
        "LayerNorm, 2n": ("LayerNorm", {}, (10, 8), 2 * 10),
        "GroupNorm, 2gn": ("GroupNorm", {"num_groups": 2}, (10, 8), 2 * 2 * 10),
        "InstanceNorm, 2nc": ("InstanceNorm", {}, (3, 4, 6), 2 * 3 * 4),
        "RMSNorm, n": ("RMSNorm", {}, (10, 6), 10),
        "batch whitening, c(c+3)/2": ("DecorrelatedBatchNorm", {"group_size": None}, (12, 5), 5 * 8 // 2),
        "group whitening, ng(g+3)/2": ("GroupWhitening", {"num_groups": 3, "whitening": "zca"}, (4, 18), 4 * 9),
    }
    return {
        label: (deficit(exact(name, shape[1], device, **options), shape, seed, device), formula)
        for label, (name, options, shape, formula) in cases.items()
    }


def deficit(layer: nn.Module, shape: tuple[int, ...], seed: int, device: torch.device | str = "cpu") -> Constraints:
    """Constraints of a layer at a generic input."""
    return constraint_number(layer, generic_input(shape, seed, device))


def area_of(layer: Norm) -> Area:
    """The area that a layer normalizes over; where it mixes statistics over several, that of the largest weight."""
    if isinstance(layer.statistics, SwitchedWhitening):
        return layer.statistics.areas[layer.var_weight.argmax()]
    return layer.area


def predicted(layer: Norm, shape: tuple[int, ...]) -> int:
    """Areas times constraints per area: f (f + 3) / 2 for f features whitened together, else :data:`PER_AREA`."""
    if isinstance(layer.operation, Whiten):
        areas, features, _ = area_of(layer).matrices(torch.ones(*shape[:2], math.prod(shape[2:]))).shape
        return areas * features * (features + 3) // 2
    return PER_AREA[type(layer.operation)] * layer.area.mean(torch.ones(*shape[:2], math.prod(shape[2:]))).numel()


def whitenings(device: torch.device | str = "cpu") -> Iterator[tuple[str, Norm, tuple[int, ...]]]:
    """(label, layer, shape) of every layer of the catalogue that whitens: all kinds, Newton steps to convergence.

    Found by their operation: whatever whitens and is added to the catalogue is in, unless :data:`EXCLUDED` names it.
    Channel Equilibrium is; :func:`channel_equilibrium` counts its branch. Switchable Whitening comes with all of its
    weight on one covariance. Convolutions that whiten patches, weights and procedures are no layers.
    """
    for name in _layers():
        example = _example(name)
        if isinstance(example.operation, Whiten) and name not in EXCLUDED:
            mixed = isinstance(example.statistics, SwitchedWhitening)
            yield from _switched(name, device) if mixed else _kinds(name, example, device)


def channel_equilibrium(seed: int, device: torch.device | str = "cpu") -> tuple[Constraints, int]:
    """(measured, formula) of Channel Equilibrium's whitening branch alone, P z in the paper's form: the mean stays."""
    options = {"group_size": 3, "num_iterations": CONVERGED, "paper_form": True}
    layer = exact("ChannelEquilibrium", 6, device, **options)
    nn.init.constant_(layer.gate, ALL)
    return deficit(layer, (4, 6, 3), seed, device), 2 * (3 * 4 // 2)


def _kinds(name: str, example: Norm, device: torch.device | str) -> Iterator[tuple[str, Norm, tuple[int, ...]]]:
    options, shape = _options(name), (8, 6) if example.area.uses_batch else (3, 12)
    chosen = {k: 3 for k in ("group_size", "num_groups") if k in options}
    kinds = ("zca", "pca", "cholesky", "newton") if "running" in options else ("zca", "newton")
    for kind in kinds if "whitening" in options else (None,):
        extra = {"whitening": kind} if kind else {}
        if "num_iterations" in options and kind in (None, "newton"):
            extra["num_iterations"] = CONVERGED
        try:
            layer = exact(name, shape[1], device, **chosen, **extra)
        except ValueError as error:  # a kind that this method does not offer
            if "whitening=" not in str(error):
                raise
            continue
        yield f"{name} ({kind})" if kind else name, layer, shape


def _switched(name: str, device: torch.device | str) -> Iterator[tuple[str, Norm, tuple[int, ...]]]:
    for k, (over, shape) in enumerate({"batch": (2, 6, 4), "sample": (2, 6, 5)}.items()):
        layer = exact(name, 6, device, group_size=3, num_iterations=CONVERGED)
        for weight in (layer.mean_weight, layer.var_weight):
            nn.init.constant_(weight, -ALL)
            weight.data[k] = ALL
        yield f"{name} ({over})", layer, shape


def plain_layers(device: torch.device | str = "cpu", num_features: int = 4) -> Iterator[tuple[str, Norm]]:
    """(id, layer) of every layer of the catalogue with an operation of :data:`PER_AREA` on the input's own statistics.

    Its areas are sets of entries, no windows, it is nothing but Psi . Phi . Pi, and Psi is constant.
    """
    for name in _layers():
        layer = _example(name)
        simple = type(layer).normalize is Norm.normalize and not isinstance(layer.area, Window)
        plain = type(layer.operation) in PER_AREA and type(layer.statistics) in (Running, Current)
        if simple and plain and type(layer.recovery) in (Affine, Recovery):
            options = {k: 2 for k in ("num_groups", "ghost_size") if k in _options(name)}
            options |= {"affine": False} if "affine" in _options(name) else {}
            yield name, exact(name, num_features, device, **options)


def newton_constraints(iterations: int, seed: int, device: torch.device | str = "cpu") -> Constraints:
    """Of 5 channels whitened together over 12 samples by some Newton iterations."""
    return deficit(exact("IterNorm", 5, device, num_iterations=iterations), (12, 5), seed, device)


# --- The wall -------------------------------------------------------------------------------------------


def left_over(num_groups: int, channels: int) -> int:
    """Degrees of freedom per sample that group whitening leaves by the count: C - g (g + 3) / 2, perhaps below 0."""
    return channels - num_groups * (num_groups + 3) // 2


def white_share(num_groups: int, channels: int, seed: int, device: torch.device | str = "cpu") -> float:
    """Output variance of group whitening of generic samples, of the 1 that a white output has."""
    layer = create("GroupWhitening", channels, num_groups=num_groups, whitening="zca", eps=1e-10, dtype=torch.float64)
    with torch.no_grad():
        return layer.to(device)(generic_input((8, channels), seed, device)).square().mean().item()


def batch_white_share(features: int, samples: int, seed: int, device: torch.device | str = "cpu") -> float:
    """Output variance of batch whitening of generic samples, of the 1 that a white output has."""
    layer = create("DecorrelatedBatchNorm", features, group_size=None, eps=1e-12, dtype=torch.float64)
    with torch.no_grad():
        return layer.to(device)(generic_input((samples, features), seed, device)).square().mean().item()


def group_whitened(
    num_groups: int, seed: int, *, channels: int, steps: int, restored: bool = False, lr: float = 0.1,
    device: torch.device | str = "cpu",
) -> float:  # fmt: skip
    """Mean training loss of the last 20 steps of a perceptron on digits, its one hidden layer group-whitened.

    Args:
        restored: start the layer's gain at sqrt(g / rank), so that its output has mean square 1 beyond the wall too.
    """
    x, y, _, _ = (t.to(device) for t in digits(seed, torch.float64))
    norm = partial(create, "GroupWhitening", num_groups=num_groups, whitening="zca", eps=1e-6)
    model = nets.mlp((64, channels, 10), norm, seed=seed, device=device)
    if restored:
        rank = min(num_groups, channels // num_groups - 1)
        with torch.no_grad():
            model.norm1.weight.mul_(math.sqrt(num_groups / rank))
    return nets.train(model, nets.batches((x, y), 64, seed), nets.sgd(model, lr), steps)[-20:].mean().item()


@torch.no_grad()
def batch_geometry(features: int, samples: int, seed: int, draws: int = 10, device="cpu") -> tuple[float, float, float]:
    """Of digits in their first principal axes, before and after whitening a batch without eps.

    Returns:
        share of samples whose nearest other sample in the batch has their label, before and after whitening; and the
        standard deviation of the distances after it, over their mean.
    """
    x, y, _, _ = (t.to(device) for t in digits(seed, torch.float64))
    axes = torch.linalg.svd(x - x.mean(0), full_matrices=False)[2][:features]
    layer = exact("DecorrelatedBatchNorm", features, device, group_size=None)
    random, found = torch.Generator().manual_seed(seed), []
    for _ in range(draws):
        index = torch.randperm(len(x), generator=random)[:samples].to(device)
        z = x[index] @ axes.T
        white = layer(z)
        distances = torch.pdist(white)
        found.append((_neighbours(z, y[index]), _neighbours(white, y[index]), distances.std() / distances.mean()))
    return tuple(torch.tensor(found).mean(0).tolist())


def _neighbours(h: Tensor, y: Tensor) -> float:
    distances = torch.cdist(h, h, compute_mode="donot_use_mm_for_euclid_dist").fill_diagonal_(math.inf)
    return (y[distances.argmin(1)] == y).double().mean().item()


# --- Only gain and bias ---------------------------------------------------------------------------------

ARMS = ("gain and bias", "random weights", "head", "everything")


class Residual(nn.Module):
    """relu(x + norm(conv(relu(norm(conv(x)))))), 3 x 3; a projection x where the shape changes."""

    def __init__(self, fan_in: int, fan_out: int, stride: int, norm: Callable[[int], nn.Module]):
        super().__init__()
        conv = partial(nn.Conv2d, bias=False)
        first, second = conv(fan_in, fan_out, 3, stride, 1), conv(fan_out, fan_out, 3, 1, 1)
        self.branch = nn.Sequential(first, norm(fan_out), nn.ReLU(), second, norm(fan_out))
        same = (fan_in, 1) == (fan_out, stride)
        self.skip = nn.Identity() if same else nn.Sequential(conv(fan_in, fan_out, 1, stride), norm(fan_out))

    def forward(self, x: Tensor) -> Tensor:
        """The block on (N, fan_in, H, W)."""
        return (self.branch(x) + self.skip(x)).relu()


def resnet(channels, norm, *, in_channels=1, classes=10, seed=0, dtype=torch.float32, device="cpu") -> nn.Sequential:
    """A residual network, a block per entry of `channels`; one with more channels than the last halves the image."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [nn.Conv2d(in_channels, channels[0], 3, 1, 1, bias=False), norm(channels[0]), nn.ReLU()]
        for fan_in, fan_out in zip((channels[0], *channels), channels, strict=False):
            layers.append(Residual(fan_in, fan_out, 1 if fan_in == fan_out else 2, norm))
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        model = nn.Sequential(*layers)
        model.add_module("head", nn.Linear(channels[-1], classes))
        return model.to(device=device, dtype=dtype)


def train_only(arm: str, model: nn.Module, seed: int = 0) -> int:
    """Freezes all but one part of a network that ends in `head`; returns the number of parameters that are trained.

    Args:
        arm: "gain and bias" of the norms; as many "random weights" of the convolutions; the "head"; or "everything".
            Running statistics follow in every arm.

    Raises:
        ValueError: for another arm.
    """
    if arm not in ARMS:
        raise ValueError(f"arm={arm!r} must be one of {ARMS}")
    named = dict(model.named_parameters())
    head = [n for n in named if n.startswith("head.")]
    affine = [n for n, p in named.items() if p.dim() == 1 and n not in head]
    weights = [n for n in named if n not in head and n not in affine]
    chosen = dict(zip(ARMS, (affine, weights, head, list(named)), strict=True))[arm]
    for name, parameter in named.items():
        parameter.requires_grad_(name in chosen)
    if arm != "random weights":
        return sum(named[n].numel() for n in chosen)
    count = sum(named[n].numel() for n in affine)
    sizes = [named[n].numel() for n in weights]
    mask = torch.zeros(sum(sizes))
    mask[torch.randperm(sum(sizes), generator=torch.Generator().manual_seed(seed))[:count]] = 1
    for name, part in zip(weights, mask.split(sizes), strict=True):
        part = part.view_as(named[name]).to(named[name])
        named[name].register_hook(lambda grad, part=part: grad * part)
    return count


def trained_only(
    arm: str, seed: int, data: tuple[Tensor, Tensor, Tensor, Tensor], channels: tuple[int, ...], steps: int, lr: float,
    wrap: Callable = iter,
) -> tuple[float, nn.Module]:  # fmt: skip
    """Test accuracy, running statistics in use, and network of one arm: SGD with momentum 0.9, rate falling to 0.

    Args:
        data: x_train (N, C, H, W), y_train, x_test, y_test.
        wrap: goes around the mini-batches, such as a progress line.
    """
    x, y, *held_out = data
    norm = partial(create, "BatchNorm")
    model = resnet(channels, norm, in_channels=x.shape[1], seed=seed, dtype=x.dtype, device=x.device)
    train_only(arm, model, seed)
    optimizer = nets.sgd(model, lr, momentum=0.9)
    nets.train(model, wrap(nets.batches((x, y), 64, seed)), optimizer, steps, before_step=falling(optimizer, steps))
    return nets.accuracy(model.eval(), held_out), model


def falling(optimizer: torch.optim.Optimizer, steps: int) -> Callable[[int], None]:
    """A `before_step` that lets the learning rates fall linearly to 0."""
    starts = [group["lr"] for group in optimizer.param_groups]

    def before_step(t: int) -> None:
        for group, start in zip(optimizer.param_groups, starts, strict=True):
            group["lr"] = start * (1 - t / steps)

    return before_step


def gains(model: nn.Module) -> Tensor:
    """|gain| of every channel of every norm, one after the other."""
    affine = (p for n, p in model.named_parameters() if p.dim() == 1 and n.endswith("weight"))
    return torch.cat([p.detach().abs() for p in affine]).cpu()


def within_samples(features: Tensor, num_groups: int) -> float:
    """Mean |correlation| between groups of channels of one sample, over a group's channels and positions, averaged."""
    groups = features.flatten(1).view(len(features), num_groups, -1)
    groups = groups - groups.mean(-1, keepdim=True)
    groups = groups / groups.norm(dim=-1, keepdim=True)
    r = (groups @ groups.mT).abs()  # (N, g, g)
    return ((r.sum((1, 2)) - num_groups) / (num_groups * (num_groups - 1))).mean().item()


def _layers() -> list[str]:
    return [name for name, record in catalogue.items() if record.kind == "layer"]


def _options(method_id: str) -> frozenset[str]:
    names: set[str] = set()
    for cls in catalogue[method_id].cls.__mro__:
        if cls is not nn.Module and "__init__" in vars(cls):
            names |= set(inspect.signature(cls.__init__).parameters)
    return frozenset(names)


def _example(method_id: str) -> Norm:
    example = catalogue[method_id].example
    with torch.random.fork_rng(devices=[]):
        return create(method_id, example.num_features, **example.options)
