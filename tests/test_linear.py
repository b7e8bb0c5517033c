"""The studies of chapters 1 and 2 against slow or exact counterparts."""

import pytest
import torch

import normsurvey as ns
from normsurvey.experiments import backward, linear, spectra

SEED_PROBLEM = dict(samples=60, features=4, decades=0.3)


def test_hessian_and_descent_are_those_of_autograd():
    problem = linear.random_problem(0, **SEED_PROBLEM)

    def loss(w):
        return 0.5 * (problem.inputs @ w - problem.targets).square().mean()

    start, rate = torch.ones(4, dtype=torch.float64), problem.step_size()
    gradient, hessian = torch.func.grad(loss)(start), torch.func.hessian(loss)(start)
    torch.testing.assert_close(problem.hessian, hessian)
    torch.testing.assert_close(problem.descend(1, rate, start)[1], start - rate * gradient)
    torch.testing.assert_close(problem.excess(start), loss(start) - loss(problem.solution))


def test_descent_follows_the_closed_form_of_each_eigenvector():
    problem = linear.random_problem(1, **SEED_PROBLEM)
    values, vectors = torch.linalg.eigh(problem.hessian)
    weights = values * (vectors.T @ problem.solution) ** 2
    rate = problem.step_size("both ends")
    expected = (weights * (1 - rate * values) ** 40).sum() / weights.sum()
    torch.testing.assert_close(problem.relative_excess(20, "both ends")[-1], expected)


def test_every_operation_does_what_its_row_of_the_table_says():
    inputs, _ = linear.random_inputs(2)
    after = {name: linear.apply(op, inputs) for name, op in linear.OPERATIONS.items()}
    cov, moment = spectra.covariance(inputs), {k: x.T @ x / len(x) for k, x in after.items()}
    torch.testing.assert_close(moment["center"], cov)
    torch.testing.assert_close(moment["scale"].diag(), torch.ones(16, dtype=torch.float64))
    torch.testing.assert_close(moment["standardize"], torch.corrcoef(inputs.T))
    spectrum = torch.linalg.eigvalsh(cov)
    torch.testing.assert_close(moment["decorrelate"], spectrum.flip(0).diag(), rtol=1e-6, atol=1e-10)
    torch.testing.assert_close(moment["whiten"], torch.eye(16, dtype=torch.float64), rtol=0, atol=1e-7)


def test_interlacing_is_violated_by_an_unrelated_spectrum():
    raw, other = (linear.random_problem(s, **SEED_PROBLEM) for s in (0, 1))
    centred = linear.transformed(raw, ns.Center())
    assert linear.interlacing_violation(raw, centred) < 0
    doubled = linear.LeastSquares(3 * centred.inputs, other.targets)
    assert linear.interlacing_violation(raw, doubled) > 1e-3


def test_centring_helps_with_a_bias_and_not_always_without():
    assert linear.condition_ratios(ns.Center(), 0, problems=20).max() > 1
    assert linear.condition_ratios(ns.Center(), 0, problems=20, bias=True).max() < 1


@pytest.mark.parametrize("seed", range(3))
def test_blocked_directions_are_seen_to_be_open_without_normalization(seed):
    x, _ = linear.random_inputs(seed, samples=20, features=3, decades=0.0)
    y, _, gradient = backward.input_gradient(torch.tanh, x, seed)
    assert min(backward.blocked_per_feature(gradient, y).values()) > 1e-6
    assert min(backward.blocked_by_whitening(gradient, x, y).values()) > 1e-6


def test_the_closed_form_counts_the_gain_and_the_gains_are_not_trivial():
    x, _ = linear.random_inputs(0, samples=20, features=6, decades=0.0)
    layer = backward.with_random_gains(ns.BatchNorm(6, eps=0.0).double())
    assert (layer.weight.abs() >= 0.5).all() and layer.weight.min() < 0 < layer.weight.max()
    _, upstream, gradient = backward.input_gradient(layer, x)
    x_hat, deviation = (x - x.mean(0)) / x.std(0, correction=0), x.std(0, correction=0)
    exact = backward.standardize_backward(x_hat, upstream, deviation, layer.weight.detach())
    torch.testing.assert_close(gradient, exact)
    assert not torch.allclose(gradient, backward.standardize_backward(x_hat, upstream, deviation))


def test_adjoint_of_the_inverse_root_agrees_with_autograd_where_gaps_are_wide():
    cov = backward.covariance_with_gap(0.2, seed=3)
    upstream = torch.randn(8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    leaf = cov.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(backward.inverse_sqrt_by_eigh(leaf), leaf, upstream)
    exact = backward.inverse_sqrt_adjoint(cov, upstream)
    torch.testing.assert_close((gradient + gradient.T) / 2, exact)
    values = torch.linalg.eigvalsh(backward.covariance_with_gap(1e-3))
    assert abs(values[1] - values[0] - 1e-3) < 1e-12


def test_newton_map_predicts_every_iteration():
    x, _ = linear.random_inputs(0, decades=0.0)
    path = spectra.newton_spectra(x, iterations=6)
    torch.testing.assert_close(path[1:], spectra.newton_map(path[:-1]))


def test_training_maps_repeat_the_operations_on_the_training_images():
    x = spectra.real_samples("digits", seed=1)
    for name, (location, matrix) in spectra.training_maps(x).items():
        expected = linear.apply(linear.OPERATIONS[name], x)
        torch.testing.assert_close((x - location) @ matrix.T, expected, rtol=1e-8, atol=1e-10)


def test_parity_is_learned():
    curves = spectra.learn_parity(steps=50)
    assert curves["whiten"][0][1] < 1e-12 < curves["raw"][0][-1]
    assert all(error[-1] < 0.2 for _, error in curves.values())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: linear.LeastSquares(torch.ones(2, 3), torch.ones(2)), r"inputs of shape \(2, 3\)"),
        (lambda: linear.random_problem(0, **SEED_PROBLEM).step_size("best"), "rule='best'"),
        (lambda: spectra.real_samples("cifar"), "name='cifar'"),
    ],
)
def test_bad_arguments_are_named_with_a_remedy(call, message):
    with pytest.raises(ValueError, match=message):
        call()
