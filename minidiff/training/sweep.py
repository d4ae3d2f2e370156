"""Sweeps: many training runs, several at a time, on this machine or on a Dask cluster.

The result of each run is a line of JSON in a file. A sweep leaves out the runs that have a result,
so a sweep that was killed goes on where it was. A run that fails has a line that says why, and the
next sweep tries it again. To train a run again, delete its line. A sweep refuses a file that no
sweep has written, and a file that another sweep is writing.
"""

import json
import logging
import os
import signal
import sys
import textwrap
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import closing, contextmanager
from functools import lru_cache
from itertools import product
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

from minidiff.data.datasets import load_dataset
from minidiff.io.checkpoint import MALFORMED
from minidiff.io.extras import extra
from minidiff.io.files import append_line, locked, require_file
from minidiff.training.config import Config, ConfigError, option_words, unused_settings
from minidiff.training.runs import RunError, versions
from minidiff.training.trainer import Trainer, error_rate

__all__ = ["combinations", "read_results", "run_once", "sweep"]

Json = dict[str, Any]

# The history of a run has these figures of at most so many epochs; its result has all of the last.
HISTORY = ("epoch", "loss", "train_error", "validation_error", "weights", "macs", "architecture")
POINTS = 30
BEGIN = b'{"config": {'  # of each line

_load_once = lru_cache(maxsize=1)(load_dataset)  # the runs of a worker share a dataset


def combinations(dataset: str, **values: Sequence[Any]) -> list[Config]:
    """Return every combination of settings on a dataset, as changes of its recipe.

    Each method takes only the settings that it uses, so that methods with different settings fit
    into one sweep.

    Parameters
    ----------
    dataset
        "mnist" or "digits".
    values
        The values of each setting.

    Raises
    ------
    ConfigError
        If a value is not allowed, or none of the runs uses a setting.

    Examples
    --------
    >>> methods = ["diffprune", "magnitude"]
    >>> runs = combinations("digits", method=methods, penalty=[0.01, 0.02], keep=[0.1])
    >>> [(run.method, run.penalty, run.keep) for run in runs]
    [('diffprune', 0.01, 0.1), ('diffprune', 0.02, 0.1), ('magnitude', 0.01, 0.1)]
    """
    runs: dict[Config, None] = {}
    used: set[str] = set()
    recipe = Config.recipe(dataset).to_json()
    for row in product(*values.values()):
        changes = dict(zip(values, row, strict=True))
        for key in unused_settings(recipe | changes):
            changes.pop(key, None)
        runs[Config.recipe(dataset, **changes)] = None
        used |= changes.keys()
    if idle := values.keys() - used:
        raise ConfigError(f"none of the runs uses {', '.join(sorted(idle))}; leave it out.", *idle)
    return list(runs)


def run_once(settings: Json, *, test: bool, threads: int) -> Json:
    """Train one network and return its line of a results file.

    Parameters
    ----------
    settings
        All settings, as :meth:`~minidiff.training.config.Config.to_json` returns them.
    test
        Whether to measure the test error at the end: for results, not for choices.
    threads
        The number of threads of the run.

    Returns
    -------
    dict
        "config", "versions", "history" (some figures of some epochs) and "result" (all of the last
        epoch), or "error" if the run failed.

    Raises
    ------
    ConfigError
        If a setting is out of range.

    Examples
    --------
    >>> config = Config.recipe("digits", model="lenet300", sparsity="dense", epochs=1)
    >>> run_once(config.to_json(), test=False, threads=2)["result"]["architecture"]
    '784-300-100'
    """
    import numba

    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]  # set on import
    config, began = Config.from_json(settings), time.perf_counter()
    line = {"config": settings, "versions": versions()}
    try:
        data = _load_once(config.dataset, validation=config.validation)
        trainer = Trainer(config, data)
        if obstacle := trainer.obstacle():
            warnings.warn(obstacle, stacklevel=1)
        while trainer.step < trainer.steps:
            trainer.train_epoch()
        result = dict(trainer.records[-1])
        if test:
            result["test_error"] = error_rate(trainer.model, data.test, **trainer.scale)
        result["seconds"] = time.perf_counter() - began
    except Exception as error:  # whatever it is, the other runs go on
        return line | {"error": f"{type(error).__name__}: {error}"}
    return line | {"history": _history(trainer.records), "result": result}


