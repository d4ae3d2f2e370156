"""Checks of tutorial 2."""

import numpy as np
from support import exercise

import minidiff as md


@exercise(
    "02.windows",
    hint="the next window is stride times as far away as the next position; within a window\n"
    "the strides are those of x. There are (H - size) // stride + 1 windows in a column.",
)
def windows(answer):
    x = np.random.default_rng(0).standard_normal((2, 3, 9, 7)).astype(np.float32)
    for size, stride in ((3, 1), (3, 2), (2, 3), (7, 2)):
        found = answer(x, size, stride)
        assert found is not None, "it returned None."
        p, q = (9 - size) // stride + 1, (7 - size) // stride + 1
        shape = (2, 3, p, q, size, size)
        assert found.shape == shape, (
            f"size {size}, stride {stride}: it has shape {found.shape}, not {shape}."
        )
        assert np.shares_memory(found, x), "it is a copy."
        reach = found.__array_interface__["data"][0] - x.__array_interface__["data"][0]
        reach += sum((n - 1) * s for n, s in zip(found.shape, found.strides, strict=True))
        assert 0 <= reach < x.nbytes, "it reaches beyond the end of x."
        right = np.stack(
            [
                [x[:, :, i * stride :, j * stride :][:, :, :size, :size] for j in range(q)]
                for i in range(p)
            ]
        ).transpose(2, 3, 0, 1, 4, 5)
        assert np.array_equal(found, right), (
            f"for size {size} and stride {stride} some windows hold the wrong numbers."
        )


@exercise(
    "02.tile",
    hint="try all r and v with r * v + v + 1 registers or fewer; take the least\n"
    "(r + v) / (r * v).",
)
def tile(answer):
    for registers in (8, 16, 32):
        found = answer(registers)
        assert found is not None, "it returned None."
        r, v = found
        assert min(r, v) >= 1, f"for {registers} registers, {r} x {v} is no tile."
        assert (r, v) == (int(r), int(v)), f"{r} x {v} is no tile: both are whole numbers."
        assert r * v + v + 1 <= registers, (
            f"for {registers} registers, {r} x {v} needs {r * v + v + 1}."
        )
        best = min(
            (i + j) / (i * j)
            for i in range(1, registers)
            for j in range(1, registers)
            if i * j + j + 1 <= registers
        )
        assert (r + v) / (r * v) <= best + 1e-9, (
            f"for {registers} registers, {r} x {v} has {(r + v) / (r * v):.3f} loads a "
            f"multiply-add; {best:.3f} can be reached."
        )


@exercise(
    "02.grad_weight",
    hint="each weight reads a window of x that is as large as the output: take windows of\n"
    "size (P, Q), and sum over samples and positions.",
)
def grad_weight(answer):
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((4, 3, 8, 7)), rng.standard_normal((5, 3, 3, 2))
    grad = rng.standard_normal((4, 5, 6, 6))
    found = answer(x, grad)
    assert found is not None, "it returned None."
    found = np.asarray(found)
    assert found.shape == weight.shape, f"the shape is {found.shape}, not {weight.shape}."
    leaf = md.Tensor(weight, requires_grad=True)
    out = md.functional.conv2d(np.ascontiguousarray(np.moveaxis(x, 0, -1)), leaf)
    out.backward(np.ascontiguousarray(np.moveaxis(grad, 0, -1)))
    assert np.allclose(found, leaf.grad, rtol=1e-6, atol=1e-8), (
        f"it is off by up to {abs(found - leaf.grad).max():.2g}."
    )
