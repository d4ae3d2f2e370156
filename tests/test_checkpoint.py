"""Checkpoints: what comes back is what was written, and a file that is not right says so."""

import json
import struct

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import minidiff as md
from minidiff import Gate, Gated, Groups, Mask, nn
from minidiff.io.checkpoint import (
    FORMAT,
    GENERATORS,
    Checkpoint,
    CheckpointError,
    _digest,
    generator_state,
    restore_generator,
)
from tests.networks import networks
from tests.strategies import seeds

safetensors = pytest.importorskip("safetensors.numpy", reason="checkpoints need safetensors")
in_one_directory = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def rng():
    return np.random.default_rng(0)


def assert_same_state(a, b):
    one, other = a.state_dict(), b.state_dict()
    assert list(one) == list(other)
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name], strict=True)


def run(model, network, training):
    with md.no_grad():
        return model.train(training)(network.inputs()).data


# -- round trips -------------------------------------------------------------------------------


@given(networks(sigmoids=True))
@in_one_directory
def test_any_network_comes_back_and_draws_on(tmp_path, network):
    path = tmp_path / "model.safetensors"
    md.save(path, network.model)
    loaded = md.load(path)
    assert_same_state(loaded, network.model)
    for training in (False, True):  # in training, generators go on with the same numbers
        expected = run(network.model, network, training)
        np.testing.assert_array_equal(run(loaded, network, training), expected)


@pytest.mark.parametrize(
    "module",
    [
        nn.Conv2d(2, 3, 2, stride=(2, 1), padding=(0, 1), rng=rng()),
        nn.Linear(3, 2, rng=rng(), dtype=np.float64),
        nn.MaxPool2d((2, 3), stride=1, relu=True),
        nn.AvgPool2d(3, stride=(1, 2)),
        nn.Dropout(0.3, rng=rng()),
        nn.Select([0, 2], size=4),
        Gate(2, width=0.5, initial=0.1, sigma=0.3, noise="uniform", per_sample=True, rng=rng()),
        md.HardConcrete(2, beta=0.5, gamma=-0.2, zeta=1.3, per_sample=True, rng=rng()),
        md.GaussianGate(2, sigma=0.7, per_sample=True, rng=rng()),
    ],
    ids=lambda module: type(module).__name__,
)
def test_every_setting_of_a_layer_comes_back(tmp_path, module):
    if isinstance(module, Gate):
        module.frozen = True
    md.save(tmp_path / "m", nn.Sequential(module))
    loaded = md.load(tmp_path / "m")[0]
    assert type(loaded) is type(module)
    assert_same_state(loaded, module)
    kept = {name for name, v in vars(module).items() if not isinstance(v, nn.Parameter)} - {"rng"}
    assert vars(loaded).keys() >= kept
    for name in kept:
        np.testing.assert_array_equal(getattr(loaded, name), getattr(module, name))


def test_what_is_shared_is_shared_again(tmp_path):
    noise, dense = rng(), nn.Linear(3, 3, rng=rng())
    gate = Gate(3, noise="normal", rng=noise)
    mask = Mask(gate, Groups.along((3, 3), 0))
    model = nn.Sequential(
        a=Gated(dense, outputs=gate, weights=mask),
        b=nn.Dropout(0.5, rng=noise),
        c=dense,
        d=gate,
        e=nn.Sequential(Gated(dense, weights=[mask])),
    )
    md.save(tmp_path / "m", model)
    a, b, c, d, e = md.load(tmp_path / "m")
    assert a.layer is c is e[0].layer
    assert a.outputs is d is a.weights[0].gate
    assert a.weights[0] is e[0].weights[0]
    assert a.outputs.rng is b.rng


def test_info_and_arrays_come_back_and_classes_need_no_name(tmp_path):
    info, state = {"step": 3, "note": "ß", "list": [1.5, None]}, {"a/b": np.arange(3.0)}
    Checkpoint(md.LeNet5(rng=rng()), info, state).write(tmp_path / "m")
    found = Checkpoint.read(tmp_path / "m")
    assert found.info == info
    assert found.state.keys() == state.keys()
    np.testing.assert_array_equal(found.state["a/b"], state["a/b"], strict=True)
    assert type(found.model) is nn.Sequential  # forward is that of Sequential


