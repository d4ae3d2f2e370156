"""Rules that open and close gates by weights, against their formulas in loops."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minidiff as md
from minidiff import Gate, Gated, nn
from tests.networks import DOUBLE, conv, dense, rng
from tests.strategies import seeds


def lasso(model):
    return md.GroupLasso(model).step


def magnitude(model):
    rule = md.MagnitudePruning(model, 0.5)
    return lambda lr, strength: rule.step(strength)


rules = pytest.mark.parametrize("rule", [lasso, magnitude])


def proximal(group, amount):
    norm = math.sqrt(sum(w * w for w in group.ravel()))
    return group * max(0.0, 1 - amount * math.sqrt(group.size) / norm)


# -- group lasso -------------------------------------------------------------------------------


@given(seeds, st.floats(0.0, 0.6))
def test_the_lasso_takes_the_proximal_step_of_every_group(seed, amount):
    filters, inputs, singles = conv(2, 3, 2, seed), dense(3, 4, seed), dense(6, 5, seed)
    first, second, both = dense(5, 4, seed), dense(4, 6, seed), Gate(4)
    model = nn.Sequential(
        md.gate(filters),
        md.gate(inputs, "inputs"),
        md.gate(singles, "weights"),
        Gated(first, outputs=both),
        Gated(second, inputs=both),
    )
    layers = [filters, inputs, singles, first, second]

    def groups():  # a unit's row and the next layer's column are one group
        rows, columns, one_by_one, row, column = (layer.weight.data.copy() for layer in layers)
        pairs = [np.append(a, b) for a, b in zip(row, column.T, strict=True)]
        return [[*rows], [*columns.T], [*one_by_one.reshape(-1, 1)], pairs]

    before = groups()
    md.GroupLasso(model).step(0.5, 2 * amount)
    for old, new, gate in zip(before, groups(), md.gates_of(model).values(), strict=True):
        for one, other, is_open in zip(old, new, gate.is_open(), strict=True):
            np.testing.assert_allclose(other, proximal(one, amount), rtol=0, atol=1e-12)
            assert is_open == other.any()


def test_a_layer_that_is_used_twice_shrinks_once():
    square, gate = dense(4, 4), Gate(4)
    before = square.weight.data.copy()
    lasso(nn.Sequential(Gated(square, outputs=gate), Gated(square, outputs=gate)))(0.5, 0.2)
    np.testing.assert_allclose(square.weight.data, [proximal(row, 0.1) for row in before])


def test_what_the_lasso_closed_stays_closed_though_momentum_moves_it():
    model, random = md.gate(dense(20, 10), "weights", **DOUBLE), rng()
    gate, step, closed = model.weights[0].gate, lasso(model), np.zeros(200, bool)
    sgd = md.optim.SGD(model.layer.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    for _ in range(60):
        sgd.zero_grad()
        logits = model(random.standard_normal((20, 16)))
        md.functional.cross_entropy(logits, random.integers(0, 10, 16)).backward()
        sgd.step()
        step(0.1, 0.1)
        assert not (closed & gate.is_open()).any()
        closed = ~gate.is_open()
    assert 0 < closed.sum() < 200


# -- magnitude ---------------------------------------------------------------------------------


@given(seeds, st.floats(0.05, 1.0))
def test_magnitude_pruning_leaves_the_largest_weights(seed, keep):
    layers = [dense(4, 5, seed), dense(5, 3, seed + 1)]
    model = nn.Sequential(*[md.gate(layer, "weights") for layer in layers])
    md.MagnitudePruning(model, keep).step(1.0)
    opened = np.concatenate([gate.is_open() for gate in md.gates_of(model).values()])
    sizes = np.concatenate([abs(layer.weight.data).ravel() for layer in layers])
    assert opened.sum() == max(1, round(keep * 35))
    assert sizes[opened].min() >= sizes[~opened].max(initial=0)


def test_magnitude_pruning_follows_its_schedule_and_opens_nothing():
    model, random, closed = md.gate(dense(20, 50), "weights"), rng(), np.zeros(1000, bool)
    gate, rule = model.weights[0].gate, md.MagnitudePruning(model, 0.1)
    for t in np.linspace(0, 1, 11):
        rule.step(t)
        assert gate.is_open().sum() == round(1000 * (0.1 + 0.9 * (1 - t) ** 3))
        assert not gate.is_open()[closed].any()
        closed = ~gate.is_open()
        model.layer.weight.data += 0.1 * random.standard_normal((50, 20))


def test_groups_of_magnitude_pruning_compare_within_their_layer():
    small, large = md.gate(dense(4, 10)), md.gate(dense(10, 10))
    small.layer.weight.data *= 0.01
    md.MagnitudePruning(nn.Sequential(small, nn.ReLU(), large), 0.5).step(1.0)
    left = [layer.outputs.is_open().sum() for layer in (small, large)]
    assert sum(left) == 10
    assert min(left) >= 2


# -- both --------------------------------------------------------------------------------------


@rules
def test_rules_keep_what_partly_open_gates_compute(rule):
    layer = md.gate(dense(4, 3), initial=0.0, **DOUBLE)
    before = layer(np.ones((4, 2))).data
    rule(layer)(0.0, 0.0)
    assert set(layer.outputs.evaluated()) == {1}
    np.testing.assert_allclose(layer(np.ones((4, 2))).data, before)


@rules
def test_rules_refuse_models_without_gates_or_with_noise(rule):
    with pytest.raises(ValueError, match="no Gated layer"):
        rule(nn.Sequential(nn.ReLU()))
    with pytest.raises(ValueError, match="stochastic HardConcrete"):
        rule(nn.Sequential(md.gate(dense(4, 3), kind=md.HardConcrete, rng=rng())))
    for keep in (0.0, 1.1, math.nan):
        with pytest.raises(ValueError, match="keep is"):
            md.MagnitudePruning(md.gate(dense(4, 3)), keep)


@rules
def test_numbers_that_are_not_finite_are_errors_and_change_nothing(rule):
    layer = md.gate(dense(4, 3))
    step, weight = rule(layer), layer.layer.weight.data
    before = weight.copy()
    for lr, strength in ((0.1, math.nan), (0.1, -5.0), (math.inf, 1.0)):
        if rule is lasso:
            with pytest.raises(ValueError, match="finite numbers, 0 or more"):
                step(lr, strength)
    np.testing.assert_array_equal(weight, before)
    weight[1, 2] = math.nan
    with pytest.raises(ArithmeticError, match="weights are not finite"):
        step(0.1, 1.0)
    assert layer.outputs.is_open().all()
