# %% [markdown]
# # 6. Groups: what a gate opens and closes
#
# A gate is one number. It may multiply a weight, a block, a filter, a unit, an input or an
# activation. This choice decides what pruning saves: three networks below have about the same
# number of weights left, but differ widely in the work that is left.
#
# - **You will do**: lay gates out over arrays, share and combine them, prune a network under three
#   groupings, and measure what each grouping saves.
# - **You will learn**: that a partition is an array of labels, why kernels can skip whole slices
#   but not single zeros, and which cost goes with which grouping.
# - **You need**: [tutorial 4](04_gates.py) and [tutorial 5](05_surrogate.py).

# %%
import time

import matplotlib.pyplot as plt
import numpy as np
from support import SMALL, check, data, scratch

import minidiff as md
from minidiff import functional as F
from minidiff import nn
from minidiff.data.batches import batches
from minidiff.engine.optim import SGD, Adam, ParameterGroup, cosine
from minidiff.training.trainer import error_rate

rng = np.random.default_rng(0)

# %% [markdown]
# ## A partition is an array of labels
#
# Let $v$ be any array, and let $\ell(e)$ be the group of its element $e$. A gate $z_g$ for each
# group $g$ multiplies the elements of the group, and the chain rule sums over these elements:
#
# $$
# \begin{aligned}
# \tilde v_e &= v_e\, z_{\ell(e)} \\
# \frac{\partial L}{\partial z_g} &= \sum_{e:\, \ell(e) = g} v_e\, \frac{\partial L}{\partial \tilde v_e}
# \end{aligned}
# $$
#
# These formulas need only the labels. So {py:class}`minidiff.Groups` holds the labels, 0 to
# count - 1, and nothing else. An axis of length 1 stands for all positions along it.

# %%
shape = (8, 12)  # of the weight of a dense layer: 8 units, 12 inputs
rows, columns = np.indices(shape)
dense_groups = {
    "units": md.Groups.along(shape, 0),
    "inputs": md.Groups.along(shape, 1),
    "4x4 blocks": md.Groups.blocks(shape, (4, 4)),
    "by (o + i) % 4": md.Groups.by((rows + columns) % 4),
}
shape = (4, 3, 3, 3)  # of a convolution: 4 filters of 3 channels, kernels of 3x3
ring = np.maximum(*np.abs(np.indices((3, 3)) - 1))  # 0 in the middle, 1 around it
conv_groups = {
    "filters": md.Groups.along(shape, 0),
    "kernels": md.Groups.along(shape, (0, 1)),
    "positions": md.Groups.along(shape, (2, 3)),
    "rings": md.Groups.by(ring[None, None]),
}
for name, groups in (dense_groups | conv_groups).items():
    print(f"{name:15} {groups.count:3} groups, labels of shape {groups.labels.shape}")

# %% tags=["hide-input"] mystnb={"image": {"alt": "Eight coloured grids. A weight of 8 units by 12 inputs is divided into rows, columns, six 4 by 4 blocks, and diagonal stripes. A weight of 4 filters by 3 channels of 3 by 3 kernels is divided into filters, single kernels, the nine positions of a kernel, and the middle of each kernel against its rim.", "width": "100%"}, "figure": {"caption": "Eight arrays of labels, a colour for each group. Top: a dense weight, units by inputs. Bottom: a convolution's weight, filters by channels, each cell a kernel of 3x3."}}
figure, axes = plt.subplots(2, 4, figsize=(7.2, 4.2), layout="constrained")
for row, (named, shape) in zip(
    axes, ((dense_groups, (8, 12)), (conv_groups, (4, 3, 3, 3))), strict=True
):
    for axis, (name, groups) in zip(row, named.items(), strict=True):
        picture = np.broadcast_to(groups.labels, shape)
        if picture.ndim == 4:  # kernels side by side
            picture = picture.transpose(0, 2, 1, 3).reshape(12, 9)
            axis.hlines(np.arange(3, 12, 3) - 0.5, -0.5, 8.5, color="white", linewidth=3)
            axis.vlines(np.arange(3, 9, 3) - 0.5, -0.5, 11.5, color="white", linewidth=3)
        colours = picture * 0.618 % 1 if groups.count > 2 else picture * 0.6 + 0.15
        axis.imshow(colours, cmap="cividis", vmin=0, vmax=1)
        axis.set_xticks(np.arange(-0.5, picture.shape[1]), minor=True)
        axis.set_yticks(np.arange(-0.5, picture.shape[0]), minor=True)
        axis.grid(which="minor", color="white", linewidth=0.5)
        axis.tick_params(which="both", length=0)
        axis.set(xticks=[], yticks=[])
        axis.set_xlabel(f"{name}: {groups.count}", fontsize=13)
