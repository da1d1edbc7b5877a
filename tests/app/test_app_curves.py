"""The measured curves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gprune.app.curves import ACCURACY, AXES, categories, curve, measured
from gprune.app.studio import Studio
from gprune.evaluate.experiment import Across
from gprune.scenes.vocabulary import CATEGORIES

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "scenes" / "cells"


def rows() -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in RESULTS.iterdir()]


def test_the_committed_results() -> None:
    assert len(measured()) == len(rows()) > 50
    for row in rows():
        [cell] = [cell for cell in measured() if vars(cell.key) == row["key"]]
        assert (cell.scores, cell.flops) == (row["scores"], row["flops"])
    assert categories() == ["overall", *CATEGORIES]
    assert len({cell.key.limit for cell in measured()}) == 1, "measured on different questions"


def test_every_offered_method_was_measured() -> None:
    assert set(Studio("embedded").methods) <= {cell.key.method for cell in measured()}


@pytest.mark.parametrize("category", ["overall", "text"])
@pytest.mark.parametrize("across", ["keep", "flops"])
def test_every_point(category: str, across: Across) -> None:

    def expected(method: str) -> set[tuple[float, float]]:
        """The mean over seeds at every ratio."""
        return {
            (
                100 * keep if across == "keep" else round(same[0]["flops"] / 1e9, 3),
                round(100 * sum(row["scores"][category] for row in same) / len(same), 1),
            )
            for keep in (0.1, 0.3, 0.5, 1.0)
            if (same := [row for row in rows() if (row["key"]["method"], row["key"]["keep"]) == (method, keep)])
        }

    found: dict[str, list[tuple[float, float]]] = {}
    for row in curve(["random", "gprune:init=ones", "fastv"], category, across):
        found.setdefault(row["method"], []).append((row[AXES[across]], row[ACCURACY]))
    level = found.pop("unpruned")
    assert {method: set(line) for method, line in found.items()} == {method: expected(method) for method in found}
    assert list(found) == ["random", "gprune:init=ones", "fastv"] and len(found["fastv"]) == 1
    [(end, accuracy)] = expected("none")
    assert level == [(min(x for line in found.values() for x, _ in line), accuracy), (end, accuracy)]


def test_no_method_and_one_without_results() -> None:
    assert {row["method"] for row in curve([], "overall", "keep")} == {"unpruned"}
    with pytest.raises(ValueError, match=r"nothing was not measured; accepted are .*gprune, .*none"):
        curve(["gprune", "nothing"], "overall", "keep")
