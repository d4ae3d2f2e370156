# %% [markdown]
# # 4. Gates
#
# Pruning is a choice: each group of a network's numbers is multiplied by 0 or by 1. This tutorial
# builds the *approximate binary gate*. A gate has a slope, so gradient descent can learn the
# choice. And it reaches 0 exactly, so a closed group need not be computed.
#
# - **You will do**: draw the gate transform, measure how often it is not binary for five random
#   vectors, reach a joint law that no independent gates could have, put NaN into everything that is
#   closed, and measure the drawback of a narrow gate.
# - **You will learn**: three facts that hold for any random vector, why exact zeros make
#   conditional computation exact, and what deterministic and stochastic gates have in common.
# - **You need**: [tutorial 1](01_tape.py), random vectors and correlations. No data.

# %%
import itertools
import math

import matplotlib.pyplot as plt
import numpy as np
from support import SMALL, check

import minidiff as md
from minidiff import nn

rng = np.random.default_rng(0)
samples = 20_000 if SMALL else 200_000
BLUE, ORANGE, GREEN, GREY = "#0072b2", "#d55e00", "#009e73", "#666666"

# %% [markdown]
# ## The problem, and whose idea solves it
#
# A vector $B \in \{0, 1\}^d$ says which groups of a network stay. If the choice is random, $B$ is a
# *multivariate Bernoulli variable*: it has a probability for each of $2^d$ states, with any
# dependence between the elements. A hard step makes such a $B$ of real numbers: $B_i = 1$ if
# $X_i > 0$, else 0. But the derivative of the step is 0 wherever it exists, so no gradient could
# pass through it.
#
# The paper (Shulman 2020, [arXiv:2012.03653](https://arxiv.org/abs/2012.03653)) claims in its
# abstract that a multivariate Bernoulli variable can be *approximated by a deterministic and
# differentiable transformation of any real-valued random vector*. It also claims that such gates
# may be computed deterministically or stochastically, and take on exact zeros. These claims are the
# paper's. The formula, the bound and every construction on this page are ours: one way to fulfil
# the claims, and not the paper's text.
#
# ## A step with a slope
#
# Take a polynomial that rises from 0 to 1 and is flat at both ends. The lowest degree that can do
# this is three. Stretch the polynomial to a *transition width* $w > 0$, put its middle at 0, and
# continue it by constants:
#
# $$g_w(x) = S\!\left(\frac{x}{w} + \frac12\right)$$
#
# $$S(t) = \begin{cases} 0 & t \le 0 \\ 3t^2 - 2t^3 & 0 < t < 1 \\ 1 & t \ge 1 \end{cases}$$


# %%
def gate(x, width):
    t = np.clip(x / width + 0.5, 0, 1)
    return 3 * t**2 - 2 * t**3


def slope(x, width):
    t = np.clip(x / width + 0.5, 0, 1)
    return 6 * t * (1 - t) / width


x = np.linspace(-1.4, 1.4, 2801)
for width in (2.0, 1.0, 0.25):
    leaf = md.Tensor(x, requires_grad=True)
    z = md.binary_gate(leaf, width)  # the package's own, with a derivative on the tape
    z.backward(np.ones_like(x))
    np.testing.assert_allclose(z.data, gate(x, width), atol=1e-12)
    np.testing.assert_allclose(leaf.grad, slope(x, width), atol=1e-9)
    assert (z.data[x <= -width / 2] == 0).all()  # exactly, not nearly
    assert (z.data[x >= width / 2] == 1).all()
    assert (np.diff(z.data) >= -1e-15).all()
    assert leaf.grad.max() <= 1.5 / width + 1e-12

# %% tags=["hide-input"] mystnb={"image": {"alt": "Two panels over x from -1.4 to 1.4, for widths 2, 1 and 0.25. Left: smooth steps from 0 to 1, steeper for smaller widths. Right: their slopes, humps around 0 that are higher and narrower for smaller widths, and 0 outside.", "width": "100%"}, "figure": {"caption": "The gate transform and its slope. Outside of the transition both are constant: the value 0 or 1, the slope 0. The area below each slope is 1."}}
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
labels = ((2.0, GREEN, (0.8, 0.6)), (1.0, BLUE, (0.4, 1.3)), (0.25, ORANGE, (0.15, 5.0)))
for width, colour, at in labels:
    left.plot(x, gate(x, width), color=colour)
    right.plot(x, slope(x, width), color=colour)
    right.annotate(f"w = {width:g}", at, color=colour)
