# %% [markdown]
# # 7. Conditional computation and compaction
#
# What a closed gate multiplies need not be computed, and in the end it need not exist. This
# tutorial shows that neither changes the loss or any gradient, and measures what both save; then
# it takes the smaller network out of minidiff and runs it elsewhere.
#
# - **You will do**: compute one training step in three ways and compare all gradients, measure a
#   step over the share of filters that are open, follow `md.compact` by hand, and run a pruned
#   network in onnxruntime and in NumPy alone.
# - **You will learn**: which property of the gate makes skipping exact, how the engine skips
#   without a word about gates, and what closed filters leave behind.
# - **You need**: [tutorial 4](04_gates.py) and [tutorial 6](06_groups.py); the extra `onnx` for a
#   part of the last section.

# %%
import copy
import time
from importlib.util import find_spec

import matplotlib.pyplot as plt
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from support import SMALL, check, data, scratch

import minidiff as md
from minidiff import nn, ops
from minidiff.engine.optim import SGD, ParameterGroup
from minidiff.training.config import Config
from minidiff.training.trainer import Trainer

rng = np.random.default_rng(0)

# %% [markdown]
# ## One step, three ways
#
# The network below has gates on filters, inputs and units. Many of them are closed, and the others
# are partly or fully open. It computes in float64, so that a difference of any kind would show.

# %%
real = {"dtype": np.float64}
conv1 = md.gate_filters(nn.Conv2d(1, 8, 3, rng=rng, **real), **real)
conv2 = md.gate_filters(nn.Conv2d(8, 12, 3, rng=rng, **real), **real)
dense1 = md.gate_units(nn.Linear(48, 20, rng=rng, **real), **real)
dense1 = md.gate_inputs(dense1, **real)
model = nn.Sequential(
    conv1=conv1,  # (8, 12, 12, N)
    pool1=nn.MaxPool2d(2, relu=True),
    conv2=conv2,  # (12, 4, 4, N)
    pool2=nn.MaxPool2d(2, relu=True),
    flatten=nn.Flatten(),
    dense1=dense1,  # (20, N)
    relu=nn.ReLU(),
    dense2=nn.Linear(20, 10, rng=rng, **real),
)
for layer in (conv1, conv2, dense1):
    layer.layer.bias.data[:] = rng.normal(0, 0.1, len(layer.layer.bias.data))
gates = {
    "conv1.outputs": conv1.outputs,
    "conv2.outputs": conv2.outputs,
    "dense1.inputs": dense1.inputs,
    "dense1.outputs": dense1.outputs,
}
for name, gate in gates.items():
    above = rng.random(gate.count) < 0.5
    gate.phi.data[:] = np.where(above, rng.uniform(-0.4, 0.9, gate.count), -0.8)
    print(f"{name:15} {gate.is_open().sum():2} of {gate.count} open")

x, labels = rng.standard_normal((1, 14, 14, 64)), rng.integers(0, 10, 64)

# %% [markdown]
# **Skipped** is what the engine does by itself. **Dense** is written out here: every weight is
# multiplied by its gate, zero or not, and every product is computed. The gates' values are leaves
# of the tape, so that their own gradients $\partial L / \partial z$ can be looked at.


# %%
def step(output):
    """Return loss and gradients of a training step."""
    for parameter in model.parameters():
        parameter.grad = None
    loss = ops.cross_entropy(output(), labels)
    loss.backward()
    named = model.named_parameters()
    return loss.item(), {name: p.grad for name, p in named if p.grad is not None}


def gated(layer, x, z):
    inner = layer.layer
    by_output = z.reshape(-1, *[1] * (inner.weight.ndim - 1))
    return inner.apply(x, inner.weight * by_output, inner.bias * z)


values = {name: gate().data.copy() for name, gate in gates.items()}
z = {name: md.Tensor(value, requires_grad=True) for name, value in values.items()}


def dense():
    h = ops.max_pool2d(gated(conv1, md.Tensor(x), z["conv1.outputs"]), 2, relu=True)
    h = ops.max_pool2d(gated(conv2, h, z["conv2.outputs"]), 2, relu=True)
    h = ops.flatten(h) * z["dense1.inputs"].reshape(-1, 1)
    h = ops.relu(gated(dense1, h, z["dense1.outputs"]))
    return model.layers[-1](h)


