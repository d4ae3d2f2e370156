# %% [markdown]
# # 5. From counting to a surrogate of L0
#
# A gate closes only if the loss gains by it. So we add a penalty for everything that is open: the
# number of weights that are left. This count has no gradient. This tutorial turns it into a
# surrogate that gradient descent can follow.
#
# - **You will do**: compute an expected count by going through every state of a small network's
#   gates, prune a network by three costs, watch a gate and a weight evade the penalty, and close a
#   whole network by a penalty that comes too early.
# - **You will learn**: what the surrogate computes exactly and where it is a stand-in, why a weight
#   has two ends, what weight decay and a ramp are for, and what noise changes.
# - **You need**: [tutorial 3](03_lenet5.py) and [tutorial 4](04_gates.py).

# %%
import itertools
import math
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
from support import SMALL, check, data

import minidiff as md
from minidiff import nn
from minidiff.training.trainer import error_rate

rng = np.random.default_rng(0)
BLUE, ORANGE, GREEN, GREY = "#0072b2", "#d55e00", "#009e73", "#666666"

# %% [markdown]
# ## Why a count has no gradient
#
# The paper (Shulman 2020, [arXiv:2012.03653](https://arxiv.org/abs/2012.03653)) says in its
# abstract that sparsity is encouraged by a surrogate of the L0 loss, and gives no formula there.
# What follows is our construction.
#
# L0 counts the numbers that are not zero. For gates the count is $\sum_i [z_i \ne 0]$, a step
# function of every $\varphi_i$: its slope is 0 or does not exist. The sum of the gates' values,
# $\sum_i z_i$, does not help. It has a slope only in the transition, and gates begin fully open,
# outside of it:

# %%
gates = md.Gate(5, dtype=np.float64)
gates.phi.data[:] = [-1.0, -0.2, 0.2, 1.0, 1.5]
gates().sum().backward()
print("phi      ", gates.phi.data)
print("count    ", np.count_nonzero(gates().data))
print("d sum(z) ", gates.phi.grad.round(3))
assert not gates.phi.grad[[0, 3, 4]].any()

# %% [markdown]
# ## Expected counts
#
# Add noise, and ask how often a gate is open. Let $z = g_w(\varphi + \sigma\varepsilon)$, and let
# $F$ be the distribution function of the noise, which is symmetric. Then
#
# $$\begin{aligned}
# \pi &= P(z \ne 0) = P(\varphi + \sigma\varepsilon > -w/2) \\
# &= F\!\left(\frac{\varphi + w/2}{\sigma}\right).
# \end{aligned}$$
#
# This probability is smooth in $\varphi$, and has a slope where the gate is open. Its sum over
# gates is an *expected* count. For stochastic gates $\pi$ is exact: we draw, and compare.

# %%
draws = 20_000
grid = np.array([-2.0, -1.0, -0.5, 0.0, 0.7, 1.5])
measured = {}
for noise in ("normal", "logistic", "uniform"):
    noisy = md.Gate(len(grid), noise=noise, sigma=1.0, rng=rng, dtype=np.float64)
    noisy.phi.data[:] = grid
    pi = noisy.open_probability().data
    measured[noise] = (noisy.values(samples=draws).data != 0).mean(axis=1)
    print(f"{noise:9}", *(f"{m:5.3f}" for m in measured[noise]))
    print(f"{'':9}", *(f"{p:5.3f}" for p in pi))
    assert (abs(measured[noise] - pi) <= 5 * np.sqrt(pi * (1 - pi) / draws) + 1e-9).all()

# %% [markdown]
# For each noise the first line has the share of draws in which the gate is open, and the second
# line has $\pi$. A **deterministic** gate has no such probability: it is open or closed. We count
# it as if it had normal noise (of $\sigma = 1$, a setting) while it is open, and as 0 once it has
# closed. So for deterministic gates $\pi$ is a *stand-in*, between 1/2 and 1 while the gate is
# open. A weight that is left, with $k$ gates on its path, counts between $2^{-k}$ and 1. A weight
# that is closed counts 0. So the sum lies between $2^{-k}$ and 1 times the true count ([the
# method](../method.md), Proposition 5). Its slope does not vanish where the gate is fully open.

# %% tags=["hide-input"] mystnb={"image": {"alt": "Over phi from -2.5 to 2.5: a grey step from 0 to 1 at -0.5, whether the gate is open; a green smooth step between -0.5 and 0.5, the gate's value; an orange S-shaped curve, the open probability, with measured dots on it; and in blue the stand-in for deterministic gates, equal to the orange curve above -0.5, where it jumps from 0.5 to 0.", "width": "90%"}, "figure": {"caption": "The count (grey) and the gate (green) are flat where the gate is open. The open probability (orange; dots are measured) is not. The stand-in for a deterministic gate (blue, dashed) equals it until the gate closes."}}
line = np.linspace(-2.5, 2.5, 1001)
deterministic = md.Gate(len(line), dtype=np.float64)
smooth = md.Gate(len(line), noise="normal", rng=rng, dtype=np.float64)
for which in (deterministic, smooth):
    which.phi.data[:] = line
figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
axes.plot(line, deterministic.is_open(), color=GREY, linewidth=1)
axes.plot(line, deterministic().data, color=GREEN)
axes.plot(line, smooth.open_probability().data, color=ORANGE)
axes.plot(line, deterministic.open_probability().data, "--", color=BLUE, linewidth=2.5)
axes.plot(grid, measured["normal"], "o", color=ORANGE)
axes.annotate("open or not", (-0.55, 0.9), ha="right", color=GREY)
axes.annotate("value $g_w$", (0.05, 0.4), color=GREEN)
axes.annotate(r"$\pi$, stochastic", (-1.2, 0.3), ha="right", color=ORANGE)
axes.annotate(r"$\pi$, deterministic", (1.0, 0.84), color=BLUE)
axes.set(xlabel=r"$\varphi$", ylabel="share", ylim=(-0.04, 1.06))
plt.show()

assert (deterministic.open_probability().data <= deterministic.is_open()).all()

# %% [markdown]
# ## A weight has two ends
#
# Gates of filters and units do not gate weights one by one. A weight leads from an input channel to
# an output channel, and is left only if the gates of *both* are open. If the gates are independent,
# this has the probability $\pi^\text{in}_i\,\pi^\text{out}_o$. Let $K$ be the number of kernel
# positions of a layer: 25 for 5x5, 1 for a dense layer. The sum over the layer is
#
# $$\begin{aligned}
# &K \sum_{i,o} \pi^\text{in}_i\,\pi^\text{out}_o \\
# &\;=\; K \Bigl(\sum_i \pi^\text{in}_i\Bigr) \Bigl(\sum_o \pi^\text{out}_o\Bigr),
# \end{aligned}$$
#
# two sums and a product. We call it the *coupled* count. {py:class}`minidiff.Surrogate` walks
# through a network once; each call then adds up the coupled counts of its layers. To check it, we
# take a tiny network whose gates have only $2^7$ states, and count the weights left in every state.


# %%
def gated(layer):
    """Put stochastic gates with random phi on the outputs of a layer."""
    layer = md.gate(layer, "outputs", noise="normal", sigma=0.8, rng=rng, dtype=np.float64)
    layer.outputs.phi.data[:] = rng.uniform(-1, 1, layer.outputs.count)
    return layer


tiny = nn.Sequential(
    conv1=gated(nn.Conv2d(1, 3, 3, rng=rng)),  # (1, 6, 6) -> (3, 4, 4): 16 positions
    conv2=gated(nn.Conv2d(3, 2, 2, rng=rng)),  # -> (2, 3, 3): 9 positions
    flatten=nn.Flatten(),
    dense=gated(nn.Linear(18, 2, rng=rng)),
)
tiny_gates = list(md.gates_of(tiny).values())
p = np.concatenate([gate.open_probability().data for gate in tiny_gates])

# %% [markdown]
# Suppose that $a$ filters of the first convolution, $b$ filters of the second, and $c$ units are
# open. Then $9a$, $4ab$ and $9bc$ weights are left, and each weight is used at 16, 9 or 1
# positions. The cost of a weight may be 1, or its multiply-adds, or the cube root of its
# multiply-adds.


# %%
def weights_left(a, b, c):
    """Return the weights left in each layer, if so many filters and units are open."""
    return np.array([9 * a, 4 * a * b, 9 * b * c])


costs = {"weights": [1, 1, 1], "macs": [16, 9, 1], "balanced": np.cbrt([16, 9, 1])}  # of a weight
expected, law = dict.fromkeys(costs, 0.0), {}
for state in itertools.product((0, 1), repeat=7):
    chance = np.prod(np.where(state, p, 1 - p))
    left = weights_left(sum(state[:3]), sum(state[3:5]), sum(state[5:]))
    law[left.sum()] = law.get(left.sum(), 0) + chance
    for cost in costs:
        expected[cost] += chance * (left @ costs[cost])
for cost, value in expected.items():
    ours = md.Surrogate(tiny, (1, 6, 6), cost=cost)().item()
    print(f"{cost:9} all states: {value:.4f}   Surrogate: {ours:.4f}")
    assert math.isclose(ours, value, rel_tol=1e-6)