left.set_ylabel("$g_w(x)$")
right.set_ylabel("slope of $g_w$")
for axes in (left, right):
    axes.set_xlabel("x")
plt.show()

# %% [markdown]
# This is the first fact: $g_w$ is **exactly 0** for $x \le -w/2$ and **exactly 1** for $x \ge w/2$.
# It never falls, and its derivative is continuous and at most $3/(2w)$. A sigmoid reaches neither 0
# nor 1. A clipped straight line reaches both, but its slope jumps.
#
# ## Approximately binary, for any random vector
#
# What does "approximately" mean? Apply $g_w$ to each element of *any* random vector $X$, whatever
# the distributions of its elements and however they depend on each other, and compare the result
# with the signs $B$. Both are 1 if $X_i \ge w/2$, and both are 0 if $X_i \le -w/2$. In between,
# they differ by one half at most. So they differ only if some $X_i$ falls into the transition, and
# a union bound over the elements gives
#
# $$P\bigl(g_w(X) \ne B\bigr) \;\le\; \sum_{i=1}^d P\bigl(|X_i| < w/2\bigr).$$
#
# This is the second fact. As $w \to 0$ the sum tends to $\sum_i P(X_i = 0)$. So the bound makes one
# demand on $X$: its elements must not equal 0 with positive probability. It makes no demand on
# their dependence. We try five vectors of four elements. Among them are Cauchy variables, which
# have no mean, elements that are nearly copies of each other, and elements that do equal 0 at
# times.


# %%
def below(x):  # the normal distribution function
    return 0.5 + 0.5 * md.Tensor(x / math.sqrt(2)).erf().data


def normal(n):
    return rng.standard_normal((n, 4))


def cauchy(n):
    return rng.standard_cauchy((n, 4))


def skewed(n):
    return rng.uniform(-0.3, 2, (n, 4))


def mixture(n):  # two humps, and one element in ten exactly 0
    humps = rng.choice([-2.0, 1.0], (n, 4)) + 0.5 * rng.standard_normal((n, 4))
    return np.where(rng.random((n, 4)) < 0.1, 0, humps)


def copies(n):  # one number four times, two of them negated
    one = rng.standard_normal((n, 1)) * [1, 1, -1, -1]
    return one + 0.01 * rng.standard_normal((n, 4))


# %% [markdown]
# For each vector we need $P(|X_i| < h)$ with $h = w/2$ from the distribution function, so that the
# bound is computed and not estimated.

# %%
vectors = {
    "normal": (normal, lambda h: 2 * below(h) - 1),
    "Cauchy": (cauchy, lambda h: 2 / np.pi * np.arctan(h)),
    "uniform in -0.3..2": (skewed, lambda h: (h + np.minimum(h, 0.3)) / 2.3),
    "mixture with zeros": (
        mixture,
        lambda h: 0.1 + 0.45 * (below(2 * (h + 2)) - below(2 * (2 - h)))
                      + 0.45 * (below(2 * (h - 1)) - below(2 * (-h - 1))),
    ),
    "almost copies": (copies, lambda h: 2 * below(h / math.sqrt(1.0001)) - 1),
}  # fmt: skip

widths = np.logspace(-3, 0, 10)
missed, bounds = {}, {}
for name, (draw, inside) in vectors.items():
    drawn = draw(samples)
    B = drawn > 0
    gates = [md.binary_gate(drawn, w) for w in widths]
    missed[name] = np.array([(z != B).any(axis=1).mean() for z in gates])
    bounds[name] = 4 * inside(widths / 2)
    # In any sample the inequality holds exactly, as a fact about counts ...
    inside_count = [np.count_nonzero(np.abs(drawn) < w / 2) for w in widths]
    assert (np.round(missed[name] * samples) <= inside_count).all()
    # ... and against the computed bound up to the error of the estimate.
    error = np.sqrt(missed[name] / samples)
    assert (missed[name] <= bounds[name] + 5 * error + 5 / samples).all()
    assert (np.diff(missed[name]) >= 0).all()

