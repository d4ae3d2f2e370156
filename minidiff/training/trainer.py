"""Training: from a configuration to a pruned network and the record of how it came about."""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minidiff.baselines.gaussian import GaussianGate
from minidiff.baselines.hard_concrete import HardConcrete
from minidiff.baselines.rules import GroupLasso, MagnitudePruning
from minidiff.data.augment import Affine
from minidiff.data.batches import batches
from minidiff.data.datasets import DATASETS, MNIST_TRAINING_IMAGES, Dataset, Split
from minidiff.engine import functional
from minidiff.engine.arrays import Array
from minidiff.engine.module import Module
from minidiff.engine.optim import SGD, Adam, Average, Optimizer, ParameterGroup, cosine
from minidiff.engine.tensor import no_grad
from minidiff.io.checkpoint import (
    MALFORMED,
    Checkpoint,
    CheckpointError,
    generator_state,
    restore_generator,
)
from minidiff.models import MODELS, SPARSITIES
from minidiff.pruning.count import LayerCount, architecture, count, gated_sizes
from minidiff.pruning.gated import fold_gates
from minidiff.pruning.gates import Gate
from minidiff.pruning.network import gates_of, split_parameters
from minidiff.pruning.noise import NOISES
from minidiff.pruning.surrogate import COSTS, Surrogate, expected_cost

__all__ = [
    "METHODS",
    "RECIPES",
    "Config",
    "ConfigError",
    "NonFiniteLossError",
    "Trainer",
    "build_model",
    "error_rate",
]


class ConfigError(ValueError):
    """A setting that is out of range: which, what was given, what was expected."""


class NonFiniteLossError(ArithmeticError):
    """Training has diverged: where, and what to try."""


