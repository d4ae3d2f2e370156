"""Modules: the tree of parameters, their state, and what the layers add to their ops."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import minidiff as md
from minidiff import Tensor, nn, ops
from minidiff.engine.nn import he_normal
from tests.strategies import Convolution, Pool, Shape, arrays, convolutions, pools, seeds


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def network(seed: int = 0) -> nn.Sequential:
    """Something of everything, for (2, 6, 6, N)."""
    rng = generator(seed)
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1, rng=rng),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.5, rng=rng),
        nn.Linear(27, 4, rng=rng),
    )


class Leaf(nn.Module):
    def __init__(self, value: float) -> None:
        self.weight = nn.Parameter([value])

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


class Tree(nn.Module):
    """Parameters as attributes and in lists; one module in two places."""

    def __init__(self) -> None:
        self.first = nn.Parameter([0.0])
        self.branch = Leaf(1.0)
        self.several = [Leaf(2.0), nn.Parameter([3.0]), "no module"]
        self.pair = (Leaf(4.0), self.branch)
        self.last = nn.Parameter([5.0])
        self.alias = self.first
        self.constant = Tensor([9.0], requires_grad=True)  # no Parameter: not trained


# -- the tree ----------------------------------------------------------------------------------


def test_parameters_are_listed_in_the_order_they_were_set_each_once() -> None:
    tree = Tree()
    assert [name for name, _ in tree.named_parameters()] == [
        "first", "branch.weight", "several.0.weight", "several.1", "pair.0.weight", "last",
    ]  # fmt: skip
    assert [p.item() for p in tree.parameters()] == [0, 1, 2, 3, 4, 5]
    assert len({id(p) for p in tree.parameters()}) == 6


def test_a_prefix_stands_before_every_name() -> None:
    names = [name for name, _ in Leaf(1.0).named_parameters("model.")]
    assert names == ["model.weight"]


def test_modules_are_listed_from_the_top_each_once() -> None:
    tree = Tree()
    several = [m for m in tree.several if isinstance(m, nn.Module)]
    assert list(tree.modules()) == [tree, tree.branch, *several, tree.pair[0]]
    assert [name for name, _ in tree.children()] == ["branch", "several.0", "pair.0", "pair.1"]


def test_layers_of_a_sequential_are_numbered_or_named() -> None:
    numbered = nn.Sequential(Leaf(1.0), nn.ReLU(), Leaf(2.0))
    named = nn.Sequential(Leaf(1.0), middle=nn.ReLU(), end=Leaf(2.0))
    assert [name for name, _ in numbered.named_parameters()] == ["0.weight", "2.weight"]
    assert [name for name, _ in named.named_parameters()] == ["0.weight", "end.weight"]
    nested = nn.Sequential(inner=numbered, again=numbered)
    assert [n for n, _ in nested.named_parameters()] == ["inner.0.weight", "inner.2.weight"]


def test_layers_of_a_sequential_are_had_by_place_and_by_name() -> None:
    first, second = nn.Flatten(), nn.ReLU()
    model = nn.Sequential(first, end=second)
    assert list(model) == [first, second]
    assert len(model) == 2
    assert (model[0], model["0"], model[-1], model["end"]) == (first, first, second, second)
    with pytest.raises(KeyError, match="no layer is named 'start'; there are 0, end"):
        model["start"]
    with pytest.raises(IndexError):
        model[2]


def test_a_shared_parameter_gets_the_gradients_of_both_places_and_one_step() -> None:
    shared = Leaf(3.0)
    model = nn.Sequential(shared, shared)
    loss = model(np.ones(1, np.float32)).sum()
    loss.backward()
    np.testing.assert_array_equal(shared.weight.grad, [6])  # of w ** 2
    md.optim.SGD(model.parameters(), lr=0.5).step()
    np.testing.assert_array_equal(shared.weight.data, [0])


def test_a_parameter_is_a_leaf_that_requires_a_gradient() -> None:
    parameter = nn.Parameter([1.0])
    assert parameter.requires_grad
    assert isinstance(parameter, Tensor)
    assert parameter.dtype == np.float32


def test_a_module_without_forward_says_so() -> None:
    with pytest.raises(NotImplementedError):
        nn.Module()(np.ones(1))


def test_a_module_takes_arrays_and_tensors() -> None:
    layer, x = Leaf(2.0), np.ones(3, np.float32)
    np.testing.assert_array_equal(layer(x).data, layer(Tensor(x)).data)


# -- training and evaluation -------------------------------------------------------------------


def test_train_and_eval_reach_every_module_and_return_the_top() -> None:
    model = nn.Sequential(network(), Tree())
    assert all(module.training for module in model.modules())
    assert model.eval() is model
    assert not any(module.training for module in model.modules())
    assert model.train() is model
    assert all(module.training for module in model.modules())
    model.layers[0].eval()
    assert model.training
    assert not model.layers[0].training


def test_dropout_acts_in_training_only() -> None:
    layer, x = nn.Dropout(0.5, rng=generator()), np.ones(1000, np.float32)
    dropped = layer(x).data
    assert 0 < np.count_nonzero(dropped) < 1000
    assert not np.array_equal(layer(x).data, dropped)
    layer.eval()
    np.testing.assert_array_equal(layer(x).data, x)
    layer.train()
    assert np.count_nonzero(layer(x).data) < 1000


# -- state -------------------------------------------------------------------------------------


@settings(max_examples=20)
@given(seeds, seeds, arrays((2, 6, 6, 3), dtype=np.float32))
def test_loading_the_state_of_another_network_makes_them_equal(
    one: int, other: int, x: Any
) -> None:
    source, target = network(one).eval(), network(other).eval()
    target.load_state_dict(source.state_dict())
    assert source(x).data.tobytes() == target(x).data.tobytes()
    assert list(target.state_dict()) == ["0.weight", "0.bias", "5.weight", "5.bias"]


def test_a_state_is_a_copy_both_ways() -> None:
    model = network()
    state = model.state_dict()
    before = state["0.weight"].copy()
    model.parameters()[0].data[...] = 0
    np.testing.assert_array_equal(state["0.weight"], before)
    model.load_state_dict(state)
    state["0.weight"][...] = 7
    np.testing.assert_array_equal(model.parameters()[0].data, before)


def test_a_loaded_state_takes_the_dtype_of_the_parameters() -> None:
    model = network()
    model.load_state_dict({k: v.astype(np.float64) for k, v in model.state_dict().items()})
    assert {p.dtype for p in model.parameters()} == {np.dtype(np.float32)}


@settings(max_examples=30)
@given(st.data())
def test_a_state_that_does_not_fit_is_refused_naming_every_mismatch_and_changes_nothing(
    data: st.DataObject,
) -> None:
    model = network()
    before = model.state_dict()
    state: dict[str, Any] = {name: array + 1 for name, array in before.items()}
    faults = data.draw(st.sets(st.sampled_from([*state, "added"]), min_size=1))
    expected = []
    for name in faults:
        if name == "added":
            state[name] = np.zeros(1)
            expected.append("added is unknown")
        elif data.draw(st.booleans()):
            del state[name]
            expected.append(f"{name} is missing")
        else:
            state[name] = np.zeros((2, 9))
            expected.append(f"{name} has shape (2, 9), not {before[name].shape}")
    with pytest.raises(ValueError, match="the state does not fit this Sequential") as error:
        model.load_state_dict(state)
    for message in expected:
        assert message in str(error.value)
    untouched = set(before) - faults
    assert not any(f"{name} " in str(error.value) for name in untouched)
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


def test_a_state_that_is_not_of_numbers_changes_nothing() -> None:
    model = nn.Linear(3, 2, rng=generator())
    before = model.state_dict()
    with pytest.raises((TypeError, ValueError)):
        model.load_state_dict({"weight": np.zeros((2, 3)), "bias": np.array(["a", "b"])})
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


@pytest.mark.parametrize("optimiser", [md.optim.SGD, md.optim.Adam])
def test_a_state_in_fortran_order_can_be_trained_further(optimiser: Any) -> None:
    model = nn.Linear(3, 2, rng=generator())
    model.load_state_dict({"weight": np.ones((3, 2)).T, "bias": np.zeros(2)})
    model(np.ones((3, 1), np.float32)).sum().backward()
    optimiser(model.parameters(), lr=0.5).step()
    np.testing.assert_allclose(model.weight.data, np.full((2, 3), 0.5), rtol=1e-5)


# -- initial values ----------------------------------------------------------------------------


@settings(max_examples=20)
@given(seeds, st.sampled_from([(400, 50), (100, 10, 5, 4), (20000, 1)]))
def test_initial_weights_have_mean_zero_and_variance_two_by_fan_in(seed: int, shape: Shape) -> None:
    weights = he_normal(shape, generator(seed), np.float64)
    expected = 2 / np.prod(shape[1:])
    # Standard errors of mean and variance of a normal sample; six of them.
    assert abs(weights.mean()) < 6 * np.sqrt(expected / weights.size)
    assert abs(weights.var() / expected - 1) < 6 * np.sqrt(2 / weights.size)


@settings(max_examples=20)
@given(seeds)
def test_the_same_seed_gives_the_same_bits(seed: int) -> None:
    one, two, other = network(seed), network(seed), network(seed + 1)
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert a.data.tobytes() == b.data.tobytes()
    assert one.parameters()[0].data.tobytes() != other.parameters()[0].data.tobytes()
    x = np.ones((2, 6, 6, 2), np.float32)
    assert one(x).data.tobytes() == two(x).data.tobytes()  # dropout too


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_biases_start_at_zero_and_parameters_have_the_dtype_asked_for(dtype: Any) -> None:
    layers = (
        nn.Conv2d(2, 3, 2, rng=generator(), dtype=dtype),
        nn.Linear(4, 3, rng=generator(), dtype=dtype),
    )
    for layer in layers:
        assert layer.weight.dtype == layer.bias.dtype == dtype
        assert layer.bias.shape == (3,)
        assert not layer.bias.data.any()


# -- layers ------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(st.data(), convolutions(), seeds)
def test_layers_compute_their_ops(data: st.DataObject, case: Convolution, seed: int) -> None:
    outs, ins, *kernel = case.weight
    x = data.draw(arrays(case.x, dtype=np.float32))
    conv = nn.Conv2d(
        ins, outs, (kernel[0], kernel[1]),
        stride=case.stride, padding=case.padding, rng=generator(seed),
    )  # fmt: skip
    conv.bias.data += data.draw(arrays((outs,), dtype=np.float32))
    expected = ops.conv2d(x, conv.weight, conv.bias, stride=case.stride, padding=case.padding)
    np.testing.assert_array_equal(conv(x).data, expected.data)

    flat = nn.Flatten()(x)
    np.testing.assert_array_equal(flat.data, ops.flatten(x).data)
    dense = nn.Linear(len(flat), 3, rng=generator(seed))
    dense.bias.data += 1
    np.testing.assert_array_equal(dense(flat).data, ops.linear(flat, dense.weight, dense.bias).data)
    np.testing.assert_array_equal(nn.ReLU()(x).data, ops.relu(x).data)


@settings(max_examples=20)
@given(st.data(), pools())
def test_pooling_layers_compute_their_ops(data: st.DataObject, case: Pool) -> None:
    x = data.draw(arrays(case.x, dtype=np.float32))
    for layer, op in ((nn.MaxPool2d, ops.max_pool2d), (nn.AvgPool2d, ops.avg_pool2d)):
        strided, plain = layer(case.kernel, stride=case.stride), layer(case.kernel)
        expected = op(x, case.kernel, stride=case.stride).data
        np.testing.assert_array_equal(strided(x).data, expected)
        np.testing.assert_array_equal(plain(x).data, op(x, case.kernel).data)


@st.composite
def networks(draw: st.DrawFn) -> tuple[nn.Sequential, tuple[int, ...]]:
    """A random network that fits its input, and the shape of that, batch left out."""
    rng = generator(draw(seeds))
    channels, height, width = draw(
        st.tuples(st.integers(1, 3), st.integers(4, 9), st.integers(4, 9))
    )
    given = (channels, height, width)
    layers: list[nn.Module] = []
    for _ in range(draw(st.integers(0, 4))):
        kernel = (draw(st.integers(1, min(3, height))), draw(st.integers(1, min(3, width))))
        stride = draw(st.tuples(st.integers(1, 2), st.integers(1, 3)))
        kind = draw(st.sampled_from(["conv", "max", "avg", "same"]))
        if kind == "same":
            layers += [nn.ReLU(), nn.Dropout(0.3, rng=rng)]
            continue
        padding = (0, 0)
        if kind == "conv":
            padding = draw(st.tuples(st.integers(0, 2), st.integers(0, 2)))
            outs = draw(st.integers(1, 4))
            layers.append(
                nn.Conv2d(channels, outs, kernel, stride=stride, padding=padding, rng=rng)
            )
            channels = outs
        else:
            pool = nn.MaxPool2d if kind == "max" else nn.AvgPool2d
            layers.append(pool(kernel, stride=draw(st.sampled_from([None, stride]))))
        # Where the next layer must fit, as the places themselves tell.
        with md.no_grad():
            out = nn.Sequential(*layers)(np.zeros((*given, 1), np.float32))
        _, height, width, _ = out.shape
    if draw(st.booleans()):
        layers += [nn.Flatten(), nn.Linear(channels * height * width, 3, rng=rng)]
    return nn.Sequential(*layers), given


@settings(max_examples=40)
@given(networks(), st.integers(1, 3))
def test_output_shape_is_the_shape_that_comes_out(
    drawn: tuple[nn.Sequential, tuple[int, ...]], samples: int
) -> None:
    model, shape = drawn
    out = model(np.ones((*shape, samples), np.float32))
    assert out.shape == (*model.output_shape(shape), samples)


@settings(max_examples=15)
@given(seeds)
def test_a_whole_network_has_the_right_gradients(seed: int) -> None:
    rng = generator(seed)
    model = nn.Sequential(
        nn.Conv2d(2, 3, 2, rng=rng, dtype=np.float64),
        nn.AvgPool2d(2, stride=1),
        nn.Flatten(),
        nn.Linear(12, 3, rng=rng, dtype=np.float64),
    )
    labels, x = np.array([0, 2]), Tensor(rng.standard_normal((2, 4, 4, 2)))
    parameters = model.parameters()

    def loss(*values: Tensor) -> Tensor:
        conv, pool, flatten, dense = model.layers
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(dense, nn.Linear)
        hidden = flatten(pool(conv.apply(x, *values[:2]).tanh()))
        return ops.cross_entropy(dense.apply(hidden, *values[2:]), labels)

    md.gradcheck(loss, parameters)


# -- errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, -1, 1.5, "3", None])
@pytest.mark.parametrize("place", [0, 1])
def test_bad_layer_sizes_are_refused_by_name(size: Any, place: int) -> None:
    sizes: list[Any] = [3, 3]
    sizes[place] = size
    name = ("in_channels", "out_channels")[place]
    with pytest.raises(ValueError, match=f"Conv2d: {name} is .*expected an integer >= 1"):
        nn.Conv2d(*sizes, 3, rng=generator())
    name = ("in_features", "out_features")[place]
    with pytest.raises(ValueError, match=f"Linear: {name} is .*expected an integer >= 1"):
        nn.Linear(*sizes, rng=generator())


@pytest.mark.parametrize("name", ["kernel", "stride", "padding"])
@pytest.mark.parametrize("value", [-1, (1, -1), (1, 2, 3)])
def test_bad_kernels_strides_and_paddings_are_refused_by_name(name: str, value: Any) -> None:
    settings: dict[str, Any] = {"kernel": 3, name: value}
    with pytest.raises(ValueError, match=f"{name} is"):
        nn.Conv2d(1, 1, **settings, rng=generator())
    if name != "padding":
        for pool in (nn.MaxPool2d, nn.AvgPool2d):
            with pytest.raises(ValueError, match=f"{name} is"):
                pool(**settings)


@pytest.mark.parametrize(
    "make",
    [
        lambda rng: nn.Conv2d(1, 2, 3, rng=rng),
        lambda rng: nn.Linear(1, 2, rng=rng),
        lambda rng: nn.Dropout(0.5, rng=rng),
        lambda rng: md.ops.dropout([1.0], 0.5, rng),
        lambda rng: md.Gate(2, rng=rng),
        lambda rng: md.HardConcrete(2, rng=rng),
        lambda rng: md.LeNet5(rng=rng),
    ],
)
def test_a_seed_in_place_of_a_generator_is_refused(make: Any) -> None:
    with pytest.raises(TypeError, match=r"rng is 7; expected a numpy\.random\.Generator"):
        make(7)


@pytest.mark.parametrize("p", [-0.5, 1.0, np.nan])
def test_a_dropout_layer_refuses_what_is_no_probability(p: float) -> None:
    with pytest.raises(ValueError, match="Dropout: p is"):
        nn.Dropout(p, rng=generator())


@pytest.mark.parametrize("name", ["", "a.b", "a/b"])
def test_a_name_that_is_none_is_an_error(name: str) -> None:
    with pytest.raises(ValueError, match="is no name of a layer"):
        nn.Sequential(**{name: nn.ReLU()})


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(1, 2, 5, rng=np.random.default_rng(0)), (1, 4, 9)),
        (nn.Conv2d(1, 2, 5, rng=np.random.default_rng(0)), (2, 9, 9)),
        (nn.Conv2d(1, 2, 5, rng=np.random.default_rng(0)), (1, 9)),
        (nn.Linear(3, 2, rng=np.random.default_rng(0)), (4,)),
        (nn.Linear(3, 2, rng=np.random.default_rng(0)), (3, 1)),
        (nn.MaxPool2d(3), (1, 2, 5)),
        (nn.AvgPool2d(3), (9,)),
        (nn.Select([0], size=3), (4, 2)),
        (md.Gate(3), (4, 2)),
    ],
)
def test_a_shape_that_does_not_fit_is_an_error(layer: nn.Module, shape: Shape) -> None:
    with pytest.raises(ValueError, match="does not fit an input of shape"):
        layer.output_shape(shape)


@pytest.mark.parametrize("bad", [[nn.ReLU()], nn.ReLU, None])
def test_what_is_no_layer_is_refused_when_a_sequential_is_made(bad: Any) -> None:
    with pytest.raises(TypeError, match=r"layer 1 is .*expected a module"):
        nn.Sequential(nn.Flatten(), bad)


def test_a_network_shows_its_layers_and_their_shapes() -> None:
    rng = np.random.default_rng(0)
    model = nn.Sequential(hidden=md.gate_units(nn.Linear(4, 3, rng=rng)), relu=nn.ReLU())
    assert repr(model).splitlines() == [
        "Sequential()",
        "  hidden: Gated()",
        "    layer: Linear(weight (3, 4), bias (3,))",
        "    outputs: Gate(phi (3,))",
        "  relu: ReLU()",
    ]


def test_a_layer_of_a_sequential_is_replaced_by_its_place_or_name_and_not_lost() -> None:
    model = nn.Sequential(nn.ReLU(), end=nn.ReLU())
    first, last = nn.Flatten(), nn.Flatten()
    model[0], model["end"] = first, last
    assert [model[0], model["end"]] == [first, last]
    with pytest.raises(AttributeError, match=r"replaced by model\['end'\] = layer"):
        model.end = nn.ReLU()
    with pytest.raises(KeyError, match="no layer is named 'nd'"):
        model["nd"] = nn.ReLU()
    with pytest.raises(TypeError, match="expected a module"):
        model[0] = "relu"  # type: ignore[assignment]  # that is the mistake


def test_what_a_kind_of_sequential_has_besides_is_found() -> None:
    class Scaled(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(nn.ReLU())
            self.scale = nn.Parameter(np.ones(1))

    assert list(Scaled().state_dict()) == ["scale"]


@pytest.mark.parametrize("dtype", [int, bool, np.float16, np.longdouble, "complex64"])
def test_dtypes_but_float32_and_float64_are_refused(dtype: Any) -> None:
    for make in (
        lambda: nn.Linear(3, 2, rng=generator(), dtype=dtype),
        lambda: nn.Conv2d(1, 2, 3, rng=generator(), dtype=dtype),
        lambda: md.Gate(3, dtype=dtype),
        lambda: md.HardConcrete(3, rng=generator(), dtype=dtype),
    ):
        with pytest.raises(TypeError, match=r"dtype is \w+; expected float32 or float64"):
            make()


@pytest.mark.parametrize("name", ["training", "forward", "items", "layers", "names"])
def test_a_layer_cannot_take_the_name_of_an_attribute(name: str) -> None:
    with pytest.raises(
        ValueError, match=f"no layer can have the name '{name}', which an attribute has"
    ):
        nn.Sequential(**{name: nn.ReLU()})
