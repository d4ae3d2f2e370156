"""The ops behind operators and NumPy's methods: values, dtypes and gradients."""

import math
import operator

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import minidiff as md
from minidiff import Tensor
from tests import strategies as own
from tests.checks import equal, leaf


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


ARITHMETIC = [operator.add, operator.sub, operator.mul, operator.truediv]


@pytest.mark.parametrize("operation", ARITHMETIC)
@given(st.data(), own.pairs_of_shapes, own.dtypes, own.dtypes)
def test_arithmetic_is_that_of_numpy(operation, data, shapes, dtype, other):
    a, b = (data.draw(own.off_zero(s, d)) for s, d in zip(shapes, (dtype, other), strict=True))
    expected = operation(a, b)
    if a.ndim and not b.ndim:  # where NumPy would make float32 float64, a single number does not
        expected = operation(a, b.astype(dtype))
    elif b.ndim and not a.ndim:
        expected = operation(a.astype(other), b)
    check(operation, expected, a, b)
    equal(operation(Tensor(a), b).data, expected)
    equal(operation(a, Tensor(b)).data, expected)


@pytest.mark.parametrize(
    "number",
    [2, 2.0, np.float64(2), np.float32(2), np.int64(2), np.array(2.0)],
    ids=repr,
)
def test_float32_stays_float32_beside_a_number(number):
    a = np.array([1, 3], np.float32)
    for operation in ARITHMETIC:
        check(lambda x, f=operation: f(x, number), operation(a, 2), a)
        check(lambda x, f=operation: f(number, x), operation(2, a), a)
    if not isinstance(number, np.ndarray):
        check(lambda x: x**number, a**2, a)
        check(lambda x: number**x, 2**a, a)
    check(lambda x: x.maximum(number), np.maximum(a, 2), a)
    check(lambda x: x.minimum(number), np.minimum(a, 2), a)
    check(lambda x: (x + 0.5).clip(number, number + 2), np.array([2, 3.5], np.float32), a)


@given(st.data(), own.shapes, st.sampled_from([-2, -1, 0, 1, 2, 3, 0.5, -1.5]), own.dtypes)
def test_power(data, shape, exponent, dtype):
    both_signs = own.off_zero(shape, dtype)
    a = data.draw(own.arrays(shape, 0.2, 2, dtype) if exponent % 1 else both_signs)
    if exponent in (0, 1, 2, 3):
        a.flat[0] = 0  # there is a slope at 0, too
    check(lambda x: x**exponent, a**exponent, a)


@given(st.data(), own.matmul_shapes, own.dtypes)
def test_matmul_of_vectors_matrices_and_stacks(data, shapes, dtype):
    a, b = (data.draw(own.arrays(shape, dtype=dtype)) for shape in shapes)
    check(operator.matmul, a @ b, a, b)
    equal((a @ Tensor(b)).data, a @ b)


@given(st.data(), own.pairs_of_shapes, own.dtypes, *[st.sampled_from([None, -0.5, 0.5])] * 2)
def test_maximum_and_clip(data, shapes, dtype, low, high):
    a, b = (data.draw(own.arrays(shape, dtype=dtype)) for shape in shapes)
    for other in (b, low, high):
        assume(other is None or np.abs(a - other).min() > 1e-3)
    check(Tensor.maximum, np.maximum(a, b), a, b)
    if None in (low, high) or low <= high:
        check(lambda x: x.clip(low, high), np.clip(a, low, high), a)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        *((lambda x, e=e: x**e, "expected a number") for e in (np.ones(2), Tensor(2), "2", None)),
        (lambda x: x.clip(2, 1), r"\[2, 1\]: low must not be above high"),
        (lambda x: x + np.ones(4), r"\(2,3\) \(4,\)"),
        *((lambda x, o=o: x + o, "expected real numbers") for o in (None, "a", 1j, [object()])),
    ],
)
def test_wrong_operands_are_named(call, words):
    with pytest.raises((TypeError, ValueError), match=words):
        call(leaf(np.ones((2, 3))))


