"""Other methods, against the formulas of their papers and against loops."""

import math
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import minidiff as md
from minidiff import nn
from tests.strategies import seeds

DOUBLE: dict[str, Any] = {"dtype": np.float64}
some = settings(max_examples=25)
phis = st.lists(st.floats(-6, 6), min_size=1, max_size=6).map(np.array)


def hard_concrete(phi: np.ndarray, seed: int = 0, **options: Any) -> md.HardConcrete:
    rng = np.random.default_rng(seed)
    gate = md.HardConcrete(len(phi), rng=rng, **DOUBLE, **options)
    gate.phi.data = phi
    return gate


def gaussian(phi: np.ndarray, seed: int = 0, **options: Any) -> md.GaussianGate:
    gate = md.GaussianGate(len(phi), rng=np.random.default_rng(seed), **DOUBLE, **options)
    gate.phi.data = phi
    return gate


def plain(phi):
    gate = md.Gate(len(phi), width=0.7, dtype=np.float64)
    gate.phi.data = phi
    return gate


# -- hard concrete, as in the paper's equations 10 to 13


@given(phis, seeds)
def test_hard_concrete_gates_are_those_of_the_paper(phi, seed):
    beta, gamma, zeta = 2 / 3, -0.1, 1.1
    noise = np.random.default_rng(seed).logistic(size=len(phi))
    u = 1 / (1 + np.exp(-noise))
    s = 1 / (1 + np.exp(-(np.log(u) - np.log(1 - u) + phi) / beta))
    expected = np.clip(s * (zeta - gamma) + gamma, 0, 1)
    gate = hard_concrete(phi, seed)
    np.testing.assert_allclose(gate().data, expected, atol=1e-9)
    expected = np.clip((zeta - gamma) / (1 + np.exp(-phi)) + gamma, 0, 1)
    np.testing.assert_allclose(gate.eval()().data, expected, atol=1e-12)
    np.testing.assert_allclose(gate.evaluated(), expected, atol=1e-12)
    opens = 1 / (1 + np.exp(-(phi - beta * np.log(-gamma / zeta))))
    np.testing.assert_allclose(gate.open_probability().data, opens, atol=1e-12)


@pytest.mark.parametrize("make", [hard_concrete, gaussian, lambda phi, seed: plain(phi)])
def test_limits_are_where_gates_close_and_are_fully_open_in_evaluation(make):
    low, high = make(np.zeros(1), 0).limits
    near = 1e-6 * np.array([-1, 1])
    closed, opened = make(low + near, 0).evaluated(), make(high + near, 0).evaluated()
    assert closed[0] == 0 < closed[1] < 1e-4
    assert 1 - 1e-4 < opened[0] < opened[1] == 1


