"""Gates on layers: leaving out what is closed changes nothing, and neither does folding."""

import copy

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import minidiff as md
from minidiff import Gate, Gated, Groups, Mask, nn
from minidiff.engine.module import chain
from tests.networks import DOUBLE, assert_same, by_hand, narrow, networks, outputs, results
from tests.strategies import convolutions, seeds

some = settings(max_examples=25)


def generator():
    return np.random.default_rng(0)


def gate_at(phi, **options):
    gate = Gate(len(phi), **(DOUBLE | options))
    gate.phi.data = np.array(phi)
    return gate


# -- skipped == dense --------------------------------------------------------------------------


@settings(max_examples=200)
@given(networks(), st.booleans())
def test_outputs_and_all_gradients_are_those_of_dense_products(network, training):
    model = network.model.train(training)
    twin = copy.deepcopy(model)  # with generators in the same state
    found = results(model, model, network.inputs(), network.seed)
    dense = results(lambda x: by_hand(twin, x), twin, network.inputs(), network.seed)
    assert_same(found, dense)


@some
@given(networks())
def test_in_float32_they_are_the_same_within_its_precision(network):
    model = network.model.eval()
    expected = results(model, model, network.inputs(), network.seed)
    narrow(model)
    found = results(model, model, network.inputs().astype(np.float32), network.seed)
    assert {value.dtype for value in found.values()} == {np.dtype(np.float32)}
    assert_same(found, expected, atol=1e-4 * max(1, *(abs(v).max() for v in expected.values())))


@settings(max_examples=15)
@given(networks(kinds="deterministic"))
def test_gradients_of_networks_match_finite_differences(network):
    model = network.model.eval()
    gates = list(md.gates_of(model).values())

    def run(x, *phis):
        for gate, phi in zip(gates, phis, strict=True):
            gate.phi = phi
        return model(x)

    values = [network.inputs(2), *(gate.phi.data for gate in gates)]
    leaves = [md.Tensor(value, requires_grad=True) for value in values]
    # Where a transition begins and ends, its second derivative jumps: coarser by one step.
    assert md.gradcheck(run, leaves, directions=2, tolerance=1e-4)


@st.composite
def layers(draw, *roles):
    """A gated layer whose sizes fill the kernels' blocks or not, and an input that fits."""
    rng = np.random.default_rng(draw(seeds))
    if draw(st.booleans()):
        sizes = draw(convolutions())
        outs, ins, *kernel = sizes.weight
        options = {"stride": sizes.stride, "padding": sizes.padding, "rng": rng, **DOUBLE}
        layer, x = nn.Conv2d(ins, outs, tuple(kernel), **options), rng.standard_normal(sizes.x)
    else:
        outs, ins, samples = (int(rng.integers(1, n)) for n in (10, 10, 40))
        layer, x = nn.Linear(ins, outs, rng=rng, **DOUBLE), rng.standard_normal((ins, samples))
    layer.bias.data = rng.standard_normal(outs)
    sizes, phis = {"outputs": outs, "inputs": ins}, [-1.0, -0.5, -0.2, 0.3, 2.0]
    gates = {role: gate_at(rng.choice(phis, sizes[role])) for role in roles}
    return Gated(layer, **gates), x


@given(st.one_of(layers("outputs"), layers("inputs"), layers("outputs", "inputs")))
def test_closed_rows_are_not_read_and_get_zeros(drawn):
    gated, x = drawn
    clean = results(gated, gated, x)
    weight, bias = gated.layer.weight.data, gated.layer.bias.data
    if gated.outputs:
        closed = ~gated.outputs.is_open()
        for name in ("output", "layer.weight", "layer.bias", "outputs.phi"):
            assert not clean[name][closed].any(), name
        weight[closed] = bias[closed] = np.nan
    if gated.inputs:
        closed = ~gated.inputs.is_open()
        assert not clean["x"][closed].any()
        assert not clean["inputs.phi"][closed].any()
        assert not clean["layer.weight"][:, closed].any()
        x[closed] = np.nan
        if not gated.outputs:  # their gates read all weights of an open filter
            weight[:, closed] = np.nan
    poisoned = results(gated, gated, x)
    for name, value in clean.items():
        np.testing.assert_array_equal(poisoned[name], value, err_msg=name)


