"""Pi that slides: an area for every position, or for every channel, of a tensor."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from . import kernels
from .area import Area
from .entries import Entries

__all__ = ["Window"]

EDGES = ("inside", "zeros", "shift", "authors")


class Window(Area):
    r"""Area partitioning by a sliding window: an estimate is shared by the entries *near* a position or channel.

    Unlike the areas of a pattern alone, windows overlap: an entry has one estimate of its own, and is a part of
    its neighbours' estimates. ``Window("n (g c) ... -> n g ...", c=2, size=9)`` has one window for each sample,
    pair of channels and position, over the pair and 9 positions along each axis. On an input (N, C), which has no
    positions, the window runs over the features.

    Along each axis a window is a banded matrix that averages, ``out = K x``; row i holds the weights with which the
    entries count for position i. Its transpose carries gradients back.

    Args:
        pattern: as for :class:`Area`; positions, or channels, are kept on the right.
        size: length of the window along each axis of positions, one number for all axes or one for each. With
            edges "shift" a window that is longer than the axis is all of the axis.
        sigma: standard deviation of Gaussian weights; ``None`` weighs all entries alike.
        edges: what a window that reaches over the border holds: ``"inside"``, only the entries that exist;
            ``"zeros"``, zeros outside; ``"shift"``, the nearest window that fits; ``"authors"``, that and one entry
            further, the alignment of the code published with local context normalization.
        channels: slide over neighbouring channels instead of positions.
        **sizes: sizes of named axes.

    Raises:
        ValueError: for a size below 1, a sigma that is not positive, or other edges.

    >>> Window("n c ... -> n ...", size=3).matrix(4).tolist()[0]
    [0.5, 0.5, 0.0, 0.0]
    """

    def __init__(
        self, pattern: str, *, size: int | tuple[int, ...], sigma: float | None = None, edges: str = "inside",
        channels: bool = False, **sizes: int | None,
    ):  # fmt: skip
        super().__init__(pattern, **sizes)
        lengths = size if isinstance(size, tuple) else (size,)
        if not lengths or not all(isinstance(n, int) and not isinstance(n, bool) and n >= 1 for n in lengths):
            raise ValueError(f"window_size={size!r} counts entries along each axis: choose integers of at least 1")
        if sigma is not None and not sigma > 0:
            raise ValueError(f"sigma={sigma!r} is the width of a Gaussian: choose a positive number, or None for a box")
        if edges not in EDGES:
            raise ValueError(f"edges={edges!r} is not known: choose one of {', '.join(EDGES)}")
        self.size, self.sigma, self.edges, self.channels = size, sigma, edges, channels

    def __repr__(self) -> str:
        words = [repr(self.pattern), *(f"{k}={v}" for k, v in self.sizes.items()), f"size={self.size}"]
        words += [f"sigma={self.sigma}"] * (self.sigma is not None) + [f"edges={self.edges!r}"] * (
            self.edges != "inside"
        )
        return f"Window({', '.join(words + ['channels=True'] * self.channels)})"

    @property
    def whole(self) -> Area:
        """The area that a window as large as the input is."""
        kept = [name for name in self.kept if name != ("c" if self.channels else "...")]
        return Area(f"{self.pattern.partition('->')[0]}-> {' '.join(kept)}", **self.sizes)

    def count(self, shape: tuple[int, ...]) -> int:
        """The least number of entries that share one estimate, for a tensor of shape ``(N, C, S)``."""
        sizes = self.size if isinstance(self.size, tuple) else (self.size,)
        return sizes[0] if self.channels else super().count(shape) * min(math.prod(sizes), shape[2])

    def lengths(self, positions: tuple[int, ...]) -> tuple[int, ...]:
        """Length of the window along each axis of ``positions``; one that is shifted is at most all of the axis."""
        sizes = self.size if isinstance(self.size, tuple) else (self.size,) * len(positions)
        if len(sizes) != len(positions):
            raise ValueError(
                f"window_size={self.size} has {len(sizes)} lengths and the input {len(positions)} axes of positions: "
                "give one number for all axes, or one for each"
            )
        return tuple(map(min, sizes, positions)) if self.edges in ("shift", "authors") else tuple(sizes)

    def covers(self, positions: tuple[int, ...]) -> bool:
        """Whether one window holds all positions, so that all share one estimate; the authors ask it of any axis."""
        full = [n >= length for n, length in zip(self.lengths(positions), positions, strict=True)]
        return any(full) if self.edges == "authors" else self.edges == "shift" and all(full)

    def matrix(self, length: int, size: int | None = None) -> Tensor:
        """Row i holds the weights with which the ``length`` entries of an axis count for position i, in float64."""
        return _matrix(self.edges, self.sigma, length, size or self.lengths((length,))[0])

    def average(self, values: Tensor, entries: Entries) -> Tensor:
        """Average of ``values`` (N, C, S) in the window of each entry, a tensor that broadcasts against them."""
        if self.channels:
            return self.matrix(values.shape[1]).to(values) @ values
        refuse_mask(entries)
        positions = entries.positions or (values.shape[1],)
        maps = (values.mean(1) if entries.positions else values).reshape(values.shape[0], *positions)
        near = 0.0
        if self.edges != "zeros":  # a mean far from 0 would cost digits
            near = maps.flatten(1).mean(1).reshape(-1, *[1] * len(positions))
        found = (kernels.along(maps - near, self._matrices(positions, maps)) + near).flatten(1)
        return found[:, None] if entries.positions else found[..., None]

    def moments(self, entries: Entries) -> tuple[Tensor, Tensor]:
        """Mean and biased variance of the window of each entry, two tensors (N, areas, S)."""
        refuse_mask(entries)
        x, positions = entries.x, entries.positions
        sizes = self.lengths(positions)
        starts = tuple(_first(self.edges, n, k).to(x.device) for n, k in zip(positions, sizes, strict=True))
        groups = x.reshape(x.shape[0], *self.shape(x.shape)[1:3], *positions)
        found = kernels.window_moments(groups, sizes, starts, self._matrices(positions, x), entries.fused)
        return tuple(t.flatten(2) for t in found)

    def _matrices(self, positions: tuple[int, ...], like: Tensor) -> tuple[Tensor, ...]:
        pairs = zip(positions, self.lengths(positions), strict=True)
        return tuple(self.matrix(n, k).to(like) for n, k in pairs)


def refuse_mask(entries: Entries) -> None:
    """Raise ``ValueError`` where a mask was given: a window without its neighbours is another window."""
    if entries.weight is not None:
        raise ValueError("mask was given, and a window has no other neighbours to take instead: crop or pad the input")


def _first(edges: str, length: int, size: int) -> Tensor:
    """Index of the first entry of each of the ``length`` windows along an axis; it may lie outside."""
    start = torch.arange(length) - size // 2
    if edges == "shift":
        return start.clamp(0, length - size)
    return start.clamp(0, length - size - 1) + 1 if edges == "authors" else start


@functools.lru_cache(maxsize=64)
@kernels.constant
def _matrix(edges: str, sigma: float | None, length: int, size: int) -> Tensor:
    place = torch.arange(length) - _first(edges, length, size)[:, None]  # of an entry (column) in the window (row)
    taps = torch.ones(size, dtype=torch.float64)
    if sigma is not None:
        taps = (-0.5 * ((torch.arange(size, dtype=torch.float64) - (size - 1) / 2) / sigma) ** 2).exp()
    weight = torch.where((place >= 0) & (place < size), taps[place.clamp(0, size - 1)], 0.0)
    return weight / (taps.sum() if edges == "zeros" else weight.sum(1, keepdim=True))
