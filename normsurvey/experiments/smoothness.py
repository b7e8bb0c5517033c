"""Two networks at one learning rate, probed as they train: the loss along the gradient, covariate shift, noise."""

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from normsurvey.analysis import (
    GradientProbe,
    covariate_shift,
    passed_energy,
    private_buffers,
    probe_gradient,
    signals,
)
from normsurvey.experiments.banks import Bank, stacked, streams
from normsurvey.experiments.classifiers import Data, accuracy, batches, cross_entropy, hidden_weights, train
from normsurvey.notebook import progress

MULTIPLES = (0.5, 1.0, 2.0, 4.0)


class UnitNoise(nn.Module):
    """Scales and shifts each channel (axis 1) at random, in train mode: what a normalization has just set is undone.

    A draw is kept until the next, so that the same noise can be met twice. Scales are exp of a uniform number in
    (-`strength`, `strength`), shifts uniform in the same interval.
    """

    def __init__(self, channels: int, strength: float = 0.5):
        super().__init__()
        self.strength = strength
        self.register_buffer("scale", torch.ones(channels))
        self.register_buffer("shift", torch.zeros(channels))

    def draw(self, random: torch.Generator) -> None:
        """Replaces the noise by a new one from a generator on the CPU."""
        for name in ("scale", "shift"):
            old = getattr(self, name)
            drawn = self.strength * (2 * torch.rand(len(old), generator=random, dtype=torch.float64) - 1)
            setattr(self, name, (drawn.exp() if name == "scale" else drawn).to(old))

    def forward(self, x: Tensor) -> Tensor:
        """Noise on x (N, C, ...) in train mode; x itself in eval mode."""
        if not self.training:
            return x
        shape = (1, -1, *[1] * (x.dim() - 2))
        return x * self.scale.view(shape) + self.shift.view(shape)


def draw_noise(model: nn.Module, seed: int) -> None:
    """Draws new noise in every `UnitNoise` of the model."""
    random = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, UnitNoise):
            module.draw(random)


@dataclass(frozen=True)
class Moment:
    """One look at a run: `probe` at `step`, and the mean `cosine` of its covariate shift, NaN if not asked for."""

    seed: int
    lr: float
    step: int
    probe: GradientProbe
    cosine: float


def follow(
    network: Callable[[int], nn.Module], data: Mapping[int, Data], lrs: Sequence[float], *,
    steps: int = 100, at: Container[int] = range(0, 10**6, 10), batch_size: int = 128,
    shift_at: Sequence[float] = (), what: str = "probes",
) -> list[Moment]:  # fmt: skip
    """Trains by plain SGD, each seed at each learning rate, and probes at `MULTIPLES` of it on the coming batch.

    Args:
        network: maps a seed to a model. data: training data of each seed.
        at: the steps before which is probed.
        shift_at: learning rates at which the covariate shift is measured too, of all hidden weights but the first.
    """
    members, moments = [(seed, lr) for seed in data for lr in lrs], []
    bank = Bank([network(seed) for seed, _ in members], [lr for _, lr in members])
    for step, drawn in enumerate(progress(streams(data, batch_size, steps), what, steps)):
        if step in at:
            for member, model in bank.write().items():
                seed, lr = members[member]
                loss = cross_entropy(drawn[seed])
                if not _is_finite(model, loss):
                    continue
                probe = probe_gradient(model, loss, [lr * m for m in MULTIPLES])
                cosine = mean_cosine(model, loss, lr) if lr in shift_at else float("nan")
                moments.append(Moment(seed, lr, step, probe, cosine))
        bank.keep(bank.step(*stacked(drawn, [members[k][0] for k in bank.alive])).isfinite())
        if not bank.alive:
            break
    return moments


def mean_cosine(model: nn.Module, loss: Callable, lr: float) -> float:
    """Mean over all hidden weights but the first of the cosine in `covariate_shift`."""
    shifts = covariate_shift(model, loss, lr, hidden_weights(model)[1:])
    return sum(shift.cosine for shift in shifts.values()) / len(shifts)


@dataclass(frozen=True)
class NoisyRun:
    """A run with `UnitNoise`: `cosines` of the covariate shift with new and with frozen noise, test `accuracy`."""

    cosines: dict[str, list[float]]
    accuracy: float


def follow_noisy(
    model: nn.Module, data: Data, test: Data, lr: float, *,
    steps: int = 250, every: int = 50, batch_size: int = 128, seed: int = 0,
) -> NoisyRun:  # fmt: skip
    """Trains with new noise at each step, and measures the covariate shift between a step and the next.

    "new": the next step's noise is that of the next step, as in training; "frozen": both gradients meet the same.
    Works for models without noise too, where the two are equal.
    """
    cosines: dict[str, list[float]] = {"new": [], "frozen": []}
    draws = iter(range(10**6 * seed, 10**6 * (seed + 1)))
    stream = batches(data, batch_size, seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    model.train()
    for step in range(steps):
        batch, noise = next(stream), next(draws)
        draw_noise(model, noise)
        if step % every == 0:
            loss = cross_entropy(batch)
            cosines["frozen"].append(mean_cosine(model, loss, lr))
            cosines["new"].append(mean_cosine(model, _noise_changes(loss, noise), lr))
        train(model, iter([batch]), optimizer, 1)
    return NoisyRun(cosines, accuracy(model.eval(), test))


@dataclass(frozen=True)
class Balance:
    r"""Of one normalized layer, per channel (C,): lengths of gradients, squared, and what the identity says.

    `inner` is $\|\partial L/\partial y\|^2$, `outer` is $\|u\|^2$ at the output, `factor` is $\gamma^2/\sigma^2$,
    `passed` what projections leave of the outer one. The identity is inner = factor * passed.
    """

    inner: Tensor
    outer: Tensor
    factor: Tensor
    passed: Tensor

    @property
    def error(self) -> float:
        """Largest violation of the identity over the channels, relative to the largest gradient."""
        return ((self.inner - self.factor * self.passed).abs().max() / self.inner.max()).item()

    @property
    def unprojected(self) -> float:
        """The same for inner = factor * outer, which forgets the projections."""
        return ((self.inner - self.factor * self.outer).abs().max() / self.inner.max()).item()


def balances(model: nn.Module, loss: Callable, linear: Iterable[str], norms: Iterable[str]) -> dict[str, Balance]:
    """The identity's terms of batch norms of (N, C), with `weight` and `bias`, each behind its linear layer."""
    linear, norms = list(linear), list(norms)
    seen, found = signals(model, loss, [*linear, *norms]), {}
    for before, name in zip(linear, norms, strict=True):
        norm, y, z = model.get_submodule(name), seen[before], seen[name]
        standardized = ((z.output - norm.bias) / norm.weight).detach()
        found[name] = Balance(
            inner=y.gradient.square().sum(0),
            outer=z.gradient.square().sum(0),
            factor=(norm.weight.square() / y.output.var(0, correction=0)).detach(),
            passed=passed_energy(z.gradient, standardized)[0],
        )
    return found


@torch.no_grad()
def _is_finite(model: nn.Module, loss: Callable) -> bool:
    with private_buffers(model):
        return loss(model).isfinite().item()


def _noise_changes(loss: Callable, noise: int) -> Callable:
    calls = iter([noise])

    def changing(model):
        draw_noise(model, next(calls, noise + 1))
        return loss(model)

    return changing
