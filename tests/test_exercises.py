"""Checks of exercises take right answers of any style, and say what is wrong with the others."""

import importlib
import math
import re
from fractions import Fraction
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest

import minidiff as md

TUTORIALS = Path(__file__).parents[1] / "tutorials"
F = NormalDist().cdf


@pytest.fixture(name="check")
def _check(monkeypatch):
    if not TUTORIALS.is_dir():
        pytest.skip("the tutorials are not here")
    monkeypatch.syspath_prepend(TUTORIALS)
    return importlib.import_module("support").check


# -- tutorial 1 --------------------------------------------------------------------------------


class Dual:
    def __init__(self, value, slope=0.0):
        self.value, self.slope = value, slope

    def __add__(self, other):
        other = other if isinstance(other, Dual) else Dual(other)
        return Dual(self.value + other.value, self.slope + other.slope)

    def __mul__(self, other):
        other = other if isinstance(other, Dual) else Dual(other)
        slope = self.slope * other.value + self.value * other.slope
        return Dual(self.value * other.value, slope)

    __radd__, __rmul__ = __add__, __mul__


class OneSided(Dual):
    def __radd__(self, other):
        return NotImplemented

    __rmul__ = __radd__


class BadProduct(Dual):
    def __mul__(self, other):
        other = other if isinstance(other, Dual) else BadProduct(other)
        return BadProduct(self.value * other.value, self.slope * other.slope)

    __rmul__ = __mul__


class Softplus(md.Op):
    def forward(self, x):
        self.x = x
        return np.logaddexp(np.zeros_like(x), x)

    def backward(self, grad):
        return grad * (np.tanh(self.x / 2) + 1) / 2


class Literal(Softplus):  # as a book writes it; 1 + exp(-50) is 1
    def forward(self, x):
        self.x = x
        return np.maximum(x, 0) + np.log(1 + np.exp(-abs(x)))


class Overflows(Softplus):
    def forward(self, x):
        self.x = x
        return np.log(1 + np.exp(x))


class StepSlope(Softplus):
    def backward(self, grad):
        return grad * (self.x > 0)


class Doubles(Softplus):
    def forward(self, x):
        return super().forward(x).astype(np.float64)


ONE = {
    "01.step": (
        [1e-4, np.finfo(float).eps ** 0.25, np.array(3e-4)],
        [(1e-6, "rounding"), (0.01, "truncation"), (0, "above 0"), (math.nan, "above 0")],
    ),
    "01.dual": (
        [lambda f, x: f(Dual(x, 1)).slope, lambda f, x: f(complex(x, 1e-200)).imag / 1e-200],
        [
            (lambda f, x: f(OneSided(x, 1)).slope, "it raised TypeError: unsupported operand"),
            (lambda f, x: f(BadProduct(x, 1)).slope, r"x \* x at -1.5 it is"),
            (lambda f, x: (f(x + 2**-20) - f(x - 2**-20)) * 2.0**19, r"for f\(x\) = x \* x \* x"),
            (lambda f, x: f(x), "it is -3.0, not 2"),
        ],
    ),
    "01.softplus": (
        [Softplus, Literal],
        [
            (Overflows, "NumPy warns: overflow"),
            (StepSlope, "the gradient says"),
            (Doubles, "a float32 input gives a float64 output"),
            (lambda: None, "it raised AttributeError"),
        ],
    ),
}

# -- tutorial 2 --------------------------------------------------------------------------------


def windows(x, size, stride, copy=False):
    found = np.lib.stride_tricks.sliding_window_view(x, (size, size), (2, 3))
    found = found[:, :, ::stride, ::stride]
    return found.copy() if copy else found


def strided(x, size, stride, apart=None):
    (n, c, h, w), (a, b, down, right) = x.shape, x.strides
    p, q = (h - size) // stride + 1, (w - size) // stride + 1
    apart = stride if apart is None else apart
    strides = a, b, apart * down, apart * right, down, right
    return np.lib.stride_tricks.as_strided(x, (n, c, p, q, size, size), strides)


def tile(registers):
    fits = [(r, v) for r in range(1, 40) for v in range(1, 40) if r * v + v + 1 <= registers]
    return min(fits, key=lambda t: Fraction(sum(t), t[0] * t[1]))