@dataclass(frozen=True)
class Config:
    """Every choice of a training run.

    Shares are of all steps. Loss = cross-entropy + (penalty / N) * expected cost, with N the
    number of training images.

    Attributes
    ----------
    dataset : str
        "mnist" or "digits".
    validation : int
        The number of MNIST training images in the validation set; 0 for a last training, once
        everything has been chosen.
    model : str
        "lenet5" or "lenet300".
    sparsity : str
        "structured" gates filters, inputs and units, "unstructured" each weight, "combined" both;
        "dense" nothing.
    method : str
        "diffprune", this project's subject, or a baseline of :mod:`~minidiff.pruning.baselines`:
        "hard-concrete", "gaussian", "group-lasso", "magnitude".
    epochs, batch_size, seed : int
    lr, momentum, weight_decay : float
        Of SGD with Nesterov momentum on weights and biases (which are not decayed).
    label_smoothing : float
        The share of the target that is spread over all classes, in [0, 1). While gates learn there
        is none, as the loss has to tell then what each group is worth.
    dropout : float
        The share of pixels that are dropped while training
        (:class:`~minidiff.nn.Dropout`), in [0, 1).
    warmup : int
        The number of steps (at most half of all) over which the step size rises, before it falls
        along a cosine.
    restart : bool
        Whether it rises and falls once more after the gates are frozen, so that what is left learns
        as a new network would (learning rate rewinding, Renda et al. 2020, arXiv:2003.02389). A
        dense network has one cosine.
    swa_lr : float
        If above 0, the step size after the gates are frozen, before the end: it stays there, and
        the run ends with the mean of the weights over the second half of these steps
        (:class:`~minidiff.optim.Average`).
    penalty : float
        Lambda, the weight of the L0 surrogate, or of group lasso.
    keep : float
        The share of groups that magnitude pruning leaves.
    cost : str
        What the surrogate counts, see :class:`~minidiff.Surrogate`.
    gate_lr : float
        Step size of Adam on the gates' phi; constant.
    gate_start, gate_stop : float
        The shares of steps at which gates begin to learn and are frozen.
    ramp : float
        The share of steps, from ``gate_start`` on, over which lambda rises from 0 to its value.
    width, initial, noise, sigma
        Of :class:`~minidiff.pruning.gates.Gate`; baselines have their own and take no others.
    augment : bool
        Random shifts (2 pixels), turns (5 degrees) and sizes (10 %).

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

    dataset: str = "mnist"
    validation: int = 5000
    model: str = "lenet5"
    sparsity: str = "structured"
    method: str = "diffprune"
    epochs: int = 90
    batch_size: int = 128
    seed: int = 0
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-4
    label_smoothing: float = 0.1
    dropout: float = 0.0
    warmup: int = 250
    restart: bool = True
    swa_lr: float = 0.0
    penalty: float = 0.45
    keep: float = 0.1
    cost: str = "balanced"
    gate_lr: float = 0.005
    gate_start: float = 0.013
    gate_stop: float = 0.31
    ramp: float = 0.133
    width: float = 1.0
    initial: float = 1.5
    noise: str | None = None
    sigma: float = 1.0
    augment: bool = False

    def __post_init__(self) -> None:
        for field in fields(self):  # 1 and 1.0 are one setting
            if type(field.default) is float and self._whole(field.name):
                object.__setattr__(self, field.name, float(getattr(self, field.name)))
        self._require("dataset", self.dataset in DATASETS[1:], " or ".join(DATASETS[1:]))
        for name, known in (("model", MODELS), ("sparsity", SPARSITIES), ("method", METHODS)):
            self._require(name, getattr(self, name) in known, f"one of {', '.join(known)}")
        for name in ("epochs", "batch_size"):
            self._require(name, self._whole(name) and getattr(self, name) >= 1, "an integer >= 1")
        for name in ("seed", "warmup"):
            self._require(name, self._whole(name) and getattr(self, name) >= 0, "an integer >= 0")
        most = MNIST_TRAINING_IMAGES - 1
        fits = self._whole("validation") and 0 <= self.validation <= most
        self._require("validation", fits, f"an integer in 0..{most:,}")
        for name in ("lr", "gate_lr", "width", "sigma"):
            self._require(name, 0 < getattr(self, name) < math.inf, "a finite number above 0")
        for name in ("weight_decay", "penalty", "swa_lr"):
            self._require(name, 0 <= getattr(self, name) < math.inf, "a finite number, 0 or more")
        for name in ("label_smoothing", "dropout"):
            self._require(name, 0 <= getattr(self, name) < 1, "a share in [0, 1)")
        self._require("keep", 0 < self.keep <= 1, "a share above 0, at most 1")
        self._require("momentum", 0 < self.momentum < 1, "a number between 0 and 1")
        self._require("initial", math.isfinite(self.initial), "a finite number")
        for name in ("gate_start", "gate_stop", "ramp"):
            self._require(name, 0 <= getattr(self, name) <= 1, "a share in 0..1")
        self._require("gate_stop", self.gate_stop >= self.gate_start, "at least gate_start")
        if self.gated and self.method == "magnitude":
            self._require("gate_stop", self.gate_stop > self.gate_start, "more than gate_start")
        if self.swa_lr:
            fits = self.gated and self.gate_stop < 1
            self._require("swa_lr", fits, "0 where gates are not frozen before the end")
        if self.method != "diffprune":
            for name in ("width", "initial", "noise", "sigma"):
                usual = getattr(Config, name)
                fits = getattr(self, name) == usual
                self._require(name, fits, f"{usual!r}, as {self.method} has its own")
        self._require("cost", self.cost in COSTS, f"one of {', '.join(COSTS)}")
        self._require("noise", self.noise in (None, *NOISES), f"None, {', '.join(NOISES)}")
        if self.noise == "uniform":
            end = self.sigma - self.width / 2
            said = f"below sigma - width / 2 = {end:g}, as gates that are open for sure never learn"
            self._require("initial", self.initial < end, said)

    def _whole(self, name: str) -> bool:
        return isinstance(getattr(self, name), int) and not isinstance(getattr(self, name), bool)

    def _require(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            option = " (--lambda)" if name == "penalty" else ""
            raise ConfigError(f"{name} is {getattr(self, name)!r}; expected {expected}{option}.")

    @property
    def gated(self) -> bool:
        """Whether the network has gates."""
        return self.sparsity != "dense"

    @classmethod
    def recipe(cls, dataset: str, **changes: Any) -> "Config":
        """Return the default recipe for a dataset, with changes; None changes nothing."""
        given = {name: value for name, value in changes.items() if value is not None}
        return replace(RECIPES[dataset], **given)

    @classmethod
    def from_json(cls, values: Any) -> "Config":
        """Build from what ``to_json`` gave; ConfigError names what is not as it was.

        A setting that is not there had not been thought of when it was written; it has its default,
        which is what all runs did then.
        """
        if not isinstance(values, dict):
            raise ConfigError(f"the configuration is {values!r:.80}; expected a JSON object.")
        unknown = sorted(values.keys() - {field.name for field in fields(cls)})
        if unknown:
            raise ConfigError(
                f"the configuration has unknown settings {unknown}; it was written by another "
                f"version of minidiff."
            )
        for name, value in values.items():
            usual = getattr(RECIPES["mnist"], name)
            kinds = {type(None): (str, type(None)), float: (float, int)}
            if type(value) not in kinds.get(type(usual), (type(usual),)):
                raise ConfigError(f"{name} is {value!r}; expected something like {usual!r}.")
        return cls(**values)

    def to_json(self) -> dict[str, Any]:
        """Return all settings as plain values."""
        return asdict(self)


#: The gates that each method uses; of the last two they are open or closed, and learn nothing.
METHODS: dict[str, type[Gate]] = {
    "diffprune": Gate,
    "hard-concrete": HardConcrete,
    "gaussian": GaussianGate,
    "group-lasso": Gate,
    "magnitude": Gate,
}
RULES = ("group-lasso", "magnitude")

#: The recipe for each dataset, which :meth:`Config.recipe` changes.
RECIPES = {
    "mnist": Config(),
    # A fiftieth of the images: more passes, and lambda / N must not grow fiftyfold.
    "digits": Config(
        dataset="digits",
        epochs=120,
        penalty=0.01,
        gate_lr=0.01,
        gate_start=0.1,
        gate_stop=0.7,
        ramp=0.3,
    ),
}


def build_model(config: Config, rng: np.random.Generator) -> Module:
    """Build the network of a run.

    Parameters
    ----------
    config
        Of the run.
    rng
        Draws the initial weights, and the noise of stochastic gates.

    Examples
    --------
    >>> model = build_model(Config(sparsity="dense"), np.random.default_rng(0))
    >>> sum(parameter.size for parameter in model.parameters() if parameter.ndim > 1)
    430500
    """
    gate: type[Gate] = METHODS[config.method]
    settings: dict[str, Any] = {"dropout": config.dropout}
    if gate is Gate:
        settings |= {key: getattr(config, key) for key in ("width", "initial", "noise", "sigma")}
    return MODELS[config.model](rng=rng, sparsity=config.sparsity, kind=gate, **settings)


def error_rate(model: Module, split: Split, *, mean: float, std: float) -> float:
    """Return the share of a split that the model, as in evaluation, gets wrong, in percent.

    Parameters
    ----------
    model
        With logits for outputs.
    split
        Images that fit it.
    mean, std
        What inputs were normalised with in training.

    Examples
    --------
    >>> from minidiff import nn
    >>> dense = nn.Linear(4, 10, rng=np.random.default_rng(0))
    >>> dense.weight.data[:] = 0  # so that every answer is 0
    >>> split = Split(np.zeros((4, 1, 2, 2), np.uint8), np.array([0, 0, 0, 5]))
    >>> error_rate(nn.Sequential(nn.Flatten(), dense), split, mean=0.13, std=0.31)
    25.0
    """
    modes, wrong = [(module, module.training) for module in model.modules()], 0
    model.eval()
    with no_grad():
        for images, labels in batches(split, 500, mean=mean, std=std):
            wrong += int((model(images).data.argmax(axis=0) != labels).sum())
    for module, mode in modes:
        module.training = mode
    return 100 * wrong / len(split)


class Trainer:
    """A network in training: its optimisers, its generators, and how far it has come.

    Parameters
    ----------
    config
        Every choice of the run.
    data
        The dataset; of the test split nothing is read.
    checkpoint
        As of :meth:`checkpoint`, to go on from, to the same bits as if nothing had come between.

    Raises
    ------
    CheckpointError
        If the checkpoint is not of such a run.

    Examples
    --------
    >>> images = np.random.default_rng(0).integers(0, 256, (8, 1, 28, 28), np.uint8)
    >>> noise = Split(images, np.arange(8))
    >>> data = Dataset("digits", "Noise.", noise, None, noise)
    >>> trainer = Trainer(Config.recipe("digits", epochs=2, batch_size=4), data)
    >>> trainer.train_epoch()["architecture"], trainer.step, trainer.steps
    ('20-50-800-500', 2, 4)
    """

    def __init__(self, config: Config, data: Dataset, checkpoint: Checkpoint | None = None) -> None:
        self.config, self.data = config, data
        model_rng, self.rng = np.random.default_rng(config.seed).spawn(2)
        self.model: Module = checkpoint.model if checkpoint else build_model(config, model_rng)
        self.shape = data.train.images.shape[1:]
        self.steps_per_epoch = math.ceil(len(data.train) / config.batch_size)
        self.steps = config.epochs * self.steps_per_epoch
        self.step = 0
        self.records: list[dict[str, Any]] = []  # of each epoch

        self.gates = gates_of(self.model)
        others, phis = split_parameters(self.model)
        # Without decay of the weights a gate could shrink while they grow: the product is the same.
        self.weights = SGD(
            [
                ParameterGroup([p for p in others if p.ndim > 1], config.lr, config.weight_decay),
                ParameterGroup([p for p in others if p.ndim == 1], config.lr),
            ],
            momentum=config.momentum,
            nesterov=True,
        )
        # Adam, since the slope of a gate that is nearly open or closed is tiny.
        self.phis: Optimizer | None = None
        self.rule: GroupLasso | MagnitudePruning | None = None
        if self.gates and config.method not in RULES:
            self.phis = Adam(phis, lr=config.gate_lr)
            self.surrogate = Surrogate(self.model, self.shape, cost=config.cost)
        elif self.gates:
            for gate in self.gates.values():
                gate.phi.requires_grad = False
            lasso = config.method == "group-lasso"
            self.rule = (
                GroupLasso(self.model) if lasso else MagnitudePruning(self.model, config.keep)
            )
        self.average = Average(others) if config.swa_lr else None
        self.affine = Affine() if config.augment else None
        if checkpoint:
            self._resume(checkpoint)

    def checkpoint(self) -> Checkpoint:
        """Return all that it takes to go on later, and to use the network without the data."""
        info = {
            "config": self.config.to_json(),
            "step": self.step,
            "records": self.records,
            "rng": generator_state(self.rng),
            "shape": self.shape,
            "mean": self.data.mean,
            "std": self.data.std,
        }
        state = {f"weights.{name}": array for name, array in self.weights.state_dict().items()}
        if self.phis is not None:
            state |= {f"phis.{name}": array for name, array in self.phis.state_dict().items()}
        if self.average and self.average.count:
            state |= {f"average.{name}": a for name, a in self.average.state_dict().items()}
        return Checkpoint(self.model, info, state)

    def _resume(self, checkpoint: Checkpoint) -> None:
        info = checkpoint.info
        try:
            if Config.from_json(info["config"]) != self.config:
                raise ValueError("it is of a run with another configuration")
            if (info["mean"], info["std"]) != (self.data.mean, self.data.std):
                raise ValueError("the training images are not those of the run")
            parts: dict[str, dict[str, Array]] = {"weights": {}, "phis": {}, "average": {}}
            for name, array in checkpoint.state.items():
                part, _, rest = name.partition(".")
                parts[part][rest] = array
            self.weights.load_state_dict(parts["weights"])
            if self.phis is not None:
                self.phis.load_state_dict(parts["phis"])
            if self.average is not None and parts["average"]:
                self.average.load_state_dict(parts["average"])
            self.step, self.rng = int(info["step"]), restore_generator(info["rng"])
            self.records = list(info["records"])
            if len(self.records) != self.epoch or (self.step > 0 and not parts["weights"]):
                raise ValueError(f"records or optimisers have not come as far as step {self.step}")
        except MALFORMED as error:
            raise CheckpointError(f"the checkpoint cannot be resumed: {error}.") from error

    @property
    def epoch(self) -> int:
        """How many epochs are done."""
        return self.step // self.steps_per_epoch

    @property
    def stop(self) -> int:
        """The step from which gates are frozen, and what is left settles."""
        return math.ceil(self.config.gate_stop * self.steps) if self.gates else 0

    @property
    def lr(self) -> float:
        """The step size of the weights in the next step."""
        config, step, steps = self.config, self.step, self.steps
        if config.swa_lr and step >= self.stop:
            warmup = min(config.warmup, (steps - self.stop) // 2)
            return config.swa_lr * min(1.0, (step - self.stop + 1) / max(1, warmup))
        if config.restart and self.stop:
            before = step < self.stop
            step, steps = (step, self.stop) if before else (step - self.stop, steps - self.stop)
        return config.lr * cosine(step, steps, warmup=min(config.warmup, steps // 2))

    @property
    def prunes(self) -> bool:
        """Whether the next step moves the gates."""
        return self.config.gate_start * self.steps <= self.step < self.stop

    @property
    def strength(self) -> float:
        """What the penalty is multiplied by in the next step."""
        config = self.config
        risen = (self.step / self.steps - config.gate_start) / max(config.ramp, 1e-9)
        return config.penalty * min(1.0, risen) / len(self.data.train)

    def counts(self) -> list[LayerCount]:
        """Count what is left of each layer."""
        return count(self.model, self.shape)

    def train_step(
        self, images: NDArray[np.float32], labels: NDArray[np.int64]
    ) -> tuple[float, int]:
        """Take one step; return the data loss and the number of images got wrong before it.

        Images are normalised, of shape (C, H, W, N), and labels (N,). If the loss is not finite it
        raises NonFiniteLossError, and no weight has moved.
        """
        config = self.config
        for group in self.weights.groups:
            group.lr = self.lr
        prunes, settles = self.prunes, self.step >= self.stop
        if self.gates and self.step == self.stop:
            fold_gates(self.model)
            for group in self.weights.groups:
                group.reset()  # what was of weights that are others now
        for gate in self.gates.values():
            gate.frozen = settles
        logits = self.model(images)
        smoothing = config.label_smoothing if settles else 0.0
        loss = functional.cross_entropy(logits, labels, label_smoothing=smoothing)
        total = loss
        if prunes and self.phis is not None:
            total = loss + self.strength * self.surrogate()
        value = loss.item()
        if not math.isfinite(value):
            raise NonFiniteLossError(
                f"the loss is {value} at step {self.step + 1} of {self.steps} (epoch "
                f"{self.epoch + 1}); the last epoch's weights are kept. "
                f"Try a smaller --lr (now {config.lr:g}), a longer --warmup (now "
                f"{config.warmup}), or check the images for values that are not finite."
            )
        self.weights.zero_grad()
        if self.phis is not None:
            self.phis.zero_grad()
        total.backward()
        self.weights.step()
        if prunes and self.phis is not None:
            self.phis.step()
        elif prunes and isinstance(self.rule, GroupLasso):
            self.rule.step(self.weights.groups[0].lr, self.strength)
        elif prunes and isinstance(self.rule, MagnitudePruning):
            pace = config.gate_stop - config.gate_start
            after = (self.step + 1) / self.steps - config.gate_start
            self.rule.step(after / max(pace, 1e-9))
        self.step += 1
        if self.average and self.step > (self.stop + self.steps) // 2:
            self.average.update()
            if self.step == self.steps:
                self.average.apply()
        return value, int((logits.data.argmax(axis=0) != labels).sum())

    def train_epoch(self, report: Callable[[float], None] = lambda loss: None) -> dict[str, Any]:
        """Run once over the training images; return the epoch's record for ``metrics.jsonl``.

        ``report`` is called with the data loss after each step.
        """
        began = time.perf_counter()
        losses, wrong, times = [], 0, []
        data = self.data
        for images, labels in batches(
            data.train,
            self.config.batch_size,
            mean=data.mean,
            std=data.std,
            rng=self.rng,
            augment=self.affine,
        ):
            start = time.perf_counter()
            loss, missed = self.train_step(images, labels)
            times.append(time.perf_counter() - start)
            losses.append(loss * len(labels))
            wrong += missed
            report(loss)

        counts = self.counts()
        sizes = gated_sizes(counts)
        record = {
            "epoch": self.epoch,
            "step": self.step,
            "loss": sum(losses) / len(data.train),
            "train_error": 100 * wrong / len(data.train),
            "validation_error": data.validation
            and error_rate(self.model, data.validation, mean=data.mean, std=data.std),
            "expected_weights": self._expected("weights"),
            "expected_macs": self._expected("macs"),
            "weights": sum(c.weights[0] for c in counts),
            "dense_weights": sum(c.weights[1] for c in counts),
            "macs": sum(c.macs[0] for c in counts),
            "dense_macs": sum(c.macs[1] for c in counts),
            "architecture": architecture(counts),
            "dense_architecture": architecture(counts, dense=True),
            # Open and of use: what the architecture names.
            "open": {key: left for key, (left, _) in sizes.items()},
            "groups": {key: whole for key, (_, whole) in sizes.items()},
            "frozen": self.step >= self.stop,
            "step_ms": 1000 * float(np.median(times)),
            "seconds": time.perf_counter() - began,
        }
        self.records.append(record)
        return record

    def _expected(self, cost: str) -> float:
        with no_grad():
            return expected_cost(self.model, self.shape, cost=cost).item()
