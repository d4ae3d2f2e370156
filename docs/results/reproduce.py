"""Reproduce the page of results: train its runs, then write its tables and figures.

    python docs/results/reproduce.py [NAME ...] [--jobs N] [--out DIR]
    python docs/results/reproduce.py --report --out docs/results

The first command trains every run that has no line in ``DIR/runs.jsonl`` yet. With ``--report``
nothing is trained: the page is written again from those lines. The prose of the page stands in
``index.md`` beside this script; only what stands between ``<!-- NAME -->`` and ``<!-- end -->``
there is replaced.
"""

import argparse
import math
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from published import PUBLISHED, Published

from minidiff.data.datasets import DATASETS, load_dataset
from minidiff.figures import plots
from minidiff.io.files import write_whole
from minidiff.training.config import RECIPES, Config
from minidiff.training.sweep import read_results, sweep

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

new_figure, styled = plots.new_figure, plots.styled

SEEDS = (0, 1, 2, 3, 4)
QUICK_SEEDS = (0, 1)
QUICK: dict[str, Any] = {
    "epochs": 3,
    "gate_start": 0.1,
    "gate_stop": 0.6,
}  # minutes in place of hours

Settings = Mapping[str, Any]  # what a row changes of the recipe
Line = Mapping[str, Any]  # of runs.jsonl: "config", "history", "result"


# -- which runs there are -------------------------------------------------------------------------


def epochs(gates: int, fine_tuning: int, ramp: int) -> Settings:
    """Return settings for so many epochs of learning gates, the ramp of λ, and fine-tuning."""
    total = gates + fine_tuning
    times = {"gate_start": 1.17, "gate_stop": gates, "ramp": ramp}  # gates start as in the recipe
    return {"epochs": total, **{name: round(time / total, 4) for name, time in times.items()}}


FINAL = {"validation": 0}  # train on all images, as every choice has been made
LIGHT = {"validation": 0, "augment": True, "label_smoothing": 0.0}
DENSE_RUN = {"sparsity": "dense", "epochs": 40}
# Small or augmented networks hardly overfit: they gain more by an average of weights than by
# smoothed labels.
AVERAGED = {"cost": "weights", "label_smoothing": 0.0, "swa_lr": 0.05}
LONGER = {**AVERAGED, **epochs(56, 62, ramp=24)}
SMALL = {**AVERAGED, **epochs(56, 40, ramp=24)}
# Networks that cannot fit their training images gain by more time and a lower learning rate.
PATIENT = {**AVERAGED, "swa_lr": 0.03, **epochs(56, 120, ramp=24)}
# Gates on single weights take longer to close than gates on groups.
UNSTRUCTURED = {**AVERAGED, "sparsity": "unstructured", **epochs(36, 44, ramp=18)}
UNSTRUCTURED_LENET5 = {**UNSTRUCTURED, "gate_lr": 0.01}  # chosen on the validation set
LENET300 = {**UNSTRUCTURED, "model": "lenet300", "dropout": 0.2}
SMALL_RECIPE = {**SMALL, "penalty": 3.9}

