"""Compaction: the same outputs from a smaller, ordinary network, whatever was gated and how."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings

import minidiff as md
from minidiff import Gate, Gated, Groups, Mask, nn
from tests.networks import DOUBLE, Sigmoid, conv, dense, gate_at, networks, outputs, rng, train


def compact(model, shape):
    """Compact quietly, and check that the result computes the same and has no gates."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # nothing may be left
        small = md.compact(model, shape)
    x = rng().standard_normal((*shape, 3))
    np.testing.assert_allclose(outputs(small, x), outputs(model, x), rtol=1e-9, atol=1e-9)
    assert not any(isinstance(module, Gate | Gated | Mask) for module in small.modules())
    return small


def weights(model):
    return [p.size for p in model.parameters() if p.ndim > 1]


# -- any network -------------------------------------------------------------------------------


@settings(max_examples=6 * settings.default.max_examples)
@given(networks(sigmoids=True))
def test_the_compact_network_gives_the_same_outputs(network):
    before = network.model.state_dict()
    small = compact(network.model, network.shape)
    for parameter in small.parameters():
        parameter.data = np.full(parameter.shape, 7.0)
    for name, value in network.model.state_dict().items():  # they share nothing
        np.testing.assert_array_equal(value, before[name])


@given(networks(sigmoids=True))
def test_no_weights_are_left_that_are_of_no_use(network):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        small = md.compact(network.model, network.shape)
    layers = [layer for layer in small if isinstance(layer, nn.Weighted)]
    kernels = [layer.weight.data.reshape(*layer.weight.shape[:2], -1) for layer in layers]
    if caught:  # nothing is left
        x = rng().standard_normal((*network.shape, 3))
        assert np.ptp(outputs(small, x), axis=-1).max() == 0
    else:
        assert all(kernel.any(axis=(0, 2)).all() for kernel in kernels)  # inputs are read
        for kernel, following in zip(kernels, layers[1:], strict=False):
            if not any(getattr(following, "padding", ())):
                assert kernel.any(axis=(1, 2)).all()
    twice = compact(small, network.shape)
    assert small.names == twice.names
    for a, b in zip(small.parameters(), twice.parameters(), strict=True):
        np.testing.assert_array_equal(a.data, b.data)


def test_lenet5_shrinks_to_what_is_counted():
    model = md.LeNet5(rng=rng())
    for name, closed in {
        "conv1.outputs": range(5, 20),
        "conv2.outputs": range(30),
        "dense1.inputs": [*range(480), 481, 500, *range(700, 800)],
        "dense1.outputs": range(100, 500),
    }.items():
        md.gates_of(model)[name].phi.data[list(closed)] = -1
    small = md.compact(model, (1, 28, 28))
    # Filters 44 to 49 feed only closed inputs: 14 of 20 are of use.
    assert weights(small) == [5 * 25, 14 * 5 * 25, 218 * 100, 1000]
    for counts in (md.count(model, (1, 28, 28)), md.count(small, (1, 28, 28))):
        assert [c.weights[0] for c in counts] == weights(small)
    select = small["dense1_select"]
    assert (len(select.indices), select.size) == (218, 14 * 16)


# -- constants ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("padding", "left"), [(0, 2), (1, 3)])
@pytest.mark.parametrize("between", [nn.ReLU, Sigmoid])
def test_constants_fold_into_biases_unless_padding_needs_them(padding, left, between):
    first, last = conv(1, 3), conv(3, 2, padding=padding)
    first.bias.data[:] = 1.0, 2.0, 3.0
    rows = Mask(gate_at([0.2, -1, 1]), Groups.along(first.weight.shape, 0))
    model = nn.Sequential(Gated(first, weights=rows), between(), nn.AvgPool2d(2), last, Sigmoid())
    assert compact(model, (1, 9, 9))[0].weight.shape[0] == left  # biases live on
    model[0] = Gated(first, outputs=rows.gate)  # closed: 0, of which sigmoid makes 1/2
    assert compact(model, (1, 9, 9))[0].weight.shape[0] == (2 if between is nn.ReLU else left)


