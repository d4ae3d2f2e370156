"""The tape: which gradients arrive where, when they are right, and which rows they have."""

import asyncio
import gc
import operator
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minidiff as md
from minidiff import Tensor
from minidiff.engine.op import Op
from tests.checks import close, equal, leaf
from tests.strategies import arrays, row_lists

# -- making tensors --------------------------------------------------------------------------


def test_float_arrays_are_kept_and_all_else_becomes_float32():
    for dtype in (np.float32, np.float64):
        array = np.ones((2, 3), dtype)
        tensor = Tensor(array)
        assert tensor.data is array
        assert (tensor.shape, tensor.ndim, tensor.size, len(tensor)) == ((2, 3), 2, 6, 2)
        assert tensor.dtype == dtype
        swapped = array.astype(array.dtype.newbyteorder())
        assert Tensor(swapped).dtype == dtype
        equal(Tensor(swapped).data, array)
    assert Tensor(np.float64(1e300)).item() == 1e300
    for array in ([1.0, 2.0], (True, False), np.arange(2), np.ones(2, np.float16), 3, [[]]):
        assert Tensor(array).dtype == np.float32
        equal(Tensor(array).data, array)


LARGE = np.array([1, 2**24 + 1])  # float32 would round it


@pytest.mark.parametrize("place", ["alone", "beside", "data", "grad", "backward"])
@pytest.mark.parametrize(
    "array",
    [
        *(LARGE, LARGE.astype(np.uint64), LARGE.tolist(), np.array([0, 2**63 - 1]), [1e300, 0.0]),
        *(np.array([1, 2], np.longdouble), np.ma.masked_array([1, 2], [0, 1])),
    ],
    ids=str,
)
def test_a_change_of_precision_is_never_silent(place, array):
    x, loss = Tensor([1.0, 2.0], requires_grad=True), leaf(np.ones(2, np.float32)) * 2
    with pytest.raises((TypeError, ValueError), match="expected"):
        {
            "alone": lambda: Tensor(array),
            "beside": lambda: x + array,
            "data": lambda: setattr(x, "data", array),
            "grad": lambda: setattr(x, "grad", array),
            "backward": lambda: loss.backward(array),
        }[place]()
    equal(x.data, [1, 2])
    assert x.grad is None


def test_a_single_number_does_not_make_float32_float64():
    x = leaf(np.ones(2, np.float32))
    for number in (2.0, np.float64(2), np.array(2.0), Tensor(np.array(2.0)), leaf(2.0)):
        out = x * number
        assert (x + number).dtype == (number - x).dtype == out.dtype == np.float32
        out.sum().backward()
    assert number.grad == 2
    assert number.grad.dtype == np.float64
    for wide in (np.ones(2), leaf(np.ones(2)), np.ones(1)):
        assert (x * wide).dtype == np.float64
    assert (leaf(np.float32(1)) * leaf(1.0)).dtype == np.float64


@pytest.mark.parametrize(
    ("call", "words"),
    [
        *(
            (lambda x=x: Tensor(x), "expected real numbers")
            for x in ([1j], ["a"], [object()], None)
        ),
        (lambda: Tensor(Tensor([1.0])), "is a Tensor already"),
        (lambda: Tensor([1.0, 2.0]).item(), "size 1"),
        (lambda: bool(Tensor([1.0, 2.0])), "ambiguous"),
        (lambda: list(Tensor(3.0)), "unsized"),
        (lambda: np.asarray(Tensor([1.0])), r"take its \.data"),
        *(
            (lambda f=f: f(Tensor([1.0])), r"take its \.data; those with a gradient are methods")
            for f in (np.exp, np.sum, np.mean, np.transpose, np.isnan, lambda t: np.stack([t, t]))
        ),
        (lambda: np.add(np.ones(1), Tensor([1.0])), r"take its \.data"),
        (lambda: leaf([1.0, 2.0]).__setattr__("grad", [1.0]), r"shape \(1,\); expected \(2,\)"),
        (lambda: (-2) ** leaf([1.0]), "base of a power is -2; expected a number above 0"),
        (lambda: np.ones(1) ** leaf([1.0]), "base of a power is array"),
        (lambda: f"{Tensor([1.0, 2.0]):.2f}", "size 1"),
        (lambda: Tensor([1.0]).clip(np.zeros(1), None), r"limit has shape \(1,\).*maximum"),
        (lambda: np.array([Tensor([1.0])] * 2), r"take its \.data"),
        (lambda: leaf([1.0]).__setitem__(0, 1), "build a new one"),
        (lambda: (Tensor([1.0]) * 2).backward(), "requires no gradient"),
        (lambda: (leaf([[1.0, 2.0]]) * 2).backward(), r"backward\(\) on shape \(1, 2\)"),
        (lambda: (leaf([1.0]) * 2).backward(np.ones(3)), r"shape \(3,\); expected \(1,\)"),
    ],
)
def test_misuse_is_refused(call, words):
    with pytest.raises((TypeError, ValueError, RuntimeError), match=words):
        call()


