# %% [markdown]
# # 9. Prune a network of your own
#
# This tutorial takes another network and other data from the first line to an exported file. A bar
# of eight photocells reads digits. We ask which cells it can do without, and how small the network
# behind it may be. The sections are seven questions that decide whether pruning is useful. Ask them
# for your own network too.
#
# - **You will do**: build and gate a one-dimensional convolutional network, write its training
#   loop, choose lambda on validation data, and ship the smaller network.
# - **You will learn**: to choose groups and their cost by what should become smaller, to
#   distinguish a closed gate from a small one, and to make a fair comparison.
# - **You need**: tutorials [5](05_surrogate.py), [6](06_groups.py) and [7](07_compaction.py);
#   scikit-learn for its data, and the extra `onnx`.

# %%
import time
import warnings
from itertools import combinations, pairwise

import matplotlib.pyplot as plt
import numpy as np
import onnxruntime
from sklearn.datasets import load_digits
from sklearn.svm import SVC
from support import SMALL, check, scratch

import minidiff as md
from minidiff import functional as F
from minidiff import nn
from minidiff.engine.optim import SGD, Adam, ParameterGroup, cosine

# %% [markdown]
# ## The task
#
# scikit-learn comes with 1,797 handwritten digits of 8x8 pixels (the test set of Alpaydin and
# Kaynak, 1998, in the UCI repository). We read them like a bar of eight photocells when a sheet of
# paper passes under it: each *column* has the measurements of one cell at eight moments. So the
# network's input is a signal of eight channels, `(cell, 1, time)`. Each channel is a component that
# somebody has to buy, solder and calibrate.
#
# There are three splits. Every choice below is made on the validation digits. The test digits are
# used once, at the end.

# %%
digits = load_digits()
raw = np.float32(digits.images).transpose(0, 2, 1)[:, :, None]  # (N, cell, 1, time)
labels = digits.target.astype(np.int64)
SHAPE = raw.shape[1:]

order = np.random.default_rng(0).permutation(len(labels))
train, validation, test = np.split(order, [997, 1397])
mean, std = float(raw[train].mean()), float(raw[train].std())
inputs = np.ascontiguousarray(np.moveaxis((raw - mean) / std, 0, -1))  # (cell, 1, time, N)
print("inputs", inputs.shape, "split into", len(train), len(validation), len(test))

# %% tags=["hide-input"] mystnb={"image": {"alt": "Three digits, a 5, a 6 and a 9, as grey images of 8 by 8. The horizontal axis is the number of the cell, 0 to 7, the vertical axis is time. In all three, the outermost columns are white or nearly so.", "width": "90%"}, "figure": {"caption": "Three digits as the bar measures them: a column is a cell, a row is a moment."}}
figure, axes = plt.subplots(1, 3, figsize=(6.6, 2.4), layout="constrained")
for axis, n in zip(axes, (5, 6, 9), strict=True):
    axis.imshow(raw[n, :, 0].T, cmap="Greys")
    axis.set_xticks(range(8))
    axis.set_yticks([0, 7])
    axis.set_xlabel("cell")
axes[0].set_ylabel("moment")
plt.show()

# %% [markdown]
# ## 1. What should become smaller?
#
# If it is *memory*, of a file or of a small device, count weights. If it is *time* or energy, count
# multiply-adds (MACs). If it is *components*, inputs that need not be measured, count inputs. These
# are in different layers of a network, as {py:func}`minidiff.count` shows. (Its MACs include products
# with padding.)


# %%
def network(rng):
    conv1 = nn.Conv2d(8, 32, (1, 3), padding=(0, 1), rng=rng)  # along time
    conv2 = nn.Conv2d(32, 64, (1, 3), padding=(0, 1), rng=rng)
    return nn.Sequential(
        conv1=md.gate(conv1, "inputs", "outputs"),  # (32, 1, 8, N)
        relu1=nn.ReLU(),
        conv2=md.gate(conv2, "outputs"),
        pool=nn.MaxPool2d((1, 2), relu=True),  # (64, 1, 4, N)
        flatten=nn.Flatten(),  # (256, N)
        dense1=md.gate(nn.Linear(256, 64, rng=rng), "inputs", "outputs"),
        relu2=nn.ReLU(),
        dense2=nn.Linear(64, 10, rng=rng),  # (10, N)
    )


