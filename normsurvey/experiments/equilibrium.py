"""Weight decay against the growth of scale-invariant weights: many small networks, trained side by side.

An :class:`Ensemble` holds A arms (settings of the optimizer) of S members (seeds) and computes them in one pass:
a batched product for all linear layers, a grouped convolution, one norm over all channels. Members do not interact,
so each trains as it would alone, at a fraction of the overhead.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normsurvey.analysis.rotation import (
    Rotation,
    RotationTracker,
    equilibrium_angle,
    equilibrium_angle_adamw,
    equilibrium_norm,
    equilibrium_norm_adamw,
)
from normsurvey.experiments.auto_tuning import noisy_labels
from normsurvey.experiments.classifiers import Data, convnet, mlp
from normsurvey.notebook import progress


@dataclass(frozen=True)
class Arm:
    """How the weights in front of the norms are trained; `momentum` is Adam's beta1 where `optimizer` is "adamw"."""

    lr: float
    weight_decay: float
    momentum: float = 0.0
    optimizer: str = "sgd"

    def __post_init__(self):
        if self.optimizer not in ("sgd", "adamw"):
            raise ValueError(f"optimizer={self.optimizer!r} must be 'sgd' or 'adamw'")

    @property
    def angle(self) -> float:
        """The predicted angle per step, in radians."""
        predict = equilibrium_angle_adamw if self.optimizer == "adamw" else equilibrium_angle
        return predict(self.lr, self.weight_decay, self.momentum)

    def norm(self, gradient: Tensor, size: int) -> Tensor:
        """The predicted norm of a weight of `size` entries, `gradient` its gradient's rms at unit norm, (S,)."""
        if self.optimizer == "adamw":
            return torch.full_like(gradient, equilibrium_norm_adamw(self.lr, self.weight_decay, size))
        return equilibrium_norm(self.lr, self.weight_decay, gradient, self.momentum)


