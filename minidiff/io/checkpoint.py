"""Checkpoints: a network, and what else it takes to go on training, in one safe file.

The file is of the safetensors format: a header in JSON, then arrays. Nothing in it is ever
executed. Its metadata hold two texts:

``minidiff``
    JSON: the number of the format, the architecture as a tree of layers and their settings, the
    states of random generators, and ``info``, whatever the writer adds. Sizes are not settings;
    they are those of the arrays.
``sha256``
    The digest of that text and of all arrays. A file that was altered by accident does not load.

Arrays have the names of the parameters they are for, such as ``conv1.layer.weight``; those behind
``state/`` belong to the writer, an optimiser say.
"""

import errno
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minidiff.engine import nn
from minidiff.engine.nn import Module, Sequential
from minidiff.io.extras import extra
from minidiff.io.files import write_whole
from minidiff.pruning.baselines import GaussianGate, HardConcrete
from minidiff.pruning.gates import Gate, Gated, Mask
from minidiff.pruning.groups import Groups

__all__ = [
    "MALFORMED",
    "Checkpoint",
    "CheckpointError",
    "generator_state",
    "load",
    "restore_generator",
    "save",
]

FORMAT = 2
STATE = "state/"
EXPORTED = (".onnx", ".npz")  # endings of what is written for other software
DTYPES = {"F32": np.float32, "F64": np.float64, "I64": np.int64}
# Others are not restored: NumPy does not check all that a file might say of their states.
GENERATORS = ("PCG64", "PCG64DXSM", "SFC64")

Arrays = dict[str, NDArray[Any]]

#: What reading something that is not as expected may raise.
MALFORMED = (
    ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError,
)  # fmt: skip


class CheckpointError(ValueError):
    """A file that is no checkpoint, or a damaged one, or a network that fits in none."""


