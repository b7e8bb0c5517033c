"""Fisher blocks of layers against dense references, with and without samples that interact."""

import pytest
import torch
from torch import nn

import normsurvey as ns
from normsurvey.analysis import (
    FisherBlock,
    batch_fisher_spectra,
    deflated,
    eigenvalues,
    fisher_blocks,
    layer_moments,
    layer_rows,
    log_correlation,
    sampled_cross_entropy,
)
from normsurvey.experiments.classifiers import cross_entropy, mlp

DOUBLE = torch.float64


def batch_norm(num_features):
    return ns.BatchNorm(num_features, fused=False)


def problem(norm=None, samples=30, seed=0):
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, 5, dtype=DOUBLE, generator=random)
    return mlp((5, 6, 4, 3), norm, seed=seed), x, torch.randint(0, 3, (samples,), generator=random)


def sample_gradients(model, losses, name):
    """Gradients of one weight, sample by sample, (N, D)."""
    weight = model.get_submodule(name).weight
    values = losses(model)
    return torch.stack([torch.autograd.grad(v, weight, retain_graph=True)[0].flatten() for v in values])


@pytest.mark.parametrize("samples", [4, 7, 30])  # fewer than inputs, than the 12 weights of the head, and more
def test_blocks_are_those_of_per_sample_gradients(samples):
    model, x, y = problem(samples=samples)
    blocks = fisher_blocks(model, cross_entropy((x, y)))
    for name, block in blocks.items():
        g = sample_gradients(model, lambda m: nn.functional.cross_entropy(m(x), y, reduction="none"), name)
        naive = g.T @ g / samples
        torch.testing.assert_close(block.dense(), naive)
        torch.testing.assert_close(block.spectrum, eigenvalues(naive)[: len(block.spectrum)], rtol=1e-8, atol=1e-10)
        assert block.largest() == pytest.approx(block.spectrum[0].item(), rel=1e-10)
        assert len(block.spectrum) == min(samples, len(naive))
        product = torch.kron(*block.moments)
        torch.testing.assert_close(block.kronecker_spectrum, eigenvalues(product), rtol=1e-8, atol=1e-10)
        for values, moment in zip(block.factor_spectra, block.moments, strict=True):
            torch.testing.assert_close(values, eigenvalues(moment), rtol=1e-8, atol=1e-10)
        assert block.relative_error == pytest.approx(((naive - product).norm() / naive.norm()).item(), rel=1e-8)
    assert list(fisher_blocks(model, cross_entropy((x, y)), ["head"])) == ["head"]


def test_independent_inputs_and_gradients_factorise_and_dependent_ones_do_not():
    random = torch.Generator().manual_seed(0)
    a, d = (torch.randn(4000, k, dtype=DOUBLE, generator=random) for k in (3, 2))
    assert FisherBlock(a, d).relative_error < 0.1
    assert FisherBlock(a, d * a[:, :1].square()).relative_error > 0.3


def test_rows_and_moments_agree_and_leading_dimensions_are_samples():
    model, x, y = problem()
    rows, moments = (f(model, cross_entropy((x, y)), ["linear2"])["linear2"] for f in (layer_rows, layer_moments))
    torch.testing.assert_close(rows.input.T @ rows.input / 30, moments.input)
    torch.testing.assert_close(rows.output_gradient.T @ rows.output_gradient / 30, moments.output_gradient)
    folded = layer_rows(model, lambda m: cross_entropy((x, y))(lambda x: m(x.view(5, 6, 5)).flatten(0, 1)), ["linear2"])
    torch.testing.assert_close(folded["linear2"].output_gradient, rows.output_gradient)


