# %% [markdown]
# # 7. Conditional computation and compaction
#
# A closed filter need not be computed, and after training it can be removed. This tutorial shows
# that skipping and removal change neither the loss nor any gradient, and measures what both save.
# Then it exports the smaller network and runs it outside of minidiff.
#
# - **You will do**: compute one training step in three ways and compare all gradients, measure a
#   step over the share of filters that are open, follow `md.compact` by hand, and run a pruned
#   network in onnxruntime and in NumPy alone.
# - **You will learn**: which property of the gate makes skipping exact, how an engine that knows
#   nothing of gates skips closed filters, and what closed filters leave behind.
# - **You need**: [tutorial 4](04_gates.py) and [tutorial 6](06_groups.py); the extra `onnx` for
#   some of the last section.

# %%
import copy
import time
from importlib.util import find_spec

import matplotlib.pyplot as plt
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from support import SMALL, check, data, scratch

import minidiff as md
from minidiff import functional as F
from minidiff import nn
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
conv1 = md.gate(nn.Conv2d(1, 8, 3, rng=rng, **real), "outputs", **real)
conv2 = md.gate(nn.Conv2d(8, 12, 3, rng=rng, **real), "outputs", **real)
dense1 = md.gate(nn.Linear(48, 20, rng=rng, **real), "inputs", "outputs", **real)
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
gates = md.gates_of(model)
for name, gate in gates.items():
    above = rng.random(gate.count) < 0.5
    gate.phi.data[:] = np.where(above, rng.uniform(-0.4, 0.9, gate.count), -0.8)
    print(f"{name:15} {gate.is_open().sum():2} of {gate.count} open")

x, labels = rng.standard_normal((1, 14, 14, 64)), rng.integers(0, 10, 64)

# %% [markdown]
# **Skipped** is the step of the engine, which skips closed groups. **Dense** is written out here:
# every weight is multiplied by its gate, zero or not, and every product is computed. The gates'
# values are leaves of the tape, so that we can look at their own gradients
# $\partial L / \partial z$.


# %%
def step(output):
    """Return loss and gradients of a training step."""
    for parameter in model.parameters():
        parameter.grad = None
    loss = F.cross_entropy(output(), labels)
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
    h = F.max_pool2d(gated(conv1, md.Tensor(x), z["conv1.outputs"]), 2, relu=True)
    h = F.max_pool2d(gated(conv2, h, z["conv2.outputs"]), 2, relu=True)
    h = F.flatten(h) * z["dense1.inputs"].reshape(-1, 1)
    h = F.relu(gated(dense1, h, z["dense1.outputs"]))
    return model["dense2"](h)


skipped_loss, skipped = step(lambda: model(x))
dense_loss, whole = step(dense)

assert np.array_equal(model(x).data, dense().data)  # every bit of every logit
assert skipped_loss == dense_loss
for name in whole:  # weights and biases
    assert np.array_equal(skipped[name], whole[name]), name
print(f"loss {dense_loss:.6f} in both; {len(whole)} gradients, bit-identical")

# %% [markdown]
# They are bit-identical, since adding $w \cdot 0$ changes no sum, and each kernel adds up in one
# order. (For batches of a few samples the engine sums along another axis, and the two agree up to
# rounding.)
#
# Were the closed filters multiplied by zero, or never read? NaN tells, as no product with 0 removes
# it.

# %%
spoilt = copy.deepcopy(model)
for name in ("conv1", "conv2", "dense1"):
    layer = spoilt[name]
    layer.layer.weight.data[~layer.outputs.is_open()] = np.nan
assert np.array_equal(spoilt(x).data, model(x).data)
assert np.isnan(spoilt["conv1"].layer.weight.data).any()
print("with NaN in all closed filters and units: the same logits")

