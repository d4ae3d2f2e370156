"""MNIST: where its files are looked for, how they are checked, and what a download leaves."""

import gc
import gzip
import hashlib
import os
import socket
import struct
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from minidiff.data import mnist
from minidiff.data.datasets import Dataset
from minidiff.data.mnist import DataError, MissingDataError, load_mnist

pooch = pytest.importorskip("pooch")
# Pooch leaves the response of a failed request to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")

ARRAYS = [
    np.random.default_rng(0).integers(256, size=(40, 28, 28), dtype=np.uint8),
    np.arange(40, dtype=np.uint8),
    np.random.default_rng(1).integers(256, size=(10, 28, 28), dtype=np.uint8),
    np.arange(10, dtype=np.uint8),
]
NAMES = [f"{name}.gz" for name in mnist.SHA256]


def idx(array: np.ndarray) -> bytes:
    header = struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return gzip.compress(header + array.tobytes(), mtime=0)


FILES = {name: idx(array) for name, array in zip(NAMES, ARRAYS, strict=True)}


@pytest.fixture(autouse=True)
def _small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let FILES pass for those of MNIST."""
    for name, content in FILES.items():
        digest = hashlib.sha256(content).hexdigest()
        monkeypatch.setitem(mnist.SHA256, name.removesuffix(".gz"), digest)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Know no host, as on a machine without a network, but this machine."""
    look_up = socket.getaddrinfo

    def fail(host, *args, **options):
        if host == "127.0.0.1":
            return look_up(host, *args, **options)
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    monkeypatch.setenv("NO_PROXY", "*")


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Return where the cache of MNIST is, in a directory that does not exist yet."""
    monkeypatch.setattr(pooch, "os_cache", lambda project: tmp_path / "cache" / project)
    monkeypatch.delenv("MINIDIFF_DATA_DIR", raising=False)
    return tmp_path / "cache" / "minidiff" / "mnist"


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Return where MNIST is below MINIDIFF_DATA_DIR, which does not exist yet either."""
    monkeypatch.setenv("MINIDIFF_DATA_DIR", str(tmp_path / "own"))
    return tmp_path / "own" / "mnist"