plt.show()

# %% [markdown]
# A {py:class}`minidiff.Mask` joins a gate and a partition, and its method `scale` multiplies a
# weight by the gate's values. In NumPy the product is `weight * z[labels]`, and the gradient of $z$
# is a sum over each group, `np.bincount`. Both agree with minidiff:

# %%
groups = conv_groups["rings"]
gate = md.Gate(groups.count, dtype=np.float64)
gate.phi.data[:] = [0.8, -0.1]  # the middle fully open, the rim in transition
weight = md.Tensor(rng.standard_normal((4, 3, 3, 3)), requires_grad=True)
target = rng.standard_normal(weight.shape)

gated = md.Mask(gate, groups).scale(weight)
loss = ((gated - target) * (gated - target)).sum()
loss.backward()

z = gate().data
by_hand = weight.data * z[groups.labels]
upstream = 2 * (by_hand - target)  # dL/dw'
labels = np.broadcast_to(groups.labels, weight.shape)
grad_z = np.bincount(labels.ravel(), (weight.data * upstream).ravel())
t = gate.phi.data + 0.5  # the width is 1
grad_phi = grad_z * np.where((t > 0) & (t < 1), 6 * t * (1 - t), 0)

assert np.array_equal(gated.data, by_hand)
assert np.allclose(gate.phi.grad, grad_phi)
print("z", z, " dL/dz", grad_z.round(2), " dL/dphi", gate.phi.grad.round(2))

# %% [markdown]
# The middle is fully open, so its $\varphi$ gets no gradient from the data, as [tutorial
# 4](04_gates.py) showed: only the surrogate of [tutorial 5](05_surrogate.py) moves it back into
# the transition.
#
# ## Gates on a layer
#
# {py:func}`minidiff.gate` puts a new gate on a layer for each role that it is given, and returns a
# {py:class}`minidiff.Gated`. A gate on "outputs" multiplies whole filters or units *with their
# biases*, so a closed filter is 0 throughout. A gate on "inputs" multiplies the activations rather
# than the weight. Both are equal, as $(W\,\mathrm{diag}(z))\,x = W\,(z \odot x)$, and a closed
# input channel is then a slice of zeros in $x$, which the layer skips. A gate on "weights" has a
# group for each weight, or the groups that it is given.

# %%
conv, dense = nn.Conv2d(3, 8, 5, rng=rng), nn.Linear(64, 32, rng=rng)
blocks = md.Groups.blocks(dense.weight.shape, (4, 4))
for name, layer in {
    'md.gate(conv, "outputs")': md.gate(conv, "outputs"),
    'md.gate(conv, "inputs")': md.gate(conv, "inputs"),
    'md.gate(dense, "outputs")': md.gate(dense, "outputs"),
    'md.gate(dense, "weights", groups=blocks)': md.gate(dense, "weights", groups=blocks),
    'md.gate(dense, "weights")': md.gate(dense, "weights"),
}.items():
    [(role, gate)] = layer.gates()
    print(f"{name:41} {gate.count:5,} gates on its {role}")

