"""Sweeps: many training runs, several at a time, on one machine or on a Dask cluster.

Each run is a :class:`~minidiff.training.trainer.Config`; what it has come to is one line of
JSON in a file. A sweep that was killed goes on with the runs that have no line yet, and a run that
fails has a line that says how, which the next sweep tries again. A line stays for good, whatever
changes in the code: it names the versions that it is of, and is to be deleted to be made again.
"""

import json
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from minidiff.data.datasets import Dataset, load_dataset
from minidiff.io.extras import extra
from minidiff.io.files import append_line
from minidiff.training.runs import versions
from minidiff.training.trainer import Config, ConfigError, Trainer, error_rate

__all__ = ["read_results", "run_once", "sweep"]

# What a result tells at least; errors are there as far as they were asked for.
NUMBERS = ("weights", "dense_weights", "macs", "dense_macs", "seconds")
# What is kept of the way there, of at most so many epochs; the rest is of the last epoch only.
KEPT = ("epoch", "loss", "train_error", "validation_error", "weights", "macs", "architecture")
POINTS = 30


def run_once(settings: dict[str, Any], *, test: bool, threads: int) -> dict[str, Any]:
    """Train one network and return what it has come to, of JSON's types.

    Parameters
    ----------
    settings
        Of a :class:`~minidiff.training.trainer.Config`, as its ``to_json`` gives.
    test
        Whether to read the test set when the run has ended: for results, not for choices.
    threads
        How many a run may use.

    Returns
    -------
    dict
        "config", "versions" (of what it was trained with), "history" (a few figures of some
        epochs, the last among them), and "result", or "error" if the run failed.

    Raises
    ------
    ConfigError
        If ``settings`` are not those of a configuration.

    Examples
    --------
    >>> config = Config.recipe("digits", model="lenet300", sparsity="dense", epochs=1)
    >>> run_once(config.to_json(), test=False, threads=2)["result"]["architecture"]
    '784-300-100'
    """
    import numba

    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]  # set on import
    config = Config.from_json(settings)
    line: dict[str, Any] = {"config": settings, "versions": versions()}
    began = time.perf_counter()
    try:
        data = _dataset(config.dataset, config.validation)
        trainer = Trainer(config, data)
        while trainer.step < trainer.steps:
            trainer.train_epoch()
        records = trainer.records
        last = {k: v for k, v in records[-1].items() if k not in ("epoch", "step", "frozen")}
        if test:
            last["test_error"] = error_rate(trainer.model, data.test, mean=data.mean, std=data.std)
        last["seconds"] = time.perf_counter() - began
        line["history"] = _history(records)
        line["result"] = last
    except Exception as error:  # whatever it is, the other runs go on
        line["error"] = f"{type(error).__name__}: {error}"
    return line


