"""Masks: gates laid out over arrays, as layers and in one line; against products by hand."""

import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import minidiff as md
from minidiff import nn
from tests.strategies import networks, seeds

DOUBLE: dict[str, Any] = {"dtype": np.float64}
some = settings(max_examples=25)


def gate_of(rng: np.random.Generator, count: int, **options: Any) -> md.Gate:
    gate = md.Gate(count, **DOUBLE, **options)
    gate.phi.data = rng.choice([-1.0, -0.4, 0.1, 0.4, 2.0], count)
    return gate


def leaf(values: Any) -> md.Tensor:
    return md.Tensor(values, requires_grad=True)


@st.composite
def partitions(draw: st.DrawFn, shape: tuple[int, ...]) -> md.Groups:
    """Groups of any kind of an array of that shape."""
    kind = draw(st.sampled_from(["along", "elements", "blocks", "labels"]))
    if kind == "along":
        axes = draw(st.sets(st.integers(0, len(shape) - 1), min_size=1))
        return md.Groups.along(shape, tuple(axes))
    if kind == "elements":
        return md.Groups.elements(shape)
    if kind == "blocks":
        block = draw(st.lists(st.integers(1, 3), min_size=1, max_size=len(shape)))
        return md.Groups.blocks(shape, block)
    rng = np.random.default_rng(draw(seeds))
    return md.Groups.by(rng.integers(0, 4, shape))


# -- as a layer


@some
@given(st.data(), seeds)
def test_as_a_layer_a_mask_multiplies_each_element_by_the_gate_of_its_group(data, seed):
    shape = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple))
    groups, rng = data.draw(partitions(shape)), np.random.default_rng(seed)
    mask = md.Mask(gate_of(rng, groups.count), groups)
    x = md.Tensor(rng.standard_normal((*shape, 2)), requires_grad=True)
    weight = rng.standard_normal(x.shape)
    out = mask(x)
    z = md.Tensor(mask.gate.phi.data, requires_grad=True)
    labels = np.broadcast_to(groups.labels, shape)
    expected = x * md.binary_gate(z)[labels].reshape(*shape, 1)
    np.testing.assert_allclose(out.data, expected.data)
    out.backward(weight)
    found, x.grad = x.grad, None
    expected.backward(weight)
    np.testing.assert_allclose(found, x.grad, atol=1e-12)
    np.testing.assert_allclose(mask.gate.phi.grad, z.grad, atol=1e-12)
    assert mask.output_shape(shape) == shape


def test_a_closed_channel_of_a_mask_is_not_computed_further_on():
    rng = np.random.default_rng(0)
    mask = md.Mask(md.Gate(2), md.Groups.by(np.array([0, 1, 0]).reshape(3, 1, 1)))
    mask.gate.phi.data[0] = -1
    out = mask(rng.standard_normal((3, 4, 4, 2), dtype=np.float32))
    assert out.active.tolist() == [1]


@pytest.mark.parametrize("shape", [(2, 4), (3, 5), (2, 4, 5)])
def test_an_input_that_a_mask_does_not_fit_is_an_error(shape):
    mask = md.Mask(md.Gate(8), md.Groups.elements((2, 4, 1)))
    with pytest.raises(ValueError, match=r"groups of shape \(2, 4, 1\) does not fit"):
        mask(np.zeros((*shape, 2), np.float32)[..., :1] if len(shape) == 2 else np.zeros(shape))


def test_a_mask_needs_a_gate_for_each_group():
    with pytest.raises(ValueError, match="gate has 3 groups, but there are 4 groups"):
        md.Mask(md.Gate(3), md.Groups.elements((4,)))


# -- noise per sample