#: The settings of each row, by the names of tables and the labels of rows.
TABLES: dict[str, dict[str, Settings]] = {
    "structured": {
        "dense": {**FINAL, **DENSE_RUN},
        "diffprune, λ = 0.33": {**FINAL, "penalty": 0.33, "ramp": 0.0},
        "diffprune, λ = 3.9 of weights": {**FINAL, **SMALL, "penalty": 3.9},
        "diffprune, λ = 19 of weights": {**FINAL, **PATIENT, "penalty": 19.0},
    },
    "structured-augmented": {
        "dense": {**LIGHT, **DENSE_RUN},
        "diffprune, λ = 0.7 of weights": {**LIGHT, **LONGER, "penalty": 0.7},
        "diffprune, λ = 5.3 of weights": {**LIGHT, **PATIENT, "penalty": 5.3},
    },
    "baselines": {
        "diffprune, λ = 0.4": {**FINAL, "penalty": 0.4},
        "diffprune, λ = 0.7 of weights": {**FINAL, "penalty": 0.7, "cost": "weights"},
        "diffprune, λ = 1.45 of weights": {**FINAL, "penalty": 1.45, "cost": "weights"},
        "hard-concrete, λ = 0.4": {**FINAL, "method": "hard-concrete", "penalty": 0.4},
        "gaussian, λ = 0.35": {**FINAL, "method": "gaussian", "penalty": 0.35},
        "group-lasso, λ = 70": {**FINAL, "method": "group-lasso", "penalty": 70.0},
        "magnitude, keep 0.25": {**FINAL, "method": "magnitude", "keep": 0.25},
    },
    "unstructured": {
        "diffprune, λ = 7 of weights": {**FINAL, **UNSTRUCTURED_LENET5, "penalty": 7.0},
    },
    "unstructured-augmented": {
        "diffprune, λ = 9.5 of weights": {**LIGHT, **UNSTRUCTURED_LENET5, "penalty": 9.5},
    },
    "lenet300": {
        "diffprune, λ = 5.5 of weights": {**FINAL, **LENET300, "penalty": 5.5},
    },
    "ablation": {
        "recipe": {},
        "no label smoothing": {"label_smoothing": 0.0},
        "learning rate not restarted": {"restart": False},
        "no ramp of λ": {"ramp": 0.0},
        "no weight decay": {"weight_decay": 0.0},
        "cost: weights": {"cost": "weights", "penalty": 1.0},
        "cost: MACs": {"cost": "macs", "penalty": 0.03},
        "stochastic gates, σ = 0.5": {"noise": "normal", "sigma": 0.5},
    },
    "ablation-small": {
        "recipe": SMALL_RECIPE,
        "learning rate not restarted": {**SMALL_RECIPE, "restart": False},
        "gates learn for half as long": {**SMALL_RECIPE, **epochs(28, 40, ramp=12)},
        "fine-tuned along a cosine, no average": {**SMALL_RECIPE, "swa_lr": 0.0},
        "label smoothing of 0.1": {**SMALL_RECIPE, "label_smoothing": 0.1},
    },
}


class Aim(NamedTuple):
    """The aim of a row, set before its runs: an error in % at most, savings at least."""

    table: str
    label: str
    error: float
    weights: float
    macs: float = 0.0


AIMS = (
    Aim("structured", "diffprune, λ = 0.33", 0.6, 30, 8),
    Aim("structured", "diffprune, λ = 3.9 of weights", 0.8, 100),
    Aim("structured", "diffprune, λ = 19 of weights", 1.0, 200),
    Aim("structured-augmented", "diffprune, λ = 0.7 of weights", 0.45, 30),
    Aim("structured-augmented", "diffprune, λ = 5.3 of weights", 0.6, 80),
    Aim("unstructured", "diffprune, λ = 7 of weights", 0.75, 300),
    Aim("unstructured-augmented", "diffprune, λ = 9.5 of weights", 0.6, 300),
    Aim("lenet300", "diffprune, λ = 5.5 of weights", 1.6, 60),
)


def configs_of(settings: Settings, dataset: str, *, quick: bool = False) -> list[Config]:
    """Return the configurations of a row, one for each seed."""
    config = Config.recipe(dataset, **settings)
    if quick:
        short = replace(config, **QUICK)
        gate_lr = Config.recipe(dataset, epochs=short.epochs).gate_lr  # so that gates can close
        return [replace(short, seed=seed, gate_lr=gate_lr) for seed in QUICK_SEEDS]
    return [replace(config, seed=seed) for seed in SEEDS]


# -- what they have measured ----------------------------------------------------------------------


def error_name(config: Config) -> str:
    """Return which error a run reports: the test error only if nothing is chosen by it."""
    return "validation_error" if config.validation else "test_error"


@dataclass(frozen=True)
class Row:
    """One row of a table: a setting, and the lines of its runs, one for each seed."""

    label: str
    config: Config  # of the first seed
    runs: Sequence[Line]

    def values(self, name: str) -> list[Any]:
        """Return one result of each run."""
        return [run["result"][name] for run in self.runs]

    @property
    def errors(self) -> list[float]:
        """The error of each run, in %."""
        return self.values(error_name(self.config))

    def fewer(self, what: str) -> list[float]:
        """Return how many times fewer "weights" or "macs" each run has left; inf if none."""
        pairs = zip(self.values(f"dense_{what}"), self.values(what), strict=True)
        return [dense / left if left else math.inf for dense, left in pairs]

    @property
    def architecture(self) -> str:
        """The mean of each size over the runs, rounded."""
        sizes = [list(map(int, text.split("-"))) for text in self.values("architecture")]
        return "-".join(f"{np.mean(size):.0f}" for size in zip(*sizes, strict=True))


