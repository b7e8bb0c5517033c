r"""The linear model: the one place where the effect of normalization on training is understood completely.

For inputs :math:`x`, targets :math:`t` and the loss :math:`\frac1{2N}\sum_n (w^T x_n - t_n)^2` the Hessian is
:math:`H = \frac1N \sum_n x_n x_n^T`, whatever the targets: what is done to the inputs decides how fast the
weights can be learned. Source: LeCun, Kanter and Solla, Second order properties of error surfaces,
NeurIPS 1990.
"""

from functools import cached_property

import torch

from ..area import Area
from ..norm import Norm
from ..operations import Center, Decorrelate, Scale, Standardize, Whiten

#: What can be done to the inputs: the five operations of the survey, beside doing nothing.
OPERATIONS = {
    "raw": None,
    "center": Center(),
    "scale": Scale(eps=0.0),
    "standardize": Standardize(eps=0.0),
    "decorrelate": Decorrelate(),
    "whiten": Whiten("zca", eps=0.0),
}
FEATURES = Area("n c ... -> c")
WHITENED_TOGETHER = Area("n c ... ->", features="c")


def apply(operation, inputs):
    """Apply an operation over the N samples of inputs ``(N, d)``; ``None`` leaves them as they are."""
    if operation is None:
        return inputs
    return Norm(WHITENED_TOGETHER if operation.mixes_channels else FEATURES, operation)(inputs)


class LeastSquares:
    """A linear model without bias and the quadratic loss of its weights, :math:`w` of shape ``(d,)``.

    Args:
        inputs: ``(N, d)`` of full rank, in float64 where condition numbers above 1e6 are expected.
        targets: ``(N,)``.

    Raises:
        ValueError: where there are fewer inputs than features, so that the Hessian is singular.
    """

    def __init__(self, inputs, targets):
        if len(inputs) < inputs.shape[1]:
            raise ValueError(
                f"inputs of shape {tuple(inputs.shape)}: at least as many rows as columns are needed"
            )
        self.inputs, self.targets = inputs, targets

    @cached_property
    def hessian(self):
        """Second moment of the inputs, ``(d, d)``."""
        return self.inputs.T @ self.inputs / len(self.inputs)

    @cached_property
    def spectrum(self):
        """Eigenvalues of the Hessian, ascending, ``(d,)``."""
        return torch.linalg.eigvalsh(self.hessian)

    @property
    def condition_number(self):
        r"""Largest over smallest eigenvalue, :math:`\kappa`."""
        return (self.spectrum[-1] / self.spectrum[0]).item()

    @cached_property
    def solution(self):
        """The weights of least loss, by a QR factorisation."""
        q, r = torch.linalg.qr(self.inputs)
        return torch.linalg.solve_triangular(r, (q.T @ self.targets)[:, None], upper=True)[:, 0]

    def excess(self, weights):
        """Loss above the least one for weights ``(..., d)``: a quadratic form, no losses are subtracted."""
        error = weights - self.solution
        return 0.5 * ((error @ self.hessian) * error).sum(-1)

    def step_size(self, rule="largest"):
        r"""A learning rate by one of two rules.

        ``"largest"`` is :math:`1/\lambda_{max}`; ``"both ends"`` is :math:`2/(\lambda_{min}+\lambda_{max})`,
        of all constant rates the best for the worst start. Another rule raises ``ValueError``.
        """
        smallest, largest = self.spectrum[0].item(), self.spectrum[-1].item()
        rules = {"largest": 1 / largest, "both ends": 2 / (smallest + largest)}
        if rule not in rules:
            raise ValueError(f"rule={rule!r} is unknown: choose one of {', '.join(map(repr, rules))}")
        return rules[rule]

    def descend(self, steps, learning_rate, start=None):
        """Weights of full-batch gradient descent, ``(steps + 1, d)``, from ``start`` (default 0)."""
        weights = torch.zeros_like(self.inputs[0]) if start is None else start
        path, moment = [weights], self.inputs.T @ self.targets / len(self.targets)
        for _ in range(steps):
            weights = weights - learning_rate * (self.hessian @ weights - moment)
            path.append(weights)
        return torch.stack(path)

    def relative_excess(self, steps, rule="largest"):
        """Excess loss after 0, 1, ... ``steps`` steps from 0, divided by the first one, ``(steps + 1,)``."""
        excess = self.excess(self.descend(steps, self.step_size(rule)))
        return excess / excess[0]


def random_inputs(seed, samples=1000, features=16, offset=5.0, decades=1.0):
    """Correlated features of different scales around a common mean, and the causes behind them.

    Independent Gaussian causes are mixed by a Gaussian matrix, each feature is given its own scale, drawn
    from ``10 ** -decades`` to ``10 ** decades`` uniformly in the exponent, and all get the mean ``offset``.

    Returns:
        ``inputs (N, d), causes (N, d)`` in float64.
    """
    generator = torch.Generator().manual_seed(seed)
    causes = torch.randn(samples, features, generator=generator, dtype=torch.float64)
    mixing = torch.randn(features, features, generator=generator, dtype=torch.float64) / features**0.5
    scales = 10 ** (decades * (2 * torch.rand(features, generator=generator, dtype=torch.float64) - 1))
    return (causes @ mixing.T) * scales + offset, causes


def random_problem(seed, noise=0.1, device="cpu", **shape):
    """Regression from :func:`random_inputs` to a centred target: a random sum of the causes, plus noise.

    Every cause matters equally, so that no direction of the inputs may be ignored.
    """
    inputs, causes = random_inputs(seed, **shape)
    generator = torch.Generator().manual_seed(seed + 2**32)
    coefficients = torch.randn(causes.shape[1], generator=generator, dtype=torch.float64)
    targets = causes @ coefficients + noise * torch.randn(
        len(causes), generator=generator, dtype=torch.float64
    )
    return LeastSquares(inputs.to(device), (targets - targets.mean()).to(device))


def transformed(problem, operation):
    """The same targets, to be learned from inputs that went through an operation."""
    return LeastSquares(apply(operation, problem.inputs), problem.targets)


def condition_ratios(operation, seed, problems=100, bias=False):
    r""":math:`\kappa` after the operation over :math:`\kappa` before, for random inputs, ``(problems,)``.

    With ``bias`` the model has one, that is, a feature that is always 1.
    """
    ratios = []
    for k in range(problems):
        inputs, _ = random_inputs(problems * seed + k)
        pair = inputs, apply(operation, inputs)
        if bias:
            pair = [torch.cat([x, torch.ones_like(x[:, :1])], dim=1) for x in pair]
        before, after = (LeastSquares(x, inputs[:, 0]).condition_number for x in pair)
        ratios.append(after / before)
    return torch.tensor(ratios, dtype=torch.float64)


def interlacing_violation(raw, centred):
    r"""How far :math:`\lambda_i(H) \ge \lambda_i(\Sigma) \ge \lambda_{i-1}(H)` fails, relatively.

    Eigenvalues ascend, the largest is the unit. The Hessian of raw inputs is the covariance plus a matrix of
    rank one, :math:`H = \Sigma + \mu\mu^T`; a value of at most 0 means that every inequality holds. The
    arguments are two :class:`LeastSquares`.
    """
    above = (centred.spectrum - raw.spectrum).max()
    below = (raw.spectrum[:-1] - centred.spectrum[1:]).max()
    return (torch.maximum(above, below) / raw.spectrum[-1]).item()
