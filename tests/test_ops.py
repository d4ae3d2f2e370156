"""Operations of networks: values against loops, gradients against differences, and ``active``."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import minidiff as md
from minidiff import Tensor, ops
from tests import naive
from tests.strategies import (
    Convolution,
    Pool,
    Shape,
    actives,
    arrays,
    convolutions,
    distinct,
    dtypes,
    off_zero,
    pools,
    seeds,
    shapes,
)

Array = NDArray[Any]
few = settings(max_examples=40)


def leaf(values: Any, active: NDArray[np.int64] | None = None) -> Tensor:
    """A leaf of the array's own dtype."""
    tensor = Tensor(np.asarray(values), requires_grad=True)
    tensor.active = active
    return tensor


def close(result: Any, expected: Any) -> None:
    """Compare to the rounding of sums of some hundred numbers near 1."""
    assert result.shape == expected.shape
    tolerance = 1e-4 if result.dtype == np.float32 else 1e-11
    np.testing.assert_allclose(result, expected, rtol=tolerance, atol=tolerance)


def ones(*shape: int) -> Array:
    return np.ones(shape, np.float32)


# -- convolution -------------------------------------------------------------------------------


@settings(max_examples=60)
@given(st.data(), convolutions(), dtypes, st.booleans())
def test_conv2d_and_its_gradients_match_loops(
    data: st.DataObject, case: Convolution, dtype: Any, biased: bool
) -> None:
    x = leaf(data.draw(arrays(case.x, dtype=dtype)))
    weight = leaf(data.draw(arrays(case.weight, dtype=dtype)))
    bias = leaf(data.draw(arrays(case.weight[:1], dtype=dtype))) if biased else None
    out = ops.conv2d(x, weight, bias, stride=case.stride, padding=case.padding)
    added = bias.data if bias is not None else np.zeros(len(weight))
    assert out.dtype == dtype
    close(out.data, naive.conv2d(x.data, weight.data, added, case.stride, case.padding))

    grad = data.draw(arrays(out.shape, dtype=dtype))
    out.backward(grad)
    expected = naive.grad_conv2d(x.data, weight.data, grad, case.stride, case.padding)
    for tensor, gradient in zip((x, weight, bias), expected, strict=True):
        if tensor is not None:
            assert tensor.grad is not None
            assert tensor.grad.dtype == dtype
            close(tensor.grad, gradient)


@few
@given(st.data(), convolutions())
def test_conv2d_has_the_right_gradients(data: st.DataObject, case: Convolution) -> None:
    tensors = [leaf(data.draw(arrays(s))) for s in (case.x, case.weight, case.weight[:1])]
    settings = {"stride": case.stride, "padding": case.padding}
    md.gradcheck(lambda *given: ops.conv2d(*given, **settings), tensors)
    # Each alone, as the others' gradients are then left out.
    for i in range(3):
        some = [Tensor(t.data, requires_grad=i == j) for j, t in enumerate(tensors)]
        md.gradcheck(lambda *given: ops.conv2d(*given, **settings), some, directions=1)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("samples", [1, 600, 1000])
def test_conv2d_and_linear_match_loops_on_small_and_large_batches(samples: int, dtype: Any) -> None:
    rng = np.random.default_rng(samples)
    x, weight = rng.uniform(-1, 1, (3, 4, 4, samples)), rng.uniform(-1, 1, (5, 3, 2, 2))
    bias, grad = rng.uniform(-1, 1, 5), rng.uniform(-1, 1, (5, 5, 5, samples))
    tensors = [leaf(array.astype(dtype)) for array in (x, weight, bias)]
    out = ops.conv2d(*tensors, padding=1)
    out.backward(grad)
    tolerance = {"rtol": 1e-4, "atol": 3e-3 if dtype is np.float32 else 1e-10}
    np.testing.assert_allclose(out.data, naive.conv2d(x, weight, bias, padding=(1, 1)), **tolerance)
    expected = naive.grad_conv2d(x, weight, grad, padding=(1, 1))
    for tensor, gradient in zip(tensors, expected, strict=True):
        np.testing.assert_allclose(np.asarray(tensor.grad), gradient, **tolerance)

    flat, dense = (leaf(array.astype(dtype)) for array in (x[:, 0, 0], weight[:, :, 0, 0]))
    out = ops.linear(flat, dense)
    out.backward(grad[:, 0, 0])
    np.testing.assert_allclose(out.data, dense.data @ flat.data, **tolerance)
    np.testing.assert_allclose(flat.grad, weight[:, :, 0, 0].T @ grad[:, 0, 0], **tolerance)
    np.testing.assert_allclose(dense.grad, grad[:, 0, 0] @ x[:, 0, 0].T, **tolerance)


