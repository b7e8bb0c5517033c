r"""How far the weights of a model turn in each step of any optimizer, and how far theory says that they turn.

A loss that does not see the size of a weight $w$ moves its direction alone, and by weight decay $\lambda$ at learning
rate $\eta$ the norm settles. There the angle between $w_t$ and $w_{t+1}$, in root mean square, is

$$ \Delta_* = \sqrt{\frac{2\eta\lambda}{1 + \alpha}}, \qquad
   \|w\|_*^4 = \frac{\eta\, \mathbb{E}\|\tilde g\|^2}{2 \lambda (1 - \alpha)} $$

for SGD with momentum $\alpha$, where $\tilde g = \|w\|\, g$ is the gradient at unit norm (Wan et al., Spherical Motion
Dynamics, NeurIPS 2021, arXiv 2006.08419). AdamW has a form of its own (Kosson, Messmer, Jaggi, Rotational
Equilibrium, ICML 2024, arXiv 2305.17212).
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from normsurvey.analysis.curvature import select_parameters

AREAS = ("tensor", "row")


@dataclass(frozen=True)
class Rotation:
    r"""What T recorded steps did to one parameter, float64 on the CPU; K = 1 for a tensor, or its number of rows.

    Attributes:
        steps: (T,) numbers of the steps, the first of the run is 0.
        norms: (T, K) :math:`\|w_t\|` before each step.
        angles: (T, K) between :math:`w_t` and :math:`w_{t+1}`, in radians.
        gradients: (T, K) :math:`\|w_t\| \|g_t\|`, the norm of the gradient at unit norm.
        effective_lr: (T, K) :math:`\eta_t / \|w_t\|^2`, the learning rate of the direction.
    """

    steps: Tensor
    norms: Tensor
    angles: Tensor
    gradients: Tensor
    effective_lr: Tensor

    def last(self, count: int) -> "Rotation":
        """The steps among the last `count` of the run, recorded or not, that were recorded."""
        kept = self.steps > self.steps[-1] - count
        return Rotation(**{f.name: getattr(self, f.name)[kept] for f in fields(self)})

    @property
    def rms_angle(self) -> Tensor:
        """Root mean square of the angles over the steps, (K,), which the theory predicts; the mean is smaller."""
        return self.angles.square().mean(0).sqrt()

    @property
    def rms_norm(self) -> Tensor:
        """Root mean square of the norms, (K,)."""
        return self.norms.square().mean(0).sqrt()

    @property
    def rms_gradient(self) -> Tensor:
        """Root mean square of the gradient at unit norm, (K,)."""
        return self.gradients.square().mean(0).sqrt()


class RotationTracker(Mapping):
    """Records, while it is entered, what every step of an optimizer does to the parameters of a model.

    It measures the weights before and after `optimizer.step()`, through the hooks that each torch optimizer has, so
    momentum, Adam, clipping and schedules are all included. A mapping from names to :class:`Rotation`, empty before
    the first recorded step.

    Args:
        model: any module.
        optimizer: the one that moves the parameters.
        names: of the parameters to watch; None for all trainable ones of two or more dimensions.
        per: "tensor" measures a whole parameter, "row" each slice along its first dimension: a neuron or a filter.
        when: which steps to record: every `when`-th, or a function of the step's number.

    Raises:
        ValueError: a name or `per` is unknown, `when` is not positive, or the optimizer does not have a parameter.

    >>> layer = nn.Linear(2, 1, bias=False)
    >>> layer.weight.data = torch.tensor([[1.0, 0.0]])
    >>> layer.weight.grad = torch.tensor([[0.0, -1.0]])
    >>> sgd = torch.optim.SGD(layer.parameters(), lr=1.0)
    >>> with RotationTracker(layer, sgd) as track:
    ...     sgd.step()
    >>> round(math.degrees(track["weight"].angles.item()), 4)
    45.0
    """

    def __init__(
        self, model: nn.Module, optimizer: Optimizer, names: Iterable[str] | None = None, *,
        per: str = "tensor", when: int | Callable[[int], bool] = 1,
    ):  # fmt: skip
        if per not in AREAS:
            raise ValueError(f"per={per!r} must be one of {AREAS}")
        if not callable(when) and when < 1:
            raise ValueError(f"when={when} must be at least 1, or a function of the step's number")
        if names is None:
            names = [name for name, p in select_parameters(model).items() if p.dim() > 1]
        self._parameters = select_parameters(model, list(names))
        groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
        if absent := [name for name, p in self._parameters.items() if id(p) not in groups]:
            raise ValueError(f"names={absent} are not among the optimizer's parameters; leave them out")
        self._groups = [groups[id(p)] for p in self._parameters.values()]
        self._optimizer, self._per = optimizer, per
        self._due = when if callable(when) else lambda step: step % when == 0
        self._step, self._before, self._handles = 0, None, []
        self._steps, self._lrs, self._lengths = [], [], {name: [] for name in self._parameters}

    def __enter__(self) -> "RotationTracker":
        self._handles = [
            self._optimizer.register_step_pre_hook(lambda *_: self._note_before()),
            self._optimizer.register_step_post_hook(lambda *_: self._note_after()),
        ]
        return self

    def __exit__(self, *_) -> None:
        for handle in self._handles:
            handle.remove()

    def __iter__(self):
        return iter(self._parameters if self._steps else ())

    def __len__(self) -> int:
        return len(self._parameters) if self._steps else 0

    def __getitem__(self, name: str) -> Rotation:
        if not self._steps:
            raise KeyError(f"{name!r}: no step was recorded yet")
        before, after, moved, slope = torch.stack(self._lengths[name]).double().cpu().unbind(1)  # (T, K) each
        lr = torch.tensor([lrs[list(self._parameters).index(name)] for lrs in self._lrs], dtype=torch.float64)
        return Rotation(
            steps=torch.tensor(self._steps), norms=before, angles=_angle(before, after, moved),
            gradients=before * slope, effective_lr=lr[:, None] / before.square(),
        )  # fmt: skip

    @torch.no_grad()
    def _note_before(self) -> None:
        if self._due(self._step):
            weights = self._parameters.values()
            gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in weights]
            self._before = [(p.clone(), self._norm(p), self._norm(g)) for p, g in zip(weights, gradients, strict=True)]
            self._steps.append(self._step)
            self._lrs.append([float(group["lr"]) for group in self._groups])

    @torch.no_grad()
    def _note_after(self) -> None:
        self._step += 1
        if self._before is None:
            return
        for (name, p), (old, norm, slope) in zip(self._parameters.items(), self._before, strict=True):
            self._lengths[name].append(torch.stack([norm, self._norm(p), self._norm(p - old), slope]))
        self._before = None

    def _norm(self, x: Tensor) -> Tensor:
        return torch.linalg.vector_norm(x.flatten(1) if self._per == "row" else x.reshape(1, -1), dim=1)


def equilibrium_angle(lr: float, weight_decay: float, momentum: float = 0.0) -> float:
    r""":math:`\sqrt{2\eta\lambda / (1 + \alpha)}`, of SGD as in torch, with dampening 0.

    A step is along :math:`v \leftarrow \alpha v + g + \lambda w`. The angle needs a steady norm and
    :math:`\langle w, g \rangle = 0`, nothing of the gradient's distribution: then
    :math:`\cos\Delta = 1 - \eta\lambda / (1 + \alpha)` in the mean (Wan et al., arXiv 2006.08419).

    >>> round(equilibrium_angle(lr=0.2, weight_decay=0.01), 4)
    0.0632
    """
    _check(lr, weight_decay, momentum)
    return math.sqrt(2 * lr * weight_decay / (1 + momentum))


def equilibrium_angle_adamw(lr: float, weight_decay: float, beta1: float = 0.9) -> float:
    r""":math:`\sqrt{2\eta\lambda\,(1 - \beta_1) / (1 + \beta_1)}`, of AdamW with gradients uncorrelated in time.

    The factor is the variance of a moving average of such gradients (Kosson et al., arXiv 2305.17212).

    >>> equilibrium_angle_adamw(lr=0.002, weight_decay=0.25, beta1=0.0) == equilibrium_angle(0.002, 0.25)
    True
    """
    _check(lr, weight_decay, beta1, "beta1")
    return math.sqrt(2 * lr * weight_decay * (1 - beta1) / (1 + beta1))


def equilibrium_norm(lr: float, weight_decay: float, gradient: Tensor, momentum: float = 0.0) -> Tensor:
    r""":math:`(\eta\, \tilde g^2 / (2 \lambda (1 - \alpha)))^{1/4}`, of SGD; exact for :math:`\alpha = 0` up to
    :math:`O(\eta\lambda)`.

    Momentum needs more: gradients of different steps uncorrelated (Wan et al., arXiv 2006.08419).

    Args:
        gradient: root mean square norm of the gradient at unit norm, :attr:`Rotation.rms_gradient`.

    >>> equilibrium_norm(lr=0.5, weight_decay=0.25, gradient=torch.tensor(4.0))
    tensor(2.)
    """
    _check(lr, weight_decay, momentum)
    return (lr * gradient**2 / (2 * weight_decay * (1 - momentum))) ** 0.25


def equilibrium_norm_adamw(lr: float, weight_decay: float, size: int) -> float:
    r""":math:`\sqrt{\eta\, d / (2 \lambda)}` for :math:`d` = `size` entries: Adam's steps do not know the gradient's
    scale.

    >>> equilibrium_norm_adamw(lr=0.002, weight_decay=0.25, size=1000)
    2.0
    """
    _check(lr, weight_decay)
    return math.sqrt(lr * size / (2 * weight_decay))


def predicted_norms(start: float, gradient: float, steps: int, lr: float, weight_decay: float) -> Tensor:
    r"""The way to equilibrium under SGD and a gradient of constant size, (steps + 1,) float64.

    :math:`\|w_{t+1}\|^2 = (1 - \eta\lambda)^2 \|w_t\|^2 + \eta^2 \tilde g^2 / \|w_t\|^2`; where steps are small,
    :math:`\|w\|^4` approaches its limit as :math:`e^{-4\eta\lambda t}`.

    Args:
        start: the norm at first.
        gradient: norm of the gradient at unit norm.

    Raises:
        ValueError: start is not positive.

    >>> predicted_norms(1.0, 1.0, 2, lr=0.0, weight_decay=0.0).tolist()
    [1.0, 1.0, 1.0]
    """
    if not start > 0:
        raise ValueError(f"start={start} must be positive: a weight has a direction")
    squares = [float(start) ** 2]
    for _ in range(steps):
        squares.append((1 - lr * weight_decay) ** 2 * squares[-1] + (lr * gradient) ** 2 / squares[-1])
    return torch.tensor(squares, dtype=torch.float64).sqrt()


def _angle(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    # between the sides a and b of a triangle whose third is c, in Kahan's form: small angles keep their digits
    a, b = torch.maximum(a, b), torch.minimum(a, b)
    above, below = ((a - b) + c) * (c - (a - b)), (a + (b + c)) * ((a - c) + b)
    return 2 * torch.atan2(above.clamp_min(0).sqrt(), below.clamp_min(0).sqrt())


def _check(lr: float, weight_decay: float, momentum: float = 0.0, name: str = "momentum") -> None:
    if not (lr > 0 and weight_decay > 0):
        raise ValueError(f"lr={lr} and weight_decay={weight_decay} must be positive: without decay nothing settles")
    if not 0 <= momentum < 1:
        raise ValueError(f"{name}={momentum} must be in [0, 1)")
