# %% [markdown]
# # 3. Training LeNet5 with SGD
#
# A loop of five lines trains a network. How well it trains depends on the loss, the step, and the
# learning rate. This tutorial writes the loop out, trains LeNet5 on handwritten digits, and looks
# at what the network has learnt and what it has not.
#
# - **You will do**: compute the cross-entropy without overflow, race three kinds of SGD down a
#   narrow valley, train three networks, and look at filters and at misclassified digits.
# - **You will learn**: why momentum and a schedule help, what validation and test images are for,
#   and what makes training bit-identical when it is repeated.
# - **You need**: [tutorial 1](01_tape.py) and [tutorial 2](02_convolution.py).

# %%
import matplotlib.pyplot as plt
import numba
import numpy as np
from matplotlib.ticker import LogLocator
from support import SMALL, check, data

import minidiff as md
from minidiff import functional as F
from minidiff.data.batches import batches
from minidiff.data.datasets import Split
from minidiff.engine.optim import SGD, ParameterGroup, cosine

dataset = data(train=2_000 if SMALL else 20_000)
scale = {"mean": dataset.mean, "std": dataset.std}
few = len(dataset.train) < 5_000
BATCH = 64 if few else 128
EPOCHS = 6 if SMALL else 20 if few else 8
first = slice(1_000 if SMALL else None)
validation = Split(dataset.validation.images[first], dataset.validation.labels[first])
print(len(dataset.train), "training images,", len(validation), "validation images")

# %% [markdown]
# ## The loss
#
# For each image the network computes ten numbers, the *logits* $z$. The softmax turns them into
# probabilities,
#
# $$p_i = \frac{e^{z_i}}{\sum_j e^{z_j}}.$$
#
# The loss is the *cross-entropy*, minus the logarithm of the probability of the right class $y$:
#
# $$L = -\log p_y = \log \sum_j e^{z_j} - z_y .$$
#
# In float32 this breaks down if we compute first $p$ and then its logarithm. For a logit of 100 the
# exponential is infinite, and infinity divided by infinity is not a number. And where the logit of
# the right class is far below the others, its probability is rounded to 0, whose logarithm is
# infinite.

# %%
for logits in (np.float32([100, 10, 0]), np.float32([0, 10, 120])):
    with np.errstate(all="ignore"):
        powers = np.exp(logits)
        naive = -np.log(powers / powers.sum())[0]
    stable = F.cross_entropy(logits[:, None], np.array([0])).item()
    print(f"logits {logits}, first is right: {naive} step by step, {stable} in minidiff")
    assert not np.isfinite(naive)
    assert stable == max(logits) - logits[0]

# %% [markdown]
# The remedy is to compute the *log-sum-exp* instead, with the largest logit $m$ taken out:
#
# $$\log \sum_j e^{z_j} = m + \log \sum_j e^{z_j - m} .$$
#
# Now no exponent is above 0, so nothing overflows. One exponent is 0, so the sum lies between 1 and
# the number of classes, and its logarithm is harmless. {py:func}`minidiff.functional.cross_entropy`
# computes the loss this way, so it takes logits, not probabilities.
#
# The gradient is simple: $\partial L / \partial z_i = p_i - 1$ for the right class and $p_i$ for
# the others. No entry is larger than 1 in size. Where the network is sure of a wrong class, two
# entries are nearly 1 in size, however small $p_y$ is.

# %%
rng = np.random.default_rng(0)
z = md.Tensor(rng.standard_normal((10, 4)), requires_grad=True)
labels = np.array([3, 1, 4, 1])
loss = F.cross_entropy(z, labels)
loss.backward()
expected = F.softmax(z).data.copy()
expected[labels, np.arange(4)] -= 1
assert np.allclose(z.grad, expected / 4)  # the loss is the mean over four images
print("a guess among ten classes has a loss of log 10 =", round(np.log(10), 3))

# %% [markdown]
# ## The loop
#
# One generator draws everything that is random: here, the initial weights and the order of the
# images. `batches` runs once over the images, in this order, and yields normalised images of shape
# (1, 28, 28, N), with the batch last.


