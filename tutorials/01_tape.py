# %% [markdown]
# # 1. A tape by hand
#
# Training needs the derivative of one number, the loss, with respect to every parameter of a
# network. This tutorial builds the machine that computes them all in a single pass, first for
# numbers and then for arrays, trains a network with it, and finds the same machine in minidiff.
#
# - **You will do**: write an engine of less than sixty lines, break it in three ways, check it
#   against finite differences, train a two-layer network on digits with it, and train it again
#   with minidiff.
# - **You will learn**: why gradients are computed backwards, why a wrong order of steps gives wrong
#   gradients, how small a finite difference should be, and how broadcasting is undone.
# - **You need**: Python, NumPy with its broadcasting, and the chain rule.

# %%
import inspect
import itertools
import math
import sys
import textwrap
import time

import matplotlib.pyplot as plt
import numpy as np
from support import SMALL, check, data

import minidiff as md

rng = np.random.default_rng(0)
BLUE, ORANGE, GREEN, GREY = "#0072b2", "#d55e00", "#009e73", "#666666"

# %% [markdown]
# ## Backwards
#
# A program that computes $y$ from $w$ is a sequence of small steps, and the derivative of each step
# is known. The chain rule multiplies these derivatives. Where a step takes and returns vectors, its
# derivative is a matrix, the *Jacobian*. The last Jacobian is a row if the result is one number:
#
# $$ y = f_3(f_2(f_1(w))), \qquad \frac{dy}{dw} = J_3 \, J_2 \, J_1 . $$
#
# A product of matrices can be computed from either end. *Forward mode* starts from the right, in
# the order in which the program runs, and multiplies a matrix by a matrix each time. *Reverse mode*
# starts from the left: it multiplies a row by a matrix, and the result is a row again.

# %%
n = 200
J1, J2, J3 = (rng.standard_normal(shape) for shape in [(n, n), (n, n), (1, n)])
assert np.allclose(J3 @ (J2 @ J1), (J3 @ J2) @ J1)

forward = n * n * n + 1 * n * n  # multiplications of J2 @ J1, then of J3 @ that
reverse = 1 * n * n + 1 * n * n  # of J3 @ J2, then of that @ J1
print(f"{n} parameters: {forward:,} multiplications forwards, {reverse:,} in reverse")
assert forward / reverse > n / 3

# %% [markdown]
# In general, forward mode needs a pass for each input, and reverse mode a pass for each output. A
# loss is one output of many inputs. So reverse mode computes all its derivatives at the cost of a
# few evaluations, whatever the number of parameters (Baur and Strassen 1983). It needs more memory:
# the last step comes first, so the values that the derivatives need must be stored until then.
#
# ## A number that remembers
#
# Each number stores which numbers it was computed from, and the derivative of that one step. Here
# `parents` is a list of pairs: a number, and the slope with respect to it.


# %%
class Scalar:
    made = itertools.count()

    def __init__(self, value, parents=()):
        self.value, self.parents, self.grad = value, parents, 0.0
        self.order = next(self.made)  # used below

    def __add__(self, other):
        return Scalar(self.value + other.value, [(self, 1.0), (other, 1.0)])

    def __mul__(self, other):
        return Scalar(self.value * other.value, [(self, other.value), (other, self.value)])


def exp(a):
    value = math.exp(a.value)
    return Scalar(value, [(a, value)])


# %% [markdown]
# To go back, start at the result with gradient 1. Each number passes its own gradient times the
# slope to each parent. Parents add up what they receive, as a number that is used twice influences
# the result along two paths. A first attempt visits each number once, in the order in which it is
# found.


# %%
def naive(y):
    y.grad = 1.0
    found = [y]
    for node in found:  # the list grows while the loop runs
        for parent, slope in node.parents:
            parent.grad += slope * node.grad
            if parent not in found:
                found.append(parent)
    return found


def diamond():
    w = Scalar(5.0)
    x = w * Scalar(2.0)
    a = x * Scalar(3.0)
    return w, x, a, x + a  # y = x + 3 x = 8 w


w, x, a, y = diamond()
naive(y)
print(f"dy/dx is {x.grad} and dy/dw is {w.grad}")
assert x.grad == 4
assert w.grad == 2  # and it should be 8

