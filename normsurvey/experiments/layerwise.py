r"""A layer of a network as a linear model: its targets, its curvature, and a batch norm in front of or behind it.

Back-propagation through $h = W x$ sets targets $t_n = h_n - \delta_n$, $\delta_n = \nabla_{h_n} \ell$, and takes one
gradient step on $\frac{1}{2M} \sum_n \|W x_n - t_n\|^2$, a problem with the Hessian $\Sigma_x$ (Frerix et al.,
Proximal Backpropagation, ICLR 2018, arXiv 1706.04638). On the linear model itself, a batch norm behind the weights
makes gradient descent converge at any learning rate (Cai, Li and Shen, ICML 2019, arXiv 1810.00122), and linearly
where the length is always the best one (Kohler et al., AISTATS 2019, arXiv 1805.10694).
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from normsurvey.analysis.conditioning import LayerRows, layer_rows
from normsurvey.analysis.kronecker import FisherBlock, deflated
from normsurvey.area import Area
from normsurvey.experiments.classifiers import Data, batches, mlp, sgd, train
from normsurvey.experiments.data import digits, digits_on_photos
from normsurvey.experiments.linear import LeastSquares
from normsurvey.experiments.smoothness import Bank
from normsurvey.norm import Norm
from normsurvey.notebook import progress
from normsurvey.operations import Whiten


def training_data(name: str, seed: int, device: torch.device | str = "cpu", count: int = 10_000) -> Data:
    """Training images (N, d) in double precision, and labels: "digits" (d = 64) or `count` "photos" (d = 3072).

    Raises:
        ValueError: another name.
    """
    if name not in ("digits", "photos"):
        raise ValueError(f"name={name!r} is unknown: choose 'digits' or 'photos'")
    double = torch.float64
    x, y, _, _ = digits(seed, double) if name == "digits" else digits_on_photos(count, seed, double)
    return x.flatten(1).to(device), y.to(device)


def deep_network(data: Data, width: int, depth: int, norm: Callable | None, seed: int) -> nn.Sequential:
    """`mlp` with `depth` hidden layers of one width for the data (x, y), on their device."""
    x, y = data
    return mlp((x.shape[1], *[width] * depth, int(y.max()) + 1), norm, seed=seed, device=x.device)


def whiten_inputs(model: nn.Module, layers: list[str]) -> nn.Module:
    """Puts a ZCA whitening in front of the named layers of the model, in place; `name.1` is then the layer itself."""
    for name in layers:
        whitening = Norm(Area("n c ... ->", features="c"), Whiten("zca", eps=0.0))
        setattr(model, name, nn.Sequential(whitening, model.get_submodule(name)))
    return model


def target_gradient(layer: nn.Linear, rows: LayerRows) -> Tensor:
    r"""Gradient in W of the layer's problem $\frac{1}{2M}\sum_n \|W x_n + b - t_n\|^2$, by automatic differentiation.

    The targets $t_n = h_n - \delta_n$ are constants: the layer's present outputs, moved against their gradients.
    """
    weight = layer.weight.detach().clone().requires_grad_()
    outputs = nn.functional.linear(rows.input, weight, layer.bias)
    targets = (outputs - rows.output_gradient).detach()
    loss = 0.5 * (outputs - targets).square().sum() / len(targets)
    return torch.autograd.grad(loss, weight)[0]


def proximal_step(rows: LayerRows, strength: float) -> Tensor:
    r"""The implicit step $-\,G\,(\Sigma_x + I / \tau)^{-1}$ on the layer's problem, $G$ its gradient (d_out, d_in).

    It minimises $\frac{1}{2M}\sum_n \|W x_n - t_n\|^2 + \frac{1}{2\tau}\|W - W_0\|^2$.

    Args:
        strength: $\tau \lambda_{\max}(\Sigma_x)$. Small: the explicit step. Large: the least-squares fit.
    """
    second = rows.input.T @ rows.input / len(rows.input)
    gradient = rows.output_gradient.T @ rows.input / len(rows.input)
    shift = torch.linalg.eigvalsh(second)[-1] / strength
    eye = torch.eye(len(second), dtype=second.dtype, device=second.device)
    return -torch.linalg.solve(second + shift * eye, gradient.T).T


def cosine(a: Tensor, b: Tensor) -> float:
    """Cosine of the angle between two tensors of one shape."""
    return ((a * b).sum() / (a.norm() * b.norm())).item()


def without_relu(model: nn.Sequential) -> nn.Sequential:
    """The same network, on the same weights, with every ReLU left out: a linear function of its inputs."""
    return nn.Sequential(OrderedDict((k, m) for k, m in model.named_children() if not isinstance(m, nn.ReLU)))


def regression_fisher_blocks(
    model: nn.Module, inputs: Tensor, layers: Iterable[str] | None = None
) -> dict[str, FisherBlock]:
    """Fisher blocks of the linear layers for the square loss, the mean over the model's own labels taken exactly.

    Labels are the outputs plus independent noise of variance 1. Noise in one of C outputs sends back the gradient of
    that output, so each of the N inputs (N, d) gives C rows, one per output.
    """
    count = model(inputs[:1]).shape[1]
    parts = [layer_rows(model, lambda m, c=c: m(inputs)[:, c].mean(), layers) for c in range(count)]
    found = {}
    for name in parts[0]:
        gradients = torch.cat([part[name].output_gradient for part in parts])
        found[name] = FisherBlock(parts[0][name].input.repeat(count, 1), math.sqrt(count) * gradients)
    return found


def deflated_inputs(inputs: Tensor, weight: Tensor) -> Tensor:
    r"""What a neuron with a batch norm behind it learns from: $x_n - \bar x - y_n\, \overline{y x}$, shape (N, d).

    Here $y_n$ is its normalized output. The gradient of its weight (d,) is a sum of these rows, and their second
    moment is `deflated(covariance, weight)`.
    """
    centred = inputs - inputs.mean(0)
    outputs = centred @ weight
    outputs = outputs / outputs.square().mean().sqrt()
    return centred - torch.outer(outputs, outputs @ centred / len(outputs))


def prescribed_problem(
    seed: int, features: int = 50, condition: float = 100.0, samples: int = 200, device: torch.device | str = "cpu"
) -> LeastSquares:
    r"""Least squares on centred inputs with eigenvalues from $1/\kappa$ to 1, evenly in the logarithm.

    Targets are centred, of variance 1, and a linear function of the inputs, without noise.
    """
    random = torch.Generator().manual_seed(seed)
    draw = torch.randn(samples, features, generator=random, dtype=torch.float64)
    orthonormal = torch.linalg.qr(draw - draw.mean(0))[0] * math.sqrt(samples)
    values = torch.logspace(0, -math.log10(condition), features, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(features, features, generator=random, dtype=torch.float64))[0]
    inputs = (orthonormal * values.sqrt()) @ rotation.T
    targets = inputs @ torch.randn(features, generator=random, dtype=torch.float64)
    return LeastSquares(inputs.to(device), (targets / targets.std(correction=0)).to(device))


def start(problem: LeastSquares, seed: int) -> Tensor:
    """A random unit vector (d,) for the weights."""
    w = torch.randn(len(problem.hessian), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (w / w.norm()).to(problem.hessian)


def descend_with_best_length(problem: LeastSquares, w: Tensor, steps: int) -> Tensor:
    r"""Excess loss (steps + 1,) of GDNP: a gradient step on the direction, then the best length for it.

    With $u = \mathbb E[t x]$ and the best length $a = u^\top w / w^\top H w$ the step of Kohler et al. becomes
    $w \leftarrow w - \frac{1}{\lambda_{\max}} (H w - u / a)$.
    """
    h, rate = problem.hessian, problem.step_size()
    u, excess = h @ problem.solution, []
    for t in range(steps + 1):
        length = (u @ w) / (w @ h @ w)
        excess.append(problem.excess(length * w))
        if t < steps:
            w = w - rate * (h @ w - u / length)
            w = w / w.norm()
    return torch.stack(excess)


def descend_normalized(problem: LeastSquares, w: Tensor, rates: Tensor, steps: int) -> dict[str, Tensor]:
    r"""BNGD for R learning rates of the weights at once: gradient descent on $a\, w^\top x / \sqrt{w^\top H w}$.

    The factor $a$ has the learning rate 1, so that each step makes it the best one for the present weights.

    Returns:
        `excess` loss at the end and `largest` on the way (R,), and `norms` of the weights at the end (R,).
    """
    h, u = problem.hessian, problem.hessian @ problem.solution
    weights, largest = w.repeat(len(rates), 1), torch.zeros_like(rates)
    a, explained = weights @ u / _deviation(weights, h), u @ problem.solution
    for _ in range(steps):
        image = weights @ h
        deviation = (image * weights).sum(1).sqrt()
        best = weights @ u / deviation
        largest = torch.maximum(largest, 0.5 * (explained - 2 * a * best + a * a))  # excess, exact to rounding
        gradient = (a / deviation)[:, None] * ((best / deviation)[:, None] * image - u)
        a, weights = best, weights - rates[:, None] * gradient
    excess = problem.excess((a / _deviation(weights, h))[:, None] * weights)
    return {"excess": excess, "largest": torch.maximum(largest, excess), "norms": weights.norm(dim=1)}


def _deviation(weights: Tensor, moment: Tensor) -> Tensor:
    return ((weights @ moment) * weights).sum(1).sqrt()


def descend_plain(problem: LeastSquares, w: Tensor, rates: Tensor, steps: int) -> Tensor:
    """Excess loss of gradient descent after `steps`, for R learning rates at once (R,); infinite where it blew up."""
    h, weights = problem.hessian, w.repeat(len(rates), 1)
    u = h @ problem.solution
    for _ in range(steps):
        weights = weights - rates[:, None] * (weights @ h - u)
    return problem.excess(weights).nan_to_num(nan=math.inf, posinf=math.inf)


def decades(rates: Tensor, passed: Tensor) -> float:
    """Length, in decades, of the longest run of neighbouring learning rates (R,) that passed (R,)."""
    longest, first = 0.0, None
    for rate, good in zip(rates.log10().tolist(), passed.tolist(), strict=True):
        first = (rate if first is None else first) if good else None
        longest = max(longest, rate - first) if good else longest
    return longest


def interlacing_violation(moment: Tensor, direction: Tensor) -> float:
    r"""How far $\lambda_i(H) \ge \lambda_i(H^*) \ge \lambda_{i+1}(H)$, descending, fails, over $\lambda_{\max}(H)$."""
    before = torch.linalg.eigvalsh(moment).flip(0)
    after = torch.linalg.eigvalsh(deflated(moment, direction)).flip(0)
    return (torch.maximum((after - before).max(), (before[1:] - after[:-1]).max()) / before[0]).item()


def condition_after_deflation(moment: Tensor, direction: Tensor) -> float:
    r"""$\kappa(H^*) / \kappa(H)$, where $\kappa(H^*)$ leaves out the eigenvalue 0 of the direction itself."""
    before = torch.linalg.eigvalsh(moment)
    after = torch.linalg.eigvalsh(deflated(moment, direction))
    return (after[-1] / after[1] / (before[-1] / before[0])).item()


def trained(data: Data, model: nn.Module, lr: float, times: tuple[int, ...], seed: int) -> Iterator[tuple[int, float]]:
    """Trains with batches of 128 and yields (step, mean loss of the last 20 steps before it) at each of the times."""
    batch, optimizer, losses, step = batches(data, min(128, len(data[0])), seed), sgd(model, lr), torch.empty(0), 0
    for time in times:
        losses = torch.cat([losses, train(model, batch, optimizer, time - step)])
        step = time
        yield step, losses[-20:].mean().item() if step else math.nan


def train_side_by_side(
    network: Callable[[int], nn.Module], data: Mapping[int, Data], members: Sequence[tuple[int, float]], steps: int,
    what: str = "learning rates",
) -> Tensor:  # fmt: skip
    """Losses (R, steps) of plain SGD with batches of 128 for R pairs (seed, learning rate); infinite after a blow-up.

    Args:
        network: maps a seed to a model without running averages.
        data: training images and labels of each seed.
    """
    bank = Bank([network(seed) for seed, _ in members], [lr for _, lr in members])
    streams = {seed: batches(part, min(128, len(part[0])), seed) for seed, part in data.items()}
    losses = torch.full((len(members), steps), math.inf, dtype=torch.float64)
    for step in progress(range(steps), what):
        drawn = {seed: next(stream) for seed, stream in streams.items()}
        x, y = (torch.stack([drawn[members[k][0]][part] for k in bank.alive]) for part in (0, 1))
        values = bank.step(x, y)
        losses[bank.alive, step] = values.to(losses).nan_to_num(nan=math.inf)
        bank.keep(values.isfinite())
        if not bank.alive:
            break
    return losses


def largest_stable(losses: Mapping[float, float], limit: float) -> float:
    """The largest learning rate with a loss below the limit; NaN if there is none.

    >>> largest_stable({0.1: 0.5, 1.0: 0.3, 10.0: 2.4}, 2.0)
    1.0
    """
    return max((lr for lr, loss in losses.items() if loss < limit), default=math.nan)
