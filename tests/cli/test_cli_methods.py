"""`gprune methods`: every method with what a user chooses by."""

from __future__ import annotations

import pytest
from conftest import Run
from families import FAMILIES

from gprune.attach import UnsupportedModel
from gprune.cli.options import read_runs
from gprune.pruners import PRUNERS, Foreground, Learned


def test_rows(run: Run) -> None:
    rows = {row["method"]: row for row in run("methods", "--json").rows}
    assert list(rows) == list(PRUNERS)
    assert [row["method"] for row in rows.values() if row["acts"] == "in the LLM"] == [
        "fastv",
        "vtw",
        "pyramiddrop",
        "dart",
        "v2drop",
        "sparsevlm",
        "pumer",
    ]
    assert [row["method"] for row in rows.values() if row["acts"] == "in the tower"] == ["tome", "evovit"]
    assert [row["method"] for row in rows.values() if row["acts"] == "before the tower"] == ["pixeldedup"]
    assert "qwen2_5_vl" in rows["pixeldedup"]["families"] and "llava" not in rows["pixeldedup"]["families"]
    assert rows["gprune"]["source"] == "2501.02268" and rows["fastv"]["source"] == "2403.06764"
    assert rows["visionzip"]["needs"] == ["attention", "keys"] and rows["gprune"]["needs"] == []


def test_table(run: Run) -> None:
    result = run("methods")
    assert result.code == 0
    assert all(name in result.out for name in PRUNERS)


@pytest.mark.parametrize("method", PRUNERS)
def test_families_are_those_that_a_method_goes_on(run: Run, method: str) -> None:
    claimed = next(row["families"] for row in run("methods", "--json").rows if row["method"] == method)
    [(_, pruner)], _ = read_runs(method, "0.8", masked=True)
    found = []
    for name, family in FAMILIES.items():
        try:
            pruner.attach(family.model()).detach()
            found.append(name)
        except UnsupportedModel:
            pass
        except ValueError:
            found.append(name)  # its settings ask for more layers than this tiny model has
    if method == "tome":
        claimed.remove("vipllava")  # the one of the matrix reads several layers of its tower
    assert sorted(found) == [name for name in claimed if name in FAMILIES]


def test_all_stands_for_every_method() -> None:
    everything = [name for name, _ in read_runs("all,gprune:init=ones", "0.5", masked=True)[0]]
    assert everything == [*PRUNERS, "gprune:init=ones"]
    without = [name for name, pruner in read_runs("all", "0.5")[0]]
    assert without == [name for name, kind in PRUNERS.items() if not issubclass(kind, (Foreground, Learned))]
