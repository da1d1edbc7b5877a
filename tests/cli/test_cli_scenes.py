"""`gprune scenes`: the benchmark as cells and as a table, and its pictures as files."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from conftest import Run
from PIL import Image

from gprune.evaluate.cells import Cell, Key, read_cells
from gprune.evaluate.embedded import Embedded
from gprune.evaluate.tables import markdown
from gprune.scenes.benchmark import samples
from gprune.scenes.vocabulary import CATEGORIES

FEW = ("--limit", "7", "--batch-size", "7")


def test_json(run: Run) -> None:
    result = run(
        "scenes", "--method", "gprune:init=ones,random:seed=5", "--keep", "0.3,9", "--seeds", "2", "--json", *FEW
    )
    assert result.code == 0
    assert [list(row) for row in result.rows] == [[each.name for each in fields(Cell)]] * len(result.rows)
    runs = [(row["key"]["method"], row["key"]["keep"], row["key"]["seed"]) for row in result.rows]
    assert runs == [
        ("none", 1.0, None),
        ("gprune:init=ones", 0.3, None),
        ("gprune:init=ones", 9, None),
        ("random:seed=5", 0.3, 5),
        ("random:seed=5", 0.3, 6),
        ("random:seed=5", 9, 5),
        ("random:seed=5", 9, 6),
    ]
    for row in result.rows:
        assert list(row["scores"])[: len(CATEGORIES) + 1] == ["overall", *CATEGORIES]
        assert row["n"] == len(row["right"]) == 7 and row["scores"]["overall"] == row["right"].count("1") / 7
        assert row["visual_tokens"] >= row["kept_tokens"] > 0
        assert (row["kept_tokens"] == row["visual_tokens"]) == (row["key"]["method"] == "none")
    spent = {(row["key"]["method"], row["key"]["keep"]): row["flops"] for row in result.rows}
    assert 0 < spent["random:seed=5", 9] < spent["random:seed=5", 0.3] < spent["none", 1.0]


def test_a_folder_keeps_cells_and_table_and_nothing_is_measured_twice(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run("scenes", "--method", "uniform", "--keep", "0.5", "-o", "out", *FEW)
    assert first.code == 0
    monkeypatch.setattr(Embedded, "measure", lambda *_: pytest.fail("measured twice"))
    again = run("scenes", "--method", "uniform", "--keep", "0.5", "-o", "out", *FEW)
    cells = read_cells(Path("out/cells"))
    assert [cell.key for cell in cells] == [
        Key("embedded", "scenes", *each, None, 7) for each in (("none", 1.0), ("uniform", 0.5))
    ]
    assert Path("out/table.md").read_text() == first.out == again.out == markdown(cells)
    damaged = Path("out/cells/scenes-first7-none-1.0.json")
    damaged.write_text("{")
    refused = run("scenes", "--method", "uniform", "--keep", "0.5", "-o", "out", *FEW)
    assert refused.code == 2 and "is no measured cell" in refused.err


def test_methods_are_compared_question_by_question(run: Run) -> None:
    result = run("scenes", "--method", "gprune,uniform", "--keep", "0.1", "--against", "uniform", *FEW)
    assert "| − uniform |" in result.out and "| — |" in result.out.splitlines()[2]
    refused = run("scenes", "--method", "gprune", "--against", "uniform", *FEW)
    assert refused.code == 2 and "--against uniform: it is not measured; give one of none, gprune" in refused.err


def test_methods_go_by_the_true_foreground_and_what_is_impossible_is_left_out(run: Run) -> None:
    result = run("scenes", "--method", "foreground,background,fastv", "--keep", "0.4,0.1", "--json", *FEW)
    assert result.code == 0
    runs = {(row["key"]["method"], row["key"]["keep"]) for row in result.rows}
    assert runs == {("none", 1.0), ("fastv", 0.4), *((m, k) for m in ("foreground", "background") for k in (0.4, 0.1))}
    assert "left out, fastv: FastV(keep=0.1) drops too late" in result.err
    text = {row["key"]["method"]: row["scores"]["text"] for row in result.rows if row["key"]["keep"] == 0.4}
    assert (text["foreground"], text["background"]) == (1, 0)
    refused = run("scenes", "--method", "fastv", "--keep", "0.1", *FEW)
    assert (refused.code, refused.out) == (2, "") and "smallest keep" in refused.err


def test_one_token_is_not_every_token(run: Run) -> None:
    result = run("scenes", "--method", "uniform", "--keep", "1,1.0", *FEW)
    assert [line.split(" | ")[1] for line in result.out.splitlines() if line.startswith("| uniform")] == ["1", "1.0"]


@pytest.mark.parametrize("as_json", [False, True])
def test_sample_writes_the_first_examples(run: Run, as_json: bool) -> None:
    result = run("scenes", "--sample", 9, "-o", "some/samples", *(["--json"] if as_json else []))
    assert result.code == 0 and result.err == "wrote 9 pictures and questions.json to some/samples\n"
    folder = Path("some/samples")
    asked = json.loads((folder / "questions.json").read_text())
    assert (result.rows == asked) if as_json else (result.out == "")
    assert len(list(folder.iterdir())) == 10 and len(asked) == 9
    for example, written in zip(samples("test", 9), asked, strict=True):
        question = example.question
        assert written == {
            "picture": f"{example.index:03d}.png",
            "category": question.category,
            "question": question.question,
            "answer": question.answer,
        }
        np.testing.assert_array_equal(np.asarray(Image.open(folder / written["picture"])), np.asarray(example.picture))


def test_a_budget_that_a_method_cannot_take_is_left_out(run: Run) -> None:
    options = ("--method", "gprune,prumerge", "--keep", "0.5,own", "--limit", "7", "--seeds", "1")
    result = run("scenes", *options, "-o", "results", "--json")
    assert result.code == 0
    assert [(row["key"]["method"], row["key"]["keep"]) for row in result.rows] == [
        ("none", 1.0),
        ("gprune", 0.5),
        ("prumerge", 0.5),
        ("prumerge", "own"),
    ]
    reason = "gprune: keep='own' is the number of tokens that a method finds itself"
    assert result.err.count(reason) == 1 and reason in Path("results/table.md").read_text()
