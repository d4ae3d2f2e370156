"""The three facts of the gate transform, which everything about gates rests on."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import minidiff as md
from tests.strategies import arrays, dtypes, off_zero, seeds, shapes

Vectors = NDArray[np.float64]
widths = st.floats(1e-3, 1e3)


def slope(x: NDArray[Any], width: float) -> NDArray[Any]:
    """The derivative of the transform, as the tape gives it."""
    leaf = md.Tensor(x, requires_grad=True)
    md.binary_gate(leaf, width).backward(np.ones_like(x))
    assert leaf.grad is not None
    return leaf.grad


def floats_around(x: float, dtype: Any) -> NDArray[Any]:
    """The floating-point neighbours of x: eight below it, itself, eight above."""
    below, above = [dtype(x)], [dtype(x)]
    for _ in range(8):
        below.append(np.nextafter(below[-1], dtype(-np.inf)))
        above.append(np.nextafter(above[-1], dtype(np.inf)))
    return np.array(below[:0:-1] + above, dtype)


# -- fact 1: exact zeros and ones; a smooth step between ---------------------------------------


@given(widths, dtypes, seeds)
@example(0.1, np.float32, 0)  # 0.1 is above its float64 and rounds up in float32
@example(0.7, np.float32, 0)  # rounds down
def test_it_is_exactly_0_at_and_below_minus_half_the_width_and_nowhere_else(width, dtype, seed):
    half = dtype(width) / dtype(2)
    edge = floats_around(-half, dtype)
    rest = dtype(width) * np.random.default_rng(seed).uniform(-2, 2, 50).astype(dtype)
    x = np.concatenate([edge, rest, dtype([-np.inf, np.inf, 0, -0.0])])
    np.testing.assert_array_equal(md.binary_gate(x, width) == 0, x <= -half)


@given(widths, dtypes, seeds)
def test_it_is_exactly_1_at_and_above_half_the_width_and_nowhere_else(width, dtype, seed):
    half = dtype(width) / dtype(2)
    rest = dtype(width) * np.random.default_rng(seed).uniform(-2, 2, 50).astype(dtype)
    x = np.concatenate([floats_around(half, dtype), rest, dtype([-np.inf, np.inf, 0])])
    one = md.binary_gate(x, width) == 1
    assert one[x >= half].all()
    # Near its top 1 - g is 3 (x / w - 1/2)^2: it rounds to 0 a square root of the precision early.
    early = half - dtype(width) * np.sqrt(np.finfo(dtype).eps)
    assert not one[x < early].any()


@given(widths, seeds)
def test_the_edges_hold_for_the_width_as_given_though_float32_rounds_it(width, seed):
    # x is compared with the width in float64, the transform sees it in float32.
    rest = (width * np.random.default_rng(seed).uniform(-1, 1, 50)).astype(np.float32)
    edges = [floats_around(sign * width / 2, np.float32) for sign in (-1, 1)]
    x = np.concatenate([*edges, rest])
    z = md.binary_gate(x, width)
    assert (z[x.astype(np.float64) <= -width / 2] == 0).all()
    assert (z[x.astype(np.float64) >= width / 2] == 1).all()


@given(widths, dtypes, seeds)
def test_it_stays_in_0_to_1_and_rises(width, dtype, seed):
    rng = np.random.default_rng(seed)
    x = np.sort((width * rng.uniform(-0.6, 0.6, 500)).astype(dtype))
    z = md.binary_gate(x, width)
    assert z.min() >= 0
    assert z.max() <= 1
    # Each of its few roundings can take a step back by half a unit in the last place.
    assert (np.diff(z) >= -4 * np.finfo(dtype).eps).all()
    apart = np.diff(x) > 1e-3 * width
    inside = apart & (z[:-1] > 0.01) & (z[1:] < 0.99)
    assert (np.diff(z)[inside] > 0).all()


@given(widths, st.floats(-0.5, 0.5))
def test_it_is_the_cubic_of_the_documentation(width, place):
    t = place + 0.5
    z = md.binary_gate(np.array(place * width), width)
    assert z == pytest.approx(3 * t**2 - 2 * t**3, abs=1e-12)


@given(widths, seeds)
def test_it_is_symmetric_about_one_half(width, seed):
    x = width * np.random.default_rng(seed).uniform(-1, 1, 100)
    np.testing.assert_allclose(
        md.binary_gate(x, width) + md.binary_gate(-x, width), 1, rtol=0, atol=1e-14
    )


@given(widths, seeds)
def test_its_slope_lies_between_0_and_3_over_twice_the_width(width, seed):
    x = np.append(width * np.random.default_rng(seed).uniform(-1, 1, 200), 0)
    derivative = slope(x, width)
    assert derivative.min() >= 0
    assert derivative.max() <= 1.5 / width * (1 + 1e-15)
    assert derivative[-1] == pytest.approx(1.5 / width)  # the bound is reached, at 0


@given(widths, seeds)
def test_its_slope_is_continuous(width, seed):
    # g'' is at most 6 / w^2, so the slope cannot change by more than that times the distance.
    x = np.sort(width * np.random.default_rng(seed).uniform(-1, 1, 1000))
    x = np.sort(np.concatenate([x, floats_around(-width / 2, np.float64)]))
    change = np.abs(np.diff(slope(x, width)))
    assert (change <= 6 / width**2 * np.diff(x) + 1e-12 / width).all()


@given(st.data(), st.floats(0.1, 10))
def test_its_gradient_is_the_slope_of_finite_differences(data, width):
    x = data.draw(shapes.flatmap(lambda shape: arrays(shape, -width, width)))
    assert md.gradcheck(lambda t: md.binary_gate(t, width), [md.Tensor(x, requires_grad=True)])


# -- fact 2: approximately Bernoulli, whatever the distribution --------------------------------


@given(widths, dtypes, seeds)
def test_it_differs_from_the_sign_by_a_half_at_most_and_only_within_the_width(width, dtype, seed):
    x = (width * np.random.default_rng(seed).uniform(-1, 1, 200)).astype(dtype)
    x = np.concatenate([x, floats_around(-width / 2, dtype), floats_around(width / 2, dtype)])
    x = np.append(x, dtype(0))
    away = np.abs(md.binary_gate(x, width) - (x > 0))
    assert away.max() <= 0.5 + np.finfo(dtype).eps
    assert (away[np.abs(x) >= dtype(width) / 2] == 0).all()


def normal(rng: np.random.Generator) -> Vectors:
    return rng.standard_normal((20_000, 4))


def cauchy(rng: np.random.Generator) -> Vectors:
    return rng.standard_cauchy((20_000, 4))


def uniform(rng: np.random.Generator) -> Vectors:
    return rng.uniform(-0.3, 2, (20_000, 4))


def mixture(rng: np.random.Generator) -> Vectors:
    """Bimodal, with one element in ten exactly 0."""
    modes = rng.choice([-2.0, 1.0], (20_000, 4)) + 0.5 * rng.standard_normal((20_000, 4))
    return np.where(rng.random(modes.shape) < 0.1, 0, modes)


def correlated(rng: np.random.Generator) -> Vectors:
    """Nearly the same number four times, two of them negated."""
    common = rng.standard_normal((20_000, 1)) * [1, 1, -1, -1]
    return common + 0.01 * rng.standard_normal((20_000, 4))


ANY = pytest.mark.parametrize("draw", [normal, cauchy, uniform, mixture, correlated])


@ANY
@pytest.mark.parametrize("width", [1.0, 0.1, 0.01])
def test_it_misses_the_bernoulli_vector_no_more_often_than_the_bound_says(
    draw: Callable[[np.random.Generator], Vectors], width: float
):
    x = draw(np.random.default_rng(0))
    missed = (md.binary_gate(x, width) != (x > 0)).any(axis=1).mean()
    # Of the same sample, so the inequality is exact, not statistical.
    bound = (np.abs(x) < width / 2).mean(axis=0).sum()
    assert missed <= bound
    assert missed > 0  # the bound is not met by nothing happening


@ANY
def test_as_the_width_falls_the_mismatch_falls_to_the_probability_of_zero(
    draw: Callable[[np.random.Generator], Vectors],
):
    x = draw(np.random.default_rng(1))
    missed = [
        (md.binary_gate(x, width) != (x > 0)).any(axis=1).mean()
        for width in (1.0, 0.3, 0.1, 0.01, 1e-12)
    ]
    assert missed == sorted(missed, reverse=True)
    assert missed[0] > missed[-1] or draw is mixture
    assert missed[-1] == (x == 0).any(axis=1).mean()


@settings(max_examples=25)
@given(st.data(), st.integers(1, 4))
def test_any_law_of_binary_vectors_is_had_from_real_ones(data, dimension):
    states = np.array(list(itertools.product([0, 1], repeat=dimension)))
    masses = data.draw(st.lists(st.integers(0, 20), min_size=len(states), max_size=len(states)))
    assume(sum(masses) > 0)
    pmf = np.array(masses) / sum(masses)

    rng, samples, width = np.random.default_rng(0), 4000, 0.01
    drawn = rng.choice(len(states), samples, p=pmf)
    sizes = width / 2 + rng.exponential(size=(samples, dimension))
    z = md.binary_gate(np.where(states[drawn] == 1, sizes, -sizes), width)

    assert np.isin(z, [0, 1]).all()
    found = np.array([(z == state).all(axis=1).mean() for state in states])
    assert (found[pmf == 0] == 0).all()
    # Six standard errors, and room for the long tail of a rare state's count.
    assert (np.abs(found - pmf) <= 6 * np.sqrt(pmf * (1 - pmf) / samples) + 8 / samples).all()


def test_thresholds_of_one_gaussian_copula_give_a_law_no_independent_gates_could():
    # Correlated X with no gap about 0: P(both open) must be the orthant probability
    # 1/4 + arcsin(rho) / (2 pi), far from the 1/4 of independent ones.
    rng, rho, samples = np.random.default_rng(2), 0.8, 40_000
    x = rng.multivariate_normal([0, 0], [[1, rho], [rho, 1]], samples)
    both = (md.binary_gate(x, 1e-6) == 1).all(axis=1).mean()
    expected = 0.25 + np.arcsin(rho) / (2 * np.pi)
    assert abs(both - expected) < 5 * np.sqrt(expected * (1 - expected) / samples)


# -- fact 3: closed for the derivative too -----------------------------------------------------


@given(widths, dtypes, seeds)
def test_where_it_is_0_its_derivative_is_exactly_0(width, dtype, seed):
    half = dtype(width) / dtype(2)
    x = (width * np.random.default_rng(seed).uniform(-2, 2, 200)).astype(dtype)
    x = np.concatenate([x, floats_around(-half, dtype)])
    closed = md.binary_gate(x, width) == 0
    derivative = slope(x, width)
    assert closed.any()
    assert (derivative[closed] == 0).all()
    assert (derivative[~closed & (np.abs(x) < 0.49 * width)] > 0).all()


# -- arrays, tensors, errors -------------------------------------------------------------------


@given(st.data(), dtypes)
def test_arrays_give_arrays_and_tensors_tensors_of_the_same_numbers(data, dtype):
    x = data.draw(shapes.flatmap(lambda shape: off_zero(shape, dtype)))
    array, tensor = md.binary_gate(x), md.binary_gate(md.Tensor(x))
    assert isinstance(array, np.ndarray)
    assert isinstance(tensor, md.Tensor)
    assert array.dtype == tensor.dtype == dtype
    assert array.shape == tensor.shape == x.shape
    np.testing.assert_array_equal(array, tensor.data)


def test_arrays_of_integers_are_taken_as_real_numbers():
    z = md.binary_gate(np.array([-3, -1, 0, 1, 3]), 4.0)
    np.testing.assert_array_equal(z, [0, 0.15625, 0.5, 0.84375, 1])


def test_the_array_given_is_left_alone():
    x = np.linspace(-1, 1, 9)
    before = x.copy()
    md.binary_gate(x)
    slope(x, 1.0)
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize("width", [0, 0.0, -0.0, -1.0, np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("x", [np.zeros(2), md.Tensor([0.0])], ids=["array", "tensor"])
def test_a_width_that_is_not_finite_and_above_0_is_an_error_that_names_it(x, width):
    with pytest.raises(ValueError, match=rf"width is {width}; expected a finite number above 0"):
        md.binary_gate(x, width)


@pytest.mark.parametrize("width", [1e-50, 1e39])
def test_a_width_that_the_dtype_of_x_cannot_hold_is_an_error_that_names_it(width):
    # 0 or infinity in float32: divided by that, 0 would be NaN and every gate half open.
    with pytest.raises(ValueError, match="width is"):
        md.binary_gate(np.zeros(2, np.float32), width)
    assert (md.binary_gate(np.zeros(2), width) == 0.5).all()  # float64 holds it


def test_a_nan_stays_a_nan_rather_than_a_closed_gate():
    assert np.isnan(md.binary_gate(np.array([np.nan]))).all()


@pytest.mark.parametrize("dtype", [np.float16, np.complex128, object])
def test_other_dtypes_are_refused(dtype: type) -> None:
    with pytest.raises(TypeError, match=r"expected float32, float64"):
        md.binary_gate(np.zeros(3, dtype))