# %% [markdown]
# The surrogate is the mean of a distribution of counts, and training with stochastic gates draws
# from this distribution. Below are the exact distribution, from the enumeration, and 20,000 draws.

# %% tags=["hide-input"] mystnb={"image": {"alt": "Bars over the number of weights left, from 0 to 87: the probability of each count from all 128 states, with dots from 20,000 draws on the tops of the bars, and a vertical line at the expected count.", "width": "90%"}, "figure": {"caption": "How many weights of the small network are left: exact (bars), drawn (dots). The surrogate is the mean, at the line."}}
opened = [(gate.values(samples=draws).data > 0).sum(axis=0) for gate in tiny_gates]
drawn = weights_left(*opened).sum(axis=0)
counts = np.array(sorted(law))
shares = np.array([(drawn == count).mean() for count in counts])
figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
axes.bar(counts, [law[count] for count in counts], width=0.9, color="#9ecae1")
axes.plot(counts, shares, "o", color=ORANGE, markersize=4)
axes.axvline(expected["weights"], color=GREY, linestyle="--")
at = expected["weights"], max(shares)
axes.annotate("expected", at, (-4, -4), textcoords="offset points", ha="right", color=GREY)
axes.set(xlabel="weights left, of 87", ylabel="probability")
plt.show()

exact = np.array([law[count] for count in counts])
assert (abs(shares - exact) < 5 * np.sqrt(exact / draws) + 1e-4).all()
assert abs(drawn.mean() - expected["weights"]) < 5 * drawn.std() / math.sqrt(draws)

# %% [markdown]
# Does the coupling matter? The obvious alternative is the *uncoupled* sum: each group counts its
# own weights, whatever other gates do, $\sum_g n_g\,\pi_g$. We compare the two on a real network. It
# has two convolutions with 12 and 24 filters and a dense layer of 64 units, with gates on the
# filters, and on the 384 inputs and the units of the dense layer. (Each weight of this dense layer
# counts half for its input and half for its unit.)

# %%
dataset = data(train=5000)
shape = (1, 28, 28)
pixels = (dataset.train.images / 255 - dataset.mean) / dataset.std
pixels = np.ascontiguousarray(pixels.transpose(1, 2, 3, 0), np.float32)  # batch last
labels = dataset.train.labels


def build(**settings):
    draw = np.random.default_rng(0)
    gate = partial(md.gate, rng=draw, **settings)
    dense = gate(nn.Linear(384, 64, rng=draw), "inputs", "outputs")
    return nn.Sequential(
        conv1=gate(nn.Conv2d(1, 12, 5, rng=draw), "outputs"),
        pool1=nn.MaxPool2d(2, relu=True),
        conv2=gate(nn.Conv2d(12, 24, 5, rng=draw), "outputs"),
        pool2=nn.MaxPool2d(2, relu=True),
        flatten=nn.Flatten(),
        dense1=dense,
        relu=nn.ReLU(),
        dense2=nn.Linear(64, 10, rng=draw),
    )


# %% [markdown]
# How many weights does a closed group remove? We close one group of each kind and count, first in
# the full network, and again when most of the network is closed.


# %%
def lost(model, gate):
    """Return how many weights closing the first open group of a gate removes."""

    def left():
        return sum(layer.weights[0] for layer in md.count(model, shape))

    is_open, before = gate.is_open(), left()
    gate.set_open(is_open & (np.arange(gate.count) != is_open.argmax()))
    after = left()
    gate.set_open(is_open)
    return before - after


model = build()
kinds = {
    "filter of conv1": (model["conv1"].outputs, 25),
    "filter of conv2": (model["conv2"].outputs, 12 * 25),
    "input of dense1": (model["dense1"].inputs, 64),
    "unit of dense1": (model["dense1"].outputs, 384),
}
at_first = {name: lost(model, gate) for name, (gate, _) in kinds.items()}
for name, (gate, _) in kinds.items():
    gate.set_open(np.arange(gate.count) % (8 if name == "input of dense1" else 3) == 0)
print("                  own  with both ends   when most is closed")
for name, (gate, own) in kinds.items():
    print(f"{name:15} {own:6} {at_first[name]:8} {lost(model, gate):18}")
    assert lost(model, gate) < at_first[name]
assert at_first["filter of conv1"] == 25 + 24 * 25

