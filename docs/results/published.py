"""Published results of pruned LeNets on MNIST: what was reported, and where.

Most of these scripts report the best test epoch of one run, and some choose their settings on the
test set. Our runs report the last epoch, as mean and standard deviation over seeds. So a table of
both shows where a result lies. It is not a race.
"""

from typing import NamedTuple


def lenet5_cost(architecture: str) -> tuple[int, int]:
    """Return the weights, without biases, and the MACs of a LeNet5 such as "8-10-112-68"."""
    a, b, c, d = map(int, architecture.split("-"))
    dense = c * d + 10 * d
    return 25 * a + 25 * a * b + dense, 25 * 576 * a + 25 * 64 * a * b + dense


class Published(NamedTuple):
    """One published result.

    ``setting`` is "structured" or "unstructured" (LeNet5), or "lenet300" (unstructured). Errors are
    in %. Where the whole architecture is known, savings follow from it; elsewhere they are those
    reported, if any.
    """

    setting: str
    method: str
    error: float
    source: str
    architecture: str = ""
    fewer_weights: float | None = None
    fewer_macs: float | None = None
    deviation: float | None = None
    note: str = ""

    def fewer(self, what: str) -> float | None:
        """Return how many times fewer "weights" or "macs" there are, None if unknown."""
        index = ("weights", "macs").index(what)
        if self.architecture:
            return lenet5_cost("20-50-800-500")[index] / lenet5_cost(self.architecture)[index]
        return (self.fewer_weights, self.fewer_macs)[index]


TANG = "table in Tang et al. 2018"
SBP = "README of necludov/group-sparsity-sbp"
DROPOUTS = "OpenXAIProject/Variational_Dropouts"
CONSTRAINED = "results of gallego-posada/constrained_sparsity"
CHART = "read off a chart; best epoch"

PUBLISHED = (
    Published(
        "structured", "DiffPrune (the paper)", 0.6, "entry of arXiv:2012.03653 on Papers with Code",
        note="architecture and savings are not known to us",
    ),
    Published("structured", "L0 hard concrete, lambda/N", 0.9, TANG, "20-25-45-462"),
    Published("structured", "L0 hard concrete, lambda per layer", 1.0, TANG, "9-18-65-25"),
    Published(
        "structured", "L0 constrained", 1.01, CONSTRAINED, fewer_weights=12.9, fewer_macs=2.2,
        deviation=0.05, note="last epoch, five seeds",
    ),
    Published(
        "structured", "L0 constrained, layerwise", 0.91, CONSTRAINED, fewer_weights=42.6,
        fewer_macs=6.7, deviation=0.05, note="last epoch, five seeds",
    ),
    Published("structured", "SBP", 0.86, SBP, "3-18-284-283"),
    Published("structured", "Sparse VD, structured", 0.75, SBP, "17-32-329-75"),
    Published("structured", "BC-GNJ", 1.0, TANG, "8-13-88-13"),
    Published("structured", "BC-GHS", 1.0, TANG, "5-10-76-16"),
    Published("structured", "GD", 1.1, TANG, "7-13-208-16"),
    Published("structured", "Scalpel", 0.66, "README of Scalpel", "9-18-288-65"),
    Published(
        "structured", "Beta-Bernoulli dropout, 1e-2", 0.57, DROPOUTS, "13-25-156-54",
        note=CHART,
    ),
    Published(
        "structured", "Beta-Bernoulli dropout, 5e-2", 0.67, DROPOUTS, "13-20-99-30",
        note=CHART,
    ),
    Published("structured", "SVD, 1e-2", 0.72, DROPOUTS, "10-16-238-29", note=CHART),
    Published("structured", "SSL, 1e-4", 0.86, DROPOUTS, "7-14-189-13", note=CHART),
    Published("unstructured", "Han et al. 2015", 0.77, "GSM poster", fewer_weights=12),
    Published("unstructured", "SNIP", 0.8, "SNIP, table 1", fewer_weights=50),
    Published("unstructured", "SNIP", 1.1, "SNIP, table 1", fewer_weights=100),
    Published("unstructured", "ADMM", 0.8, "Progressive ADMM, table 5", fewer_weights=71),
    Published(
        "unstructured", "Dynamic Network Surgery", 0.91, "the released model, evaluated again",
        fewer_weights=108, note="weights counted in the model",
    ),
    Published("unstructured", "GSM", 0.78, "GSM poster", fewer_weights=125),
    Published("unstructured", "GSM", 0.94, "GSM poster", fewer_weights=300),
    Published(
        "unstructured", "Sparse VD", 0.75, "README of variational-dropout-sparsifies-dnn",
        fewer_weights=280,
    ),
    Published("unstructured", "Soft weight sharing", 0.97, "SWS, table 1", fewer_weights=200),
    Published("lenet300", "Han et al. 2015", 1.59, "GSM poster", fewer_weights=12),
    Published("lenet300", "GSM", 1.82, "GSM poster", fewer_weights=60),
    Published(
        "lenet300", "Sparse VD", 1.92, "README of variational-dropout-sparsifies-dnn",
        fewer_weights=68,
    ),
    Published(
        "lenet300", "Dynamic Network Surgery", 1.99, "the released model", fewer_weights=53.5,
        note="weights counted in the model",
    ),
    Published("lenet300", "Soft weight sharing", 1.94, "SWS, table 1", fewer_weights=23),
    Published(
        "lenet300", "L0 constrained", 1.77, CONSTRAINED, fewer_weights=3.8, deviation=0.08,
        note="last epoch, five seeds",
    ),
)  # fmt: skip
