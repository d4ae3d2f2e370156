"""Gates: what they draw, what they close, and that leaving closed things out changes nothing."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import minidiff as md
from minidiff import nn, ops
from minidiff.pruning.gates import scale_slices
from tests.strategies import arrays, convolutions, dtypes, seeds

NOISES = ("normal", "logistic", "uniform")
some = settings(max_examples=40)


def phis(count: int, width: float = 1.0) -> st.SearchStrategy[NDArray[np.float64]]:
    """Closed (also right at the edge), in transition or open, with all closed now and then."""
    closed = st.sampled_from([-0.5 * width, -0.6 * width, -5.0 * width])
    between = st.floats(-0.45, 0.45).map(lambda place: place * width)
    opened = st.sampled_from([0.5 * width, 2.0 * width])
    mixed = st.lists(closed | between | opened, min_size=count, max_size=count)
    return (mixed | mixed | st.just([-width] * count)).map(np.array)


def gate_at(phi: NDArray[np.float64], dtype: Any = np.float64, **options: Any) -> md.Gate:
    gate = md.Gate(len(phi), dtype=dtype, **options)
    gate.phi.data = phi
    return gate


# -- values


@given(st.integers(1, 9).flatmap(phis), st.floats(0.1, 10), dtypes)
def test_the_values_are_the_transform_of_phi_and_active_lists_the_open(phi, width, dtype):
    gate = gate_at(phi * width, dtype, width=width)
    z = gate()
    assert z.shape == (gate.count,) == phi.shape
    assert z.dtype == dtype
    np.testing.assert_array_equal(z.data, md.binary_gate(gate.phi.data, width))
    np.testing.assert_array_equal(z.active, [i for i, value in enumerate(z.data) if value != 0])
    np.testing.assert_array_equal(gate.is_open(), z.data != 0)


def test_a_gate_below_its_transition_is_exactly_0_and_above_it_exactly_1():
    gate = gate_at(np.array([-7, -0.5, 0, 0.5, 7]))
    np.testing.assert_array_equal(gate().data, [0, 0, 0.5, 1, 1])
    np.testing.assert_array_equal(gate.is_open(), [False, False, True, True, True])


def test_gates_start_where_they_are_told_and_open_by_default():
    np.testing.assert_array_equal(md.Gate(3).phi.data, [1.5, 1.5, 1.5])
    assert (md.Gate(3)().data == 1).all()
    np.testing.assert_array_equal(md.Gate(2, initial=-0.25).phi.data, [-0.25, -0.25])
    assert md.Gate(2).phi.dtype == np.float32
    assert md.Gate(2, dtype=np.float64).phi.dtype == np.float64


@given(st.integers(1, 9).flatmap(phis))
def test_a_closed_gate_gets_no_gradient_and_one_in_transition_does(phi):
    gate = gate_at(phi)
    gate().backward(np.ones(len(phi)))
    np.testing.assert_array_equal(gate.phi.grad != 0, np.abs(phi) < 0.5)


# -- noise


@pytest.mark.parametrize("noise", NOISES)
def test_stochastic_gates_draw_at_each_call_in_training_only(noise):
    gate = md.Gate(50, initial=0.0, noise=noise, rng=np.random.default_rng(0))
    one, two = gate().data, gate().data
    assert (one != two).any()
    assert len(np.unique(one)) > 2  # each group has noise of its own

    gate.eval()
    np.testing.assert_array_equal(gate().data, np.full(50, 0.5))
    gate.train()
    assert (gate().data != 0.5).any()


@pytest.mark.parametrize("noise", NOISES)
@given(seed=seeds)
@settings(max_examples=10)
def test_the_same_generator_gives_the_same_draws_and_evaluation_takes_none(noise, seed):
    def run(evaluate: bool) -> list[NDArray[Any]]:
        gate = md.Gate(20, initial=0.1, noise=noise, rng=np.random.default_rng(seed))
        draws = []
        for _ in range(3):
            draws.append(gate().data)
            if evaluate:
                gate.eval()()
                gate.is_open()
                gate.open_probability()
                gate.train()
        return draws

    np.testing.assert_array_equal(run(False), run(True))


def test_deterministic_gates_use_no_generator_even_if_they_have_one():
    rng = np.random.default_rng(0)
    md.Gate(5, rng=rng)()
    assert rng.random() == np.random.default_rng(0).random()


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("phi", [-1.3, -0.5, 0.0, 0.7])
@pytest.mark.parametrize(("width", "sigma"), [(1.0, 1.0), (0.5, 2.0), (2.0, 0.6)])
def test_open_probability_is_how_often_the_gate_is_open_in_training(noise, phi, width, sigma):
    samples = 20_000  # groups of one phi are as good as calls
    gate = md.Gate(
        samples, width=width, initial=phi, noise=noise, sigma=sigma, rng=np.random.default_rng(1)
    )
    p = float(gate.open_probability().data[0])
    frequency = (gate().data > 0).mean()
    assert abs(frequency - p) <= 4 * math.sqrt(p * (1 - p) / samples) + 1e-7


@pytest.mark.parametrize("noise", NOISES)
def test_the_noise_has_the_law_it_is_called_by(noise):
    # A wide transition hides nothing: invert it to read the noise off the values.
    width, samples = 1e4, 20_000
    gate = md.Gate(
        samples, width=width, initial=0.0, noise=noise, rng=np.random.default_rng(2),
        dtype=np.float64,
    )  # fmt: skip
    drawn = (gate().data - 0.5) * width / 1.5
    deviation = {"normal": 1.0, "logistic": math.pi / math.sqrt(3), "uniform": 1 / math.sqrt(3)}
    assert drawn.mean() == pytest.approx(0, abs=4 * deviation[noise] / math.sqrt(samples))
    assert drawn.std() == pytest.approx(deviation[noise], rel=0.03)
    assert (np.abs(drawn).max() <= 1.0 + 1e-3) is np.bool_(noise == "uniform")


# P(noise > -t); deterministic gates are taken to have normal noise.
TAILS: dict[str | None, Callable[[float], float]] = {
    None: lambda t: 0.5 * math.erfc(-t / math.sqrt(2)),
    "normal": lambda t: 0.5 * math.erfc(-t / math.sqrt(2)),
    "logistic": lambda t: 1 / (1 + math.exp(-t)),
    "uniform": lambda t: min(1, max(0, (1 + t) / 2)),
}


@pytest.mark.parametrize("noise", TAILS)
@settings(max_examples=40)
@given(phi=st.integers(1, 6).flatmap(phis), width=st.floats(0.1, 3), sigma=st.floats(0.1, 3))
def test_open_probability_is_the_tail_of_the_noise(noise, phi, width, sigma):
    rng = np.random.default_rng(0)
    gate = gate_at(phi, width=width, sigma=sigma, noise=noise, rng=rng)
    expected = [TAILS[noise]((v + width / 2) / sigma) for v in phi]
    if noise is None:  # what has closed is closed
        expected = np.where(gate.is_open(), expected, 0)
    np.testing.assert_allclose(gate.open_probability().data, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("noise", [None, *NOISES])
@given(phi=arrays((4,), -2, 2), width=st.floats(0.1, 3), sigma=st.floats(0.3, 3))
@settings(max_examples=20)
def test_open_probability_is_differentiable_in_phi(noise, phi, width, sigma):
    gate = md.Gate(
        4, width=width, sigma=sigma, noise=noise, rng=np.random.default_rng(0), dtype=np.float64
    )
    if noise == "uniform":  # off the two kinks
        phi = np.where(np.abs(np.abs(phi + width / 2) - sigma) < 1e-3, phi + 0.01, phi)
    if noise is None:  # off the jump
        phi = np.where(np.abs(phi + width / 2) < 1e-3, phi + 0.01, phi)

    def probability(phi: md.Tensor) -> md.Tensor:
        gate.phi = phi
        return gate.open_probability()

    assert md.gradcheck(probability, [md.Tensor(phi, requires_grad=True)])


def test_a_deterministic_gate_keeps_a_gradient_through_its_open_probability_until_it_closes():
    gate = gate_at(np.array([-0.5, -1.0, -0.49, 0.0, 3.0]))
    gate.open_probability().sum().backward()
    assert (gate.phi.grad > 0).tolist() == [False, False, True, True, True]
    assert gate.phi.reached.tolist() == [2, 3, 4]


def test_the_optimiser_leaves_gates_alone_that_have_closed_for_good():
    gate = gate_at(np.array([-1.0, 0.1, 2.0]))
    optimizer = md.optim.SGD([gate.phi], lr=0.1, weight_decay=1.0)
    (gate().sum() + gate.open_probability().sum()).backward()
    optimizer.step()
    assert gate.phi.data[0] == -1
    assert (gate.phi.data[1:] < [0.1, 2.0]).all()


# -- gated layers: closed slices left out, against all computed


def column(z: md.Tensor, ndim: int, axis: int = 0) -> md.Tensor:
    """Shape gate values to broadcast along ``axis``."""
    shape = [1] * ndim
    shape[axis] = z.size
    return z.reshape(*shape)


def by_hand(gated: md.Gated, x: md.Tensor) -> md.Tensor:
    """What a gated layer is to compute, with ordinary products and nothing left out."""
    layer = gated.layer
    weight, bias = layer.weight, layer.bias
    for mask in gated.weights:
        weight = weight * mask.gate()[np.broadcast_to(mask.groups.labels, weight.shape)]
    if gated.outputs is not None:
        z = gated.outputs()
        weight, bias = weight * column(z, weight.ndim), bias * z
    if gated.inputs is not None:
        weight = weight * column(gated.inputs(), weight.ndim, axis=1)
    x = x * 1.0  # whatever it says of slices left out is forgotten
    assert x.active is None
    if isinstance(layer, nn.Linear):
        return ops.linear(x, weight, bias)
    return ops.conv2d(x, weight, bias, stride=layer.stride, padding=layer.padding)


def results(
    run: Callable[[md.Tensor], md.Tensor], module: nn.Module, x: NDArray[Any], seed: int
) -> dict[str, NDArray[Any]]:
    """The output, and the gradient of the input and of every parameter, for a random loss."""
    for parameter in module.parameters():
        parameter.grad = None
    leaf = md.Tensor(x, requires_grad=True)
    out = run(leaf)
    out.backward(np.random.default_rng(seed).standard_normal(out.shape).astype(x.dtype))
    grads = {name: p.grad for name, p in module.named_parameters()}
    return {"output": out.data, "x": leaf.grad, **grads}


def assert_same(found: dict[str, Any], expected: dict[str, Any], atol: float = 1e-12) -> None:
    assert found.keys() == expected.keys()
    for name, value in found.items():
        np.testing.assert_allclose(value, expected[name], rtol=0, atol=atol, err_msg=name)


def randomise(module: nn.Module, seed: int) -> None:
    """Give all weights and biases random values."""
    rng = np.random.default_rng(seed)
    for name, parameter in module.named_parameters():
        if not name.endswith("phi"):
            parameter.data = rng.standard_normal(parameter.shape)


@dataclass(frozen=True)
class Case:
    """A gated layer and an input that fits."""

    gated: md.Gated
    x: NDArray[np.float64]
    seed: int


@st.composite
def cases(draw: st.DrawFn, roles: tuple[str, ...] | None = None) -> Case:
    seed = draw(seeds)
    rng = np.random.default_rng(seed)
    layer: nn.Conv2d | nn.Linear
    if draw(st.booleans()):
        sizes = draw(convolutions())
        outs, ins, *kernel = sizes.weight
        layer = nn.Conv2d(
            ins, outs, tuple(kernel), stride=sizes.stride, padding=sizes.padding,
            rng=rng, dtype=np.float64,
        )  # fmt: skip
        x = rng.standard_normal(sizes.x)
    else:
        outs, ins = draw(st.integers(1, 9)), draw(st.integers(1, 9))
        layer = nn.Linear(ins, outs, rng=rng, dtype=np.float64)
        x = rng.standard_normal((ins, draw(st.integers(1, 3))))
    randomise(layer, seed)
    if roles is None:
        roles = tuple(draw(st.sets(st.sampled_from(["outputs", "inputs", "weights"]))))
    options: dict[str, Any] = {}
    if "outputs" in roles:
        options["outputs"] = gate_at(draw(phis(outs)))
    if "inputs" in roles:
        options["inputs"] = gate_at(draw(phis(ins)))
    if "weights" in roles:
        shape = layer.weight.shape
        axes = draw(st.sets(st.integers(0, len(shape) - 1), min_size=1))
        groups = md.Groups.along(shape, tuple(axes))
        options["weights"] = md.Mask(gate_at(draw(phis(groups.count))), groups)
    return Case(md.Gated(layer, **options), x, seed)


@given(cases())
def test_a_gated_layer_and_all_its_gradients_are_those_of_gating_by_hand(case):
    gated = case.gated
    found = results(gated, gated, case.x, case.seed)
    assert_same(found, results(lambda x: by_hand(gated, x), gated, case.x, case.seed))


@some
@given(cases(("outputs", "inputs")))
def test_what_is_closed_is_exactly_0_in_the_output_and_in_every_gradient(case):
    gated = case.gated
    found = results(gated, gated, case.x, case.seed)
    shut_out, shut_in = ~gated.outputs.is_open(), ~gated.inputs.is_open()
    for name in ("output", "layer.weight", "layer.bias", "outputs.phi"):
        assert not found[name][shut_out].any(), name
    for name in ("x", "inputs.phi"):
        assert not found[name][shut_in].any(), name
    assert not found["layer.weight"][:, shut_in].any()


@pytest.mark.parametrize("role", ["outputs", "inputs", "weights"])
@pytest.mark.parametrize("kind", ["conv", "linear"])
def test_a_layer_with_every_gate_closed_gives_its_bias_at_most(role, kind):
    rng = np.random.default_rng(0)
    if kind == "conv":
        layer, x = nn.Conv2d(3, 5, 3, padding=1, rng=rng, dtype=np.float64), (3, 6, 6, 2)
    else:
        layer, x = nn.Linear(3, 5, rng=rng, dtype=np.float64), (3, 2)
    randomise(layer, 0)
    count = {"outputs": 5, "inputs": 3, "weights": layer.weight.size}[role]
    gate = gate_at(np.full(count, -1.0))
    if role == "weights":
        gated = md.Gated(layer, weights=md.Mask(gate, md.Groups.elements(layer.weight.shape)))
    else:
        gated = md.Gated(layer, **{role: gate})

    found = results(gated, gated, rng.standard_normal(x), 0)
    expected = np.zeros(5) if role == "outputs" else layer.bias.data
    ones = (1,) * (len(x) - 1)
    np.testing.assert_array_equal(
        found["output"], np.broadcast_to(expected.reshape(-1, *ones), found["output"].shape)
    )
    assert not found["x"].any()
    assert not found["layer.weight"].any()
    assert not gate.phi.grad.any()
    assert found["layer.bias"].any() == (role != "outputs")


@settings(max_examples=10)
@given(cases())
def test_the_gradients_of_a_gated_layer_are_those_of_finite_differences(case):
    gated = case.gated
    names = list(gated.state_dict())

    def run(x: md.Tensor, *parameters: md.Tensor) -> md.Tensor:
        for name, parameter in zip(names, parameters, strict=True):
            *path, last = name.split(".")
            owner: Any = gated
            for part in path:
                owner = owner[int(part)] if part.isdigit() else getattr(owner, part)
            setattr(owner, last, parameter)
        return gated(x)

    values = [case.x, *gated.state_dict().values()]
    leaves = [md.Tensor(value, requires_grad=True) for value in values]
    # Where the transform begins and ends, its second derivative jumps: coarser by one step.
    assert md.gradcheck(run, leaves, directions=2, tolerance=1e-4)


@some
@given(cases())
def test_in_float32_it_is_the_same_within_its_precision(case):
    gated = case.gated
    expected = results(gated, gated, case.x, case.seed)
    layer = gated.layer
    for owner, names in ((layer, ("weight", "bias")), *((g, ("phi",)) for _, g in gated.gates())):
        for name in names:
            setattr(owner, name, nn.Parameter(getattr(owner, name).data.astype(np.float32)))
    found = results(gated, gated, case.x.astype(np.float32), case.seed)
    assert {value.dtype for value in found.values()} == {np.dtype(np.float32)}
    scale = max(1.0, *(np.abs(value).max() for value in expected.values()))
    assert_same(found, expected, atol=2e-5 * scale)


def test_the_output_shape_is_that_of_the_layer_and_of_what_comes_out():
    layer = nn.Conv2d(2, 3, (2, 3), stride=(2, 1), padding=(1, 0), rng=np.random.default_rng(0))
    gated = md.Gated(layer, outputs=md.Gate(3))
    out = gated(np.ones((2, 5, 7, 4), np.float32))
    assert gated.output_shape((2, 5, 7)) == out.shape[:-1] == (3, 3, 5)


def test_gates_are_listed_by_role_and_their_phi_among_the_parameters():
    layer = nn.Linear(2, 3, rng=np.random.default_rng(0))
    outputs, inputs, weights = md.Gate(3), md.Gate(2), md.Gate(6)
    groups = md.Groups.elements((3, 2))
    gated = md.Gated(layer, outputs=outputs, inputs=inputs, weights=md.Mask(weights, groups))
    assert dict(gated.gates()) == {"outputs": outputs, "inputs": inputs, "weights": weights}
    assert dict(md.Gated(layer, inputs=inputs).gates()) == {"inputs": inputs}
    names = {name for name, _ in gated.named_parameters()}
    assert names == {
        "layer.weight",
        "layer.bias",
        "outputs.phi",
        "inputs.phi",
        "weights.0.gate.phi",
    }


# -- a whole network


def network(seed: int, noise: str | None = None) -> nn.Sequential:
    """Two convolutions, both pools and two dense layers, with all three kinds of gates."""
    rng = np.random.default_rng(seed)
    count = 0

    def gate(size: int) -> md.Gate:
        nonlocal count
        count += 1  # a generator each: no gate's draws depend on whether another one draws
        noises = np.random.default_rng([seed, count])
        return md.Gate(size, initial=0.0, noise=noise, rng=noises, dtype=np.float64)

    groups = md.Groups.along((3, 5), 1)
    options: dict[str, Any] = {"rng": rng, "dtype": np.float64}
    model = nn.Sequential(
        conv1=md.Gated(nn.Conv2d(2, 5, 3, padding=1, **options), outputs=gate(5)),  # (5, 9, 9)
        pool1=nn.MaxPool2d(2),  # (5, 4, 4)
        relu1=nn.ReLU(),
        conv2=md.Gated(nn.Conv2d(5, 6, 2, **options), outputs=gate(6), inputs=gate(5)),  # (6, 3, 3)
        relu2=nn.ReLU(),
        pool2=nn.AvgPool2d(2, stride=1),  # (6, 2, 2)
        flatten=nn.Flatten(),  # (24,)
        dense1=md.Gated(nn.Linear(24, 5, **options), inputs=gate(24), outputs=gate(5)),
        relu3=nn.ReLU(),
        dense2=md.Gated(nn.Linear(5, 3, **options), weights=md.Mask(gate(5), groups)),
    )
    randomise(model, seed)
    return model


def all_by_hand(model: nn.Sequential) -> Callable[[md.Tensor], md.Tensor]:
    def run(x: md.Tensor) -> md.Tensor:
        for layer in model.layers:
            x = by_hand(layer, x) if isinstance(layer, md.Gated) else layer(x)
        return x

    return run


@some
@given(st.data(), seeds)
def test_a_gated_network_and_all_its_gradients_are_those_of_gating_by_hand(data, seed):
    model = network(seed)
    for name, parameter in model.named_parameters():
        if name.endswith("phi"):
            parameter.data = data.draw(phis(parameter.size))
    x = np.random.default_rng(seed).standard_normal((2, 9, 9, 3))
    found = results(model, model, x, seed)
    assert_same(found, results(all_by_hand(model), model, x, seed), atol=1e-10)


@pytest.mark.parametrize("noise", NOISES)
def test_gates_that_open_and_close_from_call_to_call_are_right_every_time(noise):
    skipping, dense = network(3, noise), network(3, noise)
    x = np.random.default_rng(4).standard_normal((2, 9, 9, 3))
    closed = set()
    for call in range(8):
        found = results(skipping, skipping, x, call)
        assert_same(found, results(all_by_hand(dense), dense, x, call), atol=1e-10)
        closed.add(tuple(found["conv1.layer.bias"] == 0))
    assert len(closed) > 2  # they did open and close


def test_a_tape_of_before_the_gates_moved_still_gives_the_gradient_of_before():
    model = network(5)
    x = np.random.default_rng(5).standard_normal((2, 9, 9, 2))
    expected = results(model, model, x, 0)
    leaf = md.Tensor(x, requires_grad=True)
    out = model(leaf)
    for name, parameter in model.named_parameters():
        if name.endswith("phi"):
            parameter.data = np.full(parameter.shape, -3.0)  # a new array: the old one is kept
    model(md.Tensor(x))  # and used once more, all closed
    out.backward(np.random.default_rng(0).standard_normal(out.shape))
    np.testing.assert_allclose(leaf.grad, expected["x"], rtol=0, atol=1e-12)


@some
@given(st.data(), seeds)
def test_nothing_of_what_is_closed_is_read(data, seed):
    model = network(seed)
    layers = dict(model.children())
    shut = {}
    for name in (
        "conv1.outputs",
        "conv2.outputs",
        "conv2.inputs",
        "dense1.inputs",
        "dense1.outputs",
    ):
        layer, role = name.split(".")
        gate = getattr(layers[layer], role)
        gate.phi.data = data.draw(phis(gate.count))
        shut[name] = ~gate.is_open()
    x = np.random.default_rng(seed).standard_normal((2, 9, 9, 2))
    clean = results(model, model, x, seed)
    assert all(np.isfinite(value).all() for value in clean.values())

    # The weights and biases of closed filters and units.
    weights = {name: layers[name].layer.weight.data for name in ("conv1", "conv2", "dense1")}
    for name, weight in weights.items():
        weight[shut[f"{name}.outputs"]] = np.nan
        layers[name].layer.bias.data[shut[f"{name}.outputs"]] = np.nan
    assert_same(results(model, model, x, seed), clean, atol=0)

    # The weights that a closed channel or feature would meet. (The gates of the outputs do read
    # them, all the weights of an open filter: they are left out here.)
    weights["conv2"][:, shut["conv1.outputs"] | shut["conv2.inputs"]] = np.nan
    weights["dense1"][:, np.repeat(shut["conv2.outputs"], 4) | shut["dense1.inputs"]] = np.nan
    poisoned = results(model, model, x, seed)
    for name in ("output", "x", "conv1.layer.weight", "conv2.inputs.phi", "dense1.inputs.phi"):
        np.testing.assert_array_equal(poisoned[name], clean[name], err_msg=name)


def test_nothing_of_a_closed_input_is_read():
    gated = md.Gated(
        nn.Linear(3, 4, rng=np.random.default_rng(0), dtype=np.float64),
        inputs=gate_at(np.array([1.0, -1.0, 0.1])),
    )
    x = np.random.default_rng(1).standard_normal((3, 2))
    clean = results(gated, gated, x, 0)
    x[1] = np.nan
    assert_same(results(gated, gated, x, 0), clean, atol=0)


# -- errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 0}, "count is 0; expected an integer >= 1"),
        ({"count": -2}, "count is -2; expected"),
        ({"count": 2.5}, "count is 2.5; expected"),
        ({"width": 0.0}, "width is 0.0; expected a finite number above 0"),
        ({"width": -1.0}, "width is -1.0; expected"),
        ({"width": np.nan}, "width is nan; expected"),
        ({"width": np.inf}, "width is inf; expected"),
        ({"sigma": 0.0}, "sigma is 0.0; expected a finite number above 0"),
        ({"sigma": -0.5}, "sigma is -0.5; expected"),
        ({"sigma": np.nan}, "sigma is nan; expected"),
        ({"initial": np.nan}, "initial is nan; expected a finite number"),
        ({"initial": -np.inf}, "initial is -inf; expected"),
        ({"noise": "gauss"}, "noise is 'gauss'; expected None, 'normal', 'logistic', 'uniform'"),
        ({"noise": "normal"}, "noise 'normal' needs rng, a numpy.random.Generator"),
    ],
)
def test_settings_out_of_range_are_errors_that_name_them(options, message):
    with pytest.raises(ValueError, match=message):
        md.Gate(**({"count": 3} | options))


@given(seeds)
def test_as_a_layer_a_gate_multiplies_channels(seed):
    rng = np.random.default_rng(seed)
    gate = md.Gate(4, dtype=np.float64)
    gate.phi.data[...] = rng.uniform(-1, 1, 4)
    x = md.Tensor(rng.standard_normal((4, 3, 2, 5)), requires_grad=True)
    out = gate(x)
    z = md.binary_gate(gate.phi.data)
    np.testing.assert_array_equal(out.data, x.data * z[:, None, None, None])
    assert out.active.tolist() == z.nonzero()[0].tolist()
    out.sum().backward()
    expected = np.broadcast_to(z[:, None, None, None], x.shape)
    np.testing.assert_allclose(x.grad, expected)
    with pytest.raises(ValueError, match=r"gates of shape \(4,\) do not fit"):
        gate(np.ones((3, 2)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"outputs": md.Gate(4)}, r"outputs gate has 4 groups, but the layer 3 outputs .*\(3, 2\)"),
        ({"inputs": md.Gate(3)}, r"inputs gate has 3 groups, but the layer 2 inputs .*\(3, 2\)"),
        (
            {"weights": md.Mask(md.Gate(6), md.Groups.elements((2, 3)))},
            r"groups of shape \(2, 3\) do not fit the weight of shape \(3, 2\)",
        ),
        (
            {"weights": md.Mask(md.Gate(24), md.Groups.elements((4, 3, 2)))},
            r"groups of shape \(4, 3, 2\) do not fit the weight of shape \(3, 2\)",
        ),
        (
            {"biases": md.Mask(md.Gate(2), md.Groups.elements((2,)))},
            r"groups of shape \(2,\) do not fit the bias of shape \(3,\)",
        ),
        (
            {"outputs": md.Gate(3, noise="normal", per_sample=True, rng=np.random.default_rng(0))},
            "draws noise per sample, but samples share their parameters",
        ),
    ],
    ids=["outputs", "inputs", "incompatible", "more axes", "bias", "per sample"],
)
def test_gates_that_do_not_fit_the_layer_are_errors_that_give_both_sizes(options, message):
    with pytest.raises(ValueError, match=message):
        md.Gated(nn.Linear(2, 3, rng=np.random.default_rng(0)), **options)


def test_an_input_that_does_not_fit_the_gates_is_an_error_that_gives_both_shapes():
    gated = md.Gated(nn.Linear(2, 3, rng=np.random.default_rng(0)), inputs=md.Gate(2))
    with pytest.raises(ValueError, match=r"gates of shape \(2,\) .* x of shape \(5, 4\)"):
        gated(np.ones((5, 4), np.float32))


# -- what an optimiser may leave alone


@pytest.mark.parametrize("decay", [0.0, 0.01])
def test_to_leave_closed_weights_alone_changes_neither_the_outputs_nor_what_is_open(decay):
    x = np.random.default_rng(7).standard_normal((2, 9, 9, 4))
    labels = np.array([0, 1, 2, 1])
    runs = []
    for leave in (True, False):
        model = network(6)
        phis = [p for name, p in model.named_parameters() if name.endswith("phi")]
        others = [p for name, p in model.named_parameters() if not name.endswith("phi")]
        weights = md.optim.SGD(others, lr=0.01, momentum=0.9, weight_decay=decay)
        gates = md.optim.Adam(phis, lr=0.05)
        outputs, shares = [], []
        for _ in range(30):
            logits = model(x)
            outputs.append(logits.data.copy())
            weights.zero_grad()
            gates.zero_grad()
            cost = md.expected_cost(model, (2, 9, 9))
            (md.ops.cross_entropy(logits, labels) + 0.02 * cost).backward()
            live = model.layers[0].layer.weight.reached
            shares.append(len(live))
            assert not np.delete(model.layers[0].layer.weight.grad, live, axis=0).any()
            if not leave:
                for parameter in others:
                    parameter.grad = parameter.grad.copy()  # of which nothing is known
            weights.step()
            gates.step()
        assert 0 < shares[-1] < shares[0]  # gates did close, some of them
        assert all(np.diff(shares) <= 0)  # and none opened again
        runs.append((outputs, model))
    for found, expected in zip(*(outputs for outputs, _ in runs), strict=True):
        np.testing.assert_array_equal(found, expected)
    left, moved = (model.layers[0].layer.weight.data for _, model in runs)
    open_rows = runs[0][1].layers[0].outputs.is_open()
    np.testing.assert_array_equal(left[open_rows], moved[open_rows])
    assert (left[~open_rows] != moved[~open_rows]).any()


def test_weights_of_gates_that_may_open_again_are_not_left_alone():
    model = network(8, noise="normal")
    model(np.ones((2, 9, 9, 2))).sum().backward()
    assert model.layers[0].layer.weight.reached is None


def test_a_layer_with_two_sets_of_gates_is_live_where_either_is_open():
    layer = nn.Linear(2, 4, rng=np.random.default_rng(0), dtype=np.float64)
    first = md.Gated(layer, outputs=gate_at(np.array([1.0, -1.0, 1.0, -1.0])))
    second = md.Gated(layer, outputs=gate_at(np.array([-1.0, -1.0, 1.0, 1.0])))
    x = np.ones((2, 3))
    (first(x).sum() + second(x).sum()).backward()
    np.testing.assert_array_equal(layer.weight.reached, [0, 2, 3])
    layer(x).sum().backward()
    assert layer.weight.reached is None


@pytest.mark.parametrize("closed", [0, 2])
def test_gates_that_are_fully_open_change_nothing_and_get_no_gradient(closed):
    rng = np.random.default_rng(9)
    layer = nn.Conv2d(3, 5, 3, rng=rng, dtype=np.float64)
    randomise(layer, 9)
    phi = np.full(5, 0.5)
    phi[:closed] = -0.5
    gated = md.Gated(layer, outputs=gate_at(phi), inputs=gate_at(np.full(3, 2.0)))
    x = rng.standard_normal((3, 6, 6, 2))
    found, plain = results(gated, gated, x, 0), results(layer, layer, x, 0)
    np.testing.assert_array_equal(found["output"][closed:], plain["output"][closed:])
    assert not found["output"][:closed].any()
    for name in ("weight", "bias"):
        np.testing.assert_array_equal(found[f"layer.{name}"][closed:], plain[name][closed:])
        assert not found[f"layer.{name}"][:closed].any()
    assert not found["outputs.phi"].any()
    assert not found["inputs.phi"].any()


def test_gradients_that_pass_open_gates_untouched_belong_to_one_parameter_each():
    layer = nn.Linear(3, 3, rng=np.random.default_rng(0))
    gated = md.Gated(layer, outputs=md.Gate(3), inputs=md.Gate(3))
    x = md.Tensor(np.ones((3, 4), np.float32), requires_grad=True)
    out = gated(x)
    (out.sum() + (x * 2.0).sum()).backward()
    grads = [x.grad, layer.weight.grad, layer.bias.grad, gated.outputs.phi.grad]
    for i, one in enumerate(grads):
        assert one.flags.writeable
        assert not any(np.may_share_memory(one, other) for other in grads[:i])
        assert not np.may_share_memory(one, out.data)


# -- what only some of a layer's parameters know to be closed


@pytest.mark.parametrize("phi", [[1.0, -1.0, 1.0, -1.0], [0.2, -1.0, 0.2, -1.0]])
@pytest.mark.parametrize("gated", ["weight", "bias", "both, each by its own call"])
@pytest.mark.parametrize("kind", ["conv", "linear"])
def test_a_layer_of_which_not_all_is_gated_by_one_call_is_computed_whole(kind, gated, phi):
    rng = np.random.default_rng(0)
    gate = gate_at(np.array(phi))
    shapes = {"conv": ((4, 3, 2, 2), (3, 5, 5, 2)), "linear": ((4, 5), (5, 6))}[kind]
    weight, x = (md.Tensor(rng.standard_normal(s), requires_grad=True) for s in shapes)
    bias = md.Tensor(rng.standard_normal(4), requires_grad=True)
    function = md.ops.conv2d if kind == "conv" else md.ops.linear
    z = gate().data.copy()
    w = scale_slices(weight, gate()) if gated != "bias" else weight
    b = scale_slices(bias, gate()) if gated != "weight" else bias
    found = function(x, w, b)
    ones = (1,) * (weight.ndim - 1)
    by_hand = (
        weight.data * (z.reshape(-1, *ones) if gated != "bias" else 1.0),
        bias.data * (z if gated != "weight" else 1.0),
    )
    expected = function(x.data, *by_hand).data
    np.testing.assert_allclose(found.data, expected, rtol=0, atol=1e-12)


def test_a_hollow_bias_beside_a_plain_weight_is_read_with_its_zeros():
    z = gate_at(np.array([0.2, -1.0]))()
    out = md.ops.linear(np.ones((3, 2)), np.ones((2, 3)), md.ops.relu(z))
    np.testing.assert_allclose(out.data, 3 + z.data[:, None] * np.ones(2))


def test_a_value_of_one_that_does_not_come_from_a_gate_keeps_its_gradient():
    p = md.Tensor(np.array([0.0]), requires_grad=True)
    z = md.ops.dropout(md.binary_gate(p, 1.0), 0.5, np.random.default_rng(0))
    assert z.data[0] == 1  # 0.5 times 2
    scale_slices(md.Tensor(np.ones((1, 1))), z).sum().backward()
    np.testing.assert_allclose(p.grad, [3.0])


def test_a_change_of_a_frozen_weight_is_noticed_behind_open_gates_too():
    gate = md.Gate(4)
    weight, x = md.Tensor(np.ones((4, 5), np.float32)), md.Tensor([[1.0]] * 5, requires_grad=True)
    with md.no_grad():
        scaled = scale_slices(weight, gate())
    weight.data -= 1
    np.testing.assert_array_equal(scaled.data, np.ones((4, 5)))
    out = md.ops.linear(x, scale_slices(weight, gate()))
    weight.data += 1
    with pytest.raises(RuntimeError, match="changed in place"):
        out.sum().backward()


def test_a_frozen_gate_gets_no_gradient_whatever_it_gates() -> None:
    rng = np.random.default_rng(0)
    layer = md.gate_weights(md.gate_units(nn.Linear(4, 3, rng=rng), initial=0.2), initial=0.2)
    for _, gate in layer.gates():
        gate.frozen = True
    layer(np.ones((4, 2), np.float32)).sum().backward()
    assert [gate.phi.grad for _, gate in layer.gates()] == [None, None]
    assert layer.layer.weight.grad is not None


def test_a_layer_in_two_places_takes_up_its_gates_once() -> None:
    rng = np.random.default_rng(0)
    layer, gate = nn.Linear(3, 3, rng=rng), md.Gate(3, initial=0.0)
    model = nn.Sequential(md.Gated(layer, outputs=gate), md.Gated(layer, outputs=gate))
    x = rng.standard_normal((3, 4)).astype(np.float32)
    before = model(x).data
    md.binarize(model)
    np.testing.assert_allclose(model(x).data, before, rtol=1e-6)
    other = nn.Sequential(md.gate_units(layer, initial=0.0), md.gate_units(layer))
    before = layer.weight.data.copy()
    with pytest.raises(ValueError, match="used in two places that do not gate it alike"):
        md.binarize(other)
    np.testing.assert_array_equal(layer.weight.data, before)  # nothing has changed


def test_what_is_no_layer_and_a_gate_in_place_of_a_mask_are_refused() -> None:
    with pytest.raises(TypeError, match="expected a Conv2d or Linear"):
        md.Gated(nn.ReLU())  # type: ignore[arg-type]  # that is the mistake
    dense = nn.Linear(4, 3, rng=np.random.default_rng(0))
    with pytest.raises(TypeError, match=r"weights has a Gate; expected Mask\(gate, groups\)"):
        md.Gated(dense, weights=md.Gate(4))  # type: ignore[arg-type]  # that is the mistake


def test_an_input_that_does_not_fit_is_told_the_same_whatever_is_closed() -> None:
    layer = md.gate_weights(
        nn.Linear(4, 3, rng=np.random.default_rng(0)), groups=md.Groups.along((3, 4), 1)
    )
    for closed in (False, True):
        layer.weights[0].gate.phi.data[3] = -1 if closed else 1
        with pytest.raises(ValueError, match=r"linear: x of shape \(2, 4\) and weight of shape"):
            layer(np.ones((2, 4), np.float32))


def test_what_is_no_class_of_gates_and_no_groups_is_refused_with_the_way_to_give_it() -> None:
    linear = nn.Linear(4, 3, rng=np.random.default_rng(0))
    gate: Any = md.Gate(3)
    for gate_layer in (md.gate_units, md.gate_inputs, md.gate_weights):
        with pytest.raises(TypeError, match=r"expected a class.*Gated\(layer, outputs=gate\)"):
            gate_layer(linear, gate=gate)
    labels: Any = np.arange(12).reshape(3, 4)
    with pytest.raises(TypeError, match=r"expected Groups \(Groups\(labels\)"):
        md.gate_weights(linear, groups=labels)
    block: Any = 4
    with pytest.raises(ValueError, match="block 4 does not fit"):
        md.gate_blocks(linear, block)
    with pytest.raises(ValueError, match="count is True"):
        md.Gate(True)


def test_a_phi_that_is_not_a_number_shows_in_the_surrogate() -> None:
    layer = md.gate_units(nn.Linear(4, 3, rng=np.random.default_rng(0)))
    layer.outputs.phi.data[1] = math.nan
    assert math.isnan(md.Surrogate(layer, (4,))().item())