skipped_loss, skipped = step(lambda: model(x))
dense_loss, whole = step(dense)

assert np.array_equal(model(x).data, dense().data)  # every bit of every logit
assert skipped_loss == dense_loss
for name in whole:  # weights and biases
    assert np.array_equal(skipped[name], whole[name]), name
print(f"loss {dense_loss:.6f} both ways; {len(whole)} gradients, equal in each bit")

# %% [markdown]
# They agree bit by bit, since to add $w \cdot 0$ changes no sum, and a kernel here takes each sum
# in one order. (For batches of a few samples the engine sums along another axis, and they agree up
# to rounding.)
#
# That the closed filters were not merely multiplied by zero but never read can be shown with
# numbers that no product forgives.

# %%
spoilt = copy.deepcopy(model)
for name in ("conv1", "conv2", "dense1"):
    layer = dict(spoilt.children())[name]
    layer.layer.weight.data[~layer.outputs.is_open()] = np.nan
assert np.array_equal(spoilt(x).data, model(x).data)
assert np.isnan(spoilt.layers[0].layer.weight.data).any()
print("with NaN for all closed filters and units: the same logits")

# %% [markdown]
# ### Why no gradient is missing
#
# The gradients of the gates remain, $\partial L / \partial \varphi = g'(\varphi)\, \partial L /
# \partial z$. To have $\partial L / \partial z$ of a closed filter, one has to compute what the
# filter *would* have done, so it is exactly what skipping does not know. The dense step knows it:

# %%
for name, gate in gates.items():
    t, closed = gate.phi.data + 0.5, ~gate.is_open()  # the width is 1
    slope = np.where((t > 0) & (t < 1), 6 * t * (1 - t), 0)  # g'
    assert np.allclose(skipped[f"{name}.phi"], slope * z[name].grad, rtol=1e-10)
    assert not slope[closed].any()
    largest = np.abs(z[name].grad[closed]).max()
    print(f"{name:15} largest |dL/dz| where closed: {largest:.4f}")
assert z["dense1.inputs"].grad[~dense1.inputs.is_open()].any()

# %% [markdown]
# For the inputs it is not zero. (For filters and units it is, but only because a ReLU follows,
# whose derivative at exactly 0 is 0 by convention.) Yet it is always multiplied by $g' = 0$. So
# two facts together make skipping exact, here for a slice $v$ of weights or inputs, gated to $y =
# g(\varphi)\,v$:
#
# - $g = 0$: no output depends on $v$, and $\partial L / \partial v = g\, \partial L / \partial y =
#   0$.
# - $g' = 0$: $\partial L / \partial \varphi = g' \sum v\, \partial L / \partial y = 0$, whatever
#   $\partial L / \partial y$ is, so nobody needs it.
#
# A gate with exact zeros alone would not do. The straight-through estimator (Bengio et al. 2013,
# arXiv:1308.3432), say, has $g = 0$ and pretends that $g' = 1$: it needs each $\partial L /
# \partial z$, and with them all the work of the dense step. The price of $g' = 0$ is that a closed
# deterministic gate stays closed, as nothing pulls it open again.
#
# **Compact** is the third way. {py:func}`minidiff.compact` makes an ordinary network without
# gates, and what it has left gets the gradients of the gated one. Here gates are made binary
# first, so that there are no factors between the two.

# %%
md.binarize(model)
for gate in gates.values():
    gate.frozen = True
small = md.compact(model)
logits = small(x)
compact_loss = ops.cross_entropy(logits, labels)
compact_loss.backward()
loss, grads = step(lambda: model(x))

first, second = conv1.outputs.is_open(), conv2.outputs.is_open()
second &= dense1.inputs.is_open().reshape(12, 4).any(axis=1)  # and somebody reads it
parts = dict(small.children())
assert np.array_equal(logits.data, model(x).data)
assert compact_loss.item() == loss
assert np.array_equal(parts["conv1"].weight.grad, grads["conv1.layer.weight"][first])
assert np.array_equal(
    parts["conv2"].weight.grad, grads["conv2.layer.weight"][np.ix_(second, first)]
)
assert not grads["conv1.layer.weight"][~first].any()
for name, parameter in small.named_parameters():
    print(f"{name:14} {parameter.shape}")