# %% [markdown]
# ### Several gates on one tensor
#
# A layer may have several gates, which multiply: $w'_e = w_e \prod_k z^{(k)}_{\ell_k(e)}$. A weight
# is left only if all its gates are open. Here a convolution has gates on its filters and on the
# kernels in them. Then whole filters close early, which makes training cheaper, and the filters
# that stay lose some of their kernels.

# %%
kernels = md.Groups.along(conv.weight.shape, (0, 1))
layer = md.gate(conv, "outputs", "weights", groups=kernels)
for _, gate in layer.gates():
    gate.phi.data[:] = rng.uniform(-1, 1, gate.count)
z_filter = layer.outputs().data
z_kernel = layer.weights[0].gate().data.reshape(8, 3)  # in the order of the labels

x = rng.standard_normal((3, 12, 12, 4), dtype=np.float32)
product = conv.weight.data * (z_filter[:, None] * z_kernel)[:, :, None, None]
by_hand = F.conv2d(x, product, conv.bias.data * z_filter)
assert np.allclose(layer(x).data, by_hand.data, atol=1e-5)
print("filters open:", (z_filter > 0).sum(), "of 8")
print("kernels open:", (z_kernel > 0).sum(), "of 24")
print("kernels left:", (product != 0).any(axis=(2, 3)).sum())

# %% [markdown]
# ### One gate on several tensors
#
# The reverse works too: give one `Gate` to two layers, or put it into two masks. Below, one gate on
# each hidden unit multiplies both the output of the unit and the input of the next layer. Then a
# weight is left if *one* gate is open, not two. The surrogate must not multiply this probability
# with itself. So it multiplies over the distinct groups on the path of each weight. (Share only
# deterministic gates. A stochastic gate draws new noise at each use.)

# %%
first, second = nn.Linear(8, 16, rng=rng), nn.Linear(16, 4, rng=rng)
one, other = md.Gate(16, initial=0.0), md.Gate(16, initial=0.0)
hidden = md.Gated(first, outputs=one)
shared = nn.Sequential(hidden, nn.ReLU(), md.Gated(second, inputs=one))
apart = nn.Sequential(hidden, nn.ReLU(), md.Gated(second, inputs=other))

p = one.open_probability().data[0]
print(f"p = {p:.3f}, p^2 = {p * p:.3f}, all weights {8 * 16 + 16 * 4}")
for name, model, share in (("shared", shared, p), ("apart", apart, p * p)):
    expected = md.Surrogate(model, (8,))().item()
    print(f"{name:7} {expected:6.1f} expected weights")
    assert np.isclose(expected, share * (8 * 16 + 16 * 4), rtol=1e-5)

# %% [markdown]
# ## Gates on activations
#
# As a layer of its own, `md.Gate(channels)` multiplies channels or features, and `md.Mask(gate,
# groups)` multiplies any partition of the activations. A deterministic gate has one value for all
# samples. A stochastic gate draws new noise in each training step: once for the whole batch, or
# with `per_sample=True` once for each sample.

# %%
samples = 64
features = np.maximum(rng.standard_normal((6, samples), dtype=np.float32), 0)
per_batch = md.Gate(6, initial=0.0, noise="normal", sigma=0.5, rng=rng)
per_sample = md.Gate(6, initial=0.0, noise="normal", sigma=0.5, per_sample=True, rng=rng)

spread, drawn = {}, {}
for name, gate in (("per batch", per_batch), ("per sample", per_sample)):
    factors = gate(np.ones((6, samples), np.float32))
    grads = []
    for _ in range(300):
        gate.phi.grad = None
        (gate(features).sum() * (1 / samples)).backward()
        grads.append(gate.phi.grad)
    spread[name], drawn[name] = np.std(grads), len(np.unique(factors.data[0]))
    print(f"{name:11} {drawn[name]:3} values in {samples} samples, live rows {factors.live}")
    print(f"{'':11} gradient {np.mean(grads):.3f}, standard deviation {spread[name]:.3f}")

