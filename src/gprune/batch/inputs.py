"""What is to be answered: every row of the input with its question and the place of its picture, but no picture."""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from fsspec.utils import glob_translate
from pyarrow.fs import FileSelector, FileSystem, FileType, LocalFileSystem

from ..images import PICTURES

TABLES = (".parquet", ".jsonl")
_ACCEPTED = f"accepted are a folder, a glob, and {' and '.join(TABLES)} files, local or by a URI of pyarrow"
BLOCK_ROWS = 128
"""Rows whose pictures are read by one task."""

ROWS = pa.schema(
    {
        "id": pa.string(),
        "question": pa.string(),
        "path": pa.string(),
        "file": pa.string(),
        "group": pa.int64(),
        "row": pa.int64(),
        "error": pa.string(),
    }
)
"""Of a row: its question, and where its picture is: in the file `path`; or in the Parquet file `file`, row `row` of row
group `group`; or in the JSONL file `file`, in the line that begins at byte `row`. `error`: why there is no answer."""


@dataclass(frozen=True)
class Columns:
    """The columns of a table: of the picture, of the question about it, and of the row's id; None counts the rows."""

    image: str = "image"
    question: str = "question"
    id: str | None = None


@dataclass(frozen=True)
class Source:
    """The rows of an input.

    Args:
        filesystem: of all paths that are no URIs.
        blocks: tables of the schema `ROWS`; the pictures of one are read together.
    """

    filesystem: FileSystem
    blocks: Sequence[pa.Table]

    def __len__(self) -> int:
        return sum(map(len, self.blocks))

    def without(self, done: pa.Table) -> Source:
        """The rows that are not in `done`, a table with their "id" and "question".

        Raises:
            ValueError: another question was asked there: the input has changed.
        """
        if not len(done):
            return self
        left = []
        for block in self.blocks:
            at = pc.index_in(block["id"], value_set=done["id"])
            before, now = pc.take(done["question"], at.drop_null()), block.filter(pc.is_valid(at))
            changed = pc.not_equal(pc.fill_null(before, ""), pc.fill_null(now["question"], ""))
            if pc.any(changed).as_py():
                i = pc.index(changed, True).as_py()
                raise ValueError(
                    f"row {now['id'][i]} was asked {before[i].as_py()!r} before and is to be asked "
                    f"{now['question'][i].as_py()!r}: the input has changed; give another output"
                )
            left.append(block.filter(pc.is_null(at)))
        return Source(self.filesystem, [block for block in left if len(block)])


def read_source(given: str, columns: Columns, question: str | None) -> Source:
    """Find the rows of an input; no picture is opened.

    The id of a row is its value in the column of ids; else the path of its picture, or of its table with the number of
    the row after a colon, below the folder that was given, or that is before the first wildcard.

    Args:
        given: folder, which is searched to its depth, glob, or file; a path, or a URI that pyarrow knows.
        columns: of tables.
        question: about pictures that bring none.

    Raises:
        ValueError: nothing there, pictures and tables side by side, a column that a table has not, a damaged table,
            no question, or an id that occurs twice.
        FileNotFoundError: no such input.
    """
    filesystem, root = locate(given)
    base, files = _find(filesystem, root, given)
    kinds = {_suffix(file) in TABLES for file in files}
    if len(kinds) > 1:
        raise ValueError(f"input {given} has pictures and tables; {_ACCEPTED}; name one of both by a glob")
    if kinds == {True}:
        tables = [_Table(filesystem, file, os.path.relpath(file, base), columns, question) for file in files]
        blocks = [block for table in tables for block in table.blocks()]
    elif question is None:
        raise ValueError(f"the pictures of {given} bring no question; give one that is asked of all")
    else:
        blocks = list(cut({"id": os.path.relpath(file, base), "path": file, "question": question} for file in files))
    source = Source(filesystem, blocks)
    if not len(source):
        raise ValueError(f"input {given} has no rows; {_ACCEPTED}")
    _check_unique(source)
    return source


