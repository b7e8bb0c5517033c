"""Two networks at one learning rate, probed as they train; and one network at every learning rate, to its limit.

Comparisons of many seeds and learning rates are cheap where the networks have one shape: a `Bank` trains them side by
side, as `torch.func.vmap` of one step.
"""

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, stack_module_state, vmap
from torch.nn import functional as F

from normsurvey.analysis import (
    GradientProbe,
    covariate_shift,
    gradient,
    passed_energy,
    private_buffers,
    probe_gradient,
    signals,
)
from normsurvey.experiments.classifiers import Data, accuracy, batches, cross_entropy, hidden_weights, train
from normsurvey.experiments.data import digits, digits_on_photos
from normsurvey.notebook import progress

MULTIPLES = (0.5, 1.0, 2.0, 4.0)


def images(
    name: str, seed: int, *, width: int = 64, depth: int = 8, count: int = 10_000, device: torch.device | str = "cpu"
) -> tuple[Data, Data]:
    """Training and test images as vectors, float32: "digits" (N, 64), or "photos", colour digits on photos (N, 3072).

    Photos are multiplied by one number. A plain network's curvature grows with the squared lengths of its layers'
    inputs; in one of this width and depth they add up to what they are for digits, so that rates can be compared.
    """
    if name == "digits":
        parts = digits(seed)
    else:
        x, y, x_test, y_test = digits_on_photos(count, seed)
        factor = math.sqrt(64 * depth / (x[0].numel() + (depth - 1) * width))
        parts = factor * x.flatten(1), y, factor * x_test.flatten(1), y_test
    x, y, x_test, y_test = (part.to(device) for part in parts)
    return (x, y), (x_test, y_test)


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


class Bank:
    """Networks of one shape that train side by side in train mode, each at its own learning rate, by SGD.

    Args:
        models: the members, equal but for their values; they are written to by `write` alone.
        lrs: one learning rate per member.
    """

    def __init__(self, models: Sequence[nn.Module], lrs: Sequence[float], momentum: float = 0.0):
        self.models, self.momentum = list(models), momentum
        parameters, self.buffers = stack_module_state(self.models)
        self.parameters = {name: p.detach() for name, p in parameters.items()}
        self.velocity = {name: torch.zeros_like(p) for name, p in self.parameters.items()}
        self.lrs = torch.tensor(list(lrs), dtype=torch.float64).to(next(iter(self.parameters.values())))
        self.alive = list(range(len(self.models)))  # members that still train, in the order of the stacked tensors
        base = copy.deepcopy(self.models[0]).train()

        def loss(parameters, buffers, x, y):
            return F.cross_entropy(functional_call(base, (parameters, buffers), (x,)), y)

        self._gradients = vmap(grad_and_value(loss))

    @torch.no_grad()
    def step(self, x: Tensor, y: Tensor) -> Tensor:
        """One step of each living member on its own batch, x (A, N, ...) and y (A, N); returns their losses (A,)."""
        gradients, losses = self._gradients(self.parameters, self.buffers, x, y)
        for name, p in self.parameters.items():
            v = self.velocity[name].mul_(self.momentum).add_(gradients[name])
            p.sub_(self.lrs.view(-1, *[1] * (p.dim() - 1)) * v)
        return losses

    def keep(self, mask: Tensor) -> None:
        """Ends the training of members where mask (A,) is False."""
        if mask.all():
            return
        self.alive = [member for member, kept in zip(self.alive, mask.tolist(), strict=True) if kept]
        self.lrs = self.lrs[mask]
        for part in (self.parameters, self.buffers, self.velocity):
            part.update({name: t[mask] for name, t in part.items()})

    @torch.no_grad()
    def write(self) -> dict[int, nn.Module]:
        """Writes the living members' values into their modules; returns these by number."""
        for k, member in enumerate(self.alive):
            for name, p in self.models[member].named_parameters():
                p.copy_(self.parameters[name][k])
            for name, b in self.models[member].named_buffers():
                b.copy_(self.buffers[name][k])
        return {member: self.models[member] for member in self.alive}


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
    steps: int = 100, every: int = 10, batch_size: int = 128, shift_at: Sequence[float] = (), what: str = "probes",
) -> list[Moment]:  # fmt: skip
    """Trains by plain SGD, each seed at each learning rate, and probes at `MULTIPLES` of it on the coming batch.

    Args:
        network: maps a seed to a model. data: training data of each seed.
        shift_at: learning rates at which the covariate shift is measured too, of all hidden weights but the first.
    """
    members, moments = [(seed, lr) for seed in data for lr in lrs], []
    bank = Bank([network(seed) for seed, _ in members], [lr for _, lr in members])
    for step, drawn in enumerate(progress(_streams(data, batch_size, steps), what, steps)):
        if step % every == 0:
            for member, model in bank.write().items():
                seed, lr = members[member]
                loss = cross_entropy(drawn[seed])
                if not _is_finite(model, loss):
                    continue
                probe = probe_gradient(model, loss, [lr * m for m in MULTIPLES])
                cosine = mean_cosine(model, loss, lr) if lr in shift_at else float("nan")
                moments.append(Moment(seed, lr, step, probe, cosine))
        bank.keep(bank.step(*_stacked(drawn, [members[k][0] for k in bank.alive])).isfinite())
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


