"""Optimisers against their formulas in plain NumPy, over drawn sequences of gradients."""

import math

import numba
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minidiff import Tensor
from minidiff.engine.optim import SGD, Adam, Average, ParameterGroup, cosine
from tests.checks import close, leaf
from tests.strategies import arrays, dtypes, shapes

rates = st.floats(1e-4, 0.5)
decays = st.sampled_from([0.0, 1e-4, 0.1])
both = pytest.mark.parametrize("kind", [SGD, Adam])


def with_momentum(weights, lr=0.1):
    return SGD(weights, lr, momentum=0.9, weight_decay=0.01)


stateful = pytest.mark.parametrize("kind", [with_momentum, Adam])


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


# -- steps -----------------------------------------------------------------------------------


@given(st.data(), shapes, dtypes, rates, decays, st.sampled_from([0.0, 0.5, 0.9]), st.booleans())
def test_sgd_follows_its_formula(data, shape, dtype, lr, decay, momentum, nesterov):
    start, *grads = data.draw(st.lists(arrays(shape, dtype=dtype), min_size=2, max_size=7))
    options = {"momentum": momentum, "nesterov": nesterov and momentum > 0}
    tensor = leaf(start)
    run(SGD([tensor], lr, weight_decay=decay, **options), tensor, grads)
    assert tensor.dtype == dtype
    close(tensor.data, sgd(start, grads, lr, decay, **options))


@given(
    st.data(),
    shapes,
    dtypes,
    rates,
    decays,
    st.sampled_from([(0.9, 0.999), (0.0, 0.5), (0.5, 0.0)]),
    st.sampled_from([1e-8, 1e-2]),
)
def test_adam_follows_its_formula(data, shape, dtype, lr, decay, betas, eps):
    start, *grads = data.draw(st.lists(arrays(shape, dtype=dtype), min_size=2, max_size=7))
    tensor = leaf(start)
    run(Adam([tensor], lr, betas=betas, eps=eps, weight_decay=decay), tensor, grads)
    assert tensor.dtype == dtype
    tolerance = 1e-3 if dtype == np.float32 else 1e-9
    expected = adam(start, grads, lr, decay, betas, eps)
    np.testing.assert_allclose(tensor.data, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("kind", "formula"), [(SGD, sgd), (Adam, adam)])
@given(arrays((3, 3)), arrays((3, 3)), rates, rates, decays, decays)
def test_groups_have_a_rate_and_a_decay_of_their_own(
    kind, formula, starts, grads, lr1, lr2, decay1, decay2
):
    tensors = [leaf(start) for start in starts]
    optimiser = kind(
        [
            ParameterGroup(tensors[:2], lr1, decay1),
            ParameterGroup(tensors[2:], lr2, weight_decay=decay2),
        ]
    )
    for tensor, grad in zip(tensors, grads, strict=True):
        tensor.grad = grad
    optimiser.step()
    settings = [(lr1, decay1), (lr1, decay1), (lr2, decay2)]
    for tensor, start, grad, setting in zip(tensors, starts, grads, settings, strict=True):
        close(tensor.data, formula(start, [grad], *setting))


@both
def test_a_schedule_may_change_the_rate_between_steps(kind):
    tensor = leaf(np.zeros(2))
    optimiser = kind([tensor], lr=0.5)
    optimiser.groups[0].lr = 0.0
    run(optimiser, tensor, [np.ones(2)])
    np.testing.assert_array_equal(tensor.data, [0, 0])
    optimiser.groups[0].lr = np.float64(0.25)
    run(optimiser, tensor, [np.ones(2)])
    np.testing.assert_allclose(tensor.data, [-0.25, -0.25], rtol=1e-6)


