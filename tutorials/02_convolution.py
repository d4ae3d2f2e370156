# %% [markdown]
# # 2. Convolution, fast
#
# Nearly all arithmetic of a convolutional network is in layers that multiply and add. This tutorial
# takes one convolution of LeNet5 from seven loops in Python to the way in which minidiff computes
# it, and holds each step against what a core of this machine can do at most.
#
# - **You will do**: write a convolution six times, check each against the first, time it, draw
#   which addresses its inner loop touches, and keep a tile of sums in registers.
# - **You will learn**: what limits a loop (the interpreter, memory, or arithmetic), why the batch
#   is the last axis in minidiff, and how any stride and padding become two lists of numbers.
# - **You need**: NumPy, and a rough idea of caches and vector instructions. No data: the time does
#   not depend on what images show.

# %%
import itertools
import statistics
import sys
import time

import matplotlib.pyplot as plt
import numba
import numpy as np
from numba import carray, njit, types
from numba.core.cgutils import alloca_once
from numba.extending import intrinsic
from support import SMALL, check
from threadpoolctl import threadpool_limits

import minidiff as md
from minidiff.engine import kernels, memory
from minidiff.engine.compiled import FASTMATH

rng = np.random.default_rng(0)
BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#666666"
threads = numba.get_num_threads()
numba.set_num_threads(1)  # one core, until the end of this page
one_thread = threadpool_limits(1, "blas")

# %% [markdown]
# ## The work, and the limit
#
# The second convolution of LeNet5 takes 20 channels of 12x12 and has 50 filters of 5x5:
#
# $$ y_{n,o,i,j} = \sum_{c} \sum_{k} \sum_{l} w_{o,c,k,l} \; x_{n,c,i+k,j+l} . $$
#
# Here $n$ runs over samples and $c$ over *channels*. Each of the 50 *filters* $o$ makes one channel
# of the output, of 8x8 places (P, Q below). As the kernel is not mirrored, mathematicians call it a
# correlation; hence the name `correlate` later.
#
# Each term is a multiplication and an addition, so the work is twice the number of terms. Divided
# by the time it gives a *rate*, in GFLOP/s, that can be compared across sizes and with the machine.
# Other work on the machine must not count, so the clock is that of the process: it stands still
# while others have the core.

# %%
samples = 32 if SMALL else 128
x = rng.standard_normal((samples, 20, 12, 12), dtype=np.float32)  # (N, C, H, W)
weight = rng.standard_normal((50, 20, 5, 5), dtype=np.float32)  # (O, C, K, L)
out = np.empty((samples, 50, 8, 8), np.float32)
work = 2 * weight[0].size * out.size
print(f"{samples} samples: {work / 1e9:.3f} GFLOP, {x.nbytes / 1e6:.2f} MB of input")


# What the core did for us; Windows counts that in steps too large for this.
clock = time.perf_counter if sys.platform == "win32" else time.process_time


def burst(call, at_least, clock=clock):
    """Call a function, then call it again and again with the clock running."""
    call()
    times = []
    while not times or sum(times) < at_least:
        start = clock()
        call()
        times.append(clock() - start)
    return times


def seconds(call, pick=statistics.median, clock=clock):
    """The median time of a call, once it is warm."""
    return pick(burst(call, 0.05 if SMALL else 0.2, clock))


# %% [markdown]
# What can the core do? One measure is NumPy's matrix multiplication, which many people have made
# fast. Another is a loop of multiply-adds on numbers that never leave the registers. That is the
# peak: nothing useful can be faster. As it is to be a limit, its fastest call counts.

# %%
size = 512 if SMALL else 1024
a, b, c = (rng.standard_normal((size, size), dtype=np.float32) for _ in range(3))
tile, rounds = np.zeros((16, kernels.TILE), np.float32), 2000


def matmul():
    np.matmul(a, b, out=c)


def peak():
    kernels.multiply_add(rounds, tile)


limits = {
    "matmul": (matmul, 2 * size**3),
    "peak": (peak, 2 * kernels.ROWS * rounds * tile.size),
}
print(f"matmul: {limits['matmul'][1] / seconds(matmul) / 1e9:.0f} GFLOP/s on one core")
print(f"peak: {limits['peak'][1] / seconds(peak, pick=min) / 1e9:.0f} GFLOP/s on one core")

