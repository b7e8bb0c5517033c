r"""The loss as an optimizer meets it: probes along the negative gradient, and how far layers disturb each other.

At parameters $\theta$ with gradient $g$, steps $s$ lead to the losses $L(\theta - s g)$ and to changes of the
gradient $\|g(\theta - s g) - g(\theta)\|$. Over the distance $s\|g\|$ the latter is the effective smoothness

$$ \beta = \max_s \frac{\|g(\theta - s g) - g(\theta)\|}{s\,\|g\|} \quad
   \text{(Santurkar et al., NeurIPS 2018, arXiv 1805.11604, section 3.1)}. $$

The loss has to be the same function each time: the same mini-batch, the same noise. Neither the model's
parameters nor its `.grad` nor its buffers are touched, as a copy of it is moved.
"""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from normsurvey.analysis.curvature import Loss, flatten, private_buffers, select_parameters


@dataclass(frozen=True)
class GradientProbe:
    """What lies along the negative gradient, at `steps` (K,) in the unit of a learning rate.

    Attributes:
        value: the loss where the probe starts.
        gradient_norm: length of the gradient there.
        losses: (K,) the losses at the steps.
        changes: (K,) lengths of the change of the gradient.
    """

    steps: Tensor
    value: float
    gradient_norm: float
    losses: Tensor
    changes: Tensor

    @property
    def loss_range(self) -> float:
        """Largest less smallest loss at the steps."""
        return (self.losses.max() - self.losses.min()).item()

    @property
    def gradient_change(self) -> float:
        """The largest change of the gradient, zero if the first gradient predicts all that follow."""
        return self.changes.max().item()

    @property
    def smoothness(self) -> float:
        """The effective smoothness, the largest change of the gradient per distance."""
        return (self.changes / (self.steps * self.gradient_norm)).max().item()


def probe_gradient(
    model: nn.Module, loss: Loss, steps: Sequence[float], parameters: Iterable[str] | None = None
) -> GradientProbe:
    r"""Walks from the model's parameters along the negative gradient of `loss(model)`.

    Args:
        steps: positive multiples of the gradient; a learning rate is one.
        parameters: names of those to move, the others stay; all trainable ones if None.

    Raises:
        ValueError: steps is empty or not positive, a parameter is unknown, or the gradient is zero or not finite.

    On a parabola of curvature 3 the smoothness is the curvature:

    >>> model = nn.Linear(1, 1, bias=False)
    >>> nn.init.constant_(model.weight, 2.0)
    Parameter containing:
    tensor([[2.]], requires_grad=True)
    >>> probe = probe_gradient(model, lambda m: 1.5 * m.weight.square().sum(), [0.1, 0.2])
    >>> round(probe.smoothness, 4), [round(value, 2) for value in probe.losses.tolist()]
    (3.0, [2.94, 0.96])
    """
    steps = list(map(float, steps))
    if not steps or min(steps) <= 0:
        raise ValueError(f"steps={steps} must hold positive numbers; zero, where the probe starts, is reported anyway")
    names = list(select_parameters(model, parameters))
    moved = copy.deepcopy(model)
    tensors = [moved.get_parameter(name) for name in names]
    start = [t.detach().clone() for t in tensors]
    value, gradients = _evaluate(moved, loss, tensors)
    length = _length(gradients)
    if not 0 < length < float("inf"):
        raise ValueError(f"the gradient of loss(model) has length {length}: there is no direction to walk in")
    losses, changes = [], []
    for step in steps:
        _write(tensors, [p - step * g for p, g in zip(start, gradients, strict=True)])
        here, turned = _evaluate(moved, loss, tensors)
        losses.append(here)
        changes.append(_length([a - b for a, b in zip(turned, gradients, strict=True)]))
    steps, losses, changes = (torch.tensor(values, dtype=torch.float64) for values in (steps, losses, changes))
    return GradientProbe(steps=steps, value=value, gradient_norm=length, losses=losses, changes=changes)


@dataclass(frozen=True)
class GradientShift:
    """A weight's gradient before and after a step of what lies in front of it: `cosine` between them, `distance`."""

    cosine: float
    distance: float


