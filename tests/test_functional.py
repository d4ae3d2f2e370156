"""Ops of networks against loops: values and gradients, on live rows and no others; errors."""

import math
from dataclasses import replace

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import minidiff as md
from minidiff import Tensor
from minidiff import functional as F
from minidiff.engine import arrays
from minidiff.engine.kernels import TILE
from minidiff.engine.vectors import LANES
from tests import naive
from tests import strategies as own
from tests.checks import close, dead, equal, leaf
from tests.strategies import Convolution

# Around what kernels keep in registers at once.
BATCHES = [1, 3, LANES - 1, LANES, LANES + 1, TILE - 1, TILE, TILE + 1, 2 * TILE + 3]
BATCHES = BATCHES[::4] if numba.config.DISABLE_JIT else BATCHES
thorough = settings(max_examples=3 * settings.default.max_examples)


@pytest.fixture(scope="module", autouse=True)
def _poison():
    """Fill new arrays with NaN, so that it shows which elements are never written."""
    original = arrays.empty

    def empty(shape, dtype):
        out = original(shape, dtype)
        out.fill(np.nan if out.dtype.kind == "f" else 255)
        return out

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arrays, "empty", empty)
        yield


def rng():
    return np.random.default_rng(0)


def ones(*shape):
    return np.ones(shape, np.float32)


def live_rows(count):
    return st.none() | own.row_lists(count)


def prepare(data, tensor):
    """Put NaN where nothing may be read, in any layout; return the values for loops."""
    tensor.raw[dead(tensor.live, len(tensor))] = np.nan
    tensor.raw = np.array(tensor.raw, order=data.draw(st.sampled_from("CF")))
    tensor.raw.flags.writeable = data.draw(st.booleans())
    return np.nan_to_num(tensor.raw)


def backward(data, out):
    """Run backward; return the gradient given, for loops."""
    grad = leaf(data.draw(own.arrays(out.shape, dtype=out.dtype)), out.live)
    clean = prepare(data, grad)
    out.backward(grad.raw)
    return clean


# -- convolution and dense layer -------------------------------------------------------------


def check_layer(data, case, dtype, function, shapes):
    """Compare with loops, whichever rows are live, and whichever gradients are needed."""
    ins, outs = data.draw(live_rows(case.x[0])), data.draw(live_rows(case.weight[0]))
    ends = data.draw(st.just(outs) | live_rows(case.weight[0]))  # of the bias
    tensors = []
    for shape, live in zip(shapes, (ins, outs, ends), strict=True):
        if live is not None:  # dead rows follow in memory: reading past the end shows
            live = np.concatenate([live, dead(live, shape[0])])[: len(live)]
        tensors.append(leaf(data.draw(own.arrays(shape, dtype=dtype)), live))
        tensors[-1].requires_grad = data.draw(st.booleans())
    tensors[1].raw[:, dead(ins, case.x[0])] = np.nan
    x, weight, bias = (prepare(data, tensor) for tensor in tensors)
    x, weight = x.reshape(case.x), weight.reshape(case.weight)

    out = function(*tensors)
    assert out.dtype == dtype
    expected = naive.conv2d(x, weight, bias, case.stride, case.padding)
    close(out.data, expected.reshape(out.shape))
    # An output without weights equals its bias; if the bias is dead too, the output is dead.
    equal(out.live, None if outs is None or ends is None else np.union1d(outs, ends))
    assert np.isnan(out.raw[dead(out.live, len(out))]).all()  # not touched
    nothing = leaf(np.zeros(len(bias), dtype), outs)
    equal(function(*tensors[:2]).data, function(*tensors[:2], nothing).data)

    if out.requires_grad:
        grad = backward(data, out).reshape(expected.shape)
        grad_x, *_ = out.node.op.backward(grad.reshape(out.shape))
        assert grad_x is None or np.isnan(grad_x[dead(ins, case.x[0])]).all()  # not touched
        gradients = naive.grad_conv2d(x, weight, grad, case.stride, case.padding)
        for tensor, gradient in zip(tensors, gradients, strict=True):
            gradient[dead(tensor.live, len(gradient))] = 0  # constant zeros get no gradient
            if tensor.requires_grad:
                close(tensor.grad, gradient.reshape(tensor.shape))
                assert tensor.grad.dtype == dtype


