"""Sweeps: every run has its line, whoever trains it, and whatever happens in between."""

import json
import os
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from minidiff.io.files import append_line
from minidiff.training import sweep as sweeps
from minidiff.training.config import Config, ConfigError
from minidiff.training.runs import RunError, versions
from minidiff.training.sweep import combinations, read_results, run_once, sweep

pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
pytest.importorskip("joblib", reason="it runs the sweep")

QUICK = {"model": ["lenet300"], "sparsity": ["dense"], "epochs": [1], "batch_size": [400]}


def configs(*seeds: int, **changes: Any) -> list[Config]:
    return combinations("digits", **QUICK | {"seed": seeds} | {k: [v] for k, v in changes.items()})


def quiet(text: str) -> None:
    pass


def results(path: Path) -> dict[Config, Any]:
    """Return the results that must not depend on who has trained a run, by its settings."""
    timed = ("seconds", "step_ms")
    return {
        line["config"]: {k: v for k, v in line["result"].items() if k not in timed}
        for line in read_results(path)
        if "result" in line
    }


# -- combinations ----------------------------------------------------------------------------------


def test_every_combination_is_a_run() -> None:
    runs = combinations("digits", penalty=[0.1, 0.2], seed=[0, 1, 1], epochs=[5])
    assert [(run.penalty, run.seed) for run in runs] == [(0.1, 0), (0.1, 1), (0.2, 0), (0.2, 1)]
    assert {run.epochs for run in runs} == {5}


def test_a_run_takes_only_the_settings_that_it_uses() -> None:
    lists = {"penalty": [0.1, 0.2], "keep": [0.5, 0.6], "seed": [0]}
    methods = ["group-lasso", "magnitude"]
    runs = combinations("digits", sparsity=["structured"], method=methods, **lists)
    recipe = Config.recipe("digits")
    assert [(run.method, run.penalty, run.keep) for run in runs] == [
        ("group-lasso", 0.1, recipe.keep),
        ("group-lasso", 0.2, recipe.keep),
        ("magnitude", recipe.penalty, 0.5),
        ("magnitude", recipe.penalty, 0.6),
    ]
    assert len(combinations("digits", sparsity=["dense", "structured"], penalty=[0.1, 0.2])) == 3


def test_a_setting_that_no_run_uses_is_an_error() -> None:
    with pytest.raises(ConfigError, match="none of the runs uses penalty"):
        combinations("digits", sparsity=["dense"], penalty=[0.1, 0.2])


# -- one process -----------------------------------------------------------------------------------


def test_every_run_has_a_line_and_none_is_trained_twice(tmp_path: Path) -> None:
    path, told = tmp_path / "runs.jsonl", []
    runs = configs(0, 1)
    assert sweep(runs + runs, path, say=told.append) == 0
    lines = read_results(path)
    assert [line["config"] for line in lines] == runs
    assert all(line["versions"] == versions() for line in lines)
    assert "test_error" not in lines[0]["result"]
    assert lines[0]["history"]["epoch"] == [1]
    assert told[1].split() == ["error", "%", "architecture", "weights", "options"]
    assert told[3].split()[1:] == ["784-300-100", "266,200", "--seed", "1"]
    before = path.read_bytes()
    sweep(runs, path, say=told.append)
    assert path.read_bytes() == before
    assert told[-1] == "2 runs, 2 of them done before."


def test_the_test_set_is_read_only_when_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    sweep(configs(0), path, say=quiet)
    (first,) = results(path).values()
    sweep(configs(0), path, test=True, say=quiet)  # again, for the error that is missing
    (second,) = results(path).values()
    assert 0 <= second.pop("test_error") <= 100
    assert first == second


