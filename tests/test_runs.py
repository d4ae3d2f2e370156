"""Run directories: whole files, one process at a time, and runs that resume to the same bits."""

import errno
import json
import os
import re
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

import minidiff as md
from minidiff.cli.parser import main
from minidiff.io.checkpoint import Checkpoint, CheckpointError
from minidiff.training.runs import Run, RunError, free_path, read_network, versions
from minidiff.training.trainer import Trainer

Capture = pytest.CaptureFixture[str]
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
    with pytest.raises(SystemExit, match="2"):
        main(["train", "--resume", str(trained), *option])
    assert f"{option[0]} has no effect with --resume" in capsys.readouterr().err


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
        (
            lambda run: (run / "config.json").write_text("[1]"),
            r"config.json: these are not settings",
        ),
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


def test_resuming_under_other_versions_warns_once_that_bits_may_differ(
    unfinished: Path, trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr("minidiff.training.runs.np.__version__", "1.0")
    monkeypatch.setattr("platform.python_version", lambda: "3.0")
    known = r"trained with numpy .* \(now 1\.0\), python .* its bits may differ"
    with pytest.warns(UserWarning, match=known) as warned:
        assert main(["train", "--resume", str(unfinished)]) == 0
    assert len(warned) == 1
    monkeypatch.undo()
    shutil.copy(trained / "checkpoint.safetensors", unfinished)
    (unfinished / "result.json").unlink()
    assert main(["train", "--resume", str(unfinished)]) == 0
    assert capsys.readouterr().err == ""


def test_a_plot_that_cannot_be_drawn_costs_no_result(
    unfinished: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def fail(*_: object) -> None:
        assert (unfinished / "result.json").exists()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("minidiff.figures.plots.plot_run", fail)
    again = re.escape(f"minidiff inspect {unfinished} draws")
    with pytest.warns(UserWarning, match=f"plots are missing: No space left on device; {again}"):
        assert main(["train", "--resume", str(unfinished)]) == 0
    assert "% test error" in capsys.readouterr().out


# -- contents behind a right checksum --------------------------------------------------------------


def put(*keys: Any, value: Any) -> Any:
    """Return a function that changes a value of the info of a checkpoint."""

    def change(checkpoint: Checkpoint) -> None:
        part: Any = checkpoint.info
        for key in keys[:-1]:
            part = part[key]
        part[keys[-1]] = value

    return change


def without(*keys: Any) -> Any:
    return lambda checkpoint: [checkpoint.info.pop(key) for key in keys]


def spoil(value: float) -> Any:
    return lambda checkpoint: checkpoint.model.parameters()[0].data.__setitem__(0, value)


def last_step(step: int) -> Any:
    def change(checkpoint: Checkpoint) -> None:
        checkpoint.info["step"] = checkpoint.info["records"][-1]["step"] = step

    return change


def padded(checkpoint: Checkpoint) -> None:
    checkpoint.model["conv1"].layer.padding = (9999, 9999)


def other_network(checkpoint: Checkpoint) -> None:
    checkpoint.model["relu"] = md.nn.Dropout(0.5, rng=np.random.default_rng(0))


MALFORMED = [
    (put("mean", value="0.1"), "mean is '0.1'; expected a finite number"),
    (put("mean", value=1e300), r"mean is 1e\+300; expected a finite number"),
    (put("std", value=0.0), "std is 0.0; .* std from 1e-35"),
    (put("shape", value=[10**6, 10**6]), r"shape is \[1000000, 1000000\]; expected \[1, 28, 28\]"),
    (without("shape"), r"shape is None; expected \[1, 28, 28\]"),
    (put("records", value=[]), r"records is \[\]; expected a list, not empty"),
    (put("records", value={"0": 1}), "expected a list, not empty"),
    (put("records", 0, value=7), "record 1: it holds 7; expected an object"),
    (put("records", 1, "loss", value="low"), "record 2: loss is 'low'; expected a finite number"),
    (put("records", 1, "epoch", value=5), "record 2 is of epoch 5"),
    (put("records", 1, "weights", value=-1), "weights is -1; expected an integer, 0 or more"),
    (put("records", 0, "open", value={}), "record 1: open names other gates than groups"),
    (put("records", 0, "groups", "conv1.outputs", value=0), "a network of other gates"),
    (put("step", value=1), "step is 1; expected"),
    (put("rng", value=3), "rng is 3; expected an object"),
    (put("config", "model", value="vgg"), "model is 'vgg'; expected one of"),
    (put("config", "model", value="lenet300"), "the network is not a lenet300, structured"),
    (put("config", value=None), "config is None; expected an object"),
    (put("versions", value=1), "versions is 1; expected an object"),
    (spoil(np.nan), "holds nan; expected finite numbers"),
    (spoil(np.inf), "holds inf; expected finite numbers"),
    (padded, r"conv1 returns .* \(20, 20022, 20022\); expected at most 1,048,576 numbers"),
    (other_network, "the network is not a lenet5, structured"),
]


@pytest.mark.parametrize(("change", "message"), MALFORMED)
def test_what_no_run_writes_is_named_in_one_line(
    change: Any, message: str, trained: Path, tmp_path: Path
) -> None:
    shutil.copy(trained / "config.json", tmp_path)
    path = tmp_path / "checkpoint.safetensors"
    checkpoint = Checkpoint.read(trained / "checkpoint.safetensors")
    change(checkpoint)
    checkpoint.write(path)
    with pytest.raises(CheckpointError, match=message) as error:
        Run.open(tmp_path).checkpoint()
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.state.update({"phis.0.0.odd": np.zeros(2)}), "phis|state does not fit"),
        (lambda c: c.state.update({"weights.0.0.velocity": np.array([np.nan])}), "holds nan"),
        (put("rng", value={"bit_generator": "MT19937"}), "a generator is 'MT19937'"),
        (put("rng", value={}), "bit_generator"),
        (
            lambda c: c.info.update(step=9999) or c.info["records"][-1].update(step=9999),
            "step 9999",
        ),
    ],
)
def test_a_state_that_does_not_fit_is_an_error(
    change: Any, message: str, unfinished: Path, capsys: Capture
) -> None:
    checkpoint = Checkpoint.read(unfinished / "checkpoint.safetensors")
    change(checkpoint)
    checkpoint.write(unfinished / "checkpoint.safetensors")
    error = failure(capsys, "train", "--resume", unfinished)
    assert re.search(f"{unfinished / 'checkpoint.safetensors'}: .*({message})", error)
    assert error.count("\n") == 1


