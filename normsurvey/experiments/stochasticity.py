"""Noise of batch statistics: how large it is for each operation, and what it does to training and to predictions."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..analysis.stochasticity import (
    EstimationShift,
    batches_around,
    calibration_error,
    disturbance,
    estimation_shift,
    outputs_over_batches,
    predictions_over_batches,
)
from ..catalogue import create
from ..methods import BatchNorm
from ..notebook import progress
from ..procedures import PreciseBatchNorm
from . import classifiers as nets
from . import small_batch
from .data import digits, digits_on_photos

#: Layers whose noise is compared: id in the catalogue and options, from the least to the most disturbing.
KINDS = {
    "BatchNorm": ("BatchNorm", {}),
    "ZCA in groups of 4": ("DecorrelatedBatchNorm", {"group_size": 4}),
    "IterNorm": ("IterNorm", {"group_size": None}),
    "ZCA": ("DecorrelatedBatchNorm", {"group_size": None}),
    "Cholesky": ("CholeskyWhitening", {"group_size": None}),
    "PCA": ("PCAWhitening", {"group_size": None}),
}

# --- The noise of a layer -------------------------------------------------------------------------------


def layer(kind: str, features: int = 16, copies: int = 1, device="cpu") -> nn.Module:
    """A layer of :data:`KINDS` in float64, without parameters and with hardly any eps.

    Args:
        copies: layers side by side, in one for ``copies * features`` channels that does not mix them.
    """
    method_id, options = KINDS[kind]
    options = {name: size or features for name, size in options.items()}
    return create(method_id, copies * features, **options, affine=False, eps=1e-12, dtype=torch.float64, device=device)


def cloud(
    seed: int, count: int, features: int = 16, ratio: float = 1.0, probes: int = 5, device="cpu"
) -> tuple[Tensor, Tensor]:
    """Gaussian samples to fill batches with ``(count, features)``, and ``(probes, features)`` to be watched.

    Args:
        ratio: of the variances of successive features; 1 makes all directions alike.
    """
    random = torch.Generator().manual_seed(seed)
    deviations = ratio ** (-torch.arange(features, dtype=torch.float64) / 2)
    both = torch.randn(count + probes, features, generator=random, dtype=torch.float64) * deviations
    return both[probes:].to(device), both[:probes].to(device)


def outputs(kind: str, samples: Tensor, pool: Tensor, batch_size: int, *, draws: int, seed: int = 0) -> Tensor:
    """:func:`outputs_over_batches` of a :func:`layer`, ``(P, draws, d)``: all batches at once, in one wide layer."""
    batches = batches_around(samples.cpu(), pool.cpu(), batch_size, draws=draws, seed=seed)
    side_by_side = torch.stack(list(batches), 1).flatten(1).to(samples.device)  # (batch_size, P draws d)
    norm = layer(kind, samples.shape[1], draws * len(samples), samples.device)
    with torch.no_grad():
        return norm(side_by_side)[0].view(len(samples), draws, -1)


def disturbances(
    kind: str, seed: int, sizes: Sequence[int], *, draws: int = 30, count: int = 10_000, ratio: float = 1.0,
    probes: int = 5, device="cpu",
) -> dict[int, Tensor]:  # fmt: skip
    """Batch size -> disturbance of every probe of a :func:`cloud`, ``(probes,)`` on the CPU."""
    pool, samples = cloud(seed, count, ratio=ratio, probes=probes, device=device)
    return {size: disturbance(outputs(kind, samples, pool, size, draws=draws, seed=seed)).cpu() for size in sizes}


def predicted(kind: str, samples: Tensor, batch_size: int) -> Tensor:
    r"""First-order disturbance ``(P,)`` of standard Gaussian samples ``(P, d)``, root mean square.

    From :math:`\delta y = -\delta\mu - \Phi(\delta\Sigma)\,x`: the mean brings :math:`d / B`, symmetric whitening of a
    group of g features :math:`|x_g|^2 (g + 1) / 4B`, and Cholesky's :math:`\Phi`, the lower triangle with half the
    diagonal, :math:`\sum_i (\sum_{j<i} x_j^2 + x_i^2 / 2) / B`.

    Raises:
        ValueError: for a kind without such a formula.
    """
    d, squares = samples.shape[1], samples.square()
    group = {"BatchNorm": 1, "ZCA in groups of 4": 4, "ZCA": d}
    if kind == "Cholesky":
        turn = (squares.cumsum(1) - squares / 2).sum(1)
    elif kind in group:
        turn = squares.sum(1) * (group[kind] + 1) / 4
    else:
        raise ValueError(f"kind={kind!r} has no first-order formula: choose 'Cholesky' or one of {list(group)}")
    return ((d + turn) / batch_size).sqrt()


def slope(values: dict[int, Tensor]) -> float:
    """Least-squares slope of log(mean disturbance) in log(batch size)."""
    x = torch.tensor([math.log(size) for size in values], dtype=torch.float64)
    y = torch.stack([v.mean().double().log() for v in values.values()])
    x = x - x.mean()
    return (x @ y / (x @ x)).item()


def off_one(seed: int, positions: int = 1, channels: int = 200, device="cpu") -> float:
    """Largest distance of ``| y |`` from 1 where batch normalization, without eps, sees two Gaussian samples."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(2, channels, positions, generator=random, dtype=torch.float64).to(device)
    y = BatchNorm(channels, affine=False, eps=0.0, dtype=torch.float64, device=device)(x)
    return (y.abs() - 1).abs().max().item()


