"""Spectra of Hessians and of layers: densities on a logarithmic axis, energy by eigenvector, maps over layers."""

import matplotlib.pyplot as plt
import torch
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from normsurvey.analysis import Spectrum, spectral_density
from normsurvey.plots import style

FLOOR = 1e-6


def plot_density(ax: plt.Axes, spectrum: Spectrum, role: str, *, limits: tuple[float, float], width: float) -> None:
    """Spectral density of one Lanczos run, log scale, the largest eigenvalue marked on the axis.

    Args:
        role: a key of `style.COLORS`, also the label. limits: eigenvalues shown. width: of each Gaussian.
    """
    grid = torch.linspace(*limits, 1200, dtype=torch.float64)
    spectrum = Spectrum(*(getattr(spectrum, name).cpu() for name in ("values", "residuals", "weights", "vectors")))
    density = spectral_density(spectrum, grid, width).clamp_min(FLOOR)
    ax.fill_between(grid, FLOOR, density, color=style.color(role), alpha=0.18, linewidth=0)
    ax.plot(grid, density, **style.line(role), label=role)
    ax.plot(spectrum.values[0], 3 * FLOOR, marker="v", color=style.color(role), clip_on=False)
    ax.set(yscale="log", ylim=(FLOOR, None), xlim=limits, xlabel="eigenvalue of the Hessian")


def plot_energy(ax: plt.Axes, energy: Tensor, role: str, label: str | None = None) -> None:
    """Cumulative share of the gradient's energy (K,) against the number of top eigenvectors."""
    ax.plot(range(1, len(energy) + 1), energy.cpu(), **style.line(role, marker=True), label=label)
    ax.set(ylim=(0, 1), xlabel="number of top eigenvectors", ylabel="share of gradient energy")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))


def plot_layers(ax: plt.Axes, values: Tensor, limits: tuple[float, float], title: str, first: int = 1):
    """Map of a positive quantity (layers from `first`, times), logarithmic colours; returns the image."""
    low, high = (torch.tensor(limit).log10().item() for limit in limits)
    extent = (-0.5, values.shape[1] - 0.5, first - 0.5, first + values.shape[0] - 0.5)
    image = ax.imshow(values.cpu().log10(), aspect="auto", origin="lower", extent=extent, vmin=low, vmax=high)
    ax.grid(False)
    ax.set(title=title, ylabel="layer")
    return image