def test_a_network_of_another_size_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    dense = md.nn.Linear(784, 3, rng=np.random.default_rng(0))
    md.export(path, md.nn.Sequential(md.nn.Flatten(), dense), (1, 28, 28))
    with pytest.raises(CheckpointError, match=r"into \(3,\); expected \(10,\), for ten digits"):
        read_network(path)
    md.save(path, md.nn.Sequential(dense))
    with pytest.raises(CheckpointError, match=r"shape is None; expected \[1, 28, 28\]"):
        read_network(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", r"it holds \[1\]; expected an object"),
        ("{}", "is None; expected"),
        ("[" * 10**5, "cannot be read as JSON"),
        ('{"test_error": ', "cannot be read as JSON"),
        ("\0" * 10**8, "cannot be read as JSON"),
    ],
)
def test_a_malformed_result_is_named(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(RunError, match=rf"result\.json.*{message}"):
        Run(tmp_path).result()


# -- directories -----------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no FIFOs")
@pytest.mark.parametrize("name", ["config.json", "checkpoint.safetensors", "result.json", ".lock"])
def test_fifos_in_a_run_are_refused_at_once(name: str, unfinished: Path, capsys: Capture) -> None:
    (unfinished / name).unlink(missing_ok=True)
    os.mkfifo(unfinished / name)
    command = ["report"] if name == "result.json" else ["train", "--resume"]
    error = failure(capsys, *command, unfinished)
    assert "it is a FIFO" in error or "has no config.json" in error


def test_a_file_in_place_of_a_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=f"{tmp_path / 'file'} is no directory; choose another"):
        Run.create(tmp_path / "file")


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
