"""A picture of one handwritten digit, made into an image like those of MNIST.

MNIST, as Y. LeCun, C. Cortes and C. Burges describe it, has light ink on black. Each digit keeps
its proportions within 20x20 pixels and is centred by its mass in 28x28. :func:`prepare_digit`
reads a file, finds out whether the ink is dark or light, divides by the ground, and keeps the ink
that stands out from the noise, is large enough and does not come in from the border.
"""

import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from minidiff.io.extras import extra
from minidiff.io.files import require_file, words

__all__ = ["ImageError", "Prepared", "prepare_digit", "prepare_pixels"]

Grey: TypeAlias = NDArray[np.float64]

# Few formats, because each decoder is a way in for hostile files.
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "PPM", "TIFF", "WEBP")
LARGEST = 1024  # pixels along a side; larger images are reduced first
MEMORY = 150_000_000  # bytes of an image as it is decoded: 150 million grey pixels, 37 of colours
BYTES = {"1": 1, "L": 1, "P": 1} | dict.fromkeys(("I;16", "I;16B", "I;16L"), 2)  # others: 4
STRIP = 1 << 20  # pixels that are converted at a time
ORIENTATION = 0x0112  # of EXIF
WORK = 160  # ink is looked for in about WORK**2 pixels
FIRST = 0.6  # assumed size of the digit at first, as a share of the shorter side
STROKE = 0.4  # of the digit's size: strokes are narrower, shadows and tables are wider
NOISE = 3.0  # ink differs from the ground by more than this many standard deviations of the noise
FAINT = 0.02  # ink takes away more than this share of the light
BLOCK = 3  # pixels along a side; ink in touching blocks belongs together, across small gaps too
SPECK = 0.1  # of the largest piece of ink; smaller pieces are dirt
THIN, USUAL = 1.7, 2.2  # widths of strokes in 20x20 pixels; 95 % of MNIST's are above the first


class ImageError(ValueError):
    """An image that cannot be read or holds no digit."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """An image of a digit as the network expects it.

    Attributes
    ----------
    pixels : ndarray of uint8, shape (28, 28)
        Light ink on a ground of 0.
    notes : tuple of str
        What was done, in short phrases, in order.

    Examples
    --------
    See :func:`prepare_pixels`.
    """

    pixels: NDArray[np.uint8]
    notes: tuple[str, ...]


def prepare_digit(path: str | Path) -> Prepared:
    """Bring an image file of one digit to 28x28 pixels like those of MNIST.

    Parameters
    ----------
    path
        A PNG, JPEG, GIF, BMP, PPM, TIFF or WebP of any size and colours. Of several frames the
        first is used.

    Raises
    ------
    ImageError
        If the file cannot be read as such an image, or there is no ink in it.
    ImportError
        If Pillow or SciPy is not installed.

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
    try:
        require_file(path)
    except FileNotFoundError as error:
        raise ImageError(f"{path}: there is no such file; expected an image file.") from error
    except OSError as error:
        raise ImageError(str(error)) from error
    extra("PIL", "pillow")
    extra("scipy")  # from here on, errors come from the file
    try:
        levels, note = _decode(path)
        prepared = prepare_pixels(levels)
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from error
    except Exception as error:  # decoders raise anything on damaged files
        raise ImageError(
            f"{path}: cannot be read as an image ({type(error).__name__}: {words(error)}); "
            f"expected a complete file of {', '.join(FORMATS)}, not too large. With another "
            f"program, crop the image to the digit and save it as PNG."
        ) from error
    return Prepared(prepared.pixels, (note, *prepared.notes))


def _decode(path: Path) -> tuple[NDArray[Any], str]:
    """Return the grey levels of a file, within 0..255, and a note on its size and mode."""
    from PIL import Image, ImageOps

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # oddities of files that can be read all the same
        with Image.open(path, formats=FORMATS) as file:
            note = f"{file.width}x{file.height} pixels, {file.mode}"
            if max(file.size) > LARGEST:
                note += f", reduced to {LARGEST} along the longer side"
            file.draft(None, (LARGEST, LARGEST))  # JPEGs can be decoded at a fraction of their size
            needed = file.width * file.height * BYTES.get(file.mode, 4)
            needed *= 2 if file.format == "WEBP" else 1  # whose decoder holds several copies
            if needed > MEMORY:
                raise ImageError(
                    f"the image takes {needed // 10**6:,} MB of memory; expected at most "
                    f"{MEMORY // 10**6} MB. Reduce its size with another program."
                )
            file.load()  # turns a TIFF as its orientation says
            image = Image.fromarray(_reduced(file))
            image.getexif()[ORIENTATION] = file.getexif().get(ORIENTATION, 1)
    image = ImageOps.exif_transpose(image)
    image.thumbnail((LARGEST, LARGEST))
    return np.clip(np.asarray(image), 0, 255), note  # reducing floats overshoots at sharp edges


