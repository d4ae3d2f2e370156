"""Checkpoints: what comes back is what was written, and a file that is not right says so."""

import copy
import json
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import minidiff as md
from minidiff import nn
from minidiff.engine.nn import Module
from minidiff.engine.optim import SGD, Adam
from minidiff.io.checkpoint import (
    FORMAT,
    GENERATORS,
    Checkpoint,
    CheckpointError,
    _digest,
    generator_state,
    restore_generator,
)
from minidiff.io.files import write_whole
from minidiff.pruning.gates import Gate, Gated
from tests.strategies import Network, networks, seeds

safetensors = pytest.importorskip("safetensors.numpy", reason="checkpoints need safetensors")
in_one_directory = settings(
    max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def same_state(a: Module, b: Module) -> bool:
    one, other = a.state_dict(), b.state_dict()
    return list(one) == list(other) and all(
        one[k].dtype == other[k].dtype and np.array_equal(one[k], other[k]) for k in one
    )


def run(model: Module, shape: tuple[int, ...], training: bool) -> np.ndarray:
    x = np.random.default_rng(5).standard_normal((*shape, 3))
    with md.no_grad():
        return model.train(training)(x).data


# -- round trips -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "module",
    [
        nn.Conv2d(2, 3, 2, stride=(2, 1), padding=(0, 1), rng=np.random.default_rng(0)),
        nn.MaxPool2d((2, 3), stride=1, relu=True),
        nn.AvgPool2d(3, stride=(1, 2)),
        nn.Dropout(0.3, rng=np.random.default_rng(0)),
        nn.Select(np.array([0, 2]), size=4),
        Gate(
            *(2,), width=0.5, sigma=0.3, noise="uniform", per_sample=True,
            rng=np.random.default_rng(0),
        ),
        md.HardConcrete(
            *(2,), beta=0.5, gamma=-0.2, zeta=1.3, per_sample=True, rng=np.random.default_rng(0)
        ),
        md.GaussianGate(2, sigma=0.7, per_sample=True, rng=np.random.default_rng(0)),
    ],
    ids=lambda module: type(module).__name__,
)  # fmt: skip
def test_every_setting_of_a_layer_comes_back(tmp_path: Path, module: Module) -> None:
    path = tmp_path / "model.safetensors"
    if isinstance(module, Gate):
        module.frozen = True
    plain = ("training", "rng")
    md.save(path, nn.Sequential(module))
    loaded = md.load(path)[0]
    assert type(loaded) is type(module)
    kept = {name: value for name, value in vars(module).items() if name not in plain}
    assert vars(loaded).keys() - set(plain) == kept.keys()
    for name, value in kept.items():
        found = getattr(loaded, name)
        if isinstance(value, md.Tensor | np.ndarray):
            assert np.array_equal(getattr(found, "data", found), getattr(value, "data", value))
        else:
            assert found == value, name


@given(networks())
@in_one_directory
def test_any_network_comes_back(tmp_path: Path, network: Network) -> None:
    path = tmp_path / "model.safetensors"
    md.save(path, network.model)
    loaded = md.load(path)
    assert same_state(loaded, network.model)
    for training in (False, True):  # in training dropout goes on with the same random numbers
        expected = run(network.model, network.shape, training)
        np.testing.assert_array_equal(run(loaded, network.shape, training), expected)


@given(networks())
@settings(max_examples=50)
def test_a_deep_copy_is_the_same_and_apart(network: Network) -> None:
    twin = copy.deepcopy(network.model)
    assert same_state(twin, network.model)
    expected = run(copy.deepcopy(network.model), network.shape, True)
    np.testing.assert_array_equal(run(twin, network.shape, True), expected)
    before = network.model.state_dict()
    for parameter in twin.parameters():
        parameter.data[...] = 7
    for name, value in network.model.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


def test_a_deep_copy_keeps_gates_and_generators_shared() -> None:
    gate = Gate(3, noise="normal", rng=np.random.default_rng(0))
    rng = np.random.default_rng(1)
    layers = [Gated(nn.Linear(3, 3, rng=rng), outputs=gate) for _ in range(2)]
    for model in (copy.deepcopy(nn.Sequential(*layers)), nn.Sequential(*layers)):
        first, second = model.layers
        assert first.outputs is second.outputs
        assert len(model.parameters()) == 5


