"""Shared by all tutorials: sizes, data, and the checks of exercises."""

import importlib.util
import os
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from minidiff.data.datasets import Dataset, Split, load_dataset

# Without ipywidgets a download draws its progress bar as text, which is no reason to warn.
warnings.filterwarnings("ignore", message="IProgress not found")

# For CI: with "small", tutorials take fewer images and epochs, and run in minutes.
SMALL = os.environ.get("MINIDIFF_TUTORIALS", "") == "small"


def data(train: int | None = None) -> Dataset:
    """Return MNIST, or the digits of scikit-learn if MNIST is not available, and print which.

    Both have images of (1, 28, 28) bytes and ten classes.

    Parameters
    ----------
    train
        The number of training images; None for all.
    """
    dataset = load_dataset("auto")
    print(dataset.source)
    if train is not None and train < len(dataset.train):
        few = Split(dataset.train.images[:train], dataset.train.labels[:train])
        dataset = replace(dataset, train=few)
    return dataset


def scratch() -> Path:
    """Return a new empty directory for files."""
    return Path(tempfile.mkdtemp(prefix="minidiff-"))


# -- exercises -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Exercise:
    """The test of an answer, which raises AssertionError if the answer is wrong, and a hint."""

    test: Callable[[Any], None]
    hint: str


EXERCISES: dict[str, Exercise] = {}


def exercise(name: str, hint: str) -> Callable[[Callable[[Any], None]], Callable[[Any], None]]:
    """Register a function as the test of an exercise, such as "04.quintic" of tutorial 4."""

    def register(test: Callable[[Any], None]) -> Callable[[Any], None]:
        EXERCISES[name] = Exercise(test, hint)
        return test

    return register


def check(name: str, answer: Any) -> bool | None:
    """Print whether the answer to an exercise is right; if not, print what is wrong and a hint.

    Returns True for a right answer and None for a wrong one, as notebooks do not show None.

    The tests of tutorial 4 are in ``exercises_04.py``: read them after you have tried.
    """
    module = f"exercises_{name.split('.')[0]}"
    if importlib.util.find_spec(module):
        importlib.import_module(module)
    if name not in EXERCISES:
        known = ", ".join(EXERCISES) or "01.step, 04.quintic and so on"
        raise ValueError(f"name is {name!r}, which is no exercise; expected one of {known}.")
    exercise = EXERCISES[name]
    try:
        exercise.test(answer)
    except Exception as error:  # an answer may raise anything
        wrong = (str(error).strip() or "no message.").splitlines()[0]
        if not isinstance(error, AssertionError):
            wrong = f"it raised {type(error).__name__}: {wrong}"
        print(f"{name}: not yet. {wrong[0].upper()}{wrong[1:]}\nHint: {exercise.hint}")
        return None
    print(f"{name}: right.")
    return True