@pytest.mark.parametrize("kind", ["gate", "mask"])
@pytest.mark.parametrize("shape", [(3,), (3, 2, 2)])
def test_noise_per_sample_is_other_for_each_sample_and_gone_in_evaluation(kind, shape):
    rng = np.random.default_rng(0)
    layer: nn.Module
    gate = md.Gate(3, initial=0.0, noise="normal", per_sample=True, rng=rng, **DOUBLE)
    layer = gate if kind == "gate" else md.Mask(gate, md.Groups.along(shape, 0))
    x = md.Tensor(np.ones((*shape, 50)))
    out = layer(x)
    values = out.data.reshape(3, -1, 50)
    assert (values == values[:, :1]).all()  # one gate for all places of a channel
    assert all(len(np.unique(row[0])) > 5 for row in values)
    out.sum().backward()
    assert (gate.phi.grad > 0).all()
    np.testing.assert_array_equal(layer.eval()(x).data, 0.5)
    layer.train()
    gate.frozen = True
    np.testing.assert_array_equal(layer(x).data, 0.5)


def test_gradients_of_noise_per_sample_are_those_of_finite_differences():
    x = np.random.default_rng(1).standard_normal((2, 3, 2, 4))

    def run(phi: md.Tensor) -> md.Tensor:
        rng = np.random.default_rng(0)  # the same draws each time
        gate = md.Gate(2, noise="logistic", per_sample=True, rng=rng, **DOUBLE)
        gate.phi = phi
        return gate(x)

    assert md.gradcheck(run, [md.Tensor(np.array([0.1, -0.2]), requires_grad=True)], tolerance=1e-4)


def test_noise_per_sample_needs_noise():
    with pytest.raises(ValueError, match="per_sample is for stochastic gates"):
        md.Gate(3, per_sample=True)


# -- several masks on one tensor, one gate on several


@some
@given(st.data(), seeds)
def test_masks_on_weights_and_biases_multiply_and_may_share_a_gate(data, seed):
    rng = np.random.default_rng(seed)
    layer = nn.Conv2d(2, 3, 2, rng=rng, **DOUBLE)
    layer.bias.data = rng.standard_normal(3)
    first, second = data.draw(partitions((3, 2, 2, 2))), md.Groups.along((3, 2, 2, 2), 0)
    filters = gate_of(rng, 3)
    gated = md.Gated(
        layer,
        weights=[md.Mask(gate_of(rng, first.count), first), md.Mask(filters, second)],
        biases=md.Mask(filters, md.Groups.elements((3,))),
    )
    x = rng.standard_normal((2, 4, 3, 2))
    z, more = filters.evaluated(), gated.weights[0].gate.evaluated()
    labels = np.broadcast_to(first.labels, layer.weight.shape)
    weight = layer.weight.data * more[labels] * z[:, None, None, None]
    expected = md.ops.conv2d(x, weight, layer.bias.data * z)
    np.testing.assert_allclose(gated(x).data, expected.data, atol=1e-12)
    assert [role for role, _ in gated.gates()] == ["weights", "weights", "biases"]
    model = nn.Sequential(gated, nn.ReLU(), nn.Flatten(), nn.Linear(18, 2, rng=rng, **DOUBLE))
    before = model(x).data
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # nothing may be left
        np.testing.assert_allclose(md.compact(model)(x).data, before, atol=1e-12)
    md.binarize(model)
    np.testing.assert_allclose(model(x).data, before, atol=1e-12)


@some
@given(st.data(), seeds, st.booleans(), st.booleans())
def test_a_layer_whose_weights_are_gated_has_the_gradients_of_the_product(
    data, seed, convolves, filtered
):
    """What has lost all its weights is not computed; nothing else may come of it."""
    rng = np.random.default_rng(seed)
    layer: nn.Conv2d | nn.Linear = nn.Linear(4, 3, rng=rng, **DOUBLE)
    x = leaf(rng.standard_normal((4, 5)))
    if convolves:
        layer = nn.Conv2d(4, 3, 2, rng=rng, **DOUBLE)
        x = leaf(rng.standard_normal((4, 3, 3, 5)))
    layer.bias.data = rng.standard_normal(3)
    groups, filters = data.draw(partitions(layer.weight.shape)), gate_of(rng, 3)
    mask = md.Mask(gate_of(rng, groups.count), groups)
    gated = md.Gated(layer, weights=mask, outputs=filters if filtered else None)
    out = gated(x)
    grad = rng.standard_normal(out.shape)
    out.backward(grad)
    found = [out.data] + [t.grad for t in (x, layer.weight, layer.bias, mask.gate.phi)]

    leaves = [leaf(t.data) for t in (x, layer.weight, layer.bias, mask.gate.phi)]
    labels = np.broadcast_to(groups.labels, layer.weight.shape)
    weight, bias = leaves[1] * md.binary_gate(leaves[3])[labels], leaves[2]
    if filtered:
        z = md.Tensor(filters.evaluated())
        weight, bias = weight * z.reshape(3, *[1] * (weight.ndim - 1)), bias * z
    expected = layer.apply(leaves[0], weight, bias)
    expected.backward(grad)
    for array, wanted in zip(found, [expected.data, *(t.grad for t in leaves)], strict=True):
        np.testing.assert_allclose(array, wanted, atol=1e-12)


