"""Experiments on a model: which cells they need, what cannot be measured, and their tables and figures as files."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from ..models import EMBEDDED, read_config
from ..scenes.benchmark import QUESTIONS
from ..tokens import Keep, check_keep
from .cells import Cell, Key, versions
from .embedded import Embedded
from .experiment import Experiment, Paper
from .runs import keys, refusal_of
from .tables import MISSING, SCENES, headings, layout, lines, markdown

if TYPE_CHECKING:
    from .vision import Gallery, Vision


@dataclass(frozen=True)
class Setting:
    """What experiments are run on.

    Args:
        model: see `Key`.
        tasks: instead of those of the experiment, which are "scenes" for the embedded model; () leaves them.
        keep: instead of the budgets of the experiment; () leaves them.
        limit: see `Key`.

    Raises:
        TypeError, ValueError: a budget is neither a ratio nor a number of tokens.
    """

    model: str = EMBEDDED
    tasks: tuple[str, ...] = ()
    keep: tuple[Keep, ...] = ()
    limit: int | None = None

    def __post_init__(self) -> None:
        for keep in self.keep:
            check_keep(keep)

    def tasks_of(self, experiment: Experiment) -> tuple[str, ...]:
        """The tasks of an experiment in this setting."""
        return self.tasks or ((SCENES,) if self.model == EMBEDDED else experiment.tasks)

    def keys_of(self, experiment: Experiment) -> list[Key]:
        """The cells of an experiment in this setting.

        Raises:
            ValueError, TypeError: a method is unknown, or a setting wrong.
        """
        tasks, keep = self.tasks_of(experiment), self.keep or experiment.keep
        return keys(self.model, tasks, experiment.methods, keep, seeds=experiment.seeds, limit=self.limit)

    def command(self, experiment: Experiment) -> str:
        """The command that runs an experiment in this setting."""
        given = (
            ("model", "" if self.model == EMBEDDED else self.model),
            ("tasks", ",".join(self.tasks)),
            ("keep", ",".join(map(str, self.keep))),
            ("limit", "" if self.limit is None else str(self.limit)),
        )
        return " ".join(["gprune reproduce", experiment.name, *(f"--{name} {value}" for name, value in given if value)])


def in_process(key: Key) -> bool:
    """Whether a cell is measured here rather than through lmms-eval: the embedded model on its benchmark."""
    return (key.model, key.task) == (EMBEDDED, SCENES)


def measurer(batch_size: int | None, answered: Callable[[int, int], None]) -> Callable[[Key], Cell]:
    """What measures the cells of one model, loaded when first needed.

    Args:
        batch_size: pictures or documents at once; None is 32 small pictures of the benchmark, or one document.
        answered: called with the number of documents answered and the number of all of the cell.
    """
    embedded = Embedded(batch_size=batch_size or 32, answered=answered)

    @cache
    def harness(model: str) -> Any:
        from .harness import Harness

        return Harness(model, batch_size=batch_size or 1, answered=answered)

    def measure(key: Key) -> Cell:
        return embedded.measure(key) if in_process(key) else harness(key.model).measure(key)

    return measure


def check_tasks(wanted: Iterable[Key]) -> None:
    """Raise ValueError or ImportError unless lmms-eval has the tasks that are its own."""
    tasks = dict.fromkeys((key.task, key.limit) for key in wanted if not in_process(key))
    if tasks:
        from .harness import Tasks

        known = Tasks()
        for task, limit in tasks:
            known.check(task, limit)


def refusal_on(model: str) -> Callable[[Key], str | None]:
    """What says why a model does not allow a cell, or None. No weights are read.

    Raises:
        UnusableModel: there is no such checkpoint.
    """
    import torch
    from transformers import AutoModelForImageTextToText

    with torch.device("meta"):
        net = AutoModelForImageTextToText.from_config(read_config(model))
    # Only the embedded benchmark knows the true mask of every picture.
    return lambda key: refusal_of(key.method, key.keep, net, masked=in_process(key))


def write_measured(
    experiment: Experiment, setting: Setting, cells: Sequence[Cell], left_out: Sequence[str], folder: Path
) -> Path:
    """Write the table or the curves of measured cells, and the cells beside them in NAME.json.

    Args:
        left_out: what was not measured, each with the reason.

    Returns:
        FOLDER/NAME.md or FOLDER/NAME.png.
    """
    if experiment.kind == "table":
        path = folder / f"{experiment.name}.md"
        text = _table(experiment, setting, cells, left_out)
        _write(path, lambda part: part.write_text(text))
    else:
        from .figures import curves

        named = experiment.categories if setting.tasks_of(experiment) == (SCENES,) else headings(cells)
        path = folder / f"{experiment.name}.png"
        _write_picture(path, curves(cells, named, experiment.across))
    data = {"left_out": list(left_out), "paper": _paper_data(experiment.paper), "cells": [asdict(c) for c in cells]}
    _write_data(experiment, setting, data, folder)
    return path


def write_drawn(
    experiment: Experiment, setting: Setting, vision: Vision, gallery: Gallery, folder: Path
) -> tuple[Path, list[str]]:
    """Write a figure of single pictures, and its numbers beside it in NAME.json.

    Returns:
        FOLDER/NAME.png, and what could not be drawn, each with the reason.

    Raises:
        ValueError: nothing could be drawn.
    """
    from .figures import binned, histogram, stacked

    left_out: list[str] = []
    data: dict[str, Any]
    if experiment.kind == "histogram":
        norms = vision.norms(gallery.masked(setting.limit or QUESTIONS))
        shares, edges = binned(norms)
        picture = histogram(shares, edges)
        data = {
            "tokens": {name: len(values) for name, values in norms.items()},
            "median": {
                name: round(statistics.median(values.tolist()), 2) for name, values in norms.items() if len(values)
            },
            "percent": {name: [round(share, 4) for share in values] for name, values in shares.items()},
            "edges": [round(edge, 4) for edge in edges],
        }
    else:
        keep = setting.keep or experiment.keep
        sheets, rows = [], []
        for asked in gallery.asked(experiment):
            if experiment.kind == "heatmaps":
                drawn = [vision.heatmaps(asked, experiment.iterations)]
            else:
                budgets = {method: vision.possible(method, keep) for method in experiment.methods}
                left_out = [reason for _, reasons in budgets.values() for reason in reasons]
                drawn = [vision.kept(asked, method, some) for method, (some, _) in budgets.items() if some]
            for sheet, numbers in drawn:
                sheets.append(sheet)
                rows += numbers
        if not sheets:
            raise ValueError(left_out[0])
        picture, data = stacked(sheets), {"left_out": left_out, "rows": rows}
    path = folder / f"{experiment.name}.png"
    _write_picture(path, picture)
    _write_data(experiment, setting, {**data, "versions": versions()}, folder)
    return path, left_out


def _table(experiment: Experiment, setting: Setting, cells: Sequence[Cell], left_out: Sequence[str]) -> str:
    paper = experiment.paper
    parts = [f"# {experiment.title}\n", f"## {setting.model}\n", f"`{setting.command(experiment)}`\n"]
    parts.append(markdown(cells, left_out))
    if paper is not None:
        heading = f"paper ({paper.model})"
        parts += [f"## {heading}\n", _paper_table(paper), f"{paper.source}.\n"]
        parts += ["## Score relative to the unpruned model\n", _beside(cells, setting.model, paper, heading)]
    return "\n".join(parts)


def _paper_table(paper: Paper) -> str:
    relative = paper.relative()
    width = len(paper.scores)
    rows = [
        (
            row.method,
            str(row.keep),
            *(_number(value) for value in row.values[:width]),
            _percent(relative.get((row.method, row.keep))),
            *(_number(value) for value in row.values[width:]),
        )
        for row in paper.rows
    ]
    return layout(("method", "keep", *paper.scores, "relative", *paper.others), rows)


def _beside(cells: Sequence[Cell], model: str, paper: Paper, heading: str) -> str:
    relative = paper.relative()
    rows = [
        (line.method, str(line.keep), _percent(line.relative), _percent(relative.get((line.method, line.keep))))
        for line in lines(cells)
    ]
    return layout(("method", "keep", model, heading), rows)


def _number(value: float) -> str:
    return MISSING if math.isnan(value) else f"{value:.2f}"


def _percent(value: float | None) -> str:
    return MISSING if value is None else f"{value:.1%}"


def _paper_data(paper: Paper | None) -> dict[str, Any] | None:
    if paper is None:
        return None
    rows = [
        [row.method, row.keep, *(None if math.isnan(value) else value for value in row.values)] for row in paper.rows
    ]
    return {**asdict(paper), "rows": rows}


def _write_data(experiment: Experiment, setting: Setting, data: dict[str, Any], folder: Path) -> None:
    content = {"title": experiment.title, "command": setting.command(experiment), "model": setting.model, **data}
    text = json.dumps(content, indent=1) + "\n"
    _write(folder / f"{experiment.name}.json", lambda part: part.write_text(text))


def _write_picture(path: Path, picture: Image.Image) -> None:
    # A palette, without dither, is half the size and looks the same.
    few = picture.quantize(256, dither=Image.Dither.NONE)
    _write(path, lambda part: few.save(part, "PNG", optimize=True))


def _write(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file whole or not at all."""
    part = path.with_suffix(".part")
    write(part)
    part.replace(path)