@thorough
@given(st.data(), own.convolutions(), st.sampled_from(BATCHES), own.dtypes)
def test_conv2d_matches_loops(data, case, samples, dtype):
    def function(*tensors):
        return F.conv2d(*tensors, stride=case.stride, padding=case.padding)

    case = replace(case, x=(*case.x[:3], samples))
    check_layer(data, case, dtype, function, (case.x, case.weight, case.weight[:1]))


@thorough
@given(st.data(), *[st.integers(1, 9)] * 2, st.sampled_from(BATCHES), own.dtypes)
def test_linear_matches_loops(data, ins, outs, samples, dtype):
    case = Convolution((ins, 1, 1, samples), (outs, ins, 1, 1), (1, 1), (0, 0))
    check_layer(data, case, dtype, F.linear, ((ins, samples), (outs, ins), (outs,)))


# -- functions of one input ------------------------------------------------------------------


@pytest.mark.parametrize("name", ["max", "max with relu", "avg"])
@given(st.data(), own.pools(), own.dtypes)
def test_pools_match_loops(name, data, case, dtype):
    sizes, relu = (case.kernel, case.stride), "relu" in name
    # Few values, so many are equal: of equals the first must win.
    values = data.draw(own.arrays(case.x, -2, 3, np.int64)).astype(dtype)
    tensor = leaf(values, data.draw(live_rows(case.x[0])))
    x = np.maximum(prepare(data, tensor), 0 if relu else -9)
    if name == "avg":
        values, gradients = naive.avg_pool2d, naive.grad_avg_pool2d
        out = F.avg_pool2d(tensor, case.kernel, stride=case.stride)
    else:
        values, gradients = naive.max_pool2d, naive.grad_max_pool2d
        out = F.max_pool2d(tensor, case.kernel, stride=case.stride, relu=relu)
        assert np.isnan(out.raw[dead(out.live, len(out))]).all()  # not touched
    close(out.data, values(x, *sizes))
    assert out.dtype == dtype
    assert out.live is tensor.live
    expected = gradients(x, backward(data, out), *sizes)
    expected[dead(tensor.live, len(x))] = 0
    close(tensor.grad, np.where(x > 0, expected, 0) if relu else expected)


ONE_INPUT = {
    "relu": (F.relu, lambda x: np.maximum(x, 0)),
    "flatten": (F.flatten, lambda x: x.reshape(-1, x.shape[-1])),
    "select": (lambda x: F.select(x, [0, 2]), lambda x: x[[0, 2]]),
    "softmax": (F.softmax, lambda x: np.exp(x) / np.exp(x).sum(axis=0)),
    "dropout": (
        lambda x: F.dropout(x, 0.5, rng()),
        lambda x: 2 * x * (rng().random(x.shape, np.float32) >= 0.5),
    ),
}


@pytest.mark.parametrize("name", ONE_INPUT)
@given(st.data(), st.lists(st.integers(1, 3), min_size=1, max_size=3), own.dtypes)
def test_functions_of_one_input(name, data, shape, dtype):
    """Values and gradients; those of dead rows are those of zeros."""
    (function, plain), shape, live = ONE_INPUT[name], (3, *shape), data.draw(own.row_lists(3))
    values = data.draw(own.off_zero(shape))
    md.gradcheck(function, [leaf(values)])
    x = leaf(values.astype(dtype), live)
    dense = leaf(prepare(data, x))
    out, expected = function(x), function(dense)
    close(out.data, plain(dense.data))
    assert out.dtype == dtype
    for result in (out, expected):
        result.backward(np.cos(np.arange(out.size)).reshape(out.shape))
    dense.grad[dead(live, 3)] = 0
    equal(x.grad, dense.grad)
    if name in ("relu", "dropout"):
        equal(out.live, live)
    elif name == "flatten":  # a row for each position
        equal(out.live, np.arange(len(out)).reshape(3, -1)[live].ravel())