@pytest.mark.parametrize("odd", [np.nan, np.inf])
def test_what_is_closed_or_unread_does_not_matter_whatever_it_is(odd):
    for first, last in ((conv(3, 4, 1), conv(4, 2, 1)), (dense(3, 4), dense(4, 2))):
        model = nn.Sequential(Gated(first, outputs=gate_at([1, -1, 0.2, 1])), last)
        first.weight.data[1] = first.bias.data[1] = last.weight.data[:, 1] = odd
        assert len(compact(model, (3, 2, 2)[: first.weight.ndim - 1])[0].weight) == 3
    unit = Gated(dense(4, 3), weights=Mask(gate_at([-1, 1, 1]), Groups.along((3, 4), 0)))
    unit.layer.bias.data[0] = odd  # a constant that only a closed gate reads
    compact(nn.Sequential(unit, gate_at([-1, 1, 1]), nn.ReLU(), dense(3, 2)), (4,))


def test_weights_that_are_zero_by_hand_leave_as_well():
    model = nn.Sequential(conv(1, 5), nn.MaxPool2d(2, relu=True), nn.Flatten(), dense(45, 2))
    model[0].weight.data[3:] = 0
    model[3].weight.data[:, :9] = 0
    assert weights(compact(model, (1, 8, 8))) == [2 * 9, 18 * 2]


@pytest.mark.parametrize("role", ["0.outputs", "2.inputs", "2.outputs"])
def test_nothing_left_is_a_warning_and_a_constant_network(role):
    second = md.gate(dense(144, 5), "inputs", "outputs")
    model = nn.Sequential(md.gate(conv(1, 4)), nn.Flatten(), second, nn.ReLU(), dense(5, 2))
    md.gates_of(model)[role].phi.data[:] = -1
    with pytest.warns(UserWarning, match="nothing is left of the inputs of 4"):
        md.compact(model, (1, 8, 8))
    assert sum(weights(compact(model, (1, 8, 8)))) < 60


# -- what is cut -------------------------------------------------------------------------------


def test_closed_inputs_of_the_network_leave_too():
    gated = Gated(dense(784, 5), inputs=gate_at([-1, 1] * 392))
    small = compact(nn.Sequential(nn.Flatten(), gated), (1, 28, 28))
    assert [type(layer) for layer in small] == [nn.Flatten, nn.Select, nn.Linear]
    assert weights(small) == [392 * 5]


@pytest.mark.parametrize(
    "behind",
    [
        [nn.Select([0, 2, 5], size=6), nn.ReLU(), nn.Flatten()],
        [nn.MaxPool2d(2, stride=1), nn.Select([1, 3], size=6)],
        [nn.Flatten(), nn.Select([0, 3, 10, 53], size=54)],
        [nn.Select([0, 2, 4], size=6), nn.Select([1, 2], size=3), Sigmoid()],
    ],
)
def test_what_a_select_behind_the_last_layer_drops_leaves(behind):
    model = nn.Sequential(Gated(conv(2, 4, 1), outputs=gate_at([1, -1, 1, 1])), conv(4, 6), *behind)
    small = compact(model, (2, 5, 5))
    assert weights(small) == [c.weights[0] for c in md.count(model, (2, 5, 5))]


@pytest.mark.parametrize("labels", [(1, 1, 1), (3, 1, 1), (3, 4, 4)])
@pytest.mark.parametrize("phi", [0.2, -1.0])
def test_a_mask_of_whole_channels_folds_in_any_layout(labels, phi):
    mask = Mask(gate_at([phi]), Groups(np.zeros(labels, int)))
    model = nn.Sequential(conv(1, 3), mask, nn.MaxPool2d(2), conv(3, 2, 1))
    assert [layer.weights[0] > 0 for layer in md.count(model, (1, 6, 6))] == [phi > 0] * 2
    compact(model, (1, 6, 6))


def test_a_compact_network_trains_on_and_is_pruned_again():
    first = Gated(conv(1, 8), outputs=gate_at([-1] * 3 + [1] * 5))
    pool, flatten = nn.MaxPool2d(2, relu=True), nn.Flatten()
    small = compact(nn.Sequential(a=first, pool=pool, flatten=flatten, b=dense(72, 3)), (1, 8, 8))
    losses = train(small, rng().standard_normal((1, 8, 8, 16)), rng().integers(0, 3, 16), lr=0.02)
    assert losses[-1] < losses[0] / 2
    small["a"] = Gated(small["a"], outputs=gate_at([-1, 1, 1, 1, 1]))
    assert weights(compact(small, (1, 8, 8))) == [4 * 9, 4 * 9 * 3]


def test_shared_generators_stay_shared_and_are_copies():
    noise = rng()
    drops = [nn.Dropout(0.5, rng=noise) for _ in range(2)]
    small = md.compact(nn.Sequential(drops[0], dense(2, 2), drops[1]), (2,))
    assert small[0].rng is small[2].rng is not noise
    small(np.ones((2, 2)))
    assert noise.random() == rng().random()


