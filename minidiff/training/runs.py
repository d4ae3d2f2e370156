"""Run directories: the files of a training run, each written whole or not at all.

A run directory holds ``config.json``; ``metrics.jsonl``, a line for each epoch;
``checkpoint.safetensors``, all that it takes to resume after the last epoch; ``result.json``, once
the run has finished; ``plots/``; and ``.lock``, an empty file.
"""

import json
import shlex
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import numba
import numpy as np
from llvmlite import binding

from minidiff._version import __version__
from minidiff.io.checkpoint import Checkpoint
from minidiff.io.files import PART, write_whole

__all__ = ["Run", "RunError", "peak_megabytes", "versions"]

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
        path.mkdir(parents=True, exist_ok=True)
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
            return json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RunError(f"{path} cannot be read as JSON: {error}") from error

    def write_metrics(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Write ``metrics.jsonl``."""
        lines = "".join(json.dumps(record, allow_nan=False) + "\n" for record in records)
        write_whole(self.path / "metrics.jsonl", lines.encode())

    @property
    def resume_command(self) -> str:
        """Return the shell command that resumes the run."""
        return f"minidiff train --resume {shlex.quote(str(self.path))}"

    def checkpoint(self) -> Checkpoint:
        """Read ``checkpoint.safetensors``; RunError if there is none."""
        if not self.checkpoint_path.exists():
            raise RunError(f"{self.path} has no checkpoint: {self.resume_command}")
        return Checkpoint.read(self.checkpoint_path)

    @contextmanager
    def training(self, config: Mapping[str, Any] | None = None) -> Iterator[None]:
        """Lock the directory while training; RunError if another process trains there.

        With ``config``, which becomes ``config.json``, a new run begins.
        """
        # The lock has a file of its own, since all other files are replaced when written.
        with (self.path / LOCK).open("ab") as file:
            try:
                import fcntl

                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise RunError(f"another process is training in {self.path}.") from error
            except (ImportError, OSError) as error:  # on Windows, and on some network file systems
                text = f"{self.path} cannot be locked ({error}); let no other process train there."
                warnings.warn(text, stacklevel=2)
            for part in self.path.glob(f".*{PART}"):  # left by a process that was killed
                part.unlink(missing_ok=True)
            if config is not None:
                self._require_empty()
                self.write_json("config.json", config)
            yield


def free_path(name: str) -> Path:
    """Return runs/NAME, or the first of runs/NAME-2, runs/NAME-3 and so on that is free."""
    paths = (Path("runs") / (name if n == 1 else f"{name}-{n}") for n in count(1))
    return next(path for path in paths if not path.exists())


def versions() -> dict[str, str]:
    """Return the versions of the software and the kind of processor that a run's bits depend on.

    Examples
    --------
    >>> list(versions())
    ['minidiff', 'numpy', 'numba', 'processor']
    """
    packages = {"minidiff": __version__, "numpy": np.__version__, "numba": numba.__version__}
    return packages | {"processor": binding.get_host_cpu_name()}


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
