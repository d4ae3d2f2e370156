"""Gates: their values, when they are random, and the probability that they are open."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import minidiff as md
from minidiff import Gate, nn
from minidiff.pruning.noise import NOISES
from minidiff.pruning.transform import GateTransform
from tests.checks import leaf
from tests.networks import DOUBLE, assert_same, by_hand, dense, gate_at, results, rng, train
from tests.strategies import arrays, dtypes, seeds

few = settings(max_examples=20)
noises = pytest.mark.parametrize("noise", NOISES)
KINDS = [(Gate, {"noise": "normal"}), (md.HardConcrete, {}), (md.GaussianGate, {})]
kinds = pytest.mark.parametrize(("kind", "options"), KINDS, ids=["Gate", "Concrete", "Gaussian"])


def phis():
    """Closed (also right at the edge), in transition, or open; all closed now and then."""
    parts = st.sampled_from([-5.0, -0.5, 0.5, 2.0]) | st.floats(-0.45, 0.45)
    mixed = st.lists(parts, min_size=1, max_size=8) | st.just([-1.0] * 4)
    return mixed.map(np.array)


# -- values ------------------------------------------------------------------------------------


@given(phis(), st.floats(0.1, 10), dtypes)
def test_values_are_the_transform_of_phi_and_live_lists_the_open(phi, width, dtype):
    gate = gate_at(phi * width, width=width, dtype=dtype)
    z = gate()
    assert (z.dtype, gate.dtype) == (dtype, np.dtype(dtype).name)
    np.testing.assert_array_equal(z.data, md.binary_gate(gate.phi.data, width))
    np.testing.assert_array_equal(gate.evaluated(), z.data)
    np.testing.assert_array_equal(gate.is_open(), z.data != 0)
    np.testing.assert_array_equal(z.live, gate.is_open().nonzero()[0])
    z.backward(np.ones(len(phi)))
    np.testing.assert_array_equal(gate.phi.grad != 0, (z.data > 0) & (z.data < 1))


@kinds
def test_gates_of_any_kind_are_opened_and_closed_by_hand(kind, options):
    gate = kind(3, rng=rng(), **options)
    gate.set_open(np.array([True, False, True]))
    assert gate.evaluated().tolist() == [1, 0, 1]
    for wrong in ([True, False], [0, 2, 1]):  # another size, and indices
        with pytest.raises(ValueError, match="expected a bool for each of 3 groups"):
            gate.set_open(np.array(wrong))
    # The limits are where gates close and are fully open.
    for limit, inside in zip(gate.limits, (1e-3, -1e-3), strict=True):
        gate.phi.data = np.float32([limit + inside, limit - inside, limit - 2 * inside])
        assert (gate.evaluated() % 1 != 0).tolist() == [True, False, False]


@pytest.mark.parametrize("odd", [np.nan, np.inf])
def test_what_a_closed_gate_multiplies_does_not_matter_whatever_it_is(odd):
    layer = md.gate(nn.Linear(4, 3, rng=rng()), "weights")
    is_open = np.arange(12) % 3 > 0
    layer.weights[0].gate.set_open(is_open)
    layer.weights[0].gate.phi.data[1] = 0.1  # partly open
    for mask in (layer.weights[0], md.Mask(layer.weights[0].gate, md.Groups.elements((3, 4)))):
        x = leaf(np.ones((3, 4, 2), np.float32)) if mask is not layer.weights[0] else None
        values = layer.layer.weight.data if x is None else x.data
        values[~is_open.reshape(3, 4)] = odd
        out = layer(np.ones((4, 2), np.float32)) if x is None else mask(x)
        out.sum().backward()
        assert np.isfinite(out.data).all()
        assert np.isfinite(mask.gate.phi.grad).all()
        assert mask.gate.phi.grad[1] != 0
        mask.gate.phi.grad = None
    small = md.compact(nn.Sequential(layer), (4,))
    x = rng().random((4, 5), np.float32)
    np.testing.assert_allclose(small(x).data, layer(x).data, rtol=1e-6)


# -- noise -------------------------------------------------------------------------------------


@noises
@settings(max_examples=10)
@given(seed=seeds)
def test_gates_draw_at_each_call_in_training_and_only_then(noise, seed):
    def draws(evaluates):
        gate, found = gate_at([0.1] * 20, seed=seed, noise=noise), []
        for _ in range(3):
            found.append(gate().data)
            if evaluates:
                gate.eval()
                assert gate().data.tolist() == gate.evaluated().tolist() == [gate().data[0]] * 20
                gate.open_probability()
                gate.train()
        return np.array(found)

    found = draws(False)
    np.testing.assert_array_equal(found, draws(True))
    assert (found[0] != found[1]).any()
    assert all(len(np.unique(z)) > 2 for z in found)  # each group has noise of its own


def test_deterministic_gates_start_open_and_draw_nothing():
    noise = rng()
    assert Gate(3, rng=noise)().data.tolist() == [1, 1, 1]
    assert noise.random() == rng().random()
    assert Gate(2, initial=-0.25).phi.data.tolist() == [-0.25, -0.25]


@noises
def test_frozen_gates_draw_nothing_and_learn_nothing(noise):
    layer = nn.Linear(4, 3, rng=rng())
    layer = md.gate(layer, "inputs", "outputs", "weights", initial=0.2, noise=noise, rng=rng(1))
    for _, gate in layer.gates():
        gate.frozen = True
        assert gate().data.tolist() == gate.evaluated().tolist()
    layer(np.ones((4, 2), np.float32)).sum().backward()
    assert [gate.phi.grad for _, gate in layer.gates()] == [None] * 3
    assert layer.layer.weight.grad is not None


@kinds
def test_noise_per_sample_needs_samples(kind, options):
    gate = gate_at([0.3] * 3, kind, per_sample=True, **options)
    with pytest.raises(ValueError, match=r"input of shape \(3,\); expected \(3, ..., N\)"):
        gate(np.ones(3))
    assert gate.eval()(np.ones(3)).shape == (3,)


@kinds
@pytest.mark.parametrize("shape", [(3,), (3, 2, 2)])
def test_noise_per_sample_differs_between_samples_only(kind, options, shape):
    gate = gate_at([0.3] * 3, kind, per_sample=True, **options)
    for layer in (gate, md.Mask(gate, md.Groups.along(shape, 0))):
        values = layer(np.ones((*shape, 50))).data.reshape(3, -1, 50)
        assert (values == values[:, :1]).all()  # one gate for all positions of a channel
        assert all(len(np.unique(row[0])) > 5 for row in values)
        assert (layer.eval()(np.ones((*shape, 50))).data == gate.evaluated()[0]).all()
        layer.train()

    def run(phi):
        gate = gate_at([0.3] * 3, kind, per_sample=True, **options)  # draws the same
        gate.phi = phi
        return gate(np.ones((*shape, 4)))

    phi = md.Tensor(np.array([0.3, 0.4, 0.5]), requires_grad=True)
    assert md.gradcheck(run, [phi], tolerance=1e-4)


# -- open probability --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        *[(Gate, {"noise": noise, "width": 0.6, "sigma": 1.5}) for noise in NOISES],
        *[(Gate, {"noise": noise, "width": 2.0, "sigma": 0.6}) for noise in NOISES],
        (md.HardConcrete, {"beta": 0.5, "gamma": -0.2, "zeta": 1.3}),
        (md.GaussianGate, {"sigma": 0.8}),
    ],
)
def test_open_probability_is_how_often_gates_open_in_training(kind, options):
    samples = 20_000  # groups of one phi are as good as calls
    gate = gate_at(np.repeat([-1.3, -0.5, 0.0, 0.7], samples), kind, **options)
    p = gate.open_probability().data[::samples]
    frequency = (gate().data > 0).reshape(4, -1).mean(axis=1)
    assert (abs(frequency - p) <= 4 * np.sqrt(p * (1 - p) / samples) + 1e-7).all()


@pytest.mark.parametrize("noise", [None, *NOISES])
@few
@given(phi=arrays((4,)), width=st.floats(0.1, 3), sigma=st.floats(0.3, 3))
def test_open_probability_is_differentiable_in_phi(noise, phi, width, sigma):
    for kink in (-sigma, 0, sigma):  # of uniform noise, and where a deterministic gate closes
        phi = np.where(abs(phi + width / 2 - kink) < 1e-3, phi + 0.01, phi)
    gate = gate_at(phi, width=width, sigma=sigma, noise=noise)

    def probability(phi):
        gate.phi = phi
        return gate.open_probability()

    assert md.gradcheck(probability, [md.Tensor(phi, requires_grad=True)])


def test_a_deterministic_gate_is_pushed_until_it_closes_for_good():
    gate = gate_at([-0.5, -1.0, -0.49, 0.1, 3.0])
    p = gate.open_probability()
    assert p.data[:2].tolist() == [0, 0]
    assert p.data[3] == pytest.approx(0.5 * math.erfc(-0.6 / math.sqrt(2)))  # imagined noise
    before, optimizer = gate.phi.data.copy(), md.optim.SGD([gate.phi], lr=0.1, weight_decay=1.0)
    (gate().sum() + p.sum()).backward()
    assert (gate.phi.grad > 0).tolist() == [False, False, True, True, True]
    assert gate.phi.grad_live.tolist() == [2, 3, 4]
    optimizer.step()
    assert gate.phi.data[:2].tolist() == [-0.5, -1.0]  # left alone
    assert (gate.phi.data[3:] < before[3:]).all()


# -- errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 0}, "count is 0; expected an integer >= 1"),
        ({"count": 2.5}, "count is 2.5; expected"),
        ({"count": True}, "count is True; expected"),
        ({"width": 0.0}, "width is 0.0; expected a finite number above 0"),
        ({"width": 1e-40}, "width is 1e-40, which float32 cannot hold"),
        ({"sigma": math.nan}, "sigma is nan; expected a finite number above 0"),
        ({"initial": math.nan}, "initial is nan; expected a finite number"),
        ({"noise": "gauss"}, "noise is 'gauss'; expected None, 'normal', 'logistic', 'uniform'"),
        ({"noise": "normal"}, "noise 'normal' needs rng, a numpy.random.Generator"),
        ({"per_sample": True}, "per_sample is for stochastic gates"),
    ],
)
def test_settings_out_of_range_are_errors(options, message):
    with pytest.raises(ValueError, match=message):
        Gate(**({"count": 3} | options))


# -- a kind of one's own -----------------------------------------------------------------------


class Quadratic(GateTransform):
    """The square of x, limited to [0, 1]."""

    def compute(self, x):
        self.x = np.clip(x, 0, 1)
        return self.x**2

    def fully_open(self):
        return self.x == 1

    def backward(self, grad):
        return np.where(self.x < 1, 2 * self.x * grad, 0)


class QuadraticGate(Gate):
    """A kind of gate that minidiff does not have."""

    settings = ("count", "dtype", "frozen")
    limits = 0.0, 1.0

    def __init__(self, count, *, dtype=np.float32):
        super().__init__(count, initial=1.2, dtype=dtype)

    def transform(self):
        return Quadratic()

    def tail(self, phi):
        return np.clip(phi, 0, 1), ((phi > 0) & (phi < 1.5)).astype(phi.dtype)


def test_a_new_kind_of_gate_trains_is_skipped_and_saved(tmp_path):
    model = nn.Sequential(
        md.gate(dense(6, 8), kind=QuadraticGate, **DOUBLE), nn.ReLU(), dense(8, 2)
    )
    x, gate = rng().standard_normal((6, 50)), model[0].outputs
    losses = train(model, x, (x[0] > 0).astype(int), penalty=0.02)
    assert losses[-1] < losses[0]
    assert 0 < gate.is_open().sum() < 8
    assert model[0](x).live.tolist() == gate.is_open().nonzero()[0].tolist()
    found = results(model, model, x)
    assert_same(found, results(lambda x: by_hand(model, x), model, x))
    md.save(tmp_path / "model.safetensors", model)
    loaded = md.load(tmp_path / "model.safetensors")
    assert type(loaded[0].outputs) is QuadraticGate
    np.testing.assert_array_equal(loaded(x).data, found["output"])
    np.testing.assert_allclose(md.compact(loaded, (6,))(x).data, found["output"], atol=1e-12)


class Linear(GateTransform):
    """A straight line from low at 0 to high at 1, limited to them."""

    def __init__(self, low=0.0, high=1.0):
        self.low, self.high = low, high

    def compute(self, x):
        self.x = x
        return np.clip(x, 0, 1) * (self.high - self.low) + self.low

    def fully_open(self):
        return self.x >= 1

    def backward(self, grad):
        return np.where((self.x > 0) & (self.x < 1), grad * (self.high - self.low), 0)


def kind(transform, limits=(0.0, 1.0)):
    return type("Kind", (Gate,), {"transform": lambda self: transform(), "limits": limits})


def test_a_kind_with_limits_of_its_own_needs_no_tail():
    gate = kind(Linear)(5, sigma=0.5, **DOUBLE)
    gate.phi.data = np.array([-0.25, 0.0, 0.01, 0.5, 2.0])
    assert (gate.open_probability().data > 0).tolist() == gate.is_open().tolist()
    noisy = kind(Linear)(50_000, initial=0.3, noise="normal", sigma=0.5, rng=rng())
    expected = noisy.open_probability().data[0]
    assert abs((noisy.values().data > 0).mean() - expected) < 0.01


def test_limits_that_do_not_fit_the_transform_are_errors():
    for limits in ((0.0, 0.0), (-3.0, -2.0), (0.5, 0.6)):
        gate = kind(Linear, limits)(2, initial=0.4)
        with pytest.raises(ValueError, match="expected limits that fit transform"):
            gate.set_open(np.array([True, False]))
        assert gate.phi.data.tolist() == [np.float32(0.4)] * 2


@pytest.mark.parametrize("ends", [(-0.3, 1.0), (0.0, 2.0)])
def test_values_outside_0_to_1_are_errors(ends):
    layer = md.gate(dense(3, 2), kind=kind(lambda: Linear(*ends)), **DOUBLE)
    layer.outputs.phi.data = np.array([-1.0, 2.0])
    for use in (md.fold_gates, lambda model: md.count(model, (3,))):
        with pytest.raises(ValueError, match=r"values go from .*; expected 0 to 1"):
            use(layer)


def test_a_transform_cannot_change_phi():
    class InPlace(Linear):
        def compute(self, x):
            return super().compute(np.clip(x, 0, 1, out=x))

    gate = kind(InPlace)(2)
    for use in (gate, gate.is_open):
        with pytest.raises(ValueError, match="read-only"):
            use()
    assert gate.phi.data.tolist() == [1.5, 1.5]


def test_a_transform_of_another_class_is_an_error():
    for other in (lambda: None, lambda: md.engine.op.Exp()):
        with pytest.raises(TypeError, match=r"transform\(\) of Kind returned .*GateTransform"):
            kind(other)(2)()