class Sideways(nn.Sequential):
    """A Sequential that holds modules besides its layers, which it does not apply."""

    def __init__(self, *layers):
        super().__init__(*layers)
        self.head, self.gates = dense(3, 3), [layer.outputs for layer in layers]


def test_layers_are_named_after_their_path_and_never_collide():
    gated = Gated(dense(4, 4), inputs=gate_at([-1, 1, 1, 1]), outputs=gate_at([0.2] * 4))
    for model, names in (
        (gated, ["layer_select", "layer"]),
        (nn.Sequential(a=nn.Sequential(b=nn.Sequential(c=gated))), ["a_b_c_select", "a_b_c"]),
        (Sideways(gated), ["0_select", "0"]),  # what it holds besides is no layer
    ):
        assert compact(model, (4,)).names == names
    for model in (
        nn.Sequential(a_b=dense(4, 4), a=nn.Sequential(b=dense(4, 4))),
        nn.Sequential(Sigmoid(), c_select=Sigmoid(), c=gated),
    ):
        compact(model, (4,))


# -- errors ------------------------------------------------------------------------------------

SOME, PLACES = gate_at([1, 0, 1]), Mask(gate_at([0.1] * 16), Groups.along((2, 4, 4), (1, 2)))


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([nn.ReLU()], "no layer with weights"),
        ([PLACES, conv(2, 3)], "1 follows a gate that cannot .* on positions of channels"),
        ([PLACES, nn.AvgPool2d(2), nn.Flatten(), dense(8, 3)], "3 follows a gate that cannot"),
        ([PLACES, Sigmoid(), nn.Flatten(), dense(32, 3)], "3 follows a gate .* not homogeneous"),
        ([conv(2, 3), SOME, Sigmoid(), conv(3, 3, 1)], "3 follows a gate .* not homogeneous"),
        ([conv(2, 3), SOME, Sigmoid()], "the output follows a gate"),
        ([conv(2, 2, 1), PLACES], "the output follows a gate"),
        ([conv(2, 3), Sigmoid(), SOME], "cannot be folded back"),
        ([conv(2, 2), nn.Flatten(), gate_at([0.1] * 8)], "cannot be folded back"),
    ],
)
def test_gates_that_cannot_be_folded_are_errors(layers, message):
    with pytest.raises(ValueError, match=message):
        md.compact(nn.Sequential(*layers), (2, 4, 4))


# -- layers of one's own that say something wrong ----------------------------------------------


class Flip(nn.Module):
    """A layer that keeps the shape and moves positions."""

    channelwise = homogeneous = True

    def forward(self, x):
        return x[:, ::-1]


class Shuffle(nn.Module):
    """A layer that says channels stay what they are, and reverses them."""

    channelwise = homogeneous = True

    def forward(self, x):
        return x[::-1]


class Slopes(nn.Module):
    """A layer with a parameter for each channel, which compaction cannot cut."""

    channelwise = homogeneous = True

    def __init__(self, count):
        self.slope = nn.Parameter(np.full((count, 1), 0.5))

    def forward(self, x):
        return x * self.slope


class Double(nn.Select):
    """A Select that does more."""

    def forward(self, x):
        return 2 * super().forward(x)


class Soft(Gate):
    """A gate whose values are not those of its transform."""

    def values(self, *, samples=None):
        return super().values(samples=samples) * 0.5


SOME_OPEN = gate_at([1, -1, 1, 1])


@pytest.mark.parametrize(
    ("layers", "shape", "message"),
    [
        ([PLACES, Flip(), nn.Flatten(), dense(32, 2)], (2, 4, 4), "follows a gate that cannot"),
        ([Gated(dense(4, 4), outputs=SOME_OPEN), Shuffle(), dense(4, 2)], (4,), "Check .*Shuffle"),
        ([Gated(dense(4, 4), outputs=SOME_OPEN), Slopes(4), dense(4, 2)], (4,), "Check .*Slopes"),
        ([Gated(dense(4, 4), outputs=SOME_OPEN), Double([0, 1], size=4)], (4,), "Double does not"),
        ([md.gate(dense(4, 4), kind=Soft, **DOUBLE), dense(4, 2)], (4,), "Check .*Soft"),
    ],
)
def test_a_class_that_says_something_wrong_of_channels_is_an_error(layers, shape, message):
    with pytest.raises((TypeError, ValueError), match=message):
        md.compact(nn.Sequential(*layers), shape)
