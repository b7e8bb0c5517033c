"""Covariances and spectra of real data, and the road that Newton's iteration takes to whitening."""

import torch

from ..operations import Whiten
from .data import digits, photo_patches
from .linear import LeastSquares

BLANK = 1e-3  # variance below which a pixel of the digits counts as blank


def covariance(x):
    """Covariance ``(d, d)`` of samples ``(N, d)``, divided by N."""
    centred = x - x.mean(0)
    return centred.T @ centred / len(x)


def condition_number(matrix):
    r"""Largest over smallest eigenvalue of a symmetric positive definite matrix, :math:`\kappa`."""
    values = torch.linalg.eigvalsh(matrix)
    return (values[-1] / values[0]).item()


def inked_pixels(x):
    """Which of the 64 pixels of the digits ``(N, 64)`` have a variance: a mask ``(64,)``.

    A pixel that is blank in every image has variance 0, and no operation can make that 1.
    """
    return x.var(0, correction=0) > BLANK


def real_samples(name, seed=0, device="cpu"):
    """Samples ``(N, d)`` in float64 with a covariance of full rank.

    ``"digits"`` are the training images without their blank pixels, d about 55; ``"patches"`` are 10 000 gray
    8 x 8 patches of photographs, d = 64. Another name raises ``ValueError``.
    """
    if name == "digits":
        x, *_ = digits(seed, dtype=torch.float64)
        x = x[:, inked_pixels(x)]
    elif name == "patches":
        x = photo_patches(8, seed=seed, grayscale=True, dtype=torch.float64).flatten(1)
    else:
        raise ValueError(f"name={name!r} is unknown: choose 'digits' or 'patches'")
    return x.to(device)


def newton_spectra(x, iterations=8):
    """Eigenvalues of the covariance after 0, 1, ... Newton iterations, ascending, ``(iterations + 1, d)``."""
    before, rows = covariance(x), []
    for steps in range(iterations + 1):
        matrix = Whiten("newton", eps=0.0, num_iterations=steps).matrix(before[None])[0]
        rows.append(torch.linalg.eigvalsh(matrix @ before @ matrix.T))
    return torch.stack(rows)


def newton_map(eigenvalue):
    r"""What one Newton iteration does to an eigenvalue of the covariance: :math:`s \mapsto \frac14 s (3 - s)^2`.

    With :math:`P` the current whitening matrix, all of one eigenbasis, :math:`s = \lambda p^2` and
    :math:`p \mapsto \frac12 p (3 - s)`.
    """
    return eigenvalue * (3 - eigenvalue) ** 2 / 4


def training_maps(x):
    """What each treatment does to a *new* image: ``name -> (location, matrix)``, estimated from ``x (N, d)``."""
    mean, cov = x.mean(0), covariance(x)
    eye = torch.eye(len(cov), dtype=cov.dtype, device=cov.device)
    return {
        "raw": (torch.zeros_like(mean), eye),
        "center": (mean, eye),
        "standardize": (mean, cov.diag().rsqrt().diag()),
        "whiten": (mean, Whiten("zca", eps=0.0).matrix(cov[None])[0]),
    }


def learn_parity(seed=0, steps=1000, device="cpu"):
    r"""Learn by least squares whether a digit is odd, by gradient descent with step :math:`1/\lambda_{max}`.

    Half of the images are for testing; every treatment is estimated from the other half.

    Returns:
        ``name -> (excess, error)``: relative excess training loss and test error, each ``(steps + 1,)``.
    """
    x, y, x_test, y_test = (t.to(device) for t in digits(seed, dtype=torch.float64, test_size=0.5))
    inked = inked_pixels(x)
    x, x_test = x[:, inked], x_test[:, inked]
    target, truth = (y % 2).double(), (y_test % 2).bool()
    curves = {}
    for name, (location, matrix) in training_maps(x).items():
        problem = LeastSquares((x - location) @ matrix.T, target - target.mean())
        path = problem.descend(steps, problem.step_size())
        guess = (x_test - location) @ matrix.T @ path.T + target.mean() > 0.5
        excess = problem.excess(path)
        curves[name] = excess / excess[0], (guess != truth[:, None]).double().mean(0)
    return curves
