"""Arithmetic, shapes and reductions against NumPy and finite differences; and the tape itself."""

import gc
import math
import operator
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import minidiff as md
from minidiff import Tensor, nn
from minidiff.engine.tensor import Op
from tests.strategies import (
    Shape,
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

few = settings(max_examples=40)


def leaf(values: Any) -> Tensor:
    """A float64 leaf."""
    return Tensor(np.asarray(values, np.float64), requires_grad=True)


def assert_same(result: Tensor, expected: Any) -> None:
    """Check values, shape and dtype, to rounding."""
    expected = np.asarray(expected)
    assert result.shape == expected.shape
    assert result.dtype == expected.dtype
    np.testing.assert_allclose(result.data, expected, rtol=1e-6, atol=1e-6)


# -- values and gradients of the operators -----------------------------------------------------


@pytest.mark.parametrize("operation", [operator.add, operator.sub, operator.mul, operator.truediv])
@few
@given(st.data(), pairs_of_shapes, dtypes)
def test_arithmetic_broadcasts_as_numpy_does_and_has_the_right_gradients(
    operation: Callable[[Any, Any], Any],
    data: st.DataObject,
    shapes: tuple[Shape, Shape],
    dtype: Any,
) -> None:
    a, b = (data.draw(off_zero(shape, dtype)) for shape in shapes)
    for x, y in ((Tensor(a), Tensor(b)), (Tensor(a), b), (a, Tensor(b))):
        assert_same(operation(x, y), operation(a, b))
    md.gradcheck(operation, [leaf(a), leaf(b)])


@pytest.mark.parametrize("operation", [operator.add, operator.sub, operator.mul, operator.truediv])
@few
@given(st.data(), shapes, off_zero(()))
def test_arithmetic_with_a_number_on_either_side(
    operation: Callable[[Any, Any], Any], data: st.DataObject, shape: Shape, drawn: Any
) -> None:
    a, number = data.draw(off_zero(shape)), float(drawn)
    assert_same(operation(Tensor(a), number), operation(a, number))
    assert_same(operation(number, Tensor(a)), operation(number, a))
    md.gradcheck(lambda x: operation(x, number) * operation(number, x), [leaf(a)])


@pytest.mark.parametrize("operation", [operator.add, operator.sub, operator.mul, operator.truediv])
def test_shapes_that_do_not_broadcast_are_refused_naming_both(
    operation: Callable[[Any, Any], Any],
) -> None:
    with pytest.raises(ValueError, match=r"\(2,3\) \(4,\)"):
        operation(Tensor(np.ones((2, 3))), Tensor(np.ones(4)))


@few
@given(st.data(), shapes, dtypes)
def test_negation(data: st.DataObject, shape: Shape, dtype: Any) -> None:
    a = data.draw(arrays(shape, dtype=dtype))
    assert_same(-Tensor(a), -a)
    md.gradcheck(operator.neg, [leaf(a)])


@few
@given(st.data(), shapes, st.sampled_from([-2, -1, 0, 1, 2, 3, 0.5, -1.5, 2.5]))
def test_power(data: st.DataObject, shape: Shape, exponent: float) -> None:
    # An integer power is defined for both signs.
    a = data.draw(off_zero(shape) if exponent == int(exponent) else arrays(shape, 0.2, 2))
    assert_same(Tensor(a) ** exponent, a**exponent)
    md.gradcheck(lambda x: x**exponent, [leaf(a)])


@pytest.mark.parametrize(("exponent", "slope"), [(0, 0), (1, 1), (2, 0), (3, 0)])
def test_the_slope_of_a_power_at_zero_is_finite_where_it_exists(
    exponent: int, slope: float
) -> None:
    x = leaf([0.0])
    (x**exponent).sum().backward()
    np.testing.assert_array_equal(x.grad, [slope])


def test_a_tensor_as_exponent_is_refused() -> None:
    with pytest.raises(TypeError, match="exponent is a Tensor"):
        leaf([1.0]) ** leaf([2.0])


@settings(max_examples=100)
@given(st.data(), matmul_shapes, dtypes)
@example(data=None, shapes=((3,), (3,)), dtype=np.float64)
@example(data=None, shapes=((2, 3), (3,)), dtype=np.float64)
@example(data=None, shapes=((3,), (3, 2)), dtype=np.float64)
@example(data=None, shapes=((2, 1, 4, 3), (5, 3, 2)), dtype=np.float64)
@example(data=None, shapes=((3,), (2, 3, 4)), dtype=np.float64)
@example(data=None, shapes=((2, 4, 3), (3,)), dtype=np.float64)
def test_matmul_of_vectors_matrices_and_stacks(
    data: st.DataObject | None, shapes: tuple[Shape, Shape], dtype: Any
) -> None:
    if data is None:
        rng = np.random.default_rng(0)
        a, b = (rng.standard_normal(shape) for shape in shapes)
    else:
        a, b = (data.draw(arrays(shape, dtype=dtype)) for shape in shapes)
    for x, y in ((Tensor(a), Tensor(b)), (Tensor(a), b), (a, Tensor(b))):
        assert_same(x @ y, a @ b)
    md.gradcheck(operator.matmul, [leaf(a), leaf(b)])


def test_matmul_refuses_matrices_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"size 4 is different from 3"):
        Tensor(np.ones((2, 3))) @ Tensor(np.ones((4, 2)))


