"""Every gradient method step by step against its reference, and the manners of a torch optimizer."""

import copy

import pytest
import torch
from torch import nn

import normsurvey.reference.gradients  # noqa: F401  registers the references
from normsurvey import gradients
from normsurvey.reference import REFERENCES
from normsurvey.registry import METHODS

IDS = [id for id, m in METHODS.items() if m.kind == "gradient"]

# Options under which a method meets its reference; a method that is missing here fails.
VARIANTS = {
    "GradientCentralization": [
        {"momentum": 0.9},
        {"momentum": 0.9, "weight_decay": 0.1},
        {"momentum": 0.9, "weight_decay": 0.1, "gc_loc": False},
        {"gc_conv_only": True, "momentum": 0.9, "weight_decay": 0.1},
        {"base": "Adam", "weight_decay": 0.1},
        {"base": "Adam", "gc_loc": False, "betas": (0.5, 0.9)},
        {"base": "Adam", "gc_loc": False, "weight_decay": 0.1, "gc_conv_only": True},
    ],
    "LARS": [
        {},
        {"momentum": 0.0, "weight_decay": 0.0},
        {"eps": 1e-8, "exclude_1d": False, "always_adapt": False},
        {"eps": 1e-8, "exclude_1d": False, "always_adapt": False, "weight_decay": 0.0},
        {"eps": 1e-8, "trust_clip": True, "trust_coefficient": 0.5},
        {"lr_inside": True, "exclude_1d": False, "total_iters": 20},
        {"norm_of_sum": True, "weight_decay": 0.1},
        {"total_iters": 8, "power": 1.0},
    ],
    "AdaptiveGradientClipping": [
        {},
        {"clip_factor": 0.5, "momentum": 0.9},
        {"clip_factor": 1.2, "eps": 0.1},
        {"clip_factor": 0.5, "units": "columns"},
        {"clip_factor": None},
    ],
}
CASES = [(id, options) for id in IDS for options in VARIANTS.get(id, [None])]
NAMES = [f"{id}-{n}" for n, (id, _) in enumerate(CASES)]
SHAPES = [(4, 3, 2, 2), (5, 6), (3, 2, 4), (7,), ()]


def build(id, params, **options):
    return getattr(gradients, id)(params, **({"lr": 0.1} | options))


def draw(count, dtype=torch.float64, scale=1.0):
    return [[scale * torch.randn(shape, dtype=dtype) for shape in SHAPES] for _ in range(count)]


def apply(optimizer, params, steps):
    for step in steps:
        for p, g in zip(params, step, strict=True):
            p.grad = g.clone().to(p)
        optimizer.step()


def test_every_method_has_reference_and_variants():
    assert len(IDS) >= 3
    assert set(IDS) <= set(REFERENCES) and set(IDS) <= set(VARIANTS) and set(IDS) <= set(gradients.__all__)


@pytest.mark.parametrize(("id", "options"), CASES, ids=NAMES)
def test_steps_equal_the_reference(id, options, device):
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-3)):
        (start,), steps = draw(1, dtype), draw(6, dtype)
        params = [nn.Parameter(p.clone().to(device)) for p in start]
        apply(build(id, params, **options), params, steps)
        options_with_lr = {"lr": 0.1} | options
        expected = REFERENCES[id](
            [p.double() for p in start], [[g.double() for g in step] for step in steps], **options_with_lr
        )
        for p, want in zip(params, expected, strict=True):
            torch.testing.assert_close(p.detach().cpu().double(), want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("id", "options"), CASES, ids=NAMES)
def test_state_dict_continues_identically(id, options):
    (start,), steps = draw(1), draw(6)
    params = [nn.Parameter(p) for p in start]
    optimizer = build(id, params, **options)
    apply(optimizer, params, steps[:3])
    others = [nn.Parameter(p.detach().clone()) for p in params]
    other = build(id, others, **options)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    clone, cloned = copy.deepcopy((optimizer, params))
    for o, ps in ((optimizer, params), (other, others), (clone, cloned)):
        apply(o, ps, steps[3:])
    for p, q, r in zip(params, others, cloned, strict=True):
        assert torch.equal(p, q) and torch.equal(p, r)