def size(model, what="weights"):
    return sum(getattr(layer, what)[0] for layer in md.count(model, SHAPE))


whole = network(np.random.default_rng(0))
for layer in md.count(whole, SHAPE):
    print(f"{layer.name:7} {layer.weights[0]:7,} weights {layer.macs[0]:7,} MACs")
print(f"in all  {size(whole):7,} weights {size(whole, 'macs'):7,} MACs")

# %% [markdown]
# ## 2. Which groups?
#
# | to save | gate | here |
# |---|---|---|
# | components | inputs of the first layer | cells |
# | time | filters, where the MACs are | of `conv1` and `conv2` |
# | memory | inputs and units of the largest layer | of `dense1` |
#
# All of these groups are slices, which kernels skip and compaction removes. Gates on single weights
# would save time only in layers with few weights left ([what to gate](../groups.md)). The outputs
# of the last layer have no gates, as we want all ten classes. If several channels can only be
# removed together, a {py:class}`minidiff.Mask` gives them one gate: that is the first exercise.
#
# ## 3. What does a group cost?
#
# The cost of a group in the surrogate is the number of weights or MACs that closing it removes. How
# many weights does closing a cell remove?

# %%
dense_weights, dense_macs = size(whole), size(whole, "macs")
whole["conv1"].inputs.set_open(np.arange(8) != 0)
saved = dense_weights - size(whole)
print(f"closing a cell saves {saved} of {dense_weights:,} weights")
assert saved == 32 * 3

# %% [markdown]
# With so small a cost a cell would hardly ever close. To us a cell matters more than its weights,
# so we add a cost of our own. The surrogate is a differentiable number, and
# {py:meth}`minidiff.Gate.open_probability` gives the term that we add to it. For weights we take
# the cost `"balanced"`, as both memory and time matter here. A cell shall cost as much as 1,000
# weights of a dense layer.

# %%
CELL_COST = 1_000.0


def cost_of(model):
    surrogate = md.Surrogate(model, SHAPE, cost="balanced")
    cells = model["conv1"].inputs
    return lambda: surrogate() + CELL_COST * cells.open_probability().sum()


# %% [markdown]
# ## The loop
#
# One function trains with gates and without, by the loop of [tutorial 3](03_lenet5.py). SGD moves
# the weights and Adam moves the gates: the slope of a gate that is nearly open or nearly closed is
# tiny, and Adam divides each gradient by its usual size. For the first 15 % of the steps gates do
# not move, as a network that has learnt nothing cannot tell what it needs. Then the penalty rises to
# full strength.

# %%
PRUNE, FINE_TUNE = (12, 6) if SMALL else (36, 24)  # epochs
GATE_LR = 0.03 if SMALL else 0.01
START, RAMP, BATCH = 0.15, 0.3, 50


def answers(model, chosen):
    model.eval()
    with md.no_grad():
        logits = model(inputs[..., chosen]).data
    model.train()
    return logits  # (10, N)


def error(model, chosen):
    return 100 * float(np.mean(answers(model, chosen).argmax(axis=0) != labels[chosen]))


def learn(model, rng, epochs, *, penalty=None, gate_lr=GATE_LR):
    others, phis = md.split_parameters(model)
    weights = ParameterGroup([p for p in others if p.ndim > 1], lr=0.05, weight_decay=5e-4)
    biases = ParameterGroup([p for p in others if p.ndim == 1], lr=0.05)
    sgd = SGD([weights, biases], momentum=0.9, nesterov=True)
    adam = Adam(phis, lr=gate_lr) if penalty else None
    starts, step, records = range(0, len(train), BATCH), 0, []
    steps = epochs * len(starts)
    for _ in range(epochs):
        shuffled = rng.permutation(train)
        for start in starts:
            batch = shuffled[start : start + BATCH]
            weights.lr = biases.lr = 0.05 * cosine(step, steps, warmup=20)
            loss = F.cross_entropy(model(inputs[..., batch]), labels[batch])
            strength = min(1.0, (step / steps - START) / RAMP)
            prunes = penalty is not None and strength > 0
            if prunes:
                loss = loss + strength * penalty()
            optimizers = (sgd, adam) if prunes else (sgd,)
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
            step += 1
        values = {name: gate.evaluated() for name, gate in md.gates_of(model).items()}
        records.append((error(model, validation), values))
    return records


