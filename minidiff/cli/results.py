"""The table of results: which runs it takes, and what is written about them.

``minidiff reproduce`` sweeps over all runs of :data:`EXPERIMENTS` and writes ``index.md``, figures
and the lines of the runs, ``runs.jsonl``, from which the page is written again without training.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minidiff.cli.published import DENSE, PUBLISHED, Published
from minidiff.io.files import write_whole
from minidiff.training.config import RECIPES, Config
from minidiff.training.sweep import read_results

__all__ = [
    "EXPERIMENTS",
    "QUICK",
    "Aim",
    "Experiment",
    "Row",
    "rows_of",
    "runs_of",
    "write_results",
]

SEEDS = (0, 1, 2, 3, 4)


class Aim(NamedTuple):
    """What a row was to reach, said before it was run: at the frontier of what is published.

    Attributes
    ----------
    error : float
        At most, in %, as the mean of all seeds.
    weights, macs : float
        How many times fewer, at least; 0 asks for nothing.

    Examples
    --------
    >>> EXPERIMENTS["lenet300"].aims[0]
    Aim(error=1.6, weights=60, macs=0.0)
    """

    error: float
    weights: float
    macs: float = 0.0


@dataclass(frozen=True)
class Experiment:
    """A table: variants of a setting, each trained with every seed.

    Where images are held out the error is that on them, and the test set is not read: such a table
    is about choices.

    Attributes
    ----------
    title, about : str
    setting : str
        Which published results it stands beside, as in
        :class:`~minidiff.cli.published.Published`.
    base : dict
        What all its runs change of the recipe.
    variants : tuple of dict
        What each row changes besides.
    labels : tuple of str
        What to call the rows, if not by method and strength.
    aims : dict of Aim
        Of rows that have one, by number.

    Examples
    --------
    >>> table = Experiment("A table", "", "", {}, ({"penalty": 1.0}, {"penalty": 2.0}))
    >>> [(number, config.seed) for number, config in table.configs("mnist", quick=True)]
    [(0, 0), (0, 1), (1, 0), (1, 1)]
    """

    title: str
    about: str
    setting: str
    base: Mapping[str, Any]
    variants: tuple[Mapping[str, Any], ...]
    labels: tuple[str, ...] = ()
    aims: Mapping[int, Aim] = field(default_factory=dict)

    @property
    def error(self) -> str:
        """Which error it is about."""
        return "validation_error" if self.base.get("validation", 1) else "test_error"

    def configs(self, dataset: str, *, quick: bool = False) -> Iterator[tuple[int, Config]]:
        """Yield (number of the variant, configuration) for every run."""
        for number, variant in enumerate(self.variants):
            for seed in SEEDS[:2] if quick else SEEDS:
                changes = {**self.base, **variant, **(QUICK if quick else {}), "seed": seed}
                yield number, Config.recipe(dataset, **changes)


def _lambdas(*values: float, **changes: Any) -> tuple[Mapping[str, Any], ...]:
    return tuple({**changes, "penalty": value} for value in values)


def _epochs(gates: int, settle: int, *, ramp: int) -> dict[str, Any]:
    """Let gates learn for so many epochs, lambda rising over the first, and the network settle."""
    epochs = gates + settle
    times = {"gate_start": 1.17, "gate_stop": gates, "ramp": ramp}  # the start is the recipe's
    return {"epochs": epochs, **{name: round(time / epochs, 4) for name, time in times.items()}}


DENSE_RUN = {"sparsity": "dense", "epochs": 40}
FINAL = {"validation": 0}  # all has been chosen
LIGHT = {"validation": 0, "augment": True, "label_smoothing": 0.0}  # augmentation is enough
LONGER = _epochs(56, 62, ramp=24)  # gates learn for twice as long as in the recipe
# Where the aim is about weights alone, they are what to count. What augmentation or its size keeps
# from learning images by heart hardly needs smoothed labels, but gains by an average of weights.
AVERAGED = {"cost": "weights", "label_smoothing": 0.0, "swa_lr": 0.05}
# So small a network settles in less time.
SMALL = {**AVERAGED, **_epochs(56, 40, ramp=24)}
# What errs on its training images, augmented or with too few weights left, gains by more time and
# smaller steps.
PATIENT = {**AVERAGED, "swa_lr": 0.03, **_epochs(56, 120, ramp=24)}
# Gates on each weight take longer to close than gates on groups.
UNSTRUCTURED = {**AVERAGED, "sparsity": "unstructured", **_epochs(36, 44, ramp=18)}
# Larger steps of the gates than the recipe's did better there on validation images.
UNSTRUCTURED_LENET5 = {**UNSTRUCTURED, "gate_lr": 0.01}
# What each row of an ablation changes of the recipe.
CHOICES: dict[str, Mapping[str, Any]] = {
    "recipe": {},
    "no label smoothing": {"label_smoothing": 0.0},
    "step size not restarted": {"restart": False},
    "no ramp of λ": {"ramp": 0.0},
    "no weight decay": {"weight_decay": 0.0},
    "cost: weights": {"cost": "weights", "penalty": 1.0},
    "cost: MACs": {"cost": "macs", "penalty": 0.03},
    "stochastic gates, σ = 0.5": {"noise": "normal", "sigma": 0.5},
}
CHOICES_SMALL: dict[str, Mapping[str, Any]] = {
    "recipe": {},
    "step size not restarted": {"restart": False},
    "gates learn for half as long": _epochs(28, 40, ramp=12),
    "settles along a cosine, no average": {"swa_lr": 0.0},
    "labels smoothed by 0.1": {"label_smoothing": 0.1},
}
#: Every table of the results by name.
EXPERIMENTS = {
    "structured": Experiment(
        "Structured LeNet5",
        "Gates on filters, on the inputs of the first dense layer and on its units; no "
        "augmentation. The largest network is pruned by the recipe of `minidiff train`, but with λ "
        "at its value from the start. For the smaller two, gates learn for twice as long (56 "
        "epochs), weights alone have a price, and what is left settles with an average of weights "
        "in place of smoothed labels: for 40 epochs, and the smallest for 120, in smaller steps.",
        "structured",
        FINAL,
        (
            DENSE_RUN,
            *_lambdas(0.33, ramp=0.0),
            *_lambdas(3.9, **SMALL),
            *_lambdas(19.0, **PATIENT),
        ),
        aims={1: Aim(0.6, 30, 8), 2: Aim(0.8, 100), 3: Aim(1.0, 200)},
    ),
    "structured-augmented": Experiment(
        "Structured LeNet5, light augmentation",
        "The same, with shifts of up to 2 pixels, turns of up to 5 degrees and sizes up to 10 % "
        "off. Gates learn for 56 epochs, weights alone have a price, and what is left settles with "
        "an average of weights and without smoothed labels: for 62 epochs, and the smaller network "
        "for 120, in smaller steps. The published results in the figure are those of the table "
        "above, not of augmented training.",
        "structured",
        LIGHT,
        (
            DENSE_RUN,
            *_lambdas(0.7, **{**AVERAGED, **LONGER}),
            *_lambdas(5.3, **PATIENT),
        ),
        aims={1: Aim(0.45, 30), 2: Aim(0.6, 80)},
    ),
    "baselines": Experiment(
        "Other methods on the same engine",
        "Structured LeNet5, no augmentation; the same groups, schedule and fine-tuning for all, "
        "which were chosen for DiffPrune; for the others nothing but their strength was. Where "
        "gates are learned, the surrogate is the same as well. Group lasso and magnitude have no "
        "say in what a MAC costs; beside them stands DiffPrune priced by weights alone.",
        "structured",
        FINAL,
        (
            *_lambdas(0.4),
            *_lambdas(0.7, 1.45, cost="weights"),
            *_lambdas(0.4, method="hard-concrete"),
            *_lambdas(0.35, method="gaussian"),
            *_lambdas(70.0, method="group-lasso"),
            {"method": "magnitude", "keep": 0.25},
        ),
    ),
    "unstructured": Experiment(
        "Unstructured LeNet5",
        "Gates on each weight; no augmentation.",
        "unstructured",
        {**FINAL, **UNSTRUCTURED_LENET5},
        _lambdas(7.0),
        aims={0: Aim(0.75, 300)},
    ),
    "unstructured-augmented": Experiment(
        "Unstructured LeNet5, light augmentation",
        "The same with light augmentation.",
        "unstructured",
        {**LIGHT, **UNSTRUCTURED_LENET5},
        _lambdas(9.5),
        aims={0: Aim(0.6, 300)},
    ),
    "lenet300": Experiment(
        "Unstructured LeNet-300-100",
        "Gates on each weight; no augmentation. In training a fifth of the pixels are dropped.",
        "lenet300",
        {**FINAL, **UNSTRUCTURED, "model": "lenet300", "dropout": 0.2},
        _lambdas(5.5),
        aims={0: Aim(1.6, 60)},
    ),
    "ablation": Experiment(
        "What the recipe is made of",
        "Each row changes one thing (a cost in other units goes with another λ). These runs hold "
        "out 5,000 training images, and the error is that on them: choices were made by it. One "
        "image is 0.02 points, and rows of another size are not to be compared by error alone.",
        "",
        {},
        tuple(CHOICES.values()),
        tuple(CHOICES),
    ),
    "ablation-small": Experiment(
        "What the recipe of small networks is made of",
        "The same for networks of a hundred times fewer weights.",
        "",
        {**SMALL, "penalty": 3.9},
        tuple(CHOICES_SMALL.values()),
        tuple(CHOICES_SMALL),
    ),
}
#: Changes that make it a matter of minutes, to see that all of it works.
QUICK = {"epochs": 3, "gate_start": 0.1, "gate_stop": 0.6}


def runs_of(names: Sequence[str], dataset: str, *, quick: bool = False) -> list[Config]:
    """List the configurations of some experiments; in quick mode short ones, of two seeds.

    Parameters
    ----------
    names
        Of :data:`EXPERIMENTS`.
    dataset
        "mnist" or "digits".
    quick
        Whether in quick mode, see :data:`QUICK`.

    Examples
    --------
    >>> runs = runs_of(["lenet300"], "digits", quick=True)
    >>> [(run.model, run.epochs == QUICK["epochs"], run.seed) for run in runs]
    [('lenet300', True, 0), ('lenet300', True, 1)]
    """
    return [
        config for name in names for _, config in EXPERIMENTS[name].configs(dataset, quick=quick)
    ]


@dataclass(frozen=True)
class Row:
    """What a variant has come to: figures of each seed, and their mean and standard deviation.

    Attributes
    ----------
    config : Config
        Of the first seed.
    name : str
        Its label, if the experiment has given one.
    aim : Aim or None
        What it was to reach.
    errors, fewer_weights, fewer_macs, architectures : tuple
        Of each seed: the error in %, how many times fewer, and what is left as in "8-10-112-68".
    dense : str
        The architecture that it began with.
    minutes : float
        That a run has taken, the median.
    history : dict of list
        A few figures of some epochs of the first seed.

    Examples
    --------
    >>> left = ("5-16-157-61", "7-16-151-63")
    >>> dense = "20-50-800-500"
    >>> row = Row(Config(), "", None, (0.7, 0.8), (35, 36), (11, 10), left, dense, 2.0, {})
    >>> row.architecture
    '6-16-154-62'
    """

    config: Config
    name: str
    aim: Aim | None
    errors: tuple[float, ...]
    fewer_weights: tuple[float, ...]
    fewer_macs: tuple[float, ...]
    architectures: tuple[str, ...]
    dense: str  # the architecture that it began with
    minutes: float
    history: Mapping[str, Sequence[Any]]  # of the first seed

    @property
    def label(self) -> str:
        """Method and strength, in a few words, or the name that it was given."""
        return self.name or _label(self.config)

    @property
    def architecture(self) -> str:
        """The mean of each size, rounded."""
        sizes = [list(map(int, text.split("-"))) for text in self.architectures]
        return "-".join(str(round(float(np.mean(column)))) for column in zip(*sizes, strict=True))


def _label(config: Config) -> str:
    if not config.gated:
        return "dense"
    if config.method == "magnitude":
        return f"{config.method}, keep {config.keep:g}"
    cost = "" if config.cost == Config.cost else f" of {config.cost}"
    return f"{config.method}, λ = {config.penalty:g}{cost}"


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and standard deviation (of the sample; 0 for one value); inf, nan of infinity."""
    mean = float(np.mean(values))
    if not math.isfinite(mean):
        return mean, math.nan
    return mean, float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def rows_of(
    experiment: Experiment, lines: Sequence[Mapping[str, Any]], dataset: str, *, quick: bool = False
) -> list[Row]:
    """Gather the rows of an experiment from lines of results; what has not been run is left out.

    Parameters
    ----------
    experiment
        The table.
    lines
        As :func:`~minidiff.training.sweep.read_results` gives them.
    dataset, quick
        As of :func:`runs_of`.

    Examples
    --------
    >>> rows_of(EXPERIMENTS["structured"], [], "mnist")
    []
    """
    results = {line["config"]: line for line in lines if experiment.error in line.get("result", {})}
    found: dict[int, list[tuple[Config, Mapping[str, Any]]]] = {}
    for number, config in experiment.configs(dataset, quick=quick):
        line = results.get(config)
        if line is not None:
            found.setdefault(number, []).append((config, line))
    return [
        _row(
            runs,
            experiment.error,
            name=experiment.labels[number] if experiment.labels else "",
            aim=experiment.aims.get(number),
        )
        for number, runs in found.items()
    ]


