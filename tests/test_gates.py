"""Gates: their values, when they are random, and the probability that they are open."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import minidiff as md
from minidiff import nn
from minidiff.pruning.noise import NOISES
from minidiff.pruning.transform import GateTransform
from tests.networks import DOUBLE, by_hand, results
from tests.strategies import arrays, dtypes, seeds

stochastic = pytest.mark.parametrize("noise", list(NOISES))


def gate_at(phi, **options):
    gate = md.Gate(len(phi), **(DOUBLE | options))
    gate.phi.data = np.asarray(phi)
    return gate


def phis(width=1.0):
    """Closed (also right at the edge), in transition, or open; all closed now and then."""
    parts = st.sampled_from([-5.0, -0.5, 0.5, 2.0]) | st.floats(-0.45, 0.45)
    mixed = st.lists(parts, min_size=1, max_size=8) | st.just([-1.0] * 4)
    return mixed.map(lambda some: width * np.array(some))


# -- values ------------------------------------------------------------------------------------


@given(phis(), st.floats(0.1, 10), dtypes)
def test_values_are_the_transform_of_phi_and_live_lists_the_open(phi, width, dtype):
    gate = gate_at(phi * width, width=width, dtype=dtype)
    z = gate()
    assert z.dtype == dtype
    np.testing.assert_array_equal(z.data, md.binary_gate(gate.phi.data, width))
    np.testing.assert_array_equal(gate.evaluated(), z.data)
    np.testing.assert_array_equal(gate.is_open(), z.data != 0)
    np.testing.assert_array_equal(z.live, gate.is_open().nonzero()[0])


@given(phis())
def test_only_a_gate_in_transition_gets_a_gradient(phi):
    gate = gate_at(phi)
    gate().backward(np.ones(len(phi)))
    np.testing.assert_array_equal(gate.phi.grad != 0, abs(phi) < 0.5)


def test_gates_start_open_or_where_they_are_told():
    assert md.Gate(3)().data.tolist() == [1, 1, 1]
    assert md.Gate(2, initial=-0.25).phi.data.tolist() == [-0.25, -0.25]
    assert (md.Gate(2).dtype, md.Gate(2, **DOUBLE).dtype) == ("float32", "float64")


@pytest.mark.parametrize("kind", [md.Gate, md.HardConcrete, md.GaussianGate])
def test_gates_of_any_kind_are_opened_and_closed_by_hand(kind):
    gate = kind(3, rng=np.random.default_rng(0))
    gate.set_open(np.array([True, False, True]))
    assert gate.evaluated().tolist() == [1, 0, 1]
    for wrong in ([True, False], [0, 2, 1]):  # another size, and indices
        with pytest.raises(ValueError, match="expected a bool for each of 3 groups"):
            gate.set_open(np.array(wrong))
    # The limits are where gates close and are fully open.
    for limit, inside in zip(gate.limits, (1e-3, -1e-3), strict=True):
        gate.phi.data = np.float32([limit + inside, limit - inside, limit - 2 * inside])
        assert (gate.evaluated() % 1 != 0).tolist() == [True, False, False]


# -- noise -------------------------------------------------------------------------------------


@stochastic
@settings(max_examples=10)
@given(seed=seeds)
def test_gates_draw_at_each_call_in_training_and_only_then(noise, seed):
    def draws(evaluates):
        gate = gate_at(np.full(20, 0.1), noise=noise, rng=np.random.default_rng(seed))
        found = []
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


def test_deterministic_gates_leave_their_generator_alone():
    rng = np.random.default_rng(0)
    md.Gate(5, rng=rng)()
    assert rng.random() == np.random.default_rng(0).random()


@stochastic
def test_frozen_gates_draw_nothing_and_learn_nothing(noise):
    dense, rng = nn.Linear(4, 3, rng=np.random.default_rng(0)), np.random.default_rng(1)
    layer = md.gate(dense, "inputs", "outputs", "weights", initial=0.2, noise=noise, rng=rng)
    for _, gate in layer.gates():
        gate.frozen = True
        assert gate().data.tolist() == gate.evaluated().tolist()
    layer(np.ones((4, 2), np.float32)).sum().backward()
    assert [gate.phi.grad for _, gate in layer.gates()] == [None] * 3
    assert layer.layer.weight.grad is not None


@pytest.mark.parametrize("kind", [md.Gate, md.HardConcrete, md.GaussianGate])
@pytest.mark.parametrize("shape", [(3,), (3, 2, 2)])
def test_noise_per_sample_differs_between_samples_only(kind, shape):
    options = {"noise": "normal"} if kind is md.Gate else {}
    gate = kind(3, initial=0.3, per_sample=True, rng=np.random.default_rng(0), **options)
    for layer in (gate, md.Mask(gate, md.Groups.along(shape, 0))):
        values = layer(np.ones((*shape, 50), np.float32)).data.reshape(3, -1, 50)
        assert (values == values[:, :1]).all()  # one gate for all positions of a channel
        assert all(len(np.unique(row[0])) > 5 for row in values)
        alike = layer.eval()(np.ones((*shape, 50), np.float32)).data
        assert (alike == gate.evaluated()[0]).all()
        layer.train()


def test_gradients_of_noise_per_sample_match_finite_differences():
    x = np.random.default_rng(1).standard_normal((2, 3, 2, 4))

    def run(phi):
        rng = np.random.default_rng(0)  # the same draws each time
        gate = md.Gate(2, noise="logistic", per_sample=True, rng=rng, **DOUBLE)
        gate.phi = phi
        return gate(x)

    phi = md.Tensor(np.array([0.1, -0.2]), requires_grad=True)
    assert md.gradcheck(run, [phi], tolerance=1e-4)


# -- open probability --------------------------------------------------------------------------


@stochastic
@pytest.mark.parametrize(("width", "sigma"), [(1.0, 1.0), (0.5, 2.0), (2.0, 0.6)])
def test_open_probability_is_how_often_gates_open_in_training(noise, width, sigma):
    samples = 20_000  # groups of one phi are as good as calls
    phi = np.repeat([-1.3, -0.5, 0.0, 0.7], samples)
    gate = gate_at(phi, width=width, sigma=sigma, noise=noise, rng=np.random.default_rng(1))
    p = gate.open_probability().data[::samples]
    frequency = (gate().data > 0).reshape(4, -1).mean(axis=1)
    assert (abs(frequency - p) <= 4 * np.sqrt(p * (1 - p) / samples) + 1e-7).all()


@pytest.mark.parametrize("noise", [None, *NOISES])
@settings(max_examples=20)
@given(phi=arrays((4,)), width=st.floats(0.1, 3), sigma=st.floats(0.3, 3))
def test_open_probability_is_differentiable_in_phi(noise, phi, width, sigma):
    for kink in (-sigma, 0, sigma):  # of uniform noise, and where a deterministic gate closes
        phi = np.where(abs(phi + width / 2 - kink) < 1e-3, phi + 0.01, phi)
    gate = gate_at(phi, width=width, sigma=sigma, noise=noise, rng=np.random.default_rng(0))

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
    assert gate.phi.grad_rows.tolist() == [2, 3, 4]
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
        ({"width": math.inf}, "width is inf; expected"),
        ({"width": 1e-40}, "width is 1e-40, which float32 cannot hold"),
        ({"sigma": -0.5}, "sigma is -0.5; expected a finite number above 0"),
        ({"sigma": math.nan}, "sigma is nan; expected"),
        ({"initial": math.nan}, "initial is nan; expected a finite number"),
        ({"noise": "gauss"}, "noise is 'gauss'; expected None, 'normal', 'logistic', 'uniform'"),
        ({"noise": "normal"}, "noise 'normal' needs rng, a numpy.random.Generator"),
        ({"per_sample": True}, "per_sample is for stochastic gates"),
    ],
)
def test_settings_out_of_range_are_errors(options, message):
    with pytest.raises(ValueError, match=message):
        md.Gate(**({"count": 3} | options))


def test_an_input_that_does_not_fit_is_an_error():
    with pytest.raises(ValueError, match=r"a Gate of 4 does not fit an input of shape \(3, 2\)"):
        md.Gate(4)(np.ones((3, 2), np.float32))


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


class QuadraticGate(md.Gate):
    """A kind of gate that minidiff does not have."""

    settings = ("count", "initial", "dtype", "frozen")

    def __init__(self, count, *, initial=1.2, dtype=np.float32):
        super().__init__(count, initial=initial, dtype=dtype)

    def transform(self):
        return Quadratic()

    @property
    def limits(self):
        return 0.0, 1.0

    def tail(self, phi):
        return np.clip(phi, 0, 1), ((phi > 0) & (phi < 1.5)).astype(phi.dtype)


def test_a_new_kind_of_gate_trains_is_skipped_and_saved(tmp_path):
    rng = np.random.default_rng(0)
    model = nn.Sequential(
        md.gate(nn.Linear(6, 8, rng=rng, **DOUBLE), kind=QuadraticGate, **DOUBLE),
        nn.ReLU(),
        nn.Linear(8, 2, rng=rng, **DOUBLE),
    )
    x, gate, surrogate = rng.standard_normal((6, 50)), model[0].outputs, md.Surrogate(model, (6,))
    weights, phis = md.split_parameters(model)
    sgd, adam = md.optim.SGD(weights, lr=0.3), md.optim.Adam(phis, lr=0.05)
    for _ in range(40):
        loss = md.functional.cross_entropy(model(x), (x[0] > 0).astype(int)) + 0.02 * surrogate()
        sgd.zero_grad()
        adam.zero_grad()
        loss.backward()
        sgd.step()
        adam.step()
    assert 0 < gate.is_open().sum() < 8
    assert model[0](x).live.tolist() == gate.is_open().nonzero()[0].tolist()
    found = results(model, model, x)
    np.testing.assert_allclose(found["output"], by_hand(model, md.Tensor(x)).data, atol=1e-12)
    assert not found["0.layer.weight"][~gate.is_open()].any()
    md.save(tmp_path / "model.safetensors", model)
    loaded = md.load(tmp_path / "model.safetensors")
    assert type(loaded[0].outputs) is QuadraticGate
    np.testing.assert_array_equal(loaded(x).data, found["output"])
    np.testing.assert_allclose(md.compact(loaded, (6,))(x).data, found["output"], atol=1e-12)