# --- Noise as a regularizer -----------------------------------------------------------------------------

#: Normalization batch -> ``"train"``, ``"test"`` -> ``"loss"``, ``"accuracy"`` -> one value for each seed.
Swept = dict[int, dict[str, dict[str, Tensor]]]


def scores(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Mean cross entropy and accuracy of R networks: logits ``(N, R, classes)``, labels ``(R, N)`` -> each ``(R,)``."""
    loss = F.cross_entropy(logits.permute(1, 2, 0), labels, reduction="none").mean(1)
    return {"loss": loss.cpu(), "accuracy": (logits.argmax(2).T == labels).double().mean(1).cpu()}


def sweep(
    sizes: Sequence[int], seeds: Sequence[int], *, images: int = 512, batch: int = 128, steps: int = 100,
    width: int = 128, lr: float = 0.1, device="cpu",
) -> Swept:  # fmt: skip
    """Perceptrons on few digits: SGD batch fixed, normalization batch varied -> ``"train"`` and ``"test"`` scores.

    Inference uses the statistics of all training images, normalized in training mode as they were in training.
    """
    x, y, x_test, y_test = small_batch.digits_for(seeds, device)
    data = x[:, :images], y[:, :images], x_test, y_test
    return _swept(
        sizes, seeds, lambda norm: small_batch.perceptrons(norm, seeds, width=width, depth=2), data,
        batch=batch, steps=steps, lr=lr,
    )  # fmt: skip


def photo_sweep(
    sizes: Sequence[int], seeds: Sequence[int], *, count: int = 4000, batch: int = 128, steps: int = 1000,
    channels: Sequence[int] = (32, 64, 128, 256), lr: float = 0.1, device="cpu",
) -> Swept:  # fmt: skip
    """The same for convolutional networks on digits on photographs, half of which are for training."""
    splits = [digits_on_photos(count, seed, test_size=0.5) for seed in seeds]
    data = [torch.stack(part).to(device) for part in zip(*splits, strict=True)]
    return _swept(
        sizes, seeds, lambda norm: convnets(channels, norm, seeds), data, batch=batch, steps=steps, lr=lr
    )  # fmt: skip


def convnets(channels: Sequence[int], norm: small_batch.Norms, seeds: Sequence[int]) -> nn.Sequential:
    """R networks of :func:`classifiers.convnet`, side by side: ``(B, R * 3 * 32 * 32)`` -> ``(B, R * 10)``."""
    networks, singles = len(seeds), [nets.convnet(channels, seed=seed, dtype=torch.float32) for seed in seeds]
    layers: list[nn.Module] = [nn.Unflatten(1, (networks * 3, 32, 32))]
    for k, (fan_in, fan_out) in enumerate(pairwise((3, *channels)), start=1):
        words = dict(stride=1 + (k > 1), padding=1, groups=networks, bias=False)
        conv = nn.Conv2d(networks * fan_in, networks * fan_out, 3, **words)
        conv.weight.data.copy_(torch.cat([getattr(single, f"conv{k}").weight for single in singles]))
        layers += [conv, norm(fan_out), nn.ReLU()]
    head = small_batch.Linears(channels[-1], 10, seeds)
    head.weight.data.copy_(torch.stack([single.head.weight.T for single in singles]))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)


def _swept(sizes, seeds, build: Callable[[small_batch.Norms], nn.Module], data, *, batch, steps, lr) -> Swept:
    x, y, x_test, y_test = data
    flat = {"train": (x.transpose(0, 1).flatten(1), y), "test": (x_test.transpose(0, 1).flatten(1), y_test)}
    known, found = flat["train"][0], {}
    for size in progress(sizes, "normalization batches"):
        model = build(small_batch.normalizer(f"BatchNorm {size}", len(seeds)))
        small_batch.train(model, (x, y), seeds, batch=batch, steps=steps, lr=lr, momentum=0.9)
        PreciseBatchNorm(model).update(list(known[: len(known) // batch * batch].split(batch)))
        model.eval()
        found[size] = {name: scores(_logits(model, *both), both[1]) for name, both in flat.items()}
    return found


@torch.no_grad()
def _logits(model: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    """``(N, R, classes)``, in parts that fit into memory."""
    return torch.cat([model(part) for part in x.split(512)]).unflatten(1, (len(labels), -1))


# --- Predictions ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trained:
    """A batch-normalized network on digits: model, training inputs, test inputs and labels."""

    model: nn.Module
    x: Tensor
    x_test: Tensor
    y_test: Tensor


def trained(
    seed: int, *, widths: Sequence[int] = (128, 128), batch: int = 64, steps: int = 300, lr: float = 0.1,
    momentum: float = 0.9, precise: bool = True, device="cpu",
) -> Trained:  # fmt: skip
    """A perceptron on all training digits, in inference mode, in float64 so that runs repeat on other machines.

    Args:
        precise: give it the statistics of all training images; else it keeps its running averages.
    """
    x, y, x_test, y_test = (t.to(device) for t in digits(seed, torch.float64))
    model = nets.mlp((64, *widths, 10), BatchNorm, seed=seed, dtype=x.dtype, device=device)
    nets.train(model, nets.batches((x, y), batch, seed), nets.sgd(model, lr, momentum=momentum), steps)
    if precise:
        PreciseBatchNorm(model).update([x])
    return Trained(model.eval(), x, x_test, y_test)


class Taps(nn.Module):
    """What every norm and the head of a perceptron put out, side by side: ``(N, d)`` -> ``(N, all features)``."""

    def __init__(self, model: nn.Sequential):
        super().__init__()
        self.model, self.widths = model, {}

    def forward(self, x: Tensor) -> Tensor:
        """Run the model once, and keep the width of every part."""
        found = []
        for name, module in self.model.named_children():
            x = module(x)
            if name.startswith(("norm", "head")):
                found.append(x)
                self.widths[name] = x.shape[1]
        return torch.cat(found, 1)


def along_depth(net: Trained, batch_size: int, *, probes: int = 5, draws: int = 30) -> dict[str, float]:
    """Disturbance of test inputs by training batches, over the size of the output, at every norm and at the head."""
    taps = Taps(net.model).train()
    out = outputs_over_batches(taps, net.x_test[:probes], net.x, batch_size, draws=draws)
    taps.eval()
    parts = out.split(list(taps.widths.values()), dim=2)
    return {
        name: (disturbance(part) / part.norm(dim=2).mean(1)).mean().item()
        for name, part in zip(taps.widths, parts, strict=True)
    }


def noisy(x: Tensor, sigma: float, seed: int, copies: int = 1) -> Tensor:
    """Images with Gaussian noise of deviation ``sigma``, in units of the deviation of all pixels.

    Args:
        copies: of all images, one after the other, each with noise of its own.
    """
    x = x.repeat(copies, 1)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x + sigma * noise.to(x)


def shuffled(x: Tensor, seed: int) -> Tensor:
    """Images whose pixels are permuted, all in the same way: digits no more, with the histogram of digits."""
    return x[:, torch.randperm(x.shape[1], generator=torch.Generator().manual_seed(seed)).to(x.device)]


@torch.no_grad()
def deterministic(net: Trained, x: Tensor) -> Tensor:
    """Class probabilities ``(N, 10)`` in inference."""
    return net.model(x).softmax(1)


def monte_carlo(net: Trained, x: Tensor, batch: int = 64, draws: int = 64, seed: int = 0) -> Tensor:
    """Class probabilities ``(draws, N, 10)`` with statistics of random training batches; average over the first."""
    return predictions_over_batches(net.model, x, net.x, batch, draws=draws, seed=seed).softmax(2)


def likelihood(probabilities: Tensor, labels: Tensor) -> float:
    """Mean negative log-likelihood, in nats."""
    return F.nll_loss(probabilities.clamp_min(1e-30).log(), labels).item()


def averaged(net: Trained, x: Tensor, labels: Tensor, batch: int = 64, draws: int = 64, seed: int = 0) -> float:
    """Negative log-likelihood of the average over training batches, over that with statistics of all of them."""
    average = monte_carlo(net, x, batch, draws, seed).mean(0)
    return likelihood(average, labels) / likelihood(deterministic(net, x), labels)


def entropy(probabilities: Tensor) -> Tensor:
    """Entropy ``(N,)`` in nats of probabilities ``(N, classes)``."""
    return -torch.xlogy(probabilities, probabilities).sum(1)


def detection(inside: Tensor, outside: Tensor) -> float:
    """Area under the ROC curve of a score that should be larger outside; ties count half."""
    ahead = (outside[:, None] > inside).double() + 0.5 * (outside[:, None] == inside).double()
    return ahead.mean().item()


@torch.no_grad()
def cooled(net: Trained, x: Tensor, confidence: float) -> tuple[Tensor, float]:
    """Probabilities with all logits divided by the one temperature that gives this mean confidence, and that."""
    logits = net.model(x).double()
    low, high = 0.01, 100.0
    for _ in range(60):
        middle = math.sqrt(low * high)
        sure = (logits / middle).softmax(1).amax(1).mean().item()
        low, high = (middle, high) if sure > confidence else (low, middle)
    return (logits / middle).softmax(1), middle


def large_rate(
    seed: int, *, lr: float = 1.0, depth: int = 4, width: int = 128, steps: int = 200, device="cpu"
) -> dict[str, tuple[float, float, list[EstimationShift]]]:
    """Likelihood, calibration error and estimation shifts after training at a large rate, before and after mending.

    ``"running averages"`` are torch's, with weight 0.1; ``"precise"`` those of the trained model on training images.
    """
    net = trained(seed, widths=(width,) * depth, steps=steps, lr=lr, precise=False, device=device)
    found = {}
    for name in ("running averages", "precise"):
        if name == "precise":
            PreciseBatchNorm(net.model).update(list(net.x[: len(net.x) // 64 * 64].split(64)))
        p = deterministic(net, net.x_test)
        shifts = list(estimation_shift(net.model, net.x).values())
        found[name] = likelihood(p, net.y_test), calibration_error(p, net.y_test), shifts
    return found
