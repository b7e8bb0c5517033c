"""Weights with mean 0 and variance 1 in each filter."""

import torch
from torch import Tensor

from normsurvey.registry import Example, method
from normsurvey.weights.base import (
    WeightMethod,
    at_least_float32,
    check_choice,
    check_number,
    without_autocast,
)


@method(
    title="Weight Standardization",
    kind="weight",
    list_section="1.3",
    cite="qiao2019micro",
    year=2019,
    arxiv="1903.10520",
    status="verified",
    invariances=("weight_scale", "row_scale", "weight_shift", "row_shift"),
    merge="none needed",
    shapes=("linear", "conv", "transposed conv", "embedding"),
    derivative=True,
    example=Example(num_features=6, options={}, shape=(5, 6)),
)
class WeightStandardization(WeightMethod):
    r"""Each filter loses its mean and is divided by its standard deviation.

    .. math::
        w_i = \frac{v_i - \mu_i}{\sqrt{\sigma_i^2 + \epsilon}}, \qquad
        \mu_i = \frac1d \sum_j v_{ij}, \quad \sigma_i^2 = \frac{1}{d - c} \sum_j (v_{ij} - \mu_i)^2

    :math:`v_i` are the :math:`d` entries of filter :math:`i` (axis `dim`), :math:`c` is `correction`,
    :math:`\epsilon` is `eps`. It is used before a normalization of the activations, which removes the scale
    again.

    Args:
        weight: the weight to start from.
        dim: axis of the output units (``ns.parametrize`` takes 1 for transposed convolutions).
        eps: guards the division.
        correction: 1 divides by d - 1 (the authors), 0 by d.
        eps_placement: ``"inside"`` the root (the authors' Batch-Channel-Normalization release), or
            ``"outside"``, added to the standard deviation (their first snippet). timm: ``correction=0,
            eps=1e-6``.

    Raises:
        ValueError: a filter has too few entries for a variance, or an option is out of its range.

    Source: Qiao et al., arXiv 1903.10520, equations 4-5.
    """

    operation = "Standardize"

    def __init__(
        self,
        weight: Tensor,
        *,
        dim: int = 0,
        eps: float = 1e-5,
        correction: int = 1,
        eps_placement: str = "inside",
    ) -> None:
        super().__init__(weight, dim, least_axes=2)
        check_number("eps", eps)
        check_choice("correction", correction, (0, 1))
        check_choice("eps_placement", eps_placement, ("inside", "outside"))
        entries = weight.numel() // max(weight.shape[dim], 1)
        if entries < 2:
            raise ValueError(
                f"weight of shape {tuple(weight.shape)} has {entries} entry per filter along dim={dim}, "
                f"which has no variance; leave this layer out, or pass another dim"
            )
        self.eps, self.correction, self.eps_placement = eps, correction, eps_placement

    def forward(self, weight: Tensor) -> Tensor:
        """``V -> W`` of the same shape, computed in float32 at least."""
        with without_autocast(weight):
            rows = self.rows(at_least_float32(weight))  # (n, d)
            centered = rows - rows.mean(1, keepdim=True)
            var = centered.square().sum(1, keepdim=True) / (rows.shape[1] - self.correction)
            std = torch.sqrt(var + self.eps) if self.eps_placement == "inside" else torch.sqrt(var) + self.eps
            return self.like(centered / std, weight)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """The raw weight is the assigned one."""
        return weight

    def extra_repr(self) -> str:
        """The options, as they would be passed."""
        where = f"eps_placement={self.eps_placement!r}"
        return f"dim={self.dim}, eps={self.eps}, correction={self.correction}, {where}"
