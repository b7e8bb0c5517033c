"""Figures of weights that turn: collapse onto one angle, agreement with a prediction, cycles in a phase portrait."""

from collections.abc import Mapping

import numpy as np
import torch
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter
from torch import Tensor

from . import style

ROLES = ("BatchNorm", "LayerNorm", "GroupNorm", "InstanceNorm", "RMSNorm", "IterNorm")


def turning(ax, rotations: Mapping, labels: Mapping[str, str], *, seed: int = 0, what: str = "angles", smooth: int = 1):
    """Draws one attribute of each layer's rotation against the step, on axes of log scale.

    Args:
        rotations: layer -> Rotation.
        labels: layer -> text of the legend.
        what: "angles", "norms" or "effective_lr".
        smooth: number of records that a moving root mean square takes together.
    """
    for role, (layer, label) in zip(ROLES, labels.items(), strict=False):
        r = rotations[layer]
        values, steps = getattr(r, what)[:, seed], r.steps
        if smooth > 1:
            values = values.square().unfold(0, smooth, 1).mean(1).sqrt()
            steps = steps[smooth // 2 :][: len(values)]
        kept = torch.unique((len(steps) - 1) * torch.linspace(0, 1, 400).square(), sorted=True).long()
        ax.semilogy(steps[kept] + 1, values[kept], **style.line(role), label=label)


def agreement(ax, measured: Mapping[str, Tensor], predicted: Mapping[str, Tensor], tolerance: float) -> None:
    """Measured against predicted values on log axes, a role for each key, with a band of relative width `tolerance`."""
    ends = np.array([min(map(min, predicted.values())) / 1.5, max(map(max, predicted.values())) * 1.5])
    ax.fill_between(ends, ends * (1 - tolerance), ends * (1 + tolerance), color=style.MUTED, alpha=0.15, linewidth=0)
    ax.loglog(ends, ends, **style.line("theory"))
    for role, key in zip(ROLES, measured, strict=False):
        look = style.line(role, marker=True) | {"linestyle": "none"}
        ax.loglog(predicted[key], measured[key], **look, alpha=0.75, label=key)
    ax.set(xlabel="predicted", xlim=ends, ylim=ends)
    _plain_ticks(ax.xaxis, ax.yaxis)


def phase_portrait(ax, norms: Tensor, losses: Tensor, steps: Tensor, *, every: int = 1):
    """The path (norm, loss) on log axes, coloured by the step; returns what a colour bar needs."""
    ax.loglog(norms[::every], losses[::every], color=style.MUTED, linewidth=0.4, alpha=0.6)
    points = ax.scatter(norms[::every], losses[::every], c=steps[::every], s=5, linewidths=0, zorder=3)
    ax.set(xlabel="norm of the weight", ylabel="loss")
    _plain_ticks(ax.xaxis)
    return points


def _plain_ticks(*sides) -> None:
    # 1, 2, 5 in each decade as plain numbers: within one decade the default labels overlap
    for side in sides:
        side.set_major_locator(LogLocator(subs=(1, 2, 5)))
        side.set_major_formatter(StrMethodFormatter("{x:g}"))
        side.set_minor_formatter(NullFormatter())
