"""Checkpoints: what comes back is what was written, and a file that is not right says so."""

import json
import os
import struct

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import minidiff as md
from minidiff import Gate, Gated, Groups, Mask, nn
from minidiff.io import checkpoint
from minidiff.io.checkpoint import FORMAT, Checkpoint, CheckpointError
from tests.networks import conv, dense, gate_at, networks, rng
from tests.strategies import seeds

safetensors = pytest.importorskip("safetensors.numpy", reason="checkpoints need safetensors")
in_one_directory = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def assert_same_state(a, b):
    one, other = a.state_dict(), b.state_dict()
    assert list(one) == list(other)
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name], strict=True)


# -- round trips -------------------------------------------------------------------------------


@given(networks(sigmoids=True))
@in_one_directory
def test_any_network_comes_back_and_draws_on(tmp_path, network):
    model, info, state = network.model, {"step": 3, "of": ["ß", None]}, {"a/b": np.arange(3.0)}
    Checkpoint(model, info, state).write(tmp_path / "m")
    found = Checkpoint.read(tmp_path / "m")
    loaded = found.model
    assert_same_state(loaded, model)
    assert found.info == info
    np.testing.assert_array_equal(found.state["a/b"], state["a/b"], strict=True)
    for training in (False, True):  # in training, generators go on with the same numbers
        both = [m.train(training)(network.inputs()).data for m in (loaded, model)]
        np.testing.assert_array_equal(*both)


@given(seeds, st.floats(0, 1), st.sampled_from([(3, 4, 3, 3), (30, 300)]))
@in_one_directory
def test_fixed_zeros_take_no_room_and_stay_fixed(tmp_path, seed, density, shape):
    random = rng(seed)
    layer = conv(4, 3, 3) if len(shape) == 4 else dense(300, 30)
    layer.weight.data *= random.random(shape) < density
    layer.weight.fix_zeros()
    md.save(tmp_path / "m", layer)
    loaded = md.load(tmp_path / "m")
    assert_same_state(loaded, layer)
    live, expected = loaded.weight.live, layer.weight.live
    assert (live is None) == (expected is None) or not expected.places.size
    if live is not None:
        np.testing.assert_array_equal(live.places, expected.places)
        left = int(np.count_nonzero(layer.weight.data))
        few = checkpoint.stored_bytes(layer) - layer.bias.data.nbytes
        assert left * 9 <= few <= left * 10
        whole = checkpoint.stored_bytes(layer, dense=True) - layer.bias.data.nbytes
        assert whole == layer.weight.data.nbytes


@pytest.mark.parametrize(
    "module",
    [
        conv(2, 3, (2, 1), stride=(2, 1), padding=(0, 1)),
        nn.Linear(3, 2, rng=rng()),
        nn.MaxPool2d((2, 3), stride=1, relu=True),
        nn.AvgPool2d(3, stride=(1, 2)),
        nn.Dropout(0.3, rng=rng()),
        nn.Select([0, 2], size=4),
        gate_at([0.1, 2], width=0.5, initial=0.1, sigma=0.3, noise="uniform", per_sample=True),
        gate_at([0.1, 2], md.HardConcrete, beta=0.5, gamma=-0.2, zeta=1.3, per_sample=True),
        gate_at([0.1, 2], md.GaussianGate, sigma=0.7, per_sample=True),
    ],
    ids=lambda module: type(module).__name__,
)
def test_every_setting_of_a_layer_comes_back(tmp_path, module):
    if isinstance(module, Gate):
        module.frozen = True
    md.save(tmp_path / "m", module)
    loaded = md.load(tmp_path / "m")
    assert type(loaded) is type(module)
    assert_same_state(loaded, module)
    for name, value in vars(module).items():
        if not isinstance(value, nn.Parameter | np.random.Generator):
            np.testing.assert_array_equal(getattr(loaded, name), value)


