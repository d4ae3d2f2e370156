"""The trainer: its steps, its schedule, its records, and that the seed decides every bit."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import minidiff as md
from minidiff import nn, no_grad
from minidiff.data.batches import batches
from minidiff.data.datasets import Dataset, Split, load_dataset
from minidiff.engine import functional
from minidiff.io.checkpoint import Checkpoint, CheckpointError
from minidiff.training.config import Config
from minidiff.training.trainer import NonFiniteLossError, Trainer, build_model, error_rate

Arrays = dict[str, NDArray[Any]]


def blobs(count: int, seed: int) -> Split:
    """Images that a network can tell apart: class k has a bright bar in row 2k + 4."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 10, count)
    images = rng.integers(0, 60, (count, 1, 28, 28))
    for image, label in zip(images, labels, strict=True):
        image[0, 2 * label + 4 : 2 * label + 6] += 180
    return Split(images.astype(np.uint8), labels)


DATA = Dataset("blobs", "Made up.", blobs(300, 0), blobs(60, 1), blobs(60, 2))
# All of them have 10 epochs of 6 steps.
PLAIN = Config("digits", model="lenet300", epochs=10, batch_size=50, lr=0.02, warmup=20)
DENSE = replace(PLAIN, sparsity="dense", label_smoothing=0.2)
SHORT = replace(
    PLAIN, label_smoothing=0.0, penalty=0.01, gate_lr=0.1, gate_start=0.2, gate_stop=0.7, ramp=0.0
)


def trainer(config: Config = SHORT, /, data: Dataset = DATA, **changes: Any) -> Trainer:
    return Trainer(replace(config, **changes), data)


def batch(count: int = 50) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    return next(batches(DATA.train, count, mean=DATA.mean, std=DATA.std))


def state(model: nn.Module) -> Arrays:
    return {name: array.copy() for name, array in model.state_dict().items()}


def assert_equal(ours: Arrays, theirs: Arrays) -> None:
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        np.testing.assert_array_equal(array, theirs[name])


# -- a whole run -----------------------------------------------------------------------------------


def test_training_learns_prunes_and_freezes_the_gates() -> None:
    run = trainer()
    records = [run.train_epoch() for _ in range(10)]
    first, last = records[0], records[-1]
    assert last["loss"] < first["loss"] / 2
    assert last["validation_error"] < 30
    assert last["weights"] < 0.9 * first["weights"] == 0.9 * 266_200
    assert last["macs"] < 0.9 * last["dense_macs"]
    assert [record["frozen"] for record in records] == 6 * [False] + 4 * [True]
    assert last["open"] == records[6]["open"]
    assert last["architecture"] == "-".join(str(size) for size in last["open"].values())
    assert run.step == run.steps == 60
    assert json.loads(json.dumps(records, allow_nan=False)) == run.records


def test_the_seed_decides_every_bit() -> None:
    runs = [trainer(seed=seed, noise="normal", dropout=0.1, augment=True) for seed in (3, 3, 4)]
    for run in runs:
        run.train_epoch()
    assert_equal(*(state(run.model) for run in runs[:2]))
    weights = [run.model.state_dict()["dense2.layer.weight"] for run in runs[1:]]
    assert not np.array_equal(*weights)


