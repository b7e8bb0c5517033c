"""Matrices as pictures: invariances cell by cell, and the steps of a normalization as matrices."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import seaborn
from matplotlib import pyplot
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.patches import Rectangle

from . import style

__all__ = ["invariances", "steps"]

UNSEEN = LinearSegmentedColormap.from_list("unseen", [style.BLUE, "#8fc3e6", "#eef2f5", "#fbfcfd"])


def invariances(
    values: Mapping[str, Mapping[str, float]], expected: Mapping[str, Collection[str]] | None = None, *, ax=None
):
    r"""Heat map of rounded :math:`\log_{10}` of relative changes: dark where a change was not noticed.

    Args:
        values: row -> column -> relative change of the output.
        expected: row -> columns in which no change is expected; these cells get a frame.
        ax: axes to draw into; by default a new figure, as tall as the rows need.

    Returns:
        The figure.
    """
    columns = list(next(iter(values.values())))
    table = np.round(np.log10([[max(cells[c], 1e-17) for c in columns] for cells in values.values()])) + 0.0
    if ax is None:
        _, ax = pyplot.subplots(figsize=(7, 0.9 + 0.2 * len(values)), dpi=100)
    seaborn.heatmap(
        table, ax=ax, vmin=-16, vmax=0.5, cmap=UNSEEN, annot=True, fmt=".0f", annot_kws={"size": 7}, linewidths=0.6,
        linecolor="white", xticklabels=False, yticklabels=False, cbar=False,
    )  # fmt: skip
    for row, name in enumerate(values):
        for column in (columns.index(c) for c in (expected or {}).get(name, ())):
            frame = Rectangle((column + 0.04, row + 0.06), 0.92, 0.88, fill=False, edgecolor=style.INK, snap=True)
            ax.add_patch(frame)
    ax.set_xticks(np.arange(len(columns)) + 0.5, [_two_lines(c) for c in columns])
    ax.set_yticks(np.arange(len(values)) + 0.5, list(values))
    ax.tick_params(length=0, labelsize=7.5)
    ax.xaxis.tick_top()
    ax.grid(False)
    return ax.figure


def _two_lines(name: str) -> str:
    words = name.replace("_", " ").rsplit(" ", 1)
    return "\n".join(words)


def steps(panels: Mapping[str, np.ndarray]):
    """Matrices side by side in one colour scale, with the mean and standard deviation of each row.

    Args:
        panels: title -> matrix (rows, columns), drawn from left to right.

    Returns:
        The figure.
    """
    largest = max(np.abs(np.asarray(m)).max() for m in panels.values())
    figure, (axes,) = pyplot.subplots(1, len(panels), figsize=(7, 2.1), squeeze=False)
    for ax, (title, matrix) in zip(axes, panels.items(), strict=True):
        matrix = np.asarray(matrix)
        image = ax.imshow(matrix, cmap="RdBu_r", vmin=-largest, vmax=largest, aspect="auto", interpolation="nearest")
        ax.set_title(title)
        ax.set_yticks(range(len(matrix)))
        ax.set_xticks([])
        ax.grid(False)
        ax.tick_params(length=0)
        small = {"transform": ax.get_yaxis_transform(), "size": 6.5, "va": "center"}
        ax.text(1.03, -0.85, "mean, std", color=style.MUTED, **small)
        for k, row in enumerate(matrix):
            ax.text(1.03, k, f"{row.mean():+.1f}, {row.std():.1f}".replace("-0.0", "+0.0"), **small)
        for spine in ax.spines.values():
            spine.set_visible(False)
    axes[0].set_ylabel("channel")
    figure.colorbar(image, ax=axes, fraction=0.03, pad=0.07)
    return figure
