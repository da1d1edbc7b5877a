"""Experiment files: those of the package hold the paper's numbers, and nothing wrong is read as something else."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from gprune.evaluate.experiment import Experiment, read, shipped

GOOD = """
title = "mine"
kind = "table"
methods = ["gprune", "random:seed=3"]
keep = [0.5, 20]
seeds = 2
tasks = ["gqa"]

[paper]
source = "somewhere"
scores = ["GQA"]
others = ["samples/s"]
rows = [["none", 1.0, 50.0, 2], ["gprune", 0.5, 40.0, nan]]
"""


def test_the_papers_tables_and_figures_are_there() -> None:
    found = shipped()
    assert list(found) == ["table1", "table2", "table3", "fig1a", "fig1b", "fig3", "fig4", "fig5", "fig6"]
    assert {name: each.kind for name, each in found.items()} == {
        **dict.fromkeys(("table1", "table2", "table3"), "table"),
        **dict.fromkeys(("fig1a", "fig3", "fig4"), "curves"),
        "fig1b": "histogram",
        "fig5": "heatmaps",
        "fig6": "kept",
    }


@pytest.mark.parametrize(
    ("name", "method", "keep", "values"),
    [
        ("table1", "none", 1.0, [65.38, 82.70, 1587.72, 87.84, 72.08, 69.28, 78.22, 65.41, 2.49]),
        ("table1", "random", 0.1, [60.55, 74.23, 1475.07, 79.63, 61.77, 26.72, 27.59, 31.73, 6.92]),
        ("table1", "tome", 0.3, [64.07, 80.56, 1564.36, 87.33, 68.21, 62.88, 65.28, 52.19, 1.11]),
        ("table1", "fastv", 0.5, [65.11, 82.51, 1604.14, 87.51, 71.82, 67.60, 73.92, 65.15, 3.97]),
        ("table1", "gprune", 0.5, [65.34, 82.54, 1623.81, 87.76, 71.91, 67.72, 75.62, 65.17, 4.03]),
        ("table1", "gprune", 0.3, [64.37, 81.91, 1609.87, 87.69, 70.19, 65.04, 70.72, 63.87, 5.21]),
        ("table1", "gprune", 0.1, [61.40, 77.51, 1456.14, 84.49, 67.27, 51.72, 48.94, 59.31, 6.91]),
        ("table2", "none", 1.0, [65.38, 87.84, 65.41, 18.52]),
        ("table2", "random", 0.3, [64.22, 84.98, 49.48, 6.76]),
        ("table2", "l2norm", 0.3, [64.30, 87.48, 53.63, None]),
        ("table2", "gprune:init=ones", 0.3, [64.23, 87.46, 64.01, None]),
        ("table2", "gprune", 0.3, [64.37, 87.69, 64.05, None]),
        ("table3", "gprune:similarity=0.3", 0.3, [71.79]),
        ("table3", "gprune", 0.3, [71.98]),
        ("table3", "gprune:similarity=0.7", 0.3, [71.99]),
        ("table3", "gprune:similarity=0.9", 0.3, [68.43]),
        ("table3", "gprune:iterations=1", 0.3, [71.94]),
        ("table3", "gprune:iterations=10", 0.3, [71.96]),
        ("table3", "gprune:iterations=50", 0.3, [71.75]),
    ],
)
def test_the_papers_numbers(name: str, method: str, keep: float, values: list[float | None]) -> None:
    paper = shipped()[name].paper
    assert paper is not None
    [row] = [row for row in paper.rows if (row.method, row.keep) == (method, keep)]
    assert [None if math.isnan(value) else value for value in row.values] == values


@pytest.mark.parametrize("name", ["table1", "table2", "table3"])
def test_what_the_paper_measured_is_what_is_run(name: str) -> None:
    """A number of the paper for every method and ratio, and no other."""
    experiment = shipped()[name]
    assert experiment.paper is not None
    run = {("none", 1.0), *((method, keep) for method in experiment.methods for keep in experiment.keep)}
    assert sorted((row.method, row.keep) for row in experiment.paper.rows) == sorted(run)


def test_unpruned_line_of_table_3_follows_from_table_2() -> None:
    tables = shipped()
    assert tables["table2"].paper and tables["table3"].paper
    three = tables["table2"].paper.rows[0].values[:3]
    assert tables["table3"].paper.rows[0].values[0] == pytest.approx(sum(three) / 3, abs=0.005)


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(text)
    return path


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    found = read(write(tmp_path, GOOD))
    assert (found.name, found.title, found.kind, found.seeds) == ("mine", "mine", "table", 2)
    assert found.methods == ("gprune", "random:seed=3") and found.tasks == ("gqa",)
    assert [(keep, type(keep)) for keep in found.keep] == [(0.5, float), (20, int)]
    assert found.paper is not None and found.paper.relative() == {("none", 1.0): 1.0, ("gprune", 0.5): 0.8}
    assert isinstance(found, Experiment) and found.of_cells


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ('title = "mine"', "", "entry 'title' is missing"),
        ('title = "mine"', "title = 3", "title is 3; accepted is a text"),
        ('"table"', '"chart"', "kind is 'chart'; accepted are table, curves, histogram, heatmaps, kept"),
        ('kind = "table"', "", "kind is None; accepted are table"),
        ('kind = "table"', 'kind = ["table"]', r"kind is \['table'\]"),
        ("seeds = 2", "seed = 2", "entry 'seed' is unknown; an experiment of kind table has title, kind"),
        ("seeds = 2", "iterations = [1]", "entry 'iterations' is unknown"),
        ("seeds = 2", "seeds = 0", "seeds has 0; accepted is a whole number from 1 on"),
        ("seeds = 2", "seeds = true", "seeds has True"),
        ("seeds = 2", "seeds = 1.5", "seeds has 1.5"),
        ('"gprune", "random:seed=3"', '"grpune"', "method 'grpune' is unknown"),
        ('"gprune", "random:seed=3"', '"gprune:depth=2"', "gprune has the settings"),
        ('"gprune", "random:seed=3"', "3", "methods is 3; accepted is a text"),
        ('methods = ["gprune", "random:seed=3"]', 'methods = "gprune"', "methods is 'gprune'; accepted is a list"),
        ('methods = ["gprune", "random:seed=3"]', "methods = []", r"methods is \[\]; accepted is a list"),
        ("[0.5, 20]", "[0.5, 0]", "keep=0 keeps no token"),
        ("[0.5, 20]", "[1.5]", "keep=1.5 is not a ratio"),
        ("[0.5, 20]", '["0.5"]', "keep='0.5' is a str"),
        ('source = "somewhere"', "", "entry 'source' is missing; .paper. needs"),
        ('source = "somewhere"', 'source = "s"\nyear = 3', "entry 'year' is unknown"),
        ("40.0, nan", "40.0", "the row of gprune keep=0.5 has 1 values for 2 columns"),
        ("40.0, nan", '"40", nan', "rows has '40'; accepted is a number"),
        ('["gprune", 0.5, 40.0, nan]', "[]", r"rows has \[\]; accepted is \[method, keep, number"),
        ('["gprune", 0.5, 40.0, nan]', '["vitprune", 0.5, 40.0, nan]', "method 'vitprune' is unknown"),
        ("[paper]", "[papers]", "entry 'papers' is unknown"),
        ("[0.5, 20]", "[0.5, 20", "cannot be read"),
    ],
)
def test_wrong_files_are_refused_by_name(tmp_path: Path, old: str, new: str, reason: str) -> None:
    assert old in GOOD
    path = write(tmp_path, GOOD.replace(old, new))
    with pytest.raises(ValueError, match=reason) as caught:
        read(path)
    assert str(path) in str(caught.value)


def test_missing_file_and_no_text(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere.toml cannot be read"):
        read(tmp_path / "nowhere.toml")
    (tmp_path / "mine.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"mine.toml cannot be read"):
        read(tmp_path / "mine.toml")