def test_a_tensor_is_a_number_or_its_rows():
    tensor = Tensor([[2.5]])
    assert type(tensor.item()) is float
    assert tensor.item() == float(tensor) == 2.5
    assert tensor
    assert not Tensor([0.0])
    assert [float(row.sum()) for row in Tensor([[1.0, 2.0], [3.0, 4.0]])] == [3, 7]


def test_comparisons_are_arrays_of_booleans():
    x, other = leaf([1.0, 2.0, np.nan]), np.array([1.0, 1.0, 1.0])
    for compare in (operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge):
        expected = compare(x.data, other)
        for a, b in ((x, other), (x, leaf(other)), (x, 1), (x.data, leaf(other))):
            found = compare(a, b)
            assert type(found) is np.ndarray
            equal(found, expected)
        equal(compare(1.0, x), compare(1.0, x.data))
    assert Tensor(3.0) == 3.0
    assert {x: "by identity"}[x]
    assert not (x == None).any()  # noqa: E711 - as in NumPy


def test_a_tensor_is_formatted_as_a_number_or_as_it_is_shown():
    assert f"{Tensor(2.5):.3f} {Tensor([[-2.0]]):+.0e}" == "2.500 -2e+00"
    assert f"{Tensor([1.0, 2.0])}" == str(Tensor([1.0, 2.0])) == "Tensor([1., 2.])"


# -- gradients of a graph --------------------------------------------------------------------


@given(arrays((3,)))
def test_gradients_of_shared_results_add_up(a):
    def diamond(x):
        y = x.tanh()
        return (y * y + y.exp()) * (x + y)

    md.gradcheck(diamond, [leaf(a)])


def test_a_deep_graph_runs_back_and_is_freed_at_once():
    y = x = leaf([1.0])
    for _ in range(10_000):  # recursion would end at a thousand; there are 2 ** 10_000 paths
        y = (y + y) * 0.5
    y.backward()
    assert x.grad == 1
    end, start = weakref.ref(y), weakref.ref(x)
    gc.disable()  # no cycle waits for the garbage collector
    try:
        del x, y
        assert end() is start() is None
    finally:
        gc.enable()


@given(arrays((2,)), st.integers(1, 5))
def test_each_backward_adds_the_same_again(a, times):
    x = leaf(a)
    loss = (x * x * x).sum()
    for _ in range(times):
        loss.backward()
    np.testing.assert_allclose(x.grad, times * 3 * a * a)
    (2 * x).sum().backward()  # and so does another graph
    np.testing.assert_allclose(x.grad, times * 3 * a * a + 2)


def test_leaves_that_required_a_gradient_when_used_get_one():
    plain, late, early, wanted = Tensor([3.0]), Tensor([4.0]), leaf([1.0]), leaf([2.0])
    y = plain * wanted * early
    out = y * late / plain @ plain
    late.requires_grad, early.requires_grad = True, False
    out.backward()
    assert plain.grad is late.grad is y.grad is None
    assert (wanted.grad, early.grad) == (12, 24)
    assert (y.requires_grad, (plain + plain).requires_grad) == (True, False)


