"""Random networks, wide and deep: what the chapter on mean-field theory builds and measures, always before training.

Networks are those of :func:`normsurvey.experiments.classifiers.mlp`; batches are Gaussian unless they are given.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

import normsurvey as ns
from normsurvey.analysis import OutputGram, Propagation, linear_gram, propagate, scaled, top_eigenvalues
from normsurvey.experiments.classifiers import hidden_weights, mlp
from normsurvey.notebook import progress

Build = Callable[[int], nn.Module] | None

_PLAIN = dict(eps=0.0, fused=False, affine=False)

#: Normalizations as theory has them, from their width: no epsilon, no recovery, the batch's own statistics.
NORMS: dict[str, Build] = {
    "none": None,
    "BatchNorm": partial(ns.BatchNorm, track_running_stats=False, **_PLAIN),
    "LayerNorm": partial(ns.LayerNorm, **_PLAIN),
    "scale": lambda width: ns.Norm(ns.Area("n c ... -> c"), ns.Scale(0.0), fused=False),
}


def gaussian(*shape: int, seed: int, device: torch.device | str = "cpu") -> Tensor:
    """Standard normal numbers in float64, the same on every device."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(device)


def chain(
    width: int, depth: int, norm: Build = None, activation: Callable[[], nn.Module] = nn.ReLU, *,
    gain: float = 2**0.5, bias: float = 0.0, d_in: int | None = None, outputs: int = 1, seed: int = 0,
    dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu",
) -> nn.Sequential:  # fmt: skip
    """A perceptron linear1, norm1, act1, linear2, ..., head; weights of variance gain^2 / d_in.

    Args:
        bias: standard deviation of the biases; layers in front of a norm have none.
        d_in: of the inputs, `width` if None. outputs: of the head.
    """
    sizes = (d_in or width, *[width] * depth, outputs)
    model = mlp(sizes, norm, gain=gain, seed=seed, dtype=dtype, device=device)
    for k, (name, p) in enumerate(model.named_parameters() if bias else ()):
        if name.endswith("bias"):
            p.data.copy_(bias * gaussian(*p.shape, seed=1000 * seed + 700_000 + k))
    return nn.Sequential(
        OrderedDict(
            (name.replace("relu", "act"), activation() if name.startswith("relu") else module)
            for name, module in model.named_children()
        )
    )


def renormalized(model: nn.Sequential, norm: Build) -> nn.Sequential:
    """A `chain` with the very linear layers and activations of `model`, not copied, and with other norms or none."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for name, module in model.named_children():
        if not name.startswith("norm"):
            layers[name] = module
        if name.startswith("linear") and norm is not None:
            layers[name.replace("linear", "norm")] = norm(module.out_features)
    return nn.Sequential(layers)


class Block(nn.Module):
    """x + linear(act(norm(x))): a residual block of one layer, its normalization before the activation."""

    def __init__(self, width: int, norm: Build, weight: Tensor):
        super().__init__()
        self.branch = nn.Sequential(
            norm(width) if norm is not None else nn.Identity(), nn.ReLU(), nn.Linear(width, width, bias=False)
        )
        self.branch[2].weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        """(N, width) -> (N, width)."""
        return x + self.branch(x)


def residual(
    width: int, blocks: int, norm: Build = None, *, seed: int = 0, device: torch.device | str = "cpu"
) -> nn.Sequential:
    """stem, block1, block2, ...; He's weights in every branch, and a linear stem that keeps the variance."""
    stem = nn.Linear(width, width, bias=False)
    stem.weight = nn.Parameter(gaussian(width, width, seed=1000 * seed) / width**0.5)
    model: OrderedDict[str, nn.Module] = OrderedDict(stem=stem)
    for k in range(1, blocks + 1):
        model[f"block{k}"] = Block(width, norm, gaussian(width, width, seed=1000 * seed + k) * (2 / width) ** 0.5)
    return nn.Sequential(model).to(device)


def moments(model: nn.Module, x: Tensor, modules: list[str], seed: int = 0) -> Propagation:
    """Moments at the named modules, the loss being a random linear function of the model's outputs on x (B, d)."""

    def loss(model: nn.Module) -> Tensor:
        y = model(x)
        return (y * gaussian(*y.shape, seed=seed + 500, device=y.device)).sum()

    return propagate(model, loss, modules)


def chain_moments(model: nn.Sequential, batch: int, *, scale: float = 1.0, seed: int = 0) -> Propagation:
    """`moments` after every activation of a `chain` on a Gaussian batch, its hidden weights multiplied by `scale`."""
    device = next(model.parameters()).device
    hidden = hidden_weights(model)
    x = gaussian(batch, model.get_parameter(hidden[0]).shape[1], seed=seed + 900, device=device)
    scaled_model = scaled(model, hidden, scale) if scale != 1 else model
    return moments(scaled_model, x, [f"act{k}" for k in range(1, len(hidden) + 1)], seed)


