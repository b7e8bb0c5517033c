r"""Weight decay at a constant learning rate against no decay at an exponentially growing one.

With $v_{t+1} = \gamma v_t - g(\theta_t)$, $\theta_{t+1} = \theta_t + \eta_t v_{t+1}$ and $\alpha$ the larger root of
$x^2 - (1 + \gamma - \eta\lambda)\,x + \gamma = 0$, the runs

$$ \text{(decay } \lambda,\ \eta_t = \eta) \qquad \text{and} \qquad
   \Big(\text{no decay},\ \eta_t = \eta\,\alpha^{-2t-1},\ v_0 = \frac{1 - \alpha}{\eta\,\alpha}\,\theta_0\Big) $$

visit $\theta_t$ and $\alpha^{-t} \theta_t$: the same function, where the loss is invariant to the scale of $\theta$
(Li and Arora, ICLR 2020, arXiv 1910.07454).
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from normsurvey.experiments.classifiers import Data, sgd, train

STARTS = ("matched", "zero")


@dataclass(frozen=True)
class Run:
    """One training run: `losses` (T,), `norms` of the invariant weights (T,), their learning rates `lrs` (T,)."""

    losses: Tensor
    norms: Tensor
    lrs: Tensor


def contraction(lr: float, weight_decay: float, momentum: float = 0.0) -> float:
    r"""$\alpha$, the factor per step between the two runs; $1 - \eta\lambda$ without momentum.

    Raises:
        ValueError: no root is real and positive: the decay is too strong for this momentum.
    """
    half = (1 + momentum - lr * weight_decay) / 2
    if half <= 0 or half * half < momentum:
        raise ValueError(f"weight_decay={weight_decay} is too large at lr={lr}, momentum={momentum}; lower it")
    return half + math.sqrt(half * half - momentum)


def run_with_decay(
    model: nn.Module, data: Iterable[Data], names: Iterable[str], steps: int, *,
    lr: float, weight_decay: float, momentum: float = 0.0,
) -> Run:  # fmt: skip
    """SGD at a constant learning rate, weight decay on the scale-invariant parameters `names` alone."""
    optimizer = sgd(model, lr, momentum=momentum, weight_decay=weight_decay, decayed=names)
    return _run(model, data, names, steps, optimizer, [lr] * steps)


def run_exponential(
    model: nn.Module, data: Iterable[Data], names: Iterable[str], steps: int, *,
    lr: float, weight_decay: float, momentum: float = 0.0, start: str = "matched",
) -> Run:  # fmt: skip
    """SGD without decay; the learning rate of `names` grows as the module says, that of the others is constant.

    Args:
        weight_decay: that of the run to be matched.
        start: momentum of the first step: "matched" is $v_0$ as above, "zero" the wrong one.
    """
    if start not in STARTS:
        raise ValueError(f"start={start!r} must be one of {STARTS}")
    names = list(names)
    optimizer = sgd(model, lr, momentum=momentum, decayed=names)
    alpha = contraction(lr, weight_decay, momentum)
    if momentum and start == "matched":
        for p in map(model.get_parameter, names):
            # torch keeps -v
            optimizer.state[p]["momentum_buffer"] = -(1 - alpha) / (lr * alpha) * p.detach()
    return _run(model, data, names, steps, optimizer, [lr * alpha ** (-2 * t - 1) for t in range(steps)])


def _run(model, data, names, steps, optimizer, lrs) -> Run:
    weights, norms = [model.get_parameter(name) for name in names], []

    def before_step(t):
        optimizer.param_groups[0]["lr"] = lrs[t]
        norms.append(torch.stack([w.detach().norm() for w in weights]).norm())

    losses = train(model, data, optimizer, steps, before_step=before_step)
    return Run(losses=losses, norms=torch.stack(norms).cpu(), lrs=torch.tensor(lrs, dtype=torch.float64))
