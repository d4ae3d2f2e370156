"""The settings of a training run, each written once: name, type, default, values and meaning.

The checks, the options of ``minidiff train`` and ``sweep`` with their help, ``config.json``,
``help(Config)`` and ``docs/settings.md`` all follow from the fields of :class:`Config`.
"""

import inspect
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import Field, asdict, dataclass, field, fields, replace
from difflib import get_close_matches
from numbers import Integral, Real
from typing import Any

import numpy as np

from minidiff.baselines.gaussian import GaussianGate
from minidiff.baselines.hard_concrete import HardConcrete
from minidiff.data.datasets import DATASETS, DIGITS_TRAINING_IMAGES, MNIST_TRAINING_IMAGES
from minidiff.models import MODELS, SPARSITIES
from minidiff.pruning.gates import Gate
from minidiff.pruning.noise import NOISES
from minidiff.pruning.surrogate import COSTS

__all__ = ["METHODS", "RECIPES", "Config", "ConfigError"]

#: The pruning methods, and the class of the gates that each one uses.
METHODS: dict[str, type[Gate]] = {
    "diffprune": Gate,
    "hard-concrete": HardConcrete,
    "gaussian": GaussianGate,
    "group-lasso": Gate,
    "magnitude": Gate,
}
GATED = tuple(METHODS)  # every network with gates, whatever the method
LEARNED = ("diffprune", "hard-concrete", "gaussian")  # methods whose gates learn
PENALISED = (*LEARNED, "group-lasso")
DIFFPRUNE = ("diffprune",)
YES_NO = (True, False)
SIZE = "a number above 0, or how many times fewer, such as 40x"


# In a run shorter than the recipe, gates move fast enough to go this many times from their start to
# closed, but a step is at most this share of the transition, where the data decide.
TRAVEL, STRIDE = 1.5, 1 / 3


class ConfigError(ValueError):
    """A setting that is out of range. The message names it, its value and what was expected.

    Parameters
    ----------
    message
        The whole message.
    names
        The settings that the message names.

    Examples
    --------
    >>> error = ConfigError("penalty is -1; expected 0 or more.", "penalty")
    >>> error.as_typed()
    '--lambda is -1; expected 0 or more.'
    """

    def __init__(self, message: str, *names: str) -> None:
        super().__init__(message, *names)
        self.names = names

    def __str__(self) -> str:
        return str(self.args[0])

    def as_typed(self, given: Mapping[str, Any] = {}) -> str:
        """Return the message with the options of the command line that gave the settings."""
        words = re.split(r"\b", str(self))
        return "".join(
            option_words(word, given.get(word))[0] if word in self.names else word for word in words
        )