# %% [markdown]
# No error is raised, and the gradient is wrong. There are two paths from $x$ to $y$, one direct and
# one through $a$. They form a diamond with sides of unequal length. $x$ is found early, along the
# short path, and passes on the gradient it has by then. The gradient that $x$ gets from $a$ later
# never reaches $w$.


# %% tags=["hide-input"] mystnb={"image": {"alt": "Two drawings of the graph w to x, x to a, x to y, a to y. Above, x is visited before a: it has gradient 1 when it passes on, and w gets 2. Below, a is visited before x: x has gradient 4, and w gets 8.", "width": "400px"}, "figure": {"caption": "The gradient that each number has when it is visited, and in brackets its turn; beside the arrows, slopes. Above, x passes on 1 before a has given it 3 more."}}
def draw(axes, visits, colour, title):
    place = {"w": (0, 0), "x": (1.2, 0), "a": (2.1, 0.9), "y": (3, 0)}
    slopes = {("y", "x"): ("1", 0, -0.17), ("y", "a"): ("1", 0.13, 0.12),
              ("a", "x"): ("3", -0.13, 0.12), ("x", "w"): ("2", 0, -0.17)}  # fmt: skip
    for (tail, head), (slope, right, up) in slopes.items():
        style = {"arrowstyle": "->", "color": GREY, "shrinkA": 17, "shrinkB": 17}
        axes.annotate("", place[head], place[tail], arrowprops=style)
        middle = np.add(place[tail], place[head]) / 2 + (right, up)
        axes.text(*middle, slope, color=GREY, ha="center", va="center")
    for turn, (name, grad) in enumerate(visits, start=1):
        axes.plot(*place[name], "o", markersize=30, color="white", markeredgecolor=colour)
        axes.text(*place[name], name, ha="center", va="center", fontsize=13)
        above = np.add(place[name], (0, 0.3))
        axes.text(*above, f"{grad} ({turn})", ha="center", color=colour, fontsize=12)
    axes.set(xlim=(-0.4, 3.4), ylim=(-0.35, 1.4), aspect="equal", title=title)
    axes.set_axis_off()


figure, (top, bottom) = plt.subplots(2, 1, figsize=(4.4, 4.8), layout="constrained")
draw(top, [("y", 1), ("x", 1), ("a", 1), ("w", 2)], ORANGE, "as found: wrong")
draw(bottom, [("y", 1), ("a", 1), ("x", 4), ("w", 8)], BLUE, "x waits for a: right")
plt.show()

# %% [markdown]
# ## The right order
#
# One remedy is to visit a number again whenever it receives a gradient, and to pass on just that
# gradient. The result is right, but the work is hopeless: this follows each *path* through the
# graph, and each diamond in a row of diamonds doubles the number of paths.


# %%
def along_each_path(node, grad):
    node.grad += grad
    visits = [along_each_path(parent, slope * grad) for parent, slope in node.parents]
    return 1 + sum(visits)


def ladder(steps):
    bottom = top = Scalar(1.0)
    for _ in range(steps):
        top = top + top
    return bottom, top


for steps in (4, 8, 12):
    bottom, top = ladder(steps)
    print(f"{steps + 1} numbers, {along_each_path(top, 1.0)} visits")
    assert bottom.grad == 2**steps

# %% [markdown]
# The other remedy is to wait: *a number passes on its gradient once all numbers that used it have
# done so*. That is a topological order of the graph, reversed. Depth-first search can find it, but
# we have one already: a number is made after all its parents, so the number made last goes first. A
# record of steps in the order in which they were made is a *tape*, or Wengert list (Wengert 1964).
# It remains to find the numbers that the result depends on.


# %%
def latest_first(root):
    found, seen, stack = [], {root}, [root]
    while stack:
        node = stack.pop()
        found.append(node)
        for parent, _ in node.parents:
            if parent not in seen:
                seen.add(parent)
                stack.append(parent)
    return sorted(found, key=lambda node: -node.order)


def backward(y):
    y.grad = 1.0
    for node in latest_first(y):
        for parent, slope in node.parents:
            parent.grad += slope * node.grad


w, x, a, y = diamond()
backward(y)
assert w.grad == 8
bottom, top = ladder(1000)
backward(top)  # 2 ** 1000 paths, 1001 visits
assert bottom.grad == 2.0**1000

