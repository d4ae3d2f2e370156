"""Data: the IDX reader against malformed files, where MNIST is looked for, and batches."""

import gzip
import hashlib
import os
import socket
import struct
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from minidiff.data import datasets as data
from minidiff.data.datasets import (
    DataError,
    Dataset,
    MissingDataError,
    Split,
    batches,
    load_dataset,
    read_idx,
)

fuzz = settings(deadline=None, max_examples=100)
arrays = hnp.arrays(np.uint8, hnp.array_shapes(max_dims=4, max_side=6))
seeds = st.integers(0, 2**32 - 1)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail every look-up of a host, as on a machine without a network."""

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a path to write to again and again, as Hypothesis does."""
    return tmp_path_factory.mktemp("idx") / "file"


# ---------------------------------------------------------------------------------- IDX files


def header(*shape: int, code: int = 8) -> bytes:
    return bytes([0, 0, code, len(shape)]) + struct.pack(f">{len(shape)}I", *shape)


def encode(array: NDArray[np.uint8]) -> bytes:
    return header(*array.shape) + array.tobytes()


def pack(content: bytes) -> bytes:
    return gzip.compress(content, mtime=0)  # the same bytes at any time of day


def read_bytes(path: Path, content: bytes, rank: int | None = None) -> NDArray[np.uint8]:
    path.write_bytes(content)
    return read_idx(path, rank=rank)


@fuzz
@given(arrays, st.booleans())
def test_idx_round_trip(scratch: Path, array: NDArray[np.uint8], compress: bool) -> None:
    content = encode(array)
    found = read_bytes(scratch, pack(content) if compress else content, array.ndim)
    assert found.dtype == np.uint8
    assert found.flags.writeable
    np.testing.assert_array_equal(found, array)


@fuzz
@given(arrays, st.booleans(), st.data())
def test_idx_truncated_anywhere(
    scratch: Path, array: NDArray[np.uint8], compress: bool, draw: st.DataObject
) -> None:
    content = pack(encode(array)) if compress else encode(array)
    end = draw.draw(st.integers(0, len(content) - 1))
    with pytest.raises(DataError, match="file"):
        read_bytes(scratch, content[:end])


@fuzz
@given(arrays, st.data())
def test_idx_header_bit_flip(scratch: Path, array: NDArray[np.uint8], draw: st.DataObject) -> None:
    content = bytearray(encode(array))
    bit = draw.draw(st.integers(0, 8 * (4 + 4 * array.ndim) - 1))
    content[bit // 8] ^= 1 << bit % 8
    with pytest.raises(DataError):
        read_bytes(scratch, bytes(content))


@fuzz
@given(arrays, st.data())
def test_gzip_bit_flip_never_gives_other_data(
    scratch: Path, array: NDArray[np.uint8], draw: st.DataObject
) -> None:
    content = bytearray(pack(encode(array)))
    bit = draw.draw(st.integers(0, 8 * len(content) - 1))
    content[bit // 8] ^= 1 << bit % 8
    try:
        found = read_bytes(scratch, bytes(content))
    except DataError:
        return
    np.testing.assert_array_equal(found, array)  # a flip in the time stamp, say, does no harm


@fuzz
@given(st.binary(max_size=64))
def test_idx_arbitrary_bytes(scratch: Path, content: bytes) -> None:
    try:
        found = read_bytes(scratch, content)
    except DataError:
        return
    assert encode(found) == content


@fuzz
@given(arrays, st.binary(min_size=1, max_size=20), st.booleans())
def test_idx_trailing_bytes(
    scratch: Path, array: NDArray[np.uint8], extra: bytes, compress: bool
) -> None:
    content = encode(array) + extra
    with pytest.raises(DataError, match="holds more bytes"):
        read_bytes(scratch, pack(content) if compress else content)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds 0 bytes"),
        (b"<html>not found", "3c 68 74 6d; expected an IDX file"),
        (header(2, code=0x0D) + bytes(8), "type code 0x0d; expected 0x08"),
        (header(2, 2) + bytes(4), "rank 2; expected rank 3"),
        (header(1, 2, 3)[:9], "header ends after 9 bytes; rank 3 needs 16"),
        (header(3, 0, 3), r"shape \(3, 0, 3\), 0 bytes; expected 1 to"),
        (header(2**32 - 1, 2**32 - 1, 2**32 - 1), "expected 1 to 1073741824"),
        (header(2, 2, 2) + bytes(7), "holds only 7 bytes .* exactly 8"),
        (pack(header(2, 2, 2) + bytes(8))[:-1], "broken gzip data"),
        (pack(header(2, 2, 2) + bytes(8))[:-8] + bytes(8), "broken gzip data .*CRC"),
        (pack(header(2, 2, 2) + bytes(8)) + b"garbage", "broken gzip data"),
        (b"\x1f\x8b\x08\x00garbage after the magic", "broken gzip data"),
    ],
)
def test_idx_messages(scratch: Path, content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read_bytes(scratch, content, rank=3)
    assert str(scratch) in str(caught.value)


@pytest.mark.parametrize("rank", [0, 33, 255])
def test_idx_rank_out_of_bounds(scratch: Path, rank: int) -> None:
    with pytest.raises(DataError, match=f"rank {rank}; expected 1 to 32"):
        read_bytes(scratch, bytes([0, 0, 8, rank]) + bytes(4 * rank))


def test_idx_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing-here"):
        read_idx(tmp_path / "nothing-here")


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(header(2**30) + bytes(10), id="forged header"),
        pytest.param(pack(header(2**30) + bytes(10)), id="forged header in gzip"),
        pytest.param(pack(header(10) + bytes(2**24)), id="gzip bomb"),
    ],
)
def test_idx_memory_is_bounded(scratch: Path, content: bytes) -> None:
    scratch.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(DataError):
            read_idx(scratch)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * data.READ_BYTES


