"""The commands, end to end on the small digits."""

import json
import re
import shlex
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

import minidiff as md
from minidiff.cli import commands
from minidiff.cli.commands import Trained, table
from minidiff.cli.parser import main
from minidiff.data.datasets import Dataset, load_dataset
from minidiff.io.checkpoint import CheckpointError
from minidiff.training.config import Config
from minidiff.training.runs import Run, RunError
from minidiff.training.sweep import read_results
from minidiff.training.trainer import Trainer

for needed in ("sklearn", "safetensors"):
    pytest.importorskip(needed, reason="runs need the extra train")


def said(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 0
    return capsys.readouterr().out


def failure(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main([str(argument) for argument in arguments]) == 1
    return capsys.readouterr().err


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:
    """A copy of a finished run, to change."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


# -- train -----------------------------------------------------------------------------------------


def test_an_impossible_target_is_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "--dataset", "digits", "--target", "10000000", "--out", str(tmp_path / "run")]
    with pytest.raises(SystemExit):
        main(words)
    assert "expected a number from 1 to 430500" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_train_leaves_a_whole_run_directory(trained: Path) -> None:
    files = {"config.json", "metrics.jsonl", "checkpoint.safetensors", "result.json", ".lock"}
    assert {path.name for path in trained.iterdir()} == files | {"plots"}
    lines = (trained / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3, 4]
    figures = {path.name for path in (trained / "plots").iterdir()}
    assert {"overview.png", "overview.svg", "gate_histogram.png", "first_filters.svg"} <= figures


def test_the_result_is_of_the_network_that_is_left(trained: Path) -> None:
    result, run = json.loads((trained / "result.json").read_text()), Trained(trained)
    assert result["test_error"] < 10
    assert 0 < result["weights"] < 0.9 * result["dense_weights"] == 0.9 * 430_500
    small = md.compact(run.model, run.shape)
    assert result["bytes"] == 4 * sum(parameter.size for parameter in small.parameters())
    assert result["dense_bytes"] == 4 * (430_500 + 20 + 50 + 500 + 10)
    assert sum(layer["weights"][0] for layer in result["layers"]) == result["weights"]


def test_train_prints_its_data_epochs_and_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("minidiff.figures.plots.plot_run", lambda *arguments: None)
    options = ["--dataset", "digits", "--model", "lenet300", "--epochs", "1"]
    monkeypatch.setattr(Trainer, "obstacle", lambda self: "too short to close.")
    assert main(["train", *options]) == 0
    out, err = capsys.readouterr()
    assert "1,197 to train on, 300 for validation, 300 to test on." in out
    assert f"--resume {Path('runs/digits-seed0')} goes on" in out
    assert err == "minidiff: warning: too short to close.\n"
    assert re.search(r"^    1 .* 784-300-100 +266,200 ", out, re.MULTILINE)
    assert re.search(r"^weights +266,200 +266,200 +none$", out, re.MULTILINE)
    assert re.search(r"% test error, 784-300-100\ntoo short to close\.$", out, re.MULTILINE)
    assert out.endswith(f"\nnext: minidiff inspect {Path('runs/digits-seed0')}\n")
    assert max(map(len, out.split("epoch ")[-1].splitlines())) <= 80
    assert (tmp_path / "runs" / "digits-seed0" / "result.json").exists()


def test_without_mnist_train_takes_the_digits_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(self: Trainer) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("minidiff.cli.commands.load_dataset", lambda name, **_: offline(name))
    monkeypatch.setenv("MINIDIFF_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(Trainer, "train_epoch", stop)
    assert main(["train", "--out", str(tmp_path / "run")]) == 130
    assert "stand in for MNIST" in capsys.readouterr().out
    assert json.loads((tmp_path / "run/config.json").read_text())["dataset"] == "digits"


def offline(name: str) -> Dataset:
    return load_dataset(name, offline=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "mnist", "--out", "run"], "SHA-256"),
        (["--out", "file/run"], "file/run"),
    ],
)
def test_a_run_that_cannot_be_leaves_nothing_behind(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINIDIFF_DATA_DIR", str(tmp_path))
    (tmp_path / "file").touch()
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist" / "train-images-idx3-ubyte.gz").write_bytes(b"not MNIST")
    before = set(tmp_path.rglob("*"))
    assert message in failure(capsys, "train", "--dataset", "digits", *arguments)
    assert set(tmp_path.rglob("*")) == before


def test_a_run_directory_that_holds_a_run_is_left_alone(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*")}
    error = failure(capsys, "train", "--dataset", "digits", "--out", trained)
    assert "is not empty" in error
    assert {path: path.stat().st_mtime_ns for path in trained.rglob("*")} == before


def test_a_diverging_run_stops_with_advice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--dataset", "digits", "--model", "lenet300", "--lr", "1e9", "--warmup", "0"]
    error = failure(capsys, "train", *options, "--out", tmp_path / "run")
    assert "the loss is" in error
    assert "try a smaller --lr" in error


@pytest.mark.parametrize(
    ("method", "closed", "advice"),
    [
        ("diffprune", True, "try a smaller --lambda"),
        ("diffprune", False, "try a larger --lambda"),
        ("magnitude", True, "try a larger --keep"),
        ("magnitude", False, "try a smaller --keep"),
    ],
)
def test_advice_names_the_option_that_the_method_uses(
    method: str, closed: bool, advice: str
) -> None:
    assert advice in commands._advice(Config(method=method), "", closed=closed)


# -- sweep -----------------------------------------------------------------------------------------


def test_sweep_trains_every_combination(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "new" / "runs.jsonl"
    quick = ["--dataset", "digits", "--model", "lenet300", "--epochs", "4", "--batch-size", "400"]
    lists = ["--method", "diffprune,magnitude", "--lambda", "0.01,0.02", "--seed", "0,1"]
    out = said(capsys, "sweep", *quick, *lists, "--keep", "0.5", "--out", path)
    assert out.startswith("data: The 1,797 handwritten 8x8 digits of scikit-learn")
    assert "6 runs, 0 of them done before.\nerror %  architecture   weights  options\n" in out
    row = r"^ +\d+\.\d\d  \d+-\d+-\d+ +[\d,]+  --method magnitude --seed 1 --keep 0\.5$"
    assert re.search(row, out, re.MULTILINE)
    assert max(map(len, out.splitlines()[1:-3])) <= 80
    assert "\nnext: minidiff train --dataset digits --model lenet300 " in out
    found = [
        (c.method, c.penalty, c.keep, c.seed) for c in (x["config"] for x in read_results(path))
    ]
    both = [("diffprune", 0.01, 0.1), ("diffprune", 0.02, 0.1), ("magnitude", 0.01, 0.5)]
    assert sorted(found) == [(*kind, seed) for kind in both for seed in (0, 1)]


# -- what is done with a run -----------------------------------------------------------------------


def test_evaluate_prints_the_error_that_train_found(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = json.loads((trained / "result.json").read_text())["test_error"]
    assert f"{error:.2f} % test error on 300 images" in said(capsys, "evaluate", trained)
    assert json.loads(said(capsys, "evaluate", trained, "--json"))["test_error"] == error


def test_a_run_is_evaluated_as_it_was_normalised(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = []
    monkeypatch.setattr(commands, "error_rate", lambda *_, **scale: given.append(scale) or 0.0)
    said(capsys, "evaluate", copy)
    assert given == [Trained(copy).scale]


def test_inspect_prints_the_compact_network_and_draws(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(copy / "plots")
    out = said(capsys, "inspect", copy)
    run = Trained(copy)
    small = dict(md.compact(run.model, run.shape).children())
    for name, whole in (("conv1", 500), ("conv2", 25_000), ("dense1", 400_000), ("dense2", 5_000)):
        left = small[name].weight
        row = f"{left.shape[0]:,} of .* {left.size:,} of {whole:,} "
        assert re.search(rf"^{name} .*{row}", out, re.MULTILINE)
    assert (copy / "plots" / "overview.png").stat().st_size > 0
    assert max(map(len, out.splitlines()[:5])) <= 80
    layers = json.loads(said(capsys, "inspect", copy, "--json"))
    assert layers["conv1"]["weights"] == [small["conv1"].weight.size, 500]


def test_inspect_knows_dense_runs(dense: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "400,000 of 400,000" in said(capsys, "inspect", dense)


def test_predict_prints_what_it_did_and_all_probabilities(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = pytest.importorskip("PIL.Image", reason="Pillow reads images")
    data, right = load_dataset("digits").test, 0
    paths = [tmp_path / f"{i}.png" for i in range(10)]
    for path, pixels in zip(paths, data.images[:, 0], strict=False):
        image.fromarray(255 - pixels).resize((140, 140)).save(path)  # dark on light
    out = said(capsys, "predict", trained, *paths)
    answers = re.findall(r"^.*\.png: (\d), with ([\d.]+) %$", out, re.MULTILINE)
    rows = re.findall(r"^(?: *[\d.]+ %){10}$", out, re.MULTILINE)
    assert len(answers) == len(rows) == 10
    for (answer, most), row, label in zip(answers, rows, data.labels, strict=False):
        shares = [float(share) for share in re.findall(r"([\d.]+) %", row)]
        assert shares[int(answer)] == max(shares) == float(most)
        assert abs(sum(shares) - 100) < 1
        right += int(answer) == label
    assert right >= 8
    assert "140x140" in out
    told = json.loads(said(capsys, "predict", trained, *paths, "--json"))
    assert [str(one["digit"]) for one in told] == [answer for answer, _ in answers]
    assert [one["image"] for one in told] == list(map(str, paths))


def test_predict_goes_on_after_a_file_that_is_no_image(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = pytest.importorskip("PIL.Image", reason="Pillow reads images")
    image.fromarray(load_dataset("digits").test.images[0, 0]).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_text("not an image")
    names = [str(tmp_path / f"{name}.png") for name in ("bad", "missing", "good")]
    assert main(["predict", str(trained), *names]) == 1
    out, err = capsys.readouterr()
    assert "bad.png" in err
    assert "missing.png" in err
    assert "good.png: " in out


class Links(HTMLParser):
    """Collects what a page refers to."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for key, value in attrs if key in ("src", "href")]


def test_report_is_one_page_with_result_and_mistakes(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said(capsys, "report", copy).startswith(f"{copy / 'report.html'}\n")
    page = (copy / "report.html").read_text(encoding="utf-8")
    links = Links()
    links.feed(page)
    assert all(link.startswith("data:") for link in links.found)
    error = json.loads((copy / "result.json").read_text())["test_error"]
    assert f"{error:.2f} %" in page
    run, test = Trained(copy), load_dataset("digits").test
    wrong = run.predictor()(test.images).argmax(axis=1) != test.labels
    assert 100 * wrong.mean() == pytest.approx(error)
    indices = re.findall(r'alt="test image (\d+), a \d', page)
    assert sorted(map(int, indices)) == np.flatnonzero(wrong).tolist()


def test_report_of_a_dense_run_is_a_page(
    dense: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said(capsys, "report", dense, "--out", tmp_path / "dense.html")
    assert (tmp_path / "dense.html").stat().st_size > 5000


def test_report_waits_for_the_result(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copy / "result.json").unlink()
    assert "has not finished" in failure(capsys, "report", copy)


def test_an_exported_network_answers_as_the_run_does(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="it runs the exported file")
    run, images = Trained(trained), load_dataset("digits").test.images
    for ending in ("onnx", "npz", "safetensors"):
        path = tmp_path / f"model.{ending}"
        out = said(capsys, "export", trained, path)
        assert f"{path}: {path.stat().st_size:,} bytes" in out
    session = runtime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"images": images.astype(np.float32) / 255})
    expected = run.predictor()(images)
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    loaded = md.Predictor(md.load(tmp_path / "model.safetensors"), run.shape, **run.scale)
    np.testing.assert_array_equal(loaded(images), expected)


def save_digit(directory: Path) -> Path:
    """Save a picture of the first digit to test on."""
    image = pytest.importorskip("PIL.Image", reason="Pillow reads images")
    path = directory / "digit.png"
    image.fromarray(load_dataset("digits").test.images[0, 0]).save(path)
    return path


def test_an_exported_file_is_evaluated_and_predicts_like_its_run(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, digit = tmp_path / "model.safetensors", save_digit(tmp_path)
    said(capsys, "export", trained, model)
    for command, *images in (["evaluate"], ["predict", digit]):
        found, expected = (said(capsys, command, path, *images) for path in (model, trained))
        assert found.partition("\nnext: ")[0] == expected.partition("\nnext: ")[0]  # on digits
        following = shlex.split(found.partition("\nnext: minidiff ")[2])
        assert following[:2] == ["predict" if command == "evaluate" else "evaluate", str(model)]
    assert "model.safetensors has no config.json" in failure(capsys, "inspect", model)
    said(capsys, "export", trained, tmp_path / "model.npz")
    assert "exported for other software" in failure(capsys, "evaluate", tmp_path / "model.npz")


def test_outputs_that_are_not_finite_are_an_error(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, digit = tmp_path / "model.safetensors", save_digit(tmp_path)
    run = Trained(trained)
    small = md.compact(run.model, run.shape)
    for parameter in small.parameters():
        parameter.data[:] = 1e30  # finite, but their products are not
    with np.errstate(all="ignore"):
        md.export(model, small, run.shape, **run.scale)
        for command in (["evaluate", model], ["predict", model, digit]):
            assert f"{model}: the outputs of the network are" in failure(capsys, *command)


def test_export_names_the_endings_that_it_knows(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = failure(capsys, "export", trained, tmp_path / "model.pt")
    assert "expected one of .onnx, .npz, .safetensors" in error
    assert "No such file" in failure(capsys, "export", trained, tmp_path / "no" / "model.npz")


@pytest.mark.parametrize(
    "command", ["evaluate", "inspect", "report", "predict", "export", "compare"]
)
def test_a_run_that_has_not_begun_is_named(
    command: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(trained / "config.json", tmp_path)
    more = {"predict": ["x.png"], "export": ["x.npz"]}.get(command, [])
    error = failure(capsys, command, tmp_path, *more)
    assert Run(tmp_path).resume_command in error
    assert "has no config.json" in failure(capsys, command, tmp_path / "nothing", *more)


def test_a_checkpoint_of_another_run_is_noticed(copy: Path, dense: Path) -> None:
    shutil.copy(dense / "checkpoint.safetensors", copy)
    with pytest.raises(RunError, match="belongs to another run"):
        Trained(copy)
    md.save(copy / "checkpoint.safetensors", md.nn.Sequential(md.nn.ReLU()))
    with pytest.raises(CheckpointError, match=r"shape is None; expected \[1, 28, 28\]"):
        Trained(copy)


def test_a_table_is_aligned() -> None:
    rows = [("layer", "weights", "error"), ("conv1", 500, "0.70 %"), ("all", 430_500, "")]
    assert table(rows).splitlines() == [
        "layer  weights   error",
        "conv1      500  0.70 %",
        "all    430,500",
    ]