def _row(
    runs: Sequence[tuple[Config, Mapping[str, Any]]],
    error: str,
    *,
    name: str = "",
    aim: Aim | None = None,
) -> Row:
    ends = [line["result"] for _, line in runs]
    fewer = [
        tuple(end[f"dense_{what}"] / end[what] if end[what] else math.inf for end in ends)
        for what in ("weights", "macs")
    ]
    return Row(
        config=runs[0][0],
        name=name,
        aim=aim,
        errors=tuple(end[error] for end in ends),
        fewer_weights=fewer[0],
        fewer_macs=fewer[1],
        architectures=tuple(end["architecture"] for end in ends),
        dense=ends[0]["dense_architecture"],
        minutes=float(np.median([end["seconds"] for end in ends])) / 60,
        history=runs[0][1]["history"],
    )


def _replaced(lines: Sequence[Mapping[str, Any]], dataset: str) -> list[Row]:
    """Gather runs that read the test set and are of no table any more."""
    known = {c for e in EXPERIMENTS.values() for _, c in e.configs(dataset)}
    tested = {line["config"]: line for line in lines if "test_error" in line.get("result", {})}
    found: dict[Config, list[tuple[Config, Mapping[str, Any]]]] = {}
    for config, line in tested.items():
        if config.dataset == dataset and config not in known:
            found.setdefault(replace(config, seed=0), []).append((config, line))
    rows = [_row(runs, "test_error") for runs in found.values()]
    return sorted(rows, key=_place)


