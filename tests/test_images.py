"""Whatever file is given: the right pixels as upright RGB, or an error that names the file and the reason."""

from __future__ import annotations

import tempfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import PHOTOS, halves, photo, write_bad, write_odd
from PIL import Image

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
