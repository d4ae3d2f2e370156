"""Optimisers against their formulas in plain NumPy, over drawn sequences of gradients."""

import math
from decimal import Decimal, localcontext

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minidiff as md
from minidiff import Tensor, nn
from minidiff.engine.optim import SGD, Adam, Average, ParameterGroup, cosine
from tests.checks import close, equal, leaf
from tests.strategies import arrays, dtypes, shapes

rates = st.floats(1e-4, 0.5)
decays = st.sampled_from([0.0, 1e-4, 0.1])


def momentum(weights, lr=0.1):
    return SGD(weights, lr, momentum=0.9, weight_decay=0.01)


both = pytest.mark.parametrize("kind", [momentum, Adam])


def sgd(w, grads, lr, decay=0.0, momentum=0.0, nesterov=False):
    w, velocity = w.astype(np.float64), np.zeros(w.shape)
    for grad in grads:
        g = grad + decay * w
        velocity = momentum * velocity + g
        w = w - lr * (g + momentum * velocity if nesterov else velocity)
    return w


def adam(w, grads, lr, decay=0.0, betas=(0.9, 0.999), eps=1e-8):
    w, mean, square = w.astype(np.float64), np.zeros(w.shape), np.zeros(w.shape)
    for t, grad in enumerate(grads, start=1):
        g = grad + decay * w
        mean = betas[0] * mean + (1 - betas[0]) * g
        square = betas[1] * square + (1 - betas[1]) * g**2
        w = w - lr * (mean / (1 - betas[0] ** t)) / (np.sqrt(square / (1 - betas[1] ** t)) + eps)
    return w


def run(optimiser, tensor, grads):
    for grad in grads:
        tensor.grad = grad.copy()
        optimiser.step()


SETTINGS = {
    SGD: [{}, {"momentum": 0.5}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}],
    Adam: [{"betas": b, "eps": e} for b in ((0.9, 0.999), (0.0, 0.5), (0.5, 0)) for e in (1e-8, 1)],
}


@pytest.mark.parametrize(("kind", "formula"), [(SGD, sgd), (Adam, adam)])
@given(
    st.data(),
    shapes | st.sampled_from([(0,), (3, 0), (0, 3)]),
    dtypes,
    st.lists(st.tuples(rates, decays), min_size=1, max_size=2),
    st.tuples(*[st.sampled_from("CF")] * 3),
)
def test_steps_follow_the_formula(kind, formula, data, shape, dtype, groups, orders):
    """In groups, in any memory order, and across a state that is saved and loaded."""
    options = data.draw(st.sampled_from(SETTINGS[kind]))
    start, *grads = data.draw(st.lists(arrays(shape, dtype=dtype), min_size=2, max_size=7))
    tensors = [Tensor(np.array(start, order=orders[0]), True) for _ in groups]

    pairs = list(zip(tensors, groups, strict=True))

    def optimiser():
        return kind([ParameterGroup([tensor], *group) for tensor, group in pairs], **options)

    old = optimiser()
    for step, grad in enumerate(grads):
        if step == len(grads) // 2:
            state, old = old.state_dict(), optimiser()
            old.load_state_dict({k: np.array(v, order=orders[1]) for k, v in state.items()})
        for tensor in tensors:
            tensor.grad = np.array(grad, order=orders[2])
        old.step()
    tolerance = 1e-3 if dtype == np.float32 else 1e-9
    for tensor, group in pairs:
        expected = formula(start, grads, *group, **options)
        np.testing.assert_allclose(tensor.data, expected, rtol=tolerance, atol=tolerance)
        assert tensor.dtype == dtype


@both
def test_a_step_moves_in_place_what_has_a_gradient(kind):
    moved, resting, late = leaf([1.0]), leaf([1.0]), leaf([1.0])
    array, optimiser = moved.data, kind([moved, resting])
    run(optimiser, moved, [np.ones(1)])
    assert moved.data is array
    assert array < 1
    assert (moved.grad, resting.data) == (1, 1)
    # A first step is the first, although others have taken theirs.
    run(optimiser, resting, [np.full(1, 2.0)])
    run(kind([late]), late, [np.full(1, 2.0)])
    equal(resting.data, late.data)
    before = moved.data.copy()
    optimiser.groups[0].lr = np.float64(0)  # as a schedule may set it between steps
    run(optimiser, moved, [np.ones(1)])
    equal(moved.data, before)
    optimiser.zero_grad()
    assert moved.grad is resting.grad is None


