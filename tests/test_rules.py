"""Rules that open and close gates by weights, against their formulas in loops."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import minidiff as md
from minidiff import Gate, Gated, nn
from tests.networks import DOUBLE
from tests.strategies import seeds

some = settings(max_examples=25)


def dense(inputs, units, seed=0):
    return nn.Linear(inputs, units, rng=np.random.default_rng(seed), **DOUBLE)


def proximal(group, amount):
    norm = math.sqrt(sum(w * w for w in group.ravel()))
    return group * max(0.0, 1 - amount * math.sqrt(group.size) / norm)


# -- group lasso -------------------------------------------------------------------------------


@some
@given(seeds, st.floats(0.0, 0.6))
def test_the_lasso_takes_the_proximal_step_of_every_group(seed, amount):
    rng, both = np.random.default_rng(seed), Gate(4)
    conv, units, singles = nn.Conv2d(2, 3, 2, rng=rng, **DOUBLE), dense(3, 4, seed), dense(6, 5)
    first, second, inputs = dense(5, 4, seed + 1), dense(4, 6, seed + 2), dense(3, 4, seed + 3)
    model = nn.Sequential(
        md.gate(conv),
        md.gate(units),
        md.gate(inputs, "inputs"),
        md.gate(singles, "weights"),
        Gated(first, outputs=both),
        Gated(second, inputs=both),
    )
    layers = [conv, units, inputs, singles, first, second]
    before = [layer.weight.data.copy() for layer in layers]
    md.GroupLasso(model).step(0.5, 2 * amount)
    after = [layer.weight.data for layer in layers]
    close = {"rtol": 0, "atol": 1e-12}
    for i in (0, 1):
        for found, old in zip(after[i], before[i], strict=True):
            np.testing.assert_allclose(found, proximal(old, amount), **close)
        np.testing.assert_array_equal(
            model[i].outputs.is_open(), after[i].reshape(len(after[i]), -1).any(axis=1)
        )
    for found, old in zip(after[2].T, before[2].T, strict=True):
        np.testing.assert_allclose(found, proximal(old, amount), **close)
    shrunk = np.sign(before[3]) * np.maximum(0, abs(before[3]) - amount)  # soft thresholding
    np.testing.assert_allclose(after[3], shrunk, **close)
    for i in range(4):  # a unit's row and the next layer's column are one group
        old = np.concatenate([before[4][i], before[5][:, i]])
        found = np.concatenate([after[4][i], after[5][:, i]])
        np.testing.assert_allclose(found, proximal(old, amount), **close)
        assert both.is_open()[i] == found.any()


def test_the_lasso_minimises_loss_and_penalty_together():
    """A step on 0.5 (w - v)^2, to which a gradient step with lr 1 has led."""
    layer, rng = md.gate(dense(3, 5)), np.random.default_rng(1)
    v = 0.7 * rng.standard_normal((5, 3))
    layer.layer.weight.data = v.copy()
    md.GroupLasso(layer).step(1.0, 0.4)

    def total(w):
        return 0.5 * ((w - v) ** 2).sum() + 0.4 * math.sqrt(3) * np.linalg.norm(w, axis=1).sum()

    w = layer.layer.weight.data
    for _ in range(200):
        step = 10 ** rng.uniform(-4, 0) * rng.standard_normal(v.shape)
        assert total(w + step) >= total(w) - 1e-9


def test_a_layer_that_is_used_twice_shrinks_once():
    square, gate = dense(4, 4), Gate(4)
    before = square.weight.data.copy()
    twice = nn.Sequential(Gated(square, outputs=gate), Gated(square, outputs=gate))
    md.GroupLasso(twice).step(0.5, 0.2)
    np.testing.assert_allclose(square.weight.data, [proximal(row, 0.1) for row in before])


def test_a_group_that_the_lasso_closed_stays_closed_though_momentum_moves_it():
    rng, model = np.random.default_rng(0), md.gate(dense(20, 10), "weights", **DOUBLE)
    gate, rule = model.weights[0].gate, md.GroupLasso(model)
    sgd = md.optim.SGD(model.layer.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    closed = np.zeros(200, bool)
    for _ in range(60):
        x = rng.standard_normal((20, 16))
        loss = md.functional.cross_entropy(model(x), rng.integers(0, 10, 16))
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        rule.step(0.1, 0.1)
        assert not (closed & gate.is_open()).any()
        closed = ~gate.is_open()
    assert 0 < closed.sum() < 200


# -- magnitude ---------------------------------------------------------------------------------


@some
@given(seeds, st.floats(0.05, 1.0))
def test_magnitude_pruning_leaves_the_largest_weights(seed, keep):
    layers = [dense(4, 5, seed), dense(5, 3, seed + 1)]
    model = nn.Sequential(*[md.gate(layer, "weights") for layer in layers])
    md.MagnitudePruning(model, keep).step(1.0)
    opened = np.concatenate([gate.is_open() for gate in md.gates_of(model).values()])
    sizes = np.concatenate([abs(layer.weight.data).ravel() for layer in layers])
    assert opened.sum() == max(1, round(keep * 35))
    assert sizes[opened].min() >= sizes[~opened].max(initial=0)


def test_magnitude_pruning_follows_its_schedule_and_opens_nothing_again():
    rng, model = np.random.default_rng(0), md.gate(dense(20, 50), "weights")
    gate, rule = model.weights[0].gate, md.MagnitudePruning(model, 0.1)
    closed = np.zeros(1000, bool)
    for t in np.linspace(0, 1, 11):
        rule.step(t)
        assert gate.is_open().sum() == round(1000 * (0.1 + 0.9 * (1 - t) ** 3))
        assert not gate.is_open()[closed].any()
        closed = ~gate.is_open()
        model.layer.weight.data += 0.1 * rng.standard_normal((50, 20))


def test_groups_of_magnitude_pruning_compare_within_their_layer():
    small, large = dense(4, 10), dense(10, 10)
    small.weight.data *= 0.01
    model = nn.Sequential(md.gate(small), nn.ReLU(), md.gate(large))
    md.MagnitudePruning(model, 0.5).step(1.0)
    left = [model[i].outputs.is_open().sum() for i in (0, 2)]
    assert sum(left) == 10
    assert min(left) >= 2


# -- both --------------------------------------------------------------------------------------

RULES = {
    "lasso": (md.GroupLasso, {"lr": 0.1, "strength": 0.1}, {"lr": 0.0, "strength": 1.0}),
    "magnitude": (lambda model: md.MagnitudePruning(model, 0.5), {"progress": 1}, {"progress": 0}),
}
rules = pytest.mark.parametrize(("rule", "step", "nothing"), RULES.values(), ids=list(RULES))


@rules
def test_models_without_gates_or_with_noise_are_errors(rule, step, nothing):
    with pytest.raises(ValueError, match="no Gated layer"):
        rule(nn.Sequential(nn.ReLU()))
    noisy = md.gate(dense(4, 3), kind=md.HardConcrete, rng=np.random.default_rng(0))
    with pytest.raises(ValueError, match="stochastic HardConcrete"):
        rule(nn.Sequential(noisy))


@rules
def test_rules_keep_what_partly_open_gates_compute(rule, step, nothing):
    layer = md.gate(dense(4, 3), initial=0.0, **DOUBLE)
    before = layer(np.ones((4, 2))).data
    rule(layer).step(**nothing)
    assert set(layer.outputs.evaluated()) == {1}
    np.testing.assert_allclose(layer(np.ones((4, 2))).data, before)


@rules
def test_weights_that_are_not_finite_are_an_error_and_close_nothing(rule, step, nothing):
    layer = md.gate(dense(4, 3))
    started = rule(layer)
    layer.layer.weight.data[1, 2] = math.nan
    with pytest.raises(ArithmeticError, match="weights are not finite"):
        started.step(**step)
    assert layer.outputs.is_open().all()


@pytest.mark.parametrize("keep", [0.0, 1.1, math.nan])
def test_a_share_to_keep_out_of_range_is_an_error(keep):
    with pytest.raises(ValueError, match="keep is"):
        md.MagnitudePruning(md.gate(dense(4, 3)), keep)


@pytest.mark.parametrize(("lr", "strength"), [(0.1, math.nan), (0.1, -5.0), (math.inf, 1.0)])
def test_a_step_of_the_lasso_that_is_no_number_changes_nothing(lr, strength):
    layer = md.gate(dense(4, 3))
    before = layer.layer.weight.data.copy()
    with pytest.raises(ValueError, match="finite numbers, 0 or more"):
        md.GroupLasso(layer).step(lr, strength)
    np.testing.assert_array_equal(layer.layer.weight.data, before)
    assert layer.outputs.is_open().all()