def _place(row: Row) -> tuple[str, str, bool, float]:
    config = row.config
    return config.model, config.sparsity, config.augment, spread(row.fewer_weights)[0]


# -- writing -------------------------------------------------------------------------------------


def write_results(directory: Path, names: Sequence[str], dataset: str, *, quick: bool) -> Path:
    """Write the page and its figures from the lines in ``runs.jsonl``; return the page's path.

    Parameters
    ----------
    directory
        Which holds ``runs.jsonl``, and where the page goes.
    names
        Tables that stand there even if nothing of them has been run.
    dataset, quick
        As of :func:`runs_of`.

    Raises
    ------
    OSError
        If a file cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     page = write_results(Path(directory), ["structured"], "mnist", quick=False)
    ...     "Not run yet." in page.read_text(encoding="utf-8")
    True
    """
    from minidiff.figures.plots import architecture_over_time, pareto_figure, save

    lines = read_results(directory / "runs.jsonl")
    serious = dataset == "mnist" and not quick
    parts = [HEAD + (MNIST if serious else TRIAL.format(dataset=dataset)) + UNITS]
    tables = {n: rows_of(e, lines, dataset, quick=quick) for n, e in EXPERIMENTS.items()}
    tables = {name: rows for name, rows in tables.items() if rows or name in names}
    if serious and any(EXPERIMENTS[name].aims for name in tables):
        parts.append(_aims(tables))
    drawn: set[Config] = set()  # a row that stands in two tables is drawn once
    for name, rows in tables.items():
        experiment = EXPERIMENTS[name]
        parts.append(f"## {experiment.title}\n\n{experiment.about}\n")
        if not rows:
            parts.append("Not run yet.\n")
            continue
        parts.append(_table(rows, experiment.error))
        parts.append(_how(experiment, rows, dataset, quick=quick))
        published = [p for p in PUBLISHED if serious and p.setting == experiment.setting]
        # What has lost everything has no place on the axis of savings.
        gated = [row for row in rows if row.config.gated and math.inf not in row.fewer_weights]
        if experiment.error != "test_error":
            continue
        if gated:
            save(pareto_figure(gated, published), directory, name)
            parts.append(f"![{_alt(experiment, gated)}]({name}.svg)\n")
        structured = [row for row in gated if row.config.sparsity == "structured"]
        if structured and structured[0].config not in drawn:
            row = structured[0]
            drawn.add(row.config)
            save(architecture_over_time(_records(row)), directory, f"{name}-training")
            said = f"Open filters, inputs and units while {row.label} trains, seed 0"
            parts.append(f"![{said}]({name}-training.svg)\n")
    if serious:
        replaced = _replaced(lines, dataset)
        if replaced:
            parts.append(f"## Other runs on the test set\n\n{REPLACED}\n\n{_settings(replaced)}")
        for setting in dict.fromkeys(EXPERIMENTS[name].setting for name in tables):
            published = [p for p in PUBLISHED if p.setting == setting]
            if published:
                parts.append(f"## Published: {SETTINGS[setting]}\n\n{_published(published)}")
        parts.append(f"{NOTES}\n\nDense LeNet-5-Caffe, published: {DENSE}.\n")
    path = directory / "index.md"
    write_whole(path, "\n".join(parts).encode())
    return path


