r"""The noise that a batch brings into each of its samples, and what can be done with it in inference.

A layer that normalizes over the batch maps a sample $x$ to $y(x; B)$, which depends on the others in its batch $B$.
Drawing these others anew makes $y$ a random variable. Its mean distance from its average,

$$ \Delta(x) = \mathbb{E}_B \big\| y(x; B) - \mathbb{E}_B\, y(x; B) \big\|_2 , $$

is the stochastic normalization disturbance (Huang et al., CVPR 2019, arXiv 1904.03441, and CVPR 2020, arXiv
2003.12327). Inference replaces the batch by fixed numbers. How wrong these are is the estimation shift (Huang et al.,
CVPR 2022, arXiv 2203.10778); drawing them from batches of training data instead, and averaging the predictions, is
Monte Carlo batch normalization (Teye, Azizpour and Smith, ICML 2018, arXiv 1802.06455).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from normsurvey.analysis.curvature import private_buffers
from normsurvey.procedures.base import watched
from normsurvey.procedures.batchnorms import batch_norms, channels_second
from normsurvey.procedures.precise import PreciseBatchNorm


@torch.no_grad()
def outputs_over_batches(
    module: nn.Module, samples: Tensor, pool: Tensor, batch_size: int, *, draws: int = 100, seed: int = 0
) -> Tensor:
    """What the module makes of each sample in `draws` mini-batches that hold it.

    The other batch_size - 1 members are drawn from `pool` without replacement, anew for each sample; modules called
    with the same seed meet the same batches. The module runs in the mode that it is in, and its buffers stay as they
    are.

    Args:
        module: maps (batch_size, ...) to (batch_size, ...): a layer or a whole network.
        samples: (P, ...), the fixed ones.
        pool: (N, ...), where the rest of a batch comes from; must not hold the samples.
        batch_size: samples in a batch, the fixed one included.

    Returns:
        (P, draws, ...), the first row of each output.

    Raises:
        ValueError: batch_size is below 1 or needs more than the pool has, or draws is below 1.

    >>> outputs_over_batches(nn.Identity(), torch.ones(3, 2), torch.zeros(9, 2), 4, draws=5).shape
    torch.Size([3, 5, 2])
    """
    batches = batches_around(samples, pool, batch_size, draws=draws, seed=seed)
    with private_buffers(module):
        rows = [module(batch)[0] for batch in batches]
    return torch.stack(rows).unflatten(0, (len(samples), draws))


def batches_around(samples: Tensor, pool: Tensor, batch_size: int, *, draws: int, seed: int = 0) -> Iterator[Tensor]:
    """The mini-batches of `outputs_over_batches`, (batch_size, ...) each: all draws of a sample, then the next sample.

    The sample comes first in its batch.

    Raises:
        ValueError: as for `outputs_over_batches`, at once.
    """
    if not 1 <= batch_size <= len(pool) + 1:
        raise ValueError(
            f"batch_size={batch_size} must be between 1 and {len(pool) + 1}, one more than the pool; enlarge the pool"
        )
    if draws < 1:
        raise ValueError(f"draws={draws} must be at least 1")
    others = _draws(pool, batch_size - 1, draws * len(samples), seed)
    return (torch.cat([sample[None], next(others)]) for sample in samples for _ in range(draws))


def disturbance(outputs: Tensor) -> Tensor:
    r"""Mean distance of a sample's outputs from their average: :math:`\Delta(x)` of the module's text, estimated.

    The average is that of the same draws, so that s draws see a share of about :math:`\sqrt{1 - 1/s}` of it.

    Args:
        outputs: (P, draws, ...) from `outputs_over_batches`.

    Returns:
        (P,), in units of the outputs.

    Raises:
        ValueError: there are fewer than two draws.

    >>> disturbance(torch.tensor([[[3.0, 4.0], [-3.0, -4.0]], [[1.0, 1.0], [1.0, 1.0]]]))
    tensor([5., 0.])
    """
    if outputs.dim() < 2 or outputs.shape[1] < 2:
        raise ValueError(f"outputs has shape {tuple(outputs.shape)}; expected (P, draws, ...) with two draws or more")
    flat = outputs.flatten(2) if outputs.dim() > 2 else outputs[..., None]
    return (flat - flat.mean(1, keepdim=True)).norm(dim=2).mean(1)


@torch.no_grad()
def predictions_over_batches(
    model: nn.Module, x: Tensor, pool: Tensor, batch_size: int, *, draws: int = 32, seed: int = 0
) -> Tensor:
    """What the model says of x when its batch statistics are those of random mini-batches of `pool`.

    For each draw one mini-batch passes the model with the batch normalizations in train mode and everything else in
    inference; then x passes with the statistics of that mini-batch (biased variances, as in training). No row of x
    takes part in a statistic. Softmax and average over draws give Monte Carlo batch normalization. Modes and buffers
    of the model are left as they were.

    Args:
        model: has batch normalizations, torch's or of this package, with running statistics.
        x: (N, ...), inputs to be predicted.
        pool: (M, ...), training inputs.
        batch_size: samples in a mini-batch, that of training.

    Returns:
        (draws, N, ...), the model's outputs.

    Raises:
        ValueError: batch_size exceeds the pool, draws is below 1, or the model has no batch normalization.

    Source: Teye, Azizpour and Smith, ICML 2018, arXiv 1802.06455, algorithm 1.
    """
    if not 1 <= batch_size <= len(pool):
        raise ValueError(f"batch_size={batch_size} must be between 1 and the {len(pool)} samples of the pool")
    if draws < 1:
        raise ValueError(f"draws={draws} must be at least 1")
    found = []
    with private_buffers(model), _inference(model):
        statistics = PreciseBatchNorm(model)
        for batch in _draws(pool, batch_size, draws, seed):
            statistics.reset()
            statistics.update([batch])
            found.append(model(x))
    return torch.stack(found)


@dataclass(frozen=True)
class EstimationShift:
    """Estimation shift of one batch normalization: root mean squares over its channels.

    Attributes:
        mean: of (estimated - expected mean) / expected deviation.
        std: of log(estimated / expected deviation).
    """

    mean: float
    std: float


@torch.no_grad()
def estimation_shift(model: nn.Module, x: Tensor, layers: Iterable[str] | None = None) -> dict[str, EstimationShift]:
    """How far the statistics that each batch normalization keeps are from those it meets in inference on x.

    The expected statistics of a layer are the moments of its input while the model runs in inference, so that the
    shift of earlier layers counts. Zero means that every channel comes out centred and of unit variance. A channel
    that is constant on x has no expected deviation and is left out.

    Args:
        model: has batch normalizations, torch's or of this package, with running statistics.
        x: (N, ...), a large sample, since its own noise counts too.
        layers: names of batch normalizations; all if None.

    Returns:
        name -> `EstimationShift`, in the model's order.

    Raises:
        ValueError: the model has no batch normalization, a name is none, or all channels of one are constant.

    Source: Huang et al., CVPR 2022, arXiv 2203.10778, who measure plain differences; here in units of the deviation.
    """
    named, found = batch_norms(model, layers), {}

    def see(name: str, layer: nn.Module, inputs: Tensor) -> None:
        values = channels_second(layer, inputs).movedim(1, 0).flatten(1).double()  # (C, values)
        var, mean = torch.var_mean(values, 1, correction=0)
        alive = var > 0
        if not alive.any():
            raise ValueError(f"layer {name!r} receives constants on x: pass a sample that varies")
        error = (layer.running_mean.double() - mean)[alive] / var[alive].sqrt()
        ratio = (layer.running_var.double()[alive] / var[alive]).log() / 2
        found[name] = EstimationShift(error.square().mean().sqrt().item(), ratio.square().mean().sqrt().item())

    with private_buffers(model), _inference(model), watched(model, named, see):
        model(x)
    return found


def reliability(probabilities: Tensor, labels: Tensor, bins: int = 15) -> tuple[Tensor, Tensor, Tensor]:
    """Confidence, accuracy and share of samples in equal bins of confidence, the largest probability.

    Args:
        probabilities: (N, classes), rows summing to 1.
        labels: (N,).
        bins: equal intervals of (0, 1].

    Returns:
        Three tensors (bins,) in float64; an empty bin has zeros.

    Raises:
        ValueError: shapes do not fit, rows are no probabilities, or bins is below 1.
    """
    if probabilities.dim() != 2 or labels.shape != probabilities.shape[:1]:
        raise ValueError(
            f"probabilities has shape {tuple(probabilities.shape)} and labels {tuple(labels.shape)}; "
            "expected (N, classes) and (N,)"
        )
    p = probabilities.double()
    if p.min() < 0 or (p.sum(1) - 1).abs().max() > 1e-4:
        raise ValueError("probabilities must be non-negative with rows that sum to 1; apply softmax to logits first")
    if bins < 1:
        raise ValueError(f"bins={bins} must be at least 1")
    confidence, said = p.max(1)
    index = (confidence * bins).ceil().long().sub(1).clamp(0, bins - 1)
    count, sure, right = (
        torch.zeros(bins, dtype=torch.float64, device=p.device).index_add(0, index, values)
        for values in (torch.ones_like(confidence), confidence, (said == labels).double())
    )
    return sure / count.clamp_min(1), right / count.clamp_min(1), count / len(p)


def calibration_error(probabilities: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Expected calibration error: mean gap of confidence and accuracy over bins, weighted by their samples.

    Takes and raises what `reliability` does. Biased upwards in small samples: a perfect model does not get 0.

    Source: Naeini, Cooper and Hauskrecht, AAAI 2015; Guo et al., ICML 2017, arXiv 1706.04599, equation 3.

    >>> p = torch.tensor([[0.75, 0.25]] * 4)
    >>> calibration_error(p, torch.tensor([0, 0, 0, 1])), calibration_error(p, torch.tensor([0, 0, 0, 0]))
    (0.0, 0.25)
    """
    confidence, accuracy, share = reliability(probabilities, labels, bins)
    return ((confidence - accuracy).abs() * share).sum().item()


def _draws(pool: Tensor, size: int, draws: int, seed: int) -> Iterator[Tensor]:
    random = torch.Generator().manual_seed(seed)
    for _ in range(draws):
        yield pool[torch.randperm(len(pool), generator=random)[:size].to(pool.device)]


class _inference:
    """Inference mode for the model, and the modes of before when done."""

    def __init__(self, model: nn.Module):
        self.model = model

    def __enter__(self):
        self.modes = {m: m.training for m in self.model.modules()}
        self.model.eval()

    def __exit__(self, *_):
        for module, mode in self.modes.items():
            module.training = mode