def test_conv2d_and_linear_take_arrays_that_are_not_contiguous() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 5, 5, 3)).T[::-1]
    weight = rng.standard_normal((2, 2, 3, 4)).T
    bias = rng.standard_normal(2 * len(weight))[::2]
    close(ops.conv2d(x, weight, bias).data, naive.conv2d(x, weight, bias))
    close(ops.linear(x[:, 0, 0], weight[:, :, 0, 0], bias).data,
          naive.linear(x[:, 0, 0], weight[:, :, 0, 0], bias))  # fmt: skip


@pytest.mark.parametrize(
    ("x", "weight"),
    [((3, 5, 5, 2), (4, 2, 3, 3)), ((3, 5, 5), (4, 3, 3, 3)), ((3, 5, 5, 2), (4, 3))],
)
def test_conv2d_refuses_shapes_that_do_not_fit_naming_both(x: Shape, weight: Shape) -> None:
    with pytest.raises(ValueError, match="do not fit") as error:
        ops.conv2d(ones(*x), ones(*weight))
    assert str(x) in str(error.value)
    assert str(weight) in str(error.value)


@pytest.mark.parametrize(
    ("shape", "kernel", "axis"), [((2, 9), (3, 1), "high"), ((9, 2), (1, 3), "wide")]
)
def test_conv2d_refuses_a_kernel_larger_than_the_padded_input(
    shape: Shape, kernel: Shape, axis: str
) -> None:
    x, weight = ones(1, *shape, 1), ones(1, 1, *kernel)
    with pytest.raises(ValueError, match=f"kernel 3 {axis} does not fit on an input 2 {axis}"):
        ops.conv2d(x, weight)
    assert ops.conv2d(x, weight, padding=1).size > 0


@pytest.mark.parametrize("bias", [(3,), (4, 1), ()])
@pytest.mark.parametrize("layer", ["conv2d", "linear"])
def test_a_bias_of_another_length_is_refused_naming_both(layer: str, bias: Shape) -> None:
    x, weight = (
        (ones(2, 3, 3, 1), ones(4, 2, 3, 3)) if layer == "conv2d" else (ones(2, 1), ones(4, 2))
    )
    with pytest.raises(ValueError, match="does not fit weight") as error:
        getattr(ops, layer)(x, weight, ones(*bias))
    assert f"bias of shape {bias}" in str(error.value)
    assert str(weight.shape) in str(error.value)


@pytest.mark.parametrize("x", [(2, 3, 3, 0), (0, 3, 3, 1)])
def test_an_empty_batch_or_no_channels_are_refused(x: Shape) -> None:
    with pytest.raises(ValueError, match="is empty"):
        ops.conv2d(ones(*x), ones(1, x[0], 1, 1))
    with pytest.raises(ValueError, match="is empty"):
        ops.linear(ones(x[0], x[3]), ones(1, x[0]))
    for pool in (ops.max_pool2d, ops.avg_pool2d):
        with pytest.raises(ValueError, match="not empty"):
            pool(ones(*x), 1)


def test_weights_without_outputs_are_refused() -> None:
    with pytest.raises(ValueError, match="is empty"):
        ops.conv2d(ones(2, 3, 3, 1), ones(0, 2, 1, 1))
    with pytest.raises(ValueError, match="is empty"):
        ops.linear(ones(2, 1), ones(0, 2))


@pytest.mark.parametrize("odd", [0, 1, 2])
def test_dtypes_must_not_mix(odd: int) -> None:
    conv = [ones(2, 3, 3, 1), ones(4, 2, 3, 3), ones(4)]
    dense = [ones(2, 1), ones(4, 2), ones(4)]
    for layer, arguments in ((ops.conv2d, conv), (ops.linear, dense)):
        arguments[odd] = arguments[odd].astype(np.float64)
        name = ("x", "weight", "bias")[odd]
        with pytest.raises(ValueError, match=rf"dtypes differ \(.*{name} float64"):
            layer(*arguments)


NO_SIZE: list[Any] = [0, -1, (1, 0), (1, 2, 3), (1,), (), 1.5, (1, 1.5), "ab", None]


@pytest.mark.parametrize("value", NO_SIZE, ids=repr)
def test_bad_strides_are_refused_by_name(value: Any) -> None:
    calls: list[Callable[[], Any]] = [
        lambda: ops.conv2d(ones(1, 3, 3, 1), ones(1, 1, 2, 2), stride=value)
    ]
    if value is not None:  # which means: as the window
        calls += [
            lambda: ops.max_pool2d(ones(1, 3, 3, 1), 2, stride=value),
            lambda: ops.avg_pool2d(ones(1, 3, 3, 1), 2, stride=value),
        ]
    for call in calls:
        with pytest.raises(ValueError, match="stride is"):
            call()