# %% [markdown]
# Again every bit is the same. With partly open gates the logits would be equal up to rounding, but
# not the gradients: a weight of the compact network is $u = z v$, so $\partial L/\partial v = z\,
# \partial L/\partial u$. That is why gates were made binary first.
#
# ## How the engine skips
#
# No op of the engine knows what a gate is. A {py:class}`minidiff.Tensor` has a list `active`: the
# slices along axis 0 that are live. All others are constant zeros, and no gradient is owed to
# them. A gate's value has such a list, and the ops hand it on:

# %%
lenet = md.LeNet5(rng=np.random.default_rng(0))
lenet.layers[0].outputs.set_open(np.arange(20) < 5)
lenet.layers[2].outputs.set_open(np.arange(50) % 5 == 0)
h = md.Tensor(np.ones((1, 28, 28, 2), np.float32))
for name, layer in lenet.children():
    h = layer(h)
    live = "all" if h.active is None else f"{len(h.active)} of {len(h.data)}"
    print(f"{name:8} {h.shape!s:16} active: {live}")
    if name == "flatten":
        assert len(h.active) == 10 * 16  # 16 places of each open filter
assert h.active is None

# %% [markdown]
# A convolution reads two of them: that of its input says over which channels to sum, and that of
# its weight which outputs to compute. Kernels take these lists as index vectors and loop over
# them, so a network in which nothing is closed runs the same code. The slices left out are not
# even filled with zeros, until somebody looks.
#
# The optimiser takes part as well: the weights of a filter or unit that has closed for good stand
# still, not even weight decay moves them. (Those that read a closed input get no gradient either,
# but decay, which changes no output.)

# %%
before = lenet.layers[0].layer.weight.data.copy()
optimizer = SGD([ParameterGroup(lenet.parameters(), 0.1, weight_decay=0.1)])
images = rng.standard_normal((1, 28, 28, 8), dtype=np.float32)
ops.cross_entropy(lenet(images), rng.integers(0, 10, 8)).backward()
optimizer.step()
moved = (lenet.layers[0].layer.weight.data != before).any(axis=(1, 2, 3))
print("filters moved:", moved.nonzero()[0])
assert np.array_equal(moved.nonzero()[0], np.arange(5))

# %% [markdown]
# ### What it saves
#
# We close more and more of LeNet5 and measure a training step of 128 images: forward, backward,
# and SGD. For reference, a network that never had gates.

# %%
SHAPE = (1, 28, 28)
shares = (1.0, 0.8, 0.6, 0.4, 0.25, 0.1)
networks = {"dense": md.LeNet5(rng=np.random.default_rng(0), sparsity="dense")}
for share in shares:
    networks[share] = md.LeNet5(rng=np.random.default_rng(0))
    for module in networks[share].modules():
        if isinstance(module, md.Gate):
            module.set_open(np.arange(module.count) < round(share * module.count))
macs = {
    key: sum(layer.macs[0] for layer in md.count(network, SHAPE))
    for key, network in networks.items()
}
images = rng.standard_normal((*SHAPE, 128), dtype=np.float32)
digits = rng.integers(0, 10, 128)


def train_step(network, optimizer):
    began = time.perf_counter()
    loss = ops.cross_entropy(network(images), digits)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return 1000 * (time.perf_counter() - began)


optimizers = {key: SGD(net.parameters(), lr=1e-6) for key, net in networks.items()}
times = {key: [] for key in networks}
for turn in range(12 if SMALL else 40):  # in turns, so that a slow moment hits all alike
    for key, network in networks.items():
        milliseconds = train_step(network, optimizers[key])
        times[key] += [milliseconds] if turn > 1 else []
median = {key: float(np.median(values)) for key, values in times.items()}
for key in networks:
    name = "no gates" if key == "dense" else f"{key:.0%} open"
    print(f"{name:9} {macs[key]:9,} MACs an image  {median[key]:6.2f} ms a step")
assert macs[1.0] == macs["dense"] > macs[0.8] > macs[0.1]