@pytest.mark.parametrize("id", IDS)
def test_manners_of_a_torch_optimizer(id):
    model = nn.Linear(6, 3)
    x = torch.randn(8, 6)
    optimizer = build(id, model.parameters())
    assert isinstance(optimizer, torch.optim.Optimizer)

    def closure():
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        return loss

    with torch.no_grad():
        expected = model(x).square().mean()
    torch.testing.assert_close(optimizer.step(closure).detach(), expected)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.0)
    closure()
    optimizer.step()
    scheduler.step()
    before = [p.detach().clone() for p in model.parameters()]
    closure()
    optimizer.step()
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True)), "lr is 0"
    extra = nn.Parameter(torch.ones(2, 2))
    optimizer.add_param_group({"params": [extra], "lr": 0.5})
    extra.grad = torch.tensor([[1.0, 2.0], [3.0, 5.0]])
    optimizer.step()
    assert not torch.equal(extra.detach(), torch.ones(2, 2))
    assert set(optimizer.param_groups[1]) == set(optimizer.param_groups[0]) - {"initial_lr"}


@pytest.mark.parametrize("id", [i for i in IDS if i != "LARS"])
@pytest.mark.parametrize("base", ["SGD", "Adam", "AdamW", "RMSprop", "Adagrad"])
def test_wrapping_an_optimizer_is_building_one(id, base):
    (start,), steps = draw(1), draw(5)
    built, given = ([nn.Parameter(p.clone()) for p in start] for _ in range(2))
    apply(build(id, built, base=base, weight_decay=0.1), built, steps)
    inner = getattr(torch.optim, base)(given, lr=0.1, weight_decay=0.1)
    apply(getattr(gradients, id)(inner), given, steps)
    assert all(torch.equal(p, q) for p, q in zip(built, given, strict=True))


@pytest.mark.parametrize("id", IDS)
def test_parameters_without_gradient_stay(id):
    still, moving = nn.Parameter(torch.ones(3, 2)), nn.Parameter(torch.ones(3, 2))
    optimizer = build(id, [still, moving])
    moving.grad = torch.randn(3, 2)
    optimizer.step()
    assert torch.equal(still.detach(), torch.ones(3, 2))
    still.grad = torch.eye(3, 2).to_sparse()
    with pytest.raises(ValueError, match=r"sparse gradient"):
        optimizer.step()


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda p: gradients.LARS(p, lr=0.1, momentm=0.5), TypeError, ["'momentm'", "momentum"]),
        (lambda p: gradients.LARS(p, lr=-0.1), ValueError, ["lr=-0.1", "lr <"]),
        (lambda p: gradients.LARS(p, lr=0.1, momentum=1.5), ValueError, ["momentum=1.5", "< 1.0"]),
        (lambda p: gradients.LARS(p, lr=0.1, nesterov=True, dampening=0.5), ValueError, ["nesterov", "dampening=0"]),
        (lambda p: gradients.Lars(p, lr=0.1), AttributeError, ["'Lars'", "LARS"]),
        (
            lambda p: gradients.GradientCentralization(p, lr=0.1, momentm=0.5),
            TypeError,
            ["over SGD", "'momentm'", "momentum"],
        ),
        (lambda p: gradients.GradientCentralization(p, base="Adm", lr=0.1), ValueError, ["'Adm'", "Adam"]),
        (
            lambda p: gradients.GradientCentralization(torch.optim.SGD(p, lr=0.1), lr=0.1),
            TypeError,
            ["exists", "lr"],
        ),
        (
            lambda p: gradients.AdaptiveGradientClipping(p, lr=0.1, clip_factor=-1.0),
            ValueError,
            ["clip_factor=-1.0", "0.0 <="],
        ),
        (lambda p: gradients.AdaptiveGradientClipping(p, lr=0.1, units="row"), ValueError, ["'row'", "'rows'"]),
    ],
)
def test_errors_name_argument_value_and_remedy(call, error, words):
    with pytest.raises(error) as raised:
        call([nn.Parameter(torch.ones(2, 2))])
    assert all(word in str(raised.value) for word in words), raised.value


# Properties of the fact sheets


@pytest.mark.parametrize("options", [{}, {"momentum": 0.9}, {"base": "Adam", "gc_loc": False}])
def test_centralization_keeps_the_mean_of_each_unit(options):
    (start,), steps = draw(1), draw(5)
    params = [nn.Parameter(p.clone()) for p in start]
    apply(build("GradientCentralization", params, **options), params, steps)
    for p, old in zip(params[:3], start[:3], strict=True):
        assert (p.flatten(1).mean(1) - old.flatten(1).mean(1)).abs().max() < 1e-14
        assert (p - old).abs().max() > 1e-3