assert drawn["per batch"] == 1 < drawn["per sample"]
assert spread["per sample"] < spread["per batch"] / 2
per_batch.eval(), per_sample.eval()
assert np.array_equal(per_batch(features).data, per_sample(features).data)

# %% [markdown]
# Per sample, the noise averages out within the batch, so the gradient has the same mean and a much
# smaller spread. The drawback: a channel that is closed for one sample is open for another, so no
# channel can be skipped in training. (`live` lists the channels that are computed; None stands for
# all.) In evaluation, or once frozen, both kinds are the same deterministic gate.
#
# A mask over activations may have groups whose closing saves nothing. Rows of an image are an
# example: a closed row in front of a convolution removes no weight and no multiply-add (MAC). A
# surrogate that counts weights or MACs would never close such gates, so it refuses them.
# `cost="groups"` counts 1 for each group, whatever it gates.

# %%
image_rows = md.Mask(md.Gate(28), md.Groups.along((1, 28, 28), 1))
model = nn.Sequential(rows=image_rows, conv=nn.Conv2d(1, 4, 5, rng=rng))
try:
    md.Surrogate(model, (1, 28, 28), cost="macs")
except ValueError as error:
    print(error)
else:
    raise AssertionError("this should have been refused")
assert np.isclose(
    md.Surrogate(model, (1, 28, 28), cost="groups")().item(),
    image_rows.gate.open_probability().data.sum(),
)

# %% [markdown]
# ## The same weights, grouped in three ways
#
# What does the grouping change? We train a small LeNet and close groups until a tenth of its
# weights is left, under three groupings: *slices* (filters, inputs and units), *blocks* of 4x4, and
# single *weights*. Lambda rises from 0 step by step. Once a tenth is reached, we fold the values of
# partly open gates into the weights ({py:func}`minidiff.fold_gates`), freeze the gates, and
# fine-tune the network to the end.

# %%
SHAPE, BATCH = (1, 28, 28), 32 if SMALL else 64
STEPS = 400 if SMALL else 1500
dataset = data(train=3_000 if SMALL else 8_000)
settings = {"mean": dataset.mean, "std": dataset.std}


def build(grouping):
    rng = np.random.default_rng(0)

    def gated(layer, *roles):
        if grouping == "slices":
            return md.gate(layer, *roles)
        if grouping == "blocks":  # of 4 outputs by 4 inputs
            return md.gate(layer, "weights", groups=md.Groups.blocks(layer.weight.shape, (4, 4)))
        return md.gate(layer, "weights") if grouping == "weights" else layer

    return nn.Sequential(
        conv1=gated(nn.Conv2d(1, 16, 5, rng=rng), "outputs"),  # (16, 24, 24, N)
        pool1=nn.MaxPool2d(2, relu=True),
        conv2=gated(nn.Conv2d(16, 32, 5, rng=rng), "outputs"),  # (32, 8, 8, N)
        pool2=nn.MaxPool2d(2, relu=True),
        flatten=nn.Flatten(),
        dense1=gated(nn.Linear(512, 64, rng=rng), "inputs", "outputs"),  # (64, N)
        relu=nn.ReLU(),
        dense2=nn.Linear(64, 10, rng=rng),
    )


def left(model, what="weights"):
    return sum(getattr(layer, what)[0] for layer in md.count(model, SHAPE))


# %% [markdown]
# The surrogate is divided by its first value, so lambda is the penalty of the whole network in
# units of the loss, and means the same under each cost. It would rise to about 30, far more than
# you would choose otherwise. Here the aim is a given size, not the best compromise of size and
# error.

