"""Gauss-Newton, Fisher, trace and spectral density against dense matrices written out in full."""

import copy
import functools

import pytest
import torch
from contract import LAYERS, build, draw, fitting
from torch import nn
from torch.nn import functional as F

import normsurvey as ns
from normsurvey.analysis import Hessian, lanczos, verify
from normsurvey.analysis.density import top_eigenvalues
from normsurvey.analysis.products import EmpiricalFisher, Fisher, GaussNewton, trace
from normsurvey.experiments.classifiers import cross_entropy, mlp, sgd, train

NORMS = {
    "none": None,
    "torch BatchNorm1d": nn.BatchNorm1d,
    "torch LayerNorm": nn.LayerNorm,
    "BatchNorm": ns.BatchNorm,
    "RMSNorm composed": lambda c: ns.create("RMSNorm", c, fused=False),
}


def problem(norm=None, widths=(5, 6, 4), loss=None, seed=0):
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(16, widths[0], dtype=torch.float64, generator=random)
    y = torch.randint(0, widths[-1], (16,), generator=random)
    model = mlp(widths, norm, seed=seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn(p.shape, dtype=p.dtype, generator=random))
    return model, loss or cross_entropy((x, y)), x, y


def dense_jacobian(model, x):
    """(N, C, D), one backward pass per output."""
    tensors = list(model.parameters())
    outputs = model(x)
    rows = [
        torch.cat([g.reshape(-1) for g in torch.autograd.grad(o, tensors, retain_graph=True)])
        for o in outputs.flatten()
    ]
    return torch.stack(rows).view(*outputs.shape, -1), outputs.detach()