def covariate_shift(model: nn.Module, loss: Loss, step: float, weights: Iterable[str]) -> dict[str, GradientShift]:
    r"""How a gradient step of all earlier parameters changes the gradient of each of `weights`.

    With :math:`G_i` the gradient of a weight and :math:`G_i'` the one after all parameters in front of it took the step
    :math:`-s g`: the internal covariate shift :math:`\|G_i - G_i'\|` and the cosine between the two (Santurkar et al.,
    arXiv 1805.11604, definition 2.1). A cosine of 1 says that the layer may ignore what its predecessors do.
    Earlier is what comes before in `model.named_parameters()`, so register parameters in the order of their use.

    Raises:
        ValueError: step is not positive, a weight is unknown, or is the first parameter, with nothing before it.
    """
    if step <= 0:
        raise ValueError(f"step={step} must be positive; a learning rate is one")
    wanted = list(select_parameters(model, weights))
    moved = copy.deepcopy(model)
    selected = select_parameters(moved)
    names, tensors = list(selected), list(selected.values())
    if names[0] in wanted:
        raise ValueError(f"weights={wanted} hold {names[0]!r}, which nothing comes before; leave it out")
    before = dict(zip(names, _evaluate(moved, loss, tensors)[1], strict=True))
    shifts = {}
    for name, tensor in selected.items():
        if name in wanted:
            after = _evaluate(moved, loss, [tensor])[1][0]
            shifts[name] = _shift(before[name], after)
        _write([tensor], [tensor.detach() - step * before[name]])
    return shifts


def passed_energy(gradient: Tensor, standardized: Tensor, dim: int | tuple[int, ...] = 0) -> Tensor:
    r"""What standardizing lets pass of a gradient's squared length, before the division by :math:`\sigma^2`.

    For :math:`\hat y = (y - \mu)/\sigma` over the m entries of `dim`, and u the gradient at :math:`\hat y`,

    .. math:: \sigma^2 \|\partial L/\partial y\|^2
        = \|u\|^2 - \tfrac1m \langle 1, u \rangle^2 - \tfrac1m \langle \hat y, u \rangle^2 ,

    an equality, of which theorem 4.1 of Santurkar et al. (arXiv 1805.11604) is the consequence.

    Args:
        gradient: u, of any shape.
        standardized: :math:`\hat y`, of the same shape, of mean 0 and mean square 1 over `dim`.
        dim: the axes of the statistics, kept with size 1.

    >>> y = torch.tensor([1.0, -1.0, 1.0, -1.0])
    >>> passed_energy(torch.tensor([3.0, 1.0, 0.0, 0.0]), y).item()
    5.0

    Raises:
        ValueError: the shapes differ, or `standardized` is not standardized over `dim`.
    """
    if gradient.shape != standardized.shape:
        raise ValueError(f"gradient {tuple(gradient.shape)} and standardized {tuple(standardized.shape)} must agree")
    mean, square = standardized.mean(dim), standardized.square().mean(dim)
    if mean.abs().max() > 1e-2 or (square - 1).abs().max() > 1e-2:
        raise ValueError(
            f"standardized has not mean 0 and mean square 1 over dim={dim}; "
            "give what the norm computes before its weight and bias, and the axes of its statistics"
        )
    average, along = gradient.mean(dim, keepdim=True), (gradient * standardized).mean(dim, keepdim=True)
    return (gradient - average - along * standardized).square().sum(dim, keepdim=True)


def kurtosis(values: Tensor) -> float:
    """Fourth central moment over the squared variance: 3 for a Gaussian, more for heavier tails.

    >>> kurtosis(torch.tensor([-1.0, 1.0, -1.0, 1.0]))
    1.0
    """
    centred = values.double() - values.double().mean()
    return (centred.pow(4).mean() / centred.square().mean() ** 2).item()


def _evaluate(model: nn.Module, loss: Loss, tensors: list[Tensor]) -> tuple[float, tuple[Tensor, ...]]:
    with torch.enable_grad(), private_buffers(model):
        value = loss(model)
        return value.item(), torch.autograd.grad(value, tensors, materialize_grads=True)


@torch.no_grad()
def _write(targets: Iterable[Tensor], values: Iterable[Tensor]) -> None:
    for target, value in zip(targets, values, strict=True):
        target.copy_(value)


def _length(tensors: Iterable[Tensor]) -> float:
    return flatten(tensors).norm().item()


def _shift(before: Tensor, after: Tensor) -> GradientShift:
    before, after = before.flatten(), after.flatten()
    return GradientShift(
        cosine=torch.nn.functional.cosine_similarity(before, after, dim=0, eps=0.0).item(),
        distance=(before - after).norm().item(),
    )
