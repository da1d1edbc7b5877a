"""Accuracy against cost, as measured on the scenes benchmark."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from ..evaluate.cells import BASELINE, Cell, read_cells
from ..evaluate.experiment import Across
from ..evaluate.figures import Point, points
from ..scenes.vocabulary import CATEGORIES

OVERALL = "overall"
AXES: dict[Across, str] = {"keep": "tokens kept (%)", "flops": "GFLOPs up to the first word"}
ACCURACY = "accuracy (%)"


@cache
def measured() -> list[Cell]:
    """The cells of the committed results, the table of the README.

    Raises:
        ValueError: one is damaged.
    """
    return read_cells(Path(str(files("gprune.app") / "cells")))


def categories() -> list[str]:
    """What was measured apart: all questions first, then each category."""
    return [OVERALL, *CATEGORIES]


def curve(methods: Sequence[str], category: str, across: Across) -> list[dict[str, Any]]:
    """Accuracy in a category over what is kept, or over FLOPs: a row for every point, with the keys of `AXES`.

    The unpruned model is a level line as far as its own point. Of several seeds it is the mean.

    Raises:
        ValueError: one of the methods was not measured.
    """
    found = points(measured(), category)
    if unknown := [method for method in methods if method not in found]:
        raise ValueError(f"{', '.join(unknown)} was not measured; accepted are {', '.join(found)}; choose others")
    lines = {
        method: [(_place(point, across), statistics.fmean(point.values)) for point in found[method]]
        for method in (*methods, BASELINE)
    }
    [(end, level)] = lines.pop(BASELINE)
    start = min((x for line in lines.values() for x, _ in line), default=0)
    lines["unpruned"] = [(start, level), (end, level)]
    return [
        {"method": method, AXES[across]: x, ACCURACY: round(100 * y, 1)}
        for method, line in lines.items()
        for x, y in line
    ]


def _place(point: Point, across: Across) -> float:
    if across == "keep":
        return point.keep
    assert point.gflops is not None
    return round(point.gflops, 3)