@both
def test_a_parameter_without_gradient_rests(kind):
    moved, resting, late = leaf([1.0]), leaf([1.0]), leaf([1.0])
    optimiser = kind([moved, resting], lr=0.1)
    run(optimiser, moved, [np.ones(1)])
    assert resting.data == 1
    assert moved.data < 1
    # Its first step is its first, although others have taken theirs.
    run(optimiser, resting, [np.full(1, 2.0)])
    run(kind([late], lr=0.1), late, [np.full(1, 2.0)])
    np.testing.assert_array_equal(resting.data, late.data)


@stateful
def test_rows_that_can_get_no_gradient_do_not_move(kind):
    start = np.arange(1.0, 7.0).reshape(3, 2)
    tensor, other = leaf(start), leaf(start)
    optimiser = kind([tensor])
    run(optimiser, tensor, [np.ones((3, 2))] * 2)
    before = tensor.data.copy(), {k: s.copy() for k, s in optimiser.groups[0].state[0].items()}
    tensor.grad, tensor.grad_rows = np.ones((3, 2)), np.array([0, 2])
    tensor.raw_grad[1] = np.nan  # uninitialised
    optimiser.step()
    np.testing.assert_array_equal(tensor.data[1], before[0][1])  # neither decay nor momentum
    for name in optimiser.groups[0].state[0].keys() - {"steps"}:
        np.testing.assert_array_equal(optimiser.groups[0].state[0][name][1], before[1][name][1])
    run(kind([other]), other, [np.ones((3, 2))] * 3)
    np.testing.assert_array_equal(tensor.data[[0, 2]], other.data[[0, 2]])


@both
def test_a_step_is_in_place_and_changes_no_gradient(kind):
    tensors = leaf([1.0]), leaf([2.0])
    optimiser = kind([ParameterGroup([tensors[0]], 0.1, 0.5), ParameterGroup([tensors[1]], 0.1)])
    before = [tensor.data for tensor in tensors]
    for tensor in tensors:
        tensor.grad = np.ones(1)
    optimiser.step()
    for tensor, array, start in zip(tensors, before, (1, 2), strict=True):
        assert tensor.data is array
        assert array < start
        assert tensor.grad == 1
    optimiser.zero_grad()
    assert tensors[0].grad is tensors[1].grad is None


@both
@given(arrays((3, 4)), arrays((3, 4)))
def test_any_memory_order_takes_the_same_step(kind, start, grad):
    results = []
    for order, grad_order in (("C", "C"), ("F", "C"), ("C", "F"), ("F", "F")):
        tensor = Tensor(np.array(start, order=order), requires_grad=True)
        optimiser = kind([tensor], lr=0.1)
        for _ in range(2):
            tensor.grad = np.array(grad, order=grad_order)
            optimiser.step()
        results.append(tensor.data)
    for result in results:
        np.testing.assert_array_equal(result, results[0])


@both
def test_parameters_without_elements_take_steps(kind):
    for shape in ((0,), (3, 0), (0, 3)):
        x = leaf(np.ones(shape))
        run(kind([x], lr=0.25), x, [np.ones(shape)])
        assert x.shape == shape


@stateful
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_state_decays_to_zero_not_to_subnormal_numbers(kind, dtype):
    w = leaf(np.ones(3, dtype))
    optimiser = kind([w])
    run(optimiser, w, [np.ones(3, dtype)])
    (state,) = optimiser.groups[0].state
    moments = state.keys() - {"steps"}
    for name in moments:
        state[name][:] = [0.5 * np.finfo(dtype).tiny, 1, np.nan]
    optimiser.groups[0].weight_decay = 0.0
    run(optimiser, w, [np.zeros(3, dtype)])
    for name in moments:
        assert state[name][0] == 0
        assert 0 < state[name][1] < 1
        assert np.isnan(state[name][2])


