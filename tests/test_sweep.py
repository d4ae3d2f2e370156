"""Sweeps: every run has its line, whoever does it, and whatever happens in between."""

import json
import math
import os
import time
from pathlib import Path
from typing import Any

import pytest

from minidiff.cli.parser import main
from minidiff.io.files import append_line
from minidiff.training import sweep as sweeps
from minidiff.training.runs import versions
from minidiff.training.sweep import read_results, run_once, sweep
from minidiff.training.trainer import Config, ConfigError

SHORT = Config.recipe("digits", epochs=1, batch_size=400)


def configs(*seeds: int, **changes: Any) -> list[Config]:
    return [Config.recipe("digits", epochs=1, batch_size=400, seed=s, **changes) for s in seeds]


def quiet(text: str) -> None:
    pass


def comparable(path: Path) -> dict[Config, Any]:
    """All that must not depend on who has done a run, by its settings."""
    timed = ("seconds", "step_ms")
    return {
        line["config"]: {k: v for k, v in line["result"].items() if k not in timed}
        for line in read_results(path)
        if "result" in line
    }


def test_every_run_has_a_line_and_none_is_done_twice(tmp_path: Path) -> None:
    path, said = tmp_path / "runs.jsonl", []
    runs = configs(0, 1) + configs(0, method="magnitude", keep=0.5)
    assert sweep(runs + runs, path, say=said.append) == 0
    lines = read_results(path)
    assert [line["config"] for line in lines] == runs
    assert all(line["versions"] == versions() for line in lines)
    assert "test_error" not in lines[0]["result"]
    assert lines[0]["history"]["epoch"] == [1]
    assert any("magnitude structured lenet5, seed 0, keep 0.5" in text for text in said)
    before = path.read_bytes()
    sweep(runs, path, say=said.append)
    assert path.read_bytes() == before
    assert said[-1] == "3 runs, 3 of them done before."


def test_the_test_set_is_read_only_when_it_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    sweep([SHORT], path, say=quiet)
    sweep([SHORT], path, test=True, say=quiet)  # once more, for the error that is missing
    first, second = read_results(path)
    assert "test_error" not in first["result"]
    assert 0 <= second["result"].pop("test_error") <= 100
    for line in (first, second):
        del line["result"]["seconds"], line["result"]["step_ms"]
    assert first["result"] == second["result"]


def test_a_run_that_fails_is_a_line_and_is_tried_again(tmp_path: Path) -> None:
    path, said = tmp_path / "runs.jsonl", []
    wild = configs(0, lr=1e8, warmup=0)
    assert sweep([*wild, *configs(1)], path, say=said.append) == 1
    failed, fine = read_results(path)
    assert failed["error"].startswith(("NonFiniteLossError: the loss is", "RuntimeWarning"))
    assert "result" in fine
    assert any("seed 0, lambda 0.01: FAILED, " in text for text in said)
    assert sweep(wild, path, say=said.append) == 1
    assert len(read_results(path)) == 3


def test_a_line_that_a_kill_has_cut_short_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    sweep(configs(0, 1), path, say=quiet)
    whole = comparable(path)
    text = path.read_bytes()
    path.write_bytes(text[:-40])
    with pytest.warns(UserWarning, match=r"1 of its lines are left out.*line 2: .* cut short"):
        sweep(configs(0, 1), path, say=quiet)
    with pytest.warns(UserWarning, match="line 2"):
        assert comparable(path) == whole
    assert path.read_bytes().count(b"\n") == 3  # the torn line stays, by itself


def test_lines_are_added_and_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    append_line(path, "a")
    append_line(path, "b")
    assert path.read_text() == "a\nb\n"
    with pytest.raises(OSError, match="cannot be written"):
        append_line(tmp_path / "none" / "lines", "a")


def test_lines_of_other_versions_are_read_if_their_settings_are_known(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    older = {name: value for name, value in SHORT.to_json().items() if name != "dropout"}
    for config in (older, SHORT.to_json() | {"depth": 3}, SHORT.to_json() | {"seed": -1}, 7):
        append_line(path, json.dumps({"config": config, "error": "of memory"}))
    with pytest.warns(UserWarning, match=r"3 of its lines are left out.*line 2: .*'depth'"):
        lines = read_results(path)
    assert [line["config"] for line in lines] == [SHORT]  # with the default for it


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda line: b"\xff\xfe\x80", "not JSON"),
        (lambda line: b"[" * 100_000, "not JSON"),
        (lambda line: b"[]", "not of a run"),
        (lambda line: line | {"result": None}, "neither a result"),
        (lambda line: {k: v for k, v in line.items() if k != "history"}, "neither a result"),
        (lambda line: line | {"result": {}}, "its weights is missing"),
        (lambda line: line | {"history": {}}, "its epoch is missing"),
        (lambda line: line | {"result": line["result"] | {"test_error": "abc"}}, "its test_error"),
        (lambda line: line | {"result": line["result"] | {"test_error": math.nan}}, "not JSON"),
    ],
)
def test_a_damaged_line_is_named_and_its_run_made_again(
    tmp_path: Path, done: bytes, damage: Any, said: str
) -> None:
    path = tmp_path / "runs.jsonl"
    damaged = damage(json.loads(done))
    text = damaged if isinstance(damaged, bytes) else json.dumps(damaged).encode()
    path.write_bytes(text + b"\n" + done)
    with pytest.warns(UserWarning, match=f"1 of its lines are left out.*line 1: .*{said}"):
        assert [line["config"] for line in read_results(path)] == [SHORT]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("sweep") / "runs.jsonl"
    sweep([SHORT], path, say=quiet)
    return path.read_bytes()


