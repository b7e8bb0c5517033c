"""The figure style of the book: opaque, quiet, safe for colour-blind readers, one colour per role.

The hues are those of Okabe and Ito (*Color Universal Design*, 2008), darkened where text-like contrast on white
is needed. Colour is never the only cue: :func:`line` gives each role a dash pattern and a marker too.
"""

from __future__ import annotations

import matplotlib as mpl
from cycler import cycler

from ..registry import near

__all__ = ["COLORS", "INK", "MUTED", "PALETTE", "color", "line", "use"]

BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, BROWN, GREY = (
    "#0072b2", "#d55e00", "#008f68", "#b5508a", "#d99500", "#4aa8dd", "#7a5230", "#6b7480",
)  # fmt: skip

#: Colours in the order in which unnamed curves take them.
PALETTE = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, BROWN, GREY)

#: Text and axes; captions, grid labels and everything that is not data.
INK, MUTED, GRID = "#1d2731", "#566270", "#e3e8ed"

#: Role -> colour. A method, an operation or a treatment has the same colour in every chapter.
COLORS = {
    "none": GREY, "BatchNorm": BLUE, "LayerNorm": VERMILLION, "GroupNorm": GREEN, "InstanceNorm": PURPLE,
    "RMSNorm": ORANGE, "IterNorm": SKY, "SwitchableNorm": BROWN,
    "WeightNorm": GREEN, "SpectralNorm": VERMILLION, "WeightStandardization": PURPLE,
    "raw": GREY, "center": SKY, "scale": ORANGE, "standardize": BLUE, "decorrelate": GREEN, "whiten": VERMILLION,
    "zca": VERMILLION, "pca": PURPLE, "cholesky": BROWN, "newton": ORANGE,
    "theory": INK, "reference": INK, "good": GREEN, "bad": VERMILLION,
}  # fmt: skip

DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)), (0, (9, 2)), (0, (3, 2)), "-", (0, (1, 1)))
MARKERS = "osD^vPX*"

RC = {
    # opaque white: a figure reads on a light page and on a dark one
    "figure.facecolor": "white", "axes.facecolor": "white", "savefig.facecolor": "white",
    "savefig.transparent": False, "figure.figsize": (7, 3), "figure.dpi": 120, "savefig.dpi": 120,
    "savefig.bbox": "tight", "savefig.pad_inches": 0.06, "figure.constrained_layout.use": True,
    "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"], "font.size": 9, "axes.titlesize": 9.5,
    "axes.labelsize": 9, "xtick.labelsize": 8, "ytick.labelsize": 8, "legend.fontsize": 8,
    "mathtext.fontset": "dejavusans", "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": MUTED,
    "xtick.color": MUTED, "ytick.color": MUTED, "xtick.labelcolor": INK, "ytick.labelcolor": INK,
    "axes.titlelocation": "left", "axes.titleweight": "bold", "axes.titlecolor": INK, "axes.linewidth": 0.8,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": GRID,
    "grid.linewidth": 0.7, "axes.axisbelow": True, "legend.frameon": False, "lines.linewidth": 1.6,
    "lines.markersize": 4.5, "image.cmap": "viridis", "axes.prop_cycle": cycler(color=PALETTE),
    "svg.fonttype": "path", "svg.hashsalt": "normsurvey",
}  # fmt: skip


def use() -> None:
    """Set the style for all figures that follow."""
    mpl.rcParams.update(RC)


def color(role: str) -> str:
    """Colour of a role, as a hex string.

    Args:
        role: a key of :data:`COLORS`: a method's id, an operation in lower case, ``"none"``, ``"theory"``, ...

    Raises:
        KeyError: for an unknown role; the message names the near ones.
    """
    if role not in COLORS:
        raise KeyError(f"role={role!r} has no colour: {near(role, COLORS)}")
    return COLORS[role]


def line(role: str, marker: bool = False) -> dict:
    """Keywords for ``ax.plot``: a role's colour, and a dash pattern (and marker) that tell it apart without colour.

    >>> line("BatchNorm")["color"]
    '#0072b2'
    """
    chosen = color(role)
    if chosen == INK:
        return {"color": INK, "linestyle": (0, (2, 2)), "linewidth": 1.1}
    place = PALETTE.index(chosen)
    words = {"color": chosen, "linestyle": DASHES[place]}
    return words | {"marker": MARKERS[place]} if marker else words
