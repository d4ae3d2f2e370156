# %% [markdown]
# # 5. From counting to a surrogate of L0
#
# A gate that may close needs a reason to. The reason is a price for everything that is open, the
# number of weights that are left, and this tutorial turns that count, which has no gradient, into
# one that gradient descent can follow.
#
# - **You will do**: compute an expected count by going through every state of a small network's
#   gates, prune a network by three prices, watch a gate and a weight play a trick on the price, and
#   close a network altogether by asking too early.
# - **You will learn**: what the surrogate computes exactly and where it is a stand-in, why a weight
#   has two ends, what weight decay and a ramp are for, and what noise changes.
# - **You need**: [tutorial 3](03_lenet5.py) and [tutorial 4](04_gates.py).

# %%
import itertools
import math

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
# L0 counts what is not zero. Of gates that is $\sum_i [z_i \ne 0]$, a step function of every
# $\varphi_i$: its slope is 0 or does not exist. The sum of the gates' values, $\sum_i z_i$, is no
# way out. It has a slope, but only in the transition, and gates begin fully open, outside of it:

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
# Add noise, and ask how often a gate is open. With $z = g_w(\varphi + \sigma\varepsilon)$ and $F$
# the distribution function of the (symmetric) noise,
#
# $$\begin{aligned}
# \pi &= P(z \ne 0) = P(\varphi + \sigma\varepsilon > -w/2) \\
# &= F\!\left(\frac{\varphi + w/2}{\sigma}\right).
# \end{aligned}$$
#
# That is smooth in $\varphi$, and it has a slope at an open gate. Its sum is an *expected* count.
# For a stochastic gate it is exact: we draw, and compare.

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
# For each noise the share of draws in which the gate is open, and below it $\pi$. A
# **deterministic** gate is not open with a probability: it is open or not. We charge it as if it
# had normal noise (of $\sigma = 1$, a setting) as long as it is open, and nothing once it has
# closed. So for deterministic gates $\pi$ is a *stand-in*, between 1/2 and 1 while the gate is
# open. A weight that is left, with $k$ gates on its way, is charged between $2^{-k}$ and 1, one that
# is gone nothing; so the sum lies between $2^{-k}$ and 1 times the true count
# ([the method](../method.md), Proposition 5), and its slope does not die where $g_w$ is flat.

# %% tags=["hide-input"] mystnb={"image": {"alt": "Over phi from -2.5 to 2.5: a grey step from 0 to 1 at -0.5, whether the gate is open; a green smooth step between -0.5 and 0.5, the gate's value; an orange S-shaped curve, the open probability, with measured dots on it; and in blue the stand-in for deterministic gates, equal to the orange curve above -0.5, where it jumps from 0.5 to 0.", "width": "90%"}, "figure": {"caption": "The count (grey) and the gate (green) are flat at an open gate. The open probability (orange; dots are measured) is not. What a deterministic gate is charged (blue, dashed) is the same, until it closes."}}
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
# Gates of filters and units do not gate weights one by one. A weight leads from a channel to a
# channel, and it is left only if *both* are: if the gates are independent, with probability
# $\pi^\text{in}_i\,\pi^\text{out}_o$. Summed over a layer with $K$ places in its kernel (25 for
# 5x5, 1 for a dense layer) that is
#
# $$\begin{aligned}
# &K \sum_{i,o} \pi^\text{in}_i\,\pi^\text{out}_o \\
# &\;=\; K \Bigl(\sum_i \pi^\text{in}_i\Bigr) \Bigl(\sum_o \pi^\text{out}_o\Bigr),
# \end{aligned}$$
#
# two sums and a product. We call it the *coupled* count. {py:func}`minidiff.expected_cost` walks
# through a network and adds it up. To see that it is right, take a network so small that all states
# of its gates can be gone through, $2^7$ of them, and count in each.


# %%
def gated(layer, count):
    gate = md.Gate(count, noise="normal", sigma=0.8, rng=rng, dtype=np.float64)
    gate.phi.data[:] = rng.uniform(-1, 1, count)
    return md.Gated(layer, outputs=gate)


