"""Batch normalisation: its gradients, its running statistics, and how it folds into layers."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import minidiff as md
from minidiff import functional as F
from minidiff import nn
from tests.networks import DOUBLE, rng
from tests.strategies import seeds


def drawn(*shape, seed=0):
    return rng(seed).standard_normal(shape)


@given(seeds, st.sampled_from([(3, 7), (2, 3, 2, 4), (1, 2)]))
def test_gradients_in_training(seed, shape):
    leaves = [drawn(*shape, seed=seed), drawn(shape[0], seed=seed + 1), drawn(shape[0])]
    leaves = [md.Tensor(a, requires_grad=True) for a in leaves]
    assert md.gradcheck(lambda *a: F.batch_norm(*a, eps=0.1)[0], leaves, directions=3)


def test_running_statistics_move_in_training_alone():
    norm, x = nn.BatchNorm(3, momentum=0.25, **DOUBLE), 5 + 2 * drawn(3, 4, 5, 6)
    out = norm(x).data
    np.testing.assert_allclose(out.mean(axis=(1, 2, 3)), 0, atol=1e-12)
    np.testing.assert_allclose(out.var(axis=(1, 2, 3)), 1, rtol=1e-4)
    flat = x.reshape(3, -1)
    np.testing.assert_allclose(norm.mean.data, 0.25 * flat.mean(axis=1))
    np.testing.assert_allclose(norm.variance.data, 0.75 + 0.25 * flat.var(axis=1, ddof=1))
    before = norm.state_dict()
    expected = (flat - before["mean"][:, None]) / np.sqrt(before["variance"] + 1e-5)[:, None]
    np.testing.assert_allclose(norm.eval()(x).data.reshape(3, -1), expected)
    for name, array in norm.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


def network(seed=0, dtype=np.float32):
    options = {"rng": rng(seed), "dtype": dtype}
    model = nn.Sequential(
        conv1=nn.Conv2d(2, 6, 3, padding=1, **options),
        norm1=nn.BatchNorm(6, dtype=dtype),
        relu1=nn.ReLU(),
        block=nn.Sequential(
            conv=nn.Conv2d(6, 5, 3, stride=2, **options),
            norm=nn.BatchNorm(5, dtype=dtype),
            silu=nn.SiLU(),
        ),
        flatten=nn.Flatten(),
        dense=nn.Linear(5 * 9, 8, **options),
        norm2=nn.BatchNorm(8, dtype=dtype),
        tanh=nn.Tanh(),
        out=nn.Linear(8, 3, **options),
    )
    for module in model.modules():
        if isinstance(module, nn.BatchNorm):
            for parameter in (module.weight, module.bias, module.mean):
                parameter.data = drawn(len(parameter), seed=seed).astype(dtype)
            module.variance.data = (0.1 + drawn(len(parameter), seed=seed) ** 2).astype(dtype)
    return model


@settings(max_examples=25)
@given(seeds, st.booleans())
def test_a_pruned_network_is_the_same_everywhere(seed, partly):
    model = md.gate(network(seed)).eval()
    assert list(md.gates_of(model)) == [
        "norm1_gate", "block.norm_gate", "dense.inputs", "norm2_gate",
    ]  # fmt: skip
    order = rng(seed)
    for gate in md.gates_of(model).values():
        gate.set_open(order.random(gate.count) < 0.6)
        if partly:
            gate.phi.data = order.uniform(-0.9, 0.9, gate.count).astype(np.float32)
    x = drawn(2, 8, 8, 20, seed=seed).astype(np.float32)
    expected = model(x).data
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "nothing is left")
        small = md.compact(model, (2, 8, 8))
    assert not any(isinstance(m, nn.BatchNorm) for m in small.modules())
    tolerance = {"rtol": 1e-3, "atol": 1e-4 * np.abs(expected).max()}
    np.testing.assert_allclose(small.eval()(x).data, expected, **tolerance)
    for one in (model, network(seed), small):
        wanted = one.eval()(x).data
        predict = md.Predictor(one, (2, 8, 8))
        for count in (3, 20):
            found = predict(np.moveaxis(x[..., :count], -1, 0)).T
            np.testing.assert_allclose(found, wanted[:, :count], **tolerance)
    counted = {layer.name.replace(".", "_"): layer for layer in md.count(model, (2, 8, 8))}
    for name, layer in small.items():
        if isinstance(layer, nn.Weighted) and name in counted:
            assert layer.weight.size <= max(counted[name].weights[0], layer.weight[:, :1].size)


def test_a_normalised_network_is_saved_with_its_statistics(tmp_path):
    model = md.gate(network())
    model(drawn(2, 8, 8, 20).astype(np.float32))
    md.save(tmp_path / "model.safetensors", model)
    loaded, x = md.load(tmp_path / "model.safetensors"), drawn(2, 8, 8, 4).astype(np.float32)
    np.testing.assert_array_equal(loaded.eval()(x).data, model.eval()(x).data)
    assert not loaded["norm1"].mean.requires_grad


def test_gates_behind_norms_close_under_the_penalty():
    model = md.gate(network(dtype=np.float64), initial=0.5, **DOUBLE)
    target = md.Target(model, (2, 8, 8), steps=60, weights="4x")
    x, labels = drawn(2, 8, 8, 32), rng(1).integers(0, 3, 32)
    weights, phis = md.split_parameters(model)
    sgd, adam = md.optim.SGD(weights, lr=0.05), md.optim.Adam(phis, lr=0.05)
    losses = []
    for _ in range(60):
        loss = F.cross_entropy(model(x), labels)
        losses.append(loss.item())
        sgd.zero_grad()
        adam.zero_grad()
        (loss + target.penalty()).backward()
        sgd.step()
        if not target.reached:
            adam.step()
        target.step()
    assert target.reached
    assert target.sizes()["weights"] <= target.goals["weights"]
    assert losses[-1] < losses[0]


def test_gates_behind_norms_fold_into_them():
    model, x = md.gate(network()).eval(), drawn(2, 8, 8, 9).astype(np.float32)
    for gate in md.gates_of(model).values():
        gate.phi.data = rng(3).uniform(-0.6, 0.6, gate.count).astype(np.float32)
    expected = model(x).data
    md.fold_gates(model)
    np.testing.assert_allclose(model(x).data, expected, rtol=1e-3, atol=1e-4)
    for gate in md.gates_of(model).values():
        assert set(np.unique(gate.evaluated())) <= {0, 1}


def test_norms_that_do_not_fit_are_errors():
    with pytest.raises(ValueError, match="0 channels; expected an integer"):
        nn.BatchNorm(0)
    with pytest.raises(ValueError, match="momentum is 2"):
        nn.BatchNorm(3, momentum=2)
    with pytest.raises(ValueError, match=r"BatchNorm of 3 does not fit an input of shape \(2, 5\)"):
        nn.BatchNorm(3)(np.ones((2, 5)))
    with pytest.raises(ValueError, match="more than one number a channel"):
        nn.BatchNorm(3)(np.ones((3, 1)))
    with pytest.raises(ValueError, match="does not fit an input of shape"):
        nn.BatchNorm(3).output_shape((4, 2, 2))
    lonely = nn.Sequential(norm=nn.BatchNorm(4), dense=nn.Linear(4, 2, rng=rng()))
    with pytest.raises(ValueError, match="norm is a BatchNorm that does not follow a layer with"):
        md.compact(lonely, (4,))
