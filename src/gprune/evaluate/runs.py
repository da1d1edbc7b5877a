"""Runs over many cells, that go on where they were stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from ..attach import refusal
from ..checks import check_value
from ..errors import GpruneError
from ..spec import check_has_mask, parse_pruner, seeded
from ..tokens import Keep, OwnBudget
from .cells import Cell, Key, load_cell, save


def keys(
    model: str,
    tasks: Iterable[str],
    methods: Iterable[str],
    keeps: Sequence[Keep],
    *,
    seeds: int = 1,
    limit: int | None = None,
) -> list[Key]:
    """Of every task the unpruned model, then every method at every ratio, each cell once.

    Args:
        model: see `Key`.
        tasks: see `Key`.
        methods: as `gprune.spec.parse_pruner` reads them.
        keeps: budgets.
        seeds: of a method that draws at random.
        limit: see `Key`.

    Raises:
        ValueError, TypeError: a method is unknown, a setting wrong, or a budget one that no method takes.
    """
    for keep in keeps:
        check_value("keep", keep, OwnBudget())
    pruned = [
        (method, keep, getattr(each, "seed", None))
        for method in methods
        for keep in keeps
        for each in seeded(parse_pruner(method, 1.0), seeds)  # whether it takes `keep`, `refusal_of` says
    ]
    wanted = (
        key
        for task in tasks
        for key in (
            Key(model, task, limit=limit),
            *(Key(model, task, method, keep, seed, limit) for method, keep, seed in pruned),
        )
    )
    return list({key.name: key for key in wanted}.values())


def refusal_of(method: str, keep: Keep, model: Any, *, masked: bool = False) -> str | None:
    """Why a method, as people write it, cannot be measured on a model or its skeleton; None if it can.

    Args:
        method, keep: as `gprune.spec.parse_pruner` reads them.
        model: any.
        masked: every picture comes with its mask; else a method that goes by one must have one.
    """
    try:
        pruner = parse_pruner(method, keep)
        if not masked:
            check_has_mask(pruner)
    except (GpruneError, ValueError) as error:
        return str(error)
    return refusal(pruner, model)


def measure_cells(
    wanted: Sequence[Key],
    folder: Path | None,
    measure: Callable[[Key], Cell],
    *,
    started: Callable[[Key], None] = lambda key: None,
    finished: Callable[[Cell], None] = lambda cell: None,
) -> list[Cell]:
    """Measure every cell that is not in `folder` yet, and write each as soon as it is there.

    Args:
        wanted: which, in the order in which they are measured.
        folder: where cells are kept; those in it are not measured again; None keeps none.
        measure: measures one.
        started: called before a cell is measured.
        finished: called with every cell, measured now or before.

    Returns:
        The cells, in the order of `wanted`.

    Raises:
        ValueError: a file in `folder` is damaged or of another run.
    """
    cells = []
    for key in wanted:
        cell = None if folder is None else load_cell(key, folder)
        if cell is None:
            started(key)
            cell = measure(key)
            if folder is not None:
                save(cell, folder)
        finished(cell)
        cells.append(cell)
    return cells