def test_what_is_behind_a_closed_filter_is_not_read():
    rng = generator()
    model = nn.Sequential(
        Gated(nn.Conv2d(1, 3, 3, rng=rng, **DOUBLE), outputs=gate_at([1.0, -1.0, 0.2])),
        nn.MaxPool2d(2, relu=True),
        nn.Flatten(),
        nn.Linear(12, 2, rng=rng, **DOUBLE),
    )
    x = rng.standard_normal((1, 6, 6, 2))
    clean = outputs(model, x)
    model[3].weight.data[:, 4:8] = np.nan
    np.testing.assert_array_equal(outputs(model, x), clean)


@pytest.mark.parametrize("axis", [0, 1])
def test_rows_and_columns_without_weights_are_not_computed(axis):
    layer = nn.Conv2d(3, 3, 2, rng=generator(), **DOUBLE)
    gated = md.gate(layer, "weights", groups=Groups.along(layer.weight.shape, axis), **DOUBLE)
    gated.weights[0].gate.set_open(np.array([True, False, True]))
    x = generator().standard_normal((3, 4, 4, 2))
    if axis:
        x[1] = np.nan
    else:
        layer.weight.data[1], layer.bias.data[1] = 0, 7
    found = results(gated, gated, x)
    assert all(np.isfinite(value).all() for value in found.values())
    assert not found["x" if axis else "layer.weight"][1].any()
    assert axis or (found["output"][1] == 7).all()  # an output without weights is its bias


# -- gates that move ---------------------------------------------------------------------------


@some
@given(networks(kinds="deterministic"))
def test_a_tape_gives_the_gradients_of_before_gates_moved(network):
    model = network.model.eval()
    expected = results(model, model, network.inputs(), network.seed)
    leaf = md.Tensor(network.inputs(), requires_grad=True)
    out = model(leaf)
    for gate in md.gates_of(model).values():
        gate.set_open(np.zeros(gate.count, bool))
    model(network.inputs())
    out.backward(np.random.default_rng(network.seed).standard_normal(out.shape))
    np.testing.assert_allclose(leaf.grad, expected["x"], rtol=0, atol=1e-12)


@pytest.mark.parametrize("decay", [0.0, 0.01])
def test_optimisers_leave_closed_weights_alone_with_the_same_outputs(decay):
    rng, runs = generator(), []
    x, labels = rng.standard_normal((1, 6, 6, 8)), rng.integers(0, 3, 8)
    for leave in (True, False):
        rng = np.random.default_rng(1)
        model = nn.Sequential(
            md.gate(nn.Conv2d(1, 6, 3, rng=rng, **DOUBLE), initial=0.0, **DOUBLE),
            nn.MaxPool2d(2, relu=True),
            nn.Flatten(),
            md.gate(nn.Linear(24, 3, rng=rng, **DOUBLE), "inputs", initial=0.0, **DOUBLE),
        )
        others, phis = md.split_parameters(model)
        sgd = md.optim.SGD(others, lr=0.01, momentum=0.9, weight_decay=decay)
        adam, weight = md.optim.Adam(phis, lr=0.05), model[0].layer.weight
        logits, live = [], []
        for _ in range(30):
            out = model(x)
            logits.append(out.data)
            sgd.zero_grad()
            adam.zero_grad()
            cost = 0.02 * md.expected_cost(model, (1, 6, 6))
            (md.functional.cross_entropy(out, labels) + cost).backward()
            live.append(len(weight.grad_rows))
            if not leave:
                for parameter in others:
                    parameter.grad = parameter.grad.copy()  # nothing is known of its rows
            sgd.step()
            adam.step()
        assert 0 < live[-1] < live[0]  # some gates have closed, and none has opened again
        assert live == sorted(live, reverse=True)
        runs.append((np.array(logits), weight.data, model[0].outputs.is_open()))
    (left, weight, is_open), (all_moved, other, _) = runs
    np.testing.assert_array_equal(left, all_moved)
    np.testing.assert_array_equal(weight[is_open], other[is_open])
    assert (weight[~is_open] != other[~is_open]).any()


