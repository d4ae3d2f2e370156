"""Resuming: a run that was killed, at any moment and however often, ends at the same bits."""

import errno
import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from minidiff.cli import commands
from minidiff.cli import parser as cli
from minidiff.io.checkpoint import Checkpoint
from minidiff.training.runs import Run, RunError

pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
pytest.importorskip("safetensors", reason="checkpoints need safetensors")

# Stochastic gates, dropout, augmentation, both optimisers, ramp and average: all with a state.
SETTINGS = (
    *("--dataset", "digits", "--epochs", "6", "--batch-size", "100", "--lr", "0.02", "--augment"),
    *("--gate-lr", "0.05", "--gate-start", "0.1", "--initial", "0.5", "--lambda", "0.02"),
    *("--noise", "normal", "--sigma", "0.3", "--swa-lr", "0.01", "--dropout", "0.1"),
)


def start(*arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "minidiff", "train", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: "subprocess.Popen[str]") -> str:
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    return out


@dataclass(frozen=True)
class Straight:
    """A run that nothing has interrupted, and when its training began and ended, in seconds."""

    path: Path
    began: float
    ended: float


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Straight:
    directory = tmp_path_factory.mktemp("straight")
    finish(start(*SETTINGS, "--epochs", "1", "--out", str(directory / "warm")))  # compiles
    run, now = directory / "run", time.time()
    finish(start(*SETTINGS, "--out", str(run)))
    times = [(run / name).stat().st_mtime - now for name in ("config.json", "metrics.jsonl")]
    return Straight(run, *times)


def assert_same_run(path: Path, expected: Path) -> None:
    ours, theirs = (Checkpoint.read(p / "checkpoint.safetensors") for p in (path, expected))
    for a, b in ((ours.model.state_dict(), theirs.model.state_dict()), (ours.state, theirs.state)):
        assert list(a) == list(b)
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])
    for info in (ours.info, theirs.info):
        assert len(info.pop("records")) == 6  # which have times
    assert ours.info == theirs.info
    records = [
        [{k: v for k, v in r.items() if k not in ("step_ms", "seconds")} for r in Run(p).metrics()]
        for p in (path, expected)
    ]
    assert records[0] == records[1]
    results = [json.loads((p / "result.json").read_text()) for p in (path, expected)]
    assert results[0]["test_error"] == results[1]["test_error"]


@pytest.mark.slow
def test_a_killed_run_ends_at_the_same_bits(straight: Straight, tmp_path: Path) -> None:
    run, epoch = tmp_path / "run", (straight.ended - straight.began) / 6
    for least, later in ((1, 0.0), (2, 0.4), (4, 0.8)):  # epochs, and shares of one
        begun = (run / "config.json").exists()
        process = start(*(("--resume", str(run)) if begun else (*SETTINGS, "--out", str(run))))
        while process.poll() is None and len(Run(run).metrics()) < least:
            time.sleep(0.005)
        time.sleep(later * epoch)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "it has ended before it was killed"
        assert least <= len(Run(run).metrics()) <= 6
        assert not Run(run).finished
    finish(start("--resume", str(run)))
    assert_same_run(run, straight.path)


