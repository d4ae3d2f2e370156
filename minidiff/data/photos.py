"""A picture of one handwritten digit, of any kind, made into what the network was trained on.

That is MNIST, as Y. LeCun, C. Cortes and C. Burges describe it: light ink on black, a digit that
keeps its proportions within 20x20 pixels, centred by its mass in 28x28. :func:`prepare_digit`
takes a file there. It finds out whether the ink is dark or light, divides by the ground, and keeps
the ink that stands out from the noise and is neither a speck nor comes in from the border.
"""

import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from minidiff.io.extras import extra

__all__ = ["ImageError", "Prepared", "prepare_digit", "prepare_pixels"]

Grey: TypeAlias = NDArray[np.float64]

# Each decoder is a way in for hostile files, so only those that pictures come in.
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "PPM", "TIFF", "WEBP")
LARGEST = 1024  # pixels along a side of an image; a larger one is reduced first
WORK = 160  # ink is looked for in WORK**2 pixels
FIRST = 0.6  # the digit's size for the first look, of the shorter side
STROKE = 0.4  # of the digit's size: strokes are narrower, shadows and tables are wider
NOISE = 3.0  # how many standard deviations of the ground ink is away from it, at least ...
FAINT = 0.02  # ... and which share of the light it takes away
BLOCK = 3  # pixels along a side; ink in blocks that touch hangs together, over small gaps too
SPECK = 0.1  # of the largest piece of ink; a smaller piece is dirt
THIN, USUAL = 1.7, 2.2  # strokes in 20x20 pixels; in MNIST 95 % are wider than the first


