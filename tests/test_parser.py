"""The command line: options that follow from the settings, and errors without tracebacks."""

import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import minidiff
from minidiff.cli import commands
from minidiff.cli.parser import RUN_COMMANDS, main, parser
from minidiff.training.config import Config, ConfigError
from minidiff.training.runs import RunError

each_setting = pytest.mark.parametrize("item", fields(Config), ids=lambda item: item.name)


def words(name: str, value: Any) -> list[str]:
    """Return the arguments that set a setting."""
    option = "--lambda" if name == "penalty" else "--" + name.replace("_", "-")
    if isinstance(value, bool):
        return [option if value else option.replace("--", "--no-")]
    return [option, str(value)]


def another(item: Any) -> Any:
    """Return a value of a setting other than the default."""
    allowed = item.metadata["allowed"]
    if isinstance(allowed, tuple):
        return next(value for value in allowed if value != item.default)
    return item.default + 1 if item.type is int else item.default / 2 + 0.01


# -- settings --------------------------------------------------------------------------------------


@each_setting
def test_every_setting_is_an_option_of_train(item: Any) -> None:
    value = another(item)
    options = parser().parse_args(["train", *words(item.name, value)])
    assert commands.given(options) == {item.name: value}
    assert getattr(Config, item.name) != value


@each_setting
def test_an_option_of_sweep_takes_several_values(item: Any) -> None:
    if item.type is bool:
        pytest.skip("a flag has one value")
    values = [another(item), item.default] if item.default is not None else [another(item)]
    text = ",".join(map(str, values))
    options = parser().parse_args(["sweep", *words(item.name, text)])
    assert commands.given(options) == {item.name: values}


@pytest.mark.parametrize("command", ["train", "sweep"])
def test_help_says_meaning_values_and_recipes(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    out = " ".join(capsys.readouterr().out.split())
    assert "passes over the training images; [1, inf) (default 90; digits: 120)" in out
    assert all(item.metadata["meaning"] in out for item in fields(Config))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--lambda", "-1"], "penalty is -1.0; expected a number in [0, inf)"),
        (["train", "--epochs", "0"], "epochs is 0; expected an integer in [1, inf)"),
        (["train", "--epochs", "many"], "many"),
        (["train", "--noise", "cauchy"], "expected one of None, "),
        (["train", "--seed", "0,1"], "0,1"),
        (["train", "--threads", "0"], "--threads: invalid choice: "),
        (["sweep", "--seed", "0;1"], "0;1"),
        (["sweep", "--method", "diffprune,best"], "method is 'best'; expected one of diffprune, "),
        (["dance"], "dance"),
        ([], "COMMAND"),
    ],
)
def test_an_argument_that_is_not_taken_is_named(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


# -- main ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        RunError("not there"),
        ConfigError("not there"),
        FileNotFoundError(2, "not there", "file"),
        ImportError("not there"),
    ],
)
def test_an_error_that_a_user_can_mend_has_no_traceback(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(options: object) -> int:
        raise error

    monkeypatch.setattr(commands, "evaluate", broken)
    assert main(["evaluate", "run"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("minidiff: error: ")
    assert "not there" in err
    assert "Traceback" not in err


def test_ctrl_c_has_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def evaluate(options: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "evaluate", evaluate)
    assert main(["evaluate", "run"]) == 130
    assert capsys.readouterr().err.strip() == "interrupted"


def test_a_reader_that_stops_is_no_error(trained: Path) -> None:
    command = [sys.executable, "-m", "minidiff", "evaluate", str(trained)]
    piped = ["bash", "-c", '"$@" | true', "bash", *command]
    done = subprocess.run(piped, capture_output=True, text=True)
    assert done.stderr == ""


def test_python_m_minidiff_lists_the_commands() -> None:
    minidiff_command = [sys.executable, "-m", "minidiff"]
    done = subprocess.run([*minidiff_command, "--help"], capture_output=True, text=True, check=True)
    names = ("train", "sweep", "bench", *RUN_COMMANDS)
    assert [name for name in names if f"\n    {name} " not in done.stdout] == []


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"minidiff {minidiff.__version__}\n"