class Named(nn.Module):
    """A layer with a setting whose name a file uses itself."""

    settings = ("type",)

    def __init__(self, type):  # noqa: A002 - the name is what is tested
        self.type = type


def test_a_setting_of_any_name_comes_back(tmp_path):
    md.save(tmp_path / "m", nn.Sequential(Named("ReLU")))
    loaded = md.load(tmp_path / "m")[0]
    assert (type(loaded), loaded.type) == (Named, "ReLU")


def test_what_is_shared_is_shared_again(tmp_path):
    layer, gate = dense(3, 3), gate_at([1] * 3, noise="normal")
    rows, drop = Mask(gate, Groups.along((3, 3), 0)), nn.Dropout(0.5, rng=gate.rng)
    inner = nn.Sequential(Gated(layer, weights=[rows]))
    md.save(
        tmp_path / "m",
        nn.Sequential(Gated(layer, outputs=gate, weights=rows), layer, gate, drop, inner),
    )
    a, b, c, d, e = md.load(tmp_path / "m")
    assert a.layer is b is e[0].layer
    assert a.outputs is c is a.weights[0].gate
    assert a.weights[0] is e[0].weights[0]
    assert c.rng is d.rng


@pytest.mark.parametrize("kind", checkpoint.GENERATORS)
@given(seed=seeds, drawn=st.integers(0, 5))
def test_a_generator_goes_on_where_it_was(kind, seed, drawn):
    one = np.random.Generator(getattr(np.random, kind)(seed))
    one.integers(0, 9, drawn, np.uint8)
    state = json.loads(json.dumps(checkpoint.generator_state(one)))
    again = checkpoint.restore_generator(state)
    for draw in (lambda g: g.integers(0, 99, 7, np.uint8), lambda g: g.random(9)):
        np.testing.assert_array_equal(draw(again), draw(one))


def test_a_generator_goes_on_although_a_constructor_has_drawn(tmp_path):
    module = Drawing(rng=rng())
    md.save(tmp_path / "m", module)
    assert md.load(tmp_path / "m").rng.random() == module.rng.random()


# -- what cannot be saved or loaded ------------------------------------------------------------


class Odd(nn.Module):
    """A layer without settings."""


class Steeper(Gate):
    """A gate with another constructor, which says no settings."""

    def __init__(self, count, slope=2.0):
        super().__init__(count, width=1 / slope)


class Passed(Gate):
    """A gate whose settings are not all arguments of its constructor."""

    settings = Gate.settings

    def __init__(self, count, **settings):
        super().__init__(count, **settings)


class Scaled(nn.Sequential):
    """A Sequential that holds more than layers."""

    def __init__(self, *layers):
        super().__init__(*layers)
        self.scale, self.parts = nn.Parameter([2.0]), [nn.ReLU()]


class Block(nn.Module):
    """A module that makes a layer itself, so that its settings do not name it."""

    settings = ("size",)

    def __init__(self, size):
        self.size, self.inner = size, nn.Linear(size, size, rng=rng())


class Drawing(nn.Module):
    """A module that draws from its generator when it is made."""

    settings = ()

    def __init__(self, *, rng):
        self.rng, self.first = rng, rng.random()


TIED, TWICE = nn.Sequential(dense(3, 3), dense(3, 3)), nn.Sequential(nn.ReLU())
TIED[1].weight = TIED[0].weight
PHILOX = nn.Dropout(0.5, rng=np.random.Generator(np.random.Philox(0)))