# %% tags=["hide-input"] mystnb={"image": {"alt": "Five panels, one for each random vector: the share of draws in which the gates are not the binary vector, measured, and the bound, over the width on log axes. Measured points are on or below the bound everywhere. They fall in proportion to the width, but for the mixture with zeros, which flattens.", "width": "100%"}, "figure": {"caption": "Measured (dots) and the bound (line). No dot lies above its line by more than the sampling error."}}
figure, grid = plt.subplots(2, 3, figsize=(8, 5), sharex=True, sharey=True, layout="constrained")
for axes, (name, bound) in zip(grid.ravel(), bounds.items(), strict=False):
    axes.loglog(widths, bound, color=GREY)
    axes.loglog(widths, missed[name], "o", color=BLUE, markersize=4)
    axes.set_title(name, fontsize=10)
grid[0, 0].annotate("bound", (0.01, 0.028), color=GREY, ha="right")
grid[0, 0].annotate("measured", (0.02, 0.012), color=BLUE, ha="left")
grid[1, 2].set_axis_off()
grid[0, 2].tick_params(labelbottom=True)
grid[0, 2].set_xlabel("width w")
for axes in grid[1, :2]:
    axes.set_xlabel("width w")
for axes in grid[:, 0]:
    axes.set_ylabel("P(not binary)")
plt.show()

# %% [markdown]
# For independent elements and a small width, the bound is close to the measurement. For copies the
# bound is up to four times too large: all four elements enter the transition together, and the sum
# counts each. Where elements equal 0, the mismatch cannot vanish: it tends to the probability that
# some element is 0.

# %%
tiny = md.binary_gate(mixture(samples), 1e-9)
stuck = (tiny == 0.5).any(axis=1).mean()
print(f"mixture, w = 1e-9: {stuck:.4f} of draws not binary; 1 - 0.9^4 = {1 - 0.9**4:.4f}")
assert abs(stuck - (1 - 0.9**4)) < 5 * math.sqrt(0.25 / samples)
small = slice(0, 4)
assert (missed["normal"][small] > 0.9 * bounds["normal"][small] - 10 / samples).all()
assert (missed["almost copies"][-1] < 0.3 * bounds["almost copies"][-1]).all()

# %% [markdown]
# ## The joint law comes along
#
# The bound is about the whole vector, so $g_w(X)$ approximates the *joint* law of $B$ and not only
# its marginals. A pair of normal variables with correlation $\rho = 0.8$ shows this. The
# probability that both are positive is known, $\frac14 + \frac{1}{2\pi}\arcsin\rho$. So is the
# correlation of the two signs, $\frac2\pi \arcsin\rho$: smaller than $\rho$, but far from 0.

# %%
rho = 0.8
pair = rng.multivariate_normal([0, 0], [[1, rho], [rho, 1]], samples)
both = 0.25 + math.asin(rho) / (2 * math.pi)
exact = {(0, 0): both, (0, 1): 0.5 - both, (1, 0): 0.5 - both, (1, 1): both}
print("state    P(B)   signs  w=0.01   w=0.3     (independent gates: 0.25)")
for state, p in exact.items():
    of_B = ((pair > 0) == state).all(axis=1).mean()
    of_g = [(md.binary_gate(pair, w) == state).all(axis=1).mean() for w in (0.01, 0.3)]
    print(state, f"{p:7.3f} {of_B:7.3f} {of_g[0]:7.3f} {of_g[1]:7.3f}")
    assert abs(of_B - p) < 5 * math.sqrt(p / samples)
    assert abs(of_g[0] - p) < 0.01 + 5 * math.sqrt(p / samples)
correlations = [np.corrcoef(md.binary_gate(pair, w).T)[0, 1] for w in (0.01, 0.3)]
expected = 2 / math.pi * math.asin(rho)
print("correlation of B and of the gates:", np.round([expected, *correlations], 3))
assert abs(correlations[0] - expected) < 0.02 + 5 / math.sqrt(samples)