# %% [markdown]
# Why a stack, where recursion would be shorter? A loop that adds up a thousand terms makes a chain
# of a thousand sums, and a recurrent network or a solver makes longer chains. Python gives up on
# recursion that deep. A list on the heap has no such limit.


# %%
def depth_first(node, seen, found):
    seen.add(node)
    for parent, _ in node.parents:
        if parent not in seen:
            depth_first(parent, seen, found)
    found.append(node)  # after all that it depends on


long = 2 * sys.getrecursionlimit()
bottom, top = ladder(long)
try:
    depth_first(top, set(), [])
    raise AssertionError("recursion went as deep as that")
except RecursionError as error:
    print(f"{long} steps, recursion: {error}")
assert len(latest_first(top)) == long + 1  # the stack does not mind

# %% [markdown]
# ## Is it right?
#
# A derivative is the limit of a difference quotient, so take one with a small step $h$. The
# *central* difference looks to both sides, and by Taylor's formula its error falls with $h^2$. The
# error of the one-sided *forward* difference falls only with $h$:
#
# $$ \frac{f(x + h) - f(x)}{h} \approx f' + \frac{h}{2} f'' $$
#
# $$ \frac{f(x + h) - f(x - h)}{2h} \approx f' + \frac{h^2}{6} f''' $$
#
# The omitted terms are the *truncation* error, which asks for a small step. But the two values of
# $f$ are rounded, each to a relative $\varepsilon$ (about $10^{-16}$ in float64 and $10^{-7}$ in
# float32), and the quotient divides this *rounding* error by $h$. That leaves an error of about
# $\varepsilon / h$, which asks for a large step. We try all steps at once, at many points.


# %%
def f(x, exp):
    return x * exp(x * x)


def derivative(at):
    x = Scalar(at)
    backward(f(x, exp))
    return x.grad


points = rng.uniform(0.5, 1, 101).astype(np.float32)  # numbers that float32 holds exactly
exact = np.array([derivative(float(x)) for x in points])
steps = np.logspace(-14, 0, 113)


def errors(dtype, central):
    x, h = points.astype(dtype), steps.astype(dtype)[:, None]
    low = f(x - h, np.exp) if central else f(x, np.exp)
    quotients = (f(x + h, np.exp) - low) / (2 * h if central else h)
    return np.median(abs(quotients / exact - 1), axis=1)  # of the points, for each step


curves = {
    "forward, float64": errors(np.float64, central=False),
    "central, float64": errors(np.float64, central=True),
    "central, float32": errors(np.float32, central=True),
}
for name, error in curves.items():
    print(f"{name}: error {error.min():.1e} at best, with h = {steps[error.argmin()]:.0e}")

# %% tags=["hide-input"] mystnb={"image": {"alt": "Relative error over the step h on log axes, three V-shaped curves. Each falls with growing h while rounding rules and rises when truncation does. The lowest point of central differences in float64 is deepest, that of forward differences is higher and at a smaller step, that of float32 is highest.", "width": "560px"}, "figure": {"caption": "Left of its lowest point each curve is rounding, which falls as 1/h; right of it truncation, which rises as h or h². Central differences in float64 reach deepest. In float32 small steps vanish: x + h is x."}}
figure, axes = plt.subplots(figsize=(5.6, 4), layout="constrained")
for error, colour in zip(curves.values(), (ORANGE, BLUE, GREEN), strict=True):
    axes.loglog(steps, error, color=colour)
axes.annotate("central, float32", (1e-8, 0.3), color=GREEN, ha="right", va="top")
axes.annotate("forward,\nfloat64", (4e-8, 1e-6), color=ORANGE, ha="right")
axes.annotate("central,\nfloat64", (5e-4, 1e-9), color=BLUE)
axes.axvline(1e-6, color=GREY, linewidth=0.8, linestyle=":")
axes.annotate("md.gradcheck: h = 1e-6", (6e-7, 2e-12), color=GREY, ha="right")
axes.set(xlabel="step h", ylabel="relative error of the derivative", ylim=(1e-12, 5))
plt.show()

# %% [markdown]
# The lowest point is where both errors are alike: at $h \approx \sqrt{\varepsilon}$ for forward
# differences, and at $h \approx \sqrt[3]{\varepsilon}$ for central ones, which are over a hundred
# times better there. In float32 even the best step is less accurate than both. With a step a
# hundred times smaller than the best, rounding alone gives an error of some hundredths of a
# percent. A wrong gradient could hide in an error of that size; `md.gradcheck` allows a thousandth
# of a percent. So gradients are checked **in float64, with central differences**, even if training
# is in float32.


