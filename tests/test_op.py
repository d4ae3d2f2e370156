"""The ops behind operators and NumPy's methods: values, dtypes and gradients."""

import math
import operator

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

import minidiff as md
from minidiff import Tensor
from tests.checks import leaf
from tests.strategies import (
    arrays,
    axes,
    distinct,
    dtypes,
    indices,
    matmul_shapes,
    off_zero,
    pairs_of_shapes,
    shapes,
)


def check(function, expected, *values):
    """Compare with NumPy in value, shape and dtype, and gradients with finite differences."""
    expected, leaves = np.asarray(expected), [leaf(value) for value in values]
    out = function(*leaves)
    assert (out.shape, out.dtype) == (expected.shape, expected.dtype)
    np.testing.assert_allclose(out.data, expected, rtol=1e-6, atol=1e-6)
    out.backward(np.ones(out.shape))
    for tensor in leaves:
        assert isinstance(tensor.grad, np.ndarray)
        assert (tensor.grad.shape, tensor.grad.dtype) == (tensor.shape, tensor.dtype)
    md.gradcheck(function, [leaf(np.asarray(value, np.float64)) for value in values])


# -- arithmetic ------------------------------------------------------------------------------

ARITHMETIC = [operator.add, operator.sub, operator.mul, operator.truediv]


@pytest.mark.parametrize("operation", ARITHMETIC)
@given(st.data(), pairs_of_shapes, dtypes, dtypes)
def test_arithmetic_is_that_of_numpy(operation, data, shapes, dtype, other):
    a, b = (data.draw(off_zero(s, d)) for s, d in zip(shapes, (dtype, other), strict=True))
    check(operation, operation(a, b), a, b)
    for x, y in ((Tensor(a), b), (a, Tensor(b))):
        np.testing.assert_array_equal(operation(x, y).data, operation(a, b))


@pytest.mark.parametrize("number", [2, 2.0, np.float64(2), np.float32(2), np.int64(2)], ids=repr)
def test_float32_stays_float32_beside_a_number(number):
    a = np.array([1, 3], np.float32)
    for operation in [*ARITHMETIC, Tensor.maximum]:
        plain = np.maximum if operation is Tensor.maximum else operation
        check(lambda x, f=operation: f(x, number), plain(a, np.float32(2)), a)
    for operation in ARITHMETIC:
        check(lambda x, f=operation: f(number, x), operation(np.float32(2), a), a)
    check(lambda x: x**number, a**2, a)
    check(lambda x: (x + 0.5).clip(number, number + 2), np.array([2, 3.5], np.float32), a)


@pytest.mark.parametrize("operation", [*ARITHMETIC, Tensor.maximum])
def test_shapes_that_do_not_broadcast_are_named(operation):
    with pytest.raises(ValueError, match=r"\(2,3\) \(4,\)"):
        operation(Tensor(np.ones((2, 3))), Tensor(np.ones(4)))


@pytest.mark.parametrize("other", [None, "a", 1j, [object()]])
def test_what_is_no_number_is_refused(other):
    with pytest.raises(TypeError, match="expected real numbers"):
        Tensor([1.0]) + other


@given(st.data(), shapes, st.sampled_from([-2, -1, 0, 1, 2, 3, 0.5, -1.5, 2.5]), dtypes)
def test_power(data, shape, exponent, dtype):
    whole = exponent == int(exponent)  # defined for both signs
    a = data.draw(off_zero(shape, dtype) if whole else arrays(shape, 0.2, 2, dtype))
    check(lambda x: x**exponent, a**exponent, a)


@pytest.mark.parametrize(("exponent", "slope"), [(0, 0), (1, 1), (2, 0), (3, 0)])
def test_slope_of_a_power_at_zero(exponent, slope):
    x = leaf([0.0])
    (x**exponent).sum().backward()
    assert x.grad == [slope]


@pytest.mark.parametrize("exponent", [np.array([1.0, 2.0]), Tensor([2.0]), "2", None])
def test_an_exponent_must_be_a_number(exponent):
    with pytest.raises(TypeError, match=r"the exponent is .*; expected a number"):
        leaf([1.0, 2.0]) ** exponent


@given(st.data(), matmul_shapes, dtypes)
@example(None, ((3,), (3,)), np.float64)
@example(None, ((2, 3), (3,)), np.float64)
@example(None, ((3,), (3, 2)), np.float64)
@example(None, ((2, 1, 4, 3), (5, 3, 2)), np.float64)
@example(None, ((3,), (2, 3, 4)), np.float64)
@example(None, ((2, 4, 3), (3,)), np.float64)
def test_matmul_of_vectors_matrices_and_stacks(data, shapes, dtype):
    rng = np.random.default_rng(0)
    a, b = (
        data.draw(arrays(s, dtype=dtype)) if data else rng.standard_normal(s) for s in shapes
    )
    check(operator.matmul, a @ b, a, b)
    for x, y in ((Tensor(a), b), (a, Tensor(b))):
        np.testing.assert_array_equal((x @ y).data, a @ b)


@given(st.data(), pairs_of_shapes, dtypes)
def test_maximum(data, shapes, dtype):
    a, b = (data.draw(arrays(shape, dtype=dtype)) for shape in shapes)
    assume(np.abs(a - b).min() > 1e-3)
    check(Tensor.maximum, np.maximum(a, b), a, b)


def test_equals_share_the_gradient_of_maximum():
    x, y = leaf([1.0, 2.0, 3.0]), leaf([3.0, 2.0, 1.0])
    x.maximum(y).sum().backward()
    np.testing.assert_array_equal(x.grad, [0, 0.5, 1])
    np.testing.assert_array_equal(y.grad, [1, 0.5, 0])