def cut(run: Path, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Train from the start and interrupt before a step."""
    whole_step = commands.Trainer.train_step

    def stopping(self: commands.Trainer, *batch: np.ndarray) -> tuple[float, int]:
        if self.step == step:
            raise KeyboardInterrupt
        return whole_step(self, *batch)

    with monkeypatch.context() as patch:
        patch.setattr(commands.Trainer, "train_step", stopping)
        assert cli.main(["train", *SETTINGS, "--out", str(run)]) == commands.INTERRUPTED


@pytest.mark.parametrize("step", [0, 40])
def test_an_interrupted_run_ends_at_the_same_bits(
    step: int,
    straight: Straight,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    cut(run, monkeypatch, step)
    assert f"minidiff train --resume {run} goes on" in capsys.readouterr().out
    assert cli.main(["train", "--resume", str(run)]) == 0
    assert_same_run(run, straight.path)


def test_metrics_and_leftovers_of_a_crash_are_put_right(
    straight: Straight, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    cut(run, monkeypatch, 30)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 3, "loss": 99}\n{"epoch": 4, "lo')
    (run / ".checkpoint.safetensors.0123.part").write_bytes(b"half")
    assert cli.main(["train", "--resume", str(run)]) == 0
    assert_same_run(run, straight.path)
    assert not list(run.rglob("*.part"))


def test_a_finished_run_is_left_as_it_is(
    straight: Straight, capsys: pytest.CaptureFixture[str]
) -> None:
    path = straight.path
    before = {p: p.stat().st_mtime_ns for p in path.rglob("*")}
    assert cli.main(["train", "--resume", str(path)]) == 0
    out = capsys.readouterr().out
    assert "has finished" in out
    assert "test error" in out
    assert {p: p.stat().st_mtime_ns for p in path.rglob("*")} == before


def failure(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(arguments) == 1
    return capsys.readouterr().err


def test_resuming_takes_no_other_settings(
    straight: Straight, capsys: pytest.CaptureFixture[str]
) -> None:
    error = failure(capsys, "train", "--resume", str(straight.path), "--epochs", "9", "--dense")
    assert "cannot change sparsity, epochs" in error


def unfinished(straight: Straight, directory: Path) -> Path:
    """Copy the run, without its result."""
    run = directory / "run"
    shutil.copytree(straight.path, run)
    (run / "result.json").unlink()
    return run


@pytest.mark.parametrize(
    "damage", ["checkpoint", "config", "other data", "no optimiser", "not JSON", "not a config"]
)
def test_what_cannot_be_resumed_is_said_and_left_alone(
    damage: str,
    straight: Straight,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = unfinished(straight, tmp_path)
    if damage == "checkpoint":
        good = (run / "checkpoint.safetensors").read_bytes()
        (run / "checkpoint.safetensors").write_bytes(good[:-1])
    elif damage == "not JSON":
        (run / "config.json").write_text('{"lr": ')
    elif damage == "not a config":
        (run / "config.json").write_text("[1]")
    elif damage == "config":
        config = json.loads((run / "config.json").read_text())
        (run / "config.json").write_text(json.dumps(config | {"lr": 0.5}))
    else:
        checkpoint = Checkpoint.read(run / "checkpoint.safetensors")
        if damage == "other data":
            checkpoint.info["mean"] = 0.5
        else:
            checkpoint.state.clear()
        checkpoint.write(run / "checkpoint.safetensors")
    before = {p.name: p.read_bytes() for p in run.iterdir() if p.is_file()}
    message = {
        "checkpoint": "cannot be read as a checkpoint",
        "no optimiser": "records or optimisers have not come as far as step",
        "not JSON": "cannot be read as JSON",
        "not a config": "expected a JSON object",
        "config": "of a run with another configuration",
        "other data": "not those of the run",
    }[damage]
    assert message in failure(capsys, "train", "--resume", str(run))
    assert {p.name: p.read_bytes() for p in run.iterdir() if p.is_file()} == before


@pytest.mark.skipif(sys.platform == "win32", reason="files are not locked there")
def test_two_processes_do_not_train_in_one_directory(
    straight: Straight, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = unfinished(straight, tmp_path)
    with Run(run).training():
        being_written = run / ".metrics.jsonl.0.part"
        being_written.touch()
        error = failure(capsys, "train", "--resume", str(run))
        assert being_written.exists()
    assert f"another process is training in {run}" in error
    assert cli.main(["train", "--resume", str(run)]) == 0
    assert not being_written.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="files are not locked there")
def test_of_two_new_runs_in_one_directory_the_second_is_refused(tmp_path: Path) -> None:
    first, second = Run.create(tmp_path), Run.create(tmp_path)  # both have found it empty
    refused = pytest.raises(RunError, match="another process is training")
    with first.training({"seed": 1}), refused, second.training({"seed": 2}):
        pass
    refused = pytest.raises(RunError, match=r"is not empty \(it holds config.json\)")
    with refused, second.training({"seed": 2}):
        pass
    assert first.read_json("config.json") == {"seed": 1}


def test_where_nothing_can_be_locked_training_goes_on_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl = pytest.importorskip("fcntl", reason="files are not locked there")

    def unable(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unable)
    with pytest.warns(UserWarning, match="cannot be locked"), Run(tmp_path).training({"seed": 1}):
        assert Run.open(tmp_path).read_json("config.json") == {"seed": 1}


def test_metrics_that_were_lost_come_back(straight: Straight, tmp_path: Path) -> None:
    run = unfinished(straight, tmp_path)
    (run / "metrics.jsonl").unlink()
    assert cli.main(["train", "--resume", str(run)]) == 0
    assert_same_run(run, straight.path)


def test_a_finished_run_that_has_lost_its_checkpoint_says_so(
    straight: Straight, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(straight.path, run)
    (run / "checkpoint.safetensors").unlink()
    for command in (["train", "--resume"], ["evaluate"]):
        assert "has lost its checkpoint" in failure(capsys, *command, str(run))
