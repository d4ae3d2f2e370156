"""Counts are of what the network's output depends on."""

import math

import numpy as np
from hypothesis import given

import minidiff as md
from minidiff import Gated, nn
from minidiff.engine.module import chain
from minidiff.pruning.count import gated_sizes, in_use
from tests.networks import by_hand, conv, dense, gate_at, rng, small_networks


@given(small_networks(groups=20))
def test_counts_are_of_the_weights_that_have_a_gradient(network):
    """All weights, biases and inputs are above 0, so no gradient is 0 by chance."""
    model, shape, x = network.model.eval(), network.shape, np.ones((*network.shape, 1))
    by_hand(model, md.Tensor(x)).sum().backward()
    counts, used = iter(md.count(model, shape)), in_use(model, shape)
    for name, module in chain(model):
        x = module(x).data
        layer = module.layer if isinstance(module, Gated) else module
        if isinstance(layer, nn.Weighted):
            count, matters, positions = (
                next(counts),
                layer.weight.grad != 0,
                math.prod(x.shape[1:-1]),
            )
            assert count.name == name
            assert count.weights == (matters.sum(), matters.size)
            assert count.macs == (matters.sum() * positions, matters.size * positions)
            inputs = matters.reshape(*matters.shape[:2], -1).any(axis=(0, 2))
            for role, which in (("inputs", inputs), ("outputs", layer.bias.grad != 0)):
                assert getattr(count, role) == (which.sum(), which.size)
                np.testing.assert_array_equal(used[f"{name}.{role}"], which)
    assert next(counts, None) is None


def test_layers_are_named_and_say_which_roles_are_gated():
    last = md.gate(dense(12, 3), "inputs", "outputs", "weights")
    body = nn.Sequential(conv=md.gate(conv(2, 3, 2)), flatten=nn.Flatten(), dense=last)
    counts = md.count(nn.Sequential(body=body, head=dense(3, 1)), [2, 3, 3])
    assert [(c.name, c.gated, c.dense) for c in counts] == [
        ("body.conv", ("outputs",), False),
        ("body.dense", ("inputs", "outputs", "weights"), True),
        ("head", (), True),
    ]
    assert md.count(nn.Sequential(nn.ReLU()), (4,)) == []


def test_counting_draws_nothing_and_is_of_evaluation():
    gate = gate_at([2.0] * 3, noise="normal", sigma=100.0)
    model = Gated(dense(4, 3), outputs=gate)
    assert md.count(model, (4,))[0].outputs == (3, 3)
    md.Surrogate(model, (4,))()
    assert gate.rng.random() == rng().random()


def test_counts_of_large_layers_are_exact():
    layer = dense(1, 1)  # 4097 * 4099 is odd and above 2^24, which float32 cannot hold
    layer.weight = nn.Parameter(np.broadcast_to(np.float32(1), (4099, 4097)))
    layer.bias = nn.Parameter(np.broadcast_to(np.float32(0), 4099))
    assert md.count(layer, (4097,))[0].weights == (4097 * 4099, 4097 * 4099)


def test_an_open_lenet5_has_430500_weights_and_2293000_macs():
    model = md.LeNet5(rng=rng(), sparsity="combined", initial=20.0)
    counts = md.count(model, model.input_shape)
    assert md.architecture(counts) == "20-50-800-500"
    for name, cost, size in (("weights", "weights", 430_500), ("macs", "macs", 2_293_000)):
        assert [sum(getattr(c, name)[i] for c in counts) for i in (0, 1)] == [size, size]
        assert md.Surrogate(model, model.input_shape, cost=cost)().item() == size


def test_a_pruned_lenet5_is_counted_and_written_as_in_the_literature():
    model = md.LeNet5(rng=rng())
    opened = {
        "conv1.outputs": np.arange(0, 16, 2),  # 8
        "conv2.outputs": np.arange(11),  # 7 of which are read by open inputs
        "dense1.inputs": [*range(112), *range(176, 300)],  # 112 of which read open filters
        "dense1.outputs": np.arange(100, 168),  # 68
    }
    for name, gate in md.gates_of(model).items():
        gate.set_open(np.isin(np.arange(gate.count), opened[name]))
    counts = md.count(model, model.input_shape)
    assert md.architecture(counts) == "8-7-112-68"
    assert md.architecture(counts, dense=True) == "20-50-800-500"
    assert [c.weights[0] for c in counts] == [8 * 25, 8 * 7 * 25, 112 * 68, 68 * 10]
    assert [c.macs[0] for c in counts] == [8 * 25 * 576, 8 * 7 * 25 * 64, 112 * 68, 68 * 10]
    left = dict(zip(opened, [(8, 20), (7, 50), (112, 800), (68, 500)], strict=True))
    assert gated_sizes(counts) == left


def test_weights_of_0_do_not_count():
    model = nn.Sequential(dense(4, 3), nn.ReLU(), dense(3, 2))
    model[0].weight.data[1] = 0
    model[2].weight.data[0, :2] = 0
    first, second = md.count(model, (4,))
    assert (first.weights, second.weights) == ((8, 12), (4, 6))


def test_a_convolution_with_one_position_is_not_a_dense_layer():
    model = nn.Sequential(conv(3, 8, 5), nn.Flatten(), dense(8, 4))
    assert md.architecture(md.count(model, (3, 5, 5))) == "8"
