"""Work that is timed in a process of its own.

Another library then neither changes minidiff's threads nor inherits settings of this process. The
new process runs this file as a script, which imports nothing of minidiff. A *worker file* defines

    work(**arguments) -> (description, {(name, setting): call})

Each *setting* is one way to do the work of that name, such as a memory layout. The process first
calls everything once. Then it writes a line of JSON: the description, the calls that ran, and the
calls that failed, each with its error. After this, a request is a line with a name and a setting,
and the reply is a line with the seconds of a burst of calls.
"""

import json
import os
import runpy
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

__all__ = ["Worker", "burst", "environment"]

Call = Callable[[], Any]

# Variables that tune the libraries that are compared. All libraries run as users have them.
TUNING = (
    "ATEN_", "DNNL_", "GOMP_", "GOTO_", "KMP_", "MKL_", "OMP_", "ONEDNN_", "OPENBLAS_", "TF_",
    "TORCH", "XLA_",
)  # fmt: skip


def environment() -> dict[str, str]:
    """Return the environment of this process without the variables that tune libraries."""
    return {name: value for name, value in os.environ.items() if not name.startswith(TUNING)}


def burst(call: Call, warm_up: float, count: int) -> list[float]:
    """Call for ``warm_up`` seconds, then ``count`` times; return the seconds of the latter."""
    end = time.perf_counter() + warm_up
    while time.perf_counter() < end:
        call()
    times = []
    for _ in range(count):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return times


class Worker:
    """A process that runs a worker file.

    ``calls`` holds its calls by name and setting. Each returns the seconds of a burst. ``failed``
    holds the error of each call that does not run.
    """

    def __init__(self, file: Path, warm_up: float, count: int, **arguments: Any) -> None:
        self.file = file
        # -P keeps the directory of this file, which has names such as "parser", out of sys.path.
        self.process = subprocess.Popen(
            [sys.executable, "-P", __file__, str(file), json.dumps([warm_up, count, arguments])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        self.description, runs, failed = self._reply()
        self.calls = {(name, setting): partial(self._ask, name, setting) for name, setting in runs}
        self.failed = {(name, setting): error for name, setting, error in failed}

    def _ask(self, *request: str) -> Any:
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # then there is no reply either
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        return self._reply()

    def _reply(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.close()
            raise ChildProcessError(f"{self.file.name} ended; its error stands above.")
        return json.loads(line)

    def close(self) -> None:
        """End the process."""
        self.process.communicate()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def serve(file: str, options: str) -> None:
    """Answer requests until there are no more."""
    warm_up, count, arguments = json.loads(options)
    # Replies have the standard output for themselves. Whatever libraries print goes elsewhere.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        description, calls = runpy.run_path(file)["work"](**arguments)
    except ImportError as error:
        raise SystemExit(str(error)) from None
    errors = {key: failure(call) for key, call in calls.items()}
    runs = [key for key, error in errors.items() if error is None]
    failed = [(*key, error) for key, error in errors.items() if error is not None]
    print(json.dumps([description, runs, failed]), file=replies, flush=True)
    for line in sys.stdin:
        times = burst(calls[tuple(json.loads(line))], warm_up, count)
        print(json.dumps(times), file=replies, flush=True)


def failure(call: Call) -> str | None:
    """Call once; return the first line of the error, if there is one."""
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return None


if __name__ == "__main__":
    serve(*sys.argv[1:])