# %% tags=["hide-input"] mystnb={"image": {"alt": "Time of a training step over multiply-adds, both in percent of the dense network. Points fall from the upper right, where all filters are open, to the lower left. A grey diagonal shows what a time in proportion to the work would be; the points lie close to it, mostly above.", "width": "85%"}, "figure": {"caption": "A training step while filters, inputs and units are closed. 100 % is the network without gates, and the grey line a time in proportion to the work."}}
figure, axis = plt.subplots(figsize=(5.8, 3.8), layout="constrained")
work = [100 * macs[share] / macs["dense"] for share in shares]
taken = [100 * median[share] / median["dense"] for share in shares]
axis.plot([0, 100], [0, 100], color="#999999", linewidth=1)
axis.plot(work, taken, "o-", color="#0072b2")
axis.plot(100, 100, "s", color="#d55e00")
offset = {"textcoords": "offset points"}
axis.annotate("no gates", (100, 100), xytext=(6, -12), color="#d55e00", **offset)
for share, right, up in zip(shares, work, taken, strict=True):
    last = share == shares[-1]  # whose label goes to the other side
    style = {"xytext": (9, -4) if last else (-6, 6), "ha": "left" if last else "right"}
    axis.annotate(f"{share:.0%} open", (right, up), color="#0072b2", **style, **offset)
axis.set(xlim=(-22, 118), ylim=(0, max(118, 1.15 * max(taken))), xticks=range(0, 101, 20))
axis.set_xlabel("multiply-adds, % of dense")
axis.set_ylabel("time of a step, % of dense")
axis.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# Gates that are fully open cost little: their values are computed, but what they gate is passed on
# as it is. As they close the step becomes shorter, but not in proportion: Python, the tape and the
# reading of the images remain. Work falls faster than the share of open filters, since a weight
# needs the gates of *both* its ends: half of the filters on each side leave a quarter of a layer.
#
# ## Compaction, step by step
#
# While training goes on, closed weights keep their memory. `md.compact` ends that in four passes:
# *fold, settle, keep, cut*. A small network shows all four. In `conv1` the weights of filter 1 are
# closed but its bias is not gated; `conv2` has filter 0 closed; nobody reads filter 3 of `conv2`,
# as all of its places are closed as inputs of `dense`.
#
# **Fold.** All gates are multiplied into weights. From there on zeros decide, not gates, so that
# every combination of gates is one case.


# %%
def example(padding):
    rng = np.random.default_rng(5)
    conv1 = nn.Conv2d(1, 4, 3, rng=rng, dtype=np.float64)
    conv1.bias.data[:] = [0.1, 0.3, -0.2, 0.2]
    conv1 = md.gate_weights(conv1, groups=md.Groups.along((4, 1, 3, 3), 0), **real)
    conv1.weights[0].gate.set_open(np.array([True, False, True, True]))

    conv2 = nn.Conv2d(4, 5, 3, padding=padding, rng=rng, dtype=np.float64)
    conv2 = md.gate_filters(conv2, **real)
    conv2.outputs.set_open(np.arange(5) != 0)

    places = (2 + 2 * padding) ** 2
    dense = md.gate_inputs(nn.Linear(5 * places, 3, rng=rng, dtype=np.float64), **real)
    filters, place = np.divmod(np.arange(5 * places), places)
    dense.inputs.set_open((filters != 3) & (place != 0))
    return nn.Sequential(
        conv1=conv1,  # (4, 4, 4, N) from (1, 6, 6, N)
        relu1=nn.ReLU(),
        conv2=conv2,  # (5, 2, 2, N), with padding (5, 4, 4, N)
        relu2=nn.ReLU(),
        flatten=nn.Flatten(),
        dense=dense,
    )


gated_network = example(padding=0)
compact_network = md.compact(gated_network)
for name, layer in compact_network.children():
    shapes = [parameter.shape for parameter in layer.parameters()]
    print(f"{name:13} {type(layer).__name__:8}", *shapes)
samples = rng.standard_normal((1, 6, 6, 16))
assert np.allclose(compact_network(samples).data, gated_network(samples).data, atol=1e-12)

