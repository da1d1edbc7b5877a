"""Cells of the embedded benchmark, measured in this process."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from statistics import fmean
from typing import Any

from ..models import EMBEDDED, load
from ..pruners import Method
from ..scenes.benchmark import QUESTIONS, Sample, mean_flops, run_benchmark, samples, scores
from ..spec import parse_pruner
from .cells import Cell, Key, versions
from .runs import refusal_of
from .tables import SCENES


class Embedded:
    """The embedded benchmark on one model, loaded once for all cells.

    Args:
        model: hub id, folder, or "embedded".
        batch_size: pictures at once.
        answered: called with the number of questions answered and the number of all of the cell.
    """

    def __init__(
        self,
        model: str = EMBEDDED,
        batch_size: int = 32,
        answered: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        self.model, self.batch_size = model, batch_size
        self._answered = answered
        self._tests: list[Sample] = []

    @cached_property
    def loaded(self) -> tuple[Any, Any]:
        """The model and its processor."""
        return load(self.model)

    def refusal(self, key: Key) -> str | None:
        """Why the method of a cell does not go on the model; None if it does."""
        return refusal_of(key.method, key.keep, self.loaded[0], masked=True)

    def measure(self, key: Key) -> Cell:
        """Answer the benchmark's questions: accuracy overall, then per category, as shares.

        Raises:
            ValueError: another model or task, or a method that cannot go on the model as `key` wants it.
        """
        if (key.model, key.task) != (self.model, SCENES):
            raise ValueError(f"{key} is not of {self.model} on the embedded benchmark; give others to gprune eval")
        model, processor = self.loaded
        tests, method = self._first(key.limit or QUESTIONS), method_of(key)
        outcomes = run_benchmark(
            model,
            processor,
            tests,
            method,
            batch_size=self.batch_size,
            answered=lambda done: self._answered(done, len(tests)),
        )
        return Cell(
            key,
            scores(outcomes),
            len(outcomes),
            fmean(outcome.visual_tokens for outcome in outcomes),
            fmean(outcome.kept_tokens for outcome in outcomes),
            mean_flops(model, processor, tests, method),
            fmean(outcome.seconds for outcome in outcomes),
            versions=versions(),
            right="".join(str(int(outcome.right)) for outcome in outcomes),
        )

    def _first(self, count: int) -> list[Sample]:
        if len(self._tests) < count:
            self._tests = list(samples("test", count))
        return self._tests[:count]


def method_of(key: Key) -> Method:
    """The method of a cell."""
    method = parse_pruner(key.method, key.keep)
    return method if key.seed is None else method.with_seed(key.seed)
