"""The work of ``bench.py`` in PyTorch: a process that answers requests, one a line.

It imports nothing of minidiff, so that PyTorch runs as it does everywhere else. A request is the
name of a call; the reply is the list of seconds of a burst of calls. The names are those of
``minidiff.cli.bench``.
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

BATCH = 128
DENSE = "20-50-800-500"


def network() -> nn.Sequential:
    """Build LeNet-5-Caffe. Like minidiff it pools before the ReLU, which is less work."""
    return nn.Sequential(
        nn.Conv2d(1, 20, 5),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(20, 50, 5),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(800, 500),
        nn.ReLU(),
        nn.Linear(500, 10),
    )


def training_step() -> Callable[[torch.Tensor, torch.Tensor], None]:
    """Return a function that trains a new dense network for a step."""
    model = network()
    optimiser = torch.optim.SGD(
        model.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4
    )

    def step(images: torch.Tensor, labels: torch.Tensor) -> None:
        optimiser.zero_grad()
        functional.cross_entropy(model(images), labels).backward()
        optimiser.step()

    return step


def convolution(name: str, x: torch.Tensor, weight: torch.Tensor) -> dict[str, Callable[[], Any]]:
    """Return the three calls of a convolution."""
    bias, grad = torch.randn(len(weight)), torch.randn_like(functional.conv2d(x, weight))
    return {
        f"{name} forward": partial(functional.conv2d, x, weight, bias),
        f"{name} input gradient": partial(conv2d_input, x.shape, weight, grad),
        f"{name} weight gradient": partial(conv2d_weight, x, weight.shape, grad),
    }


def predict(model: nn.Module, images: torch.Tensor) -> None:
    """Predict for a batch."""
    with torch.inference_mode():
        model(images)


def calls() -> dict[str, Callable[[], Any]]:
    """Return every call by its name."""
    draw = torch.randn
    x, weight, bias, grad = draw(BATCH, 800), draw(500, 800), draw(500), draw(BATCH, 500)
    images, labels = draw(BATCH, 1, 28, 28), torch.arange(BATCH) % 10
    found = convolution("conv1", draw(BATCH, 1, 28, 28), draw(20, 1, 5, 5))
    found |= convolution("conv2", draw(BATCH, 20, 12, 12), draw(50, 20, 5, 5))
    found |= {
        "dense1 forward": partial(functional.linear, x, weight, bias),
        "dense1 input gradient": lambda: grad @ weight,
        "dense1 weight gradient": lambda: grad.T @ x,
        f"step {DENSE}": partial(training_step(), images, labels),
    }
    model = network()
    for count in (1, 128, 1000):
        found[f"predict {count}, {DENSE}"] = partial(predict, model, draw(count, 1, 28, 28))
    return found


def epoch(count: int) -> dict[str, float]:
    """Train for an epoch; return its seconds and the peak memory of the process."""
    images = torch.randint(0, 256, (count, 1, 28, 28), dtype=torch.uint8)
    labels = torch.randint(0, 10, (count,))
    step = training_step()
    step(images[:BATCH].float(), labels[:BATCH])  # warms up
    start = time.perf_counter()
    for picked in torch.randperm(count).split(BATCH):
        step(images[picked].float().div_(255).sub_(0.13).div_(0.31), labels[picked])
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KB
    return {"seconds": seconds, "megabytes": peak / 1e3}


def burst(call: Callable[[], Any], warm_up: float, count: int) -> list[float]:
    """Call until everything is warm, then so often; return the seconds of these."""
    end = time.perf_counter() + warm_up
    while time.perf_counter() < end:
        call()
    times = []
    for _ in range(count):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return times


def main() -> None:
    """Run an epoch, or answer requests until there are no more."""
    threads, *work = sys.argv[1:]
    torch.set_num_threads(int(threads))
    torch.manual_seed(0)
    if work[0] == "epoch":
        print(json.dumps(epoch(int(work[1]))))
        return
    found = calls()
    print(json.dumps([torch.__version__, list(found)]), flush=True)
    for line in sys.stdin:
        times = burst(found[json.loads(line)], float(work[0]), int(work[1]))
        print(json.dumps(times), flush=True)


if __name__ == "__main__":
    main()
