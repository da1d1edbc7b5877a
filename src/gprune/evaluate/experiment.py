"""Experiments as files: the paper's tables and figures, and any other in the same form."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, get_args

from ..errors import BadType, GpruneError
from ..spec import parse_pruner
from ..tokens import Keep, check_keep
from .cells import BASELINE

ExperimentKind = Literal["table", "curves", "histogram", "heatmaps", "kept"]
Across = Literal["keep", "flops"]


@dataclass(frozen=True)
class PaperRow:
    """One line of a paper's table: as many values as the paper has columns."""

    method: str
    keep: Keep
    values: tuple[float, ...]


@dataclass(frozen=True)
class Paper:
    """A paper's own numbers.

    Args:
        source: where they stand.
        scores: columns of scores.
        others: columns beside them; nan where the paper gives no value.
        rows: its lines, with a value for each of `scores` and `others`.
        model: that they are of.
    """

    source: str
    scores: tuple[str, ...]
    rows: tuple[PaperRow, ...]
    others: tuple[str, ...] = ()
    model: str = "LLaVA-NeXT-8B"

    def relative(self) -> dict[tuple[str, Keep], float]:
        """Of every method and budget the mean, over the columns of scores, of the score over the unpruned model's."""
        unpruned = next((row.values for row in self.rows if row.method == BASELINE), None)
        if unpruned is None:
            return {}
        width = len(self.scores)
        return {
            (row.method, row.keep): fmean(own / whole for own, whole in zip(row.values[:width], unpruned, strict=False))
            for row in self.rows
        }


@dataclass(frozen=True)
class Experiment:
    """One table or figure.

    Args:
        name: of its file, without the ending.
        title: for people.
        kind: a table or curves of measured cells; a histogram of norms; heatmaps of scores; patches that are kept.
        methods: as on the command line, with settings.
        keep: budgets.
        seeds: of a method that draws at random.
        tasks: for any model but the embedded one, by their names in lmms-eval.
        categories: of the task "scenes", a panel of the curves for each.
        across: what the curves lie over.
        iterations: of G-Prune, a heatmap for each.
        pictures: numbers of test pictures of the embedded benchmark.
        paper: its numbers, where it gives some.
    """

    name: str
    title: str
    kind: ExperimentKind
    methods: tuple[str, ...] = ()
    keep: tuple[Keep, ...] = ()
    seeds: int = 1
    tasks: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    across: Across = "keep"
    iterations: tuple[int, ...] = ()
    pictures: tuple[int, ...] = ()
    paper: Paper | None = None

    @property
    def of_cells(self) -> bool:
        """Whether it shows measured cells, or what the model makes of single pictures."""
        return self.kind in ("table", "curves")


_NEEDED: dict[str, tuple[str, ...]] = {
    "table": ("methods", "keep", "tasks"),
    "curves": ("methods", "keep", "tasks", "categories", "across"),
    "histogram": (),
    "heatmaps": ("iterations", "pictures"),
    "kept": ("methods", "keep", "pictures"),
}
_ALLOWED: dict[str, tuple[str, ...]] = {"table": ("seeds", "paper"), "curves": ("seeds",)}


def shipped() -> dict[str, Experiment]:
    """The experiments of the package by name: tables first, then figures."""
    paths = Path(str(files("gprune.evaluate") / "experiments")).glob("*.toml")
    return {path.stem: read(path) for path in sorted(paths, key=lambda path: (path.stem[0] != "t", path.stem))}


def read(path: Path) -> Experiment:
    """The experiment in a TOML file.

    Raises:
        ValueError: it cannot be read, lacks an entry, or has one that is unknown or wrong; names the file and entry.
    """
    try:
        entries = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"experiment {path} cannot be read ({error}); give a TOML file") from error
    try:
        return _experiment(path.stem, entries)
    except (GpruneError, ValueError) as error:
        raise ValueError(f"experiment {path}: {error}") from error


def _experiment(name: str, entries: Mapping[str, Any]) -> Experiment:
    kind = _one_of(ExperimentKind, "kind", entries.get("kind"))
    needed = ("title", "kind", *_NEEDED[kind])
    values = _read(entries, needed, _ALLOWED.get(kind, ()), f"an experiment of kind {kind}")
    for method in values.get("methods", ()):
        for keep in values["keep"]:
            parse_pruner(method, keep)
    return Experiment(name, **values)


def _paper(name: str, value: object) -> Paper:
    if not isinstance(value, dict):
        raise BadType(f"{name} is {value!r}; accepted is a table, [{name}]")
    values = _read(value, ("source", "scores", "rows"), ("others", "model"), f"[{name}]")
    paper = Paper(**values)
    width = len(paper.scores) + len(paper.others)
    for row in paper.rows:
        parse_pruner(row.method, row.keep)
        if len(row.values) != width:
            raise ValueError(
                f"the row of {row.method} keep={row.keep} has {len(row.values)} values for {width} columns"
            )
    return paper


def _read(entries: Mapping[str, Any], needed: tuple[str, ...], allowed: tuple[str, ...], owner: str) -> dict[str, Any]:
    """The entries, each checked; what is missing or unknown is an error."""
    known = (*needed, *allowed)
    for name in entries:
        if name not in known:
            raise ValueError(f"entry {name!r} is unknown; {owner} has {', '.join(known)}; take it out")
    for name in needed:
        if name not in entries:
            raise ValueError(f"entry {name!r} is missing; {owner} needs {', '.join(needed)}; add it")
    return {name: _READERS[name](name, value) for name, value in entries.items()}


def _text(name: str, value: object) -> str:
    if not isinstance(value, str) or not value:
        raise BadType(f"{name} is {value!r}; accepted is a text in quotes")
    return value


def _whole(least: int) -> Callable[[str, object], int]:
    def read(name: str, value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise BadType(f"{name} has {value!r}; accepted is a whole number from {least} on")
        return value

    return read


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise BadType(f"{name} has {value!r}; accepted is a number")
    return value


def _keep(name: str, value: object) -> Keep:
    check_keep(value)  # type: ignore[arg-type]
    return value  # type: ignore[return-value]


def _row(name: str, value: object) -> PaperRow:
    if not isinstance(value, list) or len(value) < 3:
        raise BadType(f"{name} has {value!r}; accepted is [method, keep, number, ...]")
    return PaperRow(_text(name, value[0]), _keep(name, value[1]), tuple(_number(name, each) for each in value[2:]))


def _one_of(choices: Any, name: str, value: object) -> Any:
    if value not in get_args(choices):
        raise ValueError(f"{name} is {value!r}; accepted are {', '.join(get_args(choices))}")
    return value


def _list_of(read: Callable[[str, object], Any]) -> Callable[[str, object], tuple[Any, ...]]:
    def read_all(name: str, value: object) -> tuple[Any, ...]:
        if not isinstance(value, list) or not value:
            raise BadType(f"{name} is {value!r}; accepted is a list in brackets with at least one entry")
        return tuple(read(name, each) for each in value)

    return read_all


_READERS: dict[str, Callable[[str, Any], Any]] = {
    "title": _text,
    "kind": lambda name, value: _one_of(ExperimentKind, name, value),
    "methods": _list_of(_text),
    "keep": _list_of(_keep),
    "seeds": _whole(1),
    "tasks": _list_of(_text),
    "categories": _list_of(_text),
    "across": lambda name, value: _one_of(Across, name, value),
    "iterations": _list_of(_whole(0)),
    "pictures": _list_of(_whole(0)),
    "paper": _paper,
    "source": _text,
    "scores": _list_of(_text),
    "others": _list_of(_text),
    "rows": _list_of(_row),
    "model": _text,
}
