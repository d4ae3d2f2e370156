"""Targets: networks end at the size that was asked for, and hardly below."""

import copy
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import minidiff as md
from minidiff import nn, optim
from minidiff.cli.bench import noise
from minidiff.pruning.target import parse_size
from minidiff.training.config import Config, ConfigError
from minidiff.training.trainer import Trainer
from tests.networks import DOUBLE, dense, rng


def network(seed: int = 0, **options: Any) -> nn.Sequential:
    gates: dict[str, Any] = {"initial": 0.5, "rng": rng(seed), **DOUBLE, **options}
    return nn.Sequential(
        first=md.gate(dense(20, 30, seed), "inputs", "outputs", **gates),
        relu=nn.ReLU(),
        second=md.gate(dense(30, 20, seed + 1), "outputs", **gates),
        relu2=nn.ReLU(),
        last=dense(20, 4, seed + 2),
    )


def train(model: nn.Module, target: md.Target, steps: int, lr: float = 0.02) -> None:
    x, labels = rng(1).standard_normal((20, 64)), rng(2).integers(0, 4, 64)
    weights, phis = md.split_parameters(model)
    optimisers = [optim.SGD(weights, lr=0.05, momentum=0.9), optim.Adam(phis, lr=lr)]
    for _ in range(steps):
        loss = md.functional.cross_entropy(model(x), labels) + target.penalty()
        for optimiser in optimisers:
            optimiser.zero_grad()
        loss.backward()
        optimisers[0].step()
        if not target.reached:
            optimisers[1].step()
        target.step()


@settings(max_examples=15)
@given(st.integers(0, 9), st.integers(30, 1000), st.sampled_from([0.005, 0.02, 0.3]))
def test_a_network_ends_at_its_target_and_no_step_goes_far_below(seed, size, lr):
    model = network(seed)
    target = md.Target(model, (20,), steps=120, weights=size)
    train(model, target, 140, lr)
    left = target.sizes()["weights"]
    assert target.reached
    # A group may be so large that none of the last ones closes within 3 %.
    assert 0.97 * size - 60 <= left <= size


def test_gates_close_before_the_end_if_there_is_time():
    model = network()
    target = md.Target(model, (20,), steps=400, weights="4x")
    train(model, target, 400)
    assert target.closed_at_end < 10
    hasty = md.Target(network(), (20,), steps=5, weights="4x")
    train(hasty.model, hasty, 5)
    assert hasty.closed_at_end > 30
    assert hasty.sizes()["weights"] <= 320


def test_both_targets_hold():
    model = nn.Sequential(
        conv=md.gate(nn.Conv2d(1, 12, 3, rng=rng(), **DOUBLE), initial=0.5, **DOUBLE),
        pool=nn.MaxPool2d(2, relu=True),
        flatten=nn.Flatten(),
        dense=md.gate(dense(12 * 9, 40), "inputs", "outputs", initial=0.5, **DOUBLE),
        relu=nn.ReLU(),
        last=dense(40, 4),
    )
    target = md.Target(model, (1, 8, 8), steps=300, weights="8x", macs="4x")
    x, labels = rng(1).standard_normal((1, 8, 8, 32)), rng(2).integers(0, 4, 32)
    weights, phis = md.split_parameters(model)
    sgd, adam = optim.SGD(weights, lr=0.02), optim.Adam(phis, lr=0.02)
    for _ in range(300):
        sgd.zero_grad(), adam.zero_grad()
        (md.functional.cross_entropy(model(x), labels) + target.penalty()).backward()
        sgd.step(), adam.step(), target.step()
    assert all(target.sizes()[what] <= target.goals[what] for what in ("weights", "macs"))
    assert any(target.sizes()[what] > 0.9 * target.goals[what] for what in ("weights", "macs"))


def test_a_target_goes_on_from_its_state():
    whole, halves = (md.Target(network(), (20,), steps=200, weights="5x") for _ in range(2))
    train(whole.model, whole, 55)
    train(halves.model, halves, 55)
    resumed = md.Target(halves.model, (20,), steps=200, weights="5x")
    resumed.load_state_dict(halves.state_dict())
    for target in (whole, resumed):
        train(target.model, target, 145)
    for name, array in whole.model.state_dict().items():
        np.testing.assert_array_equal(array, resumed.model.state_dict()[name])
    assert resumed.reached
    assert whole.multipliers == resumed.multipliers
    with pytest.raises(ValueError, match="does not fit this Target"):
        resumed.load_state_dict({"factors": np.ones(1)})


@pytest.mark.parametrize("size", ["40y", "x", "0x", "-3", 0, "0.5x", 10**9, "nan", "1e999x"])
def test_a_size_out_of_range_is_refused(size):
    with pytest.raises(ValueError, match="expected a number from 1 to 430500, or how many times"):
        parse_size(size, 430_500)


def test_a_target_needs_a_size_and_steps():
    with pytest.raises(ValueError, match="needs weights, macs or both"):
        md.Target(network(), (20,), steps=3)
    with pytest.raises(ValueError, match="the model has no gates"):
        md.Target(dense(20, 3), (20,), steps=3, weights=5)
    with pytest.raises(ValueError, match="steps is 0; expected 1 or more"):
        md.Target(network(), (20,), steps=0, weights=5)


def test_a_run_with_a_target_ends_there_and_resumes_to_the_same_bits():
    config = Config.recipe("digits", epochs=4, batch_size=16, target="20x", gate_lr=0.1)
    data = noise(64)
    whole = Trainer(config, data)
    for _ in range(4):
        record = whole.train_epoch()
        if whole.epoch == 2:
            checkpoint = copy.deepcopy(whole.checkpoint())
    assert 0 < record["weights"] <= 430_500 // 20
    resumed = Trainer(config, data, checkpoint)
    for _ in range(2):
        again = resumed.train_epoch()
    assert again["weights"] == record["weights"]
    assert again["loss"] == record["loss"]


def test_a_target_replaces_lambda():
    with pytest.raises(ConfigError, match=r"penalty has no effect with target 40x; leave it out"):
        Config.recipe("digits", target="40x", penalty=0.1)
    with pytest.raises(ConfigError, match="target has no effect with method magnitude"):
        Config.recipe("digits", target="40x", method="magnitude")
    with pytest.raises(ConfigError, match="cost is 'weights'; expected balanced, as both"):
        Config.recipe("digits", target="40x", target_macs="9x", cost="weights")
    with pytest.raises(ConfigError, match="target is 'small'; expected a number above 0, or how"):
        Config(target="small")
    assert Config(target=12000).options()[2:] == ["--target", "12000"]
    assert Config(target=12000).targets == {"weights": "12000"}
    too_large = Config.recipe("digits", target="10000000")
    with pytest.raises(ConfigError, match="expected a number from 1 to 430500"):
        Trainer(too_large, noise(16))