def test_pools_and_relu_keep_nan():
    for place in np.ndindex(2, 2):
        x = np.array([[[[1.0], [2.0]], [[4.0], [3.0]]]])
        x[0][place] = np.nan
        for pooled in (F.max_pool2d(x, 2), F.max_pool2d(x, 2, relu=True), F.avg_pool2d(x, 2)):
            assert np.isnan(pooled.item())
        equal(F.relu(x).data, x)


@pytest.mark.parametrize(("relu", "width"), [(False, 16), (True, 15)])
def test_the_last_position_of_the_largest_window_can_win(relu, width):
    x = leaf(np.arange(16.0 * width).reshape(1, 16, width, 1))
    F.max_pool2d(x, (16, width), relu=relu).backward()
    equal(x.grad.ravel().nonzero()[0], [16 * width - 1])
    with pytest.raises(ValueError, match=f"has over {256 - relu} positions"):
        F.max_pool2d(np.zeros((1, 16, width + 1, 1)), (16, width + 1), relu=relu)


def test_dropout_of_nothing_draws_nothing():
    generator, x = rng(), Tensor([1.0, 2.0])
    assert F.dropout(x, 0, generator) is x
    assert generator.bit_generator.state == rng().bit_generator.state


# -- as in NumPy -----------------------------------------------------------------------------


@given(st.data(), own.shapes.filter(len), st.integers(1, 3), own.dtypes)
def test_concatenate_and_stack(data, shape, count, dtype):
    values = [data.draw(own.arrays(shape, dtype=dtype)) for _ in range(count)]
    ends = len(shape) - 1
    axis = data.draw(st.integers(-ends - 1, ends))
    more = data.draw(st.integers(-ends - 2, ends + 1))
    for function, expected in (
        (lambda *x: F.concatenate(x, axis), np.concatenate(values, axis)),
        (lambda *x: F.stack(x, more), np.stack(values, more)),
    ):
        equal(function(*values).data, expected)
        assert function(*values).dtype == dtype
        md.gradcheck(function, [leaf(v.astype(np.float64)) for v in values])


@given(st.data(), own.pairs_of_shapes)
def test_where_takes_gradients_of_what_it_chose(data, shapes):
    a, b = (data.draw(own.off_zero(shape)) for shape in shapes)
    condition = np.asarray(a > 0)
    md.gradcheck(lambda x, y: F.where(condition, x, y), [leaf(a), leaf(b)])
    x = leaf(a)
    out = F.where(condition, x.abs().log(), 0.0)
    condition[...] = ~condition  # the caller may change it
    out.sum().backward()
    np.testing.assert_allclose(x.grad, np.where(a > 0, 1 / a, 0))


# -- long sums ---------------------------------------------------------------------------------


def test_long_sums_keep_their_digits():
    """Float32 sums of equal numbers, one after the other, would be wrong by a tenth of a per cent.

    Sums over samples are right to rounding, and matrix products about as NumPy's are.
    """
    count, side = (1000, 30) if numba.config.DISABLE_JIT else (100_000, 300)
    many = np.full((2, count), 0.1, np.float32)
    weight, bias = leaf(np.full((3, 2), 0.1, np.float32)), leaf(np.zeros(3, np.float32))
    out = F.linear(many, weight, bias)
    out.backward(np.full(out.shape, 0.1, np.float32))
    np.testing.assert_allclose(bias.grad, 0.1 * count, rtol=1e-7)
    np.testing.assert_allclose(weight.grad, 0.01 * count, rtol=2e-5)
    np.testing.assert_allclose(F.linear(many.T, many).data, 0.01 * count, rtol=2e-5)
    gate = md.Gate(2, initial=0.0)
    gate(many).backward(many)
    np.testing.assert_allclose(gate.phi.grad, 0.015 * count, rtol=3e-7)
    image = np.full((1, side, side, 1), 0.1, np.float32)
    assert F.avg_pool2d(image, side).item() == np.float32(0.1)
    filters = leaf(np.full((1, 1, 3, 3), 0.1, np.float32))
    F.conv2d(image, filters).sum().backward()
    np.testing.assert_allclose(filters.grad, 0.1 * (side - 2) ** 2, rtol=3e-6)
    logits = np.full((10, count), 0.1, np.float32)
    assert F.cross_entropy(logits, np.zeros(count, int)).item() == np.float32(math.log(10))