# ---------------------------------------------------------------------------- splits and datasets


def make_split(count: int = 4, dtype: Any = np.uint8, **changes: Any) -> Split:
    arrays: dict[str, Any] = {
        "images": np.ones((count, 1, 3, 2), dtype=dtype),
        "labels": np.arange(count, dtype=np.int64),
    }
    return Split(**(arrays | changes))


def poisoned(value: float) -> NDArray[np.float32]:
    images = np.zeros((4, 1, 3, 2), dtype=np.float32)
    images[2, 0, 1, 1] = value
    images[3] = value
    return images


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": np.zeros((4, 3, 2), np.uint8)}, r"\(4, 3, 2\); expected \(N, C, H, W\)"),
        ({"labels": np.zeros((4, 1), np.int64)}, r"\(4, 1\); expected \(N,\)"),
        ({"labels": np.zeros(5, np.int64)}, r"\(4, 1, 3, 2\) and labels of shape \(5,\)"),
        ({"images": np.zeros((4, 1, 0, 2), np.uint8)}, "at least one pixel"),
        ({"images": np.zeros((4, 1, 3, 2))}, "float64; expected uint8"),
        ({"labels": np.zeros(4, np.int32)}, "int32; expected int64"),
        ({"labels": np.array([0, 1, -1, -2])}, r"labels\[2\] is -1; expected 0 or more"),
        ({"images": poisoned(np.nan)}, r"images\[2, 0, 1, 1\] is nan; expected within 0..1"),
        ({"images": poisoned(-np.inf)}, r"images\[2, 0, 1, 1\] is -inf"),
        ({"images": poisoned(1.5)}, r"images\[2, 0, 1, 1\] is 1.5"),
    ],
)
def test_split_rejects(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        make_split(**changes)


def test_split_rejects_empty() -> None:
    with pytest.raises(DataError, match=r"\(0, 1, 3, 2\)"):
        make_split(0)


def test_dataset_rejects() -> None:
    good = make_split()
    with pytest.raises(DataError, match=r"test labels\[3\] is 3; expected 0..2 for 3 classes"):
        Dataset("n", "s", make_split(3), make_split(2), good, classes=3)
    with pytest.raises(DataError, match=r"validation images are \(1, 3, 2\) float32; .* uint8"):
        Dataset("n", "s", good, make_split(dtype=np.float32), good)
    with pytest.raises(DataError, match="classes is 1"):
        Dataset("n", "s", make_split(1), make_split(1), make_split(1), classes=1)


@fuzz
@given(hnp.arrays(np.uint8, (3, 1, 4, 5)))
def test_mean_and_std(images: NDArray[np.uint8]) -> None:
    labels = np.arange(3)
    as_float = (images / 255).astype(np.float32)
    for split in (Split(images, labels), Split(as_float, labels)):
        dataset = Dataset("n", "s", split, split, split)
        assert dataset.mean == pytest.approx((images / 255).mean(), abs=1e-7)
        assert dataset.std == pytest.approx((images / 255).std(), abs=1e-6)


# ----------------------------------------------------------------------------------------- loading


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Move the cache into an empty directory, unset the variable, return where MNIST goes."""
    pooch = pytest.importorskip("pooch")
    monkeypatch.setattr(pooch, "os_cache", lambda project: tmp_path / "cache" / project)
    monkeypatch.delenv("MINIDIFF_DATA_DIR", raising=False)
    return tmp_path / "cache" / "minidiff" / "mnist"


@pytest.fixture
def originals(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Return four small files that pass for MNIST's, with 40 training and 10 test images."""
    rng = np.random.default_rng(0)
    files = {}
    for name in data.MNIST_HASHES:
        count = 40 if name.startswith("train") else 10
        if "images" in name:
            array = rng.integers(256, size=(count, 28, 28), dtype=np.uint8)
        else:
            array = np.arange(count, dtype=np.uint8) % 10
        files[name] = pack(encode(array))
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    monkeypatch.setattr(data, "MNIST_HASHES", hashes)
    return files


def place(directory: Path, files: dict[str, bytes]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (directory / name).write_bytes(content)


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


Serve = Callable[[str], bytes]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Callable[[Serve], list[str]]:
    """Return a function that puts ``answer(url)`` in place of the network and logs the URLs."""

    def install(answer: Serve) -> list[str]:
        asked: list[str] = []

        class Downloader:
            def __init__(self, **options: Any) -> None:
                pass

            def __call__(self, url: str, file: Any, pooch: Any, check_only: bool = False) -> bool:
                if not check_only:
                    asked.append(url)
                    Path(file).write_bytes(answer(url))
                return True

        monkeypatch.setattr(pytest.importorskip("pooch"), "HTTPDownloader", Downloader)
        return asked

    return install


def test_mnist_from_data_dir(
    cache: Path, originals: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place(tmp_path / "mnist", originals)
    monkeypatch.setenv("MINIDIFF_DATA_DIR", str(tmp_path))
    dataset = load_dataset(validation=7)

    images = read_idx(tmp_path / "mnist" / "train-images-idx3-ubyte.gz")
    np.testing.assert_array_equal(dataset.train.images[:, 0], images[:33])
    np.testing.assert_array_equal(dataset.validation.images[:, 0], images[33:])
    np.testing.assert_array_equal(dataset.validation.labels, np.arange(33, 40) % 10)
    assert (dataset.name, len(dataset.test)) == ("mnist", 10)
    assert "$MINIDIFF_DATA_DIR/mnist" in dataset.source
    assert not cache.exists()


def test_mnist_from_cache_tells_of_empty_data_dir(
    cache: Path, originals: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place(cache, originals)
    assert load_dataset(validation=7).source == "MNIST, from the cache directory."
    elsewhere = tmp_path / "elsewhere"
    monkeypatch.setenv("MINIDIFF_DATA_DIR", str(elsewhere))
    note = f"{elsewhere / 'mnist'} (from MINIDIFF_DATA_DIR) lacks"
    assert note in load_dataset(validation=7).source
    assert not elsewhere.exists()


@pytest.mark.parametrize("name", ["auto", "mnist"])
@pytest.mark.parametrize("place_name", ["variable", "cache"])
@pytest.mark.parametrize("others", [True, False], ids=["among all", "alone"])
def test_altered_file_is_an_error(
    cache: Path,
    originals: dict[str, bytes],
    serve: Callable[[Serve], list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    place_name: str,
    others: bool,
) -> None:
    asked = serve(lambda url: originals[url.rsplit("/", 1)[1]])
    directory = cache if place_name == "cache" else tmp_path / "mnist"
    altered = "t10k-labels-idx1-ubyte.gz"
    files = (originals if others else {}) | {altered: b"something else"}
    place(directory, files)
    if place_name == "variable":
        place(cache, originals)  # a good copy further down the line does not excuse it
        monkeypatch.setenv("MINIDIFF_DATA_DIR", str(tmp_path))
    with pytest.raises(DataError, match=r"SHA-256 is .* expected .* replace it") as caught:
        load_dataset(name)
    message = str(caught.value)
    assert str(directory / altered) in message
    assert hashlib.sha256(b"something else").hexdigest() in message
    assert data.MNIST_HASHES[altered] in message
    assert contents(directory) == files
    assert not asked


def test_malformed_file_is_an_error_even_in_auto(
    cache: Path, originals: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "train-images-idx3-ubyte.gz"
    broken = originals[name][:-1]
    place(cache, originals | {name: broken})
    monkeypatch.setitem(data.MNIST_HASHES, name, hashlib.sha256(broken).hexdigest())
    with pytest.raises(DataError, match="broken gzip"):
        load_dataset()


def test_download_fills_the_cache_only(
    cache: Path,
    originals: dict[str, bytes],
    serve: Callable[[Serve], list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = list(originals)
    first, second = data.MNIST_MIRRORS

    def answer(url: str) -> bytes:
        if url == first + names[1]:
            raise ConnectionError("gone away")
        if url == first + names[2]:
            return b"<html>please log in</html>"
        return originals[url.rsplit("/", 1)[1]]

    asked = serve(answer)
    place(cache, {names[0]: originals[names[0]]})
    user = tmp_path / "user"
    place(user / "mnist", {names[3]: originals[names[3]]})
    monkeypatch.setenv("MINIDIFF_DATA_DIR", str(user))

    dataset = load_dataset("mnist", validation=7)
    assert dataset.source.startswith("MNIST, downloaded into the cache")
    assert "MINIDIFF_DATA_DIR) lacks train-images-idx3-ubyte.gz, train-labels" in dataset.source
    assert contents(cache) == originals
    assert list(contents(user / "mnist")) == [names[3]]
    assert asked == [
        first + names[1],
        second + names[1],
        first + names[2],
        second + names[2],
        first + names[3],
    ]


def test_partial_download_leaves_nothing(
    cache: Path, originals: dict[str, bytes], serve: Callable[[Serve], list[str]]
) -> None:
    serve(lambda url: originals[url.rsplit("/", 1)[1]][:-5])
    with pytest.raises(MissingDataError, match=r"the download failed: .*hash") as caught:
        load_dataset("mnist")
    assert all(mirror in str(caught.value) for mirror in data.MNIST_MIRRORS)
    assert contents(cache) == {}


def test_interrupted_download_leaves_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Downloader:
        def __init__(self, **options: Any) -> None:
            pass

        def __call__(self, url: str, file: Any, pooch: Any, check_only: bool = False) -> bool:
            if check_only:
                return True
            Path(file).write_bytes(b"the first half")
            raise KeyboardInterrupt

    monkeypatch.setattr(pytest.importorskip("pooch"), "HTTPDownloader", Downloader)
    with pytest.raises(KeyboardInterrupt):
        load_dataset()
    assert contents(cache) == {}


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make the network neither answer nor fail."""
    over = threading.Event()

    class Downloader:
        def __init__(self, **options: Any) -> None:
            pass

        def __call__(self, *args: Any, **options: Any) -> bool:
            return over.wait(10)

    monkeypatch.setattr(pytest.importorskip("pooch"), "HTTPDownloader", Downloader)
    monkeypatch.setattr(data, "PROBE_SECONDS", 0.02)
    yield
    over.set()


@pytest.mark.usefixtures("silent")
def test_silent_network_is_given_up_soon(cache: Path) -> None:
    with pytest.raises(MissingDataError, match=r"no answer within 0\.02 s"):
        load_dataset("mnist")


def test_server_without_the_file(cache: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not offer"):
        data._probe(lambda *args, check_only: False, "https://example.invalid/file")


@pytest.mark.parametrize("offline", [True, False])
def test_mnist_not_to_be_had(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offline: bool
) -> None:
    monkeypatch.setenv("MINIDIFF_DATA_DIR", str(tmp_path))
    with pytest.raises(MissingDataError) as caught:
        load_dataset("mnist", offline=offline)
    message = str(caught.value)
    for part in (str(tmp_path / "mnist"), str(cache), *data.MNIST_HASHES):
        assert part in message
    assert ("ruled out (offline)" in message) is offline
    assert ("Name or service not known" in message) is not offline
    assert not any(cache.glob("*"))


def test_auto_falls_back_to_digits_and_says_so(cache: Path) -> None:
    pytest.importorskip("sklearn")
    dataset = load_dataset()
    assert dataset.name == "digits"
    for part in ("stands in for MNIST", "Name or service not known", "MINIDIFF_DATA_DIR=D"):
        assert part in dataset.source
    for part in (str(cache), *data.MNIST_HASHES):
        assert part in dataset.source


def test_digits() -> None:
    sklearn = pytest.importorskip("sklearn.datasets")
    dataset = load_dataset("digits")
    splits = (dataset.train, dataset.validation, dataset.test)
    assert [len(split) for split in splits] == [1197, 300, 300]
    images = np.concatenate([split.images for split in splits])
    assert images.dtype == np.uint8
    assert images.shape == (1797, 1, 28, 28)
    assert images.max() > 240
    assert not images[:, :, :4].any()
    assert not images[..., 24:].any()

    # Disjoint and complete: every original, in its enlarged form, is there once.
    labels = np.concatenate([split.labels for split in splits])
    assert len(np.unique(images.reshape(1797, -1), axis=0)) == 1797
    bunch = sklearn.load_digits()
    np.testing.assert_array_equal(np.bincount(labels), np.bincount(bunch.target))
    # Each image is that of its label: bilinear enlargement keeps the means of half an image.
    order = np.random.default_rng(1797).permutation(1797)
    np.testing.assert_array_equal(labels, bunch.target[order])
    whole = images[:, 0, 4:24, 4:24].reshape(1797, 2, 10, 2, 10).mean(axis=(2, 4))
    original = bunch.images[order].reshape(1797, 2, 4, 2, 4).mean(axis=(2, 4)) * (255 / 16)
    assert np.corrcoef(whole.ravel(), original.ravel())[0, 1] > 0.99
    turned = original.transpose(0, 2, 1)
    assert abs(whole - original).mean() < 0.2 * abs(whole - turned).mean()
    ink = bunch.images.sum() * (255 / 16) * (20 / 8) ** 2  # enlargement spreads ink evenly
    assert images.sum() == pytest.approx(ink, rel=0.05)

    again = load_dataset("digits", validation=100)
    np.testing.assert_array_equal(again.test.images, dataset.test.images)


def test_missing_extras_are_named(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"scikit-learn could .* pip install -e '.\[train\]'"):
        load_dataset("digits")
    with pytest.raises(MissingDataError, match=r"MNIST was not .* scikit-learn could not"):
        load_dataset()
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(MissingDataError, match=r"pooch could .* pip install -e '.\[train\]'"):
        load_dataset("mnist")


def test_unknown_dataset() -> None:
    with pytest.raises(ValueError, match="'cifar' is unknown; expected one of auto, mnist, digits"):
        load_dataset("cifar")


@pytest.mark.parametrize("validation", [-1, 60_000, 2.5, True, "5"])
@pytest.mark.parametrize("name", data.DATASETS)
def test_validation_rejected(name: str, validation: Any) -> None:
    with pytest.raises(ValueError, match=r"expected an integer in 0\.\.59999"):
        load_dataset(name, validation=validation)


def test_nothing_validation_is_more_to_train_on() -> None:
    some, everything = load_dataset("digits"), load_dataset("digits", validation=0)
    assert everything.validation is None
    assert some.validation is not None
    images = np.concatenate([some.train.images, some.validation.images])
    np.testing.assert_array_equal(everything.train.images, images)
    np.testing.assert_array_equal(everything.test.images, some.test.images)


@pytest.mark.mnist
def test_real_mnist() -> None:
    directory = os.environ.get("MINIDIFF_DATA_DIR")
    if not directory:
        pytest.skip("MINIDIFF_DATA_DIR is not set")
    if not all((Path(directory) / "mnist" / name).exists() for name in data.MNIST_HASHES):
        pytest.skip("MINIDIFF_DATA_DIR does not hold the MNIST files")
    dataset = load_dataset("mnist", offline=True)
    assert dataset.name == "mnist"
    assert dataset.train.images.shape == (55_000, 1, 28, 28)
    assert (len(dataset.validation), len(dataset.test)) == (5_000, 10_000)
    assert dataset.mean == pytest.approx(0.1307, abs=2e-4)
    assert dataset.std == pytest.approx(0.3081, abs=2e-4)
    np.testing.assert_array_equal(dataset.train.labels[:5], [5, 0, 4, 1, 9])
    np.testing.assert_array_equal(np.unique(dataset.test.labels), np.arange(10))


# ----------------------------------------------------------------------------------------- batches


def random_split(count: int, dtype: Any = np.uint8, channels: int = 2) -> Split:
    """Return images that all differ, with labels that number them."""
    images = np.random.default_rng(count).integers(256, size=(count, channels, 3, 4))
    scale = 1 if dtype == np.uint8 else 255
    return Split((images / scale).astype(dtype), np.arange(count))


@fuzz
@given(
    st.integers(1, 40),
    st.integers(1, 50),
    st.one_of(st.none(), seeds),
    st.sampled_from([np.uint8, np.float32]),
)
def test_batches_cover_the_split_once_in_the_documented_layout(
    count: int, size: int, seed: int | None, dtype: Any
) -> None:
    split = random_split(count, dtype)
    rng = None if seed is None else np.random.default_rng(seed)
    found = list(batches(split, size, mean=0.2, std=0.3, rng=rng))

    sizes = [len(labels) for _, labels in found]
    rest = [count % size] if count % size else []
    assert sizes == [size] * (count // size) + rest
    order = np.concatenate([labels for _, labels in found])
    if seed is None:
        np.testing.assert_array_equal(order, np.arange(len(order)))
    else:
        assert len(np.unique(order)) == len(order)  # so each exactly once

    for images, labels in found:
        assert images.dtype == np.float32
        assert images.flags.c_contiguous
        assert labels.dtype == np.int64
        pixels = split.images[labels].astype(np.float64) / (255 if dtype == np.uint8 else 1)
        expected = (pixels.transpose(1, 2, 3, 0) - 0.2) / 0.3
        np.testing.assert_allclose(images, expected, rtol=1e-6, atol=1e-6)


@settings(deadline=None, max_examples=20)
@given(seeds)
def test_same_generator_same_batches(seed: int) -> None:
    split = random_split(50)

    def noisy(images: data.Pixels, rng: np.random.Generator) -> data.Pixels:
        return (images * rng.random(images.shape)).astype(np.float32)

    def run() -> list[NDArray[np.float32]]:
        rng = np.random.default_rng(seed)
        options: dict[str, Any] = {"mean": 0.1, "std": 0.5, "rng": rng, "augment": noisy}
        return [x for _ in range(2) for x, _ in batches(split, 16, **options)]

    one, two = run(), run()
    assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))
    assert not np.array_equal(one[0], one[4])  # the second pass is another permutation


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_batches_leave_the_split_alone(dtype: Any) -> None:
    split = random_split(6, dtype)
    before = split.images.copy()
    for size in (1, 6):
        for images, labels in batches(split, size, mean=0.0, std=1.0):
            images += 1
            labels += 1
    np.testing.assert_array_equal(split.images, before)
    np.testing.assert_array_equal(split.labels, np.arange(6))


@pytest.mark.parametrize("result", [np.uint8, np.float32])
def test_augmented_images_are_in_the_range_of_the_split(result: Any) -> None:
    split = random_split(10)

    def invert(images: data.Pixels, rng: np.random.Generator) -> data.Pixels:
        assert images.dtype == np.uint8
        assert images.shape[1:] == (2, 3, 4)
        return (255 - images).astype(result)

    rng = np.random.default_rng(0)
    for images, labels in batches(split, 4, mean=0.2, std=0.3, rng=rng, augment=invert):
        pixels = 1 - split.images[labels].transpose(1, 2, 3, 0) / 255
        np.testing.assert_allclose(images, (pixels - 0.2) / 0.3, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 0}, "size is 0; expected an integer of 1 or more"),
        ({"size": -3}, "size is -3"),
        ({"size": 2.0}, "size is 2.0"),
        ({"size": True}, "size is True"),
        ({"mean": np.nan}, "mean is nan; expected a finite number"),
        ({"std": 0.0}, "std is 0.0; expected a positive finite number"),
        ({"std": -1.0}, "std is -1.0"),
        ({"std": np.inf}, "std is inf"),
        ({"augment": lambda images, rng: images}, "augment is given without rng"),
    ],
)
def test_batches_reject_on_the_call(changes: dict[str, Any], message: str) -> None:
    options: dict[str, Any] = {"size": 4, "mean": 0.0, "std": 1.0}
    with pytest.raises(ValueError, match=message):
        batches(random_split(10), **(options | changes))


@pytest.mark.parametrize("break_it", [lambda x: x[:, :1], lambda x: x.astype(np.float64)])
def test_batches_reject_a_bad_augment(break_it: Callable[[Any], Any]) -> None:
    rng = np.random.default_rng(0)
    options: dict[str, Any] = {"mean": 0.0, "std": 1.0, "rng": rng}
    with pytest.raises(ValueError, match="augment returned"):
        next(batches(random_split(5), 4, augment=lambda images, _: break_it(images), **options))
