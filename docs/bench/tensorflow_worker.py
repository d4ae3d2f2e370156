"""The work of ``bench.py`` in TensorFlow; ``minidiff/cli/worker.py`` runs this file.

It imports nothing of minidiff. On processors, TensorFlow trains in the layout NHWC only.
"""

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"  # errors only

import tensorflow as tf

tf.get_logger().setLevel("ERROR")  # no advice on tracing: each number of images is traced once

Calls = dict[tuple[str, str], Callable[[], Any]]


def work(
    threads: int, batch: int, images: list[int], networks: dict[str, str]
) -> tuple[str, Calls]:
    """Return the version of TensorFlow, and every call."""
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    calls: Calls = {}
    for sizes in networks:
        for setting, jit in {"NHWC": False, "NHWC, jit_compile": True}.items():
            calls |= network(sizes, setting, jit, batch, images)
    return tf.__version__, calls


def draw(*shape: int) -> Any:
    """Return small random numbers."""
    return tf.constant(0.1 * np.random.default_rng(0).standard_normal(shape, np.float32))


def network(sizes: str, setting: str, jit: bool, batch: int, images: list[int]) -> Calls:
    """Return the training step and the predictions of LeNet-5-Caffe of some sizes."""
    conv1, conv2, inputs, units = map(int, sizes.split("-"))
    features = 16 * conv2
    picked = tf.constant(np.arange(inputs) * features // inputs)
    shapes = (
        *((5, 5, 1, conv1), (conv1,), (5, 5, conv1, conv2), (conv2,)),
        *((inputs, units), (units,), (units, 10), (10,)),
    )
    weights = [tf.Variable(draw(*shape)) for shape in shapes]
    moments = [tf.Variable(tf.zeros_like(weight)) for weight in weights]

    def convolve(x: Any, weight: Any, bias: Any) -> Any:
        x = tf.nn.bias_add(tf.nn.conv2d(x, weight, 1, "VALID"), bias)
        return tf.nn.relu(tf.nn.max_pool2d(x, 2, 2, "VALID"))

    def forward(x: Any) -> Any:
        x = tf.reshape(convolve(convolve(x, *weights[:2]), *weights[2:4]), (-1, features))
        if inputs < features:
            x = tf.gather(x, picked, axis=1)
        return tf.nn.relu(x @ weights[4] + weights[5]) @ weights[6] + weights[7]

    def update(x: Any, labels: Any) -> Any:
        with tf.GradientTape() as tape:
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, forward(x))
            loss = tf.reduce_mean(losses)
        grads = tape.gradient(loss, weights)
        for weight, moment, grad in zip(weights, moments, grads, strict=True):
            tf.raw_ops.ResourceApplyKerasMomentum(
                var=weight.handle, accum=moment.handle, lr=0.01, grad=grad + 5e-4 * weight,
                momentum=0.9, use_nesterov=True,
            )  # fmt: skip
        return loss

    train, predict = tf.function(update, jit_compile=jit), tf.function(forward, jit_compile=jit)
    x, labels = draw(batch, 28, 28, 1), tf.range(batch) % 10
    calls: Calls = {(f"step {sizes}", setting): lambda: train(x, labels).numpy()}
    for count in images:
        call = partial(forced, predict, draw(count, 28, 28, 1))
        calls[f"predict {count}, {sizes}", setting] = call
    return calls


def forced(function: Callable[[Any], Any], x: Any) -> None:
    """Call, and wait for the result."""
    function(x).numpy()