# %%
def slope_between(error, low, high):
    part = (steps >= low) & (steps <= high)
    return np.polyfit(np.log(steps[part]), np.log(error[part]), 1)[0]


forward, central, coarse = curves.values()
assert abs(slope_between(forward, 1e-5, 1e-2) - 1) < 0.1  # truncation
assert abs(slope_between(central, 1e-4, 1e-2) - 2) < 0.1
assert abs(slope_between(central, 1e-13, 1e-7) + 1) < 0.2  # rounding
assert central.min() < forward.min() / 100
assert forward.min() < coarse.min() / 100
assert np.interp(steps[coarse.argmin()] / 100, steps, coarse) > 1e-4
eps = np.finfo(np.float64).eps
assert 1 / 30 < steps[forward.argmin()] / eps ** (1 / 2) < 30
assert 1 / 30 < steps[central.argmin()] / eps ** (1 / 3) < 30

# %% [markdown]
# **Exercise 01.step.** A second derivative can be computed as $(f(x+h) - 2 f(x) + f(x-h)) / h^2$.
# Its truncation error falls with $h^2$ too, but rounding is divided by $h^2$. Which step is about
# the best in float64? Think first, then measure if you like.

# %%
second_step = None  # your answer, a number
check("01.step", second_step)

# %% [markdown]
# **Exercise 01.dual.** Forward mode needs no tape: each number carries along its derivative with
# respect to the one input. Write a class of such numbers that can be added and multiplied with
# each other and with plain numbers, and a `slope(f, x)` that uses it.


# %%
def slope(f, x):
    return None  # f'(x), for an f made of + and *


check("01.dual", slope)

# %% [markdown]
# ## From numbers to arrays
#
# A network of scalars is correct and slow: each multiplication is an object. So let each object be
# an array. A slope would then be a Jacobian, for 784 pixels times 50 images a huge one, mostly of
# zeros. But backward never needs the Jacobian itself. It needs the gradient, a row, times the
# Jacobian, and a function can compute this product without forming the Jacobian. So the second
# entry of each pair becomes a function, from the gradient of the result to the gradient of the
# parent. If $G$ is the gradient of $C=AB$, both functions follow from how the loss changes:
#
# $$
# \begin{aligned}
# dL &= \textstyle\sum_{ij} G_{ij} \, (dA\,B + A\,dB)_{ij} \\
# &= \textstyle\sum_{ij} (G B^\top)_{ij} \, dA_{ij} + \sum_{ij} (A^\top G)_{ij} \, dB_{ij} .
# \end{aligned}
# $$
#
# One thing is new. NumPy *broadcasts*: to add a bias of shape (3, 1) to an array of shape (3, 4),
# it uses each number of the bias four times. A number that is used several times adds up the
# gradients it receives. So the gradient must be summed over the axes that were stretched; without
# the sum not even its shape would fit.


# %%
def unbroadcast(grad, shape):
    grad = grad.sum(axis=tuple(range(grad.ndim - len(shape))))  # axes put in front
    stretched = tuple(i for i, n in enumerate(shape) if n == 1)
    return grad.sum(axis=stretched, keepdims=True)


assert (unbroadcast(np.ones((3, 4)), (3, 1)) == 4).all()
assert (unbroadcast(np.ones((5, 3, 4)), (4,)) == 15).all()


# %% [markdown]
# The engine itself is short. *Leaves* are tensors that were not computed from others, and only
# leaves store their gradient, in `.grad`. The gradients of all others live in a dictionary during
# this one call.


# %%
class Var:
    made = itertools.count()

    def __init__(self, values, parents=()):
        self.data, self.parents = np.asarray(values, np.float64), parents
        self.grad, self.order = None, next(self.made)

    def backward(self):
        grads = {self: np.ones_like(self.data)}
        for node in latest_first(self):
            grad = grads.pop(node)
            if not node.parents:
                node.grad = grad if node.grad is None else node.grad + grad
            for parent, back in node.parents:
                given = unbroadcast(back(grad), parent.data.shape)
                grads[parent] = grads[parent] + given if parent in grads else given