def _history(records: list[dict[str, Any]]) -> dict[str, list[Any]]:
    every = -(-len(records) // POINTS)
    shown = records[::-every][::-1]
    return {
        name: [round(v, 6) if isinstance(v := record[name], float) else v for record in shown]
        for name in KEPT
    }


@lru_cache(maxsize=1)
def _dataset(name: str, validation: int) -> Dataset:
    return load_dataset(name, validation=validation)


def read_results(path: Path) -> list[dict[str, Any]]:
    """Read the lines of a results file, as :func:`run_once` has made them.

    Left out, with a warning, are lines that are damaged, as a kill may have cut them short, or have
    settings that are unknown here. A sweep makes their runs again.

    Parameters
    ----------
    path
        Of the file; where there is none there are no lines.

    Returns
    -------
    list of dict
        Their "config" is a :class:`~minidiff.training.trainer.Config`.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     line = '{"config": {"seed": 3}, "error": "MemoryError: "}'
    ...     append_line(Path(directory) / "runs.jsonl", line)
    ...     [line["config"].seed for line in read_results(Path(directory) / "runs.jsonl")]
    [3]
    """
    if not path.exists():
        return []
    lines, refused = [], []
    for number, text in enumerate(path.read_bytes().splitlines(), 1):
        try:
            lines.append(_checked(text))
        except ValueError as error:
            refused.append(f"line {number}: {error}")
    if refused:
        warnings.warn(
            f"{path}: {len(refused)} of its lines are left out, and their runs count as not made; "
            f"{refused[0]}",
            stacklevel=1,  # one place: who reads a file twice is told once
        )
    return lines


def _checked(text: bytes) -> dict[str, Any]:
    """Read a line as :func:`run_once` makes it; ValueError says what is wrong."""
    try:
        line = json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError):
        raise ValueError("it is not JSON, or was cut short.") from None
    if not isinstance(line, dict) or "config" not in line:
        raise ValueError("it is not of a run.")
    config = Config.from_json(line["config"])
    if "error" not in line:
        result, history = line.get("result"), line.get("history")
        if not isinstance(result, dict) or not isinstance(history, dict):
            raise ValueError("it has neither a result with its history nor an error.")
        errors = {name: result.get(name) for name in ("validation_error", "test_error")}
        wrong = [name for name in NUMBERS if not _is_number(result.get(name))]
        wrong += [name for name, v in errors.items() if v is not None and not _is_number(v)]
        wrong += [name for name in ("architecture", "dense_architecture") if name not in result]
        wrong += [name for name in ("epoch", "architecture") if name not in history]
        if wrong:
            raise ValueError(f"its {wrong[0]} is missing, or not what it should be.")
    return {**line, "config": config}


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON.")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


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
        The runs; the same one twice is one run.
    path
        The file of results, ``.jsonl``.
    jobs
        How many runs at a time on this machine. The cores are shared out among them; a result
        does not depend on the number of threads.
    cluster
        The address of a Dask scheduler, in place of ``jobs``: each thread of its workers does a run
        at a time, on one core. Workers need minidiff and the data.
    test
        As of :func:`run_once`. A result without a test error is made again if it is asked for.
    say
        Is told of each run that has ended.

    Raises
    ------
    ConfigError
        If ``jobs`` is not an integer >= 1.
    OSError
        If the file cannot be written or the cluster not be reached.

    Examples
    --------
    >>> import tempfile
    >>> config = Config.recipe("digits", model="lenet300", sparsity="dense", epochs=1)
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     path = Path(directory) / "runs.jsonl"
    ...     failed = sweep([config], path, say=lambda line: None)
    ...     sweep([config, config], path)  # goes on where that one ended
    1 runs, 1 of them done before.
    0
    """
    if not isinstance(jobs, int) or jobs < 1:
        raise ConfigError(f"jobs is {jobs!r}; expected an integer >= 1.")
    done = {
        line["config"]
        for line in read_results(path)
        if "result" in line and ("test_error" in line["result"] or not test)
    }
    runs = dict.fromkeys(configs)
    left = [config.to_json() for config in runs if config not in done]
    say(f"{len(runs)} runs, {len(runs) - len(left)} of them done before.")
    failed = 0
    tqdm = extra("tqdm").tqdm
    with _results(left, jobs, cluster, test) as lines:
        for line in tqdm(lines, total=len(left), unit="run", disable=None, dynamic_ncols=True):
            append_line(path, json.dumps(line, allow_nan=False))
            failed += "error" in line
            say(_summary(line))
    return failed


@contextmanager
def _results(
    runs: list[dict[str, Any]], jobs: int, cluster: str | None, test: bool
) -> Iterator[Iterable[dict[str, Any]]]:
    """Give the lines of the runs, as they end."""
    if cluster is None:
        threads = max(1, (os.cpu_count() or 1) // jobs)
        if jobs == 1:  # in this process, where an error is easier to follow
            yield (run_once(run, test=test, threads=threads) for run in runs)
            return
        joblib = extra("joblib")
        # New processes, not forks: threads of OpenMP do not survive a fork.
        with joblib.parallel_config("loky", n_jobs=jobs, inner_max_num_threads=threads):
            yield _on_processes(joblib, runs, jobs, test, threads)
        return
    distributed = extra("distributed", needed_by="cluster")
    try:
        client = distributed.Client(cluster, timeout=10)
    except (OSError, TimeoutError, ValueError) as error:
        raise OSError(
            f"no Dask scheduler answers at {cluster} ({error}); expected an address such as "
            f"tcp://127.0.0.1:8786, which dask scheduler prints."
        ) from error
    with client:
        futures = {
            client.submit(run_once, run, test=test, threads=1, pure=False): run for run in runs
        }
        yield (
            future.result()
            if future.status == "finished"
            else _lost(futures[future], future.exception())
            for future in distributed.as_completed(futures)
        )


def _on_processes(
    joblib: Any, runs: list[dict[str, Any]], jobs: int, test: bool, threads: int
) -> Iterator[dict[str, Any]]:
    """Give the lines of the runs; a worker that dies takes the runs along that are under way."""
    while runs:
        begun: list[dict[str, Any]] = []
        ended: list[dict[str, Any]] = []

        def tasks(
            runs: list[dict[str, Any]] = runs, begun: list[dict[str, Any]] = begun
        ) -> Iterator[Any]:
            for run in runs:
                begun.append(run)
                yield joblib.delayed(run_once)(run, test=test, threads=threads)

        try:
            # One run at a time for each worker: a batch would be lost as a whole.
            parallel = joblib.Parallel(
                return_as="generator_unordered", pre_dispatch=jobs, batch_size=1
            )
            for line in parallel(tasks()):
                ended.append(line["config"])
                yield line
        except BrokenProcessPool as error:
            yield from (_lost(run, error) for run in begun if run not in ended)
        runs = [run for run in runs if run not in begun]


def _lost(run: dict[str, Any], error: BaseException) -> dict[str, Any]:
    """Return the line of a run whose worker has died or cannot work."""
    said = " ".join(str(error).split())[:200]
    return {"config": run, "error": f"its worker failed: {type(error).__name__}: {said}"}


def _summary(line: dict[str, Any]) -> str:
    config = Config.from_json(line["config"])
    name = f"{config.method} {config.sparsity} {config.model}, seed {config.seed}"
    strength = (
        f"keep {config.keep:g}" if config.method == "magnitude" else f"lambda {config.penalty:g}"
    )
    name += f", {strength}" if config.gated else ""
    if "error" in line:
        return f"{name}: FAILED, {line['error']}"
    result = line["result"]
    errors = [
        f"{result[f'{part}_error']:.2f} % {part.replace('_', ' ')} error"
        for part in ("validation", "test")
        if result.get(f"{part}_error") is not None
    ]
    fewer = [
        f"{result[f'dense_{what}'] / result[what]:.1f}x fewer {noun}"
        for what, noun in (("weights", "weights"), ("macs", "MACs"))
        if result[what]
    ]
    return f"{name}: {', '.join([*errors, *fewer, result['architecture']])}"
