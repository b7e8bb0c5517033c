r"""What a map leaves of its input: constraints on its output, and correlation and rank of features.

A normalization writes equations into its output: a mean that is 0, a mean square that is 1. The number of independent
ones is its constraint number $\chi$ (Huang et al., Group Whitening, CVPR 2021, arXiv 2009.13333). An output of D
numbers that satisfies them lives on a surface of dimension $D - \chi$, so that

$$ \operatorname{rank} \frac{\partial y}{\partial x} = D - \chi $$

wherever the map is regular. No formula of the layer is needed to count them: a Jacobian and its singular values are.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from normsurvey.analysis.curvature import private_buffers


@dataclass(frozen=True)
class Constraints:
    """Degrees of freedom of a map at one input.

    Attributes:
        number: how many are missing from the output, `size` less the rank of the Jacobian.
        rank: how many are left.
        size: numbers in the output, D.
        values: singular values of the Jacobian (min(D, inputs),), largest first, relative to the map's own scale.
        gap: largest singular value that was taken as 0 over the smallest that was not; 0 where none was dropped.
        error: of the Jacobian along one random direction, relative, against central differences; far from 0
            where the map is random, kinked, or hides a part of its derivative from backpropagation.
    """

    number: int
    rank: int
    size: int
    values: Tensor
    gap: float
    error: float


def constraint_number(module: Callable[[Tensor], Tensor], x: Tensor, *, tolerance: float = 1e-9) -> Constraints:
    r"""Counts the constraints that `module` imposes on its output at `x`: the rank deficit of its Jacobian.

    The scale of the map is the larger of :math:`\sigma_1` and :math:`\|y\| / \|x\|`; what is below `tolerance` times
    that is 0. One backward pass per output number: made for inputs of some hundred numbers. The module is evaluated
    in the mode that it is in, and its buffers stay as they are.

    Args:
        module: any module or function of one tensor.
        x: a generic input of any shape, float64.
        tolerance: relative, in (0, 1); look at `gap` and at `values`.

    Raises:
        ValueError: `x` or the output is not float64, the output does not depend on `x`, or `tolerance` is no fraction.

    >>> centre = lambda x: x - x.mean(0)
    >>> constraint_number(centre, torch.arange(12, dtype=torch.float64).view(4, 3)).number
    3
    """
    if x.dtype != torch.float64:
        raise ValueError(f"x has dtype {x.dtype}: ranks are decided in float64, pass x.double() and module.double()")
    if not 0 < tolerance < 1:
        raise ValueError(f"tolerance={tolerance} must be between 0 and 1; try 1e-9")
    with _buffers_of(module):
        point = x.detach().clone().requires_grad_()
        y = module(point)
        if y.dtype != torch.float64 or not y.requires_grad:
            what = f"has dtype {y.dtype}" if y.requires_grad else "does not depend on x"
            raise ValueError(f"the output of module {what}: use a differentiable map in float64")
        jacobian = _jacobian(y, point)
        error = _error(module, point.detach(), jacobian)
    values = torch.linalg.svdvals(jacobian)
    values = values / torch.maximum(values[0], y.detach().norm() / point.detach().norm())
    rank = int((values > tolerance).sum())
    dropped = values[rank].item() if rank < len(values) else 0.0
    gap = dropped / values[rank - 1].item() if rank else dropped
    return Constraints(y.numel() - rank, rank, y.numel(), values, gap, error)


def correlation(features: Tensor, channel_dim: int = 1) -> Tensor:
    """Pearson's correlation of channels (C, C) over all other axes; NaN where a channel is constant.

    >>> x = torch.tensor([[0.0, 1.0], [1.0, -1.0], [2.0, -3.0]])
    >>> round(correlation(x)[0, 1].item(), 6)
    -1.0
    """
    centred = _rows(features, channel_dim)
    deviation = centred.square().mean(0).sqrt()
    size = features.abs().max().clamp_min(torch.finfo(features.dtype).tiny)
    constant = deviation <= 100 * torch.finfo(features.dtype).eps * size
    scaled = centred / deviation.masked_fill(constant, math.nan)
    return scaled.T @ scaled / len(centred)


def mean_correlation(features: Tensor, channel_dim: int = 1) -> float:
    r"""Mean of :math:`|r_{ij}|` over pairs of different channels that both vary; NaN where there is no such pair.

    M independent samples make independent channels look correlated by :math:`\sqrt{2 / \pi M}`.
    """
    off = correlation(features, channel_dim).abs()
    off.fill_diagonal_(math.nan)
    return off.nanmean().item()


def effective_rank(features: Tensor, channel_dim: int = 1) -> float:
    r""":math:`\exp H(p)` with :math:`p_i = \sigma_i / \sum_j \sigma_j`, from 1 to C.

    :math:`\sigma` are the singular values of the centred features (M, C). Roy and Vetterli, The effective rank,
    EUSIPCO 2007.
    """
    values = torch.linalg.svdvals(_rows(features, channel_dim))
    share = values / values.sum()
    return torch.special.entr(share).sum().exp().item()


def participation_ratio(features: Tensor, channel_dim: int = 1) -> float:
    r""":math:`(\sum_i \lambda_i)^2 / \sum_i \lambda_i^2` with eigenvalues of the covariance of channels; 1 to C.

    >>> participation_ratio(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]))
    2.0
    """
    rows = _rows(features, channel_dim)
    cov = rows.T @ rows
    return (cov.trace().square() / cov.square().sum()).item()


@dataclass(frozen=True)
class Features:
    """One layer's output: mean absolute correlation of its channels, effective rank, participation ratio, channels."""

    correlation: float
    effective_rank: float
    participation_ratio: float
    channels: int


