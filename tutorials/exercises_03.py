"""Checks of tutorial 3."""

import warnings

import numpy as np
from support import exercise


@exercise(
    "03.log_softmax",
    hint="subtract logits.max(axis=0) first; then log p = z - log(sum(exp(z))).",
)
def log_softmax(answer):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        small = np.log([[0.5, 0.2], [0.25, 0.2], [0.25, 0.6]])
        found = answer(small + 3.0)
        assert found is not None, "it returned None."
        assert np.shape(found) == (3, 2), f"the shape is {np.shape(found)}, not (3, 2)."
        assert np.allclose(found, small), f"for small logits it is {np.round(found, 3).tolist()}."
        large = np.float32([[100.0, -300.0], [10.0, 0.0], [0.0, 1000.0]])
        found = answer(large.copy())
        assert np.isfinite(found).all(), f"for logits of 100 or 1000 it has {found.ravel()}."
        expected = [[0.0, -1300.0], [-90.0, -1000.0], [-100.0, 0.0]]
        assert np.allclose(found, expected, atol=1e-3), f"it is {np.round(found, 3).tolist()}."


@exercise(
    "03.nesterov",
    hint="the velocity first; the step is lr * (gradient + momentum * v), v the new one.",
)
def nesterov(answer):
    w, v, gradient = np.array([1.0, -2.0]), np.array([0.5, 0.0]), np.array([0.2, -1.0])
    found = answer(w.copy(), v.copy(), gradient.copy(), 0.1, 0.9)
    assert found is not None, "it returned None."
    new_w, new_v = found
    expected = 0.9 * v + gradient
    assert np.allclose(new_v, expected), f"the velocity is {new_v}; expected {expected}."
    assert not np.allclose(new_w, w - 0.1 * expected), "that is momentum without the look-ahead."
    expected = w - 0.1 * (gradient + 0.9 * expected)
    assert np.allclose(new_w, expected), f"the weight is {new_w}; expected {expected}."


@exercise(
    "03.confusion",
    hint="np.add.at(table, (labels, answers), 1) counts pairs that come more than once.",
)
def confusion(answer):
    labels, answers = np.array([3, 3, 3, 5, 0, 5]), np.array([3, 5, 5, 3, 0, 5])
    found = answer(labels, answers)
    assert found is not None, "it returned None."
    assert np.shape(found) == (10, 10), f"the shape is {np.shape(found)}, not (10, 10)."
    found = np.asarray(found)
    assert (found[3, 5], found[5, 3]) != (1, 2), "rows are right classes, columns are answers."
    assert found[3, 5] != 1, "3 was taken for 5 twice, but counts once."
    assert (found[3, 5], found[5, 3]) == (2, 1), (
        f"3 was taken for 5 twice and 5 for 3 once, not {found[3, 5]} times and {found[5, 3]}."
    )
    assert found.sum() == 6, f"it counts {found.sum()} images of 6."
