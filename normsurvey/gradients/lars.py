"""A learning rate for each layer, from the norms of its weight and gradient."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from normsurvey.gradients.base import check_range, refuse_unknown_options, with_gradient
from normsurvey.registry import method


@method(
    title="Layer-wise Adaptive Rate Scaling (LARS)",
    kind="gradient",
    list_section="1.4",
    cite="you2017large",
    year=2017,
    arxiv="1708.03888",
    status="verified",
    merge="none needed",
    shapes=("linear", "conv", "vector"),
)
@refuse_unknown_options
class LARS(Optimizer):
    r"""SGD with momentum in which each layer's step has a fixed ratio to the norm of its weight.

    .. math::
        v \leftarrow m v + \lambda \, (g + \beta w), \qquad w \leftarrow w - \eta_t v, \qquad
        \lambda = \frac{\tau \lVert w \rVert}{\lVert g \rVert + \beta \lVert w \rVert + \epsilon}

    :math:`w, g` are one parameter tensor and its gradient, :math:`v` its momentum buffer; :math:`\eta_t` is
    `lr`, :math:`m` `momentum`, :math:`\beta` `weight_decay`, :math:`\tau` `trust_coefficient`,
    :math:`\epsilon` `eps`. :math:`\lambda = 1` where a norm is 0. Every option may differ by param group.

    Args:
        params: parameters or param groups.
        lr: learning rate.
        momentum: weight of the past in the buffer.
        dampening: the new gradient enters the buffer times ``1 - dampening``, from the second step on.
        weight_decay: L2 penalty.
        nesterov: step along ``g + momentum * v``.
        trust_coefficient: ratio of the step to the weight norm, at ``lr=1``.
        eps: added to the denominator (timm: 1e-8).
        exclude_1d: leave biases and gains (at most one axis) without decay and without adaptation.
        always_adapt: False adapts only groups with a weight decay, as timm does.
        norm_of_sum: divide by the norm of ``g + weight_decay * w`` instead of the sum of norms
            (self-supervised codes).
        lr_inside: the learning rate enters the buffer (the paper, pytorch-lars), which matters once it
            changes: ``v <- m v + lr * lambda * (g + weight_decay * w)`` and ``w <- w - v``.
        trust_clip: clip lambda at the learning rate (LARC): the factor is ``min(lambda / lr, 1)``.
        total_iters: decay the learning rate to 0 in so many steps, by ``(1 - t / total_iters) ** power``.
        power: power of that decay.

    Raises:
        ValueError: an option is out of its range; the message names it.

    Source: You, Gitman & Ginsburg, arXiv 1708.03888, algorithm 1; lr outside the buffer as in timm, Barlow
    Twins, BYOL.
    """

    area = "o i ... ->"
    operation = "Scale to a ratio of the weight norm"
    statistics = "the current gradient and weight"
    recovery = "none"

    def __init__(
        self,
        params: Iterable,
        lr: float,
        *,
        momentum: float = 0.9,
        dampening: float = 0.0,
        weight_decay: float = 5e-4,
        nesterov: bool = False,
        trust_coefficient: float = 1e-3,
        eps: float = 0.0,
        exclude_1d: bool = True,
        always_adapt: bool = True,
        norm_of_sum: bool = False,
        lr_inside: bool = False,
        trust_clip: bool = False,
        total_iters: int | None = None,
        power: float = 2.0,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "momentum": momentum,
                "dampening": dampening,
                "weight_decay": weight_decay,
                "nesterov": nesterov,
                "trust_coefficient": trust_coefficient,
                "eps": eps,
                "exclude_1d": exclude_1d,
                "always_adapt": always_adapt,
                "norm_of_sum": norm_of_sum,
                "lr_inside": lr_inside,
                "trust_clip": trust_clip,
                "total_iters": total_iters,
                "power": power,
            },
        )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group whose options are in range."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        group["num_steps"] = 0
        for name in ("lr", "weight_decay", "trust_coefficient", "eps", "power"):
            check_range(name, group[name])
        check_range("momentum", group["momentum"], high=1.0)
        check_range("dampening", group["dampening"], high=1.0 + 1e-12)
        if group["nesterov"] and (group["momentum"] == 0 or group["dampening"] != 0):
            raise ValueError("nesterov=True needs momentum > 0 and dampening=0; pass both")
        if group["total_iters"] is not None:
            check_range("total_iters", group["total_iters"], low=1)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step; returns the loss of `closure`."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        rates = {id(group): decayed_rate(group) for group in self.param_groups}
        for p, group in with_gradient(self.param_groups):
            self.update(p, group, rates[id(group)])
        for group in self.param_groups:
            group["num_steps"] += 1
        return loss

    def update(self, p: Tensor, group: dict[str, Any], lr: float) -> None:
        """Move one parameter."""
        inside, outside = (lr, 1.0) if group["lr_inside"] else (1.0, lr)
        update = inside * adapted(p, group, lr)
        if group["momentum"]:
            update = self.with_momentum(p, update, group)
        p.sub_(outside * update)

    def with_momentum(self, p: Tensor, update: Tensor, group: dict[str, Any]) -> Tensor:
        """The update after the momentum buffer, which starts as the first update."""
        state = self.state[p]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = update.clone()
        else:
            state["momentum_buffer"].mul_(group["momentum"]).add_(update, alpha=1 - group["dampening"])
        buffer = state["momentum_buffer"]
        return update + group["momentum"] * buffer if group["nesterov"] else buffer


def decayed_rate(group: dict[str, Any]) -> float:
    """The group's learning rate at its present step."""
    if group["total_iters"] is None:
        return group["lr"]
    return group["lr"] * max(1 - group["num_steps"] / group["total_iters"], 0.0) ** group["power"]


def adapted(p: Tensor, group: dict[str, Any], lr: float) -> Tensor:
    """``lambda (g + weight_decay w)``; the plain gradient for the excluded parameters."""
    if group["exclude_1d"] and p.ndim <= 1:
        return p.grad
    decayed = p.grad + group["weight_decay"] * p
    if not group["always_adapt"] and group["weight_decay"] == 0:
        return decayed
    return trust_ratio(p, decayed, group, lr) * decayed


def trust_ratio(p: Tensor, decayed: Tensor, group: dict[str, Any], lr: float) -> Tensor:
    """The local rate lambda, 0-d; 1 where the weight or the gradient is 0."""
    weight_norm, grad_norm = torch.linalg.vector_norm(p), torch.linalg.vector_norm(p.grad)
    if group["norm_of_sum"]:
        grad_norm = denominator = torch.linalg.vector_norm(decayed)
    else:
        denominator = grad_norm + group["weight_decay"] * weight_norm
    ratio = group["trust_coefficient"] * weight_norm / (denominator + group["eps"])
    ratio = torch.where((weight_norm > 0) & (grad_norm > 0), ratio, torch.ones_like(ratio))
    return (ratio / lr).clamp(max=1.0) if group["trust_clip"] else ratio
