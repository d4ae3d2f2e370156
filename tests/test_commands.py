"""What is done with a run: predict, inspect, report, export, compare, end to end on the digits."""

import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

import minidiff as md
from minidiff.cli import commands
from minidiff.cli import parser as cli
from minidiff.cli.commands import Trained
from minidiff.cli.compare import compare
from minidiff.data.datasets import load_dataset
from minidiff.training.trainer import Config, error_rate

pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
pytest.importorskip("safetensors", reason="checkpoints need safetensors")
Image = pytest.importorskip("PIL.Image", reason="images are read by Pillow")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a minute's tenth that closes some gates."""
    path = tmp_path_factory.mktemp("commands") / "run"
    settings = "--epochs 25 --gate-lr 0.1 --gate-start 0.4 --lr 0.03 --lambda 0.02"
    arguments = ["train", "--dataset", "digits", "--out", str(path), *settings.split()]
    assert cli.main(arguments) == 0
    return path


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("commands") / "dense"
    arguments = ["train", "--dataset", "digits", "--dense", "--epochs", "2", "--out", str(path)]
    assert cli.main(arguments) == 0
    return path


def said(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    assert cli.main([str(a) for a in arguments]) == 0
    return capsys.readouterr().out


def failure(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert cli.main([str(a) for a in arguments]) == 1
    return capsys.readouterr().err


def test_the_run_has_pruned_something(run: Path) -> None:
    model = Trained.open(run).model
    left = [layer.weights for layer in md.count(model, (1, 28, 28))]
    assert sum(a for a, _ in left) < 0.9 * sum(b for _, b in left)


def test_a_run_on_all_images_is_evaluated_as_it_was_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["train", "--dataset", "digits", "--epochs", "1", "--validation", "0"]
    said(capsys, *words, "--out", tmp_path / "run")
    trained = Trained.open(tmp_path / "run")
    assert trained.mean != load_dataset("digits").mean  # some are held out there
    asked = []
    monkeypatch.setattr(
        "minidiff.cli.commands.error_rate",
        lambda model, split, *, mean, std: asked.append((mean, std)) or 0.0,
    )
    said(capsys, "evaluate", tmp_path / "run")
    assert asked == [(trained.mean, trained.std)]
    assert trained.records[-1]["validation_error"] is None
    for command in ("inspect", "report"):  # which have no validation error to show
        monkeypatch.undo()
        said(capsys, command, tmp_path / "run")


def test_inspect_prints_what_the_compact_network_has(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(run / "plots")
    out = said(capsys, "inspect", run)
    trained = Trained.open(run)
    small = md.compact(trained.model)
    for name, layer in small.children():
        if isinstance(layer, md.nn.Conv2d | md.nn.Linear):
            line = next(line for line in out.splitlines() if line.startswith(f"{name} "))
            assert "x".join(map(str, layer.weight.shape)) in line
            assert f"{4 * (layer.weight.size + layer.bias.size):,}" in line
    weights = sum(p.size for p in small.parameters() if p.ndim > 1)
    assert f"{weights:,} of 430,500" in out
    assert (run / "plots" / "overview.png").stat().st_size > 0


def test_inspect_knows_dense_runs(dense: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "430,500 of 430,500" in said(capsys, "inspect", dense)


def test_predict_says_what_it_did_and_what_it_thinks(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, trained = load_dataset("digits"), Trained.open(run)
    right = 0
    for i in range(10):
        pixels = data.test.images[i, 0]
        large = Image.fromarray(255 - pixels).resize((140, 140))  # dark on light
        large.save(tmp_path / f"{i}.png")
        out = said(capsys, "predict", run, tmp_path / f"{i}.png")
        label = int(re.search(r"\.png: (\d), with", out)[1])
        right += label == data.test.labels[i]
        shares = [float(share) for share in re.findall(r"\d: (\d+\.\d) %", out)]
        assert len(shares) == 10
        assert int(np.argmax(shares)) == label
        assert abs(sum(shares) - 100) < 1
    assert "140x140" in out
    assert right >= 8
    assert trained.shape == (1, 28, 28)


def test_predict_goes_on_behind_an_image_that_is_none(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(load_dataset("digits").test.images[0, 0]).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_text("not an image")
    names = [tmp_path / "bad.png", tmp_path / "none.png", tmp_path / "good.png"]
    capsys.readouterr()
    assert cli.main(["predict", str(run), *map(str, names)]) == 1
    out, err = capsys.readouterr()
    assert "bad.png" in err
    assert "none.png" in err
    assert "good.png: " in out


class Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for key, value in attrs if key in ("src", "href")]


def test_report_is_one_page_that_asks_for_nothing(
    run: Path, dense: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said(capsys, "report", run).strip() == str(run / "report.html")
    page = (run / "report.html").read_text(encoding="utf-8")
    links = Links()
    links.feed(page)
    assert all(link.startswith("data:") for link in links.found)
    error = next(iter(re.findall(r'"test_error": ([\d.]+)', (run / "result.json").read_text())))
    assert f"{float(error):.2f} %" in page
    assert "conv1" in page
    mistakes = re.findall(r'alt="test image (\d+), a (\d)"', page)
    assert 0 < len(mistakes) == round(float(error) * 300 / 100) < 100
    trained, test = Trained.open(run), load_dataset("digits").test
    answers = trained.predictor()(test.images).argmax(axis=1)
    for index, label in mistakes:
        assert int(label) == test.labels[int(index)] != answers[int(index)]
    said(capsys, "report", dense, "--out", tmp_path / "dense.html")
    assert (tmp_path / "dense.html").stat().st_size > 5000


def test_exported_files_answer_as_the_run_does(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="exported files are run by onnxruntime")
    trained, data = Trained.open(run), load_dataset("digits")
    for ending in ("onnx", "npz", "safetensors"):
        out = said(capsys, "export", run, tmp_path / f"m.{ending}")
        how = "normalised with mean" if ending == "safetensors" else "it normalises its inputs"
        assert how in out
    session = runtime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    images = data.test.images.astype(np.float32) / 255
    (logits,) = session.run(["logits"], {"images": images})
    expected = trained.predictor()(data.test.images)
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    loaded = md.load(tmp_path / "m.safetensors")
    again = md.Predictor(loaded, trained.shape, mean=trained.mean, std=trained.std)
    np.testing.assert_array_equal(again(data.test.images), expected)


def test_compare_prints_a_row_for_each(
    run: Path, dense: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime", reason="it is compared with")
    monkeypatch.setattr("minidiff.cli.bench.REST", 0)
    monkeypatch.setattr("minidiff.cli.compare.ROUNDS", 1)
    out = said(capsys, "compare", run, "--dense", dense)
    names = [line[:22].strip() for line in out.splitlines()[1:5]]
    assert names == ["dense", "gated", "compact", "compact, onnxruntime"]
    errors = [line.split("%")[0].split()[-1] for line in out.splitlines()[1:5]]
    assert len(set(errors[1:])) == 1
    assert out.count("300 of 300 predictions are those of the gated network") == 2
    assert "430,500" in out


def test_compare_refuses_what_is_not_a_dense_run(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = failure(capsys, "compare", run, "--dense", run)
    assert "is not a dense run of lenet5 on digits" in error


def test_compare_evaluates_a_dense_network_as_it_was_trained(
    run: Path, dense: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {}

    def measure(*arguments: object, **options: object) -> tuple[list[object], str]:
        given.update(options)
        return [], ""

    monkeypatch.setattr("minidiff.cli.compare.compare", measure)
    monkeypatch.setattr("minidiff.cli.compare.table", lambda rows: "")
    trained = Trained.open(dense)
    monkeypatch.setattr(trained, "mean", 0.25)
    opened = {run: Trained.open(run), dense: trained}
    monkeypatch.setattr(Trained, "open", opened.get)
    assert cli.main(["compare", str(run), "--dense", str(dense)]) == 0
    assert given["dense_scale"] == (0.25, trained.std)
    for other in ({"model": "lenet300"}, {"dataset": "mnist"}):
        config = replace(Config.recipe("digits", sparsity="dense"), **other)
        monkeypatch.setattr(trained, "config", config)
        assert cli.main(["compare", str(run), "--dense", str(dense)]) == 1


def test_the_dense_network_has_its_own_normalisation(
    run: Path, dense: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime", reason="it is compared with")
    monkeypatch.setattr("minidiff.cli.bench.REST", 0)
    monkeypatch.setattr("minidiff.cli.compare.ROUNDS", 1)
    gated, whole, test = Trained.open(run), Trained.open(dense), load_dataset("digits").test
    rows, _ = compare(
        whole.model,
        gated.model,
        gated.shape,
        test,
        mean=gated.mean,
        std=gated.std,
        dense_scale=(-3.0, 0.1),
    )
    expected = error_rate(whole.model, test, mean=-3.0, std=0.1)
    assert rows[0].error == pytest.approx(expected)
    expected = error_rate(gated.model, test, mean=gated.mean, std=gated.std)
    assert rows[1].error == pytest.approx(expected)
    assert rows[0].error > 20


def test_a_result_that_is_not_what_was_written_is_an_error(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "result.json").write_text("{}")
    error = failure(capsys, "train", "--resume", tmp_path / "run")
    assert "result.json is not what was written" in error


@pytest.mark.parametrize("command", ["inspect", "report", "predict", "export", "compare"])
def test_a_run_that_has_not_begun_says_how_to_go_on(
    command: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(run / "config.json", tmp_path)
    more = {"predict": ["x.png"], "export": ["x.npz"]}.get(command, [])
    error = failure(capsys, command, tmp_path, *more)
    assert f"minidiff train --resume {tmp_path}" in error
    assert "is no run directory" in failure(capsys, command, tmp_path / "nothing", *more)


def test_report_waits_for_the_result(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    assert "has not finished" in failure(capsys, "report", tmp_path / "run")


@pytest.mark.parametrize(
    "name", ["checkpoint.safetensors", "metrics.jsonl", "config.json", "result.json"]
)
def test_a_runs_own_files_are_not_written_over(
    name: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (run / name).read_bytes()
    assert "belongs to the run" in failure(capsys, "export", run, run / name)
    assert "belongs to the run" in failure(capsys, "report", run, "--out", run / name)
    assert (run / name).read_bytes() == before


def test_an_unfinished_run_is_used_with_a_note(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    capsys.readouterr()
    assert cli.main(["inspect", str(tmp_path / "run")]) == 0
    assert "has come to epoch 25 of 25" in capsys.readouterr().err


def test_a_checkpoint_of_another_run_is_noticed(
    run: Path, dense: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run, tmp_path / "run")
    shutil.copy(dense / "checkpoint.safetensors", tmp_path / "run")
    for command in ("evaluate", "inspect", "report"):
        assert "another configuration" in failure(capsys, command, tmp_path / "run")


def test_a_dense_run_is_not_compared_as_a_gated_one(
    dense: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "is a dense run" in failure(capsys, "compare", dense)


def test_ctrl_c_is_no_traceback(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("minidiff.cli.commands.load_dataset", interrupt)
    assert cli.main(["evaluate", str(run)]) == 130


def test_a_reader_that_has_seen_enough_is_no_error(run: Path) -> None:
    command = f"{sys.executable} -m minidiff inspect {run} | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stderr == ""


def test_export_says_which_endings_there_are(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = failure(capsys, "export", run, tmp_path / "m.pt")
    assert "expected one of .onnx, .npz, .safetensors" in error
    assert "No such file" in failure(capsys, "export", run, tmp_path / "no" / "m.npz")


def test_help_of_every_command_is_there() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "minidiff", "--help"], capture_output=True, text=True, check=True
    )
    commands = "train evaluate predict inspect report export compare sweep bench"
    for command in commands.split():
        assert command in done.stdout


@pytest.mark.parametrize(("epochs", "warned"), [("1", True), ("120", False)])
def test_train_says_so_if_gates_cannot_close(
    epochs: str, warned: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(commands, "_run_epochs", lambda run, trainer: True)  # interrupted at once
    cli.main(["train", "--dataset", "digits", "--epochs", epochs, "--out", str(tmp_path / "run")])
    assert ("cannot close in this run" in capsys.readouterr().out) == warned