HEAD = """# Results

"""

MNIST = """MNIST's test set, error of the *last* epoch, mean and standard deviation over seeds 0
to 4. These runs train on all 60,000 images. No run, epoch or seed was picked by its test error, and
recipes were compared on training images that were held out. But the test set is not unseen: rows
that had missed their aims were given other recipes, some of them several times, and strengths were
set by the size that earlier runs had ended at, when their test errors were known. So these errors
are slightly optimistic; what was run before [stands below](#other-runs-on-the-test-set). Rows come
from several versions of the code and several machines: another processor rounds in another way, and
a seed gives another network there.

"diffprune" is this project's own construction of gates, surrogate and recipe after the abstract of
the paper, whose network and savings are not known to us. Grey numbers in figures are those of the
tables of published results further down; bars are one standard deviation of ours.

`minidiff reproduce` trains the runs that have no line in `runs.jsonl` beside this page, and all of
them where that file is gone; `minidiff reproduce --report` only writes the page from it.
"""

TRIAL = """**To try the tools, not a result**: on {dataset}, or short runs of two seeds. Error of
the *last* epoch, mean and standard deviation over the seeds.
"""

UNITS = """
Savings are of weights without biases, and of multiply-adds a sample: how many times fewer, the mean
over seeds. An architecture is the mean of each size, rounded; of gates on single weights, of what
has any weight left. Minutes are those of the clock, the median, for runs side by side on a shared
machine that does other work as well, so they are upper bounds. Unstructured zeros save storage, and
work only where whole filters, units or inputs are gone; their MACs are counted as if each zero were
skipped.
"""

