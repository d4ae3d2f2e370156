"""Files that appear whole or not at all."""

import os
import secrets
from pathlib import Path

__all__ = ["PART", "write_whole"]

PART = ".part"


def write_whole(path: str | Path, data: bytes | memoryview) -> None:
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
