"""Batch normalization's statistics over time: measured per step, pooled over the steps, and put to use."""

import copy
from typing import NamedTuple

import torch
from torch import Tensor

from .lstm import LSTM, PerStep
from .tasks import Batch
from .training import network_losses


class Moments(NamedTuple):
    """Mean and biased variance of one normalized term per step, (T, R, C), over ``count`` (T,) sequences."""

    mean: Tensor
    var: Tensor
    count: Tensor


@torch.no_grad()
def moments(model: LSTM, batch: Batch) -> dict[str, Moments]:
    """The batch statistics that a forward pass in training mode uses, per step, for the terms x, h and c.

    Over the whole training set these are the population statistics.
    """
    seen: dict[str, list] = {}
    hooks = [
        module.register_forward_pre_hook(lambda _, args, key=name[-1]: seen.setdefault(key, []).append(_moments(*args)))
        for name, module in model.named_children()
        if isinstance(module, PerStep)
    ]
    try:
        copy_ = copy.deepcopy(model)  # running buffers of the model stay as they are
        copy_.train()(batch.x, batch.mask)
    finally:
        for hook in hooks:
            hook.remove()
    return {key: Moments(*map(torch.stack, zip(*steps, strict=True))) for key, steps in seen.items()}


def _moments(x: Tensor, t: int, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    x = x if mask is None else x[mask]
    return x.mean(0), x.var(0, correction=0), torch.tensor(float(len(x)))


def pooled(steps: dict[str, Moments]) -> dict[str, Moments]:
    """One statistic for all steps: the mean, and by the law of total variance the variance within plus between."""
    out = {}
    for key, (mean, var, count) in steps.items():
        share = (count / count.sum()).view(-1, 1, 1).to(mean)
        total = (share * mean).sum(0)
        spread = (share * (var + (mean - total).square())).sum(0)
        out[key] = Moments(total.expand_as(mean), spread.expand_as(var), count)
    return out


def with_statistics(model: LSTM, steps: dict[str, Moments]) -> LSTM:
    """A copy in inference mode whose norms hold these statistics."""
    model = copy.deepcopy(model).eval()
    for key, (mean, var, _) in steps.items():
        for t, norm in enumerate(getattr(model, f"norm_{key}").steps):
            norm.running_mean.copy_(mean[t].flatten())
            norm.running_var.copy_(var[t].flatten())
    return model


def mismatch(used: dict[str, Moments], seen: dict[str, Moments], eps: float = 1e-5) -> Tensor:
    r"""How far statistics that are used are from those that are seen, for each network (R,).

    .. math:: \mathrm{mean}\
        \left|\log\frac{\sigma^2_{\text{seen}} + \epsilon}{\sigma^2_{\text{used}} + \epsilon}\right|

    over the steps, the units and the terms h and c.
    """
    parts = [((seen[k].var + eps) / (used[k].var + eps)).log().abs().flatten(2).mean((0, 2)) for k in "hc"]
    return torch.stack(parts).mean(0)


@torch.no_grad()
def held_out_losses(
    model: LSTM, population: dict[str, Moments], test: Batch, every_step: bool, size: int
) -> dict[str, Tensor]:
    """Held-out loss (R,), in nats, with three kinds of statistics.

    ``"batch"``: training mode, statistics of test batches of ``size`` sequences; ``"per step"``: inference with the
    statistics of the population at each step; ``"pooled"``: inference with those of all steps together.
    """
    batches = [subset(test, k, size) for k in range(0, test.x.shape[1] - size + 1, size)]
    training = copy.deepcopy(model).train()
    return {
        "batch": torch.stack([network_losses(training, batch, every_step) for batch in batches]).mean(0),
        "per step": network_losses(with_statistics(model, population), test, every_step),
        "pooled": network_losses(with_statistics(model, pooled(population)), test, every_step),
    }


def subset(batch: Batch, start: int, size: int) -> Batch:
    """``size`` sequences of a batch, from ``start`` on."""
    part = slice(start, start + size)
    y = batch.y[:, part] if batch.y.dim() == 3 else batch.y[part]
    return Batch(batch.x[:, part], y, None if batch.mask is None else batch.mask[:, part])