# -- shapes ------------------------------------------------------------------------------------


@few
@given(st.data(), shapes)
def test_reshape(data: st.DataObject, shape: Shape) -> None:
    a = data.draw(arrays(shape))
    new = data.draw(st.permutations(shape))
    for target in (tuple(new) or (1,), (-1,), (1, a.size, 1)):
        assert_same(Tensor(a).reshape(*target), a.reshape(target))
        md.gradcheck(lambda x, target=target: x.reshape(*target), [leaf(a)])


@few
@given(st.data(), shapes)
def test_transpose(data: st.DataObject, shape: Shape) -> None:
    a = data.draw(arrays(shape))
    assert_same(Tensor(a).T, a.T)
    md.gradcheck(lambda x: x.T, [leaf(a)])
    order = tuple(data.draw(st.permutations(range(a.ndim))))
    if order:
        assert_same(Tensor(a).transpose(*order), a.transpose(order))
        md.gradcheck(lambda x: x.transpose(*order), [leaf(a)])


@few
@given(st.data(), hnp.array_shapes(min_dims=1, max_dims=4, max_side=3))
def test_transpose_counts_negative_axes_from_the_end(data: st.DataObject, shape: Shape) -> None:
    a = data.draw(arrays(shape))
    order = data.draw(st.permutations(range(a.ndim)))
    signed = tuple(axis - a.ndim if data.draw(st.booleans()) else axis for axis in order)
    assert_same(Tensor(a).transpose(*signed), a.transpose(signed))
    md.gradcheck(lambda x: x.transpose(*signed), [leaf(a)])


@settings(max_examples=100)
@given(st.data(), shapes)
def test_index_by_slices_integers_arrays_and_masks(data: st.DataObject, shape: Shape) -> None:
    a, index = data.draw(arrays(shape)), data.draw(indices(shape))
    assert_same(Tensor(a)[index], a[index])
    md.gradcheck(lambda x: x[index], [leaf(a)])


def test_an_element_picked_twice_receives_both_gradients() -> None:
    x = leaf([1.0, 2.0, 3.0])
    (x[np.array([0, 2, 0])] * np.array([1.0, 10.0, 100.0])).sum().backward()
    np.testing.assert_array_equal(x.grad, [101, 0, 10])


# -- reductions --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sum", "mean", "max"])
@few
@given(st.data(), shapes, st.booleans(), dtypes)
def test_reductions_over_any_axes(
    name: str, data: st.DataObject, shape: Shape, keepdims: bool, dtype: Any
) -> None:
    a, axis = data.draw(distinct(shape, dtype)), data.draw(axes(len(shape)))
    expected = getattr(np, name)(a, axis=axis, keepdims=keepdims)
    assert_same(getattr(Tensor(a), name)(axis, keepdims), expected)
    md.gradcheck(lambda x: getattr(x, name)(axis=axis, keepdims=keepdims), [leaf(a)])


@few
@given(st.data(), hnp.array_shapes(max_dims=3, max_side=4))
def test_equal_largest_elements_share_the_gradient(data: st.DataObject, shape: Shape) -> None:
    a, axis = data.draw(arrays(shape, 0, 3, np.int64)), data.draw(axes(len(shape)))
    x = leaf(a)
    x.max(axis).sum().backward()
    largest = a == a.max(axis, keepdims=True)
    np.testing.assert_allclose(x.grad, largest / largest.sum(axis, keepdims=True))


