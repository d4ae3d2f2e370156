"""Checks of tutorial 8."""

import math

from support import exercise


@exercise("08.front", hint="drop a pair if another pair has error <= and fewer >= its own.")
def front(answer):
    points = [(0.9, 10.0), (1.0, 200.0), (0.6, 30.0), (0.7, 20.0), (0.8, 100.0), (0.8, 90.0)]
    points.append((0.65, 30.0))
    found = answer(list(points))
    assert found is not None, "it returned None."
    found = [tuple(pair) for pair in found]
    assert (0.7, 20.0) not in found, "0.7 % at 20x is beaten by 0.6 % at 30x."
    assert (0.8, 90.0) not in found, "0.8 % at 90x is beaten by 0.8 % at 100x."
    assert (0.65, 30.0) not in found, "0.65 % at 30x is beaten by 0.6 % at 30x."
    best = [(0.6, 30.0), (0.8, 100.0), (1.0, 200.0)]
    missing = [pair for pair in best if pair not in found]
    assert not missing, f"no other pair beats {missing}, and it is left out."
    assert sorted(found) != best or found == best, "the pairs are right, but not sorted by fewer."
    assert found == best, f"it returned {found}."


@exercise(
    "08.weights", hint="filters of 5x5 over 1 and over a channels; then c times d, and ten classes."
)
def weights(answer):
    for architecture, expected in (("20-50-800-500", 430_500), ("8-10-112-68", 10_496)):
        found = answer(architecture)
        assert found == expected, f"{architecture} has {expected:,} weights, not {found}."


@exercise(
    "08.deviations",
    hint="the variance of a rate p over n images is p (1 - p) / n, and variances add.",
)
def deviations(answer):
    for first, second, images in ((0.60, 0.66, 10_000), (1.2, 0.8, 1_000)):
        found = answer(first, second, images)
        assert found is not None, "it returned None."
        p, q = first / 100, second / 100
        expected = abs(p - q) / math.sqrt((p * (1 - p) + q * (1 - q)) / images)
        assert math.isclose(abs(found), expected, rel_tol=1e-2), (
            f"{first} % and {second} % over {images:,} images gave {found:.3g}."
        )
