"""``docs/results/reproduce.py``: the page of results shows what its runs have measured."""

import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from minidiff.training.config import Config
from minidiff.training.trainer import Trainer

RESULTS = Path(__file__).parents[1] / "docs" / "results"
ERRORS = (0.5, 0.7, 0.6, 0.8, 0.9)  # of seeds 0 to 4: 0.70 ± 0.16


@pytest.fixture
def reproduce(docs_script: Callable[[str], ModuleType]) -> Any:
    return docs_script("results/reproduce.py")


@pytest.fixture
def published(docs_script: Callable[[str], ModuleType]) -> Any:
    return docs_script("results/published.py")


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minidiff.figures.plots.save", lambda *_: None)


def line(config: Config, error: float) -> dict[str, Any]:
    """Return what a run of LeNet5 might have measured."""
    left, dense = "8-10-112-68", "20-50-800-500"
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


def lines_of(reproduce: Any, table: str) -> list[dict[str, Any]]:
    """Return a line for every run of a table, row by row."""
    return [
        line(config, ERRORS[config.seed])
        for settings in reproduce.TABLES[table].values()
        for config in reproduce.configs_of(settings, "mnist")
    ]


def page_of(
    reproduce: Any, directory: Path, lines: Iterable[dict[str, Any]], **how: Any
) -> list[str]:
    """Write the page about some lines; return its lines, with plain spaces."""
    plain = [{**entry, "config": entry["config"].to_json()} for entry in lines]
    (directory / "runs.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in plain))
    how = {"dataset": "mnist", "quick": False} | how
    page: str = reproduce.write_page(directory, **how).read_text(encoding="utf-8")
    return page.replace("\N{NO-BREAK SPACE}", " ").splitlines()


# -- which runs there are -------------------------------------------------------------------------


def test_runs_of_a_table_are_distinct_and_named_by_their_strength(reproduce: Any) -> None:
    for rows in reproduce.TABLES.values():
        runs = [c for settings in rows.values() for c in reproduce.configs_of(settings, "mnist")]
        assert len(set(runs)) == len(runs) == len(rows) * len(reproduce.SEEDS)
        for label, settings in rows.items():
            (config, *_) = reproduce.configs_of(settings, "mnist")
            if "λ = " in label:
                assert f"{config.method}, λ = {config.penalty:g}" in label
                assert ("of weights" in label) == (config.cost == "weights")


def test_aims_belong_to_rows(reproduce: Any) -> None:
    for aim in reproduce.AIMS:
        assert aim.label in reproduce.TABLES[aim.table]


# -- what they have measured ----------------------------------------------------------------------


@pytest.mark.usefixtures("no_figures")
def test_the_committed_page_follows_from_the_committed_runs(reproduce: Any, tmp_path: Path) -> None:
    shutil.copy(RESULTS / "runs.jsonl", tmp_path)
    page = reproduce.write_page(tmp_path, "mnist", quick=False)
    assert page.read_text("utf-8") == (RESULTS / "index.md").read_text("utf-8")


def test_a_row_holds_the_runs_of_its_seeds(reproduce: Any) -> None:
    lines = lines_of(reproduce, "structured")
    del lines[0]["result"]["test_error"]  # of a sweep without --test
    first, second = reproduce.rows_of("structured", lines[:7])  # nothing else has been run
    assert first.errors == [0.7, 0.6, 0.8, 0.9]
    assert second.errors == [0.5, 0.7]
    assert second.fewer("weights") == 2 * [43.05]
    assert second.architecture == "8-10-112-68"


def test_the_page_shows_mean_and_deviation_over_seeds(reproduce: Any, tmp_path: Path) -> None:
    page = page_of(reproduce, tmp_path, lines_of(reproduce, "structured"))
    measured = "0.70 ± 0.16 | 43.0x ± 0.0 | 11.5x ± 0.0 | 8-10-112-68 | 5 | 1.5 |"
    assert f"| diffprune, λ = 0.33 | {measured}" in page
    assert "| dense | 0.70 ± 0.16 |  |  | 8-10-112-68 | 5 | 1.5 |" in page
    assert "- diffprune, λ = 0.33: `λ = 0.33, ramp = 0`" in page
    assert page.count("Not run yet.") == len(reproduce.TABLES) - 1
    for name in ("structured", "structured-training"):
        assert (tmp_path / f"{name}.svg").exists()


@pytest.mark.parametrize(
    ("aim", "judged"),
    [
        ((0.7, 43, 11.4), "reached"),
        ((0.698, 43), "0.002 points over"),
        ((0.65, 86.1, 22.93), "0.05 points over; weights 50.0 % short; MACs 50.0 % short"),
    ],
)
def test_an_aim_is_judged_by_the_mean(reproduce: Any, aim: Any, judged: str) -> None:
    _, row, *_ = reproduce.rows_of("structured", lines_of(reproduce, "structured"))
    _, seeds, said = reproduce.measured(row, reproduce.Aim("structured", row.label, *aim))
    assert (seeds, said) == ("5", judged)


@pytest.mark.usefixtures("no_figures")
def test_an_aim_is_open_until_all_seeds_have_been_run(reproduce: Any, tmp_path: Path) -> None:
    page = page_of(reproduce, tmp_path, lines_of(reproduce, "lenet300")[:2])
    (row,) = [text for text in page if text.startswith("| lenet300 | ≤ 1.60 % at ≥ 60x")]
    assert row.endswith("| 2 | weights 28.3 % short |")
    page = page_of(reproduce, tmp_path, lines_of(reproduce, "structured-augmented")[5:8])
    rows = [text for text in page if text.startswith("| structured-augmented | ≤")]
    assert rows[0].endswith("| 3 | 0.15 points over |")
    assert rows[1].endswith("|  | 0 | not run yet |")


def test_other_runs_on_the_test_set_stay_on_the_page(reproduce: Any, tmp_path: Path) -> None:
    old = Config.recipe("mnist", validation=0, penalty=0.123, augment=True)
    lines = [line(replace(old, seed=seed), error) for seed, error in enumerate((0.5, 0.7))]
    on_validation = line(replace(old, validation=5000), 0.4)
    page = page_of(reproduce, tmp_path, [*lines, on_validation])
    (row,) = [text for text in page if "0.123" in text]
    assert row.startswith("| `λ = 0.123, augment = True` | 0.60 ± 0.14 | 43.0x ± 0.0 |")


def test_a_run_with_nothing_left_spoils_its_own_row_only(reproduce: Any, tmp_path: Path) -> None:
    lines = lines_of(reproduce, "structured")
    for lost in lines[5:7]:
        lost["result"] |= {"weights": 0, "macs": 0}
    page = page_of(reproduce, tmp_path, lines)
    assert sum("| nothing left | nothing left |" in text for text in page) == 1
    assert (tmp_path / "structured.svg").exists()


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize("how", [{"dataset": "digits"}, {"quick": True}])
def test_a_trial_does_not_look_like_a_result(
    reproduce: Any, how: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(reproduce.TABLES, "short", {"row": {"validation": 0}})
    configs = reproduce.configs_of({"validation": 0}, **{"dataset": "mnist"} | how)
    page = page_of(reproduce, tmp_path, [line(config, 0.6) for config in configs], **how)
    assert "not a result" in page[0]
    assert [text for text in page if text.startswith("## ")] == ["## short"]


# -- beside published results ---------------------------------------------------------------------


def test_published_savings_follow_from_architectures(published: Any) -> None:
    assert published.lenet5_cost("20-50-800-500") == (430_500, 2_293_000)
    found = {entry.method: entry for entry in published.PUBLISHED}
    assert found["BC-GHS"].fewer("weights") == pytest.approx(156, abs=0.5)
    assert found["SBP"].fewer("macs") == pytest.approx(10.8, abs=0.05)
    assert found["ADMM"].fewer("weights") == 71
    assert found["ADMM"].fewer("macs") is None


def test_published_results_without_savings_are_not_drawn(reproduce: Any) -> None:
    rows = reproduce.rows_of("lenet300", lines_of(reproduce, "lenet300"))
    weights, macs = reproduce.pareto_figure(rows).axes
    entries = reproduce.published_beside(rows[0].config)
    assert {text.get_text() for text in weights.texts} == set("123456"[: len(entries)])
    assert len(macs.texts) == 0


# -- the command ----------------------------------------------------------------------------------


def test_the_script_trains_what_is_missing_and_writes_the_page(
    reproduce: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = {"epochs": 1, "batch_size": 400, "penalty": 0.01}
    rows = {"final": {**short, "validation": 0}, "choice": short}
    monkeypatch.setitem(reproduce.TABLES, "short", rows)
    monkeypatch.setattr(reproduce, "QUICK", {})
    monkeypatch.setattr(Trainer, "obstacle", lambda self: "")  # too short to prune
    out = tmp_path / "results"
    words = ["short", "--dataset", "digits", "--quick", "--out", str(out)]
    assert reproduce.main(words) == 0
    page, runs = (out / "index.md").read_text(), (out / "runs.jsonl").read_text()
    assert "| 20-50-800-500 | 2 |" in page
    assert ["test_error" in json.loads(text)["result"] for text in runs.splitlines()] == [
        *(False, False),  # where choices are made, the test set is not read
        *(True, True),
    ]
    assert reproduce.main(words) == 0
    assert (out / "runs.jsonl").read_text() == runs
    (out / "index.md").unlink()
    assert reproduce.main(["--report", "--quick", "--out", str(out)]) == 0
    assert (out / "index.md").read_text() == page


@pytest.mark.parametrize(
    ("words", "said"),
    [(["nothing"], "nothing is no table"), (["--report", "--out", "."], "holds no runs on mnist")],
)
def test_a_wrong_option_is_named(
    reproduce: Any,
    words: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        reproduce.main(words)
    assert said in capsys.readouterr().err