# %% [markdown]
# **Settle.** Filter 1 of `conv1` has no weights left, so its output is its bias, 0.3, at every
# place and for any image. The ReLU leaves it as it is. A constant that `conv2` multiplies and sums
# is another constant, so it goes into the biases of `conv2`, and the filter leaves:

# %%
conv2 = dict(gated_network.children())["conv2"]
added = conv2.layer.weight.data[:, 1].sum(axis=(1, 2)) * max(0.3, 0)
by_hand = conv2.layer.bias.data + added
kept = [1, 2, 4]  # open, and read
print("bias before", conv2.layer.bias.data[kept], "after", by_hand[kept].round(4))
small_conv2 = dict(compact_network.children())["conv2"]
assert np.allclose(small_conv2.bias.data, by_hand[kept], rtol=1e-12)

# %% [markdown]
# Padding is the exception. With zeros around its input, `conv2` does not see a constant any more:
# at the edges some of its weights meet 0 in place of 0.3. What it makes of channel 1 differs from
# place to place, and no bias can say so.

# %% tags=["hide-input"] mystnb={"image": {"alt": "Two grids of numbers, what one filter makes of a constant channel. Without padding all numbers are equal. With padding the four in the middle equal those on the left, and those along the edges differ.", "width": "85%"}, "figure": {"caption": "What filter 1 of conv2 makes of a channel that is 0.3 everywhere. Without padding it is a constant; with it, only inside."}}
constant = np.full((1, 4, 4, 1), 0.3)
kernel = conv2.layer.weight.data[1:2, 1:2]
maps = {
    f"padding {padding}": ops.conv2d(constant, kernel, padding=padding).data[0, :, :, 0]
    for padding in (0, 1)
}
figure, axes = plt.subplots(1, 2, figsize=(6, 3.2), layout="constrained")
limit = 2 * max(np.abs(values).max() for values in maps.values())
for axis, (name, values) in zip(axes, maps.items(), strict=True):
    axis.imshow(values, cmap="PuOr", vmin=-limit, vmax=limit)
    for (row, column), value in np.ndenumerate(values):
        axis.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=12)
    middle = (len(values) - 1) / 2  # the same scale on both sides
    axis.set(xlim=(middle - 2, middle + 2), ylim=(middle + 2, middle - 2))
    axis.set_title(name)
    axis.axis("off")
plt.show()

assert np.ptp(maps["padding 0"]) < 1e-12
assert np.ptp(maps["padding 1"]) > 0.01
assert np.allclose(maps["padding 1"][1:3, 1:3], maps["padding 0"])

padded_network = example(padding=1)
padded = md.compact(padded_network)
assert padded.layers[0].weight.shape == (4, 1, 3, 3)  # the filter stays,
assert not padded.layers[0].weight.data[1].any()  # without weights, for its bias
assert np.allclose(padded(samples).data, padded_network(samples).data, atol=1e-12)

# %% [markdown]
# **Keep**, from the end to the start: an input of a layer is kept if a kept output has a weight
# for it, and an output if it is kept as an input of the next layer. So filter 3 of `conv2` leaves
# though its own gate is open.
#
# **Cut.** What remains of `conv2` are three filters of four places each, and of these twelve
# numbers `dense` reads nine, as the first place of each is closed. A smaller convolution cannot
# leave out single places. So a {py:class}`minidiff.nn.Select` stands in front of `dense`, a copy
# of some rows:

# %%
select = dict(compact_network.children())["dense_select"]
print("keeps", select.indices, "of", select.size)
assert select.size == 12
assert np.array_equal(select.indices, [1, 2, 3, 5, 6, 7, 9, 10, 11])

# %% [markdown]
# ## Out of minidiff
#
# Now a real network: LeNet5, trained and pruned for a short while with the recipe of [tutorial
# 8](08_mnist.py).

# %%
dataset = data(train=2_000 if SMALL else 15_000)
images, batch = len(dataset.train), 64 if SMALL else 128
config = Config.recipe(
    dataset.name,
    epochs=(300 if SMALL else 1_600) * batch // images,
    batch_size=batch,
    gate_start=0.1,
    gate_stop=0.6,
    ramp=0.2,
    gate_lr=0.03 if SMALL else 0.01,
    penalty=2e-5 * images,  # lambda / N is the same for any number of images
)
trainer = Trainer(config, dataset)
for _ in range(config.epochs):
    record = trainer.train_epoch()