# %% [markdown]
# A pruning run has two phases. In the first phase gates learn. Then {py:func}`minidiff.fold_gates`
# multiplies the values of partly open gates into the weights and opens these gates fully. This
# changes no output, as asserted below. The gates are then frozen.
#
# The second phase fine-tunes the network that is left. The learning rate rises and falls once more,
# and momentum starts at 0, as `learn` makes a new optimiser. Lambda is divided by the number of
# training samples: it is the penalty of a weight of a dense layer, in nats of the loss summed over
# all training samples.


# %%
def prune(seed, lam, *, gate_lr=GATE_LR):
    rng = np.random.default_rng(seed)
    model = network(rng)
    cost = cost_of(model)

    def penalty():
        return (lam / len(train)) * cost()

    records = learn(model, rng, PRUNE, penalty=penalty, gate_lr=gate_lr)
    logits = answers(model, validation)
    md.fold_gates(model)
    assert np.allclose(answers(model, validation), logits, rtol=1e-3, atol=1e-3)
    for gate in md.gates_of(model).values():
        gate.frozen = True
    return model, records + learn(model, rng, FINE_TUNE)


model, records = prune(seed=0, lam=0.3)
print(f"{size(model):,} weights of {dense_weights:,}, validation error {records[-1][0]:.2f} %")
assert size(model) < dense_weights / 2

# %% tags=["hide-input"] mystnb={"image": {"alt": "Two panels over epochs. Above, a row of colour for each of the eight cells, dark where its gate is open. The rows of the outer cells turn white one after another; those of the middle cells fade to a pale tone until the gates are frozen and are dark again afterwards. Below, the validation error, which falls quickly, rises a little while gates close, and is small in the end.", "width": "100%"}, "figure": {"caption": "Above: the gates of the cells; white is exactly 0. Below: validation error. At the dotted line gates are folded into the weights."}}
cells = np.array([gates["conv1.inputs"] for _, gates in records]).T  # (cell, epoch)
figure = plt.figure(figsize=(6.6, 4.4), layout="constrained")
above, below = figure.subplots(2, 1, height_ratios=(2, 1), sharex=True)
epochs = np.arange(1, cells.shape[1] + 1)
shown = np.where(cells > 0, cells, np.nan)
image = above.pcolormesh(epochs, range(8), shown, cmap="cividis_r", vmin=0, vmax=1)
figure.colorbar(image, ax=above, label="gate z", pad=0.01)
above.set_yticks(range(8))
above.invert_yaxis()
above.set_ylabel("cell")
below.plot(epochs, [rate for rate, _ in records], color="#0072b2")
below.set_ylim(0, 10)
below.set_ylabel("error, %")
below.set_xlabel("epoch")
for axis in (above, below):
    axis.axvline(PRUNE + 0.5, color="#777777", linestyle=":")
plt.show()

# %% [markdown]
# ## 4. Did gates really close?
#
# A gate is closed if z is 0, not if z is small: 0.001 times a weight of 100 is not 0, and removing
# all gates below a threshold changes the outputs. The gate transform reaches exact zeros, so no
# threshold is needed. Before folding, the gates of this run were:

# %%
z = np.concatenate([*records[PRUNE - 1][1].values()])
between = z[(z > 0) & (z < 1)]
print(f"{np.sum(z == 0)} are exactly 0, {np.sum(z == 1)} are 1, {len(between)} between")
print(f"the smallest between is {between.min():.4f}")
z = np.concatenate([*records[-1][1].values()])
print(f"afterwards {np.sum(z == 0)} are 0 and {np.sum(z == 1)} are 1")
assert set(np.unique(z)) == {0.0, 1.0}

