"""Cells of the embedded model on the embedded benchmark, measured in this process."""

from __future__ import annotations

import statistics
from functools import cached_property
from typing import Any

from ..models import EMBEDDED, load
from ..pruners import Method
from ..scenes.benchmark import Example, Outcome, evaluate, examples, flops
from ..scenes.vocabulary import CATEGORIES
from ..spec import parse_pruner
from .cells import Cell, Key, versions
from .tables import SCENES

QUESTIONS = 700
"""Of the test set, where no limit is given: a hundred of each category."""


class Embedded:
    """The model in the package, loaded once for all cells.

    Args:
        batch_size: pictures at once.
    """

    def __init__(self, batch_size: int = 16) -> None:
        self.batch_size = batch_size
        self._tests: list[Example] = []

    @cached_property
    def loaded(self) -> tuple[Any, Any]:
        """The model and its processor."""
        return load(EMBEDDED)

    def tests(self, limit: int | None) -> list[Example]:
        """The first `limit` test examples; None is all of them."""
        count = limit or QUESTIONS
        if len(self._tests) < count:
            self._tests = list(examples("test", count))
        return self._tests[:count]

    def measure(self, key: Key) -> Cell:
        """Answer the benchmark's questions: accuracy overall, then per category, as shares.

        Raises:
            ValueError: another model or task, or a method that cannot go on the model as `key` wants it.
        """
        if (key.model, key.task) != (EMBEDDED, SCENES):
            raise ValueError(f"{key} is not of the embedded model and benchmark; give others to gprune eval")
        model, processor = self.loaded
        tests, pruner = self.tests(key.limit), pruner_of(key)
        outcomes = evaluate(model, processor, tests, pruner, batch_size=self.batch_size)
        return Cell(
            key,
            _scores(outcomes),
            len(outcomes),
            statistics.fmean(outcome.visual_tokens for outcome in outcomes),
            statistics.fmean(outcome.kept_tokens for outcome in outcomes),
            flops(model, processor, tests, pruner),
            statistics.fmean(outcome.seconds for outcome in outcomes),
            versions=versions(),
        )


def pruner_of(key: Key) -> Method:
    """The method of a cell. A method that needs a mask gets it with the picture."""
    pruner = parse_pruner(key.method, key.keep)
    return pruner if key.seed is None else pruner.with_seed(key.seed)


def _scores(outcomes: list[Outcome]) -> dict[str, float]:
    parts = {"overall": outcomes, **{name: [o for o in outcomes if o.category == name] for name in CATEGORIES}}
    return {name: statistics.fmean(o.right for o in part) for name, part in parts.items() if part}