# %%
def evaluate(model, split):
    """Return the mean loss, and the logits of all images of a split."""
    logits = []
    with md.no_grad():  # no tape
        for images, _ in batches(split, 500, **scale):
            logits.append(model(images).data)
    logits = np.concatenate(logits, axis=1)  # (10, N)
    return F.cross_entropy(logits, split.labels).item(), logits


def error(logits, labels):
    return 100 * float(np.mean(logits.argmax(axis=0) != labels))


rng = np.random.default_rng(0)
model = md.LeNet5(rng=rng, sparsity="dense")  # dense: without gates, which tutorial 4 is about
optimizer = SGD(model.parameters(), lr=0.05)
print(f"before: loss {evaluate(model, validation)[0]:.2f}")
for images, labels in batches(dataset.train, BATCH, **scale, rng=rng):
    loss = F.cross_entropy(model(images), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
loss, logits = evaluate(model, validation)
print(
    f"after one epoch: loss {loss:.2f}, validation error {error(logits, validation.labels):.2f} %"
)
assert loss < np.log(10)

# %% [markdown]
# `zero_grad` is needed because `backward` *adds* to gradients. The gradient of a batch estimates
# the gradient of the mean loss over all images, and is right on average. A batch takes a small
# share of the time that all images take, so many rough steps are far better than a few exact ones.
# (Before the first step the loss may be above log 10, as random weights make confident guesses.)
#
# ## Momentum
#
# SGD moves each weight by minus the learning rate times the gradient. The *steepest* direction
# limits the learning rate, as above a limit the weights diverge. With that learning rate, progress
# along the flattest direction is slow. The ratio of the two curvatures is the *condition number*
# $\kappa$. On the quadratic $\tfrac12 (x^2 + \kappa y^2)$ the learning rate $\eta$ must stay below
# $2 / \kappa$, and each step shrinks $x$ only by the factor $1 - \eta$.


# %%
def descend(kappa, lr, momentum=0.0, nesterov=False, steps=60, start=(-10.0, 1.0)):
    w = md.nn.Parameter(np.array(start))
    optimizer = SGD([w], lr=lr, momentum=momentum, nesterov=nesterov)
    path = [w.data.copy()]
    for _ in range(steps):
        loss = (np.array([0.5, 0.5 * kappa]) * w * w).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        path.append(w.data.copy())
    return np.array(path)


kinds = {"SGD": (0.0, False), "momentum": (0.8, False), "Nesterov": (0.8, True)}
paths = {name: descend(40, 0.03, *kind) for name, kind in kinds.items()}
for name, path in paths.items():
    print(f"{name:9} after 60 steps {np.hypot(*path[-1]):.5f} from the minimum")
assert np.hypot(*paths["momentum"][-1]) < 0.1 * np.hypot(*paths["SGD"][-1])
assert np.hypot(*paths["Nesterov"][-1]) < 0.1 * np.hypot(*paths["SGD"][-1])
assert paths["Nesterov"][:, 0].max() < paths["momentum"][:, 0].max()  # it overshoots less

# %% tags=["hide-input"] mystnb={"image": {"alt": "Three panels with the contours of a long narrow valley, and the first steps in each. SGD drops to the floor of the valley and creeps along it, half of the way. Momentum swings wide and overshoots the minimum before it returns. Nesterov's variant swings less and comes straight in.", "width": "100%"}, "figure": {"caption": "The first 25 steps in a valley of condition number 40, all with the same learning rate. The cross is the minimum."}}
figure, panels = plt.subplots(3, 1, figsize=(6.2, 4.8), layout="constrained", sharex=True)
x, y = np.meshgrid(np.linspace(-11, 5, 200), np.linspace(-1.6, 1.6, 100))
for axes, (name, path) in zip(panels, paths.items(), strict=True):
    height = np.sqrt(0.5 * (x**2 + 40 * y**2))
    axes.contour(x, y, height, 9, colors="#cccccc", linewidths=0.8)
    axes.plot(*path[:26].T, "o-", color="#0072b2", markersize=3, linewidth=1)
    axes.plot(0, 0, "x", color="#d55e00", markersize=9, markeredgewidth=2)
    axes.annotate(name, (0.985, 0.86), xycoords="axes fraction", ha="right")
    axes.set_ylabel("y")
panels[-1].set_xlabel("x")
plt.show()

# %% [markdown]
# *Momentum* stores a velocity, a fading sum of past gradients (Polyak 1964):
# $v \leftarrow \beta v + g$, $w \leftarrow w - \eta v$. Along the valley gradients agree and add
# up, and steps become up to $1 / (1 - \beta)$ times as long. Across the valley gradients alternate
# and cancel. *Nesterov's* variant looks ahead (Sutskever et al. 2013): it updates $v$ as above, and
# then moves by $\eta\,(g + \beta v)$ with the **new** $v$, as if one more gradient equal to this
# one had already arrived. It overshoots less. For quadratics the gain by *momentum* is known: with
# the best settings, plain descent needs a number of steps in proportion to $\kappa$, and momentum
# in proportion to $\sqrt\kappa$.

# %%
needed = {}
for kappa in (10, 100, 1_000):
    root = np.sqrt(kappa)
    best = {
        "SGD": (2 / (1 + kappa), 0.0),
        "momentum": (4 / (1 + root) ** 2, ((root - 1) / (root + 1)) ** 2),
    }
    for name, (lr, momentum) in best.items():
        path = descend(kappa, lr, momentum, steps=10_000, start=(1.0, 1.0))
        needed[name, kappa] = int(np.argmax(np.abs(path).max(axis=1) < 1e-6))
        print(f"condition number {kappa:4}, {name:8} {needed[name, kappa]:5} steps")
assert needed["SGD", 1_000] / needed["SGD", 100] > 9
assert needed["momentum", 1_000] / needed["momentum", 100] < 4

# %% [markdown]
# ## The learning rate
#
# With a factor of 0.9, momentum makes steps ten times as long, once velocity has built up. At the
# start that is too much: gradients of random weights are large and soon outdated, but velocity
# carries them on. So the learning rate is *warmed up*: it rises from near 0 over the first fifth of
# the steps. At the end long steps do harm again: the gradient of each batch has its own error, and
# steps turn these errors into noise of the weights. So the learning rate falls to 0, here along a
# *cosine* (Loshchilov and Hutter 2017, arXiv:1608.03983).
#
# *Weight decay* adds $d\,w$ to the gradient: a weight that no image needs shrinks by a factor
# $1 - \eta d$ a step (without momentum; with 0.9, about ten times faster). Biases are not decayed.
# Here weight decay has a mild effect; [tutorial 5](05_surrogate.py) shows why gates need it.
#
# With warm-up, cosine and decay the loop has the same five lines, in one function.


# %%
def train(seed, *, lr=0.05, momentum=0.9, schedule=True, decay=5e-4, most=None):
    """Return a LeNet5, the loss of each step, and (loss, error) on validation images."""
    rng = np.random.default_rng(seed)
    model = md.LeNet5(rng=rng, sparsity="dense")
    weights = ParameterGroup([p for p in model.parameters() if p.ndim > 1], lr, decay)
    biases = ParameterGroup([p for p in model.parameters() if p.ndim == 1], lr)
    optimizer = SGD([weights, biases], momentum=momentum, nesterov=momentum > 0)
    steps = EPOCHS * -(-len(dataset.train) // BATCH)
    losses, scores = [], []
    for _ in range(EPOCHS):
        for images, labels in batches(dataset.train, BATCH, **scale, rng=rng):
            if schedule:
                weights.lr = biases.lr = lr * cosine(len(losses), steps, warmup=steps // 5)
            loss = F.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            if len(losses) == most:
                return model, losses, scores
        loss, logits = evaluate(model, validation)
        scores.append((loss, error(logits, validation.labels)))
    return model, losses, scores


_, sudden, _ = train(0, schedule=False, most=10)
_, gentle, _ = train(0, most=10)
print("first losses, at full learning rate", *np.round(sudden, 1))
print("warmed up                          ", *np.round(gentle, 1))
assert max(sudden) > 2 * max(gentle)

# %% [markdown]
# Now we train three networks from the same weights, with the same order of images. The first has
# plain SGD at a constant learning rate. The second has momentum with warm-up and cosine. To be fair
# to plain SGD, the third has no momentum, but the schedule and a learning rate five times as large.

# %%
runs = {
    "plain": train(0, momentum=0.0, schedule=False),
    "momentum": train(0),
    "large rate": train(0, lr=0.25, momentum=0.0),
}
epoch = -(-len(dataset.train) // BATCH)  # steps
fitted = {name: np.mean(losses[-epoch:]) for name, (_, losses, _) in runs.items()}
for name, (_, _, scores) in runs.items():
    loss, rate = scores[-1]
    print(f"{name:10} training loss {fitted[name]:.4f}, validation {loss:.4f}, error {rate:.2f} %")
assert fitted["momentum"] < min(fitted["large rate"], fitted["plain"])
assert fitted["momentum"] < 0.5 * runs["momentum"][2][-1][0]

# %% tags=["hide-input"] mystnb={"image": {"alt": "Left: loss over epochs on a log axis for the network with momentum. The training loss falls throughout; the validation loss falls at first and then stays well above it. Right: validation error over epochs of three networks. That of plain SGD is the highest throughout or nearly so; those with momentum and with a large learning rate end close to each other.", "width": "100%"}, "figure": {"caption": "Learning curves. Left: the network with momentum. Right: all three, on validation images."}}
figure, (left, right) = plt.subplots(1, 2, figsize=(7, 3.2), layout="constrained")
colours = {"plain": "#777777", "momentum": "#0072b2", "large rate": "#d55e00"}
epochs = np.arange(1, EPOCHS + 1)
_, losses, scores = runs["momentum"]
curves = {
    "training": [np.mean(some) for some in np.split(np.array(losses), EPOCHS)],
    "validation": [loss for loss, _ in scores],
}
for (name, curve), style in zip(curves.items(), ("--", "-"), strict=True):
    left.plot(epochs, curve, style, color=colours["momentum"])
    left.text(epochs[-1] * 1.04, curve[-1], name, va="center")
left.set_ylabel("loss, nats")
left.set_xlim(1, EPOCHS * 1.45)
for name, (_, _, scores) in runs.items():
    right.plot(epochs, [score for _, score in scores], color=colours[name], label=name)
right.set_ylabel("validation error, %")
right.legend(frameon=False, labelcolor="linecolor")
for axes in (left, right):
    axes.set_yscale("log")
    axes.set_xlabel("epoch")
    axes.set_xticks(range(1, EPOCHS + 1, 3 if EPOCHS > 10 else 1))
right.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
right.yaxis.set_major_formatter("{x:g}")
right.yaxis.set_minor_formatter("")
plt.show()

# %% [markdown]
# The training loss ends far below the validation loss: the network learns its training images by
# heart. Only images that it was not trained on show what it knows of digits.
#
# Momentum fits the training images best, as asserted. A large learning rate without momentum mostly
# comes second. So part of the gain comes from longer steps together with the schedule, and not from
# momentum itself. (These runs do not separate longer steps from the schedule.) The next section is
# about what the order on validation images means.
#
# ## Validation and test images
#
# We may choose a learning rate, an epoch to stop at, or one of three networks by their error on
# some images. The choice then suits these images better than others, and their error becomes too
# low. So there are three splits. Weights are fitted to *training* images. Choices are made on
# *validation* images. The *test* images are used once, when nothing is left to choose.

# %%
chosen = min(runs, key=lambda name: runs[name][2][-1][0])  # by validation loss
model = runs[chosen][0]
_, logits = evaluate(model, dataset.test)
rate = error(logits, dataset.test.labels)
deviation = np.sqrt(rate * (100 - rate) / len(dataset.test))
print(f"chosen: {chosen}; test error {rate:.2f} %, give or take {deviation:.2f}")
assert rate < 12

# %% [markdown]
# The second number is a standard deviation that comes from the choice of test images alone: with
# $n$ images and a true error of $p$, the measured error scatters by $\sqrt{p (1 - p) / n}$. That is
# for one network. The difference of two networks on *different* images scatters by $\sqrt2$ times
# as much. On the same images it mostly scatters by less, as only images count on which the two
# disagree. [Tutorial 8](08_mnist.py) returns to this.
#
# ## What filters respond to
#
# The first convolution has 20 filters of 5x5. The *feature map* of a filter shows where in the
# image the filter responds.

# %% tags=["hide-input"] mystnb={"image": {"alt": "Twenty small squares, the filters, that look like noise, and below each its feature map of a digit 5. Each map shows other parts of the five: horizontal strokes, the left side, the diagonal in the middle.", "width": "100%"}, "figure": {"caption": "The 20 filters (blue below 0, red above), and below each its feature map of a 5, after the ReLU."}}
weight = model["conv1"].weight.data[:, 0]  # (20, 5, 5)
five = int(np.flatnonzero(validation.labels == 5)[0])
one = Split(validation.images[five : five + 1], validation.labels[five : five + 1])
((images, _),) = batches(one, 1, **scale)
maps = F.relu(model["conv1"](images)).data[..., 0]  # (20, 24, 24)
reach = np.abs(weight).max()
figure, panels = plt.subplots(4, 10, figsize=(7.5, 3.3), layout="constrained")
for n in range(20):
    row, column = 2 * (n // 10), n % 10
    panels[row, column].imshow(weight[n], cmap="RdBu_r", vmin=-reach, vmax=reach)
    panels[row + 1, column].imshow(maps[n], cmap="Greys", vmin=0, vmax=maps.max())
for axes in panels.flat:
    axes.set_xticks([])
    axes.set_yticks([])
plt.show()

# %% [markdown]
# Every map picks out other strokes, of one direction or on one side. Yet the filters look like
# noise, and nearly are noise: they have hardly moved from their random initial weights, and later
# layers have learnt to use them. As the seed is known, this can be measured.

# %%
new = md.LeNet5(rng=np.random.default_rng(0), sparsity="dense")
before, after = new["conv1"].weight.data.reshape(20, 25), weight.reshape(20, 25)
lengths = np.linalg.norm(before, axis=1) * np.linalg.norm(after, axis=1)
alike = (before * after).sum(axis=1) / lengths  # cosine of the angle
print(f"cosine with its start: median {np.median(alike):.2f}, least {alike.min():.2f}")
assert np.median(alike) > 0.7

# %% [markdown]
# What is a filter worth? Remove it, and measure how much the loss rises.


# %%
def without(filters):
    """Return the rise of the loss, in thousandths, without some filters of the first layer."""
    saved = model.state_dict()
    model["conv1"].weight.data[filters] = 0
    model["conv1"].bias.data[filters] = 0
    loss, _ = evaluate(model, some)
    model.load_state_dict(saved)
    return 1_000 * (loss - whole)


some = Split(validation.images[:1_000], validation.labels[:1_000])
whole, _ = evaluate(model, some)
worth = np.array([without([n]) for n in range(20)])
print(f"loss {whole:.3f}; without one filter it rises by, in thousandths:")
print(*np.sort(worth).round().astype(int))
cheapest = np.argsort(worth)
for count in (5, 10, 15):
    least = cheapest[:count]
    together = without(least)
    alone = worth[least].sum()
    print(f"cheapest {count}: {round(alone)} one by one, {round(together)} all at once")
assert worth.max() > 2 * np.median(worth)
assert together > alone

# %% [markdown]
# Filters differ very much in worth, and some are worth nothing. But their worths do not add up:
# filters that can replace each other are worth little one by one, and a lot together. So which
# filters can *all* be removed, and what should the others do then? Training has to find out, and
# [tutorial 4](04_gates.py) makes this possible.
#
# ## Misclassified digits
#
# We look at validation images here, not at test images, because what we find may guide our next
# choices.

# %%
_, logits = evaluate(model, validation)
probabilities = F.softmax(logits).data
guess, sure = probabilities.argmax(axis=0), probabilities.max(axis=0)
wrong = guess != validation.labels
pairs = list(zip(validation.labels[wrong], guess[wrong], strict=True))
often = sorted(set(pairs), key=lambda pair: -pairs.count(pair))[:4]
print(f"{wrong.sum()} of {len(wrong)} misclassified; most often:")
for truth, answer in often:
    print(f"  a {truth} taken for a {answer}, {pairs.count((truth, answer))}x")
unsure = sure < np.quantile(sure, 0.1)
caught = np.sum(unsure & wrong)
print(f"{caught} of the errors are in the tenth of the images it is least sure of")
assert caught >= 0.5 * wrong.sum()

# %% tags=["hide-input"] mystnb={"image": {"alt": "Up to sixteen misclassified digits, in four rows, each with the right class, an arrow, the class that the network gives and how sure it is. Many have open loops, broken or slanted strokes.", "width": "75%"}, "figure": {"caption": "Misclassified validation digits, the most confident errors first: right class, answer, and the probability of the answer."}}
worst = np.flatnonzero(wrong)[np.argsort(-sure[wrong])][:16]
figure, panels = plt.subplots(4, 4, figsize=(6, 6.6), layout="constrained")
figure.get_layout_engine().set(h_pad=0.12)
for axes in panels.flat:
    axes.axis("off")
for axes, n in zip(panels.flat, worst, strict=False):
    axes.imshow(validation.images[n, 0], cmap="Greys")
    axes.set_title(f"{validation.labels[n]}→{guess[n]}  {sure[n]:.2f}")
plt.show()

# %% [markdown]
# Some of these digits could be either class, to people as well, or have a doubtful label. Others
# are clear to us, but have a stray mark, or a shape that is rare among the training images. More
# training images would help, or small turns and shifts of the existing ones. The loss makes the
# network so sure of wrong answers: once all training images are right, the loss can only fall
# further if logits grow. Still, most errors are made where the network hesitates. If a person
# looked at the tenth of the images it is least sure of, half of the errors or more would be
# avoided, as asserted above.
#
# ## Bit-identical training
#
# Training that cannot be repeated cannot be debugged, and then no difference of a tenth of a
# percent can be trusted. Here one generator draws all random numbers, and each sum has one order,
# at any number of threads. So two runs with the same seed are bit-identical.

# %%
threads = numba.get_num_threads()
states = []
for seed, count in ((0, threads), (0, 1), (1, threads)):
    numba.set_num_threads(count)
    states.append(train(seed, most=20)[0].state_dict())
numba.set_num_threads(threads)
first, again, other = states
assert all(np.array_equal(first[name], again[name]) for name in first)
assert not np.array_equal(first["conv1.weight"], other["conv1.weight"])
print(f"seed 0, {threads} threads or 1: bit-identical; seed 1: different")

# %% [markdown]
# Another kind of processor may add up in another order, which changes rounding and so the bits.
# Then results agree as well as results of different seeds do. That is why results are given over
# several seeds.
#
# ## Exercises
#
# **1.** Write `log_softmax(logits)`, for an array of shape (classes, N), with NumPy only and
# without overflow.


# %%
def log_softmax(logits):
    return np.log(np.exp(logits) / np.exp(logits).sum(axis=0))  # overflows


check("03.log_softmax", log_softmax)

# %% [markdown]
# **2.** Write `nesterov(w, v, gradient, lr, momentum)`, which returns the new weight and the new
# velocity.


# %%
def nesterov(w, v, gradient, lr, momentum):
    return w - lr * gradient, v  # without momentum


check("03.nesterov", nesterov)

# %% [markdown]
# **3.** Write `confusion(labels, answers)`: a (10, 10) array of integers, whose element (i, j) is
# how often class i was taken for class j. Which class is missed most often, in the network above?


# %%
def confusion(labels, answers):
    return None  # yours


check("03.confusion", confusion)

# %% [markdown]
# ## What next
#
# The network is trained, and some of its filters are worth nothing. [Tutorial 4](04_gates.py) puts
# a gate on each filter. The gate learns, together with the weights, whether to be open.
#
# Solutions:


# %% tags=["hide-input"]
def log_softmax_solution(logits):
    shifted = logits - logits.max(axis=0)
    return shifted - np.log(np.exp(shifted).sum(axis=0))


def nesterov_solution(w, v, gradient, lr, momentum):
    v = momentum * v + gradient
    return w - lr * (gradient + momentum * v), v


def confusion_solution(labels, answers):
    table = np.zeros((10, 10), np.int64)
    np.add.at(table, (labels, answers), 1)
    return table


with np.errstate(all="ignore"):
    assert check("03.log_softmax", log_softmax_solution)
assert check("03.nesterov", nesterov_solution)
assert check("03.confusion", confusion_solution)
table = confusion_solution(validation.labels, guess)
missed = 1 - np.diag(table) / table.sum(axis=1)
print(f"missed most often: {missed.argmax()}, {missed.max():.1%} of them")