def locate(given: str) -> tuple[FileSystem, str]:
    """The file system of a path or URI, and the path in it.

    Raises:
        ValueError: pyarrow does not know this kind of URI.
    """
    if "://" not in given:
        return LocalFileSystem(), os.path.abspath(given)
    # In a URI a question mark begins options, and a wildcard cannot be; from its folder on, the path is put behind.
    path, mark, options = given.partition("?")
    plain = re.split(r"[*[]", path, maxsplit=1)[0]
    folder = path if plain == path else plain.rpartition("/")[0]
    try:
        filesystem, root = FileSystem.from_uri(folder + mark + options)
        return filesystem, root + path.removeprefix(folder)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{given} is on no file system that pyarrow reads ({error}); {_ACCEPTED}") from error


def absolute(given: str) -> str:
    """A path or URI that names the same from every folder."""
    return given if "://" in given else os.path.abspath(given)


def _find(filesystem: FileSystem, root: str, given: str) -> tuple[str, list[str]]:
    """The folder that ids are relative to, and the files."""
    found = filesystem.get_file_info(root)
    if found.type == FileType.File:
        return os.path.dirname(root), [root]
    if found.type == FileType.Directory:
        files = _files(filesystem, root, lambda path: _suffix(path) in (*PICTURES, *TABLES))
        if not files:
            raise ValueError(f"folder {given} has no pictures ({', '.join(PICTURES)}) and no tables; {_ACCEPTED}")
        return root, files
    before, wildcard, _ = re.split(r"([*?[])", root, maxsplit=1) if re.search(r"[*?[]", root) else (root, "", "")
    base = os.path.dirname(before)
    if not wildcard or filesystem.get_file_info(base).type != FileType.Directory:
        raise FileNotFoundError(f"input {given} does not exist; {_ACCEPTED}")
    matches = re.compile(glob_translate(root)).match
    files = _files(filesystem, base, lambda path: matches(path) is not None)
    if not files:
        raise FileNotFoundError(f"no file matches {given}; {_ACCEPTED}; in the shell, put a glob in quotes")
    return base, files


def _files(filesystem: FileSystem, folder: str, wanted: Callable[[str], bool]) -> list[str]:
    """The wanted files below a folder, in order, but for those that are hidden or marked as no data by an underscore.

    On this machine each is there once, by its real path if that is wanted, however many links lead to it.
    """

    def visible(path: str) -> bool:
        return wanted(path) and not re.search(r"(^|/)[._]", os.path.relpath(path, folder))

    if not isinstance(filesystem, LocalFileSystem):
        infos = filesystem.get_file_info(FileSelector(folder, recursive=True))
        return sorted(info.path for info in infos if info.type == FileType.File and visible(info.path))
    links: list[str] = []
    files: dict[str, str] = {}
    for path, real in _walk(folder):
        if not visible(path):
            continue
        if os.path.islink(path):
            links.append(path)
        elif os.path.isfile(path):
            files.setdefault(real, path)
    for path in filter(os.path.isfile, links):
        files.setdefault(os.path.realpath(path), path)
    return sorted(files.values())


def _walk(folder: str) -> Iterator[tuple[str, str]]:
    """All that is below a folder of this machine and no folder, by its path and by that without links to folders.

    Each link to a folder is followed once, after all else, so that links in a circle come to an end.
    """
    waiting, followed = [folder], set()
    for start in waiting:
        for path, folders, names in os.walk(start, onerror=_raise):
            real = os.path.realpath(path)
            yield from ((os.path.join(path, name), os.path.join(real, name)) for name in names)
            for name in folders:
                link = os.path.join(real, name)
                if os.path.islink(link) and link not in followed:
                    followed.add(link)
                    waiting.append(os.path.join(path, name))


def _raise(error: OSError) -> None:
    raise error


def _suffix(path: str) -> str:
    return PurePosixPath(path).suffix.lower()


def cut(rows: Iterator[dict[str, Any]], schema: pa.Schema = ROWS, size: int = BLOCK_ROWS) -> Iterator[pa.Table]:
    """Rows as tables of at most `size`."""
    waiting: list[dict[str, Any]] = []
    for row in rows:
        waiting.append(row)
        if len(waiting) == size:
            yield pa.Table.from_pylist(waiting, schema=schema)
            waiting = []
    if waiting:
        yield pa.Table.from_pylist(waiting, schema=schema)