def _reduced(file: Any) -> NDArray[Any]:
    """Return the grey levels of an image, averaged until no side has 2 * LARGEST pixels."""
    factor = max(1, max(file.size) // LARGEST)
    deep = file.mode.startswith(("I", "F"))  # 16 bits and more, or a scale of their own
    modes = ["F"] if deep else ["RGBA", "LA"] if file.has_transparency_data else ["L"]
    # Strip by strip, so that no second image of the full size is needed.
    rows, strips = factor * max(1, STRIP // (factor * file.width)), []
    for top in range(0, file.height, rows):
        strip = file.crop((0, top, file.width, min(top + rows, file.height)))
        for mode in modes:
            strip = strip.convert(mode)
        strips.append(np.asarray(strip.reduce(factor), np.float32))
    levels = np.concatenate(strips)
    if deep:
        largest = max(float(levels.max()), 1e-30)
        bits = math.ceil(math.log2(largest + 1))  # few in many files of 16
        return levels * (255 / (largest if file.mode == "F" else 2 ** max(1, bits) - 1))
    if levels.ndim == 2:
        return levels
    shade, opacity = levels[..., 0], levels[..., 1] / 255
    dark = (shade * opacity).mean() < 127.5 * opacity.mean()
    ground = 255 if dark else 0  # white ink was meant for a dark ground
    return ground + (shade - ground) * opacity


def prepare_pixels(grey: NDArray[Any]) -> Prepared:
    """Bring grey levels of one digit to 28x28 pixels like those of MNIST.

    An image that is like those of MNIST already is returned bit for bit.

    Parameters
    ----------
    grey
        Shape (H, W), integers or floats from 0 (black) to 255 (white).

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
    real = levels.dtype.kind in "uif" and levels.ndim == 2 and levels.size > 0
    if not (real and levels.min() >= 0 and levels.max() <= 255):  # NaN fails, too
        raise ImageError(
            f"grey levels are {levels.dtype} of shape {levels.shape}; expected (H, W) integers or "
            f"floats, all from 0 (black) to 255 (white)."
        )
    levels = levels.astype(np.float64)
    if _is_like_mnist(levels):
        return Prepared(levels.astype(np.uint8), ("like MNIST already: left as it is",))
    light = _has_light_ink(levels)
    ink, uneven, (height, width) = _find_digit(255 - levels if light else levels)
    notes = ["light ink on dark ground" if light else "dark ink on light ground: inverted"]
    if uneven:
        notes.append("uneven light: divided by the ground")
    notes.append(f"cropped to the ink, {width:.0f}x{height:.0f} pixels")
    return _fit(ink, notes)


def _is_like_mnist(levels: Grey) -> bool:
    """Tell whether ground, size and centre are as in MNIST, with some allowance."""
    from scipy import ndimage

    if levels.shape != (28, 28) or levels.max() < 128 or (levels > 0).mean() > 0.5:
        return False
    (extent,) = ndimage.find_objects(levels > 0, 1)
    size = max(levels[extent].shape)
    centred = all(abs(centre - 14) <= 1.5 for centre in ndimage.center_of_mass(levels))
    return 18 <= size <= 20 and centred and np.array_equal(levels, np.rint(levels))


def _has_light_ink(levels: Grey) -> bool:
    # Strokes differ much from their surroundings over a narrow area, and the surroundings differ
    # little over a wide one. Cubed differences from the local mean therefore have the sign of the
    # ink, whereas noise and the two sides of a shadow's edge cancel out.
    work = _resize(levels, _work_scale(levels))
    detail = work - _local_mean(work, round(0.2 * min(work.shape)))
    return bool((detail**3).sum() > 0)


def _find_digit(levels: Grey) -> tuple[Grey, bool, Grey]:
    """Find a digit in dark ink: its ink, cropped; whether the light is uneven; height and width."""
    from scipy import ndimage

    start, stop = np.zeros(2, dtype=int), np.array(levels.shape)
    digit = FIRST * stop.min()
    # The second pass looks at the digit and its surroundings alone, at a finer scale.
    for _ in range(2):
        crop = levels[start[0] : stop[0], start[1] : stop[1]]
        scale = _work_scale(crop)
        ink, uneven = _ink(_resize(crop, scale), max(1, round(STROKE / 2 * digit * scale)))
        (extent,) = ndimage.find_objects(ink > 0, 1)  # the rows and the columns that hold ink
        size = np.array(ink[extent].shape) / scale
        digit = size.max()
        near = start + np.array([part.start for part in extent]) / scale - digit / 2
        start = np.floor(near).clip(0).astype(int)
        stop = np.ceil(near + size + digit).astype(int)
    return ink[extent], uneven, size


def _work_scale(levels: Grey) -> float:
    """Return the scale at which ink is looked for; long narrow images stay small."""
    return min(WORK / math.sqrt(levels.size), 4 * WORK / max(map(int, levels.shape)))


def _ink(levels: Grey, reach: int) -> tuple[Grey, bool]:
    """Return the amount of dark ink in each pixel, 0..1, and whether the ground is uneven."""
    from scipy import ndimage

    levels = _local_mean(levels, 1)
    # A closing fills in everything dark and narrower than its window, which leaves the ground.
    # Beyond the border the levels go on with their slope.
    margin = 2 * reach
    padded = np.pad(levels, margin, mode="reflect", reflect_type="odd")
    ground = ndimage.grey_closing(padded, 2 * reach + 1)[margin:-margin, margin:-margin]
    ground = np.maximum(ground, 0.05 * ground.max() + 1e-9)

    # Ink takes away the same share of the light in sun and shadow. Shares below the median cannot
    # be ink, so they tell the noise: a normal distribution has 16 % beyond one deviation.
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
    return ink * _belongs(ink > 0.2), bool(ground.min() < 0.85 * ground.max())


def _belongs(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return which ink belongs to the digit, and is neither dirt nor the edge of the page."""
    from scipy import ndimage

    height, width = mask.shape
    padded = np.pad(mask, ((0, -height % BLOCK), (0, -width % BLOCK)))
    # (rows of blocks, BLOCK, columns of blocks, BLOCK) to the amount of ink in each block
    blocks = padded.reshape(len(padded) // BLOCK, BLOCK, -1, BLOCK).sum(axis=(1, 3))
    pieces, _ = ndimage.label(blocks, structure=np.ones((3, 3)))
    mass = np.bincount(pieces.ravel(), blocks.ravel())
    # Lines and edges of the page come in from the border; a tight crop may have the digit there.
    inside = mass.copy()
    inside[np.concatenate([pieces[0], pieces[-1], pieces[:, 0], pieces[:, -1]])] = 0
    if inside.max() > 0.05 * mass.max():
        mass = inside
    kept: NDArray[np.bool_] = (mass >= SPECK * mass.max())[pieces]
    return mask & kept.repeat(BLOCK, axis=0).repeat(BLOCK, axis=1)[:height, :width]


def _fit(ink: Grey, notes: list[str]) -> Prepared:
    """Thicken thin strokes of cropped ink, scale it to 20x20 and centre it in 28x28 pixels."""
    from scipy import ndimage

    # Twice the area over the length of the outline, which is the total variation.
    around = np.pad(ink, 1)
    outline = np.hypot(np.diff(around, axis=0)[:, 1:], np.diff(around, axis=1)[1:]).sum()
    stroke = 2 * ink.sum() / outline * 20 / max(ink.shape)
    if stroke < THIN:
        reach = round((USUAL - stroke) / 2 * max(ink.shape) / 20)
        ink = ndimage.maximum_filter(np.pad(ink, reach), 2 * reach + 1)
        notes.append(f"strokes {stroke:.1f} pixels wide at 20x20: thickened")
    small = _resize(ink, 20 / max(ink.shape))
    height, width = small.shape
    y, x = ndimage.center_of_mass(small)  # in MNIST at 14, 14
    top, left = min(max(0, round(14 - y)), 28 - height), min(max(0, round(14 - x)), 28 - width)
    pixels = np.zeros((28, 28), dtype=np.uint8)
    pixels[top : top + height, left : left + width] = np.rint(255 * small.clip(0, 1))
    notes.append(f"scaled to {width}x{height}, centred by mass")
    return Prepared(pixels, tuple(notes))


def _resize(levels: Grey, scale: float) -> Grey:
    """Resize bilinearly, with averages where the image shrinks."""
    from PIL import Image

    height, width = (max(1, round(length * scale)) for length in levels.shape)
    image = Image.fromarray(levels.astype(np.float32))
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR), dtype=np.float64)


def _local_mean(levels: Grey, reach: int) -> Grey:
    """Average the square window of 2 reach + 1 pixels about each pixel."""
    side = 2 * reach + 1
    sums = np.pad(levels, reach, mode="edge")
    for axis in (0, 1):
        sums = np.lib.stride_tricks.sliding_window_view(sums, side, axis=axis).sum(axis=-1)
    return sums / side**2
