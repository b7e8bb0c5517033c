"""Small real data sets that are present offline: handwritten digits, patches of photographs, English text.

Everything is deterministic in ``seed`` and lives on the CPU: move it to the device of the experiment.
"""

import torch
from sklearn.datasets import load_digits, load_sample_image

PHOTOS = ("china.jpg", "flower.jpg")
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601 weights of red, green and blue


def digits(seed=0, dtype=torch.float32, test_size=0.2):
    """Scikit-learn's 1797 handwritten digits, split into training and test images.

    One scalar mean and one scalar standard deviation, those of all pixels of the training images, are removed
    from both parts. Pixels therefore keep their own means and variances (some are blank in every image):
    normalizing them one by one is left to the methods under study.

    Args:
        seed: seed of the shuffle that decides which images are tested.
        dtype: floating dtype of the images.
        test_size: fraction of the images that are kept for testing, in (0, 1).

    Returns:
        ``x_train (N, 64), y_train (N,), x_test (M, 64), y_test (M,)``; labels are int64 in 0..9.

    Raises:
        ValueError: for a ``test_size`` outside (0, 1) or one that leaves a part empty.
        TypeError: for a ``dtype`` that is not a floating dtype.

    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI repository, 1998,
    doi:10.24432/C50P49 (its test part, as shipped with scikit-learn).

    >>> [tuple(t.shape) for t in digits()]
    [(1438, 64), (1438,), (359, 64), (359,)]
    """
    _check_dtype(dtype)
    bunch = load_digits()
    x, y = torch.from_numpy(bunch.data).to(dtype), torch.from_numpy(bunch.target).long()
    count = int(test_size * len(x))
    if not 0 < count < len(x):
        raise ValueError(
            f"test_size={test_size!r} must be a fraction that leaves images in both parts; try 0.2"
        )
    order = torch.randperm(len(x), generator=_generator(seed))
    test, train = order[:count], order[count:]
    mean, std = x[train].mean(), x[train].std(correction=0)
    x = (x - mean) / std
    return x[train], y[train], x[test], y[test]


def digit_images(seed=0, dtype=torch.float32, test_size=0.2):
    """The split of :func:`digits` as images: ``x_train (N, 1, 8, 8), y_train, x_test (M, 1, 8, 8), y_test``.

    >>> digit_images()[0].shape
    torch.Size([1438, 1, 8, 8])
    """
    x_train, y_train, x_test, y_test = digits(seed, dtype, test_size)
    return x_train.view(-1, 1, 8, 8), y_train, x_test.view(-1, 1, 8, 8), y_test


def photo_patches(size=8, count=10_000, seed=0, grayscale=False, dtype=torch.float32):
    """Random square patches of scikit-learn's two sample photographs, a temple and a flower.

    The photographs take turns, positions are uniform. Intensities are divided by 255 and otherwise untouched.

    Args:
        size: side of a patch in pixels, at most 427, the height of the photographs.
        count: number of patches.
        seed: seed of the positions.
        grayscale: return one luma channel instead of red, green, blue.
        dtype: floating dtype of the patches.

    Returns:
        Tensor ``(count, 3, size, size)`` in [0, 1], or ``(count, 1, size, size)`` for ``grayscale``.

    Raises:
        ValueError: for a ``size`` that does not fit into the photographs or a ``count`` below 1.
        TypeError: for a ``dtype`` that is not a floating dtype.

    >>> photo_patches(size=5, count=7).shape
    torch.Size([7, 3, 5, 5])
    """
    _check_dtype(dtype)
    photos = torch.stack([torch.tensor(load_sample_image(name)) for name in PHOTOS]).to(dtype) / 255
    if grayscale:
        photos = (photos @ torch.tensor(LUMA, dtype=dtype)).unsqueeze(-1)
    height, width = photos.shape[1:3]  # photos is (2, H, W, C)
    if not 1 <= size <= min(height, width):
        raise ValueError(
            f"size={size!r} must be between 1 and {min(height, width)}, the height of the photographs"
        )
    if count < 1:
        raise ValueError(f"count={count!r} must be at least 1")

    def windows(length):
        return torch.randint(length - size + 1, (count, 1), generator=generator) + torch.arange(size)

    generator = _generator(seed)
    rows, columns = windows(height), windows(width)
    which = torch.arange(count) % len(PHOTOS)
    patches = photos[which[:, None, None], rows[:, :, None], columns[:, None, :]]  # (count, size, size, C)
    return patches.permute(0, 3, 1, 2).contiguous()


