"""Groups partition the elements of an array."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from minidiff import Groups

shapes = hnp.array_shapes(min_dims=1, max_dims=4, max_side=4)


@st.composite
def shapes_and_axes(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...]]:
    shape = draw(shapes)
    axes = draw(st.sets(st.integers(0, len(shape) - 1), min_size=1))
    return shape, tuple(draw(st.permutations(sorted(axes))))


def assert_partition(groups: Groups) -> None:
    """Every element is in one group, no group is empty, and count says how many there are."""
    assert groups.labels.dtype == np.int64
    assert set(groups.labels.ravel().tolist()) == set(range(groups.count))


@given(shapes_and_axes())
def test_groups_along_axes_hold_what_differs_along_the_others_only(drawn):
    shape, axes = drawn
    groups = Groups.along(shape, axes)
    assert_partition(groups)
    labels = np.broadcast_to(groups.labels, shape)
    places: dict[int, set[tuple[int, ...]]] = {}
    for index in np.ndindex(*shape):
        places.setdefault(int(labels[index]), set()).add(tuple(index[a] for a in axes))
    # One group for each position along the axes, and one position for each group.
    assert all(len(positions) == 1 for positions in places.values())
    assert len(places) == groups.count == np.prod([shape[a] for a in axes])


@given(shapes)
def test_a_single_axis_may_be_given_as_a_number(shape):
    for axis in range(len(shape)):
        np.testing.assert_array_equal(
            Groups.along(shape, axis).labels, Groups.along(shape, (axis,)).labels
        )


@given(shapes)
def test_groups_of_elements_number_them_in_order(shape):
    groups = Groups.elements(shape)
    assert_partition(groups)
    np.testing.assert_array_equal(groups.labels, np.arange(np.prod(shape)).reshape(shape))


@given(
    hnp.arrays(np.int16, shapes, elements=st.integers(-3, 3))
    | hnp.arrays("U1", shapes, elements=st.sampled_from("abc"))
    | hnp.arrays(np.float64, shapes, elements=st.sampled_from([-0.5, 1.0, 2.5]))
)
def test_groups_by_labels_put_equal_labels_together_in_sorted_order(given_labels):
    groups = Groups.by(given_labels)
    assert_partition(groups)
    ranks = {label: i for i, label in enumerate(sorted(set(given_labels.ravel().tolist())))}
    expected = [ranks[label] for label in given_labels.ravel().tolist()]
    np.testing.assert_array_equal(groups.labels.ravel(), expected)
    assert groups.labels.shape == given_labels.shape


@given(st.permutations(range(6)), st.sampled_from([np.uint8, np.int32, np.int64]))
def test_labels_may_come_in_any_order_and_integer_type(order, dtype):
    groups = Groups(np.array([*order, 0, 5], dtype))
    assert_partition(groups)
    assert groups.count == 6
    np.testing.assert_array_equal(groups.labels, [*order, 0, 5])


def test_groups_keep_labels_of_their_own():
    labels = np.array([0, 1, 2])
    groups = Groups(labels)
    labels[2] = 7
    np.testing.assert_array_equal(groups.labels, [0, 1, 2])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([], r"float64 of shape \(0,\); expected integers, not empty"),
        (np.zeros((0, 3), int), r"shape \(0, 3\); expected integers, not empty"),
        ([0.0, 1.0], r"labels are float64 of shape \(2,\); expected integers"),
        ([True, False], "labels are bool .* expected integers"),
        ([0, 2], "from 0 to 2 with 2 different ones; expected every number from 0 on"),
        ([1, 2], "from 1 to 2 with 2 different ones"),
        ([-1, 0, 1], "from -1 to 1 with 3 different ones"),
    ],
)
def test_labels_that_are_no_partition_are_errors_that_say_what_they_are(labels: Any, message: str):
    with pytest.raises(ValueError, match=message):
        Groups(labels)


def test_the_mend_that_the_error_suggests_works():
    labels = np.array([[7, 3], [3, 9]])
    with pytest.raises(ValueError, match="return_inverse=True"):
        Groups(labels)
    mended = Groups(np.unique(labels, return_inverse=True)[1])
    np.testing.assert_array_equal(mended.labels.ravel(), [1, 0, 0, 2])


@pytest.mark.parametrize("axes", [2, -1, (0, 2), ()])
def test_axes_that_do_not_fit_are_errors_that_give_the_shape(axes):
    with pytest.raises(ValueError, match=r"axes .* do not fit an array of shape \(3, 4\)"):
        Groups.along((3, 4), axes)


def test_an_array_without_elements_has_no_groups():
    with pytest.raises(ValueError, match="not empty"):
        Groups.elements((3, 0))
