"""Ops of networks: values and gradients as in loops, on live rows only; and what they refuse."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minidiff as md
from minidiff import Tensor, functional
from minidiff.engine import arrays
from minidiff.engine.kernels import LANES, TILE
from tests import naive
from tests import strategies as own
from tests.checks import close, dead, leaf
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
    tensors[1].raw[:, dead(ins, case.x[0])] = np.nan
    x, weight, bias = (np.nan_to_num(tensor.raw) for tensor in tensors)
    x, weight = x.reshape(case.x), weight.reshape(case.weight)

    out = function(*tensors)
    assert out.dtype == dtype
    expected = naive.conv2d(x, weight, bias, case.stride, case.padding)
    close(out.data, expected.reshape(out.shape))
    # An output without weights equals its bias; if the bias is dead too, the output is dead.
    live = None if outs is None or ends is None else np.union1d(outs, ends)
    np.testing.assert_array_equal(out.live, live)

    grad = data.draw(own.arrays(out.shape, dtype=dtype))
    grad[dead(live, len(grad))] = np.nan
    out.backward(grad)
    grad = np.nan_to_num(grad).reshape(expected.shape)
    gradients = naive.grad_conv2d(x, weight, grad, case.stride, case.padding)
    for tensor, gradient, rows in zip(tensors, gradients, lives, strict=True):
        gradient[dead(rows, len(gradient))] = 0  # constant zeros get no gradient
        close(tensor.grad, gradient.reshape(tensor.shape))
        assert tensor.grad.dtype == dtype

    nothing = leaf(np.zeros(len(bias), dtype), outs)
    np.testing.assert_array_equal(function(*tensors[:2]).data, function(*tensors[:2], nothing).data)


@given(st.data(), own.convolutions(), own.dtypes)
def test_conv2d_matches_loops(data, case, dtype):
    def function(*tensors):
        return functional.conv2d(*tensors, stride=case.stride, padding=case.padding)

    check_layer(data, case, dtype, function, (case.x, case.weight, case.weight[:1]))


@given(
    st.data(), *[st.integers(1, 9)] * 2, st.sampled_from([1, 3, LANES, TILE, TILE + 1]), own.dtypes
)
def test_linear_matches_loops(data, ins, outs, samples, dtype):
    case = Convolution((ins, 1, 1, samples), (outs, ins, 1, 1), (1, 1), (0, 0))
    check_layer(data, case, dtype, functional.linear, ((ins, samples), (outs, ins), (outs,)))


@pytest.mark.parametrize("wanted", range(3))
@pytest.mark.parametrize("name", ["conv2d", "linear"])
def test_each_gradient_is_computed_without_the_others(name, wanted):
    rng = np.random.default_rng(0)
    shapes = {"conv2d": ((2, 3, 3, 2), (3, 2, 2, 2), (3,)), "linear": ((2, 3), (4, 2), (4,))}
    tensors = [Tensor(rng.standard_normal(s), i == wanted) for i, s in enumerate(shapes[name])]
    md.gradcheck(getattr(functional, name), tensors)


@pytest.mark.parametrize("layout", ["strided", "read-only"])
def test_arrays_of_any_layout_are_taken(layout):
    rng = np.random.default_rng(0)
    x, weight, bias = (rng.standard_normal(s) for s in ((2, 5, 5, 3), (4, 2, 3, 3), (4,)))

    def odd(array):
        if layout == "strided":
            return np.repeat(array, 2, axis=-1)[..., ::2]
        array = array.copy()
        array.flags.writeable = False
        return array

    for function, inputs in (
        (functional.conv2d, (x, weight, bias)),
        (functional.linear, (x[:, 0, 0], weight[:, :, 0, 0], bias)),
        (functional.relu, (x,)),
        (lambda x: functional.max_pool2d(x, 2), (x,)),
        (lambda x: functional.avg_pool2d(x, 2), (x,)),
        (functional.flatten, (x,)),
        (lambda x: functional.select(x, [1]), (x,)),
    ):
        results = []
        for arguments in (inputs, map(odd, inputs)):
            tensors = [Tensor(array, requires_grad=True) for array in arguments]
            out = function(*tensors)
            out.backward(np.ones(out.shape))
            results.append((out.data, *(tensor.grad for tensor in tensors)))
        for one, other in zip(*results, strict=True):
            np.testing.assert_array_equal(one, other)


CONV, DENSE = (ones(2, 3, 3, 1), ones(4, 2, 3, 3), ones(4)), (ones(2, 1), ones(4, 2), ones(4))


@pytest.mark.parametrize(
    ("name", "x", "weight", "message"),
    [
        ("conv2d", (3, 5, 5, 2), (4, 2, 3, 3), r"\(3, 5, 5, 2\) .* \(4, 2, 3, 3\) do not fit"),
        ("conv2d", (3, 5, 5), (4, 3, 3, 3), "do not fit"),
        ("conv2d", (3, 5, 5, 2), (4, 3), "do not fit"),
        ("conv2d", (1, 2, 9, 1), (1, 1, 3, 1), "kernel 3 high does not fit on an input 2 high"),
        ("conv2d", (1, 9, 2, 1), (1, 1, 1, 3), "kernel 3 wide does not fit on an input 2 wide"),
        ("conv2d", (2, 3, 3, 0), (1, 2, 1, 1), "is empty"),
        ("conv2d", (0, 3, 3, 1), (1, 0, 1, 1), "is empty"),
        ("conv2d", (2, 3, 3, 1), (0, 2, 1, 1), "is empty"),
        ("linear", (3, 2), (4, 2), r"\(3, 2\) .* \(4, 2\) do not fit"),
        ("linear", (3,), (4, 3), "do not fit"),
        ("linear", (3, 1, 1, 2), (4, 3), "do not fit"),
        ("linear", (2, 0), (1, 2), "is empty"),
        ("linear", (2, 1), (0, 2), "is empty"),
    ],
)
def test_layers_refuse_what_does_not_fit(name, x, weight, message):
    with pytest.raises(ValueError, match=f"{name}: .*{message}"):
        getattr(functional, name)(ones(*x), ones(*weight))


@pytest.mark.parametrize(("name", "given"), [("conv2d", CONV), ("linear", DENSE)])
def test_layers_refuse_a_bias_or_dtypes_that_do_not_fit(name, given):
    function = getattr(functional, name)
    for bias in ((3,), (4, 1), ()):
        with pytest.raises(ValueError, match=rf"bias of shape \({', '.join(map(str, bias))}"):
            function(*given[:2], ones(*bias))
    for odd in range(3):
        mixed = [a.astype(np.float64) if i == odd else a for i, a in enumerate(given)]
        with pytest.raises(ValueError, match=r"dtypes of x, weight and bias are .*float64"):
            function(*mixed)


@pytest.mark.parametrize("value", [-1, (1, -1), (1, 2, 3), (), 1.5, (1, 1.5), "ab"], ids=repr)
def test_strides_paddings_and_windows_are_refused_by_name(value):
    x, weight = ones(1, 3, 3, 1), ones(1, 1, 2, 2)
    for name in ("stride", "padding"):
        with pytest.raises(ValueError, match=f"{name} is .*; expected an integer >= "):
            functional.conv2d(x, weight, **{name: value})
    for pool in (functional.max_pool2d, functional.avg_pool2d):
        with pytest.raises(ValueError, match=r"kernel is .*; expected an integer >= 1"):
            pool(x, value)
        with pytest.raises(ValueError, match=r"stride is .*; expected an integer >= 1"):
            pool(x, 2, stride=value)
    with pytest.raises(ValueError, match="stride is 0"):
        functional.conv2d(x, weight, stride=0, padding=0)


# -- pools -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["max", "max with relu", "avg"])
@given(st.data(), own.pools(), own.dtypes)
def test_pools_match_loops(name, data, case, dtype):
    live, relu = data.draw(live_rows(case.x[0])), name == "max with relu"
    # Few values, so many are equal: of equals the first must win.
    tensor = leaf(data.draw(own.arrays(case.x, -2, 3, np.int64)).astype(dtype), live)
    tensor.raw[dead(live, len(tensor))] = np.nan
    x, sizes = np.nan_to_num(tensor.raw), (case.kernel, case.stride)
    x = np.maximum(x, 0) if relu else x
    if name == "avg":
        out = functional.avg_pool2d(tensor, case.kernel, stride=case.stride)
        expected = naive.avg_pool2d(x, *sizes)
    else:
        out = functional.max_pool2d(tensor, case.kernel, stride=case.stride, relu=relu)
        expected = naive.max_pool2d(x, *sizes)
    close(out.data, expected)
    assert out.dtype == dtype
    assert out.live is live

    grad = data.draw(own.arrays(out.shape, dtype=dtype))
    grad[dead(live, len(grad))] = np.nan
    out.backward(grad)
    grad = np.nan_to_num(grad)
    if name == "avg":
        expected = naive.grad_avg_pool2d(x.shape, grad, *sizes)
    else:
        expected = naive.grad_max_pool2d(x, grad, *sizes)
    expected[dead(live, len(x))] = 0
    close(tensor.grad, np.where(x > 0, expected, 0) if relu else expected)


POOLS = [functional.max_pool2d, functional.avg_pool2d]


@pytest.mark.parametrize("pool", POOLS)
def test_a_pool_moves_by_its_window_unless_told(pool):
    x = np.random.default_rng(0).standard_normal((2, 7, 5, 3))
    assert pool(x, (3, 2)).shape == (2, 2, 2, 3)
    np.testing.assert_array_equal(pool(x, (3, 2)).data, pool(x, (3, 2), stride=(3, 2)).data)


@pytest.mark.parametrize("place", range(4))
def test_pools_and_relu_keep_nan(place):
    x = np.array([1.0, 2.0, 4.0, 3.0])
    x[place] = np.nan
    for pool in POOLS:
        assert np.isnan(pool(x.reshape(1, 2, 2, 1), 2).item())
    assert np.isnan(functional.max_pool2d(x.reshape(1, 2, 2, 1), 2, relu=True).item())
    assert np.isnan(functional.relu(x).data[place])


@pytest.mark.parametrize(("relu", "width"), [(False, 16), (True, 15)])
def test_the_last_position_of_the_largest_window_can_win(relu, width):
    x = leaf(np.arange(16.0 * width).reshape(1, 16, width, 1))
    functional.max_pool2d(x, (16, width), relu=relu).backward()
    np.testing.assert_array_equal(x.grad.ravel().nonzero()[0], [16 * width - 1])
    with pytest.raises(ValueError, match=f"has over {256 - relu} positions"):
        functional.max_pool2d(np.zeros((1, 16, width + 1, 1)), (16, width + 1), relu=relu)


@pytest.mark.parametrize("pool", POOLS)
def test_pools_refuse_what_does_not_fit(pool):
    for kernel in ((4, 1), (1, 4)):
        with pytest.raises(ValueError, match=r"does not fit on x of shape \(1, 3, 3, 1\)"):
            pool(ones(1, 3, 3, 1), kernel)
    for shape in ((3, 3), (2, 3, 3, 0), (0, 3, 3, 1)):
        with pytest.raises(ValueError, match=r"x has shape .*; expected \(C, H, W, N\), not empty"):
            pool(ones(*shape), 1)


# -- functions of one input ------------------------------------------------------------------

ONE_INPUT = {
    "relu": functional.relu,
    "dropout": lambda x: functional.dropout(x, 0.5, np.random.default_rng(0)),
    "flatten": functional.flatten,
    "select": lambda x: functional.select(x, [0, 2]),
    "softmax": functional.softmax,
}


@pytest.mark.parametrize("name", ONE_INPUT)
@given(st.data(), st.lists(st.integers(1, 3), min_size=1, max_size=3), own.dtypes)
def test_functions_of_one_input(name, data, shape, dtype):
    """Right gradients; and values and gradients of dead rows are those of zeros."""
    function, shape = ONE_INPUT[name], (3, *shape)
    values = data.draw(own.off_zero(shape))
    md.gradcheck(function, [leaf(values)])

    live = data.draw(own.row_lists(3))
    values[dead(live, 3)] = np.nan
    x, dense = leaf(values.astype(dtype), live), leaf(np.nan_to_num(values).astype(dtype))
    out, expected = function(x), function(dense)
    assert out.dtype == dtype
    np.testing.assert_array_equal(out.data, expected.data)
    for result in (out, expected):
        result.backward(np.cos(np.arange(result.size)).reshape(result.shape))
    dense.grad[dead(live, 3)] = 0
    np.testing.assert_array_equal(x.grad, dense.grad)


@given(own.row_lists(3))
def test_live_rows_are_handed_on(live):
    x = Tensor(ones(3, 2, 2, 5))
    x.live = live
    for name in ("relu", "dropout"):
        np.testing.assert_array_equal(ONE_INPUT[name](x).live, live)
    features = np.arange(12).reshape(3, 4)
    np.testing.assert_array_equal(functional.flatten(x).live, features[live].ravel())


@given(st.data(), own.shapes, own.dtypes)
def test_relu(data, shape, dtype):
    a = data.draw(own.off_zero(shape, dtype))
    np.testing.assert_array_equal(functional.relu(a).data, np.where(a > 0, a, 0))


def test_the_derivative_of_relu_at_zero_is_zero():
    x = leaf([0.0, -0.0, 1.0])
    functional.relu(x).sum().backward()
    np.testing.assert_array_equal(x.grad, [0, 0, 1])


def test_flatten_keeps_the_batch_and_the_order():
    x = np.arange(24.0).reshape(2, 3, 2, 2)
    np.testing.assert_array_equal(functional.flatten(x).data, x.reshape(12, 2))
    with pytest.raises(ValueError, match=r"shape \(3,\); expected at least \(D, N\)"):
        functional.flatten(ones(3))


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
def test_select_takes_an_increasing_list(indices, message):
    x = np.arange(6.0).reshape(3, 2)
    np.testing.assert_array_equal(functional.select(x, [0, 2]).data, x[[0, 2]])
    with pytest.raises(ValueError, match=message):
        functional.select(x, indices)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
def test_dropout_drops_with_its_probability(p):
    out = functional.dropout(ones(100_000), p, np.random.default_rng(0)).data
    assert abs((out == 0).mean() - p) < 5 * np.sqrt(p * (1 - p) / out.size)
    np.testing.assert_allclose(out[out != 0], 1 / (1 - p), rtol=1e-6)  # so the mean stays
    again = functional.dropout(ones(100_000), p, np.random.default_rng(0)).data
    np.testing.assert_array_equal(again, out)


def test_dropout_of_nothing_draws_nothing():
    rng, x = np.random.default_rng(0), Tensor([1.0, 2.0])
    assert functional.dropout(x, 0, rng) is x
    assert rng.bit_generator.state == np.random.default_rng(0).bit_generator.state


def test_dropout_takes_a_probability_and_a_generator():
    for p in (-0.1, 1, 1.5, np.nan):
        with pytest.raises(ValueError, match=r"p is .*; expected a probability in \[0, 1\)"):
            functional.dropout(ones(1), p, np.random.default_rng(0))
    with pytest.raises(TypeError, match=r"rng is 7; expected a numpy\.random\.Generator"):
        functional.dropout(ones(1), 0.5, 7)


# -- loss ------------------------------------------------------------------------------------


@given(st.data(), st.integers(1, 6), st.integers(1, 6), st.sampled_from([0, 0.1, 0.9]), own.dtypes)
def test_cross_entropy_is_that_of_softmax(data, classes, samples, smoothing, dtype):
    logits = data.draw(own.arrays((classes, samples), -4, 4, dtype))
    labels = np.random.default_rng(data.draw(own.seeds)).integers(0, classes, samples)
    target = np.full(logits.shape, smoothing / classes)
    target[labels, np.arange(samples)] += 1 - smoothing
    powers = np.exp(logits.astype(np.float64))
    softmax = powers / powers.sum(axis=0)
    np.testing.assert_allclose(functional.softmax(logits).data, softmax, rtol=1e-5)

    def loss(x):
        return functional.cross_entropy(x, labels.astype(np.uint8), label_smoothing=smoothing)

    assert (loss(logits).shape, loss(logits).dtype) == ((), dtype)
    expected = -(target * np.log(softmax)).sum() / samples
    np.testing.assert_allclose(loss(logits).item(), expected, rtol=1e-5, atol=1e-6)
    md.gradcheck(loss, [leaf(logits.astype(np.float64))])


def test_labels_may_change_after_their_use():
    logits, labels = leaf(np.zeros((3, 2))), np.array([0, 1])
    loss = functional.cross_entropy(logits, labels)
    labels[:] = 2
    loss.backward()
    np.testing.assert_allclose(logits.grad, [[-1 / 3, 1 / 6], [1 / 6, -1 / 3], [1 / 6, 1 / 6]])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_huge_logits_neither_overflow_nor_lose_the_loss(dtype):
    logits = leaf(np.array([[1e4, -1e4], [-1e4, -1e4], [0, 1e4]], dtype))
    assert functional.cross_entropy(logits, np.array([0, 2])).item() == 0
    loss = functional.cross_entropy(logits, np.array([1, 0]))
    np.testing.assert_allclose(loss.item(), 2e4, rtol=1e-6)
    loss.backward()
    np.testing.assert_array_equal(logits.grad, [[0.5, -0.5], [-0.5, 0], [0, 0.5]])
    np.testing.assert_array_equal(functional.softmax(logits).data, [[1, 0], [0, 0], [0, 1]])


@pytest.mark.parametrize(
    ("shape", "labels", "message"),
    [
        ((3, 2), np.array([0, 1, 2]), r"\(3, 2\) and labels of shape \(3,\) do not fit"),
        ((3, 2), np.zeros((2, 1), int), r"labels of shape \(2, 1\) do not fit"),
        ((3,), np.array([0]), r"logits of shape \(3,\)"),
        ((3, 0), np.array([], int), r"the batch is empty .*\(3, 0\)"),
        ((3, 2), np.array([0.0, 1.0]), "labels are float64; expected integers"),
        ((3, 2), np.array([True, False]), "labels are bool; expected integers"),
        ((3, 2), np.array([0, -1]), r"labels\[1\] is -1; expected 0\.\.2 for 3 classes"),
        ((3, 2), np.array([0, 3]), r"labels\[1\] is 3; expected 0\.\.2"),
        ((0, 2), np.array([0, 0]), "0 classes"),
    ],
)
def test_cross_entropy_refuses_what_does_not_fit(shape, labels, message):
    with pytest.raises(ValueError, match=message):
        functional.cross_entropy(ones(*shape), labels)


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, np.nan])
def test_label_smoothing_is_a_share(smoothing):
    with pytest.raises(ValueError, match=r"label_smoothing is .*; expected \[0, 1\)"):
        functional.cross_entropy(ones(3, 2), np.array([0, 1]), label_smoothing=smoothing)
