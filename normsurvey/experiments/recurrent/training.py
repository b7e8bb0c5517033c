"""Trains one arm on one task: all learning rates and seeds side by side."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from .declaration import CLIP, LAST, LEARNING_RATES, SEEDS, Arm, Scale
from .lstm import LSTM
from .tasks import Batch, task


@dataclass
class Curves:
    """The runs of one arm: ``loss`` (learning rates, seeds, steps), in nats, and the trained ``model`` of all runs."""

    arm: Arm
    loss: Tensor
    model: LSTM

    @property
    def final(self) -> Tensor:
        """Mean training loss of the last fifth of the steps, (learning rates, seeds); inf where it is not finite."""
        count = max(1, round(LAST * self.loss.shape[-1]))
        return self.loss[..., -count:].mean(-1).nan_to_num(nan=torch.inf)

    @property
    def best(self) -> int:
        """Place in the grid of the learning rate with the lowest :attr:`final`, averaged over the seeds."""
        return int(self.final.mean(1).argmin())

    def best_model(self) -> LSTM:
        """The networks of the best learning rate, one per seed."""
        seeds = self.loss.shape[1]
        return select(self.model, range(self.best * seeds, (self.best + 1) * seeds))


def train_grid(
    name: str, arms: list[Arm], scale: Scale, *, rates=LEARNING_RATES, seeds=SEEDS, steps=None, device="cpu"
) -> list[Curves]:
    """Train ``arms`` that share their norm on task ``name``, for every learning rate and seed.

    A seed fixes the initial weights and the order of the data, the same for every arm and rate.

    Raises:
        ValueError: for arms with different norms.
    """
    if len({arm.norm for arm in arms}) != 1:
        raise ValueError(f"arms={[arm.label for arm in arms]} must share their norm: train the others in another call")
    data, steps = task(name, scale), steps or scale.steps[name]
    grid = [(arm, rate, seed) for arm in arms for rate in rates for seed in seeds]
    model = LSTM(
        data.num_inputs, scale.hidden, data.num_outputs, seeds=[seed for _, _, seed in grid], norm=arms[0].norm,
        gamma=[arm.gamma for arm, _, _ in grid], max_steps=data.length,
    ).to(device)  # fmt: skip
    optimizer = Adam(list(model.parameters()), torch.tensor([rate for _, rate, _ in grid], device=device))
    randoms, losses = [torch.Generator().manual_seed(seed) for seed in seeds], []
    for _ in range(steps):
        batch = to(data.sample(scale.batch, randoms), device)
        loss = network_losses(model, batch, data.every_step)  # (R,)
        optimizer.step(torch.autograd.grad(loss.sum(), optimizer.parameters))
        losses.append(loss.detach().cpu())
    curves = torch.stack(losses, -1).view(len(arms), len(rates), len(seeds), steps)
    count = len(rates) * len(seeds)
    return [Curves(arm, curves[k], select(model, range(k * count, (k + 1) * count))) for k, arm in enumerate(arms)]


def network_losses(model: LSTM, batch: Batch, every_step: bool) -> Tensor:
    """Cross entropy of each network (R,), in nats: of the answers at every step, or of the one after the last."""
    return answer_losses(model, batch, every_step).flatten(0, -2).mean(0)


def answer_losses(model: LSTM, batch: Batch, every_step: bool) -> Tensor:
    """Cross entropy of each answer, (T, B, R) or (B, R), in nats."""
    states = model(batch.x, batch.mask)
    scores = model.read_out(states if every_step else states[-1])
    y = batch.y.repeat(*[1] * (batch.y.dim() - 1), model.runs // batch.y.shape[-1])
    return F.cross_entropy(scores.flatten(0, -2), y.flatten(), reduction="none").view(y.shape)


def to(batch: Batch, device: torch.device | str) -> Batch:
    """The batch on ``device``."""
    return Batch(*[None if part is None else part.to(device) for part in batch])


def select(model: LSTM, networks) -> LSTM:
    """A new model of some of the networks alone, without their running statistics."""
    networks = list(networks)
    steps = len(model.norm_h.steps) if model.norm == "BatchNorm" else None
    sizes = model.weight_x.shape[1], model.hidden, model.head.shape[2]
    few = LSTM(*sizes, seeds=[0] * len(networks), norm=model.norm, max_steps=steps, eps=model.eps).to(model.head)
    with torch.no_grad():
        for new, old in zip(few.parameters(), model.parameters(), strict=True):
            new.copy_(old.view(model.runs, -1)[networks].view(new.shape))
    return few


class Adam:
    """Adam with one learning rate per network, and the gradient of each network clipped to norm :data:`CLIP`.

    Args:
        parameters: tensors whose first axis is the network.
        rates: learning rate of each network, (R,).

    Source: Kingma & Ba, ICLR 2015, arXiv 1412.6980, algorithm 1, with its default constants.
    """

    def __init__(self, parameters: list[Tensor], rates: Tensor, betas=(0.9, 0.999), eps=1e-8):
        self.parameters, self.rates, self.betas, self.eps, self.count = parameters, rates, betas, eps, 0
        self.first, self.second = ([torch.zeros_like(p).view(len(rates), -1) for p in parameters] for _ in range(2))

    @torch.no_grad()
    def step(self, gradients: tuple[Tensor, ...]) -> None:
        """Move the parameters by one step."""
        self.count += 1
        parts = [g.reshape(len(self.rates), -1) for g in gradients]  # (R, .)
        clip = CLIP / torch.stack([g.square().sum(1) for g in parts]).sum(0).sqrt().clamp(min=CLIP)
        first, second = (1 - beta**self.count for beta in self.betas)
        for p, g, m, v in zip(self.parameters, parts, self.first, self.second, strict=True):
            g = g * clip.unsqueeze(1)
            m.lerp_(g, 1 - self.betas[0])
            v.lerp_(g.square(), 1 - self.betas[1])
            p.sub_((self.rates.unsqueeze(1) * (m / first) / ((v / second).sqrt() + self.eps)).view(p.shape))
