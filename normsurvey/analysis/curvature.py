r"""Hessian-vector products of a loss, by double backward only.

$$ H v = \nabla_\theta \big\langle \nabla_\theta L(\theta),\, v \big\rangle \quad \text{(Pearlmutter 1994)} $$

Two backward passes are right through every norm kernel of torch. Reverse over forward and, where the
norm's own affine parameters take part, `jacfwd(jacrev)` (which is `torch.func.hessian`) and
`jacrev(jacrev)` are silently wrong through the fused kernels of LayerNorm and BatchNorm (pytorch issues
196699 and 196700). They are not offered, and a `Hessian` refuses to be built inside a `torch.func`
transform.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Loss = Callable[[nn.Module], Tensor]


def select_parameters(model: nn.Module, names: Iterable[str] | None = None) -> dict[str, nn.Parameter]:
    """The parameters called `names`, in the model's order; without names, all that require a gradient.

    Raises:
        ValueError: a name is unknown or its parameter is frozen, or nothing is left to differentiate.
    """
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if names is not None:
        wanted = set(names)
        if unknown := sorted(wanted - trainable.keys()):
            raise ValueError(f"names={unknown} are no trainable parameters of the model; it has {list(trainable)}")
        trainable = {name: p for name, p in trainable.items() if name in wanted}
    if not trainable:
        raise ValueError("no parameter selected: the model has none that requires a gradient, or names is empty")
    return trainable


@contextmanager
def private_buffers(model: nn.Module) -> Iterator[None]:
    """Lets the model work on copies of its buffers, so that a forward leaves its statistics alone.

    Copies, as restoring the values later in place would invalidate a graph that has saved the buffers.

    Raises:
        RuntimeError: the module wrote into a buffer all the same, through a reference of its own.
    """
    owned = [(m, name, b) for m in model.modules() for name, b in m._buffers.items() if b is not None]
    versions = [buffer._version for _, _, buffer in owned]
    for module, name, buffer in owned:
        module._buffers[name] = buffer.clone()
    try:
        yield
    finally:
        for module, name, buffer in owned:
            module._buffers[name] = buffer
    for (module, name, buffer), version in zip(owned, versions, strict=True):
        if buffer._version != version:
            raise RuntimeError(
                f"{type(module).__name__}.{name} was written to through another reference; "
                "give the module a forward that writes to self.<buffer> only"
            )


def flatten(tensors: Iterable[Tensor]) -> Tensor:
    """Tensors of any shape, one after the other, as one vector (D,)."""
    return torch.cat([t.reshape(-1) for t in tensors])


def unflatten(vector: Tensor, like: Iterable[Tensor]) -> list[Tensor]:
    """A vector (D,) cut into tensors shaped as those in `like`."""
    like = list(like)
    return [piece.view_as(t) for piece, t in zip(vector.split([t.numel() for t in like]), like, strict=True)]


def gradient(model: nn.Module, loss: Loss, parameters: Iterable[str] | None = None) -> Tensor:
    """The gradient of `loss(model)`, flat (D,); neither `.grad` nor any buffer of the model is touched."""
    tensors = list(select_parameters(model, parameters).values())
    return flatten(_gradients(model, loss, tensors, create_graph=False)[1]).detach()


class CurvatureOperator(ABC):
    """A symmetric matrix (D, D) known by its products: `operator @ vector`, `dense()`, `to_scipy()`.

    A subclass calls `_keep` with the parameters it differentiates and defines `_product`.

    Attributes:
        names: the parameters, in the model's order. point: their values, flat (D,). shape: (D, D).
    """

    def _keep(self, selected: dict[str, nn.Parameter]) -> None:
        self.names, self._tensors = list(selected), list(selected.values())
        self._versions = [t._version for t in self._tensors]
        self.point = flatten(self._tensors).detach()
        self.shape = (self.point.numel(), self.point.numel())

    @abstractmethod
    def _product(self, vector: Tensor) -> Tensor:
        """The product with a vector (D,) whose shape has been checked."""

    def __matmul__(self, vector: Tensor) -> Tensor:
        """The product with a vector (D,), or column by column with (D, k)."""
        if vector.shape[:1] != self.shape[:1] or vector.dim() > 2:
            raise ValueError(f"vector has shape {tuple(vector.shape)}; expected ({self.shape[0]}, ...)")
        if [t._version for t in self._tensors] != self._versions:
            raise RuntimeError(
                f"the parameters have changed since this {type(self).__name__} was built; build a new one"
            )
        if vector.dim() == 2:
            return torch.stack([self._product(column) for column in vector.T], dim=1)
        return self._product(vector)

    def dense(self, limit: int = 4096) -> Tensor:
        """The matrix (D, D), one product per column, not symmetrised.

        Raises:
            ValueError: D exceeds `limit`.
        """
        if self.shape[0] > limit:
            raise ValueError(
                f"the {type(self).__name__} has {self.shape[0]} rows, limit={limit}; select fewer parameters, "
                "use lanczos, or raise the limit"
            )
        return self @ torch.eye(self.shape[0], dtype=self.point.dtype, device=self.point.device)

    def to_scipy(self):
        """A `scipy.sparse.linalg.LinearOperator`, for `eigsh`, `cg` and their kin."""
        from scipy.sparse.linalg import LinearOperator

        def product(vector):
            torch_vector = torch.from_numpy(vector.reshape(-1).copy()).to(self.point)
            return (self @ torch_vector).cpu().numpy()

        return LinearOperator(
            self.shape,
            matvec=product,
            rmatvec=product,
            dtype=torch.empty(0, dtype=self.point.dtype).numpy().dtype,
        )


class Hessian(CurvatureOperator):
    r"""The Hessian (D, D) of `loss(model)` at the present parameters, as an operator: `hessian @ vector`.

    The model is evaluated in the mode that it is in: for a batch norm, train and eval are two different
    losses. The graph of the gradient is kept as long as this object, so a product costs about two
    backward passes.

    Args:
        model: any module.
        loss: maps the model to a scalar; must use the model that it is given, and the same data each time.
        parameters: names of those to differentiate, the others are constants; all trainable ones if None.

    Attributes:
        value: the loss (float). gradient: flat (D,). point: the parameters, flat (D,). shape: (D, D).

    Raises:
        ValueError: a parameter is unknown, or the loss is not a scalar.
        RuntimeError: built inside a `torch.func` transform, or used after the parameters were changed.

    >>> line = nn.Linear(2, 1, bias=False)
    >>> x = torch.tensor([[1.0, 0.0], [0.0, 3.0]])
    >>> Hessian(line, lambda model: 0.5 * model(x).square().sum()).dense()  # x^T x
    tensor([[1., 0.],
            [0., 9.]])
    """

    def __init__(self, model: nn.Module, loss: Loss, parameters: Iterable[str] | None = None):
        refuse_function_transforms("Hessian")
        self._keep(select_parameters(model, parameters))
        self.model, self.loss = model, loss
        value, self._gradients = _gradients(model, loss, self._tensors, create_graph=True)
        self.value = value.item()
        self.gradient = flatten(self._gradients).detach()

    def _product(self, vector: Tensor) -> Tensor:
        # a gradient without a graph is constant in the parameters: its rows of H are zero
        curved = [
            (g, v) for g, v in zip(self._gradients, unflatten(vector, self._tensors), strict=True) if g.requires_grad
        ]
        if not curved:
            return torch.zeros_like(vector)
        outputs, cotangents = zip(*curved, strict=True)
        return flatten(
            torch.autograd.grad(outputs, self._tensors, cotangents, retain_graph=True, materialize_grads=True)
        )


@dataclass(frozen=True)
class Verification:
    """What `verify` measured: `error` against finite differences and `asymmetry`, both relative."""

    error: float
    asymmetry: float


def verify(hessian: Hessian, *, seed: int = 0, step: float = 1e-5) -> Verification:
    r"""Compares products with central differences of the gradient, and with each other.

    The error is that of :math:`Hv` relative to :math:`(g(\theta + hv) - g(\theta - hv)) / 2h`, with :math:`v` a unit
    vector and :math:`h` = `step`; the asymmetry is :math:`|u^\top H v - v^\top H u|` relative to the larger of the
    two. Use float64: in float32 the differences themselves are wrong in the third digit. The model is copied, never
    changed.
    """
    random = torch.Generator().manual_seed(seed)
    u, v = torch.randn(2, hessian.shape[0], generator=random, dtype=torch.float64).to(hessian.point)
    v = v / v.norm()
    moved = copy.deepcopy(hessian.model)
    difference = (_gradient_at(hessian, moved, step * v) - _gradient_at(hessian, moved, -step * v)) / (2 * step)
    product = hessian @ v
    uhv, vhu = u @ product, v @ (hessian @ u)
    return Verification(
        error=((product - difference).norm() / difference.norm()).item(),
        asymmetry=((uhv - vhu).abs() / torch.maximum(uhv.abs(), vhu.abs())).item(),
    )


def _gradient_at(hessian: Hessian, moved: nn.Module, displacement: Tensor) -> Tensor:
    targets = list(select_parameters(moved, hessian.names).values())
    with torch.no_grad():
        for target, values in zip(targets, unflatten(hessian.point + displacement, targets), strict=True):
            target.copy_(values)
    return gradient(moved, hessian.loss, hessian.names)


def evaluate(model: nn.Module, loss: Loss) -> Tensor:
    """The scalar `loss(model)` with its graph, on private copies of the buffers.

    Raises:
        ValueError: it is no scalar.
    """
    with torch.enable_grad(), private_buffers(model):
        value = loss(model)
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise ValueError(f"loss(model) must return a scalar, got {getattr(value, 'shape', type(value))}; average it")
    return value


def _gradients(
    model: nn.Module, loss: Loss, tensors: list[Tensor], create_graph: bool
) -> tuple[Tensor, tuple[Tensor, ...]]:
    with torch.enable_grad(), private_buffers(model):  # a backward pass of a norm's own may write buffers too
        value = evaluate(model, loss)
        return value, torch.autograd.grad(value, tensors, create_graph=create_graph, materialize_grads=True)


def refuse_function_transforms(what: str) -> None:
    """Raises RuntimeError inside a `torch.func` transform, where an operator called `what` would be wrong."""
    if torch._C._functorch.peek_interpreter_stack() is not None:
        raise RuntimeError(
            f"{what} was built inside a torch.func transform, where second derivatives of fused norm kernels "
            "are wrong; call it outside"
        )
