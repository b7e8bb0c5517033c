"""Operations beyond standardizing: whitening layers, other sizes, and layer normalization with parts of it detached."""

import math

import torch
from torch.nn import functional as F

from ..area import Area
from ..catalogue import create
from ..norm import Norm
from ..operations import (
    ScaleByDeviation,
    ScaleByLargest,
    ScaleByPower,
    ScaleByRisk,
    StandardizeDetached,
    Whiten,
)  # fmt: skip
from .classifiers import _random, accuracy, batches, mlp, sgd, train
from .data import digits
from .spectra import covariance

WHITENINGS = {"zca": "DecorrelatedBatchNorm", "pca": "PCAWhitening", "cholesky": "CholeskyWhitening"}
KINDS = ("zca", "pca", "cholesky", "newton")

#: What can be divided by, each of a unit that it shares with the standard deviation.
SIZES = {
    "standard": ScaleByPower(2.0, 0.0),
    "L1": ScaleByDeviation(0.0),
    "L4": ScaleByPower(4.0, 0.0),
    "top-10": ScaleByLargest(10, 0.0),
    "largest": ScaleByLargest(1, 0.0),
    "median": ScaleByRisk("median", eps=0.0),
    "superquantile": ScaleByRisk("superquantile", 0.75, 0.0),
    "range": ScaleByRisk("range", eps=0.0),
}

#: The layers of the catalogue that divide by some of them.
SIZE_LAYERS = {
    "standard": ("BatchNorm", {}),
    "L1": ("L1BatchNorm", {}),
    "L4": ("LpBatchNorm", {"p": 4.0}),
    "top-10": ("TopKBatchNorm", {"k": 10}),
    "superquantile": ("GeneralizedBatchNorm", {}),
}

#: Layer normalization without parameters, and what its backward pass may be told to forget.
DETACHED = {
    "LayerNorm": {},
    "mean detached": {"detach_mean": True},
    "deviation detached": {"detach_std": True},
    "both detached": {"detach_mean": True, "detach_std": True},
}


# --- Whitening ------------------------------------------------------------------------------------------


def hidden_features(seed, width=32, device="cpu"):
    """What a random ReLU layer makes of the training digits, ``(N, width)`` in float64: correlated, with means."""
    x = digits(seed, dtype=torch.float64)[0]
    weight = torch.randn(x.shape[1], width, generator=_random(seed, 1), dtype=torch.float64) / x.shape[1] ** 0.5
    return (x @ weight).relu().to(device)


def after(method_id, x, **options):
    """Covariance of what a layer of the catalogue makes of ``x (N, d)`` in training."""
    layer = create(method_id, x.shape[1], **options, dtype=x.dtype, device=x.device)
    return covariance(layer(x).detach())


def crossing_cloud(seed, t, count=400):
    """A cloud ``(count, 2)`` with variances exactly 1 + t and 1 - t along two directions that do not move."""
    generator = torch.Generator().manual_seed(seed)
    cloud = torch.randn(count, 2, generator=generator, dtype=torch.float64)
    white = Norm(Area("n c ... ->", features="c"), Whiten("zca", eps=0.0))(cloud)
    angle = torch.rand((), generator=generator, dtype=torch.float64) * math.pi / 2
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()]).view(2, 2)
    return white * torch.tensor([1 + t, 1 - t], dtype=torch.float64).sqrt() @ turn.T


def over_the_crossing(kind, seed, steps):
    """The whitened cloud for each t in ``steps``, ``(len(steps), count, 2)``."""
    whiten = Norm(Area("n c ... ->", features="c"), Whiten(kind, eps=0.0, num_iterations=9))
    return torch.stack([whiten(crossing_cloud(seed, float(t))) for t in steps])


def jump(kind, seed, t=1e-4):
    """Root mean square difference of the outputs just before and just after the crossing, relative to their size."""
    before, behind = over_the_crossing(kind, seed, [-t, t])
    return ((before - behind).square().mean() / before.square().mean()).sqrt().item()


def disturbance(operation, seed, batch_size, features=16, probes=10, draws=40):
    r"""How much the output of one sample depends on the batch it is in, :math:`E\|y - E[y]\|`.

    Each probe is put into ``draws`` batches of other Gaussian samples; the batches are normalized at once, as the
    ghosts of a larger one.

    Source: Huang et al., arXiv 2003.12327, section 3 (stochastic normalization disturbance).
    """
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(probes, draws, batch_size, features, generator=generator, dtype=torch.float64)
    x[:, :, 0] = torch.randn(probes, 1, features, generator=generator, dtype=torch.float64)
    pattern, named = ("(b n) c ... -> b", "c") if operation.mixes_channels else ("(b n) c ... -> b c", None)
    y = Norm(Area(pattern, features=named, n=batch_size), operation)(x.flatten(0, 2)).view_as(x)[:, :, 0]
    return (y - y.mean(1, keepdim=True)).norm(dim=-1).mean().item()


