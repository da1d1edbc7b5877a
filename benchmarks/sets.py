"""How long does choosing a set take beside the bare product of all pairs?

Times `select` of the methods that choose one token after another, on one view, in turns with the product X X^T: on
tokens of `kernels.CLUSTERS` regions, and on tokens that are all unlike.

    python benchmarks/sets.py
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial

import torch
from kernels import clustered_on, product, record, seconds

from gprune import View, VisualTokens
from gprune.evaluate.cells import versions
from gprune.spec import parse_pruner

COMMAND = "python benchmarks/sets.py"
METHODS = ("graphcover", "graphvote", "divprune", "mmr", "cdpruner", "scope", "mmtok")
PRODUCT = "X X^T"
COUNT, WIDTH, KEEP, WORDS = 2304, 4096, 0.3, 16
REPEATS = 5


@dataclass(frozen=True)
class Row:
    """A method on one kind of features: median seconds, and their ratio to those of the product."""

    method: str
    features: str
    median: float
    ratio: float


def view_of(features: torch.Tensor) -> VisualTokens:
    """One view, with the attention and the question that some methods read."""
    generator = torch.Generator(features.device).manual_seed(1)
    attention = torch.rand(COUNT, generator=generator, device=features.device)
    question = torch.randn(WORDS, WIDTH, generator=generator, device=features.device).to(features.dtype)
    rows = torch.arange(COUNT, device=features.device)
    return VisualTokens(features, (View(rows),), (COUNT,), {"attention": attention}, (question,))


@torch.no_grad()
def measure(device: str) -> list[Row]:
    """Every method and the product in turns."""
    unlike = torch.randn(COUNT, WIDTH, generator=torch.Generator(device).manual_seed(0), device=device)
    clustered = clustered_on(device, COUNT, WIDTH)
    rows = []
    for kind, features in (("clustered", clustered), ("all unlike", unlike.to(clustered.dtype))):
        tokens = view_of(features)
        calls: dict[str, Callable[[], object]] = {
            PRODUCT: partial(product, features, 1, COUNT),
            **{method: partial(parse_pruner(method, KEEP).select, tokens) for method in METHODS},
        }
        times: dict[str, list[float]] = {name: [] for name in calls}
        for repeat in range(REPEATS + 1):
            for name, call in calls.items():
                taken = seconds(call, device)
                if repeat:
                    times[name].append(taken)
        bare = statistics.median(times[PRODUCT])
        rows += [
            Row(name, kind, statistics.median(each), statistics.median(each) / bare) for name, each in times.items()
        ]
    return rows


def markdown(rows: list[Row], about: dict[str, str]) -> str:
    """One line per method."""
    where = ", ".join(f"{name} {value}" for name, value in about.items())
    lines = [
        f"`{COMMAND}`: N = {COUNT}, d = {WIDTH}, {KEEP:.0%} kept, medians of {REPEATS}, in brackets over {PRODUCT}; "
        f"{where}.",
        "",
        "| method | clustered, ms | all unlike, ms |",
        "|---|---|---|",
    ]
    for method in (PRODUCT, *METHODS):
        cells = [f"{1e3 * row.median:.0f} ({row.ratio:.2f})" for row in rows if row.method == method]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def main() -> None:
    """Measure on the GPU if there is one, and write results/sets_cpu or results/sets_cuda."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows, about = measure(device), versions(("gprune", "torch", "triton"))
    record(f"sets_{device}", {"about": about, "rows": [asdict(row) for row in rows]}, markdown(rows, about))


if __name__ == "__main__":
    main()
