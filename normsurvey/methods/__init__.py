"""Activation normalization, one module for each section of the authors' list."""

from .combination import SwitchableNorm
from .operation import (
    CholeskyWhitening,
    DecorrelatedBatchNorm,
    GroupWhitening,
    IterNorm,
    L1BatchNorm,
    MeanOnlyBatchNorm,
    PCAWhitening,
    PixelNorm,
    RMSNorm,
)
from .partitioning import BatchGroupNorm, GroupNorm, InstanceNorm, LayerNorm, PositionalNorm
from .recovery import AdaIN, ConditionalBatchNorm
from .robust import BatchRenorm, GhostBatchNorm
from .standard import BatchNorm

__all__ = [
    "AdaIN",
    "BatchGroupNorm",
    "BatchNorm",
    "BatchRenorm",
    "CholeskyWhitening",
    "ConditionalBatchNorm",
    "DecorrelatedBatchNorm",
    "GhostBatchNorm",
    "GroupNorm",
    "GroupWhitening",
    "InstanceNorm",
    "IterNorm",
    "L1BatchNorm",
    "LayerNorm",
    "MeanOnlyBatchNorm",
    "PCAWhitening",
    "PixelNorm",
    "PositionalNorm",
    "RMSNorm",
    "SwitchableNorm",
]
