r"""Gauss-Newton and Fisher matrices as operators, and the trace of any operator by random probes.

Each is $J^\top M J$ with the Jacobian $J$ (outputs, D) of the model's output and a small symmetric matrix $M$
that acts on outputs alone:

$$ M = \nabla_o^2 L \ \text{(Gauss-Newton)}, \qquad M = \tfrac1N\, \mathbb{E}_{y \sim p(\cdot|o)}[r r^\top], \quad
   r = \nabla_o \log p(y|o) \ \text{(Fisher)} $$

and the empirical Fisher matrix has the labels of the data in place of the expectation (Martens, JMLR 2020,
arXiv 1412.1193; Kunstner, Balles and Hennig, NeurIPS 2019, arXiv 1905.12558). $J v$ is the derivative of
$u \mapsto J^\top u$, which is linear: two backward passes again, so that no forward-mode rule of a norm kernel
is needed.
"""

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from normsurvey.analysis.curvature import (
    CurvatureOperator,
    Loss,
    evaluate,
    flatten,
    private_buffers,
    refuse_function_transforms,
    select_parameters,
    unflatten,
)


class OutputProduct(CurvatureOperator):
    r""":math:`J^\top M J` for the output of the model that `loss(model)` asks for; a subclass defines `metric`.

    Args:
        model: any module with one tensor as its output, (N, ...), samples first.
        loss: maps the model to a scalar, calls it exactly once, and sees the parameters through its output alone.
        parameters: names of those to differentiate, the others are constants; all trainable ones if None.

    Attributes:
        value: the loss (float). gradient: flat (D,). output: what the model returned.

    Raises:
        ValueError: the model ran not exactly once, or the loss depends on the parameters past its output.
        RuntimeError: built inside a `torch.func` transform, or used after the parameters were changed.
    """

    def __init__(self, model: nn.Module, loss: Loss, parameters: Iterable[str] | None = None):
        refuse_function_transforms(type(self).__name__)
        self._keep(select_parameters(model, parameters))
        with torch.enable_grad(), private_buffers(model):
            value, self._output = _run_once(model, loss)
            self._cotangent = torch.zeros_like(self._output, requires_grad=True)
            # J^T u is linear in u: its derivative along v is J v
            self._pulled = torch.autograd.grad(
                self._output, self._tensors, self._cotangent, create_graph=True, materialize_grads=True
            )
            self._slope = torch.autograd.grad(value, self._output, create_graph=True)[0]
            direct = torch.autograd.grad(value, self._tensors, retain_graph=True, materialize_grads=True)
        self.value, self.output = value.item(), self._output.detach()
        self.gradient = self._pull(self._slope)
        _refuse_terms_past_the_output(flatten(direct), self.gradient)

    @abstractmethod
    def metric(self, outputs: Tensor) -> Tensor:
        """M u, in the shape of the model's output."""

    def jacobian_product(self, vector: Tensor) -> Tensor:
        """J v for v (D,), in the shape of the model's output."""
        pieces = unflatten(vector, self._tensors)
        pulled = [(g, v) for g, v in zip(self._pulled, pieces, strict=True) if g.requires_grad]
        if not pulled:
            return torch.zeros_like(self.output)
        outputs, cotangents = zip(*pulled, strict=True)
        return torch.autograd.grad(outputs, self._cotangent, cotangents, retain_graph=True, materialize_grads=True)[0]

    def _pull(self, cotangent: Tensor) -> Tensor:
        found = torch.autograd.grad(
            self._output, self._tensors, cotangent.detach(), retain_graph=True, materialize_grads=True
        )
        return flatten(found)

    def _product(self, vector: Tensor) -> Tensor:
        return self._pull(self.metric(self.jacobian_product(vector)))


class GaussNewton(OutputProduct):
    r"""The generalised Gauss-Newton matrix :math:`J^\top \nabla_o^2 L\, J`: the Hessian without the curvature of the
    model.

    Positive semi-definite where the loss is convex in the outputs, and the exact Fisher matrix for cross entropy
    (Schraudolph, Neural Computation 14, 2002; Martens, arXiv 1412.1193, section 8).

    >>> line = nn.Linear(2, 1, bias=False)
    >>> x = torch.tensor([[1.0, 0.0], [0.0, 3.0]])
    >>> GaussNewton(line, lambda model: 0.5 * model(x).square().sum()).dense()
    tensor([[1., 0.],
            [0., 9.]])
    """

    def metric(self, outputs: Tensor) -> Tensor:
        """The second derivative of the loss in the outputs, times u."""
        if not self._slope.requires_grad:  # the loss is linear in them
            return torch.zeros_like(outputs)
        return torch.autograd.grad(
            self._slope, self._output, outputs, retain_graph=True, materialize_grads=True
        )[0]


