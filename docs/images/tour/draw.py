"""Draw the pictures of the tour beside this file: ``python docs/images/tour/draw.py``."""

from pathlib import Path

BLUE, RED, GREEN, INK, MUTED, FAINT, PAPER = (
    *("#0072B2", "#D55E00", "#009E73", "#1F2328", "#59626C"),
    *("#E4E7EB", "#FFFFFF"),
)


class Picture:
    """An SVG that grows by shapes; sizes are in pixels."""

    def __init__(self, width: float, height: float, title: str) -> None:
        self.size, self.title, self.shapes = (width, height), title, [""]

    def add(self, shape: str) -> None:
        self.shapes.append(shape)

    def box(
        self,
        x: float,
        y: float,
        w: float,
        h: float,
        text: str = "",
        *,
        fill: str = PAPER,
        line: str = MUTED,
        ink: str = INK,
        round_: float = 6,
        dash: str = "",
        size: float = 14,
    ) -> None:
        dashes = f' stroke-dasharray="{dash}"' if dash else ""
        self.add(
            f'<rect x="{x}" y="{y}" width="{w}" height="{h}" rx="{round_}" fill="{fill}" '
            f'stroke="{line}" stroke-width="1.5"{dashes}/>'
        )
        for i, part in enumerate(text.split("\n")):
            lines = text.count("\n")
            self.text(x + w / 2, y + h / 2 + 5 + 17 * (i - lines / 2), part, ink=ink, size=size)

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        ink: str = INK,
        size: float = 14,
        anchor: str = "middle",
        bold: bool = False,
    ) -> None:
        weight = ' font-weight="600"' if bold else ""
        self.add(
            f'<text x="{x}" y="{y}" fill="{ink}" font-size="{size}" text-anchor="{anchor}"'
            f"{weight}>{text}</text>"
        )

    def line(
        self, *points: float, ink: str = MUTED, arrow: bool = False, wide: float = 1.5
    ) -> None:
        pairs = " ".join(f"{x},{y}" for x, y in zip(points[::2], points[1::2], strict=True))
        head = f' marker-end="url(#{"r" if ink == RED else "m"})"' if arrow else ""
        self.add(
            f'<polyline points="{pairs}" fill="none" stroke="{ink}" stroke-width="{wide}"{head}/>'
        )

    def write(self, name: str) -> None:
        width, height = self.size
        heads = "".join(
            f'<marker id="{i}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
            f'markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z" fill="{ink}"/></marker>'
            for i, ink in (("m", MUTED), ("r", RED))
        )
        svg = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'width="{width}" height="{height}" role="img" font-family="system-ui, sans-serif">'
            f"<title>{self.title}</title><defs>{heads}</defs>"
            f'<rect width="{width}" height="{height}" rx="10" fill="{PAPER}"/>'
            + "\n".join(self.shapes)
            + "\n</svg>\n"
        )
        Path(__file__).with_name(f"{name}.svg").write_text(svg, encoding="utf-8")


def tape() -> None:
    """Draw the tape of a product plus a constant."""
    p = Picture(720, 250, "The tape of a loss")
    p.text(20, 30, "loss = (w * x + b).sum()", anchor="start", bold=True)
    for y, name in ((60, "w"), (120, "x"), (180, "b")):
        learned = name != "x"
        p.box(20, y, 70, 40, name, line=BLUE if learned else MUTED, ink=BLUE if learned else INK)
    p.box(170, 90, 100, 40, "Multiply", fill=FAINT)
    p.box(320, 90, 90, 40, "w * x")
    p.box(450, 135, 70, 40, "Add", fill=FAINT)
    p.box(560, 90, 130, 40, "w * x + b")
    p.box(560, 180, 60, 40, "Sum", fill=FAINT)
    p.box(640, 180, 60, 40, "loss")
    # From a result to its node, and from the node to its inputs: the way back.
    for points in (
        (170, 103, 92, 80), (170, 118, 92, 140), (320, 110, 272, 110), (450, 150, 412, 118),
        (450, 160, 92, 200), (560, 115, 522, 148), (640, 200, 622, 200), (590, 180, 620, 132),
    ):  # fmt: skip
        p.line(*points, arrow=True)
    p.text(20, 240, "arrows point back: a result to the op that made it, an op to its inputs",
           ink=MUTED, size=12, anchor="start")  # fmt: skip
    p.write("tape")


def live_rows() -> None:
    """Draw which rows an op reads and writes."""
    p = Picture(720, 300, "Live rows")
    stages = (("filters", 40), ("convolution", 210), ("ReLU, pool", 380), ("next layer", 550))
    for name, x in stages:
        p.text(x + 60, 30, name, bold=True)
    for row in range(6):
        y, live = 50 + 34 * row, row in (1, 4)
        for i, (_, x) in enumerate(stages):
            if i < 3:
                ink = BLUE if live else MUTED
                p.box(x, y, 120, 24, ("gate open" if live else "gate closed") if i == 0 else "",
                      fill="#DCEBF5" if live else PAPER, line=ink, ink=ink,
                      dash="" if live else "3 4", round_=3, size=12)  # fmt: skip
            if i < 2 and live:
                p.line(x + 124, y + 12, x + 166, y + 12, arrow=True)
    p.box(550, 101, 120, 72, "sums over\n2 rows of 6", line=BLUE, ink=BLUE)
    p.line(504, 96, 546, 122, arrow=True)
    p.line(504, 198, 546, 152, arrow=True)
    p.text(40, 280, "live = [1, 4]   no op computes the dashed rows", size=13,
           ink=MUTED, anchor="start")  # fmt: skip
    p.write("live-rows")


