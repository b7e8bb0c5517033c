"""Standardizing over other areas: samples, tokens, groups, instances, positions, blocks."""

import torch

from .operation import per_position
from .parts import affine, definition, mean, moved, standardized, variance


@definition("LayerNorm")
def layer_norm(x, p, o, training, condition):
    """A whole sample, or with the channels last every token (Ba, Kiros & Hinton 2016, equations 3 and 4)."""
    if o["channel_dim"] == -1:
        y = per_position(x, lambda values: standardized(values, o))
    else:
        y = torch.stack([standardized(sample, o) for sample in x])
    return affine(y, p), {}


@definition("GroupNorm")
def group_norm(x, p, o, training, condition):
    """Groups of consecutive channels of a sample (Wu & He 2018, equations 1, 2 and 7)."""
    y = torch.stack([torch.cat([standardized(g, o) for g in sample.chunk(o["num_groups"])]) for sample in x])
    return affine(y, p), {}


@definition("InstanceNorm")
def instance_norm(x, p, o, training, condition):
    """Every channel of every sample (Ulyanov et al. 2016).

    Running averages are those of torch: of the means and unbiased variances, averaged over the batch. Torch
    does not count these batches; a cumulative average, which torch does not have, does.
    """
    if not o["track_running_stats"]:
        return affine(torch.stack([torch.stack([standardized(v, o) for v in sample]) for sample in x]), p), {}
    out = []
    for sample in x:
        mu, var = [mean(v) for v in sample], [variance(v) for v in sample]
        if not training:
            mu, var = p["running_mean"], p["running_var"]
        out.append(torch.stack([(v - mu[c]) / (var[c] + o["eps"]) ** 0.5 for c, v in enumerate(sample)]))
    if not training:
        return affine(torch.stack(out), p), {}
    channels = x.unbind(1)
    buffers = moved(
        p, o, mean=[sum(mean(v) for v in channel) / len(x) for channel in channels],
        var=[sum(variance(v, 1) for v in channel) / len(x) for channel in channels],
    )  # fmt: skip
    if o["momentum"] is not None:
        del buffers["num_batches_tracked"]
    return affine(torch.stack(out), p), buffers


@definition("PositionalNorm")
def positional_norm(x, p, o, training, condition):
    """The channels at every position (Li et al. 2019, equations 1 to 3)."""
    return affine(per_position(x, lambda values: standardized(values, o)), p), {}


@definition("BatchGroupNorm")
def batch_group_norm(x, p, o, training, condition):
    """Blocks of samples and channels; inference pools running moments E[x], E[x^2] (Summers & Dinneen 2020)."""
    size = x.shape[1] // o["num_groups"]
    ghost = min(o["ghost_size"] or len(x), len(x))
    if training:
        y = torch.cat(
            [torch.cat([standardized(g, o) for g in block.split(size, 1)], 1) for block in x.split(ghost)]
        )
        first = torch.stack([mean(x[:, c]) for c in range(x.shape[1])])
        second = torch.stack([mean(x[:, c] ** 2) for c in range(x.shape[1])])
        stored = p | {"running_first": p["running_mean"], "running_second": p["running_var"] + p["running_mean"] ** 2}
        new = moved(stored, o, first=first, second=second)
        m1, m2 = new.pop("running_first"), new.pop("running_second")
        return affine(y, p), new | {"running_mean": m1, "running_var": m2 - m1**2}
    out, w = [], o["example_weight"]
    for sample in x:
        groups = []
        for start in range(0, x.shape[1], size):
            g, mu, var = (t[start : start + size] for t in (sample, p["running_mean"], p["running_var"]))
            m1 = (1 - w) * mean(mu) + w * mean(g)
            m2 = (1 - w) * mean(var + mu**2) + w * mean(g**2)
            groups.append((g - m1) / (m2 - m1**2 + o["eps"]) ** 0.5)
        out.append(torch.cat(groups))
    return affine(torch.stack(out), p), {}
