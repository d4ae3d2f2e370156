"""Run directories: what a training run leaves behind, written so that nothing is ever half there.

A run directory holds ``config.json``, ``metrics.jsonl`` (a line for each epoch),
``checkpoint.safetensors`` (the parameters after the last epoch), ``result.json`` (once the run has
finished) and ``plots/``.
"""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .extras import extra

__all__ = ["Run", "RunError", "peak_megabytes"]


class RunError(Exception):
    """A run directory that cannot be written, or does not hold what it should."""


class Run:
    """A run directory.

    Parameters
    ----------
    path
        The directory; see :meth:`create` and :meth:`open`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, path: Path) -> "Run":
        """Make a new run directory; RunError if it cannot be written or holds a run already."""
        try:
            path.mkdir(parents=True, exist_ok=True)
            occupied = next(path.iterdir(), None)
            probe = path / ".writable"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise RunError(
                f"the run directory {path} cannot be written ({error.strerror or error}); choose "
                f"another with --out."
            ) from error
        if occupied is not None:
            raise RunError(
                f"the run directory {path} is not empty (it holds {occupied.name}); choose another "
                f"with --out, or remove it."
            )
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> "Run":
        """Open a run directory that exists; RunError if it is none."""
        if not (path / "config.json").is_file():
            raise RunError(
                f"{path} is no run directory: it has no config.json. Expected one that "
                f"minidiff train has written."
            )
        return cls(path)

    def write_json(self, name: str, value: Any) -> None:
        """Write ``value`` as JSON, whole or not at all."""
        self._replace(name, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())

    def read_json(self, name: str) -> Any:
        """Read JSON; RunError if it is missing or malformed."""
        path = self.path / name
        try:
            return json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise RunError(f"{path} cannot be read as JSON: {error}") from error

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Add a line to ``metrics.jsonl``."""
        with (self.path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(record, allow_nan=False) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """Read ``metrics.jsonl``; a last line that is cut short is left out."""
        path = self.path / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        records = []
        for number, line in enumerate(lines, 1):
            try:
                records.append(json.loads(line))
            except ValueError as error:
                if number < len(lines):
                    raise RunError(f"{path}, line {number}, is not JSON: {error}") from error
        return records

    def save_checkpoint(self, tensors: Mapping[str, NDArray[Any]]) -> None:
        """Write ``checkpoint.safetensors``, whole or not at all."""
        data = extra("safetensors.numpy", "safetensors").save(
            {name: np.ascontiguousarray(array) for name, array in tensors.items()}
        )
        self._replace("checkpoint.safetensors", data)

    def load_checkpoint(self) -> dict[str, NDArray[Any]]:
        """Read ``checkpoint.safetensors``; RunError if it is missing or damaged."""
        path = self.path / "checkpoint.safetensors"
        safetensors = extra("safetensors.numpy", "safetensors")
        error_type = extra("safetensors").SafetensorError
        try:
            tensors: dict[str, NDArray[Any]] = safetensors.load(path.read_bytes())
        except (OSError, error_type, ValueError) as error:
            raise RunError(f"the checkpoint {path} cannot be read: {error}") from error
        return tensors

    def _replace(self, name: str, data: bytes) -> None:
        temporary = self.path / f".{name}.part"
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.path / name)


def peak_megabytes() -> float | None:
    """Return the largest memory that this process has had in use; None where nothing tells."""
    try:
        import resource
    except ImportError:  # on Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)