@pytest.mark.parametrize(
    "function",
    [
        lambda x, y: (x + y) + (y - x),
        lambda x, y: x.reshape(4) + y.reshape(4),
        lambda x, y: x.T + y.T,
        lambda x, y: x[:] + y[...],
        lambda x, y: x.sum(0) + y.sum(0),
        lambda x, y: x,
    ],
)
def test_gradients_share_memory_with_nothing(function):
    x, y = leaf([[1.0, 2.0], [3.0, 5.0]]), leaf([[2.0, 1.0], [4.0, 7.0]])
    out = function(x, y)
    given = np.ones(out.shape)
    for _ in range(2):
        out.backward(given)
        found = [given, x.grad] + ([] if y.grad is None else [y.grad])
        assert all(array.flags.writeable for array in found)
        assert not any(np.may_share_memory(*pair) for pair in combinations(found, 2))
    equal(given, np.ones(out.shape))


def test_no_grad_records_nothing():
    x = leaf([1.0])
    with md.no_grad():
        y = x * x
        with pytest.raises(KeyError), md.no_grad():
            raise KeyError
        assert not (x * x).requires_grad  # an error ends the inner one only
    assert (y.requires_grad, y.node) == (False, None)  # so it keeps no inputs
    assert (x * x).requires_grad


def is_recorded():
    return (leaf([1.0]) * 2).requires_grad


def test_blocks_of_no_grad_may_end_in_any_order_and_thread():
    def suspended():
        with md.no_grad():
            yield

    first, second = suspended(), suspended()
    next(first)
    next(second)
    first.close()
    assert not is_recorded()
    second.close()
    assert is_recorded()
    next(first := suspended())
    with ThreadPoolExecutor(1) as other:
        assert other.submit(is_recorded).result()  # threads begin with a tape
        other.submit(first.close).result()
        assert other.submit(is_recorded).result()
    assert is_recorded()
    block = md.no_grad()
    with block, pytest.raises(RuntimeError, match=r"in use; write no_grad\(\) anew"), block:
        pass
    with block:
        assert not is_recorded()
    assert is_recorded()


def test_tasks_do_not_share_their_no_grad():
    async def quiet(own, other):
        with md.no_grad():
            own.set()
            await other.wait()
            return is_recorded()

    async def loud(own, other):
        await other.wait()
        try:
            return is_recorded()
        finally:
            own.set()

    async def both():
        one, other = asyncio.Event(), asyncio.Event()
        return await asyncio.gather(quiet(one, other), loud(other, one))

    assert asyncio.run(both()) == [False, True]
    assert is_recorded()


def test_no_grad_decorates_functions_that_compute_at_once():
    @md.no_grad()
    def recorded():
        """Say so."""
        return is_recorded()

    assert (recorded(), recorded.__doc__, is_recorded()) == (False, "Say so.", True)

    def generator():
        yield is_recorded()

    async def coroutine():
        return is_recorded()  # pragma: no cover

    async def stream():
        yield is_recorded()  # pragma: no cover

    for later in (generator, coroutine, stream, lambda: map(abs, [1]), partial(generator)):
        with pytest.raises(TypeError, match="would compute later, with a tape"):
            md.no_grad()(later)()
        assert is_recorded()


def test_detach_shares_values_but_not_the_tape():
    x = leaf([2.0])
    y = x * x
    cut = y.detach()
    assert np.shares_memory(cut.data, y.data)
    assert not cut.data.flags.writeable
    (y * cut).backward()
    assert x.grad == 16  # 2x * 4, and not 4x^3


# -- data may not change under the tape ------------------------------------------------------


def test_data_on_the_tape_is_read_only():
    x = leaf([1.0, 2.0])
    for result in (x * 2, x.reshape(2, 1), x[:1], x.T):
        with pytest.raises(ValueError, match="read-only"):
            result.data[...] = 0
        with pytest.raises(RuntimeError, match=r"the tape needs the data .* \.detach\(\)"):
            result.data = np.zeros(result.shape)
    off = Tensor([1.0, 2.0]) * 2
    off.data[0] = 7
    equal(off.data, [7, 4])