AIMS = """Set in advance, at the frontier of what is published. What was tried stands in
[the design](../design.md#choices-of-training)."""

REPLACED = """Rows that were in a table before, with the settings that differ from those of
`minidiff train`. Left out are two runs of magnitude pruning, whose code was wrong then, and four of
unstructured LeNet5 in which the step size of gates rose to 0.02, a setting that is gone again: two
seeds of each row, which erred no less than those that stand there."""

NOTES = """Savings follow from the architecture where it is given; (~) was read off a chart. Most of
these report the best test epoch, often of one run; ours report the last epoch of every run."""

SETTINGS = {
    "structured": "structured LeNet5",
    "unstructured": "unstructured LeNet5",
    "lenet300": "LeNet-300-100",
}


PLUS_MINUS = "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}"


def _aims(tables: Mapping[str, Sequence[Row]]) -> str:
    lines = ["| | aim | measured | seeds | |", "|---" * 5 + "|"]
    for name, rows in tables.items():
        found = {row.aim: row for row in rows if row.aim}
        for aim in EXPERIMENTS[name].aims.values():
            cells = (EXPERIMENTS[name].title, *_aimed(found.get(aim), aim))
            lines.append(f"| {' | '.join(cells)} |")
    return f"## What was aimed at\n\n{AIMS}\n\n" + "\n".join(lines) + "\n"


