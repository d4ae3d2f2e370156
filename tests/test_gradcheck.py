"""The gradient check itself: right gradients pass, wrong ones do not."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import minidiff as md
from minidiff import Tensor
from minidiff.engine.tensor import Op
from tests.strategies import Shape, arrays, shapes


class Wrong(Op):
    """a * b, with a gradient of b that ``spoil`` gets its hands on."""

    def __init__(self, spoil: Callable[[Any], Any]) -> None:
        self.spoil = spoil

    def forward(self, a: Any, b: Any) -> Any:
        self.a, self.b = a, b
        return np.asarray(a * b)

    def backward(self, grad: Any) -> tuple[Any, ...]:
        return grad * self.b, self.spoil(grad * self.a)


def leaf(values: Any) -> Tensor:
    return Tensor(np.asarray(values, np.float64), requires_grad=True)


def nan_at_one(gradient: Any) -> Any:
    gradient = np.array(gradient)
    gradient.flat[-1] = np.nan
    return gradient


SPOILS: dict[str, Callable[[Any], Any]] = {
    "twice": lambda g: 2 * g,
    "the other sign": lambda g: -g,
    "none at all": lambda g: 0 * g,
    "slightly more": lambda g: g * 1.001,
    "barely more": lambda g: g + 5e-5 * (1 + abs(g)),
    "nan": nan_at_one,
}


@settings(max_examples=30)
@given(st.data(), shapes)
def test_a_right_gradient_passes(data: st.DataObject, shape: Shape) -> None:
    a, b = (leaf(data.draw(arrays(shape, 1, 2))) for _ in range(2))
    assert md.gradcheck(Wrong(lambda g: g), [a, b]) is True


@pytest.mark.parametrize("name", SPOILS)
@settings(max_examples=20)
@given(st.data(), hnp.array_shapes(max_dims=3, max_side=4))
def test_a_wrong_gradient_is_named_with_its_input(
    name: str, data: st.DataObject, shape: Shape
) -> None:
    a, b = (leaf(data.draw(arrays(shape, 1, 2))) for _ in range(2))
    with pytest.raises(AssertionError, match=r"input 1, along .* the gradient says .* differences"):
        md.gradcheck(Wrong(SPOILS[name]), [a, b])


def test_a_wrong_gradient_of_a_single_number_is_named_too() -> None:
    with pytest.raises(AssertionError, match="input 1, along a random direction"):
        md.gradcheck(Wrong(lambda g: 2 * g), [leaf(1.0), leaf(2.0)])


@settings(max_examples=20)
@given(hnp.array_shapes(min_dims=1, max_dims=2, min_side=2, max_side=4), st.data())
def test_one_wrong_element_among_many_is_found(shape: Shape, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, int(np.prod(shape)) - 1))

    def spoil(gradient: Any) -> Any:
        gradient.flat[at] += 0.01
        return gradient

    with pytest.raises(AssertionError, match="input 1"):
        md.gradcheck(Wrong(spoil), [leaf(np.ones(shape)), leaf(np.ones(shape))])


def test_the_element_that_is_wrong_is_named() -> None:
    def spoil(gradient: Any) -> Any:
        gradient[1, 2] += 1
        return gradient

    # With no random directions, elements are tried one by one.
    with pytest.raises(AssertionError, match=r"element \(1, 2\)"):
        md.gradcheck(Wrong(spoil), [leaf(np.ones((2, 3))), leaf(np.ones((2, 3)))], directions=0)


def test_large_inputs_are_checked_along_random_directions() -> None:
    large = leaf(np.ones(1000))
    md.gradcheck(Wrong(lambda g: g), [large, large])
    with pytest.raises(AssertionError, match="input 1, along a random direction"):
        md.gradcheck(Wrong(lambda g: 1.1 * g), [large, large])


def test_inputs_that_require_no_gradient_are_not_checked() -> None:
    assert md.gradcheck(Wrong(lambda g: 2 * g), [leaf([1.0]), Tensor(np.ones(1))])


@given(arrays((2, 3)))
def test_the_inputs_are_left_as_they_were(values: Any) -> None:
    x, before = leaf(values), values.copy()
    md.gradcheck(lambda t: t * t, [x])
    assert x.grad is None
    np.testing.assert_array_equal(x.data, before)
    assert x.data.flags.writeable


def test_a_coarser_tolerance_lets_more_pass() -> None:
    inputs = [leaf(np.ones(3)), leaf(np.ones(3))]
    spoiled = Wrong(lambda g: g * 1.001)
    with pytest.raises(AssertionError):
        md.gradcheck(spoiled, inputs)
    assert md.gradcheck(spoiled, inputs, tolerance=0.1)


def test_the_generator_given_is_the_one_used() -> None:
    rng = np.random.default_rng(1)
    md.gradcheck(lambda t: t * t, [leaf([1.0])], rng=rng)
    assert rng.bit_generator.state != np.random.default_rng(1).bit_generator.state


@pytest.mark.parametrize("bad", [Tensor([1.0], requires_grad=True), np.ones(1), 1.0])
def test_inputs_that_are_not_float64_tensors_are_refused_by_number(bad: Any) -> None:
    with pytest.raises(TypeError, match=r"input 1 is .*; expected a float64 Tensor"):
        md.gradcheck(lambda x, y: x * y, [leaf([1.0]), bad])