@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS.keys())
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_products_against_their_definitions(norm, training):
    model, loss, x, y = problem(norm)
    model.train(training)
    buffers = {k: v.clone() for k, v in model.named_buffers()}
    found = {
        "ggn": GaussNewton(model, loss), "exact": Fisher(model, loss),
        "empirical": EmpiricalFisher(model, loss), "sampled": Fisher(model, loss, samples=3),
    }  # fmt: skip
    dense = {name: operator.dense() for name, operator in found.items()}
    assert all(torch.equal(v, buffers[k]) for k, v in model.named_buffers())
    jacobian, outputs = dense_jacobian(copy.deepcopy(model).train(training), x)
    p = outputs.softmax(1)
    covariance = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    fisher = torch.einsum("ncd,nce,nef->df", jacobian, covariance, jacobian) / len(x)
    slopes = torch.einsum("ncd,nc->nd", jacobian, p - F.one_hot(y, 4))
    torch.testing.assert_close(dense["ggn"], fisher, rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(dense["exact"], fisher, rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(dense["empirical"], slopes.T @ slopes / len(x), rtol=1e-8, atol=1e-12)
    residuals = found["sampled"]._residuals
    drawn = torch.einsum("ncd,nsc->nsd", jacobian, residuals).flatten(0, 1)
    torch.testing.assert_close(dense["sampled"], drawn.T @ drawn / len(drawn), rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(found["ggn"].gradient, slopes.mean(0), rtol=1e-8, atol=1e-12)


def test_sampled_labels_average_to_the_fisher_matrix():
    model, loss, _, _ = problem()
    exact = Fisher(model, loss).dense()
    errors = [(Fisher(model, loss, samples=s).dense() - exact).norm() / exact.norm() for s in (10, 1000)]
    assert errors[1] < 0.05 < errors[0]
    assert (EmpiricalFisher(model, loss).dense() - exact).norm() / exact.norm() > 0.3
    assert not torch.equal(Fisher(model, loss, samples=2, seed=1).dense(), Fisher(model, loss, samples=2).dense())


def test_gauss_newton_is_the_hessian_without_the_model_curvature():
    """For outputs linear in the parameters the two agree; in general they differ by the other term alone."""
    model, loss, _, _ = problem()
    names = ["head.weight", "head.bias"]
    torch.testing.assert_close(GaussNewton(model, loss, names).dense(), Hessian(model, loss, names).dense())
    hidden, full = GaussNewton(model, loss).dense(), Hessian(model, loss).dense()
    assert (hidden - full).norm() / full.norm() > 0.05
    assert torch.linalg.eigvalsh(hidden)[0] > -1e-12 > torch.linalg.eigvalsh(full)[0]


def test_gaussian_likelihood():
    x, y = torch.randn(2, 12, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    model = nn.Linear(3, 3, bias=False, dtype=torch.float64)

    def loss(m):
        return 0.5 * (m(x) - y).square().sum() / len(x)

    fisher = Fisher(model, loss, likelihood="gaussian")
    torch.testing.assert_close(fisher.dense(), torch.block_diag(*[x.T @ x / len(x)] * 3))
    torch.testing.assert_close(fisher.dense(), GaussNewton(model, loss).dense())
    sampled = Fisher(model, loss, likelihood="gaussian", samples=4000).dense()
    assert (sampled - fisher.dense()).norm() / fisher.dense().norm() < 0.05
    # a cross entropy over positions counts every position as a sample
    maps = nn.Conv1d(2, 3, 1, dtype=torch.float64)
    inputs, labels = torch.randn(4, 2, 5, dtype=torch.float64), torch.zeros(4, 5, dtype=torch.long)
    spatial = lambda m: F.cross_entropy(m(inputs), labels)  # noqa: E731
    torch.testing.assert_close(Fisher(maps, spatial).dense(), GaussNewton(maps, spatial).dense())


def test_bad_products_are_refused():
    model, loss, x, _ = problem()
    with pytest.raises(ValueError, match="past the model's output"):
        GaussNewton(model, lambda m: loss(m) + m.head.weight.square().sum())
    with pytest.raises(ValueError, match="ran the model 2 times"):
        GaussNewton(model, lambda m: loss(m) + m(x).sum())
    with pytest.raises(ValueError, match="likelihood='poisson'"):
        Fisher(model, loss, likelihood="poisson")
    with pytest.raises(ValueError, match="samples=0"):
        Fisher(model, loss, samples=0)
    with pytest.raises(ValueError, match="num_probes=1"):
        trace(torch.eye(2), 1)
    operator = GaussNewton(model, loss)
    with pytest.raises(ValueError, match="limit=3"):
        operator.dense(limit=3)
    with torch.no_grad():
        model.head.bias.add_(1)
    with pytest.raises(RuntimeError, match="this GaussNewton was built"):
        operator @ operator.point


def test_trace_and_its_error():
    model, loss, _, _ = problem(ns.BatchNorm)
    hessian = Hessian(model, loss)
    dense = hessian.dense()
    off = dense - torch.diag(dense.diagonal())
    estimates = [trace(dense, 30, seed=seed) for seed in range(200)]
    values = torch.tensor([e.value for e in estimates])
    assert values.std().item() == pytest.approx((2 * off.square().sum() / 30).sqrt().item(), rel=0.2)
    assert torch.tensor([e.error for e in estimates]).mean().item() == pytest.approx(values.std().item(), rel=0.2)
    within = torch.tensor([abs(e.value - dense.trace().item()) < 2 * e.error for e in estimates])
    assert within.double().mean() > 0.88
    assert trace(hessian, 5).value == pytest.approx(trace(dense, 5).value)


@functools.cache
def trained(hidden):
    """The Hessian of a classifier of digits after some steps, and its eigenvalues."""
    from normsurvey.experiments.classifiers import batches
    from normsurvey.experiments.data import digits

    x, y, _, _ = digits(0, torch.float64)
    data = x[:100], y[:100]
    model = mlp((64, hidden, 10))
    train(model, batches(data, 50), sgd(model, 0.05), 60)
    hessian = Hessian(model, cross_entropy(data))
    return hessian, torch.linalg.eigvalsh(hessian.dense()).flip(0)


def test_one_run_gives_top_eigenvalues_and_density():
    hessian, exact = trained(8)
    for seed in range(3):
        found = top_eigenvalues(hessian, 10, 1e-8, seed=seed)
        error = (found.values - exact[:10]).abs()
        assert (error / exact[:10]).max() < 1e-6
        assert (error <= found.errors + 1e-13).all()
        pairs = hessian @ found.vectors - found.vectors * found.values
        assert pairs.norm(dim=0).max() < 1e-3 * exact[0]
        assert found.products < 120
        assert found.density.atoms.numel() > 10
        assert found.density.weights.sum() + len(found.density.atoms) / len(exact) == pytest.approx(1)


class Diagonal:
    """A large operator with a known spectrum; a random start makes its eigenvectors as good as any."""

    def __init__(self, values):
        self.values = self.point = values
        self.shape = (len(values), len(values))

    def __matmul__(self, vector):
        return self.values * vector


def test_many_parameters_in_single_precision_cost_no_digits():
    """Sums over many entries in float32 would: 3e-5 here."""
    bulk = 0.5 * torch.rand(100_000, generator=torch.Generator().manual_seed(0))
    exact = torch.cat([torch.linspace(10, 1, 10), bulk])
    found = top_eigenvalues(Diagonal(exact), 10, 1e-5)
    error = (found.values - exact[:10].double()).abs()
    assert found.vectors.dtype == torch.float32 and error.max() < 1e-6
    assert (error <= found.errors).all() and found.errors.max() < 1e-5


def test_one_run_is_enough_for_the_density_of_some_thousand_eigenvalues():
    """The shape of a classifier's Hessian: outliers, a bulk around zero with heavy tails, many zeros."""
    random = torch.Generator().manual_seed(0)
    outliers = torch.linspace(0.4, 2.6, 10, dtype=torch.float64)
    bulk = 0.004 * torch.randn(6000, generator=random, dtype=torch.float64).exp() ** 1.2 - 0.004
    exact = torch.cat([outliers, bulk, torch.zeros(3664, dtype=torch.float64)]).sort(descending=True).values
    for seed in range(5):
        found = top_eigenvalues(Diagonal(exact), 10, 1e-8, seed=seed)
        assert ((found.values - exact[:10]) / exact[:10]).abs().max() < 1e-8
        assert found.density.distance(exact) / (exact[0] - exact[-1]) < 1e-3
    few = top_eigenvalues(Diagonal(exact), 10, 1e-8, probes=4)
    assert few.products > 200 and few.density.distance(exact) / (exact[0] - exact[-1]) < 5e-4


def test_moments_stay_within_their_errors():
    """z scores of 40 seeds: about one in size, none beyond 4; and 2 % with as many probes as that needs."""
    hessian, values = trained(2)
    assert 100 < len(values) <= 200
    dense = hessian.dense()
    truth = torch.stack([(values**p).mean() for p in (1, 2, 3, 4)])
    scores = []
    for seed in range(40):
        moments = top_eigenvalues(dense, 3, 1e-6, min_steps=30, seed=seed).density.moments()
        scores.append((moments.value - truth) / moments.error)
    scores = torch.stack(scores)
    assert scores.abs().max() < 4
    assert 0.5 < scores[:, 0].square().mean().sqrt() < 1.5
    many = top_eigenvalues(dense, 3, 1e-6, min_steps=30, probes=64).density.moments()
    assert ((many.value - truth) / truth).abs().max() < 0.02
    assert (many.error / truth.abs()).max() < 0.02
    assert ((many.value - truth).abs() < 3 * many.error + 1e-6 * truth.abs()).all()


def test_deflation_is_what_makes_one_run_enough():
    hessian, values = trained(8)
    plain, deflated = [], []
    for seed in range(8):
        spectrum = lanczos(hessian, 64, seed=seed)
        plain.append((spectrum.weights * spectrum.values**2).sum() / values.square().mean())
        found = top_eigenvalues(hessian, 10, 1e-6, seed=seed)
        deflated.append(found.density.moments().value[1] / values.square().mean())
    assert torch.tensor(deflated).std() < 0.1 * torch.tensor(plain).std()


def test_multiple_eigenvalues_and_low_rank():
    identity = torch.eye(20, dtype=torch.float64)
    found = top_eigenvalues(3 * identity, 3, 1e-8)
    torch.testing.assert_close(found.values, torch.full((3,), 3.0, dtype=torch.float64))
    torch.testing.assert_close(found.vectors.T @ found.vectors, torch.eye(3, dtype=torch.float64))
    low = torch.diag(torch.tensor([5.0, 4.0] + [0.0] * 98, dtype=torch.float64))
    density = top_eigenvalues(low, 2, 1e-8).density
    assert density.moments(1).value.item() == pytest.approx(0.09)
    assert density.on(torch.linspace(-1, 6, 2001), 0.05).mean().item() * 7 == pytest.approx(1, abs=1e-3)
    everything = top_eigenvalues(torch.diag(torch.arange(1.0, 9, dtype=torch.float64)), 8, 1e-8)
    torch.testing.assert_close(everything.values, torch.arange(8.0, 0, -1, dtype=torch.float64))
    with pytest.raises(ValueError, match="k=9"):
        top_eigenvalues(torch.eye(4), 9)
    with pytest.raises(ValueError, match="rounding"):
        top_eigenvalues(torch.eye(4), 1, 1e-9)
    with pytest.raises(RuntimeError, match="max_steps"):
        top_eigenvalues(torch.diag(torch.linspace(0, 1, 500, dtype=torch.float64)), 10, max_steps=30)


# Every layer of the catalogue whose backward pass is a derivative, inside a small network.

TWICE = [m for m in LAYERS if ns.catalogue[m].derivative]
EIGHTH = {1: 4 / 5, 2: -1 / 5, 3: 4 / 105, 4: -1 / 280}  # central differences of order 8


class Around(nn.Module):
    """A layer between a mixing of the channels and a smooth function."""

    def __init__(self, method_id, **options):
        super().__init__()
        self.layer = build(method_id, **options)
        channels = ns.catalogue[method_id].example.num_features
        noise = torch.randn(channels, channels, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
        self.mixing = nn.Parameter(torch.eye(channels, dtype=torch.float64) + 0.2 * noise)

    def forward(self, x, condition=None):
        return self.layer(torch.einsum("dc,nc...->nd...", self.mixing, x), condition).sin()


def layer_problem(method_id, **options):
    model = Around(method_id, **options)
    x, condition = draw(method_id, fitting(method_id, (4, ns.catalogue[method_id].example.num_features, 2, 3)))
    weights, _ = draw(method_id, x.shape, seed=5)

    def loss(m):
        torch.manual_seed(0)
        return (weights * m(x, condition)).mean()

    return model, loss


def difference(hessian, v, h=2e-4):
    """H v by eighth-order central differences of the gradient: no second derivative is asked for."""
    from normsurvey.analysis.curvature import _gradient_at

    moved = copy.deepcopy(hessian.model)
    return sum(
        weight * (_gradient_at(hessian, moved, k * h * v) - _gradient_at(hessian, moved, -k * h * v)) / h
        for k, weight in EIGHTH.items()
    )


@pytest.mark.parametrize("method_id", TWICE)
def test_products_are_right_on_every_layer_that_can_be_derived_twice(method_id):
    model, loss = layer_problem(method_id)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    hessian = Hessian(model, loss)
    v = torch.randn(hessian.shape[0], dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    v /= v.norm()
    product, truth = hessian @ v, difference(hessian, v)
    assert (product - truth).norm() / truth.norm() < 1e-8
    gauss_newton = GaussNewton(model, loss)  # the loss is linear in the outputs
    assert torch.equal(gauss_newton @ v, torch.zeros_like(v))
    torch.testing.assert_close(gauss_newton.gradient, hessian.gradient)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS.keys())
def test_products_against_the_dense_hessian_of_another_route(norm):
    """Dense truth: one more backward pass per entry of the gradient, on the layer's composed path."""
    model, loss, _, _ = problem(norm)
    hessian = Hessian(model, loss)
    tensors = list(model.parameters())
    flat = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss(model), tensors, create_graph=True)])
    truth = torch.stack([
        torch.cat([r.reshape(-1) for r in torch.autograd.grad(e, tensors, retain_graph=True, materialize_grads=True)])
        for e in flat
    ])  # fmt: skip
    v = torch.randn(len(truth), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert (hessian @ v - truth @ v).norm() / (truth @ v).norm() < 1e-8
    assert verify(hessian).error < 1e-6
    values = torch.linalg.eigvalsh((truth + truth.T) / 2).flip(0)[:10]
    assert ((top_eigenvalues(hessian, 10, 1e-8).values - values) / values).abs().max() < 1e-6
