"""Multilayer perceptrons with an optional normalizer, and one plain training loop.

Everything is determined by the seeds: initialisation, order of the mini-batches, nothing else is random.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normsurvey.analysis import private_buffers

# (x, y): inputs (N, d) and class labels (N,)
Data = tuple[Tensor, Tensor]


def mlp(
    widths: Sequence[int],
    norm: Callable[[int], nn.Module] | None = None,
    *,
    gain: float = math.sqrt(2),
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> nn.Sequential:
    """Linear -> norm -> ReLU for each hidden width, then a linear head.

    Modules are called linear1, norm1, relu1, ..., head. Hidden weights start with He's variance 2 / d_in;
    a hidden layer has a bias only where no norm follows, since a norm that centres takes it out again.

    Args:
        widths: (d_in, hidden widths ..., num_classes).
        norm: maps a width to a module on (N, width); None for a plain network.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for k, (fan_in, fan_out) in enumerate(pairwise(widths[:-1]), start=1):
        layers[f"linear{k}"] = _linear(fan_in, fan_out, gain=gain, bias=norm is None, random=_random(seed, k))
        if norm is not None:
            layers[f"norm{k}"] = norm(fan_out)
        layers[f"relu{k}"] = nn.ReLU()
    layers["head"] = _linear(widths[-2], widths[-1], gain=1.0, bias=True, random=_random(seed, len(widths) - 1))
    return nn.Sequential(layers).to(device=device, dtype=dtype)


