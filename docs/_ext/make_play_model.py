"""Make the network of the page docs/play.md, from a run of ``minidiff train`` on MNIST.

What is committed was made by::

    minidiff train --dataset mnist --seed 0 --out RUN
    python docs/_ext/make_play_model.py RUN

It writes two files into ``docs/_static/play/``: ``lenet5.safetensors``, the compact network, and
``network.json``, which says which filters, places and units of the dense network it is made of, and
holds some images of MNIST's test set to begin with: the first of each class, and the first that
the network gets wrong, so that nobody has chosen them.
"""

import argparse
import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import minidiff as md
from minidiff.data.datasets import Split, load_dataset
from minidiff.training.runs import Run

PLAY = Path(__file__).parents[1] / "_static" / "play"
PLACES = 16  # of each channel of the second pool, 4x4, which the first dense layer reads


def left(model: md.nn.Module, small: md.nn.Module) -> dict[str, NDArray[np.int64]]:
    """List what is left of a gated LeNet5: filters, places behind the last pool, hidden units.

    Each is numbered as in the dense network, in which place ``16 c + 4 y + x`` is that of channel
    c at row y and column x.
    """
    gated, compact = dict(model.children()), dict(small.children())
    inputs = gated["dense1"].inputs.is_open()
    conv2 = gated["conv2"].outputs.is_open() & inputs.reshape(-1, PLACES).any(axis=1)
    places = inputs & conv2.repeat(PLACES)
    found = {
        "conv1": gated["conv1"].outputs.is_open(),
        "conv2": conv2,
        "places": places,
        "dense1": gated["dense1"].outputs.is_open(),
    }
    indices = {name: np.flatnonzero(is_open) for name, is_open in found.items()}
    # Compaction decides by zeros, not by gates. Weights say whether both have found the same.
    for name, sources in (("conv1", [0]), ("conv2", indices["conv1"]), ("dense1", places)):
        layer = gated[name].layer.weight.data
        layer = layer[indices[name]][:, sources] * gated[name].outputs.evaluated()[
            indices[name]
        ].reshape(-1, *[1] * (layer.ndim - 1))
        np.testing.assert_allclose(compact[name].weight.data, layer, rtol=1e-6, err_msg=name)
    return indices


def examples(test: Split, answers: NDArray[np.int64]) -> list[dict[str, Any]]:
    """Return the first image of each class, and the first that is answered wrongly."""
    first = [int(np.flatnonzero(test.labels == label)[0]) for label in range(10)]
    first.append(int(np.flatnonzero(answers != test.labels)[0]))
    return [
        {
            "index": index,
            "label": int(test.labels[index]),
            "answer": int(answers[index]),
            "pixels": base64.b64encode(test.images[index].tobytes()).decode(),
        }
        for index in first
    ]


def main() -> None:
    """Write the two files."""
    parser = argparse.ArgumentParser(description="Make the network of the page to play with.")
    parser.add_argument("run", type=Path, help="a run directory of minidiff train --dataset mnist")
    run = Run.open(parser.parse_args().run)
    config, result, checkpoint = (
        run.read_json("config.json"),
        run.read_json("result.json"),
        run.checkpoint(),
    )
    test = load_dataset("mnist", validation=config["validation"]).test
    settings = {name: checkpoint.info[name] for name in ("mean", "std")}
    shape = tuple(checkpoint.info["shape"])
    small = md.export(PLAY / "lenet5.safetensors", checkpoint.model, shape, **settings)
    answers = md.Predictor(small, shape, **settings)(test.images).argmax(axis=1)
    network = {
        "made by": [
            f"minidiff train --dataset mnist --seed {config['seed']} --out RUN",
            "python docs/_ext/make_play_model.py RUN",
        ],
        "label_smoothing": config["label_smoothing"],
        "test_images": len(test),
        "test_errors": int((answers != test.labels).sum()),
        **{name: result[name] for name in ("weights", "dense_weights", "macs", "dense_macs")},
        "left": {name: which.tolist() for name, which in left(checkpoint.model, small).items()},
        "of": {"conv1": 20, "conv2": 50, "places": 50 * PLACES, "dense1": 500},
        "examples": examples(test, answers),
    }
    lines = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in network.items()]
    (PLAY / "network.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
