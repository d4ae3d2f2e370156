"""Checks of tutorial 9."""

import numpy as np
from support import exercise

import minidiff as md
from minidiff import nn


@exercise(
    "09.chips",
    hint="md.Mask(md.Gate(4), md.Groups.by(chip)); chip, of shape (8, 1, 1), is the chip of each cell.",
)
def chips(answer):
    mask = answer()
    assert mask is not None, "it returned None."
    assert isinstance(mask, md.Mask), f"it returned a {type(mask).__name__}, not a Mask."
    assert mask.gate.count == 4, f"there are {mask.gate.count} gates; four chips need 4."
    assert mask.groups.fits((8, 1, 8)), (
        f"groups of shape {mask.groups.labels.shape} do not fit a signal of shape (8, 1, 8)."
    )
    mask.eval()
    pairs = []
    for chip in range(4):
        mask.gate.set_open(np.arange(4) != chip)
        gated = mask(np.ones((8, 1, 8, 2), np.float32)).data
        pairs.append([cell for cell in range(8) if not gated[cell].all()])
    assert sorted(pairs) == [[0, 1], [2, 3], [4, 5], [6, 7]], (
        f"the gates close cells {' and '.join(map(str, pairs))}, not 0 and 1, 2 and 3, and so on."
    )
    model = nn.Sequential(mask, nn.Conv2d(8, 4, (1, 3), rng=np.random.default_rng(0)))
    (layer,) = md.count(model, (8, 1, 8))
    assert layer.inputs == (6, 8), (
        f"with a chip closed, a convolution has {layer.inputs[0]} inputs left, not 6."
    )


@exercise(
    "09.cost",
    hint="where a gate is fully open, gate.open_probability() has a gradient, and gate() has none.",
)
def cost(answer):
    gate = md.Gate(3, initial=0.7)
    gate.phi.data[:] = [0.7, -0.2, -2.0]
    costs = np.float32([1.0, 10.0, 100.0])
    found = answer(gate, costs)
    assert found is not None, "it returned None."
    assert isinstance(found, md.Tensor), (
        f"it returned {type(found).__name__}, not a Tensor, so no gradient can flow."
    )
    expected = (gate.open_probability().data * costs).sum()
    assert found.shape == (), f"it is of shape {found.shape}; a cost is one number."
    assert np.isclose(found.item(), expected, rtol=1e-4), (
        f"it is {found.item():.4g}; expected {expected:.4g} for open probabilities "
        f"{gate.open_probability().data.round(3)} and costs {costs}."
    )
    gate.phi.grad = None
    if found.requires_grad:
        found.backward()
    grad = gate.phi.grad
    assert grad is not None, "no gradient reaches phi."
    assert grad[0] > 0, "a fully open gate gets no gradient, so it would never begin to close."
    assert grad[2] == 0, "a closed gate gets a gradient."


@exercise(
    "09.closed",
    hint="gate.evaluated() has the values; compare them with 0, not with a threshold.",
)
def closed(answer):
    rng = np.random.default_rng(0)
    model = nn.Sequential(
        md.gate(nn.Linear(4, 5, rng=rng), "outputs"),
        nn.ReLU(),
        md.gate(nn.Linear(5, 2, rng=rng), "inputs", noise="normal", sigma=9.0, rng=rng),
    )
    first, second = model[0].outputs, model[2].inputs
    first.phi.data[:] = [1.0, -0.499, 0.0, -0.5, -3.0]
    second.phi.data[:] = [-0.499, 1.0, 1.0, 1.0, -1.0]
    found = answer(model)
    assert found is not None, "it returned None."
    assert found != 5, "gates that are small but not 0 were counted as closed."
    assert found == 3, (
        f"it returned {found}; three gates are exactly 0 in evaluation. (One layer has noise.)"
    )
