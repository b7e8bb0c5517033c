"""Covariances of areas, and one matrix product over the tensor."""

from __future__ import annotations

import torch
from torch import Tensor

from ..area import Area
from .guards import transforms_active
from .moments import affine

__all__ = ["centre", "covariance", "gram", "mix"]

# Channels of a group as features, over the batch or within each sample; and groups as features, likewise.
OVER_SAMPLES, PER_SAMPLE = "n (g d) ... -> g", "n (g d) ... -> n g"
ACROSS_GROUPS = "n (g c) ... ->", "n (g c) ... -> n"


class _Centre(torch.autograd.Function):
    """The mean of each area spread over its entries, and the tensor without it, with two passes each way."""

    @staticmethod
    def forward(ctx, x, area):
        ctx.area, ctx.shape = area, x.shape
        ctx.set_materialize_grads(False)
        mean = area.spread(area.mean(x), x.shape)
        return mean, x - mean

    @staticmethod
    def backward(ctx, grad_mean, grad):
        area, moved = ctx.area, None
        if grad_mean is not None:  # small: one number per area and feature
            moved = area.mean(grad_mean) * (area.count(grad_mean.shape) / area.count(ctx.shape))
        if grad is None:
            return None if moved is None else area.spread(moved, ctx.shape).expand(ctx.shape), None
        mean = area.mean(grad)
        return grad - area.spread(mean if moved is None else mean - moved, ctx.shape), None


