"""Estimates that depend less on one small batch."""

import torch

from .parts import affine, definition, mean, moved, variance


def limits(o: dict) -> tuple[float, float]:
    """Limits of r and d at a step of 40000, Ioffe 2017, section 4: none until 5000, full at 40000 and 25000."""
    step = 40000 * o.get("progress", 1.0)
    if step < 5000:
        return 1.0, 0.0
    return 1 + (o["r_max"] - 1) * (step - 5000) / 35000, o["d_max"] * min((step - 5000) / 20000, 1.0)


@definition("BatchRenorm")
def batch_renorm(x, p, o, training, condition):
    """Ioffe 2017, algorithm 1; r and d are constants for the gradient."""
    out, means, deviations = [], [], []
    r_max, d_max = limits(o)
    for c in range(x.shape[1]):
        mu, sigma = p["running_mean"][c], p["running_var"][c] ** 0.5
        if not training:
            out.append((x[:, c] - mu) / sigma)
            continue
        var = variance(x[:, c])
        batch_mu, batch_sigma = mean(x[:, c]), var**0.5 + o["eps"] if o["eps_outside"] else (var + o["eps"]) ** 0.5
        r = (batch_sigma / sigma).detach().clamp(1 / r_max, r_max)
        d = ((batch_mu - mu) / sigma).detach().clamp(-d_max, d_max)
        out.append((x[:, c] - batch_mu) / batch_sigma * r + d)
        means.append(batch_mu)
        deviations.append(batch_sigma)
    y = affine(torch.stack(out, 1), p)
    if not training:
        return y, {}
    # the paper averages the deviation; the buffer holds its square
    buffers = moved(p | {"running_std": p["running_var"] ** 0.5}, o, mean=means, std=deviations)
    return y, buffers | {"running_var": buffers.pop("running_std") ** 2}
