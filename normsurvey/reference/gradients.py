"""Gradient methods, parameter by parameter in float64.

Every function takes the starting parameters, a list (over steps) of lists of gradients, and the options of
the method by name, and returns the parameters after the last step.
"""

import math

import torch
from torch import Tensor

from normsurvey.reference import reference


def norm(x: Tensor) -> float:
    """Euclidean norm of all entries."""
    return math.sqrt(sum(float(entry) ** 2 for entry in x.reshape(-1)))


def sgd_step(
    w: Tensor, g: Tensor, buffer: Tensor | None, lr: float, momentum: float
) -> tuple[Tensor, Tensor]:
    """Heavy-ball momentum whose buffer starts as the first gradient: the new weight and buffer."""
    buffer = g.clone() if buffer is None else momentum * buffer + g
    return w - lr * buffer, buffer


def centralized(x: Tensor, least_axes: int) -> Tensor:
    """Each slice along axis 0 minus its mean, for tensors of at least `least_axes` axes."""
    if x.ndim < least_axes:
        return x
    return torch.stack([row - sum(row.reshape(-1)) / row.numel() for row in x])


@reference("GradientCentralization")
def gradient_centralization(
    params: list[Tensor],
    gradients: list[list[Tensor]],
    *,
    lr: float,
    base: str = "SGD",
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    gc_loc: bool = True,
    gc_conv_only: bool = False,
) -> list[Tensor]:
    """SGD or Adam with centralized gradients (Yong et al. 2020, algorithms 1 and 2)."""
    least_axes = 4 if gc_conv_only else 2
    result = []
    for k, start in enumerate(params):
        w, buffer, m, v = start.clone(), None, torch.zeros_like(start), torch.zeros_like(start)
        for t, step in enumerate(gradients, start=1):
            g = step[k] + weight_decay * w
            if base == "SGD":
                w, buffer = sgd_step(w, centralized(g, least_axes), buffer, lr, momentum)
                continue
            g = centralized(g, least_axes) if gc_loc else g
            m = betas[0] * m + (1 - betas[0]) * g
            v = betas[1] * v + (1 - betas[1]) * g * g
            direction = m / (1 - betas[0] ** t) / ((v / (1 - betas[1] ** t)) ** 0.5 + eps)
            w = w - lr * (direction if gc_loc else centralized(direction, least_axes))
        result.append(w)
    return result


@reference("LARS")
def lars(
    params: list[Tensor],
    gradients: list[list[Tensor]],
    *,
    lr: float,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    trust_coefficient: float = 1e-3,
    eps: float = 0.0,
    exclude_1d: bool = True,
    always_adapt: bool = True,
    norm_of_sum: bool = False,
    lr_inside: bool = False,
    trust_clip: bool = False,
    total_iters: int | None = None,
    power: float = 2.0,
) -> list[Tensor]:
    """A rate for each tensor from the norms of weight and gradient (You et al. 2017, algorithm 1)."""
    result = []
    for k, start in enumerate(params):
        w, buffer = start.clone(), None
        for t, step in enumerate(gradients):
            rate = lr if total_iters is None else lr * (1 - t / total_iters) ** power
            g = step[k]
            if w.ndim > 1 or not exclude_1d:
                decayed = g + weight_decay * w
                below = norm(decayed) if norm_of_sum else norm(g) + weight_decay * norm(w)
                local = trust_coefficient * norm(w) / (below + eps) if norm(w) * norm(g) > 0 else 1.0
                local = min(local / rate, 1.0) if trust_clip else local
                g = (local if always_adapt or weight_decay > 0 else 1.0) * decayed
            w, buffer = sgd_step(
                w, rate * g if lr_inside else g, buffer, 1.0 if lr_inside else rate, momentum
            )
        result.append(w)
    return result


@reference("AdaptiveGradientClipping")
def adaptive_gradient_clipping(
    params: list[Tensor],
    gradients: list[list[Tensor]],
    *,
    lr: float,
    momentum: float = 0.0,
    clip_factor: float | None = 0.01,
    eps: float = 1e-3,
    units: str = "rows",
) -> list[Tensor]:
    """SGD on gradients cut to a fraction of their unit's weight norm (Brock et al. 2021, equation 3)."""

    def clipped(g: Tensor, w: Tensor) -> Tensor:
        bound = clip_factor * max(norm(w), eps)
        return g * bound / max(norm(g), 1e-6) if norm(g) > bound else g

    def clipped_units(g: Tensor, w: Tensor) -> Tensor:
        if clip_factor is None:
            return g
        if g.ndim <= 1:
            return clipped(g, w)
        if units == "columns" and g.ndim <= 3:
            columns = zip(g.reshape(len(g), -1).T, w.reshape(len(w), -1).T, strict=True)
            return torch.stack([clipped(a, b) for a, b in columns], 1).reshape(g.shape)
        return torch.stack([clipped(a, b) for a, b in zip(g, w, strict=True)])

    result = []
    for k, start in enumerate(params):
        w, buffer = start.clone(), None
        for step in gradients:
            w, buffer = sgd_step(w, clipped_units(step[k], w), buffer, lr, momentum)
        result.append(w)
    return result