# %% [markdown]
# The times below are medians of calls that follow a first one, whose time is told apart: it fills
# the caches and, with Numba, compiles. Every version must give the numbers of the first one, for
# this layer and for a small one of odd sizes.
#
# ## Seven loops
#
# The definition, written out. In float64 it is also the measure of what is right.


# %%
def seven_loops(x, weight, out):
    for n in range(out.shape[0]):
        for o in range(out.shape[1]):
            for i in range(out.shape[2]):
                for j in range(out.shape[3]):
                    total = x.dtype.type(0)
                    for c in range(weight.shape[1]):
                        for k in range(weight.shape[2]):
                            for l in range(weight.shape[3]):  # noqa: E741 (l comes after k, as in the formula)
                                total += weight[o, c, k, l] * x[n, c, i + k, j + l]
                    out[n, o, i, j] = total


small = rng.standard_normal((16, 3, 7, 6), dtype=np.float32)
small_weight = rng.standard_normal((7, 3, 3, 2), dtype=np.float32)
cases = []  # inputs, and what is right for the first samples
for images, filters, count in ((small, small_weight, 16), (x, weight, 1)):
    tall, wide = np.subtract(images.shape[2:], filters.shape[2:]) + 1
    right = np.empty((count, len(filters), tall, wide))
    seven_loops(images[:count].astype(np.float64), filters.astype(np.float64), right)
    cases.append((images, filters, right))

# %% [markdown]
# `verify` runs a version on both, and `measure` times it. Versions that have the batch last take
# (C, H, W, N) and give (O, P, Q, N), and to transpose is not part of their time: in a network it is
# done once, at the door.


# %%
def batch_last(array):  # aligned to 64 bytes, so that no vector crosses a cache line
    moved = np.moveaxis(array, 0, -1)
    out = memory.empty(moved.shape, array.dtype)
    out[...] = moved
    return out


def verify(convolve, last=False):
    for images, filters, right in cases:
        shape = (len(images), *right.shape[1:])
        result = memory.empty((*shape[1:], shape[0]) if last else shape, np.float32)
        convolve(batch_last(images) if last else images, filters, result)
        result = np.moveaxis(result, -1, 0) if last else result
        assert np.allclose(result[: len(right)], right, rtol=0, atol=1e-3)


steps = {}


def measure(name, call, work=work):
    start = time.perf_counter()
    call()
    first = time.perf_counter() - start
    taken = seconds(call)
    steps[name] = call, work
    print(f"{name}: {1000 * taken:.3f} ms, {work / taken / 1e9:.3g} GFLOP/s")
    print(f"(the first call took {first:.2f} s)")


measure("seven loops, Python", lambda: seven_loops(x[:1], weight, out[:1]), work / samples)

# %% [markdown]
# One sample is all that we have patience for. Python spends its time on finding out, for each
# multiplication anew, what types it deals with, and on making an object of each number.
#
# ## NumPy: a product of matrices
#
# NumPy makes the decisions once for a whole array. What array operation is a convolution? Give each
# output place its own window of the input, and it is a sum of products over c, k and l. The windows
# need no memory of their own. An array is an address, a shape, and *strides*: how far to go for the
# next element of each axis. To step down within a window is the same move as to step to the window
# below, so the strides of the image are used twice.

# %%
strided = np.lib.stride_tricks.as_strided(
    x, (*x.shape[:2], 8, 8, 5, 5), x.strides + x.strides[2:], writeable=False
)
windows = np.lib.stride_tricks.sliding_window_view(x, (5, 5), axis=(2, 3))  # with checks
assert strided.shape == windows.shape
assert strided.strides == windows.strides
assert np.shares_memory(x, windows)
print(f"{windows.size / x.size:.1f} times as many elements, in the same memory")


# %%
def by_einsum(x, weight, out):
    windows = np.lib.stride_tricks.sliding_window_view(x, weight.shape[2:], axis=(2, 3))
    np.einsum("ncijkl,ockl->noij", windows, weight, out=out)