@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.reshape(4),
        lambda x: x.T,
        lambda x: x[:1],
        lambda x: x[...],
        md.functional.flatten,
        md.Gate(2, dtype=np.float64),  # fully open
        md.Mask(md.Gate(2, dtype=np.float64), md.Groups.along((2,), 0)),
        lambda x: md.apply(Double(), x, x) * 0.25,
        lambda x: md.apply(Identity(), x),
    ],
)
def test_results_share_no_memory_with_what_can_change(function, recorded):
    for of_a_result in (False, True):
        x = leaf([[1.0, 2.0], [3.0, 5.0]])
        given = x * 2 if of_a_result else x
        before = given.data.copy()
        with nullcontext() if recorded else md.no_grad():
            out = function(given)
        held, expected = out.data, out.data.copy()
        if not of_a_result:
            x.data[...] = 7
        if held.flags.writeable:
            held[...] = 9
            equal(given.data, 7 if not of_a_result else before)
        else:
            equal(held, expected)


@pytest.mark.parametrize("change", ["by an optimiser", "in place", "of dead rows"])
def test_a_change_after_use_is_noticed(change):
    x = leaf([2.0, 1.0], live=np.array([0]) if change == "of dead rows" else None)
    loss = (x * x).sum()
    loss.backward()
    if change == "by an optimiser":
        md.optim.SGD([x], lr=0.1).step()
    elif change == "in place":
        x.data -= 0.1
    else:
        x.data = np.ones(2)  # for row 1 nothing was computed
    with pytest.raises(RuntimeError, match=r"input of Multiply \(shape \(2,\)\) was changed"):
        loss.backward()
    (x * x).sum().backward()  # a new forward pass mends it


def test_new_data_leaves_the_gradient_of_the_old():
    x = Tensor([2.0, 3.0], requires_grad=True)
    loss = (x * x).sum()
    with pytest.raises(ValueError, match=r"\(3,\); expected \(2,\)"):
        x.data = np.zeros(3)
    x.data = np.array([100.0, 200.0])
    loss.backward()
    equal(x.grad, [4, 6])
    equal(x.data, [100, 200])
    assert x.dtype == np.float32


# -- ops -------------------------------------------------------------------------------------


class Double(Op):
    """2x, whose ``backward`` returns what a test says."""

    def __init__(self, returned=lambda grad: grad):
        self.returned = returned

    def forward(self, *inputs):
        self.writeable = [x.flags.writeable for x in inputs]
        return 2 * sum(inputs)

    def backward(self, grad):
        self.writeable.append(grad.flags.writeable)
        return self.returned(2 * grad)


def test_backward_returns_arrays_or_none_where_none_is_needed():
    x = leaf([1.0, 2.0])
    md.apply(Double(), x).sum().backward()
    md.apply(Double(lambda g: (g,)), x).sum().backward()
    md.apply(Double(lambda g: (g, None)), x, Tensor([1.0, 1.0])).sum().backward()
    equal(x.grad, [6, 6])


class Identity(Op):
    """x itself."""

    def forward(self, x):
        return x

    def backward(self, grad):
        return grad


class Spoiler(Op):
    """x, whose ``backward`` writes into its argument."""

    def forward(self, x):
        return x.copy()

    def backward(self, grad):
        grad *= 0
        return grad


def test_no_op_can_spoil_the_gradients_of_others():
    x = leaf([1.0, 2.0])
    with pytest.raises(ValueError, match="read-only"):
        (md.apply(Spoiler(), x) + x).sum().backward()
    assert x.grad is None
    memory = np.frombuffer(bytearray(np.ones(2).tobytes()))  # of another owner
    y = leaf([1.0, 2.0])
    (x.reshape(2, 1) + y.reshape(2, 1)).backward(memory.reshape(2, 1))
    x.grad[:] = 5
    memory[:] = 6
    equal(y.grad, [1, 1])


@pytest.mark.parametrize(
    ("returned", "error", "words"),
    [
        (lambda g: (g,), TypeError, "Double returned 1 gradients; expected 2"),
        (lambda g: (g, None), TypeError, "Double returned None for input 1"),
        (lambda g: (g, g[0]), ValueError, r"shape \(3,\) for an input of shape \(2, 3\)"),
        (lambda g: (g, g[:, :2]), ValueError, r"shape \(2, 2\) for an input of shape \(2, 3\)"),
        (lambda g: (g, g.sum()), ValueError, r"shape \(\) for an input of shape \(2, 3\)"),
    ],
)
def test_a_wrong_backward_is_named(returned, error, words):
    x, y = leaf(np.ones((2, 3))), leaf(np.ones((2, 3)))
    with pytest.raises(error, match=words):
        md.apply(Double(returned), x, y).sum().backward()


