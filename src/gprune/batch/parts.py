"""The output: a folder of Parquet parts, each there as a whole or not at all."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from .engine import ANSWERED

SETTINGS, LOCK = "_settings.json", ".lock"
"""Readers of Parquet folders pass over names that begin with an underscore or a point."""
PATIENCE = 60.0
"""Seconds after which rows that are ready make a part, however few they are."""


class Parts:
    """Finished parts in a folder, and rows on their way into the next one.

    Args:
        folder: of the parts.
        size: rows that make a part.
    """

    def __init__(self, folder: Path, size: int) -> None:
        self.folder, self.size = folder, size
        self._waiting: list[pa.Table] = []
        self._since = time.monotonic()

    def claim(self, settings: Mapping[str, Any]) -> None:
        """Keep the settings in the folder, where there are no parts yet; else check that they are those of the parts.

        Raises:
            ValueError: they are not.
            OSError: they cannot be written.
        """
        file = self.folder / SETTINGS
        if not self._finished():
            with _whole(file) as part:
                part.write(json.dumps(settings, indent=1).encode() + b"\n")
            return
        before = json.loads(file.read_text())
        for name in dict.fromkeys((*before, *settings)):
            old, new = before.get(name), settings.get(name)
            if old != new or type(old) is not type(new):
                raise ValueError(
                    f"output {self.folder} has rows made with {name}={old!r}, wanted is {new!r}; give another name, or "
                    f"the same settings to go on"
                )

    def done(self) -> pa.Table:
        """The rows of all finished parts, without the answers, which may be many.

        Raises:
            ValueError: a part is damaged.
        """
        columns = [name for name in ANSWERED.names if name != "answer"]
        tables = [ANSWERED.empty_table().select(columns)]
        for path in self._finished():
            try:
                tables.append(pq.read_table(path, columns=columns))
            except (pa.ArrowException, OSError) as error:
                raise ValueError(
                    f"part {path} cannot be read ({error}); delete it, and its rows are answered again"
                ) from error
        return pa.concat_tables(tables)

    def add(self, rows: pa.Table) -> None:
        """Take rows of the schema `ANSWERED`, and write a part if they are enough or have waited long.

        Raises:
            RuntimeError: see `flush`.
        """
        self._waiting.append(rows)
        if sum(map(len, self._waiting)) >= self.size or time.monotonic() - self._since > PATIENCE:
            self.flush()

    def flush(self) -> None:
        """Write what waits as a part.

        Raises:
            RuntimeError: it cannot be written; the parts before are intact.
        """
        self._since = time.monotonic()
        if not self._waiting:
            return
        finished = self._finished()
        number = int(finished[-1].stem.removeprefix("part-")) + 1 if finished else 0
        path = self.folder / f"part-{number:06d}.parquet"
        try:
            with _whole(path) as part:
                pq.write_table(pa.concat_tables(self._waiting), part)
        except OSError as error:
            raise RuntimeError(
                f"{path} cannot be written ({error}); the {len(finished)} parts before it are intact; make room, or "
                f"the folder writable, and do the same again to go on"
            ) from error
        self._waiting = []

    def _finished(self) -> list[Path]:
        return sorted(self.folder.glob("part-*.parquet"))


@contextmanager
def opened(folder: Path, settings: Mapping[str, Any], size: int) -> Iterator[Parts]:
    """The parts in a folder, for this process alone; at the end, also after an error, what waits is written.

    Args:
        folder: made if it does not exist.
        settings: what the rows depend on; those of the parts that are there must be the same.
        size: rows that make a part.

    Raises:
        ValueError: the folder is another job's or in use, or is something else.
        OSError: it cannot be made or written.
    """
    parts = Parts(folder, size)
    with ExitStack() as locked:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not (folder / SETTINGS).exists() and any(path.name != LOCK for path in folder.iterdir()):
                raise ValueError(f"output {folder} is a folder with other files; give another name")
            locked.enter_context(FileLock(folder / LOCK, blocking=False))
            for rest in folder.glob(".*.tmp"):
                rest.unlink()
            parts.claim(settings)
        except Timeout as error:
            raise ValueError(f"output {folder} is in use by another job; wait for it, or give another name") from error
        except OSError as error:
            raise OSError(f"output {folder} cannot be made or written ({error}); give another name") from error
        try:
            yield parts
        except BaseException:
            with suppress(RuntimeError):
                parts.flush()
            raise
        parts.flush()


@contextmanager
def _whole(path: Path) -> Iterator[Any]:
    """A file to write to, that takes its name when all of it is on the disk."""
    part = path.parent / f".{path.name}.tmp"
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
