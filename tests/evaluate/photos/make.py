"""A task of lmms-eval made of photographs and rendered documents: `python make.py FOLDER` writes it."""

from __future__ import annotations

import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import skimage.data
from datasets import Dataset, Features, Image, List, Value
from PIL import Image as Picture
from PIL import ImageDraw, ImageFont

import gprune.scenes

HERE = Path(__file__).parent
FONTS = sorted((Path(gprune.scenes.__file__).parent / "fonts").glob("*.ttf"))
CORRUPT, TEXT_ONLY, TWO_IMAGES = 3, (4, 8), (5, 9)
"""Numbers of documents."""


def photo(name: str) -> bytes:
    return _encoded(Picture.fromarray(getattr(skimage.data, name)()), "JPEG")


def letter(lines: list[str], font: int) -> bytes:
    """A page with lines of text."""
    page = Picture.new("RGB", (360, 40 + 44 * len(lines)), "white")
    for i, line in enumerate(lines):
        ImageDraw.Draw(page).text((20, 20 + 44 * i), line, "black", ImageFont.truetype(FONTS[font], 28))
    return _encoded(page, "PNG")


def documents() -> list[dict[str, Any]]:
    """Ten documents; their answers matter to no test."""
    cat, cup, woman = photo("chelsea"), photo("coffee"), photo("astronaut")
    bill, note = letter(["BILL 2041", "TOTAL 99"], 0), letter(["MEET ME AT 7"], 1)
    asked: list[tuple[list[bytes], str, str]] = [
        ([cat], "what animal is it?", "cat"),
        ([bill], "what is the total?", "99"),
        ([cup], "what is in the cup?", "coffee"),
        ([b"no picture"], "who is it?", "astronaut"),
        ([], "what color is the sky?", "blue"),
        ([bill, note], "how many letters are there?", "2"),
        ([note], "where is the text?", "top"),
        ([woman], "is there a flag in this picture of a woman in a suit?", "yes"),
        ([], "how many legs has a cat?", "4"),
        ([cat, cup], "is there a cup?", "yes"),
    ]
    return [
        {"images": [{"bytes": each, "path": None} for each in images], "question": question, "answer": answer}
        for images, question, answer in asked
    ]


def write(folder: Path) -> Path:
    """Write the data set and the tasks on it to a folder, for lmms-eval's `--include_path`."""
    features = Features({"images": List(Image()), "question": Value("string"), "answer": Value("string")})
    data = folder / "photos.parquet"
    Dataset.from_list(documents(), features=features).to_parquet(data)
    (folder / "utils.py").write_text((HERE / "utils.py").read_text())
    for task in HERE.glob("*.yaml"):
        (folder / task.name).write_text(task.read_text().replace("DATA", str(data)))
    return folder


def _encoded(picture: Picture.Image, kind: str) -> bytes:
    file = BytesIO()
    picture.save(file, kind)
    return file.getvalue()


if __name__ == "__main__":
    write(Path(sys.argv[1]))