def test_what_is_shared_is_shared_again(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    gate = Gate(3, noise="normal", rng=rng)
    dense = nn.Linear(3, 3, rng=rng)
    model = nn.Sequential(a=Gated(dense, outputs=gate), b=nn.Dropout(0.5, rng=rng), c=dense, d=gate)
    md.save(tmp_path / "m", model)
    a, b, c, d = md.load(tmp_path / "m").layers
    assert a.layer is c
    assert a.outputs is d
    assert a.outputs.rng is b.rng


def test_a_parameter_of_two_layers_is_an_error(tmp_path: Path) -> None:
    a, b = (nn.Linear(3, 3, rng=np.random.default_rng(0)) for _ in range(2))
    b.weight = a.weight
    with pytest.raises(CheckpointError, match=r"0\.weight and 1\.weight are one parameter"):
        md.save(tmp_path / "m", nn.Sequential(a, b))
    assert list(tmp_path.iterdir()) == []


def test_a_sequential_in_two_places_is_an_error(tmp_path: Path) -> None:
    part = nn.Sequential(nn.ReLU())
    with pytest.raises(CheckpointError, match="a and b are one Sequential"):
        md.save(tmp_path / "m", nn.Sequential(a=part, b=part))


@pytest.mark.parametrize("odd", [np.ones(2), {1, 2}, float("nan"), object()])
def test_info_that_is_not_of_jsons_types_is_an_error(tmp_path: Path, odd: Any) -> None:
    with pytest.raises(CheckpointError, match="not of JSON's types"):
        md.save(tmp_path / "m", nn.Sequential(), odd=odd)
    with pytest.raises(CheckpointError, match="state/x is int32"):
        Checkpoint(nn.Sequential(), {}, {"x": np.ones(3, np.int32)}).write(tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


def test_a_generator_that_could_not_be_restored_is_not_saved(tmp_path: Path) -> None:
    rng = np.random.Generator(np.random.Philox(0))
    with pytest.raises(CheckpointError, match="a generator is 'Philox'; expected one of PCG64"):
        md.save(tmp_path / "model", nn.Sequential(nn.Dropout(0.5, rng=rng)))
    assert not list(tmp_path.iterdir())


def test_writers_do_not_disturb_each_other(tmp_path: Path) -> None:
    path, texts = tmp_path / "file", [bytes([i]) * 100_000 for i in range(2)]
    write_whole(path, texts[0])
    with ThreadPoolExecutor(3) as pool:
        writers = [
            pool.submit(lambda t=t: [write_whole(path, t) for _ in range(50)]) for t in texts
        ]
        while not all(writer.done() for writer in writers):
            assert path.read_bytes() in texts
        for writer in writers:
            writer.result()
    assert list(tmp_path.iterdir()) == [path]


def test_a_module_that_cannot_be_described_is_named(tmp_path: Path) -> None:
    class Strange(Module):
        pass

    with pytest.raises(CheckpointError, match=r"inner\.0 is a Strange"):
        md.save(tmp_path / "m", nn.Sequential(inner=nn.Sequential(Strange())))
    assert list(tmp_path.iterdir()) == []


def test_the_file_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m"
    md.save(path, nn.Sequential(nn.Linear(2, 2, rng=np.random.default_rng(0))))
    before = path.read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        md.save(path, nn.Sequential(nn.Linear(3, 3, rng=np.random.default_rng(0))))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind", GENERATORS)
@given(seed=seeds, drawn=st.integers(0, 5))
@settings(max_examples=20)
def test_a_generator_goes_on_where_it_was(kind: str, seed: int, drawn: int) -> None:
    rng = np.random.Generator(getattr(np.random, kind)(seed))
    rng.integers(0, 9, drawn, np.uint8)
    rng.standard_normal(drawn)
    again = restore_generator(json.loads(json.dumps(generator_state(rng))))
    np.testing.assert_array_equal(
        again.integers(0, 99, 7, np.uint8), rng.integers(0, 99, 7, np.uint8)
    )
    np.testing.assert_array_equal(again.random(9), rng.random(9))


@given(seeds, st.sampled_from([SGD, Adam]))
@settings(max_examples=20)
def test_an_optimiser_goes_on_to_the_same_bits(seed: int, kind: type) -> None:
    rng = np.random.default_rng(seed)
    settings = {"momentum": 0.9} if kind is SGD else {}

    def pair() -> tuple[list[nn.Parameter], Any]:
        parameters = [nn.Parameter(np.ones(shape)) for shape in ((2, 3), (4,), ())]
        return parameters, kind(parameters, lr=0.1, **settings)

    def step(parameters: list[nn.Parameter], optimiser: Any, grads: list[np.ndarray]) -> None:
        for parameter, grad in zip(parameters[:2], grads, strict=False):  # one never moves
            parameter.grad = grad
        optimiser.step()

    grads = [[rng.standard_normal((2, 3)), rng.standard_normal(4)] for _ in range(4)]
    (straight, one), (before, two), (after, three) = pair(), pair(), pair()
    for g in grads:
        step(straight, one, g)
    for g in grads[:2]:
        step(before, two, g)
    for old, new in zip(before, after, strict=True):
        new.data = old.data.copy()
    state = two.state_dict()
    three.load_state_dict(state)
    for g in grads[2:]:
        step(after, three, g)
    for a, b in zip(straight, after, strict=True):
        np.testing.assert_array_equal(a.data, b.data)
    assert state.keys() == two.state_dict().keys()


def test_an_optimisers_state_that_does_not_fit_names_every_mismatch() -> None:
    optimiser = Adam([nn.Parameter(np.ones(3)), nn.Parameter(np.ones((2, 2)))])
    state = {
        "0.0.mean": np.ones(2),
        "0.0.square": np.ones(3),
        "0.2.mean": np.ones(3),
        "0.1.steps": np.ones(1),
        "velocity": np.ones(1),
    }
    with pytest.raises(ValueError, match="the state does not fit this Adam") as error:
        optimiser.load_state_dict(state)
    for words in (
        r"0.0.mean has shape (2,), not (3,)",
        "0.0.steps is missing",
        "0.1.mean is missing",
        "0.1.square is missing",
        "0.2.mean is unknown",
        "velocity is unknown",
    ):
        assert words in str(error.value)
    assert optimiser.state_dict() == {}


# -- damage ------------------------------------------------------------------------------------


def example() -> Checkpoint:
    """One of each layer, small, with all that a training run keeps beside it."""
    rng = np.random.default_rng(0)
    conv = nn.Conv2d(1, 2, 2, padding=1, rng=rng)
    model = nn.Sequential(
        conv=Gated(
            conv,
            outputs=Gate(2, noise="normal", rng=rng),
            weights=md.Mask(Gate(2), md.Groups.along(conv.weight.shape, 0)),
        ),
        pool=nn.MaxPool2d(2, relu=True),
        flatten=nn.Flatten(),
        select=nn.Select([0, 3], size=8),
        drop=nn.Dropout(0.5, rng=rng),
        dense=nn.Linear(2, 3, rng=rng),
    )
    return Checkpoint(model, {"step": 3}, {"weights.0.0.velocity": np.ones(3, np.float32)})


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("good") / "checkpoint"
    example().write(path)
    return path.read_bytes()


def refused(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    with pytest.raises(CheckpointError) as error:
        Checkpoint.read(path)
    assert str(path) in str(error.value)
    return str(error.value)


def regions(data: bytes) -> dict[str, range]:
    header = struct.unpack("<Q", data[:8])[0]
    text = data.index(b'"minidiff"')
    return {
        "length of the header": range(8),
        "header": range(8, text),
        "description": range(text, 8 + header),
        "tensors": range(8 + header, len(data) - 8),
        "end": range(len(data) - 8, len(data)),
    }


@pytest.mark.parametrize(
    "region", ["length of the header", "header", "description", "tensors", "end"]
)
def test_no_flipped_bit_goes_unnoticed(region: str, good: bytes, tmp_path: Path) -> None:
    # The library writes the metadata in any order, so regions are found, not assumed.
    path, rng, unharmed = tmp_path / "checkpoint", np.random.default_rng(0), 0
    places = regions(good)[region]
    assert len(places) > 0
    original = example()
    for place in places:
        data = bytearray(good)
        data[place] ^= 1 << rng.integers(8)
        path.write_bytes(data)
        try:
            loaded = Checkpoint.read(path)
        except CheckpointError:
            pass
        else:  # white space in place of other white space, at most
            unharmed += 1
            assert same_state(loaded.model, original.model)
            assert loaded.info == original.info
    assert unharmed <= 8


def test_no_cut_goes_unnoticed(good: bytes, tmp_path: Path) -> None:
    for length in range(len(good)):
        refused(tmp_path / "checkpoint", good[:length])
    refused(tmp_path / "checkpoint", good + b"\0")


@given(st.binary(max_size=300))
@in_one_directory
def test_anything_else_is_no_checkpoint(tmp_path: Path, data: bytes) -> None:
    refused(tmp_path / "checkpoint", data)


@given(st.data())
@in_one_directory
def test_bytes_in_place_of_others_are_noticed(
    tmp_path: Path, good: bytes, data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, len(good) - 1))
    new = data.draw(st.binary(min_size=1, max_size=64))
    changed = good[:start] + new + good[start + len(new) :]
    if changed != good:
        path = tmp_path / "checkpoint"
        path.write_bytes(changed)
        try:
            loaded = Checkpoint.read(path)
        except CheckpointError:
            return
        assert same_state(loaded.model, example().model)


def test_no_file_and_no_file_at_all(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is a directory; expected a file"):
        md.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such checkpoint"):
        md.load(tmp_path / "nothing")


# -- hostile files, whose checksum is right ----------------------------------------------------


def forged(path: Path, change: Any) -> str:
    """Write the example with something changed, with the right checksum; return the error."""
    example().write(path)
    arrays = safetensors.load(path.read_bytes())
    with __import__("safetensors").safe_open(path, "np") as file:
        content = json.loads(file.metadata()["minidiff"])
    content = change(content, arrays) or content
    text = content if isinstance(content, str) else json.dumps(content)
    metadata = {"minidiff": text, "sha256": _digest(text, arrays)}
    return refused(path, safetensors.save(arrays, metadata=metadata))


def put(*keys: Any, value: Any) -> Any:
    def change(content: Any, _: Any) -> None:
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value

    return change


def array(name: str, value: Any) -> Any:
    def change(_: Any, arrays: dict[str, np.ndarray]) -> None:
        if value is None:
            del arrays[name]
        else:
            arrays[name] = value

    return change


LAYER = ("architecture", "layers")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            put("format", value=FORMAT + 1),
            "it is of format 3, and this version of minidiff reads format 2",
        ),
        (lambda content, _: "[" * 100_000, "does not hold a network"),
        (lambda content, _: "null", "does not hold a network"),
        (lambda content, _: "{}", "does not hold a network"),
        (put(*LAYER, "dense", "type", value="os.system"), "which is no layer of minidiff"),
        (put(*LAYER, "dense", "type", value=["Linear"]), "which is no layer of minidiff"),
        (put(*LAYER, "dense", "type", value="Gate"), "does not hold a network"),
        (put(*LAYER, "dense", value={"type": "shared", "name": "dense"}), "hold a network"),
        (put(*LAYER, "dense", "in_features", value=10**15), "does not hold a network"),
        (put(*LAYER, "select", "size", value=-1), "does not hold a network"),
        (put(*LAYER, "pool", "kernel", value="../../etc/passwd"), "does not hold a network"),
        (put(*LAYER, "pool", "kernel", value=[0, 2]), "does not hold a network"),
        (put(*LAYER, "drop", "p", value="1"), "does not hold a network"),
        (put(*LAYER, "drop", "rng", value=99), "does not hold a network"),
        (put(*LAYER, "conv", "outputs", "width", value=-1), "does not hold a network"),
        (put(*LAYER, "conv", "outputs", "noise", value="__import__('os')"), "hold a network"),
        (put("generators", 0, "bit_generator", value="__class__"), "a generator is '__class__'"),
        (put("generators", 0, "state", value={"state": "x"}), "does not hold a network"),
        (put("generators", 0, "state", "state", value=2**200), "does not hold a network"),
        (put("generators", 0, "has_uint32", value=2**70), "does not hold a network"),
        (put("generators", 0, "bit_generator", value="MT19937"), "a generator is 'MT19937'"),
        (put(*LAYER, "conv", "outputs", "width", value=10**400), "does not hold a network"),
        (put(*LAYER, "dense", value={"type": "shared", "name": ""}), "does not hold a network"),
        (put("architecture", value={"type": "Sequential", "layers": []}), "hold a network"),
        (array("../../home/x", np.zeros(1)), "belong to no layer: ../../home/x"),
        (array("dense.weight", None), "dense.weight"),
        (array("dense.weight", np.zeros((3, 2), np.int64)), "dense.weight is int64"),
        (array("dense.weight", np.zeros((3, 2, 1, 1), np.float32)), "does not fit a Linear"),
        (array("dense.weight", np.zeros((3, 0), np.float32)), "does not hold a network"),
        (array("dense.weight", np.zeros((3, 2), np.float16)), "of dtype F16; expected one of F32"),
        (array("dense.bias", np.zeros(4, np.float32)), r"dense.bias is float32 of shape (4,), not"),
        (array("dense.bias", np.zeros(3, np.float64)), "dense.bias is float64 of shape (3,), not"),
        (array("conv.outputs.phi", np.zeros(9, np.float32)), "outputs gate has 9 groups"),
        (array("conv.weights.0.groups", np.array([5, 7])), "labels run from 5"),
        (array("select.indices", np.array([3, 0])), "do not increase"),
        (array("select.indices", np.array([0.5])), "expected a list of integers"),
    ],
)
def test_a_hostile_file_is_an_error(change: Any, message: str, tmp_path: Path) -> None:
    assert message in forged(tmp_path / "checkpoint", change)