# %% [markdown]
# Gates in between are still moving, or rest where penalty and loss balance. They count as open.
#
# ## 5. Are weights decayed?
#
# The loss depends only on the product of a gate and its weight. Without weight decay the penalty
# can lower z while the weight v grows in return. Then the product stays the same, and a small z
# does not mean that the weight is not needed. Here is one weight that is needed, with the loss
# $(z\,v - 1)^2$. With weight decay $d$, the best $v$ for a given $z$ leaves $d / (2 z^2 + d)$ of loss
# and decay. That gives the best $z$, at which the gate comes to rest.

# %%
grid = md.Gate(1_000)
grid.phi.data = np.linspace(-0.49, 0.5, 1_000)
for decay in (0.0, 5e-4, 0.02):
    gate, v = md.Gate(1), nn.Parameter([1.0])
    sgd, adam = SGD([v], lr=0.1, weight_decay=decay), Adam([gate.phi], lr=0.005)
    for _ in range(1_200):
        loss = ((gate() * v - 1.0) ** 2).sum() + 0.02 * gate.open_probability().sum()
        v.grad = gate.phi.grad = None
        loss.backward()
        for optimizer in (sgd, adam):
            optimizer.step()
    (value,) = gate().data
    total = decay / (2 * grid().data ** 2 + decay) + 0.02 * grid.open_probability().data
    rest = grid().data[total.argmin()]
    print(f"decay {decay:6}: z {value:.3f}  v {v.item():.3f}, the best z is {rest:.2f}")
    assert abs(value * v.item() - 1) < 0.02
    assert value < 0.8 if decay < 0.02 else abs(value - rest) < 0.01

# %% [markdown]
# With decay the gate comes to rest above 0: near 1 with a decay of 0.02, but near one half with the
# 5e-4 of `learn`, and only after many more steps. So even the gate of a needed group may rest far
# below 1, as those of the cells above do. `learn` decays weights, but not biases.
#
# ## 6. How strong?
#
# Write the rule down before you look at results. Ours is: choose the *smallest* network whose
# validation error, averaged over seeds, is at most one percentage point above the dense network's.
# The dense network is trained for as many epochs in all, with one cosine.

# %%
SEEDS = range(2 if SMALL else 5)
LAMBDAS = (0.1, 0.3, 1.0) if SMALL else (0.03, 0.1, 0.3, 1.0, 3.0)


def train_alone(model, seed, epochs=PRUNE + FINE_TUNE):
    learn(model, np.random.default_rng(seed), epochs)
    return model


def dense(seed):
    return train_alone(md.compact(network(np.random.default_rng(seed)), SHAPE), seed)


def mean_error(models, chosen=validation):
    return float(np.mean([error(model, chosen) for model in models]))


dense_models = [dense(seed) for seed in SEEDS]
runs = {lam: [prune(seed, lam)[0] for seed in SEEDS] for lam in LAMBDAS}
limit = mean_error(dense_models) + 1.0
allowed = [lam for lam in LAMBDAS if mean_error(runs[lam]) <= limit]
assert allowed, "no lambda keeps within the limit: try weaker ones, or do not prune"
best = max(allowed)  # the strongest leaves the smallest network
for lam, models in runs.items():
    left = [int(m["conv1"].inputs.is_open().sum()) for m in models]
    print(
        f"lambda {lam:4}: validation error {mean_error(models):5.2f} %, "
        f"{np.mean([size(m) for m in models]):6,.0f} weights, cells left {left}"
    )
print(f"dense {mean_error(dense_models):.2f} %, limit {limit:.2f} %: lambda {best}")
assert all(
    np.mean([size(m) for m in runs[a]]) > np.mean([size(m) for m in runs[b]])
    for a, b in pairwise(LAMBDAS)
)


# %% tags=["hide-input"] mystnb={"image": {"alt": "Validation error over the number of weights left, on a log axis, with a point and an error bar for each lambda and one for the dense network. The error is close to that of the dense network down to a tenth of the weights or so and rises steeply below. A dashed line marks the limit of one point above the dense network.", "width": "90%"}, "figure": {"caption": "Mean and standard deviation over seeds, on validation digits. At the left end too much is pruned."}}
def spread(models, chosen=validation):
    found = [error(model, chosen) for model in models]
    return np.mean(found), np.std(found, ddof=1)


