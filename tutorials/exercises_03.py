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
    for lr, momentum in ((0.1, 0.9), (0.5, 0.6)):
        found = answer(w.copy(), v.copy(), gradient.copy(), lr, momentum)
        assert found is not None, "it returned None."
        new_w, new_v = found
        velocity = momentum * v + gradient
        weight = w - lr * (gradient + momentum * velocity)
        swapped = np.allclose(new_w, velocity) and np.allclose(new_v, weight)
        assert not swapped, "it returns the velocity before the weight."
        assert np.allclose(new_v, velocity), f"the velocity is {new_v}; expected {velocity}."
        for step, wrong in (
            (gradient, "the weight takes a step without momentum."),
            (velocity, "that is momentum without the look-ahead, which needs the new velocity."),
        ):
            assert not np.allclose(new_w, w - lr * step), wrong
        assert np.allclose(new_w, weight), f"the weight is {new_w}; expected {weight}."


@exercise(
    "03.confusion",
    hint="np.add.at(table, (labels, answers), 1) counts pairs that come more than once.",
)
def confusion(answer):
    rng = np.random.default_rng(3)
    for labels, answers in (
        (np.array([3, 3, 3, 5, 0, 5]), np.array([3, 5, 5, 3, 0, 5])),
        (rng.integers(0, 10, 500), rng.integers(0, 10, 500)),
    ):
        expected = np.zeros((10, 10), np.int64)
        for truth, guess in zip(labels, answers, strict=True):
            expected[truth, guess] += 1
        found = answer(labels.copy(), answers.copy())
        assert found is not None, "it returned None."
        assert np.shape(found) == (10, 10), f"the shape is {np.shape(found)}, not (10, 10)."
        found = np.asarray(found)
        assert not np.array_equal(found, expected.T), (
            "rows are the right classes and columns the answers, not the reverse."
        )
        assert not np.array_equal(found, expected > 0), (
            "a pair counts once, however often it comes."
        )
        for i, j in np.argwhere(found != expected)[:1]:
            times, count = expected[i, j], found[i, j]
            raise AssertionError(f"element ({i}, {j}) is {count}; {i} was taken for {j} {times}x.")