# %% tags=["hide-input"] mystnb={"image": {"alt": "Two scatter plots of the same draws. Left: an elongated cloud of a correlated normal pair. Right: after the transform nearly all points are at the four corners of the unit square, most at (0,0) and (1,1), with some on the edges and a few inside.", "width": "100%"}, "figure": {"caption": "The same 1,500 draws before and after a transform of width 0.3. Points in the corners are spread a little to make them visible; the shares are of all draws that are exactly there."}}
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.8), layout="constrained")
few, z = pair[:1500], md.binary_gate(pair[:1500], 0.3)
corner = ((z == 0) | (z == 1)).all(axis=1)
spread = z + 0.025 * rng.standard_normal(z.shape) * corner[:, None]
for axes, points in ((left, few), (right, spread)):
    axes.scatter(*points[corner].T, s=4, color=BLUE, alpha=0.5, linewidths=0)
    axes.scatter(*points[~corner].T, s=6, color=ORANGE, linewidths=0)
    axes.set_aspect("equal")
for i, j in exact:
    share = (md.binary_gate(pair, 0.3) == (i, j)).all(axis=1).mean()
    at = (i, j + (0.13 if j else -0.13))
    right.annotate(f"{100 * share:.0f} %", at, ha="center", va="center", color=BLUE)
right.annotate("in transition", (0.5, 0.62), ha="center", color=ORANGE)
right.set(xlim=(-0.25, 1.25), ylim=(-0.25, 1.25), xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
left.set(xlim=(-4, 4), ylim=(-4, 4))
left.set(xlabel="$X_1$", ylabel="$X_2$")
right.set(xlabel="$g_w(X_1)$", ylabel="$g_w(X_2)$")
plt.show()

# %% [markdown]
# ## Any law can be reached
#
# Conversely, no law is out of reach. Given the probability of each state, draw a state. Step away
# from 0 on the side given by the state, by $w/2$ and a bit more. The result is a real-valued random
# vector, and $g_w$ of it is exactly the state: here the approximation has no error at all.


# %%
def real_vector(pmf, n, width):
    """Draw n vectors X for which g(X) has the law pmf, an array of shape (2, 2, ...)."""
    drawn = rng.choice(pmf.size, size=n, p=pmf.ravel())
    states = np.stack(np.unravel_index(drawn, pmf.shape), axis=1)
    distance = width / 2 + rng.exponential(size=states.shape)
    return np.where(states == 1, distance, -distance)


# %% [markdown]
# We try this with a law that is hard for other constructions. An even number of three gates is
# open, and the four states of that kind are equally likely. Any two gates are independent, so pairs
# carry no information, but two gates decide the third. Neither independent gates nor signs of
# correlated normal variables have this law.

# %%
parity = np.zeros((2, 2, 2))
for state in itertools.product((0, 1), repeat=3):
    parity[state] = 0.25 if sum(state) % 2 == 0 else 0
z = md.binary_gate(real_vector(parity, samples, 0.5), 0.5)
assert np.isin(z, (0, 1)).all()
for state in itertools.product((0, 1), repeat=3):
    share = (z == state).all(axis=1).mean()
    print(state, f"wanted {parity[state]:.3f}  found {share:.3f}")
    error = math.sqrt(parity[state] / samples)
    assert abs(share - parity[state]) <= 5 * error  # so exactly 0 where 0 is wanted
pairs = np.corrcoef(z.T) - np.eye(3)
print("largest correlation of two gates:", round(abs(pairs).max(), 4))
assert abs(pairs).max() < 5 / math.sqrt(samples)

# %% [markdown]
# The same works for laws of four gates that are drawn at random:

# %%
for _ in range(5):
    p = rng.dirichlet(np.full(16, 0.3))
    z = md.binary_gate(real_vector(p.reshape(2, 2, 2, 2), samples, 0.5), 0.5)
    number = z @ [8, 4, 2, 1]  # of the state
    found = np.array([(number == state).mean() for state in range(16)])
    assert (abs(found - p) < 6 * np.sqrt(p / samples) + 10 / samples).all()

# %% [markdown]
# So the transform does not limit which laws are possible. This does not say how to learn a law. In
# this package {py:class}`minidiff.Gate` learns the simplest $X$: one number $\varphi_i$ for each
# group, with or without independent noise. {py:func}`minidiff.binary_gate` takes any tensor.
#
# ## Exact zeros, where the slope is 0 too
#
# Let a gate multiply a unit of a dense layer, its weights and its bias: $y = z\,(v^\top x + b)$
# with $z = g_w(\varphi)$. The tape needs four derivatives. Three have the factor $z$, and the
# derivative by $\varphi$ has the factor $g_w'$:
#
# $$\begin{aligned}
# \frac{\partial L}{\partial v} &= z\, \frac{\partial L}{\partial y}\, x, \qquad
# \frac{\partial L}{\partial b} = z\, \frac{\partial L}{\partial y}, \qquad
# \frac{\partial L}{\partial x} = z\, \frac{\partial L}{\partial y}\, v, \\
# \frac{\partial L}{\partial \varphi} &= g_w'(\varphi)\, \frac{\partial L}{\partial y}\, (v^\top x + b).
# \end{aligned}$$
#
# The gradient $\partial L / \partial x$ goes to the layers before. Where the gate is closed, both
# $z = 0$ and $g_w' = 0$. This is the third fact. So neither $v^\top x$ nor anything that depends on
# it is needed, forward or backward: skipping it is **not an approximation**. This gives conditional
# computation during training, which according to the paper's abstract the method enables in theory.
#
# Here is a layer of four units, two of them closed. We compute it once by ordinary products and
# once by a layer that skips closed units. {py:func}`minidiff.gate` puts a gate on the outputs of a
# layer: `layer.layer` is the Linear, and `layer.outputs` is the gate, with a $\varphi$ for each
# unit.

# %%
layer = md.gate(nn.Linear(6, 4, rng=rng, dtype=np.float64), "outputs", dtype=np.float64)
layer.outputs.phi.data[:] = [1.5, -0.7, 0.2, -0.5]
inputs = rng.standard_normal((6, 8))
print("gates:", layer.outputs().data)


def by_hand(x):
    z = md.binary_gate(layer.outputs.phi, 1.0)
    return md.functional.linear(x, layer.layer.weight * z.reshape(4, 1), layer.layer.bias * z)


def gradients(compute):
    for parameter in layer.parameters():
        parameter.grad = None
    out = compute(md.Tensor(inputs))
    loss = (out * out).mean()
    loss.backward()
    return loss.item(), [parameter.grad for parameter in layer.parameters()]


hand, skipped = gradients(by_hand), gradients(layer)
np.testing.assert_allclose(hand[0], skipped[0], rtol=1e-12)
for one, other in zip(hand[1], skipped[1], strict=True):
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-12)
print("loss:", round(hand[0], 6), round(skipped[0], 6))

