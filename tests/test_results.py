"""The table of results: what it says is what its runs have come to."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from minidiff.cli.parser import main
from minidiff.cli.published import PUBLISHED, Published, lenet5_cost
from minidiff.cli.results import (
    EXPERIMENTS,
    Aim,
    Experiment,
    rows_of,
    runs_of,
    spread,
    write_results,
)
from minidiff.figures import plots
from minidiff.training.trainer import Config

SIZES = {"lenet5": ("8-10-112-68", "20-50-800-500"), "lenet300": ("90-40-30", "784-300-100")}


def line(config: Config, error: float) -> dict[str, Any]:
    """What a run of the configuration might have come to."""
    left, dense = SIZES[config.model]
    return {
        "config": config,
        "history": {"epoch": [1, 2], "architecture": [dense, left]},
        "result": {
            "validation_error" if config.validation else "test_error": error,
            "weights": 10_000,
            "dense_weights": 430_500,
            "macs": 200_000,
            "dense_macs": 2_293_000,
            "architecture": left,
            "dense_architecture": dense,
            "seconds": 90.0,
        },
    }


def written(directory: Path, names: list[str], errors: list[float]) -> str:
    save_lines(
        directory,
        [
            line(config, errors[config.seed])
            for name in names
            for _, config in EXPERIMENTS[name].configs("mnist")
        ],
    )
    return write_results(directory, names, "mnist", quick=False).read_text()


def save_lines(directory: Path, lines: list[dict[str, Any]]) -> None:
    plain = [{**x, "config": x["config"].to_json()} for x in lines]
    (directory / "runs.jsonl").write_text("".join(json.dumps(x) + "\n" for x in plain))


def test_rows_have_mean_and_deviation_over_seeds(tmp_path: Path) -> None:
    experiment = EXPERIMENTS["structured"]
    errors = [0.5, 0.7, 0.6, 0.8, 0.9]
    lines = [line(config, errors[config.seed]) for _, config in experiment.configs("mnist")]
    rows = rows_of(experiment, lines, "mnist")
    assert len(rows) == len(experiment.variants)
    for row in rows:
        assert spread(row.errors) == (pytest.approx(0.7), pytest.approx(np.std(errors, ddof=1)))
        assert row.fewer_weights == 5 * (43.05,)
        assert row.architecture == "8-10-112-68"
        assert row.minutes == 1.5
    assert len(rows_of(experiment, lines[:7], "mnist")) == 2  # what has not been run is left out
    del lines[0]["result"]["test_error"]
    assert len(rows_of(experiment, lines[:5], "mnist")[0].errors) == 4


def test_the_page_says_what_the_runs_have_come_to(tmp_path: Path) -> None:
    page = written(tmp_path, list(EXPERIMENTS), [0.5, 0.7, 0.6, 0.8, 0.9])
    for name, experiment in EXPERIMENTS.items():
        assert f"## {experiment.title}\n" in page
        drawn = experiment.error == "test_error"
        assert (f"({name}.svg)" in page) == drawn
        if drawn:
            assert imread(tmp_path / f"{name}.png").ndim == 3
    page = page.replace("\N{NO-BREAK SPACE}", " ")
    written_rows = sum(len(e.variants) + len(e.aims) for e in EXPERIMENTS.values())
    assert page.count("0.70 ± 0.16") == written_rows
    assert "43.0x ± 0.0 | 11.5x ± 0.0 | 8-10-112-68 | 5 | 1.5 |" in page
    assert "| 12 | Beta-Bernoulli dropout, 1e-2 | ~0.57 | 24.7x |" in page
    assert "L0 constrained, layerwise | 0.91 ± 0.05 | 42.6x | 6.7x" in page


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (Aim(0.7, 43, 11.4), "reached"),
        (Aim(0.65, 43), "0.05 points over"),
        (Aim(0.698, 43), "0.002 points over"),
        (Aim(0.65, 86.1, 22.93), "0.05 points over; weights 50.0 % short; MACs 50.0 % short"),
    ],
)
def test_an_aim_is_held_beside_what_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: Aim, said: str
) -> None:
    short = Experiment("Short", "", "structured", {"validation": 0}, ({}, {}), aims={1: asked})
    monkeypatch.setitem(EXPERIMENTS, "short", short)
    page = written(tmp_path, ["short"], [0.5, 0.7, 0.6, 0.8, 0.9])
    table = page.split("## Short")[0].replace("\N{NO-BREAK SPACE}", " ").splitlines()
    rows = [row for row in table if row.startswith("| Short")]
    assert len(rows) == 1
    assert rows[0].startswith(f"| Short | ≤ {asked.error:.2f} % at ≥ {asked.weights}x")
    assert rows[0].endswith(f" | 0.70 ± 0.16 % at 43.0x, 11.5x MACs | 5 | {said} |")


def test_an_aim_that_some_seeds_reach_is_reached_so_far(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    aim = {0: Aim(0.6, 40), 1: Aim(0.6, 40)}
    short = Experiment("Short", "", "structured", {"validation": 0}, ({}, {"width": 2.0}), aims=aim)
    monkeypatch.setitem(EXPERIMENTS, "short", short)
    save_lines(tmp_path, [line(config, 0.5) for _, config in short.configs("mnist")][:4])
    page = write_results(tmp_path, ["short"], "mnist", quick=False).read_text()
    assert "| 4 | reached so far |" in page
    assert "- diffprune, λ = 0.45: nothing\n" in page
    assert "- diffprune, λ = 0.45: `width = 2` (not run yet)\n" in page


def test_tables_without_aims_have_no_table_of_aims(tmp_path: Path) -> None:
    assert "aimed at" not in written(tmp_path, ["ablation-small"], [0.5, 0.7, 0.6, 0.8, 0.9])


def test_what_has_not_been_run_is_said(tmp_path: Path) -> None:
    page = write_results(tmp_path, ["structured"], "mnist", quick=True).read_text()
    assert "Not run yet." in page
    assert "To try the tools, not a result" in page


def test_pages_of_trials_do_not_speak_of_mnist(tmp_path: Path) -> None:
    for dataset, quick in (("digits", False), ("mnist", True)):
        page = write_results(tmp_path, list(EXPERIMENTS), dataset, quick=quick).read_text()
        assert "To try the tools, not a result" in page
        for words in ("MNIST's test set", "Published", "aimed at"):
            assert words not in page


def test_rows_that_were_replaced_stay_on_the_page(tmp_path: Path) -> None:
    old = Config.recipe("mnist", validation=0, penalty=0.123, augment=True)
    lines = [line(replace(old, seed=seed), error) for seed, error in enumerate((0.5, 0.7))]
    choices = line(replace(old, validation=5000), 0.4)  # which has not read the test set
    save_lines(tmp_path, [*lines, choices, line(runs_of(["structured"], "mnist")[0], 0.6)])
    page = write_results(tmp_path, ["structured"], "mnist", quick=False).read_text()
    table = page.split("## Other runs on the test set")[1].split("\n##")[0]
    rows = [row for row in table.splitlines() if row.startswith("| `")]
    assert rows == [
        "| `λ = 0.123, augment = True` | 0.60\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}0.14 | "
        "43.0x\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}0.0 | 11.5x\N{NO-BREAK SPACE}±"
        "\N{NO-BREAK SPACE}0.0 | 2 |"
    ]


def test_a_run_that_has_lost_everything_does_not_keep_the_page_from_the_others(
    tmp_path: Path,
) -> None:
    lines = [line(config, 0.6) for config in runs_of(["structured"], "mnist")]
    for lost in lines[5:7], lines[10:15]:  # two seeds of a row, and all of another
        for x in lost:
            x["result"] |= {"weights": 0, "macs": 0}
    save_lines(tmp_path, lines)
    page = write_results(tmp_path, ["structured"], "mnist", quick=False).read_text()
    assert "| all is gone in 2 of 5 |" in page
    assert "| all is gone in 5 of 5 |" in page
    assert (tmp_path / "structured.svg").exists()


def test_an_aim_whose_row_has_not_been_run_is_still_there(tmp_path: Path) -> None:
    page = write_results(tmp_path, ["structured"], "mnist", quick=False).read_text()
    assert page.count("| 0 | not run yet |") == len(EXPERIMENTS["structured"].aims)


def test_every_run_is_its_own_and_only_last_trainings_read_the_test_set() -> None:
    for quick in (False, True):
        runs = runs_of(list(EXPERIMENTS), "mnist", quick=quick)
        for experiment in EXPERIMENTS.values():
            for _, config in experiment.configs("mnist", quick=quick):
                assert (config.validation == 0) == (experiment.error == "test_error")
        assert {config.seed for config in runs} == set(range(2 if quick else 5))
        for name in EXPERIMENTS:
            own = runs_of([name], "mnist", quick=quick)
            assert len(set(own)) == len(own)
    epochs = {config.epochs for config in runs_of(list(EXPERIMENTS), "mnist", quick=True)}
    assert max(epochs) < 10


def test_published_savings_follow_from_architectures() -> None:
    assert lenet5_cost("20-50-800-500") == (430_500, 2_293_000)
    found = {entry.method: entry for entry in PUBLISHED}
    assert found["BC-GHS"].weights == pytest.approx(156, abs=0.5)
    assert found["SBP"].weights == pytest.approx(5.1, abs=0.05)
    assert found["GSM"].macs is None
    assert {entry.setting for entry in PUBLISHED} <= {e.setting for e in EXPERIMENTS.values()}
    assert all(entry.source for entry in PUBLISHED)


def test_points_without_savings_are_not_drawn_and_no_rows_are_an_error() -> None:
    experiment = EXPERIMENTS["structured"]
    lines = [line(config, 0.6) for _, config in experiment.configs("mnist")]
    row = rows_of(experiment, lines, "mnist")[-1]
    nowhere = Published("x", "y", 1.0, "z")
    figure = plots.pareto_figure([row], [*PUBLISHED[:2], nowhere])
    numbers = {text.get_text() for text in figure.axes[0].texts}
    assert numbers == {"2"}
    with pytest.raises(ValueError, match="no rows to draw"):
        plots.pareto_figure([], PUBLISHED)


def test_the_command_trains_and_writes_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base = {"epochs": 1, "batch_size": 400, "validation": 0}
    short = Experiment("Short", "About.", "structured", base, ({"penalty": 0.01},))
    monkeypatch.setitem(EXPERIMENTS, "short", short)
    monkeypatch.setattr("minidiff.cli.results.QUICK", {})
    out = tmp_path / "results"
    words = ["reproduce", "short", "--dataset", "digits", "--quick", "--out", str(out)]
    assert main(words) == 0
    page = (out / "index.md").read_text()
    assert "## Short" in page
    assert "| 20-50-800-500 | 2 |" in page
    assert (out / "short-training.svg").exists()
    before = (out / "runs.jsonl").read_bytes()
    assert main([*words, "--report"]) == 0
    assert (out / "runs.jsonl").read_bytes() == before
    assert (out / "index.md").read_text() == page
    assert str(out / "index.md") in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["reproduce", "nothing"])
    assert main(["reproduce", "--report", "--quick", "--out", str(out)]) == 0
    assert "| 20-50-800-500 | 2 |" in (out / "index.md").read_text()  # of the lines' dataset
    assert main(["reproduce", "lenet300", "--report", "--quick", "--out", str(out)]) == 0
    page = (out / "index.md").read_text()
    assert "## Short" in page  # what there is stays
    assert "## Unstructured LeNet-300-100" in page
    assert main(["reproduce", "--report", "--dataset", "mnist", "--out", str(out)]) == 1
    assert "holds no runs on mnist" in capsys.readouterr().err
    assert (out / "index.md").read_text() == page


def test_the_label_of_a_row_names_method_and_strength() -> None:
    experiment = EXPERIMENTS["structured"]
    lines = [line(config, 0.6) for _, config in experiment.configs("mnist")]
    row = rows_of(experiment, lines, "mnist")[-1]
    assert row.label.startswith("diffprune, λ = ")
    pruned = replace(row.config, method="magnitude", keep=0.02)
    assert replace(row, config=pruned).label == "magnitude, keep 0.02"