tiny = nn.Sequential(
    conv1=gated(nn.Conv2d(1, 3, 3, rng=rng), 3),  # (1, 6, 6) -> (3, 4, 4): 16 places
    conv2=gated(nn.Conv2d(3, 2, 2, rng=rng), 2),  # -> (2, 3, 3): 9 places
    flatten=nn.Flatten(),
    dense=gated(nn.Linear(18, 2, rng=rng), 2),
)
tiny_gates = [layer.outputs for _, layer in tiny.children() if isinstance(layer, md.Gated)]
p = np.concatenate([gate.open_probability().data for gate in tiny_gates])

# %% [markdown]
# If $a$ filters of the first convolution, $b$ of the second and $c$ units are open, $9a$, $4ab$ and
# $9bc$ weights are left, and each is used at 16, 9 or 1 places. Their price may be 1, or their
# multiply-adds, or the cube root of these.


# %%
def weights_left(a, b, c):  # of each layer, if so many are open
    return np.array([9 * a, 4 * a * b, 9 * b * c])


price = {"weights": [1, 1, 1], "macs": [16, 9, 1], "balanced": np.cbrt([16, 9, 1])}
expected, law = dict.fromkeys(price, 0.0), {}
for state in itertools.product((0, 1), repeat=7):
    chance = np.prod(np.where(state, p, 1 - p))
    left = weights_left(sum(state[:3]), sum(state[3:5]), sum(state[5:]))
    law[left.sum()] = law.get(left.sum(), 0) + chance
    for cost in price:
        expected[cost] += chance * (left @ price[cost])
for cost, value in expected.items():
    ours = md.expected_cost(tiny, (1, 6, 6), cost=cost).item()
    print(f"{cost:9} all states: {value:.4f}   expected_cost: {ours:.4f}")
    assert math.isclose(ours, value, rel_tol=1e-6)

# %% [markdown]
# The surrogate is the mean of a whole distribution of counts, which training with stochastic gates
# draws from. Below are the exact one, from the enumeration, and 20,000 draws.

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
# Does the coupling matter? The obvious alternative lets each group pay for its own weights,
# whatever its neighbours do: $\sum_g n_g\,\pi_g$. We compare the two on a real network: two
# convolutions with 12 and 24 filters and a dense layer of 64 units, with gates on filters, on the
# dense layer's 384 inputs and on its units.

# %%
dataset = data(train=5000)
shape = (1, 28, 28)
pixels = (dataset.train.images / 255 - dataset.mean) / dataset.std
pixels = np.ascontiguousarray(pixels.transpose(1, 2, 3, 0), np.float32)  # batch last
labels = dataset.train.labels


def build(gate=md.Gate, **settings):
    draw = np.random.default_rng(0)
    settings = {"gate": gate, "rng": draw, **settings}
    dense = md.gate_units(nn.Linear(384, 64, rng=draw), **settings)
    return nn.Sequential(
        conv1=md.gate_filters(nn.Conv2d(1, 12, 5, rng=draw), **settings),
        pool1=nn.MaxPool2d(2, relu=True),
        conv2=md.gate_filters(nn.Conv2d(12, 24, 5, rng=draw), **settings),
        pool2=nn.MaxPool2d(2, relu=True),
        flatten=nn.Flatten(),
        dense1=md.gate_inputs(dense, **settings),
        relu=nn.ReLU(),
        dense2=nn.Linear(64, 10, rng=draw),
    )


def layers_of(model):
    return dict(model.children())


# %% [markdown]
# What goes with a group? We close one of each kind and count what has gone, at first and again when
# most of the network is closed.


# %%
def lost(model, gate):
    """The weights that go when the first open group of a gate is closed."""

    def left():
        return sum(layer.weights[0] for layer in md.count(model, shape))

    is_open, before = gate.is_open(), left()
    gate.set_open(is_open & (np.arange(gate.count) != is_open.argmax()))
    after = left()
    gate.set_open(is_open)
    return before - after


