"""Image data: MNIST and a small stand-in, read with care and served in batches.

:func:`load_dataset` gives a :class:`Dataset` of three fixed splits; :func:`batches` runs over one
split and yields arrays in the layout the engine works in, with the batch as the **last** axis.
Nothing found on disk is trusted: MNIST is checked against its SHA-256 hashes, and
:func:`read_idx` checks every promise of a file's header before it believes it.
"""

import gzip
import hashlib
import io
import math
import os
import struct
import textwrap
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from minidiff.engine.functional import generator
from minidiff.io.extras import extra

__all__ = [
    "Augment",
    "DataError",
    "Dataset",
    "MissingDataError",
    "Pixels",
    "Split",
    "batches",
    "load_dataset",
    "read_idx",
]

#: Images in 0..255 or in 0..1, as of :class:`Split`.
Pixels: TypeAlias = NDArray[np.uint8] | NDArray[np.float32]
#: What :func:`batches` calls with images and a generator, such as an
#: :class:`~minidiff.data.augment.Affine`.
Augment: TypeAlias = Callable[[Pixels, np.random.Generator], Pixels]

DATASETS = ("auto", "mnist", "digits")
DATA_VARIABLE = "MINIDIFF_DATA_DIR"

MNIST_HASHES = {  # SHA-256, in the order: images and labels for training, then for testing
    "train-images-idx3-ubyte.gz": (
        "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"
    ),
    "train-labels-idx1-ubyte.gz": (
        "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"
    ),
    "t10k-images-idx3-ubyte.gz": (
        "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"
    ),
    "t10k-labels-idx1-ubyte.gz": (
        "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"
    ),
}
MNIST_MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
MNIST_TRAINING_IMAGES = 60_000
PROBE_SECONDS = 4.0
STALL_SECONDS = 20.0

GZIP_MAGIC = b"\x1f\x8b"
IDX_UINT8 = 0x08
IDX_MAX_RANK = 32  # as many axes as every supported NumPy can hold
IDX_MAX_BYTES = 1 << 30  # twenty times MNIST
READ_BYTES = 1 << 20


class DataError(ValueError):
    """Data that is malformed, altered or out of range."""


class MissingDataError(DataError):
    """Data that is nowhere to be found and could not be downloaded."""


# ---------------------------------------------------------------------------------- IDX files


def read_idx(path: str | Path, *, rank: int | None = None) -> NDArray[np.uint8]:
    """Read an IDX file of unsigned bytes, plain or gzip-compressed.

    Whether the file is compressed is told from its content; its name plays no part. Memory use
    is bounded by what the header promises (at most 1 GiB) *and* by what the file really holds,
    so neither a forged header nor a gzip bomb can exhaust it.

    Parameters
    ----------
    path
        The file.
    rank
        The number of axes it must have; None accepts any.

    Returns
    -------
    ndarray of uint8
        A fresh, writable array of the shape in the header.

    Raises
    ------
    OSError
        If the file cannot be opened (FileNotFoundError if there is none).
    DataError
        If it is not exactly one complete IDX array of bytes with that rank.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     path = Path(directory) / "labels"
    ...     _ = path.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 3, 5, 0, 4]))  # shape (3,)
    ...     read_idx(path)
    array([5, 0, 4], dtype=uint8)
    """
    path = Path(path)
    with path.open("rb") as raw:
        compressed = raw.peek(len(GZIP_MAGIC)).startswith(GZIP_MAGIC)
        if not compressed:
            return _parse_idx(raw, path, rank)
        try:
            with gzip.GzipFile(fileobj=raw) as stream:
                return _parse_idx(stream, path, rank)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DataError(
                f"{path}: broken gzip data ({error}); expected one complete gzip stream. "
                f"Fetch the file again."
            ) from error


