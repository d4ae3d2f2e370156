"""The settings of a run: every one is checked, survives JSON, and stands in the documentation."""

import json
import math
import re
from collections.abc import Callable
from dataclasses import Field, fields, replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minidiff.cli.parser import parser
from minidiff.data.datasets import MNIST_TRAINING_IMAGES
from minidiff.training.config import METHODS, RECIPES, SIZE, Config, ConfigError, checked

each_setting = pytest.mark.parametrize("item", fields(Config), ids=lambda item: item.name)


def examples(item: "Field[Any]") -> tuple[list[Any], list[Any]]:
    """Return values that a setting may have, and values that it may not have."""
    allowed = item.metadata["allowed"]
    if isinstance(allowed, tuple):
        return list(allowed), ["nonsense", 7, math.nan, []]
    if allowed == SIZE:
        return [None, "12000", "40x", "1.5x"], [
            "small",
            "x",
            "0",
            "0.0x",
            "-3",
            "4 x",
            math.nan,
            True,
        ]
    low, high = (float(end) for end in allowed[1:-1].split(","))
    ends = [(low, allowed[0] == "["), (high, allowed[-1] == "]")]
    finite = [(item.type(end), closed) for end, closed in ends if math.isfinite(end)]
    right = [end for end, closed in finite if closed]
    wrong = [end for end, closed in finite if not closed]
    wrong += [end - 1 for end, _ in finite[:1]] + [2 * end + 1 for end, _ in finite[1:]]
    return [*right, item.default], [*wrong, math.inf, math.nan, "3", True, None]


@each_setting
def test_values_in_the_range_are_accepted(item: "Field[Any]") -> None:
    for value in examples(item)[0]:
        assert checked(item, value) == value


@each_setting
def test_other_values_are_refused_by_name(item: "Field[Any]") -> None:
    for value in examples(item)[1]:
        with pytest.raises(ConfigError, match=rf"^{item.name} is {re.escape(repr(value))}; expect"):
            replace(Config(), **{item.name: value})


@given(
    dataset=st.sampled_from(sorted(RECIPES)),
    method=st.sampled_from(sorted(METHODS)),
    seed=st.integers(0),
    lr=st.floats(1e-30, 1e30),
    augment=st.booleans(),
)
def test_json_keeps_every_setting(dataset: str, **changes: Any) -> None:
    config = Config.recipe(dataset, **changes)
    again = Config.from_json(json.loads(json.dumps(config.to_json())))
    assert again == config
    assert hash(again) == hash(config)
    assert config.changes().items() <= changes.items()


def test_a_setting_that_is_absent_has_its_default() -> None:
    assert Config.from_json({"seed": 1}) == Config(seed=1)


@pytest.mark.parametrize(
    ("values", "message"), [({"depth": 3}, "'depth'"), ([1], "mapping"), ({"lr": "1"}, "lr is '1'")]
)
def test_json_that_is_no_configuration_is_refused(values: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Config.from_json(values)


def test_equal_numbers_make_equal_runs() -> None:
    configs = {
        Config(penalty=1),
        Config(penalty=1.0),
        Config(penalty=np.float32(1), seed=np.int64()),
    }
    assert len(configs) == 1
    assert all(type(config.penalty) is float for config in configs)


@pytest.mark.parametrize(
    "changes",
    [
        {"gate_stop": 0.2, "gate_start": 0.2},
        {"gate_stop": 1.0, "swa_lr": 0.01},
        {"initial": -0.5},
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"^{next(iter(changes))} is .*; expected "):
        Config(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"swa_lr": 0.01, "sparsity": "dense"},
        {"method": "gaussian", "sparsity": "dense"},
        {"sigma": 0.1, "method": "gaussian"},
        {"penalty": 0.3, "method": "magnitude"},
        {"keep": 0.5, "method": "diffprune"},
        {"ramp": 0.5, "penalty": 0},
        {"label_smoothing": 0.2, "gate_stop": 1},
    ],
)
def test_a_change_that_the_run_would_not_use_is_refused(changes: dict[str, Any]) -> None:
    name, reason = changes
    with pytest.raises(ConfigError, match=f"^{name} has no effect with {reason} .*; leave it out"):
        Config.recipe("digits", **changes)


def test_a_message_names_options_for_the_command_line() -> None:
    with pytest.raises(ConfigError, match="penalty has no effect with method magnitude") as raised:
        Config.recipe("digits", penalty=1.0, method="magnitude")
    assert raised.value.as_typed().startswith("--lambda has no effect with --method magnitude")
    with pytest.raises(ConfigError, match="did you mean magnitude") as raised:
        Config(method="magnitud")
    assert raised.value.as_typed().startswith("--method is 'magnitud'; expected one of diffprune")


def test_a_short_run_has_faster_gates_and_any_other_is_the_recipe() -> None:
    for dataset, recipe in RECIPES.items():
        for epochs in (recipe.epochs, 2 * recipe.epochs):
            for method in METHODS:
                config = Config.recipe(dataset, epochs=epochs, method=method)
                assert config.gate_lr == recipe.gate_lr
    rates = [Config.recipe("digits", epochs=epochs).gate_lr for epochs in (2, 3, 12)]
    assert rates == pytest.approx([1.5 * 2 / 12, 1.5 * 2 / 18, 1.5 * 2 / 72])
    assert Config.recipe("digits", epochs=12, gate_lr=0.02).gate_lr == 0.02
    assert Config.recipe("digits", epochs=12).changes() == {"epochs": 12}


def test_the_options_of_a_configuration_give_it_again() -> None:
    changes = {"epochs": 7, "restart": False, "augment": True, "penalty": 0.3, "noise": "normal"}
    config = Config.recipe("digits", **changes)
    options = parser().parse_args(["train", *config.options()])
    assert Config.recipe(options.dataset, **{n: getattr(options, n) for n in changes}) == config


def test_a_recipe_may_lose_its_gates_or_change_its_method() -> None:
    for dataset in RECIPES:
        assert not Config.recipe(dataset, sparsity="dense").gated
        assert Config.recipe(dataset, method="magnitude", keep=0.5).keep == 0.5
    assert Config(noise="uniform", initial=0.4).noise == "uniform"


def test_a_recipe_of_an_unknown_dataset_is_refused() -> None:
    with pytest.raises(ConfigError, match="dataset is 'auto'; expected one of mnist, digits"):
        Config.recipe("auto")


def test_all_but_one_training_image_may_be_for_validation() -> None:
    assert Config(validation=MNIST_TRAINING_IMAGES - 1)
    with pytest.raises(ConfigError):
        Config(validation=MNIST_TRAINING_IMAGES)


def test_the_page_of_settings_is_up_to_date(docs_script: Callable[[str], ModuleType]) -> None:
    """To mend it: ``python docs/_ext/settings.py``."""
    script = docs_script("_ext/settings.py")
    assert script.PAGE.read_text(encoding="utf-8") == script.page()
