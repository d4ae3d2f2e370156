"""Optimisers against their formulas in plain NumPy, over drawn sequences of gradients."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from minidiff import Tensor
from minidiff.engine.optim import SGD, Adam, Average, Optimizer, ParameterGroup, cosine
from tests.strategies import Shape, arrays, dtypes, shapes

Array = NDArray[Any]

rates = st.floats(1e-4, 0.5)
decays = st.sampled_from([0.0, 1e-4, 0.1])
momenta = st.sampled_from([0.0, 0.5, 0.9])


def leaf(values: Any) -> Tensor:
    return Tensor(np.array(values), requires_grad=True)


def close(result: Array, expected: Array) -> None:
    tolerance = 1e-4 if result.dtype == np.float32 else 1e-11
    np.testing.assert_allclose(result, expected, rtol=tolerance, atol=tolerance)


def sgd(w: Array, grads: list[Array], lr: float, momentum: float, nesterov: bool, decay: float
        ) -> Array:  # fmt: skip
    w, velocity = w.astype(np.float64), np.zeros(w.shape)
    for grad in grads:
        g = grad + decay * w
        velocity = momentum * velocity + g
        w = w - lr * (g + momentum * velocity if nesterov else velocity)
    return w


def adam(w: Array, grads: list[Array], lr: float, betas: tuple[float, float], eps: float,
         decay: float) -> Array:  # fmt: skip
    w, mean, square = w.astype(np.float64), np.zeros(w.shape), np.zeros(w.shape)
    for t, grad in enumerate(grads, start=1):
        g = grad + decay * w
        mean = betas[0] * mean + (1 - betas[0]) * g
        square = betas[1] * square + (1 - betas[1]) * g**2
        w = w - lr * (mean / (1 - betas[0] ** t)) / (np.sqrt(square / (1 - betas[1] ** t)) + eps)
    return w


def run(optimiser: Optimizer, tensor: Tensor, grads: list[Array]) -> None:
    for grad in grads:
        tensor.grad = grad.copy()
        optimiser.step()


def sequence(data: st.DataObject, shape: Shape, dtype: Any) -> list[Array]:
    count = data.draw(st.integers(1, 6))
    return [data.draw(arrays(shape, dtype=dtype)) for _ in range(count)]


@settings(max_examples=60)
@given(st.data(), shapes, dtypes, rates, momenta, st.booleans(), decays)
def test_sgd_follows_its_formula(
    data: st.DataObject, shape: Shape, dtype: Any, lr: float, momentum: float, nesterov: bool,
    decay: float,
) -> None:  # fmt: skip
    nesterov = nesterov and momentum > 0
    start, grads = data.draw(arrays(shape, dtype=dtype)), sequence(data, shape, dtype)
    tensor = leaf(start)
    run(SGD([tensor], lr, momentum=momentum, nesterov=nesterov, weight_decay=decay), tensor, grads)
    assert tensor.dtype == dtype
    assert tensor.shape == shape
    close(tensor.data, sgd(start, grads, lr, momentum, nesterov, decay))


@settings(max_examples=60)
@given(
    st.data(), shapes, dtypes, rates, decays,
    st.sampled_from([(0.9, 0.999), (0.0, 0.5), (0.5, 0.0)]), st.sampled_from([1e-8, 1e-2]),
)  # fmt: skip
def test_adam_follows_its_formula(
    data: st.DataObject, shape: Shape, dtype: Any, lr: float, decay: float,
    betas: tuple[float, float], eps: float,
) -> None:  # fmt: skip
    start, grads = data.draw(arrays(shape, dtype=dtype)), sequence(data, shape, dtype)
    tensor = leaf(start)
    run(Adam([tensor], lr, betas=betas, eps=eps, weight_decay=decay), tensor, grads)
    assert tensor.dtype == dtype
    assert tensor.shape == shape
    expected = adam(start, grads, lr, betas, eps, decay)
    tolerance = 1e-3 if dtype == np.float32 else 1e-9
    np.testing.assert_allclose(tensor.data, expected, rtol=tolerance, atol=tolerance)


@settings(max_examples=20)
@given(arrays((5,), 0.1, 2), st.floats(1e-3, 0.1))
def test_the_first_step_of_adam_is_the_step_size_whatever_the_gradient(
    grad: Array, lr: float
) -> None:
    tensor = leaf(np.zeros(5))
    run(Adam([tensor], lr), tensor, [grad])
    np.testing.assert_allclose(tensor.data, -lr, rtol=1e-6)


@settings(max_examples=30)
@given(st.data(), rates, rates, decays, decays, st.booleans())
def test_groups_have_a_step_size_and_a_decay_of_their_own(
    data: st.DataObject, lr1: float, lr2: float, decay1: float, decay2: float, is_sgd: bool
) -> None:
    starts = [data.draw(arrays((3,))) for _ in range(3)]
    grads = [data.draw(arrays((3,))) for _ in range(3)]
    a, b, c = (leaf(start) for start in starts)
    groups = [ParameterGroup([a, b], lr1, decay1), ParameterGroup([c], lr2, weight_decay=decay2)]
    optimiser: Optimizer = SGD(groups, momentum=0.9) if is_sgd else Adam(groups)
    for _ in range(2):
        for tensor, grad in zip((a, b, c), grads, strict=True):
            tensor.grad = grad
        optimiser.step()
    settings_of = [(lr1, decay1), (lr1, decay1), (lr2, decay2)]
    for tensor, start, grad, (lr, decay) in zip((a, b, c), starts, grads, settings_of, strict=True):
        if is_sgd:
            close(tensor.data, sgd(start, [grad] * 2, lr, 0.9, False, decay))
        else:
            close(tensor.data, adam(start, [grad] * 2, lr, (0.9, 0.999), 1e-8, decay))


@pytest.mark.parametrize("kind", [SGD, Adam])
def test_a_schedule_may_change_the_step_size_between_steps(kind: Any) -> None:
    tensor = leaf(np.zeros(2))
    optimiser = kind([tensor], lr=0.5)
    optimiser.groups[0].lr = 0.0
    run(optimiser, tensor, [np.ones(2)])
    np.testing.assert_array_equal(tensor.data, [0, 0])
    optimiser.groups[0].lr = np.float64(0.25)
    run(optimiser, tensor, [np.ones(2)])
    np.testing.assert_allclose(tensor.data, [-0.25, -0.25], rtol=1e-6)


@pytest.mark.parametrize("kind", [SGD, Adam])
def test_a_parameter_without_gradient_stays_where_it_is_and_keeps_its_state(kind: Any) -> None:
    moved, resting = leaf([1.0]), leaf([1.0])
    optimiser = kind([moved, resting], lr=0.1)
    moved.grad = np.ones(1)
    optimiser.step()
    assert resting.data[0] == 1
    assert moved.data[0] < 1
    # Its first step is its first, although others have taken theirs.
    late = leaf([1.0])
    resting.grad = late.grad = np.full(1, 2.0)
    optimiser.step()
    kind([late], lr=0.1).step()
    np.testing.assert_array_equal(resting.data, late.data)


@pytest.mark.parametrize("kind", [SGD, Adam])
def test_a_step_changes_no_gradient_and_zero_grad_forgets_it(kind: Any) -> None:
    a, b = leaf([1.0]), leaf([2.0])
    optimiser = kind([ParameterGroup([a], 0.1, 0.5), ParameterGroup([b], 0.1)])
    a.grad, b.grad = np.ones(1), np.ones(1)
    optimiser.step()
    assert a.grad[0] == b.grad[0] == 1
    optimiser.zero_grad()
    assert a.grad is None
    assert b.grad is None


@pytest.mark.parametrize("kind", [SGD, Adam])
def test_a_step_happens_in_place(kind: Any) -> None:
    tensor = leaf([1.0])
    array = tensor.data
    run(kind([tensor], lr=0.1), tensor, [np.ones(1)])
    assert tensor.data is array
    assert array[0] < 1


@pytest.mark.parametrize("kind", [SGD, Adam])
@settings(max_examples=20)
@given(arrays((3, 4)), arrays((3, 4)))
def test_parameters_and_gradients_in_any_memory_order_take_the_same_step(
    kind: Any, start: Array, grad: Array
) -> None:
    results = []
    for order, grad_order in (("C", "C"), ("F", "C"), ("C", "F"), ("F", "F")):
        tensor = Tensor(np.array(start, order=order), requires_grad=True)
        grads = [np.array(grad, order=grad_order)] * 2
        optimiser = kind([tensor], lr=0.1)
        for g in grads:
            tensor.grad = g
            optimiser.step()
        results.append(tensor.data)
    assert not np.array_equal(results[0], start)
    for result in results[1:]:
        close(result, results[0])


@pytest.mark.parametrize("kind", [SGD, Adam])
def test_the_minimum_of_a_bowl_is_found(kind: Any) -> None:
    target = np.array([1.0, -2.0, 3.0])
    x = leaf(np.zeros(3))
    optimiser = kind([x], lr=0.1)
    for _ in range(500):
        optimiser.zero_grad()
        ((x - target) ** 2).sum().backward()
        optimiser.step()
    np.testing.assert_allclose(x.data, target, atol=1e-3)


# -- errors ------------------------------------------------------------------------------------

NOT_A_RATE = [-0.1, math.nan, math.inf, -math.inf]


@pytest.mark.parametrize("kind", [SGD, Adam])
@pytest.mark.parametrize("name", ["lr", "weight_decay"])
@pytest.mark.parametrize("value", NOT_A_RATE)
def test_bad_step_sizes_and_decays_are_refused_by_name(kind: Any, name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} is {value}; expected a finite number, 0 or more"):
        kind([leaf([1.0])], **{name: value})
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        ParameterGroup([leaf([1.0])], **{"lr": 0.1, name: value})


@pytest.mark.parametrize("value", [*NOT_A_RATE, 1.0, 2.0])
def test_bad_momenta_betas_and_eps_are_refused_by_name(value: float) -> None:
    tensors = [leaf([1.0])]
    with pytest.raises(ValueError, match=f"momentum is {value}; .*and below 1"):
        SGD(tensors, momentum=value)
    for betas in ((value, 0.9), (0.9, value)):
        with pytest.raises(ValueError, match=f"beta is {value}; .*and below 1"):
            Adam(tensors, betas=betas)
    if value not in (1.0, 2.0):
        with pytest.raises(ValueError, match=f"eps is {value}"):
            Adam(tensors, eps=value)
    with pytest.raises(ValueError, match=r"eps is 0.0; expected a finite number, at least 1.2e-38"):
        Adam(tensors, eps=0.0)


def test_nesterov_without_momentum_is_refused() -> None:
    with pytest.raises(ValueError, match="nesterov needs momentum above 0"):
        SGD([leaf([1.0])], nesterov=True)


@pytest.mark.parametrize("kind", [SGD, Adam])
def test_no_parameters_or_a_mixture_are_refused(kind: Any) -> None:
    with pytest.raises(ValueError, match="no parameters"):
        kind([])
    mixtures: list[Any] = [
        [leaf([1.0]), ParameterGroup([leaf([1.0])], 0.1)],
        [np.ones(1)],
        ["weight"],
    ]
    for mixture in mixtures:
        with pytest.raises(TypeError, match="tensors only, or ParameterGroups only"):
            kind(mixture)


def test_parameters_may_come_from_a_generator() -> None:
    tensor = leaf([1.0])
    run(SGD((t for t in [tensor]), lr=0.5), tensor, [np.ones(1)])
    assert tensor.data[0] == 0.5
    assert list(ParameterGroup((t for t in [tensor]), 0.1).parameters) == [tensor]


# -- schedule ----------------------------------------------------------------------------------


@given(st.integers(1, 1000), st.data())
def test_the_schedule_rises_in_a_line_then_falls_along_a_cosine(
    steps: int, data: st.DataObject
) -> None:
    warmup = data.draw(st.integers(0, steps - 1))
    factors = [cosine(step, steps, warmup=warmup) for step in range(steps + 1)]
    np.testing.assert_allclose(factors[:warmup], (np.arange(warmup) + 1) / max(1, warmup))
    phase = (np.arange(warmup, steps + 1) - warmup) / (steps - warmup)
    np.testing.assert_allclose(factors[warmup:], (1 + np.cos(np.pi * phase)) / 2, atol=1e-12)
    assert factors[warmup] == 1
    assert factors[steps] == pytest.approx(0, abs=1e-12)
    assert all(0 < factor <= 1 for factor in factors[:-1])
    assert cosine(steps + 7, steps, warmup=warmup) == factors[steps]


@pytest.mark.parametrize("warmup", [-1, 11])
def test_a_warm_up_longer_than_the_run_is_refused(warmup: int) -> None:
    with pytest.raises(ValueError, match=rf"warmup is {warmup}; expected 0\.\.10"):
        cosine(0, 10, warmup=warmup)


def test_a_parameter_that_is_read_only_is_an_error_that_says_what_to_do() -> None:
    values = np.ones(3)
    values.flags.writeable = False
    x = Tensor(values, requires_grad=True)
    (x * x).sum().backward()
    with pytest.raises(ValueError, match=r"shape \(3,\) is read-only.*copy"):
        SGD([x], lr=0.1).step()


@given(st.data(), dtypes, st.lists(shapes, min_size=1, max_size=3), st.integers(1, 5))
def test_an_average_is_the_mean_of_every_parameter_over_the_updates(
    data: st.DataObject, dtype: Any, sizes: list[Shape], updates: int
) -> None:
    steps = [[data.draw(arrays(size, dtype=dtype)) for size in sizes] for _ in range(updates)]
    parameters = [leaf(np.zeros(size, dtype)) for size in sizes]
    average = Average(parameters)
    for step, values in enumerate(steps):
        if step == updates // 2:  # goes on in another process
            state = average.state_dict()
            average = Average(parameters)
            average.load_state_dict(state)
        for parameter, value in zip(parameters, values, strict=True):
            parameter.data = value
        average.update()
    average.apply()
    for parameter, values in zip(parameters, zip(*steps, strict=True), strict=True):
        assert parameter.dtype == dtype
        close(parameter.data, np.mean(np.array(values, np.float64), axis=0))


def test_an_average_of_no_steps_is_refused() -> None:
    with pytest.raises(ValueError, match=r"of no steps; call update\(\)"):
        Average([leaf(1.0)]).apply()


def test_an_average_of_other_parameters_is_refused_and_changes_nothing() -> None:
    average = Average([leaf([1.0, 3.0])])
    average.update()
    with pytest.raises(ValueError, match="does not fit"):
        average.load_state_dict(Average([leaf([1.0])]).state_dict())
    assert average.count == 1


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", [lambda w: SGD([w], lr=0.1, momentum=0.9), lambda w: Adam([w])])
def test_what_decays_without_a_gradient_ends_at_zero_not_at_slow_subnormal_numbers(
    kind: Any, dtype: Any
) -> None:
    w = leaf(np.ones(3, dtype))
    optimizer = kind(w)
    w.grad = np.ones(3, dtype)
    optimizer.step()
    (state,) = optimizer.groups[0].state
    for name in state.keys() - {"steps"}:
        state[name][:] = [0.5 * np.finfo(dtype).tiny, 1, np.nan]
    before = w.data.copy()
    w.grad = np.zeros(3, dtype)
    optimizer.step()
    for name in state.keys() - {"steps"}:
        assert state[name][0] == 0
        assert 0 < state[name][1] < 1
        assert np.isnan(state[name][2])
    assert w.data[0] == before[0]
    assert w.data[1] < before[1]


@pytest.mark.parametrize("kind", [SGD, Adam])
def test_what_a_step_could_not_move_is_no_parameter(kind: Any) -> None:
    w = leaf([1.0, 2.0])
    with pytest.raises(TypeError, match="one tensor; expected a list"):
        kind(w, lr=0.1)
    with pytest.raises(ValueError, match=r"of shape \(2,\) is the result of an op"):
        kind([w * 2], lr=0.1)
    named: Any = [("w", w)]  # as named_parameters gives
    with pytest.raises(TypeError, match="one is a tuple; expected tensors"):
        ParameterGroup(named, lr=0.1)


@pytest.mark.parametrize("kind", [SGD, Adam])
def test_a_gradient_of_another_shape_moves_nothing(kind: Any) -> None:
    first, second = leaf([1.0]), leaf(np.ones((4, 3)))
    optimizer = kind([first, second], lr=0.1)
    first.grad, second.grad = np.ones(1), np.ones((1, 3))
    with pytest.raises(ValueError, match=r"shape \(4, 3\) has a gradient of shape \(1, 3\)"):
        optimizer.step()
    assert first.data == 1


@pytest.mark.parametrize("kind", [lambda w: SGD([w], lr=0.1, momentum=0.9), lambda w: Adam([w])])
def test_a_state_in_another_memory_order_goes_on_alike(kind: Any) -> None:
    ends = []
    for order in ("C", "F"):
        weight = Tensor(np.ones((2, 3, 2, 2)), requires_grad=True)
        optimiser = kind(weight)
        weight.grad = np.arange(24.0).reshape(weight.shape)
        optimiser.step()
        state = optimiser.state_dict()
        optimiser.load_state_dict({key: np.array(a, order=order) for key, a in state.items()})
        optimiser.step()
        ends.append((weight.data, *optimiser.state_dict().values()))
    for one, other in zip(*ends, strict=True):
        np.testing.assert_array_equal(one, other)


def test_an_optimiser_begins_anew_with_a_group_that_another_has_had() -> None:
    weight = Tensor(np.ones(2), requires_grad=True)
    group = ParameterGroup([weight], 0.1)
    weight.grad = np.ones(2)
    SGD([group], momentum=0.9).step()
    assert not SGD([group], momentum=0.9).state_dict()
    Adam([group]).step()