# -- loss ------------------------------------------------------------------------------------


@given(st.data(), st.integers(1, 6), st.integers(1, 6), st.sampled_from([0, 0.1, 0.9]), own.dtypes)
def test_cross_entropy_is_that_of_softmax(data, classes, samples, smoothing, dtype):
    logits = data.draw(own.arrays((classes, samples), -4, 4, dtype))
    labels = np.random.default_rng(data.draw(own.seeds)).integers(0, classes, samples)
    target = np.full(logits.shape, smoothing / classes)
    target[labels, np.arange(samples)] += 1 - smoothing
    powers = np.exp(logits.astype(np.float64))
    expected = -(target * np.log(powers / powers.sum(axis=0))).sum() / samples

    def loss(x):
        given = labels.astype(np.uint8)
        out = F.cross_entropy(x, given, label_smoothing=smoothing)
        given[:] = 0  # labels may change after their use
        return out

    assert (loss(logits).shape, loss(logits).dtype) == ((), dtype)
    np.testing.assert_allclose(loss(logits).item(), expected, rtol=1e-5, atol=1e-6)
    md.gradcheck(loss, [leaf(logits.astype(np.float64))])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_huge_logits_neither_overflow_nor_lose_the_loss(dtype):
    logits = leaf(np.array([[1e4, -1e4], [-1e4, -1e4], [0, 1e4]], dtype))
    assert F.cross_entropy(logits, np.array([0, 2])).item() == 0
    loss = F.cross_entropy(logits, np.array([1, 0]))
    np.testing.assert_allclose(loss.item(), 2e4, rtol=1e-6)
    loss.backward()
    equal(logits.grad, [[0.5, -0.5], [-0.5, 0], [0, 0.5]])
    equal(F.softmax(logits).data, [[1, 0], [0, 0], [0, 1]])


