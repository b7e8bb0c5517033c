"""Networks of one shape that train side by side, as `torch.func.vmap` of one step: many seeds and rates are cheap."""

import copy
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, stack_module_state, vmap
from torch.nn import functional as F

from normsurvey.experiments.classifiers import Data, batches


class Bank:
    """Networks of one shape that train side by side in train mode, each at its own learning rate, by SGD.

    Args:
        models: the members, equal but for their values; they are written to by `write` alone.
        lrs: one learning rate per member.
    """

    def __init__(self, models: Sequence[nn.Module], lrs: Sequence[float], momentum: float = 0.0):
        self.models, self.momentum = list(models), momentum
        parameters, self.buffers = stack_module_state(self.models)
        self.parameters = {name: p.detach() for name, p in parameters.items()}
        self.velocity = {name: torch.zeros_like(p) for name, p in self.parameters.items()}
        self.lrs = torch.tensor(list(lrs), dtype=torch.float64).to(next(iter(self.parameters.values())))
        self.alive = list(range(len(self.models)))  # members that still train, in the order of the stacked tensors
        base = copy.deepcopy(self.models[0]).train()

        def loss(parameters, buffers, x, y):
            return F.cross_entropy(functional_call(base, (parameters, buffers), (x,)), y)

        self._gradients = vmap(grad_and_value(loss))

    @torch.no_grad()
    def step(self, x: Tensor, y: Tensor) -> Tensor:
        """One step of each living member on its own batch, x (A, N, ...) and y (A, N); returns their losses (A,)."""
        gradients, losses = self._gradients(self.parameters, self.buffers, x, y)
        for name, p in self.parameters.items():
            v = self.velocity[name].mul_(self.momentum).add_(gradients[name])
            p.sub_(self.lrs.view(-1, *[1] * (p.dim() - 1)) * v)
        return losses

    def keep(self, mask: Tensor) -> None:
        """Ends the training of members where mask (A,) is False."""
        if mask.all():
            return
        self.alive = [member for member, kept in zip(self.alive, mask.tolist(), strict=True) if kept]
        self.lrs = self.lrs[mask]
        for part in (self.parameters, self.buffers, self.velocity):
            part.update({name: t[mask] for name, t in part.items()})

    @torch.no_grad()
    def write(self) -> dict[int, nn.Module]:
        """Writes the living members' values into their modules; returns these by number."""
        for k, member in enumerate(self.alive):
            for name, p in self.models[member].named_parameters():
                p.copy_(self.parameters[name][k])
            for name, b in self.models[member].named_buffers():
                b.copy_(self.buffers[name][k])
        return {member: self.models[member] for member in self.alive}


def streams(data: Mapping[int, Data], batch_size: int, steps: int) -> Iterator[dict[int, Data]]:
    """Mini-batches of each seed's data, in the order of that seed, for a number of steps."""
    drawn = {seed: batches(part, batch_size, seed) for seed, part in data.items()}
    for _ in range(steps):
        yield {seed: next(stream) for seed, stream in drawn.items()}


def stacked(drawn: Mapping[int, Data], seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Mini-batches as one, x (A, N, ...) and y (A, N), with one entry for each seed of a list."""
    return tuple(torch.stack([drawn[seed][part] for seed in seeds]) for part in (0, 1))
