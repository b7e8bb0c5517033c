"""Gains and biases that come from outside."""

import torch
from torch import Tensor

from .parts import definition, flat, mean, variance


@definition("AdaIN")
def adain(x, p, o, training, condition):
    """The mean and deviation of a style (Huang & Belongie 2017, equations 8 and 14), or given ones (MUNIT, 2018)."""

    def deviation(values):
        return (variance(values, o["correction"]) + o["eps"]) ** 0.5

    if isinstance(condition, Tensor):
        style = flat(condition)
        mu = [[mean(values) for values in sample] for sample in style]
        sigma = [[deviation(values) for values in sample] for sample in style]
    else:
        mu, sigma = condition
    out = []
    for n in range(len(x)):
        for c, values in enumerate(x[n]):
            y = sigma[n][c] * (values - mean(values)) / deviation(values) + mu[n][c]
            out.append((1 - o["alpha"]) * values + o["alpha"] * y)
    return torch.stack(out).reshape(x.shape), {}
