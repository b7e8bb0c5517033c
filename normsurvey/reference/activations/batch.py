"""Batch normalization, and the methods that change only where the batch is cut."""

import torch
from torch import Tensor

from .parts import affine, definition, mean, moved, variance


def by_batch(x: Tensor, p: dict, o: dict, training: bool) -> tuple[Tensor, dict]:
    """Each channel over batch and positions; the running variance divides by the number of values less one."""
    tracked = "running_mean" in p
    out, means, variances = [], [], []
    for c in range(x.shape[1]):
        if training or not tracked:
            mu, var = mean(x[:, c]), variance(x[:, c])
        else:
            mu, var = p["running_mean"][c], p["running_var"][c]
        if training:
            means.append(mu)
            variances.append(variance(x[:, c], 1))
        out.append((x[:, c] - mu) / (var + o["eps"]) ** 0.5)
    return torch.stack(out, 1), moved(p, o, mean=means, var=variances) if training and tracked else {}


@definition("BatchNorm")
def batch_norm(x, p, o, training, condition):
    """Ioffe & Szegedy 2015, algorithms 1 and 2."""
    y, buffers = by_batch(x, p, o, training)
    return affine(y, p), buffers


@definition("GhostBatchNorm")
def ghost_batch_norm(x, p, o, training, condition):
    """Consecutive parts of the batch, one after the other (Hoffer, Hubara & Soudry 2017, algorithm 1)."""
    if not training:
        return affine(by_batch(x, p, o, False)[0], p), {}
    out, buffers = [], {}
    for start in range(0, len(x), o["ghost_size"]):
        y, new = by_batch(x[start : start + o["ghost_size"]], p | buffers, o, True)
        out.append(y)
        buffers |= new
    return affine(torch.cat(out), p), buffers


@definition("ConditionalBatchNorm")
def conditional_batch_norm(x, p, o, training, condition):
    """Gains and biases by label (Miyato et al. 2018), or increments by two networks (de Vries et al. 2017)."""
    y, buffers = by_batch(x, p, o, training)

    def network(name, e):
        hidden = (p[f"{name}.0.weight"] @ e + p[f"{name}.0.bias"]).clamp(min=0)
        return p[f"{name}.2.weight"] @ hidden + p[f"{name}.2.bias"]

    out = []
    for n in range(len(x)):
        if o["num_classes"] is not None:
            gain, bias = p["weight"][int(condition[n])], p["bias"][int(condition[n])]
        else:
            gain = p["weight"] + network("gain_net", condition[n])
            bias = p["bias"] + network("bias_net", condition[n])
        out.append(torch.stack([gain[c] * y[n, c] + bias[c] for c in range(x.shape[1])]))
    return torch.stack(out), buffers
