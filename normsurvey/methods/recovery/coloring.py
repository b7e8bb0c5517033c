"""1.2.3 Coloring: a recovery that mixes the channels, alone and after whitening."""

from __future__ import annotations

import torch

from ... import recovery
from ...area import Area
from ...norm import Norm
from ...operations import Whiten
from ...operations.identity import Identity
from ...operations.whitening import KINDS
from ...registry import Example, method
from ...statistics import RunningWhitening, Statistics
from ..checks import require_choice, require_size


class Colored(Norm):
    """A layer whose recovery is a coloring: the operation, then the matrices."""

    def normalize(self, entries, condition=None):
        """The operation without gain and bias, then ``matrix @ y + bias``; two matrices in a row are one."""
        _, bias = self.recovery.coefficients(self, entries, condition)
        location, factor = self.statistics.solve(self, entries)
        if entries.fused and factor is not None and factor.shape[::2].numel() == entries.shape[1]:  # whole groups
            return self.recovery.color(self, entries.minus(location), bias, condition, True, factor)
        y = self.operation.apply(self.area, entries, location, factor, None, None)
        return self.recovery.color(self, y, bias, condition, entries.fused)


class Unestimated(Statistics):
    """No statistics at all."""

    estimates = False

    def solve(self, layer, entries):
        """No location and no factor."""
        return None, None


def _labels(generator, dtype, device):
    return torch.randint(0, 3, (4,), generator=generator).to(device)


@method(
    title="Coloring", kind="layer", list_section="1.2.3", cite="siarohin2019whitening", year=2019, arxiv="1806.00420",
    status="verified in the authors' code (Huang et al.)", merge="none needed",
    example=Example(6, {"num_classes": 3}, (4, 6, 5, 5), _labels),
    note="A recovery that stands alone: it normalizes nothing, and follows any whitening or standardizing.",
)  # fmt: skip
class Coloring(Colored):
    r"""Mix the channels at every position by a learned matrix, and add a bias.

    .. math:: y = (\Gamma + \Gamma_k)\, x + \beta + \beta_k

    with :math:`\Gamma` = ``weight`` (C, C) and :math:`\beta` = ``bias`` for all samples, and, where there are classes,
    :math:`\Gamma_k` = ``class_weight`` and :math:`\beta_k` = ``class_bias`` for class k, the ``condition``. After
    whitening, :math:`\Gamma \Gamma^T` is the covariance of the output.

    Args:
        num_features: number of channels C.
        num_classes: classes of the labels (N,) that are the condition; ``None``: one coloring for all.
        num_filters: mix the matrix of a class from a dictionary of so many, with learned weights
            ``class_assignment`` (soft assignment); ``None``: one matrix per class.
        agnostic: whether what all classes share, :math:`\Gamma` and :math:`\beta`, is added.
        triangular: ``"lower"`` or ``"upper"`` uses that triangle of the matrices only.
        bias: whether there are biases.
        **layout: ``channel_dim``, ``fused``, ``device`` and ``dtype``, as in :class:`Norm`.

    Raises:
        ValueError: for another ``triangular``, or options of classes without classes.

    Source: Siarohin, Sangineto & Sebe, arXiv 1806.00420, equations 4 to 6; starts as the identity, in the authors' code
    at random.
    """

    def __init__(
        self, num_features, *, num_classes=None, num_filters=None, agnostic=True, triangular=None, bias=True, **layout
    ):
        super().__init__(
            Area("n c ... -> n c ..."), Identity(),
            recovery.Coloring(num_features, num_classes, num_filters, agnostic, triangular, bias), Unestimated(),
            **layout,
        )  # fmt: skip


@method(
    title="Whitening and Coloring", kind="layer", list_section="1.2.2", cite="siarohin2019whitening", year=2019,
    arxiv="1806.00420", status="verified in public code (Huang et al., after the authors')",
    invariances=("input_shift", "channel_scale", "channel_shift", "input_scale"),
    example=Example(6, {"num_classes": 3, "group_size": 3}, (4, 6, 5, 5), _labels),
)  # fmt: skip
class WhiteningColoring(Colored):
    r"""Whiten the channels over the batch, then give back a full matrix instead of one gain per channel.

    .. math:: y = (\Gamma + \Gamma_k)\, G^{-1}(x - \mu) + \beta + \beta_k, \qquad (1 - \epsilon) S + \epsilon I = G G^T

    with S the covariance of the batch, :math:`\Gamma` = ``weight`` (C, C) and :math:`\beta` = ``bias`` for all samples,
    and, where there are classes, :math:`\Gamma_k` = ``class_weight`` and :math:`\beta_k` = ``class_bias`` for class k,
    the ``condition``. This is W&C without classes, cW&C with ``num_classes``, and cW&C with soft assignment with
    ``num_filters`` too. Inference whitens by the averaged covariance, shrunk alike.

    Args:
        num_features: number of channels C.
        group_size: channels whitened together; the last group may be smaller; ``None``: all.
        whitening: ``"cholesky"``, ``"zca"``, ``"pca"`` or ``"newton"``.
        num_iterations: Newton iterations.
        eps: :math:`\epsilon`, how far S is shrunk towards the identity.
        momentum: weight of the new value in the running averages (the authors' 0.99 is the old one's).
        running: ``"covariance"`` averages S, ``"whitening"`` the whitening matrix.
        correction: 1 divides the covariance by the number of samples less one, as the authors' code.
        num_classes: classes of the labels (N,) that are the condition; ``None``: one coloring for all.
        num_filters: size of the dictionary from which the matrices of the classes are mixed.
        agnostic: whether what all classes share is added.
        triangular: ``"lower"`` or ``"upper"`` uses that triangle of the matrices only.
        bias: whether there are biases.
        **layout: ``channel_dim``, ``fused``, ``device`` and ``dtype``, as in :class:`Norm`.

    Raises:
        ValueError: for another ``whitening``, ``running`` or ``triangular``, or options of classes without classes.

    Source: Siarohin, Sangineto & Sebe, arXiv 1806.00420, equations 2 to 6; matrices start as the identity, in the
    authors' code at random.
    """

    def __init__(
        self, num_features, *, group_size=None, whitening="cholesky", num_iterations=5, eps=1e-3, momentum=0.01,
        running="covariance", correction=0, num_classes=None, num_filters=None, agnostic=True, triangular=None,
        bias=True, **layout,
    ):  # fmt: skip
        require_size("group_size", group_size, "channels whitened together")
        require_choice("whitening", whitening, KINDS)
        require_choice("running", running, ("whitening", "covariance"))
        super().__init__(
            Area("n (g d) ... -> g", d=group_size, features="d"),
            Whiten(whitening, eps, num_iterations, shrink=True, correction=correction),
            recovery.Coloring(num_features, num_classes, num_filters, agnostic, triangular, bias),
            RunningWhitening(group_size, momentum, running), **layout,
        )  # fmt: skip