def by_config(lines: Sequence[Line]) -> dict[Config, Line]:
    """Index the lines of runs that have the error which they are to report."""
    return {
        line["config"]: line
        for line in lines
        if error_name(line["config"]) in line.get("result", {})
    }


def rows_of(
    table: str, lines: Sequence[Line], dataset: str = "mnist", *, quick: bool = False
) -> list[Row]:
    """Return the rows of a table that have been run."""
    found = by_config(lines)
    rows = []
    for label, settings in TABLES[table].items():
        configs = configs_of(settings, dataset, quick=quick)
        runs = [found[config] for config in configs if config in found]
        if runs:
            rows.append(Row(label, configs[0], runs))
    return rows


def other_rows(lines: Sequence[Line], dataset: str) -> list[Row]:
    """Return rows of runs that have read the test set but are in no table."""
    listed = {
        config
        for rows in TABLES.values()
        for settings in rows.values()
        for config in configs_of(settings, dataset)
    }
    groups: dict[Config, list[Line]] = {}
    for config, line in by_config(lines).items():
        if config.dataset == dataset and not config.validation and config not in listed:
            groups.setdefault(replace(config, seed=0), []).append(line)
    return [Row(changes(config), config, runs) for config, runs in groups.items()]


# -- the page -------------------------------------------------------------------------------------

PLUS_MINUS = "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}"


def write_page(directory: Path, dataset: str, *, quick: bool) -> Path:
    """Write the page and its figures from ``runs.jsonl``; return the path of the page."""
    lines = read_results(directory / "runs.jsonl")
    tables = {name: rows_of(name, lines, dataset, quick=quick) for name in TABLES}
    blocks = {name: section(name, rows, directory) for name, rows in tables.items()}
    if quick or dataset != "mnist":
        page = f"# A trial on {dataset}, not a result\n\n"
        page += "\n".join(f"## {name}\n\n{block}" for name, block in blocks.items() if tables[name])
    else:
        blocks["aims"] = aims_table(tables)
        blocks["others"] = rows_table(other_rows(lines, dataset))
        for setting in dict.fromkeys(entry.setting for entry in PUBLISHED):
            blocks[f"published {setting}"] = published_table(setting)
        page = re.sub(
            r"(<!-- ([\w -]+) -->\n).*?(<!-- end -->\n)",
            lambda match: f"{match[1]}\n{blocks[match[2]]}\n{match[3]}",
            Path(__file__).with_name("index.md").read_text(encoding="utf-8"),
            flags=re.DOTALL,
        )
    path = directory / "index.md"
    write_whole(path, page.encode())
    return path


