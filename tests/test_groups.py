"""Groups partition the elements of an array."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from minidiff import Groups

shapes = hnp.array_shapes(min_dims=1, max_dims=4, max_side=4)


def assert_partition(groups, shape):
    """Every element is in one group, and no group is empty."""
    assert groups.labels.dtype == np.int64
    assert groups.fits(shape)
    labels = np.broadcast_to(groups.labels, shape)
    assert set(labels.ravel().tolist()) == set(range(groups.count))
    return labels


@given(shapes, st.data())
def test_groups_along_axes_hold_what_differs_along_others_only(shape, data):
    axes = data.draw(st.permutations(range(len(shape))).map(lambda a: a[: max(1, len(a) // 2)]))
    groups = Groups.along(shape, axes)
    labels = assert_partition(groups, shape)
    numbers = {index: tuple(index[a] for a in axes) for index in np.ndindex(*shape)}
    assert len(set(numbers.values())) == groups.count
    assert len({(numbers[i], labels[i]) for i in numbers}) == groups.count
    np.testing.assert_array_equal(Groups.along(shape, 0).labels, Groups.along(shape, [0]).labels)


@given(shapes, st.data())
def test_blocks_hold_neighbours_and_all_along_axes_without_a_size(shape, data):
    block = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=len(shape)))
    labels = assert_partition(Groups.blocks(shape, block), shape)
    for index in np.ndindex(*shape):
        corner = tuple(i // b * b for i, b in zip(index, block, strict=False))
        same = labels == labels[index]
        inside = tuple(slice(c, c + b) for c, b in zip(corner, block, strict=True))
        assert same[inside].all()
        assert same.sum() == same[inside].size


@given(shapes)
def test_groups_of_elements_number_them_in_order(shape):
    labels = assert_partition(Groups.elements(shape), shape)
    np.testing.assert_array_equal(labels, np.arange(np.prod(shape)).reshape(shape))


@given(
    hnp.arrays(np.int16, shapes, elements=st.integers(-3, 3))
    | hnp.arrays("U1", shapes, elements=st.sampled_from("abc"))
    | hnp.arrays(np.float64, shapes, elements=st.sampled_from([-0.5, 1.0, 2.5]))
)
def test_equal_labels_of_any_kind_are_one_group_in_sorted_order(given_labels):
    labels = assert_partition(Groups.by(given_labels), given_labels.shape)
    ranks = {label: i for i, label in enumerate(sorted(set(given_labels.ravel().tolist())))}
    assert labels.ravel().tolist() == [ranks[label] for label in given_labels.ravel().tolist()]


@given(st.permutations(range(6)), st.sampled_from([np.uint8, np.int32, np.int64]))
def test_groups_keep_labels_of_any_order_as_their_own(order, dtype):
    labels = np.array([*order, 0, 5], dtype)
    groups = Groups(labels)
    labels[:] = 0
    assert assert_partition(groups, (8,)).tolist() == [*order, 0, 5]


@given(shapes, st.data())
def test_rows_are_the_groups_of_rows_or_none(shape, data):
    groups = Groups.by(data.draw(hnp.arrays(np.int8, shape, elements=st.integers(0, 1))))
    flat = groups.labels.reshape(shape[0], -1)
    whole = all(len(set(row.tolist())) == 1 for row in flat)
    assert (groups.rows is not None) == whole
    if whole:
        assert groups.rows.tolist() == flat[:, 0].tolist()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros((0, 3), int), r"shape \(0, 3\); expected integers, not empty"),
        ([0.0, 1.0], r"labels are float64 of shape \(2,\); expected integers"),
        ([True, False], "labels are bool .* expected integers"),
        ([0, 2], "from 0 to 2 with 2 different ones; expected every number from 0 on"),
        ([-1, 0, 1], "from -1 to 1 with 3 different ones"),
    ],
)
def test_labels_that_are_no_partition_are_errors(labels, message):
    with pytest.raises(ValueError, match=message):
        Groups(labels)


def test_the_mend_that_the_error_names_works():
    labels = np.array([7, 3, 3, 9])
    with pytest.raises(ValueError, match=r"np.unique\(labels, return_inverse=True\)"):
        Groups(labels)
    assert Groups(np.unique(labels, return_inverse=True)[1]).labels.tolist() == [1, 0, 0, 2]


@pytest.mark.parametrize("axes", [2, -1, (0, 2), ()])
def test_axes_that_do_not_fit_are_errors(axes):
    with pytest.raises(ValueError, match=r"axes .* do not fit an array of shape \(3, 4\)"):
        Groups.along((3, 4), axes)


@pytest.mark.parametrize("block", [4, (0, 4), (1, 1, 1), (), (1.5,)])
def test_blocks_that_do_not_fit_are_errors(block):
    with pytest.raises(ValueError, match=r"block .* does not fit an array of shape \(3, 4\)"):
        Groups.blocks((3, 4), block)
