"""Opening what users give as a picture: a clear error instead of a surprise, and always upright 8-bit RGB."""

from __future__ import annotations

import warnings
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from .errors import BadValue, GpruneError

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
"""The files of a folder that are taken for pictures."""

HEIF = {b"ftyp" + brand for brand in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1")}
"""How HEIC files go on after their first four bytes."""


class UnreadableImage(GpruneError, ValueError):
    """A file is not a picture that can be opened; the message names the file and the reason."""


def open_image(path: str | Path) -> Image.Image:
    """Open a picture as upright RGB: EXIF rotation applied, first frame of an animation, transparency over white.

    Raises:
        UnreadableImage: missing, not a picture, truncated, or so large that it looks like a decompression bomb.
    """
    path = Path(path)
    accepted = "accepted are picture files such as PNG, JPEG, WebP or GIF"
    if not path.is_file():
        what = "is not a file" if path.exists() else "does not exist"
        raise UnreadableImage(f"{path} {what}; {accepted}; check the path")
    try:
        return read_rgb(path)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        limit = Image.MAX_IMAGE_PIXELS
        raise UnreadableImage(
            f"{path} unpacks to more than {limit:,} pixels; {accepted} of at most that size; shrink it first"
        ) from error
    except UnidentifiedImageError as error:
        reason = "is empty" if path.stat().st_size == 0 else "is not a picture, whatever its name says"
        if _is_heif(path):
            reason = "is a HEIC picture, which this Pillow cannot read; pip install pillow-heif"
        raise UnreadableImage(f"{path} {reason}; {accepted}; check the file") from error
    except Exception as error:  # a damaged file can make a decoder raise almost anything
        raise UnreadableImage(f"{path} cannot be read ({error}); {accepted}; check the file or get it again") from error


def read_rgb(file: Path | BinaryIO) -> Image.Image:
    """`to_rgb` of a file; whatever Pillow raises, and DecompressionBombWarning for a picture that is too large.

    HEIC is read where pillow-heif is installed.
    """
    _register_heif()
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(file) as picture:
            return to_rgb(picture)


@cache
def _register_heif() -> None:
    """Have Pillow read HEIC, as phones save it, where pillow-heif is installed."""
    if find_spec("pillow_heif") is not None:
        import_module("pillow_heif").register_heif_opener()


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

ROUNDING = 1.01
"""How far floats may pass a white, by rounding or a sharp resize; they are clipped."""


def _to_grey(picture: Image.Image) -> Image.Image:
    """8-bit grey, with those pixels transparent that have the value that the file calls transparent."""
    values = np.asarray(picture, dtype=np.float64)
    if not np.isfinite(values).all():
        raise BadValue("it has pixels that are NaN or Inf")
    peak = values.max(initial=0)
    whites = WHITES[picture.mode[:4]]
    slack = ROUNDING if picture.mode == "F" else 1.0
    covering = (each for each in whites if peak <= each * slack and (each < 4095 or peak > each / 4))
    white = next(covering, max(65535.0, peak if peak > 65535 * slack else 0))
    grey = Image.fromarray(np.clip(values / white * 255 + 0.5, 0, 255).astype(np.uint8))
    hidden = picture.info.get("transparency")
    if isinstance(hidden, int):
        grey.putalpha(Image.fromarray(np.where(values == hidden, 0, 255).astype(np.uint8)))
    return grey
