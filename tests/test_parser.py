"""The command line: options that follow from the settings, and errors without tracebacks."""

import subprocess
import sys
from argparse import Namespace
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import minidiff
from minidiff.cli import commands
from minidiff.cli.parser import RUN_COMMANDS, main, parser
from minidiff.training.config import SIZE, Config, ConfigError, option
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
    if allowed == SIZE:
        return "40x"
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
    assert "passes over the training images; [1, 1e9] (default 90; digits: 120)" in out
    assert all(item.metadata["meaning"] in out for item in fields(Config))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--lambda", "-1"], "--lambda is '-1'; expected a number in [0, 1e30]."),
        (["train", "--lambda", ""], "--lambda is ''; expected a number in [0, 1e30]."),
        (
            ["train", "--initial", "-1e40"],
            "--initial is '-1e40'; expected a number in [-1e9, ",
        ),
        (["train", "--epochs", "0"], "--epochs is '0'; expected an integer in [1, 1e9]."),
        (["train", "--epochs", "x"], "--epochs is 'x'; expected an integer in [1, 1e9]."),
        (["train", "--lr"], "--lr: expected one argument"),
        (
            ["train", "--noise", "norm"],
            "one of None, normal, logistic, uniform; did you mean n",
        ),
        (["train", "--seed", "0,1"], "--seed is '0,1'; expected an integer in [0, inf)."),
        (["train", "--threads", "0"], "--threads is '0'; expected an integer in [1, "),
        (["train", "--lambdas", "3"], "train does not take '--lambdas'; did you mean --lambda?"),
        (["train", "--epoch=3"], "does not take '--epoch'; did you mean --epochs?"),
        (["train", "--augment=3"], "--augment/--no-augment: ignored explicit argument '3'"),
        (["sweep", "--seed", "0;1"], "--seed is '0;1'; expected an integer in [0, inf)."),
        (["sweep", "--method", "diffprune,magnitud"], "--method is 'magnitud'; expected one of "),
        (["sweep", "--jobs", "0"], "--jobs is '0'; expected an integer in [1, 1e3]."),
        (["sweep", "--jobs", "2", "--cluster", "x"], "--cluster: not allowed with --jobs"),
        (["evaluate", "a", "b"], "minidiff evaluate does not take 'b'."),
        (["evaluate"], "the following arguments are required: RUN"),
        (["trian"], "'trian' is not a command of minidiff; expected one of train, "),
        (["trian"], "; did you mean train?"),
        ([], "COMMAND"),
        # Settings that do not go together.
        (["train", "--keep", ".5"], "--keep has no effect with --method diffprune; leave it out."),
        (
            ["train", "--method", "magnitude", "--lambda", "1"],
            "--lambda has no effect with --m",
        ),
        (["train", "--sparsity", "dense", "--sigma", "2"], "--sigma has no effect with --sparsity"),
        (["train", "--lambda", "0", "--ramp", ".5"], "--ramp has no effect with --lambda 0.0"),
        (
            ["train", "--gate-stop", "1", "--no-restart"],
            "--no-restart has no effect with --",
        ),
        (["train", "--validation", "9"], "--validation is 9; expected 0 for --dataset digits"),
        (
            ["train", "--gate-stop", ".05"],
            "--gate-stop is 0.05; expected more than --gate-s",
        ),
        (
            ["train", "--initial", "-1"],
            "--initial is -1.0; expected above -0.5, minus --",
        ),
        (["train", "--resume", "run", "--keep", "1"], "--keep has no effect with --resume"),
        (["sweep", "--sparsity", "dense", "--lambda", "1,2"], "none of the runs uses --lambda"),
    ],
)
def test_an_option_that_is_not_taken_is_named_as_typed(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("safetensors")
    monkeypatch.chdir(tmp_path)
    if arguments[:1] in (["train"], ["sweep"]) and "--resume" not in arguments:
        arguments = [*arguments[:1], "--dataset", "digits", *arguments[1:]]
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("minidiff: error: ")
    assert err.count("\n") == 1
    assert message in err
    assert not list(tmp_path.iterdir())


NUMBERS = ["0", "-1", "nan", "inf", "-inf", "1e-40", "-1e-40", "1e40", "-1e40", "x", "", "1,2"]


@pytest.mark.parametrize("text", NUMBERS)
def test_only_numbers_that_can_work_are_taken(
    text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for item in fields(Config):
        if item.type not in (int, float):
            continue
        words = ["train", option(item.name), text]
        if text in ("0", "-1", "1e-40", "-1e-40") and commands.given(taken := accepted(words)):
            # As good as 0, or -1: never where a larger number is needed.
            assert item.name not in ("lr", "gate_lr", "width", "sigma", "epochs", "batch_size")
            assert getattr(taken, item.name) == float(text)
        else:
            with pytest.raises(SystemExit, match="2"):
                parser().parse_args(words)
            expected = f"minidiff: error: {option(item.name)} is {text!r}; expected a"
            assert capsys.readouterr().err.splitlines()[-1].startswith(expected)


def accepted(arguments: list[str]) -> Namespace:
    """Parse arguments; nothing if they are refused."""
    try:
        return parser().parse_args(arguments)
    except SystemExit:
        return Namespace()


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
