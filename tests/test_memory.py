"""Memory that is used again: never while anything can still see it."""

import gc
import sys
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minidiff.engine import memory
from minidiff.engine.memory import ALIGNMENT, SMALL

LARGE = SMALL // 4 + 1  # float32 numbers


def address(x: Any) -> int:
    return int(x.__array_interface__["data"][0])


@given(
    st.lists(st.integers(0, 40), max_size=4),
    st.sampled_from([np.float32, np.float64, np.uint8, np.bool_]),
)
def test_arrays_have_the_shape_and_the_dtype_asked_for(shape: list[int], dtype: Any) -> None:
    out = memory.empty(tuple(shape), dtype)
    assert out.shape == tuple(shape)
    assert out.dtype == dtype
    assert out.flags.c_contiguous
    assert out.flags.writeable
    assert not memory.zeros(tuple(shape), dtype).any()


def test_large_arrays_are_aligned() -> None:
    kept = [memory.empty((LARGE + i,), np.float32) for i in range(20)]
    assert {address(x) % ALIGNMENT for x in kept} == {0}


def test_memory_is_used_again_once_nothing_refers_to_it() -> None:
    first = memory.empty((LARGE, 3), np.float32)
    where = address(first)
    other = memory.empty((LARGE, 3), np.float32)
    assert address(other) != where
    del first
    gc.collect()
    assert address(memory.empty((3, LARGE), np.float32)) == where


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x[1:, ::2],
        lambda x: x.reshape(-1)[5:],
        lambda x: x.T.view(np.int32),
        lambda x: memoryview(x),
        lambda x: np.broadcast_to(x[0], (2, x.shape[1])),
    ],
)
def test_a_view_keeps_its_memory(view: Any) -> None:
    x = memory.zeros((LARGE, 5), np.float32)
    seen = view(x)
    before = np.array(seen)
    del x
    gc.collect()
    others = [memory.empty((LARGE, 5), np.float32) for _ in range(3)]
    for other in others:
        other.fill(1)
    np.testing.assert_array_equal(np.array(seen), before)


def test_unused_memory_is_given_back_when_there_is_too_much(monkeypatch: Any) -> None:
    monkeypatch.setattr(memory, "LIMIT", 10 * LARGE * 4)
    for i in range(50):
        memory.empty((LARGE + i,), np.float32)
    held = sum(size * len(buffers) for size, buffers in memory._buffers.items())
    assert held <= 12 * LARGE * 4


def test_threads_never_share_memory_in_use() -> None:
    wrong: list[int] = []

    def work(number: int) -> None:
        for _ in range(300):
            x = memory.empty((LARGE, 2), np.float32)
            x.fill(number)
            if (x != number).any():
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_aligned_copies_only_what_is_not() -> None:
    x = memory.zeros((LARGE + 16,), np.float32)
    assert memory.aligned(x) is x
    crooked = x[1:]
    straight = memory.aligned(crooked)
    assert address(straight) % ALIGNMENT == 0
    np.testing.assert_array_equal(straight, crooked)
    assert memory.aligned(x[::2]).flags.c_contiguous


def test_threads_that_ask_for_ever_new_sizes_do_not_disturb_each_other() -> None:
    wrong: list[str] = []
    interval = sys.getswitchinterval()

    def work(number: int) -> None:
        try:
            for turn in range(2000):
                memory.empty((SMALL + (turn * 7919 + number) % 500 * 64,), np.uint8).fill(0)
        except Exception as error:
            wrong.append(repr(error))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not wrong


def test_what_is_in_use_is_used_again_later_however_much_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "LIMIT", 4 * memory.SMALL)
    monkeypatch.setattr(memory, "_buffers", type(memory._buffers)(memory._buffers.default_factory))
    first = [memory.empty((memory.SMALL,), np.uint8) for _ in range(10)]
    addresses = {array.ctypes.data for array in first}
    del first
    again = [memory.empty((memory.SMALL,), np.uint8) for _ in range(10)]
    assert {array.ctypes.data for array in again} == addresses
    del again
    memory.empty((2 * memory.SMALL,), np.uint8)  # now the ten are more than is kept unused
    assert sum(map(len, memory._buffers.values())) == 1


def test_what_is_read_only_or_strided_is_copied_and_all_else_taken_as_it_is() -> None:
    x = np.arange(12.0).reshape(3, 4)
    assert memory.plain(x) is x
    frozen = x.copy()
    frozen.flags.writeable = False
    for odd in (frozen, x.T, x[:, ::2]):
        taken = memory.plain(odd)
        assert taken.flags.c_contiguous
        assert taken.flags.writeable
        np.testing.assert_array_equal(taken, odd)