def test_a_run_that_fails_has_a_line_and_is_tried_again(tmp_path: Path) -> None:
    path, told = tmp_path / "runs.jsonl", []
    wild = configs(0, lr=1e30, warmup=0)
    assert sweep([*wild, *configs(1)], path, say=told.append) == 1
    failed, fine = read_results(path)
    assert failed["error"].startswith(("NonFiniteLossError: the loss is", "RuntimeWarning"))
    assert "result" in fine
    assert told[2].startswith(" failed  --seed 0 --lr 1e+30 --warmup 0: ")
    assert sweep(wild, path, say=told.append) == 1
    assert len(read_results(path)) == 3


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The line of a run that has succeeded."""
    path = tmp_path_factory.mktemp("sweep") / "runs.jsonl"
    sweep(configs(0), path, say=quiet)
    return json.loads(path.read_text())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda line: json.dumps(line)[:-40], "Unterminated|Expecting"),  # cut short by a kill
        (lambda line: b"\xff\xfe\x80", "utf"),
        (lambda line: "[]", ""),
        (lambda line: {**line, "config": line["config"] | {"depth": 3}}, "'depth'"),
        (lambda line: {**line, "config": line["config"] | {"seed": -1}}, "seed is -1"),
        (lambda line: {k: v for k, v in line.items() if k != "config"}, "config"),
        (lambda line: line | {"result": 5}, "no attribute"),
    ],
)
def test_a_damaged_line_is_named_and_its_run_trained_again(
    damage: Any, message: str, line: dict[str, Any], tmp_path: Path
) -> None:
    path, damaged = tmp_path / "runs.jsonl", damage(line)
    text = json.dumps(damaged) if isinstance(damaged, dict) else damaged
    other = json.dumps({"config": line["config"] | {"seed": 1}, "error": "of another run"})
    path.write_bytes(f"{other}\n".encode() + (text if isinstance(text, bytes) else text.encode()))
    with pytest.warns(UserWarning, match=f"line 2 is left out.*({message})"):
        assert sweep(configs(0), path, say=quiet) == 0
    with pytest.warns(UserWarning, match="line 2"):
        assert [line["config"] for line in read_results(path)] == [*configs(1), *configs(0)]
    assert path.read_bytes().count(b"\n") == 3  # the damaged line stays, by itself


@pytest.mark.parametrize("content", [b"my notes\n", b"\n", b"{\n}", b'{"config": 3}', b"\xff"])
def test_a_file_that_is_none_of_a_sweeps_is_left_alone(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    with pytest.raises(RunError, match=f"{path} is no results file of a sweep: it begins with"):
        sweep(configs(0), path, say=quiet)
    assert path.read_bytes() == content
    with pytest.raises(OSError, match="it is a directory; expected a regular file"):
        sweep(configs(0), tmp_path, say=quiet)


@pytest.mark.parametrize("content", [b"", b'{"con', b'{"config": {"lr'])
def test_a_file_whose_first_line_was_cut_short_is_a_sweeps(
    content: bytes, line: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "runs.jsonl"
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert read_results(path) == []
        append_line(path, json.dumps(line))
        assert [line["config"] for line in read_results(path)] == configs(0)


@pytest.mark.skipif(sys.platform == "win32", reason="files are not locked there")
def test_two_sweeps_do_not_write_to_one_file(tmp_path: Path) -> None:
    path, told = tmp_path / "runs.jsonl", []

    def say(text: str) -> None:
        told.append(text)
        with pytest.raises(RunError, match=f"another sweep writes {path}; choose another --out"):
            sweep(configs(1), path, say=quiet)

    assert sweep(configs(0), path, say=say) == 0
    assert len(told) == 3
    assert [line["config"] for line in read_results(path)] == configs(0)


def test_lines_from_before_a_setting_existed_are_read(line: dict[str, Any], tmp_path: Path) -> None:
    older = {name: value for name, value in line["config"].items() if name != "dropout"}
    (tmp_path / "runs.jsonl").write_text(json.dumps({**line, "config": older}))
    assert list(results(tmp_path / "runs.jsonl")) == configs(0)


def test_the_published_results_are_read() -> None:
    path = Path(__file__).parents[1] / "docs" / "results" / "runs.jsonl"
    assert len(read_results(path)) == len(path.read_text().splitlines())


def test_a_history_is_thinned_and_ends_with_the_last_epoch() -> None:
    records = [dict.fromkeys(sweeps.HISTORY, epoch) for epoch in range(1, 102)]
    history = sweeps._history(records)
    assert len(history["epoch"]) <= sweeps.POINTS
    assert history["epoch"][-1] == 101


def test_a_run_reports_whatever_went_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("out of luck")

    monkeypatch.setattr(sweeps, "Trainer", broken)
    line = run_once(configs(0)[0].to_json(), test=False, threads=1)
    assert line["error"] == "RuntimeError: out of luck"


@pytest.mark.parametrize("jobs", [0, -1, 1.5])
def test_a_number_of_jobs_out_of_range_is_an_error(jobs: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"jobs is {jobs}; expected an integer >= 1"):
        sweep(configs(0), tmp_path / "runs.jsonl", jobs=jobs)


# -- many processes --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of a Dask scheduler with two workers."""
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=50
    ) as cluster:
        yield cluster.scheduler_address


@pytest.mark.slow
def test_processes_and_a_cluster_come_to_the_same_bits(cluster: str, tmp_path: Path) -> None:
    runs, wild = configs(0, 1, 2), configs(0, lr=1e30, warmup=0)
    sweep(runs, tmp_path / "one.jsonl", say=quiet)
    assert sweep([*runs, *wild], tmp_path / "two.jsonl", jobs=2, say=quiet) == 1
    assert sweep([*runs, *wild], tmp_path / "cluster.jsonl", cluster=cluster, say=quiet) == 1
    expected = results(tmp_path / "one.jsonl")
    assert len(expected) == 3
    for name in ("two.jsonl", "cluster.jsonl"):
        assert results(tmp_path / name) == expected
        (failed,) = (line for line in read_results(tmp_path / name) if "error" in line)
        assert failed["config"] == wild[0]


RESULT = {"architecture": "0", "weights": 0, "validation_error": None}


@pytest.mark.slow
@pytest.mark.parametrize("where", ["processes", "cluster"])
def test_a_worker_that_dies_costs_the_runs_under_way(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    def stand_in(settings: dict[str, Any], **_: Any) -> dict[str, Any]:
        if settings["seed"] == 2:
            time.sleep(1)  # so that the runs before have ended
            os._exit(1)
        return {"config": settings, "result": RESULT, "history": {}}

    monkeypatch.setattr(sweeps, "run_once", stand_in)
    path = tmp_path / "runs.jsonl"
    address = request.getfixturevalue("cluster") if where == "cluster" else None
    failed = sweep(configs(*range(6)), path, jobs=2, cluster=address, say=quiet)
    lines = read_results(path)
    assert sorted(line["config"].seed for line in lines) == list(range(6))
    lost = [line for line in lines if "error" in line]
    assert 1 <= len(lost) == failed <= 2
    assert 2 in [line["config"].seed for line in lost]
    assert all(line["error"].startswith("its worker failed: ") for line in lost)


def test_a_cluster_that_does_not_answer_is_an_error(tmp_path: Path) -> None:
    dask = pytest.importorskip("dask")
    refused = pytest.raises(OSError, match=r"connect to tcp://127\.0\.0\.1:9")
    with dask.config.set({"distributed.comm.timeouts.connect": "0.2s"}), refused:
        sweep(configs(0), tmp_path / "runs.jsonl", cluster="tcp://127.0.0.1:9", say=quiet)
