"""Mixtures of the statistics of several areas."""

import torch
from torch import Tensor

from .parts import affine, definition, mean, moved, variance


def softmax(logits: Tensor) -> Tensor:
    """Positive weights that sum to one."""
    return logits.exp() / logits.exp().sum()


def pooled(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Mean and variance of equally many values with these means and variances: E[v + m^2] - E[m]^2."""
    mu = sum(m for m, _ in parts) / len(parts)
    return mu, sum(v + (m - mu) ** 2 for m, v in parts) / len(parts)


def mixed_statistics(x: Tensor, correction: int) -> tuple[list, list, list]:
    """Instance (N x C), layer (N) and batch (C) statistics, the larger areas pooled from the instances.

    Without positions there are no instances: statistics are taken of the values directly.
    """
    if x.shape[2] == 1:
        layer, batch = ([(mean(v), variance(v, correction)) for v in values] for values in (x, x.unbind(1)))
        return [], layer, batch
    instance = [[(mean(v), variance(v, correction)) for v in sample] for sample in x]
    return instance, [pooled(row) for row in instance], [pooled(column) for column in zip(*instance, strict=True)]


@definition("SwitchableNorm")
def switchable_norm(x, p, o, training, condition):
    """Luo et al. 2019, equations 3 to 5."""
    instance, layer, batch = mixed_statistics(x, o["correction"])
    buffers = {}
    if o["use_batch"]:
        if training:
            buffers = moved(p, o, mean=[m for m, _ in batch], var=[v for _, v in batch])
        else:
            batch = list(zip(p["running_mean"], p["running_var"], strict=True))
    used = ([0] if instance else []) + [1] + ([2] if o["use_batch"] else [])
    w, u = softmax(p["mean_weight"][used]), softmax(p["var_weight"][used])
    out = []
    for n, sample in enumerate(x):
        for c, values in enumerate(sample):
            parts = ([instance[n][c]] if instance else []) + [layer[n]] + ([batch[c]] if o["use_batch"] else [])
            mu = sum(w[k] * m for k, (m, _) in enumerate(parts))
            var = sum(u[k] * v for k, (_, v) in enumerate(parts))
            out.append((values - mu) / (var + o["eps"]) ** 0.5)
    return affine(torch.stack(out).reshape(x.shape), p), buffers
