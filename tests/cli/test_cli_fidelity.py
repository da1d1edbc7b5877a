"""`gprune fidelity`: files, rows and advice, on the benchmark's pictures and on one's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import Run
from PIL import Image

FEW = ("--method", "random,gprune", "--keep", "0.5,0.3", "--max-new-tokens", "3")


def test_the_benchmark_s_pictures(run: Run) -> None:
    result = run("fidelity", *FEW, "--limit", 3, "--plot", "plot.png", "-o", "results", "--target", "0.5")
    assert result.code == 0
    assert [line.split(" | ")[:2] for line in result.out.splitlines()[2:7]] == [
        ["| none", "1.0"],
        *(["| " + method, keep] for method in ("random", "gprune") for keep in ("0.5", "0.3")),
    ]
    assert "\n3 items, " in result.out and result.out.splitlines()[-1].endswith("% of tokens agree")
    assert Path("results/table.md").read_text() == result.out
    rows = json.loads(Path("results/rows.json").read_text())
    assert len(list(Path("results/items").glob("*.json"))) == 3
    again = run("fidelity", *FEW, "--limit", 3, "-o", "results", "--json")
    assert again.rows == rows and "of tokens agree" in again.err
    with Image.open("plot.png") as drawn:
        assert drawn.width > 400


def test_own_pictures_and_questions(run: Run, photos: dict[str, Path], tmp_path: Path) -> None:
    folder = photos["coffee"].parent
    result = run("fidelity", folder, *FEW, "--question", "one?", "--question", "two?", "-o", "results", "--json")
    assert result.code == 0 and {row["n"] for row in result.rows} == {2 * len(photos)}
    (folder / "broken.png").write_text("no picture")
    try:
        result = run("fidelity", folder, *FEW, "--limit", 2, "--json")
    finally:
        (folder / "broken.png").unlink()
    assert result.code == 0 and {row["n"] for row in result.rows} == {1}
    assert "left out, item 1: " in result.err and "broken.png is not a picture" in result.err


def test_what_does_not_go_on_the_model_is_left_out(run: Run) -> None:
    result = run("fidelity", "--method", "fastv,random", "--keep", "0.1", "--max-new-tokens", 2, "--limit", 1)
    assert result.code == 0 and "left out, fastv: FastV(keep=0.1) drops too late" in result.err
    assert "\nLeft out, fastv: FastV(keep=0.1)" in result.out and "| fastv" not in result.out


def test_a_budget_that_a_method_cannot_take_is_left_out(run: Run) -> None:
    result = run(
        *("fidelity", "--method", "uniform,graphcover", "--keep", "cover:0.9,0.5", "--max-new-tokens", 2, "--limit", 1)
    )
    reason = "uniform: keep=cover(0.9) goes down a method's order of tokens"
    assert result.code == 0 and result.err.count(f"gprune: left out, {reason}") == 1
    assert result.out.count(f"\nLeft out, {reason}") == 1
    assert [line.split(" | ")[:2] for line in result.out.splitlines()[3:6]] == [
        ["| uniform", "0.5"],
        ["| graphcover", "cover:0.9"],
        ["| graphcover", "0.5"],
    ]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("missing",), "input missing does not exist; accepted are a folder of pictures"),
        ((".",), "folder . has no pictures"),
        (("--method", "magic"), "method 'magic' is unknown"),
        (("--keep", "1.5"), "keep=1.5 is not a ratio"),
        (("--question", " "), "a question is empty"),
        (("--plot", "plot.jpg"), "must end in .png"),
        (("--model", "some/checkpoint"), "no pictures are given to ask some/checkpoint about"),
    ],
)
def test_wrong_input(run: Run, nothing_loads: None, arguments: tuple[str, ...], reason: str) -> None:
    result = run("fidelity", *arguments)
    assert (result.code, result.out) == (2, "") and reason in result.err
    assert not list(Path().iterdir())


def test_no_method_goes_on_the_model(run: Run) -> None:
    result = run("fidelity", "--method", "fastv", "--keep", "0.1", "--limit", 1)
    assert (result.code, result.out) == (2, "") and "smallest keep" in result.err