@pytest.mark.slow
def test_processes_and_a_cluster_come_to_the_same_bits(tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed")
    runs = configs(0, 1, 2)
    sweep(runs, tmp_path / "one.jsonl", say=quiet)
    sweep(runs, tmp_path / "two.jsonl", jobs=2, say=quiet)
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=50
    ) as cluster:
        wild = configs(0, lr=1e8, warmup=0)
        path = tmp_path / "cluster.jsonl"
        assert sweep([*runs, *wild], path, cluster=cluster.scheduler_address, say=quiet) == 1
        lines = read_results(path)
        assert sum("error" in line for line in lines) == 1
        failed = [line for line in lines if "error" in line]
        assert failed[0]["config"] == wild[0]
    expected = comparable(tmp_path / "one.jsonl")
    assert comparable(tmp_path / "two.jsonl") == expected
    assert comparable(path) == expected


@pytest.mark.slow
def test_a_worker_that_dies_costs_the_runs_under_way_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stand_in(settings: dict[str, Any], **_: Any) -> dict[str, Any]:
        if settings["seed"] == 2:
            time.sleep(1)  # so that those before have been told of
            os._exit(1)
        result = dict.fromkeys(("weights", "dense_weights", "macs", "dense_macs", "seconds"), 0)
        sizes = {"architecture": "0", "dense_architecture": "0"}
        history = {"epoch": [], "architecture": []}
        return {"config": settings, "result": {**result, **sizes}, "history": history}

    monkeypatch.setattr(sweeps, "run_once", stand_in)
    path, said = tmp_path / "runs.jsonl", []
    failed = sweep(configs(*range(6)), path, jobs=2, say=said.append)
    lines = read_results(path)
    assert sorted(line["config"].seed for line in lines) == list(range(6))
    lost = [line for line in lines if "error" in line]
    assert 1 <= len(lost) == failed <= 2
    assert 2 in [line["config"].seed for line in lost]
    assert all(line["error"].startswith("its worker failed: ") for line in lost)


def test_a_cluster_that_does_not_answer_is_an_error_that_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distributed = pytest.importorskip("distributed")

    def unreachable(address: str, timeout: float) -> None:
        raise OSError(f"nobody at {address}")

    monkeypatch.setattr(distributed, "Client", unreachable)
    with pytest.raises(OSError, match=r"no Dask scheduler answers at tcp://x:1 .* such as"):
        sweep([SHORT], tmp_path / "runs.jsonl", cluster="tcp://x:1", say=quiet)


def test_the_command_says_which_images_it_takes_and_dense_runs_have_no_strengths(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "runs.jsonl")
    words = ["sweep", "--dataset", "digits", "--model", "lenet300", "--dense", "--epochs", "1"]
    assert main([*words, "--out", out]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("data: The 1,797 handwritten 8x8 digits of scikit-learn")
    assert "dense lenet300, seed 0: " in printed
    assert main([*words, "--lambdas", "0.1,0.2", "--out", out]) == 1
    assert "it leaves no use for penalty" in capsys.readouterr().err


@pytest.mark.parametrize("jobs", [0, -1, 1.5])
def test_a_number_of_jobs_out_of_range_is_an_error(jobs: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"jobs is {jobs}"):
        sweep([SHORT], tmp_path / "runs.jsonl", jobs=jobs)


def test_history_is_thinned_and_ends_with_the_last_epoch() -> None:
    records = [dict.fromkeys(sweeps.KEPT, epoch) for epoch in range(1, 102)]
    history = sweeps._history(records)
    assert len(history["epoch"]) <= sweeps.POINTS
    assert history["epoch"][-1] == 101


def test_the_command_runs_methods_by_strengths_by_seeds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "runs.jsonl"
    words = "sweep --dataset digits --epochs 1 --batch-size 400 --seeds 0,1 --lambdas 0.01,0.02"
    more = "--methods diffprune,magnitude --keeps 0.5"
    assert main([*words.split(), *more.split(), "--out", str(out)]) == 0
    found = {
        (c.method, c.penalty if c.method == "diffprune" else c.keep, c.seed)
        for c in (line["config"] for line in read_results(out))
    }
    both = {("diffprune", 0.01), ("diffprune", 0.02), ("magnitude", 0.5)}
    assert found == {(*strength, seed) for strength in both for seed in (0, 1)}
    assert main([*words.split(), "--out", str(tmp_path / "runs.txt")]) == 1
    assert "expected a file that ends in .jsonl" in capsys.readouterr().err
    for bad in (["--methods", "best"], ["--seeds", "0;1"], ["--lambdas", "much"]):
        with pytest.raises(SystemExit):
            main(["sweep", *bad])


def test_a_run_reports_what_went_wrong_whatever_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("out of luck")

    monkeypatch.setattr(sweeps, "Trainer", broken)
    line = run_once(SHORT.to_json(), test=False, threads=1)
    assert line["error"] == "RuntimeError: out of luck"


def test_settings_that_are_equal_are_one_run() -> None:
    assert Config(penalty=1, swa_lr=0) == Config(penalty=1.0, swa_lr=0.0)
    assert hash(Config(penalty=1, swa_lr=0)) == hash(Config(penalty=1.0, swa_lr=0.0))