model = build()
layers = layers_of(model)
kinds = {
    "filter of conv1": (layers["conv1"].outputs, 25),
    "filter of conv2": (layers["conv2"].outputs, 12 * 25),
    "input of dense1": (layers["dense1"].inputs, 64),
    "unit of dense1": (layers["dense1"].outputs, 384),
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
# A filter of the first convolution has 25 weights of its own, but the next layer has 25 for it in
# each of its 24 filters. And while the network shrinks, everything becomes cheaper, since the other
# ends are gone. The coupled count knows both, by its derivative; the uncoupled one knows neither.
#
# Here is the training: SGD for the weights, Adam for $\varphi$, and the loss
#
# $$\text{cross-entropy} \;+\; \lambda\,\frac{R(\varphi)}{R(\varphi_0)},$$
#
# with $R$ the expected cost, $\varphi_0$ where gates begin, and $\lambda$ rising from 0 over a
# *ramp*. Gates learn between `start` and `stop` (shares of all steps), then they are *frozen*:
# $\varphi$ is not moved any more, and a stochastic gate has no noise. Adam (Kingma and Ba 2015)
# divides each slope by its usual size, so every $\varphi$ moves by about the step size, however
# small its slope. {py:class}`minidiff.Surrogate` is `expected_cost` as an object, to be called in
# each step.
#
# This $\lambda$ is the price of the whole network. [Tutorial 6](06_groups.py) keeps it; from
# [tutorial 7](07_compaction.py) on, and in `minidiff train`, $\lambda$ is the price of *one* weight
# in the loss summed over the $N$ training images: cross-entropy $+\, (\lambda/N)\, R$.

# %%
steps = 200 if SMALL else 1000


def train(model, cost, strength, *, start=0.1, ramp=0.3, stop=0.8):
    draw = np.random.default_rng(1)
    gates = [module for module in model.modules() if isinstance(module, md.Gate)]
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
        loss = md.ops.cross_entropy(model(pixels[..., pick]), labels[pick])
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
# And what is left in the end: open filters of `conv1` and of `conv2`, inputs of `dense1` in use and
# its units, as in `12-24-384-64`, with how many times fewer weights and multiply-adds (MACs) that
# is, and the error on validation images. Below it is the uncoupled sum.


# %%
def describe(name, model):
    counts = md.count(model, shape)
    weights = np.sum([layer.weights for layer in counts], axis=0)  # left, of how many
    macs = np.sum([layer.macs for layer in counts], axis=0)
    error = error_rate(model, dataset.validation, mean=dataset.mean, std=dataset.std)
    fewer = [whole / left if left else math.inf for left, whole in (weights, macs)]
    what = md.architecture(counts) if weights[0] else "nothing"
    print(f"{name:20} {what:14} {fewer[0]:6.1f}x {fewer[1]:7.1f}x {error:7.2f} %")
    return {"left": [c.outputs[0] for c in counts], "fewer": fewer, "error": error}


def uncoupled(model):
    layers = layers_of(model)
    own = [(layers["conv1"].outputs, 25), (layers["conv2"].outputs, 300)]
    own += [(layers["dense1"].inputs, 64), (layers["dense1"].outputs, 384)]
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

# %% tags=["hide-input"] mystnb={"image": {"alt": "Times fewer MACs over times fewer weights, on log axes, for several lambdas. The line of the coupled surrogate lies far above that of the uncoupled sum.", "width": "80%"}, "figure": {"caption": "The same network pruned by each sum, a point for each lambda: for as many weights the coupled one leaves far fewer multiply-adds."}}
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
# multiply-adds hang on these filters. So the uncoupled sum keeps them, and closes units of the
# dense layer instead, as their price never falls. It differs in two ways, in fact: it forgets a
# filter's weights in the next layer, and its prices never fall; this run does not tell the two
# apart. (One seed and a short training: errors of such runs differ by chance as much as these do.
# The shapes of the networks are another matter.)
#
# ## What a weight costs
#
# A weight of a dense layer is used once for an image, one of a convolution at every place. So a
# network stores and computes in different places, and one has to say which one wants to save.
# `cost="macs"` prices a weight by its multiply-adds, and `"balanced"`, a compromise of ours and the
# default of the recipe, by their cube root.

# %%
counts = md.count(build(), shape)
prices = {"weights": lambda n: 1, "macs": lambda n: n, "balanced": np.cbrt}
for cost, price_of in prices.items():
    parts = np.array([c.weights[1] * price_of(c.macs[1] / c.weights[1]) for c in counts])
    shares = dict(zip((c.name for c in counts), 100 * parts / parts.sum(), strict=True))
    print(f"{cost:9}", *(f" {name} {share:4.1f} %" for name, share in shares.items()))
    whole = md.expected_cost(build(initial=20.0), shape, cost=cost).item()
    assert math.isclose(whole, parts.sum(), rel_tol=1e-6)

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
# With all else equal, the price by MACs leaves fewer multiply-adds than the price by weights, but
# more weights: it keeps more units of the dense layer, where they cost it next to nothing.
#
# ## The scale trap
#
# A gate multiplies what it gates, so only the product counts, and $z\,v = (z/2)(2v)$: the data does
# not care how the product is shared out. The price does. It sees $\varphi$ and not $v$. Take one
# gate, one weight $v$, the data loss $\frac12 (zv - 1)^2$, the price $\lambda\,\pi(\varphi)$ and
# weight decay $\frac d2 v^2$. For a given $z$ the best weight is $v = z / (z^2 + d)$, and what it
# costs is
#
# $$\min_v\; \tfrac12 (zv - 1)^2 + \tfrac d2 v^2 \;=\; \frac{d}{2\,(z^2 + d)}.$$
#
# Without decay that is 0 for *every* $z > 0$. Nothing holds the gate, so the price alone decides,
# and it says down: the gate drifts, ever more slowly, the weight grows, the charge falls, and
# nothing is saved. The gate then says nothing about whether its weight is needed, and one large
# step closes it, for good. With decay a small gate needs a large weight, which costs.


# %%
def drift(decay, strength=0.05, steps=3000):
    gate = md.Gate(1, dtype=np.float64)
    weight = nn.Parameter(np.array([1.0]))
    sgd = md.optim.SGD([weight], lr=0.05, weight_decay=decay)
    adam = md.optim.Adam([gate.phi], lr=0.01)
    path = []
    for _ in range(steps):
        z, charge = gate(), gate.open_probability().sum()
        loss = 0.5 * ((z * weight - 1) ** 2).sum()
        path.append((z.item(), weight.item(), z.item() * weight.item(), charge.item()))
        sgd.zero_grad()
        adam.zero_grad()
        (loss + strength * charge).backward()
        sgd.step()
        adam.step()
    return np.array(path).T


paths = {decay: drift(decay) for decay in (0.0, 0.01)}
for decay, (z, weight, product, charge) in paths.items():
    print(
        f"decay {decay:4}: gate {z[-1]:.3f}, weight {weight[-1]:.3f}, "
        f"product {product[-1]:.3f}, charge {charge[0]:.3f} -> {charge[-1]:.3f}"
    )
z, weight, product, charge = paths[0.0]
assert (np.diff(z[::100]) <= 0).all()  # down,
assert (np.diff(weight[::100]) >= 0).all()  # up,
assert abs(product[500:] - 1).max() < 0.02  # and what they compute has hardly changed
assert abs(np.diff(paths[0.01][0][2000:])).max() < 1e-5  # with decay it comes to rest
assert abs(paths[0.01][2][500:] - 1).max() < 0.02

# %% tags=["hide-input"] mystnb={"image": {"alt": "Two panels over 3,000 steps: without weight decay the gate's value falls and the weight rises without end, while their product stays at 1. With decay both come to rest, the gate near 0.88.", "width": "100%"}, "figure": {"caption": "The same gate and weight, without and with weight decay. The product, which is all that the data sees, stays close to 1 in both."}}
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
# see. When the recipe of `minidiff train` freezes them, {py:func}`minidiff.binarize` multiplies
# what is left of $z$ into the weights, so that every gate is 0 or 1, and nothing that is computed
# changes.
#
# ## Hard concrete
#
# A well-known surrogate of L0 is that of Louizos, Welling & Kingma (2018,
# [arXiv:1712.01312](https://arxiv.org/abs/1712.01312)): *hard concrete* gates. With logistic noise
# $\varepsilon$, a temperature $\beta$ and a stretch from $\gamma < 0$ to $\zeta > 1$,
#
# $$\begin{aligned}
# t &= \operatorname{sigmoid}\bigl((\varphi + \varepsilon)/\beta\bigr), \\
# z &= \operatorname{clip}\bigl(t\,(\zeta - \gamma) + \gamma,\, 0,\, 1\bigr), \\
# P(z \ne 0) &= \operatorname{sigmoid}\bigl(\varphi - \beta \log(-\gamma/\zeta)\bigr).
# \end{aligned}$$
#
# In the language of [tutorial 4](04_gates.py) that is another transform of the random vector
# $X = \varphi + \varepsilon$, with exact zeros and ones outside of a transition. Where does it
# begin?

# %%
wide = md.HardConcrete(1, rng=rng, dtype=np.float64)
edge = wide.beta * math.log(wide.zeta / -wide.gamma)
for x, expected_value in ((-edge - 1e-6, 0), (edge + 1e-6, 1)):
    assert wide.transform().forward(np.array([x]))[0] == expected_value
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
# So fact 2 bounds it, too, and fact 3 holds. With the settings of its paper ($\beta = 2/3$,
# $\gamma = -0.1$, $\zeta = 1.1$; in evaluation it leaves $\beta$ out) it is less binary than our
# gate with normal noise and $w = \sigma = 1$, as its transition is wider in units of the noise. The
# larger difference is that it is stochastic in training by design. What does noise change?
#
# ## Deterministic against stochastic
#
# The same network, cost and $\lambda$, with three kinds of gates. ($\lambda$ does not mean quite
# the same for all of them, as they start at different $\varphi$ and move at different speeds; so
# compare how they go, not how far.)


# %%
def partly(model):
    """Of the gates that are open in evaluation, the share that is not fully open."""
    gates = [module for module in model.modules() if isinstance(module, md.Gate)]
    z = np.concatenate([gate.evaluated() for gate in gates])
    return (z[z > 0] < 1).mean()


kept = {"deterministic": (deterministic, logs["balanced"])}
for name, settings in (
    ("stochastic", {"noise": "normal", "sigma": 0.5}),
    ("hard concrete", {"gate": md.HardConcrete}),
):
    model = build(**settings)
    kept[name] = model, train(model, md.Surrogate(model, shape, cost="balanced"), 10)
for name, (model, _) in kept.items():
    describe(name, model)
    print(f"{'':20} partly open: {100 * partly(model):.0f} % of the open gates")
assert partly(deterministic) > partly(kept["stochastic"][0]) + 0.3

# %% tags=["hide-input"] mystnb={"image": {"alt": "Three panels: phi of the 24 filters of the second convolution over training steps. Deterministic: all fall together to the transition, where some go through and close and the others stay inside it. Stochastic and hard concrete: some rise and the others fall far below the transition.", "width": "100%"}, "figure": {"caption": "The 24 gates of the second convolution. Grey: the transition, as in evaluation. Deterministic gates ride down to it and are held by the data, or not. Noise drives gates out of it on both sides."}}
figure, panels = plt.subplots(1, 3, figsize=(8, 3.2), layout="constrained")
for axes, (name, (_, log)) in zip(panels, kept.items(), strict=True):
    axes.plot(np.array([phi for _, _, phi in log]), linewidth=0.8, color=BLUE, alpha=0.7)
    half = 0.5 if name != "hard concrete" else math.log(11)
    axes.axhspan(-half, half, color="#dddddd", zorder=0)
    axes.set(title=name, xlabel="step")
panels[0].set_ylabel(r"$\varphi$")
plt.show()

# %% [markdown]
# **Deterministic** gates are fully open at first, so the data does not see them, and the price
# alone moves them: Adam takes steps of one size, and all ride down together. In the transition the
# data gets a say. What it needs, it holds there; the rest goes through, closes for good, and is
# skipped from that step on. The network that is trained is the one that is kept, but its open gates
# end partly open, where the price that pulls them down and the decay that holds them balance.
# **Noise** shows each gate to the data early, since some draws leave it partly open; and a gate in
# between varies most from draw to draw, which the loss punishes, so gates end far on either side
# (those of hard concrete less so, with their wider transition). In return gradients are noisier,
# each step trains another network than the one that is kept, and the surrogate is exact only for
# the former.
#
# How far is the stand-in from the count? At the end of the deterministic run:

# %%
surrogate = md.Surrogate(deterministic, shape)().item()
counts = md.count(deterministic, shape)
left = sum(c.weights[0] for c in counts)
dense = sum(c.weights[1] for c in counts)
print(f"surrogate {surrogate:,.0f}, weights left {left:,}, of {dense:,}")

# %% [markdown]
# They are not the same, and only one is a result. A surrogate is for its gradient; what one reports
# is {py:func}`minidiff.count`, which also drops what is open but of no use to any later layer.
#
# ## Why lambda rises
#
# The price of a group is known from the first step. What it is worth to the data is not, as the
# network has learnt nothing yet. At full strength from the start the price finds no resistance. We
# run both, for two values of $\lambda$.

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

# %% tags=["hide-input"] mystnb={"image": {"alt": "Two panels over training steps for lambda 100. Left: the surrogate, as a share of its first value, on a log axis: without a ramp it collapses within the first steps; with one it falls later and less. Right: the training loss, smoothed: with a ramp it falls and stays low; without one it rises again when the network collapses and stays high.", "width": "100%"}, "figure": {"caption": "Lambda 100. Without a ramp the price closes nearly everything within the first steps, and the loss stays high."}}
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
# At the larger $\lambda$ the network without a ramp is worse, or there is none left: once all
# filters of a layer are closed, nothing can open them again. At the smaller one there is a network
# either way; without the ramp it comes out smaller, as it would with a larger $\lambda$, and a
# single run says no more than that. So the ramp is not what makes the method work. It is what makes
# it safe to ask for much.
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
# **2.** A layer of $n$ units leads to itself (a recurrent layer): its $n \times n$ weights have the
# *same* $n$ gates at both ends. Write `expected_square(pi)`: the expected number of weights left.
# It is not $(\sum_i \pi_i)^2$.


# %%
def expected_square(pi):
    return np.sum(pi) ** 2  # yours


check("05.square", expected_square)

# %% [markdown]
# **3.** Where does the gate of the scale trap come to rest? Write `rests(strength, decay)`: the
# $\varphi$ in $-0.5 \dots 1.5$ that minimises data loss, decay and price together, for
# $w = \sigma = 1$. (For a deterministic gate that is open; a search over a fine grid will do.)
# Compare $g_1$ of it with $z$ of the path above.


# %%
def rests(strength, decay):
    return 1.5  # yours


check("05.rests", rests)

# %% [markdown]
# ## What next
#
# [Tutorial 6](06_groups.py): what else a gate may stand on, and [tutorial 7](07_compaction.py):
# what closing it saves.
#
# Solutions:


# %% tags=["hide-input"]
def cauchy_solution(phi, width, sigma):
    return 0.5 + np.arctan((phi + width / 2) / sigma) / np.pi


def square_solution(pi):
    pi = np.asarray(pi)
    return pi.sum() ** 2 - (pi**2).sum() + pi.sum()  # of a weight from i to i one gate decides


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