@pytest.mark.parametrize("kind", GENERATORS)
@settings(max_examples=20)
@given(seeds, st.integers(0, 5))
def test_a_generator_goes_on_where_it_was(kind, seed, drawn):
    one = np.random.Generator(getattr(np.random, kind)(seed))
    one.integers(0, 9, drawn, np.uint8)
    one.standard_normal(drawn)
    again = restore_generator(json.loads(json.dumps(generator_state(one))))
    for draw in (lambda g: g.integers(0, 99, 7, np.uint8), lambda g: g.random(9)):
        np.testing.assert_array_equal(draw(again), draw(one))


# -- what cannot be saved ----------------------------------------------------------------------


class Odd(nn.Module):
    """A layer without settings."""


class Scaled(nn.Sequential):
    """A Sequential that holds more than layers."""

    def __init__(self, *layers):
        super().__init__(*layers)
        self.scale, self.parts = nn.Parameter([2.0]), [nn.ReLU()]


def tied():
    one, other = (nn.Linear(3, 3, rng=rng()) for _ in range(2))
    other.weight = one.weight
    return nn.Sequential(one, other)


TWICE = nn.Sequential(nn.ReLU())
PHILOX = nn.Dropout(0.5, rng=np.random.Generator(np.random.Philox(0)))


@pytest.mark.parametrize(
    ("model", "info", "message"),
    [
        (tied(), {}, r"0\.weight and 1\.weight are one parameter"),
        (nn.Sequential(a=TWICE, b=TWICE), {}, "a and b are one Sequential"),
        (nn.Sequential(inner=nn.Sequential(Odd())), {}, r"inner\.0 is a Odd, whose class has no"),
        (Scaled(nn.ReLU()), {}, r"a Scaled, holds more than layers: scale, parts\.0"),
        (nn.Sequential(PHILOX), {}, "a generator is 'Philox'; expected one of PCG64"),
        (nn.Sequential(), {"odd": np.ones(2)}, "not of JSON's types"),
        (nn.Sequential(), {"odd": float("nan")}, "not of JSON's types"),
    ],
    ids=["tied", "twice", "odd", "more", "generator", "array", "nan"],
)
def test_what_cannot_be_saved_is_an_error_and_leaves_no_file(tmp_path, model, info, message):
    with pytest.raises(CheckpointError, match=message) as error:
        md.save(tmp_path / "m", model, **info)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_wrong_arguments_are_told(tmp_path):
    path, model = tmp_path / "model.safetensors", nn.Sequential(nn.ReLU())
    with pytest.raises(TypeError, match=r"expected save\(path, model\)"):
        md.save(model, path)
    with pytest.raises(CheckpointError, match="state/x is int32; expected float32"):
        Checkpoint(model, {}, {"x": np.ones(3, np.int32)}).write(path)
    for ending in (".onnx", ".npz"):
        other = tmp_path / f"model{ending}"
        with pytest.raises(CheckpointError, match=r"minidiff\.export\(path, model, shape\)"):
            md.save(other, model)
        other.write_bytes(b"PK")
        with pytest.raises(CheckpointError, match="was exported for other software"):
            md.load(other)
    with pytest.raises(CheckpointError, match="is a directory; expected a file"):
        md.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such checkpoint"):
        md.load(tmp_path / "nothing")


# -- damage ------------------------------------------------------------------------------------


def example():
    """A network of many kinds of layers, with all that a training run keeps beside it."""
    conv = nn.Conv2d(1, 2, 2, padding=1, rng=rng())
    rows, noisy = Groups.along(conv.weight.shape, 0), Gate(2, noise="normal", rng=rng())
    model = nn.Sequential(
        conv=Gated(conv, outputs=noisy, weights=Mask(Gate(2), rows)),
        pool=nn.MaxPool2d(2, relu=True),
        flatten=nn.Flatten(),
        select=nn.Select([0, 3], size=8),
        drop=nn.Dropout(0.5, rng=noisy.rng),
        dense=nn.Linear(2, 3, rng=rng()),
    )
    return Checkpoint(model, {"step": 3}, {"weights.0.0.velocity": np.ones(3, np.float32)})


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    path = tmp_path_factory.mktemp("good") / "checkpoint"
    example().write(path)
    return path.read_bytes()