def test_an_input_that_has_lost_all_its_weights_is_not_read():
    layer = nn.Conv2d(3, 2, 2, rng=np.random.default_rng(0), **DOUBLE)
    gated = md.gate_weights(layer, groups=md.Groups.along((2, 3, 2, 2), 1), **DOUBLE)
    gated.weights[0].gate.set_open(np.array([True, False, True]))
    images = np.random.default_rng(1).standard_normal((3, 4, 4, 2))
    images[1] = np.nan
    x = leaf(images)
    out = gated(x)
    out.sum().backward()
    assert np.isfinite(out.data).all()
    assert not x.grad[1].any()
    assert x.grad[0].any()


@some
@given(st.data(), seeds)
def test_masks_over_places_are_folded_into_the_layer_that_follows(data, seed):
    rng = np.random.default_rng(seed)
    first, second = (data.draw(partitions((3, 3, 2))) for _ in range(2))
    model = nn.Sequential(
        nn.Conv2d(1, 3, 2, rng=rng, **DOUBLE),
        nn.ReLU(),
        md.Mask(gate_of(rng, first.count), first),
        nn.Flatten(),
        md.Mask(gate_of(rng, second.count), md.Groups.by(spread_out(second).reshape(18))),
        nn.Select(np.sort(rng.choice(18, 11, replace=False)), size=18),
        nn.Linear(11, 2, rng=rng, **DOUBLE),
    )
    x = rng.standard_normal((1, 4, 3, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        small = md.compact(model)
    np.testing.assert_allclose(small(x).data, model(x).data, atol=1e-12)
    assert not any(isinstance(layer, md.Mask) for layer in small)


def spread_out(groups: md.Groups) -> np.ndarray:
    """Labels for each element, of groups that may have axes of one."""
    return np.broadcast_to(groups.labels, (3, 3, 2))


def test_a_gate_opens_and_closes_by_decision_too():
    for gate in (
        md.Gate(3),
        md.HardConcrete(3, rng=np.random.default_rng(0)),
        md.GaussianGate(3, rng=np.random.default_rng(0)),
    ):
        gate.set_open(np.array([True, False, True]))
        assert gate.evaluated().tolist() == [1, 0, 1]
        for wrong in ([True, False], [0, 2, 1]):  # another size, and indices
            with pytest.raises(ValueError, match="expected a bool for each of 3 groups"):
                gate.set_open(np.array(wrong))


# -- exactly binary


@some
@given(st.data(), seeds)
def test_binary_gates_compute_the_same(data, seed):
    rng = np.random.default_rng(seed)
    network = data.draw(networks())
    model, x = network.model.eval(), rng.standard_normal((*network.shape, 3))
    before, counts = model(x).data, md.count(model, network.shape)
    md.binarize(model)
    np.testing.assert_allclose(model(x).data, before, rtol=1e-9, atol=1e-9)
    assert md.count(model, network.shape) == counts
    for module in model.modules():
        if isinstance(module, md.Gated):
            for _, gate in module.gates():
                assert set(gate.evaluated()) <= {0.0, 1.0}


def test_binary_gates_that_are_shared_are_folded_wherever_they_act_and_not_with_activations():
    rng = np.random.default_rng(0)
    units, apart = gate_of(rng, 3), gate_of(rng, 3)
    units.phi.data, apart.phi.data = np.array([-0.1, 0.2, -1.0]), np.array([0.1, 0.3, 2.0])
    model = nn.Sequential(
        md.Gated(nn.Linear(2, 3, rng=rng, **DOUBLE), outputs=units),
        apart,
        md.Gated(nn.Linear(3, 3, rng=rng, **DOUBLE), inputs=units, outputs=apart),
    )
    x = rng.standard_normal((2, 5))
    before = model(x).data
    md.binarize(model)
    np.testing.assert_allclose(model(x).data, before, atol=1e-12)
    assert units.evaluated().tolist() == [1, 1, 0]
    assert apart.phi.data.tolist() == [0.1, 0.3, 2.0]


# -- in one line


def test_layers_are_gated_in_one_line():
    rng = np.random.default_rng(0)
    conv, dense = nn.Conv2d(2, 8, 3, rng=rng), nn.Linear(12, 10, rng=rng)
    counts = [
        md.gate_filters(conv).outputs.count,
        md.gate_units(dense, width=0.5).outputs.count,
        md.gate_inputs(md.gate_units(dense)).inputs.count,
        md.gate_weights(conv).weights[0].gate.count,
        md.gate_weights(conv, groups=md.Groups.along((8, 2, 3, 3), (2, 3))).weights[0].gate.count,
        md.gate_blocks(dense, (4, 4)).weights[0].gate.count,
        md.gate_blocks(conv, (4, 2)).weights[0].gate.count,
    ]
    assert counts == [8, 10, 12, 144, 9, 9, 2]
    both = md.gate_weights(md.gate_filters(conv, gate=md.HardConcrete, rng=rng))
    assert isinstance(both.outputs, md.HardConcrete)
    assert both.layer is conv
    twice = md.gate_weights(md.gate_blocks(dense), gate=md.GaussianGate, rng=rng)
    assert [mask.gate.count for mask in twice.weights] == [9, 120]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda c, d: md.gate_filters(d), TypeError, "is a Linear; expected a Conv2d"),
        (lambda c, d: md.gate_units(c), TypeError, "is a Conv2d; expected a Linear"),
        (lambda c, d: md.gate_weights(nn.ReLU()), TypeError, "is a ReLU; expected a Conv2d or a"),
        (lambda c, d: md.gate_filters(md.gate_filters(c)), ValueError, "gate on its outputs"),
        (lambda c, d: md.gate_blocks(d, (0, 4)), ValueError, "block .* does not fit"),
        (lambda c, d: md.gate_blocks(d, (1, 1, 1)), ValueError, "block .* does not fit"),
        (lambda c, d: md.gate_units(d, width=-1), ValueError, "width is -1"),
    ],
)
def test_what_cannot_be_gated_is_an_error(call, error, message):
    rng = np.random.default_rng(0)
    with pytest.raises(error, match=message):
        call(nn.Conv2d(2, 8, 3, rng=rng), nn.Linear(12, 10, rng=rng))