# %% [markdown]
# Equal numbers could also mean that the layer has multiplied by the zeros after all. So we put NaN,
# which no multiplication by 0 removes, into all weights of the closed units:

# %%
layer.layer.weight.data[[1, 3]] = np.nan
layer.layer.bias.data[[1, 3]] = np.nan
poisoned = gradients(layer)
print("by hand:", gradients(by_hand)[0], " skipped:", round(poisoned[0], 6))
assert math.isnan(gradients(by_hand)[0])
assert poisoned[0] == skipped[0]
assert all((a == b).all() for a, b in zip(poisoned[1], skipped[1], strict=True))

# %% [markdown]
# Both halves of the fact are needed. A sigmoid is never 0, so nothing may be skipped. A
# *straight-through* gate (Bengio, Léonard & Courville 2013,
# [arXiv:1308.3432](https://arxiv.org/abs/1308.3432)) is a hard step in the forward pass, and
# pretends a slope of 1 in the backward pass. Its value is 0, but its gradient needs the output that
# the closed unit would have had.
#
# There is a drawback: where the slope is 0, the data cannot open the gate again. A deterministic
# gate that has closed stays closed for good. In return, its group can be skipped from then on;
# [tutorial 7](07_compaction.py) measures the time that this saves.
#
# ## Deterministic or stochastic
#
# A deterministic gate is $z = g_w(\varphi)$: a random vector without randomness, to which all three
# facts apply. A stochastic gate is $z = g_w(\varphi + \sigma\varepsilon)$ with new noise in every
# training step, and is deterministic in evaluation. Let $F$ be the distribution function of the
# noise. A stochastic gate is exactly 0 with probability $F\bigl((-w/2 - \varphi)/\sigma\bigr)$,
# exactly 1 with probability $1 - F\bigl((w/2 - \varphi)/\sigma\bigr)$, and otherwise in between.