def convnet(
    channels: Sequence[int] = (32, 64, 128),
    norm: Callable[[int], nn.Module] | None = None,
    *,
    in_channels: int = 3,
    classes: int = 10,
    gain: float = math.sqrt(2),
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> nn.Sequential:
    """Convolution 3 x 3 -> norm -> ReLU for each number of channels, then the average over positions and a linear head.

    Modules are called conv1, norm1, relu1, ..., pool, flat, head. From the second on a convolution halves the image;
    biases and initial weights are as in :func:`mlp`.

    Args:
        norm: maps a number of channels to a module on (N, C, H, W); None for a plain network.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for k, (fan_in, fan_out) in enumerate(pairwise((in_channels, *channels)), start=1):
        conv = nn.Conv2d(fan_in, fan_out, 3, stride=1 + (k > 1), padding=1, bias=norm is None, dtype=torch.float64)
        layers[f"conv{k}"] = _started(conv, gain, _random(seed, k))
        if norm is not None:
            layers[f"norm{k}"] = norm(fan_out)
        layers[f"relu{k}"] = nn.ReLU()
    layers["pool"], layers["flat"] = nn.AdaptiveAvgPool2d(1), nn.Flatten()
    layers["head"] = _linear(channels[-1], classes, gain=1.0, bias=True, random=_random(seed, len(channels) + 1))
    return nn.Sequential(layers).to(device=device, dtype=dtype)


def hidden_weights(model: nn.Module) -> list[str]:
    """Names of the weights in front of the norms: all linear layers and convolutions but the head."""
    weighty = (nn.Linear, nn.Conv2d)
    return [f"{name}.weight" for name, m in model.named_modules() if isinstance(m, weighty) and name != "head"]


def cross_entropy(data: Data) -> Callable[[nn.Module], Tensor]:
    """The closure `loss(model)`: mean cross entropy on data (x, y), in nats."""
    x, y = data
    return lambda model: F.cross_entropy(model(x), y)


@torch.no_grad()
def accuracy(model: nn.Module, data: Data) -> float:
    """Share of (x, y) classified correctly, in the mode that the model is in."""
    x, y = data
    return (model(x).argmax(1) == y).double().mean().item()


def batches(data: Data, batch_size: int, seed: int = 0) -> Iterator[Data]:
    """Mini-batches without end: every epoch is a new permutation, its incomplete last batch dropped.

    Raises:
        ValueError: batch_size exceeds the number of samples.
    """
    x, y = data
    if not 0 < batch_size <= len(x):
        raise ValueError(f"batch_size={batch_size} must be between 1 and the {len(x)} samples")
    random = torch.Generator().manual_seed(seed)
    while True:
        for index in torch.randperm(len(x), generator=random).to(x.device).split(batch_size):
            if len(index) == batch_size:
                yield x[index], y[index]


def sgd(
    model: nn.Module,
    lr: float,
    *,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    decayed: Iterable[str] | None = None,
) -> torch.optim.SGD:
    """Torch's SGD with weight decay on the parameters named `decayed` alone.

    They form the first group, the others, which have none, the second.

    Raises:
        ValueError: a name in `decayed` is no parameter of the model.
    """
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    decayed = list(parameters) if decayed is None else list(decayed)
    if unknown := [name for name in decayed if name not in parameters]:
        raise ValueError(f"decayed={unknown} are no trainable parameters of the model; it has {list(parameters)}")
    groups = [
        {"params": [parameters[name] for name in decayed], "weight_decay": weight_decay},
        {"params": [p for name, p in parameters.items() if name not in decayed]},
    ]
    return torch.optim.SGD([group for group in groups if group["params"]], lr=lr, momentum=momentum)


def train(
    model: nn.Module,
    data: Iterator[Data],
    optimizer: torch.optim.Optimizer,
    steps: int,
    *,
    before_step: Callable[[int], None] | None = None,
) -> Tensor:
    """Takes `steps` steps in train mode; returns the loss before each, (steps,) on the CPU.

    Args:
        data: one mini-batch per step is drawn from it.
        before_step: called with the step's number between backward and step; for schedules and probes.
    """
    model.train()
    losses = []
    for t, batch in zip(range(steps), data, strict=False):
        optimizer.zero_grad()
        loss = cross_entropy(batch)(model)
        loss.backward()
        if before_step is not None:
            before_step(t)
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses).cpu() if losses else torch.empty(0)


def passing(
    model: nn.Module,
    data: Data,
    levels: Iterable[float],
    batch: Iterator[Data],
    optimizer: torch.optim.Optimizer,
    max_steps: int = 5000,
) -> Iterator[tuple[float, int]]:
    """Trains and yields (level, steps taken) where the loss on all of `data`, in train mode, is first below a level.

    Networks that learn at different speeds are compared at equal loss this way; an infinite level yields the start.

    Args:
        levels: losses in falling order.

    Raises:
        RuntimeError: a level is not reached in `max_steps` steps.
    """
    levels, steps = list(levels), 0
    model.train()
    while levels:
        with torch.no_grad(), private_buffers(model):
            value = cross_entropy(data)(model).item()
        while levels and value < levels[0]:
            yield levels.pop(0), steps
        if levels and steps == max_steps:
            raise RuntimeError(
                f"loss {value:.3g} is not below {levels[0]} after max_steps={max_steps}; raise one of them"
            )
        if levels:
            train(model, batch, optimizer, 1)
            steps += 1


def _random(seed: int, layer: int) -> torch.Generator:
    # one stream per layer: networks with and without norms start from the same weights
    return torch.Generator().manual_seed(1000 * seed + layer)


def _linear(fan_in: int, fan_out: int, *, gain: float, bias: bool, random: torch.Generator) -> nn.Linear:
    return _started(nn.Linear(fan_in, fan_out, bias=bias, dtype=torch.float64), gain, random)


def _started(layer: nn.Linear | nn.Conv2d, gain: float, random: torch.Generator) -> nn.Linear | nn.Conv2d:
    """The layer with Gaussian weights of variance gain^2 / d_in, and a bias of zero where it has one."""
    with torch.no_grad():
        weight = torch.randn(layer.weight.shape, generator=random, dtype=torch.float64)
        layer.weight.copy_(weight * gain / math.sqrt(layer.weight[0].numel()))
        if layer.bias is not None:
            layer.bias.zero_()
    return layer