class _Gram(torch.autograd.Function):
    """``x_n x_n^T`` of ``x`` (N, groups, d, S); the backward pass needs one product instead of two."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x @ x.mT

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return _product(grad + grad.mT, x)


class _Mix(torch.autograd.Function):
    """``matrix @ x + bias`` for ``x`` (N, groups, d, S), matrix (N or 1, groups, d, d), bias (N or 1, groups, d, 1)."""

    @staticmethod
    def forward(ctx, x, matrix, bias):
        ctx.save_for_backward(x, matrix)
        ctx.each = matrix.shape[0] == x.shape[0], bias.shape[0] == x.shape[0]
        return _product(matrix, x, bias)

    @staticmethod
    def backward(ctx, grad):
        x, matrix = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        return (
            _product(matrix.mT, grad) if wanted[0] else None,
            _over_samples(grad @ x.mT, ctx.each[0]) if wanted[1] else None,
            _over_samples(grad.sum(3, keepdim=True), ctx.each[1]) if wanted[2] else None,
        )


def _over_samples(x: Tensor, each: bool) -> Tensor:
    return x if each else x.sum(0, keepdim=True)


def _product(matrix: Tensor, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """``matrix @ x + bias`` as one batched product over samples and groups, laid out as ``x`` is."""
    n, groups, d, s = x.shape
    if s > 1 == n != x.stride(3) and not torch.is_grad_enabled():  # rows of features
        y = torch.empty_like(x)
        torch.bmm(x[0].mT, matrix[0].mT, out=y[0].mT)
        return y if bias is None else y.add_(bias)
    a, b = matrix.expand(n, groups, d, d).reshape(-1, d, d), x.reshape(-1, d, s)
    y = torch.bmm(a, b) if bias is None else torch.baddbmm(bias.expand(n, groups, d, 1).reshape(-1, d, 1), a, b)
    return torch.ops.aten._unsafe_view(y, x.shape)  # no view of anything: the result may be changed in place


def centre(area: Area, x: Tensor, weight: Tensor | None = None, fused: bool = True) -> tuple[Tensor, Tensor]:
    """The mean of each area, spread so that it broadcasts against ``x`` (N, C, S), and ``x`` without it."""
    if weight is None and fused:
        return _Centre.apply(x, area)
    mean = area.spread(area.mean(x, weight), x.shape)
    return mean, x - mean


def covariance(area: Area, centred: Tensor, weight: Tensor | None = None, fused: bool = True) -> Tensor:
    """Covariances ``(areas, d, d)`` of a centred tensor (N, C, S), divided by the number (or weight) of samples."""
    if weight is None and fused and (view := _view(area, centred)):
        products = _Gram.apply(_grouped(centred, view)) / area.count(centred.shape)
        return products.flatten(0, 1) if "n" in area.kept else products.sum(0)
    x = area.matrices(centred)
    if weight is None:
        return (gram(x) if fused else x @ x.mT) / x.shape[2]
    w = area.matrices(weight.expand(centred.shape))[:, :1]  # weights are shared by the features of an area
    return (x * w) @ x.mT / w.sum(-1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)


def gram(x: Tensor) -> Tensor:
    """``x x^T`` of matrices ``x`` (groups, d, samples), with one product in the backward pass."""
    return x @ x.mT if transforms_active() else _Gram.apply(x[None])[0]


def mix(
    area: Area, centred: Tensor, matrix: Tensor, gain: Tensor | None, bias: Tensor | None, fused: bool = True
) -> Tensor:
    """``gain * matrix @ x + bias`` for the features of each area of a centred tensor ``x`` (N, C, S).

    Args:
        area: names the features.
        centred: the tensor.
        matrix: one matrix per area, ``(areas, d, d)``, or one per sample and area, ``(N, areas, d, d)``.
        gain: broadcasts against the tensor; ``None`` is 1.
        bias: broadcasts against the tensor; ``None`` is 0.
        fused: fold a gain and a bias per sample and channel into the product where areas are groups of channels.
    """
    if fused and (view := _view(area, centred)):
        x, rows = _grouped(centred, view), (-1, *view[1:3], 1)
        matrix = matrix.reshape(-1, *view[1:3], view[2])
        fold = all(t is None or t.shape[1:].numel() == view[1] * view[2] for t in (gain, bias))
        if fold and gain is not None:
            matrix = matrix * gain.reshape(rows)
        shift = matrix.new_zeros((1, *rows[1:])) if bias is None or not fold else bias.reshape(rows)
        y = _ungrouped(_Mix.apply(x, matrix.to(x.dtype), shift.to(x.dtype)), centred.shape)
        if fold:
            return y
        if all(t is None or t.shape[2] == 1 for t in (gain, bias)):
            return affine(y, gain, bias)
    else:
        matrix = matrix.to(centred.dtype)
        if matrix.dim() == 4:
            area, matrix = Area(PER_SAMPLE, features="d", d=matrix.shape[-1]), matrix.flatten(0, 1)
        y = area.unmatrices(matrix @ area.matrices(centred), centred.shape)
    y = y if gain is None else y * gain
    return y if bias is None else y + bias


def _view(area: Area, x: Tensor) -> tuple[int, int, int, int] | None:
    """The shape (N, groups, d, samples) in which ``x`` (N, C, S) shows the matrices of ``area`` without a copy."""
    n, channels, positions = x.shape
    if positions == 1 and area.pattern == OVER_SAMPLES and channels % (d := area.shape(x.shape)[2]) == 0:
        return 1, channels // d, d, n
    if positions < 16:
        return None
    sizes = area.shape(x.shape)
    if area.pattern in (OVER_SAMPLES, PER_SAMPLE) and x.shape[1] % sizes[2] == 0:
        return sizes
    if area.pattern in ACROSS_GROUPS and area.features == "g":
        return sizes[0], 1, sizes[1], sizes[2] * sizes[3]
    return None


def _grouped(x: Tensor, view: tuple[int, int, int, int]) -> Tensor:
    """``x`` (N, C, S) in the shape that :func:`_view` found; the samples of rows (N, C, 1) come last without a copy."""
    if x.shape[2] == 1:
        return x.reshape(view[3], *view[1:3]).permute(1, 2, 0)[None]
    return x.reshape(view)


def _ungrouped(y: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Undo :func:`_grouped` for a tensor that had ``shape``."""
    return y.squeeze(0).permute(2, 0, 1).reshape(shape) if shape[2] == 1 else y.reshape(shape)
