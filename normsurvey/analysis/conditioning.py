r"""Layer-wise conditioning: second moments of a layer's inputs and of the gradients at its outputs.

For a linear layer $h = W x$ the block of the Fisher matrix that belongs to $W$ is approximately

$$ F_W \approx \Sigma_x \otimes \Sigma_{\nabla h}, \quad \Sigma_x = \mathbb{E}[x x^\top], \quad
   \Sigma_{\nabla h} = \mathbb{E}\big[\nabla_h \ell\, (\nabla_h \ell)^\top\big] $$

so its eigenvalues are the products of theirs (Martens and Grosse, KFAC, ICML 2015, arXiv 1503.05671;
Huang et al., Layer-wise conditioning analysis, ECCV 2020, arXiv 2002.10801).
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from normsurvey.analysis.curvature import Loss, private_buffers


@dataclass(frozen=True)
class LayerRows:
    """What one layer saw: `input` (M, d_in) and, of the summed loss, `output_gradient` (M, d_out)."""

    input: Tensor
    output_gradient: Tensor


@dataclass(frozen=True)
class LayerMoments:
    """Second moments of one layer, not centred: `input` (d_in, d_in), `output_gradient` (d_out, d_out)."""

    input: Tensor
    output_gradient: Tensor


@contextmanager
def recorded_layers(model: nn.Module, layers: Iterable[str] | None = None) -> Iterator[dict[str, list]]:
    """Inside, every run of a named `nn.Linear` layer (all if None) adds its (input, output) to the layer's list.

    Raises:
        ValueError: a name is no linear layer of the model, or, at the end, a layer was not run exactly once.
    """
    linear = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    names = list(linear) if layers is None else list(layers)
    if unknown := [name for name in names if name not in linear]:
        raise ValueError(f"layers={unknown} are no linear layers of the model; it has {list(linear)}")
    runs: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in names}
    handles = [
        linear[name].register_forward_hook(lambda _, inputs, output, name=name: runs[name].append((inputs[0], output)))
        for name in names
    ]
    try:
        yield runs
    finally:
        for handle in handles:
            handle.remove()
    if wrong := [name for name, seen in runs.items() if len(seen) != 1]:
        raise ValueError(f"layers {wrong} did not run exactly once in loss(model); name the others in layers=")


def layer_rows(model: nn.Module, loss: Loss, layers: Iterable[str] | None = None) -> dict[str, LayerRows]:
    """Inputs and output gradients of the named `nn.Linear` layers (all of them if None), in the order of the model.

    All leading dimensions of an input (N, ..., d) count as samples. `loss` averages over its M samples,
    so the gradient at an output row is multiplied by M to be that sample's own.

    Raises:
        ValueError: a name is no linear layer of the model, or a layer was not run exactly once.
    """
    with torch.enable_grad(), private_buffers(model), recorded_layers(model, layers) as runs:
        value = loss(model)
    gradients = torch.autograd.grad(value, [seen[0][1] for seen in runs.values()])
    found = {}
    for (name, seen), gradient in zip(runs.items(), gradients, strict=True):
        rows = gradient.flatten(0, -2)  # (M, d_out)
        found[name] = LayerRows(seen[0][0].detach().flatten(0, -2), rows * len(rows))
    return found


def layer_moments(model: nn.Module, loss: Loss, layers: Iterable[str] | None = None) -> dict[str, LayerMoments]:
    """Second moments of the rows of `layer_rows`, which says what they are and what it raises."""
    return {
        name: LayerMoments(_second_moment(rows.input), _second_moment(rows.output_gradient))
        for name, rows in layer_rows(model, loss, layers).items()
    }


def eigenvalues(moment: Tensor) -> Tensor:
    """Eigenvalues (d,) of a positive semi-definite matrix, largest first, rounding below zero removed."""
    return torch.linalg.eigvalsh(moment).flip(0).clamp_min(0)


def condition_number(moment: Tensor, fraction: float = 1.0) -> float:
    r""":math:`\kappa_p = \lambda_{\max} / \lambda_{\lceil p d \rceil}` at p = `fraction`; the usual one at 1.

    What arXiv 2002.10801 calls the general condition number with respect to the percentage; infinite
    where that eigenvalue is zero.

    Raises:
        ValueError: fraction is outside (0, 1].
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction={fraction} must be in (0, 1]")
    values = eigenvalues(moment)
    lower = values[math.ceil(fraction * len(values)) - 1]
    return (values[0] / lower).item() if lower > 0 else math.inf


def dominance(moment: Tensor) -> float:
    r""":math:`\lambda_{\max} / \operatorname{tr}`: the share of the largest direction, between 1/d and 1."""
    return (eigenvalues(moment)[0] / moment.trace()).item()


def spread(values: Iterable[float]) -> float:
    """Largest over smallest of positive values: how far layers are from sharing one scale."""
    values = list(values)
    return max(values) / min(values)


def _second_moment(rows: Tensor) -> Tensor:
    return rows.T @ rows / len(rows)
