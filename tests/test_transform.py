"""The three facts of the gate transform, on which everything about gates rests."""

import itertools

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

import minidiff as md
from tests.networks import rng
from tests.strategies import arrays, dtypes, seeds, shapes

widths = st.floats(1e-3, 1e3)


def numbers(width, dtype, seed):
    """Return numbers around the transition, the neighbours of its edges, and special ones."""
    x = dtype([-width, width]) / dtype(2)
    edges = [x]
    for toward in dtype([-np.inf] * 8 + [np.inf] * 16):
        edges.append(np.nextafter(edges[-1], toward))
    rest = dtype(width) * rng(seed).uniform(-1, 1, 300)
    return np.concatenate([*edges, rest, [-np.inf, np.inf, 0, -0.0]]).astype(dtype)


def slope(x, width):
    """Return the derivative, as the tape gives it."""
    leaf = md.Tensor(x, requires_grad=True)
    md.binary_gate(leaf, width).backward(np.ones_like(x))
    return leaf.grad


# -- fact 1: exact zeros and ones, and a smooth step between -----------------------------------


@given(widths, dtypes, seeds)
@example(0.1, np.float32, 0)  # rounds up in float32
@example(0.7, np.float32, 0)  # rounds down
def test_it_is_0_up_to_minus_half_the_width_and_1_from_half_on(width, dtype, seed):
    x, half = numbers(width, dtype, seed), dtype(width) / dtype(2)
    z = md.binary_gate(x, width)
    np.testing.assert_array_equal(z == 0, x <= -half)
    assert (z[x >= half] == 1).all()
    # 1 - g is 3 (x / w - 1/2)^2 near the top: it rounds to 0 a root of the precision early.
    assert (z[x < half - dtype(width) * np.sqrt(np.finfo(dtype).eps)] < 1).all()
    # Each of few roundings can take a step back by half a unit in the last place.
    assert (np.diff(z[np.argsort(x)]) >= -4 * np.finfo(dtype).eps).all()


@given(widths, st.floats(-0.5, 0.5))
def test_between_it_is_the_cubic_of_the_documentation(width, place):
    t = place + 0.5
    z = md.binary_gate(np.array([place, -place]) * width, width)
    assert z[0] == pytest.approx(3 * t**2 - 2 * t**3, abs=1e-12)
    assert z.sum() == pytest.approx(1, abs=1e-12)


@given(widths, seeds)
def test_its_slope_is_continuous_and_at_most_3_over_2_widths(width, seed):
    x = np.sort(numbers(width, np.float64, seed)[:-4])
    derivative = slope(x, width)
    assert 0 <= derivative.min() <= derivative.max() <= 1.5 / width * (1 + 1e-15)
    assert slope(np.zeros(1), width)[0] == pytest.approx(1.5 / width)  # the bound is reached
    # g'' is at most 6 / w^2, so the slope cannot change by more than that times the distance.
    assert (abs(np.diff(derivative)) <= 6 / width**2 * np.diff(x) + 1e-12 / width).all()


@given(st.data(), st.floats(0.1, 10))
def test_its_gradient_matches_finite_differences(data, width):
    x = data.draw(shapes.flatmap(lambda shape: arrays(shape, -width, width)))
    assert md.gradcheck(lambda t: md.binary_gate(t, width), [md.Tensor(x, requires_grad=True)])


# -- fact 2: approximately Bernoulli, whatever the distribution --------------------------------


@given(widths, dtypes, seeds)
def test_it_differs_from_the_sign_only_within_the_width(width, dtype, seed):
    x = numbers(width, dtype, seed)
    away = abs(md.binary_gate(x, width) - (x > 0))
    assert away.max() <= 0.5 + np.finfo(dtype).eps
    assert not away[abs(x) >= dtype(width) / 2].any()


SHAPE = 20_000, 4
NORMAL, CAUCHY = rng().standard_normal(SHAPE), rng(1).standard_cauchy(SHAPE)
LAWS = {
    "normal": NORMAL,
    "cauchy": CAUCHY,
    "uniform": rng().uniform(-0.3, 2, SHAPE),
    "modes and zeros": rng(2).choice([-2.0, 0.0, 1.0], SHAPE) * (1 + 0.3 * NORMAL),
    "correlated": NORMAL[:, :1] * [1, 1, -1, -1] + 0.01 * CAUCHY,
}


