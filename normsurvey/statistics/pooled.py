"""Running moments per channel that are pooled over groups of channels in inference."""

from __future__ import annotations

import torch
from torch import Tensor

from ..area import Area
from ..entries import Entries, Moments
from .current import Statistics
from .running import average_factor, register_buffers

PER_CHANNEL = Area("n c ... -> c")


class RunningMoments(Statistics):
    r"""Statistics of blocks of samples and channels in training, pooled running moments in inference.

    The first two moments of every channel are averaged over training batches; in inference those of a group
    are pooled and blended with the moments of the test sample's own group.

    Args:
        momentum: weight of the new value.
        example_weight: weight of the test sample's own moments in inference.

    Raises:
        ValueError: for an ``example_weight`` outside [0, 1].

    Source: Summers & Dinneen, arXiv 1906.03548. The buffers hold the mean and the *variance* of the averaged
    moments, :math:`E[x^2] - E[x]^2` kept without its cancellation.
    """

    def __init__(self, momentum: float | None = 0.01, example_weight: float = 0.0):
        if not 0 <= example_weight <= 1:
            raise ValueError(f"example_weight={example_weight} is a mixing weight: choose it between 0 and 1")
        self.momentum, self.example_weight = momentum, example_weight

    def register(self, layer, **factory):
        """Buffers ``running_mean`` and ``running_var`` (C,), and the batch count."""
        register_buffers(layer, factory, mean=0.0, var=1.0)

    def solve(self, layer, entries):
        """Training: the block's own statistics. Inference: pooled running moments, blended with the sample's."""
        operation, area = layer.operation, layer.area
        if layer.training:
            entries.require(area)
            estimate = operation.spread(area, operation.estimate(area, entries), entries.shape)
            self.update(layer, entries)  # after the estimate, whose moments carry the gradient
        else:
            # the channel buffers are the moments of one artificial sample: pool them as the area pools a sample
            group = Area(area.pattern.replace("(b n)", "n").replace("b g", "n g"), g=area.sizes["g"])
            stored = Moments(layer.running_mean.view(1, -1, 1), layer.running_var.view(1, -1, 1))
            estimate = operation.spread(group, operation.estimate(group, stored), stored.shape)
            if self.example_weight:
                entries.require(group)
                own = operation.spread(group, operation.estimate(group, entries), entries.shape)
                estimate = blend(estimate, own, self.example_weight)
        return operation.solve(estimate, entries.shape[1])

    @torch.no_grad()
    def update(self, layer, entries: Entries) -> None:
        """Average the first two moments of each channel over the whole batch."""
        batch = layer.operation.estimate(PER_CHANNEL, entries)
        mean, var = (batch[k].flatten().to(layer.running_mean.dtype) for k in ("mean", "var"))
        factor = average_factor(layer, self.momentum)
        stored = {"mean": layer.running_mean.clone(), "var": layer.running_var.clone()}
        mixed = blend(stored, {"mean": mean, "var": var}, factor)
        layer.running_mean.copy_(mixed["mean"])
        layer.running_var.copy_(mixed["var"])


def blend(first: dict[str, Tensor], second: dict[str, Tensor], weight: float) -> dict[str, Tensor]:
    """Mean and variance of a mixture in which ``second`` has ``weight``: its first two moments are the averages."""
    mean = (1 - weight) * first["mean"] + weight * second["mean"]
    between = weight * (1 - weight) * (first["mean"] - second["mean"]).square()
    return {"mean": mean, "var": (1 - weight) * first["var"] + weight * second["var"] + between}
