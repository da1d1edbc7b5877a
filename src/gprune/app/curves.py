"""Accuracy against cost, as measured on the scenes benchmark."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any, Literal

from ..evaluate.cells import BASELINE, Cell, Key
from ..evaluate.figures import Point, points
from ..evaluate.tables import SCENES
from ..models import EMBEDDED

OVERALL = "overall"
Across = Literal["keep", "flops"]
AXES: dict[Across, str] = {"keep": "tokens kept (%)", "flops": "GFLOPs up to the first word"}
ACCURACY = "accuracy (%)"


@cache
def measured() -> list[Cell]:
    """The cells of the committed results, the table of the README.

    Raises:
        FileNotFoundError: the installation lacks them.
    """
    text = (files("gprune.app") / "scenes.json").read_text()
    groups: dict[tuple[str, str, int | None], list[dict[str, Any]]] = {}
    for row in json.loads(text):
        groups.setdefault((row["method"], str(row["keep"]), row["seed"]), []).append(row)
    return [_cell(rows) for rows in groups.values()]


def _cell(rows: Sequence[dict[str, Any]]) -> Cell:
    whole = next(row for row in rows if row["category"] == OVERALL)
    key = Key(EMBEDDED, SCENES, whole["method"], whole["keep"], whole["seed"])
    scores = {row["category"]: row["accuracy"] for row in rows}
    return Cell(key, scores, whole["n"], whole["visual_tokens"], whole["kept_tokens"], whole["flops"], whole["seconds"])


def categories() -> list[str]:
    """What was measured apart: all questions first, then each category."""
    return [OVERALL, *(name for name in measured()[0].scores if name != OVERALL)]


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
