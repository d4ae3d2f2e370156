"""The sparse loops: the results of dense products, whichever weights are left."""

from unittest import mock

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import minidiff as md
from minidiff import Gate, Gated, Groups, Mask, nn
from minidiff import functional as F
from minidiff.engine import arrays, sparse
from minidiff.engine.arrays import Elements
from minidiff.engine.kernels import FEATURES
from minidiff.engine.vectors import LANES
from tests import naive
from tests import strategies as own
from tests.checks import close, dead, equal, leaf

# Around what the loops keep in registers at once, and as rows of positions that fill them.
BATCHES = [1, 3] if numba.config.DISABLE_JIT else [1, 3, LANES + 1, sparse.RUN, sparse.RUN + 7]
DENSITIES = [0.0, 0.02, 0.1, 0.4, 0.8, 1.0]


def rng(seed=0):
    return np.random.default_rng(seed)


def few(random, shape, density, block=None):
    """A mask of weights left: single ones, or blocks along the first axes."""
    groups = Groups.elements(shape) if block is None else Groups.blocks(shape, block)
    return np.broadcast_to((random.random(groups.count) < density)[groups.labels], shape)


@st.composite
def cases(draw):
    """A layer as a function of x, weight and bias, their shapes, stride and padding."""
    samples = draw(st.sampled_from(BATCHES))
    if draw(st.booleans()):
        outs, ins = draw(st.integers(1, 20)), draw(st.integers(1, 20))
        return F.linear, ((ins, samples), (outs, ins), (outs,)), (1, 1), (0, 0)
    case = draw(own.convolutions())

    def function(*tensors):
        return F.conv2d(*tensors, stride=case.stride, padding=case.padding)

    shapes = (*case.x[:3], samples), case.weight, case.weight[:1]
    return function, shapes, case.stride, case.padding


@settings(max_examples=4 * settings.default.max_examples)
@given(
    cases(),
    own.seeds,
    st.sampled_from(DENSITIES),
    st.sampled_from([None, (1, 1), (2, 2), (3,)]),
    st.sampled_from([sparse.SPARSE, 1.0]),  # by the rule, and always
    own.dtypes,
    st.booleans(),
)
def test_outputs_and_all_gradients_are_those_of_loops(
    case, seed, density, block, share, dtype, rows
):
    (function, shapes, stride, padding), random = case, rng(seed)
    x, weight, bias = (leaf(random.standard_normal(shape).astype(dtype)) for shape in shapes)
    mask = few(random, weight.shape, density, block)
    clean = [x.data.copy(), np.where(mask, weight.data, 0), bias.data]
    weight.live = Elements(np.flatnonzero(mask))
    weight.raw[~mask] = np.nan  # not read
    if rows:
        x.live = np.flatnonzero(random.random(len(x)) < 0.6)
        clean[0][dead(x.live, len(x))] = 0
        x.raw[dead(x.live, len(x))] = np.nan
    with mock.patch.object(sparse, "SPARSE", share):
        out = function(x, weight, bias)
        grad = random.standard_normal(out.shape).astype(dtype)
        out.backward(grad)
    grid = [a.reshape(*a.shape[:1], 1, 1, *a.shape[1:]) if a.ndim == 2 else a for a in clean]
    if len(shapes[0]) == 2:
        grid[1] = clean[1][:, :, None, None]
        grad = grad[:, None, None]
    close(out.data, naive.conv2d(*grid, stride, padding).reshape(out.shape))
    expected = naive.grad_conv2d(grid[0], grid[1], grad, stride, padding)
    expected[1][~mask.reshape(grid[1].shape)] = 0
    if rows:
        expected[0][dead(x.live, len(x))] = 0
        expected[1][:, dead(x.live, len(x))] = 0
    for tensor, gradient in zip((x, weight, bias), expected, strict=True):
        close(tensor.grad, gradient.reshape(tensor.shape))


@pytest.mark.skipif(
    numba.config.DISABLE_JIT or numba.config.NUMBA_NUM_THREADS < 2, reason="needs two threads"
)
@given(cases(), own.seeds)
def test_one_and_two_threads_give_the_same_bits(case, seed):
    function, shapes, _, _ = case
    results = []
    for threads in (1, 2):
        numba.set_num_threads(threads)
        random = rng(seed)
        tensors = [leaf(random.standard_normal(shape).astype(np.float32)) for shape in shapes]
        tensors[1].live = Elements(np.flatnonzero(few(random, shapes[1], 0.3)))
        out = function(*tensors)
        out.backward(np.cos(np.arange(out.size)).reshape(out.shape))
        results.append([out.data, *(tensor.grad for tensor in tensors)])
    for one, two in zip(*results, strict=True):
        equal(one, two)


