"""The pictures of rows: their bytes, and what these show."""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image, UnidentifiedImageError
from pyarrow.fs import FileSystem, LocalFileSystem

from ..images import MAX_PIXELS, UnreadableImage, read_rgb
from .inputs import Columns, cut, locate

READ = pa.schema({"id": pa.string(), "question": pa.string(), "picture": pa.large_binary(), "error": pa.string()})
"""Of a row: its question and the bytes of its picture, or why there are none."""
TOGETHER = 16
"""Rows whose pictures are in the memory of a reading task at once."""

MAX_BYTES = 1 << 29
"""Of a picture's file; one of the default number of pixels that is not compressed at all has less."""

Row = dict[str, Any]


def read_pictures(
    rows: pa.Table, filesystem: FileSystem, columns: Columns, root: str | None = None
) -> Iterator[pa.Table]:
    """Read the bytes of pictures.

    Args:
        rows: of the schema `ROWS`.
        filesystem: of all paths that are no URIs.
        columns: of the tables that hold pictures.
        root: folder of this machine that files of pictures have to lie below, links resolved; None is anywhere.

    Yields:
        Tables of the schema `READ`, all rows in their order; what cannot be read is a row with its error.
    """
    read = (
        {"id": row["id"], "question": row["question"], "picture": picture, "error": error}
        for row, picture, error in _read(rows.to_pylist(), filesystem, columns.image, root)
    )
    yield from cut(read, READ, TOGETHER)


def open_picture(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """See `gprune.images.open_image`, of the bytes of a file.

    Raises:
        UnreadableImage: no picture, truncated, or too large.
    """
    try:
        return read_rgb(io.BytesIO(data), max_pixels)
    except UnidentifiedImageError as error:
        raise UnreadableImage("the file is empty" if not data else "the file is not a picture") from error
    except Exception as error:  # a damaged file can make a decoder raise almost anything
        raise UnreadableImage(f"the picture cannot be read ({' '.join(str(error).split())})") from error


def _read(
    rows: Iterable[Row], filesystem: FileSystem, column: str, root: str | None
) -> Iterator[tuple[Row, bytes | None, str | None]]:
    """Of every row the bytes of its picture, or why there are none."""
    for (file, group), together in groupby(rows, lambda row: (row["file"], row["group"])):
        if group is not None:
            yield from _from_group(filesystem, file, group, column, list(together))
            continue
        for row in together:
            if row["error"]:
                yield row, None, row["error"]
                continue
            try:
                if file is None:
                    yield row, _from_path(filesystem, row["path"], root), None
                else:
                    yield row, _from_line(filesystem, row, column), None
            except (OSError, ValueError, RecursionError) as error:
                yield row, None, f"{row['path'] or file} cannot be read ({' '.join(str(error).split())})"


def _from_path(filesystem: FileSystem, path: str, root: str | None) -> bytes:
    if "://" in path:
        if root is not None and not path.startswith("file://"):
            raise ValueError(f"it is not below {root}")
        filesystem, path = locate(path)
    if root is not None:
        path = _below(root, filesystem, path)
    if isinstance(filesystem, LocalFileSystem) and os.path.exists(path) and not os.path.isfile(path):
        raise ValueError("it is not a file")  # but a pipe, say, that never ends
    with filesystem.open_input_file(path) as file:
        if file.size() > MAX_BYTES:
            raise ValueError(f"it has {file.size():,} bytes; accepted are at most {MAX_BYTES:,}")
        return file.read()


def _below(root: str, filesystem: FileSystem, path: str) -> str:
    """The real path of a file.

    Raises:
        ValueError: it is not below the folder `root` of this machine.
    """
    real, top = os.path.realpath(path), os.path.realpath(root)
    if not isinstance(filesystem, LocalFileSystem) or os.path.commonpath([real, top]) != top:
        raise ValueError(f"it is not below {root}")
    return real


def _from_line(filesystem: FileSystem, row: Row, column: str) -> bytes:
    with filesystem.open_input_file(row["file"]) as file:
        file.seek(row["row"])
        url = json.loads(io.BufferedReader(file).readline())[column]
    return base64.b64decode(url.partition(",")[2], validate=True)


def _from_group(
    filesystem: FileSystem, path: str, group: int, column: str, rows: list[Row]
) -> Iterator[tuple[Row, bytes | None, str | None]]:
    """Rows of one row group of a Parquet file, read in steps: a row group may be larger than the memory."""
    left = {row["row"]: row for row in rows}
    try:
        for i, picture in enumerate(_column(filesystem, path, group, column)):
            if i in left:
                row = left.pop(i)
                missing = None if picture else f"the row has no picture in {column!r}"
                yield row, picture, row["error"] or missing
            if not left:
                break
    except (OSError, pa.ArrowException) as error:
        for row in left.values():
            yield row, None, f"{os.path.basename(path)} cannot be read here ({' '.join(str(error).split())})"


def _column(filesystem: FileSystem, path: str, group: int, column: str) -> Iterator[bytes | None]:
    with pq.ParquetFile(filesystem.open_input_file(path), buffer_size=1 << 20) as file:
        for batch in file.iter_batches(TOGETHER, row_groups=[group], columns=[column]):
            values = batch[column]
            if pa.types.is_struct(values.type):
                values = pc.struct_field(values, "bytes")
            yield from (value.as_py() for value in values)
