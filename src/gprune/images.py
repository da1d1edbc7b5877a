"""Opening what users give as a picture: a clear error instead of a surprise, and always upright 8-bit RGB."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from .errors import BadValue, GpruneError


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
        raise UnreadableImage(f"{path} {reason}; {accepted}; check the file") from error
    except Exception as error:  # a damaged file can make a decoder raise almost anything
        raise UnreadableImage(f"{path} cannot be read ({error}); {accepted}; check the file or get it again") from error


def read_rgb(file: Path | BinaryIO) -> Image.Image:
    """`to_rgb` of a file; whatever Pillow raises, and DecompressionBombWarning for a picture that is too large."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(file) as picture:
            return to_rgb(picture)


def to_rgb(picture: Image.Image) -> Image.Image:
    """The first frame, upright, as 8-bit RGB; deeper grey is scaled down and transparency put over white."""
    picture.load()
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I") or picture.mode == "F":
        picture = _to_grey(picture)
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return picture.convert("RGB")


def _to_grey(picture: Image.Image) -> Image.Image:
    """8-bit grey of numbers from 0 up to the least usual white that covers them; of 65535 where all are 16-bit."""
    values = np.asarray(picture, dtype=np.float64)
    if not np.isfinite(values).all():
        raise BadValue("it has pixels that are NaN or Inf")
    peak = values.max(initial=0)
    whites = (65535.0,) if picture.mode.startswith("I;16") else (1.0, 255.0, 65535.0)
    white = next((each for each in whites if peak <= each), peak)
    return Image.fromarray(np.clip(values / white * 255 + 0.5, 0, 255).astype(np.uint8))
