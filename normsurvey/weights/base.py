"""What every weight method shares: a torch parametrization that sees the weight as a matrix of rows."""

import torch
from torch import Tensor, nn


class WeightMethod(nn.Module):
    """A parametrization ``V -> W`` of one weight tensor, undone by torch's ``remove_parametrizations``.

    A weight of shape ``(O, I, *kernel)`` is read as the matrix ``(n, d) = (O, I * prod(kernel))``; `dim`
    names the axis that indexes the rows. Subclasses state their survey parts as the class attributes `area`,
    `operation`, `statistics` and `recovery`.
    """

    area = "o i ... -> o"
    operation = ""
    statistics = "the current weight"
    recovery = "none"
    rows_are_outputs = True  # a transposed convolution has its outputs on axis 1
    check_registration = True  # False: torch registers this parametrization without calling it
    num_originals = 1  # raw tensors: original, or original0, original1, ...

    def __init__(self, weight: Tensor, dim: int | None, *, least_axes: int = 1) -> None:
        super().__init__()
        name = type(self).__name__
        if weight.ndim < least_axes:
            raise ValueError(
                f"weight has shape {tuple(weight.shape)}, but {name} needs at least {least_axes} axes; "
                f"parametrize a weight, not a bias or a gain"
            )
        if dim is not None and not -weight.ndim <= dim < weight.ndim:
            raise ValueError(
                f"dim={dim} is no axis of a weight of shape {tuple(weight.shape)}; "
                f"pass the axis of the output units, 0 to {weight.ndim - 1}"
            )
        self.dim = dim if dim is None else dim % weight.ndim

    def rows(self, weight: Tensor) -> Tensor:
        """``(O, I, *kernel) -> (n, d)``: one row for each index of axis `dim`."""
        return (weight.movedim(self.dim, 0) if self.dim else weight).flatten(1)

    def like(self, rows: Tensor, weight: Tensor) -> Tensor:
        """``(n, d) -> (O, I, *kernel)``: the inverse of `rows`, in the dtype of `weight`."""
        return rows.reshape(weight.movedim(self.dim, 0).shape).movedim(0, self.dim).to(weight.dtype)

    def prepare(self, layer: nn.Module, tensor_name: str) -> None:
        """Called once the layer is parametrized; methods that read older checkpoints hook in here."""

    def per_row(self, values: Tensor, weight: Tensor) -> Tensor:
        """``(n,) -> (n, 1, ..., 1)`` along axis `dim`: shaped to multiply the weight."""
        shape = [1] * weight.ndim
        shape[self.dim] = -1
        return values.reshape(shape)


def at_least_float32(weight: Tensor) -> Tensor:
    """The weight in float32 if it is kept in half precision, else as it is."""
    return weight.float() if weight.dtype in (torch.float16, torch.bfloat16) else weight


def without_autocast(weight: Tensor) -> torch.autocast:
    """A context in which the small matrix products of a weight method keep the weight's own precision."""
    return torch.autocast(weight.device.type, enabled=False)


def check_choice(argument: str, value: object, choices: tuple) -> None:
    """Raise ``ValueError`` naming the argument, its value and the choices, unless `value` is one of them."""
    if value not in choices:
        raise ValueError(f"{argument}={value!r} is unknown; choose one of {', '.join(map(repr, choices))}")


def check_number(argument: str, value: float, *, least: float = 0.0) -> None:
    """Raise ``ValueError`` naming the argument, unless `value` is at least `least`."""
    if not value >= least:
        raise ValueError(f"{argument}={value!r} must be at least {least}; pass a number >= {least}")