@pytest.mark.parametrize(
    ("model", "info", "message"),
    [
        (TIED, {}, r"0\.weight and 1\.weight are one parameter"),
        (nn.Sequential(a=TWICE, b=TWICE), {}, "a and b are one Sequential"),
        (
            nn.Sequential(inner=nn.Sequential(Odd())),
            {},
            r"inner\.0 cannot be saved: its class Odd has no settings",
        ),
        (Scaled(nn.ReLU()), {}, r"a Scaled, holds more than layers: scale, parts\.0"),
        (Steeper(2), {}, "its class Steeper has no settings"),
        (Passed(2), {}, "cannot be built again from its settings"),
        (PHILOX, {}, "a generator is 'Philox'; expected one of PCG64"),
        (nn.Sequential(Block(2)), {}, r"0\.inner cannot be saved: Block.settings does not name it"),
        (TWICE, {"odd": np.ones(2)}, "not of JSON's types"),
        (TWICE, {"odd": float("nan")}, "not of JSON's types"),
    ],
    ids=[
        "tied",
        "twice",
        "odd",
        "more",
        "constructor",
        "settings",
        "generator",
        "block",
        "array",
        "nan",
    ],
)
def test_what_cannot_be_saved_is_an_error_and_leaves_no_file(tmp_path, model, info, message):
    with pytest.raises(CheckpointError, match=message) as error:
        md.save(tmp_path / "m", model, **info)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_wrong_arguments_are_told(tmp_path):
    path = tmp_path / "model.safetensors"
    with pytest.raises(TypeError, match=r"expected save\(path, model\)"):
        md.save(TWICE, path)
    with pytest.raises(CheckpointError, match="state/x is int32; expected float32"):
        Checkpoint(TWICE, {}, {"x": np.ones(3, np.int32)}).write(path)
    for other in (tmp_path / "model.onnx", tmp_path / "model.npz"):
        with pytest.raises(CheckpointError, match=r"minidiff\.export\(path, model, shape\)"):
            md.save(other, TWICE)
        other.write_bytes(b"PK")
        with pytest.raises(CheckpointError, match="was exported for other software"):
            md.load(other)
    with pytest.raises(CheckpointError, match="it is a directory; expected a regular file"):
        md.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such checkpoint"):
        md.load(path)


# -- damage ------------------------------------------------------------------------------------