def steps_to_learn(norm, seed, rates=(1.0, 0.3, 3.0, 0.1), target=0.1, at_most=200, device="cpu"):
    """Full-batch steps of gradient descent until the training loss is below ``target``, the fewest of several rates.

    Args:
        norm: maps a width to a layer, or ``None``.
        seed: of the weights and of the split of the digits.
        rates: learning rates that are tried.
        target: of the mean cross entropy, in nats.
        at_most: steps after which a rate is given up; what is returned where all are.
        device: where to train.
    """
    x, y = (t.to(device) for t in digits(seed)[:2])
    fewest = at_most
    for rate in rates:
        model = mlp((64, 64, 64, 64, 10), norm, seed=seed, dtype=torch.float32, device=device)
        optimizer = sgd(model, rate)
        for step in range(fewest):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            if loss.item() < target:
                fewest = step
                break
            loss.backward()
            optimizer.step()
    return fewest


# --- Sizes ----------------------------------------------------------------------------------------------


def size_of(operation, values):
    """What the operation divides each channel of ``values (N, C)`` by, ``(C,)``."""
    from ..entries import Entries

    entries, area = Entries(values[..., None], fused=False), Area("n c ... -> c")
    return 1 / operation.solve(operation.estimate(area, entries), values.shape[1])[1].flatten()


def gaussian_size(name, n):
    """Expected size of ``n`` standard Gaussian values; :data:`SIZES` has the names."""
    if name in ("standard", "L1", "L4", "median"):
        p = {"standard": 2, "L4": 4}.get(name, 1)
        return gaussian_moment(p) ** (1 / p)
    if name == "superquantile":
        quantile = torch.special.ndtri(torch.tensor(0.75, dtype=torch.float64)).item()
        return math.exp(-(quantile**2) / 2) / math.sqrt(2 * math.pi) / 0.25
    if name == "range":
        return _expected_largest(n, 1, sides=1)
    k = {"top-10": 10, "largest": 1}[name]
    return _expected_largest(n, k, sides=2) * (1 + math.sqrt(math.pi * math.log(4))) / math.sqrt(8 * math.log(n))


def gaussian_moment(p):
    """:math:`E|z|^p` of a standard Gaussian."""
    return 2 ** (p / 2) * math.gamma((p + 1) / 2) / math.sqrt(math.pi)


def _expected_largest(n, k, sides):
    """Mean of the k largest of n Gaussian values (``sides=1``) or absolute values (2), all of them surely positive.

    The expectation of the i-th largest is the integral of the probability that i values or more exceed x.
    """
    x = torch.linspace(0, 12, 20001, dtype=torch.float64)
    tail = sides * torch.special.erfc(x / math.sqrt(2)) / 2
    exceed = torch.zeros_like(x)
    total = 0.0
    for i in range(k):
        ways = math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1)
        exceed += (ways + i * tail.log() + (n - i) * torch.log1p(-tail)).exp()
        total += torch.trapezoid(1 - exceed, x).item()
    return total / k


