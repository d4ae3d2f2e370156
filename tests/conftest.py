"""What all tests share."""

import importlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numba
import pytest
from hypothesis import settings

from minidiff.data.datasets import Dataset, load_dataset
from minidiff.data.mnist import MissingDataError

# No deadline: the first example may compile a kernel. Derandomised: the suite says the same of the
# same code on every machine. And 60 examples in place of 100, so that it takes minutes.
settings.register_profile(
    "minidiff", deadline=None, derandomize=True, print_blob=True, max_examples=60
)
settings.load_profile("minidiff")


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """Leave the number of threads as it was, whatever ``--threads`` a test has given."""
    before = numba.get_num_threads()
    yield
    numba.set_num_threads(before)


@pytest.fixture(autouse=True)
def _no_display(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "MPLBACKEND", "Agg")


@pytest.fixture
def docs_script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Import a script below ``docs/`` from where it stands."""

    def load(path: str) -> ModuleType:
        file = Path(__file__).parents[1] / "docs" / path
        if not file.exists():
            pytest.skip(f"docs/{path} is not here")
        monkeypatch.syspath_prepend(file.parent)
        return importlib.import_module(file.stem)

    return load


@pytest.fixture(scope="session")
def mnist() -> Dataset:
    """Return the real MNIST, or skip the test on machines without it; mark users with ``mnist``."""
    try:
        return load_dataset("mnist", offline=True)
    except (ImportError, MissingDataError) as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def run_words() -> list[str]:
    """Arguments of a short run in which all has a state: noise, dropout, augmentation, average."""
    text = (
        "train --dataset digits --epochs 4 --batch-size 60 --lr 0.02 --augment --gate-start 0.1 "
        "--gate-lr 0.1 --initial 0.4 --lambda 0.05 --noise normal --sigma 0.3 --swa-lr 0.01 "
        "--dropout 0.1"
    )
    return text.split()


@pytest.fixture(scope="session")
def trained(run_words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a finished run that has pruned; tests copy it before they change it."""
    return _train(tmp_path_factory, run_words)


@pytest.fixture(scope="session")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a finished run without gates."""
    words = ["train", "--dataset", "digits", "--epochs", "1", "--lr", "0.02"]
    return _train(tmp_path_factory, [*words, "--sparsity", "dense"])


def _train(tmp_path_factory: pytest.TempPathFactory, arguments: list[str]) -> Path:
    from minidiff.cli.parser import main

    for needed in ("safetensors", "sklearn"):
        pytest.importorskip(needed)
    path = tmp_path_factory.mktemp("runs") / "run"
    assert main([*arguments, "--out", str(path)]) == 0
    return path