@pytest.mark.parametrize(
    "value", [v for v in NO_SIZE if v not in (0, (1, 0))] + [(0, -1)], ids=repr
)
def test_bad_paddings_are_refused_by_name(value: Any) -> None:
    with pytest.raises(ValueError, match="padding is"):
        ops.conv2d(ones(1, 3, 3, 1), ones(1, 1, 2, 2), padding=value)


@pytest.mark.parametrize("value", NO_SIZE, ids=repr)
def test_bad_windows_are_refused_by_name(value: Any) -> None:
    for pool in (ops.max_pool2d, ops.avg_pool2d):
        with pytest.raises(ValueError, match="kernel is"):
            pool(ones(1, 3, 3, 1), value)


# -- dense layer -------------------------------------------------------------------------------

few_features = st.integers(1, 9)


@few
@given(st.data(), few_features, few_features, few_features, dtypes, st.booleans())
def test_linear_and_its_gradients_match_loops(
    data: st.DataObject, ins: int, outs: int, samples: int, dtype: Any, biased: bool
) -> None:
    x = leaf(data.draw(arrays((ins, samples), dtype=dtype)))
    weight = leaf(data.draw(arrays((outs, ins), dtype=dtype)))
    bias = leaf(data.draw(arrays((outs,), dtype=dtype))) if biased else None
    out = ops.linear(x, weight, bias)
    added = bias.data if bias is not None else np.zeros(outs)
    assert out.dtype == dtype
    close(out.data, naive.linear(x.data, weight.data, added))
    doubles = [Tensor(t.data.astype(np.float64), True) for t in (x, weight, bias) if t is not None]
    md.gradcheck(ops.linear, doubles)


@pytest.mark.parametrize(
    ("x", "weight"), [((3, 2), (4, 2)), ((3,), (4, 3)), ((3, 1, 1, 2), (4, 3))]
)
def test_linear_refuses_shapes_that_do_not_fit_naming_both(x: Shape, weight: Shape) -> None:
    with pytest.raises(ValueError, match="do not fit") as error:
        ops.linear(ones(*x), ones(*weight))
    assert str(x) in str(error.value)
    assert str(weight) in str(error.value)


# -- active ------------------------------------------------------------------------------------


def drawn_active(data: st.DataObject, count: int) -> NDArray[np.int64] | None:
    return data.draw(st.none() | actives(count))


def dead(active: NDArray[np.int64] | None, count: int) -> NDArray[np.int64]:
    return np.setdiff1d(np.arange(count), np.arange(count) if active is None else active)


@settings(max_examples=80)
@given(st.data(), convolutions(), dtypes, st.booleans())
def test_conv2d_neither_reads_nor_writes_what_is_not_active(
    data: st.DataObject, case: Convolution, dtype: Any, biased: bool
) -> None:
    ins = drawn_active(data, case.x[0])
    outs = drawn_active(data, case.weight[0])
    dead_in, dead_out = dead(ins, case.x[0]), dead(outs, case.weight[0])
    x, weight = (data.draw(arrays(s, dtype=dtype)) for s in (case.x, case.weight))
    bias = data.draw(arrays(case.weight[:1], dtype=dtype)) * biased

    # What ought to come out: the same with zeros for all that is not active.
    zeroed = [x.copy(), weight.copy(), bias.copy()]
    zeroed[0][dead_in] = 0
    zeroed[1][dead_out] = zeroed[2][dead_out] = 0
    x[dead_in] = weight[dead_out] = bias[dead_out] = np.nan
    weight[:, dead_in] = np.nan

    tensors = [leaf(x, ins), leaf(weight, outs)] + ([leaf(bias, outs)] if biased else [])
    out = ops.conv2d(*tensors, stride=case.stride, padding=case.padding)
    close(out.data, naive.conv2d(*zeroed, case.stride, case.padding))
    assert not out.data[dead_out].any()
    if outs is not None:
        assert out.active is not None
        np.testing.assert_array_equal(out.active, outs)

    grad = data.draw(arrays(out.shape, dtype=dtype))
    zeroed_grad = grad.copy()
    zeroed_grad[dead_out] = 0
    grad[dead_out] = np.nan
    out.backward(grad)
    zeroed[1][:, dead_in] = 0
    expected = naive.grad_conv2d(*zeroed[:2], zeroed_grad, case.stride, case.padding)
    for tensor, gradient in zip(tensors, expected, strict=False):
        assert tensor.grad is not None
        close(tensor.grad, gradient)
    assert not np.asarray(tensors[0].grad)[dead_in].any()
    assert not np.asarray(tensors[1].grad)[dead_out].any()
    assert not np.asarray(tensors[1].grad)[:, dead_in].any()


