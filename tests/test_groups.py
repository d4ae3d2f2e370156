"""Groups partition the elements of an array."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from minidiff import Groups

shapes = hnp.array_shapes(min_dims=1, max_dims=4, max_side=4)


def labels_of(groups, shape):
    """Return the label of each element: every element is in one group, and no group is empty."""
    assert groups.labels.dtype == np.int64
    assert groups.fits(shape)
    labels = np.broadcast_to(groups.labels, shape)
    assert set(labels.ravel().tolist()) == set(range(groups.count))
    return labels


@given(shapes, st.data())
def test_groups_along_axes_hold_what_differs_along_others_only(shape, data):
    axes = data.draw(st.permutations(range(len(shape))).map(lambda a: a[: max(1, len(a) // 2)]))
    groups = Groups.along(shape, axes)
    labels = labels_of(groups, shape)
    places = {(tuple(index[a] for a in axes), labels[index]) for index in np.ndindex(*shape)}
    assert len(places) == len({place for place, _ in places}) == groups.count
    np.testing.assert_array_equal(Groups.along(shape, 0).labels, Groups.along(shape, [0]).labels)
    elements = labels_of(Groups.elements(shape), shape)
    np.testing.assert_array_equal(elements, np.arange(np.prod(shape)).reshape(shape))


@given(shapes, st.data())
def test_blocks_hold_neighbours_and_all_along_axes_without_a_size(shape, data):
    block = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=len(shape)))
    labels = labels_of(Groups.blocks(shape, block), shape)
    for index in np.ndindex(*shape):
        same = labels == labels[index]
        corner = (i // size * size for i, size in zip(index, block, strict=False))
        inside = tuple(slice(c, c + size) for c, size in zip(corner, block, strict=True))
        assert same[inside].all()
        assert same.sum() == same[inside].size


@given(
    hnp.arrays(np.int16, shapes, elements=st.integers(-3, 3))
    | hnp.arrays("U1", shapes, elements=st.sampled_from("abc"))
    | hnp.arrays(np.float64, shapes, elements=st.sampled_from([-0.5, 1.0, 2.5]))
)
def test_equal_labels_of_any_kind_are_one_group_in_sorted_order(given_labels):
    groups = Groups.by(given_labels)
    labels = labels_of(groups, given_labels.shape)
    ranks = {label: i for i, label in enumerate(sorted(set(given_labels.ravel().tolist())))}
    assert labels.ravel().tolist() == [ranks[label] for label in given_labels.ravel().tolist()]
    rows = labels.reshape(len(labels), -1)
    if (rows == rows[:, :1]).all():
        assert groups.rows.tolist() == rows[:, 0].tolist()
    else:
        assert groups.rows is None
    own = groups.labels.copy()
    labels = own.astype(np.uint8)
    again = Groups(labels)
    labels[:] = 0  # groups keep labels of their own
    np.testing.assert_array_equal(again.labels, own)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Groups(np.zeros((0, 3), int)), r"shape \(0, 3\); expected integers, not empty"),
        (lambda: Groups([0.0, 1.0]), r"labels are float64 of shape \(2,\); expected integers"),
        (lambda: Groups([True, False]), "labels are bool .* expected integers"),
        (lambda: Groups([0, 2]), "from 0 to 2 with 2 different ones; expected every number from 0"),
        (lambda: Groups([-1, 0, 1]), r"from -1 to 1 .*np.unique\(labels, return_inverse=True\)"),
        (lambda: Groups.along((3, 4), 2), r"axes \(2,\) do not fit an array of shape \(3, 4\)"),
        (lambda: Groups.along((3, 4), -1), r"axes \(-1,\) do not fit"),
        (lambda: Groups.along((3, 4), ()), r"axes \(\) do not fit"),
        (lambda: Groups.blocks((3, 4), 4), r"block 4 does not fit an array of shape \(3, 4\)"),
        (lambda: Groups.blocks((3, 4), (0, 4)), r"block \(0, 4\) does not fit"),
        (lambda: Groups.blocks((3, 4), (1, 1, 1)), "block .* does not fit"),
    ],
)
def test_what_is_no_partition_is_an_error(call, message):
    with pytest.raises(ValueError, match=message):
        call()
