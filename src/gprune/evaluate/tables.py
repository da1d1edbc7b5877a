"""Tables of cells, laid out as in the paper's Table 1: a line per method and ratio, a column per task."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..tokens import Keep
from .cells import BASELINE, Cell

SCENES = "scenes"
"""The task whose every score has a column; of any other it is the first score."""
MISSING = "—"


@dataclass(frozen=True)
class Line:
    """A method at one ratio, over all its tasks.

    Args:
        method: see `Key`.
        keep: see `Key`.
        scores: by column the values of all seeds; columns that were not measured are left out.
        relative: mean over the tasks of the score over that of the unpruned model; None unless all were measured.
        kept_tokens, flops, seconds: per document, means over the tasks; None unless all were measured.
        difference: see `difference`; None of the method that the others are compared with.
    """

    method: str
    keep: Keep
    scores: dict[str, list[float]]
    relative: float | None
    kept_tokens: float | None
    flops: float | None
    seconds: float | None
    difference: tuple[float, float] | None


def lines(cells: Sequence[Cell], against: str = BASELINE) -> list[Line]:
    """One line per method and ratio, the unpruned model first, then in the order of the cells.

    Args:
        cells: of one model and limit.
        against: the method that others are compared with, at the same budget; the unpruned model has one only.

    Raises:
        ValueError: no cells, or cells of several models or limits.
    """
    _check_alike(cells)
    cells = list({cell.key.name: cell for cell in cells}.values())
    tasks = list(dict.fromkeys(cell.key.task for cell in cells))
    # As text: 1 is one token and 1.0 is all of them, yet they are equal.
    groups: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.key.method, str(cell.key.keep)), []).append(cell)
    baseline = [cell for cell in cells if cell.key.method == BASELINE]
    ordered = sorted(groups.items(), key=lambda each: each[0][0] != BASELINE)
    return [
        _line(group, baseline, tasks, baseline if against == BASELINE else groups.get((against, keep), ()))
        for (_, keep), group in ordered
    ]


def difference(ours: Sequence[Cell], theirs: Sequence[Cell]) -> tuple[float, float] | None:
    """By how much a method's share of right answers exceeds another's, and the standard error, paired by document.

    Args:
        ours, theirs: of one task and limit, the seeds of a method at one ratio; answers are averaged over them.

    Returns:
        Mean and standard error, as shares; None unless all cells say of each document whether its answer is right.
    """
    if not (ours and theirs and all(cell.right for cell in (*ours, *theirs))):
        return None
    own, other = (_mean_answers(cells) for cells in (ours, theirs))
    gaps = [one - two for one, two in zip(own, other, strict=True)]
    return _mean(gaps), statistics.stdev(gaps) / len(gaps) ** 0.5 if len(gaps) > 1 else float("nan")


def _mean_answers(cells: Sequence[Cell]) -> list[float]:
    return [_mean(map(int, answers)) for answers in zip(*(cell.right for cell in cells), strict=True)]


def markdown(cells: Sequence[Cell], left_out: Sequence[str] = (), against: str = BASELINE) -> str:
    """The table of cells of one model: mean ± standard deviation over the seeds of a method.

    Of the task "scenes" every category has a column, of any other task its first score. Scores that lie between 0
    and 1 throughout their column are shares, and written in percent. What was not measured is a dash. Where it is known
    of each document whether its answer is right, a column has the difference to another method.

    Args:
        cells: of one model and limit.
        left_out: what was not measured, each with the reason.
        against: see `lines`.

    Raises:
        ValueError: no cells, or cells of several models or limits.
    """
    table = lines(cells, against)
    columns = headings(cells)
    compared = any(line.difference for line in table)
    scales = {column: scale(value for line in table for value in line.scores.get(column, ())) for column in columns}
    rows = [
        (
            line.method,
            str(line.keep),
            _written(line.kept_tokens, ",.0f"),
            *(_score(line.scores.get(column, []), scales[column]) for column in columns),
            _written(line.relative, ".1%"),
            *([_difference(line.difference)] if compared else []),
            _giga(line.flops),
            _written(line.seconds, ".3f"),
        )
        for line in table
    ]
    header = ("method", "keep", "tokens", *columns, "relative", *([f"− {against}"] * compared), "GFLOPs", "seconds")
    reasons = "".join(f"- {reason}\n" for reason in left_out)
    notes = _notes(cells, against if compared else None)
    return f"{layout(header, rows)}\n{notes}" + (f"\nLeft out:\n\n{reasons}" if reasons else "")


def headings(cells: Iterable[Cell]) -> list[str]:
    """The columns of these cells' scores, in order."""
    return list(dict.fromkeys(column for cell in cells for column in scores_of(cell)))