def example():
    """A network of many kinds of layers, with all that a training run keeps beside it."""
    first, noisy = conv(1, 2, 2), gate_at([1, 1], noise="normal")
    rows = Mask(Gate(2), Groups.along(first.weight.shape, 0))
    model = nn.Sequential(
        conv=Gated(first, outputs=noisy, weights=rows),
        pool=nn.MaxPool2d(2, relu=True),
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
    """Return what reading says, on one line, of a file with that data; None if it is unharmed."""
    path.write_bytes(data)
    try:
        loaded = Checkpoint.read(path)
    except CheckpointError as error:
        return str(error) if str(path) in str(error) and "\n" not in str(error) else None
    assert_same_state(loaded.model, example().model)
    assert loaded.info == {"step": 3}
    return None


def test_no_flipped_bit_and_no_cut_goes_unnoticed(good, tmp_path):
    path, random, unharmed = tmp_path / "checkpoint", rng(), 0
    for place in range(len(good)):
        data = bytearray(good)
        data[place] ^= 1 << random.integers(8)
        unharmed += not refused(path, data)
    assert unharmed <= 8  # white space in place of other white space
    for length in range(0, len(good), 7):
        assert refused(path, good[:length])
    assert refused(path, good + b"\0")


@given(st.binary(max_size=300), st.floats(0, 1), st.binary(min_size=2))
@in_one_directory
def test_other_bytes_in_place_of_some_or_all_are_noticed(tmp_path, good, data, part, new):
    assert refused(tmp_path / "other", data)
    start = int(part * len(good))
    refused(tmp_path / "changed", good[:start] + new + good[start + len(new) :])


# -- other files, whose checksum is right ------------------------------------------------------


def put(*keys, value):
    def change(content, _):
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value

    return change


def array(name, value):
    return lambda _, arrays: arrays.__setitem__(name, value)


def gapped(values, gaps):
    new = {"dense.weight": np.array(values, np.float32), "dense.weight.gaps": gaps}
    return lambda _, arrays: arrays.update(new)


LAYER = ("architecture", "layers")
GATE = (*LAYER, "conv", "settings", "outputs", "settings")
SHARED = {"type": "shared", "name": "dense"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("format", value=FORMAT + 1), f"it is of format {FORMAT + 1}, and this version of"),
        (lambda content, _: content.clear(), "does not hold a network"),
        (put(*LAYER, "dense", "type", value="os.system"), "which is not defined here"),
        (put(*LAYER, "dense", value=SHARED), "does not hold a network"),
        (put(*LAYER, "pool", "settings", "kernel", value=[0, 2]), "kernel is"),
        (put(*LAYER, "drop", "rng", value=99), "does not hold a network"),
        (put(*LAYER, "conv", "settings", "outputs", "settings", "width", value=-1), "width is -1"),
        # A file of 3 KB must not ask for gigabytes of memory.
        (put(*LAYER, "dense", "settings", "in_features", value=10**10), "30,000,000,000 weights"),
        (put(*LAYER, "drop", "settings", "p", value=[1] * 999), "p"),
        (put(*GATE, "count", value=10**12), "conv.outputs has 1000000000000 gates, unlike its"),
        (put(*GATE, "frozen", value="no"), "conv.outputs.frozen is 'no'; expected a bool"),
        (put(*GATE, "forward", value=5), "expected a method"),
        (put(*LAYER, "pool", "settings", "relu", value=[1]), "a setting of another type"),
        (put(*LAYER, "pool", "settings", "kernel", value=True), "a setting of another type"),
        (put("info", value=[]), "its info is no object"),
        (put("generators", 0, "bit_generator", value="MT19937"), "a generator is 'MT19937'"),
        (put("generators", 0, "state", "state", value=2**200), "does not hold a network"),
        (array("home/x", np.zeros(1)), "arrays belong to no layer: home/x"),
        (lambda _, arrays: arrays.pop("dense.weight"), "dense.weight"),
        (array("dense.bias", np.zeros(4, np.float32)), "dense.bias is float32 of shape (4,), not"),
        (array("dense.weight", np.zeros((3, 2), np.float16)), "of dtype F16; expected one of F32"),
        (array("conv.weights.0.groups", np.array([5, 7])), "labels run from 5"),
        (array("dense.weight.gaps", np.zeros(6, np.uint8)), "gaps of uint8 and shape (6,) for"),
        (gapped([1.0], np.array([6], np.uint8)), "an element at 6 of an array of shape (3, 2)"),
        (gapped([1.0], np.array([2**32 - 1], np.uint32)), "an element at 4294967295 of"),
        (gapped([1.0], np.array([1])), "gaps of int64"),
        (gapped([1.0, 2.0], np.array([1], np.uint8)), "for values of shape (2,)"),
    ],
)
def test_a_file_of_other_contents_is_an_error(change, message, tmp_path, good):
    arrays, length = safetensors.load(good), struct.unpack("<Q", good[:8])[0]
    content = json.loads(json.loads(good[8 : 8 + length])["__metadata__"]["minidiff"])
    change(content, arrays)
    text = json.dumps(content)
    metadata = {"minidiff": text, "sha256": checkpoint._digest(text, arrays)}
    assert message in refused(tmp_path / "m", safetensors.save(arrays, metadata=metadata))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no FIFOs")
def test_fifos_and_devices_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for path, kind in ((tmp_path / "fifo", "a FIFO"), (os.devnull, "a device")):
        with pytest.raises(CheckpointError, match=f"it is {kind}; expected a regular file"):
            md.load(path)


def test_files_of_others_are_refused(tmp_path):
    other = safetensors.save({"x": np.zeros(3, np.float32)})
    assert "was not written by minidiff" in refused(tmp_path / "m", other)
    for size, shape in ((2**62, [2**31, 2**31]), (8, [10**30]), (4, [-1])):  # more than it holds
        header = {"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}}
        text = json.dumps(header).encode()
        assert refused(tmp_path / "m", struct.pack("<Q", len(text)) + text + b"\0" * 4)