print(f"{record['architecture']}, validation error {record['validation_error']:.2f} %")

lenet, settings = trainer.model.eval(), {"mean": dataset.mean, "std": dataset.std}
compact = md.compact(lenet)
unpruned = md.LeNet5(rng=rng, sparsity="dense")  # for its size; the weights do not matter

# %% [markdown]
# `md.save` writes a network for {py:func}`minidiff.load`, gated or not, to be trained on, say.
# {py:func}`minidiff.export` compacts it first, and its `.onnx` and `.npz` normalise their inputs
# themselves: they take images from 0 to 1.

# %%
onnx = find_spec("onnx") is not None and find_spec("onnxruntime") is not None
if not onnx:
    print("The extra `onnx` is not installed, so this page does without ONNX.")
directory = scratch()
md.save(directory / "gated.safetensors", lenet)
md.save(directory / "compact.safetensors", compact)
for name, network in (("dense", unpruned), ("compact", lenet)):
    md.export(directory / f"{name}.npz", network, SHAPE, **settings)
    if onnx:
        md.export(directory / f"{name}.onnx", network, SHAPE, **settings)
sizes = {file.name: file.stat().st_size for file in sorted(directory.iterdir())}
for name, size in sizes.items():
    print(f"{name:20} {size:9,} bytes")
assert sizes["compact.npz"] < sizes["dense.npz"] / 2

# %% [markdown]
# Five ways to run the network follow: `md.load`, a {py:class}`minidiff.Predictor`, onnxruntime,
# the gated network itself, and this reader, for which NumPy is enough. It knows the layers that
# this network has; [Export](../howto/resume-and-export.md) has one for all.


