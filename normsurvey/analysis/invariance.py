r"""Which weights a loss does not see the size of, and what Euler's theorem says of them.

If $L(c\,w) = L(w)$ for every $c > 0$, then by differentiating in $c$ and in $w$

$$ \langle w, \nabla L(w) \rangle = 0, \qquad \nabla L(c\,w) = \tfrac1c \nabla L(w), \qquad
   H(c\,w) = \tfrac1{c^2} H(w), \qquad H(w)\,w = -\nabla L(w) $$

(van Laarhoven, arXiv 1706.05350; Arora, Li, Lyu, ICLR 2019, arXiv 1812.03981). The last one says that $w$
is no flat direction of the Hessian away from critical points. The norm of each row is free where a batch
norm follows the layer, only that of the whole tensor where a layer norm does.
"""

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from normsurvey.analysis.curvature import Hessian, Loss, private_buffers, select_parameters


def scale_invariance(model: nn.Module, loss: Loss, *, tolerance: float = 1e-8, seed: int = 0) -> dict[str, str]:
    """Says of each trainable parameter of two or more dimensions: "row", "tensor" or "none".

    Measured on a copy: the loss may not move by more than `tolerance` (relative) when every row, or the
    whole tensor, is multiplied by a factor between 1/2 and 2. All parameters are first moved a little,
    since at a special point (a bias that is still zero) more is invariant than in general.
    """
    model = copy.deepcopy(model)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad(), private_buffers(model):
        for p in model.parameters():
            p.add_(0.1 * p.std(correction=0).clamp_min(0.1) * _randn(p.shape, p, random))
        base = loss(model)

        def moves(p: Tensor, factors: Tensor) -> bool:
            original = p.clone()
            p.mul_(factors)
            change = (loss(model) - base).abs() / base.abs()
            p.copy_(original)
            return bool(change > tolerance)

        found = {}
        for name, p in select_parameters(model).items():
            if p.dim() < 2:
                continue
            rows = 2 ** _randn((len(p),) + (1,) * (p.dim() - 1), p, random).clamp(-1, 1)
            found[name] = "row" if not moves(p, rows) else "none" if moves(p, rows.flatten()[0]) else "tensor"
    return found


def radial_component(weight: Tensor, gradient: Tensor, per: str = "row") -> Tensor:
    r""":math:`|\langle w, g\rangle| / (\|w\| \|g\|)` for each row (d_out,), or (1,) for the tensor; 0 where g is 0.

    Raises:
        ValueError: per is neither "row" nor "tensor".
    """
    if per not in ("row", "tensor"):
        raise ValueError(f"per={per!r} must be 'row' or 'tensor'")
    w, g = (t.flatten(1) if per == "row" else t.reshape(1, -1) for t in (weight.detach(), gradient))
    tiny = torch.finfo(w.dtype).tiny
    return (w * g).sum(1).abs() / (w.norm(dim=1) * g.norm(dim=1)).clamp_min(tiny)


def homogeneity_error(hessian: Hessian) -> float:
    r""":math:`\|H w + \nabla L\| / \|\nabla L\|` over scale-invariant parameters only: 0 by Euler's theorem."""
    return ((hessian @ hessian.point + hessian.gradient).norm() / hessian.gradient.norm()).item()


def scaled(model: nn.Module, names: Iterable[str], factor: float) -> nn.Module:
    """A copy of the model with the named parameters multiplied by `factor`."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for p in select_parameters(model, names).values():
            p.mul_(factor)
    return model


def scaling_errors(
    model: nn.Module, loss: Loss, names: Iterable[str], factor: float, *, seed: int = 0
) -> tuple[float, float]:
    r"""Relative errors of :math:`c\,\nabla L(cw) = \nabla L(w)` and of :math:`c^2 H(cw)\,v = H(w)\,v`.

    Here c is `factor` and v random. The named parameters are scaled together and are those that :math:`\nabla` and H
    are taken over.
    """
    names = list(names)
    here, there = Hessian(model, loss, names), Hessian(scaled(model, names, factor), loss, names)
    v = _randn(here.point.shape, here.point, torch.Generator().manual_seed(seed))
    gradient_error = factor * there.gradient - here.gradient
    product = here @ v
    product_error = factor**2 * (there @ v) - product
    return (gradient_error.norm() / here.gradient.norm()).item(), (product_error.norm() / product.norm()).item()


def norm_growth_error(before: Tensor, after: Tensor, relative_to: str = "weight") -> float:
    r"""How far one step is from Pythagoras: :math:`\big|\|w_+\|^2 - \|w\|^2 - \|w_+ - w\|^2\big|`, relative.

    0 where the step was orthogonal to w, as a gradient step is: then
    :math:`\|w_+\|^2 = \|w\|^2 + \eta^2 \|\nabla L\|^2`.

    Args:
        relative_to: "weight", :math:`\|w_+\|^2`, the size of rounding; or "step", :math:`\|w_+ - w\|^2`, the growth
            asserted.

    Raises:
        ValueError: relative_to is neither.
    """
    if relative_to not in ("weight", "step"):
        raise ValueError(f"relative_to={relative_to!r} must be 'weight' or 'step'")
    # <w+ - w, w+ + w> is the difference of squares without its cancellation
    difference = after - before
    step, growth = difference.square().sum(), (difference * (after + before)).sum()
    return ((growth - step).abs() / (step if relative_to == "step" else after.square().sum())).item()


def _randn(shape, like: Tensor, random: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=random, dtype=torch.float64).to(like)
