r"""Spectra of the Fisher matrix without the matrix: from the Gram matrix of output gradients.

With $J$ (NC, D) the Jacobian of all outputs (N samples, C each) by the parameters, and $M_n$ (C, C) the second
derivative of one sample's loss by its outputs, the Fisher matrix, here equal to the generalised Gauss-Newton
matrix, and its dual

$$ F = \tfrac1N\, J^\top M J \; (D, D), \qquad F^* = \tfrac1N\, S^\top J J^\top S \; (NC, NC), \qquad M = S S^\top $$

share all eigenvalues that are not zero. $M = I$ for the square loss $\frac12 |f - y|^2$, and
$M_n = \operatorname{diag}(p) - p p^\top$ for cross entropy (Schraudolph 2002; Karakida, Akaho and Amari, NeurIPS
2019, arXiv 1906.02926, use the dual for N samples and C outputs).
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from normsurvey.analysis.curvature import flatten, private_buffers, select_parameters

METRICS = ("square", "cross_entropy")


@dataclass(frozen=True)
class OutputGram:
    """Inner products of output gradients, of a model on a batch of N samples with C outputs each.

    Attributes:
        kernel: (N C, N C), J J^T; row n * C + c belongs to output c of sample n.
        outputs: (N, C), where it was taken; for cross entropy these are the logits.
    """

    kernel: Tensor
    outputs: Tensor

    def fisher(self, metric: str = "square") -> Tensor:
        """The dual (N C, N C) of the Fisher matrix of the mean loss; symmetric, positive semi-definite.

        Args:
            metric: "square" or "cross_entropy", the loss whose curvature in the outputs is meant.

        Raises:
            ValueError: metric is neither.
        """
        if metric not in METRICS:
            raise ValueError(f"metric={metric!r} must be one of {METRICS}")
        n, c = self.outputs.shape
        if metric == "square":
            return self.kernel / n
        p = self.outputs.softmax(1)
        root = torch.diag_embed(p.sqrt()) - p[:, :, None] * p.sqrt()[:, None]  # (N, C, C), root root^T = M
        blocks = self.kernel.view(n, c, n, c)
        return torch.einsum("nab,namd,mde->nbme", root, blocks, root).reshape(n * c, n * c) / n

    def eigenvalues(self, metric: str = "square") -> Tensor:
        """Eigenvalues (N C,) of the Fisher matrix, largest first; where D < N C, the last N C - D are surplus zeros.

        >>> model = nn.Linear(2, 1, bias=False)
        >>> output_gram(model, torch.tensor([[3.0, 0.0], [0.0, 1.0]])).eigenvalues()  # X^T X / N
        tensor([4.5000, 0.5000])
        """
        return torch.linalg.eigvalsh(self.fisher(metric)).flip(0).clamp_min(0)

    def batch_normalized(self, *, scale: bool = True, eps: float = 0.0) -> "OutputGram":
        r"""The Gram matrix of the same model with each output normalized over the batch; nothing is differentiated.

        Batch normalization has the Jacobian :math:`(I - 11^\top/N - \hat y \hat y^\top/N)/\sigma` for every output:
        the kernel is multiplied by it from both sides. Without a recovery.

        Args:
            scale: False subtracts the mean and no more: P K P with P = I - 11^T/N. eps: added to the variance.

        Raises:
            ValueError: an output is constant over the batch, where its deviation is divided by.
        """
        n, c = self.outputs.shape
        y = self.outputs - self.outputs.mean(0)
        deviation = (y.square().mean(0) + eps).sqrt()
        if scale and not (deviation > 0).all():
            raise ValueError("an output is constant over the batch and cannot be scaled; give eps or other samples")
        y_hat = y / deviation if scale else y

        def pull(rows: Tensor) -> Tensor:  # rows (N, C, N C) -> the Jacobian of the normalization times rows
            rows = rows - rows.mean(0)
            if scale:
                rows = (rows - y_hat[..., None] * (y_hat[..., None] * rows).mean(0)) / deviation[:, None]
            return rows

        half = pull(self.kernel.view(n, c, n * c)).reshape(n * c, n * c)
        return OutputGram(kernel=pull(half.T.reshape(n, c, n * c)).reshape(n * c, n * c), outputs=y_hat)


def output_jacobian(
    model: nn.Module, x: Tensor, parameters: Iterable[str] | None = None, *, chunk_size: int = 1
) -> tuple[Tensor, Tensor]:
    """Jacobian (N C, D) of all outputs by the parameters, and the outputs (N, C), in the mode that the model is in.

    The whole batch is one forward pass, so a batch norm in train mode is differentiated through its statistics.
    Rows come from reverse mode, which is right through every fused kernel. Buffers are left alone.

    Args:
        x: (N, ...), passed to the model; its output (N, ...) is flattened to (N, C).
        parameters: names of those to differentiate; all trainable ones if None.
        chunk_size: outputs per backward pass. Above 1 the backward pass is batched by torch, which is faster and
            needs every operation of the model to support it.

    Raises:
        ValueError: chunk_size is below 1, the output is no batch of N, or it does not depend on the parameters.
    """
    if chunk_size < 1:
        raise ValueError(f"chunk_size={chunk_size} must be at least 1")
    tensors = list(select_parameters(model, parameters).values())
    outputs = _outputs(model, x)
    rows = []
    for chunk in torch.eye(outputs.numel(), dtype=outputs.dtype, device=outputs.device).split(chunk_size):
        cotangents = chunk.view(-1, *outputs.shape)
        batched = len(chunk) > 1
        gradients = torch.autograd.grad(
            outputs, tensors, cotangents if batched else cotangents[0],
            retain_graph=True, materialize_grads=True, is_grads_batched=batched,
        )  # fmt: skip
        rows.append(torch.cat([g.flatten(1) for g in gradients], 1) if batched else flatten(gradients)[None])
    return torch.cat(rows), outputs.detach()


def output_gram(
    model: nn.Module, x: Tensor, parameters: Iterable[str] | None = None, *, chunk_size: int = 1
) -> OutputGram:
    """The Gram matrix of any module, from its Jacobian; arguments as in `output_jacobian`.

    Holds N C times D numbers; where the parameters are those of linear layers, `linear_gram` does without.
    """
    jacobian, outputs = output_jacobian(model, x, parameters, chunk_size=chunk_size)
    return OutputGram(kernel=jacobian @ jacobian.T, outputs=outputs)


def linear_gram(
    model: nn.Module, x: Tensor, layers: Iterable[str] | None = None, *, per_sample: bool = False
) -> OutputGram:
    r"""The Gram matrix over weights and biases of linear layers, without a gradient of any weight.

    The gradient of output i by the weight of a layer is :math:`\Delta_i^\top H`, with :math:`H` (N, d) the layer's
    inputs and :math:`\Delta_i` (N, d') the gradients at its outputs. With inner products :math:`HH^\top` (plus 1 for
    the bias),

    .. math:: K_{ij} = \sum_{\text{layers}} \operatorname{tr}\big(\Delta_i^\top\, (H H^\top + 11^\top)\, \Delta_j\big) .

    Cost: N C backward passes and, per layer, N C times N d' numbers. Where samples do not interact, C passes
    and (N C, d') numbers: `per_sample=True`.

    Args:
        x: (N, ...), such that every layer's input is (N, d).
        layers: names of `nn.Linear` modules; all if None. Other parameters of the model count as constants.
        per_sample: the model treats each sample alone. This is checked on the first half of the batch.

    Raises:
        ValueError: a name is no linear layer, a layer did not run exactly once on (N, d), or per_sample is wrong.
    """
    linear = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    names = list(linear) if layers is None else list(layers)
    if unknown := [name for name in names if name not in linear]:
        raise ValueError(f"layers={unknown} are no linear layers of the model; it has {list(linear)}")
    outputs, runs = _recorded(model, x, {name: linear[name] for name in names})
    if per_sample:
        _check_independence(model, x, outputs)
    n, c = outputs.shape
    if per_sample:  # (C, N, d'): every sample's own gradient, from one pass per output
        passes = [outputs[:, k].sum() for k in range(c)]
    else:
        passes = list(outputs.flatten())
    at_outputs = [output for _, output in runs]
    deltas = [torch.autograd.grad(p, at_outputs, retain_graph=True, materialize_grads=True) for p in passes]
    kernel = outputs.new_zeros(n * c, n * c)
    for name, (inputs, _), delta in zip(names, runs, zip(*deltas, strict=True), strict=True):
        products = inputs @ inputs.T + (linear[name].bias is not None)
        delta = torch.stack(delta)
        if per_sample:
            rows = delta.transpose(0, 1).reshape(n * c, -1)
            kernel += rows @ rows.T * products.repeat_interleave(c, 0).repeat_interleave(c, 1)
        else:
            kernel += delta.flatten(1) @ (products @ delta).flatten(1).T
    return OutputGram(kernel=kernel, outputs=outputs.detach())


def _outputs(model: nn.Module, x: Tensor) -> Tensor:
    with torch.enable_grad(), private_buffers(model):
        outputs = model(x)
    if not isinstance(outputs, Tensor) or outputs.shape[:1] != x.shape[:1]:
        found = getattr(outputs, "shape", type(outputs))
        raise ValueError(f"model(x) must return a tensor (N, ...) with N={len(x)}, got {found}; wrap the model")
    if not outputs.requires_grad:
        raise ValueError("the outputs do not depend on any parameter that requires a gradient; unfreeze one")
    return outputs.reshape(len(x), -1)


def _recorded(model: nn.Module, x: Tensor, layers: dict[str, nn.Linear]) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    runs: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in layers}
    handles = [
        m.register_forward_hook(lambda _, inputs, output, name=name: runs[name].append((inputs[0].detach(), output)))
        for name, m in layers.items()
    ]
    try:
        outputs = _outputs(model, x)
    finally:
        for handle in handles:
            handle.remove()
    for name, seen in runs.items():
        if len(seen) != 1 or seen[0][0].shape[:-1] != x.shape[:1]:
            shapes = [tuple(inputs.shape) for inputs, _ in seen]
            raise ValueError(f"layer {name} ran on {shapes}, not once on (N, d); use output_gram, or leave it out")
    return outputs, [seen[0] for seen in runs.values()]


def _check_independence(model: nn.Module, x: Tensor, outputs: Tensor) -> None:
    half = max(1, len(x) // 2)
    with torch.no_grad(), private_buffers(model):
        alone = model(x[:half]).reshape(half, -1)
    if not torch.allclose(alone, outputs[:half], rtol=1e-4, atol=1e-5 * outputs.abs().max().item()):
        raise ValueError("per_sample=True, but a sample's output depends on the others in its batch; pass False")