def test_sizes_that_the_file_does_not_hold_are_an_error(tmp_path: Path) -> None:
    for size, shape in ((2**62, [2**31, 2**31]), (4, [2**62, 2**62]), (8, [10**30]), (4, [-1])):
        header = {"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}}
        text = json.dumps(header).encode()
        for length in (len(text), 2**63, 2**31):
            refused(tmp_path / "checkpoint", struct.pack("<Q", length) + text + b"\0" * 4)


def test_a_safetensors_file_of_others_is_refused(tmp_path: Path) -> None:
    assert "was not written by minidiff" in refused(
        tmp_path / "checkpoint", safetensors.save({"x": np.zeros(3, np.float32)})
    )


def test_a_frozen_gate_is_frozen_again_after_loading(tmp_path: Path) -> None:
    gates = [md.Gate(3, noise="normal", rng=np.random.default_rng(0)) for _ in range(2)]
    gates[1].frozen = True
    md.save(tmp_path / "gates.safetensors", md.nn.Sequential(*gates))
    loaded = md.load(tmp_path / "gates.safetensors")
    assert [gate.frozen for gate in md.gates_of(loaded).values()] == [False, True]


def test_arguments_of_save_the_other_way_round_are_told(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"expected save\(path, model\)"):
        md.save(md.nn.Sequential(md.nn.ReLU()), tmp_path / "model.safetensors")  # type: ignore[arg-type]  # wrong on purpose


@pytest.mark.parametrize("ending", [".onnx", ".npz"])
def test_names_of_exported_files_are_neither_saved_to_nor_loaded(
    tmp_path: Path, ending: str
) -> None:
    path, model = tmp_path / f"model{ending}", md.nn.Sequential(md.nn.ReLU())
    with pytest.raises(CheckpointError, match=r"minidiff\.export\(path, model, shape\)"):
        md.save(path, model)
    assert not path.exists()
    path.write_bytes(b"PK")
    with pytest.raises(CheckpointError, match="was exported for other software"):
        md.load(path)


def test_a_sequential_that_holds_more_than_layers_is_an_error(tmp_path: Path) -> None:
    class Scaled(nn.Sequential):
        def __init__(self, *layers: nn.Module) -> None:
            super().__init__(*layers)
            self.scale = nn.Parameter([2.0])
            self.parts = [nn.ReLU()]

    with pytest.raises(CheckpointError, match=r"a Scaled, holds more than layers: parts.0, scale"):
        md.save(tmp_path / "x.safetensors", Scaled(nn.ReLU()))
    assert not list(tmp_path.iterdir())
