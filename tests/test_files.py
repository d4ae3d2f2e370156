"""Files that appear whole or not at all."""

import errno
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import minidiff as md
from minidiff import nn
from minidiff.io.files import append_line, write_whole

WRITERS = {
    "write_whole": lambda path: write_whole(path, b"new"),
    "safetensors": lambda path: md.save(path, nn.Sequential(nn.ReLU())),
    "npz": lambda path: md.export(path, nn.Linear(3, 2, rng=np.random.default_rng(0)), (3,)),
}


def path_for(folder, name):
    return folder / f"file.{name if name in ('safetensors', 'npz') else 'txt'}"


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("call", ["os.fsync", "os.replace"])
def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch, name, call):
    if name != "write_whole":
        pytest.importorskip("safetensors")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    path = path_for(tmp_path, name)
    path.write_bytes(b"old")
    with monkeypatch.context() as patch:
        patch.setattr(call, full)
        with pytest.raises(OSError, match=f"{path.name} cannot be written: No space left") as error:
            WRITERS[name](path)
    assert error.value.errno == errno.ENOSPC
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    WRITERS[name](path)
    assert path.read_bytes() != b"old"
    with pytest.raises(FileNotFoundError, match=r"no.* cannot be written: No such file"):
        WRITERS[name](path_for(tmp_path / "no", name))


def test_readers_and_writers_at_the_same_time_see_whole_files(tmp_path):
    path, texts = tmp_path / "file", [bytes([i]) * 100_000 for i in range(2)]
    write_whole(path, texts[0])
    with ThreadPoolExecutor(3) as pool:
        writers = [
            pool.submit(lambda text=text: [write_whole(path, text) for _ in range(30)])
            for text in texts
        ]
        while not all(writer.done() for writer in writers):
            assert path.read_bytes() in texts
        for writer in writers:
            writer.result()
    assert list(tmp_path.iterdir()) == [path]


@given(st.lists(st.text(st.characters(exclude_characters="\r\n", codec="utf-8"))), st.booleans())
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_lines_are_appended_behind_what_a_crash_has_cut_short(tmp_path, lines, cut):
    path = tmp_path / "lines"
    path.write_bytes(b"whole\n" + b"cut sho" * cut)
    for line in lines:
        append_line(path, line)
    start = ["whole", "cut sho"][: 1 + cut]
    assert path.read_text(encoding="utf-8").split("\n")[: len(start + lines)] == start + lines
    with pytest.raises(OSError, match="lines/x cannot be written"):
        append_line(path / "x", "line")
