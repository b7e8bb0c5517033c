r"""The Fisher block of one linear layer: its exact spectrum, and the Kronecker product that stands in for it.

Sample $n$ of a layer $h = W x$ contributes the gradient $\delta_n x_n^\top$, $\delta_n = \nabla_{h_n} \ell$. With
$g_n = \delta_n \otimes x_n$ and rows $x_n^\top$ of $A$ (M, d_in), $\delta_n^\top$ of $D$ (M, d_out)

$$ F = \tfrac1M \sum_n g_n g_n^\top \approx \Sigma_{\nabla h} \otimes \Sigma_x, \qquad
   F \text{ has the nonzero eigenvalues of } \tfrac1M (A A^\top) \circ (D D^\top) $$

(Martens and Grosse, KFAC, ICML 2015, arXiv 1503.05671; Huang et al., ECCV 2020, arXiv 2002.10801). The second
matrix is (M, M): no block of $(d_{in} d_{out})^2$ numbers is built.

Rows do not tell all where samples interact, in front of a batch norm. A sample's own loss then has gradients at all
rows; `batch_fisher_spectra` goes through it sample by sample.
"""

from collections.abc import Callable, Iterable
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normsurvey.analysis.conditioning import LayerRows, eigenvalues, layer_rows
from normsurvey.analysis.curvature import Loss, private_buffers
from normsurvey.analysis.lanczos import lanczos


