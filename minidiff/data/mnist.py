"""The four files of MNIST: found on disk or downloaded, checked by SHA-256, then read."""

import gzip
import hashlib
import os
import threading
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minidiff.io.extras import extra
from minidiff.io.files import require_file, words, write_whole

__all__ = ["DataError", "MissingDataError"]

DATA_VARIABLE = "MINIDIFF_DATA_DIR"
SHA256 = {  # of NAME.gz
    "train-images-idx3-ubyte": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "train-labels-idx1-ubyte": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "t10k-images-idx3-ubyte": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "t10k-labels-idx1-ubyte": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
}
MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
ANSWER_SECONDS = 4.0  # for a mirror to answer at all
STALL_SECONDS = 20.0  # for the next bytes of a download


class DataError(ValueError):
    """Data that is altered, or that does not have the shape or the values it must have."""


class MissingDataError(DataError):
    """Data that is not on this machine and could not be downloaded."""


def load_mnist(*, offline: bool) -> tuple[list[NDArray[np.uint8]], str]:
    """Return the arrays of the four files, in the order of SHA256, and where they came from."""
    problems = []
    if variable := os.environ.get(DATA_VARIABLE):
        try:
            directory = Path(os.path.expanduser(variable))  # "~x" stays if there is no user x
            return _read(directory / "mnist"), f"${DATA_VARIABLE}/mnist"
        except MissingDataError as missing:
            problems.append(f"{DATA_VARIABLE}: {missing}")
    note = f" ({problems[0]})" if problems else ""
    cache = Path(extra("pooch").os_cache("minidiff")) / "mnist"
    if not cache.is_absolute():
        problems.append("there is no home directory to keep MNIST in")
        raise _missing(problems)
    try:
        return _read(cache), f"the cache directory{note}"
    except MissingDataError as missing:
        problems.append(str(missing))
    failures = ["offline, so nothing was downloaded"] if offline else _download(cache)
    if not failures:
        return _read(cache), f"a download into the cache directory{note}"
    raise _missing(problems + failures)


def _missing(problems: list[str]) -> MissingDataError:
    return MissingDataError(
        f"MNIST is missing: {'; '.join(problems)}. To provide it, put the files "
        f"{', '.join(f'{name}.gz' for name in SHA256)} into D/mnist and set {DATA_VARIABLE}=D."
    )


def _read(directory: Path) -> list[NDArray[np.uint8]]:
    paths = [directory / f"{name}.gz" for name in SHA256]
    # All are checked before any is called missing: an altered file is never passed over.
    absent = [path.name for path in paths if not _is_there(path)]
    if absent:
        listed = "all four files" if len(absent) == len(paths) else ", ".join(absent)
        raise MissingDataError(f"{directory} lacks {listed}")
    return [_parse_idx(gzip.decompress(path.read_bytes())) for path in paths]


def _is_there(path: Path) -> bool:
    """Whether a file exists; DataError if it cannot be read or is not the file of MNIST."""
    try:
        require_file(path)
        with path.open("rb") as file:
            found, expected = hashlib.file_digest(file, "sha256").hexdigest(), SHA256[path.stem]
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise DataError(f"MNIST cannot be read: {words(error)}") from error
    if found != expected:
        raise DataError(
            f"{path}: SHA-256 is {found}; expected {expected}. It is not the MNIST file or is "
            f"damaged: delete it or replace it with the original."
        )
    return True


def _parse_idx(content: bytes) -> NDArray[np.uint8]:
    """Return the array of an IDX file: three bytes, the rank, the lengths, the data."""
    rank = content[3]
    lengths = np.frombuffer(content, ">u4", count=rank, offset=4)
    data = np.frombuffer(content, np.uint8, offset=4 + 4 * rank)
    return data.reshape(lengths).copy()  # copied, so that it can be written to


def _download(directory: Path) -> list[str]:
    """Complete a directory; return how each mirror failed, or nothing if one did not."""
    pooch = extra("pooch")
    extra("tqdm")  # draws the progress bar
    bar = os.isatty(2)  # not in the middle of a log
    downloader = pooch.HTTPDownloader(progressbar=bar, timeout=(ANSWER_SECONDS, STALL_SECONDS))
    failures = []
    for mirror in MIRRORS:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            _require_answer(downloader, mirror)
            for name, digest in SHA256.items():
                path = directory / f"{name}.gz"
                if not path.exists():
                    # Elsewhere, since pooch leaves its temporary files when it is killed.
                    with TemporaryDirectory() as elsewhere:
                        url, place = mirror + path.name, Path(elsewhere)
                        pooch.retrieve(url, digest, path.name, place, downloader=downloader)
                        write_whole(path, (place / path.name).read_bytes())
            return []
        except (OSError, ValueError) as error:  # the network or the disk; a wrong hash
            cause: BaseException = error
            while cause.__context__:  # requests wraps the network's error in several others
                cause = cause.__context__
            failures.append(f"{mirror}: {words(cause)}")
    return failures


def _require_answer(downloader: Any, url: str) -> None:
    """Raise TimeoutError unless a server answers soon.

    The question is asked on a thread: the time-outs of a downloader do not bound the look-up of a
    host's name, which can keep a machine without a network for minutes.
    """

    def ask() -> None:
        with suppress(OSError):  # the download meets the same error and reports it
            downloader(url, None, None, check_only=True)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(ANSWER_SECONDS)
    if thread.is_alive():
        raise TimeoutError(f"no answer within {ANSWER_SECONDS:g} s")
