"""What the chapter on mean-field theory measures, at toy size: laws where they show already, and the controls."""

import math

import matplotlib.pyplot as plt
import pytest
import torch
from torch import nn

from normsurvey.analysis import linear_gram, output_gram, scaling_exponent
from normsurvey.experiments import mean_field as mf
from normsurvey.experiments.data import digits_on_photos
from normsurvey.plots import depth as plots

RELU_RATE = math.pi / (math.pi - 1)
BN, LN = mf.NORMS["BatchNorm"], mf.NORMS["LayerNorm"]


def rate(batch, norm, activation=nn.ReLU, width=160, depth=20):
    return mf.chain_moments(mf.chain(width, depth, norm, activation), batch).backward_rate()


def test_rates_with_and_without_normalization():
    assert rate(128, BN) == pytest.approx(RELU_RATE, rel=0.05)
    assert rate(128, LN) == pytest.approx(1, abs=0.12)
    assert rate(128, None) == pytest.approx(1, abs=0.12)


def test_linear_rate_depends_on_the_batch_alone():
    for batch in (6, 12):
        assert rate(batch, BN, nn.Identity, depth=30) == pytest.approx((batch - 2) / (batch - 3), rel=0.08)


@pytest.mark.parametrize("name", ["BatchNorm", "none"])
def test_weight_scale_cancels_with_batch_norm_alone(name):
    model = mf.chain(12, 8, mf.NORMS[name])
    start, other = (mf.chain_moments(model, 16, scale=c).gradient for c in (1.0, 10.0))
    assert ((other / start - 1).abs().max() < 1e-12) == (name == "BatchNorm")


def test_chain_has_the_layers_of_the_perceptron():
    model = mf.chain(6, 2, BN, nn.Tanh, d_in=4, outputs=3)
    assert [n for n, _ in model.named_children()] == ["linear1", "norm1", "act1", "linear2", "norm2", "act2", "head"]
    assert isinstance(model.act2, nn.Tanh) and model(torch.randn(5, 4, dtype=torch.float64)).shape == (5, 3)


def test_other_norms_on_the_same_weights():
    model = mf.chain(6, 2, BN, nn.Tanh)
    x = torch.randn(5, 6, dtype=torch.float64)
    for norm in (None, LN):
        torch.testing.assert_close(mf.renormalized(model, norm)(x), mf.chain(6, 2, norm, nn.Tanh)(x))
    assert mf.renormalized(model, LN).linear2 is model.linear2


def test_rank_survives_batch_norm_alone():
    networks = {name: (norm, nn.Identity) for name, norm in mf.NORMS.items()}
    found = mf.ranks(16, 150, networks, every=50)
    assert all(len(v) == 4 for v in found.values()) and len({v[0].item() for v in found.values()}) == 1
    last = {name: v[-1].item() for name, v in found.items()}
    assert min(last["BatchNorm"], last["scale"]) > 0.5 * 16**0.5 > 1.6 > max(last["none"], last["LayerNorm"])


def test_residual_branches_shrink_relative_to_the_skip_connection():
    trunk, branch = mf.residual_moments(64, 20, 64, BN)
    share = branch.variance / trunk.variance[1:] * torch.arange(1, 21)
    assert share[9:].min() > 0.7 and share[9:].max() < 1.3
    exponent = -scaling_exponent(trunk.variance[5:], trunk.gradient[5:])
    assert exponent == pytest.approx(RELU_RATE, rel=0.15)
    plain, _ = mf.residual_moments(64, 20, 64)
    assert plain.forward_rate() == pytest.approx(2, abs=0.15)


def test_sharpness_is_the_eigenvalue_of_the_network_with_that_output_norm():
    found = mf.sharpness(8, samples=6)
    model, x = mf.chain(8, 3, d_in=8, seed=0), mf.gaussian(6, 8, seed=500_000)
    truth = output_gram(nn.Sequential(model, BN(1)), x).eigenvalues()[0].item()
    assert found["standardize"] == pytest.approx(truth, rel=1e-9)
    assert found["none"] == pytest.approx(output_gram(model, x).eigenvalues()[0].item(), rel=1e-9)
    assert mf.sharpness(8, samples=6, per_sample=False) == pytest.approx(found, rel=1e-9)