def test_an_op_is_applied_once_and_to_read_only_arrays():
    op, x = Double(), leaf([1.0, 1.0])
    op.live = np.array([0])
    md.apply(op, x).backward(np.array([1.0, np.nan]))
    assert op.writeable == [False, False]
    equal(x.grad, [2, 0])  # it is given zeros in dead rows
    with pytest.raises(RuntimeError, match="this Double was applied before; make a new one"):
        md.apply(op, leaf([1.0]))


# -- live rows -------------------------------------------------------------------------------


class Rows(Op):
    """Twice the live rows; NaN in all others, as if they were uninitialised."""

    skips_dead_rows = True

    def __init__(self, live, closed_for_good):
        self.rows, self.closed_for_good = live, closed_for_good

    def twice(self, x, rest):
        out = np.full_like(x, rest)
        out[self.rows] = 2 * x[self.rows]
        return out

    def forward(self, x):
        self.live = self.rows
        if self.closed_for_good:
            self.grad_live = (self.rows,)
        return self.twice(x, np.nan)

    def backward(self, grad):
        return self.twice(grad, np.nan if self.closed_for_good else 0)


def rows_of(x, live, closed_for_good=True):
    return md.apply(Rows(np.array(live, np.int64), closed_for_good), x)


@pytest.mark.parametrize(
    "function",
    [
        lambda y, x: y,
        lambda y, x: (y * x + 2.0).exp() - y.T.T,  # ops that do not skip
        lambda y, x: md.functional.relu(y),  # an op that skips
        lambda y, x: md.functional.relu(y) + y * y,
        lambda y, x: y.T @ x,
        lambda y, x: y + x * x,
    ],
)
@given(arrays((4, 3)), row_lists(4), st.booleans(), st.booleans())
def test_dead_rows_count_as_zeros(function, a, live, closed_for_good, of_a_leaf):
    """Values and gradients are those of the dense computation."""
    factors = np.zeros((4, 1))
    factors[live] = 2
    results = []
    for use in (lambda x: rows_of(x, live, closed_for_good), lambda x: x * factors):
        x = leaf(a)
        out = function(use(x if of_a_leaf else x * x), x)
        for _ in range(2):  # the second backward adds to what is there
            out.backward(np.cos(np.arange(out.size)).reshape(out.shape))
        results.append((out.data, x.grad))
        assert not out.data.flags.writeable
    for one, other in zip(*results, strict=True):
        close(one, other)


def test_new_data_is_all_live():
    with md.no_grad():
        out = rows_of(np.ones((3, 2)), [0, 2])
    with pytest.raises(ValueError, match="read-only"):
        out.data[1] = 1  # an implied zero
    out.data = np.ones((3, 2))
    equal(out.data, np.ones((3, 2)))
    equal((out * 2).data, np.full((3, 2), 2))


def test_rows_that_can_get_no_gradient_are_known():
    x = leaf(np.ones((3, 2)))
    rows_of(x, [0, 2]).sum().backward()
    equal(x.grad_live, [0, 2])
    x.raw_grad[1] = np.nan  # uninitialised
    equal(x.grad, [[2, 2], [0, 0], [2, 2]])
    assert x.grad is x.grad
    x.grad *= 2
    equal(x.grad_live, [0, 2])
    equal(x.grad, [[4, 4], [0, 0], [4, 4]])
    x.grad = np.ones((3, 2))  # of another array nothing is known
    assert x.grad_live is None
    equal(x.grad, np.ones((3, 2)))


def test_rows_of_two_gradients_are_those_of_either():
    x = leaf(np.ones((3, 2)))
    rows_of(x, [2]).sum().backward()
    rows_of(x, [0]).sum().backward()
    equal(x.grad_live, [0, 2])
    equal(x.grad, [[2, 2], [0, 0], [2, 2]])
    (x * 1).sum().backward()
    rows_of(x, [0]).sum().backward()
    assert x.grad_live is None
    equal(x.grad, [[5, 5], [1, 1], [3, 3]])
