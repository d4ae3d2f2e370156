"""Checkpoints: a network, and what else it takes to go on training, in one safe file.

The file is of the safetensors format: a header in JSON, then arrays. Nothing in it is ever
executed. Its metadata hold two texts:

``minidiff``
    JSON: the number of the format, the architecture as a tree of layers and their settings, the
    states of random generators, and ``info``, whatever the writer adds.
``sha256``
    The digest of that text and of all arrays. A file that was altered by accident does not load.

Arrays have the names of the parameters they are for, such as ``conv1.layer.weight``; arrays with
names behind ``state/`` belong to the writer, an optimiser for instance. Of a parameter with fixed
zeros the array holds the other elements alone, in order, and ``conv1.layer.weight.gaps`` holds the
number of zeros in front of each, as small integers.
"""

import errno
import hashlib
import inspect
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minidiff.engine.arrays import Array, Elements, Shape
from minidiff.engine.module import Module, Parameter, Sequential
from minidiff.engine.nn import Weighted
from minidiff.pruning.gates import Gate
from minidiff.pruning.groups import Groups

from .extras import extra
from .files import require_file, words, write_whole

__all__ = ["MALFORMED", "Checkpoint", "CheckpointError", "load", "save", "stored_bytes"]

FORMAT = 3
STATE = "state/"
EXPORTED = (".onnx", ".npz")  # endings of files for other software
DTYPES = {
    "F32": np.float32, "F64": np.float64, "I64": np.int64,
    "U8": np.uint8, "U16": np.uint16, "U32": np.uint32,
}  # fmt: skip
GAPS = ".gaps"
FEWEST = 1 / 1000  # the share of elements from which on a weight is stored by its gaps
# Others are not restored: NumPy does not check all that a file might say of their states.
GENERATORS = ("PCG64", "PCG64DXSM", "SFC64")

Arrays = dict[str, NDArray[Any]]

#: What reading something malformed may raise.
MALFORMED = (
    ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError,
)  # fmt: skip


class CheckpointError(ValueError):
    """A file that is no checkpoint, or a damaged one, or a network that cannot be saved."""