def test_sharpness_grows_with_the_width_unless_the_mean_is_removed():
    widths = (32, 64, 128)
    found = [mf.sharpness(w, networks=8) for w in widths]
    slopes = {name: scaling_exponent(widths, [f[name] for f in found]) for name in found[0]}
    assert slopes["none"] > 0.7 and abs(slopes["center"]) < 0.3 and abs(slopes["standardize"]) < 0.4


def test_biases_give_tanh_the_outlier_that_relu_has():
    tanh = dict(activation=nn.Tanh, gain=3**0.5, networks=4)
    odd, biased = mf.sharpness(64, **tanh), mf.sharpness(64, bias=0.8, **tanh)
    assert odd["none"] < 1.5 * odd["center"] and biased["none"] > 4 * biased["center"]
    few = [mf.sharpness(width, 16, bias=0.8, **tanh) for width in (64, 256)]
    assert min(few[1][kind] / few[0][kind] for kind in few[0]) > 1.5


def test_biases_have_the_deviation_asked_for_and_norms_none_in_front():
    model = mf.chain(400, 2, bias=0.8)
    assert [m.bias.std().item() for m in (model.linear1, model.linear2)] == pytest.approx([0.8, 0.8], rel=0.15)
    names = [n for n, _ in mf.chain(8, 2, BN, bias=0.8).named_parameters() if n.endswith("bias")]
    assert names == ["head.bias"]


def test_large_matrices_in_single_precision_agree_with_a_dense_solver():
    found = mf.sharpness(96, samples=300, dtype=torch.float32)
    gram = linear_gram(mf.chain(96, 3), mf.gaussian(300, 96, seed=500_000), per_sample=True)
    truth = [gram, gram.batch_normalized(scale=False), gram.batch_normalized()]
    assert list(found.values()) == pytest.approx([g.eigenvalues()[0].item() for g in truth], rel=1e-3)


def test_images_are_drawn_from_what_is_given():
    images = torch.randn(10, 1, 2, 2, dtype=torch.float64)
    assert mf.sharpness(8, samples=6, images=images) != mf.sharpness(8, samples=6)
    assert mf.sharpness(8, samples=6, images=images, seed=1) == mf.sharpness(8, samples=6, images=images, seed=1)


def test_the_full_scale_at_toy_size(monkeypatch, capsys):
    monkeypatch.setenv("NORMSURVEY_SCALE", "full")
    images = digits_on_photos(24, dtype=torch.float64)[0]
    found = mf.sharpness_by_width((8, 16), range(2), images=images)
    assert all(found[kind].shape == (2, 2) for kind in ("none", "center", "standardize"))
    assert found["none"][0, 0] == mf.sharpness(8, images=images, networks=2)["none"]
    assert "Fisher matrices by width" in capsys.readouterr().out


def test_figures():
    figure, (left, right) = plt.subplots(1, 2)
    plots.plot_depth(left, torch.logspace(0, 3, 10), "BatchNorm", rate=2.0)
    plots.plot_scaling(right, (8, 16), torch.tensor([[1.0, 2.0], [1.0, 2.0]]), "none", "plain")
    assert len(left.lines) == 3 and right.get_legend_handles_labels()[1] == ["plain: 1.00"]
    theory = left.lines[2].get_ydata()
    assert theory[5] == pytest.approx(10 ** (3 * 5 / 9), rel=1e-5)
    assert theory[6] / theory[5] == pytest.approx(2, rel=1e-5)
    plt.close(figure)


def test_batch_norm_in_the_middle_needs_the_whole_batch():
    with pytest.raises(ValueError, match="per_sample"):
        mf.sharpness(8, norm=BN)
    assert mf.sharpness(8, norm=BN, per_sample=False)["none"] > 0
