"""Runs: what is measured, in which order, and never twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from gprune import cover
from gprune.evaluate.cells import Cell, Key
from gprune.evaluate.runs import keys, measure_cells, refusal_of


def cell(key: Key) -> Cell:
    return Cell(key, {"accuracy": 0.5}, 10, 100.0, 30.0, None, 0.1)


def test_keys_cross_tasks_methods_ratios_and_seeds() -> None:
    wanted = keys("embedded", ["a", "b"], ["gprune", "random"], [0.5, 0.1], seeds=2, limit=7)
    of_a = [(key.method, key.keep, key.seed) for key in wanted if key.task == "a"]
    assert of_a == [
        ("none", 1.0, None),
        ("gprune", 0.5, None),
        ("gprune", 0.1, None),
        ("random", 0.5, 0),
        ("random", 0.5, 1),
        ("random", 0.1, 0),
        ("random", 0.1, 1),
    ]
    assert len(wanted) == 14 and {key.limit for key in wanted} == {7}


def test_the_unpruned_model_is_measured_once() -> None:
    assert [key.name for key in keys("m", ["a"], ["none"], [1.0])] == ["a-none-1.0"]


def test_a_budget_that_a_method_cannot_take_is_refused_by_its_reason() -> None:
    [_, key] = keys("m", ["a"], ["uniform"], [cover(0.9)])
    reason = refusal_of(key.method, key.keep, model=None)
    assert reason is not None and reason.startswith("keep=cover(0.9) goes down a method's order of tokens")


@pytest.mark.parametrize("method, keep", [("grpune", 0.5), ("gprune", 0), ("gprune", 1.5), ("gprune:depth=3", 0.5)])
def test_what_cannot_run_is_refused_before_anything_does(method: str, keep: float) -> None:
    with pytest.raises(ValueError):
        keys("embedded", ["a"], [method], [keep])


def test_a_stopped_run_goes_on(tmp_path: Path) -> None:
    wanted, measured = keys("embedded", ["a"], ["gprune"], [0.5, 0.3]), []

    def measure(key: Key) -> Cell:
        if len(measured) == 2:
            raise KeyboardInterrupt
        measured.append(key)
        return cell(key)

    with pytest.raises(KeyboardInterrupt):
        measure_cells(wanted, tmp_path, measure)
    started: list[Key] = []
    finished: list[Cell] = []
    cells = measure_cells(wanted, tmp_path, cell, started=started.append, finished=finished.append)
    assert cells == finished == [cell(key) for key in wanted]
    assert started == wanted[2:]


def test_without_a_folder_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    wanted = keys("embedded", ["a"], ["gprune"], [0.5])
    assert measure_cells(wanted, None, cell) == [cell(key) for key in wanted]
    assert not list(tmp_path.iterdir())
