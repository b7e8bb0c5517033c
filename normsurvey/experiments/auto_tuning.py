r"""The effective learning rate $\eta/\|w\|^2$ of scale-invariant weights: what sets it, and what it does by itself.

Where $L(c\,w) = L(w)$, write $G_t = \|w_t\|\,\|\nabla L(w_t)\|$ for the gradient on the unit sphere and
$s_t = \|w_t\|^2/\eta$ for the inverse of the effective rate. Gradient descent without decay obeys

$$ s_{t+1} = s_t + \frac{G_t^2}{s_t}, \qquad s_{t+1} \ge 2\,G_t, \qquad
   \min_{t < T} G_t \le \frac{s_T}{\sqrt T} $$

(after Arora, Li and Lyu, ICLR 2019, arXiv 1812.03981). Many runs that differ in their rates are trained at once.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn import functional as F
from torch.optim import Optimizer

from normsurvey.experiments.classifiers import Data


@dataclass(frozen=True)
class Runs:
    """R runs of T steps, on the CPU.

    Attributes:
        losses: before each step, (T, R).
        norms: of the scale-invariant weights, before each step and after the last, (T + 1, R).
        sphere: norm of the gradient that the weights would have at norm 1, (T, R).
        moved: length of each step of these weights, decay not included, (T, R).
        lrs: their learning rates, (R,).
    """

    losses: Tensor
    norms: Tensor
    sphere: Tensor
    moved: Tensor
    lrs: Tensor

    @property
    def inverse_rates(self) -> Tensor:
        r"""$s_t = \|w_t\|^2 / \eta$, (T + 1, R)."""
        return self.norms.square() / self.lrs


def train_together(
    models: Sequence[nn.Module], data: Iterable[Data], names: Iterable[str], steps: int, *,
    lrs: Sequence[float], weight_decays: Sequence[float] | float = 0.0, momenta: Sequence[float] | float = 0.0,
    projected: Sequence[bool] | bool = False, other_lr: Sequence[float] | float = 0.1,
) -> Runs:  # fmt: skip
    r"""SGD on R models of one architecture at once: `vmap` over their stacked parameters.

    Args:
        models: are read, not changed; without buffers, since a running average is no function of one run.
        data: a batch x (B, ...), y (B,) per step for all models, or x (R, B, ...), y (R, B), one for each.
        names: the scale-invariant parameters, trained with the constants below. Each is one number or (R,).
        momenta: in torch's convention, v <- m v + g, without dampening; a decay enters g.
        projected: whether the radial part of each row's step is taken out (:func:`tangential`).
        other_lr: learning rate of all other parameters, which have neither decay nor momentum.

    Raises:
        ValueError: a model has buffers, or a constant has not one value per model.
    """
    names, (parameters, buffers) = set(names), stack_module_state(list(models))
    if buffers:
        raise ValueError(f"models have buffers {list(buffers)}: build the norms with track_running_stats=False")
    order = [*(n for n in parameters if n in names), *(n for n in parameters if n not in names)]
    stacked = [parameters[n].detach().requires_grad_() for n in order]
    ours, others = stacked[: len(names)], stacked[len(names) :]
    constants = {"lrs": lrs, "weight_decays": weight_decays, "momenta": momenta, "projected": projected}
    constants = {name: _per_run(name, value, len(models), ours[0]) for name, value in constants.items()}
    other = _per_run("other_lr", other_lr, len(models), ours[0])
    buffers = [torch.zeros_like(p) for p in ours]

    def logits(one: list[Tensor], x: Tensor) -> Tensor:
        return functional_call(models[0], dict(zip(order, one, strict=True)), (x,))

    losses, norms, sphere, moved = [], [_norm(ours)], [], []
    for _, (x, y) in zip(range(steps), data, strict=False):
        out = vmap(logits, in_dims=(0, 0 if y.dim() == 2 else None))(stacked, x)  # (R, B, classes)
        values = F.cross_entropy(out.flatten(0, 1), y.expand(len(models), -1).flatten(), reduction="none")
        values = values.view(len(models), -1).mean(1)
        gradients = torch.autograd.grad(values.sum(), stacked)
        with torch.no_grad():
            sphere.append(_norm(gradients[: len(ours)]) * norms[-1])
            for p, g in zip(others, gradients[len(ours) :], strict=True):
                p.sub_(_like(other, p) * g)
            moved.append(_norm([_step(*pgb, **constants) for pgb in zip(ours, gradients, buffers, strict=False)]))
        losses.append(values.detach())
        norms.append(_norm(ours))
    return Runs(*(torch.stack(part).cpu() for part in (losses, norms, sphere, moved)), constants["lrs"].cpu())


def momentum_growth(moved: Tensor, momentum: float) -> Tensor:
    r"""By how much the steps of SGD with momentum let $\|w\|^2$ grow: Pythagoras with a memory.

    $$ \|w_{t+1}\|^2 - \|w_t\|^2 = \|\Delta_t\|^2 + 2 \sum_{k < t} m^{t - k}\,\|\Delta_k\|^2 $$

    for scale-invariant w without decay (Heo et al., ICLR 2021, arXiv 2006.08217, lemma on momentum).

    Args:
        moved: lengths of the steps from the first one on, (T, ...).

    Returns:
        The growth in each step, (T, ...).

    >>> momentum_growth(torch.tensor([1.0, 1.0, 1.0]), 0.5)
    tensor([1.0000, 2.0000, 2.5000])
    """
    growth, memory = [], torch.zeros_like(moved[0])
    for square in moved.square():
        growth.append(square + 2 * memory)
        memory = momentum * (memory + square)
    return torch.stack(growth)


def tangential(step: Tensor, weight: Tensor) -> Tensor:
    """The step without its component along the weight, row by row (axis 0).

    >>> tangential(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 3.0]]))
    tensor([[1., 0.]])
    """
    w, s = weight.flatten(1), step.flatten(1)
    along = (s * w).sum(1, keepdim=True) / w.square().sum(1, keepdim=True).clamp_min(torch.finfo(w.dtype).tiny)
    return (s - along * w).view_as(step)


class TangentialSteps(Optimizer):
    r"""Any optimizer, with the radial part of its steps taken out where the weight looks scale invariant.

    Around SGD with momentum and Adam this is SGDP and AdamP (Heo et al., ICLR 2021, arXiv 2006.08217): a
    tensor is projected row by row if the cosine between gradient and weight is below $\delta/\sqrt d$ in every
    row, else as a whole if it is for the whole. The base optimizer's buffers stay as they are.

    Args:
        base: the optimizer to wrap; its decay must be 0 (the paper decays apart from the step).
        delta: the threshold $\delta$.

    Raises:
        ValueError: base has a weight decay.
    """

    def __init__(self, base: Optimizer, delta: float = 0.1):
        if any(group["weight_decay"] for group in base.param_groups):
            raise ValueError("base has weight_decay > 0, which is a radial step: build it with weight_decay=0")
        super().__init__(base.param_groups, base.defaults | {"delta": delta})
        self.base = base

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step of the base optimizer, projected; returns the loss of `closure`."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        invariant = [(p, p.clone(), shape) for p in self._matrices() if (shape := self._view(p)) is not None]
        self.base.step()
        for p, old, shape in invariant:
            p.copy_(old + tangential((p - old).view(shape), old.view(shape)).view_as(p))
        return loss

    def _matrices(self) -> Iterator[Tensor]:
        return (p for group in self.param_groups for p in group["params"] if p.grad is not None and p.dim() > 1)

    def _view(self, p: Tensor) -> tuple[int, int] | None:
        for rows in (len(p), 1):
            w, g = p.view(rows, -1), p.grad.reshape(rows, -1)
            cosine = F.cosine_similarity(w, g, dim=1).abs().max()
            if cosine < self.defaults["delta"] / w.shape[1] ** 0.5:
                return tuple(w.shape)
        return None


def noisy_labels(y: Tensor, share: float, classes: int = 10, seed: int = 0) -> Tensor:
    """Labels (N,) of which a share, chosen at random, is drawn anew: the loss then has no zero to run into."""
    random = torch.Generator().manual_seed(seed)
    new = torch.randint(classes, y.shape, generator=random).to(y.device)
    return torch.where((torch.rand(y.shape, generator=random) < share).to(y.device), new, y)


def for_each(streams: Sequence[Iterator[Data]], copies: int) -> Iterator[Data]:
    """A batch for each of R = len(streams) * copies runs: x (R, B, ...), y (R, B), first all copies of the first."""
    for batch in zip(*streams, strict=True):
        yield tuple(torch.stack(part).repeat_interleave(copies, 0) for part in zip(*batch, strict=True))


def interrupted(data: Data, size: int, every: int, seed: int = 0) -> Iterator[Data]:
    """Batches of a size, drawn with replacement, without end; each `every`-th is all of the data instead.

    >>> stream = interrupted((torch.zeros(4, 1), torch.arange(4)), 2, every=3)
    >>> [len(next(stream)[1]) for _ in range(6)]
    [2, 2, 4, 2, 2, 4]
    """
    random = torch.Generator().manual_seed(seed)
    for step in itertools.count(1):
        chosen = torch.randint(len(data[1]), (size,), generator=random).to(data[1].device)
        yield data if step % every == 0 else tuple(part[chosen] for part in data)


def _step(p: Tensor, g: Tensor, buffer: Tensor, lrs: Tensor, weight_decays, momenta, projected) -> Tensor:
    """One step of a stacked parameter, in place; returns its part that is no decay."""
    buffer.mul_(_like(momenta, p)).add_(g + _like(weight_decays, p) * p)
    step = _like(lrs, p) * buffer
    if projected.any():
        step = torch.where(_like(projected, p) > 0, vmap(tangential)(step, p), step)
    p.sub_(step)
    return step


def _per_run(name: str, value: Sequence[float] | float, runs: int, like: Tensor) -> Tensor:
    value = torch.as_tensor(value, dtype=like.dtype, device=like.device)
    if value.dim() and len(value) != runs:
        raise ValueError(f"{name} has {len(value)} values for {runs} models; pass one number or one to each")
    return value.expand(runs)


def _like(per_run: Tensor, stacked: Tensor) -> Tensor:
    return per_run.view(-1, *(1,) * (stacked.dim() - 1))


def _norm(stacked: Iterable[Tensor]) -> Tensor:
    squares = [p.detach().flatten(1).square().sum(1) for p in stacked]
    return torch.stack(squares).sum(0).sqrt()
