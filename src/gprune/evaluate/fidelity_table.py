"""What fidelity comes to: estimates with standard errors, rows, a table, and the budget to choose."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import Any, NamedTuple

from ..pruners import GPrune
from ..tokens import Keep
from .cells import BASELINE, Cell, Key
from .records import Record, Score, label
from .tables import MISSING, layout

AGREEMENT = "agreement"
"""The task of the cells, and the heading of the figure: share of the tokens of the unpruned model's answers."""


class Estimate(NamedTuple):
    """A mean and its standard error, which is None where there is one picture alone."""

    value: float
    error: float | None


@dataclass(frozen=True)
class Fidelity:
    """What was measured of every item under every method.

    Args:
        records: of the items that could be read, in order; at least one.
        runs: methods by name with their budgets, the unpruned model first.
        errors: items without a record, with the reasons.
        left_out: methods that do not go on the model, with the reasons.
    """

    records: Sequence[Record]
    runs: Sequence[tuple[str, Keep]]
    errors: Sequence[str] = ()
    left_out: Sequence[str] = ()

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """A flat row per method and budget: each mean, and under its name with `_se` its standard error.

        `agreement`: share of the tokens of the answers that are the likeliest; `behind`: what that lacks to the best
        method at the same budget. `exact`: share of the answers of which all tokens agree, which are those that the
        pruned model gives itself. `nll`: nats per token; `rise`: over the unpruned model. `first_kl`: see `Score`.
        Differences are paired by items. `coverage`, `worst_coverage`, `edge_share`, `visual_tokens`, `kept_tokens`,
        `flops`, `seconds`: means over the items.
        """
        return [self._row(name, keep) for name, keep in self.runs]

    def _row(self, name: str, keep: Keep) -> dict[str, Any]:
        own, best = label(name, keep), label(self._best(keep), keep)
        unpruned = label(*self.runs[0])
        estimates = {
            "agreement": self._share(lambda each: each.scores[own].agreed),
            "behind": self._share(lambda each: each.scores[best].agreed - each.scores[own].agreed),
            "exact": self._mean(lambda each: each.scores[own].agreed == len(each.tokens)),
            "nll": self._share(lambda each: each.scores[own].nll),
            "rise": self._share(lambda each: each.scores[own].nll - each.scores[unpruned].nll),
            "first_kl": self._mean(lambda each: each.scores[own].first_kl),
        }
        scores = [record.scores[own] for record in self.records]
        return {
            "method": name,
            "keep": keep,
            "n": len(self.records),
            "answer_tokens": sum(len(record.tokens) for record in self.records),
            **{
                key: value
                for title, estimate in estimates.items()
                for key, value in ((title, estimate.value), (f"{title}_se", estimate.error))
            },
            **{title: _known_mean(scores, title) for title in _MEANS},
        }

    def _best(self, keep: Keep) -> str:
        """The method with the highest agreement at a budget, the first of equals."""
        rivals = [name for name, other in self.runs if str(other) == str(keep)]
        return max(rivals, key=lambda name: sum(each.scores[label(name, keep)].agreed for each in self.records))

    def _share(self, part: Callable[[Record], float]) -> Estimate:
        """Per token of the answers."""
        return estimate(self.records, part, lambda each: len(each.tokens))

    def _mean(self, value: Callable[[Record], float]) -> Estimate:
        """Per item."""
        return estimate(self.records, value, lambda each: 1)

    def markdown(self) -> str:
        """A line per method and budget, and what the features say."""
        header = (
            "method", "keep", "tokens", "agree %", "behind best", "answers equal %", "NLL", "rise",
            "first KL", "coverage", "worst 5 %", "GFLOPs",
        )  # fmt: skip
        lines = [
            (
                row["method"],
                str(row["keep"]),
                f"{row['kept_tokens']:,.0f}",
                _written(row, "agreement", ".1f", 100),
                MISSING if row["method"] == BASELINE else _written(row, "behind", ".1f", 100),
                _written(row, "exact", ".1f", 100),
                f"{row['nll']:.3f}",
                _written(row, "rise", ".3f"),
                _written(row, "first_kl", ".3f"),
                _plain(row["coverage"], ".3f"),
                _plain(row["worst_coverage"], ".3f"),
                _plain(None if row["flops"] is None else row["flops"] / 1e9, ".4g"),
            )
            for row in self.rows
        ]
        notes = [*map("Left out, {}.".format, self.left_out), *map("Left out, {}.".format, self.errors)]
        return "\n".join([layout(header, lines), self._notes(), *(f"\n{note}" for note in notes)]) + "\n"

    def _notes(self) -> str:
        row = self.rows[0]
        said = [
            f"{row['n']} items, {row['answer_tokens']:,} tokens in the unpruned model's answers, "
            f"{row['visual_tokens']:,.0f} visual tokens per item on average. ± is the standard error over pictures."
        ]
        shares = [record.edge_share for record in self.records if record.edge_share is not None]
        tenths = [record.tenth for record in self.records if record.tenth is not None]
        if shares and tenths:
            said.append(
                f"Of all pairs of tokens of a view {fmean(shares):.0%} are edges at gprune's similarity "
                f"{GPrune().similarity}; a tenth would be at {fmean(tenths):.2f}."
            )
        return " ".join(said)

    def recommendation(self, target: float) -> str:
        """The smallest budget at which a method keeps a share of tokens as they are, and its next smaller one.

        Args:
            target: in (0, 1].
        """
        pruned = sorted(self.rows[1:], key=lambda row: (self._budget(row["keep"]), -row["agreement"]))
        reached = [row for row in pruned if row["agreement"] >= target]
        if not reached:
            best = max(pruned, key=lambda row: row["agreement"])
            return f"none keeps {target:.1%} of tokens; the most: {_named(best)} of tokens agree; try a larger keep"
        choice = reached[0]
        smaller = [row for row in pruned if row["method"] == choice["method"]]
        smaller = smaller[: smaller.index(choice)][-1:]
        return "; ".join([f"{_named(choice)} of tokens agree", *(_percent(row) for row in smaller)])

    def _budget(self, keep: Keep) -> float:
        """Tokens that a budget leaves, on average over its methods."""
        return fmean(row["kept_tokens"] for row in self.rows if str(row["keep"]) == str(keep))

    def cells(self, model: str) -> list[Cell]:
        """The agreement as cells of a model by this name, as figures take them."""
        return [
            Cell(
                Key(model, AGREEMENT, row["method"], row["keep"]),
                {AGREEMENT: row["agreement"]},
                row["n"],
                row["visual_tokens"],
                row["kept_tokens"],
                row["flops"],
                row["seconds"],
            )
            for row in self.rows
        ]


