"""A job: rows read, answered by a pool of workers, and written as they come."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ..errors import BadValue
from ..images import MAX_PIXELS
from .cluster import check_address
from .engine import Engine
from .inputs import Columns, absolute, read_source
from .parts import opened
from .workers import answer_rows


@dataclass(frozen=True)
class Job:
    """What is asked of which pictures, and how the work is shared.

    Args:
        input: folder, glob, Parquet or JSONL file; a path, or a URI that pyarrow reads.
        output: folder of the parts; what is finished there is not done again.
        engine: what answers.
        question: about rows that bring none.
        columns: of tables.
        actors: workers; None is one for each GPU, or one.
        batch_size: rows that a worker answers at once.
        part_rows: rows of a part, and so at most what is lost if the job is killed.
        address: of a Ray cluster, HOST:PORT or "auto"; None works in processes of this machine.
        root: folder that the files of pictures have to lie below, links resolved; None is anywhere.
        max_pixels: of a picture, width times height; one with more is a row with its error.
        patience: seconds that the workers may take to start, and that may pass later without a row answered.
    """

    input: str
    output: Path
    engine: Engine
    question: str | None = None
    columns: Columns = field(default_factory=Columns)
    actors: int | None = None
    batch_size: int = 8
    part_rows: int = 512
    address: str | None = None
    root: str | None = None
    max_pixels: int = MAX_PIXELS
    patience: int = 3600

    @property
    def settings(self) -> dict[str, Any]:
        """What rows depend on."""
        asked: dict[str, Any] = {"input": absolute(self.input), "question": self.question}
        if self.root is not None:
            asked["root"] = os.path.abspath(self.root)
        if self.max_pixels != MAX_PIXELS:
            asked["max_pixels"] = self.max_pixels
        return {**asked, **{f"{name} column": value for name, value in asdict(self.columns).items()}} | (
            self.engine.settings
        )


@dataclass(frozen=True)
class Summary:
    """What a job did.

    Args:
        rows: in the output.
        good, bad: of these, with an answer and with an error.
        before: of these, finished before this run.
        first_error: of the first bad row, with its id.
        visual_tokens, kept_tokens: of all rows, before and after pruning; 0 where unknown.
        seconds: of this run.
        start_seconds: of these, until the first rows were answered: Ray, the workers, their models.
        rows_per_second: of this run, its start included; 0 if nothing was left to do.
    """

    rows: int
    good: int
    bad: int
    before: int
    first_error: str | None
    visual_tokens: int
    kept_tokens: float
    seconds: float
    start_seconds: float
    rows_per_second: float


@dataclass(frozen=True)
class Progress:
    """Rows done and to do in all, and visual tokens of this run's rows before and after pruning."""

    done: int
    total: int
    visual_tokens: int = 0
    kept_tokens: float = 0.0


def run(job: Job, progress: Callable[[Progress], None] = lambda state: None) -> Summary:
    """Answer every row of the input that is not in the output yet.

    Args:
        job: which.
        progress: called at the beginning, and whenever rows are answered.

    Raises:
        ValueError, TypeError: the input, the output, the model, the cluster or a setting cannot be used.
        OSError: there is no such input, or the output cannot be made.
        RuntimeError: a part could not be written, or a worker failed for another reason than a row; what is finished
            is intact, and the same job goes on from there.
    """
    started = time.perf_counter()
    if job.root is not None and not os.path.isdir(job.root):
        raise BadValue(f"root {job.root} is no folder; accepted is one of this machine that all pictures lie below")
    source = read_source(job.input, job.columns, job.question)
    job.engine.check()
    check_address(job.address)
    with opened(job.output, job.settings, job.part_rows) as parts:
        done = parts.done()
        todo = source.without(done)
        state = Progress(len(done), len(done) + len(todo))
        progress(state)
        first = started
        with closing(answer_rows(job, todo)) as answered:
            for rows in answered:
                first = time.perf_counter() if first == started else first
                parts.add(rows)
                state = Progress(
                    state.done + len(rows),
                    state.total,
                    state.visual_tokens + _sum(rows["visual_tokens"]),
                    state.kept_tokens + _sum(rows["kept_tokens"]),
                )
                progress(state)
        parts.flush()
        return _summary(parts.done(), len(done), time.perf_counter() - started, first - started)


def _sum(values: pa.ChunkedArray) -> Any:
    return pc.sum(values).as_py() or 0


def _summary(rows: pa.Table, before: int, seconds: float, start: float) -> Summary:
    bad = rows.filter(pc.is_valid(rows["error"]))
    return Summary(
        rows=len(rows),
        good=len(rows) - len(bad),
        bad=len(bad),
        before=before,
        first_error=f"{bad['id'][0]}: {bad['error'][0]}" if len(bad) else None,
        visual_tokens=_sum(rows["visual_tokens"]),
        kept_tokens=float(_sum(rows["kept_tokens"])),
        seconds=round(seconds, 3),
        start_seconds=round(start, 3),
        rows_per_second=round((len(rows) - before) / seconds, 3),
    )
