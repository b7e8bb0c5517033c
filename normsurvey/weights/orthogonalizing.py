"""Weights made orthogonal by Newton's iteration."""

import math

import torch
from torch import Tensor, nn

from normsurvey.registry import Example, method
from normsurvey.weights.base import (
    WeightMethod,
    at_least_float32,
    check_choice,
    check_number,
    without_autocast,
)


@method(
    title="Orthogonalization by Newton's Iteration (ONI)",
    kind="weight",
    list_section="1.3",
    cite="huang2020controllable",
    year=2020,
    arxiv="2004.00917",
    status="verified",
    invariances=("weight_scale", "weight_shift", "row_shift"),
    merge="none needed",
    shapes=("linear", "conv", "transposed conv", "embedding"),
    derivative=True,
    example=Example(num_features=6, options={}, shape=(5, 6)),
)
class OrthogonalizationByNewtonIteration(WeightMethod):
    r"""The rows of the weight are centred and moved towards orthonormal ones, as far as T iterations go.

    .. math::
        W = s \, B_T \frac{Z_c}{\sqrt{\lVert S \rVert_F}}, \qquad
        B_{t+1} = \tfrac32 B_t - \tfrac12 B_t^3 \frac{S}{\lVert S \rVert_F}, \quad B_0 = I, \qquad
        S = Z_c Z_c^\top + \epsilon I

    :math:`Z_c` is the raw weight ``(n, d)`` minus the mean of each row, :math:`T` is `num_iterations`,
    :math:`s` is `scale`, :math:`\epsilon` is `eps`. For :math:`T \to \infty` the rows become orthonormal.
    Where :math:`n > d` the columns are orthogonalized instead, with :math:`S = Z_c^\top Z_c + \epsilon I`.
    The iterates are computed on the weight itself, :math:`W_{t+1} = \tfrac32 W_t - \tfrac12 W_t W_t^\top
    W_t`: the same recursion in exact arithmetic, which does not blow up for large :math:`T` as the one in
    :math:`B` does.

    Args:
        weight: the weight to start from.
        num_iterations: Newton iterations T; 0 bounds the spectrum only.
        num_groups: the rows are split into so many groups, each orthogonalized by itself.
        eps: added to the diagonal of S.
        scale: factor on the result; None: 1.414 for convolutions (for ReLU), 1 for matrices, as released.
        learn_scale: learn `scale`, one for each row.
        dim: axis of the output units (``ns.parametrize`` takes 1 for transposed convolutions).
        center: subtract each row's mean first. It costs a matrix with n >= d one of its singular values.
        bounding: ``"compact"`` divides S by its Frobenius norm, ``"basic"`` by its trace (the paper's slower
            baseline), ``"released"`` is compact, but leaves S undivided in the column version, as the
            authors' code does.
        side: ``"rows"`` or ``"columns"`` forces the version; None chooses columns where n > d.

    Raises:
        ValueError: an option out of its range; the message names the range.

    Source: Huang et al., CVPR 2020, algorithm 1 and equations 5-7.
    """

    area = "Area('o i ... ->', features='o')"
    operation = "Whiten by Newton's iteration"

    def __init__(
        self,
        weight: Tensor,
        *,
        num_iterations: int = 5,
        num_groups: int = 1,
        eps: float = 1e-5,
        scale: float | None = None,
        learn_scale: bool = False,
        dim: int = 0,
        center: bool = True,
        bounding: str = "compact",
        side: str | None = None,
    ) -> None:
        super().__init__(weight, dim, least_axes=2)
        rows = weight.shape[dim]
        check_number("num_iterations", num_iterations)
        check_number("eps", eps)
        check_number("num_groups", num_groups, least=1)
        if rows % num_groups:
            raise ValueError(f"num_groups={num_groups} does not divide the {rows} rows of the weight; pass a divisor")
        check_choice("bounding", bounding, ("compact", "basic", "released"))
        check_choice("side", side, ("rows", "columns", None))
        self.num_iterations, self.num_groups, self.eps = num_iterations, num_groups, eps
        self.center, self.bounding, self.side = center, bounding, side
        start = (1.414 if weight.ndim > 2 else 1.0) if scale is None else scale
        self.start = start
        self.scale = nn.Parameter(weight.new_full((rows,), start).detach()) if learn_scale else None

    def forward(self, weight: Tensor) -> Tensor:
        """``Z -> W`` of the same shape, computed in float32 at least, with autocast off."""
        with without_autocast(weight):
            rows = self.rows(at_least_float32(weight))  # (n, d)
            groups = rows.reshape(self.num_groups, -1, rows.shape[1])  # (groups, n / groups, d)
            orthogonal = self.like(self.orthogonalize(groups), weight)
            return orthogonal * (self.start if self.scale is None else self.per_row(self.scale, weight))

    def orthogonalize(self, z: Tensor) -> Tensor:
        """``(groups, n, d) -> (groups, n, d)`` with rows (or columns) near orthonormal."""
        if self.center:
            z = z - z.mean(-1, keepdim=True)
        n, d = z.shape[1:]
        if self.side == "columns" or (self.side is None and self.num_groups * n > d):
            divide_last = self.bounding == "released"
            return self.orthogonal_rows(z.mT, divide_last).mT
        return self.orthogonal_rows(z, divide_last=False)

    def orthogonal_rows(self, z: Tensor, divide_last: bool) -> Tensor:
        """Newton's iteration on the rows of z, whose Gram matrix gets `eps` from columns that are dropped again."""
        eye = torch.eye(z.shape[1], dtype=z.dtype, device=z.device).expand(len(z), -1, -1)
        w = torch.cat([z, math.sqrt(self.eps) * eye], dim=2)  # (groups, n, d + n)
        root = self.spectral_bound(w @ w.mT).sqrt()
        w = w if divide_last else w / root
        for _ in range(self.num_iterations):
            w = 1.5 * w - 0.5 * (w @ w.mT) @ w
        w = w / root if divide_last else w
        return w[..., : z.shape[2]]

    def spectral_bound(self, gram: Tensor) -> Tensor:
        """An upper bound of the largest eigenvalue, (groups, 1, 1)."""
        if self.bounding == "basic":
            return gram.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None]
        return torch.linalg.matrix_norm(gram, keepdim=True)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """The raw weight is the assigned one."""
        return weight

    def extra_repr(self) -> str:
        """The options, as they would be passed."""
        return (
            f"num_iterations={self.num_iterations}, num_groups={self.num_groups}, eps={self.eps}, "
            f"scale={self.start}, learn_scale={self.scale is not None}, dim={self.dim}, "
            f"center={self.center}, bounding={self.bounding!r}, side={self.side!r}"
        )