@settings(max_examples=60)
@given(st.data(), few_features, few_features, few_features, dtypes)
def test_linear_neither_reads_nor_writes_what_is_not_active(
    data: st.DataObject, features: int, units: int, samples: int, dtype: Any
) -> None:
    ins, outs = drawn_active(data, features), drawn_active(data, units)
    dead_in, dead_out = dead(ins, features), dead(outs, units)
    live = np.ones((units, features), bool)
    live[dead_out] = live[:, dead_in] = False
    x = data.draw(arrays((features, samples), dtype=dtype))
    weight, bias = (data.draw(arrays(s, dtype=dtype)) for s in ((units, features), (units,)))
    x[dead_in] = weight[~live] = bias[dead_out] = np.nan
    tensors = [leaf(x, ins), leaf(weight, outs), leaf(bias, outs)]
    out = ops.linear(*tensors)
    zero_x, zero_weight, zero_bias = (np.nan_to_num(a) for a in (x, weight, bias))
    close(out.data, zero_weight @ zero_x + zero_bias[:, None])

    grad = data.draw(arrays(out.shape, dtype=dtype))
    grad[dead_out] = np.nan
    out.backward(grad)
    zero_grad = np.nan_to_num(grad)
    close(tensors[0].grad, zero_weight.T @ zero_grad)
    close(tensors[1].grad, (zero_grad @ zero_x.T) * live)
    close(tensors[2].grad, zero_grad.sum(axis=1))


@settings(max_examples=80)
@given(st.data(), convolutions(), few_features, dtypes)
def test_an_output_without_weights_is_its_bias_and_its_weights_are_not_read(
    data: st.DataObject, case: Convolution, samples: int, dtype: Any
) -> None:
    count = case.weight[0]
    outs, ends = data.draw(actives(count)), drawn_active(data, count)
    weight, bias = (data.draw(arrays(s, dtype=dtype)) for s in (case.weight, (count,)))
    bias[dead(ends, count)] = 0
    zeroed = weight.copy()
    zeroed[dead(outs, count)] = 0
    weight[dead(outs, count)] = np.nan
    x = data.draw(arrays(case.x, dtype=dtype))
    tensors = [leaf(x), leaf(weight, outs), leaf(bias, ends)]
    out = ops.conv2d(*tensors, stride=case.stride, padding=case.padding)
    close(out.data, naive.conv2d(x, zeroed, bias, case.stride, case.padding))
    alive = np.arange(count) if ends is None else np.union1d(outs, ends)
    np.testing.assert_array_equal(np.arange(count) if out.active is None else out.active, alive)
    grad = data.draw(arrays(out.shape, dtype=dtype))
    out.backward(grad)
    grad[dead(alive, count)] = 0
    expected = naive.grad_conv2d(x, zeroed, grad, case.stride, case.padding)
    expected[1][dead(outs, count)] = 0
    for tensor, gradient in zip(tensors[:2], expected, strict=False):
        close(np.asarray(tensor.grad), gradient)
    owed = np.arange(count) if ends is None else ends  # a constant zero is owed nothing
    close(np.asarray(tensors[2].grad)[owed], expected[2][owed])

    flat = data.draw(arrays((case.x[0], samples), dtype=dtype))
    tensors = [leaf(flat), leaf(weight[:, :, 0, 0], outs), leaf(bias, ends)]
    units = ops.linear(*tensors)
    close(units.data, naive.linear(flat, zeroed[:, :, 0, 0], bias))
    grad = data.draw(arrays(units.shape, dtype=dtype))
    units.backward(grad)
    grad[dead(alive, count)] = 0
    close(np.asarray(tensors[0].grad), zeroed[:, :, 0, 0].T @ grad)
    close(np.asarray(tensors[1].grad)[outs], (grad @ flat.T)[outs])
    assert not np.asarray(tensors[1].grad)[dead(outs, count)].any()
    close(np.asarray(tensors[2].grad)[owed], grad.sum(axis=1)[owed])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_an_output_has_the_same_bits_however_many_others_are_computed(dtype: Any) -> None:
    """Blocks of channels differ in size, and add in one order all the same."""
    rng = np.random.default_rng(0)
    x, weight, bias = (
        rng.standard_normal(s).astype(dtype) for s in ((6, 8, 8, 64), (11, 6, 3, 3), (11,))
    )
    flat, units = x.reshape(-1, 64), rng.standard_normal((11, 384)).astype(dtype)
    whole = ops.conv2d(x, weight, bias).data, ops.linear(flat, units, bias).data
    for count in range(1, 11):
        outs = np.arange(count)
        found = (
            ops.conv2d(x, leaf(weight, outs), leaf(bias, outs)),
            ops.linear(flat, leaf(units, outs), leaf(bias, outs)),
        )
        for out, expected in zip(found, whole, strict=True):
            np.testing.assert_array_equal(out.data[outs], expected[outs])


