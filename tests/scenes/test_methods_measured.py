"""The table of every method in docs/methods.md, beside the committed results."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]
KEEPS = ("0.5", "0.3", "0.1")


def table() -> list[str]:
    """The rows of docs/methods.md: overall accuracies in percent, the best at 30 % first."""
    lines = (ROOT / "benchmarks/results/scenes/table.md").read_text().partition("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    found: dict[str, dict[str, str]] = {}
    for method, keep, _, overall, *_ in cells:
        found.setdefault(method, {})[keep] = overall

    def rank(method: str) -> list[float]:
        own = found[method]
        return [-float(own[keep].split()[0]) if keep in own else 0.0 for keep in ("0.3", "0.5")]

    methods = sorted(sorted(found.keys() - {"none"}), key=rank)
    return [
        "| method | 50 % | 30 % | 10 % |",
        "|---|---|---|---|",
        f"| none (all tokens) | {found['none']['1.0']} | | |",
        *(f"| `{method}` | {' | '.join(found[method].get(keep, '—') for keep in KEEPS)} |" for method in methods),
    ]


def test_the_docs_show_every_method_as_measured() -> None:
    rows = table()
    assert "\n".join(rows) in (ROOT / "docs/methods.md").read_text(), "\n".join(["docs/methods.md should have:", *rows])