# -- what they spare, and what not


def test_a_gate_that_spares_nothing_counted_is_an_error_unless_gates_are_counted():
    rng = np.random.default_rng(0)
    rows = md.Mask(md.Gate(6, sigma=0.01), md.Groups.along((1, 6, 6), 1))
    conv = md.gate_filters(nn.Conv2d(1, 2, 3, rng=rng), sigma=0.01)
    model = nn.Sequential(rows=rows, conv=conv)
    with pytest.raises(ValueError, match="the gate rows stands where to close it spares none"):
        md.Surrogate(model, (1, 6, 6))
    surrogate = md.Surrogate(model, (1, 6, 6), cost="groups")
    assert surrogate().item() == pytest.approx(8)
    conv.outputs.phi.data[0] = rows.gate.phi.data[2] = -1
    assert surrogate().item() == pytest.approx(6)


def test_a_mask_over_places_before_a_convolution_cannot_be_folded():
    rng = np.random.default_rng(0)
    rows = md.Mask(md.Gate(6, initial=0.1), md.Groups.along((1, 6, 6), 1))
    model = nn.Sequential(rows=rows, conv=nn.Conv2d(1, 2, 3, rng=rng))
    with pytest.raises(ValueError, match="conv follows a Mask over single places"):
        md.compact(model)