def _aimed(row: Row | None, aim: Aim) -> tuple[str, ...]:
    """Say the aim, what was measured, of how many seeds, and what is missed, as far as shown."""
    asked = f"≤ {aim.error:.2f} % at ≥ {aim.weights:g}x"
    asked += f", ≥ {aim.macs:g}x MACs" if aim.macs else ""
    if row is None:
        return asked, "", "0", "not run yet"
    found = row.errors, row.fewer_weights, row.fewer_macs
    error, weights, macs = (round(spread(x)[0], 6) for x in found)  # 0.7 is not above 0.7
    missed = [f"{error - aim.error:.2g} points over"] if error > aim.error else []
    for what, least, fewer in (("weights", aim.weights, weights), ("MACs", aim.macs, macs)):
        if fewer < least:
            missed.append(f"{what} {100 * (1 - fewer / least):.1f} % short")
    measured = f"{_spread(row.errors, 2)} % at {weights:.1f}x, {macs:.1f}x MACs"
    reached = "reached" if len(row.errors) == len(SEEDS) else "reached so far"
    return asked, measured, str(len(row.errors)), "; ".join(missed) or reached


def _spread(values: Sequence[float], digits: int, unit: str = "") -> str:
    """Say mean and standard deviation; a single run has none, nor runs that have lost all."""
    if math.inf in values:
        return f"all is gone in {sum(map(math.isinf, values))} of {len(values)}"
    mean, deviation = (f"{x:.{digits}f}" for x in spread(values))
    return mean + unit + (PLUS_MINUS + deviation if len(values) > 1 else "")


