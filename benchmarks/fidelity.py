"""Does fidelity, which needs no labels, order methods as their accuracy does?

Compares the rows of `make fidelity`, over all methods, with those of `make scenes`: Spearman's rank correlation of what
fidelity measures with the accuracy over all questions, over the methods at each ratio, and over all of both.

    python benchmarks/fidelity.py
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from scipy.stats import spearmanr

from gprune.evaluate.cells import BASELINE, read_cells
from gprune.evaluate.tables import layout
from gprune.tokens import Keep

COMMAND = "python benchmarks/fidelity.py"
RESULTS = Path(__file__).parent / "results"
MEASURES = {"agreement": 1, "exact": 1, "nll": -1, "first_kl": -1, "coverage": 1, "worst_coverage": 1}
"""Columns of fidelity's rows, and whether more is better or worse."""


def accuracies() -> dict[tuple[str, Keep], float]:
    """Accuracy over all questions by method and ratio, the mean over seeds."""
    values: dict[tuple[str, Keep], list[float]] = {}
    for cell in read_cells(RESULTS / "scenes" / "cells"):
        if cell.key.method != BASELINE:
            values.setdefault((cell.key.method, cell.key.keep), []).append(next(iter(cell.scores.values())))
    return {key: statistics.fmean(each) for key, each in values.items()}


def correlations() -> list[dict[str, Any]]:
    """A row per ratio, and one for all of them together ("all")."""
    accuracy = accuracies()
    measured = {(row["method"], row["keep"]): row for row in json.loads((RESULTS / "fidelity_all.json").read_text())}
    both = [key for key in measured if key in accuracy]
    table = []
    for keep in (*dict.fromkeys(keep for _, keep in both), "all"):
        keys = [key for key in both if keep in (key[1], "all")]
        row: dict[str, Any] = {"keep": keep, "methods": len(keys)}
        for name, sign in MEASURES.items():
            known = [key for key in keys if measured[key][name] is not None]
            ranked = spearmanr([sign * measured[key][name] for key in known], [accuracy[key] for key in known])
            row[name] = round(float(ranked.statistic), 3)
        table.append(row)
    return table


def markdown(table: list[dict[str, Any]]) -> str:
    """The table, and what wrote it."""
    rows = [(str(row["keep"]), str(row["methods"]), *(f"{row[name]:.2f}" for name in MEASURES)) for row in table]
    return f"{layout(('keep', 'methods', *MEASURES), rows)}\nRank correlation with accuracy. `{COMMAND}`\n"


if __name__ == "__main__":
    found = correlations()
    (RESULTS / "fidelity_scenes.json").write_text(json.dumps(found, indent=1) + "\n")
    (RESULTS / "fidelity_scenes.md").write_text(markdown(found))
    print(markdown(found), end="")
