"""What was measured of one method at one ratio on one task, and the folder that keeps it."""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ..pruners import Unpruned
from ..tokens import Cover, Keep

BASELINE = Unpruned.name
"""The method of a cell that measures the unpruned model; its keep is 1.0."""


@dataclass(frozen=True)
class Key:
    """Which cell: equal keys mean equal measurements.

    Args:
        model: hub id, folder, or "embedded".
        task: the task's name in lmms-eval, or "scenes".
        method: as on the command line, with settings: "gprune:init=ones"; "none" is the unpruned model.
        keep: ratio (float), tokens per image (int), or `cover(...)`; 1.0 for "none".
        seed: of a method that draws at random.
        limit: so many first documents; None is all of them.
    """

    model: str
    task: str
    method: str = BASELINE
    keep: Keep = 1.0
    seed: int | None = None
    limit: int | None = None

    @property
    def name(self) -> str:
        """Its file, without the ending, below the folder of its run."""
        limit = "" if self.limit is None else f"-first{self.limit}"
        seed = "" if self.seed is None else f"-seed{self.seed}"
        return re.sub(r"[^\w.=-]+", "_", f"{self.task}{limit}-{self.method}-{self.keep}{seed}")


@dataclass(frozen=True)
class Cell:
    """One finished measurement.

    Args:
        key: which.
        scores: value of every metric (or category) by its name; the first is the one for tables.
        n: documents.
        errors: documents without an answer, with what was wrong with each; they count as wrong answers.
        visual_tokens: per document that has images, before pruning: the mean.
        kept_tokens: the same after pruning, on average over the LLM's layers.
        flops: floating-point operations per document up to the first new token; None where not counted.
        seconds: per document, whole answers.
        versions: of the packages that matter, Python, and the machine's processor.
        right: of each document in its order "1" if the answer is right, else "0"; empty where a task does not say.
    """

    key: Key
    scores: dict[str, float]
    n: int
    visual_tokens: float
    kept_tokens: float
    flops: float | None
    seconds: float
    errors: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    right: str = ""


def save(cell: Cell, folder: Path) -> Path:
    """Write a cell to its file in `folder`, whole or not at all."""
    path = folder / f"{cell.key.name}.json"
    write_whole(asdict(cell), path)
    return path


def write_whole(values: dict[str, Any], path: Path) -> None:
    """Write JSON to a file, whole or not at all; its folder is made if it is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(values, indent=1) + "\n")
    part.replace(path)


def load_cell(key: Key, folder: Path) -> Cell | None:
    """The cell with this key, if it was finished in `folder`.

    Raises:
        ValueError: the file of this cell is damaged or holds that of another key.
    """
    path = folder / f"{key.name}.json"
    if not path.exists():
        return None
    cell = read_cell(path)
    if cell.key != key or type(cell.key.keep) is not type(key.keep):
        raise ValueError(f"{path} holds {cell.key}, wanted was {key}; give the run a folder of its own")
    return cell


def read_cell(path: Path) -> Cell:
    """The cell in a file.

    Raises:
        ValueError: the file is not one that `save` wrote.
    """
    try:
        values = json.loads(path.read_text())
        if set(values) != {each.name for each in fields(Cell)}:
            raise ValueError(f"its entries are {', '.join(values)}")
        keep = values["key"]["keep"]
        key = {**values["key"], "keep": Cover(**keep) if isinstance(keep, dict) else keep}
        return Cell(**{**values, "key": Key(**key)})
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is no measured cell ({error}); delete it, and the run measures it anew") from error


def read_cells(folder: Path) -> list[Cell]:
    """Every cell in a folder, by name of file."""
    return [read_cell(path) for path in sorted(folder.glob("*.json"))]


def versions(packages: Iterable[str] = ("gprune", "torch", "transformers", "lmms-eval")) -> dict[str, str]:
    """Versions of those of `packages` that are installed, of Python, and the processor (or GPU) at hand."""
    import torch

    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU {platform.machine()}"
    return {**found, "python": platform.python_version(), "device": device}
