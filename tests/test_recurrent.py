"""LSTMs with normalization by declaration: shapes, statistics per step, masks, inference, training, tasks."""

import pytest
import torch

import normsurvey as ns
from normsurvey.experiments import recurrent as rn

NORMS = [None, "LayerNorm", "BatchNorm"]
SEEDS = (0, 1, 2)


def lstm(norm, *, seeds=SEEDS, inputs=3, gamma=1.0, eps=1e-5, steps=9):
    return rn.LSTM(inputs, 5, 4, seeds=seeds, norm=norm, gamma=gamma, max_steps=steps, eps=eps).double()


def sequences(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def lengths_mask(steps, lengths):
    return torch.arange(steps).unsqueeze(1) < torch.tensor(lengths)


@pytest.mark.parametrize("norm", NORMS)
def test_shapes(norm):
    model = lstm(norm)
    states = model(sequences(9, 6, 1, 3))
    assert states.shape == (9, 6, 3, 5)
    assert model.read_out(states).shape == (9, 6, 3, 4)
    assert model.read_out(states[-1]).shape == (6, 3, 4)
    assert all(p.view(3, -1).shape[0] == 3 for p in model.parameters())


def test_plain_cell_is_torchs():
    model, x = lstm(None, seeds=(0,)), sequences(9, 6, 1, 3)
    torchs = torch.nn.LSTM(3, 5, dtype=torch.float64)
    order = torch.cat([torch.arange(5, 10), torch.arange(0, 5), torch.arange(15, 20), torch.arange(10, 15)])  # i f g o
    with torch.no_grad():
        torchs.weight_ih_l0.copy_(model.weight_x[0].T[order])
        torchs.weight_hh_l0.copy_(model.weight_h[0].T[order])
        torchs.bias_ih_l0.copy_(model.bias[order])
        torchs.bias_hh_l0.zero_()
    torch.testing.assert_close(model(x).squeeze(2), torchs(x.squeeze(2))[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("norm", NORMS)
def test_networks_side_by_side_are_independent(norm):
    together, x = lstm(norm, gamma=[0.1, 0.5, 1.0]), sequences(9, 6, 1, 3)
    for r, gamma in enumerate((0.1, 0.5, 1.0)):
        alone = lstm(norm, seeds=(r,), gamma=gamma)
        torch.testing.assert_close(alone(x)[:, :, 0], together(x)[:, :, r], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("norm", NORMS)
def test_sets_are_dealt_to_the_networks_in_turn(norm):
    model, x = lstm(norm, seeds=(0, 1, 0, 1)), sequences(9, 6, 2, 3)
    states = model(x)
    torch.testing.assert_close(states[:, :, 0], states[:, :, 2])
    assert (states[:, :, 0] - states[:, :, 1]).abs().max() > 1e-2


@pytest.mark.parametrize("norm", NORMS)
def test_gradients(norm):
    model, x = lstm(norm, seeds=(0,), steps=4), sequences(4, 5, 1, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: model(x)[-1], (x,))
    model(x)[-1].sum().backward()
    unused = {"head", "head_bias"}
    assert all(p.grad is not None for name, p in model.named_parameters() if name not in unused)


def test_recurrent_batch_norm_is_its_definition():
    model, x = lstm("BatchNorm", seeds=(3,), gamma=0.125), sequences(9, 6, 1, 3)

    def bn(z):
        return (z - z.mean(0)) / (z.var(0, correction=0) + 1e-5).sqrt()

    h = c = torch.zeros(6, 5, dtype=torch.float64)
    for t, got in enumerate(model(x)):
        z = 0.125 * bn(h @ model.weight_h[0]) + 0.125 * bn(x[t, :, 0] @ model.weight_x[0]) + model.bias
        f, i, o, g = z.chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * (0.125 * bn(c)).tanh()
        torch.testing.assert_close(got[:, 0], h, rtol=1e-9, atol=1e-10)


def test_layer_norm_lstm_is_its_definition():
    model, x = lstm("LayerNorm", seeds=(3,)), sequences(9, 6, 1, 3)

    def ln(z):
        return torch.nn.functional.layer_norm(z, z.shape[-1:])

    h = c = torch.zeros(6, 5, dtype=torch.float64)
    for t, got in enumerate(model(x)):
        f, i, o, g = (ln(h @ model.weight_h[0] + x[t, :, 0] @ model.weight_x[0]) + model.bias).chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * ln(c).tanh()
        torch.testing.assert_close(got[:, 0], h, rtol=1e-9, atol=1e-10)


def test_layer_norm_keeps_the_summed_inputs_standardized():
    model = lstm("LayerNorm", eps=0.0)
    with torch.no_grad():
        model.weight_h.mul_(10)
    z = model.preactivations(sequences(9, 6, 1, 3)) - model.bias.view(3, -1)
    assert z.mean(-1).abs().max() < 1e-10
    assert (z.std(-1, correction=0) - 1).abs().max() < 1e-10


def test_statistics_are_separate_per_step():
    model, x = lstm("BatchNorm"), sequences(9, 6, 1, 3) * torch.arange(1, 10).view(-1, 1, 1, 1)
    model(x)
    means = torch.stack([norm.running_mean for norm in model.norm_x.steps])
    from_x = torch.stack(model.inputs(x)).mean(1).flatten(1)
    torch.testing.assert_close(means, 0.1 * from_x)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("training", [True, False])
def test_padding_changes_nothing(norm, training):
    model, x = lstm(norm).train(training), sequences(9, 6, 1, 3)
    mask = lengths_mask(9, [9, 9, 8, 5, 3, 2])
    noisy = torch.where(mask[..., None, None], x, 1e3 * sequences(9, 6, 1, 3, seed=1))
    states = model(x, mask)
    torch.testing.assert_close(model(noisy, mask), states, rtol=0, atol=0)
    torch.testing.assert_close(states[-1, 4], states[2, 4], rtol=0, atol=0)  # a state stays after its last valid step


def test_masked_statistics_are_those_of_the_valid_sequences():
    model, x = lstm("BatchNorm"), sequences(9, 6, 1, 3)
    mask = lengths_mask(9, [9, 9, 9, 9, 4, 4])
    found = rn.moments(model, rn.Batch(x, None, mask))
    torch.testing.assert_close(found["x"].mean[5], torch.stack(model.inputs(x))[5, :4].mean(0))
    assert found["h"].count.tolist() == [6, 6, 6, 6, 4, 4, 4, 4, 4]


def test_a_step_with_one_valid_sequence_is_refused():
    with pytest.raises(ValueError, match="mask|values|two"):
        lstm("BatchNorm")(sequences(9, 6, 1, 3), lengths_mask(9, [9, 8, 8, 8, 8, 8]))


def test_population_statistics_and_steps_beyond_the_last():
    model, x = lstm("BatchNorm"), sequences(9, 40, 1, 3)
    found = rn.moments(model, rn.Batch(x, None))
    assert all(norm.running_mean.abs().max() == 0 for norm in model.norm_x.steps)  # measuring moves no buffer
    inference = rn.with_statistics(model, found)
    torch.testing.assert_close(inference(x), model.train()(x), rtol=1e-9, atol=1e-9)
    longer = inference(torch.cat([x, x]))
    torch.testing.assert_close(longer[:9], inference(x))
    last = inference.norm_x(inference.inputs(x)[0], 8)
    torch.testing.assert_close(inference.norm_x(inference.inputs(x)[0], 30), last, rtol=0, atol=0)
    with pytest.raises(ValueError, match="max_steps"):
        model(torch.cat([x, x]))


def test_pooled_is_the_law_of_total_variance():
    x = sequences(9, 40, 2, 3) * torch.arange(1, 10).view(-1, 1, 1, 1) + torch.arange(9).view(-1, 1, 1, 1)
    steps = {"x": rn.Moments(x.mean(1), x.var(1, correction=0), torch.full((9,), 40.0))}
    mean, var, _ = rn.pooled(steps)["x"]
    torch.testing.assert_close(mean[0], x.flatten(0, 1).mean(0))
    torch.testing.assert_close(var[5], x.flatten(0, 1).var(0, correction=0))


def test_mismatch_is_zero_for_the_same_and_log_two_for_twice():
    found = rn.moments(lstm("BatchNorm"), rn.Batch(sequences(9, 40, 1, 3), None))
    assert rn.mismatch(found, found).abs().max() == 0
    twice = {k: m._replace(var=2 * m.var + 1e-5) for k, m in found.items()}
    torch.testing.assert_close(rn.mismatch(found, twice), torch.full((3,), 2.0, dtype=torch.float64).log())


@pytest.mark.parametrize("name", rn.TASKS)
def test_tasks(name):
    scale = rn.SCALES["quick"]
    data = rn.task(name, scale)
    random = [torch.Generator().manual_seed(s) for s in SEEDS]
    x, y, mask = data.sample(7, random)
    assert x.shape == (scale.length[name], 7, 3, data.num_inputs)
    assert y.shape == ((scale.length[name], 7, 3) if data.every_step else (7, 3))
    assert 0 <= y.min() and y.max() < data.num_outputs
    again = rn.task(name, scale).sample(7, [torch.Generator().manual_seed(s) for s in SEEDS])
    assert torch.equal(x, again.x) and torch.equal(y, again.y)
    assert (mask is None) == (name != "ink")
    assert data.train_set().x.shape[2] == data.test_set().x.shape[2] == 1


def test_one_mask_serves_all_sets_of_ink():
    data = rn.InkPixels()
    x, _, mask = data.sample(50, [torch.Generator().manual_seed(s) for s in SEEDS])
    assert torch.equal((x != 0).any(-1), mask.unsqueeze(-1).expand(-1, -1, 3))
    assert 5 < mask.sum(0).min() < mask.sum(0).max() == data.length


def test_text_asks_for_the_next_letter():
    x, y, _ = rn.PythonText(12).test_set(5)
    assert torch.equal(x.argmax(-1)[1:], y[:-1])


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="music"):
        rn.task("music", rn.SCALES["quick"])
    with pytest.raises(ValueError, match="GroupNorm"):
        rn.LSTM(1, 2, 3, norm="GroupNorm")
    with pytest.raises(ValueError, match="max_steps"):
        rn.LSTM(1, 2, 3, norm="BatchNorm")
    with pytest.raises(ValueError, match="share their norm"):
        rn.train_grid("ink", list(rn.ARMS[:2]), rn.SCALES["quick"])


def test_training_is_deterministic_and_learns():
    scale = rn.Scale(hidden=8, batch=8, length={"ink": 17}, steps={"ink": 12})
    arms = [arm for arm in rn.ARMS if arm.norm == "BatchNorm"]
    first, second = (rn.train_grid("ink", arms, scale, rates=(0.01, 0.03), seeds=(0, 5)) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert a.loss.shape == (2, 2, 12) and torch.equal(a.loss, b.loss)
    assert first[0].final.shape == (2, 2)
    assert (first[0].loss[..., -3:].mean() < first[0].loss[..., :3].mean()).item()
    best = first[0].best_model()
    assert best.runs == 2 and torch.equal(best.weight_h[1], first[0].model.weight_h[2 * first[0].best + 1])


def test_runs_that_diverge_are_never_the_best():
    loss = torch.ones(2, 3, 10)
    loss[0, 1, -1] = torch.nan
    assert rn.Curves(rn.ARMS[0], loss, None).best == 1


def test_adam_is_torchs_with_one_rate_per_network():
    from normsurvey.experiments.recurrent.training import Adam

    start, gradient = sequences(2, 3, 4), 1e-3 * sequences(2, 3, 4, seed=1)
    together = start.clone()
    ours = Adam([together], torch.tensor([0.1, 0.01], dtype=torch.float64))
    for _ in range(3):
        ours.step((gradient,))
    for r, rate in enumerate((0.1, 0.01)):
        alone = start[r].clone().requires_grad_()
        torchs = torch.optim.Adam([alone], lr=rate)
        for _ in range(3):
            alone.grad = gradient[r].clone()
            torchs.step()
        torch.testing.assert_close(together[r], alone.detach(), rtol=1e-7, atol=1e-9)


def test_gain_theory():
    assert rn.expected_gain(0.1) == pytest.approx(0.99, abs=2e-4)
    assert rn.gradient_gain(1e-4, fresh_input=False) == pytest.approx(1.0, abs=1e-6)
    assert rn.gradient_gain(1e-4, fresh_input=True) == pytest.approx(0.5**0.5, abs=1e-6)
    measured = rn.measured_gradient_gain(1.0, False, seed=9, width=64, batch=64)
    assert measured == pytest.approx(rn.gradient_gain(1.0, fresh_input=False), rel=0.05)


def test_chapters_claims_are_registered_with_a_falsifier():
    found = {k: ns.claims[k] for k in ns.claims if k.startswith("A14.")}
    assert len(found) == 22
    assert all(not claim.quick.accepts(claim.falsifier) for claim in found.values())
