"""Items: folders, pictures and JSONL files become prompts, and what cannot is refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pictures import halves, write_photos
from PIL import Image

from gprune.errors import BadType, BadValue
from gprune.evaluate.items import DEFAULT_QUESTIONS, open_query, read_items
from gprune.images import UnreadableImage


def test_a_folder_is_searched_and_every_question_asked_of_every_picture(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    names = ["b.PNG", "a.jpg", "deep/c.webp"]
    for name in names:
        halves().save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    asked = [(path.relative_to(tmp_path).as_posix(), question) for [path], question in read_items(tmp_path, ["1", "2"])]
    assert asked == [(name, question) for name in sorted(names) for question in ("1", "2")]
    assert [question for _, question in read_items(tmp_path / "a.jpg")] == list(DEFAULT_QUESTIONS)


def test_a_line_has_one_picture_or_several_beside_the_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"image": "a.png", "question": "what?"}, {"image": ["a.png", "b.png"]}]
    path.write_text("\n\n".join(map(json.dumps, rows)) + "\n")
    here = tmp_path.as_posix()
    found = [([Path(each).as_posix() for each in pictures], question) for pictures, question in read_items(path, ["x"])]
    assert found == [([f"{here}/a.png"], "what?"), ([f"{here}/a.png", f"{here}/b.png"], "x")]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "line 2 of .* is no JSON"),
        ("[]", 'line 2 of .* has no "image"'),
        ('{"question": "x"}', 'line 2 of .* has no "image"'),
        ('{"image": []}', 'line 2 of .* has no "image"'),
        ('{"image": [3]}', 'line 2 of .* has no "image"'),
        ('{"image": "a.png", "question": 3}', 'has the "question" 3; accepted is text'),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, reason: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"image": "a.png"}\n' + line)
    with pytest.raises(BadValue, match=reason):
        read_items(path)


def test_nothing_to_read(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe")
    for name, reason in (("", "has no pictures"), ("none", "does not exist"), ("empty.jsonl", "no lines")):
        with pytest.raises(BadValue, match=reason):
            read_items(tmp_path / name)
    with pytest.raises(BadValue, match="cannot be read"):
        read_items(tmp_path / "binary.jsonl")


def test_pictures_are_shown_open_or_from_files_and_known_by_what_they_show(tmp_path: Path) -> None:
    paths = write_photos(tmp_path)
    from_file = open_query(([paths["coffee"], halves()], "what?"))
    assert from_file.names == [str(paths["coffee"]), "24 x 16 picture"] and from_file.question == "what?"
    with Image.open(paths["coffee"]) as coffee:
        assert open_query(([coffee, halves()], "else?")).seen == from_file.seen
    assert open_query(([halves(), paths["coffee"]], "what?")).seen != from_file.seen


def test_what_is_no_item(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(UnreadableImage, match="is not a picture"):
        open_query(([tmp_path / "text.png"], "what?"))
    with pytest.raises(BadValue, match="has no picture"):
        open_query(([], "what?"))
    for item in ("a.png", ("a.png", "what?"), ([halves()], 3), ([halves()],), (halves(), "what?")):
        with pytest.raises(BadType, match="is no pair"):
            open_query(item)  # type: ignore[arg-type]