def grad_weight(x, grad):
    views = np.lib.stride_tricks.sliding_window_view(x, grad.shape[2:], (2, 3))
    return np.tensordot(grad, views, ([0, 2, 3], [0, 4, 5]))


def grad_weight_loops(x, grad):
    (_, _, p, q), k, m = grad.shape, x.shape[2] - grad.shape[2] + 1, x.shape[3] - grad.shape[3] + 1
    of = [[np.einsum("ncij,noij->oc", x[:, :, i : i + p, j : j + q], grad) for j in range(m)]
          for i in range(k)]  # fmt: skip
    return np.array(of).transpose(2, 3, 0, 1)


TWO = {
    "02.windows": (
        [windows, strided],
        [
            (lambda x, size, stride: windows(x, size, stride, copy=True), "it is a copy"),
            (lambda x, size, stride: windows(x, size, 1), r"stride 2: it has shape"),
            (lambda x, size, stride: strided(x, size, stride, 1), "stride 2 some windows hold"),
            (lambda x, size, stride: strided(x, size, stride, 2 * stride), "beyond the end of x"),
        ],
    ),
    "02.tile": (
        [tile, lambda registers: tuple(np.array(tile(registers)))],
        [
            (lambda registers: (registers, 1), "needs"),
            (lambda registers: (2, 2), "can be reached"),
            (lambda registers: (math.sqrt(registers) - 1,) * 2, "whole numbers"),
            (lambda registers: (0, 1), "is no tile"),
        ],
    ),
    "02.grad_weight": (
        [grad_weight, grad_weight_loops],
        [
            (lambda x, grad: grad_weight(x, grad) / len(x), "off by"),
            (lambda x, grad: grad_weight(x, grad)[..., ::-1, ::-1], "off by"),
            (lambda x, grad: grad_weight(x, grad).swapaxes(0, 1), "the shape is"),
        ],
    ),
}

# -- tutorial 3 --------------------------------------------------------------------------------


def log_softmax(z, axis=0):
    z = z - z.max(axis=axis, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=axis, keepdims=True))


def nesterov(w, v, g, lr, m):
    v = m * v + g
    return w - lr * (g + m * v), v


def nesterov_in_place(w, v, g, lr, m):
    v *= m
    v += g
    w -= lr * g + lr * m * v
    return [w, v]


def confusion(labels, answers):
    table = np.zeros((10, 10))
    np.add.at(table, (labels, answers), 1)
    return table


def counts_once(labels, answers):
    table = np.zeros((10, 10), int)
    table[labels, answers] += 1
    return table


THREE = {
    "03.log_softmax": (
        [log_softmax, lambda z: z - np.logaddexp.reduce(z, axis=0)],
        [
            (lambda z: log_softmax(z, axis=1), "for small logits"),
            (lambda z: np.log(np.exp(z) / np.exp(z).sum(axis=0)), "of 100 or 1000"),
            (lambda z: z - z.max() - np.log(np.exp(z - z.max()).sum(axis=0)), "of 100 or 1000"),
            (lambda z: z - z.max(axis=0), "for small logits"),
        ],
    ),
    "03.nesterov": (
        [nesterov, nesterov_in_place],
        [
            (lambda w, v, g, lr, m: (w - lr * (m * v + g), m * v + g), "without the look-ahead"),
            (lambda w, v, g, lr, m: (w - lr * g, m * v + g), "without momentum"),
            (lambda w, v, g, lr, m: (w - lr * (g + m * v), m * v + g), "needs the new velocity"),
            (lambda w, v, g, lr, m: nesterov(w, v, g, lr, m)[::-1], "velocity before the weight"),
            (lambda w, v, g, lr, m: nesterov(w, v, g, 0.1, 0.9), r"the velocity is \[ 0.65 -1"),
            (lambda w, v, g, lr, m: nesterov(w, v, g, -lr, m), "the weight is"),
        ],
    ),
    "03.confusion": (
        [confusion, lambda a, b: np.bincount(10 * a + b, minlength=100).reshape(10, 10)],
        [
            (lambda a, b: confusion(b, a), "not the reverse"),
            (counts_once, "a pair counts once"),
            (lambda a, b: confusion(a, b) + np.diag([1, -1] * 5), "was taken for"),
            (lambda a, b: confusion(a, b) / len(a), r"element \(0, 0\) is 0.16"),
            (lambda a, b: confusion(a[:6], b[:6]), "was taken for"),
        ],
    ),
}

