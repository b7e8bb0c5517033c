"""Windows: their matrices and moments, the limits in which they are other methods, and what they leave alone."""

import pytest
import torch
import torch.nn.functional as F
from contract import answers, assert_same, distance
from torch import nn

import normsurvey as ns
from normsurvey.windows import _matrix

FUSED = pytest.mark.parametrize("fused", [True, False], ids=["fused", "composed"])
DOUBLE = {"dtype": torch.float64}


def images(*shape, mean=0.0, std=1.0, seed=0):
    return mean + std * torch.randn(shape or (3, 6, 8, 7), generator=torch.Generator().manual_seed(seed), **DOUBLE)


def same(first, second, x, tolerance=1e-12):
    """Two functions agree in their output and in the gradient at the input."""
    both = []
    for function in (first, second):
        leaf = x.clone().requires_grad_()
        both.append(answers(function(leaf), {"input": leaf}))
    assert_same(*both, tolerance)


def plain(method_id, channels=6, **options):
    layer = ns.catalogue[method_id].cls
    affine = {"affine": False} if "affine" in layer.record.signature.parameters else {}
    return layer(channels, **DOUBLE, **affine, **options)


# --- Window ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 20])
def test_a_box_is_average_pooling(size):
    """Odd windows that fit are torch's; any others hold what their definition says."""
    x, entry = images(1, 1, 9), torch.arange(9)
    for edges in ("inside", "zeros"):
        matrix = ns.Window("n c ... -> n ...", size=size, edges=edges).matrix(9)
        for i in range(9):
            held = (entry >= i - size // 2) & (entry < i - size // 2 + size)
            assert torch.allclose(matrix[i], held.double() / (size if edges == "zeros" else held.sum()))
        if size in (3, 5):
            want = F.avg_pool1d(x, size, 1, size // 2, count_include_pad=edges == "zeros")
            assert distance(x @ matrix.T, want) < 1e-14


def test_a_shifted_window_is_always_whole():
    matrix = ns.Window("n c ... -> n ...", size=4, edges="shift").matrix(9)
    first = (matrix > 0).int().argmax(1).tolist()
    assert (matrix > 0).sum(1).tolist() == [4] * 9 and first == [0, 0, 0, 1, 2, 3, 4, 5, 5]
    authors = ns.Window("n c ... -> n ...", size=4, edges="authors").matrix(9)
    assert (authors > 0).int().argmax(1).tolist() == [1, 1, 1, 2, 3, 4, 5, 5, 5]


def test_a_gaussian_weighs_the_middle_most():
    row = ns.Window("n c ... -> n ...", size=5, sigma=1.5).matrix(11)[5]
    taps = torch.exp(-0.5 * (torch.arange(-2, 3, **DOUBLE) / 1.5) ** 2)
    assert torch.allclose(row[3:8], taps / taps.sum()) and row.count_nonzero() == 5


@FUSED
@pytest.mark.parametrize("size", [1, 2, 3, 6, 7, (3, 5), (7, 2)], ids=str)
def test_moments_are_those_of_the_unfolded_window(size, fused):
    layer, x = plain("LocalContextNorm", window_size=size, fused=fused), images(2, 6, 9, 8)
    p, q = size if isinstance(size, tuple) else (size, size)
    windows = x.unflatten(1, (3, 2)).unfold(3, p, 1).unfold(4, q, 1).movedim(2, -1).flatten(5).flatten(-2)

    def spread(t):
        rows = [(torch.arange(n) - k // 2).clamp(0, n - k) for n, k in ((9, p), (8, q))]
        return t.index_select(2, rows[0]).index_select(3, rows[1]).repeat_interleave(2, 1)

    mean, var = spread(windows.mean(-1)), spread(windows.var(-1, correction=0))
    assert distance(layer(x), (x - mean) / (var + 1e-5).sqrt()) < 1e-12


@FUSED
def test_faint_windows_beside_a_strong_one_keep_their_digits(fused):
    """Contrasts of 1e-3 in one half of an image and of 1e3 in the other: E[x^2] - E[x]^2 has no digit left there."""
    x = images(1, 2, 40, 40, std=1e-3)
    x[..., 20:] = 1e3 * images(1, 2, 40, 20, seed=1)
    layer = ns.LocalContextNorm(2, window_size=5, eps=1e-12, affine=False, fused=fused)
    want = plain("LocalContextNorm", 2, window_size=5, eps=1e-12, fused=fused)(x)
    assert distance(layer(x.float()).double()[..., :17], want[..., :17]) < 1e-4


def test_what_a_transform_asks_for_first_serves_everyone_later():
    layer, x = ns.create("LocalResponseNorm", 6, window_size=4, fused=False), torch.randn(2, 6, 3)

    def slope(v):
        return torch.func.jvp(torch.func.grad(lambda t: layer(t).sin().sum()), (x,), (v,))[1]

    _matrix.cache_clear()
    first = slope(x)
    assert torch.allclose(torch.func.vmap(slope)(x[None])[0], first)
    _matrix.cache_clear()
    with torch.inference_mode():
        layer(x)
    layer(x.requires_grad_()).sum().backward()


def test_windows_refuse_what_they_cannot_be():
    for call, words in [
        (lambda: ns.LocalContextNorm(6, window_size=0), "window_size=0"),
        (lambda: ns.LocalResponseNorm(6, window_size=(3, 3)), r"window_size=\(3, 3\) counts neighbouring channels"),
        (lambda: ns.LocalContextNorm(6, channels_per_group=4), r"channels_per_group=4 .*\[1, 2, 3, 6\]"),
        (lambda: ns.LocalContextNorm(6, alignment="left"), "alignment='left'.*'centre' or 'authors'"),
        (lambda: ns.LocalContrastNorm(6, sigma=0.0), "sigma=0.0.*positive"),
        (lambda: ns.LocalResponseNorm(6, k=-1.0), "k=-1.0 must not be negative"),
        (lambda: ns.DivisiveNorm(6, window_size=(3, 3))(torch.ones(2, 6, 5)), "2 lengths and the input 1 axes"),
        (lambda: ns.DivisiveNorm(6, window_size=3)(torch.ones(2, 6, 5), mask=torch.ones(2, 5)), "mask.*crop or pad"),
        (lambda: ns.LocalContextNorm(6)(torch.ones(2, 6)), r"\(2, 6\) has no positions.*\(N, C, H, W\)"),
        (lambda: ns.Window("n c ... -> n ...", size=3, edges="wrap"), "edges='wrap'"),
    ]:
        with pytest.raises(ValueError, match=words):
            call()


# --- Local context normalization ------------------------------------------------------------------------


@FUSED
@pytest.mark.parametrize("size", [8, 227, (8, 9)], ids=str)
def test_local_context_of_everything_is_group_normalization(size, fused):
    theirs = nn.GroupNorm(3, 6, affine=False, **DOUBLE)
    same(plain("LocalContextNorm", window_size=size, fused=fused), theirs, images())


@FUSED
def test_the_authors_fall_back_to_an_unbiased_variance(fused):
    x, ours = images(), plain("LocalContextNorm", window_size=(3, 7), alignment="authors", fused=fused)
    groups = x.reshape(3, 3, -1)
    std = (groups.var(-1, keepdim=True) + 1e-5).sqrt()
    assert distance(ours(x), ((groups - groups.mean(-1, keepdim=True)) / std).view_as(x)) < 1e-12


@FUSED
def test_local_context_of_one_position_is_positional(fused):
    ours = plain("LocalContextNorm", window_size=1, channels_per_group=6, fused=fused)
    same(ours, plain("PositionalNorm"), images())


@FUSED
def test_local_context_sees_no_further_than_its_window(fused):
    layer, x = plain("LocalContextNorm", window_size=3, fused=fused), images()
    far = x.clone()
    far[:, :, 5:] += 100.0
    assert torch.equal(layer(far)[:, :, :4], layer(x)[:, :, :4])
    assert (layer(far)[:, :, 5] - layer(x)[:, :, 5]).abs().max() > 0.1


@FUSED
@pytest.mark.parametrize("method_id", ["LocalContextNorm", "LocalContrastNorm", "DivisiveNorm"])
def test_a_constant_image_has_no_contrast(method_id, fused):
    for value in (0.0, 3.0, 1e4):
        layer = ns.create(method_id, 6, window_size=3, fused=fused)
        y = layer(torch.full((2, 6, 9, 9), value))
        assert y.abs().max() < 1e-3  # beta, which starts at 0


def test_detached_statistics_are_constants():
    x = images().requires_grad_()
    layer = plain("LocalContextNorm", window_size=3, detach_stats=True)
    (slope,) = torch.autograd.grad(layer(x).sum(), x)
    h = images(seed=1) * 1e-6
    factor = (layer(x + h) - layer(x)).detach()
    assert (slope > 0).all() and not torch.allclose(slope * h, factor, rtol=1e-3)


# --- Local contrast normalization -----------------------------------------------------------------------


def test_contrast_is_never_amplified_beyond_its_average():
    x = images()
    layer = plain("LocalContrastNorm", window_size=5)
    window = layer.area
    v = x - window.average(x.flatten(2), entries(x)).view(3, 1, 8, 7)
    sigma = window.average(v.square().flatten(2), entries(v)).sqrt()
    bound = v.flatten(2).abs() / sigma.mean(2, keepdim=True)
    assert (layer(x).flatten(2).abs() <= bound + 1e-12).all()
    assert distance(layer(7 * x), layer(x)) < 1e-12


def test_zero_padding_leaves_the_interior():
    x = torch.full((1, 2, 12, 12), 3.0, **DOUBLE)
    y = plain("LocalContrastNorm", 2, window_size=3, count_include_pad=True)(x)
    assert y[:, :, 1:-1, 1:-1].abs().max() < 1e-12 < y.abs().max()


def entries(x):
    from normsurvey.entries import Entries

    return Entries(x.flatten(2), positions=tuple(x.shape[2:]))


# --- Local response normalization -----------------------------------------------------------------------


@FUSED
@pytest.mark.parametrize("size", [1, 3, 4, 5, 20])
def test_the_papers_alpha_is_torchs_over_the_size(size, fused):
    ours = plain("LocalResponseNorm", window_size=size, alpha=1e-2, k=2.0, alpha_over_size=False, fused=fused)
    same(ours, lambda x: F.local_response_norm(x, size, 1e-2 * size, 0.75, 2.0), images(std=10.0))


@FUSED
def test_response_of_a_channel_to_itself_is_its_sign(fused):
    ours = plain("LocalResponseNorm", window_size=1, k=0.0, beta=0.5, alpha=1.0, fused=fused)
    assert distance(ours(images()), images().sign()) < 1e-12


@FUSED
def test_response_keeps_the_sign_and_is_linear_for_large_k(fused):
    x = images(std=5.0)
    assert torch.equal(plain("LocalResponseNorm", alpha=1.0, fused=fused)(x).sign(), x.sign())
    assert distance(plain("LocalResponseNorm", k=1e6, alpha=1.0, fused=fused)(x) * 1e6**0.75, x) < 1e-3


def test_response_saves_its_input_and_nothing_else():
    saved = []
    x = torch.randn(8, 16, 12, 12, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        ns.LocalResponseNorm(16)(x)
    assert len({t.untyped_storage().data_ptr() for t in saved}) == 1


# --- Divisive normalization -----------------------------------------------------------------------------


@FUSED
def test_divisive_normalization_of_everything_is_layer_normalization(fused):
    ours = plain("DivisiveNorm", window_size=20, eps=1e-5, fused=fused)
    same(ours, plain("LayerNorm"), images())
    same(ours, nn.LayerNorm(6, elementwise_affine=False, **DOUBLE), images(5, 6))


def test_divisive_normalization_of_centred_channels_at_a_position_is_pixel_normalization():
    x = images()
    x = x - x.mean(1, keepdim=True)
    ours, pixel = plain("DivisiveNorm", window_size=1, eps=1e-8), plain("PixelNorm", eps=1e-8)
    assert distance(ours(x), pixel(x)) < 1e-12


def test_a_large_sigma_makes_it_linear():
    x, layer = images(), plain("DivisiveNorm", window_size=3, eps=1e8)
    assert distance(layer(x) * 1e4, layer.centred(x)) < 1e-7


@pytest.mark.parametrize("pad", [True, False])
def test_divisive_windows_are_average_pools(pad):
    x = images()

    def pool(t, size):
        return F.avg_pool2d(t.mean(1, keepdim=True), size, 1, size // 2, count_include_pad=pad)

    v = x - pool(x, 5)
    layer = plain("DivisiveNorm", window_size=5, suppression_size=3, count_include_pad=pad)
    assert distance(layer(x), v / (1 + pool(v**2, 3)).sqrt()) < 1e-12
    assert distance(layer.centred(x), v) < 1e-12


def test_a_learned_sigma_starts_at_the_root_of_eps_and_moves():
    x = images()
    layer, fixed = plain("DivisiveNorm", eps=0.25, learn_sigma=True), plain("DivisiveNorm", eps=0.25)
    assert layer.sigma.item() == 0.5 and distance(layer(x), fixed(x)) < 1e-12
    layer(x).square().mean().backward()
    assert layer.sigma.grad.abs() > 1e-3