figure, axes = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
for name, models in {**runs, "dense": dense_models}.items():
    x, (y, bar) = np.mean([size(m) for m in models]), spread(models)
    colour = {"dense": "#d55e00", best: "#009e73"}.get(name, "#0072b2")
    axes.errorbar(x, y, bar, fmt="o", capsize=3, color=colour)
    label = f"λ = {name}" if name == LAMBDAS[-1] else name
    axes.text(x, 0.6, label, ha="center", color=colour)
    if name == best:
        axes.text(x, 0.1, "chosen", ha="center", color=colour)
axes.axhline(limit, color="#777777", linestyle="--")
axes.text(35_000, limit, "limit ", ha="right", va="bottom", color="#555555")
axes.set_xscale("log")
ticks = [500, 1_000, 2_000, 5_000, 10_000, 20_000]
axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
axes.minorticks_off()
axes.set_xlim(350, 40_000)
axes.set_ylim(0)
axes.set_xlabel("weights left")
axes.set_ylabel("validation error, %")
plt.show()

# %% [markdown]
# ## Ship it
#
# We ship the network of seed 0, the first and not the best. {py:func}`minidiff.compact` makes it an
# ordinary network without gates, and {py:func}`minidiff.save` stores it. A
# {py:class}`minidiff.Predictor` predicts with it, and {py:func}`minidiff.export` writes it for
# other software. Both take raw measurements, of shape `(N, cell, 1, time)`, and normalise them.

# %%
gated = runs[best][0]
kept = gated["conv1"].inputs.is_open().nonzero()[0]
small = md.compact(gated, SHAPE)
for name, layer in zip(small.names, small.layers, strict=True):
    sizes = [parameter.shape for parameter in layer.parameters()]
    print(f"{name:13} {type(layer).__name__:9}", *sizes)
print(f"{dense_weights / size(small):.1f}x fewer weights", end=", ")
print(f"{dense_macs / size(small, 'macs'):.1f}x fewer MACs, cells", *kept)
assert 0 < len(kept) < 8
assert size(small) == size(gated) == sum(p.size for p in small.parameters() if p.ndim > 1)

# %%
directory = scratch()
md.save(directory / "small.safetensors", small, mean=mean, std=std)
predict = md.Predictor(md.load(directory / "small.safetensors"), SHAPE, mean=mean, std=std)
logits = predict(raw[validation])
assert np.allclose(logits, answers(gated, validation).T, rtol=1e-3, atol=1e-3)

blind = raw[validation].copy()
blind[:, np.setdiff1d(range(8), kept)] = np.nan  # cells that are not there
assert np.array_equal(predict(blind), logits)

md.export(directory / "small.onnx", gated, SHAPE, mean=mean, std=std)
session = onnxruntime.InferenceSession(directory / "small.onnx")
(theirs,) = session.run(None, {"images": raw[validation]})
assert np.allclose(theirs, logits, rtol=1e-3, atol=1e-3)

whole = md.Predictor(dense_models[0], SHAPE, mean=mean, std=std)
for name, run in (("dense", whole), ("small", predict)):
    run(raw[validation])
    begin = time.perf_counter()
    for _ in range(50):
        run(raw[validation])
    taken = (time.perf_counter() - begin) / 50
    print(f"{name}: {1e6 * taken / len(validation):.2f} µs a digit")
print((directory / "small.onnx").stat().st_size, "bytes of ONNX")

# %% [markdown]
# The first layer is a `Select`. The cells that it leaves out need not be measured, as the test with
# `nan` shows. In a network as small as this one, time may fall less than MACs do, since the time of
# calls and copies remains.
#
# ## 7. Is the comparison fair?
#
# A pruned network may be nearly as good as a network of ten times its size. Perhaps the large
# network was just too large. So compare the pruned network with networks of its *own* size, trained
# alone from new weights. We train such networks in three ways: with the same cells for as many
# epochs, with the same cells for three times as many epochs, and with as many cells drawn at
# random. Liu et al. (2019, arXiv:1810.05270) found for several structured methods that training
# alone is as good. In that case pruning has found sizes, but its weights are not needed. We compare
# over several seeds, now on the test digits.


