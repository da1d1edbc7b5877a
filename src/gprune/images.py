"""Opening what users give as a picture: a clear error instead of a surprise, and always upright 8-bit RGB."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError


class UnreadableImage(ValueError):
    """A file is not a picture that can be opened; the message names the file and the reason."""


def open_image(path: str | Path) -> Image.Image:
    """Open a picture as upright RGB: EXIF rotation applied, first frame of an animation, transparency over white.

    Raises:
        UnreadableImage: missing, not a picture, truncated, or so large that it looks like a decompression bomb.
    """
    path = Path(path)
    accepted = "accepted are picture files such as PNG, JPEG, WebP or GIF"
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise UnreadableImage(f"{path} {what}; {accepted}; check the path")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as picture:
                return to_rgb(picture)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        limit = Image.MAX_IMAGE_PIXELS
        raise UnreadableImage(
            f"{path} unpacks to more than {limit:,} pixels; {accepted} of at most that size; shrink it first"
        ) from error
    except UnidentifiedImageError as error:
        reason = "is empty" if path.stat().st_size == 0 else "is not a picture, whatever its name says"
        raise UnreadableImage(f"{path} {reason}; {accepted}; check the file") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise UnreadableImage(f"{path} is damaged ({error}); {accepted}; get the file again") from error


def to_rgb(picture: Image.Image) -> Image.Image:
    """The first frame, upright, as 8-bit RGB; 16-bit grey is scaled down and transparency put over white."""
    picture.load()
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I") or picture.mode == "F":
        values = np.asarray(picture, dtype=np.float64)
        top = 65535.0 if values.max(initial=0) > 255 else 255.0
        picture = Image.fromarray(np.clip(values / top * 255 + 0.5, 0, 255).astype(np.uint8))
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return picture.convert("RGB")
