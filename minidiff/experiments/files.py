"""Files that appear whole or not at all."""

import os
from pathlib import Path

__all__ = ["PART", "write_whole"]

PART = ".part"


def write_whole(path: str | Path, data: bytes | memoryview) -> None:
    """Write a file; whoever looks, now or after a crash, finds the old one or the new one.

    Raises OSError if it cannot be written, and then leaves nothing behind. A process that is killed
    may leave a ``.part``, which the next one to write this file replaces.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}{PART}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
