"""The verdicts of many claims at a glance: how far inside its criterion each lies."""

from __future__ import annotations

import math
from collections.abc import Mapping

import matplotlib.pyplot as plt

from . import style

__all__ = ["margins"]

KINDS = {"exact": ("BatchNorm", "o"), "measured": ("GroupNorm", "D"), "negative": ("LayerNorm", "X")}


def margins(rows: Mapping[str, Mapping[str, tuple[str, float]]], limit: float = 1e12) -> plt.Figure:
    """A row of marks for each group of claims, placed by their margin on a logarithmic axis.

    Args:
        rows: group -> claim's id -> (kind, margin of its worst value); kinds are those of
            :attr:`normsurvey.claims.Claim.kind`. Margins that mean nothing (NaN) are left out.
        limit: margins beyond it are drawn there.

    Returns:
        The figure.
    """
    figure, ax = plt.subplots(figsize=(7, 0.42 * len(rows) + 1.1))
    for place, found in enumerate(rows.values()):
        known = sorted((kind, value) for kind, value in found.values() if not math.isnan(value))
        for k, (kind, value) in enumerate(known):
            role, marker = KINDS[kind]
            height = place + 0.5 * ((k % 5) - 2) / 5  # five lanes, so that equal margins do not hide each other
            ax.plot(min(value, limit), height, marker, color=style.color(role), markersize=4.5, alpha=0.85)
    for kind, (role, marker) in KINDS.items():
        ax.plot([], [], marker, color=style.color(role), label=kind)
    ax.axvline(1, **style.line("theory"))
    ax.set(xscale="log", xlim=(0.7, 1.6 * limit), ylim=(len(rows) - 0.4, -0.6))
    ax.set_xlabel("margin: worst measured value, as a factor inside its criterion")
    ax.set_yticks(range(len(rows)), rows)
    ax.legend(ncols=3, loc="upper center", bbox_to_anchor=(0.5, 1.0 + 0.32 / len(rows) + 0.06))
    return figure
