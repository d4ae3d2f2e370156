"""Files that appear whole or not at all."""

import os
import secrets
from pathlib import Path

__all__ = ["PART", "append_line", "write_whole"]

PART = ".part"


def write_whole(path: str | Path, data: bytes) -> None:
    """Write a file; whoever looks, now or after a crash, finds the old one or the new one.

    Raises OSError, which names the file, if it cannot be written, and then leaves nothing behind.
    Only a process that is killed may leave a file that ends in ``.part``.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{PART}")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        reason = error.strerror or error
        raise type(error)(error.errno, f"{path} cannot be written: {reason}") from error
    finally:
        temporary.unlink(missing_ok=True)


def append_line(path: str | Path, line: str) -> None:
    """Add a line to a text file, flushed to the disk; what a crash has cut short stays by itself.

    Raises OSError, which names the file, if it cannot be written.
    """
    path = Path(path)
    try:
        with path.open("a+b") as file:
            file.seek(0, os.SEEK_END)
            if file.tell():
                file.seek(-1, os.SEEK_END)
                line = line if file.read(1) == b"\n" else "\n" + line
            file.write(line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        reason = error.strerror or error
        raise type(error)(error.errno, f"{path} cannot be written: {reason}") from error
