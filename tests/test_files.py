"""Files that appear whole or not at all."""

import errno
import gc
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import minidiff as md
from minidiff import nn
from minidiff.io.files import append_line, locked, require_file, words, write_whole
from tests.networks import dense, narrow

WRITERS = {
    "txt": lambda path: write_whole(path, b"new"),
    "safetensors": lambda path: md.save(path, nn.Sequential(nn.ReLU())),
    "onnx": lambda path: md.export(path, narrow(dense(3, 2)), (3,)),
    "npz": lambda path: md.export(path, narrow(dense(3, 2)), (3,)),
}


@pytest.mark.parametrize("ending", WRITERS)
@pytest.mark.parametrize("call", ["os.fsync", "os.replace"])
def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch, ending, call):
    if ending in ("safetensors", "onnx"):
        pytest.importorskip(ending)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    path, write = tmp_path / f"file.{ending}", WRITERS[ending]
    path.write_bytes(b"old")
    with monkeypatch.context() as patch:
        patch.setattr(call, full)
        with pytest.raises(OSError, match=f"file.{ending} cannot be written: No space") as error:
            write(path)
    assert error.value.errno == errno.ENOSPC
    assert "Errno" not in str(error.value)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    write(path)
    assert path.read_bytes() != b"old"
    with pytest.raises(FileNotFoundError, match="cannot be written: No such file"):
        write(tmp_path / "no" / f"file.{ending}")


@pytest.mark.parametrize("ending", WRITERS)
def test_an_error_that_is_kept_is_collected_without_a_warning(tmp_path, ending):
    if ending in ("safetensors", "onnx"):
        pytest.importorskip(ending)

    def fail():
        try:
            WRITERS[ending](tmp_path / "no" / f"file.{ending}")
        except FileNotFoundError as error:
            error.itself = error  # a cycle, which only the collector frees

    fail()
    gc.collect()  # a buffer that cannot be freed is a warning, and so an error


def test_readers_and_writers_at_the_same_time_see_whole_files(tmp_path):
    path, texts = tmp_path / "file", [b"a" * 100_000, b"b" * 100_000]
    write_whole(path, texts[0])
    with ThreadPoolExecutor(2) as pool:
        writers = [
            pool.submit(lambda t=t: [write_whole(path, t) for _ in range(30)]) for t in texts
        ]
        while not all(writer.done() for writer in writers):
            assert path.read_bytes() in texts
    assert [writer.exception() for writer in writers] == [None, None]
    assert list(tmp_path.iterdir()) == [path]


@given(st.lists(st.text(st.characters(exclude_characters="\r\n", codec="utf-8"))), st.booleans())
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_lines_are_appended_behind_what_a_crash_has_cut_short(tmp_path, lines, cut):
    path, start = tmp_path / "lines", ["whole", "cut sho"][: 1 + cut]
    path.write_text("whole\n" + "cut sho" * cut)
    for line in lines:
        append_line(path, line)
    found = path.read_text(encoding="utf-8").split("\n")
    assert found[: len(start) + len(lines)] == start + lines
    with pytest.raises(OSError, match="lines/x cannot be written"):
        append_line(path / "x", "line")


KILLED = """
import os, signal, sys
from minidiff.io.files import write_whole
os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)  # before the disk has it all
write_whole(sys.argv[1], b"new")
"""


@pytest.mark.skipif(not hasattr(os, "O_TMPFILE"), reason="every file has a name there")
def test_a_process_that_is_killed_while_it_writes_leaves_nothing(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    code = subprocess.run([sys.executable, "-c", KILLED, path], check=False).returncode
    assert code == -signal.SIGKILL
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"old"


def test_where_every_file_has_a_name_writing_works_too(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    write_whole(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"
    assert len(list(tmp_path.iterdir())) == 1


def test_names_may_be_as_long_as_the_system_allows(tmp_path):
    path = tmp_path / ("x" * 250)
    for data in (b"first", b"second"):
        write_whole(path, data)
        assert path.read_bytes() == data
    append_line(path, "third")


def test_a_link_stays_a_link(tmp_path):
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "file")
    for data in (b"new", b"newer"):
        write_whole(link, data)
        assert link.is_symlink()
        assert (tmp_path / "file").read_bytes() == data


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no FIFOs")
def test_nothing_but_regular_files_is_written_or_read(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to(os.devnull)
    kinds = {
        tmp_path: "a directory",
        tmp_path / "fifo": "a FIFO",
        tmp_path / "link": "a device",  # which a root user could replace
        Path(os.devnull): "a device",
    }
    uses = (
        lambda path: write_whole(path, b"new"),
        lambda path: append_line(path, "new"),
        lambda path: locked(path, ValueError()).__enter__(),
        require_file,
    )
    for path, kind in kinds.items():
        before = os.stat(path).st_ino
        for use in uses:
            with pytest.raises(OSError, match=f"{path}.*: it is {kind}; expected a regular file"):
                use(path)
        assert os.stat(path).st_ino == before


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (PermissionError(13, "Permission denied", "/x"), "/x: Permission denied"),
        (FileExistsError(17, "File exists", "a", None, "b"), "a: b: File exists"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (OSError("two\nlines"), "two lines"),
        (ValueError("bad"), "bad"),
        (MemoryError(), "MemoryError"),
    ],
)
def test_errors_of_the_system_are_told_in_words(error, expected):
    assert words(error) == expected
