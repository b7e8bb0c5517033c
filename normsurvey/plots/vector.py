"""Figures as vector graphics: every figure that a notebook shows is also written as SVG."""

from __future__ import annotations

import itertools
from pathlib import Path

__all__ = ["keep"]


def keep(folder: Path | str) -> None:
    """From now on write each figure that this notebook displays to ``folder`` as 1.svg, 2.svg and so on.

    What the notebook shows does not change.

    Raises:
        RuntimeError: outside of a notebook, where nothing is displayed.
    """
    from IPython import get_ipython
    from matplotlib.figure import Figure

    shell = get_ipython()
    if shell is None:
        raise RuntimeError(f"folder={str(folder)!r}: figures are kept where a notebook shows them; use savefig here")
    shell.enable_matplotlib("inline")  # which registers how figures are shown
    folder, formatter = Path(folder), shell.display_formatter.formatters["image/png"]
    folder.mkdir(parents=True, exist_ok=True)
    shown, numbers = formatter.lookup_by_type(Figure), itertools.count(1)

    def both(figure):
        picture, layout = shown(figure), figure.get_layout_engine()
        figure.set_layout_engine("none")  # what is shown has been laid out, and the same again takes as long
        figure.savefig(folder / f"{next(numbers)}.svg", metadata={"Date": None})
        figure.set_layout_engine(layout)
        return picture

    formatter.for_type(Figure, both)