def _parse_idx(stream: io.BufferedIOBase, path: Path, rank: int | None) -> NDArray[np.uint8]:
    magic = stream.read(4)
    if len(magic) < 4:
        raise DataError(f"{path}: holds {len(magic)} bytes; an IDX file starts with 4 magic bytes.")
    if magic[:2] != b"\0\0":
        raise DataError(
            f"{path}: starts with bytes {magic.hex(' ')}; expected an IDX file (00 00 08 and "
            f"the number of axes) or a gzip file (1f 8b) which holds one."
        )
    if magic[2] != IDX_UINT8:
        raise DataError(
            f"{path}: IDX type code 0x{magic[2]:02x}; expected 0x{IDX_UINT8:02x} (unsigned bytes)."
        )
    axes = magic[3]
    if rank is not None and axes != rank:
        raise DataError(f"{path}: array of rank {axes}; expected rank {rank}.")
    if not 1 <= axes <= IDX_MAX_RANK:
        raise DataError(f"{path}: array of rank {axes}; expected 1 to {IDX_MAX_RANK}.")

    lengths = stream.read(4 * axes)
    if len(lengths) < 4 * axes:
        raise DataError(
            f"{path}: header ends after {4 + len(lengths)} bytes; rank {axes} needs {4 + 4 * axes}."
        )
    shape = struct.unpack(f">{axes}I", lengths)
    size = math.prod(shape)
    if not 0 < size <= IDX_MAX_BYTES:
        raise DataError(
            f"{path}: header gives shape {shape}, {size} bytes; expected 1 to {IDX_MAX_BYTES}."
        )

    # Piece by piece: read(size) would set aside what a forged header asks for. The one byte past
    # the end tells a file with trailing bytes, and makes gzip check its CRC when there are none.
    data = bytearray()
    while piece := stream.read(min(READ_BYTES, size + 1 - len(data))):
        data += piece
    if len(data) != size:
        found = f"only {len(data)}" if len(data) < size else "more"
        raise DataError(
            f"{path}: holds {found} bytes of data; its header gives shape {shape}, "
            f"that is exactly {size}. Fetch the file again."
        )
    return np.frombuffer(data, dtype=np.uint8).reshape(shape)


# ---------------------------------------------------------------------------- splits and datasets


