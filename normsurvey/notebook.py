"""What every chapter starts with: seeds, the figure style, the device and the scale."""

from __future__ import annotations

import os
import random

import torch

__all__ = ["scale", "setup_notebook"]

SCALES = ("quick", "full")


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

    Args:
        seed: for all three generators.

    Returns:
        The CUDA device where there is one, else the CPU.
    """
    import numpy

    from .plots import style

    random.seed(seed)
    numpy.random.seed(seed)
    torch.manual_seed(seed)
    style.use()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(f"normsurvey on {device.type}, scale {scale()}, torch {torch.__version__.split('+')[0]}")
    return device
