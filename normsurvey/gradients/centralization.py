"""Gradients with mean 0 for each output unit."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from normsurvey.gradients.base import GradientMethod
from normsurvey.registry import method


@method(
    title="Gradient Centralization",
    kind="gradient",
    list_section="1.4",
    cite="yong2020gradient",
    year=2020,
    arxiv="2004.01461",
    status="verified",
    merge="none needed",
    shapes=("linear", "conv"),
)
class GradientCentralization(GradientMethod):
    r"""The gradient of each output unit's weights loses its mean, before any optimizer's step.

    .. math::
        g_i \leftarrow g_i - \frac1d \sum_j g_{ij} = P g_i, \qquad P = I - \tfrac1d \mathbf 1 \mathbf 1^\top

    :math:`g_i` are the :math:`d` entries of the gradient of output unit :math:`i` (axis 0; the mean runs over
    all the others), weight decay included where the optimizer adds it to the gradient. Vectors (biases,
    gains) are left alone.

    Args:
        params: parameters or param groups, or a torch optimizer to wrap as it is.
        base: optimizer that takes the step: a class, or its name in ``torch.optim``.
        gc_loc: True centralizes the gradient that comes in; False the step that goes out, so that the mean of
            each unit's weights stays exactly where it was, also with Adam. For SGD the two are the same.
        gc_conv_only: leave matrices alone too: only tensors with more than 3 axes are centralized.
        base_options: options of `base`: ``lr``, ``momentum``, ``weight_decay``, ``betas``, ...

    Raises:
        ValueError: `base` is no optimizer of torch.
        TypeError: neither this class nor `base` has an option of that name.

    Source: Yong et al., ECCV 2020, equation 1; the authors' code for gc_loc.
    """

    area = "o i ... -> o"
    operation = "Center"
    statistics = "the current gradient"
    recovery = "none"

    def __init__(
        self,
        params: Iterable | Optimizer,
        *,
        base: type[Optimizer] | str = torch.optim.SGD,
        gc_loc: bool = True,
        gc_conv_only: bool = False,
        **base_options: Any,
    ) -> None:
        super().__init__(params, base, {"gc_loc": gc_loc, "gc_conv_only": gc_conv_only}, base_options)

    def edit(self, p: Tensor, group: dict[str, Any]) -> None:
        """Subtract the row means of the gradient, with the decay that the base optimizer is about to add."""
        if group["gc_loc"] and centralizes(p, group):
            p.grad.sub_(row_mean(p.grad + self.coming_decay(group) * p))

    def coming_decay(self, group: dict[str, Any]) -> float:
        """The multiple of the weight that the base optimizer adds to the gradient."""
        if isinstance(self.base, torch.optim.AdamW) or group.get("decoupled_weight_decay", False):
            return 0.0
        return group.get("weight_decay", 0.0) * (-1 if group.get("maximize", False) else 1)

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step of the base optimizer with centralized gradients; returns the loss of `closure`."""
        before = [
            (p, p.detach().clone())
            for group in self.param_groups
            for p in group["params"]
            if not group["gc_loc"] and centralizes(p, group)
        ]
        loss = super().step(closure)
        with torch.no_grad():
            for p, old in before:
                p.sub_(row_mean(p - old))
        return loss


def centralizes(p: Tensor, group: dict[str, Any]) -> bool:
    """Whether a parameter's gradient is centralized."""
    return p.ndim > (3 if group["gc_conv_only"] else 1)


def row_mean(g: Tensor) -> Tensor:
    """Mean over all axes but the first, kept as axes of size 1."""
    return g.mean(dim=tuple(range(1, g.ndim)), keepdim=True)
