"""Run directories: what a training run leaves behind, written so that nothing is ever half there.

A run directory holds ``config.json``, ``metrics.jsonl`` (a line for each epoch),
``checkpoint.safetensors`` (all that it takes to go on after the last epoch), ``result.json`` (once
the run has finished) and ``plots/``.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .checkpoint import Checkpoint
from .files import PART, write_whole

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
        self.metrics_path = path / "metrics.jsonl"
        self.checkpoint_path = path / "checkpoint.safetensors"

    @classmethod
    def create(cls, path: Path) -> "Run":
        """Make a new run directory; RunError if it cannot be written or holds a run already."""
        try:
            path.mkdir(parents=True, exist_ok=True)
            occupied = next((item for item in path.iterdir() if item.suffix != PART), None)
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

    @property
    def finished(self) -> bool:
        """Whether the run has been trained and tested to its end."""
        return (self.path / "result.json").exists()

    def write_json(self, name: str, value: Any) -> None:
        """Write ``value`` as JSON, whole or not at all."""
        write_whole(
            self.path / name, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()
        )

    def read_json(self, name: str) -> Any:
        """Read JSON; RunError if it is missing or malformed."""
        path = self.path / name
        try:
            return json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise RunError(f"{path} cannot be read as JSON: {error}") from error

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Add a line to ``metrics.jsonl``."""
        with self.metrics_path.open("a") as file:
            file.write(json.dumps(record, allow_nan=False) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """Read ``metrics.jsonl``; a last line that is cut short is left out."""
        path = self.metrics_path
        lines = path.read_text().splitlines() if path.exists() else []
        records = []
        for number, line in enumerate(lines, 1):
            try:
                records.append(json.loads(line))
            except ValueError as error:
                if number < len(lines):
                    raise RunError(f"{path}, line {number}, is not JSON: {error}") from error
        return records

    def keep_metrics(self, epochs: int) -> list[dict[str, Any]]:
        """Forget what ``metrics.jsonl`` says of later epochs; return what it says of these."""
        records = self.metrics()[:epochs]
        if [record.get("epoch") for record in records] != list(range(1, epochs + 1)):
            raise RunError(f"{self.metrics_path} does not have a line for each of {epochs} epochs.")
        lines = "".join(json.dumps(record, allow_nan=False) + "\n" for record in records)
        write_whole(self.metrics_path, lines.encode())
        return records

    def write_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Write ``checkpoint.safetensors``, whole or not at all."""
        checkpoint.write(self.checkpoint_path)

    def checkpoint(self) -> Checkpoint:
        """Read ``checkpoint.safetensors``; RunError if there is none yet."""
        if not self.checkpoint_path.exists():
            raise RunError(
                f"{self.path} has no checkpoint: its training has not finished an epoch. Go on "
                f"with minidiff train --resume {self.path}."
            )
        return Checkpoint.read(self.checkpoint_path)


def peak_megabytes() -> float | None:
    """Return the largest memory that this process has had in use; None where nothing tells."""
    try:
        import resource
    except ImportError:  # on Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)
