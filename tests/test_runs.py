"""Run directories: whole files, one process at a time, and runs that resume to the same bits."""

import errno
import json
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minidiff.cli.parser import main
from minidiff.io.checkpoint import Checkpoint
from minidiff.training.runs import Run, RunError, free_path, versions
from minidiff.training.trainer import Trainer

no_locks = pytest.mark.skipif(sys.platform == "win32", reason="files are not locked there")


def records(path: Path) -> list[dict[str, Any]]:
    """Read metrics.jsonl without times; no lines before the first epoch."""
    lines = (path / "metrics.jsonl").read_text() if (path / "metrics.jsonl").exists() else ""
    timed = ("step_ms", "seconds")
    return [
        {key: value for key, value in json.loads(line).items() if key not in timed}
        for line in lines.splitlines()
    ]


def assert_same_run(path: Path, expected: Path) -> None:
    ours, theirs = (Checkpoint.read(p / "checkpoint.safetensors") for p in (path, expected))
    for a, b in ((ours.model.state_dict(), theirs.model.state_dict()), (ours.state, theirs.state)):
        assert list(a) == list(b)
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])
    for info in (ours.info, theirs.info):
        del info["records"]  # which have times
    assert ours.info == theirs.info
    assert records(path) == records(expected)
    results = [json.loads((p / "result.json").read_text()) for p in (path, expected)]
    assert results[0]["test_error"] == results[1]["test_error"]


def failure(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main([str(argument) for argument in arguments]) == 1
    return capsys.readouterr().err


@pytest.fixture(autouse=True)
def _no_plots(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw nothing, except in the run that is shared; figures have tests of their own."""
    monkeypatch.setattr("minidiff.figures.plots.plot_run", lambda *arguments: None)


@pytest.fixture
def unfinished(trained: Path, tmp_path: Path) -> Path:
    """A copy of a run that has trained to its end, without its result."""
    shutil.copytree(trained, tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    return tmp_path / "run"


# -- resuming --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_killed_run_ends_at_the_same_bits(
    trained: Path, run_words: list[str], tmp_path: Path
) -> None:
    run, minidiff = tmp_path / "run", [sys.executable, "-m", "minidiff"]
    command = [*minidiff, *run_words, "--out", str(run)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while process.poll() is None and len(records(run)) < 2:
        time.sleep(0.005)
    time.sleep(0.1)  # into the next epoch
    process.kill()
    assert process.wait() == -signal.SIGKILL, "it has ended before it was killed"
    assert 2 <= len(records(run)) < 4
    subprocess.run(
        [*minidiff, "train", "--resume", str(run)], check=True, stdout=subprocess.DEVNULL
    )
    assert_same_run(run, trained)


@pytest.mark.parametrize("step", [0, 50])
def test_a_run_that_ctrl_c_has_ended_resumes_to_the_same_bits(
    step: int,
    trained: Path,
    run_words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, train_step = tmp_path / "run", Trainer.train_step

    def stopping(self: Trainer, *batch: Any) -> tuple[float, int]:
        if self.step == step:
            raise KeyboardInterrupt
        return train_step(self, *batch)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", stopping)
        assert main([*run_words, "--out", str(run)]) == 130
    out, err = capsys.readouterr()
    assert f"{Run(run).resume_command} goes on" in out
    assert "interrupted" in err
    with (run / "metrics.jsonl").open("a") as file:  # as if the power had failed, too
        file.write('{"epoch": 3, "loss": 99}\n{"epoch": 4, "lo')
    (run / ".checkpoint.safetensors.0123.part").write_bytes(b"half")
    assert main(["train", "--resume", str(run)]) == 0
    assert_same_run(run, trained)
    assert not list(run.rglob("*.part"))


def test_a_finished_run_is_left_as_it_is(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*")}
    assert main(["train", "--resume", str(trained)]) == 0
    assert "has finished" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in trained.rglob("*")} == before


def test_lost_metrics_and_results_come_back(unfinished: Path, trained: Path) -> None:
    (unfinished / "metrics.jsonl").unlink()
    assert main(["train", "--resume", str(unfinished)]) == 0
    assert_same_run(unfinished, trained)


@pytest.mark.parametrize("option", [["--epochs", "9"], ["--augment"], ["--out", "elsewhere"]])
def test_resuming_takes_no_other_settings(
    option: list[str], trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "keeps the settings of the run" in failure(capsys, "train", "--resume", trained, *option)


def damage_checkpoint(run: Path) -> None:
    path = run / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def change_config(run: Path) -> None:
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"lr": 0.5}))


def change_data(run: Path) -> None:
    checkpoint = Checkpoint.read(run / "checkpoint.safetensors")
    checkpoint.info["mean"] = 0.5
    checkpoint.write(run / "checkpoint.safetensors")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_checkpoint, "cannot be read as a checkpoint"),
        (change_config, "another configuration"),
        (change_data, "other training images"),
        (lambda run: (run / "config.json").write_text('{"lr": '), "cannot be read as JSON"),
        (lambda run: (run / "config.json").write_text("[1]"), "not settings of this minidiff"),
        (lambda run: (run / "config.json").unlink(), "has no config.json"),
    ],
)
def test_a_damaged_run_is_named_and_left_alone(
    damage: Any, message: str, unfinished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(unfinished)
    before = {path: path.read_bytes() for path in unfinished.iterdir() if path.is_file()}
    assert message in failure(capsys, "train", "--resume", unfinished)
    assert {path: path.read_bytes() for path in before} == before


def test_a_run_without_a_checkpoint_says_how_to_go_on(trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "ü sp 数 it's"
    run.mkdir()
    shutil.copy(trained / "config.json", run)
    with pytest.raises(RunError) as caught:
        Run.open(run).checkpoint()
    said, command = str(caught.value).split(" has no checkpoint: ")
    assert (said, *shlex.split(command)) == (str(run), "minidiff", "train", "--resume", str(run))


# -- directories -----------------------------------------------------------------------------------


def test_a_directory_that_is_not_empty_is_refused(tmp_path: Path) -> None:
    (tmp_path / "photo.png").touch()
    with pytest.raises(
        RunError, match=r"is not empty \(it holds photo.png\); choose another --out"
    ):
        Run.create(tmp_path)


def test_leftovers_of_a_killed_process_do_not_fill_a_directory(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    (tmp_path / ".config.json.0.part").touch()
    assert Run.create(tmp_path).path == tmp_path


def test_new_directories_are_numbered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = [Run.create(free_path("digits")).path.as_posix() for _ in range(3)]
    assert names == ["runs/digits", "runs/digits-2", "runs/digits-3"]


@no_locks
def test_two_processes_do_not_train_in_one_directory(tmp_path: Path) -> None:
    first, second = Run.create(tmp_path), Run.create(tmp_path)  # both have found it empty
    with first.training({"seed": 1}):
        being_written = tmp_path / ".metrics.jsonl.0.part"
        being_written.touch()
        with pytest.raises(RunError, match="another process is training"), second.training():
            pass
        assert being_written.exists()
    with pytest.raises(RunError, match="is not empty"), second.training({"seed": 2}):
        pass
    assert first.read_json("config.json") == {"seed": 1}
    assert not being_written.exists()


def test_training_goes_on_where_files_cannot_be_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl = pytest.importorskip("fcntl", reason="files are not locked there")

    def unable(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unable)
    with pytest.warns(UserWarning, match="cannot be locked"), Run(tmp_path).training({"seed": 1}):
        assert Run.open(tmp_path).read_json("config.json") == {"seed": 1}


def test_versions_name_what_the_bits_depend_on() -> None:
    assert all(versions().values())
