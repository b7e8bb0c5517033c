"""Profiles over the depth of a network, and scaling laws in its width."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from normsurvey.analysis import scaling_exponent
from normsurvey.plots import style


def plot_depth(
    ax: plt.Axes, values: Tensor, role: str, *, label: str | None = None, rate: float | None = None, drop: int = 3
) -> None:
    """A quantity (L,) by layer, log scale; the layers that a rate is fitted on are drawn bold.

    Args:
        role: a key of `style.COLORS`. rate: predicted factor per layer, drawn through the middle value.
        drop: layers at each end that are not fitted.
    """
    values, layers = values.cpu(), torch.arange(1, len(values) + 1)
    look, middle = style.line(role), slice(drop, len(values) - drop)
    ax.semilogy(layers, values, **{**look, "linewidth": 1.0}, alpha=0.6)
    ax.semilogy(layers[middle], values[middle], **{**look, "linewidth": 2.4}, label=label or role)
    if rate is not None:
        centre = len(values) // 2
        ax.semilogy(layers, values[centre] * rate ** (layers - layers[centre]).double(), **style.line("theory"))
    ax.set_xlabel("layer")


def plot_scaling(ax: plt.Axes, sizes: Sequence[int], runs: Tensor, role: str, label: str) -> None:
    """Runs (seeds, sizes) against the size, log-log: a dot each, a line through the means, its exponent in the legend.

    Args:
        role: a key of `style.COLORS`.
    """
    runs, look = runs.cpu(), style.line(role, marker=True)
    exponent = scaling_exponent(sizes, runs.mean(0))
    ax.loglog(sizes, runs.mean(0), **look, label=f"{label}: {0.0 if abs(exponent) < 0.005 else exponent:.2f}")
    for run in runs:
        ax.loglog(sizes, run, linestyle="none", marker=look["marker"], color=look["color"], markersize=3, alpha=0.45)
    ax.set_xticks(sizes, [str(s) for s in sizes])
    ax.minorticks_off()
