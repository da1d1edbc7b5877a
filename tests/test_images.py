"""Whatever file is given: the right pixels as upright RGB, or an error that names the file and the reason."""

from __future__ import annotations

import tempfile
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import PHOTOS, halves, photo, write_bad, write_odd
from PIL import Image

import gprune.images
from gprune.images import UnreadableImage, open_image

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
    assert "accepted are picture files" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bomb_error_names_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    halves((10, 10)).save(tmp_path / "fits.png")
    halves((12, 12)).save(tmp_path / "warned.png")
    halves((24, 16)).save(tmp_path / "refused.png")
    assert open_image(tmp_path / "fits.png").size == (10, 10)
    for name in ("warned.png", "refused.png"):
        with pytest.raises(UnreadableImage, match="more than 100 pixels"):
            open_image(tmp_path / name)


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


def test_heic_is_read_where_its_reader_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    reader = SimpleNamespace(register_heif_opener=lambda: calls.append("registered"))
    monkeypatch.setattr(gprune.images, "find_spec", lambda name: name == "pillow_heif")
    monkeypatch.setattr(gprune.images, "import_module", {"pillow_heif": reader}.__getitem__)
    gprune.images._register_heif.cache_clear()
    photo(next(iter(PHOTOS))).save(tmp_path / "a.png")
    open_image(tmp_path / "a.png")
    open_image(tmp_path / "a.png")
    gprune.images._register_heif.cache_clear()
    assert calls == ["registered"]
