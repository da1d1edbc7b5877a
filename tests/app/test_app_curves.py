"""The measured curves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gprune.app.curves import ACCURACY, AXES, Across, categories, curve, measured
from gprune.app.studio import Studio

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "scenes.json"


def test_the_committed_results() -> None:
    rows = json.loads(RESULTS.read_text())
    found = {
        (cell.key.method, cell.key.keep, cell.key.seed, name): (score, cell.flops)
        for cell in measured()
        for name, score in cell.scores.items()
    }
    expected = {
        (row["method"], row["keep"], row["seed"], row["category"]): (row["accuracy"], row["flops"]) for row in rows
    }
    assert found == expected
    assert categories() == list(dict.fromkeys(["overall", *(row["category"] for row in rows)]))


def test_every_offered_method_was_measured() -> None:
    assert set(Studio("embedded").methods) <= {cell.key.method for cell in measured()}


@pytest.mark.parametrize("category", ["overall", "text"])
@pytest.mark.parametrize("across", ["keep", "flops"])
def test_every_point(category: str, across: Across) -> None:
    rows = [row for row in json.loads(RESULTS.read_text()) if row["category"] == category]

    def expected(method: str) -> set[tuple[float, float]]:
        """The mean over seeds at every ratio."""
        return {
            (
                100 * keep if across == "keep" else round(same[0]["flops"] / 1e9, 3),
                round(100 * sum(row["accuracy"] for row in same) / len(same), 1),
            )
            for keep in (0.1, 0.3, 0.5, 1.0)
            if (same := [row for row in rows if (row["method"], row["keep"]) == (method, keep)])
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
    with pytest.raises(ValueError, match="nothing was not measured; accepted are none, gprune,"):
        curve(["gprune", "nothing"], "overall", "keep")
