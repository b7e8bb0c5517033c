"""Methods that center, or scale, or use another size than the standard deviation."""

import math

import torch

from .parts import affine, definition, mean, moved


@definition("MeanOnlyBatchNorm")
def mean_only_batch_norm(x, p, o, training, condition):
    """Subtract the channel's mean (Salimans & Kingma 2016, section 4)."""
    means = [mean(x[:, c]) if training else p["running_mean"][c] for c in range(x.shape[1])]
    y = torch.stack([x[:, c] - means[c] for c in range(x.shape[1])], 1)
    return affine(y, p), moved(p, o, mean=means) if training else {}


@definition("L1BatchNorm")
def l1_batch_norm(x, p, o, training, condition):
    """Divide by the mean absolute deviation (Wu et al. 2018), or by sqrt(pi/2) times it (Hoffer et al. 2018)."""
    out, means, deviations = [], [], []
    for c in range(x.shape[1]):
        mu = mean(x[:, c]) if training else p["running_mean"][c]
        s = mean((x[:, c] - mu).abs()) if training else p["running_deviation"][c]
        means.append(mu)
        deviations.append(s)
        out.append((x[:, c] - mu) / (s * (math.sqrt(math.pi / 2) if o["gaussian"] else 1) + o["eps"]))
    return affine(torch.stack(out, 1), p), moved(p, o, mean=means, deviation=deviations) if training else {}


def over_root_mean_square(values, estimated_from, o):
    """Values over the root mean square of some of them."""
    square = mean(estimated_from**2)
    eps = torch.finfo(values.dtype).eps if o["eps"] is None else o["eps"]
    return values / (square**0.5 + eps if o.get("eps_outside") else (square + eps) ** 0.5)


@definition("RMSNorm")
def rms_norm(x, p, o, training, condition):
    """Zhang & Sennrich 2019, equation 4, of samples or tokens; equation 7 estimates from the first channels."""
    first = x.shape[1] if o["p"] is None else int(o["p"] * x.shape[1])
    if o["channel_dim"] == -1:
        y = per_position(x, lambda v: over_root_mean_square(v, v[:first], o))
    else:
        y = torch.stack([over_root_mean_square(v, v[:first], o) for v in x])
    return affine(y, p), {}


@definition("PixelNorm")
def pixel_norm(x, p, o, training, condition):
    """Karras et al. 2018, section 4.2."""
    return per_position(x, lambda v: over_root_mean_square(v, v, o)), {}


def per_position(x, function):
    """Apply a function to the C values at each position of each sample of x (N, C, S)."""
    return torch.stack([torch.stack([function(v) for v in sample.unbind(1)], 1) for sample in x])
