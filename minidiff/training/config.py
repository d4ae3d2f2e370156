"""The settings of a training run, each written once: name, type, default, values and meaning.

The checks, the options of ``minidiff train`` and ``sweep`` with their help, ``config.json``,
``help(Config)`` and ``docs/settings.md`` all follow from the fields of :class:`Config`.
"""

import inspect
from dataclasses import Field, asdict, dataclass, field, fields, replace
from numbers import Integral, Real
from typing import Any

from minidiff.baselines.gaussian import GaussianGate
from minidiff.baselines.hard_concrete import HardConcrete
from minidiff.data.datasets import DATASETS
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


class ConfigError(ValueError):
    """A setting that is out of range. The message names it, its value and what was expected."""


def setting(
    default: Any, allowed: str | tuple[Any, ...], meaning: str, used_by: tuple[str, ...] = ()
) -> Any:
    """Declare a setting.

    ``allowed`` is a tuple of values, or an interval such as "[0, 1)". ``used_by`` names the methods
    that use the setting. Without it every run uses the setting, even that of a dense network.
    """
    metadata = {"allowed": allowed, "meaning": meaning, "used_by": used_by}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Config:
    """Every choice of a training run. Pick a recipe, and change what you like.

    A run has three phases. First the weights train alone. Then the method prunes while they train.
    Then the gates are frozen, and the weights are fine-tuned. A dense network has only this last
    phase. With ``swa_lr``, fine-tuning has this constant learning rate, and the run ends with the
    mean of the weights over its second half.

    The loss is ``cross-entropy + lambda / N * expected cost``, for N training images. Lambda rises
    to ``penalty`` over the first ``ramp`` of the steps in which the method prunes.

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
    epochs: int = setting(90, "[1, inf)", "passes over the training images")
    batch_size: int = setting(128, "[1, inf)", "images in a training step")
    seed: int = setting(0, "[0, inf)", "seed of every random choice")
    lr: float = setting(0.05, "(0, inf)", "largest learning rate of SGD")
    momentum: float = setting(0.9, "(0, 1)", "Nesterov momentum of SGD")
    weight_decay: float = setting(5e-4, "[0, inf)", "weight decay; biases have none")
    label_smoothing: float = setting(0.1, "[0, 1)", "label smoothing; none before fine-tuning")
    dropout: float = setting(0.0, "[0, 1)", "share of pixels dropped in training")
    warmup: int = setting(250, "[0, inf)", "steps of warm-up, at most half of a cosine")
    restart: bool = setting(True, YES_NO, "new warm-up and cosine for fine-tuning", GATED)
    swa_lr: float = setting(0.0, "[0, inf)", "if above 0: learning rate of fine-tuning", GATED)
    penalty: float = setting(0.45, "[0, inf)", "lambda, the weight of the penalty", PENALISED)
    keep: float = setting(0.1, "(0, 1]", "share of groups that is left", ("magnitude",))
    cost: str = setting("balanced", tuple(COSTS), "what the penalty counts", LEARNED)
    gate_lr: float = setting(0.005, "(0, inf)", "learning rate of Adam on the gates' phi", LEARNED)
    gate_start: float = setting(0.013, "[0, 1]", "share of the steps before pruning", GATED)
    gate_stop: float = setting(0.31, "[0, 1]", "share of the steps before fine-tuning", GATED)
    ramp: float = setting(0.133, "[0, 1]", "share of the steps in which lambda rises", PENALISED)
    width: float = setting(1.0, "(0, inf)", "width of a gate's transition", DIFFPRUNE)
    initial: float = setting(1.5, "(-inf, inf)", "initial phi of each gate", DIFFPRUNE)
    noise: str | None = setting(None, (None, *NOISES), "noise of stochastic gates", DIFFPRUNE)
    sigma: float = setting(1.0, "(0, inf)", "scale of the noise", DIFFPRUNE)
    augment: bool = setting(False, YES_NO, "shift, turn and scale training images a little")

    def __post_init__(self) -> None:
        for item in fields(self):
            # 1 becomes 1.0 in a float setting, so that equal settings make equal runs.
            object.__setattr__(self, item.name, checked(item, getattr(self, item.name)))
        start, end = self.gate_start, self.sigma - self.width / 2
        self._require("gate_stop", self.gate_stop > start, f"more than gate_start, {start:g}")
        if self.swa_lr:
            self._require("gate_stop", self.gate_stop < 1, "less than 1, as swa_lr is above 0")
        if self.noise == "uniform":  # beyond this end no gate ever closes
            self._require("initial", self.initial < end, f"less than sigma - width / 2 = {end:g}")

    def _require(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise ConfigError(f"{name} is {getattr(self, name)!r}; expected {expected}.")

    @property
    def gated(self) -> bool:
        """Whether the network has gates."""
        return self.sparsity != "dense"

    @classmethod
    def recipe(cls, dataset: str, **changes: Any) -> "Config":
        """Return the recipe of a dataset, "mnist" or "digits", with changes.

        A change that the run would not use is a ConfigError.
        """
        config = replace(RECIPES.get(dataset) or cls(dataset), **changes)
        if unused := changes.keys() & unused_settings(config.sparsity, config.method):
            user = config.method if config.gated else "a dense network"
            raise ConfigError(f"{user} does not use {', '.join(sorted(unused))}; leave it out.")
        return config

    def changes(self) -> dict[str, Any]:
        """Return the settings that differ from the recipe for the dataset."""
        recipe = RECIPES[self.dataset].to_json()
        return {name: value for name, value in self.to_json().items() if value != recipe[name]}

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
    if isinstance(allowed, tuple):
        fits, expected = value in allowed, f"one of {values_text(item)}"
    else:
        number: type = Integral if kind is int else Real
        fits = isinstance(value, number) and not isinstance(value, bool) and _in(value, allowed)
        expected = f"{'an integer' if kind is int else 'a number'} in {allowed}"
    if not fits:
        raise ConfigError(f"{item.name} is {value!r}; expected {expected}.")
    return kind(value) if kind in (bool, int, float) else value


def option(name: str) -> str:
    """Return the command line's option for a setting."""
    return "--lambda" if name == "penalty" else "--" + name.replace("_", "-")


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


def unused_settings(sparsity: str, method: str) -> set[str]:
    """Return the names of the settings that such a run does not use."""
    user = "dense" if sparsity == "dense" else method
    used_by = {item.name: item.metadata["used_by"] for item in fields(Config)}
    return {name for name, users in used_by.items() if users and user not in users}


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