# %% [markdown]
# ### Why no gradient is missing
#
# It remains to look at the gradients of the gates, $\partial L / \partial \varphi = g'(\varphi)\,
# \partial L / \partial z$. The gradient $\partial L / \partial z$ of a closed filter depends on the
# output that the filter *would* have had. The skipped step does not compute this output, but the
# dense step does:

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
# For the inputs $\partial L / \partial z$ is not zero. (For filters and units it is zero, but only
# because a ReLU follows, whose derivative at exactly 0 is 0 by convention.) Yet $\partial L /
# \partial z$ is always multiplied by $g' = 0$. So two facts together make skipping exact, if numbers
# are finite. Here they are for a slice $v$ of weights or inputs, gated to $y = g(\varphi)\,v$:
#
# - $g = 0$: no output depends on $v$, and $\partial L / \partial v = g\, \partial L / \partial y =
#   0$.
# - $g' = 0$: $\partial L / \partial \varphi = g' \sum v\, \partial L / \partial y = 0$, whatever
#   $\partial L / \partial y$ is. So $\partial L / \partial y$ need not be computed.
#
# A gate with exact zeros alone would not be enough. For example, the straight-through estimator
# (Bengio et al. 2013, arXiv:1308.3432) has $g = 0$ and pretends that $g' = 1$. So it needs each
# $\partial L / \partial z$, and with it all the work of the dense step. The drawback of $g' = 0$ is
# that a closed deterministic gate stays closed, as no gradient can open it again.
#
# **Compact** is the third way. {py:func}`minidiff.compact` makes an ordinary network without gates.
# Its weights get the same gradients as the open weights of the gated network. Here we fold the
# gates into the weights first, so that all gates are 0 or 1.

# %%
md.fold_gates(model)
for gate in gates.values():
    gate.frozen = True
small = md.compact(model, (1, 14, 14))
logits = small(x)
compact_loss = F.cross_entropy(logits, labels)
compact_loss.backward()
loss, grads = step(lambda: model(x))

first, second = conv1.outputs.is_open(), conv2.outputs.is_open()
second &= dense1.inputs.is_open().reshape(12, 4).any(axis=1)  # and dense1 reads it
assert np.array_equal(logits.data, model(x).data)
assert compact_loss.item() == loss
assert np.array_equal(small["conv1"].weight.grad, grads["conv1.layer.weight"][first])
assert np.array_equal(
    small["conv2"].weight.grad, grads["conv2.layer.weight"][np.ix_(second, first)]
)
assert not grads["conv1.layer.weight"][~first].any()
for name, parameter in small.named_parameters():
    print(f"{name:14} {parameter.shape}")

# %% [markdown]
# Again the results are bit-identical. With partly open gates the logits would be equal up to
# rounding, but the gradients would differ: a weight of the compact network is $u = z v$, so
# $\partial L/\partial v = z\, \partial L/\partial u$. That is why we folded the gates first.
#
# ## How the engine skips
#
# No op of the engine knows what a gate is. A {py:class}`minidiff.Tensor` has a list `live` of its
# *live rows*, which are slices along axis 0. All other rows are constant zeros that need no
# gradient. The values of gates have such a list, and the ops pass it on:

# %%
lenet = md.LeNet5(rng=np.random.default_rng(0))
lenet["conv1"].outputs.set_open(np.arange(20) < 5)
lenet["conv2"].outputs.set_open(np.arange(50) % 5 == 0)
h = md.Tensor(np.ones((1, 28, 28, 2), np.float32))
for name, layer in lenet.children():
    h = layer(h)
    live = "all" if h.live is None else f"{len(h.live)} of {len(h.data)}"
    print(f"{name:8} {h.shape!s:16} live rows: {live}")
    if name == "flatten":
        assert len(h.live) == 10 * 16  # 16 positions of each open filter
assert h.live is None

# %% [markdown]
# A convolution uses two such lists. The live rows of its input are the channels to sum over, and
# the live rows of its weight are the outputs to compute. Kernels take these lists as index vectors
# and loop over them, so a network in which nothing is closed runs the same code. Dead rows are
# uninitialised memory; `data` fills them with zeros when you read it.
#
# The optimiser skips too: the weights of a filter or unit that has closed for good do not move, not
# even by weight decay. (Weights that read a closed input get no gradient either. Weight decay moves
# them, which changes no output.)

# %%
before = lenet["conv1"].layer.weight.data.copy()
optimizer = SGD([ParameterGroup(lenet.parameters(), 0.1, weight_decay=0.1)])
images = rng.standard_normal((1, 28, 28, 8), dtype=np.float32)
F.cross_entropy(lenet(images), rng.integers(0, 10, 8)).backward()
optimizer.step()
moved = (lenet["conv1"].layer.weight.data != before).any(axis=(1, 2, 3))
print("filters moved:", moved.nonzero()[0])
assert np.array_equal(moved.nonzero()[0], np.arange(5))