def estimate(records: Sequence[Record], part: Callable[[Record], float], whole: Callable[[Record], float]) -> Estimate:
    """The sum of parts over the sum of wholes, with the standard error of that ratio over pictures.

    Items about the same pictures stand together, since they are not independent. The error is the ratio estimator's
    (Cochran, "Sampling Techniques", 1977, chapter 6): the spread of what each picture's part is off its whole's share.
    """
    parts: dict[str, float] = defaultdict(float)
    wholes: dict[str, float] = defaultdict(float)
    for record in records:
        parts[record.seen] += part(record)
        wholes[record.seen] += whole(record)
    total, count = sum(wholes.values()), len(wholes)
    value = sum(parts.values()) / total
    if count == 1:
        return Estimate(value, None)
    squares = sum((parts[seen] - value * wholes[seen]) ** 2 for seen in wholes)
    return Estimate(value, math.sqrt(squares * count / (count - 1)) / total)


_MEANS = ("coverage", "worst_coverage", "edge_share", "visual_tokens", "kept_tokens", "flops", "seconds")


def _known_mean(scores: Sequence[Score], title: str) -> float | None:
    known = [value for each in scores if (value := getattr(each, title)) is not None]
    return fmean(known) if known else None


def _written(row: dict[str, Any], title: str, form: str, factor: float = 1.0) -> str:
    value = format(factor * row[title], form)
    error = row[f"{title}_se"]
    return value if error is None else f"{value} ± {format(factor * error, form)}"


def _plain(value: float | None, form: str) -> str:
    return MISSING if value is None else format(value, form)


def _named(row: dict[str, Any]) -> str:
    return f"{row['method']}, keep {_percent(row)}"


def _percent(row: dict[str, Any]) -> str:
    return f"{row['keep']}: {100 * row['agreement']:.1f} %"
