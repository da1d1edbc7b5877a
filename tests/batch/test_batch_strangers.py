"""Folders and tables of people who mean no good: each row is answered or has its error, and the job goes on."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rayenv import png, write_parquet
from test_batch_inputs import Read, read

from gprune.batch import Columns
from gprune.batch.inputs import read_source
from gprune.batch.pictures import MAX_BYTES, read_pictures

PICTURE = png(Image.new("RGB", (8, 8), "red"))


def write_lines(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


def confined(table: Path, root: Path) -> Read:
    source = read_source(str(table), Columns(), "what?")
    tables = [read_pictures(block, source.filesystem, Columns(), str(root)) for block in source.blocks]
    rows = [row for each in tables for table in each for row in table.to_pylist()]
    return [(row["id"], row["question"], row["picture"], row["error"]) for row in rows]


def test_json_that_is_deep_or_holds_half_a_letter(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PICTURE)
    deep = "[" * 200_000
    lines = [
        {"image": "a.png"},
        deep,
        f'{{"image": "a.png", "question": {deep}',
        '{"image": "a.png", "question": ' + "[" * 900 + "]" * 900 + "}",
        '{"image": "\\ud800.png"}',
        '{"image": "a.png", "question": "\\ud800"}',
        {"image": "a.png"},
    ]
    rows = read(write_lines(tmp_path / "t.jsonl", lines))
    assert [row[0] for row in rows] == [f"t.jsonl:{i}" for i in range(len(lines))]
    assert [row[3] is None for row in rows] == [True, False, False, True, False, False, True]
    assert all("no JSON object" in str(rows[i][3]) for i in (1, 2, 4, 5))
    assert rows[0][2] == rows[6][2] == PICTURE


def special(folder: Path) -> dict[str, Path]:
    """What is no file, by its kind; reading some of it would never end."""
    os.mkfifo(folder / "pipe.png")
    (folder / "folder.png").mkdir()
    (folder / "circle.png").symlink_to("circle.png")
    (folder / "to_pipe.png").symlink_to("pipe.png")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "socket.png"))
    names = ("pipe", "folder", "circle", "to_pipe", "socket")
    return {"device": Path("/dev/zero"), **{name: folder / f"{name}.png" for name in names}}


@pytest.mark.timeout(60)
def test_paths_of_what_is_no_file(tmp_path: Path) -> None:
    paths = special(tmp_path)
    given = [str(path) for path in paths.values()] + [path.as_uri() for path in paths.values()]
    given += ["a\0.png", "x" * 5000, "://", "nowhere://x/a.png", ""]
    rows = read(write_parquet(tmp_path / "t.parquet", {"image": given}))
    assert len(rows) == len(given)
    assert all(row[2] is None and row[3] for row in rows)
    for i, name in enumerate(paths):
        if name != "circle":
            assert "it is not a file" in str(rows[i][3]) and "it is not a file" in str(rows[i + len(paths)][3])


@pytest.mark.timeout(60)
def test_a_folder_with_what_is_no_file(tmp_path: Path) -> None:
    special(tmp_path)
    (tmp_path / "a.png").write_bytes(PICTURE)
    assert [row[0] for row in read(tmp_path)] == ["a.png"]


def test_a_file_that_is_larger_than_any_picture(tmp_path: Path) -> None:
    with (tmp_path / "a.png").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    [row] = read(tmp_path)
    assert row[2] is None and "accepted are at most 536,870,912" in str(row[3])


@pytest.mark.timeout(60)
def test_links_in_circles_and_doubles(tmp_path: Path) -> None:
    """Each picture once, by its real path where that is below the folder, else by a link."""
    folder, other = tmp_path / "photos", tmp_path / "other"
    for path in (folder / "a" / "1.png", folder / "b" / "2.png", other / "3.png"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(PICTURE)
    for i in range(12):  # each leads to all of them: as many paths as there are ways to go round
        (folder / f"up{i}").symlink_to(folder)
        (folder / "a" / f"up{i}").symlink_to("..")
    (folder / "b" / "0.png").symlink_to("../a/1.png")
    (folder / "outer").symlink_to(other)
    (folder / "outer2").symlink_to(other)
    (folder / "gone.png").symlink_to("nowhere.png")
    expected = ["a/1.png", "b/2.png", "outer/3.png"]
    assert [row[0] for row in read(folder)] == [row[0] for row in read(folder.as_uri())] == expected
    assert [row[0] for row in read(f"{folder}/**/*.png")] == expected
    assert [row[0] for row in read(f"{folder}/b/*.png")] == ["0.png", "2.png"]
    assert [row[0] for row in read(f"{folder}/outer2*/*.png")] == ["outer2/3.png"]
    assert [row[0] for row in read(folder / "outer")] == ["3.png"]


def test_a_folder_that_cannot_be_read_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def scan(path: Any) -> Any:
        raise PermissionError(13, "Permission denied", str(path))

    (tmp_path / "a.png").write_bytes(PICTURE)
    monkeypatch.setattr("os.scandir", scan)
    with pytest.raises(PermissionError):
        read(tmp_path)


def test_paths_outside_the_root(tmp_path: Path) -> None:
    """Written in any way, or by a link; whether there is something cannot be told."""
    root, outside = tmp_path / "own", tmp_path / "own2"
    for folder in (root, outside):
        folder.mkdir()
        (folder / "a.png").write_bytes(PICTURE)
    (root / "out.png").symlink_to(outside / "a.png")
    (root / "out").symlink_to(outside)
    (root / "in.png").symlink_to("a.png")
    inside = ["a.png", "in.png", str(root / "a.png"), (root / "a.png").as_uri(), "../own/a.png"]
    others = [str(outside / "a.png"), (outside / "a.png").as_uri(), "../own2/a.png", "out.png", "out/a.png"]
    others += ["/etc/passwd", str(outside / "nothing.png"), "s3://bucket/a.png", "FILE:///etc/passwd", str(tmp_path)]
    rows = confined(write_parquet(root / "t.parquet", {"image": [*inside, *others]}), root)
    assert [row[2] for row in rows[: len(inside)]] == [PICTURE] * len(inside)
    for path, row in zip(others, rows[len(inside) :], strict=True):
        assert row[2] is None and str(row[3]).endswith(f"cannot be read (it is not below {root})"), path
    folder = read_source(str(root / "*.png"), Columns(), "what?")
    [found] = [table.to_pylist() for table in read_pictures(folder.blocks[0], folder.filesystem, Columns(), str(root))]
    assert {row["id"]: row["error"] is None for row in found} == {"a.png": True, "out.png": False}