def layer_outputs(
    model: nn.Module, run: Callable[[nn.Module], object], layers: Iterable[str] | None = None
) -> dict[str, Tensor]:
    """What the named submodules return while `run(model)` is evaluated, without a graph, in the order of the model.

    Args:
        run: calls the model, such as `lambda model: model(x)` or a closure `loss(model)`.
        layers: names of submodules; None takes every module without children. Buffers stay as they are.

    Raises:
        ValueError: a name is unknown, or a module did not run exactly once or did not return a tensor.
    """
    modules = dict(model.named_modules())
    names = [n for n, m in modules.items() if n and not any(m.children())] if layers is None else list(layers)
    if unknown := [name for name in names if name not in modules]:
        raise ValueError(f"layers={unknown} are no modules of the model; it has {[n for n in modules if n]}")
    seen: dict[str, list[object]] = {name: [] for name in names}
    hooks = [modules[n].register_forward_hook(lambda _, args, out, n=n: seen[n].append(_kept(out))) for n in names]
    try:
        with torch.no_grad(), private_buffers(model):
            run(model)
    finally:
        for hook in hooks:
            hook.remove()
    if wrong := [n for n, outs in seen.items() if len(outs) != 1 or not isinstance(outs[0], Tensor)]:
        raise ValueError(f"layers {wrong} did not return one tensor exactly once in run(model); name others in layers=")
    return {name: outs[0] for name, outs in seen.items()}


def correlation_profile(
    model: nn.Module, run: Callable[[nn.Module], object], layers: Iterable[str] | None = None, channel_dim: int = 1
) -> dict[str, Features]:
    """:class:`Features` of every named layer, from one evaluation of `run(model)`; see :func:`layer_outputs`."""
    return {name: describe(y, channel_dim) for name, y in layer_outputs(model, run, layers).items()}


def describe(features: Tensor, channel_dim: int = 1) -> Features:
    """:class:`Features` of a tensor (N, C, ...), or with its channels on another axis."""
    measures = (mean_correlation, effective_rank, participation_ratio)
    return Features(*(measure(features, channel_dim) for measure in measures), features.shape[channel_dim])


def _rows(features: Tensor, channel_dim: int) -> Tensor:
    if features.dim() < 2 or features.numel() == features.shape[channel_dim]:
        raise ValueError(f"features have shape {tuple(features.shape)}: pass (N, C, ...) with at least two samples")
    rows = features.detach().movedim(channel_dim, -1).flatten(0, -2)  # (M, C)
    return rows - rows.mean(0)


def _kept(output: object) -> object:
    # a copy: a later in-place activation would change it
    return output.detach().clone() if isinstance(output, Tensor) else output


def _buffers_of(module):
    return private_buffers(module if isinstance(module, nn.Module) else nn.Module())


def _jacobian(y: Tensor, x: Tensor) -> Tensor:
    rows = [torch.autograd.grad(out, x, retain_graph=True, materialize_grads=True)[0] for out in y.flatten()]
    return torch.stack(rows).flatten(1)  # (D, inputs)


@torch.no_grad()
def _error(module, x: Tensor, jacobian: Tensor, step: float = 1e-5) -> float:
    random = torch.Generator().manual_seed(0)
    v = torch.randn(x.shape, generator=random, dtype=x.dtype).to(x.device)
    h = step * x.norm() / v.norm()
    difference = ((module(x + h * v) - module(x - h * v)) / (2 * h)).flatten()
    product = jacobian @ v.flatten()
    scale = torch.maximum(jacobian.norm() * v.norm() / math.sqrt(v.numel()), difference.norm())
    return ((product - difference).norm() / scale.clamp_min(torch.finfo(x.dtype).tiny)).item()
