"""The command line, end to end on the small digits, and what it says when something is wrong."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import minidiff
from minidiff.cli import commands
from minidiff.cli import parser as cli
from minidiff.io.checkpoint import Checkpoint
from minidiff.training.runs import Run
from minidiff.training.trainer import RECIPES, Config

pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
safetensors = pytest.importorskip("safetensors.numpy", reason="checkpoints need safetensors")


def train(out: Path, *more: str) -> int:
    return cli.main(["train", "--dataset", "digits", "--out", str(out), *more])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cli") / "run"
    assert (
        train(
            out,
            "--epochs",
            "12",
            "--gate-lr",
            "0.1",
            "--gate-start",
            "0.4",
            "--lr",
            "0.03",
        )
        == 0
    )
    return out


def test_train_leaves_a_whole_run_directory(trained: Path) -> None:
    assert {p.name for p in trained.iterdir()} == {
        "config.json",
        "metrics.jsonl",
        "checkpoint.safetensors",
        "result.json",
        "plots",
        ".lock",
    }
    records = Run.open(trained).metrics()
    assert [r["epoch"] for r in records] == list(range(1, 13))
    figures = {p.name for p in (trained / "plots").iterdir()}
    assert {"overview.png", "overview.svg", "gate_histogram.png", "first_filters.svg"} <= figures
    result = json.loads((trained / "result.json").read_text())
    assert result["test_error"] < 10
    assert 0 < result["weights"] < result["dense_weights"] == 430_500


def test_train_prints_a_closing_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path / "run", "--epochs", "1", "--batch-size", "400") == 0
    out = capsys.readouterr().out
    for words in (
        "1,197 to train on, 300 for validation",
        "test error",
        "MACs a sample",
        "training step",
    ):
        assert words in out


@pytest.mark.parametrize("command", ["train", "sweep"])
def test_help_ends_with_the_recipes(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    out = " ".join(capsys.readouterr().out.split())
    assert f"epochs {Config().epochs}, batch-size" in out
    assert f"lambda {Config().penalty}, " in out
    assert f"small digits: epochs {RECIPES['digits'].epochs}, lambda" in out


def test_evaluate_prints_the_error_that_train_found(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["evaluate", str(trained)]) == 0
    result = json.loads((trained / "result.json").read_text())
    assert f"{result['test_error']:.2f} % test error on 300 images" in capsys.readouterr().out


def test_a_dense_network_trains_too(tmp_path: Path) -> None:
    assert train(tmp_path / "run", "--dense", "--epochs", "1", "--batch-size", "400") == 0
    assert json.loads((tmp_path / "run/result.json").read_text())["weights"] == 430_500


def test_a_dense_run_takes_no_options_of_gates(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "run")
    error = failure(capsys, "train", "--dataset", "digits", "--dense", "--sigma", "2", "--out", out)
    assert "leaves no use for sigma" in error
    assert not (tmp_path / "run").exists()


def test_ctrl_c_leaves_what_was_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole_step = commands.Trainer.train_step

    def stopping(self: commands.Trainer, *batch: np.ndarray) -> tuple[float, int]:
        if self.step == 5:
            raise KeyboardInterrupt
        return whole_step(self, *batch)

    monkeypatch.setattr(commands.Trainer, "train_step", stopping)
    assert (
        train(tmp_path / "run", "--batch-size", "400") == commands.INTERRUPTED
    )  # 3 steps an epoch
    assert "interrupted" in capsys.readouterr().out
    assert len(Run.open(tmp_path / "run").metrics()) == 1
    assert (tmp_path / "run/plots/overview.png").stat().st_size > 0
    assert cli.main(["evaluate", str(tmp_path / "run")]) == 0


@pytest.mark.parametrize("epoch", [1, 2])
def test_ctrl_c_while_a_checkpoint_is_written_leaves_what_is_on_the_disk(
    epoch: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write = Run.write_checkpoint

    def stopping(self: Run, checkpoint: Checkpoint) -> None:
        if len(checkpoint.info["records"]) == epoch:
            raise KeyboardInterrupt
        write(self, checkpoint)

    monkeypatch.setattr(Run, "write_checkpoint", stopping)
    words = ("--epochs", "3", "--batch-size", "400")
    assert train(tmp_path / "run", *words) == commands.INTERRUPTED
    out = capsys.readouterr().out
    assert ("by epoch 1." if epoch == 2 else "no whole epoch yet") in out
    monkeypatch.undo()
    assert cli.main(["train", "--resume", str(tmp_path / "run")]) == 0
    assert len(Run.open(tmp_path / "run").metrics()) == 3


def test_a_name_that_another_process_has_taken_is_not_taken_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    mkdir = Path.mkdir

    def slow(self: Path, *arguments: Any, **options: Any) -> None:
        if self.name == "digits":  # another process makes it in between
            mkdir(self, parents=True, exist_ok=True)
        mkdir(self, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", slow)
    taken = [commands._free_directory("digits").as_posix() for _ in range(2)]
    assert taken == ["runs/digits-2", "runs/digits-3"]


@pytest.mark.parametrize("number", ["60000", "-1"])
def test_more_images_validation_than_there_are_is_an_error(
    number: str, capsys: pytest.CaptureFixture[str]
) -> None:
    error = failure(capsys, "train", "--dataset", "digits", "--validation", number)
    assert f"validation is {number}; expected an integer in 0..59,999" in error


def failure(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(arguments) == 1
    return capsys.readouterr().err


def test_a_run_directory_that_holds_something_is_left_alone(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {p: p.stat().st_mtime_ns for p in trained.rglob("*")}
    error = failure(capsys, "train", "--dataset", "digits", "--out", str(trained))
    assert "is not empty" in error
    assert {p: p.stat().st_mtime_ns for p in trained.rglob("*")} == before


def test_a_run_directory_that_cannot_be_written_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    out = str(tmp_path / "file" / "run")
    error = failure(capsys, "train", "--dataset", "digits", "--out", out)
    assert f"{out} cannot be written" in error
    assert "--out" in error


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--lambda", "-1", "penalty is -1.0; expected a finite number, 0 or more (--lambda)"),
        ("--width", "0", "width is 0.0; expected a finite number above 0"),
        ("--epochs", "0", "epochs is 0; expected an integer >= 1"),
        ("--threads", "0", "threads is 0; expected 1 to"),
        ("--batch-size", "0", "batch_size is 0"),
    ],
)
def test_a_value_out_of_range_leaves_nothing_behind(
    option: str, value: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert message in failure(
        capsys, "train", "--dataset", "digits", "--out", str(out), option, value
    )
    assert not out.exists()


@pytest.mark.parametrize(
    "arguments", [["train", "--noise", "cauchy"], ["train", "--cost", "flops"], ["dance"], []]
)
def test_an_unknown_word_is_answered_with_the_known_ones(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_info:
        cli.main(arguments)
    assert exit_info.value.code == 2
    assert "usage: minidiff" in capsys.readouterr().err


def test_mnist_that_is_not_to_be_had_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist" / "train-images-idx3-ubyte.gz").write_bytes(b"not MNIST")
    monkeypatch.setenv("MINIDIFF_DATA_DIR", str(tmp_path))
    error = failure(capsys, "train", "--dataset", "mnist", "--out", str(tmp_path / "run"))
    assert "SHA-256" in error
    assert not (tmp_path / "run").exists()


def test_a_diverging_run_stops_with_advice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = failure(
        capsys, "train", "--dataset", "digits", "--out", str(tmp_path / "run"), "--lr", "1e9"
    )
    assert "the loss is" in error
    assert "--lr" in error


@pytest.mark.parametrize("damage", ["missing", "truncated", "flipped", "other"])
def test_a_damaged_checkpoint_is_an_error(
    damage: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_bytes((trained / "config.json").read_bytes())
    good = (trained / "checkpoint.safetensors").read_bytes()
    path = tmp_path / "checkpoint.safetensors"
    if damage == "truncated":
        path.write_bytes(good[: len(good) // 2])
    elif damage == "flipped":
        path.write_bytes(bytes([good[0] ^ 0xFF]) + good[1:])
    elif damage == "other":
        safetensors.save_file({"conv1.layer.weight": np.zeros((3, 3), np.float32)}, path)
    assert "checkpoint" in failure(capsys, "evaluate", str(tmp_path))


def test_evaluate_says_what_is_no_run_directory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "is no run directory" in failure(capsys, "evaluate", str(tmp_path))
    (tmp_path / "config.json").write_text('{"epochs": ')
    assert "cannot be read as JSON" in failure(capsys, "evaluate", str(tmp_path))


def test_python_m_minidiff_is_minidiff() -> None:
    command = [sys.executable, "-m", "minidiff", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"minidiff {minidiff.__version__}\n"
