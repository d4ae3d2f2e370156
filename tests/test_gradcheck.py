"""The gradient check: right gradients pass, wrong ones do not."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import minidiff as md
from minidiff import Tensor
from minidiff.engine.op import Op
from tests.checks import leaf
from tests.strategies import arrays, shapes


class Spoilt(Op):
    """a * b, with a gradient of b that ``spoil`` gets its hands on."""

    def __init__(self, spoil):
        self.spoil = spoil

    def forward(self, a, b):
        self.a, self.b = a, b
        return np.asarray(a * b)

    def backward(self, grad):
        return grad * self.b, self.spoil(grad * self.a)


def product(spoil=lambda grad: grad):
    return lambda a, b: md.apply(Spoilt(spoil), a, b)


def at(index, change):
    """Return a spoil that changes one element."""

    def spoil(grad):
        grad = np.array(grad)
        grad[index] = change(grad[index])
        return grad

    return spoil


SPOILS = {
    "twice": lambda g: 2 * g,
    "other sign": lambda g: -g,
    "none": lambda g: 0 * g,
    "slightly more": lambda g: g * 1.001,
    "barely more": lambda g: g + 5e-5 * (1 + abs(g)),
    "nan": at(..., lambda g: np.nan * g),
}


@given(st.data(), shapes)
def test_a_right_gradient_passes(data, shape):
    a, b = (leaf(data.draw(arrays(shape, 1, 2))) for _ in range(2))
    assert md.gradcheck(product(), [a, b]) is True


@pytest.mark.parametrize("name", SPOILS)
@given(st.data(), shapes)
def test_a_wrong_gradient_is_named_with_its_input(name, data, shape):
    a, b = (leaf(data.draw(arrays(shape, 1, 2))) for _ in range(2))
    with pytest.raises(AssertionError, match=r"input 1, along .* the gradient says .* differences"):
        md.gradcheck(product(SPOILS[name]), [a, b])


@given(hnp.array_shapes(max_dims=2, max_side=4), st.data())
def test_one_wrong_element_is_found_and_named(shape, data):
    index = data.draw(st.tuples(*(st.integers(0, size - 1) for size in shape)))
    spoilt = product(at(index, lambda g: g + 0.01))
    inputs = [leaf(np.ones(shape)), leaf(np.ones(shape))]
    with pytest.raises(AssertionError, match="input 1"):
        md.gradcheck(spoilt, inputs)
    with pytest.raises(AssertionError) as error:  # elements are tried one by one
        md.gradcheck(spoilt, inputs, directions=0)
    assert f"along element {index}" in str(error.value)


def test_large_inputs_are_checked_along_random_directions():
    large = leaf(np.ones(1000))
    assert md.gradcheck(product(), [large, large])
    with pytest.raises(AssertionError, match="input 1, along a random direction"):
        md.gradcheck(product(lambda g: 1.1 * g), [large, large])


def test_inputs_that_require_no_gradient_are_not_checked():
    assert md.gradcheck(product(lambda g: 2 * g), [leaf([1.0]), Tensor(np.ones(1))])


@given(arrays((2, 3)))
def test_the_inputs_are_left_as_they_were(values):
    x = leaf(values)
    md.gradcheck(lambda t: t * t, [x])
    assert x.grad is None
    np.testing.assert_array_equal(x.data, values)
    assert x.data.flags.writeable


def test_a_coarser_tolerance_lets_more_pass():
    inputs, spoilt = [leaf(np.ones(3)), leaf(np.ones(3))], product(lambda g: g * 1.001)
    with pytest.raises(AssertionError):
        md.gradcheck(spoilt, inputs)
    assert md.gradcheck(spoilt, inputs, tolerance=0.1)


def test_the_generator_given_is_used():
    rng = np.random.default_rng(1)
    md.gradcheck(lambda t: t * t, [leaf([1.0])], rng=rng)
    assert rng.bit_generator.state != np.random.default_rng(1).bit_generator.state


@pytest.mark.parametrize("bad", [Tensor([1.0], requires_grad=True), np.ones(1), 1.0])
def test_inputs_are_float64_tensors(bad):
    with pytest.raises(TypeError, match=r"input 1 is .*; expected a float64 Tensor"):
        md.gradcheck(product(), [leaf([1.0]), bad])