@dataclass(frozen=True, eq=False)
class Split:
    """Labelled images.

    Attributes
    ----------
    images : ndarray of shape (N, C, H, W)
        uint8 in 0..255, or float32 in 0..1.
    labels : ndarray of int64, shape (N,)
        The class of each image, counted from 0.

    Raises
    ------
    DataError
        If the arrays are empty, disagree in length, or break one of the promises above.

    Examples
    --------
    >>> len(Split(np.zeros((3, 1, 28, 28), np.uint8), np.array([5, 0, 4])))
    3
    """

    images: Pixels
    labels: NDArray[np.int64]

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        if images.ndim != 4:
            raise DataError(f"images have shape {images.shape}; expected (N, C, H, W).")
        if labels.ndim != 1:
            raise DataError(f"labels have shape {labels.shape}; expected (N,).")
        if len(images) != len(labels):
            raise DataError(
                f"images of shape {images.shape} and labels of shape {labels.shape}: "
                f"{len(images)} images for {len(labels)} labels; expected one label an image."
            )
        if images.size == 0:
            raise DataError(f"images have shape {images.shape}; expected at least one pixel.")
        if images.dtype not in (np.uint8, np.float32):
            raise DataError(f"images are {images.dtype}; expected uint8 (0..255), float32 (0..1).")
        if labels.dtype != np.int64:
            raise DataError(f"labels are {labels.dtype}; expected int64: labels.astype(np.int64).")
        if images.dtype == np.float32:
            # Written so that NaN, which compares false with everything, is found too.
            _reject_first(~((images >= 0) & (images <= 1)), images, "images", "within 0..1")
        _reject_first(labels < 0, labels, "labels", "0 or more")

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Three disjoint splits: to train on, to choose by (validation), and to report on (test).

    Attributes
    ----------
    name : str
        "mnist" or "digits".
    source : str
        A sentence for the reader on where the data came from.
    train, validation, test : Split
        Images of one shape (C, H, W) and one dtype. ``validation`` is None if all are trained on.
    classes : int
        The number of classes; labels are 0..classes-1.

    Raises
    ------
    DataError
        If the splits differ in image shape or dtype, or a label is out of range.

    Examples
    --------
    >>> grey = Split(np.full((2, 1, 28, 28), 51, np.uint8), np.array([0, 1]))
    >>> data = Dataset("grey", "Two images of one grey.", grey, None, grey)
    >>> round(data.mean, 3), round(data.std, 3)
    (0.2, 0.0)
    """

    name: str
    source: str
    train: Split
    validation: Split | None
    test: Split
    classes: int = 10

    def __post_init__(self) -> None:
        if self.classes < 2:
            raise DataError(f"classes is {self.classes}; expected 2 or more.")
        expected = self.train.images.shape[1:], self.train.images.dtype
        for name in ("train", "validation", "test"):
            split: Split | None = getattr(self, name)
            if split is None:
                continue
            found = split.images.shape[1:], split.images.dtype
            if found != expected:
                raise DataError(
                    f"{name} images are {found[0]} {found[1]}; expected {expected[0]} "
                    f"{expected[1]}, as in train."
                )
            _reject_first(
                split.labels >= self.classes,
                split.labels,
                f"{name} labels",
                f"0..{self.classes - 1} for {self.classes} classes",
            )

    @property
    def mean(self) -> float:
        """Mean of all training pixels, scaled to 0..1."""
        return self._moments[0]

    @property
    def std(self) -> float:
        """Standard deviation of all training pixels, scaled to 0..1."""
        return self._moments[1]

    @cached_property
    def _moments(self) -> tuple[float, float]:
        # einsum casts block by block; images.std() would hold a float64 copy of the whole split.
        pixels = self.train.images.reshape(-1)
        mean = float(pixels.mean(dtype=np.float64))
        square = float(np.einsum("i,i->", pixels, pixels, dtype=np.float64)) / pixels.size
        scale = _full_scale(pixels)
        return mean / scale, math.sqrt(max(0.0, square - mean * mean)) / scale


def _reject_first(bad: NDArray[np.bool_], values: NDArray[Any], name: str, expected: str) -> None:
    if bad.any():
        position = tuple(int(i) for i in np.unravel_index(int(bad.argmax()), bad.shape))
        where = ", ".join(map(str, position))
        raise DataError(f"{name}[{where}] is {values[position]}; expected {expected}.")


def _full_scale(pixels: Pixels) -> float:
    return 255.0 if pixels.dtype == np.uint8 else 1.0


# ----------------------------------------------------------------------------------------- loading


def load_dataset(name: str = "auto", *, validation: int = 5000, offline: bool = False) -> Dataset:
    """Load a dataset of 28x28 grey images of handwritten digits, uint8 of shape (N, 1, 28, 28).

    MNIST is looked for in ``$MINIDIFF_DATA_DIR/mnist``, then in the user's cache directory, and
    is otherwise downloaded into that cache (this needs ``minidiff[train]``). MINIDIFF_DATA_DIR is
    never written to. Any of the four files that is found with a wrong SHA-256 is an error, never
    passed over.

    Parameters
    ----------
    name
        "mnist"; "digits", the 1,797 digits of scikit-learn enlarged from 8x8, split once and for
        all into 1,197 for training, 300 for validation and 300 for testing; or "auto", which is
        MNIST if it can be had and digits otherwise, as ``source`` then says.
    validation
        The size of MNIST's validation set: the last of the 60,000 training images. 0 is for
        a last training on all of them, once everything has been chosen. The split of digits does
        not depend on it, but for 0.
    offline
        Never download.

    Raises
    ------
    ValueError
        If ``name`` is unknown or ``validation`` is not an integer in 0..59999.
    MissingDataError
        If MNIST is asked for and not to be had, or under "auto" neither dataset is.
    DataError
        If a file is not the MNIST file its name promises.
    ImportError
        If "digits" is asked for and scikit-learn is not installed.

    Examples
    --------
    >>> data = load_dataset("digits")
    >>> data.train.images.shape, len(data.validation), len(data.test)
    ((1197, 1, 28, 28), 300, 300)
    """
    if name not in DATASETS:
        raise ValueError(f"dataset {name!r} is unknown; expected one of {', '.join(DATASETS)}.")
    if not _is_integer(validation) or not 0 <= validation < MNIST_TRAINING_IMAGES:
        raise ValueError(
            f"validation is {validation!r}; expected an integer in 0..{MNIST_TRAINING_IMAGES - 1} "
            f"(MNIST has {MNIST_TRAINING_IMAGES} training images)."
        )
    if name == "digits":
        return _load_digits(validation=validation)
    try:
        return _load_mnist(validation, offline)
    except MissingDataError as missing:
        if name == "mnist":
            raise
        try:
            return _load_digits(f" It stands in for MNIST. {missing}", validation=validation)
        except ImportError as error:
            raise MissingDataError(f"{missing} The stand-in is not to be had: {error}") from error


def _load_mnist(validation: int, offline: bool) -> Dataset:
    directory, source = _find_mnist(offline)
    arrays = [
        read_idx(directory / name, rank=3 if "images" in name else 1) for name in MNIST_HASHES
    ]
    images, test_images = arrays[0][:, None], arrays[2][:, None]
    labels, test_labels = arrays[1].astype(np.int64), arrays[3].astype(np.int64)
    first = len(images) - validation
    return Dataset(
        name="mnist",
        source=source,
        train=Split(images[:first], labels[:first]),
        validation=Split(images[first:], labels[first:]) if validation else None,
        test=Split(test_images, test_labels),
    )


def _find_mnist(offline: bool) -> tuple[Path, str]:
    """Return the directory of the four files, all verified, and a sentence on how they came."""
    reasons = []  # why each place so far was no use
    homes = []  # where the user may put the files

    if variable := os.environ.get(DATA_VARIABLE):
        directory = Path(variable).expanduser() / "mnist"
        absent = _missing_files(directory)
        if not absent:
            return directory, f"MNIST, from ${DATA_VARIABLE}/mnist."
        homes.append(str(directory))
        reasons.append(f"{directory} (from {DATA_VARIABLE}) lacks {_listed(absent)}")
    else:
        homes.append(f"a directory D/mnist with {DATA_VARIABLE}=D")
        reasons.append(f"{DATA_VARIABLE} is not set")

    try:
        cache = Path(extra("pooch").os_cache("minidiff")) / "mnist"
    except ImportError as error:
        reasons.append(f"the cache and the download were not tried: {error}")
    else:
        note = f" ({reasons[0]}.)" if variable else ""
        absent = _missing_files(cache)
        if not absent:
            return cache, f"MNIST, from the cache directory.{note}"
        homes.append(str(cache))
        reasons.append(f"{cache} lacks {_listed(absent)}")
        if offline:
            reasons.append("downloading was ruled out (offline)")
        else:
            try:
                _download_mnist(cache, absent)
                return cache, f"MNIST, downloaded into the cache directory.{note}"
            except (ImportError, OSError, MissingDataError) as error:
                reasons.append(f"the download failed: {error}")

    raise MissingDataError(
        f"MNIST was not to be had: {'; '.join(reasons)}. "
        f"To have it, put the four files {', '.join(MNIST_HASHES)} into {' or '.join(homes)}."
    )


def _listed(names: list[str]) -> str:
    return "all four files" if len(names) == len(MNIST_HASHES) else ", ".join(names)


def _missing_files(directory: Path) -> list[str]:
    """Return which MNIST files ``directory`` lacks; raise DataError if one there is altered."""
    missing = []
    for name, expected in MNIST_HASHES.items():
        try:
            with (directory / name).open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except (FileNotFoundError, NotADirectoryError):
            missing.append(name)
            continue
        if found != expected:
            raise DataError(
                f"{directory / name}: SHA-256 is {found}; expected {expected}. It is not the "
                f"MNIST file or is damaged: delete it or replace it with the original."
            )
    return missing


def _download_mnist(directory: Path, names: Iterable[str]) -> None:
    """Download files into ``directory``; each appears there whole and verified, or not at all."""
    pooch = extra("pooch")
    extra("tqdm")  # draws the progress bar
    downloader = pooch.HTTPDownloader(progressbar=True, timeout=(PROBE_SECONDS, STALL_SECONDS))
    for name in names:
        failures = []
        for mirror in MNIST_MIRRORS:
            url = mirror + name
            try:
                _probe(downloader, url)
                pooch.retrieve(
                    url,
                    known_hash=f"sha256:{MNIST_HASHES[name]}",
                    fname=name,
                    path=directory,
                    downloader=downloader,
                )
                break
            except (OSError, ValueError) as error:  # the network or disk; a wrong hash
                failures.append(f"{url}: {_root_cause(error)}")
        else:
            raise MissingDataError("; ".join(failures))


def _root_cause(error: BaseException) -> str:
    """Name the first error of the chain: network libraries wrap it in layers of their own."""
    while cause := error.__cause__ or (not error.__suppress_context__ and error.__context__):
        error = cause
    return textwrap.shorten(f"{type(error).__name__}: {error}", 300, placeholder=" ...")


def _probe(downloader: Any, url: str) -> None:
    """Raise OSError unless ``url`` answers soon.

    The wait is on a thread because the connect timeout bounds neither the name look-up nor the
    number of addresses tried, either of which can keep a machine without a network for minutes.
    """
    outcome: SimpleQueue[bool | Exception] = SimpleQueue()

    def ask() -> None:
        try:
            outcome.put(downloader(url, None, None, check_only=True))
        except Exception as error:  # handed to the waiting thread, whatever it is
            outcome.put(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        answer = outcome.get(timeout=PROBE_SECONDS)
    except Empty:
        raise TimeoutError(f"no answer within {PROBE_SECONDS:g} s") from None
    if isinstance(answer, Exception):
        raise answer
    if not answer:
        raise FileNotFoundError("the server does not offer the file")


def _load_digits(note: str = "", *, validation: int) -> Dataset:
    bunch = extra("sklearn.datasets", "scikit-learn").load_digits()
    labels = np.asarray(bunch.target, dtype=np.int64)

    # As in MNIST, the digit fills 20x20 pixels in the middle of 28x28. Bilinear enlargement is
    # separable: one 20x8 matrix of interpolation weights, applied to rows and to columns.
    places = (np.arange(20) + 0.5) * (8 / 20) - 0.5
    weights = np.stack([np.interp(places, np.arange(8), unit) for unit in np.eye(8)], axis=1)
    enlarged = weights @ bunch.images @ weights.T * (255 / 16)
    images = np.zeros((len(labels), 1, 28, 28), dtype=np.uint8)
    images[:, 0, 4:24, 4:24] = np.rint(enlarged)

    # The file runs writer by writer, so the splits are drawn, with a seed that is part of what
    # this dataset *is*, rather than cut from it in order.
    order = np.random.default_rng(1797).permutation(len(labels))
    source = "The 1,797 handwritten 8x8 digits of scikit-learn, enlarged to 28x28." + note
    if not validation:
        train, test = (Split(images[i], labels[i]) for i in np.split(order, [1497]))
        return Dataset("digits", source, train, None, test)
    train, chosen, test = (Split(images[i], labels[i]) for i in np.split(order, [1197, 1497]))
    return Dataset("digits", source, train, chosen, test)


# ----------------------------------------------------------------------------------------- batches


def batches(
    split: Split,
    size: int,
    *,
    mean: float,
    std: float,
    rng: np.random.Generator | None = None,
    augment: Augment | None = None,
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
    """Run once over a split in batches of normalised images, batch last.

    Arguments are checked on the call, not at the first batch.

    Parameters
    ----------
    split
        The N images to run over.
    size
        Images in a batch, B; the last batch holds what is left.
    mean, std
        Of pixels scaled to 0..1; each pixel becomes (pixel - mean) / std.
    rng
        Draws one permutation for the pass; None keeps the order of the split.
    augment
        Called with the images of each batch, shape (B, C, H, W) in the dtype of the split, and
        ``rng``; gives images of the same shape and the same range of values, uint8 or float32.

    Yields
    ------
    images : ndarray of float32, shape (C, H, W, B)
        C-contiguous, and fresh for each batch.
    labels : ndarray of int64, shape (B,)

    Raises
    ------
    TypeError
        If ``rng`` is no generator.
    ValueError
        If ``size`` is not an integer of 1 or more, ``mean`` or ``std`` is not finite, ``std`` is
        not positive, ``augment`` comes without ``rng``, or ``augment`` breaks its promise (during
        the pass).

    Examples
    --------
    >>> split = Split(np.zeros((5, 1, 28, 28), np.uint8), np.arange(5))
    >>> [images.shape for images, labels in batches(split, 2, mean=0.13, std=0.31)]
    [(1, 28, 28, 2), (1, 28, 28, 2), (1, 28, 28, 1)]
    """
    if not _is_integer(size) or size < 1:
        raise ValueError(f"size is {size!r}; expected an integer of 1 or more.")
    if not math.isfinite(mean):
        raise ValueError(f"mean is {mean}; expected a finite number.")
    if not (math.isfinite(std) and std > 0):
        raise ValueError(f"std is {std}; expected a positive finite number.")
    if augment is not None and rng is None:
        raise ValueError("augment is given without rng; expected a numpy.random.Generator.")
    return _run(split, size, mean, std, None if rng is None else generator(rng), augment)


def _run(
    split: Split,
    size: int,
    mean: float,
    std: float,
    rng: np.random.Generator | None,
    augment: Augment | None,
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
    order = np.arange(len(split)) if rng is None else rng.permutation(len(split))
    # An augmented image keeps the range of the split, whatever its dtype, hence one scale.
    scale = np.float32(1 / (_full_scale(split.images) * std))
    offset = np.float32(mean / std)
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        images = split.images[chosen]
        if augment is not None and rng is not None:
            images = _augmented(images, augment, rng)
        # Transposed while still uint8, a quarter of the memory to stride over.
        batch_last = np.ascontiguousarray(np.moveaxis(images, 0, -1))
        batch = np.multiply(batch_last, scale, dtype=np.float32)
        batch -= offset
        yield batch, split.labels[chosen]


def _augmented(images: Pixels, augment: Augment, rng: np.random.Generator) -> Pixels:
    result = augment(images, rng)
    if result.shape != images.shape or result.dtype not in (np.uint8, np.float32):
        raise ValueError(
            f"augment returned {result.shape} {result.dtype}; "
            f"expected {images.shape} uint8 or float32."
        )
    return result


def _is_integer(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)
