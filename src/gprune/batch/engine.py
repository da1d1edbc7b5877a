"""What answers questions, and the worker around it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import pyarrow as pa
from PIL import Image

from ..evaluate.answers import Response, describe
from ..images import MAX_PIXELS, UnreadableImage
from .pictures import open_picture

Ask = Callable[[Sequence[tuple[Image.Image, str]]], list[Response]]
"""Pictures, each with its question, to answers; `error` says why there is none, and 0 `visual_tokens` are unknown."""

ANSWERED = pa.schema(
    {
        "id": pa.string(),
        "question": pa.string(),
        "answer": pa.string(),
        "error": pa.string(),
        "visual_tokens": pa.int64(),
        "kept_tokens": pa.float64(),
        "seconds": pa.float64(),
    }
)
"""A row of the output. Either `answer` or `error` is null. Visual tokens are those before pruning and those after it,
on average over the LLM's layers, null where unknown; seconds are an equal share of what the batch took."""

SENT = ANSWERED.append(pa.field("warning", pa.string())).append(pa.field("failure", pa.string()))
"""What a worker sends: rows, what it warned of meanwhile, and why it can answer no row at all, this one included."""


class Engine(Protocol):
    """A way to have questions answered. It is sent to the workers, and so holds names, not a model."""

    @property
    def on_gpu(self) -> bool:
        """Whether each worker is to have a GPU, if there are any."""

    @property
    def settings(self) -> dict[str, Any]:
        """What answers depend on, as JSON."""

    def check(self) -> None:
        """Raise ValueError or TypeError where it is known without much work that nothing could be answered."""

    def start(self) -> Ask:
        """Make ready to answer, in a worker; what it raises ends the job."""


class Worker:
    """An engine at work in a process of its own.

    What goes wrong with the engine is sent, not raised: it arrives as one sentence, not as a trace through Ray.
    """

    def __init__(self, engine: Engine, max_pixels: int = MAX_PIXELS) -> None:
        self._max_pixels = max_pixels
        self._failure: str | None = None
        try:
            self._ask = engine.start()
        except Exception as error:
            self._failure = describe(error)

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Response rows of the schema `READ`, as a table of the schema `SENT`."""
        given = rows.to_pylist()
        answers: dict[int, Response] = {}
        if self._failure is None:
            with warnings.catch_warnings(record=True) as warned:
                try:
                    answers = self._answer(given)
                except Exception as error:
                    self._failure = describe(error)
        if self._failure is not None:
            return pa.Table.from_pylist([{"failure": self._failure}], schema=SENT)
        done = [_row(row, answers[i]) for i, row in enumerate(given)]
        done[0]["warning"] = "\n".join(str(each.message) for each in warned) or None
        return pa.Table.from_pylist(done, schema=SENT)

    def _answer(self, rows: list[dict[str, Any]]) -> dict[int, Response]:
        """The answer to each row, by its number."""
        answers: dict[int, Response] = {}
        asked: dict[int, tuple[Image.Image, str]] = {}
        for i, row in enumerate(rows):
            if row["error"]:
                answers[i] = Response(error=row["error"])
                continue
            try:
                asked[i] = open_picture(row["picture"], self._max_pixels), row["question"]
            except UnreadableImage as error:
                answers[i] = Response(error=str(error))
        if asked:
            answers.update(zip(asked, self._ask(list(asked.values())), strict=True))
        return answers


def _row(row: dict[str, Any], answer: Response) -> dict[str, Any]:
    given = answer.error is None
    return {
        "id": row["id"],
        "question": row["question"],
        "answer": answer.text if given else None,
        "error": answer.error,
        "visual_tokens": answer.visual_tokens or None,
        "kept_tokens": answer.kept_tokens if answer.visual_tokens else None,
        "seconds": answer.seconds if given else None,
    }