# %% [markdown]
# And the operations: each computes a result, and has a function that passes the gradient back to
# each parent.


# %%
def var(value):
    return value if isinstance(value, Var) else Var(value)


def add(a, b):
    b = var(b)
    return Var(a.data + b.data, [(a, lambda g: g), (b, lambda g: g)])


def subtract(a, b):
    b = var(b)
    return Var(a.data - b.data, [(a, lambda g: g), (b, lambda g: -g)])


def multiply(a, b):
    b = var(b)
    return Var(a.data * b.data, [(a, lambda g: g * b.data), (b, lambda g: g * a.data)])


def matmul(a, b):
    b = var(b)
    return Var(a.data @ b.data, [(a, lambda g: g @ b.data.T), (b, lambda g: a.data.T @ g)])


# %%
def tanh(a):
    out = np.tanh(a.data)
    return Var(out, [(a, lambda g: g * (1 - out * out))])


def exponential(a):
    out = np.exp(a.data)
    return Var(out, [(a, lambda g: g * out)])


def logarithm(a):
    return Var(np.log(a.data), [(a, lambda g: g / a.data)])


def total(a, axis=None):
    def back(g):
        g = g if axis is None else np.expand_dims(g, axis)
        return np.broadcast_to(g, a.data.shape)

    return Var(a.data.sum(axis=axis), [(a, back)])


Var.__add__, Var.__sub__, Var.__mul__, Var.__matmul__ = add, subtract, multiply, matmul
Var.tanh, Var.exp, Var.log, Var.sum = tanh, exponential, logarithm, total

# %%
operations = (var, add, subtract, multiply, matmul, tanh, exponential, logarithm, total)
parts = (latest_first, unbroadcast, Var.__init__, Var.backward, *operations)
source = "\n".join(inspect.getsource(part) for part in parts)
lines = sum(bool(line.strip()) for line in source.splitlines())
print(f"the whole engine: {lines} lines of functions")
assert lines < 60

# %% [markdown]
# ## Train with it
#
# We train a network with one hidden layer on images of digits. The samples of a batch are the
# columns: a layer is `w @ x + b`, and the bias is a column that is broadcast over the samples. The
# loss is the mean cross-entropy. Subtracting the largest logit first keeps the exponential from
# overflowing, and changes nothing else ([tutorial 3](03_lenet5.py) has the details).


# %%
def logits(parameters, x):
    w1, b1, w2, b2 = parameters
    return w2 @ (w1 @ x + b1).tanh() + b2


def mean_loss(parameters, x, targets):
    z = logits(parameters, x)
    z = z - z.data.max(axis=0)
    losses = z.exp().sum(axis=0).log() - (z * targets).sum(axis=0)
    return losses.sum() * (1 / x.shape[1])


dataset = data(train=1000 if SMALL else 5000)
epochs = 4 if SMALL else 10
hidden, batch, learning_rate = 32, 50, 0.2


def columns(images):
    return images.reshape(len(images), -1).T / 255.0  # (784, N)


images, targets = columns(dataset.train.images), np.eye(10)[:, dataset.train.labels]
start = [rng.standard_normal((hidden, 784)) / 28, np.zeros((hidden, 1)),
         rng.standard_normal((10, hidden)) / hidden**0.5, np.zeros((10, 1))]  # fmt: skip

# %% [markdown]
# First we check the gradient on a few images, by central differences. We need not vary every
# parameter: the derivative along a *random direction* $d$ must be the gradient times $d$. In exact
# arithmetic, a gradient that is wrong anywhere fails this check with probability one. With a
# tolerance, the check finds nearly every error that is much larger than the tolerance, and misses
# errors below it.

# %%
few, answers = images[:, :8], targets[:, :8]
parameters = [Var(values) for values in start]
mean_loss(parameters, few, answers).backward()

directions = [rng.standard_normal(p.data.shape) for p in parameters]
ahead, behind = (
    mean_loss([Var(v + h * d) for v, d in zip(start, directions, strict=True)], few, answers).data
    for h in (1e-6, -1e-6)
)
numeric = (ahead - behind) / 2e-6
analytic = sum((p.grad * d).sum() for p, d in zip(parameters, directions, strict=True))
print(f"{sum(v.size for v in start):,} parameters; along one direction the derivative is")
print(f"{analytic:.9f} by the tape, {numeric:.9f} by central differences")
assert abs(numeric - analytic) < 1e-6 * (1 + abs(numeric))

