"""Psi: how capacity is given back after normalization."""

from .affine import Affine, Recovery
from .conditional import Conditional
from .style import Style

__all__ = ["Affine", "Conditional", "Recovery", "Style"]
