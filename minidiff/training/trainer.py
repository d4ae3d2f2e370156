"""The trainer: from a configuration to a pruned network, and a record of each epoch.

A run has three phases. At first the weights train alone; from ``gate_start`` on the method prunes
while they train; from ``gate_stop`` on the gates are frozen and the weights are fine-tuned.
"""

import math
import time
from typing import Any

import numpy as np

from minidiff.baselines.rules import GroupLasso, MagnitudePruning
from minidiff.data.augment import Affine
from minidiff.data.batches import batches
from minidiff.data.datasets import Dataset, Split
from minidiff.engine import functional
from minidiff.engine.arrays import Array, Indices
from minidiff.engine.module import Module, evaluation
from minidiff.engine.optim import SGD, Adam, Average, ParameterGroup, cosine
from minidiff.engine.tensor import Tensor, no_grad
from minidiff.io.checkpoint import (
    MALFORMED,
    Checkpoint,
    CheckpointError,
    generator_state,
    reason,
    restore_generator,
)
from minidiff.models import MODELS
from minidiff.pruning.count import LayerCount, architecture, count, gated_sizes
from minidiff.pruning.gated import fold_gates
from minidiff.pruning.gates import Gate
from minidiff.pruning.network import gates_of, split_parameters
from minidiff.pruning.noise import NOISES
from minidiff.pruning.surrogate import Surrogate
from minidiff.pruning.target import Target
from minidiff.training.config import METHODS, Config, ConfigError, option, unused_settings

__all__ = ["NonFiniteLossError", "Trainer", "build_model", "error_rate"]


class NonFiniteLossError(ArithmeticError):
    """The loss or the outputs are infinite or not a number. The message says where."""


def build_model(config: Config, rng: np.random.Generator) -> Module:
    """Return the network of a run, as it is before the first step.

    Parameters
    ----------
    config
        The settings of the run.
    rng
        Draws the initial weights, dropout and the noise of stochastic gates.

    Examples
    --------
    >>> model = build_model(Config(sparsity="dense"), np.random.default_rng(0))
    >>> sum(parameter.size for parameter in model.parameters() if parameter.ndim > 1)
    430500
    """
    return MODELS[config.model](
        rng=rng,
        sparsity=config.sparsity,
        kind=METHODS[config.method],
        dropout=config.dropout,
        **config.gate_settings,
    )


def error_rate(model: Module, split: Split, *, mean: float, std: float) -> float:
    """Return the percentage of images of a split that the model classifies wrongly.

    Parameters
    ----------
    model
        A network that returns logits. It is evaluated: no dropout, no noise of gates.
    split
        Images and their labels.
    mean, std
        The normalisation of the images in training.

    Raises
    ------
    NonFiniteLossError
        If an output of the network is not finite.

    Examples
    --------
    >>> from minidiff import nn
    >>> dense = nn.Linear(4, 10, rng=np.random.default_rng(0))
    >>> dense.weight.data[:] = 0  # so that every answer is 0
    >>> split = Split(np.zeros((4, 1, 2, 2), np.uint8), np.array([0, 0, 0, 5]))
    >>> error_rate(nn.Sequential(nn.Flatten(), dense), split, mean=0.13, std=0.31)
    25.0
    """
    wrong = 0
    with evaluation(model):
        for images, labels in batches(split, 500, mean=mean, std=std):
            logits = model(images).data
            if not np.isfinite(logits).all():
                raise NonFiniteLossError("the outputs of the network are infinite or not a number.")
            wrong += int((logits.argmax(axis=0) != labels).sum())
    return 100 * wrong / len(split)