# -- tutorial 4 --------------------------------------------------------------------------------


def quintic(x, width):
    t = np.clip((x + width / 2) / width, 0, 1)
    return t * t * t * (t * (t * 6 - 15) + 10)


def by_cases(x, width):
    t = x / width + 0.5
    return np.where(t <= 0, 0, np.where(t >= 1, 1, 6 * t**5 - 15 * t**4 + 10 * t**3))


def widest(d, share):
    return 2 * NormalDist().inv_cdf((1 + share / d) / 2)


def by_bisection(d, share):
    low, high = 0.0, 20.0
    while high - low > 1e-14:
        middle = (low + high) / 2
        low, high = (low, middle) if d * (2 * F(middle / 2) - 1) > share else (middle, high)
    return low


def one_hot(p, n, rng):
    return np.where(np.arange(len(p)) == rng.choice(len(p), (n, 1), p=p), 1.0, -1.0)


def gumbel(p, n, rng):
    score = np.log(p) + rng.gumbel(size=(n, len(p)))
    return score - np.sort(score, axis=1)[:, -2:].mean(axis=1, keepdims=True)


FOUR = {
    "04.quintic": (
        [quintic, by_cases, lambda x, width: list(quintic(x, width))],
        [
            (lambda x, width: md.binary_gate(x, width), "still the cubic"),
            (lambda x, width: 1 / (1 + np.exp(-10 * x / width)), "not exactly 0"),
            (lambda x, width: quintic(x, 1), "above width/2 it is not 1|not exactly 0"),
            (lambda x, width: np.clip(x / width + 0.5, 0, 1), "at x = width / 4"),
        ],
    ),
    "04.widest": (
        [widest, by_bisection],
        [
            (lambda d, share: widest(1, share), "more than"),
            (lambda d, share: widest(d, share) / 2, "it may be as much as"),
            (lambda d, share: math.nan, "is nan, more than"),
        ],
    ),
    "04.one_hot": (
        [one_hot, gumbel],
        [
            (lambda p, n, rng: (one_hot(p, n, rng) + 1) / 2, "exactly 0"),
            (lambda p, n, rng: one_hot(np.full(len(p), 1 / len(p)), n, rng), "in shares"),
            (lambda p, n, rng: np.sort(one_hot(p, n, rng), axis=0), "none or several"),
            (lambda p, n, rng: np.repeat(2 * np.eye(len(p)) - 1, np.rint(p * n).astype(int), 0),
             "of the first 10,000 rows"),
        ],
    ),
}  # fmt: skip

# -- tutorial 5 --------------------------------------------------------------------------------


def rests(strength, decay, of=lambda phi, z: phi):
    phi = np.linspace(-0.49, 1.5, 20_000)
    z, pi = md.binary_gate(phi), np.vectorize(F)(phi + 0.5)
    i = np.argmin(decay / (2 * (z**2 + decay)) + strength * pi)
    return of(phi[i], z[i])


FIVE = {
    "05.cauchy": (
        [lambda phi, w, s: 0.5 + np.arctan((phi + w / 2) / s) / np.pi,
         lambda phi, w, s: math.atan2(s, -(phi + w / 2)) / math.pi],
        [
            (lambda phi, w, s: F((phi + w / 2) / s), "it is 0.6915, not 0.6476"),
            (lambda phi, w, s: 0.5 + math.atan((phi - w / 2) / s) / math.pi, "not 0.6476"),
            (lambda phi, w, s: 0.5 + math.atan(phi + w / 2) / math.pi, "sigma = 0.5"),
        ],
    ),
    "05.square": (
        [lambda pi: pi.sum() ** 2 + (pi * (1 - pi)).sum(),
         lambda pi: (np.outer(pi, pi) + np.diag(pi * (1 - pi))).sum()],
        [
            (lambda pi: pi.sum() ** 2, "it is 0.250; all states give 0.500"),
            (lambda pi: pi.sum(), r"\[0.2, 0.9\]"),
            (lambda pi: pi.sum() ** 2 - (pi**2).sum(), "it is 0.000"),
        ],
    ),
    "05.rests": (
        [rests, lambda strength, decay: np.float32(rests(strength, decay))],
        [
            (lambda strength, decay: rests(strength, decay, lambda phi, z: z), "value z of the"),
            (lambda strength, decay: rests(strength, 0.01), "decay 0.05"),
            (lambda strength, decay: rests(0.05, decay), "strength 0.02"),
        ],
    ),
}  # fmt: skip