def refused(path, data):
    path.write_bytes(data)
    with pytest.raises(CheckpointError) as error:
        Checkpoint.read(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_no_flipped_bit_goes_unnoticed(good, tmp_path):
    path, draw, unharmed = tmp_path / "checkpoint", rng(), 0
    for place in range(len(good)):
        data = bytearray(good)
        data[place] ^= 1 << draw.integers(8)
        path.write_bytes(data)
        try:
            loaded = Checkpoint.read(path)
        except CheckpointError:
            continue
        unharmed += 1  # white space in place of other white space, at most
        assert_same_state(loaded.model, example().model)
        assert loaded.info == {"step": 3}
    assert unharmed <= 8


def test_no_cut_goes_unnoticed(good, tmp_path):
    for length in range(0, len(good), 7):
        refused(tmp_path / "checkpoint", good[:length])
    refused(tmp_path / "checkpoint", good + b"\0")


@given(st.data())
@in_one_directory
def test_other_bytes_in_place_of_some_or_all_are_noticed(tmp_path, good, data):
    refused(tmp_path / "other", data.draw(st.binary(max_size=300)))
    start, new = data.draw(st.integers(0, len(good) - 1)), data.draw(st.binary(min_size=2))
    changed = good[:start] + new + good[start + len(new) :]
    (tmp_path / "changed").write_bytes(changed)
    try:
        assert_same_state(md.load(tmp_path / "changed"), example().model)
    except CheckpointError:
        assert changed != good


# -- other files, whose checksum is right ------------------------------------------------------


def put(*keys, value):
    def change(content, _):
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value

    return change


def array(name, value):
    return lambda _, arrays: arrays.__setitem__(name, value)


LAYER = ("architecture", "layers")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("format", value=FORMAT + 1), f"it is of format {FORMAT + 1}, and this version of"),
        (lambda content, _: content.clear(), "does not hold a network"),
        (put(*LAYER, "dense", "type", value="os.system"), "which is no layer of minidiff"),
        (put(*LAYER, "dense", "type", value="my.Layer"), "must be defined before"),
        (put(*LAYER, "dense", value={"type": "shared", "name": "dense"}), "hold a network"),
        (put(*LAYER, "pool", "kernel", value=[0, 2]), "kernel is"),
        (put(*LAYER, "drop", "rng", value=99), "does not hold a network"),
        (put(*LAYER, "conv", "outputs", "width", value=-1), "width is -1"),
        (put("generators", 0, "bit_generator", value="MT19937"), "a generator is 'MT19937'"),
        (put("generators", 0, "state", "state", value=2**200), "does not hold a network"),
        (array("home/x", np.zeros(1)), "arrays belong to no layer: home/x"),
        (lambda _, arrays: arrays.pop("dense.weight"), "dense.weight"),
        (array("dense.bias", np.zeros(4, np.float32)), r"dense.bias is float32 of shape (4,), not"),
        (array("dense.weight", np.zeros((3, 2), np.float16)), "of dtype F16; expected one of F32"),
        (array("conv.weights.0.groups", np.array([5, 7])), "labels run from 5"),
    ],
)
def test_a_file_of_other_contents_is_an_error(change, message, tmp_path, good):
    arrays, length = safetensors.load(good), struct.unpack("<Q", good[:8])[0]
    content = json.loads(json.loads(good[8 : 8 + length])["__metadata__"]["minidiff"])
    change(content, arrays)
    text = json.dumps(content)
    metadata = {"minidiff": text, "sha256": _digest(text, arrays)}
    data = safetensors.save(arrays, metadata=metadata)
    assert message in refused(tmp_path / "checkpoint", data)


def test_files_of_others_are_refused(tmp_path):
    path = tmp_path / "checkpoint"
    other = safetensors.save({"x": np.zeros(3, np.float32)})
    assert "was not written by minidiff" in refused(path, other)
    for size, shape in ((2**62, [2**31, 2**31]), (8, [10**30]), (4, [-1])):  # more than it holds
        header = {"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}}
        text = json.dumps(header).encode()
        refused(path, struct.pack("<Q", len(text)) + text + b"\0" * 4)
