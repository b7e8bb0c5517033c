"""Torch's own fused kernels, used outright where torch has the method."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import operations, recovery, statistics
from .positions import standardize_positions

if TYPE_CHECKING:
    from ..norm import Norm

__all__ = ["find"]


def find(layer: Norm, x: Tensor) -> Callable[[Norm, Tensor], Tensor] | None:
    """The kernel that computes exactly what ``layer`` declares for ``x``, or ``None``.

    Only standardizing and scaling with a plain affine recovery and eps > 0 (torch refuses eps = 0) have one.
    """
    operation, area = layer.operation, layer.area
    if len(layer.areas) > 1:
        return None
    if type(layer.recovery) not in (recovery.Affine, recovery.Recovery):
        return None
    if _by_position(layer, x) and _same_precision(layer, x):
        return positional_norm
    if getattr(operation, "eps_outside", False) or operation != _plain(operation):
        return None
    same = _same_precision(layer, x)
    if type(layer.statistics) is statistics.Running:
        plain = layer.statistics.correction == 1 and area.pattern == "n c ... -> c" and layer.channel_dim == 1
        fits = plain and (same or _mixed_precision(layer, x))
        return batch_norm if fits and isinstance(operation, operations.Standardize) else None
    if type(layer.statistics) is not statistics.Current or not same:
        return None
    if layer.channel_dim == -1 and area.pattern == "n c ... -> n ..." and area.count((1, x.shape[-1], 1)) > 1:
        return layer_norm if isinstance(operation, operations.Standardize) else rms_norm
    if x.dim() == 2 and area.pattern == "n c ... -> n" and isinstance(operation, operations.Standardize):
        return layer_norm if x.shape[1] > 1 else None
    if layer.channel_dim == 1 and area.pattern in GROUPS and isinstance(operation, operations.Standardize):
        return group_norm
    return None


def _plain(operation: operations.Operation) -> operations.Operation | None:
    """The form of ``operation`` that torch implements, with the same eps."""
    if type(operation) is operations.Standardize and operation.eps > 0:
        return operations.Standardize(operation.eps)
    if type(operation) is operations.Scale and operation.eps != 0:
        return operations.Scale(operation.eps)
    return None


def _by_position(layer: Norm, x: Tensor) -> bool:
    """Whether the layer standardizes the channels at every position of ``(N, C, ...)``, in a wide enough precision."""
    operation, shaped = layer.operation, layer.channel_dim == 1 and x.dim() > 2 and x.shape[1] > 1
    plain = type(operation) is operations.Standardize and operation.eps > 0 and not operation.eps_outside
    wide = x.dtype in (torch.float32, torch.float64) and x.shape[1] > getattr(operation, "correction", 0)
    same = type(layer.statistics) is statistics.Current and layer.area.pattern == "n c ... -> n ..."
    return shaped and plain and wide and same


def _same_precision(layer: Norm, x: Tensor) -> bool:
    return _precisions(layer) <= {x.dtype}


def _mixed_precision(layer: Norm, x: Tensor) -> bool:
    """Half precision with parameters in float32, which only batch normalization on a GPU takes."""
    return x.is_cuda and x.dtype in (torch.float16, torch.bfloat16) and _precisions(layer) <= {torch.float32}


def _precisions(layer: Norm) -> set[torch.dtype]:
    tensors = (*layer.parameters(recurse=False), *layer.buffers(recurse=False))
    return {t.dtype for t in tensors if t.is_floating_point()}


def _affine(layer: Norm) -> tuple[Tensor | None, Tensor | None]:
    return getattr(layer, "weight", None), getattr(layer, "bias", None)


def batch_norm(layer: Norm, x: Tensor) -> Tensor:
    """``F.batch_norm``, with the layer's running statistics."""
    part, weight, bias = layer.statistics, *_affine(layer)
    own = layer.training or not part.track
    factor = 0.0
    if own:
        count = x.numel() // max(x.shape[1], 1)
        if count < 2:
            return _too_few(layer, x)
        if part.track:
            factor = statistics.running.average_factor(layer, part.momentum)
    mean, var = (layer.running_mean, layer.running_var) if part.track else (None, None)
    return F.batch_norm(x, mean, var, weight, bias, own, factor, layer.operation.eps)


GROUPS = {
    "n (g c) ... -> n g": lambda layer: layer.area.sizes["g"],
    "n c ... -> n": lambda layer: 1,
    "n c ... -> n c": lambda layer: layer.num_features,
}


def group_norm(layer: Norm, x: Tensor) -> Tensor:
    """``F.group_norm``, which is also layer normalization (one group) and instance normalization (C groups)."""
    groups = GROUPS[layer.area.pattern](layer) or x.shape[1]
    if x[0].numel() // groups < 2:
        return _too_few(layer, x)
    return F.group_norm(x, groups, *_affine(layer), layer.operation.eps)


def layer_norm(layer: Norm, x: Tensor) -> Tensor:
    """``F.layer_norm`` over the last axis."""
    return F.layer_norm(x, x.shape[-1:], *_affine(layer), layer.operation.eps)


def positional_norm(layer: Norm, x: Tensor) -> Tensor:
    """Our own kernel: torch has none for the channels of an image."""
    operation = layer.operation
    y = standardize_positions(layer.arrange(x), *_affine(layer), operation.eps, operation.correction)
    return layer.restore(y, x)


def rms_norm(layer: Norm, x: Tensor) -> Tensor:
    """``F.rms_norm`` over the last axis, and the bias that torch does not have."""
    weight, bias = _affine(layer)
    y = F.rms_norm(x, x.shape[-1:], weight, layer.operation.eps)
    return y if bias is None else y + bias


def _too_few(layer: Norm, x: Tensor) -> Tensor:
    from ..entries import Entries

    Entries(layer.arrange(x)).require(layer.area)
    raise AssertionError("an area of fewer than two values is refused above")
