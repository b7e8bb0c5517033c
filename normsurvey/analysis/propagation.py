r"""Signals and gradients by depth: moments of what modules put out and of the gradients there, and their rates.

Mean field theory describes a random network by how a moment at depth l follows from that at depth l - 1: in the
stationary regime by a constant factor, which `growth_rate` reads off the middle layers (Poole et al., NeurIPS 2016,
arXiv 1606.05340; with batch normalization Yang et al., ICLR 2019, arXiv 1902.08129).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from normsurvey.analysis.curvature import Loss, private_buffers


@dataclass(frozen=True)
class Signals:
    """What passed through a module once: `output` forwards, `gradient` of the loss at it backwards, same shape."""

    output: Tensor
    gradient: Tensor


@dataclass(frozen=True)
class Propagation:
    """Moments at the outputs (N, C, ...) of L modules, in the order in which they were named; on the CPU.

    Attributes:
        names: of the modules.
        second_moment: (L,) mean square over everything.
        variance: (L,) of each feature c over samples and positions, biased, averaged over features.
        gradient: (L,) squared norm of the gradient of the loss at the output.
    """

    names: tuple[str, ...]
    second_moment: Tensor
    variance: Tensor
    gradient: Tensor

    def forward_rate(self, drop: int = 3) -> float:
        """Factor per module by which the second moment grows, see `growth_rate`."""
        return growth_rate(self.second_moment, drop)

    def backward_rate(self, drop: int = 3) -> float:
        """Factor per module by which the squared gradient grows on its way back, see `growth_rate`."""
        return growth_rate(self.gradient.flip(0), drop)


def propagate(model: nn.Module, loss: Loss, modules: Iterable[str]) -> Propagation:
    """One forward and one backward pass of `loss(model)`, looked at where the named modules end.

    Works in the mode that the model is in; parameters, their `.grad` and all buffers are left alone.

    Raises:
        ValueError: a name is unknown or none is given, a module did not run exactly once or put out no (N, C, ...),
            or the loss is not a scalar that depends on all of them.
    """
    seen = signals(model, loss, modules)
    if flat := [name for name, s in seen.items() if s.output.dim() < 2]:
        raise ValueError(f"modules {flat} did not put out a tensor (N, C, ...); leave them out")
    outputs = [s.output for s in seen.values()]
    return Propagation(
        names=tuple(seen),
        second_moment=_numbers(y.square().mean() for y in outputs),
        variance=_numbers(y.transpose(0, 1).flatten(1).var(1, correction=0).mean() for y in outputs),
        gradient=_numbers(s.gradient.square().sum() for s in seen.values()),
    )


def signals(model: nn.Module, loss: Loss, modules: Iterable[str]) -> dict[str, Signals]:
    """Outputs of the named modules and the gradients of `loss(model)` at them, in the order given.

    Parameters, their `.grad` and all buffers are left alone.

    Raises:
        ValueError: a name is unknown or none is given, a module did not run exactly once with a tensor as output, or
            the loss is not a scalar that depends on all of them.
    """
    names, known = tuple(modules), dict(model.named_modules())
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"modules={unknown} are not in the model; it has {list(known)[1:]}")
    if not names:
        raise ValueError("modules is empty: name at least one")
    outputs = _outputs(model, loss, {name: known[name] for name in names})
    return {name: Signals(y, g) for name, (y, g) in zip(names, outputs, strict=True)}


def growth_rate(values: Tensor | Sequence[float], drop: int = 3) -> float:
    r"""The factor per step of a sequence (L,): :math:`\exp` of the slope of a line through the logarithms.

    Args:
        drop: values left out at each end, where the regime is not stationary.

    Raises:
        ValueError: fewer than 3 values are left, or one of them is not positive and finite.

    >>> round(growth_rate([1e9, 1, 2, 4, 8, 16, 0], drop=1), 6)
    2.0
    """
    values = torch.as_tensor(values, dtype=torch.float64)
    if drop < 0 or len(values) - 2 * drop < 3:
        raise ValueError(f"drop={drop} leaves fewer than 3 of the {len(values)} values; use more layers or drop fewer")
    middle = values[drop : len(values) - drop]
    return torch.exp(_slope(torch.arange(len(middle), dtype=torch.float64), _log(middle))).item()


def scaling_exponent(sizes: Tensor | Sequence[float], values: Tensor | Sequence[float]) -> float:
    r"""The exponent :math:`a` of :math:`v \propto s^a`: the slope of a least-squares line in logarithms.

    Args:
        sizes: (K,) positive, K >= 2 and not all equal. values: (K,) positive.

    Raises:
        ValueError: the lengths differ, there are fewer than 2, or a number is not positive and finite.

    >>> round(scaling_exponent([1, 10, 100], [5, 50, 500]), 6)
    1.0
    """
    sizes, values = (torch.as_tensor(v, dtype=torch.float64) for v in (sizes, values))
    if sizes.shape != values.shape or sizes.dim() != 1 or len(sizes.unique()) < 2:
        raise ValueError(
            f"sizes {tuple(sizes.shape)} and values {tuple(values.shape)} must be lists of one length, at two sizes"
        )
    return _slope(_log(sizes), _log(values)).item()


def _outputs(model: nn.Module, loss: Loss, modules: dict[str, nn.Module]) -> list[tuple[Tensor, Tensor]]:
    runs: dict[str, list[Tensor]] = {name: [] for name in modules}

    def record(name: str):
        def hook(module, inputs, output):
            runs[name].append(output)
            return output.clone() if isinstance(output, Tensor) else output  # the next module may work in place

        return hook

    handles = [module.register_forward_hook(record(name)) for name, module in modules.items()]
    try:
        with torch.enable_grad(), private_buffers(model):
            value = loss(model)
    finally:
        for handle in handles:
            handle.remove()
    for name, seen in runs.items():
        if len(seen) != 1 or not isinstance(seen[0], Tensor):
            raise ValueError(f"module {name!r} did not run exactly once with a tensor as output; leave it out")
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise ValueError(f"loss(model) must return a scalar, got {getattr(value, 'shape', type(value))}; sum it")
    outputs = [seen[0] for seen in runs.values()]
    if cut := [name for name, y in zip(modules, outputs, strict=True) if not y.requires_grad]:
        raise ValueError(f"modules {cut} put out what depends on no parameter; leave them out")
    try:
        gradients = torch.autograd.grad(value, outputs)
    except RuntimeError as error:
        raise ValueError(f"the loss does not depend on all of modules={list(modules)}: {error}") from error
    return [(y.detach(), g) for y, g in zip(outputs, gradients, strict=True)]


def _numbers(values: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(values)).cpu()


def _log(values: Tensor) -> Tensor:
    if not (values.isfinite() & (values > 0)).all():
        raise ValueError(f"values must be positive and finite, got {values.tolist()}; choose others, or float64")
    return values.log()


def _slope(x: Tensor, y: Tensor) -> Tensor:
    x = x - x.mean()
    return (x * y).sum() / x.square().sum()