def _history(records: list[Json]) -> dict[str, list[Any]]:
    """Return figures of evenly spaced epochs, the last among them."""
    every = -(-len(records) // POINTS)
    return {name: [record[name] for record in records[::-every][::-1]] for name in HISTORY}


def read_results(path: Path) -> list[Json]:
    """Read the lines of a results file.

    Damaged lines are left out with a warning: a kill may have cut them short, or they may have
    settings that are unknown to this version. A sweep trains their runs again.

    Parameters
    ----------
    path
        The file. A missing file has no lines.

    Raises
    ------
    RunError
        If no sweep has written the file: its first line is not that of a run.
    OSError
        If it cannot be read.

    Returns
    -------
    list of dict
        Lines of :func:`run_once`, with a :class:`~minidiff.training.config.Config` as "config".

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     line = '{"config": {"seed": 3}, "error": "MemoryError: "}'
    ...     append_line(Path(directory) / "runs.jsonl", line)
    ...     [line["config"].seed for line in read_results(Path(directory) / "runs.jsonl")]
    [3]
    """
    lines: list[Json] = []
    try:
        require_file(path)
    except FileNotFoundError:
        return lines
    with path.open("rb") as file:
        start = file.read(1 << 20)
        # A kill may have cut the first line short.
        begins = [line.startswith(BEGIN) for line in start.splitlines()[:2]]
        if not (any(begins) or BEGIN.startswith(start)):
            raise RunError(
                f"{path} is no results file of a sweep: it begins with {start[:20]!r}; expected "
                f"{BEGIN.decode()}. Choose another --out."
            )
        file.seek(0)
        for number, text in enumerate(file, 1):
            try:
                line = json.loads(text)
                line.get("result", {}).items()  # an AttributeError unless it is an object
                lines.append(line | {"config": Config.from_json(line["config"])})
            except MALFORMED as error:
                note = f"{path}: line {number} is left out, and its run counts as not made: {error}"
                warnings.warn(note, stacklevel=2)
    return lines


def sweep(
    configs: Sequence[Config],
    path: Path,
    *,
    jobs: int = 1,
    cluster: str | None = None,
    test: bool = False,
    say: Callable[[str], None] = print,
) -> int:
    """Train every configuration that has no result yet; return how many runs failed.

    Parameters
    ----------
    configs
        The runs. Equal ones are one run.
    path
        The results file, ``.jsonl``.
    jobs
        How many runs train at a time on this machine. They share out the cores; a result does not
        depend on the number of threads.
    cluster
        The address of a Dask scheduler, in place of ``jobs``. Each thread of a worker trains one
        run at a time, on one core. Workers need minidiff and the data.
    test
        Whether to measure test errors. A result without one is then made again.
    say
        Called with a line of text for each run that has ended.

    Raises
    ------
    ConfigError
        If ``jobs`` is not an integer >= 1.
    RunError
        If no sweep has written the file, or another sweep is writing it.
    OSError
        If the file cannot be written, or the scheduler of the cluster does not answer or has gone.

    Examples
    --------
    >>> import tempfile
    >>> config = Config.recipe("digits", model="lenet300", sparsity="dense", epochs=1)
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     path = Path(directory) / "runs.jsonl"
    ...     failed = sweep([config], path, say=lambda line: None)
    ...     sweep([config, config], path)  # goes on where the first sweep ended
    1 runs, 1 of them done before.
    0
    """
    if not isinstance(jobs, int) or jobs < 1:
        raise ConfigError(f"jobs is {jobs!r}; expected an integer >= 1.")
    with locked(path, RunError(f"another sweep writes {path}; choose another --out.")):
        needed = "test_error" if test else "weights"
        done = {line["config"] for line in read_results(path) if needed in line.get("result", {})}
        runs = dict.fromkeys(configs)
        left = [config.to_json() for config in runs if config not in done]
        say(f"{len(runs)} runs, {len(runs) - len(left)} of them done before.")
        failed = 0
        changes = [config.changes() for config in runs]
        names = [name for name in Config().to_json() if any(name in changed for changed in changes)]
        varying = [name for name in names if len({getattr(config, name) for config in runs}) > 1]
        if left:
            say("error %  architecture   weights  options")
        with closing(_lines(left, jobs, cluster, test)) as lines:
            for line in lines:
                append_line(path, json.dumps(line, allow_nan=False))
                failed += "error" in line
                say(_summary(line, varying))
    return failed


def _lines(
    left: list[Json], jobs: int, cluster: str | None, test: bool
) -> Generator[Json, None, None]:
    """Yield the line of each run as it ends. A worker that dies costs the runs under way."""
    threads = 1 if cluster else max(1, (os.cpu_count() or 1) // jobs)
    if jobs == 1 and not cluster:  # in this process, where an error is easier to follow
        yield from (run_once(run, test=test, threads=threads) for run in left)
        return
    dask = extra("distributed", needed_by="cluster").Client(cluster) if cluster else None
    for handler in logging.getLogger("distributed").handlers:  # whatever it logs is raised, too
        handler.setLevel(logging.CRITICAL + 1)
    running: dict[Future[Json], Json] = {}
    pool = None
    try:
        while left or running:
            while left and (dask or len(running) < jobs):
                run = left.pop(0)
                with _ctrl_c_blocked():
                    pool = dask.get_executor() if dask else _processes(jobs)
                    running[pool.submit(run_once, run, test=test, threads=threads)] = run
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                if future.cancelled():
                    again = "Start it again, then the sweep, which goes on where it was."
                    raise ConnectionError(f"the scheduler at {cluster} has gone. {again}")
                run, error = running.pop(future), future.exception()
                reason = " ".join(str(error).split())
                lost = {"config": run, "error": f"its worker failed: {reason}"}
                yield lost if error else future.result()
    finally:
        if dask:
            dask.close()
        elif pool:
            pool.shutdown(kill_workers=True)


def _processes(jobs: int) -> Any:
    """Return processes to train in; whoever ends this process, or kills it, ends them too."""
    # Loky starts new processes, since OpenMP's threads do not survive a fork.
    loky = extra("joblib.externals.loky", "joblib")
    return loky.get_reusable_executor(jobs, initializer=_end_with, initargs=(os.getpid(),))


def _end_with(parent: int) -> None:
    """End this process soon after its parent."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def _ctrl_c_blocked() -> Iterator[None]:
    """Block Ctrl-C, also in processes that start meanwhile: a terminal sends it to all of them."""
    if sys.platform == "win32":
        yield
        return
    resource_tracker.ensure_running()  # when it starts, it unblocks Ctrl-C
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _summary(line: Json, varying: Sequence[str]) -> str:
    """Write a run as a row of a table, with the options in which the runs differ."""
    config = line["config"]
    used = [name for name in varying if name not in unused_settings(config)]
    words = [word for name in used for word in option_words(name, config[name])]
    if "error" in line:
        return f" failed  {' '.join(words)}: {line['error']}"
    result = line["result"]
    error = result.get("test_error", result["validation_error"])
    figures = f"{'-' if error is None else f'{error:.2f}':>7}  {result['architecture']:<13}"
    text = " ".join([f"{figures}{result['weights']:>9,} ", *words])
    return textwrap.fill(text, 80, subsequent_indent=33 * " ", break_on_hyphens=False)