def test_rows_get_gradients_where_any_use_of_them_is_open():
    layer, x = nn.Linear(2, 4, rng=generator(), **DOUBLE), np.ones((2, 3))
    first = Gated(layer, outputs=gate_at([1.0, -1.0, 1.0, -1.0]))
    second = Gated(layer, outputs=gate_at([-1.0, -1.0, 1.0, 1.0]))
    (first(x).sum() + second(x).sum()).backward()
    assert layer.weight.grad_rows.tolist() == [0, 2, 3]
    layer(x).sum().backward()
    assert layer.weight.grad_rows is None
    noisy = md.gate(layer, initial=-9.0, noise="normal", rng=generator(), **DOUBLE)
    layer.weight.grad = None
    noisy(x).sum().backward()
    assert layer.weight.grad_rows is None  # gates that may open again


@pytest.mark.parametrize("closed", [0, 2])
def test_fully_open_gates_keep_every_bit_and_get_no_gradient(closed):
    layer = nn.Conv2d(3, 5, 3, rng=generator())
    gated = md.gate(layer, "outputs", "inputs", initial=0.5)
    gated.outputs.phi.data[:closed] = -0.5
    x = generator().standard_normal((3, 6, 6, 2), dtype=np.float32)
    found, plain = results(gated, gated, x), results(layer, layer, x)
    for name in ("output", "weight", "bias"):
        mine = found["output" if name == "output" else f"layer.{name}"]
        np.testing.assert_array_equal(mine[closed:], plain[name][closed:])
        assert not mine[:closed].any()
    assert not found["outputs.phi"].any()
    assert not found["inputs.phi"].any()
    grads = [found[name] for name in ("x", "layer.weight", "layer.bias", "outputs.phi")]
    for i, one in enumerate(grads):  # each parameter has a gradient of its own
        assert one.flags.writeable
        assert not any(np.may_share_memory(one, other) for other in (*grads[:i], found["output"]))


# -- gate(layer, ...) --------------------------------------------------------------------------


def test_layers_are_gated_by_role():
    conv, dense = nn.Conv2d(2, 8, 3, rng=generator()), nn.Linear(12, 10, rng=generator())
    assert md.gate(conv).outputs.count == 8
    kernels = Groups.along(conv.weight.shape, (0, 1))
    assert md.gate(conv, "weights", groups=kernels).weights[0].gate.count == 16
    options = {"kind": md.HardConcrete, "rng": generator()}
    both = md.gate(md.gate(dense, "weights"), "inputs", "weights", **options)
    assert both.layer is dense
    assert [(role, type(gate), gate.count) for role, gate in both.gates()] == [
        ("inputs", md.HardConcrete, 12),
        ("weights", Gate, 120),
        ("weights", md.HardConcrete, 120),
    ]
    names = {name for name, _ in both.named_parameters()}
    phis = {"inputs.phi", "weights.0.gate.phi", "weights.1.gate.phi"}
    assert names == {"layer.weight", "layer.bias", *phis}
    assert md.gate(conv).output_shape((2, 9, 7)) == conv.output_shape((2, 9, 7)) == (8, 7, 5)