def residual_moments(
    width: int, blocks: int, batch: int, norm: Build = None, *, seed: int = 0, device: torch.device | str = "cpu"
) -> tuple[Propagation, Propagation]:
    """`moments` of a `residual` network behind stem and blocks (blocks + 1), and those of its branches (blocks)."""
    model = residual(width, blocks, norm, seed=seed, device=device)
    x = gaussian(batch, width, seed=seed + 900, device=device)
    names = [f"block{k}" for k in range(1, blocks + 1)]
    both = moments(model, x, ["stem", *names, *(f"{name}.branch" for name in names)], seed)
    parts = slice(0, blocks + 1), slice(blocks + 1, None)
    return tuple(Propagation(both.names[p], both.second_moment[p], both.variance[p], both.gradient[p]) for p in parts)


@torch.no_grad()
def ranks(
    width: int, depth: int, networks: Mapping[str, tuple[Build, Callable[[], nn.Module]]], *,
    every: int = 10, seed: int = 0, device: torch.device | str = "cpu",
) -> dict[str, Tensor]:  # fmt: skip
    r"""Participation ratio of `width` samples in a random network as wide, at layers 0, `every`, 2 `every`, ...

    $(\operatorname{tr} S)^2 / \operatorname{tr} S^2$ of $S = X^\top X$, a lower bound of the rank that counts the
    directions of comparable size. All networks have the same weights and inputs. Every layer's output is divided by
    its root mean square, which changes no ratio and keeps the numbers finite.

    Args:
        networks: name -> (norm, activation).
    """
    random = torch.Generator().manual_seed(seed)

    def draw() -> Tensor:
        return torch.randn(width, width, generator=random, dtype=torch.float64).to(device)

    start = draw()
    states = {name: start for name in networks}
    layers = {name: nn.Sequential(*([norm(width)] if norm else []), act()) for name, (norm, act) in networks.items()}
    found = {name: [_participation(start)] for name in networks}
    for k in range(1, depth + 1):
        weight = draw() / width**0.5
        for name, layer in layers.items():
            x = layer(states[name] @ weight)
            states[name] = x / x.square().mean().sqrt()
            if k % every == 0:
                found[name].append(_participation(states[name]))
    return {name: torch.stack(values).cpu() for name, values in found.items()}


def sharpness(
    width: int, samples: int | None = None, norm: Build = None, activation: Callable[[], nn.Module] = nn.ReLU, *,
    images: Tensor | None = None, per_sample: bool = True, networks: int = 1, depth: int = 3, seed: int = 0,
    dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu", **options,
) -> dict[str, float]:  # fmt: skip
    """Largest Fisher eigenvalue, square loss and one output, of a plain chain: "none", "center" and "standardize".

    The last two are those with the mean over the batch subtracted from the output, and with a batch normalization of
    it, from the same Gram matrix. Parameters are weights and biases of all linear layers.

    Args:
        samples: N, `width` if None. norm: in the hidden layers, which is another matter than the output.
        images: (M, ...) to draw the inputs from, in place of Gaussian ones with `width` entries.
        per_sample: False where `norm` lets samples interact.
        networks: how many random networks the mean is taken over.
        options: gain and bias of the `chain`.
    """
    found = []
    for one in range(1000 * seed, 1000 * seed + networks):
        x = _inputs(samples or width, width, images, one).to(device, dtype)
        build = dict(d_in=x.shape[1], seed=one, dtype=dtype, device=device)
        model = chain(width, depth, norm, activation, **build, **options)
        gram = linear_gram(model, x, per_sample=per_sample)
        kinds = {"none": gram, "center": gram.batch_normalized(scale=False), "standardize": gram.batch_normalized()}
        found.append([_largest(g) for g in kinds.values()])
    return dict(zip(kinds, torch.tensor(found, dtype=torch.float64).mean(0).tolist(), strict=True))


def sharpness_by_width(widths: Sequence[int], seeds: Iterable[int], **options) -> dict[str, Tensor]:
    """`sharpness` at every width, (seeds, widths) per kind; narrow networks, which fluctuate more, are averaged.

    Their number is such that all widths have as many hidden units in total as the widest.

    Args:
        options: those of `sharpness`.
    """
    found = [
        [sharpness(width, networks=max(widths) // width, seed=seed, **options) for width in widths]
        for seed in progress(list(seeds), "Fisher matrices by width")
    ]
    kinds = found[0][0]
    return {kind: torch.tensor([[one[kind] for one in row] for row in found], dtype=torch.float64) for kind in kinds}


def _inputs(samples: int, width: int, images: Tensor | None, seed: int) -> Tensor:
    if images is None:
        return gaussian(samples, width, seed=seed + 500_000)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    return images[order[:samples].to(images.device)].flatten(1)


def _largest(gram: OutputGram) -> float:
    if len(gram.kernel) <= 256:
        return gram.eigenvalues()[0].item()
    return top_eigenvalues(gram.fisher(), k=1, tolerance=1e-3, min_steps=24).values[0].item()


def _participation(x: Tensor) -> Tensor:
    s = x.T @ x
    return s.trace() ** 2 / s.square().sum()
