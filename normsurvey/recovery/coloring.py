"""A full matrix over the channels, and a bias: the reverse of whitening."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import Parameter, init

from .. import kernels
from ..area import Area
from .conditional import Conditional

PARTS = {"lower": torch.tril, "upper": torch.triu}


class Coloring(Conditional):
    r"""Mix the channels by a matrix.

    .. math:: y = (\Gamma + \Gamma_k)\, \hat x + \beta + \beta_k

    with a matrix and a bias for all samples, and, where there are classes, one more of each for class k. Starts as
    the identity. With ``num_filters`` the matrix of a class is mixed from a small dictionary,
    :math:`\Gamma_k = \sum_s A_{ks} \Gamma_s` (soft assignment).

    Args:
        num_features: number of channels C.
        num_classes: classes of the labels (N,) that are the condition; ``None``: one coloring for all.
        num_filters: size of the dictionary; ``None``: one matrix per class.
        agnostic: whether what all classes share is added.
        triangular: ``"lower"`` or ``"upper"`` uses that triangle of the matrices only.
        bias: whether there are biases.

    Raises:
        ValueError: for another ``triangular``, or options of classes without classes.

    Source: Siarohin, Sangineto & Sebe, arXiv 1806.00420, equations 4 to 6.
    """

    def __init__(
        self, num_features: int, num_classes: int | None = None, num_filters: int | None = None, agnostic: bool = True,
        triangular: str | None = None, bias: bool = True,
    ):  # fmt: skip
        if triangular not in (None, *PARTS):
            raise ValueError(f"triangular={triangular!r} is not a triangle: choose 'lower', 'upper' or None")
        if num_classes is None and (num_filters is not None or not agnostic):
            raise ValueError(f"num_filters={num_filters}, agnostic={agnostic} are about classes: give num_classes")
        self.num_features, self.num_classes, self.num_filters = num_features, num_classes, num_filters
        self.agnostic, self.triangular, self.bias = agnostic, triangular, bias

    @property
    def condition(self) -> str:
        """What the layer must be given: nothing, or labels."""
        return "" if self.num_classes is None else super().condition

    def register(self, layer, **factory):
        """``weight`` (C, C), ``bias`` (C,), and per class ``class_weight``, ``class_assignment`` and ``class_bias``."""
        c, k, s = self.num_features, self.num_classes, self.num_filters
        eye = torch.eye(c, **factory)
        shared = k is None or self.agnostic
        layer.register_parameter("weight", Parameter(eye.clone()) if shared else None)
        layer.register_parameter("bias", Parameter(torch.zeros(c, **factory)) if shared and self.bias else None)
        if k is None:
            return
        start = torch.zeros_like(eye) if shared else eye
        layer.class_weight = Parameter(start.repeat(s or k, 1, 1))
        if s:
            layer.class_assignment = Parameter(init.xavier_uniform_(torch.empty(k, s, **factory)))
        if self.bias:
            layer.class_bias = Parameter(torch.zeros(k, c, **factory))

    def coefficients(self, layer, entries, condition):
        """No gain, and the bias as (1, C, 1) or (N, C, 1)."""
        if self.num_classes is None:
            return None, None if layer.bias is None else layer.bias.view(1, -1, 1)
        self._check(condition, entries.shape[0])
        if not self.bias:
            return None, None
        bias = layer.class_bias[condition.long()]
        return None, (bias if layer.bias is None else bias + layer.bias)[..., None]

    def matrices(self, layer, condition: Tensor | None) -> Tensor:
        """The matrices (1, 1, C, C), or (N, 1, C, C) by the label of each sample."""
        if self.num_classes is None:
            matrix = layer.weight[None]
        else:
            matrix = layer.class_weight
            if self.num_filters:
                matrix = torch.einsum("ks,scd->kcd", layer.class_assignment, matrix)
            matrix = matrix if layer.weight is None else matrix + layer.weight
            matrix = matrix[condition.long()]
        return (PARTS[self.triangular](matrix) if self.triangular else matrix)[:, None]

    def color(
        self, layer, y: Tensor, bias: Tensor | None, condition: Tensor | None, fused: bool, factor: Tensor | None = None
    ) -> Tensor:
        """``matrix @ factor @ y + bias`` for ``y`` (N, C, S) and a matrix ``factor`` (groups, d, d) of whole groups."""
        area, matrix = Area("n (g d) ... -> n g", d=None, features="d"), self.matrices(layer, condition)
        if factor is not None:
            blocks = matrix.unflatten(3, factor.shape[:2]).movedim(3, 2)  # (N or 1, 1, groups, C, d)
            matrix = (blocks @ factor.to(matrix.dtype)).movedim(2, 3).flatten(3)
        return kernels.mix(area, y, matrix.expand(len(y), -1, -1, -1) if not fused else matrix, None, bias, fused)
