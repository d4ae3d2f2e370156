# %% [markdown]
# # 2. Convolution, fast
#
# Nearly all arithmetic of a convolutional network is in layers that multiply and add. This tutorial
# takes one convolution of LeNet5 from seven loops in Python to the kernel of minidiff. It compares
# each version with the most that a core of this machine can do.
#
# - **You will do**: write a convolution six times, check each version against the first, time it,
#   draw which addresses its inner loop touches, and keep a tile of sums in registers.
# - **You will learn**: what limits a loop (the interpreter, memory, or arithmetic), why the batch
#   is the last axis in minidiff, and how any stride and padding become two lists of numbers.
# - **You need**: NumPy, and a rough idea of caches and vector instructions. No data, as the time
#   does not depend on the images.

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
from minidiff.cli.bench import kernel_calls
from minidiff.engine import arrays, kernels
from minidiff.engine.compiled import FASTMATH
from minidiff.engine.vectors import LANES

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
# of the output, with 8x8 positions (P, Q below). As the kernel is not mirrored, mathematicians call
# this a correlation; hence the name `correlate` later.
#
# Each term is a multiplication and an addition, so the work is twice the number of terms. The work
# divided by the time is a *rate* in GFLOP/s, which can be compared across sizes and with the
# machine. Other work on the machine must not count, so we use the clock of this process. It stands
# still while others have the core.

# %%
samples = 32 if SMALL else 128
x = rng.standard_normal((samples, 20, 12, 12), dtype=np.float32)  # (N, C, H, W)
weight = rng.standard_normal((50, 20, 5, 5), dtype=np.float32)  # (O, C, K, L)
out = np.empty((samples, 50, 8, 8), np.float32)
work = 2 * weight[0].size * out.size
print(f"{samples} samples: {work / 1e9:.3f} GFLOP, {x.nbytes / 1e6:.2f} MB of input")


# The clock of the process; on Windows its ticks are too long.
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
# *peak*: no useful loop can be faster. As it is a limit, its fastest call counts. `minidiff bench`
# has both loops.

# %%
calls = kernel_calls()
limits = {name: (calls[name][1], calls[name][0]) for name in ("matmul", "peak")}  # call, work
for name, pick in (("matmul", statistics.median), ("peak", min)):
    call, operations = limits[name]
    print(f"{name}: {operations / seconds(call, pick) / 1e9:.0f} GFLOP/s on one core")

# %% [markdown]
# The times below are medians. The first call is timed separately: it fills the caches and, with
# Numba, compiles. Every version must give the same result as the first, for this layer and for a
# small one of odd sizes.
#
# ## Seven loops
#
# This is the definition, written out. In float64 it is also our reference.


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
cases = []  # inputs, and the right output for the first samples
for images, filters, count in ((small, small_weight, 16), (x, weight, 1)):
    tall, wide = np.subtract(images.shape[2:], filters.shape[2:]) + 1
    right = np.empty((count, len(filters), tall, wide))
    seven_loops(images[:count].astype(np.float64), filters.astype(np.float64), right)
    cases.append((images, filters, right))

# %% [markdown]
# `verify` runs a version on both, and `measure` times it. Versions that have the batch last take
# (C, H, W, N) and return (O, P, Q, N). Transposing is not part of their time: a network transposes
# its inputs once, before the first layer.


# %%
def batch_last(array):  # aligned to 64 bytes, so that no vector crosses a cache line
    return arrays.aligned(np.moveaxis(array, 0, -1))


def verify(convolve, last=False):
    for images, filters, right in cases:
        shape = (len(images), *right.shape[1:])
        result = arrays.empty((*shape[1:], shape[0]) if last else shape, np.float32)
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
# We have no patience for more than one sample. For each multiplication Python looks up the types of
# both numbers again, and makes an object of the result.
#
# ## NumPy: a product of matrices
#
# NumPy looks up types once for a whole array. Which array operation is a convolution? Each output
# position has its own window of the input, and is a sum of products over c, k and l. The windows
# need no memory of their own. An array is an address, a shape, and *strides*: how far it is to the
# next element along each axis. One step down within a window is as far as the step to the window
# below, so the windows use the strides of the image twice.

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
# (*im2col*, Chellapilla et al. 2006), and leaves the rest to matrix multiplication. The copy is its
# cost: it does no arithmetic, and writes many times the size of the input.

