"""Activation methods, area by area and channel by channel, in the order of the authors' list."""

from . import batch, combination, operation, partitioning, recovery, robust, whitening

__all__ = ["batch", "combination", "operation", "partitioning", "recovery", "robust", "whitening"]