def test_centralization_before_adam_lets_the_mean_drift():
    (start,), steps = draw(1), draw(5)
    params = [nn.Parameter(p.clone()) for p in start]
    apply(build("GradientCentralization", params, base="Adam"), params, steps)
    assert (params[0].flatten(1).mean(1) - start[0].flatten(1).mean(1)).abs().max() > 1e-3


def test_centralization_is_a_projection():
    (start,), (step,) = draw(1), draw(1)
    params = [nn.Parameter(p) for p in start]
    optimizer = build("GradientCentralization", params)
    apply(optimizer, params, [step])
    once = [p.grad.clone() for p in params]
    optimizer.edit_gradients()
    for p, g, original in zip(params, once, step, strict=True):
        torch.testing.assert_close(p.grad, g, rtol=0, atol=1e-14)
        assert g.norm() <= original.norm() + 1e-14
    assert torch.equal(once[3], step[3]) and torch.equal(once[4], step[4])


def test_lars_first_step_has_the_trust_ratio_and_ignores_the_gradient_scale():
    (start,), (step,) = draw(1), draw(1)
    moved = []
    for scale in (1.0, 1e3):
        params = [nn.Parameter(p.clone()) for p in start]
        apply(build("LARS", params, lr=2.0, weight_decay=0.0), params, [[scale * g for g in step]])
        moved.append(params)
        for p, old in zip(params[:3], start[:3], strict=True):
            assert abs((p - old).norm() / old.norm() - 2.0 * 1e-3) < 1e-14
    for p, q in zip(*(params[:3] for params in moved), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-13, atol=1e-13)


def test_lars_leaves_zero_weights_a_plain_step():
    p = nn.Parameter(torch.zeros(3, 2))
    optimizer = build("LARS", [p])
    p.grad = torch.ones(3, 2)
    optimizer.step()
    torch.testing.assert_close(p.detach(), torch.full((3, 2), -0.1))


@pytest.mark.parametrize("options", [{}, {"nesterov": True}, {"dampening": 0.5}])
def test_lars_on_excluded_vectors_is_sgd(options):
    ours, theirs = (nn.Parameter(torch.ones(7, dtype=torch.float64)) for _ in range(2))
    optimizer = build("LARS", [ours], momentum=0.9, **options)
    sgd = torch.optim.SGD([theirs], lr=0.1, momentum=0.9, **options)
    for _ in range(5):
        ours.grad = theirs.grad = torch.randn(7, dtype=torch.float64)
        optimizer.step()
        sgd.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-14, atol=1e-14)


def test_lars_orders_of_the_rate_differ_once_it_changes():
    (start,), steps = draw(1), draw(4)
    results = []
    for lr_inside in (False, True):
        for gamma in (1.0, 0.5):
            params = [nn.Parameter(p.clone()) for p in start]
            optimizer = build("LARS", params, lr_inside=lr_inside)
            scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma)
            for step in steps:
                apply(optimizer, params, [step])
                scheduler.step()
            results.append(params[0].detach())
    torch.testing.assert_close(results[0], results[2], rtol=0, atol=1e-14)
    assert (results[1] - results[3]).abs().max() > 1e-6


def test_clipping_bounds_each_unit_and_keeps_its_direction():
    (start,), (step,) = draw(1), draw(1)
    step = [g * torch.rand(len(g), *[1] * (g.ndim - 1)) if g.ndim > 1 else g for g in step]
    params = [nn.Parameter(p.clone()) for p in start]
    apply(build("AdaptiveGradientClipping", params, clip_factor=0.5), params, [step])
    for p, g, old in zip(params[:3], step[:3], start[:3], strict=True):
        norm, limit = p.grad.flatten(1).norm(dim=1), 0.5 * old.flatten(1).norm(dim=1)
        assert torch.all(norm <= limit * (1 + 1e-12))
        torch.testing.assert_close(p.grad.flatten(1) / norm[:, None], g.flatten(1) / g.flatten(1).norm(dim=1)[:, None])
        kept = g.flatten(1).norm(dim=1) < limit
        assert torch.equal(p.grad[kept], g[kept])


def test_clipping_leaves_the_group_of_the_last_layer_alone():
    body, head = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    groups = [{"params": [body]}, {"params": [head], "clip_factor": None}]
    optimizer = gradients.AdaptiveGradientClipping(groups, lr=1.0)
    body.grad, head.grad = torch.ones(2, 2), torch.ones(2, 2)
    optimizer.step()
    assert torch.equal(head.detach(), torch.zeros(2, 2))
    torch.testing.assert_close(body.detach(), torch.full((2, 2), 0.99))
