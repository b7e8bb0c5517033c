"""What the gain gamma does to a backward signal: by quadrature, and in a recurrent net with batch normalization."""

import math

import numpy as np
import torch

import normsurvey as ns


def _gaussian_mean(function) -> float:
    # E f(z) for z ~ N(0, 1): Gauss-Hermite quadrature with 200 nodes
    nodes, weights = np.polynomial.hermite_e.hermegauss(200)
    return float((weights * function(nodes)).sum() / weights.sum())


def expected_gain(gamma: float) -> float:
    r""":math:`E[\tanh'(\gamma z)]` for a standard normal z.

    >>> round(expected_gain(0.1), 4), round(expected_gain(1.0), 4)
    (0.9902, 0.6057)
    """
    return _gaussian_mean(lambda z: 1 - np.tanh(gamma * z) ** 2)


def gradient_gain(gamma: float, fresh_input: bool) -> float:
    r"""Factor by which a gradient's norm changes per step back in time, in a wide tanh net with batch normalization.

    .. math:: h_{t+1} = \tanh(\gamma\,\mathrm{BN}(W h_t) + \gamma\,\mathrm{BN}(u_t)), \qquad
        \chi^{1/2} = \left(\frac{\gamma^2\,E[\tanh'(sz)^2]}{E[\tanh(sz)^2]}\right)^{1/2}

    with :math:`s = \gamma\sqrt 2` for an input that is fresh at every step and :math:`s = \gamma` for one that is the
    same for all sequences, which the norm removes. The denominator is the variance that the norm divides by.

    >>> round(gradient_gain(1.0, fresh_input=False), 4), round(gradient_gain(0.1, fresh_input=False), 4)
    (1.0853, 1.0001)

    Source: the argument of Yang et al., ICLR 2019, arXiv 1902.08129, for the gradients of deep networks.
    """
    s = gamma * (math.sqrt(2) if fresh_input else 1)
    slope = _gaussian_mean(lambda z: (1 - np.tanh(s * z) ** 2) ** 2)
    return gamma * math.sqrt(slope / _gaussian_mean(lambda z: np.tanh(s * z) ** 2))


def measured_gradient_gain(gamma: float, fresh_input: bool, seed: int, width=256, batch=256, steps=20) -> float:
    """The same factor measured at initialisation: orthogonal W, statistics per time step, a random gradient at the end.

    The first and the last four steps do not count.
    """
    random = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    weight = torch.linalg.qr(normal(width, width))[0]
    norms = [ns.BatchNorm(width, affine=False, dtype=torch.float64) for _ in range(2 * steps)]
    states = [normal(batch, width).requires_grad_()]
    for t in range(steps):
        z = norms[2 * t](states[-1] @ weight)
        if fresh_input:
            z = z + norms[2 * t + 1](normal(batch, width))
        states.append((gamma * z).tanh())
    gradients = torch.autograd.grad((states[-1] * normal(batch, width)).sum(), states)
    first, last = gradients[4].norm(), gradients[steps - 4].norm()
    return ((first / last) ** (1 / (steps - 8))).item()
