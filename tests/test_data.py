"""The data sets of the chapters: shapes, scaling, determinism and errors."""

import pytest
import torch

from normsurvey.experiments import data


def test_digits_are_scaled_by_two_numbers_of_the_training_part():
    x_train, y_train, x_test, y_test = data.digits(dtype=torch.float64)
    assert x_train.shape[1] == x_test.shape[1] == 64 and len(x_train) + len(x_test) == 1797
    assert abs(x_train.mean()) < 1e-12 and abs(x_train.std(correction=0) - 1) < 1e-12
    assert x_train.min() == x_test.min()  # a blank pixel is the same number everywhere
    assert y_train.dtype == torch.int64 and set(y_train.tolist()) == set(y_test.tolist()) == set(range(10))


def test_digits_depend_on_the_seed_alone():
    first, again, other = data.digits(seed=1), data.digits(seed=1), data.digits(seed=2)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[1], other[1])


def test_digits_split_is_a_partition():
    x_train, _, x_test, _ = data.digits(test_size=0.5)
    both = torch.cat([x_train, x_test])
    assert len(x_test) == 898 and len(both.unique(dim=0)) == len(data.digits()[0].unique(dim=0)) + len(
        data.digits()[2].unique(dim=0)
    )


def test_digit_images_are_the_digits_in_rows():
    flat, images = data.digits(seed=3), data.digit_images(seed=3)
    assert images[0].shape[1:] == (1, 8, 8) and torch.equal(images[2][:, 0, 1], flat[2][:, 8:16])


def test_patches_are_cut_from_the_photographs():
    patches = data.photo_patches(size=427, count=2, dtype=torch.float64)  # only the column is free
    from sklearn.datasets import load_sample_image

    for patch, name in zip(patches, data.PHOTOS, strict=True):
        photo = torch.tensor(load_sample_image(name)).permute(2, 0, 1).double() / 255
        assert (photo.unfold(2, 427, 1) == patch[:, :, None]).all(dim=3).all(dim=1).all(dim=0).any()


def test_gray_patches_are_the_luma_of_the_coloured_ones():
    colour, gray = data.photo_patches(count=5), data.photo_patches(count=5, grayscale=True)
    assert gray.shape == (5, 1, 8, 8) and 0 <= gray.min() and gray.max() <= 1 + 1e-6
    torch.testing.assert_close(gray[:, 0], torch.einsum("nchw,c->nhw", colour, torch.tensor(data.LUMA)))
    assert not torch.equal(colour, data.photo_patches(count=5, seed=1))


def test_digits_on_photos_are_digits_and_photos():
    x, y, x_test, y_test = data.digits_on_photos(300, seed=1)
    assert x.shape == (240, 3, 32, 32) and x_test.shape == (60, 3, 32, 32) and set(y.tolist()) == set(range(10))
    assert abs(x.mean()) < 1e-5 and abs(x.std(correction=0) - 1) < 1e-5
    again = data.digits_on_photos(300, seed=1)
    assert torch.equal(x, again[0]) and torch.equal(y_test, again[3])
    other = data.digits_on_photos(300, seed=2)
    assert not torch.equal(x, other[0])


def test_a_digit_covers_a_part_of_its_photo_with_one_colour():
    digit, back = data.digits(seed=0)[0][:5], data.photo_patches(32, 5)
    image = data._overlay(digit, back, torch.Generator().manual_seed(0))
    same = (image == back).all(1)
    assert all(0.4 < part < 0.9 for part in same.float().mean((1, 2)))
    inked = digit.view(-1, 8, 8).amax((1, 2)) > digit.amin()
    assert inked.all() and image.min() >= 0 and image.max() <= 1


def test_text_is_english_about_python():
    text = data.python_docs_text()
    assert text == data.python_docs_text() and len(text) > 400_000
    assert "expression" in text and sum(map(str.isascii, text)) > 0.99 * len(text)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: data.digits(test_size=1.5), "test_size=1.5"),
        (lambda: data.digits(test_size=0.0001), "test_size=0.0001"),
        (lambda: data.digits(dtype=torch.int64), "dtype=torch.int64"),
        (lambda: data.photo_patches(size=428), "size=428"),
        (lambda: data.photo_patches(size=0), "size=0"),
        (lambda: data.photo_patches(count=0), "count=0"),
        (lambda: data.photo_patches(dtype="float32"), "dtype='float32'"),
        (lambda: data.digits_on_photos(3), "count=3"),
    ],
)
def test_bad_arguments_are_named_with_a_remedy(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()
