"""Checks of tutorial 1."""

import warnings

import numpy as np
from support import exercise

import minidiff as md


@exercise(
    "01.step",
    hint="both errors are alike where h^2 is about eps / h^2; eps is np.finfo(np.float64).eps.",
)
def step(answer):
    assert answer is not None, "it is None."
    h = float(answer)
    assert h > 0, f"a step must be above 0, and it is {h}."
    assert h > 2e-5, f"with h = {h:.1e} rounding, eps / h^2, is the larger error by far."
    assert h < 2e-3, f"with h = {h:.1e} truncation, of order h^2, is the larger error by far."


@exercise(
    "01.dual",
    hint="(u + v)' = u' + v' and (u v)' = u' v + u v'; a plain number has derivative 0,\n"
    "and 2 * x asks for __rmul__.",
)
def dual(answer):
    cases = (
        ("x + x", lambda x: x + x, lambda x: 2),
        ("x * x", lambda x: x * x, lambda x: 2 * x),
        ("x * x * x + x", lambda x: x * x * x + x, lambda x: 3 * x**2 + 1),
        ("2 * x + 1", lambda x: 2 * x + 1, lambda x: 2),
        ("1 + x * 3", lambda x: 1 + x * 3, lambda x: 3),
        ("(x + 1) * (x + 2) * x", lambda x: (x + 1) * (x + 2) * x, lambda x: 3 * x**2 + 6 * x + 2),
    )
    for name, f, expected in cases:
        for x in (-1.5, 0.0, 2.0):
            found = answer(f, x)
            assert found is not None, "it returned None."
            assert abs(float(found) - expected(x)) < 1e-13 * (1 + abs(expected(x))), (
                f"for f(x) = {name} at {x} it is {float(found)!r}, not {expected(x)!r}."
            )
    ladder = answer(_ladder, 1.0)
    assert float(ladder) == 2.0**16, f"for x doubled 16 times it is {float(ladder)!r}, not 65536."


def _ladder(x):
    for _ in range(16):
        x = x + x
    return x


@exercise(
    "01.softplus",
    hint="log(1 + exp(x)) = max(x, 0) + log1p(exp(-|x|)); its derivative is the\n"
    "sigmoid, 1 / (1 + exp(-x)), which can be computed from exp(-|x|) as well.",
)
def softplus(answer):
    x = np.linspace(-4, 4, 24).reshape(3, 8)
    out = md.apply(answer(), md.Tensor(x))
    assert out.shape == x.shape, f"for x of shape {x.shape} the result has shape {out.shape}."
    wrong = abs(out.data - np.logaddexp(0, x)).max()
    assert wrong < 1e-9, f"the result is off by up to {wrong:.2g}."
    md.gradcheck(lambda t: md.apply(answer(), t), [md.Tensor(x, requires_grad=True)])
    far = md.Tensor(np.array([-1000.0, -50.0, 50.0, 1000.0]), requires_grad=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            out = md.apply(answer(), far)
            out.backward(np.ones(4))
        except RuntimeWarning as warning:
            raise AssertionError(f"for x of -1000..1000 NumPy warns: {warning}.") from warning
    assert np.allclose(out.data, np.logaddexp(0, far.data), rtol=1e-9, atol=1e-15), (
        f"for {far.data} the result is {out.data}."
    )
    assert np.allclose(far.grad, [0, 0, 1, 1]), f"for {far.data} the gradient is {far.grad}."
    single = md.apply(answer(), md.Tensor(np.ones(2, np.float32)))
    assert single.dtype == np.float32, f"a float32 input gives a {single.dtype} output."
