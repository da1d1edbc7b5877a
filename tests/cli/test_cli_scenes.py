"""`gprune scenes`: the benchmark as rows and as a table, and its pictures as files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Run
from PIL import Image

from gprune.cli.scenes import markdown
from gprune.scenes.benchmark import examples
from gprune.scenes.vocabulary import CATEGORIES

KEYS = [
    "method",
    "keep",
    "seed",
    "category",
    "accuracy",
    "n",
    "visual_tokens",
    "kept_tokens",
    "flops",
    "edge_share",
    "seconds",
]
FEW = ("--limit", "7", "--batch-size", "7")


def test_json(run: Run) -> None:
    result = run(
        "scenes", "--method", "gprune:init=ones,random:seed=5", "--keep", "0.3,9", "--seeds", "2", "--json", *FEW
    )
    assert result.code == 0
    assert [list(row) for row in result.rows] == [KEYS] * len(result.rows)
    runs = list(dict.fromkeys((row["method"], row["keep"], row["seed"]) for row in result.rows))
    assert runs == [
        ("none", 1.0, None),
        ("gprune:init=ones", 0.3, None),
        ("gprune:init=ones", 9, None),
        ("random:seed=5", 0.3, 5),
        ("random:seed=5", 0.3, 6),
        ("random:seed=5", 9, 5),
        ("random:seed=5", 9, 6),
    ]
    assert len(result.rows) == len(runs) * (len(CATEGORIES) + 1)
    for row in result.rows:
        assert row["n"] == (7 if row["category"] == "overall" else 1)
        assert row["visual_tokens"] >= row["kept_tokens"] > 0 and 0 <= row["accuracy"] <= 1
        assert (row["edge_share"] is None) == (not row["method"].startswith("gprune"))
        assert (row["kept_tokens"] == row["visual_tokens"]) == (row["method"] == "none")
        assert row["flops"] > 0
    spent = {(row["method"], row["keep"]): row["flops"] for row in result.rows}
    assert spent["random:seed=5", 9] < spent["random:seed=5", 0.3] < spent["none", 1.0]


def test_files_and_table_say_the_same(run: Run) -> None:
    for output in ("results.v1", "table.md"):
        result = run("scenes", "--method", "uniform", "--keep", "0.5", "-o", output, *FEW)
        assert result.code == 0
        stem = output.removesuffix(".md")
        table = json.loads(Path(f"{stem}.json").read_text())
        assert Path(f"{stem}.md").read_text() == result.out == markdown(table)
    assert {path.name for path in Path().iterdir()} == {"results.v1.json", "results.v1.md", "table.json", "table.md"}


def row(method: str, keep: float, category: str, accuracy: float, seed: int | None = None) -> dict[str, Any]:
    return {
        "method": method,
        "keep": keep,
        "seed": seed,
        "category": category,
        "accuracy": accuracy,
        "n": 10,
        "visual_tokens": 200.0,
        "kept_tokens": 200.0 if method == "none" else 61.4,
        "flops": 2.5e6 if method == "none" else 1.2e9,
        "edge_share": 0.42 if method == "gprune" else None,
        "seconds": 0.1,
    }


def test_markdown() -> None:
    table = [
        row(method, keep, category, accuracy, seed)
        for method, keep, seed, accuracies in (
            ("none", 1.0, None, (0.9, 0.95)),
            ("gprune", 0.3, None, (0.5, 0.75)),
            ("random", 0.3, 0, (0.1, 0.4)),
            ("random", 0.3, 1, (0.3, 0.6)),
            ("random", 1, 0, (0.0, 0.2)),
            ("random", 1, 1, (0.0, 0.2)),
        )
        for category, accuracy in zip(("text", "overall"), accuracies, strict=True)
    ]
    assert markdown(table).split("\n") == [
        "| method | keep | tokens | text | overall | MFLOPs | seconds |",
        "|---|---|---|---|---|---|---|",
        "| none | 1.0 | 200 | 90.0 | 95.0 | 2 | 0.100 |",
        "| gprune | 0.3 | 61 | 50.0 | 75.0 | 1,200 | 0.100 |",
        "| random | 0.3 | 61 | 20.0 ± 14.1 | 50.0 ± 14.1 | 1,200 | 0.100 |",
        "| random | 1 | 61 | 0.0 ± 0.0 | 20.0 ± 0.0 | 1,200 | 0.100 |",
        "",
        "10 test questions; 200 visual tokens per picture on average. "
        "FLOPs per picture up to the first token of the answer; seconds per answer, on the machine at hand. "
        "Graph of gprune: 42% of all pairs of tokens are edges.",
        "",
    ]
    assert markdown(table, ["fastv: no"]).endswith("edges.\n\nLeft out, fastv: no.\n")


def test_methods_go_by_the_true_foreground_and_what_is_impossible_is_left_out(run: Run) -> None:
    result = run("scenes", "--method", "foreground,background,fastv", "--keep", "0.4,0.1", "--json", *FEW)
    assert result.code == 0
    runs = {(row["method"], row["keep"]) for row in result.rows}
    assert runs == {("none", 1.0), ("fastv", 0.4), *((m, k) for m in ("foreground", "background") for k in (0.4, 0.1))}
    assert "left out, fastv: FastV(keep=0.1) drops too late" in result.err
    right = {(row["method"], row["category"]): row["accuracy"] for row in result.rows if row["keep"] == 0.4}
    assert (right["foreground", "text"], right["background", "text"]) == (1, 0)
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
    for example, written in zip(examples("test", 9), asked, strict=True):
        question = example.question
        assert written == {
            "picture": f"{example.index:03d}.png",
            "category": question.category,
            "question": question.question,
            "answer": question.answer,
        }
        np.testing.assert_array_equal(np.asarray(Image.open(folder / written["picture"])), np.asarray(example.picture))