# %%
columns = windows.transpose(0, 1, 4, 5, 2, 3)
copying = seconds(lambda: np.ascontiguousarray(columns))
whole = seconds(lambda: by_matmul(x, weight, out))
print(f"copying takes {copying / whole:.0%} of the time, and {columns.nbytes / 1e6:.1f} MB")
assert columns.nbytes > 10 * x.nbytes

# %% [markdown]
# ## Numba: the same loops
#
# Numba compiles a function when it is first called, for the types it is called with. We give it
# `seven_loops` unchanged, and permissions that C compilers ask for as well. Two of them matter
# here. Sums may be reordered (`reassoc`); without this the compiler may not use a vector of partial
# sums. And a multiplication and an addition may become one instruction (`contract`). NaN and
# infinity keep their meaning.

# %%
fast = njit(fastmath=FASTMATH, error_model="numpy")
print(f"permissions: {', '.join(sorted(FASTMATH))}")
compiled_loops = fast(seven_loops)
measure("seven loops, Numba", lambda: compiled_loops(x, weight, out))
verify(compiled_loops)

# %% [markdown]
# The interpreter's time is gone, but the limit is still far away. The innermost loop has five
# steps, then the address jumps. Five numbers do not fill vectors of 4, 8 or 16 evenly, and all of
# them go into a single sum. The strides tell where the numbers lie. Here are the first 64
# multiply-adds of these loops, and of loops with the batch last, where the innermost loop runs over
# samples.


# %%
def addresses(strides, sizes, count=64):
    """Which elements loops of these sizes touch first; the last loop is the innermost."""
    index = np.indices(sizes).reshape(len(sizes), -1)[:, :count]
    return np.array(strides) // x.itemsize @ index