@dataclass
class Checkpoint:
    """What a checkpoint holds.

    Attributes
    ----------
    model : Module
    info : dict
        What the writer has added, of JSON's types.
    state : dict of ndarray
        Arrays beside those of the model; float32, float64 or int64.

    Examples
    --------
    >>> import tempfile
    >>> model = Sequential(nn.Linear(4, 3, rng=np.random.default_rng(0)))
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     Checkpoint(model, {"step": 7}).write(f"{directory}/model.safetensors")
    ...     Checkpoint.read(f"{directory}/model.safetensors").info
    {'step': 7}
    """

    model: Module
    info: dict[str, Any] = field(default_factory=dict)
    state: Arrays = field(default_factory=dict)

    def write(self, path: str | Path) -> None:
        """Write the file, whole or not at all; CheckpointError if the model cannot be described."""
        described = _Description()
        content = {
            "format": FORMAT,
            "architecture": described.of(self.model, ""),
            "generators": [generator_state(rng) for rng in described.generators],
            "info": self.info,
        }
        try:
            text = json.dumps(content, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise CheckpointError(
                f"what is to be kept beside the network is not of JSON's types: {error}. Expected "
                f"finite numbers, texts, lists and dictionaries."
            ) from error
        arrays = described.arrays | {STATE + name: array for name, array in self.state.items()}
        odd = [f"{k} is {v.dtype}" for k, v in arrays.items() if v.dtype not in DTYPES.values()]
        if odd:
            raise CheckpointError(f"{odd[0]}; expected float32, float64 or int64.")
        arrays = {name: np.asarray(array, order="C") for name, array in arrays.items()}
        metadata = {"minidiff": text, "sha256": _digest(text, arrays)}
        save_bytes = extra("safetensors.numpy", "safetensors").save
        write_whole(path, save_bytes(arrays, metadata=metadata))

    @classmethod
    def read(cls, path: str | Path) -> "Checkpoint":
        """Read a file; CheckpointError says what is wrong with it."""
        path = Path(path)
        text, arrays = _contents(path)
        try:
            content = json.loads(text)
            if content["format"] != FORMAT:
                raise ValueError(
                    f"it is of format {content['format']}, and this version of minidiff reads "
                    f"format {FORMAT}; read it with the version that has written it"
                )
            generators = [restore_generator(state) for state in content["generators"]]
            state = {name: arrays.pop(name) for name in list(arrays) if name.startswith(STATE)}
            model = _Builder(arrays, generators).build(content["architecture"], "")
            state = {name.removeprefix(STATE): array for name, array in state.items()}
            return cls(model, content["info"], state)
        except MALFORMED as error:
            reason = error if type(error) is ValueError else repr(error)
            raise CheckpointError(f"{path} does not hold a network: {reason}.") from error


def save(path: str | Path, model: Module, **info: Any) -> None:
    """Write a network to a file, whole or not at all; :func:`load` reads it.

    Parameters
    ----------
    path
        Of the file; ``.safetensors`` is the usual ending.
    model
        Of Sequential, Gate, Gated and the layers of :mod:`minidiff.engine.nn`. Subclasses of
        Sequential that add nothing to ``forward`` are written as Sequential.
    info
        Anything of JSON's types to keep beside it.

    Raises
    ------
    CheckpointError
        If the model holds a module of another class, two layers share a parameter, ``info`` is
        not such, or the ending is that of another format.
    TypeError
        If ``model`` is no module.
    OSError
        If the file cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> model = Sequential(nn.Linear(4, 3, rng=np.random.default_rng(0)))
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     save(f"{directory}/model.safetensors", model)
    ...     same = load(f"{directory}/model.safetensors")
    >>> bool((same.layers[0].weight.data == model.layers[0].weight.data).all())
    True
    """
    if not isinstance(model, Module):
        raise TypeError(f"the model is a {type(model).__name__}; expected save(path, model).")
    if Path(path).suffix in EXPORTED:
        raise CheckpointError(
            f"{path} is the name of another format, which minidiff.export(path, model, shape) "
            f"writes; expected .safetensors."
        )
    Checkpoint(model, info).write(path)


def load(path: str | Path) -> Module:
    """Read a network that :func:`save` or a training run has written.

    Modules and generators that were shared are shared again. The network is as when new: in
    training, and all its parameters require a gradient.

    Parameters
    ----------
    path
        Of the file.

    Raises
    ------
    FileNotFoundError
        If there is none.
    CheckpointError
        If it is damaged, or none of minidiff's; the error says what is wrong.

    Examples
    --------
    See :func:`save`.
    """
    return Checkpoint.read(path).model


# -- the file ----------------------------------------------------------------------------------


def _contents(path: Path) -> tuple[str, Arrays]:
    """Read the description and the arrays, which are what was written."""
    if not path.exists():
        raise FileNotFoundError(errno.ENOENT, "there is no such checkpoint", str(path))
    if path.is_dir():
        raise CheckpointError(
            f"{path} is a directory; expected a file, such as checkpoint.safetensors in a run."
        )
    if path.suffix in EXPORTED:
        raise CheckpointError(
            f"{path} was exported for other software; minidiff reads .safetensors, which "
            f"minidiff.export writes as well."
        )
    safe_open = extra("safetensors").safe_open
    problem = extra("safetensors").SafetensorError
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            odd = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 - it is no dict
            odd = {name: dtype for name, dtype in odd.items() if dtype not in DTYPES}
            if odd:
                name, dtype = next(iter(odd.items()))
                raise CheckpointError(
                    f"{path}: {name} is of dtype {dtype}; expected one of {', '.join(DTYPES)}."
                )
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - likewise
    except (OSError, problem, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint: {error}. It is damaged, cut short, or none."
        ) from error
    if not {"minidiff", "sha256"} <= metadata.keys():
        raise CheckpointError(f"{path} was not written by minidiff: it describes no network.")
    if _digest(metadata["minidiff"], arrays) != metadata["sha256"]:
        raise CheckpointError(
            f"{path} is damaged: its contents do not match their checksum. "
            f"Take a copy of it, if there is one, or train again."
        )
    return metadata["minidiff"], arrays


def _digest(text: str, arrays: Mapping[str, NDArray[Any]]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"\n{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.data if array.size else b"")
    return digest.hexdigest()


# -- generators --------------------------------------------------------------------------------


def generator_state(rng: np.random.Generator) -> dict[str, Any]:
    """Return the state of a generator in JSON's types.

    Parameters
    ----------
    rng
        A PCG64, PCG64DXSM or SFC64.

    Raises
    ------
    CheckpointError
        If it is of another kind, which :func:`restore_generator` would refuse.

    Examples
    --------
    >>> generator_state(np.random.default_rng(0))["bit_generator"]
    'PCG64'
    """
    name = type(rng.bit_generator).__name__
    if name not in GENERATORS:
        raise CheckpointError(f"a generator is {name!r}; expected one of {', '.join(GENERATORS)}.")
    state: dict[str, Any] = json.loads(
        json.dumps(rng.bit_generator.state, default=np.ndarray.tolist)
    )
    return state


def restore_generator(state: Mapping[str, Any]) -> np.random.Generator:
    """Return a generator in a state as of :func:`generator_state`.

    Parameters
    ----------
    state
        Of a PCG64, PCG64DXSM or SFC64.

    Raises
    ------
    ValueError
        If it is of another kind.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> again = restore_generator(generator_state(rng))
    >>> rng.random() == again.random()
    True
    """
    name = state["bit_generator"]
    if name not in GENERATORS:
        raise ValueError(f"a generator is {name!r}; expected one of {', '.join(GENERATORS)}")
    bits = getattr(np.random, name)()
    bits.state = _with_arrays(state)
    return np.random.Generator(bits)


def _with_arrays(value: Any) -> Any:
    """Put arrays in place of lists, as NumPy wants them."""
    if isinstance(value, Mapping):
        return {key: _with_arrays(part) for key, part in value.items()}
    return np.array(value, np.uint64) if isinstance(value, list) else value


# -- the architecture --------------------------------------------------------------------------

# Each class of layers: its arrays, and its settings of JSON's types.
LAYERS: dict[type[Module], tuple[tuple[str, ...], tuple[str, ...]]] = {
    nn.Conv2d: (("weight", "bias"), ("stride", "padding")),
    nn.Linear: (("weight", "bias"), ()),
    nn.MaxPool2d: ((), ("kernel", "stride", "relu")),
    nn.AvgPool2d: ((), ("kernel", "stride")),
    nn.ReLU: ((), ()),
    nn.Dropout: ((), ("p",)),
    nn.Flatten: ((), ()),
    nn.Select: (("indices",), ("size",)),
    Gate: (("phi",), ("width", "noise", "sigma", "per_sample", "frozen")),
    HardConcrete: (("phi",), ("beta", "gamma", "zeta", "per_sample", "frozen")),
    GaussianGate: (("phi",), ("sigma", "per_sample", "frozen")),
}


class _Description:
    """Describes modules as JSON; gathers their arrays and generators."""

    def __init__(self) -> None:
        self.arrays: Arrays = {}
        self.generators: list[np.random.Generator] = []
        self._names: dict[int, str] = {}  # of modules described before
        self._owners: dict[int, str] = {}  # of parameters

    def of(self, module: Module, name: str) -> dict[str, Any]:
        """Describe a module; ``name`` is dotted, and empty for the whole network."""
        if id(module) in self._names:
            if isinstance(module, Sequential):
                raise CheckpointError(
                    f"{self._names[id(module)]} and {name} are one Sequential; expected one for "
                    f"each. Single layers and gates may be shared."
                )
            return {"type": "shared", "name": self._names[id(module)]}
        self._names[id(module)] = name
        prefix = f"{name}." if name else ""
        if isinstance(module, Sequential) and type(module).forward is Sequential.forward:
            layers = {key: self.of(layer, prefix + key) for key, layer in module.items()}
            held = (*module.children(), *module.named_parameters())
            more = [key for key, _ in held if key.partition(".")[0] not in layers]
            if more:
                raise CheckpointError(
                    f"{name or 'the model'}, a {type(module).__name__}, holds more than layers: "
                    f"{', '.join(more)}. That a checkpoint cannot "
                    f"describe; save model.state_dict() instead."
                )
            return {"type": "Sequential", "layers": layers}
        if type(module) is Gated:
            parts = {key: self.of(part, prefix + key) for key, part in module.children()}
            return {"type": "Gated", **parts}
        if type(module) is Mask:
            self.arrays[f"{prefix}groups"] = module.groups.labels
            return {"type": "Mask", "gate": self.of(module.gate, f"{prefix}gate")}
        if type(module) not in LAYERS:
            raise CheckpointError(
                f"{name or 'the model'} is a {type(module).__name__}, which a checkpoint cannot "
                f"describe; save model.state_dict() instead."
            )
        arrays, settings = LAYERS[type(module)]
        for key in arrays:
            self._take(prefix + key, getattr(module, key))
        described = {key: getattr(module, key) for key in settings}
        rng: np.random.Generator | None = getattr(module, "rng", None)
        if rng is not None:
            described["rng"] = self._generator(rng)
        return {"type": type(module).__name__, **described}

    def _take(self, name: str, value: Any) -> None:
        owner = self._owners.setdefault(id(value), name)
        if owner != name:
            raise CheckpointError(f"{owner} and {name} are one parameter; expected one for each.")
        self.arrays[name] = value.data if isinstance(value, nn.Parameter) else value

    def _generator(self, rng: np.random.Generator) -> int:
        for number, known in enumerate(self.generators):
            if known is rng:
                return number
        self.generators.append(rng)
        return len(self.generators) - 1


class _Builder:
    """Builds modules from descriptions and arrays."""

    def __init__(self, arrays: Arrays, generators: list[np.random.Generator]) -> None:
        self.arrays, self.generators = arrays, generators
        self._modules: dict[str, Module] = {}

    def build(self, spec: dict[str, Any], name: str) -> Module:
        """Build the whole network; every array must have found its place."""
        model = self._module(spec, name)
        if self.arrays:
            raise ValueError(f"arrays belong to no layer: {', '.join(sorted(self.arrays))}")
        return model

    def _module(self, spec: dict[str, Any], name: str) -> Module:
        settings = dict(spec)
        kind = settings.pop("type")
        if kind == "shared":
            return self._modules[settings["name"]]  # no Sequential, or a tree might unfold for ever
        prefix = f"{name}." if name else ""
        module: Module
        if kind == "Sequential":
            layers = settings["layers"].items()
            return Sequential(**{key: self._module(part, prefix + key) for key, part in layers})
        if kind == "Gated":
            parts: dict[str, Any] = {"weights": [], "biases": []}
            for key, part in settings.items():
                role, _, number = key.partition(".")
                built = self._module(part, prefix + key)
                if number:
                    parts[role].append(built)
                else:
                    parts[role] = built
            module = Gated(**parts)
        elif kind == "Mask":
            groups = Groups(self.arrays.pop(f"{prefix}groups"))
            module = Mask(self._module(settings["gate"], f"{prefix}gate"), groups)  # type: ignore[arg-type]  # checked by use
        else:
            module = self._layer(kind, settings, prefix)
        self._modules[name] = module
        return module

    def _layer(self, kind: str, settings: dict[str, Any], prefix: str) -> Module:
        layer = next((c for c in LAYERS if c.__name__ == kind), None)
        if layer is None:
            raise ValueError(f"{prefix[:-1]} is a {kind!r}, which is no layer of minidiff")
        arrays = {key: self.arrays.pop(prefix + key) for key in LAYERS[layer][0]}
        number = settings.pop("rng", None)
        if number is not None:
            settings["rng"] = self.generators[number]
        frozen = settings.pop("frozen", False)
        make: Callable[..., Module] = layer
        if layer is nn.Select:
            return nn.Select(arrays["indices"], **settings)
        if issubclass(layer, Gate):
            arguments = [len(arrays["phi"])]
            settings["dtype"] = arrays["phi"].dtype
        elif layer in (nn.Conv2d, nn.Linear):
            arguments = self._sizes(layer, arrays["weight"], prefix)
            settings |= {"rng": np.random.default_rng(0), "dtype": arrays["weight"].dtype}
        else:
            return make(**settings)
        module = make(*arguments, **settings)
        wrong = [
            f"{prefix}{key} is {array.dtype} of shape {array.shape}, not "
            f"{getattr(module, key).dtype} of shape {getattr(module, key).shape}"
            for key, array in arrays.items()
            if (array.dtype, array.shape)
            != (getattr(module, key).dtype, getattr(module, key).shape)
        ]
        if wrong:
            raise ValueError(f"arrays do not fit: {'; '.join(wrong)}")
        module.load_state_dict(arrays)
        if isinstance(module, Gate):
            module.frozen = bool(frozen)
        return module

    @staticmethod
    def _sizes(layer: type[Module], weight: NDArray[Any], prefix: str) -> list[Any]:
        outputs, inputs, *kernel = weight.shape
        if len(kernel) != (2 if layer is nn.Conv2d else 0) or weight.dtype.kind != "f":
            raise ValueError(
                f"{prefix}weight is {weight.dtype} of shape {weight.shape}, which does not fit a "
                f"{layer.__name__}"
            )
        return [inputs, outputs, *([tuple(kernel)] if kernel else [])]
