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
# same code on every machine. NUMBA_DISABLE_JIT=1 runs kernels as Python, so fewer examples do.
settings.register_profile(
    "minidiff",
    deadline=None,
    derandomize=True,
    print_blob=True,
    max_examples=15 if numba.config.DISABLE_JIT else 40,
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