class ImageError(ValueError):
    """An image that cannot be read or holds no digit."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """An image of a digit as the network expects it.

    Attributes
    ----------
    pixels : ndarray of uint8, shape (28, 28)
        The ink is light, the ground 0.
    notes : tuple of str
        What was done, in short phrases, in order.

    Examples
    --------
    See :func:`prepare_pixels`.
    """

    pixels: NDArray[np.uint8]  # shape (28, 28); the ink is light, the ground 0
    notes: tuple[str, ...]  # what was done, in short phrases, in order


def prepare_digit(path: str | Path) -> Prepared:
    """Bring an image file of one digit to 28x28 pixels like those of MNIST.

    Parameters
    ----------
    path
        A PNG, JPEG, GIF, BMP, PPM, TIFF or WebP of any size and colours; of several frames the
        first.

    Raises
    ------
    ImageError
        If the file cannot be read as such an image, or there is no ink in it.
    ImportError
        If Pillow is not installed.

    Examples
    --------
    >>> import tempfile
    >>> from PIL import Image
    >>> stroke = np.full((90, 60), 230, np.uint8)
    >>> stroke[20:70, 27:34] = 40
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     Image.fromarray(stroke).save(f"{directory}/one.png")
    ...     prepare_digit(f"{directory}/one.png").notes[0]
    '60x90 pixels, L'
    """
    path = Path(path)
    if not path.is_file():
        found = "is a directory" if path.is_dir() else "there is no such file"
        raise ImageError(f"{path}: {found}; expected an image file. Check the path.")
    extra("PIL", "pillow")  # what goes wrong below is the file's fault
    try:
        grey, note = _decode(path)
        prepared = prepare_pixels(grey)
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from error
    except Exception as error:  # decoders raise whatever the bytes of a file lead them to
        raise ImageError(
            f"{path}: cannot be read as an image ({type(error).__name__}: {error}); expected a "
            f"complete file of {', '.join(FORMATS)}, not too large. With another program, crop the "
            f"image to the digit and save it as PNG."
        ) from error
    return Prepared(prepared.pixels, (note, *prepared.notes))


def _decode(path: Path) -> tuple[NDArray[Any], str]:
    """Return the grey levels of a file, within 0..255, and a note on what it held."""
    from PIL import Image, ImageOps

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about what is odd in a file that can be read all the same
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(path, formats=FORMATS) as file:
            note = f"{file.width}x{file.height} pixels, {file.mode}"
            if max(file.size) > LARGEST:
                note += f", reduced to {LARGEST} along the longer side"
            file.draft(None, (LARGEST, LARGEST))  # JPEGs can be decoded at a fraction of their size
            image = ImageOps.exif_transpose(file)
    if image.mode.startswith(("I", "F")):  # 16 bits and more, or numbers in a scale of their own
        levels = np.asarray(image, dtype=np.float64)
        scale = 65535 if "I" in image.mode else max(float(levels.max()), 1e-30)
        image = Image.fromarray((levels * (255 / scale)).astype(np.float32))
    elif "transparency" in image.info or image.mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        # Drawn in white, it was meant for a dark ground.
        image = image.convert("RGBA")
        shade, alpha = np.moveaxis(np.asarray(image.convert("LA"), dtype=np.float64), -1, 0)
        dark = (shade * alpha).sum() < 127.5 * alpha.sum()
        ground = Image.new("RGBA", image.size, "white" if dark else "black")
        image = Image.alpha_composite(ground, image).convert("L")
    else:
        image = image.convert("L")
    image.thumbnail((LARGEST, LARGEST))
    return np.clip(np.asarray(image), 0, 255), note  # reducing floats overshoots at sharp edges


def prepare_pixels(grey: NDArray[Any]) -> Prepared:
    """Bring grey levels of one digit to 28x28 pixels like those of MNIST.

    Parameters
    ----------
    grey
        Shape (H, W), of a real dtype, from 0 (black) to 255 (white).

    Returns
    -------
    Prepared
        With the pixels of ``grey``, bit for bit, if they are like those of MNIST already.

    Raises
    ------
    ImageError
        If ``grey`` is not such an array, or there is no ink in it.

    Examples
    --------
    >>> grey = np.full((90, 60), 230)
    >>> grey[20:70, 27:34] = 40
    >>> prepare_pixels(grey).notes
    ('dark ink on light ground: inverted', 'cropped to the ink, 7x50 pixels',
     'scaled to 3x20, centred by mass')
    """
    levels = np.asarray(grey)
    if levels.ndim != 2 or levels.size == 0:
        raise ImageError(f"grey levels have shape {levels.shape}; expected (H, W), 1x1 or more.")
    # Written so that NaN, which compares false with everything, is found too.
    if levels.dtype.kind not in "uif" or not ((levels >= 0) & (levels <= 255)).all():
        raise ImageError(
            f"grey levels are {levels.dtype} and not all within 0..255; expected real numbers "
            f"from 0 (black) to 255 (white)."
        )
    levels = levels.astype(np.float64)
    if _is_like_mnist(levels):
        return Prepared(levels.astype(np.uint8), ("like MNIST already: left as it is",))

    # Strokes differ much from what is around them, and what is around them differs little but over
    # a wide area. So differences from the local mean, cubed, lean towards the ink, whereas the two
    # sides of a shadow's edge, and noise, cancel out.
    work = _resampled(levels, WORK / math.sqrt(levels.size))
    detail = work - _local_mean(work, round(0.2 * min(work.shape)))
    light = (detail**3).sum() > 0
    notes = ["light ink on dark ground" if light else "dark ink on light ground: inverted"]
    ink, uneven, size = _digit(255 - levels if light else levels)
    if uneven:
        notes.append("uneven light: divided by the ground")
    notes.append(f"cropped to the ink, {size[1]:.0f}x{size[0]:.0f} pixels")

    # Twice the area over the length of the outline, which is the total variation.
    around = np.pad(ink, 1)
    outline = np.hypot(np.diff(around, axis=0)[:, 1:], np.diff(around, axis=1)[1:]).sum()
    stroke = 2 * ink.sum() / outline * 20 / max(ink.shape)
    if stroke < THIN:
        reach = round((USUAL - stroke) / 2 * max(ink.shape) / 20)
        ink = _slide(np.pad(ink, reach), reach, np.maximum)
        notes.append(f"strokes {stroke:.1f} pixels wide at 20x20: thickened")
    small = _resampled(ink, 20 / max(ink.shape))
    height, width = small.shape
    y, x = _centre(small)
    top, left = min(max(0, round(14 - y)), 28 - height), min(max(0, round(14 - x)), 28 - width)
    pixels = np.zeros((28, 28), dtype=np.uint8)
    pixels[top : top + height, left : left + width] = np.rint(255 * small.clip(0, 1))
    notes.append(f"scaled to {width}x{height}, centred by mass")
    return Prepared(pixels, tuple(notes))


def _is_like_mnist(levels: Grey) -> bool:
    """Tell whether ground, size and centre are as in MNIST, with some allowance."""
    if levels.shape != (28, 28) or levels.max() < 128 or (levels > 0).mean() > 0.5:
        return False
    longer = max(part.stop - part.start for part in _extent(levels))
    centred = all(abs(centre - 14) <= 1.5 for centre in _centre(levels))
    return 18 <= longer <= 20 and centred and np.array_equal(levels, np.rint(levels))


def _digit(levels: Grey) -> tuple[Grey, bool, list[float]]:
    """Find the digit in dark ink: its ink, cropped; whether the light is uneven; its size."""
    start, stop = [0, 0], list(levels.shape)
    digit = FIRST * min(stop)
    # The second look is at the digit alone: finer, and with the ground and the noise around it.
    for _ in range(2):
        crop = levels[start[0] : stop[0], start[1] : stop[1]]
        scale = WORK / math.sqrt(crop.size)
        work = _resampled(crop, scale)
        ink, uneven = _ink(work, max(1, round(STROKE / 2 * digit * scale)))
        extent = _extent(ink)
        size = [(part.stop - part.start) / scale for part in extent]
        digit = max(size)
        near = [at + part.start / scale - digit / 2 for at, part in zip(start, extent, strict=True)]
        stop = [math.ceil(at + s + digit) for at, s in zip(near, size, strict=True)]
        start = [max(0, math.floor(at)) for at in near]
    return ink[extent], uneven, size


def _ink(levels: Grey, reach: int) -> tuple[Grey, bool]:
    """Return the amount of dark ink in each pixel, 0..1, and whether the ground is uneven."""
    levels = _local_mean(levels, 1)
    # The ground is what is left when all that is dark and narrower than the window is filled in.
    # Beyond the border its slope goes on.
    margin = 2 * reach
    padded = np.pad(levels, margin, mode="reflect", reflect_type="odd")
    closed = _slide(_slide(padded, reach, np.maximum), reach, np.minimum)
    ground = closed[margin:-margin, margin:-margin]
    ground = np.maximum(ground, 0.05 * ground.max() + 1e-9)

    # The share of light that is lost is the same in sun and shadow. What is below its median
    # cannot be ink, so it tells the noise: a normal distribution has 16 % beyond one deviation.
    lost = 1 - levels / ground
    lost -= np.median(lost)
    noise = -float(np.quantile(lost, 0.16))
    lost *= lost > max(NOISE * noise, FAINT)
    if not lost.any():
        raise ImageError(
            "no ink is found in the image; expected one digit that is clearly darker or lighter "
            "than its ground. Use an image with more contrast."
        )
    full = (lost**3).sum() / (lost**2).sum()  # a mean in which the strongest counts most
    ink = ((lost / full - 0.3) / 0.5).clip(0, 1)
    return ink * _kept(ink > 0.2), bool(ground.min() < 0.85 * ground.max())


def _kept(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return which ink belongs to the digit."""
    height, width = mask.shape
    padded = np.pad(mask, ((0, -height % BLOCK), (0, -width % BLOCK)))
    blocks = padded.reshape(len(padded) // BLOCK, BLOCK, -1, BLOCK).sum(axis=(1, 3))
    # Blocks that hang together come to share the largest of their numbers: each takes that of its
    # neighbours, and then the number that the block of this number has by now.
    names = np.arange(1, blocks.size + 1).reshape(blocks.shape) * (blocks > 0)
    before = np.zeros_like(names)
    while not np.array_equal(names, before):
        before = names
        names = np.append(0, names)[_slide(names, 1, np.maximum)] * (blocks > 0)
    mass = np.bincount(names.ravel(), blocks.ravel())
    # Lines and edges of the page come in from the border; a tight crop may have the digit there.
    inside = mass.copy()
    inside[np.concatenate([names[0], names[-1], names[:, 0], names[:, -1]])] = 0
    if inside.max() > 0.05 * mass.max():
        mass = inside
    kept = mass >= SPECK * mass.max()
    mask &= kept[names].repeat(BLOCK, axis=0).repeat(BLOCK, axis=1)[:height, :width]
    return mask


def _extent(ink: Grey) -> tuple[slice, slice]:
    """Return the rows and the columns that hold ink."""
    rows, columns = (np.flatnonzero(ink.any(axis=axis)) for axis in (1, 0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def _centre(ink: Grey) -> tuple[float, float]:
    """Return the row and the column of the centre of mass; in MNIST it is at 14, 14."""
    rows, columns = np.indices(ink.shape)
    return float(np.average(rows, weights=ink)), float(np.average(columns, weights=ink))


def _resampled(levels: Grey, scale: float) -> Grey:
    """Resize, with averages where it shrinks."""
    from PIL import Image

    height, width = (max(1, round(length * scale)) for length in levels.shape)
    image = Image.fromarray(levels.astype(np.float32))
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR), dtype=np.float64)


def _slide(values: NDArray[Any], reach: int, combine: np.ufunc) -> NDArray[Any]:
    """Combine the values in the square window of 2 reach + 1 pixels about each pixel."""
    for axis in (0, 1):
        margin = [(reach, reach) if a == axis else (0, 0) for a in (0, 1)]
        padded = np.pad(values, margin, mode="edge")
        windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1, axis=axis)
        values = combine.reduce(windows, axis=-1)
    return values


def _local_mean(values: Grey, reach: int) -> Grey:
    return _slide(values, reach, np.add) / (2 * reach + 1) ** 2
