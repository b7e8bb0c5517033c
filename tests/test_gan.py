"""The GAN on a ring: what it measures is what it says."""

import copy

import pytest
import torch
from torch.nn import functional as F

from normsurvey.experiments import gan


def test_modes_and_quality_count_points_near_the_modes():
    points = gan.centers().repeat(4, 1)
    assert gan.modes_covered(points) == gan.MODES and gan.quality(points) == 1.0
    points[gan.MODES :] = gan.centers()[0]  # seven modes keep one point of 32, an eighth of their share is 1/64
    assert gan.modes_covered(points, share=0.25) == gan.MODES
    assert gan.modes_covered(points, share=0.5) == 1
    assert gan.quality(torch.cat([points, torch.zeros(32, 2)])) == 0.5


def test_the_ring_has_its_mean_and_deviation():
    points = gan.ring(20000, torch.Generator().manual_seed(0))
    assert gan.quality(points) > 0.999 and gan.modes_covered(points) == gan.MODES
    assert points.mean(0).abs().max() < 0.05


@pytest.mark.parametrize("treatment", ["none", "SpectralNorm", "BatchNorm"])
def test_training_is_determined_by_its_seed(treatment):
    first, second = (gan.train(treatment, 1e-3, 0, steps=6, width=8, batch_size=16) for _ in range(2))
    assert torch.equal(first.points, second.points) and first.product == second.product
    assert first.steps[-1] == 6 and len(first.steps) == len(first.modes) == len(first.product)


def test_the_product_bounds_the_slope_and_moves_nothing():
    d = gan.discriminator("SpectralNorm", width=16)
    before = copy.deepcopy(d.state_dict())
    points = torch.randn(64, 2)
    assert gan.slope(d, points).max() <= 4 * gan.lipschitz_product(d) * (1 + 1e-5)
    assert all(torch.equal(v, before[k]) for k, v in d.state_dict().items()) and d.training


def test_batch_dependence_is_zero_only_without_a_batch():
    samples = torch.randn(4, 2, dtype=torch.float64)
    companions = [torch.randn(7, 2, dtype=torch.float64) for _ in range(5)]
    for treatment, dependent in (("none", False), ("SpectralNorm", False), ("BatchNorm", True)):
        d = gan.discriminator(treatment, width=16).double()
        before = copy.deepcopy(d.state_dict())
        found = gan.batch_dependence(d, samples, companions)
        assert found > 0.05 if dependent else found < 1e-12
        assert all(torch.equal(v, before[k]) for k, v in d.state_dict().items())


def test_blindness_in_separate_batches():
    points = gan.ring(32, torch.Generator().manual_seed(0)).double()
    shift = torch.tensor([1.0, 2.0], dtype=torch.float64)
    blind = gan.blindness(gan.discriminator("BatchNorm", 16, eps=0.0).double(), points, 0.5, shift)
    assert max(blind["apart"], blind["along shift"], blind["along scale"]) < 1e-10 and blind["mixed"] > 0.1
    seeing = gan.blindness(gan.discriminator("SpectralNorm", 16).double(), points, 0.5, shift)
    assert seeing["apart"] > 0.1 and seeing["along shift"] > 0.01


def test_the_norm_of_a_convolution_equals_that_of_its_dense_matrix():
    weight = torch.randn(3, 2, 3, 3, dtype=torch.float64)
    basis = torch.eye(2 * 6 * 6, dtype=torch.float64).reshape(-1, 2, 6, 6)
    images = F.conv2d(F.pad(basis, (1, 1, 1, 1), mode="circular"), weight).flatten(1)
    dense = torch.linalg.matrix_norm(images, 2).item()
    assert gan.convolution_norm(weight, 6) == pytest.approx(dense, rel=1e-10)


def test_unknown_treatment_is_named():
    with pytest.raises(ValueError, match=r"treatment='BatchNrm'.*'BatchNorm'"):
        gan.discriminator("BatchNrm")
