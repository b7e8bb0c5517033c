"""Routes to a second derivative, how wrong they are through a norm, and what measuring does to a network.

The routes are written for one flat vector of parameters, as users of `torch.func` write them.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacfwd, jacrev, jvp

from normsurvey.analysis import Hessian, gradient, private_buffers
from normsurvey.analysis.curvature import Loss, unflatten

ROUTES = ("double backward", "jvp of grad", "grad of jvp", "torch.func.hessian", "jacrev of jacrev")
EIGHTH_ORDER = {1: 4 / 5, 2: -1 / 5, 3: 4 / 105, 4: -1 / 280}


class Toy(nn.Sequential):
    """One linear layer, one norm with weight and bias, tanh: the smallest network in which the routes differ.

    Args:
        norm: maps a width to a module on (N, width) with `weight` and `bias` (or only `weight`).
        seed: of the data and of the parameters, which are moved away from where a norm starts.
    """

    def __init__(self, norm: Callable[[int], nn.Module], seed: int = 0, features: int = 5, width: int = 4):
        linear = nn.Linear(features, width, bias=False, dtype=torch.float64)
        super().__init__(linear, norm(width).double(), nn.Tanh())
        random = torch.Generator().manual_seed(seed)

        def draw(*shape):
            return torch.randn(*shape, generator=random, dtype=torch.float64)

        self.x, self.target = draw(7, features), draw(7, width)
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(draw(*p.shape))

    def loss(self, model: Callable[[Tensor], Tensor]) -> Tensor:
        """A weighted sum of the outputs."""
        return (self.target * model(self.x)).sum()


def flat_loss(model: nn.Module, loss: Loss) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """`loss` as a function of all parameters in one vector (D,), and that vector."""
    named = {name: p.detach() for name, p in model.named_parameters()}
    point = torch.cat([p.reshape(-1) for p in named.values()])

    def function(vector: Tensor) -> Tensor:
        given = dict(zip(named, unflatten(vector, named.values()), strict=True))
        return loss(lambda x: functional_call(model, given, x))

    return function, point


def hessian_by_route(model: nn.Module, loss: Loss, route: str) -> Tensor | None:
    """The matrix (D, D) by one of `ROUTES`, row i the derivative of entry i of the gradient; None where torch raises.

    Raises:
        ValueError: the route is not known.
    """
    function, point = flat_loss(model, loss)
    basis = torch.eye(len(point), dtype=point.dtype, device=point.device)
    ways = {
        "double backward": lambda: Hessian(model, loss).dense().T,
        "jvp of grad": lambda: torch.stack([jvp(grad(function), (point,), (e,))[1] for e in basis], 1),
        "grad of jvp": lambda: torch.stack(
            [grad(lambda p, e=e: jvp(function, (p,), (e,))[1])(point) for e in basis], 1
        ),
        "torch.func.hessian": lambda: jacfwd(jacrev(function))(point),
        "jacrev of jacrev": lambda: jacrev(jacrev(function))(point),
    }
    if route not in ways:
        raise ValueError(f"route={route!r} is not known: choose one of {', '.join(ways)}")
    try:
        return ways[route]()
    except (RuntimeError, NotImplementedError):
        return None


def hessian_by_differences(model: nn.Module, loss: Loss, step: float = 1e-3) -> Tensor:
    """The matrix (D, D) by central differences of order 8 of the gradient: nothing is derived twice."""
    moved = copy.deepcopy(model)
    tensors = list(moved.parameters())
    point = torch.cat([p.detach().reshape(-1) for p in tensors])

    def slope(vector: Tensor) -> Tensor:
        with torch.no_grad():
            for p, value in zip(tensors, unflatten(vector, tensors), strict=True):
                p.copy_(value)
        return gradient(moved, loss)

    columns = [
        sum(w * (slope(point + k * step * e) - slope(point - k * step * e)) for k, w in EIGHTH_ORDER.items()) / step
        for e in torch.eye(len(point), dtype=point.dtype, device=point.device)
    ]
    return torch.stack(columns, 1)


def relative(found: Tensor, truth: Tensor) -> float:
    """Frobenius norm of the difference over that of the truth."""
    return ((found - truth).norm() / truth.norm()).item()


def asymmetry(matrix: Tensor) -> float:
    """Frobenius norm of A - A^T over that of A."""
    return relative(matrix.T, matrix)


def route_errors(model: nn.Module, loss: Loss) -> dict[str, float]:
    """Error of every route against `hessian_by_differences`; NaN where torch raises."""
    truth = hessian_by_differences(model, loss)
    found = {route: hessian_by_route(model, loss, route) for route in ROUTES}
    return {route: float("nan") if h is None else relative(h, truth) for route, h in found.items()}


def hessian_with_constant_statistics(toy: Toy, dim: int, eps: float = 1e-5) -> Tensor:
    """What `torch.func.hessian` returns for a `Toy` with a fused norm over `dim` (0 batch, 1 layer).

    The gradient is written out as a backward pass computes it, right in every number. It is then derived with the
    mean and the standard deviation that the slope of `weight` was given taken for constants.
    """
    features, width = toy.x.shape[1], toy.target.shape[1]

    def slope(vector: Tensor) -> Tensor:
        matrix, weight, bias = vector.split([features * width, width, width])
        h = toy.x @ matrix.view(width, features).T  # (N, width)
        mean, inverse = h.mean(dim, keepdim=True), (h.var(dim, correction=0, keepdim=True) + eps).rsqrt()
        normed = (h - mean) * inverse
        upper = toy.target * (1 - torch.tanh(normed * weight + bias) ** 2)
        inner = upper * weight
        projected = inner - inner.mean(dim, keepdim=True) - normed * (inner * normed).mean(dim, keepdim=True)
        saved = (h - mean.detach()) * inverse.detach()  # the slip
        return torch.cat([((inverse * projected).T @ toy.x).flatten(), (upper * saved).sum(0), upper.sum(0)])

    point = torch.cat([p.detach().reshape(-1) for p in toy.parameters()])
    return torch.autograd.functional.jacobian(slope, point)


def consequences(right: Tensor, wrong: Tensor, slope: Tensor, damping: float = 0.1, seed: int = 0) -> dict[str, float]:
    """How far a wrong Hessian shows: in what one computes from it, relative to the right one.

    Args:
        right, wrong: (D, D). slope: the gradient (D,).
        damping: added to the matrix for the Newton step, beyond what makes it positive definite.
    """
    symmetric = (wrong + wrong.T) / 2
    values, others = (torch.linalg.eigvalsh(m).flip(0) for m in (right, symmetric))
    random = torch.Generator().manual_seed(seed)
    v = torch.randn(len(slope), generator=random, dtype=torch.float64).to(right)
    shift = (damping - values[-1]) * torch.eye(len(slope), dtype=right.dtype, device=right.device)
    newton = torch.linalg.solve(torch.stack([right, wrong]) + shift, slope.expand(2, -1))
    return {
        "top eigenvalue": ((others[0] - values[0]) / values[0]).abs().item(),
        "top ten eigenvalues": ((others[:10] - values[:10]) / values[:10]).abs().max().item(),
        "trace": ((wrong.trace() - right.trace()) / right.trace()).abs().item(),
        "Frobenius norm of the error": relative(wrong, right),
        "product with a random vector": relative(wrong @ v, right @ v),
        "asymmetry": asymmetry(wrong),
        "damped Newton step": relative(newton[1], newton[0]),
    }


def second_difference(model: nn.Module, loss: Loss, direction: Tensor, step: float = 1e-3) -> float:
    """(L(p + h v) - 2 L(p) + L(p - h v)) / h^2 for a unit vector v (D,): the curvature that forward passes see."""
    values = []
    for shift in (step, 0.0, -step):
        moved = copy.deepcopy(model)
        with torch.no_grad(), private_buffers(moved):
            for p, d in zip(moved.parameters(), unflatten(direction, model.parameters()), strict=True):
                p.add_(d, alpha=shift)
            values.append(loss(moved).item())
    return (values[0] - 2 * values[1] + values[2]) / step**2


def products_by_rerunning(model: nn.Module, loss: Loss, count: int, seed: int = 0) -> None:
    """`count` products with random vectors, each on a graph of its own, in the mode and on the buffers of the model."""
    tensors = list(model.parameters())
    random = torch.Generator().manual_seed(seed)
    for _ in range(count):
        slopes = torch.autograd.grad(loss(model), tensors, create_graph=True)
        vectors = [torch.randn(t.shape, generator=random, dtype=torch.float64).to(t) for t in tensors]
        torch.autograd.grad(slopes, tensors, vectors)


def descend(model: nn.Module, loss: Loss, lr: float, steps: int) -> list[float]:
    """Losses (steps + 1,) of gradient descent on a copy of the model, in its mode."""
    model = copy.deepcopy(model)
    values = []
    for _ in range(steps):
        value = loss(model)
        slopes = torch.autograd.grad(value, list(model.parameters()))
        with torch.no_grad():
            for p, g in zip(model.parameters(), slopes, strict=True):
                p.sub_(g, alpha=lr)
        values.append(value.item())
    return [*values, loss(model).item()]
