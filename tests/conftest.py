"""What all tests share."""

import os

import pytest
from hypothesis import settings

# No deadline: the first example may compile a kernel. Derandomised: the suite says the same of the
# same code on every machine.
settings.register_profile("minidiff", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("minidiff")


@pytest.fixture(autouse=True)
def _no_display(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "MPLBACKEND", "Agg")
