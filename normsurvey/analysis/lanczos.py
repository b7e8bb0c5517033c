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
        operator: symmetric, with `.shape` (D, D) and `operator @ v`: a `CurvatureOperator` or a matrix.
        num_steps: products to spend, at most D are used. A multiple eigenvalue is found once.
        start: (D,) first direction; a Gaussian one drawn from `seed` if None, which the density needs.

    Raises:
        ValueError: num_steps is not positive, or start is zero.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps={num_steps} must be at least 1")
    krylov = Krylov(operator, random_vector(operator, seed) if start is None else start, num_steps)
    krylov.grow(num_steps)
    values, residuals, rotation = krylov.ritz()
    vectors = krylov.vectors(rotation)
    return Spectrum(values.to(vectors), residuals.to(vectors), (rotation[0] ** 2).to(vectors), vectors)


class Krylov:
    """An orthonormal basis of span(q, A q, A^2 q, ...), grown product by product.

    The basis is kept in float64, 8 D bytes a step, whatever the precision of the products: sums over many parameters
    in float32 would cost the eigenvalues two digits.

    Args:
        operator: symmetric, with `.shape` (D, D) and `operator @ v`.
        start: (D,) q, of any length but zero, in the precision of the operator.
        capacity: steps to make room for.
        against: (k, D) orthonormal rows to stay orthogonal to, that is to deflate.
    """

    def __init__(self, operator, start: Tensor, capacity: int, against: Tensor | None = None):
        self._dtype, start = start.dtype, start.double()
        if against is not None:
            against = against.double()
            start = start - against.T @ (against @ start)
        q = start / start.norm()
        if not q.isfinite().all():
            raise ValueError("start must be finite and not zero")
        self._operator, self._next, self._against = operator, q, against
        capacity = min(capacity, operator.shape[0] - (0 if against is None else len(against)))
        self._basis = q.new_empty(capacity, len(q))  # memory is taken as it is filled
        self._alpha, self._beta = q.new_empty(capacity), q.new_empty(capacity)
        self.steps, self.exhausted = 0, False

    @property
    def basis(self) -> Tensor:
        """(m, D), orthonormal rows, float64."""
        return self._basis[: self.steps]

    def grow(self, steps: int) -> None:
        """Up to that many more products; fewer where the basis spans an invariant subspace (`exhausted`)."""
        for _ in range(min(steps, len(self._basis) - self.steps)):
            if self.exhausted:
                return
            self._step()

    def restart(self, start: Tensor) -> bool:
        """Goes on from another direction after exhaustion: finds multiple eigenvalues. False if none is left."""
        start = start.double()
        for _ in range(2):
            start = self._orthogonal(start / start.norm())
        if self.steps == len(self._basis) or not start.norm() > torch.finfo(self._dtype).eps ** 0.5:
            return False
        self._beta[self.steps - 1] = 0
        self._next, self.exhausted = start / start.norm(), False
        return True

    def ritz(self) -> tuple[Tensor, Tensor, Tensor]:
        """Values (m,), largest first, residuals (m,) and rotation (m, m) of the basis; float64, on the CPU."""
        alpha, beta = (t[: self.steps].cpu() for t in (self._alpha, self._beta))
        tridiagonal = torch.diag(alpha) + torch.diag(beta[:-1], 1) + torch.diag(beta[:-1], -1)
        values, rotation = torch.linalg.eigh(tridiagonal)
        return values.flip(0), beta[-1] * rotation[-1].abs().flip(0), rotation.flip(1)

    def vectors(self, rotation: Tensor) -> Tensor:
        """Ritz vectors (D, k) for k columns of `ritz`'s rotation, in the operator's precision."""
        return (self.basis.T @ rotation.to(self.basis)).to(self._dtype)

    def _step(self) -> None:
        k, q = self.steps, self._next
        self._basis[k], self.steps = q, k + 1
        remainder = (self._operator @ q.to(self._dtype)).double()
        self._alpha[k] = remainder @ q
        remainder = remainder - self._alpha[k] * q
        if k:
            remainder -= self._beta[k - 1] * self._basis[k - 1]
        before = remainder.norm()
        remainder = self._orthogonal(remainder)
        if remainder.norm() < 0.7 * before:  # cancellation: the first pass left rounding behind
            remainder = self._orthogonal(remainder)
        self._beta[k] = remainder.norm()
        scale = self._alpha[: k + 1].abs().max() + self._beta[: k + 1].max()
        self.exhausted = bool(self._beta[k] <= 100 * torch.finfo(self._dtype).eps * scale)
        self._next = remainder / self._beta[k]

    def _orthogonal(self, vector: Tensor) -> Tensor:
        known = [self.basis] if self._against is None else [self.basis, self._against]
        for rows in known:
            vector = vector - rows.T @ (rows @ vector)
        return vector


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
    r"""Share of :math:`\|g\|^2` in the span of the first k of `vectors` (D, K), orthonormal, for k = 1..K."""
    return ((vectors.T @ gradient) ** 2).cumsum(0) / gradient.square().sum()


def random_vector(operator, seed: int) -> Tensor:
    """A direction (D,) drawn uniformly, of unit length, where and in which precision the operator works."""
    like = getattr(operator, "point", operator)
    q = torch.randn(operator.shape[0], generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (q / q.norm()).to(device=like.device, dtype=like.dtype)
