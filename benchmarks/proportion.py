"""Does a method keep of every region its share?

Four clusters of 300, 120, 60 and 20 tokens (Gaussian centres in 64 dimensions, noise 0.25) stand for the regions of a
picture. Counts which share of the tokens kept each cluster has, and draws it beside its share of all tokens.

    python benchmarks/proportion.py
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import torch
from kernels import record
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from gprune.evaluate.cells import versions
from gprune.spec import parse_pruner

COMMAND = "python benchmarks/proportion.py"
PICTURE = Path(__file__).parents[1] / "docs" / "images" / "proportion.png"
METHODS = ("gprune", "divprune", "graphcover", "graphvote", "random")
KEEPS = (0.5, 0.3, 0.1)
DRAWN = 0.3
SIZES = (300, 120, 60, 20)
WIDTH, NOISE, SEEDS = 64, 0.25, 10
COLORS = ("#0072B2", "#56B4E9", "#E69F00", "#D55E00")


def clusters(seed: int) -> Tensor:
    """Tokens of all clusters, one after the other: float32 [N, d]."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(len(SIZES), WIDTH, generator=generator).repeat_interleave(torch.tensor(SIZES), 0)
    return centres + NOISE * torch.randn(sum(SIZES), WIDTH, generator=generator)


def shares(method: str, keep: float) -> list[float]:
    """The share that each cluster has of the tokens kept, on average over the seeds."""
    members = torch.arange(len(SIZES)).repeat_interleave(torch.tensor(SIZES))
    counts = []
    for seed in range(SEEDS):
        kept = parse_pruner(method, keep).with_seed(seed).select(clusters(seed)).kept  # type: ignore[attr-defined]
        counts.append((members[kept].bincount(minlength=len(SIZES)) / len(kept)).tolist())
    return [round(statistics.mean(each), 4) for each in zip(*counts, strict=True)]


def draw(rows: list[dict[str, Any]]) -> None:
    """One bar per method, split as the tokens kept are."""
    figure = Figure(figsize=(8, 3))
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    bars = {"all tokens": [size / sum(SIZES) for size in SIZES]}
    bars |= {row["method"]: row["shares"] for row in rows if row["keep"] == DRAWN}
    for cluster, color in enumerate(COLORS):
        parts = [each[cluster] for each in bars.values()]
        before = [sum(each[:cluster]) for each in bars.values()]
        axes.barh(list(bars), parts, left=before, color=color, label=f"{SIZES[cluster]} tokens")
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel(f"share of the tokens kept ({DRAWN:.0%} of all)")
    axes.legend(ncols=len(SIZES), loc="lower center", bbox_to_anchor=(0.5, 1), frameon=False)
    figure.savefig(PICTURE, dpi=120, bbox_inches="tight")


def markdown(rows: list[dict[str, Any]], about: dict[str, str]) -> str:
    """One line per method and ratio."""
    where = ", ".join(f"{name} {value}" for name, value in about.items())
    lines = [f"`{COMMAND}`: shares of {SIZES} tokens among those kept, means of {SEEDS} seeds; {where}.", ""]
    lines += ["| method | keep | " + " | ".join(map(str, SIZES)) + " |", "|---" * (2 + len(SIZES)) + "|"]
    lines.append("| all tokens | 1.0 | " + " | ".join(f"{size / sum(SIZES):.2f}" for size in SIZES) + " |")
    lines += [
        f"| {row['method']} | {row['keep']} | " + " | ".join(f"{share:.2f}" for share in row["shares"]) + " |"
        for row in rows
    ]
    return "\n".join([*lines, ""])


def main() -> None:
    """Measure, and write results/proportion and the figure."""
    about = versions(("gprune", "torch"))
    rows = [{"method": method, "keep": keep, "shares": shares(method, keep)} for keep in KEEPS for method in METHODS]
    draw(rows)
    record("proportion", {"about": about, "rows": rows}, markdown(rows, about))


if __name__ == "__main__":
    main()
