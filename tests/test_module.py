"""Modules: the tree of parameters, Sequential, and the state."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minidiff as md
from minidiff import Tensor, nn
from minidiff.engine.module import chain
from tests.checks import equal


class Leaf(nn.Module):
    def __init__(self, value=1.0):
        self.weight = nn.Parameter([value])

    def forward(self, x):
        return x * self.weight


class Tree(nn.Module):
    """Parameters as attributes and in lists; one module in two places."""

    def __init__(self):
        self.first = nn.Parameter([0.0])
        self.branch = Leaf(1.0)
        self.several = [Leaf(2.0), nn.Parameter([3.0]), "no module"]
        self.pair = (Leaf(4.0), self.branch)
        self.heads = {"a": Leaf(4.5), "b": [{"c": nn.Parameter([4.75])}]}
        self.last = nn.Parameter([5.0])
        self.alias = self.first
        self.constant = Tensor([9.0], requires_grad=True)  # no Parameter


class Leaky(nn.ReLU):
    def forward(self, x):
        return x.maximum(0.1 * x)


def network(seed=0):
    rng = np.random.default_rng(seed)
    end = nn.Sequential(nn.ReLU(), nn.Linear(4, 2, rng=rng))
    return nn.Sequential(nn.Linear(3, 4, rng=rng), nn.Dropout(0.5, rng=rng), end=end)


def test_parameters_and_modules_are_listed_in_order_each_once():
    tree = Tree()
    names = ["first", "branch.weight", "several.0.weight", "several.1", "pair.0.weight"]
    names += ["heads.a.weight", "heads.b.0.c", "last"]
    assert [name for name, _ in tree.named_parameters()] == names
    assert [name for name, _ in tree.named_parameters("a.")] == [f"a.{name}" for name in names]
    assert [p.item() for p in tree.parameters()] == [0, 1, 2, 3, 4, 4.5, 4.75, 5]
    modules = [tree, tree.branch, tree.several[0], tree.pair[0], tree.heads["a"]]
    assert list(tree.modules()) == modules
    names = ["branch", "several.0", "pair.0", "pair.1", "heads.a"]
    assert [name for name, _ in tree.children()] == names


def test_a_shared_parameter_gets_both_gradients_and_one_step():
    shared = Leaf(3.0)
    model = nn.Sequential(shared, shared)
    model(np.ones(1, np.float32)).backward()
    assert shared.weight.grad == 6  # of w ** 2
    md.optim.SGD(model.parameters(), lr=0.5).step()
    assert shared.weight.data == 0


def test_train_and_eval_reach_every_module():
    model = nn.Sequential(network(), Tree())
    for change, training in ((model.eval, False), (model.train, True)):
        assert change() is model
        assert {module.training for module in model.modules()} == {training}


def test_what_a_class_does_not_say_is_an_error():
    with pytest.raises(NotImplementedError):
        nn.Module()(np.ones(1))
    with pytest.raises(TypeError, match=r"Leaf does not say .* channelwise = True"):
        Leaf().map_channels(None, (1,))
    for layer in (Leaf(), Leaky()):  # a parent's, of another forward, would be wrong
        with pytest.raises(TypeError, match="has no method onnx"):
            layer.onnx(None)


def test_repr_shows_layers_and_their_settings():
    text = "Sequential()\n  0: ReLU()\n  1: Linear(in_features=4, out_features=2)"
    assert repr(network()["end"]) == text
    pool = nn.MaxPool2d((2, 3), relu=True)
    assert repr(pool) == "MaxPool2d(kernel=(2, 3), stride=(2, 3), relu=True)"
    assert repr(Leaf()).startswith("Leaf(")


def test_layers_are_found_and_replaced_by_place_and_name():
    first, second, third = nn.Flatten(), nn.ReLU(), Leaf()
    model = nn.Sequential(first, end=second)
    assert (list(model), len(model)) == ([first, second], 2)
    assert (model[0], model["0"], model[-1], model["end"]) == (first, first, second, second)
    model[0] = model["end"] = third
    assert list(model) == [third, third]
    with pytest.raises(KeyError, match="no layer is named 'start'; there are 0, end"):
        model["start"] = first
    with pytest.raises(IndexError):
        model[2]
    with pytest.raises(AttributeError, match=r"replaced by model\['end'\] = layer"):
        model.end = first
    with pytest.raises(TypeError, match="expected a module"):
        model[0] = "relu"


def test_subclasses_may_hold_more_and_have_a_forward_of_their_own():
    class Twice(nn.Sequential):
        def __init__(self):
            super().__init__(nn.ReLU(), Leaf())
            self.scale = nn.Parameter(np.ones(1))

        def forward(self, x):
            return super().forward(super().forward(x))

    assert list(Twice().state_dict()) == ["1.weight", "scale"]
    assert [name for name, _ in Twice().items()] == ["0", "1"]
    model = nn.Sequential(network(), twice=Twice())  # chain opens all others
    assert [name for name, _ in chain(model)] == ["0.0", "0.1", "0.end.0", "0.end.1", "twice"]


@pytest.mark.parametrize(
    ("layers", "named", "message"),
    [
        *(([nn.ReLU(), bad], {}, "layer 1 is .*expected a module") for bad in ([], nn.ReLU, None)),
        *(([], {name: nn.ReLU()}, r"expected no \. or /") for name in ("", "a.b", "a/b")),
        *(([], {name: nn.ReLU()}, "the name of an attribute") for name in ("forward", "layers")),
        ([nn.ReLU()], {"0": nn.ReLU()}, "two layers have the name '0'"),
    ],
)
def test_layers_are_modules_with_names_of_their_own(layers, named, message):
    with pytest.raises((TypeError, ValueError), match=message):
        nn.Sequential(*layers, **named)


def test_a_state_is_a_copy_both_ways():
    source, target, x = network(0).eval(), network(1).eval(), np.ones((3, 5), np.float32)
    out, state = source(x).data, source.state_dict()
    # Of another dtype and memory order, too.
    target.load_state_dict({name: np.asfortranarray(a, np.float64) for name, a in state.items()})
    assert {p.dtype for p in target.parameters()} == {np.dtype(np.float32)}
    assert all(p.data.flags.c_contiguous for p in target.parameters())
    equal(target(x).data, out)
    source[0].weight.data[...] = target[0].weight.data[...] = 7
    target.load_state_dict(state)
    equal(target(x).data, out)


@given(st.data())
def test_a_state_that_does_not_fit_changes_nothing(data):
    """The error names every mismatch, and nothing else."""
    model = network()
    before = model.state_dict()
    state = {name: array + 1 for name, array in before.items()}
    expected = []
    for name in data.draw(st.sets(st.sampled_from([*state, "added"]), min_size=1)):
        if name == "added":
            state[name] = np.zeros(1)
            expected.append("added is unknown")
        elif data.draw(st.booleans()):
            del state[name]
            expected.append(f"{name} is missing")
        else:
            state[name] = np.zeros((2, 9))
            expected.append(f"{name} has shape (2, 9), not {before[name].shape}")
    with pytest.raises(ValueError, match="the state does not fit this Sequential: ") as error:
        model.load_state_dict(state)
    _, _, found = str(error.value).removesuffix(".").partition(": ")
    assert sorted(found.split("; ")) == sorted(expected)
    for bad in (["a"] * 4, [1e300] * 4):
        with pytest.raises((TypeError, ValueError), match=r"0\.bias: array is of"):
            model.load_state_dict(before | {"0.weight": before["0.weight"] + 1, "0.bias": bad})
    for name, array in model.state_dict().items():
        equal(array, before[name])