# %% [markdown]
# A filter of the first convolution has 25 weights of its own, and each of the 24 filters of the
# next layer has 25 weights that read it. While the network shrinks, a group removes fewer weights,
# since their other ends are closed already. The derivative of the coupled count knows both facts.
# The uncoupled sum knows neither.
#
# Now we train: SGD moves the weights, Adam moves $\varphi$, and the loss is
#
# $$\text{cross-entropy} \;+\; \lambda\,\frac{R(\varphi)}{R(\varphi_0)}.$$
#
# Here $R$ is the expected cost and $\varphi_0$ the initial $\varphi$. The second term is the
# *penalty*, and $\lambda$ rises from 0 over a *ramp*. Gates learn between `start` and `stop`
# (shares of all steps). Then they are *frozen*: $\varphi$ no longer moves, and stochastic gates
# have no noise. Adam (Kingma and Ba 2015) divides each gradient by its usual size, so every
# $\varphi$ moves by about the learning rate, however small its gradient.
#
# This $\lambda$ is the penalty of the whole network, here and in [tutorial 6](06_groups.py). From
# [tutorial 7](07_compaction.py) on, and in `minidiff train`, $\lambda$ is the penalty of *one*
# weight in the loss summed over the $N$ training images: cross-entropy $+\, (\lambda/N)\, R$.

# %%
steps = 200 if SMALL else 1000