def digits_on_photos(count=10_000, seed=0, dtype=torch.float32, test_size=0.2):
    """Handwritten digits on patches of photographs: ten classes of colour images as large as those of CIFAR-10.

    A digit of :func:`digits`, enlarged to 24 x 24 pixels, lies at a random place of a 32 x 32 patch of
    :func:`photo_patches`, its ink an opaque random colour. No digit of a test image is in a training image. One mean
    and one standard deviation, those of all pixels of the training images, are removed.

    Args:
        count: number of images, training and test together.
        seed: seed of the split, the choice of digits and patches, places and colours.
        dtype: floating dtype of the images.
        test_size: fraction of the images that are kept for testing, in (0, 1).

    Returns:
        ``x_train (N, 3, 32, 32), y_train (N,), x_test (M, 3, 32, 32), y_test (M,)``; labels are int64 in 0..9.

    Raises:
        ValueError: for a ``test_size`` outside (0, 1), or a ``count`` that leaves a part empty.
        TypeError: for a ``dtype`` that is not a floating dtype.

    >>> [tuple(t.shape) for t in digits_on_photos(10)]
    [(8, 3, 32, 32), (8,), (2, 3, 32, 32), (2,)]
    """
    x_train, y_train, x_test, y_test = digits(seed, dtype, test_size)
    held_out = int(test_size * count)
    if not 0 < held_out < count:
        raise ValueError(f"count={count!r} and test_size={test_size!r} must leave images in both parts")
    photos, generator = photo_patches(32, count, seed, dtype=dtype), _generator(seed)
    parts = []
    for x, y, backs in ((x_train, y_train, photos[held_out:]), (x_test, y_test, photos[:held_out])):
        chosen = torch.randint(len(x), (len(backs),), generator=generator)
        parts += [_overlay(x[chosen], backs, generator), y[chosen]]
    mean, std = parts[0].mean(), parts[0].std(correction=0)
    return (parts[0] - mean) / std, parts[1], (parts[2] - mean) / std, parts[3]


def _overlay(digit, back, generator):
    """Digits (N, 64) with a colour each, enlarged and shifted, over patches (N, 3, 32, 32)."""
    low, high = digit.amin(1, keepdim=True), digit.amax(1, keepdim=True)
    ink = ((digit - low) / (high - low)).view(-1, 1, 8, 8)
    ink = torch.nn.functional.interpolate(ink, size=(24, 24), mode="bilinear", align_corners=False)
    place = torch.zeros(len(ink), 1, 32, 32, dtype=ink.dtype)
    shift = torch.randint(9, (2, len(ink), 1, 1), generator=generator)
    inside = torch.arange(24)
    rows, columns = shift[0] + inside[:, None], shift[1] + inside
    place[torch.arange(len(ink))[:, None, None], 0, rows, columns] = ink[:, 0]
    color = torch.rand(len(ink), 3, 1, 1, generator=generator, dtype=ink.dtype)
    return place * color + (1 - place) * back


def python_docs_text():
    """Python's own documentation of its language: real English text that is on every machine that runs this.

    The topics of ``help()`` (module ``pydoc_data.topics`` of the standard library), in alphabetical order,
    joined by blank lines: about 465 000 characters in 79 topics in Python 3.11. It is part of Python, so it
    **depends on the Python version**: quote a number measured on it with that version.

    Raises:
        ModuleNotFoundError: where a distribution has stripped ``pydoc_data``; a full Python has it.

    >>> len(python_docs_text()) > 400_000
    True
    """
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name].strip() for name in sorted(topics)) + "\n"


def _generator(seed):
    return torch.Generator().manual_seed(seed)


def _check_dtype(dtype):
    if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise TypeError(f"dtype={dtype!r} must be a floating torch dtype; try torch.float32 or torch.float64")