@given(st.data(), shapes, st.sampled_from([None, -0.5, 0.25]), st.sampled_from([None, 0.25, 1.0]))
def test_clip(data, shape, low, high):
    a = data.draw(arrays(shape))
    for bound in (low, high):
        assume(bound is None or np.abs(a - bound).min() > 1e-3)
    check(lambda x: x.clip(low, high), np.clip(a, low, high), a)


def test_bounds_of_clip_must_be_in_order():
    with pytest.raises(ValueError, match=r"\[2, 1\]: low must not be above high"):
        leaf([1.0]).clip(2, 1)


# -- shapes ----------------------------------------------------------------------------------


@given(st.data(), shapes)
def test_reshape(data, shape):
    a = data.draw(arrays(shape))
    new = tuple(data.draw(st.permutations(shape)))
    for target in (new or (1,), (-1,), (1, a.size, 1)):
        check(lambda x, target=target: x.reshape(*target), a.reshape(target), a)


@given(st.data(), shapes)
def test_transpose(data, shape):
    a = data.draw(arrays(shape))
    order = data.draw(st.permutations(range(a.ndim)))
    signed = tuple(axis - a.ndim if data.draw(st.booleans()) else axis for axis in order)
    check(lambda x: x.T, a.T, a)
    check(lambda x: x.transpose(*signed), a.transpose(signed), a)


@given(st.data(), shapes)
@example(None, (3, 4))
def test_index_by_anything_numpy_takes(data, shape):
    if data:
        cases = [(data.draw(arrays(shape)), data.draw(indices(shape)))]
    else:
        parts = [1, -1, (slice(None, None, -2), None, 1), ..., True, ([0, 0, 2], slice(1, 3))]
        cases = [(np.arange(12.0).reshape(shape), part) for part in parts]
    for a, index in cases:
        check(lambda x, index=index: x[index], a[index], a)


def test_an_element_picked_twice_gets_both_gradients():
    x = leaf([1.0, 2.0, 3.0])
    (x[np.array([0, 2, 0])] * np.array([1.0, 10.0, 100.0])).sum().backward()
    np.testing.assert_array_equal(x.grad, [101, 0, 10])


def test_an_index_may_change_after_its_use():
    x, index = leaf(np.arange(4.0)), np.array([0, 0])
    picked = x[index].sum()
    index[:] = 2, 3
    picked.backward()
    np.testing.assert_array_equal(x.grad, [2, 0, 0, 0])


# -- reductions ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sum", "mean", "max"])
@given(st.data(), shapes, st.booleans(), dtypes)
def test_reductions_over_any_axes(name, data, shape, keepdims, dtype):
    a, axis = data.draw(distinct(shape, dtype)), data.draw(axes(len(shape)))
    expected = getattr(np, name)(a, axis=axis, keepdims=keepdims)
    check(lambda x: getattr(x, name)(axis=axis, keepdims=keepdims), expected, a)


def test_sums_do_not_lose_digits_in_float32():
    x = Tensor(np.full(1_000_001, 0.1, np.float32))
    np.testing.assert_allclose(x.sum().item(), 100000.1, rtol=1e-7)


def test_mean_of_nothing_is_nan():
    assert np.isnan(Tensor(np.zeros((0, 3), np.float32)).mean().item())


@given(st.data(), shapes)
def test_equal_largest_elements_share_the_gradient(data, shape):
    a, axis = data.draw(arrays(shape, 0, 3, np.int64)), data.draw(axes(len(shape)))
    x = leaf(a)
    x.max(axis).sum().backward()
    largest = a == a.max(axis, keepdims=True)
    np.testing.assert_allclose(x.grad, largest / largest.sum(axis, keepdims=True))


# -- functions of one element ----------------------------------------------------------------

POSITIVE, REAL = (0.2, 3.0), (-3.0, 3.0)
FUNCTIONS = {
    "__neg__": (REAL, np.negative),
    "exp": (REAL, np.exp),
    "log": (POSITIVE, np.log),
    "sqrt": (POSITIVE, np.sqrt),
    "tanh": (REAL, np.tanh),
    "sigmoid": (REAL, lambda a: 1 / (1 + np.exp(-a))),
    "erf": (REAL, np.vectorize(math.erf, otypes=[np.float64])),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@given(st.data(), shapes, dtypes)
def test_functions_of_one_element(name, data, shape, dtype):
    domain, function = FUNCTIONS[name]
    a = data.draw(arrays(shape, *domain, dtype))
    for values in (a, a.T[::-1] if a.ndim else a):  # contiguous and not
        expected = np.asarray(function(values), dtype)
        check(lambda x: getattr(x, name)(), expected, values)
        np.testing.assert_allclose(getattr(Tensor(values), name)().data, expected, rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sigmoid_tanh_and_erf_saturate(dtype):
    x = leaf(np.array([-1e4, 1e4], dtype))
    np.testing.assert_array_equal(x.sigmoid().data, [0, 1])
    np.testing.assert_array_equal(x.tanh().data, [-1, 1])
    np.testing.assert_array_equal(x.erf().data, [-1, 1])
    (x.sigmoid() + x.tanh() + x.erf()).sum().backward()
    np.testing.assert_array_equal(x.grad, [0, 0])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_tails_of_sigmoid_are_right_to_the_last_digits(dtype):
    x = leaf(np.array([-80, -40, -20, 0, 20], dtype))
    y = x.sigmoid()
    expected = [1.8048513e-35, 4.2483543e-18, 2.0611537e-09, 0.5, 1.0]
    np.testing.assert_allclose(y.data, expected, rtol=1e-5)
    (-y.log()).sum().backward()
    np.testing.assert_allclose(x.grad, [-1, -1, -1, -0.5, -2.0611537e-09], rtol=1e-5, atol=1e-7)
