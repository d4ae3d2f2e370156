"""The process of the ``minidiff`` command: its signals, its streams and its exit status.

``import minidiff`` imports this file first: the other imports take a second, and Ctrl-C may come
then.
"""

import atexit
import os
import signal
import sys
import warnings
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

__all__ = ["begin", "complain", "finish"]

STOP = [getattr(signal, n) for n in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, n)]
CLEANUP_SECONDS = 2

_stopped_by = 0  # the signal that has stopped the process


def begin() -> None:
    """Prepare signals and streams, if this process is the command and not a program that imports.

    Closed streams become the null device. Text that an encoding lacks is escaped, and output is
    flushed after each line. A signal that the caller ignores, as ``nohup`` does, stays ignored.
    """
    # The script that Python runs, or the word after -m: while Python imports the package of a
    # module, sys.argv has "-m" in place of the name of the module.
    script = "".join(sys.orig_argv[-len(sys.argv) :][:1])
    named = Path(script.removeprefix("-m")).stem == "minidiff"
    if not named or sys.argv[0] not in (script, "-m"):
        return
    for name in ("stdin", "stdout", "stderr"):  # in the order of their descriptors
        if getattr(sys, name) is None:  # closed: else the next file would take its descriptor
            stream = open(os.devnull, "r" if name == "stdin" else "w", encoding="utf-8")  # noqa: SIM115 - stays open as long as the process runs
            os.set_inheritable(stream.fileno(), True)
            setattr(sys, name, stream)
    streams: Any = sys.stdout, sys.stderr
    for stream in streams:
        stream.reconfigure(errors="backslashreplace", line_buffering=True)
    warnings.showwarning = lambda message, *_, **__: complain("warning", message)
    sys.excepthook = _report
    for number in STOP:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _stop)


def _report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print an error that stops the command while it imports; others are bugs, with a traceback."""
    if isinstance(error, ImportError):
        complain("error", error)
    else:
        sys.__excepthook__(kind, error, trace)


def _stop(number: int, frame: object) -> None:
    """Unwind the process by KeyboardInterrupt, and end it even if something swallows that."""
    global _stopped_by
    _stopped_by = number
    for other in STOP:
        signal.signal(other, signal.SIG_IGN)
    with suppress(OSError):
        os.write(2, b"\ninterrupted\n" if os.isatty(2) else b"interrupted\n")  # after ^C
    # Compilers and finalizers turn KeyboardInterrupt into other errors. Nobody needs to read them.
    _discard(sys.stderr)
    sys.excepthook = lambda *_: os._exit(128 + number)
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGALRM, lambda *_: os._exit(128 + number))
        signal.alarm(CLEANUP_SECONDS)
    raise KeyboardInterrupt


def finish(status: int) -> int:
    """Flush the output; return the exit status of the process, or end it if it was stopped."""
    for number in STOP:
        if signal.getsignal(number) is _stop:  # too late
            signal.signal(number, signal.SIG_IGN)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError as error:
            if status == 0 and not isinstance(error, BrokenPipeError):
                complain("error", f"the output cannot be written: {error.strerror}.")
            status = status or 1
            _discard(stream)  # or Python would fail again when it ends
    if _stopped_by:
        # The end of Python itself takes long, and resets the handler of the alarm.
        atexit._run_exitfuncs()
        os._exit(128 + _stopped_by)
    return status


def complain(kind: str, message: object) -> None:
    """Print an error or a warning to stderr, in one line."""
    line = str(message).partition("\n")[0]
    with suppress(OSError):  # there is nowhere else to say it
        print(f"minidiff: {kind}: {line}", file=sys.stderr)


def _discard(stream: Any) -> None:
    """Send what is written to a stream to the null device."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)