def outlier_growth(operation, seed, reach, n=1000, channels=200):
    """By how much a size grows when one of ``n`` Gaussian values is replaced by ``reach``, mean over channels."""
    values = torch.randn(n, channels, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    clean = size_of(operation, values)
    values[0] = reach
    return (size_of(operation, values) / clean).mean().item()


def predicted_growth(p, reach, n=1000):
    r""":math:`(1 + z^p / (n m_p))^{1/p}` with the Gaussian moment :math:`m_p`; the move of the mean is left out."""
    return (1 + reach**p / (n * gaussian_moment(p))) ** (1 / p)


def accuracy_with(name, seed, rate=0.1, steps=120, device="cpu"):
    """Test accuracy on the digits of a small network that divides by one of :data:`SIZE_LAYERS`."""
    method_id, options = SIZE_LAYERS[name]
    x, y, x_test, y_test = (t.to(device) for t in digits(seed))
    norm = lambda width: create(method_id, width, **options)  # noqa: E731
    model = mlp((64, 64, 64, 10), norm, seed=seed, dtype=torch.float32, device=device)
    train(model, batches((x, y), 128, seed), sgd(model, rate, momentum=0.9), steps)
    return accuracy(model.eval(), (x_test, y_test))


# --- Detached statistics --------------------------------------------------------------------------------


def detached(name, eps=1e-5):
    """Layer normalization over the last axis without parameters, in one of the variants of :data:`DETACHED`."""
    return Norm(Area("n c ... -> n ..."), StandardizeDetached(eps, k=0.0, **DETACHED[name]), channel_dim=-1)


class _Detached(torch.autograd.Function):
    """:func:`detached` over the last axis, its backward pass in closed form: one projection for each term it keeps."""

    @staticmethod
    def forward(ctx, x, eps, detach_mean, detach_std):
        y, _, factor = torch.native_layer_norm(x, x.shape[-1:], None, None, eps)
        ctx.save_for_backward(y, factor)
        ctx.detach_mean, ctx.detach_std = detach_mean, detach_std
        return y

    @staticmethod
    def backward(ctx, gradient):
        y, factor = ctx.saved_tensors
        kept = gradient if ctx.detach_mean else gradient - gradient.mean(-1, keepdim=True)
        if not ctx.detach_std:
            kept = torch.addcmul(kept, y, (gradient * y).mean(-1, keepdim=True), value=-1)
        return kept * factor, None, None, None


def normalize(x, name, eps=1e-5):
    """What :func:`detached` does, a few times faster."""
    options = {"detach_mean": False, "detach_std": False} | DETACHED[name]
    return _Detached.apply(x, eps, *options.values())


def stacked_layers(widths, seeds, copies, plain=False, device="cpu"):
    """Parameters of a network per seed, each ``copies`` times: slice r of every tensor belongs to run r.

    They start as those of ``torch.nn.Linear`` and ``torch.nn.LayerNorm``, all trainable; or, where ``plain``, there are
    only weights, Gaussian ones of He's variance.

    Returns:
        A dictionary for each linear layer, with ``weight (runs, d_in, d_out)`` and, unless ``plain``, ``bias``,
        ``gain`` and ``shift``, each ``(runs, 1, d_out)``.
    """
    layers = []
    for k, (fan_in, fan_out) in enumerate(zip(widths, widths[1:], strict=False)):
        streams = [_random(seed, k) for seed in seeds]
        if plain:
            gain = math.sqrt((2 if k < len(widths) - 2 else 1) / fan_in)
            layer = {"weight": [torch.randn(fan_in, fan_out, generator=g) * gain for g in streams]}
        else:
            sizes = {"weight": fan_in, "bias": 1}
            layer = {n: [_uniform(m, fan_out, fan_in, g) for g in streams] for n, m in sizes.items()}
            layer |= {"gain": [torch.ones(1, fan_out)] * len(seeds), "shift": [torch.zeros(1, fan_out)] * len(seeds)}
        stacked = {n: torch.stack(t).repeat_interleave(copies, 0).to(device) for n, t in layer.items()}
        layers.append({n: t.requires_grad_() for n, t in stacked.items()})
    return layers


def _uniform(rows, columns, fan_in, generator):
    return (2 * torch.rand(rows, columns, generator=generator) - 1) / math.sqrt(fan_in)


def _forward(layers, x, name, activation):
    *hidden, head = layers
    for p in hidden:
        x = normalize(x @ p["weight"] + p.get("bias", 0), name)
        x = activation(torch.addcmul(p["shift"], x, p["gain"]) if "gain" in p else x)
    return x @ head["weight"] + head.get("bias", 0)


def train_together(name, rates, seeds, steps=200, depth=6, width=64, plain=False, activation=torch.relu, device="cpu"):
    """Train one network per seed and rate, all at once: run r is slice r of every tensor.

    Linear, layer normalization in the variant ``name``, activation, ``depth`` times, and a linear head; SGD with
    momentum 0.9 and batches of 128 digits, the same for all rates of a seed.

    Args:
        plain: without biases and gains, see :func:`stacked_layers`.

    Returns:
        Training losses ``(len(seeds), len(rates), steps)``; NaN after a run has diverged.
    """
    streams = [batches([t.to(device) for t in digits(seed)[:2]], 128, seed) for seed in seeds]
    layers = stacked_layers([64, *[width] * depth, 10], seeds, len(rates), plain, device)
    used = [p for k, layer in enumerate(layers) for n, p in layer.items() if k < depth or n in ("weight", "bias")]
    velocity, losses = [torch.zeros_like(p) for p in used], []
    rate = torch.tensor(rates, device=device).repeat(len(seeds))[:, None, None]
    for _ in range(steps):
        x, y = (torch.stack(part).repeat_interleave(len(rates), 0) for part in zip(*map(next, streams), strict=True))
        loss = F.cross_entropy(_forward(layers, x, name, activation).mT, y, reduction="none").mean(1)
        gradients = torch.autograd.grad(loss.sum(), used)
        with torch.no_grad():
            for p, v, g in zip(used, velocity, gradients, strict=True):
                p -= rate * v.mul_(0.9).add_(g)
        losses.append(loss.detach())
    return torch.stack(losses, -1).view(len(seeds), len(rates), steps).cpu()


def final(losses, last=50):
    """Mean of the last losses ``(..., steps)``; infinite where a run has diverged."""
    return losses[..., -last:].mean(-1).nan_to_num(math.inf, math.inf)


def gradients(name, seed, tokens=8, width=32):
    """Output, and gradient at the input for a random gradient at the output, of a variant; all ``(tokens, width)``."""
    generator = torch.Generator().manual_seed(seed)
    x, g = (torch.randn(tokens, width, generator=generator, dtype=torch.float64) for _ in range(2))
    x = (1 + 2 * x).requires_grad_()
    y = detached(name, 0.0)(x)
    return y.detach(), torch.autograd.grad(y, x, g)[0]


def project(gradient, *directions):
    """A gradient without its components along the given directions ``(tokens, width)``, row by row."""
    for d in directions:
        gradient = gradient - d * (gradient * d).sum(-1, keepdim=True) / d.square().sum(-1, keepdim=True)
    return gradient