def by_matmul(x, weight, out):
    windows = np.lib.stride_tricks.sliding_window_view(x, weight.shape[2:], axis=(2, 3))
    windows = windows.transpose(0, 1, 4, 5, 2, 3)
    columns = windows.reshape(len(x), weight[0].size, -1)  # a copy
    flat = out.reshape(len(x), len(weight), -1)
    np.matmul(weight.reshape(len(weight), -1), columns, out=flat)


for convolve in (by_einsum, by_matmul):
    verify(convolve)
measure("NumPy, einsum", lambda: by_einsum(x, weight, out))
measure("NumPy, im2col and matmul", lambda: by_matmul(x, weight, out))

# %% [markdown]
# `einsum` walks the windows with a loop in C. The second version copies them into a matrix
# (*im2col*, Chellapilla et al. 2006), and leaves the rest to matrix multiplication. Its price is
# the copy, which does no arithmetic and writes many times the input:

# %%
columns = windows.transpose(0, 1, 4, 5, 2, 3)
copying = seconds(lambda: np.ascontiguousarray(columns))
whole = seconds(lambda: by_matmul(x, weight, out))
print(f"copying takes {copying / whole:.0%} of it, and {columns.nbytes / 1e6:.1f} MB")
assert columns.nbytes > 10 * x.nbytes

# %% [markdown]
# ## Numba: the same loops
#
# Numba compiles a function when it is first called, for the types it is called with. We give it
# `seven_loops` as it stands, and permissions that C compilers ask for as well. Two of them matter
# here. Sums may be reordered (`reassoc`), for without that a vector of partial sums is forbidden;
# and a multiplication and an addition may become one instruction (`contract`). NaN and infinity
# keep their meaning.

# %%
fast = njit(fastmath=FASTMATH, error_model="numpy")
print(f"permissions: {', '.join(sorted(FASTMATH))}")
compiled_loops = fast(seven_loops)
measure("seven loops, Numba", lambda: compiled_loops(x, weight, out))
verify(compiled_loops)

# %% [markdown]
# The time of the interpreter is gone, and the limit is still far. The innermost loop has five
# steps, then the address jumps; a run of five numbers is an awkward one for vectors of 4, 8 or 16,
# and all of them go into a single sum. To see where the numbers lie, ask the strides. Here are the
# first 64 multiply-adds of the loops as they are, and with the batch last, where the innermost loop
# runs over samples.


# %%
def addresses(strides, sizes, count=64):
    """Which elements loops of these sizes touch first; the last loop is the innermost."""
    index = np.indices(sizes).reshape(len(sizes), -1)[:, :count]
    return np.array(strides) // x.itemsize @ index


