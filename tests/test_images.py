"""Whatever file is given: the right pixels as upright RGB, or an error that names the file and the reason."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import PHOTOS, bombs, halves, photo, write_bad, write_odd
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from gprune.images import TooLarge, UnreadableImage, open_image, read_rgb

with tempfile.TemporaryDirectory() as folder:  # the names, for the ids of the tests
    ODD, BAD = list(write_odd(Path(folder))), list(write_bad(Path(folder)))


@pytest.mark.parametrize("name", PHOTOS)
def test_photograph_is_opened_pixel_by_pixel(name: str, tmp_path: Path) -> None:
    photo(name).save(tmp_path / "photo.png")
    picture = open_image(tmp_path / "photo.png")
    assert picture.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(picture), np.asarray(photo(name)))


@pytest.mark.parametrize("name", ODD)
def test_odd_picture(name: str, tmp_path: Path) -> None:
    path, expected = write_odd(tmp_path)[name]
    picture = open_image(str(path))
    assert picture.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(picture), expected)


@pytest.mark.parametrize("name", BAD)
def test_bad_file_is_refused_with_its_name_and_a_reason(name: str, tmp_path: Path) -> None:
    path, reason = write_bad(tmp_path)[name]
    with pytest.raises(UnreadableImage, match=reason) as caught:
        open_image(path)
    assert str(path) in str(caught.value)
    assert re.search("accepted are (pictures|at most)", str(caught.value))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", bombs())
def test_bomb_is_refused_by_its_header(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(bombs()[name])
    with pytest.raises(TooLarge, match=r"accepted are at most 40,000,000 pixels; shrink it first"):
        open_image(path)


def test_error_of_a_large_picture_says_size_and_limit(tmp_path: Path) -> None:
    path = tmp_path / "wide.png"
    halves((12, 10)).save(path)
    assert open_image(path, 120).size == (12, 10)
    with pytest.raises(TooLarge, match=r"wide.png cannot be read: it has 12 x 10 pixels; .* at most 119 pixels"):
        open_image(path, 119)
    with pytest.raises(TooLarge, match=r"^it has 12 x 10 pixels"):
        read_rgb(BytesIO(path.read_bytes()), 119)


def test_more_pixels_may_be_asked_for(tmp_path: Path) -> None:
    """More than Pillow itself would warn of; its own limits stay as they are for the rest of the program."""
    path, limit = tmp_path / "large.png", Image.MAX_IMAGE_PIXELS
    assert limit is not None
    Image.new("1", (10_000, limit // 10_000 + 1)).save(path)
    with pytest.raises(TooLarge):
        open_image(path)
    assert open_image(path, limit * 2).size[0] == 10_000
    assert limit == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("kind", ["ICO", "TGA", "PCX", "EPS", "SGI", "PDF"])
def test_format_that_is_not_opened(kind: str, tmp_path: Path) -> None:
    """Also under the name of one that is, and with Ghostscript on the path: no program is run."""
    path = tmp_path / "picture.png"
    halves((32, 32)).save(path, kind)
    with pytest.raises(UnreadableImage, match=r"is not a picture, whatever its name says; accepted are .* PNG, JPEG"):
        open_image(path)


def test_pictures_of_several_frames(tmp_path: Path) -> None:
    """What cameras write into one JPEG, and scanners into one TIFF: the first."""
    for kind in ("MPO", "TIFF", "WEBP", "PNG"):
        first, second = halves((32, 32)), Image.new("RGB", (32, 32), "white")
        first.save(tmp_path / kind, kind, save_all=True, append_images=[second])
        assert np.abs(np.asarray(open_image(tmp_path / kind)).astype(int) - np.asarray(first)).mean() < 5


def test_text_that_unpacks_to_much_is_refused(tmp_path: Path) -> None:
    texts = PngInfo()
    for i in range(100):
        texts.add_text(f"text {i}", "x" * 1_000_000, zip=True)
    halves().save(tmp_path / "texts.png", pnginfo=texts)
    with pytest.raises(UnreadableImage, match=r"texts\.png cannot be read"):
        open_image(tmp_path / "texts.png")


def _encoded(kind: str) -> bytes:
    buffer = BytesIO()
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    options = {"exif": exif} if kind in ("PNG", "JPEG", "WEBP", "TIFF") else {}
    halves().save(buffer, kind, **options)
    return buffer.getvalue()


@settings(max_examples=150)
@given(kind=st.sampled_from(["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"]), data=st.data())
def test_damage_gives_a_picture_or_one_kind_of_error(kind: str, data: st.DataObject) -> None:
    content = bytearray(_encoded(kind))
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=6)):
        content[place] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "damaged"
        path.write_bytes(content)
        try:
            picture = open_image(path)
        except UnreadableImage:
            return
    assert picture.mode == "RGB"
    assert min(picture.size) >= 1


def _grey(values: list[float], mode: str, path: Path, **options: object) -> list[int]:
    """The grey that a row of pixels is read as."""
    kinds = {"F": np.float32, "I;16": np.uint16, "I": np.int32}
    Image.fromarray(np.array([values], dtype=kinds[mode])).save(path, **options)  # type: ignore[arg-type]
    return np.asarray(open_image(path))[0, :, 0].tolist()


@pytest.mark.parametrize(
    ("values", "mode", "expected"),
    [
        ([0, 0.5, 1.0], "F", [0, 128, 255]),
        ([0, 0.05, 0.1], "F", [0, 13, 26]),
        ([0, 0.5, 1.0000001], "F", [0, 128, 255]),  # passes 1 by a rounding
        ([0, 127.5, 255.4], "F", [0, 128, 255]),
        ([0, 32767.5, 65535.5], "F", [0, 128, 255]),
        ([0, 40000, 80000], "F", [0, 128, 255]),
        ([-0.1, 0.5, 1.0], "F", [0, 128, 255]),
        ([0, 2048, 4095], "I;16", [0, 128, 255]),  # 12 bits in 16
        ([0, 512, 1000], "I;16", [0, 2, 4]),  # a dark one of 16
        ([0, 8192, 16383], "I;16", [0, 128, 255]),
        ([0, 32768, 65535], "I;16", [0, 128, 255]),
        ([0, 128, 255], "I", [0, 128, 255]),
        ([0, 1, 2], "I", [0, 1, 2]),
        ([0, 30000, 60000], "I", [0, 117, 233]),
    ],
)
def test_what_is_white_in_deep_grey(values: list[float], mode: str, expected: list[int], tmp_path: Path) -> None:
    assert _grey(values, mode, tmp_path / "deep.tiff") == expected


def test_transparency_of_deep_grey(tmp_path: Path) -> None:
    """A pixel of the value that the file calls transparent shows the white behind it."""
    path = tmp_path / "deep.png"
    Image.fromarray(np.array([[0, 30000, 65535]], dtype=np.uint16)).save(path, transparency=30000)
    with Image.open(path) as stored:
        assert stored.info.get("transparency") == 30000
    assert np.asarray(open_image(path))[0, :, 0].tolist() == [0, 255, 255]


@pytest.mark.parametrize("brand", [b"heic", b"mif1"])
def test_heic_names_what_reads_it(brand: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "phone.jpg"  # as phones name them
    path.write_bytes(b"\0\0\0\x18ftyp" + brand + b"\0" * 40)
    with pytest.raises(UnreadableImage, match=r"phone.jpg (is a HEIC picture.*pip install pillow-heif|cannot)"):
        open_image(path)


READER = """
from PIL import Image
from PIL.PngImagePlugin import PngInfo

def register_heif_opener():
    Image.register_open("HEIF", lambda file, name: Image.new("RGB", (3, 2)), lambda start: start[4:12] == b"ftypheic")
"""


def test_heic_is_read_where_its_reader_is_installed(tmp_path: Path) -> None:
    (tmp_path / "pillow_heif.py").write_text(READER)
    (tmp_path / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic" + b"\0" * 40)
    program = "from gprune.images import open_image; print(open_image('phone.heic').size)"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "(3, 2)\n", done.stderr
