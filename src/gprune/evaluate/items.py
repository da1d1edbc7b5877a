"""Pictures and the questions about them, as users have them: a folder, a picture, or a JSONL file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import BadType, BadValue
from ..images import PICTURES, open_image, to_rgb

Picture = Image.Image | str | Path
"""An open picture, or the path of a file."""

Query = tuple[Sequence[Picture], str]
"""A prompt: its pictures, and the question about them."""

DEFAULT_QUESTIONS = ("Describe this picture.",)
"""Asked of pictures that bring no question."""

_ACCEPTED = "accepted are a folder of pictures, a picture, and a JSONL file with an image and a question in each line"


@dataclass(frozen=True)
class OpenQuery:
    """An item whose pictures are open.

    Args:
        pictures: upright RGB.
        question: about them.
        names: of the pictures: paths, or sizes of those that came open.
        seen: fingerprint of the pictures.
    """

    pictures: list[Image.Image]
    question: str
    names: list[str]
    seen: str


def read_items(path: Path, questions: Sequence[str] = DEFAULT_QUESTIONS) -> list[Query]:
    """The items of an input; no picture is opened.

    Args:
        path: a folder, which is searched to its depth for files with the endings of `PICTURES`; a picture; or a JSONL
            file, in each line an object with "image", a path or a list of paths, relative to the file, and "question".
        questions: each is asked of every picture that brings none.

    Raises:
        BadValue: nothing there, or a line is not such an object; names it.
    """
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in PICTURES and file.is_file())
        if not files:
            raise BadValue(f"folder {path} has no pictures ({', '.join(PICTURES)}); {_ACCEPTED}; name another")
        return [([file], question) for file in files for question in questions]
    if not path.is_file():
        raise BadValue(f"input {path} does not exist; {_ACCEPTED}; check the path")
    if path.suffix.lower() != ".jsonl":
        return [([path], question) for question in questions]
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadValue(f"input {path} cannot be read ({error}); {_ACCEPTED}; check the file") from error
    items = [
        item for number, line in enumerate(lines, 1) if line.strip() for item in _read(path, number, line, questions)
    ]
    if not items:
        raise BadValue(f"input {path} has no lines; {_ACCEPTED}")
    return items


def open_query(item: Query) -> OpenQuery:
    """Open the pictures of an item.

    Raises:
        UnreadableImage: a file is no picture that can be opened; names it.
        BadType, BadValue: it is no pair of pictures and a question, or has no picture.
    """
    pictures, question = item if isinstance(item, tuple) and len(item) == 2 else (None, None)
    if not isinstance(question, str) or isinstance(pictures, str) or not isinstance(pictures, Sequence):
        raise BadType(f"item {item!r} is no pair; accepted is ([picture, ...], question), pictures open or as paths")
    if not pictures:
        raise BadValue(f"item {item!r} has no picture; accepted is ([picture, ...], question); leave it out")
    opened = [to_rgb(each) if isinstance(each, Image.Image) else open_image(each) for each in pictures]
    names = [
        f"{each.width} x {each.height} picture" if isinstance(each, Image.Image) else str(each) for each in pictures
    ]
    seen = sha256()
    for picture in opened:
        seen.update(f"{picture.size}".encode() + picture.tobytes())
    return OpenQuery(opened, question, names, seen.hexdigest())


def _read(path: Path, number: int, line: str, questions: Sequence[str]) -> list[Query]:
    """The items of a line."""
    try:
        row: Any = json.loads(line)
    except ValueError as error:
        raise BadValue(f"line {number} of {path} is no JSON ({error}); {_ACCEPTED}; mend the line") from error
    given = row.get("image") if isinstance(row, dict) else None
    images = [given] if isinstance(given, str) else given
    if not isinstance(images, list) or not images or not all(isinstance(each, str) and each for each in images):
        raise BadValue(f'line {number} of {path} has no "image"; accepted is a path or a list of paths; mend the line')
    asked = row.get("question")
    if asked is not None and not isinstance(asked, str):
        raise BadValue(f'line {number} of {path} has the "question" {asked!r}; accepted is text; mend the line')
    pictures = [path.parent / each for each in images]
    return [(pictures, question) for question in ([asked] if asked else questions)]