def _table(rows: Sequence[Row], error_name: str) -> str:
    columns = (
        *("", f"{error_name.replace('_', ' ')}, %", "fewer weights", "fewer MACs"),
        *("architecture", "seeds", "minutes a run"),
    )
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for row in rows:
        cells = [row.label, _spread(row.errors, 2)]
        savings = (row.fewer_weights, row.fewer_macs)
        cells += [_spread(values, 1, "x") if row.config.gated else "" for values in savings]
        cells += [row.architecture, str(len(row.errors)), f"{row.minutes:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _how(experiment: Experiment, rows: Sequence[Row], dataset: str, *, quick: bool) -> str:
    """Say what the settings of each row are, and which rows have not been run."""
    every = (config for _, config in experiment.configs(dataset, quick=quick))
    firsts = [config for config in every if config.seed == SEEDS[0]]
    names = experiment.labels or map(_label, firsts)
    done = {replace(row.config, seed=SEEDS[0]) for row in rows}
    lines = ["What each row changes of the recipe of `minidiff train`:\n"]
    for name, config in zip(names, firsts, strict=True):
        said = f"`{_changes(config)}`" if _changes(config) else "nothing"
        lines.append(f"- {name}: {said}" + ("" if config in done else " (not run yet)"))
    return "\n".join(lines) + "\n"


def _changes(config: Config) -> str:
    """Write the settings that are not the recipe's."""
    usual = RECIPES[config.dataset].to_json()
    return ", ".join(
        f"{'λ' if name == 'penalty' else name} = {value:g}"
        if isinstance(value, float)
        else f"{name} = {value}"
        for name, value in config.to_json().items()
        if value != usual[name] and name not in ("validation", "seed")
    )


def _settings(rows: Sequence[Row]) -> str:
    """Write rows with the settings that tell them apart."""
    lines = ["| settings | test error, % | fewer weights | fewer MACs | seeds |", "|---" * 5 + "|"]
    for row in rows:
        cells = [f"`{_changes(row.config)}`", _spread(row.errors, 2)]
        cells += [_spread(values, 1, "x") for values in (row.fewer_weights, row.fewer_macs)]
        lines.append(f"| {' | '.join([*cells, str(len(row.errors))])} |")
    return "\n".join(lines) + "\n"


def _published(published: Sequence[Published]) -> str:
    lines = [
        "| | method | error, % | fewer weights | fewer MACs | architecture | read in | note |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for number, entry in enumerate(published, 1):
        error = f"{'~' if entry.read else ''}{entry.error:g}"
        if entry.spread is not None:
            error += f"{PLUS_MINUS}{entry.spread:g}"
        savings = [f"{x:.1f}x" if x else "" for x in (entry.weights, entry.macs)]
        cells = [str(number), entry.method, error, *savings]
        cells += [entry.architecture, entry.source, entry.note]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _records(row: Row) -> list[dict[str, Any]]:
    """Return the history of a row as records of epochs, sizes in place of gates."""
    history = row.history
    sizes = [list(map(int, text.split("-"))) for text in history["architecture"]]
    names = [f"size {i}" for i in range(1, len(sizes[0]) + 1)]
    if row.config.model == "lenet5":
        names = ["conv1 filters", "conv2 filters", "dense1 inputs", "dense1 units"]
    whole = dict(zip(names, map(int, row.dense.split("-")), strict=True))
    stop = row.config.gate_stop * row.config.epochs
    return [
        {
            "epoch": epoch,
            "open": dict(zip(names, size, strict=True)),
            "groups": whole,
            "frozen": epoch >= stop,
        }
        for epoch, size in zip(history["epoch"], sizes, strict=True)
    ]


def _alt(experiment: Experiment, rows: Sequence[Row]) -> str:
    least = min(rows, key=lambda row: spread(row.errors)[0])
    most = max(rows, key=lambda row: spread(row.fewer_weights)[0])
    said = dict.fromkeys(
        f"{spread(row.errors)[0]:.2f} % at {spread(row.fewer_weights)[0]:.0f}x"
        for row in (least, most)
    )
    return f"{experiment.title}: test error over savings, {' to '.join(said)}"
