"""Run directories: the files of a training run, each written whole or not at all.

A run directory holds ``config.json``; ``metrics.jsonl``, a line for each epoch;
``checkpoint.safetensors``, all that it takes to resume after the last epoch; ``result.json``, once
the run has finished; ``plots/``; and ``.lock``, an empty file.
"""

import json
import math
import platform
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count as integers
from pathlib import Path
from typing import Any

import numba
import numpy as np
from llvmlite import binding

from minidiff._version import __version__
from minidiff.engine.arrays import Shape, check_scale
from minidiff.engine.module import Module, chain
from minidiff.io.checkpoint import MALFORMED, Checkpoint, CheckpointError, reason
from minidiff.io.files import PART, locked, require_file, words, write_whole
from minidiff.pruning.count import count, gated_sizes
from minidiff.training.config import Config
from minidiff.training.trainer import build_model

__all__ = ["Run", "RunError", "peak_megabytes", "read_network", "versions"]

LOCK = ".lock"


class RunError(Exception):
    """A run directory that cannot be written, or that lacks a file. The message says which."""


class Run:
    """A run directory.

    Parameters
    ----------
    path
        The directory; see :meth:`create` and :meth:`open`.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     run = Run.create(Path(directory) / "first")
    ...     run.write_json("config.json", {"epochs": 1})
    ...     Run.open(run.path).read_json("config.json"), run.finished
    ({'epochs': 1}, False)
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoint_path = path / "checkpoint.safetensors"

    @classmethod
    def create(cls, path: Path) -> "Run":
        """Make a run directory; RunError if it is not empty."""
        try:
            path.mkdir(parents=True, exist_ok=True)
        except FileExistsError as error:
            raise RunError(f"{path} is no directory; choose another --out.") from error
        run = cls(path)
        run._require_empty()
        return run

    @classmethod
    def open(cls, path: Path) -> "Run":
        """Open an existing run directory; RunError if it is none."""
        if not (path / "config.json").is_file():
            raise RunError(f"{path} has no config.json; expected a directory of minidiff train.")
        return cls(path)

    def _require_empty(self) -> None:
        names = (item.name for item in self.path.iterdir() if item.suffix != PART)
        if name := next((name for name in names if name != LOCK), None):
            raise RunError(f"{self.path} is not empty (it holds {name}); choose another --out.")

    @property
    def finished(self) -> bool:
        """Whether the run has been trained and tested to its end."""
        return (self.path / "result.json").exists()

    def write_json(self, name: str, value: Any) -> None:
        """Write a value as a JSON file."""
        text = json.dumps(value, indent=2, allow_nan=False) + "\n"
        write_whole(self.path / name, text.encode())

    def read_json(self, name: str) -> Any:
        """Read a JSON file; RunError if it is missing or malformed."""
        path = self.path / name
        try:
            require_file(path)
            with path.open(encoding="utf-8") as file:
                return json.loads(file.read(1 << 24))  # more than any run writes
        except (OSError, ValueError, RecursionError) as error:
            raise RunError(f"{path} cannot be read as JSON: {words(error)}") from error

    def config(self) -> Config:
        """Read the settings in ``config.json``; RunError if they are malformed."""
        try:
            return Config.from_json(self.read_json("config.json"))
        except (ValueError, OverflowError) as error:  # a ConfigError, or a number beyond floats
            raise RunError(f"{self.path / 'config.json'}: {reason(error)}.") from error

    def result(self) -> dict[str, Any]:
        """Read ``result.json``; RunError if it is missing or malformed."""
        result = self.read_json("result.json")
        if wrong := _wrong(result, RESULT):
            raise RunError(f"{self.path / 'result.json'}: {wrong}")
        return dict(result)

    def write_metrics(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Write ``metrics.jsonl``."""
        lines = "".join(json.dumps(record, allow_nan=False) + "\n" for record in records)
        write_whole(self.path / "metrics.jsonl", lines.encode())

    @property
    def resume_command(self) -> str:
        """Return the shell command that resumes the run."""
        return f"minidiff train --resume {shlex.quote(str(self.path))}"

    def write_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Write ``checkpoint.safetensors``, with the versions of the software in it."""
        checkpoint.info["versions"] = versions()
        checkpoint.write(self.checkpoint_path)

    def checkpoint(self) -> Checkpoint:
        """Read ``checkpoint.safetensors``.

        Raises RunError if there is none, and CheckpointError if it does not hold what a run writes.
        """
        path = self.checkpoint_path
        if not path.exists():
            raise RunError(f"{self.path} has no checkpoint: {self.resume_command}")
        return _checked(path, of_run=True)

    @contextmanager
    def training(self, config: Mapping[str, Any] | None = None) -> Iterator[None]:
        """Lock the directory while training; RunError if another process trains there.

        With ``config``, which becomes ``config.json``, a new run begins.
        """
        # The lock has a file of its own, since all other files are replaced when written.
        busy = RunError(f"another process is training in {self.path}.")
        with locked(self.path / LOCK, busy):
            for part in self.path.glob(f".*{PART}"):  # left by a process that was killed
                part.unlink(missing_ok=True)
            if config is not None:
                self._require_empty()
                self.write_json("config.json", config)
            yield


def read_network(path: Path) -> Checkpoint:
    """Read a network of digits from a file of :func:`minidiff.export`.

    Raises
    ------
    CheckpointError
        If the file is damaged, or is no network from images of digits to ten classes.

    Examples
    --------
    >>> import tempfile
    >>> import minidiff as md
    >>> model = md.models.LeNet300(rng=np.random.default_rng(0))
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     path = Path(directory) / "model.safetensors"
    ...     small = md.export(path, model, (1, 28, 28), mean=0.13, std=0.31)
    ...     read_network(path).info["mean"]
    0.13
    """
    return _checked(path, of_run=False)


# -- what files may hold -----------------------------------------------------------------------

INPUT, OUTPUT = (1, 28, 28), (10,)  # of a network of digits
LARGEST = 1 << 20  # numbers that a layer returns for an image; a file may name any padding


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e39  # false for NaN; float32 ends below


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**53


NUMBER = (_is_number, "a finite number")
MAYBE = (lambda value: value is None or _is_number(value), "a finite number or null")
COUNT = (_is_count, "an integer, 0 or more")
TEXT = (lambda value: isinstance(value, str), "a text")
FLAG = (lambda value: isinstance(value, bool), "true or false")
OBJECT = (lambda value: isinstance(value, dict), "an object")
COUNTS = (
    lambda value: isinstance(value, dict) and all(map(_is_count, value.values())),
    "an object of integers, 0 or more",
)

Fields = dict[str, tuple[Callable[[Any], bool], str]]
RECORD: Fields = {
    **dict.fromkeys(("epoch", "step", "weights", "dense_weights", "macs", "dense_macs"), COUNT),
    **dict.fromkeys(("loss", "train_error", "expected_weights", "step_ms", "seconds"), NUMBER),
    **dict.fromkeys(("architecture", "dense_architecture"), TEXT),
    **dict.fromkeys(("open", "groups"), COUNTS),
    "validation_error": MAYBE,
    "frozen": FLAG,
}
RESULT: Fields = {
    **RECORD,
    **dict.fromkeys(("bytes", "dense_bytes"), COUNT),
    **dict.fromkeys(("test_error", "first_step_ms"), NUMBER),
    "peak_megabytes": MAYBE,
}
NETWORK: Fields = {
    "shape": (lambda value: value == list(INPUT), str(list(INPUT))),
    **dict.fromkeys(("mean", "std"), NUMBER),
}
PROGRESS: Fields = {
    **dict.fromkeys(("config", "rng"), OBJECT),
    "versions": (lambda value: value is None or isinstance(value, dict), "an object"),
    "step": COUNT,
    "records": (lambda value: isinstance(value, list) and len(value) > 0, "a list, not empty"),
}


def _checked(path: Path, *, of_run: bool) -> Checkpoint:
    """Read a checkpoint of a run or of an export; CheckpointError if it holds anything else."""
    checkpoint = Checkpoint.read(path)
    try:
        wrong = _wrong(checkpoint.info, NETWORK) or _wrong_network(checkpoint)
        if of_run and not wrong:
            wrong = _wrong(checkpoint.info, PROGRESS) or _wrong_run(checkpoint)
    except MALFORMED as error:  # of layers that do not fit together, or of a setting
        wrong = f"{reason(error)}."
    if wrong:
        raise CheckpointError(f"{path}: {wrong}")
    return checkpoint


def _wrong(found: Any, fields: Fields) -> str:
    """Say which field of an object is wrong; nothing if all fit."""
    if not isinstance(found, dict):
        return f"it holds {found!r:.60}; expected an object."
    for name, (fits, expected) in fields.items():
        if not fits(found.get(name)):
            return f"{name} is {found.get(name)!r:.60}; expected {expected}."
    return ""


def _wrong_network(checkpoint: Checkpoint) -> str:
    check_scale(checkpoint.info["mean"], checkpoint.info["std"])
    shape: Shape = INPUT
    for name, layer in chain(checkpoint.model):
        shape = layer.output_shape(shape)
        if math.prod(shape) > LARGEST:
            return (
                f"{name} returns an array of shape {shape}; expected at most {LARGEST:,} numbers."
            )
    if shape != OUTPUT:
        return f"the network turns shape {INPUT} into {shape}; expected {OUTPUT}, for ten digits."
    parameters = {name: p.data for name, p in checkpoint.model.named_parameters()}
    for name, array in (parameters | checkpoint.state).items():
        if not np.isfinite(array).all():
            return f"{name} holds {array[~np.isfinite(array)][0]}; expected finite numbers."
    if any(array.dtype != np.float32 for array in parameters.values()):
        return "the weights are not all float32."
    return ""


def _wrong_run(checkpoint: Checkpoint) -> str:
    info, config = checkpoint.info, Config.from_json(checkpoint.info["config"])
    if _layers(checkpoint.model) != _layers(build_model(config, np.random.default_rng(0))):
        return f"the network is not a {config.model}, {config.sparsity}, as its config says."
    sizes = gated_sizes(count(checkpoint.model, INPUT))
    groups = {name: whole for name, (_, whole) in sizes.items()}
    for epoch, record in enumerate(info["records"], 1):
        if wrong := _wrong(record, RECORD):
            return f"record {epoch}: {wrong}"
        if (record["epoch"], record["groups"]) != (epoch, groups):
            return f"record {epoch} is of epoch {record['epoch']}, or of a network of other gates."
        if record["open"].keys() != groups.keys():
            return f"record {epoch}: open names other gates than groups."
    if info["records"][-1]["step"] != info["step"]:
        return f"step is {info['step']}; expected {info['records'][-1]['step']}, as in its records."
    return ""


def _layers(model: Module) -> str:
    """Describe the layers and the shapes of their parameters; not the class of the model."""
    return repr(model).partition("\n")[2]


def free_path(name: str) -> Path:
    """Return runs/NAME, or the first of runs/NAME-2, runs/NAME-3 and so on that is free."""
    paths = (Path("runs") / (name if n == 1 else f"{name}-{n}") for n in integers(1))
    return next(path for path in paths if not path.exists())


def versions() -> dict[str, str]:
    """Return the versions of the software and the kind of processor that a run's bits depend on.

    Examples
    --------
    >>> list(versions())
    ['minidiff', 'numpy', 'numba', 'python', 'processor']
    """
    return {
        "minidiff": __version__,
        "numpy": np.__version__,
        "numba": numba.__version__,
        "python": platform.python_version(),
        "processor": binding.get_host_cpu_name(),
    }


def peak_megabytes() -> float | None:
    """Return the peak memory of this process; None where the system does not tell.

    Examples
    --------
    >>> peak_megabytes() is None or peak_megabytes() > 1
    True
    """
    try:
        import resource
    except ImportError:  # on Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)
