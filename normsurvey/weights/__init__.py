"""Normalizing weights: torch parametrizations, by id.

>>> import torch
>>> from normsurvey.weights import parametrize
>>> layer = parametrize(torch.nn.Linear(6, 3), "WeightStandardization", eps=0.0)
>>> bool(layer.weight.mean(1).abs().max() < 1e-6)
True
>>> layer = torch.nn.utils.parametrize.remove_parametrizations(layer, "weight")
>>> type(layer).__name__
'Linear'
"""

import inspect
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize as torch_parametrize

from normsurvey.registry import METHODS, near
from normsurvey.weights.base import WeightMethod
from normsurvey.weights.orthogonalizing import OrthogonalizationByNewtonIteration
from normsurvey.weights.scaling import WeightNorm
from normsurvey.weights.spectral import SpectralNorm
from normsurvey.weights.standardizing import WeightStandardization

__all__ = [
    "OrthogonalizationByNewtonIteration",
    "SpectralNorm",
    "WeightNorm",
    "WeightStandardization",
    "parametrize",
]

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def parametrize(layer: nn.Module, id: str, tensor_name: str = "weight", **options: Any) -> nn.Module:
    """Put a weight method on one weight of a layer, in place.

    Args:
        layer: any module that owns the parameter, such as ``nn.Linear``, ``nn.Conv2d``, ``nn.Embedding``.
        id: id of a weight method, such as ``"SpectralNorm"``.
        tensor_name: name of the parameter.
        options: keyword options of the method, named in its class.

    Returns:
        The same layer, whose weight is now computed from the raw one,
        ``layer.parametrizations[tensor_name]``. ``torch.nn.utils.parametrize.remove_parametrizations(layer,
        tensor_name)`` undoes it.

    Raises:
        ValueError: `id` is no weight method, or the layer has no such parameter.
        TypeError: the method has no such option.
    """
    cls = weight_method(id)
    weight = weight_of(layer, tensor_name)
    known = [name for name, p in inspect.signature(cls).parameters.items() if p.kind is p.KEYWORD_ONLY]
    for name in options:
        if name not in known:
            raise TypeError(f"{id} has no option {name!r}: {near(name, known)}")
    if cls.rows_are_outputs and isinstance(layer, TRANSPOSED):
        options.setdefault("dim", 1)
    parametrization = cls(weight, **options)
    check_stacking(layer, tensor_name, parametrization)
    torch_parametrize.register_parametrization(layer, tensor_name, parametrization, unsafe=not cls.check_registration)
    parametrization.prepare(layer, tensor_name)
    return layer


def weight_method(id: str) -> type[WeightMethod]:
    """The class of a weight method; other ids raise, naming the right call or the near ids."""
    record = METHODS.get(id)
    if record is None:
        raise ValueError(f"id={id!r} is unknown: {near(id, [m.id for m in METHODS.values() if m.kind == 'weight'])}")
    if record.kind == "weight":
        return record.cls
    call = {"gradient": f"ns.gradients.{id}(params, lr=...)"}.get(record.kind, f'ns.create("{id}", num_features)')
    raise ValueError(f"id={id!r} is a {record.kind}, not a weight method: use {call}")


def weight_of(layer: nn.Module, tensor_name: str) -> Tensor:
    """The weight as it is now; a missing one raises, naming the layer's parameters."""
    weight = getattr(layer, tensor_name, None)
    if not isinstance(weight, Tensor):
        own = [name for name, _ in layer.named_parameters(recurse=False)]
        raise ValueError(
            f"tensor_name={tensor_name!r} is no parameter of {type(layer).__name__}: {near(tensor_name, own)}"
        )
    return weight


def check_stacking(layer: nn.Module, tensor_name: str, parametrization: WeightMethod) -> None:
    """A method with two raw tensors must be the first on its weight."""
    if torch_parametrize.is_parametrized(layer, tensor_name) and parametrization.num_originals > 1:
        name = type(parametrization).__name__
        raise ValueError(
            f"{tensor_name!r} is parametrized already, and {name} splits its weight in two: put it on first"
        )