# %%
def alone(pruned, seed, *, any_cells=False, times=1):
    """Train a network of the size of a pruned one from new weights."""
    rng = np.random.default_rng(1_000 + seed)
    model = md.compact(pruned, SHAPE)
    for p in model.parameters():
        scale = np.sqrt(2 / np.prod(p.shape[1:])) if p.ndim > 1 else 0
        p.data = np.float32(scale * rng.standard_normal(p.shape))
    if any_cells:
        count = len(model["conv1_select"].indices)
        chosen = np.sort(rng.choice(8, count, replace=False))
        model["conv1_select"] = nn.Select(chosen, size=8)
    return train_alone(model, seed, times * (PRUNE + FINE_TUNE))


pruned = runs[best]
groups = {
    "dense, all cells": dense_models,
    "pruned": pruned,
    "alone, same cells": [alone(pruned[seed], seed) for seed in SEEDS],
    "alone, 3x the epochs": [alone(pruned[seed], seed, times=3) for seed in SEEDS],
    "alone, any cells": [alone(pruned[seed], seed, any_cells=True) for seed in SEEDS],
}
scores = {}
for name, models in groups.items():
    scores[name] = np.array([error(m, test) for m in models])
    rate, deviation = spread(models, test)
    print(f"{name:20} {rate:5.2f} ± {deviation:.2f} %", scores[name])
one = 100 * np.sqrt(0.02 * 0.98 / len(test))
print(f"2 % of {len(test)} digits: ± {one:.2f} % by the choice of digits alone")
assert scores["pruned"].mean() < scores["alone, any cells"].mean()
assert SMALL or scores["pruned"].mean() < scores["alone, same cells"].mean()

# %% tags=["hide-input"] mystnb={"image": {"alt": "Test errors as dots, one for each seed, in five rows: the dense network with all cells, the pruned one, networks of its size trained alone with the same cells for as many and for three times as many epochs, and one with cells drawn at random. The last row lies far to the right of the others.", "width": "90%"}, "figure": {"caption": "Test error, a dot for each seed and a bar for the mean. All rows but the first are of networks of the same size."}}
figure, axes = plt.subplots(figsize=(6.4, 2.6), layout="constrained")
colours = ("#777777", "#0072b2", "#009e73", "#009e73", "#d55e00")
for row, (values, colour) in enumerate(zip(scores.values(), colours, strict=True)):
    axes.plot(values, np.full(len(values), row), "o", color=colour, alpha=0.6)
    axes.plot([values.mean()] * 2, [row - 0.3, row + 0.3], color=colour, linewidth=2)
axes.set_yticks(range(len(scores)), scores)
axes.invert_yaxis()
axes.set_xlim(left=0)
axes.set_xlabel("test error, %")
plt.show()

# %% [markdown]
# Read the rows from below. *Which* cells are left matters: as many cells drawn at random do worse,
# as asserted. The weights matter too: at full settings the pruned networks are better than networks
# of their size trained alone for as many epochs, and three times the epochs make up for some or all
# of the difference. So pruning has found cells and sizes, without a search over subsets, and good
# weights besides. The distance to the first row is the error that pruning has added. (A single
# error is uncertain by the amount printed last. Differences between rows are less uncertain, as all
# rows classify the same digits.)
#
# There is another way to judge the cells. A support vector machine knows nothing of gates, and
# trains in milliseconds. So we train one for every set of as many cells, and rank our set among
# them.

# %%
rest = np.concatenate([validation, test])
found = []
for chosen in combinations(range(8), len(kept)):
    measured = raw[:, chosen].reshape(len(raw), -1)
    machine = SVC().fit(measured[train], labels[train])
    wrong = machine.predict(measured[rest]) != labels[rest]
    found.append((100 * float(wrong.mean()), chosen))