class Fisher(OutputProduct):
    r"""The Fisher matrix of the model's predictive distribution, averaged over the N samples of the loss.

    Args:
        likelihood: "categorical", logits (N, C, ...) as for `cross_entropy`, positions counted as samples; or
            "gaussian", outputs (N, ...) of unit variance, whose loss is half the squared error summed over outputs.
        samples: labels drawn from the model per sample, a Monte Carlo estimate; None for the expectation itself.
        seed: of the drawn labels.

    Raises:
        ValueError: an unknown likelihood, samples below 1, or what `OutputProduct` refuses.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        parameters: Iterable[str] | None = None,
        *,
        likelihood: str = "categorical",
        samples: int | None = None,
        seed: int = 0,
    ):
        if likelihood not in ("categorical", "gaussian"):
            raise ValueError(f"likelihood={likelihood!r} is not known: choose 'categorical' or 'gaussian'")
        if samples is not None and samples < 1:
            raise ValueError(f"samples={samples} must be at least 1, or None for the exact expectation")
        super().__init__(model, loss, parameters)
        rows = _rows(self.output, likelihood)  # (N, C)
        self.likelihood, self.samples = likelihood, samples
        self._probabilities = rows.softmax(1) if likelihood == "categorical" else None
        self._residuals = None if samples is None else self._drawn(rows, samples, seed)  # (N, samples, C)

    def metric(self, outputs: Tensor) -> Tensor:
        """The covariance of the log-likelihood's slope in the outputs, times u, over N."""
        rows, p, r = _rows(outputs, self.likelihood), self._probabilities, self._residuals
        if r is not None:
            found = torch.einsum("nsc,nsd,nd->nc", r, r, rows) / self.samples
        else:
            found = rows if p is None else p * (rows - (p * rows).sum(1, keepdim=True))
        return _unrows(found / len(rows), outputs, self.likelihood)

    def _drawn(self, rows: Tensor, samples: int, seed: int) -> Tensor:
        random = torch.Generator().manual_seed(seed)
        if self._probabilities is None:
            noise = torch.randn(len(rows), samples, rows.shape[1], generator=random, dtype=torch.float64)
            return noise.to(rows)
        labels = torch.multinomial(self._probabilities.cpu().double(), samples, replacement=True, generator=random)
        one_hot = nn.functional.one_hot(labels.to(rows.device), rows.shape[1]).to(rows)
        return one_hot - self._probabilities[:, None]


class EmpiricalFisher(OutputProduct):
    r""":math:`\frac1N \sum_n g_n g_n^\top` with the gradients :math:`g_n` of the single samples' losses, at the
    labels of the data.

    `loss` is their mean over the first dimension of the outputs. Not the Fisher matrix, and not close to it away
    from a good fit (Kunstner, Balles, Hennig, arXiv 1905.12558). Where a batch norm couples the samples, :math:`g_n` is
    the gradient of the n-th term of the loss, statistics included.
    """

    def metric(self, outputs: Tensor) -> Tensor:
        """The outer product of each sample's slope with itself, times u, over N."""
        slope, count = self._slope.detach(), len(outputs)
        along = (slope * outputs).reshape(count, -1).sum(1)
        return count * slope * along.view(-1, *[1] * (slope.dim() - 1))


@dataclass(frozen=True)
class Estimate:
    """A Monte Carlo estimate: `value`, and its standard `error` (both float, or tensors of one shape)."""

    value: float | Tensor
    error: float | Tensor


def trace(operator, num_probes: int = 32, *, seed: int = 0) -> Estimate:
    r"""Hutchinson's estimate of the trace: the mean of :math:`z^\top A z` over random signs z, with its standard error.

    Its variance is :math:`2 \sum_{i \ne j} A_{ij}^2` per probe (Hutchinson, Communications in Statistics 18, 1989).

    Args:
        operator: with `.shape` (D, D) and `operator @ v`: a `CurvatureOperator` or a matrix.
        num_probes: products to spend.

    Raises:
        ValueError: fewer than two probes, which leave no error to estimate.

    >>> trace(torch.diag(torch.tensor([1.0, 2.0, 4.0])))  # exact for a diagonal matrix
    Estimate(value=7.0, error=0.0)
    """
    if num_probes < 2:
        raise ValueError(f"num_probes={num_probes} must be at least 2 to tell the error")
    like = getattr(operator, "point", operator)
    random = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(num_probes):
        z = (2 * torch.randint(0, 2, (operator.shape[0],), generator=random) - 1).to(like)
        found.append((z @ (operator @ z)).item())
    values = torch.tensor(found, dtype=torch.float64)
    return Estimate(values.mean().item(), (values.std() / num_probes**0.5).item())


def _run_once(model: nn.Module, loss: Loss) -> tuple[Tensor, Tensor]:
    outputs: list[Tensor] = []
    handle = model.register_forward_hook(lambda _, inputs, output: outputs.append(output))
    try:
        value = evaluate(model, loss)
    finally:
        handle.remove()
    if len(outputs) != 1 or not isinstance(outputs[0], Tensor):
        raise ValueError(
            f"loss(model) ran the model {len(outputs)} times, or its output is no tensor; give a loss that calls "
            "model(x) once, on all samples"
        )
    return value, outputs[0]


def _refuse_terms_past_the_output(direct: Tensor, through_output: Tensor) -> None:
    tolerance = torch.finfo(direct.dtype).eps ** 0.5
    if (direct - through_output).norm() > tolerance * direct.norm().clamp_min(tolerance):
        raise ValueError(
            "loss(model) depends on the parameters past the model's output (a weight penalty?), which these "
            "matrices do not see; leave that term out and add its own"
        )


def _rows(outputs: Tensor, likelihood: str) -> Tensor:
    if likelihood == "gaussian":
        return outputs.reshape(len(outputs), -1)
    if outputs.dim() < 2:
        raise ValueError(f"categorical outputs have shape {tuple(outputs.shape)}; expected logits (N, C, ...)")
    return outputs.movedim(1, -1).reshape(-1, outputs.shape[1])


def _unrows(rows: Tensor, like: Tensor, likelihood: str) -> Tensor:
    if likelihood == "gaussian":
        return rows.view_as(like)
    return rows.view(len(like), *like.shape[2:], like.shape[1]).movedim(-1, 1)
