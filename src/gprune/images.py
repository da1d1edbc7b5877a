"""Opening what users give as a picture: a clear error instead of a surprise, and always upright 8-bit RGB."""

from __future__ import annotations

import math
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import TILELENGTH, TILEWIDTH

from .errors import BadType, BadValue, GpruneError

try:  # HEIC, as phones save it
    from pillow_heif import register_heif_opener
except ImportError:
    READS_HEIF = False
else:
    register_heif_opener()
    READS_HEIF = True

FORMATS: tuple[str, ...] = (
    *("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"),
    *(["AVIF"] if find_spec("PIL.AvifImagePlugin") else []),
    *(["HEIF"] if READS_HEIF else []),
)
"""The formats that are opened, as Pillow names them: those of pictures that people have, whose headers tell their size.
Others are never tried; some of them would run programs."""

MAX_PIXELS = 40_000_000
"""Of a picture that is opened, unless something else is asked for."""

SEEN_PIXELS = 4096 * 4096
"""The most that a processor of a supported model looks at: Qwen3-VL's limit; others see less of a picture."""
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
"""The files of a folder that are taken for pictures."""

HEIF = {b"ftyp" + brand for brand in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1")}
"""How HEIC files go on after their first four bytes."""


class UnreadableImage(GpruneError, ValueError):
    """A file is not a picture that can be opened; the message names the file and the reason."""


class TooLarge(UnreadableImage):
    """A picture has more pixels than are accepted; this is decided by its header, and nothing of it is decoded."""


def open_image(path: str | Path, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Open a picture as upright RGB: EXIF rotation applied, first frame of an animation, transparency over white.

    Args:
        path: of the file.
        max_pixels: that it may have, width times height.

    Raises:
        TooLarge: it has more pixels.
        UnreadableImage: missing, not a picture of one of `FORMATS`, or damaged.
        BadType: no path.
    """
    if not isinstance(path, (str, Path)):
        raise BadType(
            f"a picture is a {type(path).__name__}; accepted is the path of a file; what is open already needs no "
            f"opening, and an array uint8 [height, width, 3] is one by PIL.Image.fromarray"
        )
    path = Path(path)
    accepted = f"accepted are pictures in the formats {', '.join(FORMATS)}"
    if not path.is_file():
        what = "is not a file" if path.exists() else "does not exist"
        raise UnreadableImage(f"{path} {what}; {accepted}; check the path")
    try:
        return read_rgb(path, max_pixels)
    except TooLarge as error:
        raise TooLarge(f"{path} cannot be read: {error}") from error
    except UnidentifiedImageError as error:
        reason = "is empty" if path.stat().st_size == 0 else "is not a picture, whatever its name says"
        if _is_heif(path):
            reason = "is a HEIC picture, which this Pillow cannot read; pip install pillow-heif"
        raise UnreadableImage(f"{path} {reason}; {accepted}; check the file") from error
    except Exception as error:  # a damaged file can make a decoder raise almost anything
        raise UnreadableImage(f"{path} cannot be read ({error}); {accepted}; check the file or get it again") from error


def read_rgb(file: Path | BinaryIO, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """`to_rgb` of a file; see `open_image`.

    Raises:
        TooLarge: it has more than `max_pixels`.
        Exception: it is damaged, or no picture: whatever Pillow raises.
    """
    limit = f"accepted are at most {max_pixels:,} pixels; shrink it first"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # Pillow's limit is not this one
        try:
            picture = Image.open(file, formats=FORMATS)
        except Image.DecompressionBombError as error:
            raise TooLarge(f"it is refused by Pillow ({error}); {limit}") from error
    with picture:
        width, height = _largest_part(picture)
        if width * height > max_pixels:
            raise TooLarge(f"it has {width:,} x {height:,} pixels; {limit}")
        return to_rgb(picture)


def shrunk(picture: Image.Image) -> Image.Image:
    """A picture of more than `SEEN_PIXELS` at about that many, another one as it is.

    A model that sees all of `SEEN_PIXELS` sees the same; one that sees fewer pixels sees them from a smaller original.
    """
    scale = math.sqrt(SEEN_PIXELS / math.prod(picture.size))
    if scale >= 1:
        return picture
    width, height = (max(1, int(side * scale)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.LANCZOS)


def _largest_part(picture: Image.Image) -> tuple[int, int]:
    """(width, height) of what is decoded at once: a tile may be larger than the picture."""
    tags = getattr(picture, "tag_v2", {})
    tile = tags.get(TILEWIDTH, 0), tags.get(TILELENGTH, 0)
    return max(picture.size, tile, key=math.prod)


def _is_heif(path: Path) -> bool:
    """Whether a file begins as HEIC files do, whatever its name says."""
    with path.open("rb") as file:
        return file.read(12)[4:] in HEIF


def to_rgb(picture: Image.Image) -> Image.Image:
    """The first frame, upright, as 8-bit RGB; deeper grey is scaled down, see `WHITES`, and white shows through it.

    Raises:
        BadValue: pixels are NaN or Inf.
    """
    picture.load()
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I") or picture.mode == "F":
        picture = _to_grey(picture)
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return picture.convert("RGB")


WHITES = {"F": (1.0, 255.0), "I": (255.0, 4095.0, 16383.0), "I;16": (4095.0, 16383.0)}
"""What is white in floats, in integers and in 16 bits: the first that covers the brightest pixel, or else 65535. 12 and
14 bits only where a quarter of them is reached, so that a dark picture of 16 bits stays dark."""

PAST_WHITE = 1.01
"""How far floats may pass a white, by rounding or a sharp resize; they are clipped."""


def _to_grey(picture: Image.Image) -> Image.Image:
    """8-bit grey, with those pixels transparent that have the value that the file calls transparent."""
    values = np.asarray(picture, dtype=np.float64)
    if not np.isfinite(values).all():
        raise BadValue("it has pixels that are NaN or Inf")
    peak = values.max(initial=0)
    whites = WHITES[picture.mode[:4]]
    slack = PAST_WHITE if picture.mode == "F" else 1.0
    covering = (each for each in whites if peak <= each * slack and (each < 4095 or peak > each / 4))
    white = next(covering, max(65535.0, peak if peak > 65535 * slack else 0))
    grey = Image.fromarray(np.clip(values / white * 255 + 0.5, 0, 255).astype(np.uint8))
    hidden = picture.info.get("transparency")
    if isinstance(hidden, int):
        grey.putalpha(Image.fromarray(np.where(values == hidden, 0, 255).astype(np.uint8)))
    return grey