x_last, out_last = batch_last(x), memory.empty((50, 8, 8, samples), np.float32)
touched = {
    "channels first": addresses(x.strides[1:], (20, 5, 5)),  # c, k, l
    "batch last": addresses(x_last.strides, (20, 5, 5, samples)),  # c, k, l, n
}
line, runs = 64 // x.itemsize, {}  # numbers in a cache line; the runs of neighbours
for name, where in touched.items():
    lines = len(set(where // line))
    runs[name] = np.diff(np.flatnonzero(np.diff(where, prepend=-2, append=-2) != 1))
    print(f"{name}: {lines} cache lines of x, in runs of up to {max(runs[name])} numbers")
assert (runs["channels first"] <= 5).all()
assert (runs["batch last"] >= 32).all()


# %% tags=["hide-input"] mystnb={"image": {"alt": "Two grids of memory, 16 numbers in a row, a row for each cache line. Channels first: short pieces of five cells, scattered over the rows. Batch last: full rows, touched from left to right.", "width": "520px"}, "figure": {"caption": "Memory of x, a cache line of 64 bytes in each row. Coloured: what the first 64 multiply-adds read, dark first and bright last."}}
rows = max(where.max() for where in touched.values()) // line + 1
figure, panels = plt.subplots(1, 2, figsize=(5.2, 4.2), sharey=True, layout="constrained")
for axes, (name, where) in zip(panels, touched.items(), strict=True):
    cells = np.full(rows * line, np.nan)
    cells[where] = np.arange(len(where))
    axes.pcolormesh(cells.reshape(rows, line), cmap="viridis", edgecolors="#cccccc", linewidth=0.5)
    axes.set(xlabel=name, xticks=range(0, line, 4), yticks=range(0, rows, 5), aspect="equal")
panels[0].set_ylabel("cache line")
panels[0].invert_yaxis()
plt.show()

# %% [markdown]
# ## The batch last
#
# With the batch as the last axis, one channel at one place is a run of neighbours, one number for
# each sample. The loop over samples goes inside. It is as long as the batch, whatever the number of
# channels and the size of the kernel, it needs no sum across a vector, and weights do not depend on
# it.


# %%
def loops_batch_last(x, weight, out):
    out[:] = 0
    for o in range(out.shape[0]):
        for i in range(out.shape[1]):
            for j in range(out.shape[2]):
                for c in range(weight.shape[1]):
                    for k in range(weight.shape[2]):
                        for l in range(weight.shape[3]):  # noqa: E741 (l comes after k, as in the formula)
                            w = weight[o, c, k, l]
                            for n in range(out.shape[3]):
                                out[o, i, j, n] += w * x[c, i + k, j + l, n]


compiled_last = fast(loops_batch_last)
measure("batch last, Numba", lambda: compiled_last(x_last, weight, out_last))
verify(compiled_last, last=True)

# %% [markdown]
# Now vectors are full, and something else is in the way. For each multiply-add of a vector the core
# loads the numbers of x, loads the sums, and stores the sums. Arithmetic units wait for that.
#
# ## Sums in registers
#
# Fast matrix multiplication has the remedy (Goto and van de Geijn 2008): keep a *tile* of sums in
# registers while the loop goes over all terms of these sums, and use each number that is loaded
# several times. Take 5 filters, and as many samples and places in a row as fill a few vectors. Each
# number of x then serves 5 filters, each weight a whole row of vectors, and a sum is stored once,
# when it is complete.

# %%
ROWS, TILE, LANES = kernels.ROWS, kernels.TILE, kernels.LANES
vectors = TILE // LANES
print(f"this machine: vectors of {LANES} numbers, tiles of {ROWS} x {vectors} vectors")
loads = vectors + ROWS  # of x, and of weights
print(f"a tile: {loads} loads for {ROWS * vectors} multiply-adds of vectors")
print("batch last: 2 loads and a store for each of them")
assert loads / (ROWS * vectors) < 1

# %% [markdown]
# How does one tell a compiler to use registers? A NumPy array lies in memory that others might see,
# so what is written there must be written. Take instead a small array on the *stack*, which nobody
# else can see. Once its short loops are unrolled, every index into it is a constant, and the
# compiler treats its elements as separate variables and keeps them in registers. Numba has no word
# for this; an *intrinsic*, a function that emits the compiler's own instructions, supplies it.


# %%
@intrinsic
def registers(typingctx, like):
    """Return the address of room on the stack, for a tile of the type of ``like``."""

    def generate(context, builder, signature, arguments):
        number = context.get_value_type(like.dtype)
        return alloca_once(builder, number, size=ROWS * TILE)

    return types.CPointer(like.dtype)(like), generate


# %% [markdown]
# The rest is plain Numba. Arrays are flat; `at[p]` says where the p-th term of a sum finds its x.
# Two things can be switched off, to see what they are good for: the registers, and unsigned
# indices. A signed index may be negative, and then counts from the end; Numba provides for that
# with a comparison and a choice each time, in the innermost loop too.


# %%
def tile_kernel(in_registers, index):
    rows, tile = index(ROWS), index(TILE)  # these are constants to the compiler

    @fast
    def compute_tile(x, weight, out, start, at, first, row, to, plane):
        if in_registers:
            sums = carray(registers(x), (ROWS, TILE))
        else:
            sums = np.empty((ROWS, TILE), x.dtype)
        for s in range(tile):
            for r in range(rows):
                sums[r, s] = 0
        for p in range(index(at.size)):
            from_x, from_weight = start + at[p], first + p
            for s in range(tile):
                for r in range(rows):
                    sums[r, s] += weight[from_weight + r * row] * x[from_x + s]
        for s in range(tile):
            for r in range(rows):
                out[to + r * plane + s] = sums[r, s]

    return compute_tile


# %% [markdown]
# Around it run the loops over tiles. With the batch last, a whole row of output places is one run
# of memory, in x as well as in the output, and is cut into tiles without regard to where a place
# ends. The last tile of a run, and the last block of filters, overlap the ones before, so that none
# is narrower than the others.


# %%
def tiled(in_registers=True, index=np.uint64):
    compute_tile = tile_kernel(in_registers, index)

    @fast
    def convolve(x, weight, out):
        (filters, channels, tall, wide), samples = weight.shape, x.shape[3]
        line, run = x.shape[2] * samples, out.shape[2] * samples
        terms, plane = channels * tall * wide, out.shape[1] * run
        at, p = np.empty(terms, index), 0
        for c in range(channels):
            for k in range(tall):
                for l in range(wide):  # noqa: E741 (l comes after k, as in the formula)
                    at[p] = (c * x.shape[1] + k) * line + l * samples
                    p += 1
        flat_x, flat_weight, flat_out = x.reshape(-1), weight.reshape(-1), out.reshape(-1)
        for block in range(0, filters, ROWS):
            o = min(block, filters - ROWS)
            for i in range(out.shape[1]):
                for begin in range(0, run, TILE):
                    s = min(begin, run - TILE)
                    to = o * plane + i * run + s
                    compute_tile(
                        flat_x, flat_weight, flat_out, index(i * line + s), at,
                        index(o * terms), index(terms), index(to), index(plane),
                    )  # fmt: skip

    return convolve


variants = {
    "tiles": tiled(),
    "tiles, sums in memory": tiled(in_registers=False),
    "tiles, signed indices": tiled(index=np.int64),
}
for name, convolve in variants.items():
    measure(name, lambda convolve=convolve: convolve(x_last, weight, out_last))
    verify(convolve, last=True)

# %% [markdown]
# ## Any stride, any padding: runs and parts
#
# The tile never asks what a convolution is. It wants a list of where the terms of its sums are. So
# minidiff makes the list data. A *part* says: through this place of the kernel I see that place of
# the input. Neighbouring output places that see alike form a *run*. Where the kernel hangs over the
# edge, what padding hides is absent from the list. Here is an image of one row of five places, a
# kernel of three, and padding of one:


# %%
def explain(geometry, verb):
    runs = geometry.runs.tolist()
    for (first, count, part), (_, _, end) in itertools.pairwise(runs):
        pairs = [f"{place} through {kernel}" for place, kernel in geometry.parts[part:end]]
        print(f"  {first}..{first + count - 1}: {first} {verb} {', '.join(pairs)}")


seen, seeing = kernels.geometry((1, 5), (1, 3), (1, 1), (0, 1))
print("outputs, and the inputs that the first of a run sees:")
explain(seen, "sees")
print("inputs, and the outputs that see the first of a run:")
explain(seeing, "is seen by")
assert seen.runs[:-1, 1].tolist() == [1, 3, 1]

# %% [markdown]
# One function makes both lists, from both sides. The second describes the *gradient of the input*:
# each input place collects from the outputs that saw it, summed over *filters*, so there the weight
# is read with its first two axes swapped (the third argument). A dense layer has a single output
# place, which sees each feature as an input place of its own. So one kernel, `correlate` in
# `minidiff/engine/kernels.py`, computes all of these. It is the tile from above, with loops over
# channels and parts, and blocks of 3 or 4 filters where 5 do not divide them. (Its first call may
# be short: once compiled it is kept on disk.)


# %%
def correlate(x, weight, out, stride=(1, 1), padding=(0, 0), channels=None):
    seen, _ = kernels.geometry(x.shape[1:3], weight.shape[2:], stride, padding)
    kernels.correlate(
        memory.rows(x), weight.reshape(*weight.shape[:2], -1), False,  # not swapped
        np.zeros(len(weight), np.float32),  # the bias
        np.arange(len(x)) if channels is None else channels,  # which to sum over
        np.arange(len(weight)),  # which to compute
        seen.runs, seen.parts, x.shape[3], memory.rows(out),
    )  # fmt: skip


measure("minidiff", lambda: correlate(x_last, weight, out_last))
verify(correlate, last=True)

padded = np.pad(small, [(0, 0), (0, 0), (1, 1), (1, 1)])
right = np.empty((16, 7, 7, 7))
seven_loops(padded.astype(float), small_weight.astype(float), right)
result = np.empty((7, 4, 4, 16), np.float32)
correlate(batch_last(small), small_weight, result, stride=(2, 2), padding=(1, 1))
assert np.allclose(np.moveaxis(result, -1, 0), right[:, :, ::2, ::2], rtol=0, atol=1e-3)

# %% [markdown]
# The list of channels is data as well. To leave out every other channel is to give a shorter list:
# the result is what zeros would have given, and half of the terms are not computed. Pruning will
# use such lists for inputs and for outputs, forward and backward ([tutorial 7](07_compaction.py)).

# %%
half, zeroed = np.arange(0, 20, 2), x_last.copy()
zeroed[1::2] = 0
expected = np.empty_like(out_last)
correlate(zeroed, weight, expected)
correlate(x_last, weight, out_last, channels=half)
assert np.allclose(out_last, expected, rtol=0, atol=1e-3)
share = seconds(lambda: correlate(x_last, weight, out_last, channels=half))
share /= seconds(lambda: correlate(x_last, weight, out_last))
print(f"half of the channels take {share:.0%} of the time")

# %% [markdown]
# ## All of it, side by side
#
# A machine that does other things as well, or grows hot, is faster at one moment than at the next.
# What is to be compared must run in turns, and medians are compared. So we do it once more.


# %%
steps |= limits
times = {name: [] for name in steps}
for _ in range(3 if SMALL else 7):
    for name, (call, _) in steps.items():
        times[name] += burst(call, 0.03)
rates = {}
for name, (_, work_done) in steps.items():
    typical = min(times[name]) if name == "peak" else statistics.median(times[name])
    rates[name] = work_done / typical / 1e9
for name, rate in rates.items():
    print(f"{name:26}{rate:9.3f} GFLOP/s {rate / rates['peak']:9.3%} of the peak")

# %% tags=["hide-input"] mystnb={"image": {"alt": "Horizontal bars on a log axis: the rate of each version in GFLOP/s, from seven loops in Python at the top to minidiff at the bottom, with vertical lines at the rate of matrix multiplication and at the peak. The numbers are in the table printed above.", "width": "640px"}, "figure": {"caption": "From the interpreter to the limit, on one core, on a log axis. In grey, tiles without one of their ingredients; the lines are NumPy's matrix multiplication and the multiply-add peak."}}
shown = [name for name in rates if name not in limits]
colours = [GREY if name.startswith("tiles,") else BLUE for name in shown]
figure, axes = plt.subplots(figsize=(6.2, 4.4), layout="constrained")
axes.barh(shown, [rates[name] for name in shown], color=colours)
for at, name in enumerate(shown):
    axes.annotate(f"{rates[name]:.3g}", (rates[name], at), (4, 0), va="center",
                  textcoords="offset points",
                  bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5})  # fmt: skip
for name, side in (("matmul", "right"), ("peak", "left")):
    axes.axvline(rates[name], color=ORANGE, linewidth=1, zorder=0)
    axes.annotate(f" {name} ", (rates[name], -0.7), color=ORANGE, ha=side)
axes.set(xscale="log", xlabel="GFLOP/s", ylim=(len(shown) - 0.4, -1.1))
axes.set_xlim(right=4 * max(rates.values()))
axes.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# In each bar are the same multiplications and additions. What differs is who decides (the
# interpreter or the compiler), in which order memory is read, and where the sums are kept.
#
# ## Threads
#
# All this was one core. Outputs can be shared out among several, and that is the only thing which
# minidiff's threads share out, never the terms of a sum. So each sum is computed by one thread in
# one order, and results have the same bits at any number of threads.

# %%
correlate(x_last, weight, out_last)
alone = out_last.copy()
numba.set_num_threads(threads)
correlate(x_last, weight, out_last)
assert np.array_equal(alone, out_last)
# The clock on the wall: that of the process adds up the time of all threads.
taken = seconds(lambda: correlate(x_last, weight, out_last), clock=time.perf_counter)
print(f"threads: {threads}; {1000 * taken:.3f} ms, {work / taken / 1e9:.0f} GFLOP/s")
print("and the same bits as with one")

# %% [markdown]
# In a network all of this is {py:func}`minidiff.ops.conv2d`, forward and backward. Since a
# convolution is linear in x, its gradient can be checked without any small step: for any arrays g
# and x, the product of g with the output must be that of the gradient with x.

# %%
leaf = md.Tensor(x_last.astype(np.float64), requires_grad=True)
y = md.ops.conv2d(leaf, weight.astype(np.float64))
g = rng.standard_normal(y.shape)
y.backward(g)
assert np.allclose(y.data, alone, rtol=0, atol=1e-3)
assert np.isclose(np.vdot(g, y.data), np.vdot(leaf.grad, x_last), rtol=1e-9)

# %% [markdown]
# ## Exercises
#
# **Exercise 02.windows.** Write a view of all 2-d windows of `x` (N, C, H, W) that are `stride`
# apart, of shape (N, C, P, Q, size, size), by `as_strided`: no copy, and nothing beyond the end of
# `x`.


# %%
def strided_windows(x, size, stride):
    return x


check("02.windows", strided_windows)

# %% [markdown]
# **Exercise 02.tile.** A tile of $r$ filters by $v$ vectors needs $rv$ registers for sums, $v$ for
# the numbers of x and one for the weight. It does $rv$ multiply-adds for $r + v$ loads. Which $(r,
# v)$ has the fewest loads for each multiply-add, given the number of registers (32 with AVX-512, 16
# with AVX2)?


# %%
def best_tile(registers):
    return 1, 1


check("02.tile", best_tile)

# %% [markdown]
# **Exercise 02.grad_weight.** Write the gradient of the weight, (O, C, K, L), from x (N, C, H, W)
# and the gradient of the output, (N, O, P, Q). One `einsum` over windows of the right size will do.


# %%
def grad_weight(x, grad):
    return None


check("02.grad_weight", grad_weight)

# %% [markdown]
# ## What next
#
# `minidiff/engine/kernels.py` has the kernels themselves, among them that of the weight's gradient,
# and [design](../design.md) tells what else was tried. `minidiff bench` measures
# the kernels of the whole network. [Tutorial 3](03_lenet5.py) trains it.
#
# ### Solutions


# %% tags=["hide-input"]
def strided_windows_solution(x, size, stride):
    n, c, height, width = x.shape
    p, q = (height - size) // stride + 1, (width - size) // stride + 1
    of_n, of_c, down, right = x.strides
    strides = of_n, of_c, stride * down, stride * right, down, right
    return np.lib.stride_tricks.as_strided(x, (n, c, p, q, size, size), strides, writeable=False)


def best_tile_solution(registers):
    fits = [
        (r, v)
        for r in range(1, registers)
        for v in range(1, registers)
        if r * v + v + 1 <= registers
    ]
    return min(fits, key=lambda tile: (tile[0] + tile[1]) / (tile[0] * tile[1]))


def grad_weight_solution(x, grad):
    windows = np.lib.stride_tricks.sliding_window_view(x, grad.shape[2:], axis=(2, 3))
    return np.einsum("ncklij,noij->ockl", windows, grad, optimize=True)


assert check("02.windows", strided_windows_solution)
assert check("02.tile", best_tile_solution)
assert check("02.grad_weight", grad_weight_solution)
for count in (32, 16):
    print(f"{count} registers: a tile of {best_tile_solution(count)}")

# %% [markdown]
# With AVX-512 `kernels.py` takes 4 vectors where 5 would fit: 4 vectors of 16 are 64 samples, and
# a batch of 128 is two such tiles with nothing left over.
