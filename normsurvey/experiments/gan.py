"""A GAN small enough for a laptop: eight Gaussians on a ring, hinge loss, and what to measure on it.

The discriminator takes one of four treatments: nothing, a spectral norm on every weight, or batch
normalization with real and generated samples in separate batches or in one mixed batch.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..methods import BatchNorm
from ..weights import parametrize

MODES, RADIUS, SPREAD = 8, 2.0, 0.1
LATENT = 8


def centers(dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Tensor:
    """The eight modes on a circle of radius 2, (8, 2)."""
    angle = torch.arange(MODES, dtype=dtype, device=device) * (2 * math.pi / MODES)
    return RADIUS * torch.stack([angle.cos(), angle.sin()], 1)


def ring(count: int, random: torch.Generator, device: torch.device | str = "cpu") -> Tensor:
    """`count` points, each at a random mode plus Gaussian noise of standard deviation 0.1, (count, 2)."""
    which = torch.randint(MODES, (count,), generator=random)
    noise = SPREAD * torch.randn(count, 2, generator=random)
    return (centers()[which] + noise).to(device)


def modes_covered(points: Tensor, share: float = 0.25) -> int:
    """Number of modes that get at least `share` of their fair share of the points (N, 2) within 4 deviations."""
    near = torch.cdist(points, centers(points.dtype, points.device)) < 4 * SPREAD
    return int((near.double().mean(0) >= share / MODES).sum())


def quality(points: Tensor) -> float:
    """Share of the points (N, 2) that lie within 4 deviations of some mode."""
    near = torch.cdist(points, centers(points.dtype, points.device)) < 4 * SPREAD
    return near.any(1).double().mean().item()


def generator(width: int = 128) -> nn.Sequential:
    """Latent (N, 8) -> points (N, 2), two hidden layers."""
    return nn.Sequential(nn.Linear(LATENT, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2))


def discriminator(
    treatment: str = "none", width: int = 128, hidden: int = 3, scale: float = 4.0, eps: float = 1e-5
) -> nn.Sequential:
    """Points (N, 2) -> scores (N, 1).

    Args:
        treatment: ``"none"``; ``"SpectralNorm"`` on every weight; ``"BatchNorm"`` before every ReLU.
        width: of the hidden layers.
        hidden: number of hidden layers.
        scale: constant factor on the score, without which a 1-Lipschitz score could not reach the hinge's
            margins between neighbouring modes.
        eps: of the batch normalization.

    Raises:
        ValueError: for another treatment.
    """
    if treatment not in ("none", "SpectralNorm", "BatchNorm"):
        raise ValueError(f"treatment={treatment!r} is unknown: choose 'none', 'SpectralNorm' or 'BatchNorm'")
    layers: list[nn.Module] = []
    for fan_in in (2, *[width] * (hidden - 1)):
        layers.append(nn.Linear(fan_in, width))
        layers += [BatchNorm(width, eps=eps)] if treatment == "BatchNorm" else []
        layers.append(nn.ReLU())
    layers += [nn.Linear(width, 1), Times(scale)]
    if treatment == "SpectralNorm":
        for layer in layers:
            if isinstance(layer, nn.Linear):
                parametrize(layer, "SpectralNorm")
    return nn.Sequential(*layers)


class Times(nn.Module):
    """Multiplication by a constant."""

    def __init__(self, factor: float):
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """``x -> factor * x``, any shape."""
        return self.factor * x


@torch.no_grad()
def lipschitz_product(model: nn.Module) -> float:
    """Product of the largest singular values of all linear weights: a bound on the network's slope.

    Constant factors on the output are left out, and nothing is advanced: weights are read in eval mode.
    """
    training = model.training
    model.eval()
    weights = [m.weight for m in model.modules() if isinstance(m, nn.Linear)]
    model.train(training)
    return math.prod(torch.linalg.matrix_norm(w, 2).item() for w in weights)


def scores(d: nn.Module, real: Tensor, fake: Tensor, mixed: bool = False) -> tuple[Tensor, Tensor]:
    """Scores of real and generated points: two batches, each on its own, or one batch with both."""
    return d(torch.cat([real, fake])).split([len(real), len(fake)]) if mixed else (d(real), d(fake))


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Hinge loss of the scores: real ones above 1, generated ones below -1."""
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


@dataclass
class Run:
    """A trained pair of networks and what was seen on the way.

    Attributes:
        g: the generator.
        d: the discriminator, in training mode.
        steps: when the histories were taken.
        product: Lipschitz product of the discriminator at those steps.
        modes: modes covered at those steps.
        points: generated points at the end, (2048, 2).
    """

    g: nn.Module
    d: nn.Module
    steps: list[int] = field(default_factory=list)
    product: list[float] = field(default_factory=list)
    modes: list[int] = field(default_factory=list)
    points: Tensor | None = None

    @torch.no_grad()
    def record(self, step: int, z: Tensor) -> None:
        """Add a measurement to the histories; it draws no random number and moves no buffer."""
        self.points = self.g(z)
        self.steps.append(step)
        self.product.append(lipschitz_product(self.d))
        self.modes.append(modes_covered(self.points))


