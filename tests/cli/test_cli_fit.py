"""`gprune fit`: a scorer that other commands load, and input that cannot be used."""

from __future__ import annotations

import json
from pathlib import Path

from conftest import Run

TINY = ("--keep", "0.3", "--steps", "1", "--batch-size", "1", "--max-new-tokens", "2", "-o", "scorer")


def test_a_scorer_is_trained_and_used(run: Run) -> None:
    done = run("fit", "--limit", "2", *TINY)
    assert done.code == 0, done.err
    assert "| learned:weights=scorer | 0.3 |" in done.out and "| graphcover | 0.3 |" in done.out
    assert Path("scorer/table.md").read_text() == done.out
    facts = json.loads(Path("scorer/scorer.json").read_text())
    assert facts["family"] == "llava_next" and facts["question"] is False
    assert run("fit", "--limit", "2", *TINY).out == done.out  # there is nothing left to do
    asked = run("scenes", "--method", "learned:weights=scorer,learned", "--keep", "0.3", "--limit", "2", "--json")
    assert [row["key"]["method"] for row in asked.rows] == ["none", "learned:weights=scorer"]
    assert "left out, learned: Learned has no scorer" in asked.err


def test_input_that_cannot_be_used(run: Run, photos: dict[str, Path]) -> None:
    for arguments, message in (
        (("nowhere", *TINY), "input nowhere does not exist"),
        ((next(iter(photos.values())), *TINY), "1 items have 1 different pictures that can be read"),
        (("--limit", "2", *TINY[:-1], "a:b"), "has a colon in its path"),
        (("--limit", "2", *TINY, "--steps", "0"), "steps=0 is out of range"),
    ):
        result = run("fit", *arguments)
        assert result.code == 2 and message in result.err and not Path("scorer/scorer.json").exists()
