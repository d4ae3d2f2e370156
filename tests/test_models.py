"""Networks of the literature: their sizes, and what of them is gated."""

import numpy as np
import pytest

import minidiff as md
from minidiff import nn
from minidiff.models import MODELS, SPARSITIES

ROLES = {
    "lenet5": ["conv1.outputs", "conv2.outputs", "dense1.inputs", "dense1.outputs"],
    "lenet300": ["dense1.inputs", "dense1.outputs", "dense2.outputs"],
}
WEIGHTS = {
    "lenet5": {"conv1": 500, "conv2": 25_000, "dense1": 400_000, "dense2": 5_000},
    "lenet300": {"dense1": 235_200, "dense2": 30_000, "dense3": 1_000},
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_what_is_gated_depends_on_the_sparsity_and_sizes_do_not(name, sparsity):
    model = MODELS[name](rng=np.random.default_rng(0), sparsity=sparsity)
    singles = [f"{layer}.weights.0" for layer in WEIGHTS[name]]
    expected = ROLES[name] * (sparsity in ("structured", "combined"))
    expected += singles * (sparsity in ("unstructured", "combined"))
    assert sorted(md.gates_of(model)) == sorted(expected)
    counts = md.count(model, model.input_shape)
    assert {c.name: c.weights for c in counts} == {
        layer: (n, n) for layer, n in WEIGHTS[name].items()
    }
    x = np.random.default_rng(1).standard_normal((1, 28, 28, 2), dtype=np.float32)
    assert model(x).shape == (10, 2)


def test_gates_are_of_the_kind_and_settings_given_and_pixels_drop_out():
    rng = np.random.default_rng(0)
    model = md.LeNet5(rng=rng, kind=md.HardConcrete, dropout=0.1, initial=0.3, beta=0.5)
    assert {type(gate) for gate in md.gates_of(model).values()} == {md.HardConcrete}
    assert {(g.initial, g.beta) for g in md.gates_of(model).values()} == {(0.3, 0.5)}
    assert isinstance(model[0], nn.Dropout)
    assert all(gate.rng is rng for gate in md.gates_of(model).values())


def test_the_same_generator_draws_the_same_weights_whatever_is_gated():
    drawn = [
        md.split_parameters(md.LeNet5(rng=np.random.default_rng(3), sparsity=sparsity))[0]
        for sparsity in SPARSITIES
    ]
    for parameters in zip(*drawn, strict=True):
        assert len({parameter.data.tobytes() for parameter in parameters}) == 1


@pytest.mark.parametrize("name", MODELS)
def test_settings_out_of_range_are_errors(name):
    for options, message in (
        ({"sparsity": "half"}, "sparsity is 'half'; expected one of structured, unstructured"),
        ({"width": -1}, "width is -1"),
        ({"dropout": 1.0}, "p is 1.0"),
    ):
        with pytest.raises(ValueError, match=message):
            MODELS[name](rng=np.random.default_rng(0), **options)
