"""Weights with a length and a direction for each output."""

import functools

import torch
from torch import Tensor, nn

from normsurvey.registry import Example, method
from normsurvey.weights.base import WeightMethod, check_number


@method(
    title="Weight Normalization",
    kind="weight",
    list_section="1.3",
    cite="salimans2016weight",
    year=2016,
    arxiv="1602.07868",
    status="verified",
    invariances=("weight_scale", "row_scale"),
    merge="none needed",
    shapes=("linear", "conv", "transposed conv", "embedding"),
    derivative=True,
    example=Example(num_features=6, options={}, shape=(5, 6)),
)
class WeightNorm(WeightMethod):
    r"""Length and direction of each output's weight vector are learned apart.

    .. math::
        w_i = g_i \, \frac{v_i}{\lVert v_i \rVert_2}

    :math:`v` is the raw weight (``original1``), :math:`g` its lengths (``original0``, starting at
    :math:`\lVert v_i \rVert`, so that the layer computes what it did before); :math:`i` runs over axis `dim`.
    The gradient of :math:`v_i` is orthogonal to :math:`v_i`, so its length never shrinks under gradient
    descent. Values, gradients and ``state_dict`` keys are those of
    ``torch.nn.utils.parametrizations.weight_norm``.

    Args:
        weight: the weight to start from.
        dim: axis of the output units; ``None`` takes one norm and one scalar g for the whole tensor.
        eps: added to the norm; the ONI repository uses 1e-5.
        scale: start of every g, instead of the norm; the ONI repository uses 1.414.
        learn_scale: False keeps g constant (a buffer), as the ONI repository does by default.

    Raises:
        ValueError: `dim` is no axis of the weight, or `eps` is negative.

    Source: Salimans & Kingma, NeurIPS 2016, equation 2; the options eps, scale, learn_scale: code of arXiv
    2004.00917.
    """

    operation = "Scale by the L2 norm"
    recovery = "length g per output"
    rows_are_outputs = False  # torch keeps dim=0 for transposed convolutions
    check_registration = False

    def __init__(
        self,
        weight: Tensor,
        *,
        dim: int | None = 0,
        eps: float = 0.0,
        scale: float | None = None,
        learn_scale: bool = True,
    ) -> None:
        super().__init__(weight, dim)
        if dim is not None and dim < 0:  # torch reads dim=-1 as None, against its custom
            raise ValueError(f"dim={dim} is ambiguous; pass {self.dim} for that axis, or None for one norm in all")
        check_number("eps", eps)
        self.eps, self.start, self.learn_scale = eps, scale, learn_scale
        self.num_originals = 2 if learn_scale else 1
        if not learn_scale:
            self.register_buffer("scale", self.initial_scale(weight.detach()))

    def prepare(self, layer: nn.Module, tensor_name: str) -> None:
        """Let the layer load the keys ``weight_g``, ``weight_v`` of torch's older ``weight_norm`` too."""
        if self.learn_scale:
            register = getattr(layer, "register_load_state_dict_pre_hook", None)  # public since torch 2.5
            register = register or functools.partial(layer._register_load_state_dict_pre_hook, with_module=True)
            register(functools.partial(rename_older_keys, tensor_name=tensor_name))

    def norm(self, v: Tensor) -> Tensor:
        """L2 norm over all axes but `dim`, kept as axes of size 1 (a 0-d tensor for ``dim=None``)."""
        if self.dim is None:
            return torch.linalg.vector_norm(v)
        others = [axis for axis in range(v.ndim) if axis != self.dim]
        return torch.linalg.vector_norm(v, dim=others, keepdim=True) if others else v.abs()

    def initial_scale(self, v: Tensor) -> Tensor:
        """The g to start from."""
        norm = self.norm(v)
        return norm if self.start is None else torch.full_like(norm, self.start)

    def forward(self, *originals: Tensor) -> Tensor:
        """``(g, v) -> w``, or ``(v,) -> w`` where g is constant."""
        g, v = originals if self.learn_scale else (self.scale, *originals)
        return v * (g / (self.norm(v) + self.eps))

    def right_inverse(self, weight: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """A raw weight (and its g) for a weight that is assigned to the layer."""
        return (self.initial_scale(weight), weight) if self.learn_scale else weight

    def extra_repr(self) -> str:
        """The options, as they would be passed."""
        return f"dim={self.dim}, eps={self.eps}, scale={self.start}, learn_scale={self.learn_scale}"


def rename_older_keys(layer: nn.Module, state_dict: dict, prefix: str, *rest: object, tensor_name: str) -> None:
    """Rename ``weight_g``, ``weight_v`` of a checkpoint to the keys of a parametrization, in place."""
    for old, new in (("g", "original0"), ("v", "original1")):
        if f"{prefix}{tensor_name}_{old}" in state_dict:
            value = state_dict.pop(f"{prefix}{tensor_name}_{old}")
            state_dict[f"{prefix}parametrizations.{tensor_name}.{new}"] = value