def test_long_sums_keep_their_digits():
    features = 40 * FEATURES
    weight = leaf(np.full((1, features), 0.1, np.float32))
    weight.live = Elements(np.arange(features))
    with mock.patch.object(sparse, "SPARSE", 1):
        out = F.linear(np.ones((features, 70), np.float32), weight)
    np.testing.assert_allclose(out.data, np.float32(0.1) * features, rtol=2e-5)


# -- the rule ----------------------------------------------------------------------------------


@pytest.mark.parametrize("left", [0, 1, 40, 41, 100])
def test_the_loops_run_if_at_most_two_fifths_are_left(left):
    mask = np.zeros((10, 10), bool)
    mask.ravel()[rng().permutation(100)[:left]] = True
    mask[0] |= not left  # so that the box around the weights is known
    weight = leaf(np.ones((10, 10), np.float32))
    weight.live = Elements(np.flatnonzero(mask))
    op = F.linear(leaf(np.ones((10, 3), np.float32)), weight).node.op
    box = mask.any(axis=1).sum() * mask.any(axis=0).sum()
    assert (op.listed is not None) == (mask.sum() <= sparse.SPARSE * box)


def test_few_rows_and_columns_full_of_weights_are_a_dense_product():
    weight = leaf(np.ones((10, 10), np.float32))
    weight.live = Elements(np.flatnonzero(np.outer(np.arange(10) < 3, np.arange(10) < 4)))
    op = F.linear(leaf(np.ones((10, 3), np.float32)), weight).node.op
    assert op.listed is None
    equal(op.outs, np.arange(3))
    equal(op.read, np.arange(4))


# -- gates on weights, and what optimisers may leave alone ---------------------------------------


def gated_layer(density=0.1, noise=None, seed=0):
    layer = nn.Linear(40, 30, rng=rng(seed))
    gated = md.gate(layer, "weights", noise=noise, sigma=0.1, rng=rng(1))
    gate = gated.weights[0].gate
    gate.set_open(rng(seed).random(gate.count) < density)
    return gated, gate


@pytest.mark.parametrize("optimizer", [md.optim.SGD, md.optim.Adam])
def test_closed_weights_and_their_gates_do_not_move(optimizer):
    gated, gate = gated_layer()
    gate.phi.data[np.flatnonzero(gate.is_open())[:9]] = 0.1  # partly open: phi learns
    model, surrogate = nn.Sequential(gated), md.Surrogate(gated, (40,))
    is_open = gate.is_open().reshape(30, 40)
    before = gated.layer.weight.data.copy(), gate.phi.data.copy()
    both = optimizer([gated.layer.weight, gate.phi], lr=0.01, weight_decay=0.1)
    for _ in range(3):
        both.zero_grad()
        loss = model(np.ones((40, 5), np.float32)).sum() + 1e-3 * surrogate()
        loss.backward()
        assert not gated.layer.weight.grad[~is_open].any()
        both.step()
    moved = gated.layer.weight.data != before[0], (gate.phi.data != before[1]).reshape(30, 40)
    equal(moved[0], is_open)
    assert not moved[1][~is_open].any()
    assert moved[1][is_open].all()


def test_a_stochastic_gate_that_is_closed_gets_zeros_and_may_open_again():
    gated, gate = gated_layer(noise="normal")
    gated(leaf(np.ones((40, 5), np.float32))).sum().backward()
    assert gated.layer.weight.grad_live is None
    gate.set_open(np.ones(gate.count, bool))
    gated(np.ones((40, 5), np.float32)).sum().backward()
    assert (gated.layer.weight.grad != 0).all()


@given(own.seeds, st.sampled_from([(2, 3), (4,), (1, 1)]), st.booleans())
def test_several_masks_and_rows_multiply(seed, block, outputs):
    random = rng(seed)
    layer = nn.Conv2d(6, 8, 3, rng=random, dtype=np.float64)
    kinds = [Groups.blocks(layer.weight.shape, block), Groups.elements(layer.weight.shape)]
    phis = [-1.0, -1.0, -1.0, 0.2, 1.0]

    def gate_of(count):
        gate = Gate(count, dtype=np.float64)
        gate.phi.data = random.choice(phis, count)
        return gate

    masks = [Mask(gate_of(groups.count), groups) for groups in kinds]
    gated = Gated(layer, weights=masks, outputs=gate_of(8) if outputs else None)
    x = leaf(random.standard_normal((6, 7, 7, 4)))
    first, second = (mask.gate.evaluated()[mask.groups.labels] for mask in masks)
    z = gated.outputs.evaluated() if outputs else np.ones(8)
    weight = layer.weight.data * first * second * z[:, None, None, None]
    close(gated(x).data, F.conv2d(x.data, weight, layer.bias.data * z).data)
    inputs = [gated.layer.weight, *(mask.gate.phi for mask in masks)]
    assert md.gradcheck(lambda *_: gated(x), inputs, directions=2, tolerance=1e-4)


