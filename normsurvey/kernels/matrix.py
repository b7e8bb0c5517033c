"""Covariances of areas, inverse square roots of small matrices, and one matrix product over the tensor."""

from __future__ import annotations

import torch
from torch import Tensor

from ..area import Area
from .guards import transforms_active

__all__ = ["covariance", "inverse_sqrt", "mix", "newton_inverse_sqrt"]


def covariance(area: Area, centred: Tensor, weight: Tensor | None = None, fused: bool = True) -> Tensor:
    """Covariances ``(areas, d, d)`` of a centred tensor (N, C, S), divided by the number (or weight) of samples."""
    if weight is None and fused and _groups_of_channels(area, centred):
        n, c, s = centred.shape
        d = area.shape(centred.shape)[2]
        parts = centred.reshape(n, c // d, d, s)
        return (parts @ parts.mT).sum(0) / (n * s)
    x = area.matrices(centred)
    if weight is None:
        return x @ x.mT / x.shape[2]
    w = area.matrices(weight.expand(centred.shape))[:, :1]  # weights are shared by the features of an area
    return (x * w) @ x.mT / w.sum(-1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)


def mix(area: Area, centred: Tensor, matrix: Tensor, fused: bool = True) -> Tensor:
    """Multiply the features of each area of a centred tensor (N, C, S) by its matrix ``(areas, d, d)``."""
    if fused and _groups_of_channels(area, centred):
        n, c, s = centred.shape
        return (matrix @ centred.reshape(n, *matrix.shape[:2], s)).reshape(n, c, s)
    return area.unmatrices(matrix @ area.matrices(centred), centred.shape)


def _groups_of_channels(area: Area, x: Tensor) -> bool:
    """Whether the areas are whole groups of channels over batch and positions, so that no copy is needed."""
    return area.pattern == "n (g d) ... -> g" and x.shape[1] % area.shape(x.shape)[2] == 0 and x.shape[2] >= 16


def newton_inverse_sqrt(cov: Tensor, steps: int) -> Tensor:
    """``steps`` coupled Newton-Schulz iterations towards ``cov ** -1/2`` (areas, d, d), scaled by the trace.

    Identical iterates to the recursion of Huang et al., arXiv 1904.03441, equation 5, and stable for any number.
    """
    trace = cov.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
    trace = trace.clamp_min(torch.finfo(cov.dtype).tiny)  # a constant area: its centred entries are 0 anyway
    eye = torch.eye(cov.shape[-1], dtype=cov.dtype, device=cov.device)
    y, z = cov / trace, eye.expand_as(cov)
    for _ in range(steps):
        m = 1.5 * eye - 0.5 * (z @ y)
        y, z = y @ m, m @ z
    return z * trace.rsqrt()


class _InverseSqrt(torch.autograd.Function):
    @staticmethod
    def forward(ctx, cov):
        values, vectors = torch.linalg.eigh(cov)
        ctx.save_for_backward(cov, values, vectors)
        return (vectors * values.rsqrt()[..., None, :]) @ vectors.mT

    @staticmethod
    def backward(ctx, grad):
        cov, values, vectors = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True: the decomposition has to be differentiable itself
            values, vectors = torch.linalg.eigh(cov)
        root = values.sqrt()
        # divided differences of l ** -1/2, which never divide by l_i - l_j
        kernel = -1 / (root[..., :, None] * root[..., None, :] * (root[..., :, None] + root[..., None, :]))
        inner = vectors.mT @ (0.5 * (grad + grad.mT)) @ vectors
        return vectors @ (kernel * inner) @ vectors.mT


def inverse_sqrt(cov: Tensor) -> Tensor:
    """Symmetric ``cov ** -1/2`` (areas, d, d) with a backward pass that is stable for equal eigenvalues."""
    if transforms_active():
        values, vectors = torch.linalg.eigh(cov)
        return (vectors * values.rsqrt()[..., None, :]) @ vectors.mT
    return _InverseSqrt.apply(cov)
