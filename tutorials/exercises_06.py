"""Checks of tutorial 6."""

import numpy as np
from support import exercise

import minidiff as md
from minidiff import nn


@exercise(
    "06.mirrored",
    hint="in a row, columns c and size - 1 - c need the same label: row * size + the lower one.\n"
    "md.Groups.by takes any labels, and numbers them from 0 on.",
)
def mirrored(answer):
    for size in (3, 4, 5):
        found = answer(size)
        assert found is not None, "it returned None."
        labels = np.asarray(found.labels if isinstance(found, md.Groups) else found)
        assert labels.shape == (1, 1, size, size), (
            f"the labels have shape {labels.shape}, not {(1, 1, size, size)}."
        )
        kernel = labels[0, 0]
        assert np.array_equal(kernel, kernel[:, ::-1]), (
            f"in a kernel of {size}x{size} a position and its mirror image have different labels."
        )
        expected = size * ((size + 1) // 2)
        assert len(np.unique(kernel)) == expected, (
            f"a kernel of {size}x{size} has {len(np.unique(kernel))} groups, not {expected}."
        )
        try:
            md.Groups(labels)
        except ValueError as error:
            raise AssertionError(f"md.Groups refuses the labels: {error}") from None


@exercise(
    "06.macs",
    hint="filters and channels that have any weight stay, with whole kernels: count them.",
)
def macs(answer):
    rng = np.random.default_rng(6)
    for share, positions in ((0.02, 36), (0.1, 16), (0.5, 1)):
        kept = rng.random((12, 8, 3, 3)) < share
        kept[3], kept[:, 5] = False, False
        outputs = sum(bool(kept[o].any()) for o in range(12))
        inputs = sum(bool(kept[:, i].any()) for i in range(8))
        expected = outputs * inputs * 9 * positions
        found = answer(kept, positions)
        assert found is not None, "it returned None."
        assert found != kept.sum() * positions, (
            "it counts only what is not zero, but a dense layer multiplies by its zeros too."
        )
        assert found == expected, (
            f"{outputs} filters and {inputs} channels have weights: {expected:,} MACs at "
            f"{positions} positions, not {found:,}."
        )


@exercise(
    "06.expected",
    hint="a weight is left with probability p_out[o] * p_in[i] * p_block[labels[o, i]]: sum it.",
)
def expected(answer):
    rng = np.random.default_rng(7)
    groups = md.Groups.blocks((6, 10), (2, 4))
    p_out, p_in, p_block = (rng.random(count) for count in (6, 10, groups.count))
    found = answer(p_out, p_in, p_block, groups.labels)
    assert found is not None, "it returned None."
    right = sum(
        p_out[o] * p_in[i] * p_block[groups.labels[o, i]] for o in range(6) for i in range(10)
    )
    assert np.shape(found) == (), f"it returned an array of shape {np.shape(found)}, not a number."
    assert not np.isclose(found, p_out.sum() * p_in.sum()), "it ignores the blocks."
    assert np.isclose(found, right), f"it returned {float(found):.4f}, not {right:.4f}."
    # The surrogate must agree.
    dense = nn.Linear(10, 6, rng=rng)
    layer = md.gate(dense, "inputs", "outputs", "weights", groups=groups)
    for _, gate in layer.gates():
        gate.phi.data[:] = rng.uniform(-0.4, 2, gate.count)
    p_in, p_out, p_block = (gate.open_probability().data for _, gate in layer.gates())
    surrogate = md.Surrogate(layer, (10,))().item()
    assert np.isclose(answer(p_out, p_in, p_block, groups.labels), surrogate, rtol=1e-4), (
        "it differs from md.Surrogate of such a layer."
    )
