"""Compaction: the same outputs from a smaller, ordinary network, whatever was gated and how."""

import copy
import itertools
import math
import warnings

import numpy as np
import pytest
from hypothesis import event, given, settings

import minidiff as md
from minidiff import nn
from minidiff.engine.nn import Module
from minidiff.pruning.gates import Gate, Gated
from tests.strategies import Network, networks, seeds


def outputs(model: Module, x: np.ndarray) -> np.ndarray:
    with md.no_grad():
        return copy.deepcopy(model).eval()(x).data


def quietly_compact(model: Module) -> nn.Sequential:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return md.compact(model)


def weights(model: Module) -> int:
    return sum(p.size for p in model.parameters() if p.ndim > 1)


@given(networks())
@settings(max_examples=300)
def test_the_compact_network_gives_the_same_outputs(network: Network) -> None:
    x = np.random.default_rng(network.seed).standard_normal((*network.shape, 3))
    small = quietly_compact(network.model)
    np.testing.assert_allclose(outputs(small, x), outputs(network.model, x), rtol=1e-9, atol=1e-9)
    assert not any(isinstance(m, Gate | Gated) for m in small.modules())
    event(f"{weights(small) < weights(network.model)}")


@given(networks())
def test_no_weight_is_left_that_is_of_no_use(network: Network) -> None:
    small = quietly_compact(network.model)
    layers = [m for m in small.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    for layer, following in itertools.pairwise(layers):
        used = following.weight.data.reshape(*following.weight.shape[:2], -1).any(axis=(0, 2))
        if following.weight.shape[1] > 1:  # a layer keeps one input at least
            assert used.all()
        if not (isinstance(following, nn.Conv2d) and any(following.padding)) and len(used) > 1:
            rows = layer.weight.data.reshape(len(layer.weight), -1)
            assert rows.any(axis=1).all()


@given(networks())
def test_to_compact_twice_is_to_compact_once(network: Network) -> None:
    once = quietly_compact(network.model)
    twice = quietly_compact(once)
    assert list(once.names) == list(twice.names)
    for a, b in zip(once.parameters(), twice.parameters(), strict=True):
        np.testing.assert_array_equal(a.data, b.data)


@given(networks(), seeds)
@settings(max_examples=50)
def test_a_compact_network_shares_nothing_with_the_gated_one(network: Network, seed: int) -> None:
    before = network.model.state_dict()
    small = quietly_compact(network.model)
    for parameter in small.parameters():
        parameter.data[...] = np.random.default_rng(seed).standard_normal(parameter.shape)
    for name, value in network.model.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


def lenet(closed: dict[str, list[int]] | None = None, **gate: object) -> md.LeNet5:
    model = md.LeNet5(rng=np.random.default_rng(0), **gate)
    for name, groups in (closed or {}).items():
        layer, role = name.split(".")
        gate_of = getattr(dict(model.children())[layer], role)
        gate_of.phi.data[groups] = -1
    return model


def test_lenet5_shrinks_to_what_is_counted() -> None:
    closed = {
        "conv1.outputs": list(range(5, 20)),
        "conv2.outputs": list(range(30)),
        "dense1.inputs": [*range(480), 481, 500, *range(700, 800)],
        "dense1.outputs": list(range(100, 500)),
    }
    model = lenet(closed)
    small = md.compact(model)
    shape = (1, 28, 28)
    counted, kept = md.count(model, shape), md.count(small, shape)
    assert [c.weights[0] for c in counted] == [c.weights[0] for c in kept]
    assert (
        [c.weights[0] for c in kept]
        == [c.weights[1] for c in kept]
        == [
            5 * 25,
            14 * 5 * 25,  # filters 44 to 49 feed only closed inputs: 14 of 20 are of use
            218 * 100,
            1000,
        ]
    )
    select = dict(small.children())["dense1_select"]
    assert isinstance(select, nn.Select)
    assert (len(select.indices), select.size) == (218, 14 * 16)


def test_gates_that_are_partly_open_are_folded_in() -> None:
    model = lenet(initial=0.1)
    x = np.random.default_rng(1).standard_normal((1, 28, 28, 4), dtype=np.float32)
    small = md.compact(model)
    assert weights(small) == 430_500
    np.testing.assert_allclose(outputs(small, x), outputs(model, x), rtol=1e-4, atol=1e-5)


def test_stochastic_gates_count_as_in_evaluation() -> None:
    model = lenet({"conv1.outputs": [0]}, noise="normal", sigma=0.5)
    x = np.random.default_rng(1).standard_normal((1, 28, 28, 4), dtype=np.float32)
    np.testing.assert_allclose(
        outputs(md.compact(model), x), outputs(model, x), rtol=1e-4, atol=1e-5
    )


def test_a_closed_filter_with_a_live_bias_is_folded_or_kept_where_padding_needs_it() -> None:
    rng = np.random.default_rng(0)
    for padding, left in ((0, 2), (1, 3)):
        first, second = nn.Conv2d(1, 3, 3, rng=rng), nn.Conv2d(3, 2, 3, padding=padding, rng=rng)
        first.bias.data[...] = 1.0, 2.0, 3.0
        groups = md.Groups.along(first.weight.shape, 0)  # of weights only: biases live on
        gate = Gate(3)
        gated = Gated(first, weights=md.Mask(gate, groups))
        gate.phi.data[1] = -1
        model = nn.Sequential(gated, nn.ReLU(), second)
        small = md.compact(model)
        assert small.layers[0].weight.shape[0] == left
        x = rng.standard_normal((1, 7, 7, 2), dtype=np.float32)
        np.testing.assert_allclose(outputs(small, x), outputs(model, x), rtol=1e-5, atol=1e-5)


def test_closed_inputs_of_the_network_leave_too() -> None:
    rng = np.random.default_rng(0)
    gated = Gated(nn.Linear(784, 5, rng=rng), inputs=Gate(784))
    gated.inputs.phi.data[::2] = -1
    model = nn.Sequential(nn.Flatten(), gated)
    small = md.compact(model)
    assert [type(layer) for layer in small.layers] == [nn.Flatten, nn.Select, nn.Linear]
    assert weights(small) == 392 * 5
    x = rng.standard_normal((1, 28, 28, 2), dtype=np.float32)
    np.testing.assert_allclose(outputs(small, x), outputs(model, x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "gate", ["conv1.outputs", "conv2.outputs", "dense1.inputs", "dense1.outputs"]
)
def test_nothing_left_is_a_warning_and_a_network_that_predicts(gate: str) -> None:
    count = {"conv1.outputs": 20, "conv2.outputs": 50, "dense1.inputs": 800}.get(gate, 500)
    model = lenet({gate: list(range(count))})
    with pytest.warns(UserWarning, match=r"nothing is left of the inputs of (conv2|dense[12])"):
        small = md.compact(model)
    x = np.random.default_rng(1).standard_normal((1, 28, 28, 4), dtype=np.float32)
    np.testing.assert_allclose(outputs(small, x), outputs(model, x), rtol=1e-5, atol=1e-6)
    assert weights(small) < 1100


def test_weights_that_are_zero_for_other_reasons_leave_as_well() -> None:
    model = md.LeNet5(rng=np.random.default_rng(0), sparsity="dense")
    layers = dict(model.children())
    layers["conv1"].weight.data[3:] = 0
    small = md.compact(model)
    assert dict(small.children())["conv1"].weight.shape == (3, 1, 5, 5)


def test_what_is_closed_does_not_matter_even_if_it_is_not_a_number() -> None:
    model = lenet({"conv1.outputs": [2]})
    dict(model.children())["conv1"].layer.weight.data[2] = np.nan
    assert all(np.isfinite(p.data).all() for p in md.compact(model).parameters())


@pytest.mark.parametrize("odd", [np.nan, np.inf])
def test_weights_that_only_closed_channels_meet_do_not_matter(odd: float) -> None:
    rng = np.random.default_rng(0)
    for convolution in (True, False):
        layer = (
            (lambda i, o: nn.Conv2d(i, o, 1, rng=rng))
            if convolution
            else (lambda i, o: nn.Linear(i, o, rng=rng))
        )
        model = nn.Sequential(Gated(layer(3, 4), outputs=Gate(4)), layer(4, 2))
        model.layers[0].outputs.phi.data[1] = -1
        model.layers[1].weight.data[:, 1] = odd
        x = rng.standard_normal((3, 2, 2, 5) if convolution else (3, 5), dtype=np.float32)
        np.testing.assert_allclose(outputs(md.compact(model), x), outputs(model, x), rtol=1e-5)


@pytest.mark.parametrize("odd", [np.nan, np.inf])
def test_a_constant_that_nobody_has_weights_for_does_not_matter(odd: float) -> None:
    rng = np.random.default_rng(0)
    layer = md.gate_weights(nn.Linear(4, 3, rng=rng), groups=md.Groups.along((3, 4), 0))
    layer.weights[0].gate.phi.data[0] = -1  # the unit is nothing but its bias
    layer.layer.bias.data[0] = odd
    closed = Gate(3)
    closed.phi.data[0] = -1
    model = nn.Sequential(layer, closed, nn.ReLU(), nn.Linear(3, 2, rng=rng))
    x = rng.standard_normal((4, 5), dtype=np.float32)
    np.testing.assert_allclose(outputs(md.compact(model), x), outputs(model, x), rtol=1e-5)


def test_names_never_collide() -> None:
    rng = np.random.default_rng(0)

    def dense() -> nn.Linear:
        return nn.Linear(4, 4, rng=rng)

    inner = nn.Sequential(b=dense(), b_=nn.ReLU(), c=nn.Sequential(select=dense()))
    model = nn.Sequential(a_b=dense(), a_b_=dense(), a=inner, c=dense())
    small = md.compact(model)
    assert list(small.names) == ["a_b", "a_b_", "a_b__", "a_b___", "a_c_select", "c"]
    x = rng.standard_normal((4, 5), dtype=np.float32)
    np.testing.assert_allclose(outputs(small, x), outputs(model, x), rtol=1e-5)

    gated = Gated(nn.Linear(16, 4, rng=rng), inputs=Gate(16))
    gated.inputs.phi.data[:3] = -1
    model = nn.Sequential(c_select=nn.Conv2d(1, 4, 1, rng=rng), flatten=nn.Flatten(), c=gated)
    small = md.compact(model)
    assert list(small.names) == ["c_select", "flatten", "c_select_", "c"]
    x = rng.standard_normal((1, 2, 2, 5), dtype=np.float32)
    np.testing.assert_allclose(outputs(small, x), outputs(model, x), rtol=1e-5)


def test_a_generator_that_two_layers_share_stays_shared() -> None:
    rng = np.random.default_rng(0)
    drops = [nn.Dropout(0.5, rng=rng) for _ in range(2)]
    first, *_, last = md.compact(nn.Sequential(drops[0], nn.Linear(2, 2, rng=rng), drops[1])).layers
    assert first.rng is last.rng is not rng


def test_a_compact_network_trains_on_and_is_pruned_again() -> None:
    rng = np.random.default_rng(0)
    small = md.compact(
        lenet({"conv1.outputs": list(range(15)), "dense1.outputs": list(range(450))})
    )
    x, labels = rng.standard_normal((1, 28, 28, 16), dtype=np.float32), rng.integers(0, 10, 16)
    optimiser = md.optim.SGD(small.parameters(), lr=0.02, momentum=0.9)
    losses = []
    for _ in range(20):
        loss = md.ops.cross_entropy(small(x), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    layers = dict(small.children())
    layers["conv1"] = Gated(layers["conv1"], outputs=Gate(5))
    layers["conv1"].outputs.phi.data[0] = -1
    again = md.compact(nn.Sequential(**layers))
    assert dict(again.children())["conv1"].weight.shape[0] == 4


def test_dropout_of_the_compact_network_draws_its_own_numbers() -> None:
    rng = np.random.default_rng(0)
    drop = nn.Dropout(0.5, rng=rng)
    model = nn.Sequential(nn.Linear(4, 3, rng=rng), drop, nn.Linear(3, 2, rng=rng))
    small = md.compact(model)
    state = rng.bit_generator.state
    small(np.ones((4, 2), np.float32))
    assert rng.bit_generator.state == state


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([nn.ReLU()], "no layer with weights"),
        ([nn.Linear(3, 4, rng=np.random.default_rng(0)), Gate(3)], "does not fit"),
        (
            [
                nn.Linear(3, 4, rng=np.random.default_rng(0)),
                nn.Linear(5, 4, rng=np.random.default_rng(0)),
            ],
            "does not fit",
        ),
        (
            [nn.Conv2d(1, 4, 1, rng=np.random.default_rng(0)), nn.Flatten(), Gate(8, initial=0.1)],
            "gates places",
        ),
    ],
)
def test_what_cannot_be_compacted_is_an_error(layers: list[Module], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        md.compact(nn.Sequential(*layers))


def test_an_unknown_module_is_named() -> None:
    class Strange(Module):
        pass

    class Residual(nn.Sequential):
        def forward(self, x: md.Tensor) -> md.Tensor:
            return x + super().forward(x)

    class Leaky(nn.ReLU):
        pass

    inner = nn.Linear(2, 2, rng=np.random.default_rng(0))
    for module in (Strange(), Residual(inner), Leaky()):
        with pytest.raises(TypeError, match=f"odd is a {type(module).__name__}"):
            md.compact(nn.Sequential(odd=module))


@pytest.mark.parametrize(
    "shape",
    [(8, 6, 6), (8, 6, 1), (8, 1, 6), (1, 6, 1), (1, 6, 6), (1, 1, 6), (8, 1, 1), (1, 1, 1)],
)
def test_masks_with_axes_of_one_group_are_folded(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    gate = Gate(math.prod(shape))
    gate.phi.data[:] = rng.choice([-2, 0.2, 2], gate.count)
    gate.phi.data[0] = 0.2
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, rng=rng),
        md.Mask(gate, md.Groups(np.arange(gate.count).reshape(shape))),
        nn.Flatten(),
        nn.Linear(8 * 36, 3, rng=rng),
    )
    x = rng.standard_normal((1, 8, 8, 5)).astype(np.float32)
    np.testing.assert_allclose(md.compact(model)(x).data, model(x).data, atol=1e-5)


def test_a_mask_over_the_inputs_needs_to_tell_their_shape() -> None:
    rng = np.random.default_rng(0)
    gate, last = Gate(6), nn.Linear(18, 3, rng=rng)
    gate.phi.data[:] = [0.1, -2, 2, 0, 1, -1]
    x = rng.standard_normal((3, 2, 3, 4)).astype(np.float32)
    model = nn.Sequential(md.Mask(gate, md.Groups.elements((1, 2, 3))), nn.Flatten(), last)
    np.testing.assert_allclose(md.compact(model)(x).data, model(x).data, atol=1e-5)
    rows = nn.Sequential(md.Mask(Gate(2), md.Groups([[[0], [1]]])), nn.Flatten(), last)
    with pytest.raises(ValueError, match="give labels of its whole shape"):
        md.compact(rows)
    one = md.Mask(Gate(1), md.Groups(np.zeros((1, 4, 4), int)))
    pooled = nn.Sequential(one, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(12, 2, rng=rng))
    with pytest.raises(ValueError, match="give labels of its whole shape"):
        md.compact(pooled)


@pytest.mark.parametrize("along", [(3, 4), (1, 4)])
def test_a_mask_over_rows_of_features_is_folded(along: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    gate = Gate(along[0] * along[1])
    gate.phi.data = rng.normal(0, 0.4, gate.count).astype(np.float32)
    mask = md.Mask(gate, md.Groups.elements(along))
    model = nn.Sequential(mask, nn.Flatten(), nn.Linear(12, 2, rng=rng))
    x = rng.standard_normal((3, 4, 5)).astype(np.float32)
    np.testing.assert_allclose(md.compact(model)(x).data, model(x).data, atol=1e-5)


def test_a_mask_over_more_axes_cannot_be_folded() -> None:
    rng = np.random.default_rng(0)
    mask = md.Mask(Gate(24), md.Groups.elements((3, 2, 2, 2)))
    model = nn.Sequential(mask, nn.Flatten(), nn.Linear(24, 2, rng=rng))
    assert model(np.ones((3, 2, 2, 2, 5), np.float32)).shape == (2, 5)
    with pytest.raises(ValueError, match=r"0 is a Mask with labels of shape \(3, 2, 2, 2\); only"):
        md.compact(model)


class Sideways(nn.Sequential):
    """A Sequential that holds modules besides its layers, which it does not apply."""

    def __init__(self, *layers: nn.Module, rng: np.random.Generator) -> None:
        super().__init__(*layers)
        self.head = nn.Linear(3, 3, rng=rng)
        self.rectifier = nn.ReLU()
        self.gates = [layer.outputs for layer in layers if isinstance(layer, md.Gated)]


def test_what_a_sequential_holds_besides_its_layers_is_no_layer() -> None:
    rng = np.random.default_rng(0)
    layer = md.gate_units(nn.Linear(4, 3, rng=rng), initial=0.2)
    model = Sideways(layer, rng=rng)
    x = rng.standard_normal((4, 5)).astype(np.float32)
    expected = model.eval()(x).data
    np.testing.assert_allclose(md.compact(model)(x).data, expected, rtol=1e-6)
    predicted = md.Predictor(md.compact(model), (4,))(np.ascontiguousarray(x.T))
    np.testing.assert_allclose(predicted.T, expected, rtol=1e-5)
    assert [c.name for c in md.count(model, (4,))] == ["0"]


@pytest.mark.parametrize(
    "behind",
    [
        {"select": nn.Select([0, 2, 5], size=6)},
        {"select": nn.Select([0, 2, 5], size=6), "relu": nn.ReLU(), "flatten": nn.Flatten()},
        {"pool": nn.MaxPool2d(2, stride=1), "select": nn.Select([1, 3], size=6)},
        {"flatten": nn.Flatten(), "select": nn.Select([0, 3, 10, 53], size=54)},
        {"one": nn.Select([0, 2, 4], size=6), "two": nn.Select([1, 2], size=3)},
    ],
)
def test_what_a_select_behind_the_last_layer_leaves_out_leaves(behind: dict[str, Module]) -> None:
    rng = np.random.default_rng(0)
    first = md.gate_filters(nn.Conv2d(2, 4, 1, rng=rng))
    first.outputs.phi.data[1] = -1
    model = nn.Sequential(first=first, last=nn.Conv2d(4, 6, 3, rng=rng), **behind).eval()
    x = rng.standard_normal((2, 5, 5, 3), dtype=np.float32)
    small = md.compact(model)
    np.testing.assert_allclose(small(x).data, model(x).data, rtol=1e-5, atol=1e-6)
    counted = [layer.weights[0] for layer in md.count(model, (2, 5, 5))]
    assert [p.size for p in small.parameters() if p.ndim > 1] == counted
    predicted = md.Predictor(small, (2, 5, 5))(x.transpose(3, 0, 1, 2))
    np.testing.assert_allclose(np.moveaxis(predicted, 0, -1), small(x).data, rtol=1e-4, atol=1e-5)
