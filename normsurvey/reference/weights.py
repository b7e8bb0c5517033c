"""Weight methods, row by row and entry by entry.

Every function takes the raw tensors of the parametrization and the options of the method by name, and
returns the weight. Loops read one output unit at a time; torch is used for sums and products only, so that
autograd can follow.
"""

import torch
from torch import Tensor

from normsurvey.reference import reference


def units(weight: Tensor, dim: int) -> list[Tensor]:
    """The flattened weight of each output unit, a list of vectors (d,)."""
    return [weight.select(dim, i).reshape(-1) for i in range(weight.shape[dim])]


def assemble(rows: list[Tensor], weight: Tensor, dim: int) -> Tensor:
    """The tensor, shaped like `weight`, whose output units are `rows`."""
    return torch.stack([row.reshape(weight.select(dim, 0).shape) for row in rows], dim)


def length(vector: Tensor) -> Tensor:
    """Euclidean length: the root of the sum of squares."""
    return (vector * vector).sum() ** 0.5


@reference("WeightNorm")
def weight_norm(g: Tensor, v: Tensor, *, dim: int | None = 0, eps: float = 0.0) -> Tensor:
    """Each unit is its length g times the direction of v (Salimans & Kingma 2016, equation 2)."""
    if dim is None:
        return g * v / (length(v.reshape(-1)) + eps)
    scaled = [gi * vi / (length(vi) + eps) for gi, vi in zip(g.reshape(-1), units(v, dim), strict=True)]
    return assemble(scaled, v, dim)


@reference("SpectralNorm")
def spectral_norm(
    weight: Tensor,
    u: Tensor,
    v: Tensor,
    *,
    dim: int = 0,
    n_power_iterations: int = 1,
    eps: float = 1e-12,
    update_first: str = "u",
    eps_placement: str = "max",
    scale: float = 1.0,
    training: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """The weight over u^T W v, and u and v after the power iteration (Miyato et al. 2018, algorithm 1)."""
    rows = units(weight, dim)
    fixed = torch.stack([row.detach() for row in rows])  # u and v are constants for the gradient

    def unit(vector: Tensor) -> Tensor:
        norm = float(length(vector))
        return vector / (max(norm, eps) if eps_placement == "max" else norm + eps)

    def towards_u() -> Tensor:
        return unit(torch.stack([(row * v).sum() for row in fixed]))

    def towards_v() -> Tensor:
        return unit(sum(ui * row for ui, row in zip(u, fixed, strict=True)))

    for _ in range(n_power_iterations if training else 0):
        if update_first == "u":
            u = towards_u()
            v = towards_v()
        else:
            v = towards_v()
            u = towards_u()
    sigma = sum(ui * (row * v).sum() for ui, row in zip(u, rows, strict=True))
    return scale * weight / sigma, u, v


@reference("WeightStandardization")
def weight_standardization(
    weight: Tensor, *, dim: int = 0, eps: float = 1e-5, correction: int = 1, eps_placement: str = "inside"
) -> Tensor:
    """Each unit with mean 0 and variance 1 (Qiao et al. 2019, equations 4-5)."""
    rows = []
    for row in units(weight, dim):
        mean = sum(row) / len(row)
        var = sum((entry - mean) ** 2 for entry in row) / (len(row) - correction)
        std = (var + eps) ** 0.5 if eps_placement == "inside" else var**0.5 + eps
        rows.append((row - mean) / std)
    return assemble(rows, weight, dim)


@reference("OrthogonalizationByNewtonIteration")
def orthogonalization(
    weight: Tensor,
    *,
    num_iterations: int = 5,
    num_groups: int = 1,
    eps: float = 1e-5,
    scale: float | None = None,
    dim: int = 0,
    center: bool = True,
    bounding: str = "compact",
    side: str | None = None,
) -> Tensor:
    """The plain recursion B <- 1.5 B - 0.5 B^3 S (Huang et al. 2020, algorithm 1), one group at a time."""
    if scale is None:
        scale = 1.414 if weight.ndim > 2 else 1.0
    rows = units(weight, dim)
    n, d = len(rows), len(rows[0])
    columns = side == "columns" or (side is None and n > d)
    result = []
    for start in range(0, n, n // num_groups):
        z = torch.stack(rows[start : start + n // num_groups])
        if center:
            z = torch.stack([row - sum(row) / d for row in z])
        s = (z.T @ z if columns else z @ z.T) + eps * torch.eye(d if columns else len(z), dtype=z.dtype)
        bound = torch.trace(s) if bounding == "basic" else (s * s).sum() ** 0.5
        normalized = s if columns and bounding == "released" else s / bound
        b = torch.eye(len(s), dtype=z.dtype)
        for _ in range(num_iterations):
            b = 1.5 * b - 0.5 * b @ b @ b @ normalized
        result.extend(scale * (z @ b if columns else b @ z) / bound**0.5)
    return assemble(result, weight, dim)
