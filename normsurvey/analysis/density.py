r"""Top eigenvalues and the spectral density from one Lanczos run, each with its error.

A run from a random start $q$ ends in Ritz values $\theta_i$ with weights $w_i$. Those that have converged are
eigenvalues, and each is 1/D of the spectrum, whatever weight the start happened to give it: they become atoms.
The others stand for the remaining d = D - k eigenvalues, and their weights are scaled to d/D. This *deflation*
costs nothing, and takes the outliers, which dominate every moment, out of the lottery. What is left is a mean over
a random direction,

$$ \hat m = \sum_i w_i f(\theta_i), \qquad \operatorname{Var} \hat m = \frac{2}{d + 2}
   \Big(\tfrac1d \textstyle\sum_j f(\lambda_j)^2 - \big(\tfrac1d \sum_j f(\lambda_j)\big)^2\Big) $$

for a direction uniform on the sphere, so that even one run knows its standard error.
Stochastic Lanczos quadrature: Ubaru, Chen and Saad, SIAM J. Matrix Anal. 38, 2017; deflation: Gambhir, Stathopoulos
and Orginos, SIAM J. Sci. Comput. 39, 2017, arXiv 1603.05988.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from normsurvey.analysis.lanczos import Krylov, random_vector
from normsurvey.analysis.products import Estimate


@dataclass(frozen=True)
class Density:
    """A spectrum of D eigenvalues: k of them known, the other d = D - k by a quadrature (float64, on the CPU).

    Attributes:
        atoms: (k,) eigenvalues, each with mass 1 / D.
        nodes: (m,) nodes of the quadrature, of all probes one after the other.
        weights: (m,) their masses, summing to d / D.
        size: D. probes: random directions in the quadrature.
    """

    atoms: Tensor
    nodes: Tensor
    weights: Tensor
    size: int
    probes: int

    def moments(self, count: int = 4) -> Estimate:
        r""":math:`\frac1D \sum_j \lambda_j^p` for p = 1..count, (count,), with standard errors.

        D times the first is the trace.
        """
        powers = torch.arange(1, count + 1, dtype=torch.float64)
        return self.mean(lambda values: values[:, None] ** powers)

    def mean(self, function) -> Estimate:
        """The mean of `function` over the spectrum; it maps eigenvalues (m,) to (m,) or (m, ...)."""
        atoms, nodes = (function(values).double() for values in (self.atoms, self.nodes))
        rest = self.size - len(self.atoms)
        if rest == 0:
            return Estimate(atoms.sum(0) / self.size, torch.zeros_like(atoms.sum(0)))
        share = self.weights * self.size / rest  # (m,), summing to 1
        first = torch.tensordot(share, nodes, 1)
        # a node stands for one eigenvalue at least, however little weight the direction gave it
        second = torch.tensordot(share.clamp_min(1 / (rest * self.probes)), nodes**2, 1)
        variance = 2 / (rest + 2) * (second - first**2).clamp_min(0) / self.probes
        return Estimate((atoms.sum(0) + rest * first) / self.size, rest / self.size * variance.sqrt())

    def on(self, grid: Tensor, width: float) -> Tensor:
        """The density at the points of `grid` (G,), every eigenvalue a Gaussian of standard deviation `width`."""
        values, masses = self._all(grid.device)
        bumps = torch.exp(-0.5 * ((grid.double()[:, None] - values) / width) ** 2) / (width * math.sqrt(2 * math.pi))
        return bumps @ masses

    def distance(self, eigenvalues: Tensor) -> float:
        """Wasserstein-1 distance to a spectrum given one by one, the area between the two distribution functions."""
        values, masses = self._all("cpu")
        others = eigenvalues.detach().double().cpu()
        points, order = torch.cat([values, others]).sort()
        step = torch.cat([masses, torch.full_like(others, -1 / len(others))])[order].cumsum(0)
        return (step[:-1].abs() * points.diff()).sum().item()

    def _all(self, device) -> tuple[Tensor, Tensor]:
        masses = torch.cat([torch.full_like(self.atoms, 1 / self.size), self.weights])
        return torch.cat([self.atoms, self.nodes]).to(device), masses.to(device)


@dataclass(frozen=True)
class TopEigenvalues:
    """What `top_eigenvalues` found, in one run.

    Attributes:
        values: (k,) eigenvalues, largest first. errors: (k,) bounds on their errors, with an allowance for rounding.
        vectors: (D, k) orthonormal eigenvectors.
        density: the whole spectrum. products: spent on all of it.
    """

    values: Tensor
    errors: Tensor
    vectors: Tensor
    density: Density
    products: int


def top_eigenvalues(
    operator,
    k: int = 10,
    tolerance: float = 1e-6,
    *,
    min_steps: int = 64,
    max_steps: int = 300,
    probes: int = 1,
    seed: int = 0,
) -> TopEigenvalues:
    """The k largest eigenvalues and the density of the whole spectrum, from one Lanczos run.

    Args:
        operator: symmetric, with `.shape` (D, D) and `operator @ v`: a `CurvatureOperator` or a matrix.
        k: eigenvalues to find, at most D.
        tolerance: on the bound of each one's error, relative to the eigenvalue itself.
        min_steps: products to spend on the first run at least; more of them deflate more of the density.
        max_steps: products after which the run gives up.
        probes: random directions in the density. Each further one is a run of its own, as long as the first and
            orthogonal to the eigenvectors that it found; errors of moments fall as the square root of their number.
        seed: of the directions.

    Raises:
        ValueError: k, tolerance or probes are out of range.
        RuntimeError: not converged in max_steps.

    >>> found = top_eigenvalues(torch.diag(torch.arange(100.0)), k=2, tolerance=1e-5)
    >>> found.values.round(decimals=3)
    tensor([99., 98.], dtype=torch.float64)
    """
    start = random_vector(operator, seed)
    _check(k, tolerance, probes, operator.shape[0], start.dtype)
    krylov = Krylov(operator, start, max_steps)
    values, errors, residuals, rotation = _grow_until(krylov, operator, max(k, min_steps), k, tolerance, seed)
    known = _isolated(values, residuals, rotation, operator.shape[0])
    atoms, found = values[known], krylov.vectors(rotation[:, known])
    runs, products = [(values[~known], rotation[0, ~known] ** 2)], krylov.steps
    for probe in range(1, probes):
        other = Krylov(operator, random_vector(operator, seed + 7919 * probe), krylov.steps, against=found.T)
        other.grow(krylov.steps)
        theta, _, turn = other.ritz()
        runs.append((theta, turn[0] ** 2))
        products += other.steps
    errors = errors[:k] + 8 * torch.finfo(start.dtype).eps * values.abs().max()
    return TopEigenvalues(
        values[:k], errors, krylov.vectors(rotation[:, :k]), _density(atoms, runs, operator.shape[0]), products
    )


def _check(k: int, tolerance: float, probes: int, size: int, dtype: torch.dtype) -> None:
    if not 1 <= k <= size:
        raise ValueError(f"k={k} must be between 1 and the {size} eigenvalues")
    if probes < 1:
        raise ValueError(f"probes={probes} must be at least 1")
    if tolerance < 4 * torch.finfo(dtype).eps:
        raise ValueError(f"tolerance={tolerance} is below the rounding of {dtype}; use float64, or 1e-6 in float32")


def _grow_until(krylov: Krylov, operator, steps: int, k: int, tolerance: float, seed: int):
    """Grows the basis until k values have converged; values, error bounds, residuals (m,) and rotation (m, m)."""
    restarts = 0
    krylov.grow(steps)
    while True:
        while krylov.exhausted and krylov.restart(random_vector(operator, seed + 104729 * (restarts + 1))):
            restarts += 1
            krylov.grow(steps - krylov.steps)
        values, residuals, rotation = krylov.ritz()
        errors = _bounds(values, residuals)
        converged = bool((errors[:k] <= tolerance * values[:k].abs()).all())
        if krylov.steps == operator.shape[0] or (krylov.steps >= steps and converged):
            return values, errors, residuals, rotation
        before = krylov.steps
        krylov.grow(max(4, before // 8))
        if krylov.steps == before:
            raise RuntimeError(
                f"the {k} largest eigenvalues did not converge to tolerance={tolerance} in {before} products, errors "
                f"are up to {errors[:k].max():.1e}; raise max_steps or tolerance"
            )


def _bounds(values: Tensor, residuals: Tensor) -> Tensor:
    """Errors of Ritz values (m,), largest first: the residual, or its square over the gap (Kato and Temple)."""
    infinity = values.new_full((1,), math.inf)
    apart = -values.diff()
    above = torch.cat([infinity, apart - residuals[:-1]])
    below = torch.cat([apart - residuals[1:], infinity])
    gap = torch.minimum(above, below)
    return torch.where(gap > residuals, torch.minimum(residuals, residuals**2 / gap), residuals)


def _isolated(values: Tensor, residuals: Tensor, rotation: Tensor, size: int) -> Tensor:
    """(m,) which Ritz values are single eigenvalues: converged, and with no more weight than one of D can have.

    Values near zero are left in the quadrature, since zero is the one eigenvalue that networks have many times.
    """
    scale = values.abs().max()
    single = rotation[0] ** 2 * size < 30
    return (residuals <= 1e-4 * scale) & (values.abs() > 1e-3 * scale) & single


def _density(atoms: Tensor, runs: Sequence[tuple[Tensor, Tensor]], size: int) -> Density:
    rest = size - len(atoms)
    nodes = torch.cat([nodes for nodes, _ in runs])
    weights = torch.cat([w * (rest / size / len(runs) / w.sum()) for _, w in runs])
    return Density(atoms, nodes, weights if rest else weights[:0], size, len(runs))
