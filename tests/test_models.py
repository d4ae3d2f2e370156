"""Networks of the literature: their sizes, and what of them is gated."""

import numpy as np
import pytest

import minidiff as md
from minidiff import nn
from minidiff.models import MODELS, SPARSITIES
from tests.networks import rng

WEIGHTS = {
    "lenet5": {"conv1": 500, "conv2": 25_000, "dense1": 400_000, "dense2": 5_000},
    "lenet300": {"dense1": 235_200, "dense2": 30_000, "dense3": 1_000},
}
ROLES = {
    "lenet5": ["conv1.outputs", "conv2.outputs", "dense1.inputs", "dense1.outputs"],
    "lenet300": ["dense1.inputs", "dense1.outputs", "dense2.outputs"],
}


@pytest.mark.parametrize("name", MODELS)
def test_the_sparsity_says_what_is_gated_and_changes_no_weight(name):
    drawn = set()
    for sparsity in SPARSITIES:
        model = MODELS[name](rng=rng(3), sparsity=sparsity)
        expected = ROLES[name] * (sparsity in ("structured", "combined"))
        if sparsity in ("unstructured", "combined"):
            expected = expected + [f"{layer}.weights.0" for layer in WEIGHTS[name]]
        assert sorted(md.gates_of(model)) == sorted(expected)
        counts = {c.name: c.weights for c in md.count(model, model.input_shape)}
        assert counts == {layer: (n, n) for layer, n in WEIGHTS[name].items()}
        drawn.add(b"".join(p.data.tobytes() for p in md.split_parameters(model)[0]))
        assert model(np.zeros((1, 28, 28, 2), np.float32)).shape == (10, 2)
    assert len(drawn) == 1


def test_gates_are_of_the_kind_and_settings_given_and_pixels_drop():
    noise = rng()
    model = md.LeNet5(rng=noise, kind=md.HardConcrete, dropout=0.1, initial=0.3, beta=0.5)
    assert isinstance(model[0], nn.Dropout)
    for gate in md.gates_of(model).values():
        assert isinstance(gate, md.HardConcrete)
        assert (gate.initial, gate.beta, gate.rng) == (0.3, 0.5, noise)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": "half"}, "sparsity is 'half'; expected one of structured, unstructured"),
        ({"width": -1}, "width is -1"),
        ({"dropout": 1.0}, "p is 1.0"),
    ],
)
def test_settings_out_of_range_are_errors(name, options, message):
    with pytest.raises(ValueError, match=message):
        MODELS[name](rng=rng(), **options)
