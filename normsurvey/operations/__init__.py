"""Phi: what is done inside an area. One module for each operation of the survey."""

from .base import Operation
from .centering import Center
from .decorrelating import Decorrelate
from .scaling import Scale, ScaleByDeviation
from .standardizing import Standardize
from .whitening import Whiten

__all__ = ["Operation", "Center", "Scale", "ScaleByDeviation", "Standardize", "Decorrelate", "Whiten"]