class Server(ThreadingHTTPServer):
    """Serves ``files``, as two mirrors, and keeps what was ``asked`` for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = {f"/{mirror}/{name}": FILES[name] for mirror in (1, 2) for name in NAMES}
        self.asked: list[str] = []
        self.lengths: dict[str, int] = {}  # where the server does not send what it announces


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_HEAD(self) -> None:
        self.send_response(403)  # as directories of real mirrors do
        self.end_headers()

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        content = self.server.files.get(self.path, b"")
        self.send_response(200 if content else 404)
        length = self.server.lengths.get(self.path, len(content))
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with Server() as server:
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(mnist, "MIRRORS", (f"{address}/1/", f"{address}/2/"))
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()
    gc.collect()  # while the warning is ignored


def place(directory: Path, files: dict[str, bytes]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (directory / name).write_bytes(content)


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.glob("*")}


def check(arrays: list[np.ndarray]) -> None:
    for found, expected in zip(arrays, ARRAYS, strict=True):
        np.testing.assert_array_equal(found, expected)
        assert found.dtype == np.uint8
        assert found.flags.writeable


# ------------------------------------------------------------------------------- files on disk


def test_own_files_are_read_without_a_cache_or_any_extra(own, cache, monkeypatch):
    place(own, FILES)
    monkeypatch.setitem(sys.modules, "pooch", None)
    arrays, source = load_mnist(offline=False)
    check(arrays)
    assert source == "$MINIDIFF_DATA_DIR/mnist"
    assert not cache.exists()


def test_the_cache_is_read_and_a_useless_variable_is_named(own, cache):
    place(cache, FILES)
    arrays, source = load_mnist(offline=False)
    check(arrays)
    assert source == f"the cache directory (MINIDIFF_DATA_DIR: {own} lacks all four files)"
    assert not own.exists()


def test_a_home_directory_that_does_not_exist_is_named(monkeypatch):
    monkeypatch.setenv("MINIDIFF_DATA_DIR", "~nosuch/x")
    with pytest.raises(MissingDataError, match="MINIDIFF_DATA_DIR: ~nosuch/x/mnist lacks all"):
        load_mnist(offline=True)


def test_without_a_home_directory_nothing_is_written_where_it_runs(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pooch, "os_cache", lambda project: Path("~/.cache") / project)
    with pytest.raises(MissingDataError, match=r"no home directory .* set MINIDIFF"):
        load_mnist(offline=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damaged", ["own", "cache"])
@pytest.mark.parametrize("others", [FILES, {}], ids=["among all", "alone"])
def test_an_altered_file_is_never_passed_over(damaged, others, own, cache, server):
    directory = own if damaged == "own" else cache
    place(cache, FILES)  # good copies in the cache do not excuse one in the user's directory
    altered = others | {NAMES[3]: b"something else"}
    for path in directory.glob("*"):
        path.unlink()
    place(directory, altered)
    with pytest.raises(DataError, match=r"SHA-256 is .* expected .* replace it") as error:
        load_mnist(offline=False)
    assert not isinstance(error.value, MissingDataError)
    digest = hashlib.sha256(b"something else").hexdigest()
    for part in (str(directory / NAMES[3]), digest, mnist.SHA256[NAMES[3].removesuffix(".gz")]):
        assert part in str(error.value)
    assert contents(directory) == altered
    assert server.asked == []


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no FIFOs")
@pytest.mark.parametrize("kind", ["a FIFO", "a directory", "a device"])
def test_nothing_but_regular_files_is_read(kind, own, server):
    place(own, FILES)
    path = own / NAMES[1]
    path.unlink()
    make = {"a FIFO": os.mkfifo, "a directory": Path.mkdir}
    make.get(kind, lambda path: path.symlink_to(os.devnull))(path)
    with pytest.raises(DataError, match=f"{path}: it is {kind}; expected a regular file"):
        load_mnist(offline=False)
    assert server.asked == []


def test_a_directory_of_an_unknown_user_is_missing_data(monkeypatch):
    monkeypatch.setenv("MINIDIFF_DATA_DIR", "~nosuchuser/x")
    with pytest.raises(MissingDataError, match="~nosuchuser/x/mnist lacks all four files"):
        load_mnist(offline=True)


# ------------------------------------------------------------------------------------ download


def test_a_download_completes_the_cache_and_nothing_else(own, cache, server, capfd):
    place(cache, {NAMES[0]: FILES[NAMES[0]]})
    place(own, {NAMES[3]: FILES[NAMES[3]]})
    arrays, source = load_mnist(offline=False)
    check(arrays)
    assert source.startswith("a download into the cache directory (MINIDIFF_DATA_DIR: ")
    assert source.endswith(f"lacks {', '.join(NAMES[:3])})")
    assert contents(cache) == FILES
    assert contents(own) == {NAMES[3]: FILES[NAMES[3]]}
    assert server.asked == [f"/1/{name}" for name in NAMES[1:]]
    assert "%|" not in capfd.readouterr().err  # a progress bar is only for terminals


@pytest.mark.parametrize("failure", ["absent", "altered", "cut off"])
def test_the_second_mirror_completes_what_the_first_lacks(failure, cache, server):
    path = f"/1/{NAMES[2]}"
    if failure == "cut off":
        server.lengths[path] = len(FILES[NAMES[2]]) + 1
    elif failure == "altered":
        server.files[path] = b"<html>please log in</html>"
    else:
        del server.files[path]
    check(load_mnist(offline=False)[0])
    assert contents(cache) == FILES
    first = [f"/1/{name}" for name in NAMES[:3]]
    assert server.asked == [*first, f"/2/{NAMES[2]}", f"/2/{NAMES[3]}"]


def test_a_failed_download_leaves_nothing(cache, server):
    server.files = {path: content[:-5] for path, content in server.files.items()}
    with pytest.raises(MissingDataError, match="hash") as error:
        load_mnist(offline=False)
    assert all(mirror in str(error.value) for mirror in mnist.MIRRORS)
    assert contents(cache) == {}


def test_a_cache_that_cannot_be_written_is_missing_data(cache, server):
    cache.parent.parent.write_bytes(b"a file in the way")
    with pytest.raises(MissingDataError, match=r"cache/minidiff.*: Not a directory"):
        load_mnist(offline=False)


def test_a_silent_network_is_given_up_soon(monkeypatch):
    over = threading.Event()

    def wait(*args, **options):
        over.wait(60)
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", wait)
    monkeypatch.setattr(mnist, "ANSWER_SECONDS", 0.05)
    with pytest.raises(MissingDataError, match=r"no answer within 0\.05 s") as error:
        load_mnist(offline=False)
    over.set()
    assert all(mirror in str(error.value) for mirror in mnist.MIRRORS)


@pytest.mark.parametrize("offline", [True, False])
def test_missing_files_are_named_with_places_and_mend(offline, own, cache):
    place(cache, {name: FILES[name] for name in NAMES[:2]})
    with pytest.raises(MissingDataError) as error:
        load_mnist(offline=offline)
    message = str(error.value)
    assert f"{own} lacks all four files" in message
    assert f"{cache} lacks {NAMES[2]}, {NAMES[3]}" in message
    assert f"put the files {', '.join(NAMES)} into D/mnist and set MINIDIFF_DATA_DIR=D" in message
    assert ("nothing was downloaded" in message) is offline
    assert (": Name or service not known" in message) is not offline


@pytest.mark.parametrize("package", ["pooch", "tqdm"])
def test_packages_that_a_download_needs_are_named(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"{package} could .* pip install -e '.\[train\]'"):
        load_mnist(offline=False)


# ----------------------------------------------------------------------------------- real files


@pytest.mark.mnist
def test_the_real_files_hold_mnist(mnist: Dataset):
    assert (mnist.name, mnist.train.images.shape) == ("mnist", (55_000, 1, 28, 28))
    assert (len(mnist.validation), len(mnist.test)) == (5_000, 10_000)
    assert mnist.mean == pytest.approx(0.1307, abs=2e-4)
    assert mnist.std == pytest.approx(0.3081, abs=2e-4)
    np.testing.assert_array_equal(mnist.train.labels[:5], [5, 0, 4, 1, 9])
    np.testing.assert_array_equal(np.unique(mnist.test.labels), np.arange(10))
