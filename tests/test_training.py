"""Training: the recipe's steps, its records, its errors, and that a seed decides every bit."""

import dataclasses
import json
import warnings
from typing import Any

import numpy as np
import pytest

import minidiff as md
from minidiff import nn, no_grad
from minidiff.data.batches import batches
from minidiff.data.datasets import Dataset, Split
from minidiff.models import MODELS
from minidiff.training.trainer import (
    METHODS,
    RECIPES,
    Config,
    ConfigError,
    NonFiniteLossError,
    Trainer,
    error_rate,
)


def blobs(count: int, seed: int, dtype: type = np.uint8) -> Split:
    """Images that a network can tell apart: class k has a bright bar in row 2k + 4."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 10, count)
    images = rng.integers(0, 60, (count, 1, 28, 28))
    for image, label in zip(images, labels, strict=True):
        image[0, 2 * label + 4 : 2 * label + 6] += 180
    scaled = images.astype(dtype) if dtype is np.uint8 else (images / 255).astype(dtype)
    return Split(scaled, labels)


def dataset(dtype: type = np.uint8) -> Dataset:
    return Dataset(
        "blobs", "Made up.", blobs(300, 0, dtype), blobs(60, 1, dtype), blobs(60, 2, dtype)
    )


SHORT = Config(
    dataset="digits",
    epochs=10,
    batch_size=50,
    lr=0.02,
    warmup=20,
    penalty=0.005,
    gate_lr=0.1,
    gate_start=0.2,
    gate_stop=0.7,
    ramp=0.0,
    label_smoothing=0.0,
)


def run(config: Config, data: Dataset | None = None) -> tuple[Trainer, list[dict]]:
    trainer = Trainer(config, data or dataset())
    return trainer, [trainer.train_epoch() for _ in range(config.epochs)]


def test_training_learns_and_prunes_and_freezes_the_gates() -> None:
    trainer, records = run(SHORT)
    assert records[-1]["loss"] < records[0]["loss"] / 2
    assert records[-1]["validation_error"] < 30
    assert records[-1]["weights"] < records[0]["weights"] == 430_500
    assert records[-1]["macs"] < records[0]["macs"] == 2_293_000
    assert [r["frozen"] for r in records] == 6 * [False] + 4 * [True]
    assert records[9]["open"] == records[6]["open"]
    sizes = "-".join(str(n) for n in records[-1]["open"].values())
    assert records[-1]["architecture"] == sizes
    json.dumps(records, allow_nan=False)
    assert trainer.step == trainer.steps == 60


def test_the_same_seed_gives_the_same_bits_and_another_does_not() -> None:
    states = [
        run(dataclasses.replace(SHORT, epochs=2, seed=s))[0].model.state_dict() for s in (3, 3, 4)
    ]
    assert all(np.array_equal(states[0][name], states[1][name]) for name in states[0])
    assert not np.array_equal(states[0]["conv1.layer.weight"], states[2]["conv1.layer.weight"])


def batch(trainer: Trainer, count: int = 50) -> tuple[np.ndarray, np.ndarray]:
    data = trainer.data
    return next(batches(data.train, count, mean=data.mean, std=data.std))


def forget_gradients(trainer: Trainer) -> None:
    for parameter in trainer.model.parameters():
        parameter.grad = None


def test_steps_are_those_of_nesterov_with_decay_of_weights_and_not_of_biases() -> None:
    config = dataclasses.replace(SHORT, model="lenet300", sparsity="dense", weight_decay=0.1)
    trainer = Trainer(config, dataset())
    images, labels = batch(trainer)
    parameters = list(trainer.model.parameters())
    velocities = [np.zeros_like(parameter.data) for parameter in parameters]
    for _ in range(3):  # momentum is at work from the second on
        before = [parameter.data.copy() for parameter in parameters]
        forget_gradients(trainer)
        md.ops.cross_entropy(trainer.model(images), labels).backward()
        grads = [parameter.grad.copy() for parameter in parameters]
        lr = trainer.lr
        trainer.train_step(images, labels)
        for i, parameter in enumerate(parameters):
            grad = grads[i] + 0.1 * before[i] * (parameter.ndim > 1)
            velocities[i] = 0.9 * velocities[i] + grad
            expected = before[i] - lr * (grad + 0.9 * velocities[i])
            np.testing.assert_allclose(parameter.data, expected, rtol=1e-5, atol=1e-7)


def test_the_penalty_rises_along_its_ramp_from_the_start_of_the_gates() -> None:
    trainer = Trainer(dataclasses.replace(SHORT, ramp=0.3, penalty=6.0), dataset())
    for share, expected in ((0.2, 0.0), (0.25, 1 / 6), (0.35, 0.5), (0.5, 1.0), (0.69, 1.0)):
        trainer.step = round(share * trainer.steps)
        assert trainer.strength == pytest.approx(expected * 6.0 / 300)
        assert trainer.prunes
    for share in (0.0, 0.19, 0.7, 0.9):
        trainer.step = round(share * trainer.steps) - (share == 0.19)
        assert not trainer.prunes


def test_the_gradient_of_the_gates_is_that_of_loss_and_penalty() -> None:
    trainer = Trainer(dataclasses.replace(SHORT, penalty=3000.0, ramp=0.3, initial=0.2), dataset())
    trainer.step = 21  # half up the ramp
    images, labels = batch(trainer)
    phis = [gate.phi for gate in trainer.gates.values()]
    loss = md.ops.cross_entropy(trainer.model(images), labels)
    cost = md.Surrogate(trainer.model, trainer.shape, cost="balanced")()
    (loss + 0.5 * 3000.0 / 300 * cost).backward()
    expected = [phi.grad.copy() for phi in phis]
    forget_gradients(trainer)
    trainer.train_step(images, labels)
    for phi, grad in zip(phis, expected, strict=True):
        np.testing.assert_allclose(phi.grad, grad, rtol=1e-4, atol=1e-6 * abs(grad).max())
        assert abs(grad).max() > 0


def test_when_gates_are_frozen_they_are_binary_noise_ends_and_momentum_begins_anew() -> None:
    trainer = Trainer(dataclasses.replace(SHORT, noise="normal", initial=0.3, lr=1e-9), dataset())
    images, labels = batch(trainer)
    while trainer.step < trainer.stop:
        trainer.train_step(images, labels)
    assert any(0 < z < 1 for gate in trainer.gates.values() for z in gate.evaluated())
    assert any(state["velocity"].any() for g in trainer.weights.groups for state in g.state)
    before = trainer.model.eval()(images).data.copy()
    trainer.model.train()
    trainer.train_step(images, labels)
    assert all(set(gate.evaluated()) <= {0, 1} for gate in trainer.gates.values())
    first, second = (trainer.model(images).data for _ in range(2))  # in training
    np.testing.assert_array_equal(first, second)
    np.testing.assert_allclose(first, before, rtol=1e-4, atol=1e-5)
    (weight,) = [p for p in trainer.model.parameters() if p.shape == (20, 1, 5, 5)]
    (velocity,) = [
        state["velocity"]
        for group in trainer.weights.groups
        for parameter, state in zip(group.parameters, group.state, strict=True)
        if parameter is weight
    ]
    np.testing.assert_allclose(velocity, weight.grad + 5e-4 * weight.data, rtol=1e-5, atol=1e-8)


def test_the_record_of_an_epoch_is_of_all_its_images_and_of_the_network() -> None:
    config = dataclasses.replace(SHORT, lr=1e-12, batch_size=280, initial=0.8)  # batches of 280, 20
    trainer = Trainer(config, dataset())
    record, data = trainer.train_epoch(), trainer.data
    images, labels = batch(trainer, 300)
    with no_grad():
        logits = trainer.model(images)
        loss = md.ops.cross_entropy(logits, labels).item()
    assert record["loss"] == pytest.approx(loss, rel=1e-4)
    wrong = 100 * np.mean(logits.data.argmax(axis=0) != labels)
    assert record["train_error"] == pytest.approx(wrong)
    validation = error_rate(trainer.model, data.validation, mean=data.mean, std=data.std)
    assert record["validation_error"] == validation
    for cost in ("weights", "macs"):
        expected = md.expected_cost(trainer.model, trainer.shape, cost=cost).item()
        assert record[f"expected_{cost}"] == pytest.approx(expected)
    assert record["expected_weights"] < record["expected_macs"]


@pytest.mark.parametrize("noise", ["normal", "logistic", "uniform"])
def test_stochastic_gates_train(noise: str) -> None:
    trainer, records = run(dataclasses.replace(SHORT, epochs=2, noise=noise, initial=0.4))
    assert records[-1]["loss"] < records[0]["loss"]
    assert all((gate.phi.data != np.float32(0.4)).all() for gate in trainer.gates.values())


def test_augmented_and_float_images_train() -> None:
    _, records = run(dataclasses.replace(SHORT, epochs=2, augment=True), dataset(np.float32))
    assert records[-1]["loss"] < records[0]["loss"]


@pytest.mark.parametrize("model", ["lenet5", "lenet300"])
def test_pixels_are_dropped_in_training_alone(model: str) -> None:
    trainer, records = run(dataclasses.replace(SHORT, epochs=2, model=model, dropout=0.3))
    assert records[-1]["loss"] < records[0]["loss"]
    network, images = trainer.model, np.ones((1, 28, 28, 4), np.float32)
    dropped = network["dropout"](md.Tensor(images)).data
    assert set(np.unique(dropped)) == {np.float32(0), np.float32(1 / 0.7)}
    assert 0.2 < (dropped == 0).mean() < 0.4
    network.eval()
    before = network(images).data
    np.testing.assert_array_equal(before[:, :1].repeat(4, axis=1), before)
    np.testing.assert_allclose(md.compact(network)(images).data, before, atol=1e-5)


def test_a_dense_network_has_no_gates_and_stays_whole() -> None:
    trainer, records = run(dataclasses.replace(SHORT, epochs=1, sparsity="dense"))
    assert not trainer.gates
    assert records[0]["weights"] == 430_500
    assert records[0]["architecture"] == "20-50-800-500"


@pytest.mark.parametrize("sparsity", ["structured", "dense"])
@pytest.mark.parametrize("restart", [True, False])
def test_the_step_size_falls_once_or_starts_anew_when_gates_are_frozen(
    sparsity: str, restart: bool
) -> None:
    trainer = Trainer(dataclasses.replace(SHORT, sparsity=sparsity, restart=restart), dataset())
    rates = []
    for step in range(trainer.steps):
        trainer.step = step
        rates.append(trainer.lr / SHORT.lr)
    rises = [i for i in range(1, 60) if rates[i] > rates[i - 1]]
    assert max(rates) == pytest.approx(1)
    assert rates[-1] < 0.05
    if restart and sparsity == "structured":
        # Gates are frozen after 42 of 60 steps; a warm-up takes at most half of what is left.
        assert rises == [*range(1, 20), *range(42, 51)]
        assert rates[41] < 0.02
        assert rates[50] == pytest.approx(1)
    else:
        assert rises == list(range(1, 20))


def test_with_swa_the_run_ends_with_the_mean_of_its_weights_at_a_constant_step_size() -> None:
    trainer = Trainer(dataclasses.replace(SHORT, swa_lr=0.01), dataset())
    assert trainer.average is not None
    rates, weights, apply = [], [], trainer.average.apply

    def state() -> dict[str, np.ndarray]:
        return {name: value.copy() for name, value in trainer.model.state_dict().items()}

    trainer.average.apply = lambda: (weights.append(state()), apply())  # type: ignore[method-assign]
    while trainer.step < trainer.steps:
        rates.append(trainer.lr)
        images, labels = next(batches(trainer.data.train, 20, mean=0.1, std=0.3, rng=trainer.rng))
        trainer.train_step(images, labels)
        weights.append(state())
    # Gates are frozen after 42 of 60 steps, and 9 of the other 18 are averaged.
    assert rates[42:] == pytest.approx([0.01 * min(1, i / 9) for i in range(1, 19)])
    for name, value in state().items():
        mean = np.mean([w[name] for w in weights[51:60]], axis=0)
        np.testing.assert_allclose(value, mean, rtol=1e-5, atol=1e-7)
    assert any(not np.array_equal(weights[-1][name], weights[-2][name]) for name in weights[-1])


@pytest.mark.parametrize("sparsity", ["structured", "dense"])
def test_labels_are_smoothed_once_gates_are_frozen_and_always_without_gates(
    sparsity: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    smoothed, original = [], md.ops.cross_entropy

    def noted(logits: md.Tensor, labels: np.ndarray, *, label_smoothing: float) -> md.Tensor:
        smoothed.append(label_smoothing)
        return original(logits, labels, label_smoothing=label_smoothing)

    monkeypatch.setattr(md.ops, "cross_entropy", noted)
    run(dataclasses.replace(SHORT, sparsity=sparsity, label_smoothing=0.2, epochs=2))
    assert smoothed == (9 * [0.0] + 3 * [0.2] if sparsity == "structured" else 12 * [0.2])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("sparsity", ["structured", "unstructured"])
@pytest.mark.parametrize("model", MODELS)
def test_every_method_prunes_either_network_either_way(
    method: str, sparsity: str, model: str
) -> None:
    config = dataclasses.replace(
        SHORT,
        model=model,
        sparsity=sparsity,
        method=method,
        penalty=60.0 if method == "group-lasso" else 0.2,
        keep=0.3,
        epochs=6,
        gate_lr=0.3,
        gate_start=0.0,
    )
    trainer, records = run(config)
    last = records[-1]
    assert last["weights"] < 0.9 * last["dense_weights"]
    assert last["weights"] == sum(layer.weights[0] for layer in trainer.counts())
    data = trainer.data
    with warnings.catch_warnings():  # so short a training may leave nothing, which is as well here
        warnings.simplefilter("ignore", UserWarning)
        compact = md.compact(trainer.model)
    small = md.Predictor(compact, trainer.shape, mean=data.mean, std=data.std)
    images = (data.test.images.transpose(1, 2, 3, 0) / 255 - data.mean) / data.std
    with no_grad():
        expected = trainer.model.eval()(images.astype(np.float32)).data.T
    np.testing.assert_allclose(small(data.test.images), expected, atol=1e-3)


def test_error_rate_counts_wrong_answers_of_the_network_in_evaluation() -> None:
    data = dataset()
    trainer = Trainer(SHORT, data)
    error = error_rate(trainer.model, data.test, mean=data.mean, std=data.std)
    images = (data.test.images.transpose(1, 2, 3, 0) / 255 - data.mean) / data.std
    guesses = trainer.model.eval()(images.astype(np.float32)).data.argmax(axis=0)
    assert error == pytest.approx(100 * np.mean(guesses != data.test.labels))


def test_a_loss_that_is_not_finite_names_the_step_and_what_to_try() -> None:
    with pytest.raises(NonFiniteLossError, match=r"at step \d+ of 60 .*--lr \(now 1e\+08\)"):
        run(dataclasses.replace(SHORT, lr=1e8, warmup=0))


def test_no_weight_has_moved_where_the_loss_is_not_finite() -> None:
    trainer = Trainer(SHORT, dataset())
    images, labels = batch(trainer)
    trainer.train_step(images, labels)
    before = {name: value.copy() for name, value in trainer.model.state_dict().items()}
    with pytest.raises(NonFiniteLossError):
        trainer.train_step(np.full_like(images, np.inf), labels)
    for name, value in trainer.model.state_dict().items():
        np.testing.assert_array_equal(value, before[name])
    assert trainer.step == 1


def test_images_that_are_not_finite_are_refused_before_training() -> None:
    images = np.zeros((4, 1, 28, 28), np.float32)
    images[2, 0, 3, 5] = np.nan
    with pytest.raises(ValueError, match="images go from nan to nan"):
        Split(images, np.zeros(4, np.int64))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0),
        ("epochs", 1.5),
        ("epochs", True),
        ("batch_size", 0),
        ("seed", -1),
        ("lr", 0.0),
        ("lr", float("nan")),
        ("momentum", 1.0),
        ("weight_decay", -1e-3),
        ("label_smoothing", 1.0),
        ("dropout", -0.1),
        ("dropout", 1.0),
        ("warmup", -1),
        ("penalty", -0.1),
        ("penalty", float("inf")),
        ("cost", "flops"),
        ("gate_lr", -1.0),
        ("gate_start", -0.1),
        ("gate_stop", 0.01),
        ("width", 0.0),
        ("width", float("nan")),
        ("initial", float("inf")),
        ("noise", "cauchy"),
        ("sigma", 0.0),
        ("keep", 0.0),
        ("keep", 1.5),
        ("ramp", -0.1),
        ("ramp", 1.1),
        ("gate_stop", 1.1),
        ("swa_lr", -0.1),
        ("dataset", "auto"),
        ("model", "lenet"),
        ("sparsity", "none"),
        ("method", "best"),
    ],
)
def test_a_setting_out_of_range_is_named_with_its_value(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"{name} is {str(value)!r}|{name} is {value!r}"):
        dataclasses.replace(Config(), **{name: value})


def test_gates_that_uniform_noise_cannot_close_are_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"initial is 1.5; expected below sigma - width / 2 = 0.5"
    ):
        Config(noise="uniform")
    assert Config(noise="uniform", initial=0.4).noise == "uniform"


def test_a_configuration_survives_json_and_names_what_does_not_fit() -> None:
    for config in RECIPES.values():
        assert Config.from_json(json.loads(json.dumps(config.to_json()))) == config
    with pytest.raises(ConfigError, match=r"unknown settings \['depth'\]"):
        Config.from_json({"depth": 3, "seed": 1})
    with pytest.raises(ConfigError, match="expected a JSON object"):
        Config.from_json([1])
    for wrong in ({"epochs": "3"}, {"augment": 1}, {"noise": 1}, {"lr": None}, {"seed": 1.0}):
        with pytest.raises(ConfigError, match="expected something like"):
            Config.from_json(wrong)
    assert Config.from_json({"seed": 1}) == Config(seed=1)  # from before there were the others


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "gaussian", "sigma": 0.1},
        {"method": "hard-concrete", "initial": 9.0},
        {"method": "magnitude", "noise": "normal"},
        {"method": "group-lasso", "width": 0.5},
        {"method": "magnitude", "gate_stop": 0.5, "gate_start": 0.5},
        {"sparsity": "dense", "swa_lr": 0.01},
        {"swa_lr": 0.01, "gate_stop": 1.0},
        {"validation": 60_000},
    ],
)
def test_a_setting_that_would_be_ignored_is_an_error(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"^({'|'.join(changes)}) is .*; expected "):
        Config(**changes)


def test_an_evaluation_leaves_each_modules_mode_as_it_was() -> None:
    rng = np.random.default_rng(0)
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5, rng=rng), nn.Linear(4, 10, rng=rng))
    model[1].eval()
    split = Split(np.zeros((3, 1, 2, 2), np.uint8), np.zeros(3, np.int64))
    error_rate(model, split, mean=0.0, std=1.0)
    assert [module.training for module in model] == [True, False, True]