def section(name: str, rows: Sequence[Row], directory: Path) -> str:
    """Return the table, settings and figures of some rows; write the figures."""
    if not rows:
        return "Not run yet.\n"
    text = rows_table(rows) + "\nWhat each row changes of the recipe of `minidiff train`:\n\n"
    text += "".join(f"- {row.label}: {changes(row.config)}\n" for row in rows)
    drawn = [row for row in rows if row.config.gated and math.inf not in row.fewer("weights")]
    if not drawn or drawn[0].config.validation:
        return text
    plots.save(pareto_figure(drawn), directory, name)
    text += f"\n![Test error of these rows over times fewer weights and MACs]({name}.svg)\n"
    first = drawn[0]
    if first.config.sparsity == "structured":
        plots.save(plots.curves(records(first), "gates"), directory, f"{name}-training")
        caption = f"Open filters, inputs and units while {first.label} trains, seed 0"
        text += f"\n![{caption}]({name}-training.svg)\n"
    return text


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Format a table."""
    return "".join(f"| {' | '.join(line)} |\n" for line in (head, ["---"] * len(head), *rows))


def spread(values: Sequence[float], digits: int, unit: str = "") -> str:
    """Format mean and standard deviation; a single value has none."""
    if math.inf in values:
        return "nothing left"
    mean = f"{np.mean(values):.{digits}f}{unit}"
    return mean + (f"{PLUS_MINUS}{np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else "")


def rows_table(rows: Sequence[Row]) -> str:
    """Format what the runs of each row have measured."""
    error = error_name(rows[0].config).replace("_", " ") if rows else "error"
    head = ["", f"{error}, %", "fewer weights", "fewer MACs", "architecture", "seeds", "minutes"]
    cells = []
    for row in rows:
        gated = row.config.gated
        savings = [spread(row.fewer(w), 1, "x") if gated else "" for w in ("weights", "macs")]
        minutes = f"{np.median(row.values('seconds')) / 60:.1f}"
        counts = [row.architecture, str(len(row.runs)), minutes]
        cells.append([row.label, spread(row.errors, 2), *savings, *counts])
    return markdown_table(head, cells)


def changes(config: Config) -> str:
    """Format the settings that differ from the recipe."""
    usual = RECIPES[config.dataset].to_json()
    different = []
    for name, value in config.to_json().items():
        if value != usual[name] and name not in ("validation", "seed"):
            text = f"{value:g}" if isinstance(value, float) else value
            different.append(f"{'λ' if name == 'penalty' else name} = {text}")
    return f"`{', '.join(different)}`" if different else "nothing"


def aims_table(tables: Mapping[str, Sequence[Row]]) -> str:
    """Format each aim beside what its row has measured."""
    cells = []
    for aim in AIMS:
        asked = f"≤ {aim.error:.2f} % at ≥ {aim.weights:g}x"
        asked += f", ≥ {aim.macs:g}x MACs" if aim.macs else ""
        row = next((row for row in tables[aim.table] if row.label == aim.label), None)
        said = measured(row, aim) if row else ["", "0", "not run yet"]
        cells.append([aim.table, asked, *said])
    return markdown_table(["table", "aim", "measured", "seeds", ""], cells)


def measured(row: Row, aim: Aim) -> list[str]:
    """Return what was measured, by how many seeds, and by how much it misses the aim."""
    error, weights, macs = (
        round(float(np.mean(values)), 6)  # so that a mean of 0.7 is not above 0.7
        for values in (row.errors, row.fewer("weights"), row.fewer("macs"))
    )
    missed = [f"{error - aim.error:.2g} points over"] if error > aim.error else []
    for noun, found, least in (("weights", weights, aim.weights), ("MACs", macs, aim.macs)):
        if found < least:
            missed.append(f"{noun} {100 * (1 - found / least):.1f} % short")
    text = f"{spread(row.errors, 2)} % at {weights:.1f}x, {macs:.1f}x MACs"
    reached = "reached" if len(row.runs) == len(SEEDS) else "reached so far"
    return [text, str(len(row.runs)), "; ".join(missed) or reached]


def published_table(setting: str) -> str:
    """Format published results; the figures show them by the numbers of this table."""
    head = ["", "method", "error, %", "fewer weights", "fewer MACs", "architecture"]
    cells = []
    entries = [entry for entry in PUBLISHED if entry.setting == setting]
    for number, entry in enumerate(entries, 1):
        error = f"{entry.error:g}"
        error += f"{PLUS_MINUS}{entry.deviation:g}" if entry.deviation else ""
        fewer = [entry.fewer(what) for what in ("weights", "macs")]
        savings = [f"{value:.1f}x" if value else "" for value in fewer]
        where = [entry.architecture, entry.source, entry.note]
        cells.append([str(number), entry.method, error, *savings, *where])
    return markdown_table([*head, "read in", "note"], cells)


def published_beside(config: Config) -> list[Published]:
    """Return the published results that a run can stand beside."""
    setting = "lenet300" if config.model == "lenet300" else config.sparsity
    return [entry for entry in PUBLISHED if entry.setting == setting and config.dataset == "mnist"]


# -- the figures ----------------------------------------------------------------------------------


def records(row: Row) -> list[dict[str, Any]]:
    """Return the history of a row's first run, as records of epochs for a figure."""
    names = ("conv1 filters", "conv2 filters", "dense1 inputs", "dense1 units")

    def sizes(text: str) -> dict[str, int]:
        return dict(zip(names, map(int, text.split("-")), strict=True))

    history = row.runs[0]["history"]
    groups = sizes(row.values("dense_architecture")[0])
    stop = row.config.gate_stop * row.config.epochs
    return [
        {"epoch": epoch, "open": sizes(text), "groups": groups, "frozen": epoch >= stop}
        for epoch, text in zip(history["epoch"], history["architecture"], strict=True)
    ]


