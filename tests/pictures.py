"""Pictures that users have: photographs, odd but right files, and files that cannot be opened."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image

PHOTOS = ("astronaut", "coffee", "chelsea")
RED, GREEN, BLUE, WHITE = (220, 30, 40), (20, 170, 60), (30, 60, 200), (255, 255, 255)


def photo(name: str) -> Image.Image:
    """A photograph that comes with scikit-image."""
    return Image.fromarray(getattr(skimage.data, name)())


def halves(size: tuple[int, int] = (24, 16)) -> Image.Image:
    """Left half red, right half blue."""
    picture = Image.new("RGB", size, RED)
    picture.paste(BLUE, (size[0] // 2, 0, *size))
    return picture


def write_photos(folder: Path) -> dict[str, Path]:
    """Each photograph as PNG, by name."""
    paths = {name: folder / f"{name}.png" for name in PHOTOS}
    for name, path in paths.items():
        photo(name).save(path)
    return paths


def write_odd(folder: Path) -> dict[str, tuple[Path, np.ndarray]]:
    """Odd files, and the RGB pixels uint8 [height, width, 3] that they hold."""
    rgb = np.asarray(halves())
    grey = np.arange(24 * 16, dtype=np.uint8).reshape(16, 24)
    files: dict[str, tuple[Path, np.ndarray]] = {}

    def add(name: str, picture: Image.Image, expected: np.ndarray, **options: object) -> None:
        picture.save(folder / name, **options)
        expected = np.broadcast_to(expected[..., None], (*expected.shape, 3)) if expected.ndim == 2 else expected
        files[name] = (folder / name, expected.astype(np.uint8))

    add("one_pixel.png", Image.new("RGB", (1, 1), GREEN), np.full((1, 1, 3), GREEN))
    add("strip.png", halves((4000, 40)), np.asarray(halves((4000, 40))))
    add("grey.png", Image.fromarray(grey), grey)
    add("black_and_white.png", Image.fromarray(grey).convert("1"), np.asarray(Image.fromarray(grey).convert("1")) * 255)

    clear = halves().convert("RGBA")
    clear.paste((0, 0, 0, 0), (0, 0, 12, 16))
    over_white = rgb.copy()
    over_white[:, :12] = WHITE
    add("rgba.png", clear, over_white)
    add("rgba.webp", clear, over_white, lossless=True)

    palette = halves().convert("P", palette=Image.Palette.ADAPTIVE)
    add("palette.png", palette, rgb)
    add("palette_transparent.png", palette, over_white, transparency=palette.getpixel((0, 0)))
    grey_clear = Image.new("LA", (24, 16), (90, 0))
    add("grey_alpha.png", grey_clear, np.full((16, 24), 255))

    ramp = np.linspace(0, 65535, 24 * 16).round().astype(np.uint16).reshape(16, 24)
    add("sixteen_bit.png", Image.fromarray(ramp), (ramp / 257 + 0.5).astype(np.uint8))
    add("sixteen_bit_dark.png", Image.fromarray((ramp // 300).astype(np.uint16)), np.where(ramp // 300 > 128, 1, 0))
    add("sixteen_bit.tiff", Image.fromarray(ramp), (ramp / 257 + 0.5).astype(np.uint8))
    unit = (ramp / 65535).astype(np.float32)
    add("float_unit.tiff", Image.fromarray(unit), (unit.astype(np.float64) * 255 + 0.5).astype(np.uint8))
    add("int32.tiff", Image.fromarray(grey.astype(np.int32)), grey)

    frames = [Image.new("RGB", (24, 16), color) for color in (RED, GREEN, BLUE)]
    first = np.full((16, 24, 3), RED)
    add("animated.gif", frames[0], first, save_all=True, append_images=frames[1:], duration=50)

    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise: the left becomes the top
    add("rotated.png", halves(), np.rot90(rgb, k=-1), exif=exif)
    cmyk = Image.new("CMYK", (24, 16), (0, 0, 0, 0))
    add("cmyk.tiff", cmyk, np.full((16, 24), 255))
    (folder / "png_named.jpg").write_bytes((folder / "grey.png").read_bytes())
    files["png_named.jpg"] = (folder / "png_named.jpg", files["grey.png"][1])
    return files


def write_bad(folder: Path) -> dict[str, tuple[Path, str]]:
    """What cannot be opened, and a word of the reason."""
    jpeg, png = BytesIO(), BytesIO()
    photo("chelsea").save(jpeg, "JPEG")
    halves().save(png, "PNG")
    flipped = bytearray(png.getvalue())
    flipped[flipped.index(b"IDAT") + 6] ^= 0xFF
    contents = {
        "truncated.jpg": (jpeg.getvalue()[: len(jpeg.getvalue()) // 2], "truncated"),
        "truncated.png": (png.getvalue()[: png.getvalue().index(b"IDAT") + 10], "cannot be read"),
        "flipped.png": (bytes(flipped), "cannot be read"),
        "empty.png": (b"", "is empty"),
        "text.jpg": (b"This is a letter, not a picture.\n", "is not a picture"),
        "bomb.png": (_png_header(60_000, 60_000), "pixels"),
        "large.png": (_png_header(10_000, 10_000), "pixels"),
    }
    files = {}
    for name, (content, reason) in contents.items():
        (folder / name).write_bytes(content)
        files[name] = (folder / name, reason)
    holes = np.ones((4, 4), dtype=np.float32)
    holes[1, 1] = np.nan
    Image.fromarray(holes).save(folder / "holes.tiff")
    files["holes.tiff"] = (folder / "holes.tiff", "NaN")
    (folder / "folder.png").mkdir()
    files["folder.png"] = (folder / "folder.png", "is not a file")
    files["missing.png"] = (folder / "missing.png", "does not exist")
    return files


def _png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def bombs() -> dict[str, bytes]:
    """Small files that say, or unpack to, more pixels than anybody has, by name."""
    wide = 60_000
    square = struct.pack("<HH", wide, wide)
    return {
        "bomb.png": _png_header(wide, wide),
        "large.png": _png_header(10_000, 10_000),
        "bomb.gif": b"GIF89a\1\0\1\0\0\0\0,\0\0\0\0" + square + b"\x80" + bytes(6) + b"\x02\x02\x44\x01\0;",
        "bomb.bmp": b"BM" + struct.pack("<IIIIiiHHIIIIII", 54, 0, 54, 40, wide, wide, 1, 24, 0, 0, 0, 0, 0, 0),
        "bomb.ppm": b"P6 %d %d 255\n" % (wide, wide),
        "bomb.tiff": _tiff(wide, wide, {}),
        "tile.tiff": _tiff(16, 16, {322: wide, 323: wide}),
        "bomb.webp": _webp_header(16_000, 16_000),
    }


def _tiff(width: int, height: int, more: dict[int, int]) -> bytes:
    """A grey picture of one strip or tile, deflated."""
    data = zlib.compress(bytes(10**6))
    tags = {256: width, 257: height, 258: 8, 259: 8, 262: 1, 277: 1, **more}
    offset, count = (324, 325) if 322 in more else (273, 279)
    tags |= {offset: 8 + 2 + 12 * (len(tags) + 2) + 4, count: len(data)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + data


def _webp_header(width: int, height: int) -> bytes:
    """An animation of two pixels, whose canvas is of this size."""
    frames = BytesIO()
    red, blue = (Image.new("RGB", (1, 1), color) for color in (RED, BLUE))
    red.save(frames, "WEBP", save_all=True, append_images=[blue], lossless=True)
    content = bytearray(frames.getvalue())
    content[24:30] = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return bytes(content)
