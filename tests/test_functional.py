"""Ops of networks: values and gradients as in loops, on live rows only; and what they refuse."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minidiff as md
from minidiff import Tensor
from minidiff import functional as F
from minidiff.engine import arrays
from minidiff.engine.kernels import LANES, TILE
from tests import naive
from tests import strategies as own
from tests.checks import close, dead, equal, leaf
from tests.strategies import Convolution


@pytest.fixture(scope="module", autouse=True)
def _poison():
    """Fill new arrays with NaN, so that an element that is never written shows."""
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


# -- convolution and dense layer -------------------------------------------------------------


def check_layer(data, case, dtype, function, shapes):
    """Compare with loops: NaN in all that must not be read, zeros in its place for the loops."""
    ins, outs = data.draw(live_rows(case.x[0])), data.draw(live_rows(case.weight[0]))
    ends = data.draw(st.just(outs) | live_rows(case.weight[0]))  # of the bias
    lives = ins, outs, ends
    tensors = [
        leaf(data.draw(own.arrays(shape, dtype=dtype)), live)
        for shape, live in zip(shapes, lives, strict=True)
    ]
    for tensor in tensors:
        tensor.raw[dead(tensor.live, len(tensor))] = np.nan
        tensor.requires_grad = data.draw(st.booleans())  # each gradient without the others
    tensors[1].raw[:, dead(ins, case.x[0])] = np.nan
    x, weight, bias = (np.nan_to_num(tensor.raw) for tensor in tensors)
    x, weight = x.reshape(case.x), weight.reshape(case.weight)

    out = function(*tensors)
    assert out.dtype == dtype
    expected = naive.conv2d(x, weight, bias, case.stride, case.padding)
    close(out.data, expected.reshape(out.shape))
    # An output without weights equals its bias; if the bias is dead too, the output is dead.
    live = None if outs is None or ends is None else np.union1d(outs, ends)
    equal(out.live, live)
    nothing = leaf(np.zeros(len(bias), dtype), outs)
    equal(function(*tensors[:2]).data, function(*tensors[:2], nothing).data)
    if not out.requires_grad:
        return

    grad = data.draw(own.arrays(out.shape, dtype=dtype))
    grad[dead(live, len(grad))] = np.nan
    out.backward(grad)
    grad = np.nan_to_num(grad).reshape(expected.shape)
    gradients = naive.grad_conv2d(x, weight, grad, case.stride, case.padding)
    for tensor, gradient, rows in zip(tensors, gradients, lives, strict=True):
        gradient[dead(rows, len(gradient))] = 0  # constant zeros get no gradient
        if tensor.requires_grad:
            close(tensor.grad, gradient.reshape(tensor.shape))
            assert tensor.grad.dtype == dtype


@given(st.data(), own.convolutions(), own.dtypes)
def test_conv2d_matches_loops(data, case, dtype):
    def function(*tensors):
        return F.conv2d(*tensors, stride=case.stride, padding=case.padding)

    check_layer(data, case, dtype, function, (case.x, case.weight, case.weight[:1]))


@given(
    st.data(), *[st.integers(1, 9)] * 2, st.sampled_from([1, 3, LANES, TILE, TILE + 1]), own.dtypes
)
def test_linear_matches_loops(data, ins, outs, samples, dtype):
    case = Convolution((ins, 1, 1, samples), (outs, ins, 1, 1), (1, 1), (0, 0))
    check_layer(data, case, dtype, F.linear, ((ins, samples), (outs, ins), (outs,)))


@pytest.mark.parametrize("layout", ["strided", "read-only"])
def test_arrays_of_any_layout_are_taken(layout):
    x, weight, bias = (rng().standard_normal(s) for s in ((2, 5, 5, 3), (4, 2, 3, 3), (4,)))

    def odd(array):
        array = np.repeat(array, 2, axis=-1)[..., ::2] if layout == "strided" else array.copy()
        array.flags.writeable = layout == "strided"
        return array

    for function, inputs in (
        (F.conv2d, (x, weight, bias)),
        (F.linear, (x[:, 0, 0], weight[:, :, 0, 0], bias)),
        (F.relu, (x,)),
        (lambda x: F.max_pool2d(x, 2), (x,)),
        (lambda x: F.avg_pool2d(x, 2), (x,)),
        (F.flatten, (x,)),
        (lambda x: F.select(x, [1]), (x,)),
    ):
        results = []
        for arguments in (inputs, map(odd, inputs)):
            tensors = [Tensor(array, requires_grad=True) for array in arguments]
            out = function(*tensors)
            out.backward(np.ones(out.shape))
            results.append((out.data, *(tensor.grad for tensor in tensors)))
        for one, other in zip(*results, strict=True):
            equal(one, other)


# -- pools -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["max", "max with relu", "avg"])
@given(st.data(), own.pools(), own.dtypes)
def test_pools_match_loops(name, data, case, dtype):
    live, sizes, relu = data.draw(live_rows(case.x[0])), (case.kernel, case.stride), "relu" in name
    # Few values, so many are equal: of equals the first must win.
    tensor = leaf(data.draw(own.arrays(case.x, -2, 3, np.int64)).astype(dtype), live)
    tensor.raw[dead(live, len(tensor))] = np.nan
    x = np.maximum(np.nan_to_num(tensor.raw), 0 if relu else -9)
    if name == "avg":
        out = F.avg_pool2d(tensor, case.kernel, stride=case.stride)
    else:
        out = F.max_pool2d(tensor, case.kernel, stride=case.stride, relu=relu)
    close(out.data, (naive.avg_pool2d if name == "avg" else naive.max_pool2d)(x, *sizes))
    assert out.dtype == dtype
    assert out.live is live

    grad = data.draw(own.arrays(out.shape, dtype=dtype))
    grad[dead(live, len(grad))] = np.nan
    out.backward(grad)
    loops = naive.grad_avg_pool2d if name == "avg" else naive.grad_max_pool2d
    expected = loops(x, np.nan_to_num(grad), *sizes)
    expected[dead(live, len(x))] = 0
    close(tensor.grad, np.where(x > 0, expected, 0) if relu else expected)


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


# -- functions of one input ------------------------------------------------------------------

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
    values[dead(live, 3)] = np.nan
    x, dense = leaf(values.astype(dtype), live), leaf(np.nan_to_num(values).astype(dtype))
    close(function(x).data, plain(dense.data))
    assert function(x).dtype == dtype
    for tensor in (x, dense):
        out = function(tensor)
        out.backward(np.cos(np.arange(out.size)).reshape(out.shape))
    dense.grad[dead(live, 3)] = 0
    equal(x.grad, dense.grad)


@given(own.row_lists(3))
def test_live_rows_are_handed_on(live):
    x = leaf(ones(3, 2, 2, 5), live)
    for out in (F.relu(x), F.dropout(x, 0.5, rng())):
        equal(out.live, live)
    equal(F.flatten(x).live, np.arange(12).reshape(3, 4)[live].ravel())


def test_dropout_of_nothing_draws_nothing():
    generator, x = rng(), Tensor([1.0, 2.0])
    assert F.dropout(x, 0, generator) is x
    assert generator.bit_generator.state == rng().bit_generator.state


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
        return F.cross_entropy(x, labels.astype(np.uint8), label_smoothing=smoothing)

    assert (loss(logits).shape, loss(logits).dtype) == ((), dtype)
    np.testing.assert_allclose(loss(logits).item(), expected, rtol=1e-5, atol=1e-6)
    md.gradcheck(loss, [leaf(logits.astype(np.float64))])


def test_labels_may_change_after_their_use():
    logits, labels = leaf(np.zeros((2, 2))), np.array([0, 1])
    loss = F.cross_entropy(logits, labels)
    labels[:] = 0
    loss.backward()
    equal(logits.grad, [[-0.25, 0.25], [0.25, -0.25]])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_huge_logits_neither_overflow_nor_lose_the_loss(dtype):
    logits = leaf(np.array([[1e4, -1e4], [-1e4, -1e4], [0, 1e4]], dtype))
    assert F.cross_entropy(logits, np.array([0, 2])).item() == 0
    loss = F.cross_entropy(logits, np.array([1, 0]))
    np.testing.assert_allclose(loss.item(), 2e4, rtol=1e-6)
    loss.backward()
    equal(logits.grad, [[0.5, -0.5], [-0.5, 0], [0, 0.5]])
    equal(F.softmax(logits).data, [[1, 0], [0, 0], [0, 1]])


# -- errors ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "weight", "message"),
    [
        ((3, 5, 5, 2), (4, 2, 3, 3), r"\(3, 5, 5, 2\) .* \(4, 2, 3, 3\) do not fit"),
        ((3, 5, 5), (4, 3, 3, 3), "do not fit"),
        ((3, 5, 5, 2), (4, 3), "do not fit"),
        ((1, 2, 9, 1), (1, 1, 3, 1), "kernel 3 high does not fit on an input 2 high"),
        ((1, 9, 2, 1), (1, 1, 1, 3), "kernel 3 wide does not fit on an input 2 wide"),
        ((2, 3, 3, 0), (1, 2, 1, 1), "is empty"),
        ((0, 3, 3, 1), (1, 0, 1, 1), "is empty"),
        ((2, 3, 3, 1), (0, 2, 1, 1), "is empty"),
        ((3, 2), (4, 2), r"\(3, 2\) .* \(4, 2\) do not fit"),
        ((3,), (4, 3), "do not fit"),
        ((3, 1, 1, 2), (4, 3), "do not fit"),
        ((2, 0), (1, 2), "is empty"),
        ((2, 1), (0, 2), "is empty"),
    ],
)
def test_layers_refuse_what_does_not_fit(x, weight, message):
    name = "conv2d" if len(x) + len(weight) > 6 else "linear"
    with pytest.raises(ValueError, match=f"{name}: .*{message}"):
        getattr(F, name)(ones(*x), ones(*weight))


@pytest.mark.parametrize(
    ("function", "given"),
    [(F.conv2d, (ones(2, 3, 3, 1), ones(4, 2, 3, 3))), (F.linear, (ones(2, 1), ones(4, 2)))],
)
def test_layers_refuse_a_bias_or_dtypes_that_do_not_fit(function, given):
    for bias in ((3,), (4, 1), ()):
        with pytest.raises(ValueError, match=r"bias of shape .* expected \(4,\)"):
            function(*given, ones(*bias))
    for odd in range(3):
        mixed = [a.astype(np.float64 if i == odd else a.dtype) for i, a in enumerate(given)]
        with pytest.raises(ValueError, match=r"dtypes of x, weight and bias are .*float64"):
            function(*mixed, ones(4).astype(np.float64 if odd == 2 else np.float32))


@pytest.mark.parametrize("value", [-1, (1, -1), (1, 2, 3), (), 1.5, (1, 1.5), "ab"], ids=repr)
def test_strides_paddings_and_windows_are_refused_by_name(value):
    x, weight = ones(1, 3, 3, 1), ones(1, 1, 2, 2)
    for name, call in (
        ("stride", lambda: F.conv2d(x, weight, stride=value)),
        ("padding", lambda: F.conv2d(x, weight, padding=value)),
        ("kernel", lambda: F.max_pool2d(x, value)),
        ("stride", lambda: F.avg_pool2d(x, 2, stride=value)),
    ):
        with pytest.raises(ValueError, match=f"{name} is .*; expected an integer >= "):
            call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        *((lambda i=i: F.select(ones(3, 2), i), "not empty") for i in ([], [0.5], [[0, 1]])),
        *((lambda i=i: F.select(ones(3, 2), i), "increase") for i in ([1, 0], [1, 1], [-1, 1])),
        (lambda: F.select(ones(3, 2), [0, 3]), r"index 3 is out of range for x of shape \(3, 2\)"),
        (lambda: F.flatten(ones(3)), r"shape \(3,\); expected at least \(D, N\)"),
        *((lambda p=p: F.dropout(ones(1), p, rng()), "p is") for p in (-0.1, 1, 1.5, np.nan)),
        (lambda: F.dropout(ones(1), 0.5, 7), r"rng is 7; expected a numpy\.random\.Generator"),
        (lambda: F.max_pool2d(ones(1, 3, 3, 1), (4, 1)), r"does not fit on x of .*\(1, 3, 3, 1\)"),
        (lambda: F.avg_pool2d(ones(1, 3, 3, 1), (1, 4)), r"does not fit on x of .*\(1, 3, 3, 1\)"),
        (lambda: F.max_pool2d(ones(3, 3), 1), r"shape \(3, 3\); expected \(C, H, W, N\)"),
        (lambda: F.avg_pool2d(ones(2, 3, 3, 0), 1), "expected .* not empty"),
    ],
)
def test_functions_refuse_what_does_not_fit(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()


@pytest.mark.parametrize(
    ("shape", "labels", "smoothing", "message"),
    [
        ((3, 2), np.array([0, 1, 2]), 0, r"\(3, 2\) and labels of shape \(3,\) do not fit"),
        ((3, 2), np.zeros((2, 1), int), 0, r"labels of shape \(2, 1\) do not fit"),
        ((3,), np.array([0]), 0, r"logits of shape \(3,\)"),
        ((3, 0), np.array([], int), 0, r"the batch is empty .*\(3, 0\)"),
        ((3, 2), np.array([0.0, 1.0]), 0, "labels are float64; expected integers"),
        ((3, 2), np.array([True, False]), 0, "labels are bool; expected integers"),
        ((3, 2), np.array([0, -1]), 0, r"labels\[1\] is -1; expected 0\.\.2 for 3 classes"),
        ((3, 2), np.array([0, 3]), 0, r"labels\[1\] is 3; expected 0\.\.2"),
        ((0, 2), np.array([0, 0]), 0, "0 classes"),
        *(((3, 2), np.array([0, 1]), s, "label_smoothing is") for s in (-0.1, 1.0, np.nan)),
    ],
)
def test_cross_entropy_refuses_what_does_not_fit(shape, labels, smoothing, message):
    with pytest.raises(ValueError, match=message):
        F.cross_entropy(ones(*shape), labels, label_smoothing=smoothing)
