"""Normalizing gradients: each method is a torch optimizer, or wraps one.

>>> import torch
>>> from normsurvey import gradients
>>> layer = torch.nn.Linear(6, 3)
>>> optimizer = gradients.LARS(layer.parameters(), lr=0.1)
>>> optimizer = gradients.GradientCentralization(layer.parameters(), base="Adam", lr=1e-3)
>>> sgd = torch.optim.SGD(layer.parameters(), lr=0.1)
>>> optimizer = gradients.AdaptiveGradientClipping(sgd, clip_factor=0.05)
"""

from normsurvey.gradients.centralization import GradientCentralization
from normsurvey.gradients.clipping import AdaptiveGradientClipping
from normsurvey.gradients.lars import LARS
from normsurvey.registry import near

__all__ = ["AdaptiveGradientClipping", "GradientCentralization", "LARS"]


def __getattr__(name: str):
    if name.startswith("__"):
        raise AttributeError(name)
    raise AttributeError(f"normsurvey.gradients has no method {name!r}: {near(name, __all__)}")