CONV, GATE = nn.Conv2d(2, 3, 3, rng=generator()), Gate(3)
PER_SAMPLE = Gate(3, noise="normal", per_sample=True, rng=generator())


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: md.gate(nn.ReLU()), TypeError, "expected a Conv2d or Linear"),
        (lambda: md.gate(CONV, "filters"), ValueError, "role 'filters'; expected 'outputs'"),
        (lambda: md.gate(md.gate(CONV)), ValueError, "has a gate on its outputs already"),
        (lambda: md.gate(CONV, kind=GATE), TypeError, r"a class.*Gated\(layer, outputs=gate\)"),
        (lambda: md.gate(CONV, groups=[0, 1]), TypeError, r"is a list; expected Groups\(labels\)"),
        (lambda: md.gate(CONV, width=-1), ValueError, "width is -1"),
        (lambda: Gated(CONV, outputs=Gate(4)), ValueError, "a Gate of 4; .* Gate of 3 groups"),
        (lambda: Gated(CONV, inputs=GATE), ValueError, "a Gate of 3; expected a Gate of 2"),
        (lambda: Gated(CONV, outputs="x"), ValueError, "outputs is 'x'; expected a Gate of 3"),
        (lambda: Gated(CONV, weights=GATE), ValueError, r"expected a Mask\(gate, groups\)"),
        (
            lambda: Gated(CONV, weights=Mask(Gate(6), Groups.elements((3, 2)))),
            *(ValueError, r"weights is \(3, 2\); .* groups of shape \(3, 2, 3, 3\)"),
        ),
        (
            lambda: Gated(CONV, biases=[Mask(Gate(2), Groups.elements((2,)))]),
            *(ValueError, r"biases is \(2,\); .* groups of shape \(3,\)"),
        ),
        (lambda: Gated(CONV, outputs=PER_SAMPLE), ValueError, "noise per sample, but samples"),
        (lambda: Mask(GATE, Groups.elements((4,))), ValueError, "has 3 groups, but there are 4"),
        (lambda: Mask(GATE, np.arange(3)), TypeError, "a Gate and a ndarray; expected a Gate and"),
        (
            lambda: Mask(Gate(8), Groups.elements((2, 4, 1)))(np.ones((3, 4, 1, 2))),
            *(ValueError, r"groups of shape \(2, 4, 1\) does not fit an input of shape \(3, 4, 1"),
        ),
        (
            lambda: md.gate(CONV, "inputs")(np.ones((5, 4, 4, 1), np.float32)),
            *(ValueError, r"a Gate of 2 does not fit an input of shape \(5, 4"),
        ),
    ],
)
def test_what_does_not_fit_is_an_error_that_names_both(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("closed", [False, True])
def test_a_wrong_input_is_told_the_same_whatever_is_closed(closed):
    dense = nn.Linear(4, 3, rng=generator())
    layer = md.gate(dense, "weights", groups=Groups.along((3, 4), 1))
    layer.weights[0].gate.phi.data[3] = -1 if closed else 1
    with pytest.raises(ValueError, match=r"linear: x of shape \(2, 4\) and weight of shape"):
        layer(np.ones((2, 4), np.float32))


# -- fold_gates --------------------------------------------------------------------------------


@given(networks())
def test_folding_gates_keeps_outputs_and_counts(network):
    model, x = network.model.eval(), network.inputs()
    before, counts = model(x).data, md.count(model, network.shape)
    md.fold_gates(model)
    np.testing.assert_allclose(model(x).data, before, rtol=1e-9, atol=1e-9)
    assert md.count(model, network.shape) == counts
    acting = [getattr(layer, "gate", layer) for _, layer in chain(model)]
    for gate in md.gates_of(model).values():
        assert gate in acting or set(gate.evaluated()) <= {0, 1}


def test_shared_gates_fold_where_they_act_unless_one_is_a_layer():
    rng, units, apart = generator(), gate_at([-0.1, 0.2, -1.0]), gate_at([0.1, 0.3, 2.0])
    model = nn.Sequential(
        Gated(nn.Linear(2, 3, rng=rng, **DOUBLE), outputs=units),
        apart,
        Gated(nn.Linear(3, 3, rng=rng, **DOUBLE), inputs=units, outputs=apart),
    )
    x = rng.standard_normal((2, 5))
    before = model(x).data
    md.fold_gates(model)
    np.testing.assert_allclose(model(x).data, before, atol=1e-12)
    assert units.evaluated().tolist() == [1, 1, 0]
    assert apart.phi.data.tolist() == [0.1, 0.3, 2.0]


def test_a_parameter_in_two_places_folds_once_if_gated_alike():
    rng, gate = generator(), gate_at([0.1, 0.2, -0.1])
    layer, other = nn.Linear(3, 3, rng=rng, **DOUBLE), nn.Linear(3, 3, rng=rng, **DOUBLE)
    other.weight = layer.weight  # tied
    x = rng.standard_normal((3, 4))
    for again in (layer, other):
        model = nn.Sequential(Gated(layer, outputs=gate), Gated(again, outputs=gate))
        gate.phi.data = [0.1, 0.2, -0.1]
        before = model(x).data
        md.fold_gates(model)
        np.testing.assert_allclose(model(x).data, before, rtol=1e-12)
    rows, columns = (Mask(gate, Groups.along((3, 3), axis)) for axis in (0, 1))
    weight = layer.weight.data.copy()
    for unlike in (layer, md.gate(layer), Gated(layer, weights=columns)):
        with pytest.raises(ValueError, match=r"shape \(3, 3\) is used in two places with diff"):
            md.fold_gates(nn.Sequential(Gated(layer, weights=rows), unlike))
    np.testing.assert_array_equal(layer.weight.data, weight)  # nothing has changed