x_last, out_last = batch_last(x), arrays.empty((50, 8, 8, samples), np.float32)
touched = {
    "channels first": addresses(x.strides[1:], (20, 5, 5)),  # c, k, l
    "batch last": addresses(x_last.strides, (20, 5, 5, samples)),  # c, k, l, n
}
line, runs = 64 // x.itemsize, {}  # numbers in a cache line; lengths of contiguous runs
for name, where in touched.items():
    lines = len(set(where // line))
    runs[name] = np.diff(np.flatnonzero(np.diff(where, prepend=-2, append=-2) != 1))
    print(f"{name}: {lines} cache lines of x, in runs of up to {max(runs[name])} numbers")
assert (runs["channels first"] <= 5).all()
assert (runs["batch last"] >= 32).all()


# %% tags=["hide-input"] mystnb={"image": {"alt": "Two grids of memory, 16 numbers in a row, a row for each cache line. Channels first: short pieces of five cells, scattered over the rows. Batch last: full rows, touched from left to right.", "width": "520px"}, "figure": {"caption": "Memory of x, a cache line of 64 bytes in each row. Coloured: the numbers that the first 64 multiply-adds read, dark first and bright last."}}
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
# With the batch as the last axis, one channel at one position is a contiguous run of numbers, one
# for each sample. The loop over samples becomes the innermost one. It is as long as the batch,
# whatever the number of channels and the size of the kernel. It needs no sum across a vector, and
# uses the same weight at each step.


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
# Now vectors are full, and memory is the limit. For each multiply-add of a vector the core loads
# the numbers of x, loads the sums, and stores the sums. The arithmetic units wait for these loads
# and stores.
#
# ## Sums in registers
#
# Fast matrix multiplication has the remedy (Goto and van de Geijn 2008): keep a *tile* of sums in
# registers while the loop goes over all terms of these sums, and use each loaded number several
# times. Take 5 filters, and as many samples and positions in a row as fill a few vectors. Then each
# number of x serves 5 filters, each weight serves a whole row of vectors, and a sum is stored once,
# when it is complete.

# %%
ROWS, TILE = kernels.ROWS, kernels.TILE
vectors = TILE // LANES
print(f"this machine: vectors of {LANES} numbers, tiles of {ROWS} x {vectors} vectors")
loads = vectors + ROWS  # of x, and of weights
print(f"a tile: {loads} loads for {ROWS * vectors} multiply-adds of vectors")
print("batch last: 2 loads and a store for each of them")
assert loads / (ROWS * vectors) < 1

# %% [markdown]
# How do we tell a compiler to use registers? A NumPy array lies in memory that other code might
# read, so the compiler must store every value there. Take instead a small array on the *stack*,
# which no other code can reach. Once the short loops over it are unrolled, every index is a
# constant. Then the compiler treats the elements as separate variables and keeps them in registers.
# Numba has no function for this, so we write an *intrinsic*: a function that emits the compiler's
# own instructions.


# %%
@intrinsic
def registers(typingctx, like):
    """Return the address of room on the stack, for a tile of the type of ``like``."""

    def generate(context, builder, signature, arguments):
        number = context.get_value_type(like.dtype)
        return alloca_once(builder, number, size=ROWS * TILE)

    return types.CPointer(like.dtype)(like), generate


# %% [markdown]
# The rest is plain Numba. Arrays are flat; `at[p]` is the address in x of the p-th term of a sum.
# Two things can be switched off, to see their effect: the registers, and unsigned indices. A signed
# index may be negative, and then counts from the end. So Numba compares each signed index with 0,
# in the innermost loop too.


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
# Around it run the loops over tiles. With the batch last, a whole row of output positions is
# contiguous in memory, in x as well as in the output. It is cut into tiles, which may begin or end
# in the middle of a position. The last tile of a row, and the last block of filters, overlap the
# ones before, so that all have the same size.


# %%
def tiled(in_registers=True, index=np.uint64):
    compute_tile = tile_kernel(in_registers, index)

    @fast
    def convolve(x, weight, out):
        (filters, channels, tall, wide), samples = weight.shape, x.shape[3]
        line, row = x.shape[2] * samples, out.shape[2] * samples
        terms, plane = channels * tall * wide, out.shape[1] * row
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
                for begin in range(0, row, TILE):
                    s = min(begin, row - TILE)
                    to = o * plane + i * row + s
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
# ## Any stride, any padding: taps and spans
#
# The tile does not depend on what a convolution is. It needs a list of the addresses of the terms
# of its sums. So minidiff stores this list as data. A *tap* pairs a kernel position with the input
# position that an output position reads through it. Neighbouring output positions with the same
# taps form a *span*. Where the kernel hangs over the edge, taps that would read padding are absent.
# Here is an image of one row of five positions, a kernel of three, and padding of one:


# %%
def explain(position_map, verb):
    for span, following in itertools.pairwise(position_map.spans.tolist()):
        (first, count, tap), end = span[:3], following[2]
        taps = [f"{at} through {kernel}" for at, kernel in position_map.taps[tap:end]]
        print(f"  {first}..{first + count - 1}: {first} {verb} {', '.join(taps)}")


forward_map, backward_map = kernels.position_maps((1, 5), (1, 3), (1, 1), (0, 1))
print("forward map: spans of outputs, and the inputs that the first output reads")
explain(forward_map, "reads")
print("backward map: spans of inputs, and the outputs that read the first input")
explain(backward_map, "is read by")
assert forward_map.spans[:-1, 1].tolist() == [1, 3, 1]

# %% [markdown]
# One function makes both maps. The *backward map* describes the *gradient of the input*: each input
# position collects from the outputs that read it, summed over *filters*. There the weight is read
# with its first two axes swapped (the third argument). A dense layer has a single output position
# and a single tap. So one kernel, `correlate` in `minidiff/engine/kernels.py`, computes all three.
# It is the tile from above, with blocks of 3 or 4 filters where the number of filters is no multiple
# of 5. It first copies the samples of a tile, with the channels of a position side by side. Taps
# whose input and kernel positions both follow each other are a *run*. A run, through all channels,
# then reads one contiguous run of numbers and one of weights, so the inner loop has no list of
# addresses. (Its first call may be short, as its compiled code is cached on disk.)


# %%
def correlate(x, weight, out, stride=(1, 1), padding=(0, 0), channels=None):
    forward_map, _ = kernels.position_maps(x.shape[1:3], weight.shape[2:], stride, padding)
    kernels.correlate(
        arrays.matrix(x), weight.reshape(*weight.shape[:2], -1), False,  # not swapped
        np.zeros(len(weight), np.float32),  # the bias
        np.arange(len(x)) if channels is None else channels,  # which channels to sum over
        np.arange(len(weight)),  # which filters to compute
        forward_map.spans, forward_map.runs, x.shape[3], arrays.matrix(out),
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
# The list of channels is data as well. A shorter list leaves channels out. Here we leave out every
# other channel: the result is the same as with zeros in these channels, and half of the terms are
# not computed. Pruning uses such lists for inputs and for outputs, forward and backward
# ([tutorial 7](07_compaction.py)).

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
# A busy or hot machine is faster at one moment than at the next. So a fair comparison runs all
# versions in turns, and compares medians. We time all versions once more.


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
# All bars do the same multiplications and additions. They differ in who looks up the types (the
# interpreter or the compiler), in the order in which memory is read, and in where the sums are
# stored.
#
# ## Threads
#
# All this was one core. minidiff's threads share out outputs, never the terms of a sum. So each sum
# is computed by one thread in one order, and results are bit-identical at any number of threads.

# %%
correlate(x_last, weight, out_last)
alone = out_last.copy()
numba.set_num_threads(threads)
correlate(x_last, weight, out_last)
assert np.array_equal(alone, out_last)
# Wall-clock time, as the clock of the process adds up the time of all threads.
taken = seconds(lambda: correlate(x_last, weight, out_last), clock=time.perf_counter)
print(f"threads: {threads}; {1000 * taken:.3f} ms, {work / taken / 1e9:.0f} GFLOP/s")
print("bit-identical to the result of one thread")

# %% [markdown]
# In a network all of this is {py:func}`minidiff.functional.conv2d`, forward and backward. Since a
# convolution is linear in x, its gradient can be checked without finite differences. Let $g$ be any
# gradient of the output $y$, and $g_x$ the gradient of x that it leads to. Then the inner product
# of $g$ and $y$ must equal the inner product of $g_x$ and $x$.

# %%
leaf = md.Tensor(x_last.astype(np.float64), requires_grad=True)
y = md.functional.conv2d(leaf, weight.astype(np.float64))
g = rng.standard_normal(y.shape)
y.backward(g)
assert np.allclose(y.data, alone, rtol=0, atol=1e-3)
assert np.isclose(np.vdot(g, y.data), np.vdot(leaf.grad, x_last), rtol=1e-9)

# %% [markdown]
# ## Exercises
#
# **Exercise 02.windows.** Write a view of all 2-d windows of `x` (N, C, H, W) that are `stride`
# apart, of shape (N, C, P, Q, size, size). Use `as_strided`, copy nothing, and do not reach beyond
# the end of `x`.


# %%
def strided_windows(x, size, stride):
    return x


check("02.windows", strided_windows)

# %% [markdown]
# **Exercise 02.tile.** A tile of $r$ filters by $v$ vectors needs $rv$ registers for sums, $v$ for
# the numbers of x, and one for the weight. It does $rv$ multiply-adds for $r + v$ loads. Which $(r,
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
# `minidiff/engine/kernels.py` has the kernels themselves, with the one for the gradient of the
# weight. [Design](../design.md) says what else was tried. `minidiff bench` measures the kernels of
# the whole network. [Tutorial 3](03_lenet5.py) trains it.
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
# With AVX-512, `kernels.py` uses 4 vectors although 5 would fit: 4 vectors of 16 are 64 samples,
# and a batch of 128 is exactly two such tiles.
