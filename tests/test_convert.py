"""Swapping the normalization layers of models: what carries over, what is reported, what is refused."""

import copy
import warnings

import pytest
import torch
from torch import nn

import normsurvey as ns


def cnn():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.GroupNorm(4, 12), nn.ReLU(),
        nn.InstanceNorm2d(12, affine=True, track_running_stats=True), nn.AdaptiveAvgPool2d(2), nn.Flatten(1, 2),
        nn.BatchNorm1d(24, momentum=None), nn.Flatten(), nn.Linear(48, 5), nn.BatchNorm1d(5, affine=False),
    )  # fmt: skip


def transformer(**options):
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pre-norm encoders tell that they have no nested tensors
        return nn.TransformerEncoder(layer, 2, norm=nn.RMSNorm(8))


MODELS = {
    "cnn": (cnn, (6, 3, 12, 12)),
    "transformer": (transformer, (6, 5, 8)),
    "pre-norm transformer": (lambda: transformer(norm_first=True), (6, 5, 8)),
}


def trained(name):
    """A model whose parameters and running statistics have moved, and an input."""
    build, shape = MODELS[name]
    model, x = build(), torch.randn(shape) + 1
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    return model, x


# Options that cut the channels, as functions of the width.
FITTING = dict.fromkeys(
    ("num_groups", "group_size", "key_group_size", "channels_per_group"), lambda width: 4 if width % 4 == 0 else 1
)


def ours(model):
    return [m for m in model.modules() if isinstance(m, ns.Norm)]


@pytest.mark.parametrize("name", MODELS)
def test_identity_conversion_keeps_values_gradients_and_statistics(name, device):
    model, x = trained(name)
    # in float32 batch norms in a row amplify the last digit, which differs from processor to processor
    model, x = model.to(device, torch.float64), x.to(device, torch.float64)
    converted = ns.convert(model)
    assert model is not converted and not ours(model)
    assert len(ours(converted)) == len(converted.conversion) >= 5
    assert all(entry.target and not entry.dropped and not entry.fresh for entry in converted.conversion)
    for mode in (True, False):
        model.train(mode), converted.train(mode)
        torch.testing.assert_close(converted(x), model(x), rtol=1e-10, atol=1e-10)
        with torch.no_grad():  # torch's fused encoder runs here
            torch.testing.assert_close(converted(x), model(x), rtol=1e-10, atol=1e-10)
    model.train(), converted.train()
    for m in (model, converted):
        m.zero_grad()
        m(x).sin().sum().backward()
    grads = {k: p.grad for k, p in model.named_parameters()}
    for k, p in converted.named_parameters():
        torch.testing.assert_close(p.grad, grads[k], rtol=1e-10, atol=1e-10)
    state = model.state_dict()
    assert list(state) == list(converted.state_dict())
    for k, v in converted.state_dict().items():
        torch.testing.assert_close(v, state[k], rtol=1e-10, atol=1e-10)