def batch_last() -> None:
    """Draw a feature map with the batch last."""
    p = Picture(720, 230, "Batch last")
    p.text(20, 30, "one channel, (H, W, N): rows of positions, the samples of each side by side",
           anchor="start", bold=True)  # fmt: skip
    shades = ("#DCEBF5", "#B9D7EA", "#96C3DF", "#73AFD4")
    for row in range(2):
        for position in range(5):
            for sample in range(4):
                x = 60 + 125 * position + 28 * sample
                p.box(x, 50 + 52 * row, 28, 30, str(sample), fill=shades[sample], line=PAPER,
                      round_=0, size=12)  # fmt: skip
            p.text(60 + 125 * position + 56, 46 + 52 * row if row == 0 else 98,
                   "", size=11)  # fmt: skip
        p.text(48, 70 + 52 * row, f"y={row}", size=12, ink=MUTED, anchor="end")
    for position in range(5):
        p.text(116 + 125 * position, 155, f"x={position}", size=12, ink=MUTED)
    p.line(60, 175, 672, 175, ink=BLUE, wide=2)
    p.text(366, 198, "one row is one run of W * N numbers in memory, and one inner loop",
           ink=BLUE, size=13)  # fmt: skip
    p.write("batch-last")


def taps() -> None:
    """Draw a tap and its span."""
    p = Picture(720, 300, "Taps and spans")
    p.text(20, 28, "input", anchor="start", bold=True)
    p.text(440, 28, "output, kernel 3x3", anchor="start", bold=True)
    for y in range(4):
        for x in range(8):
            p.box(20 + 42 * x, 42 + 42 * y, 38, 38, "", line=FAINT, round_=3)
    for y in range(2):
        for x in range(6):
            span = y == 0
            p.box(440 + 42 * x, 42 + 42 * y, 38, 38, "", line=BLUE if span else FAINT,
                  fill="#DCEBF5" if span else PAPER, round_=3)  # fmt: skip
    # What the span reads through one tap: a run of the input, shifted.
    for x in range(6):
        p.box(20 + 42 * (x + 2), 42 + 42, 38, 38, "", line=RED, fill="#FBE6D9", round_=3)
    p.line(402, 103, 402, 103)
    p.line(362, 103, 436, 66, ink=RED, arrow=True)
    p.text(440, 150, "a span: 6 positions with the same taps", ink=BLUE, size=13, anchor="start")
    p.text(20, 240, "one of its nine taps: kernel position (1, 2) reads this run of the input",
           ink=RED, size=13, anchor="start")  # fmt: skip
    p.text(20, 268, "output run += weight[1, 2] * input run", size=14, anchor="start", bold=True)
    p.write("taps")


def gate() -> None:
    """Draw one gate and its derivative."""
    p = Picture(720, 260, "The gate transform")
    left, right, top, bottom = 60, 660, 40, 190

    def at(x: float, z: float) -> tuple[float, float]:
        return left + (x + 1.5) / 3 * (right - left), bottom - z * (bottom - top)

    for low, high, fill, name in (
        (-1.5, -0.5, "#F3F4F6", "closed: z = 0, slope 0"),
        (-0.5, 0.5, "#FBE6D9", "in transition"),
        (0.5, 1.5, "#DCEBF5", "fully open: z = 1, slope 0"),
    ):
        (x0, _), (x1, _) = at(low, 0), at(high, 0)
        p.add(f'<rect x="{x0}" y="{top - 15}" width="{x1 - x0}" height="{bottom - top + 15}" '
              f'fill="{fill}"/>')  # fmt: skip
        p.text((x0 + x1) / 2, 244, name, size=12, ink=MUTED)
    points: list[float] = []
    for i in range(151):
        x = -1.5 + 3 * i / 150
        t = min(1.0, max(0.0, x + 0.5))
        points += at(x, t * t * (3 - 2 * t))
    p.line(left, bottom, right, bottom, ink=MUTED)
    p.line(*points, ink=BLUE, wide=3)
    for x, name in ((-0.5, "-w/2"), (0.0, "0"), (0.5, "w/2")):
        p.text(at(x, 0)[0], 210, name, size=13)
    p.text(right + 8, 196, "phi", size=13, anchor="start")
    p.text(50, 45, "1", size=13, anchor="end")
    p.text(50, 194, "0", size=13, anchor="end")
    p.write("gate")


def walk() -> None:
    """Draw the walk through LeNet5."""
    p = Picture(720, 260, "The walk through a network")
    for x, name in ((20, "conv1"), (180, "pool"), (300, "conv2"), (440, "flatten"), (580, "dense")):
        heavy = name in ("conv1", "conv2", "dense")
        p.box(x, 60, 110 if heavy else 90, 44, name, fill="#DCEBF5" if heavy else FAINT,
              line=BLUE if heavy else MUTED)  # fmt: skip
    for x0, x1 in ((130, 178), (270, 298), (410, 438), (530, 578)):
        p.line(x0, 82, x1, 82, arrow=True)
    p.text(75, 40, "stage 1", ink=BLUE, size=12)
    p.text(355, 40, "stage 2", ink=BLUE, size=12)
    p.text(635, 40, "stage 3", ink=BLUE, size=12)
    p.box(150, 140, 130, 62, "channels\ngate of filter 0..5", size=12, line=RED, ink=RED)
    p.box(425, 140, 150, 62, "features\ngate of their filter,\nand of the input", size=12, line=RED,
          ink=RED)  # fmt: skip
    p.line(215, 138, 155, 86, ink=RED, arrow=True)
    p.line(500, 138, 554, 86, ink=RED, arrow=True)
    p.text(20, 240, "a weight of conv2 is left if the gate of its filter and the gate of its input "
           "channel are open", size=13, anchor="start", ink=MUTED)  # fmt: skip
    p.write("walk")


for draw in (tape, live_rows, batch_last, taps, gate, walk):
    draw()
