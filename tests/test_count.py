"""Counts are of what the network's output depends on."""

import math

import numpy as np
from hypothesis import given

import minidiff as md
from minidiff import Gate, Gated, nn
from minidiff.engine.module import chain
from minidiff.pruning.count import gated_sizes, in_use
from tests.networks import by_hand, small_networks


def rng():
    return np.random.default_rng(0)


def gate_at(*phi):
    gate = Gate(len(phi))
    gate.phi.data[:] = phi
    return gate


@given(small_networks(groups=20))
def test_counts_are_of_the_weights_that_have_a_gradient(network):
    """All weights, biases and inputs are above 0, so no gradient is 0 by chance."""
    model, shape = network.model.eval(), network.shape
    by_hand(model, md.Tensor(np.ones((*shape, 1)))).sum().backward()
    counts, used, x = md.count(model, shape), in_use(model, shape), np.ones((*shape, 1))
    found = iter(counts)
    for name, module in chain(model):
        x = module(x).data
        layer = module.layer if isinstance(module, Gated) else module
        if not isinstance(layer, nn.Weighted):
            continue
        matters, count, positions = layer.weight.grad != 0, next(found), math.prod(x.shape[1:-1])
        inputs = matters.reshape(*matters.shape[:2], -1).any(axis=(0, 2))
        assert count.name == name
        assert count.weights == (matters.sum(), matters.size)
        assert count.macs == (matters.sum() * positions, matters.size * positions)
        for role, which in (("inputs", inputs), ("outputs", layer.bias.grad != 0)):
            assert getattr(count, role) == (which.sum(), which.size)
            np.testing.assert_array_equal(used[f"{name}.{role}"], which)
    assert next(found, None) is None


def test_layers_are_named_and_say_which_roles_are_gated():
    dense = md.gate(nn.Linear(12, 3, rng=rng()), "inputs", "outputs", "weights")
    conv = md.gate(nn.Conv2d(2, 3, 2, rng=rng()))
    body = nn.Sequential(conv=conv, flatten=nn.Flatten(), dense=dense)
    model = nn.Sequential(body=body, head=nn.Linear(3, 1, rng=rng()))
    counts = md.count(model, [2, 3, 3])
    assert [(c.name, c.gated, c.dense) for c in counts] == [
        ("body.conv", ("outputs",), False),
        ("body.dense", ("inputs", "outputs", "weights"), True),
        ("head", (), True),
    ]
    assert md.count(nn.Sequential(nn.ReLU()), (4,)) == []


def test_a_gate_as_a_layer_counts_as_a_gate_on_inputs():
    for shape, layer in (((3,), nn.Linear), ((3, 4, 4), lambda *a, **k: nn.Conv2d(*a, 2, **k))):
        gate, first, last = (
            gate_at(1, -1, 1, 1, 0.3),
            layer(3, 5, rng=rng()),
            layer(5, 2, rng=rng()),
        )
        as_layer = nn.Sequential(first, nn.ReLU(), gate, last)
        wrapped = nn.Sequential(first, nn.ReLU(), Gated(last, inputs=gate))
        ours, theirs = md.count(as_layer, shape), md.count(wrapped, shape)
        for name in ("inputs", "outputs", "weights", "macs"):
            assert [getattr(c, name) for c in ours] == [getattr(c, name) for c in theirs]
        costs = [md.expected_cost(model, shape).item() for model in (as_layer, wrapped)]
        assert costs[0] == costs[1]


def test_counting_draws_nothing_and_is_of_evaluation():
    noise = rng()
    gate = Gate(3, initial=2.0, noise="normal", sigma=100.0, rng=noise)
    model = Gated(nn.Linear(4, 3, rng=rng()), outputs=gate)
    assert md.count(model, (4,))[0].outputs == (3, 3)
    md.expected_cost(model, (4,))
    assert noise.random() == rng().random()


def test_counts_of_large_layers_are_exact():
    layer = nn.Linear(1, 1, rng=rng())  # 4097 * 4099 is odd and above 2^24: float32 cannot hold it
    layer.weight = nn.Parameter(np.broadcast_to(np.float32(0), (4099, 4097)))
    layer.bias = nn.Parameter(np.broadcast_to(np.float32(0), 4099))
    assert md.count(layer, (4097,))[0].weights == (4097 * 4099, 4097 * 4099)


# -- LeNet5 ------------------------------------------------------------------------------------


def test_an_open_lenet5_has_430500_weights_and_2293000_macs():
    model = md.LeNet5(rng=rng(), sparsity="combined", initial=20.0)
    counts = md.count(model, model.input_shape)
    assert sum(c.weights[0] for c in counts) == sum(c.weights[1] for c in counts) == 430_500
    assert sum(c.macs[0] for c in counts) == sum(c.macs[1] for c in counts) == 2_293_000
    assert md.architecture(counts) == "20-50-800-500"
    for cost, size in (("weights", 430_500), ("macs", 2_293_000)):
        assert md.expected_cost(model, model.input_shape, cost=cost).item() == size


def test_a_pruned_lenet5_is_counted_and_written_as_in_the_literature():
    model = md.LeNet5(rng=rng())
    for gate, opened in (
        (model["conv1"].outputs, np.arange(0, 16, 2)),  # 8
        (model["conv2"].outputs, np.arange(11)),  # the last 4 are read by closed inputs alone
        (model["dense1"].inputs, [*range(112), *range(176, 300)]),  # 112 read open filters
        (model["dense1"].outputs, np.arange(100, 168)),  # 68
    ):
        gate.set_open(np.isin(np.arange(gate.count), opened))
    counts = md.count(model, model.input_shape)
    assert md.architecture(counts) == "8-7-112-68"
    assert md.architecture(counts, dense=True) == "20-50-800-500"
    assert [c.weights[0] for c in counts] == [8 * 25, 8 * 7 * 25, 112 * 68, 68 * 10]
    assert [c.macs[0] for c in counts] == [8 * 25 * 576, 8 * 7 * 25 * 64, 112 * 68, 68 * 10]
    assert gated_sizes(counts) == {
        "conv1.outputs": (8, 20),
        "conv2.outputs": (7, 50),
        "dense1.inputs": (112, 800),
        "dense1.outputs": (68, 500),
    }


def test_a_convolution_with_one_position_is_written_as_no_dense_layer():
    model = nn.Sequential(nn.Conv2d(3, 8, 5, rng=rng()), nn.Flatten(), nn.Linear(8, 4, rng=rng()))
    assert md.architecture(md.count(model, (3, 5, 5))) == "8"