def test_a_padded_batch_in_inference():
    model = transformer().eval()
    converted = ns.convert(model)
    x, padding = torch.randn(3, 5, 8), torch.arange(5) >= torch.tensor([[5], [3], [4]])
    with torch.no_grad():
        want, got = (m(x, src_key_padding_mask=padding) for m in (model, converted))
    torch.testing.assert_close(got[~padding], want[~padding], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("method_id", ["RMSNorm", "GroupNorm", "PixelNorm", "BatchNorm"])
def test_a_converted_transformer_uses_its_new_layers_in_inference(method_id):
    converted = ns.convert(transformer().eval(), method_id, **({"num_groups": 2} if method_id == "GroupNorm" else {}))
    x = torch.randn(4, 5, 8)
    with torch.no_grad():
        fast = converted(x)
    torch.testing.assert_close(fast, converted(x), rtol=1e-6, atol=1e-6)
    assert all(m.channel_dim == -1 for m in ours(converted))


def fitting(method_id):
    """Options under which a method exists for a width that 4 divides, or for any width."""
    known = ns.catalogue[method_id].signature.parameters
    return {name: value for name, value in FITTING.items() if name in known}


@pytest.mark.parametrize("method_id", [k for k, m in ns.catalogue.items() if m.kind == "layer"])
def test_every_layer_can_be_the_target_or_says_why_not(method_id):
    model, x = trained("cnn")
    if ns.catalogue[method_id].example.condition is not None:
        with pytest.raises(ValueError, match=f"method_id='{method_id}' needs a condition"):
            ns.convert(model, method_id)
        return
    converted = ns.convert(model, method_id, **fitting(method_id), where=lambda name, layer: name in ("1", "4"))
    assert [type(converted[int(entry.name)]).__name__ for entry in converted.conversion] == [method_id] * 2
    for entry, old in zip(converted.conversion, (model[1], model[4]), strict=True):
        new = converted[int(entry.name)]
        for key in entry.carried:
            if not (key == "running_var" and method_id == "BatchRenorm"):
                assert torch.equal(new.state_dict()[key], old.state_dict()[key])
        assert set(entry.carried) | set(entry.fresh) == set(new.state_dict())
        assert set(entry.carried) | set(entry.dropped) == set(old.state_dict())
    converted.train()(x).sum().backward()
    assert converted.eval()(x).isfinite().all()


def test_batch_renormalization_and_back_keeps_inference():
    model, x = trained("cnn")
    there = ns.convert(model, "BatchRenorm", where=lambda name, layer: name == "1").eval()
    torch.testing.assert_close(there(x), model.eval()(x), rtol=1e-6, atol=1e-6)
    back = ns.convert(there, "BatchNorm", where=lambda name, layer: name == "1")
    torch.testing.assert_close(back[1].running_var, there[1].running_var - there[1].operation.eps)


def test_the_report_says_what_became_of_each_layer():
    model = nn.Sequential(nn.BatchNorm2d(4), nn.LayerNorm((4, 5, 5)), nn.Identity())
    converted = ns.convert(model, "GroupNorm", num_groups=2)
    first, second = str(converted.conversion).splitlines()
    assert first.startswith("0: BatchNorm2d -> GroupNorm(4, num_groups=2) (carried weight, bias; dropped ")
    assert second == "1: LayerNorm left alone, its area is the last 3 axes (4, 5, 5), not channels"
    assert isinstance(converted[1], nn.LayerNorm)
    assert str(ns.convert(nn.Linear(2, 2)).conversion) == "no normalization layer found"


def test_dtype_device_mode_frozen_parameters_and_axis_carry_over(device):
    model = nn.Sequential(nn.BatchNorm1d(4), nn.LayerNorm(4)).to(device, torch.float64).eval()
    model[0].weight.requires_grad_(False)
    converted = ns.convert(model, "LayerNorm")
    assert [m.training for m in ours(converted)] == [False, False]
    assert [m.channel_dim for m in ours(converted)] == [1, -1]
    assert converted[0].weight.dtype == torch.float64 and converted[0].weight.device.type == device.type
    assert not converted[0].weight.requires_grad and converted[0].bias.requires_grad
    converted[0](torch.randn(2, 4, 4, dtype=torch.float64, device=device))  # (N, C, L) with L = C is not ambiguous here


def test_tied_layers_stay_tied():
    norm = nn.BatchNorm2d(4)
    converted = ns.convert(nn.ModuleDict({"a": norm, "b": nn.Sequential(nn.ReLU(), norm)}))
    assert converted["a"] is converted["b"][1] and isinstance(converted["a"], ns.BatchNorm)
    assert [entry.name for entry in converted.conversion] == ["a", "b.1"]


def test_where_options_inplace_and_a_bare_layer():
    model = cnn()
    part = ns.convert(model, "GroupNorm", where=lambda name, layer: name == "4", num_groups=lambda width: width // 3)
    assert [repr(m) for m in ours(part)] == ["GroupNorm(12, num_groups=4)"]
    assert ns.convert(model, inplace=True) is model and len(ours(model)) == 5
    again = ns.convert(model, "InstanceNorm", where=lambda name, layer: layer.num_features == 8)
    assert isinstance(again[1], ns.InstanceNorm)
    bare = ns.convert(nn.BatchNorm2d(4))
    assert isinstance(bare, ns.BatchNorm) and bare.conversion[0].name == ""


def test_what_cannot_be_converted_is_refused_by_name():
    model = nn.Sequential(nn.BatchNorm2d(6))
    before = copy.deepcopy(model.state_dict())
    for call, error, words in [
        (lambda: ns.convert(model, "GroupNrm"), ValueError, ["GroupNrm", "GroupNorm"]),
        (lambda: ns.convert(model, "SpectralNorm"), ValueError, ["SpectralNorm", "parametrize"]),
        (lambda: ns.convert(model, "GroupNorm", num_groups=4), ValueError, ["'0'", "6 features", "num_groups=4"]),
        (lambda: ns.convert(model, "GroupNorm", gruops=2), TypeError, ["'0'", "'gruops'", "num_groups"]),
    ]:
        with pytest.raises(error) as raised:
            call()
        assert all(word in str(raised.value) for word in words), raised.value
    unnamed = nn.Sequential(ns.Norm(ns.Area("n c ... -> c"), ns.Center()))
    assert "no method id" in str(ns.convert(unnamed, "BatchNorm").conversion)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_statistics_of_another_operation_do_not_carry_over():
    model, _ = trained("cnn")
    first = ns.convert(model, "L1BatchNorm", where=lambda name, layer: name == "1")
    second = ns.convert(first, "LpBatchNorm", where=lambda name, layer: name == "1").conversion[0]
    assert "running_mean" in second.carried and "running_deviation" in second.fresh
    whitened = ns.convert(ns.convert(model, "PCAWhitening"), "DecorrelatedBatchNorm").conversion[0]
    assert "running_whitening" in whitened.fresh and "running_whitening" in whitened.dropped
