"""Rows of every kind of input: which they are, what their ids are, and what is refused."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rayenv import corrupt, pa, png, pq, scenes, write_folder, write_parquet

from gprune.batch import Columns
from gprune.batch.inputs import BLOCK_ROWS, Source, locate, read_source
from gprune.batch.pictures import read_pictures

Read = list[tuple[str, str, bytes | None, str | None]]


def read(given: object, columns: Columns | None = None, question: str | None = "what?") -> Read:
    """All rows, with the bytes of their pictures."""
    columns = columns or Columns()
    source = read_source(str(given), columns, question)
    rows = [
        row
        for block in source.blocks
        for table in read_pictures(block, source.filesystem, columns)
        for row in table.to_pylist()
    ]
    return [(row["id"], row["question"], row["picture"], row["error"]) for row in rows]


def test_a_folder_to_its_depth(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "photos", 5)
    for name in ("notes.txt", ".hidden.png", "_marked.png", "B.JPG"):
        (folder / name).write_bytes(b"x")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "thumb.png").write_bytes(b"x")
    pictures = [picture for picture, _ in scenes(5)]
    assert read(folder) == [
        ("B.JPG", "what?", b"x", None),
        *((f"a/{i:03d}.png", "what?", pictures[i], None) for i in (0, 2, 4)),
        *((f"b/c/{i:03d}.png", "what?", pictures[i], None) for i in (1, 3)),
    ]
    assert read(folder.as_uri()) == read(folder)


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("*.png", []),
        ("a/*.png", ["000.png", "002.png", "004.png"]),
        ("a/00[02].png", ["000.png", "002.png"]),
        ("**/*.png", ["a/000.png", "a/002.png", "a/004.png", "b/c/001.png", "b/c/003.png"]),
        ("?/*.png", ["a/000.png", "a/002.png", "a/004.png"]),
    ],
)
def test_a_glob(tmp_path: Path, pattern: str, found: list[str]) -> None:
    folder = write_folder(tmp_path / "photos", 5)
    # In a URI a question mark begins options.
    for given in (f"{folder}/{pattern}", *([] if "?" in pattern else [f"file://{folder}/{pattern}"])):
        if found:
            assert [row[0] for row in read(given)] == found
        else:
            with pytest.raises(FileNotFoundError, match="no file matches"):
                read(given)


def test_options_of_an_address() -> None:
    filesystem, path = locate("s3://bucket/photos/**/*.png?region=eu-west-3&allow_bucket_creation=true")
    assert path == "bucket/photos/**/*.png" and filesystem.region == "eu-west-3"


def test_names_that_look_like_globs_or_addresses(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "photos [2020]", 1)
    (folder / "a#1?x=é.png").write_bytes(b"x")
    assert [row[0] for row in read(folder)] == ["a#1?x=é.png", "a/000.png"]
    assert read(folder / "a#1?x=é.png") == [("a#1?x=é.png", "what?", b"x", None)]


@pytest.mark.parametrize("kind", ["bytes", "large bytes", "hugging face", "paths", "absolute", "uri"])
def test_a_parquet_table(tmp_path: Path, kind: str) -> None:
    asked = scenes(7)
    write_folder(tmp_path / "photos", 7)
    paths = [f"photos/{('a', 'b/c')[i % 2]}/{i:03d}.png" for i in range(7)]
    pictures = [picture for picture, _ in asked]
    column: Any = {
        "bytes": pa.array(pictures, pa.binary()),
        "large bytes": pa.array(pictures, pa.large_binary()),
        "hugging face": pa.array([{"bytes": each, "path": "x.png"} for each in pictures]),
        "paths": pa.array(paths, pa.large_string()),
        "absolute": [f"{tmp_path}/{path}" for path in paths],
        "uri": [(tmp_path / path).as_uri() for path in paths],
    }[kind]
    table = {"image": column, "question": [question for _, question in asked], "other": list(range(7))}
    path = write_parquet(tmp_path / "table.parquet", table, group=3)
    expected = [(f"table.parquet:{i}", question, picture, None) for i, (picture, question) in enumerate(asked)]
    assert read(path) == expected
    assert read(path, Columns(id="other")) == [(str(i), *row[1:]) for i, row in enumerate(expected)]
    renamed = write_parquet(tmp_path / "renamed.parquet", {"p": column, "q": table["question"]})
    rows = read(renamed, Columns("p", "q"), None)
    assert [row[1:] for row in rows] == [row[1:] for row in expected]


def test_a_folder_of_tables(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    (folder / "deep").mkdir(parents=True)
    write_parquet(folder / "deep" / "one.parquet", {"image": [b"1", b"2"]})
    write_parquet(folder / "two.parquet", {"image": [b"3"]})
    (folder / "three.jsonl").write_text(json.dumps({"image": "data:;base64," + base64.b64encode(b"4").decode()}) + "\n")
    assert [(row[0], row[2]) for row in read(folder)] == [
        ("deep/one.parquet:0", b"1"),
        ("deep/one.parquet:1", b"2"),
        ("three.jsonl:0", b"4"),
        ("two.parquet:0", b"3"),
    ]


def test_a_jsonl_table(tmp_path: Path) -> None:
    (tmp_path / "é.png").write_bytes(b"1")
    lines: list[str] = [
        json.dumps({"image": "é.png", "question": "wo?", "name": "x"}, ensure_ascii=False),
        "",
        json.dumps({"image": "data:image/png;base64," + base64.b64encode(b"22").decode()}),
        json.dumps({"image": "data:image/png;base64,***"}),
        "{oops",
        "[1]",
        json.dumps({"question": "which?"}),
        json.dumps({"image": "gone.png"}),
    ]
    path = tmp_path / "asked.jsonl"
    path.write_text("\n".join(lines))
    rows = read(path)
    assert rows[:2] == [("asked.jsonl:0", "wo?", b"1", None), ("asked.jsonl:1", "what?", b"22", None)]
    assert [row[0] for row in rows[2:]] == [f"asked.jsonl:{i}" for i in range(2, 7)]
    for row, reason in zip(
        rows[2:], ("cannot be read", "no JSON object", "no JSON object", "no picture", "cannot be read"), strict=True
    ):
        assert row[2] is None and reason in str(row[3])
    assert [row[0] for row in read(path, Columns(id="name"))][:2] == ["x", "asked.jsonl:1"]


def test_rows_without_a_picture_or_question(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "t.parquet", {"image": [b"1", None, b"3"], "question": ["a", "b", None]})
    assert read(path, question=None) == [
        ("t.parquet:0", "a", b"1", None),
        ("t.parquet:1", "b", None, "the row has no picture in 'image'"),
        ("t.parquet:2", None, b"3", "the row has no question"),
    ]
    assert read(path, question="c")[2] == ("t.parquet:2", "c", b"3", None)
    paths = write_parquet(tmp_path / "p.parquet", {"image": ["gone.png", None, ""]})
    assert ["gone.png cannot be read" in str(row[3]) or "no picture" in str(row[3]) for row in read(paths)] == [
        True
    ] * 3


def test_a_damaged_row_group_is_errors_of_its_rows(tmp_path: Path) -> None:
    pictures = [bytes([i]) * 5000 for i in range(6)]
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"image": pictures}), path, row_group_size=3, compression="zstd", use_dictionary=False)
    place = pq.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    content = bytearray(path.read_bytes())
    content[place : place + 60] = b"\xff" * 60
    path.write_bytes(content)
    rows = read(path)
    assert [row[2] for row in rows[:3]] == pictures[:3] and len(rows) == 6
    assert all(row[2] is None and "cannot be read" in str(row[3]) for row in rows[3:])


def test_many_rows_are_read_by_several_tasks(tmp_path: Path) -> None:
    count = 2 * BLOCK_ROWS + 1
    path = write_parquet(tmp_path / "t.parquet", {"image": [f"{i}.png" for i in range(count)]})
    source = read_source(str(path), Columns(), "what?")
    assert [len(block) for block in source.blocks] == [BLOCK_ROWS, BLOCK_ROWS, 1]
    inline = write_parquet(tmp_path / "i.parquet", {"image": [b"x"] * count}, group=200)
    assert [len(block) for block in read_source(str(inline), Columns(), "what?").blocks] == [200, count - 200]


def source_of(tmp_path: Path, questions: list[str]) -> Source:
    path = write_parquet(tmp_path / "t.parquet", {"image": [b"1"] * len(questions), "question": questions}, group=2)
    return read_source(str(path), Columns(), None)


def test_rows_that_are_done_are_left_out(tmp_path: Path) -> None:
    source = source_of(tmp_path, ["a", "b", "c", "d", "e"])
    done = pa.table({"id": ["t.parquet:4", "t.parquet:1", "gone"], "question": ["e", "b", "z"]})
    left = source.without(done)
    assert [id for block in left.blocks for id in block["id"].to_pylist()] == [f"t.parquet:{i}" for i in (0, 2, 3)]
    everything = pa.concat_tables(block.select(["id", "question"]) for block in source.blocks)
    assert len(source.without(everything)) == 0
    assert len(source.without(everything.slice(0, 0))) == 5


def test_an_input_that_has_changed(tmp_path: Path) -> None:
    source = source_of(tmp_path, ["a", "b", "c"])
    with pytest.raises(ValueError, match=r"row t.parquet:1 was asked 'x' before and is to be asked 'b'"):
        source.without(pa.table({"id": ["t.parquet:0", "t.parquet:1"], "question": ["a", "x"]}))


def refused(error: type[Exception], reason: str, *arguments: Any) -> None:
    with pytest.raises(error, match=reason):
        read(*arguments)


def test_what_is_refused(tmp_path: Path) -> None:
    refused(FileNotFoundError, "nowhere does not exist; accepted are a folder", tmp_path / "nowhere")
    refused(FileNotFoundError, "does not exist", tmp_path / "nowhere" / "*.png")
    refused(ValueError, "no file system that pyarrow reads", "http://example.org/x.png")
    (tmp_path / "empty").mkdir()
    refused(ValueError, "has no pictures", tmp_path / "empty")
    mixed = write_folder(tmp_path / "mixed", 1)
    write_parquet(mixed / "t.parquet", {"image": [b"x"]})
    refused(ValueError, "has pictures and tables", mixed)
    refused(ValueError, "bring no question", mixed / "a", None, None)
    table = mixed / "t.parquet"
    refused(ValueError, "no column 'question'; it has image", table, None, None)
    refused(ValueError, "no column 'photo'; it has image", table, Columns("photo"))
    refused(ValueError, "no column 'name'; it has image", table, Columns(id="name"))
    write_parquet(table, {"image": [1, 2]})
    refused(ValueError, "of type int64; accepted are strings", table)
    write_parquet(table, {"image": pa.array([], pa.binary())})
    refused(ValueError, "has no rows", table)
    write_parquet(table, {"image": [b"x"] * 3, "name": ["a", "b", "a"]})
    refused(ValueError, "id 'a' occurs twice", table, Columns(id="name"))
    table.write_bytes(corrupt(png_of_nothing(), 0))
    refused(ValueError, r"t\.parquet cannot be read", table)
    lines = tmp_path / "t.jsonl"
    lines.write_text(json.dumps({"photo": "x.png"}) + "\n")
    refused(ValueError, "no column 'image'; it has photo", lines)


def png_of_nothing() -> bytes:
    return png(Image.new("RGB", (8, 8)))