@pytest.mark.parametrize("labels", [(1, 1, 1), (3, 1, 1), (3, 4, 4)])
def test_a_mask_of_whole_channels_counts_however_it_is_laid_out(labels: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    groups = md.Groups(np.zeros(labels, np.int64))  # one, of all channels
    mask = md.Mask(md.Gate(1), groups)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3, rng=rng), mask, nn.MaxPool2d(2), nn.Conv2d(3, 2, 1, rng=rng)
    )
    shape = (1, 6, 6)
    md.Surrogate(model, shape)().backward()
    assert mask.gate.phi.grad is not None
    assert mask.gate.phi.grad[0] > 0
    x = rng.standard_normal((*shape, 2)).astype(np.float32)
    for is_open in (True, False):
        mask.gate.set_open(np.array([is_open]))
        assert [layer.weights[0] > 0 for layer in md.count(model, shape)] == [is_open] * 2
        if is_open:
            np.testing.assert_allclose(md.compact(model)(x).data, model(x).data, rtol=1e-5)
        else:
            with pytest.warns(UserWarning, match="nothing is left"):
                small = md.compact(model)
            np.testing.assert_allclose(small(x).data, model(x).data, rtol=1e-5)


def test_a_parameter_that_is_not_gated_alike_wherever_it_is_used_is_not_binarised() -> None:
    rng = np.random.default_rng(0)
    plain, first, second = (nn.Linear(3, 3, rng=rng) for _ in range(3))
    second.weight = first.weight  # tied
    gate = md.Gate(3, initial=0.1)
    rows, columns = (md.Groups.along((3, 3), axis) for axis in (0, 1))
    tied = nn.Sequential(md.Gated(first, outputs=gate), md.Gated(second, outputs=gate))
    for model in (
        nn.Sequential(md.gate_units(plain, initial=0.1), plain),
        nn.Sequential(
            md.Gated(plain, weights=md.Mask(gate, rows)),
            md.Gated(plain, weights=md.Mask(gate, columns)),
        ),
    ):
        before = plain.weight.data.copy()
        with pytest.raises(ValueError, match=r"shape \(3, 3\) is used in two places"):
            md.binarize(model)
        np.testing.assert_array_equal(plain.weight.data, before)
    x = rng.standard_normal((3, 4)).astype(np.float32)
    expected = tied(x).data
    md.binarize(tied)  # gated alike, so the one weight takes it up once
    np.testing.assert_allclose(tied(x).data, expected, rtol=1e-5)


def test_what_is_no_gate_and_no_groups_is_refused() -> None:
    dense: Any = nn.Linear(3, 2, rng=np.random.default_rng(0))
    mask = md.Mask(md.Gate(2), md.Groups.along((2, 3), 0))
    wrong: Any
    for wrong in (mask, "x", 2):
        with pytest.raises(TypeError, match=r"Gated: outputs is a \w+; expected a Gate"):
            md.Gated(dense, outputs=wrong)
    for wrong in ([md.Gate(6)], "x", md.Gate(6)):
        with pytest.raises(TypeError, match=r"Gated: weights has a \w+; expected Mask"):
            md.Gated(dense, weights=wrong)
    for wrong in ((md.Gate(2), np.array([0, 1])), (np.ones(2), mask.groups)):
        with pytest.raises(TypeError, match=r"expected a Gate and Groups"):
            md.Mask(*wrong)


def test_scales_that_the_dtype_cannot_hold_are_refused() -> None:
    for name in ("width", "sigma"):
        options: dict[str, Any] = {name: 1e-40}
        with pytest.raises(ValueError, match=f"{name} is 1e-40, which float32 cannot hold"):
            md.Gate(2, **options)
        md.Gate(2, **options, **DOUBLE)
