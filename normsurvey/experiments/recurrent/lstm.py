"""LSTMs whose normalization is a declaration, many of them side by side."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

import normsurvey as ns


class PerStep(nn.Module):
    """One normalizer per time step, each with its own statistics; a step beyond the last one uses the last one's.

    Args:
        make: builds the normalizer of one step.
        max_steps: number of steps that have statistics of their own.
        weight: gain that all steps share, (R C,).
        bias: shift that all steps share, (R C,), or ``None``.

    Raises:
        ValueError: in training, for a step that has no statistics of its own.

    Source: Cooijmans et al., ICLR 2017, arXiv 1603.09025, section 3.
    """

    def __init__(self, make: Callable[[], nn.Module], max_steps: int, weight: nn.Parameter, bias: nn.Parameter | None):
        super().__init__()
        self.steps = nn.ModuleList(make() for _ in range(max_steps))
        for norm in self.steps:
            norm.weight, norm.bias = weight, bias

    def forward(self, x: Tensor, t: int, mask: Tensor | None = None) -> Tensor:
        """Normalize ``x`` (B, R, C) of step ``t``, counted from 0; ``mask`` (B,) names the valid sequences."""
        if self.training and t >= len(self.steps):
            raise ValueError(f"t={t}: statistics exist for {len(self.steps)} steps; raise max_steps to train on more")
        return self.steps[min(t, len(self.steps) - 1)](x.flatten(1), mask=mask).view(x.shape)


class EveryStep(nn.Module):
    """One normalizer without statistics of its own for every step, and a gain and a shift (R C,) after it."""

    def __init__(self, norm: nn.Module, weight: nn.Parameter, bias: nn.Parameter):
        super().__init__()
        self.norm, self.weight, self.bias = norm, weight, bias

    def forward(self, x: Tensor, t: int, mask: Tensor | None = None) -> Tensor:
        """Normalize ``x`` (B, R, C), each sequence of each network by itself: step and mask change nothing."""
        return torch.addcmul(self.bias.view(x.shape[1:]), self.norm(x), self.weight.view(x.shape[1:]))


class LSTM(nn.Module):
    r"""R independent LSTMs of one shape, run side by side, with a linear read-out each.

    .. math::
        f, i, o, g &= \gamma_h N_h(W_h h_{t-1}) + \gamma_x N_x(W_x x_t) + b \\
        c_t &= \sigma(f) c_{t-1} + \sigma(i) \tanh(g) \\
        h_t &= \sigma(o) \tanh(\gamma_c N_c(c_t) + \beta_c)

    ``"BatchNorm"`` has three norms with separate statistics per time step (recurrent batch normalization);
    ``"LayerNorm"`` one for the sum, :math:`\gamma N(W_h h_{t-1} + W_x x_t) + b`, and one for the cell; ``None`` none.

    The R networks lie side by side as R times as many channels, so that batch normalization of all is one layer.
    Weights carry R as their first axis: ``weight_x`` (R, D, 4H), ``weight_h`` (R, H, 4H), ``head`` (R, H, K); gains
    and biases are flat, (R C,), so that ``p.view(R, -1)`` parts every parameter by network.

    Args:
        num_inputs: D.
        hidden: H.
        num_outputs: K.
        seeds: seed of the initial weights of each network, R of them.
        norm: ``None``, ``"LayerNorm"`` or ``"BatchNorm"``.
        gamma: initial gain, of all networks or one for each.
        max_steps: number of steps with statistics of their own; needed for ``"BatchNorm"``.
        eps: of the norms.

    Raises:
        ValueError: for another ``norm``, or ``"BatchNorm"`` without ``max_steps``.

    Source: Cooijmans et al., arXiv 1603.09025, equations 6 to 8; Ba, Kiros & Hinton, arXiv 1607.06450, section 3.1
    (the sum is normalized as in its recurrent network).
    """

    def __init__(
        self, num_inputs: int, hidden: int, num_outputs: int, *, seeds: Sequence[int] = (0,), norm: str | None = None,
        gamma: float | Sequence[float] = 1.0, max_steps: int | None = None, eps: float = 1e-5,
    ):  # fmt: skip
        super().__init__()
        if norm not in (None, "LayerNorm", "BatchNorm"):
            raise ValueError(f"norm={norm!r} must be None, 'LayerNorm' or 'BatchNorm'")
        if norm == "BatchNorm" and not max_steps:
            raise ValueError(f"max_steps={max_steps}: batch normalization needs the number of steps, such as 64")
        self.hidden, self.runs, self.norm, self.eps = hidden, len(seeds), norm, eps
        draws = [_initial_weights(num_inputs, hidden, num_outputs, seed) for seed in seeds]
        for name, parts in zip(("weight_x", "weight_h", "head"), zip(*draws, strict=True), strict=True):
            setattr(self, name, nn.Parameter(torch.stack(parts)))
        bias = torch.zeros(self.runs, 4 * hidden)
        bias[:, :hidden] = 1.0  # the forget gate starts open
        self.bias, self.head_bias = nn.Parameter(bias.flatten()), nn.Parameter(torch.zeros(self.runs, num_outputs))
        self._add_norms(norm, torch.as_tensor(gamma, dtype=bias.dtype).expand(self.runs), max_steps, eps)

    def _add_norms(self, norm, gamma, max_steps, eps):
        def build(width, **tied):
            if norm == "LayerNorm":
                return EveryStep(ns.LayerNorm(width, eps=eps, affine=False, channel_dim=-1), **tied)
            return PerStep(lambda: ns.BatchNorm(self.runs * width, eps=eps), max_steps, **tied)

        def gain(width):
            return nn.Parameter(gamma.repeat_interleave(width))

        if norm is not None:
            shift = nn.Parameter(torch.zeros(self.runs * self.hidden))
            self.norm_c = build(self.hidden, weight=gain(self.hidden), bias=shift)
            bias = self.bias if norm == "LayerNorm" else None
            self.norm_h = build(4 * self.hidden, weight=gain(4 * self.hidden), bias=bias)
        if norm == "BatchNorm":
            self.norm_x = build(4 * self.hidden, weight=gain(4 * self.hidden), bias=self.bias)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Run over ``x`` (T, B, S, D), where S divides R, and return all hidden states (T, B, R, H).

        Network r reads set ``r % S``. ``mask`` (T, B), boolean, marks the valid steps: at a padded one the state stays
        as it is, and the sequence counts in no statistic.
        """
        h = c = x.new_zeros(x.shape[1], self.runs, self.hidden)
        states = []
        for t, from_x in enumerate(self.inputs(x)):
            valid = None if mask is None else mask[t]
            new_h, new_c = self.step(from_x, h, c, t, valid)
            if valid is not None:
                keep = valid[:, None, None]
                new_h, new_c = torch.where(keep, new_h, h), torch.where(keep, new_c, c)
            h, c = new_h, new_c
            states.append(h)
        return torch.stack(states)

    def inputs(self, x: Tensor) -> tuple[Tensor, ...]:
        """:math:`W_x x_t` of every step, T tensors (B, R, 4H)."""
        length, size, sets, _ = x.shape
        x = x.permute(2, 0, 1, 3).flatten(1, 2).repeat(self.runs // sets, 1, 1)  # (R, T B, D)
        return torch.bmm(x, self.weight_x).unflatten(1, (length, size)).permute(1, 2, 0, 3).contiguous().unbind(0)

    def step(self, from_x: Tensor, h: Tensor, c: Tensor, t: int, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One time step from states ``h, c`` (B, R, H) and ``from_x`` (B, R, 4H) to the next ``h, c``."""
        z = self.preactivation(from_x, h, t, mask)
        gates = z.unflatten(-1, (4, self.hidden)).permute(2, 0, 1, 3).contiguous()  # (4, B, R, H), gates apart
        doors, content = gates.split((3, 1))
        f, i, o = doors.sigmoid().unbind(0)
        c = torch.addcmul(i * content[0].tanh(), f, c)
        return o * (c if self.norm is None else self.norm_c(c, t, mask)).tanh(), c

    def preactivation(self, from_x: Tensor, h: Tensor, t: int, mask: Tensor | None = None) -> Tensor:
        """The four gates f, i, o, g before their nonlinearity, (B, R, 4H)."""
        from_h = torch.bmm(h.transpose(0, 1), self.weight_h).transpose(0, 1)
        if self.norm == "BatchNorm":
            return self.norm_x(from_x, t, mask) + self.norm_h(from_h, t, mask)
        z = from_x + from_h
        return z + self.bias.view(self.runs, -1) if self.norm is None else self.norm_h(z, t, mask)

    def preactivations(self, x: Tensor) -> Tensor:
        """All :meth:`preactivation` (T, B, R, 4H) of a run over ``x`` (T, B, S, D), every step valid."""
        states = self(x)
        before = torch.cat([torch.zeros_like(states[:1]), states[:-1]])
        steps = zip(self.inputs(x), before, strict=True)
        return torch.stack([self.preactivation(from_x, h, t) for t, (from_x, h) in enumerate(steps)])

    def read_out(self, states: Tensor) -> Tensor:
        """Scores (..., B, R, K) of hidden states (..., B, R, H)."""
        return torch.einsum("...rh,rhk->...rk", states, self.head) + self.head_bias


def _initial_weights(num_inputs: int, hidden: int, num_outputs: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    # orthogonal hidden-to-hidden blocks, Gaussian inputs and read-out of variance 1 / fan-in
    random = torch.Generator().manual_seed(seed)
    blocks = [torch.linalg.qr(torch.randn(hidden, hidden, generator=random))[0] for _ in range(4)]
    weight_x = torch.randn(num_inputs, 4 * hidden, generator=random) / math.sqrt(num_inputs)
    return weight_x, torch.cat(blocks, 1), torch.randn(hidden, num_outputs, generator=random) / math.sqrt(hidden)
