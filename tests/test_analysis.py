"""Operators of `normsurvey.analysis` against naive dense references, and the derivative routes they avoid."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from normsurvey.analysis import (
    Hessian,
    condition_number,
    dominance,
    eigenvalues,
    gradient,
    gradient_energy,
    homogeneity_error,
    lanczos,
    layer_moments,
    norm_growth_error,
    private_buffers,
    radial_component,
    scale_invariance,
    scaled,
    scaling_errors,
    spectral_density,
    spread,
    verify,
)
from normsurvey.experiments.classifiers import cross_entropy, hidden_weights, mlp

WIDTH = 6


class Composed(nn.Module):
    """Batch or layer norm at eps=0 from elementary operations: the control for every kernel."""

    def __init__(self, num_features, dim=0):
        super().__init__()
        self.dim = dim
        self.weight, self.bias = (
            nn.Parameter(torch.ones(num_features)),
            nn.Parameter(torch.zeros(num_features)),
        )

    def forward(self, x):
        centred = x - x.mean(self.dim, keepdim=True)
        return centred / centred.square().mean(self.dim, keepdim=True).sqrt() * self.weight + self.bias


def ours(name, fused, **options):
    def build(num_features):
        import normsurvey as ns

        return ns.create(name, num_features, fused=fused, **options)

    return build


NORMS = (
    {
        "none": None,
        "composed batch": Composed,
        "composed layer": lambda c: Composed(c, dim=1),
        "torch BatchNorm1d": nn.BatchNorm1d,
        "torch BatchNorm1d without statistics": lambda c: nn.BatchNorm1d(c, track_running_stats=False),
        "torch LayerNorm": nn.LayerNorm,
        "torch GroupNorm": lambda c: nn.GroupNorm(2, c),
        "torch RMSNorm": nn.RMSNorm,
    }
    | {
        f"{name} fused={fused}": ours(name, fused, **options)
        for fused in (True, False)
        for name, options in {
            "BatchNorm": {},
            "LayerNorm": {},
            "GroupNorm": {"num_groups": 2},
            "RMSNorm": {},
        }.items()
    }
    | {
        f"{name} eps=0": ours(name, False, eps=0.0, **options)
        for name, options in {"BatchNorm": {}, "LayerNorm": {}, "GroupNorm": {"num_groups": 2}}.items()
    }
)


def problem(norm=None, seed=0):
    """A small model at a generic point, and its loss."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(24, 5, dtype=torch.float64, generator=random)
    y = torch.randint(0, 3, (24,), generator=random)
    model = mlp((5, WIDTH, WIDTH, 3), norm, seed=seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape, dtype=p.dtype, generator=random))
    return model, cross_entropy((x, y))


@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS.keys())
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_hessian_is_right_through_every_norm(norm, training):
    model, loss = problem(norm)
    model.train(training)
    hessian = Hessian(model, loss)
    for seed in range(3):
        assert verify(hessian, seed=seed).error < 1e-6
    dense = hessian.dense()
    assert (dense - dense.T).abs().max() / dense.abs().max() < 1e-10


@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS.keys())
def test_buffers_parameters_and_gradients_are_left_alone(norm):
    model, loss = problem(norm)
    before = copy.deepcopy(model.state_dict())
    buffers = [id(b) for b in model.buffers()]
    hessian = Hessian(model, loss)
    verify(hessian)
    layer_moments(model, loss)
    scale_invariance(model, loss)
    assert [id(b) for b in model.buffers()] == buffers
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training and all(p.grad is None for p in model.parameters())


def test_hessian_against_closed_form():
    """0.5 ||x w||^2 / N has Hessian x^T x / N for each output row."""
    x = torch.randn(20, 4, dtype=torch.float64)
    model = nn.Linear(4, 1, bias=False, dtype=torch.float64)
    hessian = Hessian(model, lambda m: 0.5 * m(x).square().mean())
    torch.testing.assert_close(hessian.dense(), x.T @ x / 20)
    torch.testing.assert_close(hessian.gradient, gradient(model, hessian.loss))
    torch.testing.assert_close(
        torch.from_numpy(hessian.to_scipy() @ torch.eye(4, dtype=torch.float64).numpy()), x.T @ x / 20
    )


def test_hessian_of_selected_parameters_is_a_block():
    model, loss = problem()
    full = Hessian(model, loss)
    names = ["linear2.weight"]
    start = sum(p.numel() for name, p in model.named_parameters() if name.startswith("linear1"))
    block = slice(start, start + WIDTH**2)
    torch.testing.assert_close(Hessian(model, loss, names).dense(), full.dense()[block, block])


def test_loss_linear_in_some_parameters():
    model, _ = problem()
    assert Hessian(model, lambda m: m.head.bias.sum()).dense(limit=200).abs().max() == 0


