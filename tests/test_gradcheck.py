"""The gradient check: right gradients pass, wrong ones do not."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minidiff as md
from minidiff import Tensor
from minidiff.engine.op import Multiply
from tests.checks import equal, leaf
from tests.strategies import arrays, shapes


def product(spoil):
    """Return a function a * b, with a gradient of b that ``spoil`` changes."""

    class Spoilt(Multiply):
        def backward(self, grad):
            a, b = super().backward(grad)
            return a, b if b is None else spoil(b)

    return lambda a, b: md.apply(Spoilt(), a, b)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda g: 2 * g,
        lambda g: -g,
        lambda g: 0 * g,
        lambda g: g * 1.001,
        lambda g: g + 5e-5 * (1 + abs(g)),
        lambda g: np.nan * g,
    ],
)
@given(st.data(), shapes)
def test_a_wrong_gradient_is_named_with_its_input(spoil, data, shape):
    a, b = (leaf(data.draw(arrays(shape, 1, 2))) for _ in range(2))
    with pytest.raises(AssertionError, match=r"input 1, along .* the gradient says .* differences"):
        md.gradcheck(product(spoil), [a, b])
    assert md.gradcheck(product(spoil), [a, Tensor(b.data)])  # it is not checked
    assert md.gradcheck(product(lambda g: g), [a, b])


@given(st.data(), shapes)
def test_one_wrong_element_is_found_and_named(data, shape):
    index = data.draw(st.tuples(*(st.integers(0, size - 1) for size in shape)))
    error, inputs = np.zeros(shape), [leaf(np.ones(shape)), leaf(np.ones(shape))]
    error[index] = 0.01
    with pytest.raises(AssertionError, match="input 1"):
        md.gradcheck(product(lambda g: g + error), inputs)
    with pytest.raises(AssertionError) as raised:  # elements are tried one by one
        md.gradcheck(product(lambda g: g + error), inputs, directions=0)
    assert f"along element {index}" in str(raised.value)


@pytest.mark.parametrize("size", [1e-12, 1e-6, 1.0, 1e6, 1e12])
def test_functions_of_any_size_are_checked_alike(size):
    x = leaf([0.3, -2.0, 5.0])
    assert md.gradcheck(lambda x: size * x * x, [x])
    for wrong in (2.0, 1.001, 0.0, -1.0, np.inf):
        with pytest.raises(AssertionError, match="input 0, along"):
            md.gradcheck(
                lambda a, b, w=wrong: product(lambda g: w * g)(b, a), [x, leaf(size * x.data)]
            )


def test_constants_and_empty_inputs_pass():
    empty, x = leaf(np.zeros((0, 3))), leaf([1.0, 2.0, 3.0])
    assert md.gradcheck(lambda e, x: (e * x).sum() + 0.0 * x.sum(), [empty, x])
    assert md.gradcheck(lambda x: x * x, [leaf(np.zeros(3))])


def test_large_inputs_are_checked_along_random_directions():
    large, spoilt = [leaf(np.ones(1000)), leaf(np.ones(1000))], product(lambda g: 1.001 * g)
    with pytest.raises(AssertionError, match="input 1, along a random direction"):
        md.gradcheck(spoilt, large)
    assert md.gradcheck(spoilt, large, tolerance=0.1)
    assert md.gradcheck(spoilt, large, directions=0)


@given(arrays((2, 3)))
def test_inputs_are_float64_and_left_as_they_were(values):
    x, rng = leaf(values), np.random.default_rng(1)
    md.gradcheck(lambda t: t * t, [x], rng=rng)
    assert x.grad is None
    equal(x.data, values)
    assert rng.bit_generator.state != np.random.default_rng(1).bit_generator.state
    for bad in (Tensor([1.0], requires_grad=True), np.ones(1), 1.0):
        with pytest.raises(TypeError, match=r"input 1 is .*; expected a float64 Tensor"):
            md.gradcheck(lambda a, b: a * b, [x, bad])
