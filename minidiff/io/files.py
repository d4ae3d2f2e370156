"""Files that appear whole or not at all, locks, and errors of the system in plain words."""

import os
import secrets
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

__all__ = ["PART", "append_line", "locked", "require_file", "words", "write_whole"]

PART = ".part"
OTHERS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def words(error: BaseException) -> str:
    """Return the message of an error; the system's errors lose their number and their quotes."""
    if not isinstance(error, OSError) or not error.strerror:
        return " ".join(str(error).split()) or type(error).__name__
    names = [str(name) for name in (error.filename, error.filename2) if name is not None]
    return ": ".join([*names, str(error.strerror)])


@contextmanager
def _told(text: str) -> Iterator[None]:
    """Put a text and plain words in place of the message of an OSError; its class stays."""
    try:
        yield
    except OSError as error:
        told = type(error)(f"{text}: {error.strerror or error}")
        told.errno = error.errno
        raise told from error


def require_file(path: str | Path) -> None:
    """Raise OSError, which names the path, unless a regular file is there.

    Reading a FIFO or a device may never end, and writing may replace it.
    """
    with _told(str(path)):
        _require_regular(path)


def _require_regular(path: str | Path) -> None:
    kind = stat.S_IFMT(os.stat(path).st_mode)
    if kind != stat.S_IFREG:
        raise OSError(f"it is {OTHERS.get(kind, 'no file')}; expected a regular file")


@contextmanager
def _writing(path: str | Path) -> Iterator[None]:
    """Refuse to write to anything but a regular file; name the path in errors."""
    with _told(f"{path} cannot be written"):
        with suppress(FileNotFoundError):
            _require_regular(path)
        yield


def write_whole(path: str | Path, data: bytes) -> None:
    """Write a file; whoever looks, now or after a crash, finds the old one or the new one.

    A link stays a link. Raises OSError, which names the file, if it cannot be written, and then
    leaves nothing behind. A process that is killed leaves nothing either on Linux; elsewhere it may
    leave a file that ends in ``.part``.
    """
    with _writing(path):
        path = Path(os.path.realpath(path))
        # Without the file's own name, which may be as long as the system allows.
        temporary = path.with_name(f".{secrets.token_hex(8)}{PART}")
        try:
            try:  # in a file that gets its name when it is whole
                number = os.open(path.parent, os.O_TMPFILE | os.O_WRONLY, 0o666)
                _write(os.fdopen(number, "wb"), data, temporary)
            except (AttributeError, OSError):  # another system, or file system
                _write(temporary.open("xb"), data)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def _write(file: BinaryIO, data: bytes | memoryview, name: Path | None = None) -> None:
    """Write data to the disk and close the file; then a nameless file has this name."""
    with file:
        file.write(data)
        file.flush()
        number = file.fileno()
        os.fsync(number)
        if name:  # Python follows the link in /proc only if it is given a src_dir_fd
            os.link(f"/proc/self/fd/{number}", name, src_dir_fd=number)


def append_line(path: str | Path, line: str) -> None:
    """Add a line to a text file, flushed to the disk; what a crash has cut short stays by itself.

    Raises OSError, which names the file, if it cannot be written.
    """
    with _writing(path), Path(path).open("a+b") as file:
        file.seek(0, os.SEEK_END)
        if file.tell():
            file.seek(-1, os.SEEK_END)
            line = line if file.read(1) == b"\n" else "\n" + line
        file.write(line.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def locked(path: Path, busy: Exception) -> Iterator[None]:
    """Hold the lock of a file, which is made if it does not exist.

    Raises ``busy`` if another process holds it, and OSError if the file cannot be opened. Warns on
    a system without locks.
    """
    with _writing(path):
        file = path.open("ab")
    with file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise busy from error
        except (ImportError, OSError) as error:  # on Windows, and on some network file systems
            warnings.warn(
                f"{path} cannot be locked ({words(error)}); let no other process write there.",
                stacklevel=4,
            )
        yield
