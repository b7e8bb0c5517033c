"""Gradients bounded in proportion to the weights of each unit."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from normsurvey.gradients.base import GradientMethod, check_range
from normsurvey.registry import method


@method(
    title="Adaptive Gradient Clipping (AGC)",
    kind="gradient",
    list_section="1.4",
    cite="brock2021high",
    year=2021,
    arxiv="2102.06171",
    status="verified",
    merge="none needed",
    shapes=("linear", "conv", "vector"),
)
class AdaptiveGradientClipping(GradientMethod):
    r"""The gradient of each unit is cut to a fraction of the unit's weight norm, before any optimizer's step.

    .. math::
        g_i \leftarrow \begin{cases}
            \lambda \, \dfrac{\max(\lVert w_i \rVert, \epsilon)}{\lVert g_i \rVert} \, g_i
                & \text{if } \lVert g_i \rVert > \lambda \max(\lVert w_i \rVert, \epsilon) \\
            g_i & \text{otherwise}
        \end{cases}

    :math:`w_i, g_i` are a row of a matrix or a filter of a convolution (axis 0) and its gradient; a vector is
    one unit. :math:`\lambda` is `clip_factor`, :math:`\epsilon` is `eps`. The authors leave the last layer
    out: put its parameters into a group of their own with ``clip_factor=None``.

    Args:
        params: parameters or param groups, or a torch optimizer to wrap as it is.
        base: optimizer that takes the step: a class, or its name in ``torch.optim``.
        clip_factor: largest ratio of gradient norm to weight norm; None leaves a group alone.
        eps: smallest weight norm that counts, so that weights at zero can move.
        norm_type: p of the norm.
        units: ``"rows"``, or ``"columns"``: units of tensors with 2 or 3 axes run along axis 0 (a third-party
            variant).
        base_options: options of `base`: ``lr``, ``momentum``, ``weight_decay``, ``betas``, ...

    Raises:
        ValueError: an option is out of its range, or `base` is no optimizer of torch.
        TypeError: neither this class nor `base` has an option of that name.

    Source: Brock et al., ICML 2021, equation 3.
    """

    area = "o i ... -> o"
    operation = "Scale to at most clip_factor times the weight norm"
    statistics = "the current gradient and weight"
    recovery = "none"

    def __init__(
        self,
        params: Iterable | Optimizer,
        *,
        base: type[Optimizer] | str = torch.optim.SGD,
        clip_factor: float | None = 0.01,
        eps: float = 1e-3,
        norm_type: float = 2.0,
        units: str = "rows",
        **base_options: Any,
    ) -> None:
        own = {"clip_factor": clip_factor, "eps": eps, "norm_type": norm_type, "units": units}
        super().__init__(params, base, own, base_options)

    def check_group(self, group: dict[str, Any]) -> None:
        """Raise ``ValueError`` if an option of a param group is out of its range."""
        if group["clip_factor"] is not None:
            check_range("clip_factor", group["clip_factor"])
        check_range("eps", group["eps"])
        if group["units"] not in ("rows", "columns"):
            raise ValueError(f"units={group['units']!r} is unknown; choose 'rows' or 'columns'")

    def edit(self, p: Tensor, group: dict[str, Any]) -> None:
        """Shorten the gradient of the units that exceed their bound; the others stay bit for bit."""
        if group["clip_factor"] is None:
            return
        bound = group["clip_factor"] * unit_norm(p, group).clamp(min=group["eps"])
        norm = unit_norm(p.grad, group)
        clipped = p.grad * (bound / norm.clamp(min=1e-6))
        p.grad.copy_(torch.where(norm < bound, p.grad, clipped))


def unit_norm(x: Tensor, group: dict[str, Any]) -> Tensor:
    """Norm of each unit, kept as axes of size 1; one number for a vector."""
    if x.ndim <= 1:
        return torch.linalg.vector_norm(x, group["norm_type"])
    axes = (0,) if group["units"] == "columns" and x.ndim <= 3 else tuple(range(1, x.ndim))
    return torch.linalg.vector_norm(x, group["norm_type"], dim=axes, keepdim=True)
