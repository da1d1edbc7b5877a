"""Does a budget that fits the picture pay? `cover(share)` beside the ratio that keeps as many tokens on average.

Answers the first 700 test questions of the embedded benchmark with `GraphCover` at each share, and at the ratio whose
mean over the same pictures is nearest; differences are paired by question. What is in the folder is not measured again.

    python benchmarks/coverage.py
"""

from __future__ import annotations

import statistics
from pathlib import Path

from gprune import Keep, cover, kept_count
from gprune.evaluate.cells import Cell, Key
from gprune.evaluate.embedded import Embedded
from gprune.evaluate.runs import measure_cells
from gprune.evaluate.tables import difference, layout
from gprune.families.tiling import tiling
from gprune.scenes.benchmark import samples

COMMAND = "python benchmarks/coverage.py"
FOLDER = Path(__file__).parent / "results" / "scenes_cover"
METHOD, SHARES, QUESTIONS = "graphcover", (0.8, 0.9, 0.95, 0.99), 700


def measured() -> list[tuple[Cell, Cell]]:
    """For every share its cell, and that of the ratio."""
    benchmark = Embedded()
    config = benchmark.loaded[0].config
    pictures = [sample.picture for sample in samples("test", QUESTIONS)]
    sizes = [tiling(config, (picture.height, picture.width)) for picture in pictures]

    def tokens(ratio: float) -> float:
        return statistics.fmean(size.newlines + sum(kept_count(size.views, ratio)) for size in sizes)

    def one(keep: Keep) -> Cell:
        return measure_cells(
            [Key("embedded", "scenes", METHOD, keep, limit=QUESTIONS)], FOLDER / "cells", benchmark.measure
        )[0]

    pairs = []
    for share in SHARES:
        covering = one(cover(share))
        ratio = min((step / 1000 for step in range(1, 1000)), key=lambda r: abs(tokens(r) - covering.kept_tokens))
        pairs.append((covering, one(ratio)))
    return pairs


def markdown(pairs: list[tuple[Cell, Cell]]) -> str:
    """The table, and what wrote it."""
    header = ("keep", "tokens", "accuracy %", "ratio", "tokens", "accuracy %", "difference")
    rows = []
    for covering, ratio in pairs:
        found = difference([covering], [ratio])
        assert found is not None
        rows.append(
            (
                *(part for cell in (covering, ratio) for part in _of(cell)),
                f"{100 * found[0]:+.1f} ± {100 * found[1]:.1f}",
            )
        )
    return f"{layout(header, rows)}\n`{METHOD}` on the first {QUESTIONS} test questions. `{COMMAND}`\n"


def _of(cell: Cell) -> tuple[str, str, str]:
    return str(cell.key.keep), f"{cell.kept_tokens:.1f}", f"{100 * cell.scores['overall']:.1f}"


if __name__ == "__main__":
    text = markdown(measured())
    (FOLDER / "table.md").write_text(text)
    print(text, end="")