# %% [markdown]
# Then the loop: take a batch, compute its loss and the gradients, and step against them. `kind` is
# the class of the parameters, so that the same loop will serve for minidiff.


# %%
def train(kind):
    parameters, losses = [kind(v.copy()) for v in start], []
    order = np.random.default_rng(1)
    for _ in range(epochs):
        for chosen in order.permutation(images.shape[1]).reshape(-1, batch):
            loss = mean_loss(parameters, images[:, chosen], targets[:, chosen])
            for p in parameters:
                p.grad = None
            loss.backward()
            for p in parameters:
                p.data -= learning_rate * p.grad
            losses.append(loss.data.item())
    return parameters, np.array(losses)


images = images[:, : images.shape[1] // batch * batch]  # whole batches only
clock = time.perf_counter()
trained, losses = train(Var)
seconds = time.perf_counter() - clock
guesses = logits(trained, columns(dataset.test.images)).data.argmax(axis=0)
error = (guesses != dataset.test.labels).mean()
print(f"{len(losses)} steps of {1000 * seconds / len(losses):.2f} ms")
print(f"loss {losses[0]:.3f} at first, {losses[-20:].mean():.3f} at the end")
print(f"test error {error:.1%}; a guess would have 90 %")
assert error < 0.25
assert losses[-20:].mean() < losses[0] / 2

# %% [markdown]
# ## The same network in minidiff
#
# A {py:class}`minidiff.Tensor` is such an object: it has `.data`, `.grad`, `backward()` and the
# operators. A {py:class}`minidiff.nn.Parameter` is a tensor that requires a gradient. So
# `mean_loss` and `train` above work with it, unchanged.

# %%
parameters = [md.nn.Parameter(values) for values in start]
ours = [Var(values) for values in start]
mean_loss(parameters, few, answers).backward()
mean_loss(ours, few, answers).backward()
for theirs, own in zip(parameters, ours, strict=True):
    assert np.allclose(theirs.grad, own.grad, rtol=1e-12, atol=1e-14)

clock = time.perf_counter()
retrained, again = train(md.nn.Parameter)
seconds = time.perf_counter() - clock
print(f"{len(losses)} steps of {1000 * seconds / len(losses):.2f} ms")
apart = abs(again - losses).max()
print(f"the losses of all steps differ by at most {apart:.1e}")
assert apart < 1e-8

# %% [markdown]
# Where we have a list of pairs, minidiff has an {py:class}`minidiff.Op`: a class with `forward`
# beside `backward`. `forward` stores on `self` what `backward` will need. `backward` returns the
# gradient of each input, or just the one array if there is one input. It need not think of
# broadcasting, which the tape undoes. {py:func}`minidiff.apply` applies an op to tensors and
# records it on the tape; each application takes a new object.
#
# {py:func}`minidiff.gradcheck` is the check from above: float64, central differences, random
# directions, and single elements where they are few. Here is the activation $x\,\sigma(x)$
# ($\sigma$ the logistic sigmoid), once right and once with a mistake.


# %%
class Swish(md.Op):
    def forward(self, x):
        self.x, self.s = x, 1 / (1 + np.exp(-x))
        return x * self.s

    def backward(self, grad):
        return grad * (self.s + self.x * self.s * (1 - self.s))


class Careless(Swish):
    def backward(self, grad):
        return grad * self.s  # as if s were a constant


def refused(call):
    try:
        call()
    except (AssertionError, RuntimeError, ValueError) as error:
        print(textwrap.fill(f"{type(error).__name__}: {error}", 76))
    else:
        raise AssertionError("it was not refused")


x = md.Tensor(rng.standard_normal((3, 4)), requires_grad=True)
refused(lambda: md.gradcheck(lambda x: md.apply(Careless(), x), [x]))
assert md.gradcheck(lambda x: md.apply(Swish(), x), [x])

# %% [markdown]
# **Exercise 01.softplus.** Write the op $\log(1 + e^x)$. For a large $x$ it is about $x$. It must
# not overflow there, and must not make NumPy warn.


# %%
class Softplus(md.Op):
    def forward(self, x):
        return x

    def backward(self, grad):
        return grad


check("01.softplus", Softplus)

# %% [markdown]
# ## What minidiff adds, and why
#
# Each item below prevents a wrong result, or saves time or memory.
#
# **A second backward is right.** `Scalar` stores a gradient on every number. Suppose backward runs
# once more, for instance because two losses share some numbers. Then the numbers in between still
# hold their old gradients, and pass them on again. In `Var` and in minidiff, the gradients of these
# numbers exist only during the call.

# %%
w, x, a, y = diamond()
backward(y)
backward(y)
leaf = md.Tensor([5.0], requires_grad=True)
out = 2 * leaf + 3 * (2 * leaf)
out.backward()
out.backward()
print(f"twice 8 should be 16: Scalar has {w.grad} and minidiff {leaf.grad}")
assert w.grad != 16
assert leaf.grad == 16

# %% [markdown]
# **Results are read-only, and leaves count their versions.** A product stores its factors for
# backward. If a factor is changed in place between forward and backward, `Var` computes a wrong
# gradient. minidiff refuses: results on the tape are read-only, and backward notices a step such as
# `leaf.data -= 1`. (It does not notice a write into elements, `leaf.data[0] = 1`.)

# %%
ours, leaf = Var([1.0, 2.0]), md.Tensor(np.array([1.0, 2.0]), requires_grad=True)
ours_out, out = (ours * ours).sum(), (leaf * leaf).sum()
ours.data -= 1
leaf.data -= 1
ours_out.backward()
print(f"should be [2. 4.]: {ours.grad}")
refused(out.backward)


def write():
    square = leaf * leaf
    square.data[0] = 0


refused(write)

# %% [markdown]
# **Depth costs nothing.** The order is the one above, so a chain may be as long as memory allows.
#
# **Only gradients need a tape.** An op is recorded only if an input requires a gradient. Under
# {py:func}`minidiff.no_grad` nothing is recorded, so evaluation does not keep the output of every
# layer in memory.

# %%
leaf = md.Tensor(np.array(1.0), requires_grad=True)
out = leaf
for _ in range(50_000):
    out = out + leaf
out.backward()
assert leaf.grad == 50_001

with md.no_grad():
    loss = mean_loss(retrained, few, answers)
assert loss.node is None  # nothing on the tape
assert mean_loss(retrained, few, answers).node is not None

# %% [markdown]
# **float32 stays float32.** Integers and plain numbers take the type of the tensor they meet. In
# NumPy float32 times int64 is float64, and from there on everything takes twice the memory.

# %%
single = md.Tensor(np.ones(3, np.float32), requires_grad=True)
assert (single * np.arange(3) + 0.5).dtype == np.float32
assert np.result_type(np.ones(3, np.float32), np.arange(3)) == np.float64

# %% [markdown]
# ## What next
#
# The tape is in `minidiff/engine/tensor.py`, and the ops behind the operators are in
# `minidiff/engine/op.py`. They have one more idea: a tensor may list its *live rows*. All its other
# rows are constant zeros, and are not computed. Pruning builds on this. But first,
# [tutorial 2](02_convolution.py) makes a convolution fast, which takes most of the time.
#
# ### Solutions


# %% tags=["hide-input"]
# 01.step: truncation h^2 and rounding eps / h^2 are alike where h^4 is about eps.
assert check("01.step", np.finfo(np.float64).eps ** (1 / 4))


class Dual:
    def __init__(self, value, slope=0.0):
        self.value, self.slope = value, slope

    def __add__(self, other):
        other = other if isinstance(other, Dual) else Dual(other)
        return Dual(self.value + other.value, self.slope + other.slope)

    def __mul__(self, other):
        other = other if isinstance(other, Dual) else Dual(other)
        return Dual(self.value * other.value,
                    self.slope * other.value + self.value * other.slope)  # fmt: skip

    __radd__, __rmul__ = __add__, __mul__


assert check("01.dual", lambda f, x: (Dual(0.0) + f(Dual(x, 1.0))).slope)


class StableSoftplus(md.Op):
    def forward(self, x):
        self.small = np.exp(-abs(x))  # at most 1
        self.positive = x > 0
        return np.maximum(x, 0) + np.log1p(self.small)

    def backward(self, grad):
        return grad * np.where(self.positive, 1, self.small) / (1 + self.small)


assert check("01.softplus", StableSoftplus)