found.sort()
ours = [chosen for _, chosen in found].index(tuple(kept))
for name, rank in (("best", 0), ("ours", ours), ("median", len(found) // 2), ("worst", -1)):
    print(f"{name:6} {found[rank][0]:5.2f} %  cells", *found[rank][1])
print(f"ours is number {ours + 1} of {len(found)}")
assert ours < len(found) / 4

# %% [markdown]
# ## When it goes wrong
#
# Here are two failures on purpose: gates that are too slow, and a lambda that is far too large. phi
# starts at 1.5, and a gate of width 1 is closed below -0.5. A step of Adam moves phi by about the
# learning rate at most.

# %%
gate_steps = (1 - START) * PRUNE * -(-len(train) // BATCH)
for lam, gate_lr in ((0.3, 1e-4), (100.0, GATE_LR)):
    failed, history = prune(0, lam, gate_lr=gate_lr)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        md.compact(failed, SHAPE)
    print(f"lambda {lam}, gates' learning rate {gate_lr}: ", end="")
    print(f"{size(failed):,} weights, error {history[-1][0]:.0f} %")
    print(f"  phi can move by about {gate_steps * gate_lr:.2f}, and must move by 2 to close")
    for warning in caught:
        print("  warning:", str(warning.message).split(",")[0])
    assert size(failed) == (dense_weights if gate_lr == 1e-4 else 0)

# %% [markdown]
# | you see | look, and do |
# |---|---|
# | nothing closes, z is 1 | Compare steps times learning rate of the gates with `initial + width / 2`: take more steps, or a larger learning rate. Or phi is in no optimiser. |
# | nothing closes, z rests below 1 | The loss holds the gates: increase lambda. Is it divided by N once, not twice? |
# | one kind of group never closes | Count by `md.count` what closing one saves. If it is little, take another cost, or add one of your own. |
# | `ValueError` from `md.Surrogate` | Closing some gate saves nothing that the cost counts: take `cost="groups"`, or gate something else. |
# | everything closes, `md.compact` warns | When? Before anything is learnt: start later, with a longer ramp. After: decrease lambda. |
# | one layer is emptied first | Look at the cost of its groups: `"weights"` penalises dense layers most, `"macs"` convolutions, `"balanced"` lies between. |
# | z drifts down, weights grow | There is no weight decay: take 1e-4 to 1e-3. |
# | the error jumps at the freeze | Compare logits before and after `md.fold_gates`. If they are equal, the learning rate has restarted, and the error will fall again. If not, gates were stochastic, and have lost their noise. |
# | the error jumps and stays high | Fine-tuning is too short, or momentum was not reset after `md.fold_gates`. |
# | smaller, but not faster | Look at the shapes of `md.compact(model, shape)`. Zeros inside matrices save no time: gate filters and units. Or the time is not spent on arithmetic. |
# | other groups with another seed | Compare errors over seeds. If they are alike, the groups can replace each other. Report several seeds. |
#
# More in [troubleshooting](../howto/troubleshooting.md).
#
# ## Exercises
#
# **1.** The cells come in pairs, two on a chip: 0 and 1, 2 and 3, and so on. Only a whole chip can
# be left out. Write `chips()`, which returns a {py:class}`minidiff.Mask` with one gate for each of
# the four chips. (It is for another network: the code of this page needs gates on single cells.)


# %%
def chips():
    return None  # yours


check("09.chips", chips)

# %% [markdown]
# **2.** Outer cells are hard to mount and cost more. Write `cost(gate, costs)`, for an array with
# one cost for each cell: the expected cost of the cells left, a Tensor of shape (), differentiable
# in `gate.phi`.


# %%
def cost(gate, costs):
    return None  # yours


check("09.cost", cost)

# %% [markdown]
# **3.** Write `closed(model)`: how many gates of a model are closed in evaluation. What is wrong
# with this version?


# %%
def closed(model):
    return sum(int(np.sum(gate.evaluated() < 0.01)) for gate in md.gates_of(model).values())


check("09.closed", closed)

# %% [markdown]
# ## What next
#
# This is the last tutorial. [What to gate](../groups.md) lists all kinds of groups, [the
# method](../method.md) has the proofs, and [the results](../results/index.md) show how small
# networks for MNIST become.
#
# Solutions:


# %% tags=["hide-input"]
def chips_solution():
    labels_of_cells = (np.arange(8) // 2).reshape(8, 1, 1)
    return md.Mask(md.Gate(4), md.Groups.by(labels_of_cells))


def cost_solution(gate, costs):
    return (gate.open_probability() * costs).sum()


def closed_solution(model):
    return sum(int(np.sum(gate.evaluated() == 0)) for gate in md.gates_of(model).values())


assert check("09.chips", chips_solution)
assert check("09.cost", cost_solution)
assert check("09.closed", closed_solution)
