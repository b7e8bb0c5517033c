"""Weights divided by their largest singular value."""

import torch
from torch import Tensor, nn

from normsurvey.registry import Example, method
from normsurvey.weights.base import WeightMethod, check_choice, check_number, without_autocast


@method(
    title="Spectral Normalization",
    kind="weight",
    list_section="1.3",
    cite="miyato2018spectral",
    year=2018,
    arxiv="1802.05957",
    status="verified",
    invariances=("weight_scale",),
    merge="none needed",
    shapes=("linear", "conv", "transposed conv", "embedding"),
    derivative=True,
    example=Example(num_features=6, options={}, shape=(5, 6)),
)
class SpectralNorm(WeightMethod):
    r"""The weight matrix divided by its largest singular value, so that a linear map is 1-Lipschitz.

    .. math::
        W_\mathrm{SN} = \frac{W}{\sigma(W)}, \qquad \sigma(W) = u^\top W v, \qquad
        u \leftarrow \frac{W v}{\lVert W v \rVert}, \quad v \leftarrow \frac{W^\top u}{\lVert W^\top u \rVert}

    :math:`u, v` (buffers ``_u``, ``_v``, constants for the gradient) follow the leading singular vectors by
    `n_power_iterations` steps at each training forward; in eval mode they rest. A convolution's weight is the
    matrix ``(O, I * kh * kw)``, whose norm is not that of the convolution as an operator. Values, gradients
    and ``state_dict`` keys are those of ``torch.nn.utils.parametrizations.spectral_norm``.

    Args:
        weight: the weight to start from; a vector is divided by its L2 norm.
        n_power_iterations: power iterations per training forward.
        eps: guards the normalisation of u and v.
        dim: axis of the output units (``ns.parametrize`` takes 1 for transposed convolutions).
        init_iterations: power iterations at construction; 0 starts from random vectors, as the authors do.
        update_first: ``"u"`` (torch) or ``"v"`` (the authors); they differ until the iteration has converged.
        eps_placement: ``"max"`` divides u, v by max(norm, eps) (torch), ``"sum"`` by norm + eps (the PyTorch
            port).
        scale: constant factor on the result; with `learn_scale`, its start (None: the largest singular
            value).
        learn_scale: learn one scalar factor, the authors' gamma.

    Raises:
        ValueError: an option out of its range; the message names the range.

    Source: Miyato et al., ICLR 2018, algorithm 1; the authors' Chainer code for the options.
    """

    area = "o i ... ->"
    operation = "Scale by the largest singular value"
    statistics = "u, v carried from step to step"

    def __init__(
        self,
        weight: Tensor,
        *,
        n_power_iterations: int = 1,
        eps: float = 1e-12,
        dim: int = 0,
        init_iterations: int = 15,
        update_first: str = "u",
        eps_placement: str = "max",
        scale: float | None = None,
        learn_scale: bool = False,
    ) -> None:
        super().__init__(weight, dim)
        check_number("n_power_iterations", n_power_iterations, least=1)
        check_number("init_iterations", init_iterations)
        check_number("eps", eps)
        check_choice("update_first", update_first, ("u", "v"))
        check_choice("eps_placement", eps_placement, ("max", "sum"))
        self.n_power_iterations, self.init_iterations, self.eps = n_power_iterations, init_iterations, eps
        self.update_first, self.eps_placement = update_first, eps_placement
        matrix = weight.detach() if weight.ndim == 1 else self.rows(weight.detach())
        self.start = scale
        if learn_scale:
            sigma = torch.linalg.norm(matrix, 2) if scale is None else matrix.new_tensor(scale)
            self.scale = nn.Parameter(sigma)
        else:
            self.scale = None
        if weight.ndim > 1:
            u, v = (matrix.new_empty(size).normal_(0, 1) for size in matrix.shape)
            self.register_buffer("_u", self.unit(u))
            self.register_buffer("_v", self.unit(v))
            self.power_iteration(matrix, init_iterations)

    def unit(self, vector: Tensor) -> Tensor:
        """The vector at length 1, guarded by `eps`."""
        norm = torch.linalg.vector_norm(vector)
        return vector / (norm.clamp_min(self.eps) if self.eps_placement == "max" else norm + self.eps)

    @torch.no_grad()
    def power_iteration(self, matrix: Tensor, steps: int) -> None:
        """Move ``_u`` and ``_v`` in place towards the leading singular vectors of ``matrix`` (n, d)."""
        for _ in range(steps):
            if self.update_first == "u":
                self._u.copy_(self.unit(matrix @ self._v))
                self._v.copy_(self.unit(matrix.T @ self._u))
            else:
                self._v.copy_(self.unit(matrix.T @ self._u))
                self._u.copy_(self.unit(matrix @ self._v))

    def forward(self, weight: Tensor) -> Tensor:
        """``W -> W / sigma(W)``; in training mode the power iteration advances first."""
        with without_autocast(weight):
            scale = self.start if self.scale is None else self.scale
            normalized = self.unit(weight) if weight.ndim == 1 else weight / self.sigma(weight)
            return normalized if scale is None else scale * normalized

    def sigma(self, weight: Tensor) -> Tensor:
        """The estimate u^T W v of the largest singular value."""
        matrix = self.rows(weight)
        if self.training:
            self.power_iteration(matrix, self.n_power_iterations)
        # clones: a second forward moves the buffers before the first one's backward
        u, v = self._u.clone(), self._v.clone()
        return u @ (matrix @ v)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """The raw weight is the assigned one."""
        return weight

    def extra_repr(self) -> str:
        """The options, as they would be passed."""
        return (
            f"n_power_iterations={self.n_power_iterations}, eps={self.eps}, dim={self.dim}, "
            f"init_iterations={self.init_iterations}, update_first={self.update_first!r}, "
            f"eps_placement={self.eps_placement!r}, scale={self.start}, learn_scale={self.scale is not None}"
        )