# %%
def numpy_predict(path, images):
    """Return the logits, (N, classes), of images (N, C, H, W) from 0 to 1."""
    file = np.load(path)
    x = (images - file["mean"]) / file["std"]
    for i, kind in enumerate(file["layers"]):
        of = {name.split(".")[1]: file[name] for name in file if name.startswith(f"{i}.")}
        if kind == "Conv2d":  # windows are (N, C, H', W', KH, KW)
            windows = sliding_window_view(x, of["weight"].shape[2:], axis=(2, 3))
            x = np.tensordot(windows, of["weight"], ([1, 4, 5], [1, 2, 3])) + of["bias"]
            x = np.moveaxis(x, -1, 1)
        elif kind == "MaxPool2d":  # 2x2, with a ReLU
            n, c, h, w = x.shape
            x = np.maximum(x.reshape(n, c, h // 2, 2, w // 2, 2).max(axis=(3, 5)), 0)
        elif kind == "Linear":
            x = x @ of["weight"].T + of["bias"]
        elif kind in ("Flatten", "Select"):
            x = x.reshape(len(x), -1) if kind == "Flatten" else x[:, of["indices"]]
        elif kind == "ReLU":
            x = np.maximum(x, 0)
    return x


# %% [markdown]
# All are asked about the same validation images, and must give the same classes.

# %%
images = np.float32(dataset.validation.images[:1000]) / 255
answers = dataset.validation.labels[:1000]
loaded = md.load(directory / "compact.safetensors").eval()


def by_ops(network):
    def predict(images):
        x = np.ascontiguousarray(np.moveaxis(images, 0, -1))  # batch last
        with md.no_grad():
            return network((x - np.float32(dataset.mean)) / np.float32(dataset.std)).data.T

    return predict


ways = {
    "dense, Predictor": md.Predictor(unpruned, SHAPE, **settings),
    "gated, op by op": by_ops(lenet),
    "compact, op by op": by_ops(loaded),
    "compact, NumPy": lambda images: numpy_predict(directory / "compact.npz", images),
    "compact, Predictor": md.Predictor(compact, SHAPE, **settings),
}
if onnx:
    import onnxruntime

    session = onnxruntime.InferenceSession(
        directory / "compact.onnx", providers=["CPUExecutionProvider"]
    )
    ways["compact, onnxruntime"] = lambda x: session.run(["logits"], {"images": x})[0]

expected = ways["gated, op by op"](images)
print(f"error on these images {100 * (expected.argmax(axis=1) != answers).mean():.2f} %")
for name, predict in ways.items():
    if not name.startswith("dense"):
        logits = predict(images)
        assert np.allclose(logits, expected, atol=1e-3)
        assert np.array_equal(logits.argmax(axis=1), expected.argmax(axis=1)), name
        largest = np.abs(logits - expected).max()
        print(f"{name:20} same classes; logits differ by at most {largest:.1e}")
assert np.array_equal(by_ops(loaded)(images), by_ops(compact)(images))  # to the bit

# %% [markdown]
# ### One image, or a thousand
#
# These are different problems. A thousand images are arithmetic. One image is so little of it
# that, if ops are called one after another from Python, most of the time goes into the calls
# themselves and into the meeting of all threads after each op, which takes longest on a busy
# machine. A `Predictor` translates the network once into a table of steps, and one compiled call
# runs it from the first layer to the last. So it gains most where there is least to compute.

# %%
times = {name: {1: [], 1000: []} for name in ways}
for count, rounds in ((1, 100), (1000, 5 if SMALL else 15)):
    for _ in range(rounds):  # in turns
        for name, predict in ways.items():
            began = time.perf_counter()
            predict(images[:count])
            times[name][count].append(1000 * (time.perf_counter() - began))
print(f"{'milliseconds, medians':22} 1 image  1,000 images")
for name, spent in times.items():
    print(f"{name:22} {np.median(spent[1]):7.3f} {np.median(spent[1000]):13.3f}")

# %% [markdown]
# The NumPy reader is there to be read, not to be fast, and opens its file each time. Compare the
# two lines of Predictors for what pruning has saved, and the compact lines with each other for
# what the way of calling costs.
#
# ## Exercises
#
# **1.** Skip by yourself. Write `linear(x, weight, bias, z)`: a dense layer whose units are gated,
# `x` of shape (D, N), `weight` (O, D), `bias` and `z` (O,). It returns all of its output, (O, N),
# but must read nothing of closed units: they hold NaN.


# %%
def linear(x, weight, bias, z):
    return (weight * z[:, None]) @ x + (bias * z)[:, None]  # yours


check("07.linear", linear)

# %% [markdown]
# **2.** Settle. Write `settled(weight, bias, constant)`: the new biases of a convolution without
# padding, weight (O, C, KH, KW) and bias (O,), when channel c of its input is the number
# `constant[c]` everywhere, or not a constant at all where that is NaN. A ReLU stands in between,
# so it is the rectified constant that the convolution sees.


# %%
def settled(weight, bias, constant):
    return bias  # yours


check("07.settled", settled)

# %% [markdown]
# **3.** Number anew. Behind a Flatten, input i of a dense layer is place `i % places` of channel
# `i // places`. Write `positions(channels, inputs, places)`: given which channels the compact
# convolution keeps and which inputs the dense layer keeps (both boolean), the indices of the
# `Select` between them, that is, where each kept input lies in what the compact convolution gives.


# %%
def positions(channels, inputs, places):
    return inputs.nonzero()[0]  # yours


check("07.positions", positions)

# %% [markdown]
# ## What next
#
# [Tutorial 8](08_mnist.py): the paper's experiment at full length, beside what others have
# published. How the kernels and the predictor are made is in [Design](../design.md).
#
# Solutions:


# %% tags=["hide-input"]
def linear_solution(x, weight, bias, z):
    out = np.zeros((len(weight), x.shape[1]))
    active = z.nonzero()[0]
    out[active] = z[active, None] * (weight[active] @ x + bias[active, None])
    return out


def settled_solution(weight, bias, constant):
    value = np.maximum(np.nan_to_num(constant, nan=0.0), 0)
    return bias + weight.sum(axis=(2, 3)) @ value


def positions_solution(channels, inputs, places):
    rank = np.cumsum(channels) - 1  # of kept channels, numbered anew
    kept = inputs.nonzero()[0]
    return rank[kept // places] * places + kept % places


assert check("07.linear", linear_solution)
assert check("07.settled", settled_solution)
assert check("07.positions", positions_solution)