def train(
    treatment: str,
    lr: float,
    seed: int,
    *,
    steps: int = 600,
    width: int = 128,
    batch_size: int = 128,
    mixed: bool = False,
    device: torch.device | str = "cpu",
) -> Run:
    """Alternate one Adam step of the discriminator and one of the generator, betas (0.0, 0.9).

    The learning rate is constant for the first half and then falls to zero along a line. The seed fixes the
    initialisation, the data and the latent draws, which are the same for every treatment.

    Args:
        treatment: of the discriminator, see :func:`discriminator`.
        lr: learning rate of both, at the start.
        seed: of everything random.
        steps: of each of the two.
        width: of the hidden layers.
        batch_size: real points, and generated points, per step.
        mixed: whether the discriminator sees both in one batch.
        device: where the networks live.
    """
    torch.manual_seed(seed)
    run = Run(generator(width).to(device), discriminator(treatment, width).to(device))
    random = torch.Generator().manual_seed(1000 + seed)
    options = {"lr": lr, "betas": (0.0, 0.9), "fused": True}
    step_d = torch.optim.Adam(run.d.parameters(), **options)
    step_g = torch.optim.Adam(run.g.parameters(), **options)
    z = torch.randn(2048, LATENT, generator=torch.Generator().manual_seed(seed)).to(device)

    def fake() -> Tensor:
        return run.g(torch.randn(batch_size, LATENT, generator=random).to(device))

    for step in range(steps):
        if step % max(1, steps // 12) == 0:
            run.record(step, z)
        step_d.param_groups[0]["lr"] = step_g.param_groups[0]["lr"] = lr * min(1.0, 2 * (1 - step / steps))
        real = ring(batch_size, random, device)
        step_d.zero_grad()
        discriminator_loss(*scores(run.d, real, fake().detach(), mixed)).backward()
        step_d.step()
        run.d.requires_grad_(False)
        step_g.zero_grad()
        verdict = scores(run.d, real, fake(), mixed)[1] if mixed else run.d(fake())
        (-verdict.mean()).backward()
        step_g.step()
        run.d.requires_grad_(True)
    run.record(steps, z)
    return run


def slope(d: nn.Module, points: Tensor) -> Tensor:
    """Length of the gradient of the score at each point (N, 2), with the network in eval mode, (N,)."""
    training = d.training
    d.eval()
    x = points.detach().requires_grad_()
    (grad,) = torch.autograd.grad(d(x).sum(), x)
    d.train(training)
    return grad.norm(dim=1)


@torch.no_grad()
def verdicts(d: nn.Module, sample: Tensor, companions: list[Tensor]) -> Tensor:
    """Score of one point (2,) in each of several batches, (number of batches,).

    The network is in training mode, as it is when the generator learns from it. Every batch meets the same
    buffers, and the network is left as it was.
    """
    buffers = list(d.buffers())
    start = [b.clone() for b in buffers]
    found = []
    for others in companions:
        found.append(d.train()(torch.cat([sample[None], others]))[0, 0])
        for buffer, value in zip(buffers, start, strict=True):
            buffer.copy_(value)
    return torch.stack(found)


def batch_dependence(d: nn.Module, samples: Tensor, companions: list[Tensor]) -> float:
    """Deviation of a sample's score over batches, relative to the deviation of the mean scores over samples."""
    found = torch.stack([verdicts(d, sample, companions) for sample in samples])  # (samples, batches)
    return (found.var(1).mean().sqrt() / found.mean(1).std()).item()


def blindness(d: nn.Module, real: Tensor, scale: float, shift: Tensor) -> dict[str, float]:
    """What the discriminator makes of ``scale * real + shift``, the points (N, 2) displaced as a whole.

    Returns:
        "apart" and "mixed": root mean square of the difference of the scores of a point and of its displaced
        twin, relative to the deviation of the scores, in two batches and in one; "along shift" and "along
        scale": the share of the generator's gradient, in a batch of its own, that would move or resize it.
    """
    fake = (scale * real + shift).requires_grad_()
    found = {}
    for name, mixed in (("apart", False), ("mixed", True)):
        of_real, of_fake = scores(d, real, fake, mixed)
        found[name] = ((of_real - of_fake).square().mean().sqrt() / of_real.std()).item()
    (grad,) = torch.autograd.grad(-d(fake).mean(), fake)
    found["along shift"] = (grad.sum(0).norm() / grad.norm(dim=1).sum()).item()
    found["along scale"] = ((grad * fake).sum().abs() / (grad.norm() * fake.norm())).item()
    return found


def convolution_norm(weight: Tensor, size: int = 32) -> float:
    """Operator norm of a convolution with circular padding on `size` x `size` images; weight (O, I, k, k).

    The Fourier transform splits the operator into one O x I matrix for each frequency.
    """
    transfer = torch.fft.fft2(weight, (size, size))  # (O, I, size, size)
    return torch.linalg.matrix_norm(transfer.permute(2, 3, 0, 1), 2).max().item()
