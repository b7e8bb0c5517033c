"""What normalization does to the gradient: closed forms, blocked directions and nearly equal eigenvalues.

Written from the mathematics, to check the layers of the package, or to contrast with them.
"""

import torch


def standardize_backward(x_hat, upstream, deviation, gain=1.0):
    r"""Gradient of batch normalization in closed form.

    .. math::
        \frac{\partial L}{\partial x} = \frac{\gamma}{m\sigma}
        \left(m\,u - \sum u - \hat x \langle u, \hat x\rangle\right)

    Args:
        x_hat: standardized batch ``(m, d)``.
        upstream: :math:`u`, the gradient with respect to the output :math:`\gamma \hat x + \beta`, ``(m, d)``.
        deviation: :math:`\sigma` of each feature, ``(d,)``.
        gain: :math:`\gamma` of each feature, ``(d,)``.

    Source: Ioffe and Szegedy, ICML 2015, arXiv 1502.03167, section 3, collected into one line.
    """
    m = len(x_hat)
    return gain * (m * upstream - upstream.sum(0) - x_hat * (upstream * x_hat).sum(0)) / (m * deviation)


def with_random_gains(layer, seed=0):
    """The layer, its gains drawn from [0.5, 2] with either sign and its biases from a Gaussian."""
    generator = torch.Generator().manual_seed(seed)
    gain = 0.5 + 1.5 * torch.rand(layer.weight.shape, generator=generator, dtype=torch.float64)
    sign = 2.0 * torch.randint(2, layer.weight.shape, generator=generator) - 1
    with torch.no_grad():
        layer.weight.copy_(gain * sign)
        layer.bias.copy_(torch.randn(layer.bias.shape, generator=generator, dtype=torch.float64))
    return layer


def input_gradient(layer, x, seed=0):
    """Outputs of ``layer(x)`` and the gradient of a random linear function of them with respect to ``x``.

    Returns:
        ``y, upstream, gradient``, each with the shape of its tensor.
    """
    x = x.detach().requires_grad_()
    y = layer(x)
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(seed), dtype=y.dtype).to(y.device)
    (gradient,) = torch.autograd.grad(y, x, upstream)
    return y.detach(), upstream, gradient


def blocked_per_feature(gradient, x_hat):
    """Largest cosine over the features of a gradient ``(m, d)`` with the ones and with the standardized batch."""

    def cosine(direction):
        products = (gradient * direction).sum(0).abs()
        return (products / (gradient.norm(dim=0) * direction.norm(dim=0))).max().item()

    return {"with 1": cosine(torch.ones_like(x_hat)), "with the output": cosine(x_hat)}


def blocked_by_whitening(gradient, x, y):
    r"""The directions that ZCA whitening takes from a gradient ``(m, d)``: relative sizes that are all zero.

    ``"sum"`` is :math:`\sum_n g_n`, ``"with the input"`` is :math:`\langle X - \mu, G\rangle`, and
    ``"symmetric part"`` is that of :math:`G^T Y`. The last vanishes since :math:`X - \mu = Y S` with a
    symmetric :math:`S = \Sigma^{1/2}` that the output forgets: moving :math:`X` along :math:`Y\,dS` changes
    nothing.
    """
    centred = x - x.mean(0)
    product = gradient.T @ y
    size = gradient.norm()
    return {
        "sum": (gradient.sum(0).norm() / (size * len(x) ** 0.5)).item(),
        "with the input": ((centred * gradient).sum().abs() / (centred.norm() * size)).item(),
        "symmetric part": (0.5 * (product + product.T).norm() / (size * y.norm())).item(),
    }


def covariance_with_gap(gap, size=8, seed=0):
    """Random covariance ``(size, size)`` in float64, eigenvalues in [1, 3], the lowest two ``gap`` apart."""
    generator = torch.Generator().manual_seed(seed)
    basis, _ = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
    values = torch.linspace(1, 3, size, dtype=torch.float64)
    values[1] = values[0] + gap
    covariance = (basis * values) @ basis.T
    return (covariance + covariance.T) / 2


def inverse_sqrt_by_eigh(covariance):
    r""":math:`U \Lambda^{-1/2} U^T` by ``torch.linalg.eigh``, whose derivative divides by eigenvalue gaps."""
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.rsqrt()) @ vectors.T


def inverse_sqrt_adjoint(covariance, upstream):
    r"""Gradient of :math:`\langle u, \Sigma^{-1/2}\rangle` from a Sylvester equation: no eigenvalue gaps.

    With :math:`S = \Sigma^{1/2}` and :math:`W = S^{-1}` the gradient :math:`A` solves
    :math:`SA + AS = -W u W` for the symmetric part of :math:`u`, here as one linear system of size ``d * d``.
    """
    inverse = inverse_sqrt_by_eigh(covariance)
    root = covariance @ inverse
    eye = torch.eye(len(root), dtype=root.dtype, device=root.device)
    system = torch.kron(root, eye) + torch.kron(eye, root.T.contiguous())
    right = -inverse @ ((upstream + upstream.T) / 2) @ inverse
    return torch.linalg.solve(system, right.reshape(-1)).reshape(root.shape)


def whitening_gradient_error(inverse_sqrt, gap, seed=0):
    """Relative error of the gradient of a differentiable ``inverse_sqrt`` at :func:`covariance_with_gap`."""
    covariance = covariance_with_gap(gap, seed=seed).requires_grad_()
    generator = torch.Generator().manual_seed(seed + 1000)
    upstream = torch.randn(covariance.shape, generator=generator, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(inverse_sqrt(covariance), covariance, upstream)
    exact = inverse_sqrt_adjoint(covariance.detach(), upstream)
    return (((gradient + gradient.T) / 2 - exact).norm() / exact.norm()).item()