def test_a_bias_that_is_live_keeps_an_output_whose_weights_are_not() -> None:
    weight = leaf(np.array([[1.0, 2.0], [0.0, 0.0]]), active=np.array([0]))
    bias = leaf(np.array([10.0, 20.0]))
    out = ops.linear(Tensor(np.array([[1.0], [1.0]])), weight, bias)
    np.testing.assert_array_equal(out.data, [[13], [20]])
    assert out.active is None
    out.backward(np.ones((2, 1)))
    np.testing.assert_array_equal(bias.grad, [1, 1])


@few
@given(st.data(), pools(), dtypes)
def test_max_pool2d_neither_reads_nor_writes_what_is_not_active(
    data: st.DataObject, case: Pool, dtype: Any
) -> None:
    live = data.draw(actives(case.x[0]))
    unused = dead(live, case.x[0])
    x = data.draw(distinct(case.x, dtype))
    x[unused] = np.nan
    tensor = leaf(x, live)
    out = ops.max_pool2d(tensor, case.kernel, stride=case.stride)
    expected = naive.max_pool2d(x, case.kernel, case.stride)
    np.testing.assert_array_equal(out.data[live], expected[live])
    assert not out.data[unused].any()
    np.testing.assert_array_equal(np.asarray(out.active), live)

    grad = data.draw(arrays(out.shape, dtype=dtype))
    grad[unused] = np.nan
    out.backward(grad)
    gradient = naive.grad_max_pool2d(
        np.nan_to_num(x), np.nan_to_num(grad), case.kernel, case.stride
    )
    close(np.asarray(tensor.grad), gradient)