# %%
epochs = -(-STEPS * BATCH // len(dataset.train))
steps = epochs * -(-len(dataset.train) // BATCH)


def train(model, cost="weights", what="weights", most=0):
    """Close groups until at most so many weights, or MACs, are left; then fine-tune."""
    rng = np.random.default_rng(1)
    gates = list(md.gates_of(model).values())
    others, phis = md.split_parameters(model)
    weights = SGD([ParameterGroup(others, 0.05, 5e-4)], momentum=0.9, nesterov=True)
    gating = Adam(phis, lr=0.02 if SMALL else 0.01) if gates else None
    surrogate = md.Surrogate(model, SHAPE, cost=cost)
    whole, step, start = surrogate().item(), 0, steps // 10
    for _ in range(epochs):
        for x, y in batches(dataset.train, BATCH, **settings, rng=rng):
            weights.groups[0].lr = 0.05 * cosine(step, steps, warmup=20)
            loss = F.cross_entropy(model(x), y)
            learns = gates and not gates[0].frozen and step >= start
            if learns:
                loss = loss + 30 * (step - start) / steps / whole * surrogate()
                gating.zero_grad()
            weights.zero_grad()
            loss.backward()
            weights.step()
            if learns:
                gating.step()
                if left(model, what) <= most:
                    md.fold_gates(model)
                    weights.groups[0].reset()  # momentum belongs to weights of another scale
                    for gate in gates:
                        gate.frozen = True
            step += 1
    assert not gates or gates[0].frozen, "the count was not reached"
    return model


# %%
whole = left(build("dense"))
models = {"dense": train(build("dense"))}
for grouping in ("slices", "blocks", "weights"):
    models[grouping] = train(build(grouping), most=whole // 10)
models["slices, MACs"] = train(
    build("slices"), cost="macs", what="macs", most=left(models["slices"], "macs")
)
print(f"all weights: {whole:,}; a tenth: {whole // 10:,}")

# %% [markdown]
# The fourth pruned network has the groups of the first, but its surrogate counts MACs, and its
# gates are frozen when it has no more MACs than the first. We come back to it below.
#
# We measure the **compact** networks. {py:func}`minidiff.compact` cuts each network to the smallest
# arrays that hold all its weights ([tutorial 7](07_compaction.py)). A dense kernel computes with
# every number of such an array, zero or not. If at most two fifths of an array are not zero,
# compaction fixes its zeros, and sparse loops compute with the other numbers alone.

# %%
small = {name: md.compact(model, SHAPE) for name, model in models.items()}
images = dataset.validation.images[:1000]
predictors = {name: md.Predictor(model, SHAPE, **settings) for name, model in small.items()}
times = {name: [] for name in small}
for turn in range(25):  # in turns, so that a slow moment of the machine hits all alike
    for name, predict in predictors.items():
        began = time.perf_counter()
        predict(images)
        times[name] += [time.perf_counter() - began] if turn > 1 else []

results = {}
print(f"{'':13}  weights      box      MACs    file  time  error  compact")
for name, model in small.items():
    file = scratch() / "model.safetensors"
    md.export(file, model, SHAPE, **settings)
    results[name] = found = {
        "weights": left(model),
        "box": sum(p.size for p in model.parameters() if p.ndim > 1),
        "macs": left(model, "macs"),
        "bytes": file.stat().st_size,
        "ms": 1000 * float(np.median(times[name])),
        "error": error_rate(model, dataset.validation, **settings),
    }
    print(
        f"{name:13} {found['weights']:8,} {found['box']:8,} {found['macs']:9,} "
        f"{found['bytes']:7,} {found['ms']:5.1f} {found['error']:6.2f}  "
        f"{md.architecture(md.count(model, SHAPE))}"
    )

# %% [markdown]
# The columns are: weights that are not zero; the size of the smallest arrays that hold them; MACs
# for an image; bytes of the file; milliseconds for the images above through
# {py:class}`minidiff.Predictor`; validation error in %, of one seed each, so small differences mean
# nothing; and the sizes of the compact network.

# %%
groupings = ("slices", "blocks", "weights")
for grouping in groupings:
    assert 0.6 * whole / 10 <= results[grouping]["weights"] <= whole / 10
assert results["slices"]["weights"] == results["slices"]["box"]
for grouping in ("blocks", "weights"):
    assert results[grouping]["box"] > 1.25 * results[grouping]["weights"]
for grouping in groupings:
    assert results[grouping]["bytes"] < 0.3 * results["dense"]["bytes"]

# %% tags=["hide-input"] mystnb={"image": {"alt": "Two rows of three panels. Each panel shows the frame of a dense weight matrix and inside it, at the same scale, the smaller matrix that is left. Under slices the smaller matrix is small and entirely dark. Under blocks it is larger, with white gaps. Under single weights it is the largest, with scattered dark points.", "width": "100%"}, "figure": {"caption": "What is left of two layers, drawn to the scale of the dense layers (frames). The area of a box is the work of a dense kernel, and the ink in it that of sparse loops: about the same ink, in boxes of different size."}}
figure, axes = plt.subplots(2, 3, figsize=(7.5, 4), dpi=200, layout="constrained")
for row, name in zip(axes, ("conv2", "dense1"), strict=True):
    dense = dict(small["dense"].children())[name].weight.shape
    for axis, grouping in zip(row, groupings, strict=True):
        weight = dict(small[grouping].children())[name].weight.data
        ink = weight.reshape(len(weight), -1) != 0
        height, width = len(ink), ink.shape[1]
        box = {"extent": (0, width, height, 0), "aspect": "auto", "interpolation": "nearest"}
        axis.imshow(ink, cmap="Blues", vmin=-0.12, vmax=1.1, **box)
        axis.set(xlim=(0, np.prod(dense[1:])), ylim=(dense[0], 0), xticks=[], yticks=[])
        axis.set_xlabel(f"{name}: {height} of {dense[0]} rows", fontsize=10.5)
        axis.set_facecolor("#fafafa")
for axis, grouping in zip(axes[0], groupings, strict=True):
    axis.set_title(grouping, fontsize=13)
plt.show()

# %% [markdown]
# About as many weights are left in all three networks. But the work differs. A dense kernel runs
# over contiguous memory with vectors of many numbers, and uses each number that it loads for several
# outputs. It saves work by skipping a *slice*, a whole filter or channel. Sparse loops skip single
# weights, but load a number for each multiply-add, so they take about twice as long for each weight.
# And only slices make activations smaller, so only slices save work in pools and ReLU. Slices and
# blocks may close in different layers, as all three networks were pruned by the number of weights,
# so either may end with less work.
#
# Time follows the work, though not in proportion: pools and copies take time as well, and layers of
# different shapes run at different rates. Of all these numbers, only the times differ from run to
# run.

# %% tags=["hide-input"] mystnb={"image": {"alt": "Three rows of markers, for slices, blocks and single weights, on an axis of percent of the dense network. The markers for weights are at about ten percent in all rows. Those for MACs and for time lie further to the right.", "width": "90%"}, "figure": {"caption": "What is left, in percent of the dense network: the same weights, different work and time."}}
figure, axis = plt.subplots(figsize=(5.8, 2.9), layout="constrained")
series = (
    ("weights", "weights", "#0072b2", "o"),
    ("macs", "MACs", "#d55e00", "s"),
    ("ms", "time", "#009e73", "D"),
)
for y, grouping in enumerate(groupings):
    for (key, label, colour, marker), up in zip(series, (-0.22, 0, 0.22), strict=True):
        share = 100 * results[grouping][key] / results["dense"][key]
        axis.plot([0, share], [y + up] * 2, color=colour, linewidth=1.5)
        axis.plot(share, y + up, marker, color=colour)
        axis.annotate(
            f"{label} {share:.0f} %",
            (share, y + up),
            xytext=(7, 0),
            textcoords="offset points",
            color=colour,
            va="center",
        )
axis.set_yticks(range(3), groupings, fontsize=12)
axis.set_xlim(0, 125)
axis.set_ylim(2.5, -0.5)
axis.set_xlabel("% of the dense network")
axis.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# ## The cost that goes with a grouping
#
# The surrogate should count what you want to reduce:
#
# | `cost=` | cost of a weight | use it where |
# |---|---|---|
# | `"weights"` | 1 | size counts |
# | `"macs"` | its multiply-adds for an image | time counts, and groups are slices |
# | `"balanced"` | the cube root of its multiply-adds | both count; the recipe of `minidiff train` uses it |
# | `"groups"` | 0, but each group costs 1 | closing groups saves nothing that can be counted |
#
# A weight of `conv2` is used at 64 positions and a weight of `dense1` at one. So under `"macs"` the
# first costs 64 times as much as the second. Compare the two networks of slices above. The network
# pruned by MACs has no more MACs than the other, but more weights left, as weights of the dense
# layer cost next to nothing. Neither network is better; each is small in what its cost counts.

# %%
by_weights, by_macs = results["slices"], results["slices, MACs"]
for name in ("slices", "slices, MACs"):
    layers = md.count(small[name], SHAPE)
    each = "  ".join(f"{layer.name} {layer.weights[0]:,}" for layer in layers)
    print(f"{name:13} {results[name]['macs']:,} MACs;  weights of {each}")
assert by_macs["macs"] <= by_weights["macs"]
assert by_macs["weights"] > by_weights["weights"]

# %% [markdown]
# ## Exercises
#
# **1.** A partition of your own: a kernel position and its mirror image shall open and close
# together, so that the *pattern* of zeros is symmetric. Write `mirrored(size)`. It returns labels
# (or `md.Groups`) of shape (1, 1, size, size), under which a kernel position and its left-right
# mirror image form a group.


# %%
def mirrored(size):
    return np.arange(size * size).reshape(1, 1, size, size)  # yours


check("06.mirrored", mirrored)

# %% [markdown]
# **2.** What compaction can cut. The boolean array `kept`, of shape (O, I, KH, KW), says which
# weights of a convolution are not zero. Write `macs(kept, positions)`: the number of MACs of the
# smallest dense convolution of this kernel size that holds all these weights, with so many output
# positions. Biases are 0, and the layers before and after do not matter.


# %%
def macs(kept, positions):
    return int(kept.sum()) * positions  # yours


check("06.macs", macs)

# %% [markdown]
# **3.** Three gates on a weight. A dense layer has independent gates on its units, on its inputs
# and on blocks. They are open with probabilities `p_out` (O,), `p_in` (I,) and `p_block`, one for
# each block; `labels`, of shape (O, I), is the block of each weight. Write `expected(p_out, p_in,
# p_block, labels)`, the expected number of weights left, without a loop.


# %%
def expected(p_out, p_in, p_block, labels):
    return p_out.sum() * p_in.sum()  # yours


check("06.expected", expected)

# %% [markdown]
# ## What next
#
# [Tutorial 7](07_compaction.py) shows how closed slices are skipped during training, why skipping
# changes no result, and how to export the smaller network to other software. The page [What to
# gate](../groups.md) has all groupings in one table.
#
# Solutions:


# %% tags=["hide-input"]
def mirrored_solution(size):
    rows, columns = np.indices((size, size))
    nearest = np.minimum(columns, size - 1 - columns)
    return md.Groups.by((rows * size + nearest)[None, None])


def macs_solution(kept, positions):
    outputs, inputs = kept.any(axis=(1, 2, 3)).sum(), kept.any(axis=(0, 2, 3)).sum()
    return int(outputs * inputs) * kept.shape[2] * kept.shape[3] * positions


def expected_solution(p_out, p_in, p_block, labels):
    return p_out @ p_block[labels] @ p_in


assert check("06.mirrored", mirrored_solution)
assert check("06.macs", macs_solution)
assert check("06.expected", expected_solution)
