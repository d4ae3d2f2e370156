"""What a new process meets: no cache of kernels, none that it can write, others compiling too."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
USE = (
    "import numpy as np, minidiff as md\n"
    "x = md.Tensor(np.arange(-2, 3, dtype=np.float32), requires_grad=True)\n"
    "y = md.ops.relu(x); y.backward(np.ones(5, np.float32)); print(y.data.sum(), x.grad.sum())\n"
)


def start(environment: dict[str, str], code: str = USE) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | environment,
    )


def check(process: subprocess.Popen[str]) -> None:
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out, err) == (0, "3.0 2.0\n", "")


def test_processes_that_compile_at_the_same_time_do_not_harm_each_other(tmp_path: Path) -> None:
    environment = {"NUMBA_CACHE_DIR": str(tmp_path)}
    for process in [start(environment) for _ in range(3)]:
        check(process)
    kept = {path: path.read_bytes() for path in tmp_path.rglob("*.nbc")}
    assert kept
    check(start(environment))  # takes what is there
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.nbc")} == kept


def test_what_is_missing_from_the_cache_comes_back(tmp_path: Path) -> None:
    environment = {"NUMBA_CACHE_DIR": str(tmp_path)}
    check(start(environment))
    kept = {path.name for path in tmp_path.rglob("*.nbc")}
    assert kept
    for path in tmp_path.rglob("*.nbc"):
        path.unlink()
    check(start(environment))
    assert {path.name for path in tmp_path.rglob("*.nbc")} == kept


def test_kernels_work_where_nothing_can_be_kept() -> None:
    nowhere = (
        "from numba.core import caching\n"
        "def refuse(*arguments): return None\n"
        "for locator in caching.CacheImpl._locator_classes: locator.from_function = refuse\n"
    )
    check(start({}, nowhere + USE))
