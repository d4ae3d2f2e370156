"""Run directories: what a training run leaves behind, written so that nothing is ever half there.

A run directory holds ``config.json``, ``metrics.jsonl`` (a line for each epoch),
``checkpoint.safetensors`` (all that it takes to go on after the last epoch), ``result.json`` (once
the run has finished) and ``plots/``; and ``.lock``, which is empty.
"""

import json
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from minidiff.io.checkpoint import Checkpoint
from minidiff.io.files import PART, write_whole

__all__ = ["Run", "RunError", "peak_megabytes", "versions"]


LOCK = ".lock"


class RunError(Exception):
    """A run directory that cannot be written, or does not hold what it should."""


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
        """Make a new run directory; RunError if it cannot be written or holds a run already."""
        try:
            path.mkdir(parents=True, exist_ok=True)
            items = (item for item in path.iterdir() if item.suffix != PART and item.name != LOCK)
            occupied = next(items, None)
            probe = path / ".writable"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise RunError(
                f"the run directory {path} cannot be written ({error.strerror or error}); choose "
                f"another with --out."
            ) from error
        if occupied is not None:
            raise cls._not_empty(path, occupied.name)
        return cls(path)

    @staticmethod
    def _not_empty(path: Path, name: str) -> RunError:
        return RunError(
            f"the run directory {path} is not empty (it holds {name}); choose another with --out, "
            f"or remove it."
        )

    @classmethod
    def open(cls, path: Path) -> "Run":
        """Open a run directory that exists; RunError if it is none."""
        if not (path / "config.json").is_file():
            raise RunError(
                f"{path} is no run directory: it has no config.json. Expected one that "
                f"minidiff train has written."
            )
        return cls(path)

    @property
    def finished(self) -> bool:
        """Whether the run has been trained and tested to its end."""
        return (self.path / "result.json").exists()

    def write_json(self, name: str, value: Any) -> None:
        """Write ``value`` as JSON, whole or not at all."""
        write_whole(
            self.path / name, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()
        )

    def read_json(self, name: str) -> dict[str, Any]:
        """Read a JSON object; RunError if it is missing or malformed."""
        path = self.path / name
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise RunError(f"{path} cannot be read as JSON: {error}") from error
        if not isinstance(value, dict):
            raise RunError(f"{path} is not what was written: expected a JSON object.")
        return value

    def write_metrics(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Write ``metrics.jsonl``, whole or not at all."""
        lines = "".join(json.dumps(record, allow_nan=False) + "\n" for record in records)
        write_whole(self.path / "metrics.jsonl", lines.encode())

    def metrics(self) -> list[dict[str, Any]]:
        """Read ``metrics.jsonl``, which is there after the first epoch."""
        path = self.path / "metrics.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        return [json.loads(line) for line in lines]

    def write_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Write ``checkpoint.safetensors``, whole or not at all."""
        checkpoint.write(self.checkpoint_path)

    def checkpoint(self) -> Checkpoint:
        """Read ``checkpoint.safetensors``; RunError if there is none."""
        if not self.checkpoint_path.exists():
            raise RunError(
                f"{self.path} has lost its checkpoint.safetensors; restore it from a copy, or "
                f"train again."
                if self.finished
                else f"{self.path} has no checkpoint: its training has not finished an epoch. Go "
                f"on with minidiff train --resume {self.path}."
            )
        return Checkpoint.read(self.checkpoint_path)

    def refuse_own(self, path: Path) -> None:
        """Raise RunError if ``path`` is a file that the run itself needs."""
        own = ("config.json", "metrics.jsonl", "checkpoint.safetensors", "result.json")
        if path.resolve() in [(self.path / name).resolve() for name in own]:
            raise RunError(f"{path} belongs to the run, which would be lost; choose another file.")

    @contextmanager
    def training(self, config: Mapping[str, Any] | None = None) -> Iterator[None]:
        """Keep other processes from training in this directory; RunError if one does already.

        With ``config``, which is written to ``config.json``, a new run begins.
        """
        # A file of its own: a lock is on what was opened, and the others here are replaced.
        with (self.path / LOCK).open("ab") as file:
            try:
                import fcntl

                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except ImportError:  # on Windows, where nobody is kept from it
                pass
            except BlockingIOError as error:
                raise RunError(f"another process is training in {self.path}.") from error
            except OSError as error:
                warnings.warn(
                    f"{self.path} cannot be locked ({error.strerror}), so nothing keeps a second "
                    f"process from training there.",
                    stacklevel=2,
                )
            for part in self.path.glob(f".*{PART}"):  # left by a process that was killed
                part.unlink(missing_ok=True)
            if config is not None:
                if (self.path / "config.json").exists():
                    raise self._not_empty(self.path, "config.json")
                self.write_json("config.json", config)
            yield


def versions() -> dict[str, str]:
    """Return the versions of what a run's bits depend on, and the kind of processor.

    Examples
    --------
    >>> list(versions())
    ['minidiff', 'numpy', 'numba', 'processor']
    """
    import numba
    from llvmlite import binding

    from minidiff._version import __version__

    return {
        "minidiff": __version__,
        "numpy": np.__version__,
        "numba": numba.__version__,
        "processor": binding.get_host_cpu_name(),
    }


def peak_megabytes() -> float | None:
    """Return the largest memory that this process has had in use; None where nothing tells.

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
