"""What all tutorials share: sizes, data, and the checks of exercises."""

import importlib.util
import os
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from minidiff.data.datasets import Dataset, Split, load_dataset

# Without ipywidgets, a progress bar of a download is drawn as text, which needs no warning.
warnings.filterwarnings("ignore", message="IProgress not found")

# "small" takes fewer images and epochs, so that all tutorials run in minutes: that is for tests.
SMALL = os.environ.get("MINIDIFF_TUTORIALS", "") == "small"


def data(train: int | None = None) -> Dataset:
    """Return MNIST, or the digits of scikit-learn where MNIST cannot be had, and say which.

    Both have images of (1, 28, 28) bytes and ten classes.

    Parameters
    ----------
    train
        Take only the first so many training images; None takes all.
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
    """What tells a right answer from a wrong one: it raises AssertionError, with what is wrong."""

    test: Callable[[Any], None]
    hint: str


EXERCISES: dict[str, Exercise] = {}


def exercise(name: str, hint: str) -> Callable[[Callable[[Any], None]], Callable[[Any], None]]:
    """Register a function as the check of an exercise, such as "04.smoothstep" of tutorial 4."""

    def register(test: Callable[[Any], None]) -> Callable[[Any], None]:
        EXERCISES[name] = Exercise(test, hint)
        return test

    return register


def check(name: str, answer: Any) -> bool | None:
    """Say whether the answer to an exercise is right, and if not, what is wrong and a hint.

    It returns True if it is right and else None, of which notebooks show nothing.

    The checks of tutorial 4 are in ``exercises_04.py``: read them after you have tried.
    """
    module = f"exercises_{name.split('.')[0]}"
    if importlib.util.find_spec(module):
        importlib.import_module(module)
    if name not in EXERCISES:
        known = ", ".join(EXERCISES) or "01.step, 04.quintic and so on"
        raise ValueError(f"there is no exercise {name!r}; expected one of {known}.")
    exercise = EXERCISES[name]
    try:
        exercise.test(answer)
    except Exception as error:  # an answer may go wrong in any way
        wrong = str(error).splitlines()[0] if str(error) else type(error).__name__
        if not isinstance(error, AssertionError):
            wrong = f"It cannot be tried: {wrong}"
        print(f"{name}: not yet. {wrong}\nHint: {exercise.hint}")
        return None
    print(f"{name}: right.")
    return True
