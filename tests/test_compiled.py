"""Compiled loops: a cache that may be damaged, and settings of the process that users choose."""

import importlib.util
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numba
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minidiff.engine import compiled

jit = pytest.mark.skipif(bool(numba.config.DISABLE_JIT), reason="nothing is compiled")
linux = pytest.mark.skipif(sys.platform != "linux", reason="a setting of glibc")


@pytest.fixture(scope="module")
def function(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A function in a file of its own, which Numba wants for its cache."""
    path = tmp_path_factory.mktemp("source") / "loops.py"
    path.write_text("def add_one(x):\n    return x + 1\n")
    spec = importlib.util.spec_from_file_location("loops", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.add_one


@pytest.fixture(scope="module")
def cached(function: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[Path, bytes]:
    """The files that Numba keeps of the function, in a directory of their own."""
    path = tmp_path_factory.mktemp("cache")
    assert call(function, path) == ("kept", [])
    files = {file: file.read_bytes() for file in path.rglob("*.nb?")}
    assert sorted(file.suffix for file in files) == [".nbc", ".nbi"]
    return files


def call(function: Any, cache: Path) -> tuple[str, list[str]]:
    """Call the function as a new process would; return whether it was loaded, and the warnings."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        patch.setattr(numba.config, "CACHE_DIR", str(cache))
        patch.setattr(compiled._Cache, "warned", False)
        kernel: Any = compiled.serial(function)
        assert kernel(1.5) == 2.5
    hit = sum(kernel.stats.cache_hits.values())
    return ("loaded" if hit else "kept"), [str(warning.message) for warning in found]


@jit
@given(data=st.data(), suffix=st.sampled_from([".nbc", ".nbi"]))
@settings(max_examples=40)
def test_a_damaged_cache_costs_time_and_one_warning(
    data: st.DataObject, suffix: str, function: Any, cached: dict[Path, bytes]
) -> None:
    (file,) = (file for file in cached if file.suffix == suffix)
    for path, content in cached.items():
        path.write_bytes(content)
    content = bytearray(cached[file])
    kind = data.draw(st.sampled_from(["emptied", "truncated", "garbage", "flipped", "zeros"]))
    place = data.draw(st.integers(0, len(content) - 1))
    if kind == "flipped":
        content[place] ^= 1 << data.draw(st.integers(0, 7))
    elif kind == "garbage":
        content[:] = data.draw(st.binary(min_size=1))
    elif kind == "zeros":
        content[place:] = bytes(len(content) - place)
    else:
        del content[0 if kind == "emptied" else place :]
    file.write_bytes(content)
    how, said = call(function, file.parents[1])
    assert len(said) <= 1
    assert all("cache of compiled kernels fails" in text for text in said)
    if kind in ("emptied", "truncated"):
        assert (how, len(said)) == ("kept", 1)
    assert call(function, file.parents[1]) == ("loaded", [])  # it is mended


@jit
@pytest.mark.parametrize("share", [0.2, 0.4, 0.6, 0.8])
def test_machine_code_that_is_altered_does_not_run(
    share: float, function: Any, cached: dict[Path, bytes]
) -> None:
    for file, content in cached.items():
        altered = bytearray(content)
        if file.suffix == ".nbc":
            altered[int(share * len(content))] ^= 1
        file.write_bytes(altered)
    how, said = call(function, file.parents[1])
    assert how == "kept"
    assert "a file is damaged" in said[0]


@jit
def test_a_cache_that_cannot_be_written_is_a_warning(
    function: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("numba.core.caching.IndexDataCacheFile._save_data", full)
    how, said = call(function, tmp_path)
    assert how == "kept"
    (text,) = said
    assert "No space left on device" in text
    assert "set NUMBA_CACHE_DIR" in text


@linux
def test_without_a_home_directory_nothing_is_written_where_it_runs(tmp_path: Path) -> None:
    work, source = tmp_path / "work", tmp_path / "loops.py"
    work.mkdir()
    source.write_text(
        "import os.path; expand = os.path.expanduser; os.path.expanduser = lambda path: path\n"
        "import numba.core.caching as caching\n"
        "caching.CacheImpl._locator_classes[:] = ["
        "c for c in caching.CacheImpl._locator_classes if 'InTree' not in c.__name__]\n"
        "from minidiff.engine.compiled import serial\n"
        "print(serial(lambda x: x + 1)(1))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "NUMBA_CACHE_DIR": ""}
    environment.pop("XDG_CACHE_HOME", None)
    words = [sys.executable, str(source)]
    done = subprocess.run(words, cwd=work, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "2\n")
    assert done.stderr.count("cache of compiled kernels fails") <= 1
    assert list(work.iterdir()) == []


# -- settings of the process -----------------------------------------------------------------------

SAY = """
import os, resource, minidiff, numba, numpy as np
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
before = faults()
for _ in range(50): np.empty(1 << 19, np.uint8).fill(1); np.empty(1 << 21, np.uint8).fill(1)
print(os.environ.get("GOMP_SPINCOUNT"), numba.config.CPU_FEATURES, faults() - before < 10_000)
"""


def say(**variables: str) -> list[str]:
    names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES")
    names += ("MALLOC_TRIM_THRESHOLD_",)  # Dask sets it
    environment = {name: text for name, text in os.environ.items() if name not in names}
    environment |= {"PYTHONPATH": str(Path(__file__).parents[1])} | variables
    done = subprocess.run(
        [sys.executable, "-c", SAY], capture_output=True, text=True, env=environment, check=True
    )
    return done.stdout.split()


@linux
def test_settings_that_a_user_has_chosen_stay() -> None:
    spin, _, kept = say()
    assert (spin, kept) == ("10000", "True")
    spin, features, kept = say(
        OMP_WAIT_POLICY="passive", NUMBA_CPU_FEATURES="+sse2", MALLOC_MMAP_THRESHOLD_="65536"
    )
    assert (spin, features, kept) == ("None", "+sse2", "False")
    spin, features, _ = say(GOMP_SPINCOUNT="7", NUMBA_CPU_NAME="nocona")
    assert (spin, features) == ("7", "None")
    assert say(GLIBC_TUNABLES="glibc.malloc.mmap_threshold=65536")[2] == "False"