class Ensemble(nn.Module):
    """Sequential networks of one shape as one module, (N, S, ...) -> (N, classes, A * S), arm by arm.

    Weights in front of the norms are `weights.<arm>.<layer>` (S, ...), a parameter per arm, so that each can have its
    own optimizer. All other parameters are shared modules, or tensors (A * S, ...) in `others`.

    Args:
        arms: label of an arm -> its S members, as `classifiers.mlp` and `convnet` build them.
        norm: the factory that the members' norms were built with; statistics per channel, such as BatchNorm.
    """

    def __init__(self, arms: Mapping[str, Sequence[nn.Sequential]], norm: Callable[[int], nn.Module] | None = None):
        super().__init__()
        members = [member for arm in arms.values() for member in arm]
        self.size, self.layers = len(members), {}
        self.weights = nn.ModuleDict({label: nn.ParameterDict() for label in arms})
        self.others, self.norms = nn.ParameterDict(), nn.ModuleDict()
        for name, layer in members[0].named_children():
            weight = getattr(layer, "weight", None)
            if isinstance(layer, (nn.Linear, nn.Conv2d)):
                self._adopt(name, layer, arms, members)
            elif weight is not None:
                self.norms[name] = norm(self.size * len(weight)).to(weight)
            self.layers[name] = layer

    def _adopt(self, name: str, layer: nn.Module, arms: Mapping, members: Sequence) -> None:
        if name == "head":
            self.others["head_weight"] = _stacked(members, "head.weight")
        else:
            for label, arm in arms.items():
                self.weights[label][name] = _stacked(arm, f"{name}.weight")
        if layer.bias is not None:
            self.others[f"{name}_bias"] = _stacked(members, f"{name}.bias")

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, classes, A * S) of x (N, S, ...), every arm on the same batches."""
        x = x.repeat(1, self.size // x.shape[1], *[1] * (x.dim() - 2))
        x = x.flatten(1, 2) if x.dim() > 3 else x.permute(1, 2, 0).contiguous()  # (N, E c, h, w) or (E, c, N)
        for name, layer in self.layers.items():
            if name in self.norms:
                x = self.norms[name](x) if x.dim() > 3 else self.norms[name](x.flatten(0, 1)[None]).view_as(x)
            elif isinstance(layer, nn.Flatten):
                x = x.flatten(1).T.unflatten(0, (self.size, -1))
            elif isinstance(layer, (nn.Linear, nn.Conv2d)):
                x = self._multiplied(name, layer, x)
            else:
                x = layer(x)
        return x.permute(2, 1, 0)

    def only(self, labels: Sequence[str]) -> "Ensemble":
        """These arms, in the order that they have here, as an ensemble of their own with parameters of its own."""
        part, kept = copy.deepcopy(self), torch.tensor([label in labels for label in self.weights])
        part.size = self.size // len(kept) * int(kept.sum())
        part.weights = nn.ModuleDict({label: arm for label, arm in part.weights.items() if label in labels})
        for module in part.norms.values():
            module.num_features = module.num_features // len(kept) * int(kept.sum())
        for p in [*part.others.parameters(), *part.norms.parameters()]:
            p.data = p.data.unflatten(0, (len(kept), -1))[kept.to(p.device)].flatten(0, 1)
        return part

    def _multiplied(self, name: str, layer: nn.Module, x: Tensor) -> Tensor:
        arms = [arm[name] for arm in self.weights.values()] if name != "head" else [self.others["head_weight"]]
        weight = torch.cat(arms) if len(arms) > 1 else arms[0]
        bias = self.others[f"{name}_bias"] if f"{name}_bias" in self.others else None
        if isinstance(layer, nn.Linear):
            return weight @ x if bias is None else torch.baddbmm(bias[..., None], weight, x)
        bias = None if bias is None else bias.flatten()
        return F.conv2d(x, weight.flatten(0, 1), bias, layer.stride, layer.padding, groups=self.size)


@dataclass(frozen=True)
class Training:
    """`losses` (T, A, S) before each step; what each layer of each arm did: rotations[arm][layer], one row a seed."""

    losses: Tensor
    rotations: dict[str, dict[str, Rotation]]


def train_arms(
    ensemble: Ensemble, data: Iterator[Data], arms: Mapping[str, Arm], steps: int, *,
    rest_lr: float | None = 0.1, when: int | Callable[[int], bool] = 1, what: str = "training",
) -> Training:  # fmt: skip
    """Trains every arm as `arms` says, and records how its weights turn.

    Args:
        data: yields x (N, S, ...) and y (N, S), one batch per seed.
        rest_lr: SGD without decay trains head, biases and the norms' own parameters at this rate; None freezes them.
        when: which steps to record, as in `RotationTracker`.
        what: said of the progress at the full scale.
    """
    optimizers = _optimizers(ensemble, arms, rest_lr)
    names = {label: [f"weights.{label}.{name}" for name in ensemble.weights[label]] for label in arms}
    tracks = {
        label: RotationTracker(ensemble, optimizers[arms[label].optimizer], names[label], per="row", when=when)
        for label in arms
    }
    for track in tracks.values():
        track.__enter__()
    losses = []
    ensemble.train()
    for _ in progress(range(steps), what):
        x, y = next(data)
        logits = ensemble(x)
        loss = F.cross_entropy(logits, y.repeat(1, len(arms)), reduction="none").mean(0)  # (A * S,)
        ensemble.zero_grad()
        loss.sum().backward()
        for optimizer in optimizers.values():
            optimizer.step()
        losses.append(loss.detach())
    for track in tracks.values():
        track.__exit__()
    rotations = {label: {n.rpartition(".")[2]: r for n, r in track.items()} for label, track in tracks.items()}
    return Training(torch.stack(losses).cpu().unflatten(1, (len(arms), -1)), rotations)


def side_by_side(streams: Sequence[Iterator[Data]]) -> Iterator[Data]:
    """One batch of each stream at a time, stacked: x (N, S, ...), y (N, S)."""
    for several in zip(*streams, strict=True):
        x, y = zip(*several, strict=True)
        yield torch.stack(x, 1), torch.stack(y, 1)


def full_batches(data: Sequence[Data]) -> Iterator[Data]:
    """The same N samples of each seed for ever, stacked: full-batch gradient descent."""
    return repeat(next(side_by_side([iter([part]) for part in data])))


def noisy(data: Data, share: float = 0.2, seed: int = 0) -> Data:
    """The data with a share of the labels drawn anew, so that the gradient never vanishes."""
    return data[0], noisy_labels(data[1], share, seed=seed)


def population(
    arms: Iterable[str], norm: Callable[[int], nn.Module] | None, *, seeds: Iterable[int] = range(3),
    widths: Sequence[int] | None = None, channels: Sequence[int] | None = None,
    dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu",
) -> Ensemble:  # fmt: skip
    """An ensemble of perceptrons of these `widths`, or of convolutional networks of these `channels`.

    Seed s starts from the same weights in all arms.

    Raises:
        ValueError: both or neither of widths and channels are given.
    """
    if (widths is None) == (channels is None):
        raise ValueError(f"widths={widths} and channels={channels}: give one of them")
    build, shape = (mlp, widths) if channels is None else (convnet, channels)
    seeds = list(seeds)
    ensemble = Ensemble({label: [build(shape, norm, seed=s, dtype=dtype) for s in seeds] for label in arms}, norm)
    return ensemble.to(device)


def last_quarter(steps: int) -> Callable[[int], bool]:
    """Which of `steps` steps to record: the first 50, then every tenth, and all of the last quarter."""
    return lambda step: step < 50 or step % 10 == 0 or step >= steps - steps // 4


def ratios(training: Training, arms: Mapping[str, Arm], ensemble: Ensemble, steps: int) -> pd.DataFrame:
    """Measured over predicted, a row for each of these `arms`, layer and seed, in the last quarter of `steps` steps.

    Columns: arm, layer, seed; angle and norm measured, their predictions, and the ratios of the two; drift, the ratio
    of angles that SGD without momentum would have by the change of the norm alone.
    """
    rows = []
    for label in arms:
        for layer, whole in training.rotations[label].items():
            end, size = whole.last(steps // 4), ensemble.weights[label][layer][0].numel()
            norms = arms[label].norm(end.rms_gradient, size)
            measured = zip(end.rms_angle, end.rms_norm, norms, drifting(end, arms[label]), strict=True)
            for seed, (angle, norm, predicted, drift) in enumerate(measured):
                rows.append(
                    dict(arm=label, layer=layer, seed=seed, angle=angle.item(), predicted_angle=arms[label].angle,
                         norm=norm.item(), predicted_norm=predicted.item(), drift=drift.item())
                )  # fmt: skip
    table = pd.DataFrame(rows)
    return table.assign(angle_ratio=table.angle / table.predicted_angle, norm_ratio=table.norm / table.predicted_norm)


def drifting(rotation: Rotation, arm: Arm) -> Tensor:
    """Angle over sqrt(2 eta lambda) of a scale-invariant weight whose norm is not steady, under SGD, (S,).

    By orthogonality cos = (1 - eta lambda) r_t / r_(t+1); a norm that grows by a share d per step adds d to
    eta lambda. NaN for another optimizer.
    """
    if arm.optimizer != "sgd" or arm.momentum:
        return torch.full_like(rotation.norms[0], torch.nan)
    growth = (rotation.norms[-1] / rotation.norms[0]).log() / (rotation.steps[-1] - rotation.steps[0])
    return (1 + growth / (arm.lr * arm.weight_decay)).clamp_min(0).sqrt()


def waning(rotation: Rotation, steps: int, every: int = 10) -> Tensor:
    """Angle in the last quarter of `steps` steps over that in the first, (S,), of every tenth step.

    >>> quarters = torch.tensor([4.0, 3.0, 2.0, 1.0], dtype=torch.float64).repeat_interleave(10)[:, None]
    >>> waning(Rotation(torch.arange(40), *[quarters] * 4), 40).item()
    0.25
    """
    step, squares = rotation.steps, rotation.angles.square()
    first, last = ((step % every == 0) & part for part in (step < steps // 4, step >= steps - steps // 4))
    return (squares[last].mean(0) / squares[first].mean(0)).sqrt()


@torch.no_grad()
def settle(ensemble: Ensemble, arms: Mapping[str, Arm]) -> None:
    """Gives the weights of the AdamW arms their norm of equilibrium, which is known beforehand."""
    for label, arm in arms.items():
        if arm.optimizer == "adamw":
            for w in ensemble.weights[label].values():
                target = equilibrium_norm_adamw(arm.lr, arm.weight_decay, w[0].numel())
                w.mul_(target / w.flatten(1).norm(dim=1).view(-1, *[1] * (w.dim() - 1)))


@torch.no_grad()
def rescale(ensemble: Ensemble, arm: str, factors: Sequence[float] | Tensor | float) -> None:
    """Multiplies the weights of an arm by one factor, or by factors (layers, S)."""
    weights = list(ensemble.weights[arm].values())
    table = torch.as_tensor(factors, dtype=weights[0].dtype).expand(len(weights), len(weights[0]))
    for w, row in zip(weights, table, strict=True):
        w.mul_(row.to(w.device).view(-1, *[1] * (w.dim() - 1)))


@torch.no_grad()
def enlarge_head(ensemble: Ensemble, factor: float) -> None:
    """Multiplies the last layer of all members, so that a frozen one lets the loss come near zero."""
    ensemble.others["head_weight"].mul_(factor)


def count_cycles(losses: Tensor, low: float = 0.05, high: float = 0.5) -> int:
    """How often a curve (T,) that was below `low` rises above `high`.

    >>> count_cycles(torch.tensor([2.0, 0.01, 0.02, 3.0, 2.0, 0.2, 3.0, 0.04, 0.6]))
    2
    """
    count, learned = 0, False
    for value in losses.tolist():
        learned = learned or value < low
        if learned and value > high:
            count, learned = count + 1, False
    return count


def _stacked(members: Sequence[nn.Module], name: str) -> nn.Parameter:
    return nn.Parameter(torch.stack([m.get_parameter(name).detach() for m in members]))


def _optimizers(ensemble: Ensemble, arms: Mapping[str, Arm], rest_lr: float | None) -> dict[str, torch.optim.Optimizer]:
    groups = {"sgd": [], "adamw": []}
    for label, arm in arms.items():
        group = {"params": list(ensemble.weights[label].parameters()), "lr": arm.lr, "weight_decay": arm.weight_decay}
        group |= {"betas": (arm.momentum, 0.999)} if arm.optimizer == "adamw" else {"momentum": arm.momentum}
        groups[arm.optimizer].append(group)
    rest = [*ensemble.others.parameters(), *ensemble.norms.parameters()]
    for p in rest:
        p.requires_grad_(rest_lr is not None)
    if rest_lr is not None:
        groups["sgd"].append({"params": rest, "lr": rest_lr})
    kinds = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}
    return {kind: kinds[kind](several, fused=True) for kind, several in groups.items() if several}
