"""A network at every learning rate, to its limit and beyond: which rates work, and how an explosion looks inside."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

import torch
from torch import Tensor, nn

from normsurvey.analysis import gradient, signals
from normsurvey.experiments.banks import Bank, stacked, streams
from normsurvey.experiments.classifiers import Data, accuracy, cross_entropy, hidden_weights, train
from normsurvey.notebook import progress


def sweep(
    network: Callable[[int], nn.Module], data: Mapping[int, Data], tests: Mapping[int, Data], lrs: Sequence[float], *,
    steps: int = 200, looks: int = 1, apart: int = 10, momentum: float = 0.9, batch_size: int = 128,
    hopeless: float = math.inf, what: str = "sweep",
) -> dict[tuple[int, float], float]:  # fmt: skip
    """Test accuracy in eval mode after training each seed at each learning rate, 0 for runs that ended before.

    Args:
        hopeless: a loss above this half-way ends a run, as one that is not finite does.
        looks: accuracy is the mean of so many looks, `apart` steps from one to the next, the last after the last step.

    Returns:
        (seed, learning rate) -> accuracy.
    """
    members = [(seed, lr) for seed in data for lr in lrs]
    bank = Bank([network(seed) for seed, _ in members], [lr for _, lr in members], momentum)
    seen, looked_at = {member: [] for member in members}, range(steps, steps - apart * looks, -apart)
    for step, drawn in enumerate(progress(streams(data, batch_size, steps), what, steps), start=1):
        losses = bank.step(*stacked(drawn, [members[k][0] for k in bank.alive]))
        bank.keep(losses.isfinite() & (losses < (hopeless if step == steps // 2 else math.inf)))
        if not bank.alive:
            break
        if step in looked_at:
            for k, model in bank.write().items():
                seen[members[k]].append(accuracy(model.eval(), tests[members[k][0]]))
    return {member: mean(values) if len(values) == looks else 0.0 for member, values in seen.items()}


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


def _rms(x: Tensor) -> float:
    return x.double().square().mean().sqrt().item()