def test_bad_input_is_named():
    model, loss = problem()
    with pytest.raises(ValueError, match=r"nothing\.weight"):
        Hessian(model, loss, ["nothing.weight"])
    with pytest.raises(ValueError, match="scalar"):
        Hessian(model, lambda m: m(torch.zeros(4, 5, dtype=torch.float64)))
    hessian = Hessian(model, loss)
    with pytest.raises(ValueError, match="limit=3"):
        hessian.dense(limit=3)
    with pytest.raises(ValueError, match=r"\(7,\)"):
        hessian @ torch.zeros(7)
    with torch.no_grad():
        model.head.bias.add_(1)
    with pytest.raises(RuntimeError, match="changed"):
        hessian @ hessian.point
    with pytest.raises(ValueError, match="fraction=0"):
        condition_number(torch.eye(2), fraction=0)
    with pytest.raises(ValueError, match="relu1"):
        layer_moments(model, loss, ["relu1"])


def test_buffer_written_through_another_reference_is_reported():
    model = nn.BatchNorm1d(3)
    alias = model.running_mean
    with pytest.raises(RuntimeError, match="running_mean"), private_buffers(model):
        alias.add_(1)


def test_hessian_refuses_function_transforms():
    model, loss = problem()
    with pytest.raises(RuntimeError, match=r"torch\.func"):
        torch.func.grad(lambda x: (Hessian(model, loss) @ x).sum())(torch.zeros(1))


def normalized(p, layer):
    """A scalar of one linear layer and one fused norm, p = (W, gamma, beta) flat (28,)."""
    x = torch.linspace(-2, 3, 35, dtype=p.dtype).sin().view(7, 5)
    target = torch.linspace(1, 9, 28, dtype=p.dtype).cos().view(7, 4)
    weight, gamma, beta = p[:20].view(4, 5), p[20:24], p[24:]
    h = x @ weight.T
    if layer == "layer_norm":
        h = F.layer_norm(h, (4,), gamma, beta)
    else:
        h = F.batch_norm(h, None, None, gamma, beta, training=True)
    return (torch.tanh(h) * target).sum()