# -- parameters with fixed zeros -----------------------------------------------------------------


def sparse_layer(density=0.1):
    layer = nn.Linear(40, 30, rng=rng())
    layer.weight.data *= few(rng(), (30, 40), density)
    layer.weight.fix_zeros()
    return layer


def test_zeros_are_fixed_where_few_weights_are_left():
    assert isinstance(sparse_layer(0.1).weight.live, Elements)
    assert sparse_layer(0.9).weight.live is None
    with pytest.raises(ValueError, match="read-only"):
        sparse_layer(0.1).weight.data[:] = 1


def test_a_layer_with_fixed_zeros_trains_and_keeps_them():
    layer, twin = sparse_layer(), nn.Linear(40, 30, rng=rng())
    left = layer.weight.data != 0
    twin.weight.data[:] = layer.weight.data
    for model in (layer, twin):
        optimizer = md.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=0.1)
        for step in range(4):
            optimizer.zero_grad()
            (model(rng(step).standard_normal((40, 7)).astype(np.float32)) ** 2).sum().backward()
            if model is twin:
                model.weight.grad[~left] = 0
            optimizer.step()
    assert not layer.weight.data[~left].any()
    np.testing.assert_allclose(layer.weight.data, twin.weight.data, rtol=1e-5, atol=1e-6)


def test_other_values_keep_the_zeros_or_free_all():
    layer = sparse_layer()
    layer.load_state_dict(layer.state_dict())
    assert isinstance(layer.weight.live, Elements)
    layer.weight.data = np.ones((30, 40), np.float32)
    assert layer.weight.live is None
    np.testing.assert_allclose(layer(np.ones((40, 1), np.float32)).data, 40)


def test_rules_close_gates_of_a_layer_with_fixed_zeros():
    gated = md.gate(sparse_layer(0.3), "outputs")
    left = gated.layer.weight.data != 0
    md.GroupLasso(gated).step(lr=0.1, strength=0.1)
    assert isinstance(gated.layer.weight.live, Elements)
    assert not gated.layer.weight.data[~left].any()


def test_a_gate_on_a_layer_with_fixed_zeros():
    layer = sparse_layer()
    left = layer.weight.data != 0
    x = rng().standard_normal((40, 6)).astype(np.float32)
    expected = layer(x).data
    for role in ("outputs", "inputs", "weights"):
        gated = md.gate(layer, role)
        close(gated(x).data, expected)
        layer.weight.grad = None
        gated(x).sum().backward()
        assert not layer.weight.grad[~left].any()


@pytest.mark.parametrize("role", ["outputs", "inputs", "weights"])
@pytest.mark.parametrize("noise", [None, "normal"])
def test_closed_gates_on_a_layer_with_fixed_zeros_leave_nothing_unwritten(role, noise, monkeypatch):
    layer = sparse_layer(0.3)
    gated = md.gate(layer, role, noise=noise, sigma=1e-6, rng=rng(1))
    gate = dict(gated.gates())[role]
    gate.set_open(rng(2).random(gate.count) < 0.5)
    x = rng().standard_normal((40, 6)).astype(np.float32)
    z = gate.evaluated()
    factors = z.reshape({"outputs": (30, 1), "inputs": (1, 40), "weights": (30, 40)}[role])
    twin = leaf(layer.weight.data * factors)
    F.linear(x, twin, leaf(layer.bias.data)).sum().backward()
    expected = np.where(layer.weight.data != 0, twin.grad * factors, 0)
    original = arrays.empty

    def poisoned(shape, dtype):
        out = original(shape, dtype)
        out.fill(np.nan)
        return out

    monkeypatch.setattr(arrays, "empty", poisoned)
    gated(x).sum().backward()
    close(layer.weight.grad, expected)


def test_a_parameter_with_fixed_zeros_is_an_ordinary_tensor_elsewhere():
    weight = nn.Parameter([[0.0, 2.0, 0.0], [0.0, 0.0, 0.0]])
    weight.fix_zeros()
    (weight.exp() * weight).sum().backward()
    np.testing.assert_allclose(weight.grad, [[0, 3 * np.exp(2), 0], [0, 0, 0]], rtol=1e-6)
    F.relu(weight).sum().backward()
    F.linear(weight, np.ones((1, 2), np.float32)).sum().backward()  # as an input
    np.testing.assert_allclose(weight.grad[0, 1], 3 * np.exp(2) + 2, rtol=1e-6)