@few
@given(st.data(), pools(), st.booleans())
def test_active_is_handed_on_to_the_next_layer(
    data: st.DataObject, case: Pool, largest: bool
) -> None:
    channels = case.x[0]
    live = data.draw(actives(channels))
    x = data.draw(off_zero(case.x))
    x[dead(live, channels)] = 0
    tensor = leaf(x, live)
    pool = ops.max_pool2d if largest else ops.avg_pool2d
    out = ops.dropout(ops.relu(tensor), 0.5, np.random.default_rng(0))
    flat = ops.flatten(pool(out, case.kernel, stride=case.stride))
    assert flat.active is not None
    # Flattening turns a channel into a feature for each of its places.
    alive = np.zeros((channels, len(flat) // channels), bool)
    alive[live] = True
    np.testing.assert_array_equal(flat.active, np.flatnonzero(alive))
    weight = data.draw(arrays((3, len(flat))))
    weight[:, ~alive.ravel()] = np.nan
    result = ops.linear(flat, Tensor(weight))
    close(result.data, np.nan_to_num(weight) @ flat.data)


# -- activations and dropout -------------------------------------------------------------------


@few
@given(st.data(), shapes, dtypes)
def test_relu(data: st.DataObject, shape: Shape, dtype: Any) -> None:
    a = data.draw(off_zero(shape, dtype))
    out = ops.relu(a)
    assert out.dtype == dtype
    np.testing.assert_array_equal(out.data, np.where(a > 0, a, 0))
    md.gradcheck(ops.relu, [leaf(a.astype(np.float64))])


def test_the_derivative_of_relu_at_zero_is_zero() -> None:
    x = leaf(np.array([0.0, -0.0, 1.0]))
    ops.relu(x).sum().backward()
    np.testing.assert_array_equal(x.grad, [0, 0, 1])


@few
@given(st.data(), shapes, st.floats(0, 0.9), seeds, dtypes)
def test_dropout_zeroes_some_and_scales_the_rest(
    data: st.DataObject, shape: Shape, p: float, seed: int, dtype: Any
) -> None:
    a = data.draw(off_zero(shape, dtype))
    out = ops.dropout(a, p, np.random.default_rng(seed))
    assert out.dtype == dtype
    kept = out.data != 0
    np.testing.assert_allclose(out.data[kept], a[kept] / (1 - p), rtol=1e-5)
    again = ops.dropout(a, p, np.random.default_rng(seed))
    np.testing.assert_array_equal(again.data, out.data)
    x = leaf(a.astype(np.float64))
    md.gradcheck(lambda t: ops.dropout(t, p, np.random.default_rng(seed)), [x])


@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
def test_dropout_drops_with_its_probability_and_keeps_the_mean(p: float) -> None:
    count = 100_000
    out = ops.dropout(np.ones(count, np.float32), p, np.random.default_rng(0)).data
    five_sigma = 5 * np.sqrt(p * (1 - p) / count)
    assert abs((out == 0).mean() - p) < five_sigma
    assert abs(out.mean(dtype=np.float64) - 1) < five_sigma / (1 - p)


def test_dropout_of_nothing_draws_nothing() -> None:
    rng = np.random.default_rng(0)
    x = Tensor([1.0, 2.0])
    np.testing.assert_array_equal(ops.dropout(x, 0, rng).data, x.data)
    assert rng.bit_generator.state == np.random.default_rng(0).bit_generator.state


@pytest.mark.parametrize("p", [-0.1, 1, 1.5, np.nan])
def test_dropout_refuses_what_is_no_probability(p: float) -> None:
    with pytest.raises(ValueError, match=r"p is .*; expected a probability in \[0, 1\)"):
        ops.dropout(ones(1), p, np.random.default_rng(0))


# -- pooling -----------------------------------------------------------------------------------


@pytest.mark.parametrize("samples", [1, 2, 15, 16, 17, 63, 64, 65, 130])
@pytest.mark.parametrize("live", [None, 3])
def test_linear_is_right_for_any_number_of_samples(samples: int, live: int | None) -> None:
    rng = np.random.default_rng(samples)
    x, weight, bias = (rng.standard_normal(s) for s in ((37, samples), (11, 37), (11,)))
    tensors = [leaf(x), leaf(weight), leaf(bias)]
    if live:
        tensors[1].active = tensors[2].active = np.arange(0, 11, live)
        weight[np.delete(np.arange(11), tensors[1].active)] = 0
        bias[np.delete(np.arange(11), tensors[1].active)] = 0
    out = ops.linear(*tensors)
    np.testing.assert_allclose(out.data, weight @ x + bias[:, None], rtol=0, atol=1e-12)
    grad = rng.standard_normal(out.shape)
    out.backward(grad)
    np.testing.assert_allclose(np.asarray(tensors[0].grad), weight.T @ grad, rtol=0, atol=1e-12)


@few
@given(st.data(), pools(), dtypes)
def test_a_rectified_max_pool2d_is_a_pool_and_a_relu_in_either_order(
    data: st.DataObject, case: Pool, dtype: Any
) -> None:
    # Few values, so many are equal, to each other and to 0.
    values = data.draw(arrays(case.x, -2, 3, np.int64)).astype(dtype)
    if data.draw(st.booleans()):
        values.flat[0] = np.nan
    results = []
    for function in (
        lambda x: ops.max_pool2d(x, case.kernel, stride=case.stride, relu=True),
        lambda x: ops.relu(ops.max_pool2d(x, case.kernel, stride=case.stride)),
        lambda x: ops.max_pool2d(ops.relu(x), case.kernel, stride=case.stride),
    ):
        x = leaf(values)
        out = function(x)
        grad = np.random.default_rng(0).standard_normal(out.shape).astype(dtype)
        grad[np.isnan(out.data)] = 0  # whether NaN passes a gradient is nobody's business
        out.backward(grad)
        results.append((out.data, x.grad))
    for out, x_grad in results[1:]:
        np.testing.assert_array_equal(out, results[0][0])
        np.testing.assert_array_equal(x_grad, results[0][1])
    with pytest.raises(ValueError, match="over 255 places"):
        ops.max_pool2d(np.zeros((1, 16, 16, 1)), 16, relu=True)


@few
@given(st.data(), pools(), dtypes)
def test_max_pool2d_takes_the_largest(data: st.DataObject, case: Pool, dtype: Any) -> None:
    x = data.draw(distinct(case.x, dtype))
    out = ops.max_pool2d(x, case.kernel, stride=case.stride)
    assert out.dtype == dtype
    np.testing.assert_array_equal(out.data, naive.max_pool2d(x, case.kernel, case.stride))
    md.gradcheck(
        lambda t: ops.max_pool2d(t, case.kernel, stride=case.stride), [leaf(x.astype(np.float64))]
    )


@few
@given(st.data(), pools())
def test_of_equal_largest_the_first_takes_the_gradient(data: st.DataObject, case: Pool) -> None:
    x = leaf(data.draw(arrays(case.x, 0, 3, np.int64)).astype(np.float64))
    out = ops.max_pool2d(x, case.kernel, stride=case.stride)
    grad = data.draw(arrays(out.shape))
    out.backward(grad)
    close(np.asarray(x.grad), naive.grad_max_pool2d(x.data, grad, case.kernel, case.stride))


@few
@given(st.data(), pools(), dtypes)
def test_avg_pool2d_and_its_gradient_match_loops(
    data: st.DataObject, case: Pool, dtype: Any
) -> None:
    x = leaf(data.draw(arrays(case.x, dtype=dtype)))
    out = ops.avg_pool2d(x, case.kernel, stride=case.stride)
    assert out.dtype == dtype
    close(out.data, naive.avg_pool2d(x.data, case.kernel, case.stride))
    grad = data.draw(arrays(out.shape, dtype=dtype))
    out.backward(grad)
    close(np.asarray(x.grad), naive.grad_avg_pool2d(case.x, grad, case.kernel, case.stride))
    md.gradcheck(
        lambda t: ops.avg_pool2d(t, case.kernel, stride=case.stride),
        [leaf(x.data.astype(np.float64))],
    )


@pytest.mark.parametrize("pool", [ops.max_pool2d, ops.avg_pool2d])
def test_a_pool_without_stride_moves_by_its_window(pool: Callable[..., Tensor]) -> None:
    x = np.random.default_rng(0).standard_normal((2, 7, 5, 3))
    assert pool(x, (3, 2)).shape == (2, 2, 2, 3)
    np.testing.assert_array_equal(pool(x, (3, 2)).data, pool(x, (3, 2), stride=(3, 2)).data)


@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize("pool", [ops.max_pool2d, ops.avg_pool2d])
def test_nan_passes_through_a_pool_wherever_it_stands(
    pool: Callable[..., Tensor], place: int
) -> None:
    x = np.array([1.0, 2.0, 4.0, 3.0])
    x[place] = np.nan
    assert np.isnan(pool(x.reshape(1, 2, 2, 1), 2).data).all()


def test_the_last_place_of_the_largest_window_can_win() -> None:
    x = leaf(np.arange(256.0).reshape(1, 16, 16, 1))
    ops.max_pool2d(x, 16).backward()
    np.testing.assert_array_equal(np.flatnonzero(x.grad), [255])
    with pytest.raises(ValueError, match="over 256 places"):
        ops.max_pool2d(np.zeros((1, 16, 17, 1)), (16, 17))


@pytest.mark.parametrize("pool", [ops.max_pool2d, ops.avg_pool2d])
def test_pools_refuse_what_does_not_fit(pool: Callable[..., Tensor]) -> None:
    for kernel in ((4, 1), (1, 4)):
        with pytest.raises(ValueError, match=r"does not fit on x of shape \(1, 3, 3, 1\)") as error:
            pool(ones(1, 3, 3, 1), kernel)
        assert str(kernel) in str(error.value)
    with pytest.raises(ValueError, match=r"x has shape \(3, 3\)"):
        pool(ones(3, 3), 2)


# -- flatten -----------------------------------------------------------------------------------


@few
@given(st.data(), st.lists(st.integers(1, 3), min_size=2, max_size=5).map(tuple))
def test_flatten_keeps_the_batch_and_the_order(data: st.DataObject, shape: Shape) -> None:
    x = data.draw(arrays(shape))
    out = ops.flatten(x)
    assert out.shape == (x.size // shape[-1], shape[-1])
    for n in range(shape[-1]):
        np.testing.assert_array_equal(out.data[:, n], x[..., n].ravel())
    md.gradcheck(ops.flatten, [leaf(x)])


@given(st.data(), shapes.filter(lambda shape: len(shape) > 0 and shape[0] > 0))
def test_select_keeps_the_slices_listed(data: st.DataObject, shape: Shape) -> None:
    x, some = data.draw(arrays(shape)), data.draw(actives(shape[0]).filter(len))
    np.testing.assert_array_equal(ops.select(x, some).data, x[some])
    md.gradcheck(lambda t: ops.select(t, some), [leaf(x)])


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([], "not empty"),
        ([0.5], "integers"),
        ([[0, 1]], "integers"),
        ([1, 0], "increase"),
        ([1, 1], "increase"),
        ([-1, 1], "increase"),
        ([0, 3], r"index 3 is out of range for x of shape \(3, 2\)"),
    ],
)
def test_select_refuses_what_is_no_increasing_list(indices: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ops.select(ones(3, 2), indices)


def test_flatten_refuses_a_vector() -> None:
    with pytest.raises(ValueError, match=r"shape \(3,\); expected at least"):
        ops.flatten(ones(3))


# -- loss --------------------------------------------------------------------------------------

logits_shapes = st.tuples(st.integers(1, 6), st.integers(1, 6))


@few
@given(st.data(), logits_shapes, dtypes)
def test_cross_entropy(data: st.DataObject, shape: Shape, dtype: Any) -> None:
    classes, samples = shape
    logits = data.draw(arrays(shape, -4, 4, dtype))
    labels = np.array(
        data.draw(st.lists(st.integers(0, classes - 1), min_size=samples, max_size=samples))
    )
    loss = ops.cross_entropy(logits, labels)
    assert loss.shape == ()
    assert loss.dtype == dtype
    each = [
        np.log(np.exp(logits[:, n].astype(np.float64)).sum()) - logits[label, n]
        for n, label in enumerate(labels)
    ]
    np.testing.assert_allclose(loss.item(), np.mean(each), rtol=1e-5, atol=1e-5)
    md.gradcheck(lambda t: ops.cross_entropy(t, labels), [leaf(logits.astype(np.float64))])
    np.testing.assert_array_equal(
        ops.cross_entropy(logits, labels.astype(np.uint8)).data, loss.data
    )


@few
@given(st.data(), logits_shapes, dtypes)
def test_softmax(data: st.DataObject, shape: Shape, dtype: Any) -> None:
    logits = data.draw(arrays(shape, -4, 4, dtype))
    out = ops.softmax(logits)
    assert out.dtype == dtype
    powers = np.exp(logits)
    np.testing.assert_allclose(out.data, powers / powers.sum(axis=0), rtol=1e-5)
    md.gradcheck(ops.softmax, [leaf(logits.astype(np.float64))])


def test_cross_entropy_keeps_the_labels_of_the_forward_pass() -> None:
    logits, labels = leaf(np.zeros((3, 2))), np.array([0, 1])
    loss = ops.cross_entropy(logits, labels)
    labels[:] = 2
    loss.backward()
    np.testing.assert_allclose(logits.grad, [[-1 / 3, 1 / 6], [1 / 6, -1 / 3], [1 / 6, 1 / 6]])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_huge_logits_neither_overflow_nor_lose_the_loss(dtype: Any) -> None:
    logits = leaf(np.array([[1e4, -1e4], [-1e4, -1e4], [0, 1e4]], dtype))
    right, wrong = np.array([0, 2]), np.array([1, 0])
    assert ops.cross_entropy(logits, right).item() == 0
    loss = ops.cross_entropy(logits, wrong)
    np.testing.assert_allclose(loss.item(), 2e4, rtol=1e-6)
    loss.backward()
    np.testing.assert_array_equal(logits.grad, [[0.5, -0.5], [-0.5, 0], [0, 0.5]])
    np.testing.assert_array_equal(ops.softmax(logits).data, [[1, 0], [0, 0], [0, 1]])


@few
@given(arrays((4, 3)), st.floats(-1e3, 1e3))
def test_adding_a_number_to_all_logits_changes_nothing(logits: Array, shift: float) -> None:
    labels = np.array([0, 3, 1])
    moved = ops.cross_entropy(logits + shift, labels)
    np.testing.assert_allclose(moved.item(), ops.cross_entropy(logits, labels).item(), rtol=1e-9)
    np.testing.assert_allclose(
        ops.softmax(logits + shift).data, ops.softmax(logits).data, rtol=1e-9
    )


@pytest.mark.parametrize("label", [-1, 3, 100])
def test_a_label_out_of_range_is_refused_saying_which(label: int) -> None:
    with pytest.raises(ValueError, match=rf"labels\[1\] is {label}; expected 0\.\.2"):
        ops.cross_entropy(ones(3, 2), np.array([0, label]))


@settings(max_examples=25)
@given(st.data(), st.floats(0, 0.9))
def test_smoothed_cross_entropy_is_that_against_smoothed_targets(data, smoothing):
    classes, n = data.draw(st.integers(2, 5)), data.draw(st.integers(1, 4))
    logits = data.draw(arrays((classes, n), -5, 5))
    labels = np.random.default_rng(data.draw(seeds)).integers(0, classes, n)
    target = np.full((classes, n), smoothing / classes)
    target[labels, np.arange(n)] += 1 - smoothing
    expected = -(target * np.log(ops.softmax(logits).data)).sum() / n
    loss = ops.cross_entropy(logits, labels, label_smoothing=smoothing)
    assert loss.item() == pytest.approx(expected, rel=1e-9)
    md.gradcheck(lambda t: ops.cross_entropy(t, labels, label_smoothing=smoothing), [leaf(logits)])


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, float("nan")])
def test_a_smoothing_out_of_range_is_an_error(smoothing):
    with pytest.raises(ValueError, match="label_smoothing is"):
        ops.cross_entropy(np.zeros((3, 2)), np.array([0, 1]), label_smoothing=smoothing)


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (ones(3, 2), np.array([0, 1, 2]), r"\(3, 2\) and labels of shape \(3,\) do not fit"),
        (ones(3, 2), np.zeros((2, 1), int), r"labels of shape \(2, 1\) do not fit"),
        (ones(3), np.array([0]), r"logits of shape \(3,\)"),
        (ones(3, 0), np.array([], int), r"the batch is empty .*\(3, 0\)"),
        (ones(3, 2), np.array([0.0, 1.0]), "labels are float64; expected integers"),
        (ones(3, 2), np.array([True, False]), "labels are bool; expected integers"),
        (ones(0, 2), np.array([0, 0]), "0 classes"),
    ],
)
def test_cross_entropy_refuses_what_does_not_fit(
    logits: Array, labels: Array, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ops.cross_entropy(logits, labels)