# -- tutorial 6 --------------------------------------------------------------------------------


def mirrored(size, groups=True):
    columns = np.minimum(np.arange(size), np.arange(size)[::-1])
    labels = np.arange(size)[:, None] * ((size + 1) // 2) + columns
    return md.Groups(labels[None, None]) if groups else labels[None, None]


def dense_macs(kept, positions, kernel=True):
    outputs, inputs = kept.any((1, 2, 3)).sum(), kept.any((0, 2, 3)).sum()
    return int(outputs * inputs * (9 if kernel else 1) * positions)


def expected(p_out, p_in, p_block, labels):
    return (np.outer(p_out, p_in) * p_block[labels]).sum()


SIX = {
    "06.mirrored": (
        [mirrored, lambda size: mirrored(size, groups=False)],
        [
            (lambda size: np.swapaxes(mirrored(size, groups=False), 2, 3), "its mirror image"),
            (lambda size: mirrored(size, groups=False)[0], "have shape"),
            (lambda size: mirrored(size, groups=False) * 2, "refuses the labels"),
            (lambda size: mirrored(size, groups=False)[:, :, :1].repeat(size, 2), "groups, not"),
        ],
    ),
    "06.macs": (
        [dense_macs, lambda kept, n: n * kept[kept.any((1, 2, 3))][:, kept.any((0, 2, 3))].size],
        [
            (lambda kept, n: kept.sum() * n, "it counts only what is not zero"),
            (lambda kept, n: kept.size * n, "have weights"),
            (lambda kept, n: dense_macs(kept, n, kernel=False), "have weights"),
            (lambda kept, n: dense_macs(kept, 36), "at 16 positions"),
        ],
    ),
    "06.expected": (
        [expected, lambda o, i, b, labels: np.einsum("o,i,oi->", o, i, b[labels])],
        [
            (lambda o, i, b, labels: o.sum() * i.sum(), "it ignores the blocks"),
            (lambda o, i, b, labels: o.sum() * i.sum() * b.mean(), "it returned"),
            (lambda o, i, b, labels: np.outer(o, i) * b[labels], "an array of shape"),
            (lambda o, i, b, labels: expected(o, i, b, labels.T), "it raised"),
        ],
    ),
}

# -- tutorial 7 --------------------------------------------------------------------------------


def linear(x, weight, bias, z):
    out, live = np.zeros((len(weight), x.shape[1])), np.flatnonzero(z)
    out[live] = z[live][:, None] * (weight[live] @ x + bias[live][:, None])
    return out


def unit_by_unit(x, weight, bias, z):
    rows = zip(weight, bias, z, strict=True)
    return [gate * (x.T @ row + b) if gate else np.zeros(x.shape[1]) for row, b, gate in rows]


def einsum(x, weight, bias, z):
    out, live = np.zeros((weight.shape[0], x.shape[1])), z > 0
    out[live] = np.einsum("o,oi,in->on", z[live], np.compress(live, weight, axis=0), x)
    out[live] += (z[live] * np.take(bias, np.flatnonzero(live)))[:, None]
    return out


def multiply_where(x, weight, bias, z):
    w = np.multiply(weight, z[:, None], out=np.zeros_like(weight), where=z[:, None] > 0)
    b = np.multiply(bias, z, out=np.zeros_like(bias), where=z > 0)
    return w @ x + b[:, None]


def hides_nan(x, weight, bias, z):
    return np.where(z[:, None] > 0, z[:, None] * (weight @ x + bias[:, None]), 0)


def removes_nan(x, weight, bias, z):
    return np.nan_to_num(weight) @ x * z[:, None] + np.nan_to_num(bias * z)[:, None]


def copies(x, weight, bias, z):
    weight, bias = weight.copy(), bias.copy()
    weight[z == 0], bias[z == 0] = 0, 0
    return weight @ x * z[:, None] + (bias * z)[:, None]


def products_with_dot(x, weight, bias, z):
    out = weight.dot(x)
    out[z == 0] = 0
    return out * z[:, None] + np.where(z > 0, bias * z, 0)[:, None]


def ungated_bias(x, weight, bias, z):
    out, live = np.zeros((len(weight), x.shape[1])), np.flatnonzero(z)
    out[live] = z[live][:, None] * (weight[live] @ x) + bias[live][:, None]
    return out


def folded(weight, bias, constant):
    known = np.flatnonzero(constant > 0)
    return bias + np.einsum("ocij,c->o", weight[:, known], constant[known])


def folded_loop(weight, bias, constant):
    bias = bias.copy()
    for c, value in enumerate(constant):
        if not np.isnan(value):
            bias += max(value, 0) * weight[:, c].sum((1, 2))
    return bias


def selected(channels, inputs, positions):
    return np.flatnonzero(inputs[np.repeat(channels, positions)])


def selected_list(channels, inputs, positions):
    kept = [c for c in range(len(channels)) if channels[c]]
    return [kept.index(i // positions) * positions + i % positions for i in np.flatnonzero(inputs)]


SEVEN = {
    "07.linear": (
        [linear, unit_by_unit, einsum, multiply_where],
        [
            (hides_nan, "matmul reads"),
            (removes_nan, "nan_to_num reads"),
            (copies, "copy reads"),
            (lambda x, weight, bias, z: linear(x, np.array(weight), bias, z), "the whole array"),
            (lambda x, weight, bias, z: weight.__setitem__(z == 0, 0), "it changes the weights"),
            (products_with_dot, "dot reads"),
            (lambda x, weight, bias, z: linear(x, weight, bias, z)[z > 0], "has shape"),
            (ungated_bias, "both weight and bias"),
            (lambda x, weight, bias, z: linear(x, weight, bias, z) + 1, "closed unit is not 0"),
        ],
    ),
    "07.folded": (
        [folded, folded_loop],
        [
            (lambda w, b, c: np.copyto(b, folded(w, b, c)) or b, "changed the biases"),
            (lambda w, b, c: b + w.sum((2, 3)) @ np.nan_to_num(c), "does not pass the ReLU"),
            (lambda w, b, c: b + w.sum((2, 3)) @ np.maximum(c, 0), "there is NaN"),
            (lambda w, b, c: b + w.mean((2, 3)) @ np.maximum(np.nan_to_num(c), 0), "it returned"),
        ],
    ),
    "07.selected": (
        [selected, selected_list],
        [
            (lambda channels, inputs, n: np.flatnonzero(inputs), "out of range"),
            (lambda channels, inputs, n: selected(channels, inputs, n) - n * channels.sum(),
             "index -. is out of range"),
            (lambda channels, inputs, n: np.arange(inputs.sum()), "they select other inputs"),
            (lambda channels, inputs, n: np.flatnonzero(channels), "indices"),
        ],
    ),
}  # fmt: skip

# -- tutorial 8 --------------------------------------------------------------------------------


def front(points, beats=lambda a, b: a[0] <= b[0] and a[1] >= b[1] and a != b):
    left = [b for b in points if not any(beats(a, b) for a in points)]
    return sorted(left, key=lambda pair: pair[1])


def front_sweep(points):
    found, least = [], math.inf
    for error, fewer in sorted(points, key=lambda pair: (-pair[1], pair[0])):
        if error < least:
            found, least = [*found, [error, fewer]], error
    return found[::-1]


def weights(architecture):
    a, b, c, d = (int(size) for size in architecture.split("-"))
    return 25 * (a + a * b) + d * (c + 10)


def deviations(first, second, n):
    p, q = first / 100, second / 100
    return (q - p) / math.sqrt(p * (1 - p) / n + q * (1 - q) / n)


EIGHT = {
    "08.front": (
        [front, front_sweep],
        [
            (lambda points: front(points)[::-1], "not sorted"),
            (lambda points: front(points, lambda a, b: a[0] < b[0] and a[1] >= b[1]), "0.8 % at"),
            (lambda points: front(points, lambda a, b: a[0] <= b[0] and a[1] > b[1]), "0.65 % at"),
            (lambda points: front(points)[:2], "left out"),
            (lambda points: points, "0.7 % at 20x"),
        ],
    ),
    "08.weights": (
        [weights, lambda text: weights(text) / 1],
        [
            (lambda text: weights(text) - 10 * int(text.split("-")[3]), "430,500 weights, not"),
            (lambda text: math.prod(map(int, text.split("-"))), "weights, not"),
            (lambda text: None, "not None"),
        ],
    ),
    "08.deviations": (
        [deviations, lambda first, second, n: -deviations(first, second, n)],
        [
            (lambda first, second, n: deviations(first, second, n) * math.sqrt(2), "gave"),
            (lambda first, second, n: (second - first) / 100, "gave"),
            (lambda first, second, n: deviations(first, second, 100), "gave"),
        ],
    ),
}  # fmt: skip

# -- tutorial 9 --------------------------------------------------------------------------------


PAIRS = np.repeat(np.arange(4), 2).reshape(8, 1, 1)


def chips(labels=PAIRS, count=4, **settings):
    return md.Mask(md.Gate(count, **settings), md.Groups.by(labels))


def cost(gate, costs):
    return (gate.open_probability() * costs).sum()


def closed(model, value=lambda gate: gate.evaluated()):
    return sum(int((value(gate) == 0).sum()) for gate in md.gates_of(model).values())


def closed_in_evaluation(model):
    model.eval()
    return sum((~(gate().data > 0)).sum() for gate in md.gates_of(model).values())


NINE = {
    "09.chips": (
        [
            chips,
            lambda: chips(np.broadcast_to(PAIRS, (8, 1, 8))),
            lambda: chips(3 - PAIRS, dtype=np.float64),
            lambda: chips(noise="normal", rng=np.random.default_rng(0)),
        ],
        [
            (lambda: chips(PAIRS.ravel()), "do not fit"),
            (lambda: chips(np.arange(8).reshape(8, 1, 1) % 4), "close cells"),
            (lambda: chips(np.arange(8).reshape(8, 1, 1), 8), "there are 8 gates"),
            (lambda: md.Gate(4), "a Gate, not a Mask"),
            (lambda: np.testing.assert_allclose(1, 2), "not equal to tolerance"),
        ],
    ),
    "09.cost": (
        [cost, lambda gate, costs: (md.Tensor(costs) * gate.open_probability()).sum()],
        [
            (lambda gate, costs: (gate() * costs).sum(), "expected"),
            (lambda gate, costs: gate.open_probability() * costs, "of shape"),
            (lambda gate, costs: (gate.open_probability().data * costs).sum(), "not a Tensor"),
            (lambda gate, costs: cost(gate, costs).detach(), "no gradient reaches phi"),
            (lambda gate, costs: cost(gate, costs) * 0 + (gate() - gate().data).sum()
             + cost(gate, costs).item(), "would never begin to close"),
        ],
    ),
    "09.closed": (
        [closed, closed_in_evaluation],
        [
            (lambda model: closed(model, lambda gate: gate.evaluated() > 0.01), "small but not 0"),
            (lambda model: closed(model, lambda gate: gate.phi.data >= -0.5), "it returned"),
            (lambda model: closed(model, lambda gate: gate().data), "One layer has noise"),
        ],
    ),
}  # fmt: skip

ANSWERS = ONE | TWO | THREE | FOUR | FIVE | SIX | SEVEN | EIGHT | NINE
RIGHT = [(name, answer) for name, (right, _) in ANSWERS.items() for answer in right]
WRONG = [(name, *wrong) for name, (_, wrongs) in ANSWERS.items() for wrong in wrongs]


@pytest.mark.parametrize(("name", "answer"), RIGHT)
def test_right_answers_of_any_style_are_taken(name, answer, check, capsys):
    assert check(name, answer), capsys.readouterr().out


@pytest.mark.parametrize(("name", "answer", "message"), WRONG)
def test_wrong_answers_are_told_what_is_wrong(name, answer, message, check, capsys):
    assert check(name, answer) is None
    said, hint = capsys.readouterr().out.split("\nHint: ")
    assert re.search(message, said, re.IGNORECASE), said
    assert hint


@pytest.mark.parametrize("name", ANSWERS)
def test_no_answer_at_all_is_not_right(name, check, capsys):
    answer = None if name == "01.step" else lambda *_: None
    assert check(name, answer) is None


def test_every_exercise_is_tried(check):
    sources = (path.read_text(encoding="utf-8") for path in TUTORIALS.glob("0*.py"))
    asked = {name for text in sources for name in re.findall(r'^check\("([\w.]+)"', text, re.M)}
    assert asked == ANSWERS.keys()
    assert all(len(right) >= 2 and len(wrong) >= 3 for right, wrong in ANSWERS.values())
