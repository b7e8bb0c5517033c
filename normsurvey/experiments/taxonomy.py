"""How the methods relate: equalities between them, invariances predicted from their parts, Ba et al.'s table.

All layers here take the composed path, whose arithmetic is that of their parts.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .. import methods
from ..area import Area
from ..norm import Norm
from ..operations import Center
from ..plots.areas import labels
from ..registry import INVARIANCES, Method
from ..weights import parametrize

__all__ = ["TABLE", "difference", "identities", "predicted", "table_cell", "torch_pairs"]

EXACT = {"fused": False, "dtype": torch.float64}


def example_input(seed: int, shape=(4, 6, 5, 5), device="cpu") -> Tensor:
    """A float64 input with another mean and spread in each sample and channel."""
    generator = torch.Generator().manual_seed(seed)
    spread = 0.5 + torch.rand(*shape[:2], *[1] * (len(shape) - 2), generator=generator, dtype=torch.float64)
    centre = torch.randn(spread.shape, generator=generator, dtype=torch.float64)
    return (centre + spread * torch.randn(shape, generator=generator, dtype=torch.float64)).to(device)


def difference(
    first: Callable, second: Callable, x: Tensor, seed: int = 0, *, learned: bool = False
) -> dict[str, float]:
    """Largest differences of two functions of ``x``, relative to the largest entry.

    Args:
        first: a module, or any differentiable function.
        second: the other one.
        x: their input.
        seed: of the random linear function of the output whose gradients are compared.
        learned: compare the gradients of the two modules' parameters too, not only that of ``x``.

    Returns:
        ``{"forward": ..., "backward": ...}``.
    """
    upstream = torch.randn(first(x).shape, generator=torch.Generator().manual_seed(seed), dtype=x.dtype).to(x.device)
    runs = []
    for function in (first, second):
        leaf = x.detach().clone().requires_grad_()
        y = function(leaf)
        parameters = list(function.parameters()) if learned else []
        runs.append((y.detach(), *torch.autograd.grad(y, [leaf, *parameters], upstream)))
    gaps = [float((a - b).abs().max() / b.abs().max()) for a, b in zip(*runs, strict=True)]
    return {"forward": gaps[0], "backward": max(gaps[1:])}


def torch_pairs(x: Tensor, seed: int) -> dict[str, tuple[nn.Module, nn.Module, Tensor]]:
    """Name -> (our layer, torch's, an input) for every normalization layer of torch, with the same random parameters.

    Args:
        x: input (N, C, H, W).
        seed: of the gains and biases.
    """
    channels, sample = x.shape[1], list(x.shape[1:])
    tokens = x.flatten(2).transpose(1, 2).contiguous()
    last = EXACT | {"channel_dim": -1}
    made = {
        "BatchNorm": (methods.BatchNorm(channels, **EXACT), nn.BatchNorm2d(channels), x),
        "BatchNorm, inference": (methods.BatchNorm(channels, **EXACT), nn.BatchNorm2d(channels), x),
        "LayerNorm of a sample": (
            methods.LayerNorm(channels, affine=False, **EXACT), nn.LayerNorm(sample, elementwise_affine=False), x,
        ),
        "LayerNorm of a token": (methods.LayerNorm(channels, **last), nn.LayerNorm(channels), tokens),
        "GroupNorm": (methods.GroupNorm(channels, num_groups=2, **EXACT), nn.GroupNorm(2, channels), x),
        "InstanceNorm": (methods.InstanceNorm(channels, affine=True, **EXACT),
                         nn.InstanceNorm2d(channels, affine=True), x),
        "RMSNorm of a sample": (
            methods.RMSNorm(channels, affine=False, **EXACT), nn.RMSNorm(sample, elementwise_affine=False), x,
        ),
        "RMSNorm of a token": (methods.RMSNorm(channels, **last), nn.RMSNorm(channels), tokens),
    }  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    for name, (ours, theirs, _) in made.items():
        ours.to(x.device), theirs.to(x.device, x.dtype)
        for p in ours.parameters():
            p.data.copy_(torch.randn(p.shape, generator=generator, dtype=p.dtype))
        theirs.load_state_dict(ours.state_dict())
        if "inference" in name:
            ours(2 * x + 1), theirs(2 * x + 1)
            ours.eval(), theirs.eval()
    return made


def identities(x: Tensor) -> dict[str, tuple[Callable, Callable]]:
    """Equation in words -> the two functions that it equates, for an input like ``x`` (N, C, H, W)."""
    samples, channels = x.shape[:2]
    plain = EXACT | {"affine": False, "device": x.device}

    def layer(name, **options):
        return getattr(methods, name)(channels, **(plain | options))

    batch, instance, whole = layer("BatchNorm"), layer("InstanceNorm"), layer("LayerNorm")
    root = layer("RMSNorm", eps=1e-5)
    center = Norm(Area("n c ... -> n"), Center(), fused=False)
    switched = [layer("SwitchableNorm") for _ in range(3)]
    for k, norm in enumerate(switched):
        for weight in (norm.mean_weight, norm.var_weight):
            weight.data[k] += 1e4  # its softmax is 1 in float64
    adaptive = methods.AdaIN(channels, **EXACT)
    adaptive.to(x.device)

    def swapped(norm, *axes):
        return lambda t: norm(t.transpose(*axes)).transpose(*axes)

    def alone(t):
        return torch.cat([batch(t[k : k + 1]) for k in range(samples)])

    def unrolled(t):
        wide = methods.BatchNorm(samples * channels, **plain)
        return wide(t.reshape(1, samples * channels, *t.shape[2:])).reshape(t.shape)

    last = {"channel_dim": -1}
    pixel = methods.PixelNorm(channels, fused=False)
    ghosts = {"ghost_size": 2}
    return {
        "GroupNorm of 1 group = LayerNorm": (layer("GroupNorm", num_groups=1), whole),
        "GroupNorm of C groups = InstanceNorm": (layer("GroupNorm", num_groups=channels), instance),
        "BatchNorm of one sample at a time = InstanceNorm": (alone, instance),
        "BatchNorm of (1, N C) = InstanceNorm": (unrolled, instance),
        "BatchNorm, samples and channels exchanged = LayerNorm": (
            swapped(methods.BatchNorm(samples, **plain), 0, 1), whole),
        "LayerNorm, channels last = PositionalNorm": (
            swapped(layer("LayerNorm", **last), 1, -1), layer("PositionalNorm")),
        "RMSNorm, channels last = PixelNorm": (swapped(layer("RMSNorm", eps=1e-8, **last), 1, -1), pixel),
        "RMSNorm of the centred input = LayerNorm": (lambda t: root(center(t)), whole),
        "RMSNorm = LayerNorm on centred inputs": (lambda t: root(center(t)), lambda t: whole(center(t))),
        "BatchGroupNorm of 1 sample = GroupNorm": (
            layer("BatchGroupNorm", num_groups=2, ghost_size=1), layer("GroupNorm", num_groups=2)),
        "BatchGroupNorm of C groups = BatchNorm": (layer("BatchGroupNorm", num_groups=channels), batch),
        "BatchGroupNorm of C groups, in ghosts = GhostBatchNorm": (
            layer("BatchGroupNorm", num_groups=channels, **ghosts), layer("GhostBatchNorm", **ghosts)),
        "GhostBatchNorm of the whole batch = BatchNorm": (layer("GhostBatchNorm", ghost_size=samples), batch),
        "GhostBatchNorm of 1 sample = InstanceNorm": (layer("GhostBatchNorm", ghost_size=1), instance),
        "BatchRenorm with r = 1, d = 0 = BatchNorm": (layer("BatchRenorm", r_max=1.0, d_max=0.0, eps=1e-5), batch),
        "GroupWhitening of 1 group = LayerNorm": (layer("GroupWhitening", num_groups=1, eps=1e-5), whole),
        "DecorrelatedBatchNorm of 1 channel = BatchNorm": (
            layer("DecorrelatedBatchNorm", group_size=1, eps=1e-5), batch),
        "IterNorm of many iterations = DecorrelatedBatchNorm": (
            layer("IterNorm", num_iterations=40, eps=1e-3), layer("DecorrelatedBatchNorm")),
        "SwitchableNorm, all weight on the instance = InstanceNorm": (switched[0], instance),
        "SwitchableNorm, all weight on the layer = LayerNorm": (switched[1], whole),
        "SwitchableNorm, all weight on the batch = BatchNorm": (switched[2], batch),
        "AdaIN in its own style = the identity": (lambda t: adaptive(t, t), lambda t: t),
    }  # fmt: skip


def predicted(record: Method, seed: int = 0) -> set[str]:
    """The changes of its input that a layer cannot notice, from its parts alone.

    A factor or an offset is invisible if (1) the operation removes it from a single area, (2) it is constant in
    each area (in each feature of an area, where the operation removes even those), and (3) the statistics are
    the input's own. The first and the third are tried on the part; the second is a matter of labels.

    Args:
        record: a layer of the catalogue.
        seed: of the values on which the parts are tried.
    """
    layer = record.build(**({"eps": 0.0} if "eps" in record.signature.parameters else {}))
    if not _own_statistics(record, seed):
        return set()
    shape = (record.example.shape[0], record.example.shape[1], 5)
    removed = _removed(layer.operation, seed)
    areas = getattr(layer.statistics, "areas", (layer.area,))
    out = set()
    for change in INVARIANCES["layer"]:
        where, _, what = change.partition("_")
        if removed[what] and all(_constant(where, area, shape, removed[what]) for area in areas):
            out.add(change)
    return out


def _removed(operation, seed: int) -> dict[str, str]:
    """How finely an operation removes scales and shifts from one area: "", "area" or "feature"."""
    generator = torch.Generator().manual_seed(seed)
    mixing = operation.mixes_channels
    norm = Norm(Area("n d ... ->", features="d") if mixing else Area("n c ... ->"), operation, fused=False)
    # channels of unlike size and correlated, so that no rotation happens to be the identity
    mixer = torch.randn(3, 3, generator=generator, dtype=torch.float64) + torch.diag(torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64))
    x = 1 + torch.einsum("ij,njs->nis", mixer, torch.randn(2, 3, 40, generator=generator, dtype=torch.float64))
    vector = 0.5 + torch.rand(1, 3, 1, generator=generator, dtype=torch.float64)
    changed = {
        "scale": {"area": 1.7 * x, "feature": vector * x}, "shift": {"area": x + 1.3, "feature": x + vector},
    }  # fmt: skip
    out = {}
    for what, versions in changed.items():
        unseen = [size for size, version in versions.items() if torch.allclose(norm(version), norm(x), atol=1e-9)]
        out[what] = unseen[-1] if unseen else ""
    return out


def _constant(where: str, area: Area, shape: tuple[int, int, int], size: str) -> bool:
    """Whether a factor per input, channel, sample or position is one number in each area (feature of an area)."""
    n, c, s = (t.ravel() for t in torch.meshgrid(*map(torch.arange, shape), indexing="ij"))
    varies = {"input": 0 * n, "channel": c, "sample": n, "position": n * shape[2] + s}[where]
    index, feature = (torch.as_tensor(t).ravel() for t in labels(area, shape))
    block = index * (int(feature.max()) + 1) + feature if size == "feature" else index
    pairs = torch.stack([block, varies]).unique(dim=1)
    return pairs.shape[1] == len(block.unique())


def _own_statistics(record: Method, seed: int) -> bool:
    """Whether a layer in training ignores what its buffers remember."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(record.example.shape, generator=generator, dtype=torch.float64)
    condition = record.example.condition and record.example.condition(generator, torch.float64, "cpu")
    outputs = []
    for remembered in (0.0, 0.7):
        layer = record.build(**EXACT)
        for buffer in layer.buffers():
            if buffer.is_floating_point():
                buffer.add_(remembered)
        outputs.append(layer(x) if condition is None else layer(x, condition))
    return torch.equal(*outputs)


#: Rows of Ba et al.'s table (the last two of Zhang and Sennrich's): changes that the normalized layer does not notice.
TABLE = {
    "BatchNorm": ("weight matrix scaled", "weight vectors scaled", "data scaled", "data shifted"),
    "WeightNorm": ("weight matrix scaled", "weight vectors scaled"),
    "LayerNorm": ("weight matrix scaled", "weight matrix shifted", "data scaled", "one sample scaled"),
    "RMSNorm": ("weight matrix scaled", "data scaled", "one sample scaled"),
    "partial RMSNorm": ("weight matrix scaled", "data scaled", "one sample scaled"),
}


def table_cell(row: str, seed: int, device="cpu") -> dict[str, float]:
    """Relative change of the output of ``norm(W x)`` for each of the six changes of weights or data.

    Args:
        row: a key of :data:`TABLE`.
        seed: of the data (32, 10), the weight (8, 10) and the changes.
        device: where to compute.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(device)

    x, w, gamma, delta = 0.5 + draw(32, 10), draw(8, 10), draw(1, 10), draw(1, 10)
    rows, one = 1.5 + torch.rand(8, 1, generator=generator, dtype=torch.float64).to(device), torch.ones_like(x[:, :1])
    one[0] = 2.0
    output = _normalized(row, w)
    changes = {
        "weight matrix scaled": (x, 1.7 * w), "weight matrix shifted": (x, w + gamma),
        "weight vectors scaled": (x, rows * w), "data scaled": (1.7 * x, w), "data shifted": (x + delta, w),
        "one sample scaled": (one * x, w),
    }  # fmt: skip
    reference = output(x, w)
    size = reference.square().mean().sqrt()
    return {name: float((output(*changed) - reference).abs().max() / size) for name, changed in changes.items()}


def _normalized(row: str, weight: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """``(x, W) -> norm(x W^T)``; weight normalization keeps the lengths learned for ``weight``."""
    if row == "WeightNorm":
        linear = nn.Linear(*weight.shape[::-1], bias=False).to(weight)
        linear.weight.data.copy_(weight)
        method = parametrize(linear, "WeightNorm").parametrizations.weight
        return lambda x, w: (x @ method[0](method.original0, w).T).detach()
    options = {"p": 0.5} if row == "partial RMSNorm" else {}
    norm = getattr(methods, row.removeprefix("partial "))(len(weight), eps=0.0, **options, **EXACT)
    return lambda x, w: norm.to(x.device)(x @ w.T).detach()
