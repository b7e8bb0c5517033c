"""What every chapter starts with: seeds, the figure style, the device and the scale."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch

__all__ = ["progress", "scale", "setup_notebook"]

SCALES = ("quick", "full")
EVERY = 10.0  # seconds between two lines of progress

T = TypeVar("T")


def scale() -> str:
    """``"quick"`` or ``"full"``, from the environment variable NORMSURVEY_SCALE.

    Raises:
        ValueError: for any other value of the variable.
    """
    value = os.environ.get("NORMSURVEY_SCALE", "quick")
    if value not in SCALES:
        raise ValueError(f"NORMSURVEY_SCALE={value!r} is not a scale: set it to 'quick' or 'full', or unset it")
    return value


def setup_notebook(seed: int = 0) -> torch.device:
    """Seed torch, numpy and random, set the figure style, and say where and at which scale the chapter runs.

    Where the environment variable NORMSURVEY_FIGURES names a folder, figures are written to it as SVG too.

    Args:
        seed: for all three generators.

    Returns:
        The CUDA device where there is one, else the CPU.
    """
    import numpy

    from .plots import style, vector

    random.seed(seed)
    numpy.random.seed(seed)
    torch.manual_seed(seed)
    if folder := os.environ.get("NORMSURVEY_FIGURES"):
        vector.keep(folder)
    style.use()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(f"normsurvey on {device.type}, scale {scale()}, torch {torch.__version__.split('+')[0]}")
    return device


def progress(iterable: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """The items of ``iterable``; at the full scale a line every ten seconds says how far it is.

    Nothing is printed at the quick scale, whose outputs are compared from run to run.

    Args:
        what: the name of the work, such as ``"training BN, seed 0"``.
        total: number of items, where ``len(iterable)`` does not tell it.
    """
    if scale() == "quick":
        yield from iterable
        return
    total = total if total is not None else len(iterable) if hasattr(iterable, "__len__") else None
    start = said = time.monotonic()
    done = 0
    for done, item in enumerate(iterable, start=1):
        yield item
        if time.monotonic() - said >= EVERY:
            said = time.monotonic()
            left = f", about {(said - start) / done * (total - done):.0f} s left" if total else ""
            print(f"{what}: {done}{f' of {total}' if total else ''} in {said - start:.0f} s{left}", flush=True)
    print(f"{what}: all {done} in {time.monotonic() - start:.0f} s", flush=True)