@dataclass
class Checkpoint:
    """The contents of a checkpoint.

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
    >>> from minidiff import nn
    >>> model = nn.Sequential(nn.Linear(4, 3, rng=np.random.default_rng(0)))
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     Checkpoint(model, {"step": 7}).write(f"{directory}/model.safetensors")
    ...     Checkpoint.read(f"{directory}/model.safetensors").info
    {'step': 7}
    """

    model: Module
    info: dict[str, Any] = field(default_factory=dict)
    state: Arrays = field(default_factory=dict)

    def write(self, path: str | Path) -> None:
        """Write the file, whole or not at all; CheckpointError if the model cannot be saved."""
        described = _Description()
        content = {
            "format": FORMAT,
            "architecture": described.module(self.model, ""),
            "generators": [generator_state(rng) for rng in described.generators],
            "info": self.info,
        }
        try:
            text = json.dumps(content, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise CheckpointError(
                f"what is to be saved beside arrays is not of JSON's types: {error}. Expected "
                f"finite numbers, texts, lists and dictionaries."
            ) from error
        arrays = described.arrays | {STATE + name: array for name, array in self.state.items()}
        odd = [f"{k} is {v.dtype}" for k, v in arrays.items() if v.dtype not in DTYPES.values()]
        if odd:
            raise CheckpointError(f"{odd[0]}; expected float32, float64 or int64.")
        arrays = {name: np.asarray(array, order="C") for name, array in arrays.items()}
        _require_readable(text, described.arrays)
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
            if not isinstance(content["info"], dict):
                raise ValueError("its info is no object")
            if content["format"] != FORMAT:
                raise ValueError(
                    f"it is of format {content['format']}, and this version of minidiff reads "
                    f"format {FORMAT}; read it with the version that has written it"
                )
            state = {name: arrays.pop(name) for name in list(arrays) if name.startswith(STATE)}
            model = _build(content, arrays)
            state = {name.removeprefix(STATE): array for name, array in state.items()}
            return cls(model, content["info"], state)
        except MALFORMED as error:
            raise CheckpointError(f"{path} does not hold a network: {reason(error)}.") from error


def save(path: str | Path, model: Module, **info: Any) -> None:
    """Write a network to a file, whole or not at all; :func:`load` reads it.

    Parameters
    ----------
    path
        Of the file; ``.safetensors`` is the usual ending.
    model
        Of modules whose class has ``settings``, as all of minidiff have. Subclasses of Sequential
        that add nothing to ``forward`` are written as Sequential.
    info
        Anything of JSON's types to keep beside it.

    Raises
    ------
    CheckpointError
        If a module cannot be saved, two layers share a parameter, ``info`` is not of JSON's types,
        or the ending is that of another format.
    TypeError
        If ``model`` is no module.
    OSError
        If the file cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> from minidiff import nn
    >>> model = nn.Sequential(nn.Linear(4, 3, rng=np.random.default_rng(0)))
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     save(f"{directory}/model.safetensors", model)
    ...     same = load(f"{directory}/model.safetensors")
    >>> bool((same[0].weight.data == model[0].weight.data).all())
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


def stored_bytes(model: Module, *, dense: bool = False) -> int:
    """Return the bytes of a network's parameters in a checkpoint; with ``dense``, of all zeros too.

    >>> from minidiff import nn
    >>> stored_bytes(nn.Linear(4, 3, rng=np.random.default_rng(0)))
    60
    """
    total = 0
    for _, parameter in model.named_parameters():
        arrays = [parameter.raw] if dense else _stored("", parameter).values()
        total += sum(array.nbytes for array in arrays)
    return total


def load(path: str | Path) -> Module:
    """Read a network that :func:`save` or a training run has written.

    Modules and generators that were shared are shared again. The network is as when new: in
    training, and all its parameters require a gradient. Classes of your own must be defined before.

    Parameters
    ----------
    path
        Of the file.

    Raises
    ------
    FileNotFoundError
        If there is none.
    CheckpointError
        If it is damaged, or not written by minidiff; the error says what is wrong.

    Examples
    --------
    See :func:`save`.
    """
    return Checkpoint.read(path).model


# -- the file ----------------------------------------------------------------------------------


def reason(error: BaseException) -> str:
    """Say on one line what is malformed; most classes need their name, such as KeyError."""
    text = f"{words(error):.300}"
    if not isinstance(error, ValueError):
        text = f"{type(error).__name__}: {text}"
    return text.rstrip(".")


def _contents(path: Path) -> tuple[str, Arrays]:
    """Read the description and the arrays, and check their digest."""
    try:
        require_file(path)
    except FileNotFoundError as error:
        raise FileNotFoundError(errno.ENOENT, "there is no such checkpoint", str(path)) from error
    except OSError as error:
        raise CheckpointError(f"{error}, such as checkpoint.safetensors in a run.") from error
    if path.suffix in EXPORTED:
        raise CheckpointError(
            f"{path} was exported for other software; minidiff reads .safetensors, which "
            f"minidiff.export writes as well."
        )
    safetensors = extra("safetensors")
    try:
        with safetensors.safe_open(path, framework="np") as file:
            metadata, names = file.metadata() or {}, list(file.keys())
            dtypes = {name: file.get_slice(name).get_dtype() for name in names}
            odd = [f"{name} is of dtype {d}" for name, d in dtypes.items() if d not in DTYPES]
            if odd:
                raise CheckpointError(f"{path}: {odd[0]}; expected one of {', '.join(DTYPES)}.")
            arrays = {name: file.get_tensor(name) for name in names}
    except (OSError, safetensors.SafetensorError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint: {words(error)}. It is damaged, cut short, or "
            f"none."
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
    """Return the state of a generator in JSON's types; CheckpointError for an unusual kind."""
    name = type(rng.bit_generator).__name__
    if name not in GENERATORS:
        raise CheckpointError(f"a generator is {name!r}; expected one of {', '.join(GENERATORS)}.")
    text = json.dumps(rng.bit_generator.state, default=np.ndarray.tolist)
    state: dict[str, Any] = json.loads(text)
    return state


def restore_generator(state: Mapping[str, Any]) -> np.random.Generator:
    """Return a generator in the state of :func:`generator_state`; ValueError for another kind."""
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


def _classes(parent: type[Module] = Module) -> Iterator[tuple[str, type[Module]]]:
    """Yield (name, class) for the classes of modules that can be saved."""
    for cls in parent.__subclasses__():
        if cls.settings is not None:
            yield _class_name(cls), cls
        yield from _classes(cls)


def _class_name(cls: type[Module]) -> str:
    ours = cls.__module__.startswith("minidiff.")
    return cls.__name__ if ours else f"{cls.__module__}.{cls.__qualname__}"


class _Description:
    """Describes modules as JSON; gathers their arrays and generators."""

    def __init__(self) -> None:
        self.arrays: Arrays = {}
        self.generators: list[np.random.Generator] = []
        self._names: dict[int, str] = {}  # of modules described before
        self._owners: dict[int, str] = {}  # of parameters

    def module(self, module: Module, name: str) -> dict[str, Any]:
        """Describe a module; ``name`` is dotted, and empty for the whole network."""
        if id(module) in self._names:
            if isinstance(module, Sequential):
                raise CheckpointError(
                    f"{self._names[id(module)]} and {name} are one Sequential; expected one for "
                    f"each. Single layers and gates may be shared."
                )
            return {"type": "shared", "name": self._names[id(module)]}
        self._names[id(module)] = name
        prefix, cls = f"{name}." if name else "", type(module)
        if isinstance(module, Sequential) and cls.forward is Sequential.forward:
            return {"type": "Sequential", "layers": self._layers(module, prefix)}
        if cls.settings is None:
            raise CheckpointError(
                f"{name or 'the model'} cannot be saved: its class {cls.__name__} has no settings. "
                f"Name the arguments of its constructor there, or save model.state_dict() instead."
            )
        for key, value in module.members():
            if isinstance(value, Parameter):
                self._take(prefix + key, value)
            elif isinstance(value, Module) and key.partition(".")[0] not in cls.settings:
                raise CheckpointError(
                    f"{prefix}{key} cannot be saved: {cls.__name__}.settings does not name it. "
                    f"Make it an argument of the constructor, or save model.state_dict() instead."
                )
        settings = {key: self._value(getattr(module, key), prefix + key) for key in cls.settings}
        rng = getattr(module, "rng", None)
        number = None if rng is None else self._number(rng)
        return {"type": _class_name(cls), "settings": settings, "rng": number}

    def _layers(self, module: Sequential, prefix: str) -> dict[str, Any]:
        layers = {key: self.module(layer, prefix + key) for key, layer in module.items()}
        held = [key for key, value in module.members() if isinstance(value, Module | Parameter)]
        more = [key for key in held if key.partition(".")[0] not in layers]
        if more:
            raise CheckpointError(
                f"{prefix[:-1] or 'the model'}, a {type(module).__name__}, holds more than layers: "
                f"{', '.join(more)}. That cannot be saved; save model.state_dict() instead."
            )
        return layers

    def _value(self, value: Any, name: str) -> Any:
        if isinstance(value, Module):
            return self.module(value, name)
        if isinstance(value, Groups):
            self.arrays[name] = value.labels
            return {"type": "Groups"}
        if isinstance(value, list | tuple):
            return [self._value(item, f"{name}.{i}") for i, item in enumerate(value)]
        return value.tolist() if isinstance(value, np.ndarray | np.generic) else value

    def _take(self, name: str, parameter: Parameter) -> None:
        owner = self._owners.setdefault(id(parameter), name)
        if owner != name:
            raise CheckpointError(f"{owner} and {name} are one parameter; expected one for each.")
        self.arrays |= _stored(name, parameter)

    def _number(self, rng: np.random.Generator) -> int:
        for number, known in enumerate(self.generators):
            if known is rng:
                return number
        self.generators.append(rng)
        return len(self.generators) - 1


def _require_readable(text: str, arrays: Arrays) -> None:
    """Build the model of a description: what is written can be read again."""
    try:
        _build(json.loads(text), dict(arrays))
    except MALFORMED as error:
        raise CheckpointError(
            f"a module cannot be built again from its settings: {reason(error)}. Expected "
            f"settings that name arguments of its constructor."
        ) from error


def _build(content: Mapping[str, Any], arrays: Arrays) -> Module:
    """Build the model of a description; raises one of MALFORMED if anything is not as described."""
    generators = [restore_generator(state) for state in content["generators"]]
    model = _Builder(arrays, generators).module(content["architecture"], "")
    for rng, state in zip(generators, content["generators"], strict=True):
        rng.bit_generator.state = _with_arrays(state)  # a constructor may have drawn from it
    if arrays:  # every array must have found its place
        raise ValueError(f"arrays belong to no layer: {', '.join(sorted(arrays))}")
    described = json.dumps(_Description().module(model, ""))
    if json.loads(described) != content["architecture"]:  # 1 for true, or a list for a number
        raise ValueError("a layer has a setting of another type")
    return model


class _BoundedGenerator(np.random.Generator):
    """Draws the weights that arrays replace, but no more than the arrays hold.

    Otherwise a small file could ask for more memory than the machine has.
    """

    def __init__(self, most: int) -> None:
        super().__init__(np.random.PCG64(0))
        self.most = most

    def standard_normal(self, size: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Draw as usual; ValueError if there are not so many numbers in the file."""
        count = math.prod(np.atleast_1d(np.asarray(size or 1, object)))
        if count > self.most:
            raise ValueError(f"a layer of {count:,} weights, but arrays of {self.most:,} numbers")
        return super().standard_normal(size, *args, **kwargs)


class _Builder:
    """Builds modules from descriptions; takes the arrays that it uses out of ``arrays``."""

    def __init__(self, arrays: Arrays, generators: list[np.random.Generator]) -> None:
        self.arrays, self.generators = arrays, generators
        sparse = {name.removesuffix(GAPS) for name in arrays if name.endswith(GAPS)}
        sizes = (a.size / FEWEST if name in sparse else a.size for name, a in arrays.items())
        self._bounded = _BoundedGenerator(int(sum(sizes)))
        self._classes = dict(_classes())
        self._modules: dict[str, Module] = {}

    def module(self, spec: Mapping[str, Any], name: str) -> Module:
        """Build a module; ``name`` is dotted, and empty for the whole network."""
        kind, prefix = spec["type"], f"{name}." if name else ""
        if kind == "shared":
            return self._modules[spec["name"]]  # no Sequential, or a tree might never end
        if kind == "Sequential":
            layers = spec["layers"].items()
            return Sequential(**{key: self.module(part, prefix + key) for key, part in layers})
        if kind not in self._classes:
            raise ValueError(
                f"{name or 'the model'} is of class {kind}, which is not defined here; before "
                f"load, import the module that defines it (no class of a script can be imported)"
            )
        cls, number = self._classes[kind], spec["rng"]
        settings = {key: self._value(v, prefix + key) for key, v in spec["settings"].items()}
        if issubclass(cls, Gate) and settings["count"] != self.arrays[f"{prefix}phi"].size:
            raise ValueError(f"{name} has {settings['count']} gates, unlike its array phi")
        wanted = inspect.signature(cls).parameters
        required = "rng" in wanted and wanted["rng"].default is inspect.Parameter.empty
        if number is not None and not issubclass(cls, Weighted):
            settings["rng"] = self.generators[number]
        elif number is not None or required:
            settings["rng"] = self._bounded
        later = {key: settings.pop(key) for key in list(settings) if key not in wanted}
        module = cls(**settings)
        if number is not None:
            vars(module)["rng"] = self.generators[number]
        for key, value in later.items():
            kind = type(getattr(module, key))
            if not isinstance(value, kind):
                raise ValueError(f"{prefix}{key} is {value!r:.60}; expected a {kind.__name__}")
            setattr(module, key, value)
        self._fill(module, prefix)
        self._modules[name] = module
        return module

    def _value(self, value: Any, name: str) -> Any:
        if isinstance(value, Mapping):
            groups = value["type"] == "Groups"
            return Groups(self.arrays.pop(name)) if groups else self.module(value, name)
        if isinstance(value, list):
            return [self._value(item, f"{name}.{i}") for i, item in enumerate(value)]
        return value

    def _fill(self, module: Module, prefix: str) -> None:
        for key, parameter in module.members():
            if isinstance(parameter, Parameter):
                array = self.arrays.pop(prefix + key)
                fixed = self.arrays.pop(f"{prefix}{key}{GAPS}", None)
                if fixed is not None:
                    array, parameter.live = _scattered(array, fixed, parameter.shape)
                if (array.dtype, array.shape) != (parameter.dtype, parameter.shape):
                    raise ValueError(
                        f"{prefix}{key} is {array.dtype} of shape {array.shape}, not "
                        f"{parameter.dtype} of shape {parameter.shape}"
                    )
                parameter.data = np.ascontiguousarray(array)


def _stored(name: str, parameter: Parameter) -> Arrays:
    """Return the arrays of a parameter in a file."""
    if isinstance(parameter.live, Elements):
        places = parameter.live.places
        if places.size >= FEWEST * parameter.size:
            gaps = np.diff(places, prepend=-1) - 1
            gaps = gaps.astype(np.min_scalar_type(int(gaps.max(initial=0))))
            return {name: parameter.raw.reshape(-1)[places], name + GAPS: gaps}
    return {name: parameter.data}


def _scattered(values: Array, gaps: NDArray[Any], shape: Shape) -> tuple[Array, Elements]:
    """Return the array of ``values`` with zeros in their gaps, and where the values are."""
    if gaps.dtype.kind != "u" or gaps.shape != values.shape or gaps.ndim != 1:
        raise ValueError(
            f"gaps of {gaps.dtype} and shape {gaps.shape} for values of shape {values.shape}"
        )
    places = np.cumsum(gaps.astype(np.int64) + 1) - 1
    out = np.zeros(math.prod(shape), values.dtype)
    if places.size and places[-1] >= out.size:
        raise ValueError(f"an element at {places[-1]} of an array of shape {shape}")
    out[places] = values
    return out.reshape(shape), Elements(places)