@given(st.data(), own.shapes)
def test_reshape_and_transpose(data, shape):
    a = data.draw(own.arrays(shape))
    new = tuple(data.draw(st.permutations(shape)))
    for target in (new or (1,), (-1,), (1, a.size, 1)):
        check(lambda x, target=target: x.reshape(*target), a.reshape(target), a)
    order = data.draw(st.permutations(range(a.ndim)))
    signed = tuple(axis - a.ndim if data.draw(st.booleans()) else axis for axis in order)
    check(lambda x: x.transpose(*signed), a.transpose(signed), a)
    check(lambda x: x.T, a.T, a)


@given(st.data(), own.shapes)
def test_index_by_anything_numpy_takes(data, shape):
    a, index = data.draw(own.arrays(shape)), data.draw(own.indices(shape))
    check(lambda x: x[index], a[index], a)


def test_an_index_may_change_after_its_use():
    x, index = leaf(np.arange(4.0)), np.array([0, 0])
    picked = x[index].sum()
    index[:] = 2, 3
    picked.backward()
    equal(x.grad, [2, 0, 0, 0])


@pytest.mark.parametrize("name", ["sum", "mean", "max", "min"])
@given(st.data(), own.shapes, st.booleans(), own.dtypes)
def test_reductions_over_any_axes(name, data, shape, keepdims, dtype):
    a, axis = data.draw(own.distinct(shape, dtype)), data.draw(own.axes(len(shape)))
    expected = getattr(np, name)(a, axis=axis, keepdims=keepdims)
    check(lambda x: getattr(x, name)(axis=axis, keepdims=keepdims), expected, a)


def test_large_sums_lose_no_digits_and_the_mean_of_nothing_is_nan():
    tenths, x = Tensor(np.full((100_001, 2), 0.1, np.float32)), leaf(np.zeros(2, np.float32))
    (tenths + x).backward(tenths.data)  # which sums over the broadcast axis
    for total in (tenths.sum(0).data, x.grad):
        np.testing.assert_allclose(total, 10000.1, rtol=1e-6)
    assert tenths.mean(0).data[0] == tenths.mean().item() == np.float32(0.1)
    huge = leaf(np.full(1000, 1e38, np.float32))  # whose sum float32 cannot hold
    huge.mean().backward()
    assert huge.mean().item() == np.float32(1e38)
    equal(huge.grad, np.full(1000, 0.001, np.float32))
    x.grad = None
    x[np.zeros(100_001, int)].backward(tenths.data[:, 0])  # one element, picked often
    np.testing.assert_allclose(x.grad, [10000.1, 0], rtol=1e-7)
    assert np.isnan(Tensor(np.zeros((0, 3), np.float32)).mean().item())


@given(st.data(), own.shapes)
def test_equals_share_the_gradient_of_a_maximum(data, shape):
    a, axis = data.draw(own.arrays(shape, 0, 3, np.int64)), data.draw(own.axes(len(shape)))
    x, y, z = leaf(a), leaf(a), leaf(a)
    x.max(axis).sum().backward()
    largest = a == a.max(axis, keepdims=True)
    np.testing.assert_allclose(x.grad, largest / largest.sum(axis, keepdims=True))
    y.maximum(z).sum().backward()
    equal(y.grad, np.full(shape, 0.5))
    equal(z.grad, y.grad)


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
@given(st.data(), own.shapes, own.dtypes)
def test_functions_of_one_element(name, data, shape, dtype):
    domain, function = FUNCTIONS[name]
    a = data.draw(own.arrays(shape, *domain, dtype))
    a = a.T[::-1] if a.ndim and data.draw(st.booleans()) else a  # not contiguous
    check(lambda x: getattr(x, name)(), np.asarray(function(a), dtype), a)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_functions_of_extreme_numbers(dtype):
    x = leaf(np.array([-1e4, 1e4], dtype))
    for y, values in ((x.sigmoid(), [0, 1]), (x.tanh(), [-1, 1]), (x.erf(), [-1, 1])):
        equal(y.data, values)
        y.sum().backward()
        equal(x.grad, [0, 0])
    x = leaf(np.array([-80, -40, -20, 0, 20], dtype))
    y, tails = x.sigmoid(), [1.8048513e-35, 4.2483543e-18, 2.0611537e-09, 0.5, 1]
    np.testing.assert_allclose(y.data, tails, rtol=1e-5)
    (-y.log()).sum().backward()
    np.testing.assert_allclose(x.grad, [-1, -1, -1, -0.5, -2.0611537e-09], rtol=1e-5, atol=1e-7)