def scale(values: Iterable[float]) -> float:
    """100 if all values are shares, to be written in percent, else 1."""
    return 100.0 if all(0 <= value <= 1 for value in values) else 1.0


def layout(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "".join(f"| {' | '.join(row)} |\n" for row in (header, ["---"] * len(header), *rows))


def scores_of(cell: Cell) -> dict[str, float]:
    """The scores of a cell that have a column, by its heading."""
    if cell.key.task != SCENES:
        return {cell.key.task: _first(cell)}
    return dict(cell.scores)


def _first(cell: Cell) -> float:
    return next(iter(cell.scores.values()))


def _line(group: Sequence[Cell], baseline: Sequence[Cell], tasks: Sequence[str], others: Sequence[Cell]) -> Line:
    scores: dict[str, list[float]] = {}
    for cell in group:
        for column, value in scores_of(cell).items():
            scores.setdefault(column, []).append(value)
    by_task = [[cell for cell in group if cell.key.task == task] for task in tasks]
    unpruned = [[cell for cell in baseline if cell.key.task == task] for task in tasks]
    whole = all(by_task)
    ratios = None
    if whole and all(unpruned) and all(_first(cells[0]) for cells in unpruned):
        ratios = [_mean(map(_first, ours)) / _first(theirs[0]) for ours, theirs in zip(by_task, unpruned, strict=True)]
    flops = [[cell.flops for cell in cells if cell.flops is not None] for cells in by_task]
    return Line(
        method=group[0].key.method,
        keep=group[0].key.keep,
        scores=scores,
        relative=None if ratios is None else _mean(ratios),
        kept_tokens=_mean(_mean(cell.kept_tokens for cell in cells) for cells in by_task) if whole else None,
        flops=_mean(map(_mean, flops)) if all(flops) else None,
        seconds=_mean(_mean(cell.seconds for cell in cells) for cells in by_task) if whole else None,
        difference=None if group[0] in others or len(tasks) > 1 else difference(group, others),
    )


def _mean(values: Iterable[float]) -> float:
    return statistics.fmean(values)


def _score(values: Sequence[float], factor: float) -> str:
    if not values:
        return MISSING
    mean = f"{factor * statistics.fmean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ± {factor * statistics.stdev(values):.1f}"


def _difference(found: tuple[float, float] | None) -> str:
    return MISSING if found is None else f"{100 * found[0]:+.1f} ± {100 * found[1]:.1f}"


def _written(value: float | None, form: str) -> str:
    return MISSING if value is None else format(value, form)


def _giga(value: float | None) -> str:
    """In billions, to four digits: those of a small model are around one, those of a large one tens of thousands."""
    return _written(None if value is None else value / 1e9, ".4g" if value is None or value < 1e12 else ",.0f")


def _notes(cells: Sequence[Cell], against: str | None) -> str:
    first = {cell.key.task: cell for cell in cells}
    documents = ", ".join(f"{cell.n:,} of {task}" for task, cell in first.items())
    visual = _mean(cell.visual_tokens for cell in first.values())
    notes = [
        f"Model {cells[0].key.model}; documents: {documents}; {visual:,.0f} visual tokens per document on average "
        "before pruning. Relative: score over that of the unpruned model, mean over the tasks. FLOPs per document up "
        "to the first new token; seconds per whole answer, on the machine at hand."
    ]
    if against is not None:
        notes.append(
            f"− {against}: right answers in percent less those of {against} to the same documents, ± the standard "
            "error of that difference."
        )
    notes += [
        f"{len(cell.errors)} documents of {cell.key.task} have no answer with {cell.key.method} keep={cell.key.keep} "
        "and count as wrong."
        for cell in cells
        if cell.errors
    ]
    return " ".join(notes) + "\n"


def _check_alike(cells: Sequence[Cell]) -> None:
    if not cells:
        raise ValueError("there are no cells; a table needs at least one; measure some first")
    for name, values in (
        ("models", {cell.key.model for cell in cells}),
        ("limits", {cell.key.limit for cell in cells}),
    ):
        if len(values) > 1:
            given = ", ".join(sorted(map(str, values)))
            raise ValueError(f"the cells are of several {name} ({given}); a table is of one; give those of one")