def train(model, cost, strength, *, start=0.1, ramp=0.3, stop=0.8):
    draw = np.random.default_rng(1)
    gates = list(md.gates_of(model).values())
    weights, phis = md.split_parameters(model)
    sgd = md.optim.SGD(weights, momentum=0.9, nesterov=True, weight_decay=5e-4)
    adam = md.optim.Adam(phis, lr=20 / steps)
    whole, log = cost().item(), []
    for step in range(steps):
        t = step / steps
        sgd.groups[0].lr = 0.05 * md.optim.cosine(step, steps, warmup=steps // 20)
        for gate in gates:
            gate.frozen = t >= stop
        pick = draw.integers(len(labels), size=64)
        loss = md.functional.cross_entropy(model(pixels[..., pick]), labels[pick])
        log.append((loss.item(), cost().item() / whole, gates[1].phi.data.copy()))
        learns = start <= t < stop
        if learns:
            risen = min(1, (t - start) / max(ramp, 1e-9))
            loss = loss + (strength * risen / whole) * cost()
        sgd.zero_grad()
        adam.zero_grad()
        loss.backward()
        sgd.step()
        if learns:
            adam.step()
    return log


# %% [markdown]
# `describe` prints what is left in the end, such as `12-24-384-64`: the open filters of `conv1` and
# of `conv2`, the inputs of `dense1` that are in use, and its open units. It also prints how many
# times fewer weights and multiply-adds (MACs) are left, and the error on validation images. Below
# it is the uncoupled sum.


# %%
def describe(name, model):
    counts = md.count(model, shape)
    weights = np.sum([layer.weights for layer in counts], axis=0)  # left, of how many
    macs = np.sum([layer.macs for layer in counts], axis=0)
    error = error_rate(model, dataset.validation, mean=dataset.mean, std=dataset.std)
    fewer = [whole / left if left else math.inf for left, whole in (weights, macs)]
    what = md.architecture(counts) if weights[0] else "nothing"
    times = [f"{many:.1f}x" if weights[0] else "-" for many in fewer]
    print(f"{name:20} {what:14} {times[0]:>7} {times[1]:>8} {error:7.2f} %")
    return {"left": [c.outputs[0] for c in counts], "fewer": fewer, "error": error}


def uncoupled(model):
    own = [(model["conv1"].outputs, 25), (model["conv2"].outputs, 300)]
    own += [(model["dense1"].inputs, 64 / 2), (model["dense1"].outputs, 384 / 2)]
    return lambda: sum(size * gate.open_probability().sum() for gate, size in own)


# %%
found = {"coupled": [], "uncoupled": []}
print(f"{'':20} {'left':14} {'weights':>7} {'MACs':>8} {'error':>9}")
for strength in (3, 30) if SMALL else (3, 10, 30):
    for name in found:
        model = build()
        cost = md.Surrogate(model, shape) if name == "coupled" else uncoupled(model)
        train(model, cost, strength)
        found[name].append(describe(f"{name}, {strength}", model))
for one, other in zip(found["coupled"], found["uncoupled"], strict=True):
    assert one["left"][0] < other["left"][0]  # fewer filters of the first convolution
    assert one["left"][2] > other["left"][2]  # and more units
    assert one["fewer"][1] > other["fewer"][1]  # fewer MACs,
    curve = np.array(sorted(run["fewer"] for run in found["coupled"])).T
    assert np.interp(other["fewer"][0], *curve) > other["fewer"][1]  # for as many weights, too

# %% tags=["hide-input"] mystnb={"image": {"alt": "Times fewer MACs over times fewer weights, on log axes, for several lambdas. The line of the coupled surrogate lies above that of the uncoupled sum.", "width": "80%"}, "figure": {"caption": "The same network pruned by each sum, a point for each lambda: for as many weights the coupled one leaves fewer multiply-adds."}}
figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
for (name, runs), colour in zip(found.items(), (BLUE, ORANGE), strict=True):
    x, y = np.array([run["fewer"] for run in runs]).T
    axes.loglog(x, y, "o-", color=colour)
    axes.annotate(name, (x[-1], y[-1]), (8, -3), textcoords="offset points", color=colour)
ticks = (2, 3, 5, 10, 20, 40)
axes.set_xticks(ticks, [f"{tick}x" for tick in ticks])
axes.set_yticks(ticks, [f"{tick}x" for tick in ticks])
axes.minorticks_off()
axes.set(xlim=(4, 90), ylim=(1.2, 30), xlabel="times fewer weights", ylabel="times fewer MACs")
plt.show()

# %% [markdown]
# By its own 25 weights a filter of the first convolution is hardly worth closing, though nearly all
# multiply-adds depend on these filters. So the uncoupled sum leaves more of them open. It closes more
# units of the dense layer, because their cost never falls. The uncoupled sum differs in two ways: it
# ignores a filter's weights in the next layer, and its costs never fall. This run does not separate
# the two. (These are short runs of one seed, so errors differ by chance as much as these do. The
# shapes of the networks differ far more.)
#
# ## The cost of a weight
#
# A weight of a dense layer is used once for an image, and a weight of a convolution at every
# position. So most weights are in one layer and most multiply-adds in another, and you have to say
# which you want to save. With `cost="macs"` the cost of a weight is the number of its
# multiply-adds. With `"balanced"`, a compromise of ours and the default of the recipe, it is the
# cube root of this number.

# %%
counts = md.count(build(), shape)
cost_of = {"weights": lambda macs: 1, "macs": lambda macs: macs, "balanced": np.cbrt}
for cost, of_weight in cost_of.items():
    of_layers = np.array([c.weights[1] * of_weight(c.macs[1] / c.weights[1]) for c in counts])
    shares = 100 * of_layers / of_layers.sum()
    print(f"{cost:9}", *(f" {c.name} {s:4.1f} %" for c, s in zip(counts, shares, strict=True)))
    whole = md.Surrogate(build(initial=20.0), shape, cost=cost)().item()
    assert math.isclose(whole, of_layers.sum(), rel_tol=1e-6)

# %%
by_cost, logs = {}, {}
for cost in ("weights", "macs", "balanced"):
    model = build()
    logs[cost] = train(model, md.Surrogate(model, shape, cost=cost), 10)
    by_cost[cost] = describe(cost, model)
    if cost == "balanced":
        deterministic = model
assert by_cost["macs"]["fewer"][1] > by_cost["weights"]["fewer"][1]
assert by_cost["macs"]["fewer"][0] < by_cost["weights"]["fewer"][0]
assert by_cost["macs"]["left"][2] > by_cost["weights"]["left"][2]

# %% [markdown]
# With all else equal, the cost by MACs leaves fewer multiply-adds than the cost by weights, but
# more weights. It leaves more units of the dense layer open, because they have few multiply-adds.
#
# ## The scale trap
#
# A gate multiplies a weight, and the data loss depends only on the product: $z\,v = (z/2)(2v)$. But
# the penalty depends only on $\varphi$, and not on $v$. Take one gate, one weight $v$, the data
# loss $\frac12 (zv - 1)^2$, the penalty $\lambda\,\pi(\varphi)$ and weight decay $\frac d2 v^2$.
# For a given $z$ the best weight is $v = z / (z^2 + d)$, and the data loss and decay together are
# then
#
# $$\min_v\; \tfrac12 (zv - 1)^2 + \tfrac d2 v^2 \;=\; \frac{d}{2\,(z^2 + d)}.$$
#
# Without decay this is 0 for *every* $z > 0$. Nothing holds the gate, so only the penalty moves it:
# the gate drifts down, ever more slowly, the weight grows, and the penalty falls, though no weight
# is removed. The value of the gate then does not tell whether its weight is needed, and one large
# step closes the gate for good. With decay, a small gate needs a large weight, which the decay
# penalises.


# %%
def drift(decay, strength=0.05, steps=3000):
    gate = md.Gate(1, dtype=np.float64)
    weight = nn.Parameter(np.array([1.0]))
    sgd = md.optim.SGD([weight], lr=0.05, weight_decay=decay)
    adam = md.optim.Adam([gate.phi], lr=0.01)
    path = []
    for _ in range(steps):
        z, cost = gate(), gate.open_probability().sum()
        loss = 0.5 * ((z * weight - 1) ** 2).sum()
        path.append((z.item(), weight.item(), z.item() * weight.item(), cost.item()))
        sgd.zero_grad()
        adam.zero_grad()
        (loss + strength * cost).backward()
        sgd.step()
        adam.step()
    return np.array(path).T


paths = {decay: drift(decay) for decay in (0.0, 0.01)}
for decay, (z, weight, product, cost) in paths.items():
    print(
        f"decay {decay:4}: gate {z[-1]:.3f}, weight {weight[-1]:.3f}, "
        f"product {product[-1]:.3f}, cost {cost[0]:.3f} -> {cost[-1]:.3f}"
    )
z, weight, product, _ = paths[0.0]
assert (np.diff(z[::100]) <= 0).all()  # down,
assert (np.diff(weight[::100]) >= 0).all()  # up,
assert abs(product[500:] - 1).max() < 0.02  # and their product hardly changes
assert abs(np.diff(paths[0.01][0][2000:])).max() < 1e-5  # with decay it comes to rest
assert abs(paths[0.01][2][500:] - 1).max() < 0.02

# %% tags=["hide-input"] mystnb={"image": {"alt": "Two panels over 3,000 steps: without weight decay the gate's value falls and the weight rises without end, while their product stays at 1. With decay both come to rest, the gate near 0.88.", "width": "100%"}, "figure": {"caption": "The same gate and weight, without and with weight decay. The data loss depends only on the product, which stays close to 1 in both."}}
figure, panels = plt.subplots(1, 2, figsize=(8, 3.2), sharey=True, layout="constrained")
for axes, (decay, (z, weight, product, _)) in zip(panels, paths.items(), strict=True):
    axes.plot(product, color=GREY, linestyle=":")
    for values, colour, name in ((weight, ORANGE, "weight $v$"), (z, BLUE, "gate $z$")):
        axes.plot(values, color=colour)
        up = 6 if name.startswith("weight") else -18
        at = 1800, values[1800]
        axes.annotate(name, at, (-10, up), textcoords="offset points", ha="right", color=colour)
    axes.set(xlabel="step", title=f"decay {decay:g}")
panels[0].set_ylim(0.4, 1.95)
panels[0].annotate("product $zv$", (2300, 1.0), (0, 4), textcoords="offset points", color=GREY)
plt.show()

# %% [markdown]
# So weight decay is part of the method, though it looks like a detail of the recipe. It does not
# remove the drift altogether: deterministic gates of the network above end partly open, as we will
# see. When the recipe of `minidiff train` freezes them, {py:func}`minidiff.fold_gates` multiplies
# each $z$ into the weights. Then every gate is 0 or 1, and the outputs stay the same.
#
# ## Hard concrete
#
# *Hard concrete* gates (Louizos, Welling & Kingma 2018,
# [arXiv:1712.01312](https://arxiv.org/abs/1712.01312)) have a well-known surrogate of L0. With
# logistic noise $\varepsilon$, a temperature $\beta$ and a stretch from $\gamma < 0$ to
# $\zeta > 1$,
#
# $$\begin{aligned}
# t &= \operatorname{sigmoid}\bigl((\varphi + \varepsilon)/\beta\bigr), \\
# z &= \operatorname{clip}\bigl(t\,(\zeta - \gamma) + \gamma,\, 0,\, 1\bigr), \\
# P(z \ne 0) &= \operatorname{sigmoid}\bigl(\varphi - \beta \log(-\gamma/\zeta)\bigr).
# \end{aligned}$$
#
# In the terms of [tutorial 4](04_gates.py) this is another transform of the random vector
# $X = \varphi + \varepsilon$, with exact zeros and ones outside of a transition. How wide is this
# transition?

# %%
wide = md.HardConcrete(1, rng=rng, dtype=np.float64)
edge = wide.beta * math.log(wide.zeta / -wide.gamma)
for x, expected_value in ((-edge - 1e-6, 0), (edge + 1e-6, 1)):
    assert wide.transform().compute(np.array([x]))[0] == expected_value
deviation = math.pi / math.sqrt(3)  # of logistic noise
print(f"transition: {-edge:.2f} to {edge:.2f}, noise of standard deviation {deviation:.2f}")
edge = edge / wide.beta
print(f"in evaluation, where beta is 1: {-edge:.2f} to {edge:.2f}")
print("phi = 0:      open: measured (formula)   strictly between 0 and 1")
for name, one in (
    ("hard concrete", md.HardConcrete(1, initial=0.0, rng=rng, dtype=np.float64)),
    ("ours", md.Gate(1, initial=0.0, noise="normal", rng=rng, dtype=np.float64)),
):
    values = one.values(samples=draws).data
    p = one.open_probability().item()
    between = ((values > 0) & (values < 1)).mean()
    print(f"{name:14}    {(values > 0).mean():.3f} ({p:.3f})           {between:.3f}")
    assert abs((values > 0).mean() - p) < 5 * math.sqrt(p * (1 - p) / draws)
    assert (between > 0.6) == (name == "hard concrete")

# %% [markdown]
# So the bound of fact 2 applies to hard concrete gates, and fact 3 holds. We use the settings of
# their paper: $\beta = 2/3$, $\gamma = -0.1$, $\zeta = 1.1$, and $\beta = 1$ in evaluation. With
# these a hard concrete gate is less binary than our gate with normal noise and $w = \sigma = 1$, as
# its transition is wider in units of the noise. The larger difference is that hard concrete gates
# are always stochastic in training. What does noise change?
#
# ## Deterministic against stochastic
#
# We train the same network, with the same cost and $\lambda$, with three kinds of gates. (They
# start at different $\varphi$ and move at different speeds, so the same $\lambda$ prunes them to
# different sizes. Compare how they move, not how small the networks become.)


# %%
def partly(model):
    """Return which share of the gates that are open in evaluation is not fully open."""
    z = np.concatenate([gate.evaluated() for gate in md.gates_of(model).values()])
    return (z[z > 0] < 1).mean()


kept = {"deterministic": (deterministic, logs["balanced"])}
for name, settings in (
    ("stochastic", {"noise": "normal", "sigma": 0.5}),
    ("hard concrete", {"kind": md.HardConcrete}),
):
    model = build(**settings)
    kept[name] = model, train(model, md.Surrogate(model, shape, cost="balanced"), 10)
for name, (model, _) in kept.items():
    describe(name, model)
    print(f"{'':20} partly open: {100 * partly(model):.0f} % of the open gates")
assert partly(deterministic) > partly(kept["stochastic"][0]) + 0.3

# %% tags=["hide-input"] mystnb={"image": {"alt": "Three panels: phi of the 24 filters of the second convolution over training steps. Deterministic: all fall together to the transition, where some go through and close and the others stay inside it. Stochastic and hard concrete: some rise and the others fall far below the transition.", "width": "100%"}, "figure": {"caption": "The 24 gates of the second convolution. Grey: the transition, as in evaluation. Deterministic gates move down to it; there the data holds some, and the others close. Noise drives gates out of the transition on both sides."}}
figure, panels = plt.subplots(1, 3, figsize=(8, 3.2), layout="constrained")
for axes, (name, (_, log)) in zip(panels, kept.items(), strict=True):
    axes.plot(np.array([phi for _, _, phi in log]), linewidth=0.8, color=BLUE, alpha=0.7)
    half = 0.5 if name != "hard concrete" else math.log(11)
    axes.axhspan(-half, half, color="#dddddd", zorder=0)
    axes.set(title=name, xlabel="step")
panels[0].set_ylabel(r"$\varphi$")
plt.show()

# %% [markdown]
# **Deterministic** gates are fully open at first, so the data loss gives them no gradient, and only
# the penalty moves them. Adam takes steps of one size, so all gates move down together. In the
# transition the data loss has a gradient too. It holds the gates of groups that the network needs.
# The other gates pass through the transition, close for good, and are skipped from then on. The
# trained network is the final network, but its open gates end partly open, where the penalty that
# pulls them down balances the decay that holds them.
#
# **Noise** gives each gate a gradient from the data early, since some draws leave the gate partly
# open. A gate in the transition varies most from draw to draw. This variation raises the loss, so
# gates end far from the transition, on either side (hard concrete gates less far, as their
# transition is wider). On the other hand, gradients are noisier, each step trains another network
# than the final one, and the surrogate is exact only for the networks in training.
#
# How far is the stand-in from the count? Here are both at the end of the deterministic run:

# %%
surrogate = md.Surrogate(deterministic, shape)().item()
counts = md.count(deterministic, shape)
left = sum(c.weights[0] for c in counts)
dense = sum(c.weights[1] for c in counts)
print(f"surrogate {surrogate:,.0f}, weights left {left:,}, of {dense:,}")

# %% [markdown]
# They differ, and only the count is a result. The surrogate is there for its gradient. Report
# {py:func}`minidiff.count`, which also leaves out groups that are open but that no later layer
# uses.
#
# ## Why lambda rises
#
# The cost of a group is known from the first step. Its worth to the data is not, as the network has
# learnt nothing yet. So a penalty at full strength from the start meets no resistance. We train
# with a ramp and without one, for two values of $\lambda$.

# %%
ramps = {}
for strength in (10, 100):
    for name, start, ramp in (("ramp", 0.1, 0.5), ("at once", 0.0, 0.0)):
        model = build()
        cost = md.Surrogate(model, shape, cost="balanced")
        log = train(model, cost, strength, start=start, ramp=ramp)
        ramps[strength, name] = describe(f"{name}, {strength}", model), log
    fewer = {name: ramps[strength, name][0]["fewer"][0] for name in ("ramp", "at once")}
    assert fewer["at once"] > fewer["ramp"]
assert ramps[100, "at once"][0]["error"] > ramps[100, "ramp"][0]["error"]

# %% tags=["hide-input"] mystnb={"image": {"alt": "Two panels over training steps for lambda 100. Left: the surrogate, as a share of its first value, on a log axis: without a ramp it collapses within the first steps; with one it falls later and less. Right: the training loss, smoothed: with a ramp it falls and stays low; without one it rises again when the network collapses and stays high.", "width": "100%"}, "figure": {"caption": "Lambda 100. Without a ramp the penalty closes nearly everything within the first steps, and the loss stays high."}}
figure, (left_axes, right_axes) = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
for name, colour in (("ramp", BLUE), ("at once", ORANGE)):
    loss, share, _ = zip(*ramps[100, name][1], strict=True)
    window = steps // 20
    left_axes.semilogy(np.maximum(share, 1e-4), color=colour)
    left_axes.annotate(
        name,
        (0.6 * steps, max(share[-1], 1e-4)),
        (0, 14 if name == "ramp" else 8),
        textcoords="offset points",
        color=colour,
    )
    right_axes.plot(np.convolve(loss, np.ones(window) / window, "valid"), color=colour)
left_axes.set(xlabel="step", ylabel="surrogate, of its first value")
right_axes.set(xlabel="step", ylabel="training loss, moving mean")
plt.show()

losses = {name: np.array([row[0] for row in ramps[100, name][1]]) for name in ("ramp", "at once")}
assert losses["at once"][-steps // 10 :].mean() > losses["ramp"][-steps // 10 :].mean()
assert ramps[100, "at once"][1][steps // 5][1] < 0.05  # of the surrogate's first value

# %% [markdown]
# At the larger $\lambda$ the network without a ramp is worse, or nothing is left of it: once all
# filters of a layer are closed, nothing can open them again. At the smaller $\lambda$ a network is
# left either way. Without the ramp it is smaller, as it would be with a larger $\lambda$; a single
# run shows no more than that. So the method works without a ramp, but the ramp makes a large
# $\lambda$ safe.
#
# ## Exercises
#
# **1.** Write `cauchy_open(phi, width, sigma)`: the probability that a stochastic gate with
# standard Cauchy noise is open.


# %%
def cauchy_open(phi, width, sigma):
    return 1.0  # yours


check("05.cauchy", cauchy_open)

# %% [markdown]
# **2.** The outputs of a recurrent layer of $n$ units are its own inputs: its $n \times n$ weights
# have the *same* $n$ gates at both ends. Write `expected_square(pi)`: the expected number of
# weights left. It is not $(\sum_i \pi_i)^2$.


# %%
def expected_square(pi):
    return np.sum(pi) ** 2  # yours


check("05.square", expected_square)

# %% [markdown]
# **3.** Where does the gate of the scale trap come to rest? Write `rests(strength, decay)`: the
# $\varphi$ in $-0.5 \dots 1.5$ that minimises the sum of data loss, decay and penalty, for
# $w = \sigma = 1$ and a deterministic gate that is open. (Search over a fine grid.) Compare its
# $g_1(\varphi)$ with the last $z$ of the path above.


# %%
def rests(strength, decay):
    return 1.5  # yours


check("05.rests", rests)

# %% [markdown]
# ## What next
#
# [Tutorial 6](06_groups.py) shows what else a gate may multiply, and
# [tutorial 7](07_compaction.py) what closing it saves.
#
# Solutions:


# %% tags=["hide-input"]
def cauchy_solution(phi, width, sigma):
    return 0.5 + np.arctan((phi + width / 2) / sigma) / np.pi


def square_solution(pi):
    pi = np.asarray(pi)
    return pi.sum() ** 2 - (pi**2).sum() + pi.sum()  # a weight from i to i has one gate


def rests_solution(strength, decay):
    phi = np.linspace(-0.499, 1.5, 20_000)
    pi = 0.5 + 0.5 * md.Tensor((phi + 0.5) / math.sqrt(2)).erf().data
    z = md.binary_gate(phi, 1.0)
    return phi[np.argmin(decay / (2 * (z**2 + decay)) + strength * pi)]


assert check("05.cauchy", cauchy_solution)
assert check("05.square", square_solution)
assert check("05.rests", rests_solution)
print(
    f"at rest: {md.binary_gate(rests_solution(0.05, 0.01)):.3f}, the path {paths[0.01][0][-1]:.3f}"
)
