"""Three sequence tasks on data that is present offline, time first."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from normsurvey.experiments.data import digits, python_docs_text

from .declaration import TASKS, Scale

#: The symbols of the text task; every other character reads as the last one, every digit as 0.
ALPHABET = "abcdefghijklmnopqrstuvwxyz 0.,\n#"
#: Intensity, in shares of the darkest, from which a pixel counts as ink.
INK = 0.6


class Batch(NamedTuple):
    """Inputs ``x`` (T, B, S, D), targets ``y`` (B, S) or (T, B, S), ``mask`` (T, B) of valid steps or ``None`` for all.

    S sets of sequences lie side by side, one per seed; a set that all networks share has S = 1.
    """

    x: Tensor
    y: Tensor
    mask: Tensor | None = None


class SerialDigits:
    """Handwritten digits read one pixel per step, row by row: the class is asked after the last pixel.

    Args:
        length: number of steps, 64 times the square of ``zoom``.
        zoom: magnification of the 8 by 8 images by bilinear interpolation.
    """

    num_inputs, num_outputs, every_step = 1, 10, False

    def __init__(self, length: int = 64, zoom: int = 1):
        if length != 64 * zoom**2:
            raise ValueError(f"length={length} must be 64 * zoom**2 = {64 * zoom**2}")
        x, self.y, x_test, self.y_test = digits()
        self.length, self.x, self.x_test = length, self._magnify(x, zoom), self._magnify(x_test, zoom)

    @staticmethod
    def _magnify(x: Tensor, zoom: int) -> Tensor:
        if zoom > 1:
            x = F.interpolate(x.view(-1, 1, 8, 8), scale_factor=zoom, mode="bilinear").flatten(1)
        return x.flatten(1).T.unsqueeze(-1).contiguous()  # (T, N, 1)

    def sample(self, size: int, randoms: list[torch.Generator]) -> Batch:
        """A mini-batch of ``size`` training sequences for each generator, drawn with replacement."""
        index = torch.stack([torch.randint(len(self.y), (size,), generator=random) for random in randoms], 1)
        return Batch(self.x[:, index], self.y[index])

    def train_set(self) -> Batch:
        """All training sequences."""
        return Batch(self.x.unsqueeze(2), self.y.unsqueeze(1))

    def test_set(self) -> Batch:
        """All held-out sequences."""
        return Batch(self.x_test.unsqueeze(2), self.y_test.unsqueeze(1))


class InkPixels(SerialDigits):
    """The ink of a handwritten digit: (row, column, intensity) of its dark pixels, row by row; lengths vary.

    Of a digit with more than ``length`` such pixels the darkest are kept. Shorter sequences are padded with zeros,
    which the mask marks.
    """

    num_inputs = 3

    def __init__(self, length: int = 17):
        x, self.y, x_test, self.y_test = digits()
        low, high = x.min(), x.max()
        self.length = length
        self.x, self.mask = self._strokes((x - low) / (high - low))
        self.x_test, self.mask_test = self._strokes((x_test - low) / (high - low))

    def _strokes(self, intensity: Tensor) -> tuple[Tensor, Tensor]:
        value, pixel = intensity.sort(descending=True, stable=True)
        value, pixel = value[:, : self.length], pixel[:, : self.length]
        ink = value > INK
        pixel, order = torch.where(ink, pixel, 64).sort()  # row by row, the padding last
        ink, value = ink.gather(1, order), value.gather(1, order)
        features = torch.stack([(pixel // 8 - 3.5) / 2.3, (pixel % 8 - 3.5) / 2.3, (value - 0.8) / 0.15], -1)
        return (features * ink.unsqueeze(-1)).transpose(0, 1).contiguous(), ink.T.contiguous()

    def sample(self, size: int, randoms: list[torch.Generator]) -> Batch:
        """A mini-batch of ``size`` training sequences for each generator, drawn with replacement.

        The first generator draws the lengths, which the sets share so that one mask serves all; then each draws its own
        sequences of these lengths.
        """
        lengths = self.mask.sum(0)
        by_length = lengths.argsort(stable=True)
        drawn = lengths[torch.randint(len(lengths), (size,), generator=randoms[0])]
        first = torch.searchsorted(lengths[by_length], drawn)
        count = torch.searchsorted(lengths[by_length], drawn, right=True) - first
        shares = torch.stack([torch.rand(size, generator=random) for random in randoms], 1)
        index = by_length[first.unsqueeze(1) + (shares * count.unsqueeze(1)).long()]  # (B, S)
        return Batch(self.x[:, index], self.y[index], self.mask[:, index[:, 0]])

    def train_set(self) -> Batch:
        """All training sequences."""
        return Batch(*super().train_set()[:2], self.mask)

    def test_set(self) -> Batch:
        """All held-out sequences."""
        return Batch(*super().test_set()[:2], self.mask_test)


class PythonText:
    """Python's own documentation, letter by letter: at each step the next letter is asked.

    The first nine tenths are for training, the last is held out.
    """

    num_inputs = num_outputs = len(ALPHABET)
    every_step = True

    def __init__(self, length: int = 20):
        self.length = length
        text = python_docs_text().lower().encode("ascii", "replace")
        code = torch.frombuffer(bytearray(text.translate(_places())), dtype=torch.uint8).long()
        cut = len(code) * 9 // 10
        self.code, self.code_test = code[:cut], code[cut:]

    def sample(self, size: int, randoms: list[torch.Generator]) -> Batch:
        """A mini-batch of ``size`` windows for each generator, at random places of the training text."""
        last = len(self.code) - self.length
        start = torch.stack([torch.randint(last, (size,), generator=random) for random in randoms], 1)
        return self._windows(self.code, start, self.length)

    def train_set(self, count: int = 2000) -> Batch:
        """``count`` windows, evenly spread over the training text."""
        return self._spread(self.code, count, self.length)

    def test_set(self, count: int = 500, length: int | None = None) -> Batch:
        """``count`` windows, evenly spread over the held-out text, ``length`` letters long."""
        return self._spread(self.code_test, count, length or self.length)

    def _spread(self, code: Tensor, count: int, length: int) -> Batch:
        start = torch.arange(count) * (len(code) - length) // count
        return self._windows(code, start.unsqueeze(1), length)

    @staticmethod
    def _windows(code: Tensor, start: Tensor, length: int) -> Batch:
        letters = code[start + torch.arange(length + 1)[:, None, None]]  # (T + 1, B, S)
        return Batch(F.one_hot(letters[:-1], len(ALPHABET)).float(), letters[1:])


def _places() -> bytes:
    # place of each ASCII character in the alphabet
    last = len(ALPHABET) - 1
    known = {letter: k for k, letter in enumerate(ALPHABET)} | dict.fromkeys("123456789", ALPHABET.index("0"))
    return bytes(known.get(chr(k), last) for k in range(256))


def task(name: str, scale: Scale) -> SerialDigits | PythonText:
    """The task called ``name``, one of :data:`TASKS`, at the sizes of ``scale``."""
    if name not in TASKS:
        raise ValueError(f"name={name!r} is no task: choose one of {TASKS}")
    if name == "digits":
        return SerialDigits(scale.length[name], scale.zoom)
    return (PythonText if name == "text" else InkPixels)(scale.length[name])
