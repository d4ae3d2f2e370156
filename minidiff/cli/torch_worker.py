"""The work of ``minidiff bench`` in PyTorch: a script that answers requests, one a line.

It imports nothing of minidiff, so that PyTorch runs as it does everywhere else.
"""

import json
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


def network() -> nn.Sequential:
    """Build LeNet-5-Caffe, pooled before the rectifier as in minidiff: that is less work."""
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


class Work:
    """Calls by name, made when they are first asked for."""

    def __init__(self) -> None:
        self.model = network()
        self.optimiser = torch.optim.SGD(
            self.model.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4
        )
        self.images, self.labels = torch.randn(BATCH, 1, 28, 28), torch.arange(BATCH) % 10
        self.calls: dict[str, Callable[[], Any]] = {}
        for name, channels, size, weight in (
            ("conv1", 1, 28, (20, 1, 5, 5)),
            ("conv2", 20, 12, (50, 20, 5, 5)),
        ):
            self._convolution(name, torch.randn(BATCH, channels, size, size), torch.randn(weight))
        x, w, grad = torch.randn(BATCH, 800), torch.randn(500, 800), torch.randn(BATCH, 500)
        bias = torch.randn(500)
        self.calls["dense1 forward"] = lambda: functional.linear(x, w, bias)
        self.calls["dense1 input gradient"] = lambda: grad @ w
        self.calls["dense1 weight gradient"] = lambda: grad.T @ x

    def _convolution(self, name: str, x: torch.Tensor, weight: torch.Tensor) -> None:
        bias = torch.randn(len(weight))
        grad = torch.randn_like(functional.conv2d(x, weight))
        self.calls[f"{name} forward"] = lambda: functional.conv2d(x, weight, bias)
        self.calls[f"{name} input gradient"] = lambda: conv2d_input(x.shape, weight, grad)
        self.calls[f"{name} weight gradient"] = lambda: conv2d_weight(x, weight.shape, grad)

    def train(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        """Take a training step of the dense network."""
        self.optimiser.zero_grad()
        functional.cross_entropy(self.model(images), labels).backward()
        self.optimiser.step()

    def epoch(self, count: int) -> tuple[float, float | None]:
        """Train for an epoch of so many images; return seconds and the peak memory in MB."""
        images = torch.randint(0, 256, (count, 1, 28, 28), dtype=torch.uint8)
        labels = torch.randint(0, 10, (count,))
        start = time.perf_counter()
        order = torch.randperm(count)
        for first in range(0, count, BATCH):
            picked = order[first : first + BATCH]
            self.train(images[picked].float().div_(255).sub_(0.13).div_(0.31), labels[picked])
        seconds = time.perf_counter() - start
        try:
            import resource
        except ImportError:  # on Windows
            return seconds, None
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return seconds, peak / (1e6 if sys.platform == "darwin" else 1e3)

    def predict(self, batch: int) -> Callable[[], Any]:
        """Return a call that predicts for a batch."""
        images = torch.randn(batch, 1, 28, 28)

        def call() -> None:
            with torch.inference_mode():
                self.model(images)

        return call

    def answer(self, what: str, *arguments: Any, warm_up: float, burst: int) -> Any:
        """Answer a request: a value, or the times of a burst of calls."""
        if what == "version":
            return torch.__version__
        if what == "epoch":
            return self.epoch(*arguments)
        if what == "step":
            call: Callable[[], Any] = partial(self.train, self.images, self.labels)
        elif what == "predict":
            call = self.calls.setdefault(f"predict {arguments[0]}", self.predict(*arguments))
        else:
            call = self.calls[what]
        end = time.perf_counter() + warm_up
        while time.perf_counter() < end:
            call()
        times = []
        for _ in range(burst):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        return times


def main() -> None:
    """Answer until there is nothing more to read."""
    threads, warm_up, burst = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    work = Work()
    for line in sys.stdin:
        reply = work.answer(*json.loads(line), warm_up=warm_up, burst=burst)
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main()