# %%
print("  phi   closed          in between      open           evaluation")
for phi in (-1.5, -0.5, 0.0, 0.5, 1.5):
    noisy = md.Gate(samples, width=1.0, initial=phi, noise="normal", sigma=1.0, rng=rng)
    z = noisy().data
    found = np.array([(z == 0).mean(), ((z > 0) & (z < 1)).mean(), (z == 1).mean()])
    low, high = below(np.array([-0.5 - phi, 0.5 - phi]))
    exact = np.array([low, high - low, 1 - high])
    cells = "   ".join(f"{f:.3f} ({e:.3f})" for f, e in zip(found, exact, strict=True))
    print(f"{phi:5.1f}   {cells}   {noisy.eval()().data[0]:.3f}")
    assert (abs(found - exact) < 5 * np.sqrt(exact * (1 - exact) / samples)).all()

# %% [markdown]
# The table has measured shares, and in brackets the probabilities by the formula. Noise may be
# normal, logistic or uniform. It is drawn once for a batch, or, for gates on activations with
# `per_sample=True`, once for each sample. Noise lets a closed gate open again, since at some steps
# the gate is in the transition and has a slope. On the other hand, no gate is closed for good
# before evaluation, and the networks in training differ from the network that is evaluated.
# [Tutorial 5](05_surrogate.py) trains with both kinds.
#
# ## The drawback of a small width
#
# The bound asks for a small $w$. What is the drawback? A gate has a slope only while its $X_i$ is
# in the transition, and a small $w$ makes this event rare. With noise, the *mean* slope hardly
# depends on $w$: it tends to the density of $X_i$ at 0. But the slope is then a rare large number,
# of order $1/w$ with a probability of order $w$. So its standard deviation grows as $1/\sqrt w$.

# %%
narrow = np.logspace(-3, 0.5, 15)  # among them 0.01, 0.1 and 1
X = 0.3 + rng.standard_normal(samples)
slopes = np.array([slope(X, w) for w in narrow])
density = math.exp(-(0.3**2) / 2) / math.sqrt(2 * math.pi)
means, deviations = slopes.mean(axis=1), slopes.std(axis=1)
alive = (slopes > 0).mean(axis=1)
for w in (0.01, 0.1, 1.0):
    i = np.argmin(abs(narrow - w))
    print(
        f"w = {w:4}: a slope in {100 * alive[i]:5.2f} % of draws, "
        f"mean {means[i]:.3f}, standard deviation {deviations[i]:.2f}"
    )
error = deviations / math.sqrt(samples)
assert (abs(means - density) < 5 * error + 0.03 * narrow**2).all()
assert deviations[0] > 5 * deviations[10]

# %% [markdown]
# A deterministic gate has no noise to average over: outside of its transition it learns nothing at
# all. To see both effects, we give 200 gates the simplest task possible. Their $\varphi$ is spread
# evenly over $-1 \dots 1$. The loss $\sum_i (z_i - t_i)^2$ tells each gate directly whether to be
# open or closed, so any failure is due to the gate itself.


# %%
def learn(width, noise=None, steps=150 if SMALL else 400, count=200):
    draws = np.random.default_rng(1)
    gates = md.Gate(count, width=width, noise=noise, sigma=0.5, rng=draws)
    gates.phi.data[:] = np.linspace(-1, 1, count)
    target = np.tile([0, 1], count // 2).astype(np.float32)
    optimizer = md.optim.Adam([gates.phi], lr=4 / steps)
    for _ in range(steps):
        difference = gates() - target
        optimizer.zero_grad()
        (difference * difference).sum().backward()
        optimizer.step()
    return ((gates.evaluated() > 0.5) == target).mean()


tried = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 2.0)
right_share = {noise: [learn(w, noise) for w in tried] for noise in (None, "normal")}
print("noise  ", *(f"{w:6}" for w in tried), "  width")
for noise, shares in right_share.items():
    print(f"{noise or 'none':7}", *(f"{100 * share:4.0f} %" for share in shares), "  right")