@pytest.mark.parametrize("x", LAWS.values(), ids=LAWS)
def test_its_mismatch_keeps_to_the_bound_and_falls_with_the_width(x):
    rates = []
    for width in (1.0, 0.3, 0.1, 0.01, 1e-12):
        missed = (md.binary_gate(x, width) != (x > 0)).any(axis=1).mean()
        # Of the same sample, so the inequality is exact, not statistical.
        assert missed <= (abs(x) < width / 2).mean(axis=0).sum()
        rates.append(missed)
    assert rates == sorted(rates, reverse=True)
    assert rates[0] > rates[-1] == (x == 0).any(axis=1).mean()


@settings(max_examples=25)
@given(st.data(), st.integers(1, 4))
def test_it_gives_any_law_of_binary_vectors(data, dimension):
    states = np.array(list(itertools.product([0, 1], repeat=dimension)))
    masses = data.draw(st.lists(st.integers(0, 20), min_size=len(states), max_size=len(states)))
    assume(sum(masses) > 0)
    pmf, samples, width = np.array(masses) / sum(masses), 4000, 0.01
    signs = 2 * states[rng().choice(len(states), samples, p=pmf)] - 1
    z = md.binary_gate(signs * (width / 2 + rng(1).exponential(size=signs.shape)), width)
    found = np.array([(z == state).all(axis=1).mean() for state in states])
    assert found.sum() == pytest.approx(1)  # nothing is between 0 and 1
    assert not found[pmf == 0].any()
    # Six standard errors, and room for the long tail of a rare state's count.
    assert (abs(found - pmf) <= 6 * np.sqrt(pmf * (1 - pmf) / samples) + 8 / samples).all()


def test_a_gaussian_copula_gives_a_law_that_independent_gates_cannot():
    # P(both open) must be the orthant probability, far from the 1/4 of independent gates.
    rho, samples = 0.8, 40_000
    x = rng(2).multivariate_normal([0, 0], [[1, rho], [rho, 1]], samples)
    both = (md.binary_gate(x, 1e-6) == 1).all(axis=1).mean()
    expected = 0.25 + np.arcsin(rho) / (2 * np.pi)
    assert abs(both - expected) < 5 * np.sqrt(expected * (1 - expected) / samples)


# -- fact 3: closed for the derivative too -----------------------------------------------------


@given(widths, dtypes, seeds)
def test_where_it_is_0_its_derivative_is_exactly_0(width, dtype, seed):
    leaf = md.Tensor(numbers(width, dtype, seed), requires_grad=True)
    z = md.binary_gate(leaf, width)
    z.backward(np.where(z.data == 0, np.nan, 1))  # closed gates need no gradient
    assert not leaf.grad[z.data == 0].any()
    assert (leaf.grad[abs(leaf.data) < 0.49 * width] > 0).all()


# -- arrays, tensors, errors -------------------------------------------------------------------


@given(st.data(), dtypes)
def test_arrays_give_arrays_and_tensors_give_tensors(data, dtype):
    x = data.draw(shapes.flatmap(lambda shape: arrays(shape, dtype=dtype)))
    array, tensor = md.binary_gate(x), md.binary_gate(md.Tensor(x))
    assert (type(array), type(tensor)) == (np.ndarray, md.Tensor)
    assert array.dtype == dtype
    np.testing.assert_array_equal(array, tensor.data, strict=True)
    integers = md.binary_gate(np.array([-3, -1, 0, 1, 3]), 4.0)
    assert integers.tolist() == [0, 5 / 32, 0.5, 27 / 32, 1]
    assert np.isnan(md.binary_gate(np.array([np.nan])))


def test_widths_and_dtypes_out_of_range_are_errors():
    for width in (0, -0.0, -1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match=f"width is {width}; expected a finite number above 0"):
            md.binary_gate(md.Tensor([0.0]), width)
    for width in (1e-50, 1e39):  # 0 or infinity in float32, so that 0 / width would be NaN
        with pytest.raises(ValueError, match="which float32 cannot hold"):
            md.binary_gate(np.zeros(2, np.float32), width)
        assert (md.binary_gate(np.zeros(2), width) == 0.5).all()  # float64 holds it
    for dtype in (np.float16, np.complex128, object):
        with pytest.raises(TypeError, match="expected float32, float64"):
            md.binary_gate(np.zeros(3, dtype))