@pytest.mark.parametrize("make", [hard_concrete, gaussian])
def test_gates_are_open_in_training_as_often_as_they_say(make):
    phi = np.repeat([-1.0, -0.3, 0.0, 0.7], 20_000)
    gate = make(phi, 1)
    found = (gate().data > 0).reshape(4, -1).mean(axis=1)
    expected = gate.open_probability().data[:: len(phi) // 4]
    np.testing.assert_allclose(found, expected, atol=0.015)


@given(phis, seeds)
def test_gaussian_gates_are_those_of_the_paper(phi, seed):
    sigma = 0.5
    noise = np.random.default_rng(seed).standard_normal(len(phi))
    gate = gaussian(phi, seed)
    np.testing.assert_allclose(gate().data, np.clip(phi + sigma * noise, 0, 1), atol=1e-12)
    np.testing.assert_allclose(gate.eval()().data, np.clip(phi, 0, 1), atol=1e-12)
    opens = [NormalDist().cdf(m / sigma) for m in phi]
    np.testing.assert_allclose(gate.open_probability().data, opens, atol=1e-9)


@some
@pytest.mark.parametrize("make", [hard_concrete, gaussian])
@given(phi=st.lists(st.floats(0.05, 0.9), min_size=1, max_size=5).map(np.array), seed=seeds)
def test_gradients_are_those_of_finite_differences(make, phi, seed):
    weights = np.random.default_rng(seed).standard_normal(len(phi))

    def values(leaf: md.Tensor) -> md.Tensor:
        gate = make(phi, seed).eval()  # off the kinks of clipping
        gate.phi = leaf
        return gate() * weights

    def opens(leaf: md.Tensor) -> md.Tensor:
        gate = make(phi, seed)
        gate.phi = leaf
        return gate.open_probability() * weights

    for function in (values, opens):
        assert md.gradcheck(function, [md.Tensor(phi, requires_grad=True)])


@pytest.mark.parametrize("make", [hard_concrete, gaussian])
def test_gradients_in_training_are_those_of_finite_differences_and_0_where_clipped(make):
    phi = np.repeat([-6.0, 0.2, 0.5, 9.0], 6)
    weights = np.random.default_rng(1).standard_normal(len(phi))

    def values(leaf: md.Tensor) -> md.Tensor:
        gate = make(phi, 7)  # the same noise at each call
        gate.phi = leaf
        return gate() * weights

    leaf = md.Tensor(phi, requires_grad=True)
    assert md.gradcheck(values, [leaf])
    leaf.grad = None
    values(leaf).sum().backward()
    z = make(phi, 7)().data
    clipped = (z == 0) | (z == 1)
    assert 0 < clipped.sum() < len(z)
    assert (leaf.grad[clipped] == 0).all()
    assert (leaf.grad[~clipped] != 0).all()


@pytest.mark.parametrize("make", [hard_concrete, gaussian])
def test_their_noise_may_be_drawn_for_each_sample(make):
    gate = make(np.full(3, 0.4), 0, per_sample=True)
    values = gate(np.ones((3, 2, 50))).data
    assert (values == values[:, :1]).all()
    assert all(len(np.unique(row[0])) > 5 for row in values)
    alike = gate.eval()(np.ones((3, 2, 50))).data
    assert (alike == alike[:, :1, :1]).all()


@pytest.mark.parametrize("make", [hard_concrete, gaussian])
def test_a_layer_gated_by_them_is_that_of_gating_by_hand_and_skips_what_is_closed(make):
    rng = np.random.default_rng(0)
    layer = nn.Linear(4, 6, rng=rng, **DOUBLE)
    phi = np.array([-9.0, 9.0, 0.3, -9.0, 0.6, 9.0])
    gated = md.Gated(layer, outputs=make(phi, 3))
    x = rng.standard_normal((4, 5))
    out = gated(md.Tensor(x))
    z = make(phi, 3)().data
    np.testing.assert_allclose(out.data, z[:, None] * (layer.weight.data @ x), atol=1e-12)
    assert out.active.tolist() == np.flatnonzero(z).tolist()
    assert {0, 3}.isdisjoint(out.active)
    out.sum().backward()
    assert not layer.weight.grad[[0, 3]].any()


@pytest.mark.parametrize(
    ("options", "message"),
    [({"beta": 0.0}, "beta is 0"), ({"gamma": 0.1}, "gamma is 0.1"), ({"zeta": 1.0}, "zeta 1.0")],
)
def test_settings_of_hard_concrete_gates_out_of_range_are_errors(options, message):
    with pytest.raises(ValueError, match=message):
        md.HardConcrete(2, rng=np.random.default_rng(0), **options)


# -- group lasso


def units(seed: int) -> tuple[nn.Sequential, nn.Linear, nn.Linear]:
    rng = np.random.default_rng(seed)
    first, second = nn.Linear(3, 5, rng=rng, **DOUBLE), nn.Linear(5, 2, rng=rng, **DOUBLE)
    model = nn.Sequential(md.gate_units(first, **DOUBLE), nn.ReLU(), md.gate_weights(second))
    return model, first, second


@some
@given(seeds, st.floats(0.0, 1.0))
def test_a_step_of_group_lasso_is_the_proximal_step_of_every_group(seed, amount):
    model, first, second = units(seed)
    before, singles = first.weight.data.copy(), second.weight.data.copy()
    rule = md.GroupLasso(model)
    rule.step(0.5, 2 * amount)
    for row, old in zip(first.weight.data, before, strict=True):
        norm = math.sqrt(sum(w * w for w in old))
        np.testing.assert_allclose(row, old * max(0, 1 - amount * math.sqrt(3) / norm), atol=1e-12)
    shrunk = np.sign(singles) * np.maximum(0, abs(singles) - amount)  # soft thresholding
    np.testing.assert_allclose(second.weight.data, shrunk, atol=1e-12)
    opened = model.layers[0].outputs.is_open()
    np.testing.assert_array_equal(opened, first.weight.data.any(axis=1))


def proximal(group: np.ndarray, amount: float) -> np.ndarray:
    norm = math.sqrt(sum(w * w for w in group.ravel()))
    return group * max(0.0, 1 - amount * math.sqrt(group.size) / norm)


@some
@given(seeds, st.floats(0.0, 0.6))
def test_the_lasso_shrinks_filters_inputs_and_groups_of_two_layers(seed, amount):
    rng = np.random.default_rng(seed)
    conv, dense = nn.Conv2d(2, 3, 2, rng=rng), nn.Linear(3, 4, rng=rng)
    last, both = nn.Linear(5, 4, rng=rng), md.Gate(4)
    model = nn.Sequential(
        md.gate_filters(conv),
        md.gate_inputs(dense),
        md.Gated(last, outputs=both),
        md.Gated(nn.Linear(4, 6, rng=rng), inputs=both),
    )
    following = model.layers[3].layer
    before = [layer.weight.data.copy() for layer in (conv, dense, last, following)]
    md.GroupLasso(model).step(0.5, 2 * amount)
    for i, filters in enumerate(before[0]):
        np.testing.assert_allclose(conv.weight.data[i], proximal(filters, amount), atol=1e-6)
    for i, column in enumerate(before[1].T):
        np.testing.assert_allclose(dense.weight.data[:, i], proximal(column, amount), atol=1e-6)
    for i in range(4):  # a unit's row and the next layer's column are one group
        group = np.concatenate([before[2][i], before[3][:, i]])
        found = np.concatenate([last.weight.data[i], following.weight.data[:, i]])
        np.testing.assert_allclose(found, proximal(group, amount), atol=1e-6)
        assert both.is_open()[i] == found.any()


def test_a_layer_that_is_used_twice_shrinks_once():
    square, gate = nn.Linear(4, 4, rng=np.random.default_rng(0)), md.Gate(4)
    before = square.weight.data.copy()
    twice = nn.Sequential(md.Gated(square, outputs=gate), md.Gated(square, outputs=gate))
    md.GroupLasso(twice).step(0.5, 0.2)
    expected = [proximal(row, 0.1) for row in before]
    np.testing.assert_allclose(square.weight.data, expected, atol=1e-6)


def test_group_lasso_minimises_its_penalty():
    """A step on 0.5 (w - v)^2 from anywhere is where loss and penalty together are least."""
    model, first, _ = units(0)
    rng = np.random.default_rng(1)
    v = 0.7 * rng.standard_normal((5, 3))
    first.weight.data = v.copy()  # a gradient step with lr 1 has led here
    md.GroupLasso(model).step(1.0, 0.4)

    def total(w: np.ndarray) -> float:
        return float(
            0.5 * ((w - v) ** 2).sum() + 0.4 * math.sqrt(3) * np.linalg.norm(w, axis=1).sum()
        )

    least = total(first.weight.data)
    for _ in range(200):
        step = 10 ** rng.uniform(-4, 0) * rng.standard_normal(v.shape)
        assert total(first.weight.data + step) >= least - 1e-9


# -- magnitude


@some
@given(seeds, st.floats(0.05, 1.0))
def test_magnitude_pruning_leaves_the_largest_weights(seed, keep):
    rng = np.random.default_rng(seed)
    layers = [nn.Linear(4, 5, rng=rng, **DOUBLE), nn.Linear(5, 3, rng=rng, **DOUBLE)]
    model = nn.Sequential(*[md.gate_weights(layer) for layer in layers])
    md.MagnitudePruning(model, keep).step(1.0)
    gates = [m for m in model.modules() if isinstance(m, md.Gate)]
    opened = np.concatenate([gate.is_open() for gate in gates])
    sizes = np.concatenate([abs(layer.weight.data).ravel() for layer in layers])
    assert opened.sum() == max(1, round(keep * 35))
    assert sizes[opened].min() >= sizes[~opened].max(initial=0)


def test_magnitude_pruning_goes_along_its_cubic_schedule_and_opens_nothing_again():
    rng = np.random.default_rng(0)
    layer = nn.Linear(20, 50, rng=rng)
    model = nn.Sequential(md.gate_weights(layer))
    (mask,) = model.layers[0].weights
    rule, closed = md.MagnitudePruning(model, 0.1), np.zeros(1000, bool)
    for t in np.linspace(0, 1, 11):
        rule.step(t)
        opened = mask.gate.is_open()
        assert opened.sum() == round(1000 * (0.1 + 0.9 * (1 - t) ** 3))
        assert not opened[closed].any()
        closed = ~opened
        layer.weight.data += 0.1 * rng.standard_normal((50, 20)).astype(np.float32)


def test_groups_of_magnitude_pruning_are_compared_within_their_layer():
    rng = np.random.default_rng(0)
    small, large = nn.Linear(4, 10, rng=rng), nn.Linear(10, 10, rng=rng)
    small.weight.data *= 0.01
    model = nn.Sequential(md.gate_units(small), nn.ReLU(), md.gate_units(large))
    md.MagnitudePruning(model, 0.5).step(1.0)
    left = [model.layers[i].outputs.is_open().sum() for i in (0, 2)]
    assert sum(left) == 10
    assert min(left) >= 2


@pytest.mark.parametrize("keep", [0.0, -0.1, 1.1, math.nan])
def test_a_share_to_keep_out_of_range_is_an_error(keep):
    model, *_ = units(0)
    with pytest.raises(ValueError, match="keep is"):
        md.MagnitudePruning(model, keep)


@pytest.mark.parametrize("rule", [md.GroupLasso, lambda model: md.MagnitudePruning(model, 0.5)])
def test_a_model_without_gated_layers_is_an_error(rule):
    with pytest.raises(ValueError, match="no Gated layer"):
        rule(nn.Sequential(nn.ReLU()))


def test_a_group_that_the_lasso_has_closed_stays_closed_though_momentum_moves_it() -> None:
    rng = np.random.default_rng(0)
    model = md.gate_weights(nn.Linear(20, 10, rng=rng))
    model.weights[0].gate.phi.requires_grad = False
    weight = model.layer.weight
    rule = md.GroupLasso(model)
    sgd = md.optim.SGD([weight, model.layer.bias], lr=0.1, momentum=0.9, nesterov=True)
    closed = np.zeros(200, np.bool_)
    for _ in range(60):
        x = rng.standard_normal((20, 16)).astype(np.float32)
        loss = md.ops.cross_entropy(model(x), rng.integers(0, 10, 16))
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        rule.step(0.1, 0.1)
        is_open = model.weights[0].gate.is_open()
        assert not (closed & is_open).any()
        closed |= ~is_open
    assert 0 < closed.sum() < 200


RULES = [md.GroupLasso, lambda model: md.MagnitudePruning(model, 0.5)]


@pytest.mark.parametrize("rule", RULES)
def test_rules_refuse_gates_whose_noise_would_open_them_again(rule: Any) -> None:
    rng = np.random.default_rng(0)
    layer = md.gate_units(nn.Linear(4, 3, rng=rng), gate=md.HardConcrete, rng=rng)
    with pytest.raises(ValueError, match="stochastic HardConcrete"):
        rule(nn.Sequential(layer))


@pytest.mark.parametrize("rule", RULES)
def test_rules_keep_what_partly_open_gates_compute(rule: Any) -> None:
    layer = md.gate_units(nn.Linear(4, 3, rng=np.random.default_rng(0)), initial=0.0)
    before = layer(np.ones((4, 2), np.float32)).data.copy()
    started = rule(layer)
    if isinstance(started, md.GroupLasso):
        started.step(lr=0.0, strength=1.0)
    else:
        started.step(progress=0.0)
    np.testing.assert_allclose(layer(np.ones((4, 2), np.float32)).data, before, rtol=1e-6)


@pytest.mark.parametrize(
    ("lr", "strength"), [(0.1, math.nan), (0.1, -5.0), (-0.1, 1.0), (math.inf, 1.0)]
)
def test_a_step_of_group_lasso_that_is_no_number_changes_nothing(
    lr: float, strength: float
) -> None:
    layer = md.gate_units(nn.Linear(4, 3, rng=np.random.default_rng(0)))
    before = layer.layer.weight.data.copy()
    with pytest.raises(ValueError, match="finite numbers, 0 or more"):
        md.GroupLasso(layer).step(lr, strength)
    np.testing.assert_array_equal(layer.layer.weight.data, before)
    assert layer.outputs.is_open().all()


@pytest.mark.parametrize("rule", RULES)
def test_weights_that_are_not_finite_are_an_error_and_close_nothing(rule: Any) -> None:
    layer = md.gate_units(nn.Linear(4, 3, rng=np.random.default_rng(0)))
    started = rule(layer)
    layer.layer.weight.data[1, 2] = math.nan
    with pytest.raises(ArithmeticError, match="weights are not finite"):
        started.step(0.1, 1.0) if isinstance(started, md.GroupLasso) else started.step(1.0)
    assert layer.outputs.is_open().all()