class FisherBlock(LayerRows):
    """The block (D, D), D = d_out d_in, of a layer's weight, from M rows `input` and `output_gradient`.

    One sample leaves nothing to approximate, its block is a Kronecker product:

    >>> block = FisherBlock(torch.tensor([[3.0, 4.0]]), torch.tensor([[2.0]]))
    >>> block.spectrum, block.kronecker_spectrum[:1], block.relative_error
    (tensor([100.]), tensor([100.]), 0.0)
    """

    @cached_property
    def gram(self) -> Tensor:
        """The dual of the block, (M, M), inner products of the samples' gradients over M."""
        a, d = self.input, self.output_gradient
        return (a @ a.T) * (d @ d.T) / len(a)

    @cached_property
    def spectrum(self) -> Tensor:
        """The min(M, D) largest eigenvalues, exact, largest first; any further ones are zero."""
        size, count = self.input.shape[1] * self.output_gradient.shape[1], len(self.input)
        return eigenvalues(self.dense(count) if size < count else self.gram)

    def largest(self, num_steps: int = 48) -> float:
        """The largest eigenvalue alone, by Lanczos on the dual: cheaper than `spectrum` for hundreds of samples."""
        return lanczos(self.gram, num_steps).values[0].item()

    @cached_property
    def moments(self) -> tuple[Tensor, Tensor]:
        """The two factors of the estimate, second moments (d_out, d_out) of gradients and (d_in, d_in) of inputs."""
        d, a = self.output_gradient, self.input
        return d.T @ d / len(d), a.T @ a / len(a)

    @cached_property
    def factor_spectra(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues (d_out,) and (d_in,) of the two `moments`, largest first."""
        return _moment_spectrum(self.output_gradient), _moment_spectrum(self.input)

    @cached_property
    def kronecker_spectrum(self) -> Tensor:
        """Eigenvalues (D,) of the Kronecker estimate, all products of the factors' eigenvalues, largest first."""
        return torch.outer(*self.factor_spectra).flatten().sort(descending=True).values

    @cached_property
    def relative_error(self) -> float:
        r""":math:`\|F - \Sigma_{\nabla h} \otimes \Sigma_x\| / \|F\|` in the Frobenius norm, without building either.

        Differences of squares: below about the root of the precision (1e-8 in float64) it is rounding.
        """
        left, right = self.moments
        of_gradients = ((self.output_gradient @ left) * self.output_gradient).sum(1)
        of_inputs = ((self.input @ right) * self.input).sum(1)
        inner = (of_gradients * of_inputs).mean()
        squared = self.gram.square().sum() - 2 * inner + left.square().sum() * right.square().sum()
        return (squared.clamp_min(0).sqrt() / self.gram.norm()).item()

    def dense(self, limit: int = 4096) -> Tensor:
        """The block (D, D) itself, rows of the weight one after the other as in `weight.flatten()`.

        Raises:
            ValueError: D exceeds `limit`.
        """
        size = self.input.shape[1] * self.output_gradient.shape[1]
        if size > limit:
            raise ValueError(f"the block has {size} rows, limit={limit}; use spectrum, or raise the limit")
        gradients = torch.einsum("no,ni->noi", self.output_gradient, self.input).flatten(1)
        return gradients.T @ gradients / len(gradients)


def fisher_blocks(model: nn.Module, loss: Loss, layers: Iterable[str] | None = None) -> dict[str, FisherBlock]:
    """The block of each named `nn.Linear` layer (all of them if None), from one forward and one backward pass.

    Labels sampled from the model, as in `sampled_cross_entropy`, give (a Monte-Carlo estimate of) the true Fisher
    matrix; those of the data give the empirical one, which is another matrix.

    Raises:
        ValueError: a name is no linear layer of the model, or a layer was not run exactly once.
    """
    rows = layer_rows(model, loss, layers)
    return {name: FisherBlock(r.input, r.output_gradient) for name, r in rows.items()}


def sampled_cross_entropy(inputs: Tensor, *, seed: int = 0, reduction: str = "mean") -> Callable[[nn.Module], Tensor]:
    """The closure `loss(model)`: cross entropy on labels that are drawn from the model's own predictions.

    Args:
        inputs: (N, ...), for which the model returns logits (N, classes).
        seed: of the draw; the same predictions get the same labels.
        reduction: "mean", or "none" for the losses of the samples (N,).
    """

    def loss(model: nn.Module) -> Tensor:
        logits = model(inputs)
        random = torch.Generator().manual_seed(seed)
        labels = torch.multinomial(logits.detach().softmax(1).cpu(), 1, generator=random)[:, 0]
        return F.cross_entropy(logits, labels.to(logits.device), reduction=reduction)

    return loss


def batch_fisher_spectra(
    model: nn.Module, losses: Callable[[nn.Module], Tensor], layers: Iterable[str]
) -> dict[str, Tensor]:
    """Nonzero Fisher eigenvalues of the weights of `layers`, largest first, where samples may interact.

    Each of the N samples' losses is differentiated alone, through everything that it depends on, batch statistics
    included. Costs N backward passes and N gradients in memory.

    Args:
        losses: maps the model to the losses of the samples (N,), on labels sampled from the model.

    Raises:
        ValueError: losses(model) is not a vector.
    """
    layers = list(layers)
    weights = [model.get_submodule(name).weight for name in layers]
    with torch.enable_grad(), private_buffers(model):
        values = losses(model)
        if values.dim() != 1:
            raise ValueError(f"losses(model) has shape {tuple(values.shape)}; one loss per sample is needed, (N,)")
        rows = [torch.autograd.grad(value, weights, retain_graph=True) for value in values]
    spectra = {}
    for k, name in enumerate(layers):
        stack = torch.stack([row[k].flatten() for row in rows])  # (N, D)
        spectra[name] = eigenvalues(stack @ stack.T / len(stack))
    return spectra


def deflated(moment: Tensor, direction: Tensor) -> Tensor:
    r""":math:`H^* = H - H w w^\top H / (w^\top H w)`: the curvature of a weight with a batch norm behind it.

    :math:`w` (d,) is the weight and :math:`H` (d, d) the covariance of the inputs. :math:`H^* w = 0`, and the other
    eigenvalues of :math:`H^*` lie between neighbouring ones of :math:`H` (Cai, Li and Shen, ICML 2019, arXiv
    1810.00122).

    >>> deflated(torch.diag(torch.tensor([4.0, 2.0])), torch.tensor([0.0, 1.0]))
    tensor([[4., 0.],
            [0., 0.]])

    Raises:
        ValueError: the direction has no variance under `moment`.
    """
    image = moment @ direction
    variance = direction @ image
    if not variance > 0:
        raise ValueError(f"direction has variance {variance.item():.3g} under moment; it must be positive")
    return moment - torch.outer(image, image) / variance


def log_correlation(values: Iterable[float], estimates: Iterable[float]) -> float:
    """Correlation of the logarithms of positive values with those of their estimates.

    >>> round(log_correlation([1.0, 10.0, 100.0], [3.0, 30.0, 300.0]), 6)
    1.0
    """
    pairs = torch.tensor([list(values), list(estimates)], dtype=torch.float64)
    return torch.corrcoef(pairs.log())[0, 1].item()


def _moment_spectrum(rows: Tensor) -> Tensor:
    count, size = rows.shape
    if count >= size:
        return eigenvalues(rows.T @ rows / count)
    return F.pad(eigenvalues(rows @ rows.T / count), (0, size - count))
