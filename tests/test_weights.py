"""Every weight method against its reference, against torch, and against what its record declares."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations as torch_parametrizations
from torch.nn.utils.parametrize import is_parametrized, remove_parametrizations

import normsurvey.reference.weights  # noqa: F401  registers the references
from normsurvey.reference import REFERENCES
from normsurvey.registry import INVARIANCES, METHODS
from normsurvey.weights import parametrize

IDS = [id for id, m in METHODS.items() if m.kind == "weight"]

LAYERS = {
    "linear": lambda **kw: nn.Linear(12, 5, **kw),
    "tall": lambda **kw: nn.Linear(3, 8, **kw),
    "conv": lambda **kw: nn.Conv2d(2, 4, 3, **kw),
    "transposed conv": lambda **kw: nn.ConvTranspose2d(4, 2, 3, **kw),
    "embedding": lambda **kw: nn.Embedding(7, 4, **kw),
}

# Options under which a method meets its reference; {} is the default. A method that is missing here fails.
VARIANTS = {
    "WeightNorm": [{}, {"dim": 1}, {"dim": None}, {"eps": 1e-5, "scale": 1.414, "learn_scale": False}],
    "SpectralNorm": [
        {},
        {"n_power_iterations": 3, "init_iterations": 0},
        {"update_first": "v", "eps_placement": "sum", "init_iterations": 0},
        {"scale": 2.0},
    ],
    "WeightStandardization": [{}, {"eps_placement": "outside"}, {"correction": 0, "eps": 1e-6}, {"dim": 1}],
    "OrthogonalizationByNewtonIteration": [
        {},
        *({"num_iterations": t, "scale": 1.0} for t in (0, 1, 3, 7)),
        {"num_iterations": 4, "bounding": "basic", "center": False},
        {"num_iterations": 2, "bounding": "released"},
        {"side": "rows", "num_iterations": 3},
        {"dim": 1},
    ],
}
CASES = [(id, options) for id in IDS for options in VARIANTS.get(id, [None])]
NAMES = [f"{id}-{n}" for n, (id, _) in enumerate(CASES)]


def raw(layer, name="weight"):
    """The raw tensors of a parametrized weight."""
    chain = layer.parametrizations[name]
    return [chain.original] if hasattr(chain, "original") else [chain.original0, chain.original1]


def reference_weight(id, layer, options, dtype=torch.float64):
    """The weight by the reference, differentiable with respect to the raw tensors, in float64."""
    method = layer.parametrizations.weight[0]
    originals = [t.detach().to(dtype).requires_grad_() for t in raw(layer)]
    options = {k: v for k, v in options.items() if k not in ("learn_scale", "init_iterations")} | {"dim": method.dim}
    if id == "SpectralNorm":
        u, v = method._u.to(dtype), method._v.to(dtype)
        return REFERENCES[id](originals[0], u, v, **options, training=layer.training)[0], originals
    if id == "WeightNorm":
        options.pop("scale", None)
        inputs = originals if len(originals) == 2 else [method.scale.to(dtype), *originals]
        return REFERENCES[id](*inputs, **options), originals
    return REFERENCES[id](*originals, **options), originals


def test_every_method_has_reference_and_variants():
    assert len(IDS) >= 4
    assert set(IDS) <= set(REFERENCES) and set(IDS) <= set(VARIANTS)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize(("id", "options"), CASES, ids=NAMES)
def test_values_and_gradients_equal_the_reference(id, options, kind, device):
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-3)):
        layer = parametrize(LAYERS[kind](dtype=dtype, device=device), id, **options)
        expected, originals = reference_weight(id, layer.cpu(), options)
        layer.to(device)
        direction = torch.randn(expected.shape, dtype=torch.float64)
        weight = layer.weight
        (weight * direction.to(weight)).sum().backward()
        (expected * direction).sum().backward()
        torch.testing.assert_close(weight.cpu().double(), expected, rtol=tolerance, atol=tolerance)
        for got, want in zip(raw(layer), originals, strict=True):
            scale = want.grad.abs().max().clamp(min=1.0)
            torch.testing.assert_close(got.grad.cpu().double() / scale, want.grad / scale, rtol=0, atol=tolerance)


@pytest.mark.parametrize("mean", [0.0, 1.0, 100.0])
@pytest.mark.parametrize("std", [0.1, 10.0])
@pytest.mark.parametrize("id", IDS)
def test_values_at_many_scales(id, mean, std):
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-3)):
        layer = nn.Linear(12, 5, dtype=dtype)
        nn.init.normal_(layer.weight, mean, std)
        parametrize(layer, id)
        expected, _ = reference_weight(id, layer, {})
        scale = expected.abs().max()
        assert ((layer.weight.double() - expected) / scale).abs().max() < tolerance


@pytest.mark.parametrize(("id", "options"), CASES, ids=NAMES)
def test_first_and_second_derivatives(id, options):
    if not METHODS[id].derivative:
        return
    layer = parametrize(nn.Conv2d(2, 3, 2, dtype=torch.float64), id, **options).eval()
    method = layer.parametrizations.weight[0]
    inputs = tuple(t.detach().requires_grad_() for t in raw(layer))
    assert torch.autograd.gradcheck(method, inputs)
    assert torch.autograd.gradgradcheck(method, inputs)


def changes(weight):
    """The changes of a raw weight that a method may not notice, by name."""
    rows = torch.rand(weight.shape[0], *[1] * (weight.ndim - 1), dtype=weight.dtype) + 0.5
    return {
        "weight_scale": 3.0 * weight,
        "weight_shift": weight + 1.0,
        "row_scale": rows * weight,
        "row_shift": weight + rows,
    }


@pytest.mark.parametrize("change", INVARIANCES["weight"])
@pytest.mark.parametrize("id", IDS)
def test_invariances_declared_and_denied(id, change):
    layer = parametrize(nn.Linear(9, 4, dtype=torch.float64), id, eps=0.0).eval()
    method, (*others, weight) = layer.parametrizations.weight[0], raw(layer)
    deviation = (method(*others, changes(weight)[change]) - method(*others, weight)).abs().max()
    assert deviation < 1e-10 if change in METHODS[id].invariances else deviation > 1e-2


TORCH = {
    "WeightNorm": (torch_parametrizations.weight_norm, [{}, {"dim": 1}, {"dim": None}]),
    "SpectralNorm": (torch_parametrizations.spectral_norm, [{}, {"n_power_iterations": 3}, {"dim": -1}]),
}
TORCH_CASES = [(id, options) for id, (_, variants) in TORCH.items() for options in variants]


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize(("id", "options"), TORCH_CASES)
def test_equals_torch(id, options, kind):
    ours = LAYERS[kind](dtype=torch.float64)
    theirs = copy.deepcopy(ours)
    torch.manual_seed(1)
    parametrize(ours, id, **options)
    torch.manual_seed(1)
    TORCH[id][0](theirs, **options)
    direction = torch.randn_like(ours.weight)
    theirs.weight  # noqa: B018  the same number of training forwards for both
    for _ in range(3):
        for layer in (ours, theirs):
            layer.zero_grad()
            (layer.weight * direction).sum().backward()
            with torch.no_grad():
                for p in layer.parameters():
                    p.sub_(0.1 * p.grad if p.grad is not None else 0.0)
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)
    for got, want in ((ours, theirs), (theirs, ours)):
        state = want.state_dict()
        assert {k: v.shape for k, v in got.state_dict().items()} == {k: v.shape for k, v in state.items()}
        got.load_state_dict({k: v + 0.1 for k, v in state.items()})
        want.load_state_dict(got.state_dict())
        torch.testing.assert_close(got.eval().weight, want.eval().weight, rtol=1e-12, atol=1e-12)


def test_weight_norm_loads_older_checkpoints_of_torch():
    layer = nn.Linear(6, 5)
    parametrize(layer, "WeightNorm")
    g, v = torch.rand(5, 1), torch.randn(5, 6)
    layer.load_state_dict({"weight_g": g, "weight_v": v, "bias": layer.bias.detach()})
    torch.testing.assert_close(layer.weight, g * v / v.norm(dim=1, keepdim=True))


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("id", IDS)
def test_round_trips(id, kind, device):
    layer = parametrize(LAYERS[kind](device=device), id)
    layer.weight  # noqa: B018  a training forward
    layer.eval()
    torch.testing.assert_close(copy.deepcopy(layer).weight, layer.weight, rtol=0, atol=0)
    fresh = parametrize(LAYERS[kind](device=device), id).eval()
    fresh.load_state_dict(layer.state_dict())
    torch.testing.assert_close(fresh.weight, layer.weight, rtol=0, atol=0)
    with pytest.raises(RuntimeError, match="state_dict"):
        pickle.dumps(layer)
    weight = layer.weight.detach().clone()
    layer = remove_parametrizations(layer, "weight")
    assert not is_parametrized(layer) and type(layer) is type(LAYERS[kind]())
    torch.testing.assert_close(layer.weight.detach(), weight, rtol=0, atol=0)


@pytest.mark.parametrize("id", IDS)
def test_reduced_precision(id, device):
    layer = parametrize(nn.Linear(6, 5, device=device), id).eval()
    x = torch.randn(3, 6, device=device)
    weight = layer.weight.detach()
    with torch.autocast(device.type, dtype=torch.bfloat16):
        torch.testing.assert_close(layer.weight.detach(), weight, rtol=0, atol=0)
        y = layer(x)
    y.float().sum().backward()
    assert y.dtype == torch.bfloat16 and all(p.grad.isfinite().all() for p in layer.parameters())
    half = parametrize(nn.Linear(6, 5, device=device, dtype=torch.bfloat16), id).eval()
    assert half.weight.dtype == torch.bfloat16 and half.weight.isfinite().all()


@pytest.mark.parametrize("id", IDS)
def test_works_on_any_parameter_of_any_module(id):
    lstm = parametrize(nn.LSTM(3, 4), id, "weight_hh_l0")
    lstm(torch.randn(5, 2, 3))[0].sum().backward()
    assert all(t.grad is not None for t in raw(lstm, "weight_hh_l0"))
    lstm.to(torch.float64)
    assert lstm.weight_hh_l0.dtype == torch.float64


@pytest.mark.parametrize("id", ["SpectralNorm", "OrthogonalizationByNewtonIteration"])
def test_learned_scale(id):
    layer = parametrize(nn.Linear(6, 5), id, learn_scale=True, scale=1.5)
    layer.weight.sum().backward()
    scale = layer.parametrizations.weight[0].scale
    assert torch.all(scale == 1.5) and scale.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda n: parametrize(n, "SpectralNrm"), ValueError, ["id='SpectralNrm'", "SpectralNorm"]),
        (lambda n: parametrize(n, "WeightNorm", dmi=0), TypeError, ["'dmi'", "dim"]),
        (lambda n: parametrize(n, "WeightNorm", "wieght"), ValueError, ["'wieght'", "weight"]),
        (lambda n: parametrize(n, "WeightNorm", "bias", dim=1), ValueError, ["dim=1", "(5,)"]),
        (lambda n: parametrize(n, "WeightNorm", dim=-1), ValueError, ["dim=-1", "pass 1", "None"]),
        (lambda n: parametrize(n, "SpectralNorm", dim=-3), ValueError, ["dim=-3", "0 to 1"]),
        (lambda n: parametrize(n, "WeightStandardization", "bias"), ValueError, ["(5,)", "at least 2 axes"]),
        (
            lambda n: parametrize(nn.Conv2d(1, 3, 1), "WeightStandardization"),
            ValueError,
            ["(3, 1, 1, 1)", "variance"],
        ),
        (lambda n: parametrize(n, "WeightStandardization", eps=-1.0), ValueError, ["eps=-1.0", "at least"]),
        (
            lambda n: parametrize(n, "WeightStandardization", eps_placement="in"),
            ValueError,
            ["'in'", "'inside'"],
        ),
        (
            lambda n: parametrize(n, "OrthogonalizationByNewtonIteration", num_groups=2),
            ValueError,
            ["num_groups=2", "5 rows", "divisor"],
        ),
        (
            lambda n: parametrize(n, "SpectralNorm", n_power_iterations=0),
            ValueError,
            ["n_power_iterations=0"],
        ),
        (
            lambda n: parametrize(parametrize(n, "SpectralNorm"), "WeightNorm"),
            ValueError,
            ["parametrized already", "first"],
        ),
    ],
)
def test_errors_name_argument_value_and_remedy(call, error, words):
    with pytest.raises(error) as raised:
        call(nn.Linear(6, 5))
    assert all(word in str(raised.value) for word in words), raised.value


def test_another_kind_names_the_right_call():
    import normsurvey.gradients  # noqa: F401

    with pytest.raises(ValueError, match=r"ns\.gradients\.LARS\(params, lr=\.\.\.\)"):
        parametrize(nn.Linear(2, 2), "LARS")


# Properties of the fact sheets


def test_weight_norm_separates_length_and_direction():
    layer = parametrize(nn.Linear(6, 5, dtype=torch.float64), "WeightNorm")
    g, v = raw(layer)
    before = layer.weight.detach().clone()
    with torch.no_grad():
        g.mul_(-2.0)
    torch.testing.assert_close(layer.weight.norm(dim=1), g.abs().squeeze(1), rtol=1e-12, atol=0)
    torch.testing.assert_close(layer.weight, -2 * before)
    layer.weight.sin().sum().backward()
    assert (v * v.grad).sum(1).abs().max() < 1e-14


def test_spectral_norm_converges_and_rests_in_eval_mode():
    layer = parametrize(nn.Conv2d(3, 8, 3, dtype=torch.float64), "SpectralNorm", init_iterations=0)
    for _ in range(300):
        layer.weight  # noqa: B018
    assert abs(torch.linalg.matrix_norm(layer.weight.flatten(1), 2) - 1) < 1e-4
    layer.eval()
    u = layer.parametrizations.weight[0]._u.clone()
    with torch.no_grad():
        layer.parametrizations.weight.original.normal_()
    layer.weight  # noqa: B018
    torch.testing.assert_close(layer.parametrizations.weight[0]._u, u, rtol=0, atol=0)


def test_weight_standardization_has_mean_zero_and_variance_one():
    for correction in (0, 1):
        layer = parametrize(nn.Conv2d(3, 4, 3), "WeightStandardization", eps=0.0, correction=correction)
        rows = layer.weight.flatten(1).double()
        assert rows.mean(1).abs().max() < 1e-6
        assert (rows.var(1, correction=correction) - 1).abs().max() < 1e-5


@pytest.mark.parametrize("shape", [(16, 64), (64, 16)])
def test_oni_approaches_orthogonality_with_its_iterations(shape):
    n, d = shape
    distances = []
    for steps in (1, 3, 5, 7, 30):
        torch.manual_seed(0)
        options = {"num_iterations": steps, "eps": 0.0, "center": False}
        layer = parametrize(nn.Linear(d, n, dtype=torch.float64), "OrthogonalizationByNewtonIteration", **options)
        w = layer.weight
        assert torch.linalg.svdvals(w).max() <= 1 + 1e-12
        gram = w @ w.T if n < d else w.T @ w
        distances.append((gram - torch.eye(min(n, d), dtype=w.dtype)).norm().item())
    assert distances == sorted(distances, reverse=True) and distances[-1] < 1e-10


def test_oni_in_the_limit_is_the_polar_factor_and_many_iterations_are_stable():
    layer = nn.Linear(64, 64, bias=False)  # centring makes it singular: the plain recursion blows up here
    parametrize(layer, "OrthogonalizationByNewtonIteration", num_iterations=40, eps=0.0)
    assert layer.weight.isfinite().all() and torch.linalg.svdvals(layer.weight).max() < 1.01
    wide = parametrize(
        nn.Linear(64, 8, dtype=torch.float64),
        "OrthogonalizationByNewtonIteration",
        num_iterations=40,
        eps=0.0,
    )
    centered = raw(wide)[0] - raw(wide)[0].mean(1, keepdim=True)
    u, _, vh = torch.linalg.svd(centered, full_matrices=False)
    torch.testing.assert_close(wide.weight, u @ vh, rtol=0, atol=1e-10)


def test_oni_scale_follows_the_release():
    oni = "OrthogonalizationByNewtonIteration"
    conv = parametrize(nn.Conv2d(8, 4, 3), oni, num_iterations=30, eps=0.0)
    assert (torch.linalg.svdvals(conv.weight.flatten(1)) - 1.414).abs().max() < 1e-3
    linear = parametrize(nn.Linear(72, 4), oni, num_iterations=30, eps=0.0)
    assert (torch.linalg.svdvals(linear.weight) - 1).abs().max() < 1e-3