assert max(right_share[None][:3]) < 0.52  # of 200 gates half are right by chance
assert right_share[None][-1] > 0.95
assert right_share["normal"][-2] > 0.95
assert all(a <= b for a, b in itertools.pairwise(right_share[None]))

# %% tags=["hide-input"] mystnb={"image": {"alt": "Two panels over the width on a log axis. Left: the mean of the slope is flat at about 0.38 while its standard deviation falls from above 20 at width 0.001 to about 0.4 at width 3. Right: the share of gates that are right after training. Deterministic: one half up to width 0.03, then rising to all at width 2. Stochastic: more at every small width.", "width": "100%"}, "figure": {"caption": "Left: with noise the mean slope is right at every width, but its spread grows as the width shrinks. Right: 200 gates that the loss tells whether to be open or closed. Deterministic gates that begin outside of their transition get no gradient."}}
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.4), layout="constrained")
left.loglog(narrow, deviations, color=ORANGE)
left.loglog(narrow, means, color=BLUE)
left.annotate("standard deviation", (0.02, 8), color=ORANGE)
left.annotate("mean", (0.002, 0.25), color=BLUE)
left.set(xlabel="width w, in standard deviations of X", ylabel="slope of $g_w(X)$")
for noise, colour in ((None, BLUE), ("normal", ORANGE)):
    right.semilogx(tried, 100 * np.array(right_share[noise]), "o-", color=colour, markersize=4)
right.annotate("stochastic", (0.02, 76), ha="right", color=ORANGE)
right.annotate("deterministic", (0.12, 60), ha="right", color=BLUE)
right.set(xlabel="width w", ylabel="gates that are right, %")
plt.show()

# %% [markdown]
# So the width is a compromise between being binary and being able to learn. It should suit the
# distance over which $\varphi$ has to move. The defaults of the package are $w = 1$ and an initial
# $\varphi$ of 1.5: open, and outside of the transition. The data alone would never move $\varphi$
# from there. The surrogate of L0 moves it, and the next tutorial builds this surrogate.
#
# ## Exercises
#
# **1.** Write `quintic(x, width)`: a transform like $g_w$, but with a continuous second derivative.
# The polynomial of degree five that has one is $6t^5 - 15t^4 + 10t^3$. The transform needs the same
# exact zeros and ones.


# %%
def quintic(x, width):
    return x  # yours


check("04.quintic", quintic)

# %% [markdown]
# **2.** Take $d$ gates of standard normal variables, which may depend on each other in any way.
# Write `widest(d, share)`: the largest width for which the bound promises that the gates differ
# from the binary vector in at most this share of draws. (`statistics.NormalDist().inv_cdf` is
# useful.)


# %%
def widest(d, share):
    return 1.0  # yours


check("04.widest", widest)

# %% [markdown]
# **3.** A router sends each sample to exactly one of $k$ experts. Write `one_hot(p, n, rng)`, which
# returns an array of shape `(n, k)` of real numbers. Their signs open exactly one gate in each row,
# gate $i$ with probability `p[i]`. Only signs count here. One way is to add Gumbel noise to
# $\log p$, so that the largest wins, and to turn the sums into scores that are above 0 for the
# winner alone.


# %%
def one_hot(p, n, rng):
    return rng.standard_normal((n, len(p)))  # yours


check("04.one_hot", one_hot)

# %% [markdown]
# ## What next
#
# [Tutorial 5](05_surrogate.py) makes gates close. [Tutorial 6](06_groups.py) is about what a gate
# may multiply, and [tutorial 7](07_compaction.py) is about skipping closed groups.
#
# Solutions:


# %% tags=["hide-input"]
def quintic_solution(x, width):
    t = np.clip(x / width + 0.5, 0, 1)
    return t**3 * (10 - 15 * t + 6 * t**2)


def widest_solution(d, share):
    from statistics import NormalDist

    return 2 * NormalDist().inv_cdf(0.5 + share / d / 2)


def one_hot_solution(p, n, rng):
    score = np.log(p) + rng.gumbel(size=(n, len(p)))
    first, second = np.sort(score, axis=1)[:, :-3:-1].T
    rival = np.where(score == first[:, None], second[:, None], first[:, None])
    return score - rival


assert check("04.quintic", quintic_solution)
assert check("04.widest", widest_solution)
assert check("04.one_hot", one_hot_solution)