IMAGE, KERNEL, DENSE, LOGITS = ones(1, 3, 3, 1), ones(4, 1, 2, 2), ones(4, 2), ones(3, 2)
NO_PAIRS = [-1, (1, -1), (1, 2, 3), (), 1.5, "ab"]


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (F.conv2d, (IMAGE, ones(4, 2, 2, 2)), r"\(1, 3, 3, 1\) .* \(4, 2, 2, 2\) do not fit"),
        *((F.conv2d, (x, KERNEL), "conv2d: .* do not fit") for x in (ones(1, 3, 3), ones(2))),
        (F.conv2d, (ones(1, 1, 3, 1), KERNEL), "kernel 2 high does not fit on an input 1 high"),
        (F.conv2d, (ones(1, 3, 1, 1), KERNEL), "kernel 2 wide does not fit on an input 1 wide"),
        (F.conv2d, (ones(1, 3, 3, 0), KERNEL), r"x \(1, 3, 3, 0\) .* is empty"),
        (F.conv2d, (IMAGE, KERNEL, ones(3)), r"bias of shape \(3,\) .* expected \(4,\)"),
        (F.conv2d, (IMAGE, KERNEL, np.ones(4)), "x, weight and bias are float32, .*, float64"),
        (F.linear, (ones(3, 2), DENSE), r"\(3, 2\) .* \(4, 2\) do not fit"),
        (F.linear, (ones(8, 2), DENSE), r"The batch is the last axis; np\.moveaxis\(x, 0, -1\)"),
        (F.conv2d, (ones(8, 1, 3, 3), KERNEL), r"The batch is the last axis; np\.moveaxis"),
        (F.cross_entropy, (ones(8, 3), [0] * 8), r"The batch is the last axis; np\.moveaxis"),
        *((F.concatenate, (x,), "at least one") for x in ([], ())),
        (F.concatenate, ([ones(2), ones(3, 2)],), "same number of dimensions"),
        (F.stack, ([ones(2), ones(3)],), "must match exactly"),
        *((F.where, (x, 1.0, 2.0), "expected booleans") for x in ([1, 0], 1.0, "a")),
        (F.linear, (ones(2, 1, 1), DENSE), "linear: .* do not fit"),
        (F.linear, (ones(2, 1), ones(0, 2)), r"weight \(0, 2\) is empty"),
        (F.linear, (ones(2, 1), DENSE, ones(4, 1)), r"bias of shape \(4, 1\) .* expected \(4,\)"),
        (F.linear, (np.ones((2, 1)), DENSE), "x, weight and bias are float64, float32, float32"),
        *((F.conv2d, (IMAGE, KERNEL, {"stride": v}), "stride is") for v in NO_PAIRS),
        *((F.conv2d, (IMAGE, KERNEL, {"padding": v}), "padding is") for v in NO_PAIRS),
        *((F.max_pool2d, (IMAGE, v), "kernel is .*; expected an integer >= 1") for v in NO_PAIRS),
        (F.avg_pool2d, (IMAGE, 2, {"stride": 0}), "stride is 0"),
        (F.max_pool2d, (IMAGE, (4, 1)), r"does not fit on x of shape \(1, 3, 3, 1\)"),
        (F.avg_pool2d, (IMAGE, (1, 4)), r"does not fit on x of shape \(1, 3, 3, 1\)"),
        (F.max_pool2d, (ones(3, 3), 1), r"shape \(3, 3\); expected \(C, H, W, N\)"),
        (F.avg_pool2d, (ones(2, 3, 3, 0), 1), "expected .* not empty"),
        *((F.select, (ones(3, 2), i), "list of integers, not empty") for i in ([], [0.5], [[0]])),
        *((F.select, (ones(3, 2), i), "do not increase") for i in ([1, 0], [1, 1], [-1, 1])),
        (F.select, (ones(3, 2), [0, 3]), r"index 3 is out of range for x of shape \(3, 2\)"),
        (F.flatten, (ones(3),), r"shape \(3,\); expected at least \(D, N\)"),
        *((F.dropout, (IMAGE, p, rng()), r"p is .* in \[0, 1\)") for p in (-0.1, 1, np.nan, "0.5")),
        (F.dropout, (IMAGE, 0.5, 7), r"rng is 7; expected a numpy\.random\.Generator"),
        (F.cross_entropy, (LOGITS, [0, 1, 2]), r"\(3, 2\) and labels of shape \(3,\) do not fit"),
        (F.cross_entropy, (ones(3), [0]), r"logits of shape \(3,\)"),
        (F.cross_entropy, (ones(3, 0), []), r"the batch is empty .*\(3, 0\)"),
        (F.cross_entropy, (LOGITS, [0.0, 1.0]), "labels are float64; expected integers"),
        (F.cross_entropy, (LOGITS, [True, False]), "labels are bool; expected integers"),
        (F.cross_entropy, (LOGITS, [0, -1]), r"labels\[1\] is -1; expected 0\.\.2 for 3 classes"),
        (F.cross_entropy, (LOGITS, [0, 3]), r"labels\[1\] is 3; expected 0\.\.2"),
        (F.cross_entropy, (LOGITS, [0, 1], {"label_smoothing": 1}), "label_smoothing is 1; expect"),
    ],
)
def test_functions_refuse_what_does_not_fit(function, arguments, message):
    named = arguments[-1] if isinstance(arguments[-1], dict) else {}
    with pytest.raises((TypeError, ValueError), match=message):
        function(*(a for a in arguments if a is not named), **named)
