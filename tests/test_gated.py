"""Gates on layers: leaving out what is closed changes nothing, and neither does folding."""

import copy
from contextlib import nullcontext

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import minidiff as md
from minidiff import Gate, Gated, Groups, Mask, nn
from minidiff.engine.module import chain
from tests.networks import (
    DOUBLE,
    assert_same,
    by_hand,
    conv,
    dense,
    gate_at,
    narrow,
    networks,
    outputs,
    results,
    rng,
)
from tests.strategies import convolutions, seeds

ordinary = settings.default.max_examples
some = settings(max_examples=ordinary // 2)


# -- skipped == dense --------------------------------------------------------------------------


@settings(max_examples=5 * ordinary)
@given(networks(), st.booleans())
def test_outputs_and_all_gradients_are_those_of_dense_products(network, training):
    model, x = network.model.train(training), network.inputs()
    twin = copy.deepcopy(model)  # with generators in the same state
    found = results(model, model, x, network.seed)
    assert_same(found, results(lambda x: by_hand(twin, x), twin, x, network.seed))
    expected = results(model.eval(), model, x, network.seed)
    found = results(narrow(model), model, x.astype(np.float32), network.seed)
    assert {value.dtype.name for value in found.values()} == {"float32"}
    assert_same(found, expected, atol=1e-4 * max(1, *(abs(v).max() for v in expected.values())))


@some
@given(networks(any_kind=False))
def test_gradients_match_finite_differences_also_of_a_tape_of_before(network):
    model, x = network.model.eval(), network.inputs(2)
    gates = list(md.gates_of(model).values())

    def run(x, *phis):
        for gate, phi in zip(gates, phis, strict=True):
            gate.phi = phi
        return model(x)

    leaves = [md.Tensor(a, requires_grad=True) for a in (x, *(gate.phi.data for gate in gates))]
    # Where a transition begins and ends, its second derivative jumps: coarser by one step.
    assert md.gradcheck(run, leaves, directions=2, tolerance=1e-4)
    expected = results(model, model, x, network.seed)
    leaf = md.Tensor(x, requires_grad=True)
    out = model(leaf)
    for gate in gates:
        gate.set_open(np.zeros(gate.count, bool))
    model(x)
    out.backward(rng(network.seed).standard_normal(out.shape))
    np.testing.assert_array_equal(leaf.grad, expected["x"])


@st.composite
def layers(draw, *roles):
    """A gated layer whose sizes fill the kernels' blocks or not, and an input that fits."""
    random = rng(draw(seeds))
    if draw(st.booleans()):
        sizes = draw(convolutions())
        outs, ins, *kernel = sizes.weight
        layer = conv(ins, outs, tuple(kernel), stride=sizes.stride, padding=sizes.padding)
        x = random.standard_normal(sizes.x)
    else:
        outs, ins, samples = map(int, random.integers(1, (10, 10, 40)))
        layer, x = dense(ins, outs), random.standard_normal((ins, samples))
    layer.bias.data = random.standard_normal(outs)
    counts, phis = {"outputs": outs, "inputs": ins}, [-1.0, -0.5, -0.2, 0.3, 2.0]
    gates = {role: gate_at(random.choice(phis, counts[role])) for role in roles}
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
        assert not clean["layer.weight"][:, closed].any()
        x[closed] = np.nan
        if not gated.outputs:  # their gates read all weights of an open filter
            weight[:, closed] = np.nan
    assert_same(results(gated, gated, x), clean, atol=0)


def test_what_is_behind_a_closed_filter_is_not_read():
    first = Gated(conv(1, 3), outputs=gate_at([1.0, -1.0, 0.2]))
    model = nn.Sequential(first, nn.MaxPool2d(2, relu=True), nn.Flatten(), dense(12, 2))
    x = rng().standard_normal((1, 6, 6, 2))
    clean = outputs(model, x)
    model[3].weight.data[:, 4:8] = np.nan
    np.testing.assert_array_equal(outputs(model, x), clean)


@pytest.mark.parametrize("axis", [0, 1])
def test_rows_and_columns_without_weights_are_not_computed(axis):
    layer, x = conv(3, 3, 2), rng().standard_normal((3, 4, 4, 2))
    layer.bias.data[1] = 7
    gate = gate_at([1.0, -1.0, -1.0])
    gated = Gated(layer, weights=Mask(gate, Groups.along(layer.weight.shape, axis)))
    x[axis, :, :, 0] = np.nan if axis else 1
    found = results(gated, gated, x)
    assert all(np.isfinite(value).all() for value in found.values())
    assert not found["x" if axis else "layer.weight"][1].any()
    assert axis or (found["output"][1] == 7).all()  # an output without weights is its bias


# -- what an optimiser may leave alone ---------------------------------------------------------


@pytest.mark.parametrize("decay", [0.0, 0.01])
def test_optimisers_leave_closed_weights_alone_with_the_same_outputs(decay):
    x, labels, runs = rng().standard_normal((1, 6, 6, 8)), rng().integers(0, 3, 8), []
    for leave in (True, False):
        first = md.gate(conv(1, 6), initial=0.0, **DOUBLE)
        last = md.gate(dense(24, 3), "inputs", initial=0.0, **DOUBLE)
        model = nn.Sequential(first, nn.MaxPool2d(2, relu=True), nn.Flatten(), last)
        others, phis = md.split_parameters(model)
        sgd = md.optim.SGD(others, lr=0.01, momentum=0.9, weight_decay=decay)
        adam, weight, logits, live = md.optim.Adam(phis, lr=0.05), first.layer.weight, [], []
        for _ in range(30):
            out = model(x)
            logits.append(out.data)
            sgd.zero_grad()
            adam.zero_grad()
            cost = 0.02 * md.Surrogate(model, (1, 6, 6))()
            (md.functional.cross_entropy(out, labels) + cost).backward()
            live.append(len(weight.grad_live))
            if not leave:
                for parameter in others:
                    parameter.grad = parameter.grad.copy()  # nothing is known of its rows
            sgd.step()
            adam.step()
        assert 0 < live[-1] < live[0]  # some gates have closed, and none has opened again
        assert live == sorted(live, reverse=True)
        runs.append((np.array(logits), weight.data, first.outputs.is_open()))
    (left, weight, is_open), (all_moved, other, _) = runs
    np.testing.assert_array_equal(left, all_moved)
    np.testing.assert_array_equal(weight[is_open], other[is_open])
    assert (weight[~is_open] != other[~is_open]).any()


def test_rows_get_gradients_where_any_use_of_them_is_open():
    layer, x = dense(2, 4), np.ones((2, 3))
    first = Gated(layer, outputs=gate_at([1.0, -1.0, 1.0, -1.0]))
    second = Gated(layer, outputs=gate_at([-1.0, -1.0, 1.0, 1.0]))
    (first(x).sum() + second(x).sum()).backward()
    assert layer.weight.grad_live.tolist() == [0, 2, 3]
    for again in (layer, Gated(layer, outputs=gate_at([-9.0] * 4, noise="normal"))):
        layer.weight.grad = None
        again(x).sum().backward()
        assert layer.weight.grad_live is None  # not gated, or by gates that may open again


@pytest.mark.parametrize("closed", [0, 2])
def test_fully_open_gates_keep_every_bit_and_get_no_gradient(closed):
    layer, x = nn.Conv2d(3, 5, 3, rng=rng()), rng().standard_normal((3, 6, 6, 2), dtype=np.float32)
    gated = md.gate(layer, "outputs", "inputs", initial=0.5)
    gated.outputs.phi.data[:closed] = -0.5
    found, plain = results(gated, gated, x), results(layer, layer, x)
    for name in ("output", "weight", "bias"):
        mine = found["output" if name == "output" else f"layer.{name}"]
        np.testing.assert_array_equal(mine[closed:], plain[name][closed:])
        assert not mine[:closed].any()
    assert not any(found[name].any() for name in ("outputs.phi", "inputs.phi"))
    grads = [found[name] for name in ("x", "layer.weight", "layer.bias", "outputs.phi")]
    for i, one in enumerate(grads):  # each parameter has a gradient of its own
        assert not any(np.may_share_memory(one, other) for other in (*grads[:i], found["output"]))


# -- gate(layer, ...) --------------------------------------------------------------------------


def test_layers_are_gated_by_role():
    filters, units = conv(2, 8), dense(12, 10)
    assert md.gate(filters).outputs.count == 8
    assert md.gate(filters).output_shape((2, 9, 7)) == (8, 7, 5)
    kernels = Groups.along(filters.weight.shape, (0, 1))
    assert md.gate(filters, "weights", groups=kernels).weights[0].gate.count == 16
    both = md.gate(md.gate(units, "weights"), "inputs", "weights", kind=md.GaussianGate, rng=rng())
    assert both.layer is units
    assert [(role, type(gate), gate.count) for role, gate in both.gates()] == [
        ("inputs", md.GaussianGate, 12),
        ("weights", Gate, 120),
        ("weights", md.GaussianGate, 120),
    ]


CONV, GATE = conv(2, 3), Gate(3)
NOISY = Gate(3, noise="normal", per_sample=True, rng=rng())
PLACES = Mask(Gate(8), Groups.elements((2, 4, 1)))


def column(phi):
    return Gated(dense(3, 2), weights=Mask(gate_at([1, 1, phi]), Groups.along((2, 3), 1)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: md.gate(nn.ReLU()), "expected a Conv2d or Linear"),
        (lambda: md.gate(CONV, "filters"), "role 'filters'; expected 'outputs'"),
        (lambda: md.gate(md.gate(CONV)), "has a gate on its outputs already"),
        (lambda: md.gate(CONV, kind=GATE), r"a class.*Gated\(layer, outputs=gate\)"),
        (lambda: md.gate(CONV, groups=[0, 1]), r"is a list; expected Groups\(labels\)"),
        (lambda: md.gate(CONV, width=-1), "width is -1"),
        (lambda: Gated(CONV, inputs=GATE), "inputs is a Gate of 3; expected a Gate of 2 groups"),
        (lambda: Gated(CONV, outputs="x"), "outputs is 'x'; expected a Gate of 3"),
        (lambda: Gated(CONV, weights=GATE), r"expected a Mask\(gate, groups\)"),
        (lambda: Gated(CONV, weights=PLACES), r"\(2, 4, 1\); .* groups of shape \(3, 2, 3, 3\)"),
        (lambda: Gated(CONV, biases=[PLACES]), r"biases is \(2, 4, 1\); .* of shape \(3,\)"),
        (lambda: Gated(CONV, outputs=NOISY), "noise per sample, but samples share"),
        (lambda: Mask(GATE, Groups.elements((4,))), "has 3 groups, but there are 4"),
        (lambda: Mask(GATE, np.arange(3)), "a Gate and a ndarray; expected a Gate and Groups"),
        (lambda: PLACES(np.ones((3, 4, 1, 2))), r"\(2, 4, 1\) does not .* \(3, 4, 1\).*moveaxis"),
        (lambda: column(1)(np.ones((4, 5))), r"x of shape \(4, 5\) and weight of shape \(2, 3\)"),
        (lambda: column(-1)(np.ones((4, 5))), r"x of shape \(4, 5\) and weight of shape \(2, 3\)"),
        (lambda: GATE(np.ones((5, 4))), r"input of shape \(5, 4\); .*moveaxis"),
    ],
)
def test_what_does_not_fit_is_an_error_that_names_both(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()


# -- fold_gates --------------------------------------------------------------------------------


@given(networks())
def test_folding_gates_keeps_outputs_and_counts(network):
    model, x = network.model.eval(), network.inputs()
    before, counts = model(x).data, md.count(model, network.shape)
    acting = [getattr(layer, "gate", layer) for _, layer in chain(model)]  # on activations
    phis = {id(gate): gate.phi.data.copy() for gate in md.gates_of(model).values()}
    partly = any(((g.evaluated() % 1) > 0).any() for g in acting if isinstance(g, Gate))
    with pytest.warns(UserWarning, match="stand as layers") if partly else nullcontext():
        md.fold_gates(model)
    np.testing.assert_allclose(model(x).data, before, rtol=1e-9, atol=1e-9)
    assert md.count(model, network.shape) == counts
    for gate in md.gates_of(model).values():
        if gate in acting:
            np.testing.assert_array_equal(gate.phi.data, phis[id(gate)])
        else:
            assert set(gate.evaluated()) <= {0, 1}


def test_a_parameter_in_two_places_folds_once_if_gated_alike():
    layer, other, gate = dense(3, 3), dense(3, 3), gate_at([0.0] * 3)
    other.weight, x = layer.weight, rng().standard_normal((3, 4))  # tied
    for again in (layer, other):
        model = nn.Sequential(Gated(layer, outputs=gate), Gated(again, outputs=gate))
        gate.phi.data[:] = 0.1, 0.2, -0.1
        before = outputs(model, x)
        md.fold_gates(model)
        np.testing.assert_allclose(outputs(model, x), before, rtol=1e-12)
    rows, columns = (Mask(gate, Groups.along((3, 3), axis)) for axis in (0, 1))
    weight = layer.weight.data.copy()
    for unlike in (layer, md.gate(layer), Gated(layer, weights=columns)):
        with pytest.raises(ValueError, match=r"shape \(3, 3\) is used in two places with diff"):
            md.fold_gates(nn.Sequential(Gated(layer, weights=rows), unlike))
    np.testing.assert_array_equal(layer.weight.data, weight)  # nothing has changed


# -- a whole network ---------------------------------------------------------------------------


def roles_of(model):
    return {
        name: [role for role, _ in layer.gates()]
        for name, layer in chain(model)
        if isinstance(layer, Gated)
    }


def lenet(**more):
    return md.LeNet5(rng=rng(), sparsity="dense", **more)


def test_a_network_is_gated_as_lenet5_is():
    model, expected = lenet(), md.LeNet5(rng=rng())
    gated = md.gate(model)
    assert roles_of(gated) == roles_of(expected)
    assert gated["conv1"].layer is model["conv1"]  # layers are shared
    assert repr(gated).count("gated: ") == 3
    assert "dense1: Linear(in_features=800, out_features=500), gated: 800 inputs, 500 outputs" in (
        repr(gated)
    )
    x = np.ones((1, 28, 28, 2), np.float32)
    np.testing.assert_allclose(gated(x).data, model(x).data, rtol=1e-5)


def test_only_some_layers_and_roles_are_gated():
    model = nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 2, 3, rng=rng()), nn.Tanh()),
        nn.Flatten(),
        head=nn.Sequential(dense=nn.Linear(8, 3, rng=rng()), out=nn.Linear(3, 2, rng=rng())),
    ).eval()
    assert roles_of(md.gate(model)) == {"0.0": ["outputs"], "head.dense": ["inputs", "outputs"]}
    assert roles_of(md.gate(model, only=nn.Conv2d)) == {"0.0": ["outputs"]}
    assert roles_of(md.gate(model, only=["head.out", "0.0"])) == {"0.0": ["outputs"]}
    every = md.gate(model, "weights", width=0.5)
    assert list(roles_of(every)) == ["0.0", "head.dense", "head.out"]
    assert all(gate.width == 0.5 for gate in md.gates_of(every).values())
    assert not every.training
    twice = md.gate(md.gate(model, only="0.0"), "weights")
    assert roles_of(twice)["0.0"] == ["outputs", "weights"]


def test_a_layer_that_is_used_twice_has_the_same_gates():
    layer = nn.Linear(3, 3, rng=rng())
    model = md.gate(nn.Sequential(layer, nn.ReLU(), layer, nn.Linear(3, 2, rng=rng())))
    assert model[0] is model[2]


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (lenet(), {"only": "conv3"}, "layers with weights are conv1, .*; none is conv3"),
        (lenet(), {"only": [nn.Conv2d, nn.ReLU]}, "none is ReLU"),
        (lenet(), {"only": "dense2"}, "none can be gated"),
        (nn.Sequential(nn.ReLU()), {}, "layers with weights are none; none can be gated"),
        (lenet(), {"groups": Groups.along((1,), 0)}, "groups are those of one layer"),
        (nn.Linear(3, 2, rng=rng()), {"only": "x"}, "only names layers of a network"),
    ],
)
def test_what_cannot_be_gated_is_an_error(model, options, message):
    with pytest.raises(ValueError, match=message):
        md.gate(model, **options)