@both
def test_rows_that_can_get_no_gradient_do_not_move(kind):
    start, ones = np.arange(1.0, 7.0).reshape(3, 2), np.ones((3, 2))
    tensor, other = leaf(start), leaf(start)
    optimiser, free = kind([tensor]), kind([other])
    run(optimiser, tensor, [ones] * 2)
    run(free, other, [ones] * 2)
    before = {"weight": other.data.copy(), **free.state_dict()}
    tensor.grad, tensor.grad_live = ones.copy(), np.array([0, 2])
    tensor.raw_grad[1] = np.nan  # uninitialised
    optimiser.step()
    run(free, other, [ones])
    after = {"weight": other.data, **free.state_dict()}
    for name, array in {"weight": tensor.data, **optimiser.state_dict()}.items():
        if len(array) == 3:  # neither decay nor momentum reaches row 1
            equal(array, np.where([[True], [False], [True]], after[name], before[name]))


@both
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_state_decays_to_zero_not_to_subnormal_numbers(kind, dtype):
    w = leaf(np.ones(3, dtype))
    optimiser = kind([w])
    run(optimiser, w, [np.ones(3, dtype)])
    (group,) = optimiser.groups
    moments = [array for name, array in group.state[0].items() if name != "steps"]
    for moment in moments:
        moment[:] = [0.5 * np.finfo(dtype).tiny, 1, np.nan]
    group.weight_decay = 0.0
    run(optimiser, w, [np.zeros(3, dtype)])
    for moment in moments:
        assert moment[0] == 0
        assert 0 < moment[1] < 1
        assert np.isnan(moment[2])


def exact_adam(grads, lr, betas, eps):
    """The weight of 1 after some steps, in decimal numbers of any size."""
    with localcontext(prec=40, Emin=-(10**6), Emax=10**6):
        mean = square = Decimal(0)
        w, (first, second) = Decimal(1), map(Decimal, betas)
        for t, g in enumerate(map(Decimal, grads), start=1):
            mean = first * mean + (1 - first) * g
            square = second * square + (1 - second) * g * g
            root = (square / (1 - second**t)).sqrt() + Decimal(eps)
            w -= Decimal(lr) * (mean / (1 - first**t)) / root
        return float(w)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("grads", "betas", "eps"),
    [
        ([10, 1e-3], (0.9, 0.0), 1e-8),  # the new square is nothing beside the old
        ([1e20, 1, 1], (0.9, 0.999), 1e-8),  # float32 cannot hold the squares,
        ([1e38, -1e38, 1], (0.9, 0.999), 1e-8),
        ([1e-30] * 5, (0.9, 0.999), 1e-37),  # whether large or small
        ([1e-36] * 3, (0.9, 0.999), 2e-38),
        ([0, 0, 1], (0.9, 0.999), 1e-8),
        ([1, 2, 3], (0.999999, 0.9999999), 1e-8),
    ],
)
def test_adam_is_exact_for_gradients_of_any_size(grads, betas, eps, dtype):
    w = leaf(np.ones(1, dtype))
    run(Adam([w], 0.01, betas=betas, eps=eps), w, [np.array([g], dtype) for g in grads])
    np.testing.assert_allclose(w.data, exact_adam(grads, 0.01, betas, eps), rtol=1e-6)


def test_an_optimiser_of_a_network_that_is_no_more_says_so():
    model = nn.Sequential(md.gate(nn.Linear(3, 2, rng=np.random.default_rng(0))))
    optimiser = SGD(model.parameters(), lr=0.1)
    small = md.compact(model, (3,))
    small(np.ones((3, 1), np.float32)).sum().backward()
    with pytest.warns(UserWarning, match=r"after compact\(\), make an optimiser of the new"):
        optimiser.step()


def test_a_state_that_does_not_fit_changes_nothing():
    weights = [leaf(np.ones(2)), leaf(np.ones(3))]
    optimiser = Adam(weights)
    run(optimiser, weights[0], [np.ones(2)])
    before = optimiser.state_dict()
    wrong = {"0.0.mean": np.zeros(2), "0.0.root": np.zeros(5), "0.7.mean": np.zeros(1)}
    words = r"0.0.steps is missing; 0.7.mean is unknown; 0.0.root has shape \(5,\), not \(2,\)"
    with pytest.raises(ValueError, match=f"the state does not fit this Adam: {words}"):
        optimiser.load_state_dict(wrong)
    for name, array in optimiser.state_dict().items():
        equal(array, before[name])


def test_an_optimiser_starts_a_used_group_afresh():
    weight = leaf(np.ones(2))
    group = ParameterGroup((w for w in [weight]), 0.1)
    run(SGD([group], momentum=0.9), weight, [np.ones(2)])
    assert not Adam([group]).state_dict()


W, NOT_A_RATE = leaf([1.0, 2.0]), [-0.1, math.nan, math.inf, -math.inf]


