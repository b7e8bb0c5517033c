r"""One Lanczos run gives both the top eigenvalues, with error bounds, and the whole spectral density.

From a start $q_1$, $m$ products build an orthonormal basis $Q$ (D, m) with $Q^\top H Q = T$ tridiagonal. With
$T = S \Theta S^\top$ and $\beta_m$ the norm of the last remainder:

$$ \theta_i \approx \lambda_i, \quad \|H Q s_i - \theta_i Q s_i\| = \beta_m |S_{mi}|, \quad
   \frac{1}{D}\sum_j \delta(\lambda - \lambda_j) \approx
   \mathbb{E}_{q_1} \sum_i S_{1i}^2\, \delta(\lambda - \theta_i) $$

the last being stochastic Lanczos quadrature (Ubaru, Chen, Saad 2017; for networks Ghorbani, Krishnan, Xiao,
ICML 2019, arXiv 1901.10159).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Spectrum:
    """Ritz pairs of one Lanczos run of m steps, largest first.

    Attributes:
        values: (m,) Ritz values.
        residuals: (m,) norms of H v - value v; an eigenvalue lies within that distance.
        weights: (m,) quadrature weights, summing to 1.
        vectors: (D, m) orthonormal Ritz vectors.
    """

    values: Tensor
    residuals: Tensor
    weights: Tensor
    vectors: Tensor


def lanczos(operator, num_steps: int = 64, *, start: Tensor | None = None, seed: int = 0) -> Spectrum:
    """Runs Lanczos with full reorthogonalisation; stops early where the start spans an invariant subspace.

    Args:
        operator: symmetric, with `.shape` (D, D) and `operator @ v`: a `Hessian` or a matrix.
        num_steps: products to spend, at most D are used. A multiple eigenvalue is found once.
        start: (D,) first direction; a Gaussian one drawn from `seed` if None, which the density needs.

    Raises:
        ValueError: num_steps is not positive, or start is zero.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps={num_steps} must be at least 1")
    q = _start_vector(operator, seed) if start is None else start / start.norm()
    if not q.isfinite().all():
        raise ValueError("start must be finite and not zero")
    num_steps = min(num_steps, operator.shape[0])
    basis = q.new_empty(num_steps, len(q))
    alpha, beta = q.new_empty(num_steps), q.new_empty(num_steps)
    for k in range(num_steps):
        basis[k] = q
        known = basis[: k + 1]
        remainder = operator @ q
        alpha[k] = remainder @ q
        for _ in range(2):  # one pass leaves rounding of the size of eps * cond; two are enough
            remainder = remainder - known.T @ (known @ remainder)
        beta[k] = remainder.norm()
        if beta[k] <= 100 * torch.finfo(q.dtype).eps * (alpha[: k + 1].abs().max() + beta[: k + 1].max()):
            break
        q = remainder / beta[k]
    return _ritz_pairs(known, alpha[: k + 1], beta[: k + 1])


def spectral_density(spectra: Spectrum | Sequence[Spectrum], grid: Tensor, width: float) -> Tensor:
    """The density on `grid`, each Ritz value a Gaussian of standard deviation `width`, averaged over runs.

    Integrates to 1 over all eigenvalues; one eigenvalue among D contributes 1 / D.
    """
    spectra = [spectra] if isinstance(spectra, Spectrum) else list(spectra)
    values = torch.cat([s.values for s in spectra])
    weights = torch.cat([s.weights for s in spectra]) / len(spectra)
    bumps = torch.exp(-0.5 * ((grid[:, None] - values) / width) ** 2) / (width * math.sqrt(2 * math.pi))
    return bumps @ weights


def gradient_energy(gradient: Tensor, vectors: Tensor) -> Tensor:
    r"""Share of $\|g\|^2$ in the span of the first k of `vectors` (D, K), orthonormal, for k = 1..K."""
    return ((vectors.T @ gradient) ** 2).cumsum(0) / gradient.square().sum()


def _start_vector(operator, seed: int) -> Tensor:
    like = getattr(operator, "point", operator)
    q = torch.randn(operator.shape[0], generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (q / q.norm()).to(device=like.device, dtype=like.dtype)


def _ritz_pairs(basis: Tensor, diagonal: Tensor, off_diagonal: Tensor) -> Spectrum:
    tridiagonal = torch.diag(diagonal) + torch.diag(off_diagonal[:-1], 1) + torch.diag(off_diagonal[:-1], -1)
    values, rotation = torch.linalg.eigh(tridiagonal)
    values, rotation = values.flip(0), rotation.flip(1)
    return Spectrum(
        values=values,
        residuals=off_diagonal[-1] * rotation[-1].abs(),
        weights=rotation[0] ** 2,
        vectors=basis.T @ rotation,
    )
