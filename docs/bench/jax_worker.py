"""The work of ``bench.py`` in JAX; ``minidiff/cli/worker.py`` runs this file.

It imports nothing of minidiff. JAX is imported after the number of threads is set.
"""

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

Calls = dict[tuple[str, str], Callable[[], Any]]
LAYOUTS = {"NCHW": "OIHW", "NHWC": "HWIO"}  # of images and of weights


def work(
    threads: int, batch: int, images: list[int], networks: dict[str, str]
) -> tuple[str, Calls]:
    """Return the version of JAX, and every call."""
    # JAX has as many threads as the process has cores.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    os.environ["XLA_FLAGS"] = f"--xla_cpu_multi_thread_eigen={str(threads > 1).lower()}"
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax

    calls: Calls = {}
    for sizes in networks:
        for layout in LAYOUTS:
            calls |= network(sizes, layout, batch, images)
    return jax.__version__, calls


def network(sizes: str, layout: str, batch: int, images: list[int]) -> Calls:
    """Return the training step and the predictions of LeNet-5-Caffe of some sizes."""
    import jax
    from jax import lax
    from jax import numpy as jnp

    conv1, conv2, inputs, units = map(int, sizes.split("-"))
    features = 16 * conv2
    channel = [-1 if axis == "C" else 1 for axis in layout]
    window = [2 if axis in "HW" else 1 for axis in layout]
    picked = jnp.arange(inputs) * features // inputs
    rng = np.random.default_rng(0)

    def draw(axes: str, **lengths: int) -> jax.Array:
        shape = [lengths[axis] for axis in axes]
        return jnp.asarray(0.1 * rng.standard_normal(shape, np.float32))

    def draw_weights() -> list[jax.Array]:
        kernel = partial(draw, LAYOUTS[layout], H=5, W=5)
        return [
            *(kernel(I=1, O=conv1), draw("O", O=conv1), kernel(I=conv1, O=conv2)),
            *(draw("O", O=conv2), draw("IO", I=inputs, O=units), draw("O", O=units)),
            *(draw("IO", I=units, O=10), draw("O", O=10)),
        ]

    def convolve(x: jax.Array, weight: jax.Array, bias: jax.Array) -> jax.Array:
        axes = (layout, LAYOUTS[layout], layout)
        x = lax.conv_general_dilated(x, weight, (1, 1), "VALID", dimension_numbers=axes)
        x += bias.reshape(channel)
        return jax.nn.relu(lax.reduce_window(x, -jnp.inf, lax.max, window, window, "VALID"))

    def forward(weights: list[jax.Array], x: jax.Array) -> jax.Array:
        x = convolve(convolve(x, *weights[:2]), *weights[2:4]).reshape(len(x), features)
        if inputs < features:
            x = x[:, picked]
        return jax.nn.relu(x @ weights[4] + weights[5]) @ weights[6] + weights[7]

    def loss(weights: list[jax.Array], x: jax.Array, labels: jax.Array) -> jax.Array:
        logs = jax.nn.log_softmax(forward(weights, x))
        return -jnp.take_along_axis(logs, labels[:, None], axis=1).mean()

    @partial(jax.jit, donate_argnums=(0, 1))
    def update(weights: Any, moments: Any, x: jax.Array, labels: jax.Array) -> Any:
        grads = jax.grad(loss)(weights, x, labels)
        grads = [grad + 5e-4 * weight for grad, weight in zip(grads, weights, strict=True)]
        moments = [0.9 * m + grad for m, grad in zip(moments, grads, strict=True)]
        steps = [0.01 * (grad + 0.9 * m) for m, grad in zip(moments, grads, strict=True)]
        return [weight - step for weight, step in zip(weights, steps, strict=True)], moments

    state = [draw_weights(), [jnp.zeros_like(weight) for weight in draw_weights()]]
    x, labels = draw(layout, N=batch, C=1, H=28, W=28), jnp.arange(batch) % 10

    def step() -> None:
        state[:] = update(*state, x, labels)
        jax.block_until_ready(state)

    def predict(x: jax.Array) -> None:
        predicted(weights, x).block_until_ready()

    weights, predicted = draw_weights(), jax.jit(forward)
    calls: Calls = {(f"step {sizes}", layout): step}
    for count in images:
        x1 = draw(layout, N=count, C=1, H=28, W=28)
        calls[f"predict {count}, {sizes}", layout] = partial(predict, x1)
    return calls