@pytest.mark.parametrize(
    ("kind", "parameters", "settings", "words"),
    [
        *((SGD, [W], {"lr": v}, f"lr is {v}; .* finite number, 0 or more") for v in NOT_A_RATE),
        *((Adam, [W], {"weight_decay": v}, f"weight_decay is {v}") for v in NOT_A_RATE),
        *((ParameterGroup, [W], {"lr": 0, "weight_decay": v}, "decay is") for v in NOT_A_RATE),
        *((SGD, [W], {"momentum": v}, f"momentum is {v}; .* below 1") for v in (*NOT_A_RATE, 1.0)),
        *((Adam, [W], {"betas": (v, 0.9)}, f"beta is {v}; .* below 1") for v in (*NOT_A_RATE, 1.0)),
        (Adam, [W], {"betas": (0.9, 1.0)}, r"beta is 1\.0"),
        *((Adam, [W], {"eps": v}, rf"eps is {v}; .* at least 1\.2e-38") for v in (*NOT_A_RATE, 0)),
        (SGD, [W], {"nesterov": True}, "nesterov needs momentum above 0"),
        (SGD, [], {}, "no parameters"),
        (SGD, [W, W], {}, "given twice"),
        (Adam, [W * 2], {}, r"of shape \(2,\) is the result of an op"),
        (Adam, W, {}, "one tensor; expected a list"),
        *((SGD, some, {}, "expected tensors only, or") for some in ([np.ones(1)], ["weight"])),
        (SGD, [W, ParameterGroup([leaf(1.0)], 0.1)], {}, "tensors only, or ParameterGroups only"),
        (ParameterGroup, [("w", W)], {"lr": 0.1}, "one is a tuple; expected tensors"),
    ],
)
def test_what_is_wrong_is_refused_by_name(kind, parameters, settings, words):
    with pytest.raises((TypeError, ValueError), match=words):
        kind(parameters, **settings)


@both
def test_a_step_that_is_refused_moves_nothing(kind):
    first, second = leaf([1.0]), leaf(np.ones((4, 3)))
    optimiser = kind([first, second])
    with pytest.warns(UserWarning, match="has a gradient, so the step changes nothing"):
        optimiser.step()
    first.grad, second.grad = np.ones(1), np.ones((4, 3))
    second.data.flags.writeable = False
    with pytest.raises(ValueError, match=r"shape \(4, 3\) is read-only.*copy"):
        optimiser.step()
    assert first.data == 1


@given(st.integers(1, 1000), st.data())
def test_cosine_rises_in_a_line_then_falls(steps, data):
    warmup = data.draw(st.integers(0, steps - 1))
    factors = [cosine(step, steps, warmup=warmup) for step in range(steps + 1)]
    np.testing.assert_allclose(factors[:warmup], (np.arange(warmup) + 1) / max(1, warmup))
    phase = (np.arange(warmup, steps + 1) - warmup) / (steps - warmup)
    np.testing.assert_allclose(factors[warmup:], (1 + np.cos(np.pi * phase)) / 2, atol=1e-12)
    assert cosine(steps + 7, steps, warmup=warmup) == factors[steps]
    with pytest.raises(ValueError, match=rf"warmup is {steps + 1}; expected 0\.\.{steps}"):
        cosine(0, steps, warmup=steps + 1)


@given(st.data(), dtypes, shapes, st.integers(1, 5))
def test_an_average_is_the_mean_over_the_updates(data, dtype, shape, updates):
    steps = [[data.draw(arrays(shape, dtype=dtype)) for _ in range(2)] for _ in range(updates)]
    parameters = [leaf(np.zeros(shape, dtype)) for _ in range(2)]
    average = Average(parameters)
    with pytest.raises(ValueError, match=r"of no steps; call update\(\)"):
        average.apply()
    with pytest.raises(ValueError, match="does not fit"):
        average.load_state_dict(Average(parameters[:1]).state_dict())
    for step, values in enumerate(steps):
        if step == updates // 2:  # goes on in another process
            state, average = average.state_dict(), Average(parameters)
            average.load_state_dict(state)
        for parameter, value in zip(parameters, values, strict=True):
            parameter.data = value
        average.update()
    average.apply()
    for parameter, mean in zip(parameters, np.mean(steps, axis=0, dtype=np.float64), strict=True):
        assert parameter.dtype == dtype
        close(parameter.data, mean)


@pytest.mark.parametrize("name", ["lr", "weight_decay"])
def test_a_setting_of_groups_cannot_be_set_on_the_optimiser(name: str) -> None:
    optimizer = Adam([Tensor([1.0], requires_grad=True)])
    with pytest.raises(AttributeError, match=f"for group in optimizer.groups: group.{name} = "):
        setattr(optimizer, name, 0.5)
    for group in optimizer.groups:
        setattr(group, name, 0.5)
    assert [getattr(group, name) for group in optimizer.groups] == [0.5]