@pytest.mark.parametrize(
    ("sparsity", "changes"),
    [
        ("combined", {"penalty": 0.2, "gate_lr": 0.3, "noise": "logistic", "swa_lr": 0.01}),
        ("structured", {"method": "hard-concrete", "penalty": 0.2, "gate_lr": 0.3}),
        ("unstructured", {"method": "gaussian", "penalty": 0.2, "gate_lr": 0.3}),
        ("structured", {"method": "group-lasso", "penalty": 60.0}),
        ("unstructured", {"method": "magnitude", "keep": 0.3}),
    ],
)
def test_every_method_prunes_and_resumes_to_the_same_bits(
    sparsity: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    config = replace(PLAIN, sparsity=sparsity, epochs=4, gate_start=0.0, gate_stop=0.7, **changes)
    run = Trainer(config, DATA)
    for _ in range(2):
        run.train_epoch()
    run.checkpoint().write(tmp_path / "half.safetensors")
    again = Trainer(config, DATA, Checkpoint.read(tmp_path / "half.safetensors"))
    for _ in range(2):
        last = run.train_epoch()
        again.train_epoch()
    assert last["weights"] < 0.9 * last["dense_weights"]
    ours, theirs = again.checkpoint(), run.checkpoint()
    assert_equal(ours.model.state_dict(), theirs.model.state_dict())
    assert_equal(ours.state, theirs.state)
    assert ours.info["rng"] == theirs.info["rng"]


def test_a_dense_network_stays_whole() -> None:
    run = trainer(DENSE)
    record = run.train_epoch()
    assert not run.gates
    assert record["weights"] == 266_200
    assert record["architecture"] == "784-300-100"


def test_the_gates_have_the_settings_of_the_run() -> None:
    shape = {"width": 0.5, "initial": 0.7, "noise": "logistic", "sigma": 0.2}
    model = build_model(replace(SHORT, dropout=0.3, **shape), np.random.default_rng(0))
    gate = next(iter(md.gates_of(model).values()))
    assert {key: getattr(gate, key) for key in ("width", "noise", "sigma")}.items() <= shape.items()
    np.testing.assert_array_equal(gate.phi.data, np.float32(0.7))
    assert model["dropout"].p == 0.3


# -- one step --------------------------------------------------------------------------------------


def test_weights_take_nesterov_steps_and_biases_do_not_decay() -> None:
    run = trainer(DENSE, weight_decay=0.1, label_smoothing=0.0)
    images, labels = batch()
    parameters = list(run.model.parameters())
    velocities = [np.zeros_like(parameter.data) for parameter in parameters]
    for _ in range(3):  # momentum is at work from the second step on
        before = [parameter.data.copy() for parameter in parameters]
        run.sgd.zero_grad()
        functional.cross_entropy(run.model(images), labels).backward()
        grads = [parameter.grad.copy() for parameter in parameters]
        lr = run.lr
        run.train_step(images, labels)
        for i, parameter in enumerate(parameters):
            grad = grads[i] + 0.1 * before[i] * (parameter.ndim > 1)
            velocities[i] = 0.9 * velocities[i] + grad
            expected = before[i] - lr * (grad + 0.9 * velocities[i])
            np.testing.assert_allclose(parameter.data, expected, rtol=1e-5, atol=1e-7)


def test_the_gradient_of_the_gates_is_that_of_loss_and_penalty() -> None:
    run = trainer(penalty=3000.0, ramp=0.3, initial=0.2)
    run.step = 21  # half up the ramp
    images, labels = batch()
    phis = [gate.phi for gate in run.gates.values()]
    cost = md.Surrogate(run.model, run.shape, cost="balanced")()
    loss = functional.cross_entropy(run.model(images), labels)
    (loss + 0.5 * 3000.0 / 300 * cost).backward()
    expected = [phi.grad.copy() for phi in phis]
    for parameter in run.model.parameters():
        parameter.grad = None
    run.train_step(images, labels)
    for phi, grad in zip(phis, expected, strict=True):
        np.testing.assert_allclose(phi.grad, grad, rtol=1e-4, atol=1e-6 * abs(grad).max())
        assert abs(grad).max() > 0


def test_frozen_gates_are_binary_without_noise_and_momentum_is_reset() -> None:
    run = trainer(noise="normal", initial=0.3, lr=1e-9)
    images, labels = batch()
    while run.step < run.stop:
        run.train_step(images, labels)
    assert any(0 < z < 1 for gate in run.gates.values() for z in gate.evaluated())
    before = run.model.eval()(images).data.copy()
    run.model.train()
    run.train_step(images, labels)
    assert all(set(gate.evaluated()) <= {0, 1} for gate in run.gates.values())
    first, second = (run.model(images).data for _ in range(2))  # in training
    np.testing.assert_array_equal(first, second)
    np.testing.assert_allclose(first, before, rtol=1e-4, atol=1e-5)
    (group, _) = run.sgd.groups
    for weight, kept in zip(group.parameters, group.state, strict=True):
        gradient = weight.grad + 5e-4 * weight.data
        np.testing.assert_allclose(kept["velocity"], gradient, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("config", [replace(SHORT, label_smoothing=0.2), DENSE])
def test_labels_are_smoothed_except_before_fine_tuning(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    smoothed, original = [], functional.cross_entropy

    def noted(logits: md.Tensor, labels: Any, *, label_smoothing: float) -> md.Tensor:
        smoothed.append(label_smoothing)
        return original(logits, labels, label_smoothing=label_smoothing)

    monkeypatch.setattr(functional, "cross_entropy", noted)
    run = trainer(config)
    for step in (0, 41, 42, 59):  # gates are frozen after 42 steps
        run.step = step
        run.train_step(*batch())
    assert smoothed == ([0.0, 0.0, 0.2, 0.2] if config.gated else 4 * [0.2])


def test_no_weight_moves_where_the_loss_is_not_finite() -> None:
    run = trainer()
    images, labels = batch()
    run.train_step(images, labels)
    before = state(run.model)
    with pytest.raises(NonFiniteLossError, match=r"the loss is (nan|inf) at step 2; try .*--lr"):
        run.train_step(np.full_like(images, np.inf), labels)
    assert_equal(state(run.model), before)
    assert run.step == 1


# -- the schedule ----------------------------------------------------------------------------------


def test_the_penalty_rises_along_its_ramp_while_gates_learn() -> None:
    run = trainer(ramp=0.3, penalty=6.0)
    for step, risen in ((12, 0.0), (15, 1 / 6), (21, 0.5), (30, 1.0), (41, 1.0)):
        run.step = step
        assert run.strength == pytest.approx(risen * 6.0 / 300)
        assert run.prunes
    for step in (0, 11, 42, 59):
        run.step = step
        assert not run.prunes


@pytest.mark.parametrize("config", [SHORT, replace(SHORT, restart=False), DENSE])
def test_the_learning_rate_has_one_cosine_or_one_on_each_side(config: Config) -> None:
    run, rates = trainer(config), []
    for step in range(run.steps):
        run.step = step
        rates.append(run.lr / config.lr)
    rises = [i for i in range(1, 60) if rates[i] > rates[i - 1]]
    assert max(rates) == pytest.approx(1)
    assert rates[-1] < 0.05
    if config.gated and config.restart:
        # Gates are frozen after 42 of 60 steps; a warm-up takes at most half of the rest.
        assert rises == [*range(1, 20), *range(42, 51)]
        assert rates[41] < 0.02
        assert rates[50] == pytest.approx(1)
    else:
        assert rises == list(range(1, 20))


def test_with_swa_a_run_ends_with_the_mean_of_its_weights() -> None:
    run = trainer(swa_lr=0.01)
    run.average.apply = lambda: None  # so that the weights of the last step can be seen
    rates, weights = [], []
    while run.step < run.steps:
        rates.append(run.lr)
        run.train_step(*batch(20))
        weights.append(state(run.model))
    del run.average.apply
    run.average.apply()
    # Gates are frozen after 42 of 60 steps, and 9 of the other 18 are averaged.
    assert rates[42:] == pytest.approx([0.01 * min(1, i / 9) for i in range(1, 19)])
    for name, value in state(run.model).items():
        mean = np.mean([each[name] for each in weights[51:]], axis=0)
        np.testing.assert_allclose(value, mean, rtol=1e-5, atol=1e-7)
    assert not np.array_equal(
        weights[-1]["dense2.layer.weight"], weights[51]["dense2.layer.weight"]
    )


# -- what the schedule can do ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"epochs": 12}, ""),
        ({"epochs": 2}, ""),
        ({"epochs": 12, "method": "hard-concrete"}, ""),
        ({"epochs": 12, "method": "gaussian"}, ""),
        ({"epochs": 12, "method": "magnitude"}, ""),
        ({"sparsity": "dense"}, ""),
        ({"noise": "normal"}, ""),
        ({"noise": "uniform", "initial": 0.4}, ""),
        ({"method": "group-lasso", "penalty": 60.0}, ""),
        ({"epochs": 12, "gate_lr": 0.001}, "phi moves by .* at most, and closes after 2; try more"),
        ({"batch_size": 300, "epochs": 1}, "phi moves by 0 at most"),
        ({"noise": "normal", "sigma": 0.25}, "hardly any gradient.*a larger --sigma"),
        ({"sigma": 0.25}, "hardly any gradient"),
        ({"noise": "uniform"}, "hardly any gradient.*a smaller --initial"),
        ({"penalty": 0.0}, "hardly any gradient.*a larger --lambda"),
        ({"method": "group-lasso"}, "the penalty is too small; try a larger --lambda"),
    ],
)
def test_a_run_says_at_its_start_if_gates_will_hardly_close(
    changes: dict[str, Any], reason: str
) -> None:
    changes = {"batch_size": 30, **changes}  # 10 steps an epoch, as the digits have
    config = Config.recipe("digits", model="lenet300", **changes | {"batch_size": 128})
    run = Trainer(replace(config, batch_size=changes["batch_size"]), DATA)
    before, generator = state(run.model), run.rng.bit_generator.state
    text = run.obstacle()
    assert re.search(f"^gates will hardly close: .*{reason}", text) if reason else text == ""
    assert_equal(state(run.model), before)
    assert (run.rng.bit_generator.state, run.step) == (generator, 0)
    assert all(parameter.grad is None for parameter in run.model.parameters())


@pytest.mark.parametrize("epochs", [2, 3, 5])
def test_short_runs_of_the_recipe_prune(epochs: int) -> None:
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    run = Trainer(Config.recipe("digits", model="lenet300", epochs=epochs), load_dataset("digits"))
    assert run.obstacle() == ""
    for _ in range(epochs):
        last = run.train_epoch()
    assert 0 < last["weights"] < 0.9 * last["dense_weights"]


# -- records and checkpoints -----------------------------------------------------------------------


def test_a_record_is_of_all_images_and_of_the_network() -> None:
    run = trainer(lr=1e-12, batch_size=280, initial=0.8)  # batches of 280 and 20
    record = run.train_epoch()
    images, labels = batch(300)
    with no_grad():
        logits = run.model(images)
        loss = functional.cross_entropy(logits, labels).item()
        expected = md.Surrogate(run.model, run.shape)().item()
    assert record["loss"] == pytest.approx(loss, rel=1e-4)
    wrong = 100 * np.mean(logits.data.argmax(axis=0) != labels)
    assert record["train_error"] == pytest.approx(wrong)
    validation = error_rate(run.model, DATA.validation, mean=DATA.mean, std=DATA.std)
    assert record["validation_error"] == validation
    assert record["expected_weights"] == pytest.approx(expected)


def test_the_error_rate_counts_wrong_answers_and_keeps_modes() -> None:
    rng = np.random.default_rng(0)
    linear = nn.Linear(784, 10, rng=rng)
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5, rng=rng), linear)
    model[0].eval()
    images = (DATA.test.images.reshape(60, -1) / 255 - DATA.mean) / DATA.std
    guesses = (images @ linear.weight.data.T + linear.bias.data).argmax(axis=1)
    error = error_rate(model, DATA.test, mean=DATA.mean, std=DATA.std)
    assert error == pytest.approx(100 * np.mean(guesses != DATA.test.labels))
    assert [module.training for module in model] == [False, True, True]


def test_a_checkpoint_of_another_run_is_refused() -> None:
    checkpoint = trainer().checkpoint()
    with pytest.raises(CheckpointError, match="another configuration"):
        Trainer(replace(SHORT, seed=1), DATA, checkpoint)
    other = Dataset("blobs", "Made up.", blobs(300, 5), None, blobs(60, 2))
    with pytest.raises(CheckpointError, match="other training images"):
        Trainer(SHORT, other, checkpoint)