@pytest.mark.skipif(
    numba.config.DISABLE_JIT or numba.config.NUMBA_NUM_THREADS < 2, reason="needs two threads"
)
@stateful
def test_one_and_two_threads_take_the_same_step(kind):
    values, results = np.random.default_rng(0).standard_normal((7, 301)).astype(np.float32), []
    for threads in (1, 2):
        numba.set_num_threads(threads)
        tensor = leaf(values)
        run(kind([tensor]), tensor, [values, values[::-1]])
        results.append(tensor.data.tobytes())
    assert results[0] == results[1]


# -- state -----------------------------------------------------------------------------------


@stateful
@pytest.mark.parametrize("order", ["C", "F"])
def test_a_loaded_state_goes_on_alike(kind, order):
    grads = [np.arange(24.0).reshape(2, 3, 2, 2) + i for i in range(4)]
    weights = leaf(np.ones((2, 3, 2, 2))), leaf([1.0])
    optimiser = kind(weights)
    run(optimiser, weights[0], grads[:2])
    copies = [leaf(weight.data) for weight in weights]
    again = kind(copies)
    again.load_state_dict({k: np.array(v, order=order) for k, v in optimiser.state_dict().items()})
    assert again.groups[0].state[1] == {}  # took no step
    run(optimiser, weights[0], grads[2:])
    run(again, copies[0], grads[2:])
    np.testing.assert_array_equal(copies[0].data, weights[0].data)
    for one, other in zip(
        optimiser.state_dict().values(), again.state_dict().values(), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def test_a_state_that_does_not_fit_changes_nothing():
    weights = [leaf(np.ones(2)), leaf(np.ones(3))]
    optimiser = Adam(weights)
    run(optimiser, weights[0], [np.ones(2)])
    before = optimiser.state_dict()
    wrong = {"0.0.mean": np.zeros(2), "0.0.square": np.zeros(5), "0.7.mean": np.zeros(1)}
    with pytest.raises(ValueError, match="the state does not fit this Adam") as error:
        optimiser.load_state_dict(wrong)
    for words in (
        "0.0.square has shape (5,), not (2,)",
        "0.0.steps is missing",
        "0.7.mean is unknown",
    ):
        assert words in str(error.value)
    for name, array in optimiser.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


def test_an_optimiser_starts_a_used_group_afresh():
    weight = leaf(np.ones(2))
    group = ParameterGroup([weight], 0.1)
    run(SGD([group], momentum=0.9), weight, [np.ones(2)])
    assert not SGD([group], momentum=0.9).state_dict()
    run(Adam([group]), weight, [np.ones(2)])


# -- errors ----------------------------------------------------------------------------------

NOT_A_RATE = [-0.1, math.nan, math.inf, -math.inf]


@both
@pytest.mark.parametrize("name", ["lr", "weight_decay"])
@pytest.mark.parametrize("value", NOT_A_RATE)
def test_rates_and_decays_are_refused_by_name(kind, name, value):
    with pytest.raises(ValueError, match=f"{name} is {value}; expected a finite number, 0 or more"):
        kind([leaf([1.0])], **{name: value})
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        ParameterGroup([leaf([1.0])], **{"lr": 0.1, name: value})


@pytest.mark.parametrize("value", [*NOT_A_RATE, 1.0, 2.0])
def test_momenta_and_betas_are_below_1(value):
    with pytest.raises(ValueError, match=f"momentum is {value}; .*and below 1"):
        SGD([leaf([1.0])], momentum=value)
    for betas in ((value, 0.9), (0.9, value)):
        with pytest.raises(ValueError, match=f"beta is {value}; .*and below 1"):
            Adam([leaf([1.0])], betas=betas)


def test_eps_is_above_0_and_nesterov_needs_momentum():
    for value in (0.0, *NOT_A_RATE):
        with pytest.raises(ValueError, match=rf"eps is {value}; .* at least 1.2e-38"):
            Adam([leaf([1.0])], eps=value)
    with pytest.raises(ValueError, match="nesterov needs momentum above 0"):
        SGD([leaf([1.0])], nesterov=True)


W = leaf([1.0, 2.0])


@both
@pytest.mark.parametrize(
    ("parameters", "error", "words"),
    [
        ([], ValueError, "no parameters"),
        ([W, W], ValueError, "given twice"),
        ([W * 2], ValueError, r"of shape \(2,\) is the result of an op"),
        (W, TypeError, "one tensor; expected a list"),
        ([W, ParameterGroup([leaf([1.0])], 0.1)], TypeError, "only, or ParameterGroups only"),
        ([np.ones(1)], TypeError, "tensors only, or"),
        (["weight"], TypeError, "tensors only, or"),
    ],
)
def test_parameters_are_tensors_that_a_step_can_move(kind, parameters, error, words):
    with pytest.raises(error, match=words):
        kind(parameters)
    assert list(kind(t for t in [W]).groups[0].parameters) == [W]
    with pytest.raises(TypeError, match="one is a tuple; expected tensors"):
        ParameterGroup([("w", W)], lr=0.1)  # as named_parameters gives


@both
def test_a_step_that_is_refused_moves_nothing(kind):
    first, second = leaf([1.0]), leaf(np.ones((4, 3)))
    optimiser = kind([first, second], lr=0.1)
    first.grad, second.grad = np.ones(1), np.ones((1, 3))
    with pytest.raises(ValueError, match=r"shape \(4, 3\) has a gradient of shape \(1, 3\)"):
        optimiser.step()
    second.data.flags.writeable = False
    with pytest.raises(ValueError, match=r"shape \(4, 3\) is read-only.*copy"):
        optimiser.step()
    assert first.data == 1


# -- schedule and average --------------------------------------------------------------------


@given(st.integers(1, 1000), st.data())
def test_cosine_rises_in_a_line_then_falls(steps, data):
    warmup = data.draw(st.integers(0, steps - 1))
    factors = [cosine(step, steps, warmup=warmup) for step in range(steps + 1)]
    np.testing.assert_allclose(factors[:warmup], (np.arange(warmup) + 1) / max(1, warmup))
    phase = (np.arange(warmup, steps + 1) - warmup) / (steps - warmup)
    np.testing.assert_allclose(factors[warmup:], (1 + np.cos(np.pi * phase)) / 2, atol=1e-12)
    assert (factors[warmup], factors[steps]) == (1, pytest.approx(0, abs=1e-12))
    assert cosine(steps + 7, steps, warmup=warmup) == factors[steps]


@pytest.mark.parametrize("warmup", [-1, 11])
def test_a_warmup_fits_into_the_steps(warmup):
    with pytest.raises(ValueError, match=rf"warmup is {warmup}; expected 0\.\.10"):
        cosine(0, 10, warmup=warmup)


@given(st.data(), dtypes, st.lists(shapes, min_size=1, max_size=3), st.integers(1, 5))
def test_an_average_is_the_mean_over_the_updates(data, dtype, sizes, updates):
    steps = [[data.draw(arrays(size, dtype=dtype)) for size in sizes] for _ in range(updates)]
    parameters = [leaf(np.zeros(size, dtype)) for size in sizes]
    average = Average(parameters)
    for step, values in enumerate(steps):
        if step == updates // 2:  # goes on in another process
            state, average = average.state_dict(), Average(parameters)
            average.load_state_dict(state)
        for parameter, value in zip(parameters, values, strict=True):
            parameter.data = value
        average.update()
    average.apply()
    for parameter, values in zip(parameters, zip(*steps, strict=True), strict=True):
        assert parameter.dtype == dtype
        close(parameter.data, np.mean(np.array(values, np.float64), axis=0))


def test_an_average_needs_updates_of_its_own_parameters():
    average = Average([leaf([1.0, 3.0])])
    with pytest.raises(ValueError, match=r"of no steps; call update\(\)"):
        average.apply()
    average.update()
    with pytest.raises(ValueError, match="does not fit"):
        average.load_state_dict(Average([leaf([1.0])]).state_dict())
    assert average.count == 1