class Trainer:
    """A network in training, with its optimisers, its random generator and its progress.

    Parameters
    ----------
    config
        The settings of the run.
    data
        The images. The trainer does not read the test split.
    checkpoint
        A value of :meth:`checkpoint`, to resume from. The run then ends bit-identical to one
        without a break.

    Raises
    ------
    CheckpointError
        If the checkpoint belongs to another run or other images.

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
        self.scale = {"mean": data.mean, "std": data.std}
        model_rng, self.rng = np.random.default_rng(config.seed).spawn(2)
        self.model: Module = checkpoint.model if checkpoint else build_model(config, model_rng)
        self.shape = data.train.images.shape[1:]
        self.steps_per_epoch = math.ceil(len(data.train) / config.batch_size)
        self.steps = config.epochs * self.steps_per_epoch
        self.step = 0  # how many steps are done
        self.records: list[dict[str, Any]] = []  # one for each epoch
        self.augment = Affine() if config.augment else None

        self.gates = gates_of(self.model)
        # The step that fine-tuning begins with. A dense network has no other phase.
        self.stop = math.ceil(config.gate_stop * self.steps) if self.gates else 0
        weights, phis = split_parameters(self.model)
        # Only the product of gate and weight matters. Without decay, weights would grow while
        # their gates shrink, whatever they are worth.
        groups = [
            ParameterGroup([p for p in weights if p.ndim > 1], config.lr, config.weight_decay),
            ParameterGroup([p for p in weights if p.ndim == 1], config.lr),  # biases
        ]
        self.sgd = SGD(groups, momentum=config.momentum, nesterov=True)
        self.average = Average(weights) if config.swa_lr else None
        self.adam: Adam | None = None  # of the gates, where they learn
        self.rule: GroupLasso | MagnitudePruning | None = None  # closes the gates otherwise
        self.target: Target | None = None  # finds lambda, where a size is given
        if self.gates and config.method == "group-lasso":
            self.rule = GroupLasso(self.model)
        elif self.gates and config.method == "magnitude":
            self.rule = MagnitudePruning(self.model, config.keep)
        elif self.gates:
            # The slope of a gate that is nearly open or closed is tiny; Adam rescales it.
            self.adam = Adam(phis, lr=config.gate_lr)
            self.surrogate = Surrogate(self.model, self.shape, cost=config.cost)
        if self.adam and config.targets:
            self.target = self._target()
        for gate in self.gates.values():
            gate.phi.requires_grad = self.adam is not None
        if checkpoint:
            self._resume(checkpoint)

    def _target(self) -> Target:
        try:
            return Target(
                self.model,
                self.shape,
                steps=max(1, self.stop - math.ceil(self.config.gate_start * self.steps)),
                cost=self.config.cost,
                **self.config.targets,
            )
        except ValueError as error:
            raise ConfigError(str(error)) from None

    # -- the schedule ------------------------------------------------------------------------------

    @property
    def epoch(self) -> int:
        """How many epochs are done."""
        return self.step // self.steps_per_epoch

    @property
    def prunes(self) -> bool:
        """Whether the next step prunes."""
        return self.config.gate_start * self.steps <= self.step < self.stop

    @property
    def fine_tunes(self) -> bool:
        """Whether the next step belongs to fine-tuning, or to the training of a dense network."""
        return self.step >= self.stop

    @property
    def lr(self) -> float:
        """The learning rate of the weights in the next step."""
        config, first, last = self.config, 0, self.steps  # the steps of the current cosine
        if self.fine_tunes and (config.restart or config.swa_lr):
            first = self.stop
        elif config.restart and not self.fine_tunes:
            last = self.stop
        done, length = self.step - first, last - first
        warmup = min(config.warmup, length // 2)
        if self.fine_tunes and config.swa_lr:
            return config.swa_lr * min(1.0, (done + 1) / max(1, warmup))
        return config.lr * cosine(done, length, warmup=warmup)

    @property
    def strength(self) -> float:
        """The factor of the penalty in the next step, lambda / N at the end of the ramp."""
        return self._strength(self.step)

    def _strength(self, step: int) -> float:
        config = self.config
        risen = (step / self.steps - config.gate_start) / max(config.ramp, 1e-9)
        return config.penalty * min(1.0, risen) / len(self.data.train)

    # -- what the schedule can do ------------------------------------------------------------------

    def obstacle(self) -> str:
        """Return why gates will hardly close in this run, and what to try; "" if they can.

        Examples
        --------
        >>> split = Split(np.zeros((8, 1, 28, 28), np.uint8), np.arange(8))
        >>> data = Dataset("digits", "Black.", split, None, split)
        >>> Trainer(Config("digits", gate_lr=0.05, gate_stop=0.9), data).obstacle()
        ''
        >>> Trainer(Config("digits", epochs=3), data).obstacle()
        'gates will hardly close: phi moves by 0 at most, and closes after 2; try more --epochs, a
        larger --gate-lr, a smaller --initial.'
        """
        config = self.config
        pruning = max(0, self.stop - math.ceil(config.gate_start * self.steps))
        strength = 1.0 if self.target else self._strength(self.stop)
        if isinstance(self.rule, GroupLasso):
            shrunk = config.lr * strength * pruning
            able = any((part.norms() <= shrunk * roots).any() for part, roots in self.rule.groups)
            why, tries = "the penalty is too small", {"penalty": "a larger", "epochs": "more"}
        elif self.adam:
            reach, distances, speeds = config.gate_lr * pruning, [], []
            self.surrogate().backward()
            for gate in self.gates.values():
                distances.append(gate.phi.data - gate.limits[0])
                speeds.append(self._speed(gate, strength))
            self.adam.zero_grad()
            away, speed = np.concatenate(distances), np.concatenate(speeds)
            able = bool((away <= reach * speed).any())
            if away.min() > 0.99 * reach:
                why = f"phi moves by {reach:.2g} at most, and closes after {away.min():.2g}"
                tries = {"epochs": "more", "gate_lr": "a larger", "initial": "a smaller"}
            else:
                why = "phi has hardly any gradient where it starts"
                tries = {"penalty": "a larger", "sigma": "a larger", "initial": "a smaller"}
        else:
            able = True
        if able:
            return ""
        unused = unused_settings(config.to_json())
        advice = [f"{how} {option(name)}" for name, how in tries.items() if name not in unused]
        return f"gates will hardly close: {why}; try {', '.join(advice)}."

    def _speed(self, gate: Gate, strength: float) -> Array:
        """Return how far Adam moves each phi at first, as a share of the learning rate.

        The surrogate pulls in every step, but Adam's eps hides a tiny pull. The data pull in the
        share of steps in which noise takes phi to where the gate has a slope.
        """
        assert self.adam is not None
        pull = strength * np.abs(np.asarray(gate.phi.grad))
        x = np.resize(gate.phi.data, max(1000, gate.count))
        if gate.noise:
            noise = NOISES[gate.noise].draw(np.random.default_rng(0), x.shape)
            x = x + np.asarray(gate.sigma * noise, x.dtype)
        transform = gate.transform()
        transform.forward(x)
        slope = np.asarray(transform.backward(np.ones_like(x)))
        return np.asarray(np.maximum(pull / (pull + self.adam.eps), np.mean(slope != 0)))

    # -- training ----------------------------------------------------------------------------------

    def train_step(self, images: Array, labels: Indices) -> tuple[float, int]:
        """Take one step; return the loss and the number of misclassified images, before the step.

        The loss is returned without the penalty.

        Parameters
        ----------
        images
            Normalised images, shape (C, H, W, N).
        labels
            Their classes, shape (N,).

        Raises
        ------
        NonFiniteLossError
            If the loss is not finite. No weight has moved then.
        """
        if self.gates and self.step == self.stop:
            self._freeze_gates()
        for group in self.sgd.groups:
            group.lr = self.lr

        logits = self.model(images)  # (classes, N)
        smoothing = self.config.label_smoothing if self.fine_tunes else 0.0
        loss = functional.cross_entropy(logits, labels, label_smoothing=smoothing)
        value = loss.item()
        if not math.isfinite(value):
            advice = "try a smaller --lr or a longer --warmup"
            raise NonFiniteLossError(f"the loss is {value} at step {self.step + 1}; {advice}.")
        if self.prunes and self.adam:
            loss = loss + self._penalty()

        self.sgd.zero_grad()
        if self.adam:
            self.adam.zero_grad()
        loss.backward()
        self.sgd.step()
        if self.prunes:
            self._prune()
        self.step += 1
        self._average_weights()
        return value, int((logits.data.argmax(axis=0) != labels).sum())

    def _penalty(self) -> Tensor:
        return self.target.penalty() if self.target else self.strength * self.surrogate()

    def _freeze_gates(self) -> None:
        """Make all gates 0 or 1 for good, without changing what the network computes."""
        fold_gates(self.model)
        for gate in self.gates.values():
            gate.frozen = True
        for group in self.sgd.groups:
            group.reset()  # the momentum belongs to weights that have other values now

    def _prune(self) -> None:
        """Move the gates by the method of the run."""
        config = self.config
        if self.adam:
            if not (self.target and self.target.reached):
                self.adam.step()
            if self.target:
                self.target.step()
        elif isinstance(self.rule, GroupLasso):
            self.rule.step(self.lr, self.strength)
        elif self.rule:
            done = (self.step + 1) / self.steps - config.gate_start
            self.rule.step(done / (config.gate_stop - config.gate_start))

    def _average_weights(self) -> None:
        """Average the weights over the second half of fine-tuning, and end with their mean."""
        if self.average and self.step > (self.stop + self.steps) // 2:
            self.average.update()
            if self.step == self.steps:
                self.average.apply()

    def train_epoch(self) -> dict[str, Any]:
        """Train on each image once; return the record of the epoch, a line of ``metrics.jsonl``."""
        began, split, size = time.perf_counter(), self.data.train, self.config.batch_size
        loss_sum, wrong, times = 0.0, 0, []
        epoch = batches(split, size, rng=self.rng, augment=self.augment, **self.scale)
        for images, labels in epoch:
            start = time.perf_counter()
            loss, missed = self.train_step(images, labels)
            times.append(time.perf_counter() - start)
            loss_sum += loss * len(labels)
            wrong += missed
        record = {
            "epoch": self.epoch,
            "step": self.step,
            "loss": loss_sum / len(split),
            "train_error": 100 * wrong / len(split),
            **self._evaluate(),
            "frozen": self.fine_tunes,
            "step_ms": 1000 * float(np.median(times)),
            "seconds": time.perf_counter() - began,
        }
        self.records.append(record)
        return record

    def _evaluate(self) -> dict[str, Any]:
        """Return the validation error, and what is left of the network."""
        counts, validation = self.counts(), self.data.validation
        sizes = gated_sizes(counts)
        with no_grad():
            expected = Surrogate(self.model, self.shape)().item()
        return {
            "validation_error": validation and error_rate(self.model, validation, **self.scale),
            "expected_weights": expected,
            "weights": sum(layer.weights[0] for layer in counts),
            "dense_weights": sum(layer.weights[1] for layer in counts),
            "macs": sum(layer.macs[0] for layer in counts),
            "dense_macs": sum(layer.macs[1] for layer in counts),
            "architecture": architecture(counts),
            "dense_architecture": architecture(counts, dense=True),
            "open": {name: left for name, (left, _) in sizes.items()},
            "groups": {name: whole for name, (_, whole) in sizes.items()},
        }

    def counts(self) -> list[LayerCount]:
        """Count what is left of each layer."""
        return count(self.model, self.shape)

    # -- checkpoints -------------------------------------------------------------------------------

    @property
    def _states(self) -> dict[str, SGD | Adam | Average | Target]:
        """Whatever has a state beside the model, by its prefix in a checkpoint."""
        states = {"weights": self.sgd, "phis": self.adam, "average": self.average,
                  "target": self.target}  # fmt: skip
        return {prefix: holder for prefix, holder in states.items() if holder is not None}

    def checkpoint(self) -> Checkpoint:
        """Return all that it takes to resume the run, and to use the network without the data."""
        info = {
            "config": self.config.to_json(),
            "step": self.step,
            "records": self.records,
            "rng": generator_state(self.rng),
            "shape": self.shape,
            **self.scale,
        }
        arrays = {
            f"{prefix}.{name}": array
            for prefix, holder in self._states.items()
            for name, array in holder.state_dict().items()
        }
        return Checkpoint(self.model, info, arrays)

    def _resume(self, checkpoint: Checkpoint) -> None:
        info, arrays = checkpoint.info, checkpoint.state
        if Config.from_json(info.get("config")) != self.config:
            raise CheckpointError("the checkpoint belongs to a run with another configuration.")
        try:
            if {"mean": info["mean"], "std": info["std"]} != self.scale:
                raise ValueError("it was trained on other training images")
            steps = len(info["records"]) * self.steps_per_epoch
            if info["step"] != steps or steps > self.steps:
                raise ValueError(f"it ends at step {info['step']}, not at the end of an epoch")
            for prefix, holder in self._states.items():
                names = [name for name in arrays if name.startswith(f"{prefix}.")]
                holder.load_state_dict({n.removeprefix(f"{prefix}."): arrays[n] for n in names})
            self.step, self.records = info["step"], info["records"]
            self.rng = restore_generator(info["rng"])
        except MALFORMED as error:
            text = f"the checkpoint does not belong to this run: {reason(error)}."
            raise CheckpointError(text) from error