@pytest.mark.parametrize("norm", [None, ns.LayerNorm, batch_norm], ids=["none", "LayerNorm", "BatchNorm"])
def test_batch_spectra_are_those_of_the_dense_fisher_matrix(norm):
    model, x, _ = problem(norm)
    losses, names = sampled_cross_entropy(x, seed=3, reduction="none"), ["linear1", "linear2", "head"]
    spectra = batch_fisher_spectra(model, losses, names)
    blocks = fisher_blocks(model, sampled_cross_entropy(x, seed=3))
    for name in names:
        g = sample_gradients(model, losses, name)
        dense = eigenvalues(g.T @ g / len(g))
        count = min(len(dense), len(spectra[name]))
        torch.testing.assert_close(spectra[name][:count], dense[:count], rtol=1e-8, atol=1e-10)
        apart = abs(blocks[name].spectrum[0] / spectra[name][0] - 1)
        assert apart > 0.05 if norm is batch_norm and name != "head" else apart < 1e-10


def test_batch_norm_puts_each_neurons_weight_into_the_null_space_of_the_batch_block_only():
    model, x, _ = problem(lambda c: ns.BatchNorm(c, fused=False, eps=0.0))
    g = sample_gradients(model, sampled_cross_entropy(x, reduction="none"), "linear2").view(30, 4, 6)
    weight = model.linear2.weight.detach()
    assert (g * weight).sum(2).abs().max() < 1e-12 < g.abs().max()
    block = fisher_blocks(model, sampled_cross_entropy(x))["linear2"].dense()
    assert (block @ weight.flatten()).norm() > 1e-3


def test_sampled_labels_follow_the_predictions_and_the_seed():
    logits = torch.tensor([[2.0, 0.0, -1.0]], dtype=DOUBLE).expand(20_000, 3)
    losses = sampled_cross_entropy(torch.zeros(0), reduction="none")(lambda _: logits)
    shares = torch.stack([(losses - v).abs() < 1e-9 for v in -logits[0].log_softmax(0)]).double().mean(1)
    assert (shares - logits[0].softmax(0)).abs().max() < 0.02
    model, x, _ = problem()
    one, same, other = (sampled_cross_entropy(x, seed=s)(model).item() for s in (0, 0, 1))
    assert one == same != other


def test_buffers_and_gradients_are_left_alone():
    model, x, y = problem(ns.BatchNorm)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    fisher_blocks(model, cross_entropy((x, y)))
    batch_fisher_spectra(model, sampled_cross_entropy(x, reduction="none"), ["linear1"])
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks for m in model.modules())


def test_deflation_removes_the_direction_and_interlaces():
    random = torch.Generator().manual_seed(0)
    root, w = torch.randn(6, 6, dtype=DOUBLE, generator=random), torch.randn(6, dtype=DOUBLE, generator=random)
    moment = root @ root.T
    h = deflated(moment, w)
    assert (h @ w).norm() < 1e-12 * moment.norm()
    before, after = eigenvalues(moment), eigenvalues(h)
    assert (after <= before + 1e-12).all() and (after[:-1] >= before[1:] - 1e-12).all()


def test_bad_arguments_are_named_with_a_remedy():
    model, x, y = problem()
    with pytest.raises(ValueError, match=r"layers=\['relu1'\]"):
        fisher_blocks(model, cross_entropy((x, y)), ["relu1"])
    with pytest.raises(ValueError, match="did not run exactly once"):
        fisher_blocks(model, lambda m: m.head(torch.zeros(2, 4, dtype=DOUBLE)).sum())
    with pytest.raises(ValueError, match="one loss per sample"):
        batch_fisher_spectra(model, cross_entropy((x, y)), ["head"])
    with pytest.raises(ValueError, match="limit=10"):
        fisher_blocks(model, cross_entropy((x, y)))["linear1"].dense(limit=10)
    with pytest.raises(ValueError, match="direction has variance 0"):
        deflated(torch.eye(2), torch.zeros(2))


def test_log_correlation_sees_order_and_not_units():
    assert log_correlation([1, 2, 4], [10, 20, 40]) == pytest.approx(1)
    assert log_correlation([1, 2, 4], [4, 2, 1]) == pytest.approx(-1)
