"""The work of ``bench.py`` in PyTorch; ``minidiff/cli/worker.py`` runs this file.

It imports nothing of minidiff, so that PyTorch runs as it does everywhere else. Run as a script
with the number of threads, a setting and a number of images, it trains for an epoch.
"""

import json
import resource
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.nn.grad import conv2d_input, conv2d_weight

Calls = dict[tuple[str, str], Callable[[], Any]]
LAYOUTS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}
# torch.compile, for one batch size. Freezing packs the weights, which is for prediction only.
compiled = partial(torch.compile, dynamic=False)
frozen = partial(torch.compile, dynamic=False, options={"freezing": True})
# Each network, layout and number of images is compiled by itself.
torch._dynamo.config.recompile_limit = 100
torch._dynamo.config.fail_on_recompile_limit_hit = True
SETTINGS = [(layout, way) for layout in LAYOUTS for way in ("eager", "compiled")]


class Pick(nn.Module):
    """Keep some features, evenly spread."""

    def __init__(self, count: int, among: int) -> None:
        super().__init__()
        self.register_buffer("index", torch.arange(count) * among // count)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (batch, count) of (batch, among)."""
        return x.index_select(1, self.index)


def network(sizes: str, layout: str) -> nn.Sequential:
    """Build LeNet-5-Caffe of some sizes. Like minidiff it pools before the ReLU: less work.

    The first dense layer of the dense network has all 800 features. Smaller ones pick some.
    """
    conv1, conv2, inputs, units = map(int, sizes.split("-"))
    features = 16 * conv2
    return nn.Sequential(
        nn.Conv2d(1, conv1, 5),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(conv1, conv2, 5),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
        Pick(inputs, features) if inputs < features else nn.Identity(),
        nn.Linear(inputs, units),
        nn.ReLU(),
        nn.Linear(units, 10),
    ).to(memory_format=LAYOUTS[layout])


def draw(layout: str, *shape: int) -> torch.Tensor:
    """Return random numbers in a layout. With one channel, only a clone has its strides."""
    return torch.randn(shape).clone(memory_format=LAYOUTS[layout])


def training_step(sizes: str, layout: str, way: str) -> Callable[[torch.Tensor, torch.Tensor], Any]:
    """Return a function that trains a new network for a step."""
    model = network(sizes, layout)
    optimiser = torch.optim.SGD(
        model.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4, fused=True
    )
    forward = compiled(model) if way == "compiled" else model

    def step(images: torch.Tensor, labels: torch.Tensor) -> None:
        optimiser.zero_grad()
        functional.cross_entropy(forward(images), labels).backward()
        optimiser.step()

    return step


def predict(model: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor) -> None:
    """Predict for a batch."""
    with torch.inference_mode():
        model(images)


def whole_network(sizes: str, batch: int, images: list[int]) -> Calls:
    """Return the steps and predictions of a network."""
    calls: Calls = {}
    labels = torch.arange(batch) % 10
    for layout, way in SETTINGS:
        setting = f"{layout}, {way}"
        step = training_step(sizes, layout, way)
        calls[f"step {sizes}", setting] = partial(step, draw(layout, batch, 1, 28, 28), labels)
        model = network(sizes, layout).eval()
        for count in images:
            forward = frozen(model) if way == "compiled" else model
            x = draw(layout, count, 1, 28, 28)
            calls[f"predict {count}, {sizes}", setting] = partial(predict, forward, x)
    return calls


def convolution(name: str, layout: str, x: torch.Tensor, weight: torch.Tensor) -> Calls:
    """Return the three calls of a convolution."""
    bias = torch.randn(len(weight))
    grad = draw(layout, *functional.conv2d(x, weight).shape)
    return {
        (f"{name} forward", layout): partial(functional.conv2d, x, weight, bias),
        (f"{name} input gradient", layout): partial(conv2d_input, x.shape, weight, grad),
        (f"{name} weight gradient", layout): partial(conv2d_weight, x, weight.shape, grad),
    }


def single_layers(batch: int) -> Calls:
    """Return the calls of single layers."""
    calls: Calls = {}
    for layout in LAYOUTS:
        make = partial(draw, layout)
        calls |= convolution("conv1", layout, make(batch, 1, 28, 28), make(20, 1, 5, 5))
        calls |= convolution("conv2", layout, make(batch, 20, 12, 12), make(50, 20, 5, 5))
    x, weight, bias = torch.randn(batch, 800), torch.randn(500, 800), torch.randn(500)
    grad = torch.randn(batch, 500)
    calls["dense1 forward", "eager"] = partial(functional.linear, x, weight, bias)
    calls["dense1 input gradient", "eager"] = partial(torch.mm, grad, weight)
    calls["dense1 weight gradient", "eager"] = partial(torch.mm, grad.T, x)
    return calls


def work(
    threads: int, batch: int, images: list[int], networks: dict[str, str]
) -> tuple[str, Calls]:
    """Return the version of PyTorch, and every call."""
    torch.set_num_threads(threads)
    calls = single_layers(batch)
    for sizes in networks:
        calls |= whole_network(sizes, batch, images)
    return torch.__version__, calls


def epoch(setting: str, count: int, batch: int, sizes: str) -> dict[str, float]:
    """Train for an epoch; return its seconds and the peak memory of the process."""
    images = torch.randint(0, 256, (count, 1, 28, 28), dtype=torch.uint8)
    labels = torch.randint(0, 10, (count,))
    layout, way = setting.split(", ")
    train = training_step(sizes, layout, way)

    def step(picked: torch.Tensor) -> None:
        x = images[picked].float().div_(255).sub_(0.13).div_(0.31)
        train(x.clone(memory_format=LAYOUTS[layout]), labels[picked])

    for warm_up in (batch, count % batch):
        step(torch.arange(warm_up))
    start = time.perf_counter()
    for picked in torch.randperm(count).split(batch):
        step(picked)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KB
    return {"seconds": seconds, "megabytes": peak / 1e3}


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[1]))
    print(json.dumps(epoch(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5])))