def setting(
    default: Any,
    allowed: str | tuple[Any, ...],
    meaning: str,
    used_by: tuple[str, ...] = (),
    unless: tuple[str, Any] | None = None,
) -> Any:
    """Declare a setting.

    ``allowed`` is a tuple of values, or an interval such as "[0, 1)". ``used_by`` names the methods
    that use the setting. Without it every run uses the setting, even that of a dense network.
    ``unless`` is another setting, and the value of it with which this one has no effect.
    """
    metadata = {"allowed": allowed, "meaning": meaning, "used_by": used_by, "unless": unless}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Config:
    """Every choice of a training run. Pick a recipe, and change what you like.

    A run has three phases. First the weights train alone. Then the method prunes while they train.
    Then the gates are frozen, and the weights are fine-tuned. A dense network has only this last
    phase. With ``swa_lr``, fine-tuning has this constant learning rate, and the run ends with the
    mean of the weights over its second half.

    The loss is ``cross-entropy + lambda / N * expected cost``, for N training images. Lambda rises
    to ``penalty`` over the first ``ramp`` of the steps in which the method prunes. With ``target``
    or ``target_macs``, a :class:`~minidiff.Target` finds lambda in training instead.

    Raises
    ------
    ConfigError
        If a setting is out of range.

    Examples
    --------
    >>> config = Config.recipe("digits", seed=1)
    >>> config.epochs, config.penalty, config.seed
    (120, 0.01, 1)
    """

    dataset: str = setting("mnist", DATASETS[1:], "images; if not given, MNIST or else digits")
    validation: int = setting(5000, "[0, 59999]", "MNIST training images kept for validation")
    model: str = setting("lenet5", tuple(MODELS), "network to train")
    sparsity: str = setting("structured", SPARSITIES, "gates on channels, on weights, both, none")
    method: str = setting("diffprune", GATED, "pruning method: diffprune or a baseline", GATED)
    epochs: int = setting(90, "[1, 1e9]", "passes over the training images")
    batch_size: int = setting(128, "[1, 1e9]", "images in a training step")
    seed: int = setting(0, "[0, inf)", "seed of every random choice")
    lr: float = setting(0.05, "[1e-30, 1e30]", "largest learning rate of SGD")
    momentum: float = setting(0.9, "(0, 1)", "Nesterov momentum of SGD")
    weight_decay: float = setting(5e-4, "[0, 1e30]", "weight decay; biases have none")
    label_smoothing: float = setting(
        0.1, "[0, 1)", "label smoothing; none before fine-tuning", unless=("gate_stop", 1.0)
    )
    dropout: float = setting(0.0, "[0, 1)", "share of pixels dropped in training")
    warmup: int = setting(250, "[0, 1e9]", "steps of warm-up, at most half of a cosine")
    restart: bool = setting(
        True, YES_NO, "new warm-up and cosine for fine-tuning", GATED, unless=("gate_stop", 1.0)
    )
    swa_lr: float = setting(0.0, "[0, 1e30]", "if above 0: learning rate of fine-tuning", GATED)
    penalty: float = setting(0.45, "[0, 1e30]", "lambda, the weight of the penalty", PENALISED)
    target: str | int | None = setting(
        None, SIZE, "weights to end with, in place of lambda: 12000, or 40x fewer", LEARNED
    )
    target_macs: str | int | None = setting(
        None, SIZE, "multiply-adds to end with, likewise", LEARNED
    )
    keep: float = setting(0.1, "(0, 1]", "share of groups that is left", ("magnitude",))
    cost: str = setting(
        "balanced", tuple(COSTS), "what the penalty counts", LEARNED, unless=("penalty", 0.0)
    )
    gate_lr: float = setting(
        0.005,
        "[1e-30, 1e30]",
        "learning rate of Adam on phi; more in short runs",
        LEARNED,
    )
    gate_start: float = setting(0.013, "[0, 1]", "share of the steps before pruning", GATED)
    gate_stop: float = setting(0.31, "[0, 1]", "share of the steps before fine-tuning", GATED)
    ramp: float = setting(
        0.133, "[0, 1]", "share of the steps in which lambda rises", PENALISED, ("penalty", 0.0)
    )
    width: float = setting(1.0, "[1e-9, 1e9]", "width of a gate's transition", DIFFPRUNE)
    initial: float = setting(1.5, "[-1e9, 1e9]", "initial phi of each gate", DIFFPRUNE)
    noise: str | None = setting(None, (None, *NOISES), "noise of stochastic gates", DIFFPRUNE)
    sigma: float = setting(
        1.0, "[1e-9, 1e9]", "scale of the noise, or of the noise the penalty assumes", DIFFPRUNE
    )
    augment: bool = setting(False, YES_NO, "shift, turn and scale training images a little")

    def __post_init__(self) -> None:
        for item in fields(self):
            # 1 becomes 1.0 in a float setting, so that equal settings make equal runs.
            object.__setattr__(self, item.name, checked(item, getattr(self, item.name)))
        if self.target and self.target_macs:
            self._require("cost", self.cost == Config.cost, f"{Config.cost}, as both targets count")
        start, closed = self.gate_start, -self.width / 2
        self._require("gate_stop", self.gate_stop > start, f"more than gate_start, {start:g}")
        if self.swa_lr:
            self._require("gate_stop", self.gate_stop < 1, "less than 1, as swa_lr is above 0")
        if self.noise is None:  # gates that start closed stay closed
            self._require("initial", self.initial > closed, f"above {closed:g}, minus width / 2")

    def _require(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            text = f"{name} is {getattr(self, name)!r}; expected {expected}."
            raise ConfigError(text, name, "gate_start", "swa_lr", "width")

    @property
    def gated(self) -> bool:
        """Whether the network has gates."""
        return self.sparsity != "dense"

    @classmethod
    def recipe(cls, dataset: str, **changes: Any) -> "Config":
        """Return the recipe of a dataset, "mnist" or "digits", with changes.

        In a run that is shorter than the recipe, ``gate_lr`` is larger unless it is given, so that
        gates can close in time. A change that the run would not use is a ConfigError.
        """
        config = replace(RECIPES.get(dataset) or cls(dataset), **changes)
        unused = unused_settings(config.to_json())
        for name in changes:
            if name in unused:
                text = f"{name} has no effect with {unused[name]} {getattr(config, unused[name])}"
                raise ConfigError(f"{text}; leave it out.", name, unused[name])
        if dataset == "digits" and changes.get("validation", 0) != 0:
            text = f"validation is {config.validation}; expected 0 for dataset digits, or no value"
            raise ConfigError(f"{text}: 300 of them are kept.", "validation", "dataset")
        return config if "gate_lr" in changes else replace(config, gate_lr=config._recipe_gate_lr())

    @property
    def targets(self) -> dict[str, str | int]:
        """The sizes that were asked for, by "weights" and "macs"."""
        given = {"weights": self.target, "macs": self.target_macs}
        return {what: size for what, size in given.items() if size is not None}

    def _recipe_gate_lr(self) -> float:
        """Return the gate_lr of the recipe, or a larger one in a shorter run."""
        recipe = RECIPES[self.dataset]
        if not self.gated or self.method not in LEARNED:
            return recipe.gate_lr
        usual, steps = recipe._steps(), self._steps()
        learning = math.ceil(self.gate_stop * steps) - math.ceil(self.gate_start * steps)
        gate = METHODS[self.method](1, rng=np.random.default_rng(0), **self.gate_settings)
        closed, fully_open = gate.limits
        needed = TRAVEL * (gate.initial - closed) / max(1, learning)
        longest = min(recipe.gate_lr * (usual / steps), STRIDE * (fully_open - closed))
        return max(recipe.gate_lr, min(needed, longest))

    def _steps(self) -> int:
        mnist = MNIST_TRAINING_IMAGES - self.validation
        images = DIGITS_TRAINING_IMAGES if self.dataset == "digits" else mnist
        return self.epochs * math.ceil(images / self.batch_size)

    @property
    def gate_settings(self) -> dict[str, Any]:
        """The settings of the gates. The gates of a baseline have settings of their own."""
        names = ("width", "initial", "noise", "sigma") if METHODS[self.method] is Gate else ()
        return {name: getattr(self, name) for name in names}

    def changes(self) -> dict[str, Any]:
        """Return the settings that differ from the recipe for the dataset."""
        recipe = RECIPES[self.dataset].to_json() | {"gate_lr": self._recipe_gate_lr()}
        return {name: value for name, value in self.to_json().items() if value != recipe[name]}

    def options(self) -> list[str]:
        """Return the options of ``minidiff train`` that give these settings.

        Examples
        --------
        >>> Config(penalty=1, restart=False).options()
        ['--dataset', 'mnist', '--no-restart', '--lambda', '1.0']
        """
        words = ["--dataset", self.dataset]
        for name, value in self.changes().items():
            words += option_words(name, value)
        return words

    @classmethod
    def from_json(cls, values: Any) -> "Config":
        """Return what :meth:`to_json` has written. An absent setting has its default."""
        try:
            return cls(**values)
        except TypeError as error:
            raise ConfigError(f"these are not settings of this minidiff: {error}.") from error

    def to_json(self) -> dict[str, Any]:
        """Return all settings as plain values."""
        return asdict(self)


def checked(item: "Field[Any]", value: Any) -> Any:
    """Return a setting's value, of the setting's type; ConfigError if it is not allowed."""
    allowed, kind = item.metadata["allowed"], item.type
    if problem := misfit(value, kind, allowed):
        raise ConfigError(f"{item.name} is {value!r}; {problem}", item.name)
    if allowed == SIZE and value is not None:
        return str(value)
    return kind(value) if kind in (bool, int, float) else value


def misfit(value: Any, kind: Any, allowed: str | tuple[Any, ...]) -> str:
    """Return what is expected in place of a value, or nothing if the value is allowed."""
    if isinstance(allowed, tuple):
        fits, expected = value in allowed, f"one of {', '.join(map(str, allowed))}"
        return "" if fits else f"expected {expected}{did_you_mean(value, allowed)}"
    if allowed == SIZE:
        fits = value is None or re.fullmatch(r"(?=.*[1-9])\d+(\.\d*)?x?", str(value)) is not None
        return "" if fits else f"expected {SIZE}."
    number: type = Integral if kind is int else Real
    fits = isinstance(value, number) and not isinstance(value, bool) and _in(value, allowed)
    return "" if fits else f"expected {'an integer' if kind is int else 'a number'} in {allowed}."


def did_you_mean(word: object, known: Iterable[object]) -> str:
    """Return the end of a sentence: the known word nearest to an unknown one, if any is near."""
    near = get_close_matches(str(word), map(str, known), 1)
    return f"; did you mean {near[0]}?" if near else "."


def option(name: str) -> str:
    """Return the command line's option for a setting."""
    return "--lambda" if name == "penalty" else "--" + name.replace("_", "-")


def option_words(name: str, value: Any) -> list[str]:
    """Return the words of the command line that give a setting."""
    if isinstance(value, bool):
        return [option(name) if value else option(name).replace("--", "--no-", 1)]
    return [option(name), str(value)]


def values_text(item: "Field[Any]") -> str:
    """Write which values a setting may have."""
    allowed = item.metadata["allowed"]
    return allowed if isinstance(allowed, str) else ", ".join(map(str, allowed))


def _in(value: Any, interval: str) -> bool:
    """Whether a number lies in an interval such as "[0, 1)"."""
    low, high = (float(end) for end in interval[1:-1].split(","))
    above = low <= value if interval[0] == "[" else low < value
    below = value <= high if interval[-1] == "]" else value < high
    return bool(above and below)


def unused_settings(values: Mapping[str, Any]) -> dict[str, str]:
    """Return the settings that a run does not use, each with the setting that is the reason."""
    dense = values["sparsity"] == "dense"
    user, reason = ("dense", "sparsity") if dense else (values["method"], "method")
    unused: dict[str, str] = {}
    if target := next((name for name in ("target", "target_macs") if values.get(name)), None):
        unused |= {"penalty": target, "ramp": target}
    for item in fields(Config):
        used_by, unless = item.metadata["used_by"], item.metadata["unless"]
        if used_by and user not in used_by:
            unused[item.name] = reason
        elif unless and unless[0] not in unused and values[unless[0]] == unless[1]:
            unused[item.name] = unless[0]
    return unused


#: The recipe for each dataset, which :meth:`Config.recipe` changes.
RECIPES = {
    "mnist": Config(),
    # A fiftieth of the images: more epochs, and lambda / N must not grow fiftyfold.
    "digits": Config(
        "digits", epochs=120, penalty=0.01, gate_lr=0.01, gate_start=0.1, gate_stop=0.7, ramp=0.3
    ),
}

# So that help(Config) lists the settings.
Config.__doc__ = inspect.cleandoc(Config.__doc__ or "") + "\n\nAttributes\n----------"
for item in fields(Config):
    head = f"{item.name} : {values_text(item)}; {item.default} by default"
    Config.__doc__ += f"\n{head}\n    {item.metadata['meaning']}"