@styled
def pareto_figure(rows: Sequence[Row]) -> "Figure":
    """Draw test error over savings of weights and of MACs, with published results in grey."""
    figure = new_figure(8.2, 3.8)  # the width of a page, so that letters keep their size
    panels = figure.subplots(1, 2, sharey=True)
    for axes, noun in zip(panels, ("weights", "MACs"), strict=True):
        draw_pareto(axes, rows, noun)
    panels[0].set_ylabel("test error, %")
    # The legend stands above the panels, since points may lie in any corner of them.
    handles, methods = panels[0].get_legend_handles_labels()
    figure.legend(handles, methods, loc="outside upper center", ncols=len(methods), frameon=False)
    return figure


def draw_pareto(axes: "Axes", rows: Sequence[Row], noun: str) -> None:
    """Draw one panel: published results by their number, our rows as points with error bars."""
    from matplotlib.ticker import FixedLocator, NullLocator

    what = noun.lower()
    text: Any = {"ha": "center", "va": "center", "fontsize": 7, "color": plots.MUTED}
    places = []
    for number, entry in enumerate(published_beside(rows[0].config), 1):
        fewer = entry.fewer(what)
        if fewer is not None:
            places.append(fewer)
            axes.plot(fewer, entry.error, "o", color=plots.FAINT, markersize=11, zorder=1)
            axes.annotate(str(number), (fewer, entry.error), zorder=2, **text)
    methods = dict.fromkeys(row.config.method for row in rows)
    bars: Any = {"fmt": "o", "capsize": 3, "markersize": 5, "elinewidth": 1.2, "zorder": 3}
    for method, colour in zip(methods, plots.COLOURS, strict=False):
        own = [row for row in rows if row.config.method == method]
        savings = [float(np.mean(row.fewer(what))) for row in own]
        places += savings
        errors = [np.mean(row.errors) for row in own]
        spreads = [np.std(row.errors, ddof=len(row.errors) > 1) for row in own]
        axes.errorbar(savings, errors, spreads, color=colour, label=method, **bars)
    axes.set_xscale("log")
    axes.set_xlim(0.8 * min(places), 1.25 * max(places))
    ticks = (1, 2, 3, 5, 10, 20, 30, 50, 100, 200, 300, 500, 1000)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter("{x:g}×")
    axes.set_xlabel(f"times fewer {noun}")


# -- the command ----------------------------------------------------------------------------------


def train(configs: Sequence[Config], path: Path, jobs: int, cluster: str | None) -> int:
    """Train the runs that have no line yet; return how many failed."""
    failed = 0
    for error in ("validation_error", "test_error"):
        part = [config for config in configs if error_name(config) == error]
        if part:
            failed += sweep(part, path, jobs=jobs, cluster=cluster, test=error == "test_error")
    return failed


def main(arguments: Sequence[str] | None = None) -> int:
    """Train what is missing, write the page, and return the exit status."""
    parser = argparse.ArgumentParser(description="Train the runs of the results, write the page.")
    add = parser.add_argument
    add("names", metavar="NAME", nargs="*", help=f"of {', '.join(TABLES)}; default: all")
    add("--report", action="store_true", help="train nothing, only write the page")
    add("--quick", action="store_true", help="very short runs of two seeds, to try the tools")
    add("--jobs", type=int, default=1, metavar="N", help="runs at a time")
    add("--cluster", metavar="ADDRESS", help="of a Dask scheduler whose workers do the runs")
    add("--dataset", choices=DATASETS, help="default: MNIST if it can be had")
    add("--out", type=Path, metavar="DIR", help="default: runs/results, or runs/quick")
    options = parser.parse_args(arguments)
    for name in set(options.names) - set(TABLES):
        parser.error(f"{name} is no table; expected some of {', '.join(TABLES)}.")
    quick = options.quick
    directory = options.out or Path("runs", "quick" if quick else "results")
    path = directory / "runs.jsonl"
    failed = 0
    if options.report:
        trained = [line["config"].dataset for line in read_results(path)]
        dataset = options.dataset or (trained or ["mnist"])[0]
        if dataset not in trained:
            parser.error(f"{path} holds no runs on {dataset}; train them first, without --report.")
    else:
        data = load_dataset(options.dataset or "auto")
        print(f"data: {data.source}")
        dataset = data.name
        directory.mkdir(parents=True, exist_ok=True)
        configs = [
            config
            for name in options.names or TABLES
            for settings in TABLES[name].values()
            for config in configs_of(settings, dataset, quick=quick)
        ]
        failed = train(configs, path, options.jobs, options.cluster)
    page = write_page(directory, dataset, quick=quick)
    print(f"{page} is written" + (f"; {failed} runs failed" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