def sweep(
    network: Callable[[int], nn.Module], data: Mapping[int, Data], tests: Mapping[int, Data], lrs: Sequence[float], *,
    steps: int = 200, momentum: float = 0.9, batch_size: int = 128, what: str = "sweep",
) -> dict[tuple[int, float], float]:  # fmt: skip
    """Test accuracy in eval mode after training each seed at each learning rate, 0 where the loss was not finite.

    Returns:
        (seed, learning rate) -> accuracy.
    """
    members = [(seed, lr) for seed in data for lr in lrs]
    bank = Bank([network(seed) for seed, _ in members], [lr for _, lr in members], momentum)
    for drawn in progress(_streams(data, batch_size, steps), what, steps):
        bank.keep(bank.step(*_stacked(drawn, [members[k][0] for k in bank.alive])).isfinite())
        if not bank.alive:
            break
    reached = {members[k]: accuracy(model.eval(), tests[members[k][0]]) for k, model in bank.write().items()}
    return {member: reached.get(member, 0.0) for member in members}


def largest_working(accuracies: Mapping[float, float], threshold: float = 0.9) -> float:
    """The largest learning rate whose accuracy exceeds the threshold; NaN if none does.

    >>> largest_working({0.1: 0.95, 1.0: 0.97, 10.0: 0.1})
    1.0
    """
    return max((lr for lr, value in accuracies.items() if value > threshold), default=float("nan"))


@dataclass(frozen=True)
class Anatomy:
    """Root mean squares per step and layer, (T, L), of `outputs` and of the `gradients` at them; `losses` (T,)."""

    losses: Tensor
    outputs: Tensor
    gradients: Tensor


def anatomy(model: nn.Module, data: Iterator[Data], lr: float, steps: int = 10, momentum: float = 0.9) -> Anatomy:
    """Trains at a learning rate that may be too large, up to the last step whose loss is finite."""
    names = [name.removesuffix(".weight") for name in hidden_weights(model)]
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum)
    rows, losses = [], []
    model.train()
    for _, batch in zip(range(steps), data, strict=False):
        loss = cross_entropy(batch)
        seen = signals(model, loss, names).values()
        value = train(model, iter([batch]), optimizer, 1)
        if not value.isfinite():
            break
        rows.append([[_rms(s.output), _rms(s.gradient)] for s in seen])
        losses.append(value.item())
    outputs, gradients = torch.tensor(rows, dtype=torch.float64).unbind(-1)
    return Anatomy(torch.tensor(losses, dtype=torch.float64), outputs, gradients)


def middle_gradient(model: nn.Module, data: Data) -> Tensor:
    """The gradient of the weight in the middle of the hidden ones, flat."""
    names = hidden_weights(model)
    return gradient(model.train(), cross_entropy(data), [names[len(names) // 2]])


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


def _streams(data: Mapping[int, Data], batch_size: int, steps: int) -> Iterator[dict[int, Data]]:
    streams = {seed: batches(part, batch_size, seed) for seed, part in data.items()}
    for _ in range(steps):
        yield {seed: next(stream) for seed, stream in streams.items()}


def _stacked(drawn: Mapping[int, Data], seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
    return tuple(torch.stack([drawn[seed][part] for seed in seeds]) for part in (0, 1))


def _noise_changes(loss: Callable, noise: int) -> Callable:
    calls = iter([noise])

    def changing(model):
        draw_noise(model, next(calls, noise + 1))
        return loss(model)

    return changing


def _rms(x: Tensor) -> float:
    return x.double().square().mean().sqrt().item()