@dataclass(frozen=True)
class _Table:
    """A file with a row for each question.

    Args:
        name: what ids begin with.
        question: of rows that have none.
    """

    filesystem: FileSystem
    path: str
    name: str
    columns: Columns
    question: str | None

    def blocks(self) -> list[pa.Table]:
        read = self._parquet if _suffix(self.path) == ".parquet" else self._jsonl
        try:
            return list(read())
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise ValueError(f"table {self.path} cannot be read ({error}); check the file or get it again") from error

    def _parquet(self) -> Iterator[pa.Table]:
        with pq.ParquetFile(self.filesystem.open_input_file(self.path)) as file:
            schema = file.schema_arrow
            self._check(schema.names)
            inline = is_inline(schema.field(self.columns.image).type, self.columns.image, self.path)
            image = [] if inline else [self.columns.image]
            small = [name for name in (self.columns.question, self.columns.id, *image) if name in schema.names]
            number = 0
            for group in range(file.num_row_groups):
                rows = []
                values = file.read_row_group(group, columns=small).to_pylist() if small else None
                for i in range(file.metadata.row_group(group).num_rows):
                    row = self._row({} if values is None else values[i], number)
                    place = {"file": self.path, "group": group, "row": i}
                    rows.append(row | place if inline else self._linked(row, values[i]))  # type: ignore[index]
                    number += 1
                # A row group is read as a whole, so its rows stay together.
                yield from [pa.Table.from_pylist(rows, schema=ROWS)] if inline else cut(iter(rows))

    def _jsonl(self) -> Iterator[pa.Table]:
        rows, number, at = [], 0, 0
        names: set[str] = set()
        for line in io.BufferedReader(self.filesystem.open_input_file(self.path)):
            start, at = at, at + len(line)
            if not line.strip():
                continue
            try:
                values = json.loads(line)
                names |= values.keys()
                row = self._row(values, number)
                inline = str(values.get(self.columns.image)).startswith("data:")
                row = row | {"file": self.path, "row": start} if inline else self._linked(row, values)
                "".join(
                    value for value in row.values() if isinstance(value, str)
                ).encode()  # JSON can hold half a letter
                rows.append(row)
            except (ValueError, AttributeError, RecursionError) as error:
                rows.append({"id": f"{self.name}:{number}", "error": f"the line is no JSON object ({error})"})
            number += 1
        if names:
            self._check(sorted(names))
        yield from cut(iter(rows))

    def _check(self, names: Sequence[str]) -> None:
        needed = [self.columns.image]
        needed += [self.columns.question] if self.question is None else []
        needed += [] if self.columns.id is None else [self.columns.id]
        for name in needed:
            if name not in names:
                raise ValueError(
                    f"table {self.path} has no column {name!r}; it has {', '.join(names)}; say which are those of the "
                    f"image, the question and the id, or give a question that is asked of all"
                )

    def _row(self, values: dict[str, Any], number: int) -> dict[str, Any]:
        own = values.get(self.columns.question)
        question = self.question if own is None else str(own)
        id = None if self.columns.id is None else values.get(self.columns.id)
        return {
            "id": f"{self.name}:{number}" if id is None else str(id),
            "question": question,
            "error": None if question else "the row has no question",
        }

    def _linked(self, row: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
        """A row with the path of its picture, which may be relative to the table."""
        path = values.get(self.columns.image)
        if not isinstance(path, str) or not path:
            return row | {"error": row["error"] or f"the row has no picture in {self.columns.image!r}"}
        return row | {"path": path if "://" in path else os.path.join(os.path.dirname(self.path), path)}


def is_inline(kind: pa.DataType, column: str, path: str) -> bool:
    """Whether a column has the bytes of pictures, in themselves or under "bytes" as in data sets of Hugging Face.

    Raises:
        ValueError: it has neither these nor paths.
    """
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        return True
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return True
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return False
    raise ValueError(
        f"column {column!r} of {path} is of type {kind}; accepted are strings, which are paths, bytes, and a struct "
        f"with bytes; name another column"
    )


def _check_unique(source: Source) -> None:
    ids = pa.chunked_array([chunk for block in source.blocks for chunk in block["id"].chunks], pa.string())
    counts = pc.value_counts(ids)
    twice = pc.filter(counts.field(0), pc.greater(counts.field(1), 1))
    if len(twice):
        raise ValueError(
            f"id {twice[0].as_py()!r} occurs twice, and {len(twice) - 1} others do; an id names one row; name another "
            f"column of ids, or none"
        )