# -- functions of one element ------------------------------------------------------------------

POSITIVE, REAL = (0.2, 3.0), (-3.0, 3.0)
FUNCTIONS: dict[str, tuple[tuple[float, float], Callable[[Any], Any]]] = {
    "exp": (REAL, np.exp),
    "log": (POSITIVE, np.log),
    "sqrt": (POSITIVE, np.sqrt),
    "tanh": (REAL, np.tanh),
    "sigmoid": (REAL, lambda a: 1 / (1 + np.exp(-a))),
    "erf": (REAL, lambda a: np.vectorize(math.erf, otypes=[a.dtype])(a)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@few
@given(st.data(), shapes, dtypes)
def test_functions_of_one_element(name: str, data: st.DataObject, shape: Shape, dtype: Any) -> None:
    domain, expected = FUNCTIONS[name]
    a = data.draw(arrays(shape, *domain, dtype=dtype))
    assert_same(getattr(Tensor(a), name)(), np.asarray(expected(a), dtype))
    md.gradcheck(lambda x: getattr(x, name)(), [leaf(a)])


def test_functions_of_one_element_take_arrays_that_are_not_contiguous() -> None:
    a = np.linspace(0.5, 2, 12).reshape(3, 4).T[::2]
    for name, (_, expected) in FUNCTIONS.items():
        assert_same(getattr(Tensor(a), name)(), expected(a))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sigmoid_tanh_and_erf_saturate_without_overflow(dtype: Any) -> None:
    x = Tensor(np.array([-1e4, 1e4], dtype), requires_grad=True)
    np.testing.assert_array_equal(x.sigmoid().data, [0, 1])
    np.testing.assert_array_equal(x.tanh().data, [-1, 1])
    np.testing.assert_array_equal(x.erf().data, [-1, 1])
    (x.sigmoid() + x.tanh() + x.erf()).sum().backward()
    np.testing.assert_array_equal(x.grad, [0, 0])


@few
@given(st.data(), pairs_of_shapes, dtypes)
def test_maximum(data: st.DataObject, shapes: tuple[Shape, Shape], dtype: Any) -> None:
    a, b = (data.draw(arrays(shape, dtype=dtype)) for shape in shapes)
    assume(np.abs(a - b).min() > 1e-3)
    assert_same(Tensor(a).maximum(Tensor(b)), np.maximum(a, b))
    md.gradcheck(lambda x, y: x.maximum(y), [leaf(a), leaf(b)])
    md.gradcheck(lambda x: x.maximum(b), [leaf(a)])


def test_maximum_of_equals_shares_the_gradient() -> None:
    x, y = leaf([1.0, 2.0, 3.0]), leaf([3.0, 2.0, 1.0])
    x.maximum(y).sum().backward()
    np.testing.assert_array_equal(x.grad, [0, 0.5, 1])
    np.testing.assert_array_equal(y.grad, [1, 0.5, 0])


@few
@given(
    st.data(),
    shapes,
    st.none() | st.sampled_from([-1.0, -0.5, 0.25]),
    st.none() | st.sampled_from([0.25, 0.5, 1.0]),
)
def test_clip(data: st.DataObject, shape: Shape, low: float | None, high: float | None) -> None:
    a = data.draw(arrays(shape))
    for bound in (low, high):
        assume(bound is None or np.abs(a - bound).min() > 1e-3)
    expected = a.copy()
    if low is not None:
        expected = np.where(expected < low, low, expected)
    if high is not None:
        expected = np.where(expected > high, high, expected)
    assert_same(Tensor(a).clip(low, high), expected)
    md.gradcheck(lambda x: x.clip(low, high), [leaf(a)])


def test_clip_refuses_bounds_in_the_wrong_order() -> None:
    with pytest.raises(ValueError, match=r"\[2, 1\]: low must not be above high"):
        leaf([1.0]).clip(2, 1)


# -- making tensors ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_float_arrays_are_taken_as_they_are(dtype: Any) -> None:
    array = np.ones(3, dtype)
    assert Tensor(array).data is array


@pytest.mark.parametrize(
    "given",
    [
        [1.0, 2.0],
        [1, 2],
        (True, False),
        np.arange(2),
        np.array([1, 0], bool),
        np.ones(2, np.float16),
        3,
    ],
)
def test_all_else_becomes_float32(given: Any) -> None:
    tensor = Tensor(given)
    assert tensor.dtype == np.float32
    np.testing.assert_array_equal(tensor.data, np.asarray(given, np.float32))


@pytest.mark.parametrize("given", [[1j], np.ones(2, complex), ["a"], [object()], [None]])
def test_what_is_not_real_numbers_is_refused(given: Any) -> None:
    with pytest.raises(TypeError, match="expected real numbers"):
        Tensor(given)


def test_a_tensor_of_a_tensor_is_refused() -> None:
    with pytest.raises(TypeError, match="is a Tensor already"):
        Tensor(Tensor([1.0]))


@given(arrays((2, 3)))
def test_shape_ndim_size_len_and_dtype_are_those_of_the_array(array: Any) -> None:
    tensor = Tensor(array)
    assert (tensor.shape, tensor.ndim, tensor.size, len(tensor)) == ((2, 3), 2, 6, 2)
    assert tensor.dtype == array.dtype


def test_item_returns_the_only_element_as_a_python_number() -> None:
    assert type(Tensor([[2.5]]).item()) is float
    assert Tensor([[2.5]]).item() == 2.5
    with pytest.raises(ValueError, match="size 1"):
        Tensor([1.0, 2.0]).item()


def test_a_tensor_of_one_element_is_a_number_and_a_truth_value_as_in_numpy() -> None:
    assert float(Tensor([2.5])) == 2.5
    assert Tensor(2.5)
    assert not Tensor([0.0])
    with pytest.raises(ValueError, match="ambiguous"):
        bool(Tensor([1.0, 2.0]))


def test_repr_shows_values_and_whether_a_gradient_is_required() -> None:
    assert repr(Tensor([1.0, 2.0])) == "Tensor([1., 2.])"
    assert repr(leaf([1.0])) == "Tensor([1.], requires_grad=True)"


# -- dtypes ------------------------------------------------------------------------------------

WITH_A_NUMBER: dict[str, Callable[[Tensor, Any], Tensor]] = {
    "t + n": lambda t, n: t + n,
    "n + t": lambda t, n: n + t,
    "t - n": lambda t, n: t - n,
    "n - t": lambda t, n: n - t,
    "t * n": lambda t, n: t * n,
    "n * t": lambda t, n: n * t,
    "t / n": lambda t, n: t / n,
    "n / t": lambda t, n: n / t,
    "t ** n": lambda t, n: t**n,
    "maximum": lambda t, n: t.maximum(n),
    "clip": lambda t, n: t.clip(n, n + 1),
}


@pytest.mark.parametrize("number", [2, 2.0, np.float64(2), np.float32(2), np.int64(2)], ids=repr)
@pytest.mark.parametrize("name", WITH_A_NUMBER)
def test_float32_stays_float32_beside_a_number(name: str, number: Any) -> None:
    x = Tensor([1.0, 3.0], requires_grad=True)
    y = WITH_A_NUMBER[name](x, number)
    assert isinstance(y, Tensor)
    assert y.dtype == np.float32
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == np.float32


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_functions_keep_the_dtype_forward_and_backward(dtype: Any) -> None:
    functions: list[Callable[[Tensor], Tensor]] = [
        lambda t: t.exp(), lambda t: t.log(), lambda t: t.sqrt(), lambda t: t.tanh(),
        lambda t: t.sigmoid(), lambda t: t.erf(), lambda t: t.mean(), lambda t: t.sum(0),
        lambda t: t.max(1), lambda t: -t, lambda t: t @ t, lambda t: t.T, lambda t: t[0],
        lambda t: t.reshape(4), lambda t: t.clip(0, 1.5), lambda t: t.maximum(1.5),
    ]  # fmt: skip
    for function in functions:
        x = Tensor(np.array([[1, 2], [3, 4]], dtype), requires_grad=True)
        y = function(x)
        assert y.dtype == dtype
        y.sum().backward()
        assert x.grad is not None
        assert x.grad.dtype == dtype


def test_a_gradient_has_the_dtype_of_its_leaf_also_where_dtypes_mix() -> None:
    single, double = Tensor([1.0, 2.0], requires_grad=True), leaf([3.0, 4.0])
    (single * double).sum().backward()
    assert single.grad is not None
    assert double.grad is not None
    assert (single.grad.dtype, double.grad.dtype) == (np.float32, np.float64)


def test_the_gradient_of_a_single_number_is_an_array() -> None:
    for x in (Tensor(2.0, requires_grad=True), leaf(2.0)):
        (x * x).backward()
        assert isinstance(x.grad, np.ndarray)
        assert (x.grad.shape, x.grad.dtype, float(x.grad)) == ((), x.dtype, 4.0)


# -- the tape ----------------------------------------------------------------------------------


@given(arrays((3,)))
def test_a_diamond_adds_up_both_ways(a: Any) -> None:
    def diamond(x: Tensor) -> Tensor:
        y = x.tanh()
        return (y * y + y.exp()) * (x + y)

    md.gradcheck(diamond, [leaf(a)])


def test_a_ladder_of_diamonds_is_walked_once_and_not_once_for_each_path() -> None:
    y = x = leaf([1.0])
    for _ in range(200):  # 2 ** 200 paths
        y = y + y
    y.backward()
    np.testing.assert_array_equal(x.grad, [2.0**200])


@given(arrays((2,)), st.integers(1, 5))
def test_a_second_backward_adds_the_same_again(a: Any, times: int) -> None:
    x = leaf(a)
    loss = (x * x * x).sum()
    for _ in range(times):
        loss.backward()
    np.testing.assert_allclose(x.grad, times * 3 * a * a)


def test_gradients_of_two_graphs_add_up_in_a_leaf_they_share() -> None:
    x = leaf([2.0])
    (x * x).backward()
    (3 * x).backward()
    np.testing.assert_array_equal(x.grad, [7])


def test_one_leaf_used_many_times_in_one_op() -> None:
    x = leaf([3.0])
    (x + x).backward()
    (x * x).backward()
    (x / x).backward()
    np.testing.assert_allclose(x.grad, [2 + 6 + 0])


def test_interior_gradients_are_not_kept() -> None:
    x = leaf([2.0])
    y = x * x
    z = y.exp()
    z.backward()
    assert x.grad is not None
    assert y.grad is None
    assert z.grad is None


def test_backward_of_a_leaf_gives_its_own_gradient() -> None:
    x, given = leaf([1.0, 2.0]), np.array([3.0, 4.0])
    x.backward(given)
    given[:] = 0
    np.testing.assert_array_equal(x.grad, [3, 4])


def test_backward_leaves_the_gradient_it_was_given_as_it_was() -> None:
    x, given = leaf([1.0, 2.0]), np.array([3.0, 4.0])
    y = x + 0.0
    y.backward(given)
    y.backward(given)
    np.testing.assert_array_equal(given, [3, 4])
    assert given.flags.writeable
    np.testing.assert_array_equal(x.grad, [6, 8])


SHARING: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": lambda x, y: x + y,
    "add twice": lambda x, y: (x + y) + (y + x),
    "sub": lambda x, y: x - y,
    "reshape": lambda x, y: x.reshape(4) + y.reshape(4),
    "transpose": lambda x, y: x.T + y.T,
    "index": lambda x, y: x[:] + y[...],
    "sum": lambda x, y: x.sum(0) + y.sum(0),
    "scaled": lambda x, y: (x + y) * 2.0,
    "divide": lambda x, y: (x + y) / (y + x),
    "maximum": lambda x, y: x.maximum(y + 0.0),
    "matmul": lambda x, y: x @ y,
}


@pytest.mark.parametrize("name", SHARING)
def test_gradients_of_two_leaves_never_share_memory_and_can_be_written(name: str) -> None:
    x, y = leaf([[1.0, 2.0], [3.0, 5.0]]), leaf([[2.0, 1.0], [4.0, 7.0]])
    out = SHARING[name](x, y)
    given = np.ones(out.shape)
    out.backward(given)
    assert x.grad is not None
    assert y.grad is not None
    for one, other in ((x.grad, y.grad), (x.grad, given), (y.grad, given)):
        assert not np.may_share_memory(one, other)
    before = y.grad.copy()
    x.grad *= 0  # clipping, say
    np.testing.assert_array_equal(y.grad, before)
    y.grad *= 0
    given[...] = 5
    assert not x.grad.any()
    assert not y.grad.any()


def test_a_chain_of_a_hundred_thousand_ops_runs_back_and_is_freed() -> None:
    depth = 100_000
    y = x = leaf([1.0])
    for _ in range(depth):
        y = y + 1.0
    assert y.item() == depth + 1
    y.backward()
    np.testing.assert_array_equal(x.grad, [1])
    end = weakref.ref(y)
    start = weakref.ref(x)
    del y, x  # must not recurse once for each op
    gc.collect()
    assert end() is None
    assert start() is None


def test_the_tape_is_freed_without_the_garbage_collector() -> None:
    x = leaf([1.0])
    y = x * 2
    z = y.exp()
    interior = weakref.ref(y)
    gc.disable()
    try:
        del y, z
        assert interior() is None
    finally:
        gc.enable()


def test_a_result_requires_a_gradient_if_an_input_does() -> None:
    plain, wanted = Tensor([1.0]), Tensor([1.0], requires_grad=True)
    assert not plain.requires_grad
    assert not (plain + plain).requires_grad
    for result in (plain + wanted, wanted * 2, (wanted - plain).exp()[0]):
        assert result.requires_grad


def test_leaves_that_require_no_gradient_get_none() -> None:
    plain, wanted = Tensor([3.0]), Tensor([2.0], requires_grad=True)
    (plain * wanted / plain @ plain).backward()
    assert plain.grad is None
    np.testing.assert_array_equal(wanted.grad, [3])


def test_a_leaf_frozen_after_its_use_still_gets_its_gradient() -> None:
    x, w = leaf([3.0]), leaf([2.0])
    y = x * w
    x.requires_grad = False
    y.backward()
    np.testing.assert_array_equal(x.grad, [2])
    np.testing.assert_array_equal(w.grad, [3])


def test_a_leaf_that_asks_for_a_gradient_only_after_its_use_gets_none() -> None:
    x, w = Tensor(np.array([3.0])), leaf([2.0])
    y = x * w
    x.requires_grad = True
    y.backward()
    assert x.grad is None
    np.testing.assert_array_equal(w.grad, [3])


def test_a_result_that_needs_no_gradient_keeps_no_inputs() -> None:
    x = Tensor([1.0])
    y = x * 2
    gone = weakref.ref(x)
    del x
    assert gone() is None
    np.testing.assert_array_equal(y.data, [2])


def test_no_grad_records_nothing() -> None:
    x = leaf([1.0])
    with md.no_grad():
        y = x * x
        assert not y.requires_grad
    with pytest.raises(RuntimeError, match="no_grad"):
        y.backward()
    assert (x * x).requires_grad


def test_no_grad_nests_and_ends_also_when_an_exception_leaves_it() -> None:
    x = leaf([1.0])
    with md.no_grad():
        with pytest.raises(KeyError), md.no_grad():
            raise KeyError
        assert not (x * x).requires_grad
    assert (x * x).requires_grad
    with pytest.raises(KeyError), md.no_grad():
        raise KeyError
    assert (x * x).requires_grad


def test_detach_shares_the_values_but_not_the_tape() -> None:
    x = leaf([2.0])
    y = x * x
    cut = y.detach()
    assert not cut.requires_grad
    assert np.shares_memory(cut.data, y.data)
    assert not cut.data.flags.writeable
    (y * cut).backward()
    np.testing.assert_array_equal(x.grad, [16])  # 2x * 4, and not 4x^3


# -- misuse ------------------------------------------------------------------------------------


def test_backward_without_a_gradient_required_is_refused() -> None:
    with pytest.raises(RuntimeError, match="does not require a gradient"):
        (Tensor([1.0]) * 2).backward()


def test_backward_of_several_numbers_needs_a_gradient() -> None:
    x = leaf([[1.0, 2.0]])
    with pytest.raises(ValueError, match=r"backward\(\) on shape \(1, 2\)"):
        (x * 2).backward()
    (x * 2).backward(np.array([[1.0, 10.0]]))
    np.testing.assert_array_equal(x.grad, [[2, 20]])


def test_backward_of_one_element_of_any_rank_needs_none() -> None:
    x = leaf([[3.0]])
    (x * x).backward()
    np.testing.assert_array_equal(x.grad, [[6]])


def test_a_gradient_of_another_shape_is_refused_naming_both() -> None:
    x = leaf([1.0, 2.0])
    with pytest.raises(ValueError, match=r"\(3,\); expected \(2,\)"):
        (x * 2).backward(np.ones(3))
    assert x.grad is None


def test_assigning_to_elements_is_refused() -> None:
    with pytest.raises(TypeError, match="cannot be changed in place"):
        leaf([1.0])[0] = 1


def test_data_on_the_tape_cannot_be_written_or_replaced() -> None:
    x = leaf([1.0, 2.0])
    for result in (x * 2, x.reshape(2, 1), x[:1], x.T, x.exp()):
        with pytest.raises(ValueError, match="read-only"):
            result.data[...] = 0
        with pytest.raises(RuntimeError, match=r"cannot be replaced.*detach"):
            result.data = np.zeros(result.shape)
    x.data[...] = 5  # a leaf that is not in use may be written
    np.testing.assert_array_equal(x.data, [5, 5])


def test_results_off_the_tape_can_be_written() -> None:
    result = Tensor([1.0, 2.0]) * 2
    result.data[0] = 7
    np.testing.assert_array_equal(result.data, [7, 4])


def test_new_data_must_have_the_old_shape_and_takes_the_old_dtype() -> None:
    x = Tensor([1.0, 2.0])
    with pytest.raises(ValueError, match=r"\(3,\); expected \(2,\)"):
        x.data = np.zeros(3)
    x.data = np.array([3.0, 4.0])
    assert x.dtype == np.float32
    np.testing.assert_array_equal(x.data, [3, 4])


def test_new_data_after_the_forward_pass_does_not_change_its_gradient() -> None:
    x = leaf([2.0])
    loss = x * x
    x.data = np.array([100.0])
    loss.backward()
    np.testing.assert_array_equal(x.grad, [4])


@pytest.mark.parametrize("change", ["step", "in place"])
def test_backward_after_an_input_was_changed_in_place_is_refused(change: str) -> None:
    x = leaf([2.0])
    loss = (x * x).sum()
    loss.backward()
    if change == "step":
        md.optim.SGD([x], lr=0.1).step()
    else:
        x.data -= 0.1
    with pytest.raises(RuntimeError, match=r"Multiply \(shape \(1,\)\) was changed in place"):
        loss.backward()
    (x * x).sum().backward()  # a new forward pass mends it


def test_what_is_set_as_data_is_all_live() -> None:
    x = md.Tensor(np.ones((3, 2), np.float32))
    with md.no_grad():
        gate = md.Gate(3)
        gate.phi.data = np.array([1, -1, 1], np.float32)
        out = md.Gated(nn.Linear(3, 3, rng=np.random.default_rng(0)), outputs=gate)(x)
    with pytest.raises(ValueError, match="read-only"):
        out.data[1] = 1  # it is said to be zero
    out.data = np.ones(out.shape, np.float32)
    np.testing.assert_array_equal(out.data, np.ones((3, 2)))
    np.testing.assert_array_equal(md.ops.linear(out, np.eye(3, dtype=np.float32)).data, out.data)


def test_what_is_known_of_a_gradient_is_forgotten_with_it() -> None:
    gate = md.Gate(3)
    gate.phi.data = np.array([1, -1, 1], np.float32)
    layer = nn.Linear(2, 3, rng=np.random.default_rng(0))
    md.Gated(layer, outputs=gate)(np.ones((2, 4), np.float32)).sum().backward()
    np.testing.assert_array_equal(layer.weight.reached, [0, 2])
    before = layer.weight.data.copy()
    layer.weight.grad = np.ones((3, 2), np.float32)
    assert layer.weight.reached is None
    md.optim.SGD([layer.weight], lr=1.0).step()
    np.testing.assert_array_equal(layer.weight.data, before - 1)


def test_an_op_that_returns_one_array_twice_does_not_tie_two_gradients() -> None:
    class Both(Op):  # of its own making
        def forward(self, a: Any, b: Any) -> Any:
            return 2 * (a + b)

        def backward(self, grad: Any) -> Any:
            same = 2 * grad
            return same, same

    a, b = leaf([1.0, 2.0]), leaf([3.0, 4.0])
    Both()(a, b).sum().backward()
    assert not np.shares_memory(a.grad, b.grad)


def test_parameters_without_elements_take_steps() -> None:
    for shape in ((0,), (3, 0), ()):
        x = md.Tensor(np.ones(shape), requires_grad=True)
        (x * x).sum().backward()
        md.optim.SGD([x], lr=0.25).step()
        md.optim.Adam([x], lr=0.25).step()
        assert x.shape == shape


def test_what_meets_a_tensor_is_of_real_numbers() -> None:
    for other in (None, "a", 1j, [object()]):
        with pytest.raises(TypeError, match="real numbers"):
            md.Tensor([1.0]) + other  # type: ignore[operator]  # a wrong type is the point


class Double(Op):
    """2 * x, whose backward returns what a test says."""

    def __init__(self, wrong: Any) -> None:
        self.wrong = wrong

    def forward(self, x: Any) -> Any:
        return 2 * x

    def backward(self, grad: Any) -> Any:
        return self.wrong(2 * grad)


@pytest.mark.parametrize(
    ("wrong", "error", "words"),
    [
        (lambda g: g, TypeError, "backward of Double returned ndarray; expected a tuple of 1"),
        (lambda g: (g, g), TypeError, "returned a tuple of 2; expected a tuple of 1"),
        (lambda g: (g[0],), ValueError, r"of shape \(3,\) for an input of shape \(2, 3\)"),
        (lambda g: (g[:, :2],), ValueError, r"of shape \(2, 2\) for an input of shape \(2, 3\)"),
        (lambda g: (g.sum(),), ValueError, r"of shape \(\) for an input of shape \(2, 3\)"),
    ],
)
def test_a_backward_that_returns_something_else_is_refused(
    wrong: Any, error: type[Exception], words: str
) -> None:
    x = leaf(np.ones((2, 3)))
    with pytest.raises(error, match=words):
        Double(wrong)(x).sum().backward()
    assert x.grad is None


class Cube(Op):
    """x^3."""

    def forward(self, x: Any) -> Any:
        self.x = x
        return x**3

    def backward(self, grad: Any) -> Any:
        return (3 * self.x**2 * grad,)


def test_an_op_that_is_applied_twice_keeps_apart_what_it_remembers() -> None:
    a, b, cube = leaf([2.0]), leaf([5.0]), Cube()
    (cube(a) + cube(b) + cube(a)).sum().backward()
    assert (a.grad, b.grad) == ([24.0], [75.0])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_tails_of_the_sigmoid_are_right_to_the_last_digits(dtype: Any) -> None:
    x = Tensor(np.array([-80.0, -40.0, -20.0, 0.0, 20.0], dtype), requires_grad=True)
    y = x.sigmoid()
    assert y.dtype == dtype
    np.testing.assert_allclose(
        y.data, [1.8048513e-35, 4.2483543e-18, 2.0611537e-09, 0.5, 1.0], rtol=1e-5
    )
    (-y.log()).sum().backward()
    np.testing.assert_allclose(x.grad, [-1, -1, -1, -0.5, -2.0611537e-09], rtol=1e-5, atol=1e-7)


def test_a_tensor_is_walked_along_its_first_axis_and_a_number_not_at_all() -> None:
    assert [float(part) for part in Tensor([1.0, 2.0])] == [1.0, 2.0]
    with pytest.raises(TypeError):
        list(Tensor(3.0))


@pytest.mark.parametrize("function", [np.asarray, lambda t: np.array([t, t]), np.stack])
def test_numpy_gets_no_array_of_tensors(function: Callable[[Any], Any]) -> None:
    with pytest.raises(TypeError, match=r"takes? its \.data"):
        function(Tensor([1.0, 2.0]))


def test_an_index_is_that_of_the_forward_pass() -> None:
    x, index = Tensor(np.arange(4.0), requires_grad=True), np.array([0, 0])
    picked = x[index].sum()
    index[:] = 2, 3
    picked.backward()
    np.testing.assert_array_equal(x.grad, [2, 0, 0, 0])


@pytest.mark.parametrize("index", [1, -1, slice(1, 3), (slice(None, None, -2), None, 1), ..., True])
def test_any_index_sends_each_gradient_back_to_its_element(index: Any) -> None:
    values = np.random.default_rng(0).standard_normal((3, 4))
    md.gradcheck(lambda x: x[index] * 2.0, [Tensor(values, requires_grad=True)])


def test_an_exponent_that_is_no_number_is_refused() -> None:
    x: Any = Tensor([1.0, 2.0])
    for exponent in (np.array([1.0, 2.0]), x, "2", None):
        with pytest.raises(TypeError, match=r"the exponent is a \w+; expected a number"):
            x**exponent


def test_the_mean_of_nothing_is_not_a_number() -> None:
    assert np.isnan(Tensor(np.zeros((0, 3), np.float32)).mean().item())