@pytest.mark.parametrize("layer", ["layer_norm", "batch_norm"])
def test_wrong_routes_are_still_wrong(layer):
    """Documents pytorch issues 196699 and 196700 (torch 2.13); once it fails, the routes can be offered."""

    def loss(p):
        return normalized(p, layer)

    point, vector = torch.randn(2, 28, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    leaf = point.clone().requires_grad_()
    g = torch.autograd.grad(loss(leaf), leaf, create_graph=True)[0]
    truth = torch.stack([torch.autograd.grad(e, leaf, retain_graph=True)[0] for e in g])
    forward_over_reverse = torch.func.jvp(torch.func.grad(loss), (point,), (vector,))[1]
    torch.testing.assert_close(forward_over_reverse, truth @ vector)
    reverse_over_forward = torch.func.grad(lambda p: torch.func.jvp(loss, (p,), (vector,))[1])(point)
    assert (reverse_over_forward - truth @ vector).norm() / (truth @ vector).norm() > 1e-2
    assert (torch.func.hessian(loss)(point) - truth).norm() / truth.norm() > 1e-2


def test_lanczos_against_dense_eigenvalues():
    model, loss = problem(Composed)
    hessian = Hessian(model, loss)
    values, vectors = torch.linalg.eigh(hessian.dense())
    spectrum = lanczos(hessian, num_steps=40)
    torch.testing.assert_close(spectrum.values[:5], values.flip(0)[:5])
    for k in range(40):
        pair = hessian @ spectrum.vectors[:, k] - spectrum.values[k] * spectrum.vectors[:, k]
        torch.testing.assert_close(pair.norm(), spectrum.residuals[k], atol=1e-12, rtol=1e-6)
        assert (values - spectrum.values[k]).abs().min() <= spectrum.residuals[k] + 1e-12
    torch.testing.assert_close(spectrum.vectors.T @ spectrum.vectors, torch.eye(40, dtype=torch.float64))
    energy = gradient_energy(hessian.gradient, spectrum.vectors[:, :3])
    exact = (vectors.flip(1)[:, :3].T @ hessian.gradient).square().cumsum(0) / hessian.gradient.square().sum()
    torch.testing.assert_close(energy, exact)


def test_lanczos_stops_on_an_invariant_subspace():
    matrix = torch.diag(torch.tensor([3.0, 3.0, 1.0, 1.0, 1.0], dtype=torch.float64))
    spectrum = lanczos(matrix, num_steps=5)
    torch.testing.assert_close(spectrum.values, torch.tensor([3.0, 1.0], dtype=torch.float64))
    with pytest.raises(ValueError, match="num_steps=0"):
        lanczos(matrix, num_steps=0)
    with pytest.raises(ValueError, match="start"):
        lanczos(matrix, start=torch.zeros(5, dtype=torch.float64))


def test_density_integrates_to_one_and_matches_the_spectrum():
    random = torch.Generator().manual_seed(0)
    half = torch.randn(300, 300, dtype=torch.float64, generator=random) / 300**0.5
    matrix = half + half.T
    grid = torch.linspace(-4, 4, 801, dtype=torch.float64)
    density = spectral_density([lanczos(matrix, 60, seed=s) for s in range(32)], grid, width=0.1)
    exact = torch.exp(-0.5 * ((grid[:, None] - torch.linalg.eigvalsh(matrix)) / 0.1) ** 2).mean(1) / (
        0.1 * (2 * torch.pi) ** 0.5
    )
    assert torch.trapezoid(density, grid).item() == pytest.approx(1, abs=1e-6)
    assert torch.trapezoid((density - exact).abs(), grid) < 0.05


def test_layer_moments_against_explicit_sums():
    """The gradient at the head's outputs is (softmax - one hot); the input of the first layer is the data."""
    model, _ = problem()
    random = torch.Generator().manual_seed(1)
    x, y = (
        torch.randn(30, 5, dtype=torch.float64, generator=random),
        torch.randint(0, 3, (30,), generator=random),
    )
    moments = layer_moments(model, cross_entropy((x, y)))
    torch.testing.assert_close(moments["linear1"].input, x.T @ x / 30)
    gradients = model(x).softmax(1) - F.one_hot(y, 3)
    torch.testing.assert_close(moments["head"].output_gradient, (gradients.T @ gradients / 30).detach())
    assert list(layer_moments(model, cross_entropy((x, y)), ["head"])) == ["head"]


def test_condition_numbers_of_a_known_spectrum():
    rotation = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64)).Q
    moment = rotation @ torch.diag(torch.tensor([8.0, 4.0, 2.0, 0.0], dtype=torch.float64)) @ rotation.T
    torch.testing.assert_close(eigenvalues(moment)[:3], torch.tensor([8.0, 4.0, 2.0], dtype=torch.float64))
    assert condition_number(moment, 0.5) == pytest.approx(2)
    assert condition_number(moment, 0.75) == pytest.approx(4)
    assert condition_number(moment) > 1e12
    assert dominance(moment) == pytest.approx(8 / 14)
    assert spread([2, 8, 4]) == 4


@pytest.mark.parametrize(("dim", "kind"), [(0, "row"), (1, "tensor")])
def test_scale_invariance_is_found_and_obeys_euler(dim, kind):
    model, loss = problem(lambda c: Composed(c, dim))
    names = hidden_weights(model)
    assert scale_invariance(model, loss) == {**dict.fromkeys(names, kind), "head.weight": "none"}
    hessian = Hessian(model, loss, names)
    assert homogeneity_error(hessian) < 1e-12
    for name in names:
        weight = model.get_parameter(name)
        g = gradient(model, loss, [name]).view_as(weight)
        assert radial_component(weight, g, per=kind).max() < 1e-13
    large = scaled(model, names, 8.0)
    torch.testing.assert_close(gradient(large, loss, names) * 8, hessian.gradient)
    torch.testing.assert_close(Hessian(large, loss, names).dense() * 64, hessian.dense())
    assert max(scaling_errors(model, loss, names, 0.01)) < 1e-12
    assert min(scaling_errors(model, loss, ["head.weight"], 0.01)) > 1e-2


def test_plain_network_has_no_invariance():
    model, loss = problem()
    assert set(scale_invariance(model, loss).values()) == {"none"}
    assert homogeneity_error(Hessian(model, loss)) > 1e-2
    with pytest.raises(ValueError, match="per='column'"):
        radial_component(torch.ones(2, 2), torch.ones(2, 2), per="column")


def test_norm_growth_of_orthogonal_and_other_steps():
    w, step = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 4.0])
    assert norm_growth_error(w, w + step) == 0
    assert norm_growth_error(w, w + w, relative_to="step") == pytest.approx(2)
    assert norm_growth_error(w, w + w) == pytest.approx(0.5)
    w, tiny = torch.tensor([1.0, 1.0], dtype=torch.float64), torch.tensor([1e-4, -1e-4], dtype=torch.float64)
    assert norm_growth_error(1e3 * w, 1e3 * w + tiny, "step") < 1e-5  # of the stored weights' rounding, 1e-13 / 1e-8
    with pytest.raises(ValueError, match="relative_to='loss'"):
        norm_growth_error(w, w, relative_to="loss")