# %% [markdown]
# ### What it saves
#
# We close more and more of LeNet5 and measure a training step of 128 images: forward, backward, and
# SGD. For reference we measure a network without gates.

# %%
SHAPE = (1, 28, 28)
shares = (1.0, 0.8, 0.6, 0.4, 0.25, 0.1)
networks = {"dense": md.LeNet5(rng=np.random.default_rng(0), sparsity="dense")}
for share in shares:
    networks[share] = md.LeNet5(rng=np.random.default_rng(0))
    for gate in md.gates_of(networks[share]).values():
        gate.set_open(np.arange(gate.count) < round(share * gate.count))
macs = {
    key: sum(layer.macs[0] for layer in md.count(network, SHAPE))
    for key, network in networks.items()
}
images = rng.standard_normal((*SHAPE, 128), dtype=np.float32)
digits = rng.integers(0, 10, 128)


def train_step(network, optimizer):
    began = time.perf_counter()
    loss = F.cross_entropy(network(images), digits)
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
# Fully open gates cost little time: their values are computed, but the arrays they gate are passed
# on unchanged. As gates close, steps become shorter, but not in proportion, as the time of Python,
# of the tape and of reading the images remains. Work falls faster than the share of open filters,
# since a weight needs the gates at *both* its ends: with half of the filters on each side, a
# quarter of a layer is left.
#
# ## Compaction, step by step
#
# During training, closed weights still take memory. `md.compact` removes them in four passes:
# *fold gates, fold constants, keep, cut*. A small network shows all four. In `conv1` the weights of filter 1 are
# closed, but its bias is not gated. In `conv2` filter 0 is closed. Nothing reads filter 3 of
# `conv2`, as all of its positions are closed as inputs of `dense`.
#
# **Fold.** All gates are multiplied into weights. From then on compaction looks only for zeros, and
# need not distinguish kinds of gates.


# %%
def example(padding):
    rng = np.random.default_rng(5)
    conv1 = nn.Conv2d(1, 4, 3, rng=rng, dtype=np.float64)
    conv1.bias.data[:] = [0.1, 0.3, -0.2, 0.2]
    conv1 = md.gate(conv1, "weights", groups=md.Groups.along((4, 1, 3, 3), 0), **real)
    conv1.weights[0].gate.set_open(np.array([True, False, True, True]))

    conv2 = nn.Conv2d(4, 5, 3, padding=padding, rng=rng, dtype=np.float64)
    conv2 = md.gate(conv2, "outputs", **real)
    conv2.outputs.set_open(np.arange(5) != 0)

    positions = (2 + 2 * padding) ** 2  # of the output of conv2
    dense = md.gate(nn.Linear(5 * positions, 3, rng=rng, **real), "inputs", **real)
    filters, position = np.divmod(np.arange(5 * positions), positions)
    dense.inputs.set_open((filters != 3) & (position != 0))
    return nn.Sequential(
        conv1=conv1,  # (4, 4, 4, N) from (1, 6, 6, N)
        relu1=nn.ReLU(),
        conv2=conv2,  # (5, 2, 2, N), with padding (5, 4, 4, N)
        relu2=nn.ReLU(),
        flatten=nn.Flatten(),
        dense=dense,
    )


gated_network = example(padding=0)
compact_network = md.compact(gated_network, (1, 6, 6))
for name, layer in compact_network.children():
    shapes = [parameter.shape for parameter in layer.parameters()]
    print(f"{name:13} {type(layer).__name__:8}", *shapes)
samples = rng.standard_normal((1, 6, 6, 16))
assert np.allclose(compact_network(samples).data, gated_network(samples).data, atol=1e-12)

# %% [markdown]
# **Fold constants.** Filter 1 of `conv1` has no weights left, so its output equals its bias, 0.3,
# at every position and for any image. The ReLU does not change 0.3. `conv2` multiplies this
# constant by weights and sums the products, which gives another constant. So this constant goes
# into the biases of `conv2`, and the filter is removed:

# %%
conv2 = gated_network["conv2"]
added = conv2.layer.weight.data[:, 1].sum(axis=(1, 2)) * max(0.3, 0)
by_hand = conv2.layer.bias.data + added
kept = [1, 2, 4]  # open, and read
print("bias before", conv2.layer.bias.data[kept], "after", by_hand[kept].round(4))
assert np.allclose(compact_network["conv2"].bias.data, by_hand[kept], rtol=1e-12)

# %% [markdown]
# Padding is the exception. With zeros around its input, the input of `conv2` is no longer constant:
# at the edges some weights are multiplied by 0 instead of 0.3. So the contribution of channel 1
# depends on the position, and a bias cannot replace it.

# %% tags=["hide-input"] mystnb={"image": {"alt": "Two grids of numbers, the output of one filter for a constant channel. Without padding all numbers are equal. With padding the four in the middle equal those on the left, and those along the edges differ.", "width": "85%"}, "figure": {"caption": "The output of filter 1 of conv2 for a channel that is 0.3 everywhere. Without padding it is a constant; with padding, only inside."}}
constant = np.full((1, 4, 4, 1), 0.3)
kernel = conv2.layer.weight.data[1:2, 1:2]
maps = {
    f"padding {padding}": F.conv2d(constant, kernel, padding=padding).data[0, :, :, 0]
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
padded = md.compact(padded_network, (1, 6, 6))
assert padded["conv1"].weight.shape == (4, 1, 3, 3)  # the filter stays,
assert not padded["conv1"].weight.data[1].any()  # without weights, for its bias
assert np.allclose(padded(samples).data, padded_network(samples).data, atol=1e-12)

# %% [markdown]
# **Keep.** This pass runs from the last layer to the first. An input of a layer is kept if a kept
# output has a weight for it. An output is kept if the next layer keeps it as an input. So filter 3
# of `conv2` is removed though its own gate is open.
#
# **Cut.** Three filters of `conv2` remain, with four positions each. `dense` reads nine of these
# twelve numbers, as the first position of each filter is closed. A smaller convolution cannot leave
# out single positions. So a {py:class}`minidiff.nn.Select`, which copies some rows, stands in front
# of `dense`:

# %%
select = compact_network["dense_select"]
print("selects", select.indices, "of", select.size)
assert select.size == 12
assert np.array_equal(select.indices, [1, 2, 3, 5, 6, 7, 9, 10, 11])

# %% [markdown]
# ## Out of minidiff
#
# Now we take a real network: LeNet5, trained and pruned for a short while with the recipe of
# [tutorial 8](08_mnist.py).

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
compact = md.compact(lenet, SHAPE)
unpruned = md.LeNet5(rng=rng, sparsity="dense")  # for its size; the weights do not matter

# %% [markdown]
# `md.save` writes a network, gated or not, for {py:func}`minidiff.load`, for example to train it
# further. {py:func}`minidiff.export` compacts the network first. Its `.onnx` and `.npz` files
# contain the normalisation, so they take images from 0 to 1.

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
# Five ways to run the network follow: `md.load`, a {py:class}`minidiff.Predictor`, onnxruntime, the
# gated network itself, and this reader in NumPy alone. The reader knows only the layers of this
# network; [Export](../howto/resume-and-export.md) has a reader for all layers.


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
# All predict the same validation images, and must give the same classes.

# %%
images = np.float32(dataset.validation.images[:1000]) / 255
answers = dataset.validation.labels[:1000]
loaded = md.load(directory / "compact.safetensors").eval()


def layer_by_layer(network):
    def predict(images):
        x = np.ascontiguousarray(np.moveaxis(images, 0, -1))  # batch last
        with md.no_grad():
            return network((x - np.float32(dataset.mean)) / np.float32(dataset.std)).data.T

    return predict


ways = {
    "dense, Predictor": md.Predictor(unpruned, SHAPE, **settings),
    "gated, layer by layer": layer_by_layer(lenet),
    "compact, layer by layer": layer_by_layer(loaded),
    "compact, NumPy": lambda images: numpy_predict(directory / "compact.npz", images),
    "compact, Predictor": md.Predictor(compact, SHAPE, **settings),
}
if onnx:
    import onnxruntime

    session = onnxruntime.InferenceSession(
        directory / "compact.onnx", providers=["CPUExecutionProvider"]
    )
    ways["compact, onnxruntime"] = lambda x: session.run(["logits"], {"images": x})[0]

expected = ways["gated, layer by layer"](images)
print(f"error on these images {100 * (expected.argmax(axis=1) != answers).mean():.2f} %")
for name, predict in ways.items():
    if not name.startswith("dense"):
        logits = predict(images)
        assert np.allclose(logits, expected, atol=1e-3)
        assert np.array_equal(logits.argmax(axis=1), expected.argmax(axis=1)), name
        largest = np.abs(logits - expected).max()
        print(f"{name:23} same classes; logits differ by at most {largest:.1e}")
assert np.array_equal(layer_by_layer(loaded)(images), layer_by_layer(compact)(images))  # same bits

# %% [markdown]
# ### One image, or a thousand
#
# These are different problems. A thousand images take time for arithmetic. One image takes little
# arithmetic: if layers are called one after another from Python, most of the time goes into the
# calls, and into waiting for all threads after each op, above all on a busy machine. A `Predictor`
# translates the network once into a table of steps, and one compiled call runs all steps from the
# first layer to the last. So a `Predictor` gains most where there is least to compute.

# %%
times = {name: {1: [], 1000: []} for name in ways}
for count, rounds in ((1, 100), (1000, 5 if SMALL else 15)):
    for _ in range(rounds):  # in turns
        for name, predict in ways.items():
            began = time.perf_counter()
            predict(images[:count])
            times[name][count].append(1000 * (time.perf_counter() - began))
print(f"{'milliseconds, medians':23} 1 image  1,000 images")
for name, spent in times.items():
    print(f"{name:23} {np.median(spent[1]):7.3f} {np.median(spent[1000]):13.3f}")

# %% [markdown]
# The NumPy reader is written to be read, not to be fast, and opens its file at each call. The two
# Predictor lines show the time that pruning saves. The compact lines show the time that each way of
# calling takes.
#
# ## Exercises
#
# **1.** Skip by yourself. Write `linear(x, weight, bias, z)`: a dense layer with gated units, with
# `x` of shape (D, N), `weight` (O, D), `bias` and `z` (O,). It returns the whole output, (O, N),
# but must not read weights and biases of closed units, which are NaN.


# %%
def linear(x, weight, bias, z):
    return (weight * z[:, None]) @ x + (bias * z)[:, None]  # yours


check("07.linear", linear)

# %% [markdown]
# **2.** Fold constants. Take a convolution without padding, weight (O, C, KH, KW) and bias (O,),
# behind a ReLU. Channel c of the input of the ReLU is `constant[c]` everywhere, or is not constant
# if `constant[c]` is NaN. Write `folded(weight, bias, constant)`: the new biases of the
# convolution. (The convolution reads the constants after the ReLU.)


# %%
def folded(weight, bias, constant):
    return bias  # yours


check("07.folded", folded)

# %% [markdown]
# **3.** Find the indices of a `Select`. Behind a Flatten, input i of a dense layer is position
# `i % positions` of channel `i // positions`. The boolean arrays `channels` and `inputs` say which
# channels the compact convolution keeps, and which inputs the dense layer keeps. Write
# `selected(channels, inputs, positions)`: for each kept input, its index in the flattened output of
# the compact convolution.


# %%
def selected(channels, inputs, positions):
    return inputs.nonzero()[0]  # yours


check("07.selected", selected)

# %% [markdown]
# ## What next
#
# [Tutorial 8](08_mnist.py) has the paper's experiment at full length, beside published results.
# [Design](../design.md) describes the kernels and the predictor.
#
# Solutions:


# %% tags=["hide-input"]
def linear_solution(x, weight, bias, z):
    out = np.zeros((len(weight), x.shape[1]))
    live = z.nonzero()[0]
    out[live] = z[live, None] * (weight[live] @ x + bias[live, None])
    return out


def folded_solution(weight, bias, constant):
    value = np.maximum(np.nan_to_num(constant, nan=0.0), 0)
    return bias + weight.sum(axis=(2, 3)) @ value


def selected_solution(channels, inputs, positions):
    rank = np.cumsum(channels) - 1  # of each kept channel among the kept ones
    kept = inputs.nonzero()[0]
    return rank[kept // positions] * positions + kept % positions


assert check("07.linear", linear_solution)
assert check("07.folded", folded_solution)
assert check("07.selected", selected_solution)
