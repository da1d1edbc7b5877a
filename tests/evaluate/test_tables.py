"""Tables say what the cells say: every score in its place, relative to the unpruned model, and dashes for gaps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from gprune.evaluate.cells import Cell, Key
from gprune.evaluate.tables import difference, lines, markdown


def cell(
    task: str,
    method: str = "none",
    keep: float = 1.0,
    seed: int | None = None,
    flops: float | None = 2e9,
    **scores: float,
) -> Cell:
    return Cell(Key("m", task, method, keep, seed), scores, 10, 200.0, 200.0 * keep, flops, 0.25)


PAPERLIKE = [
    cell("gqa", "random", 0.5, 0, flops=1e9, exact_match=0.50),
    cell("gqa", "random", 0.5, 1, flops=1e9, exact_match=0.60),
    cell("gqa", exact_match=0.64, other=0.9),
    cell("mme", mme_perception_score=1600.0),
    cell("mme", "random", 0.5, 0, flops=1e9, mme_perception_score=1500.0),
    cell("gqa", "gprune", 0.5, flops=1e9, exact_match=0.48),
]


def rows(text: str) -> list[list[str]]:
    table = [line for line in text.splitlines() if line.startswith("|")]
    return [[each.strip() for each in line.strip("|").split("|")] for line in table]


def test_a_line_per_method_and_ratio_and_a_column_per_task() -> None:
    header, _, *body = rows(markdown(PAPERLIKE))
    assert header == ["method", "keep", "tokens", "gqa", "mme", "relative", "GFLOPs", "seconds"]
    assert body == [
        ["none", "1.0", "200", "64.0", "1600.0", "100.0%", "2", "0.250"],
        # 0.55 / 0.64 and 1500 / 1600, whose mean is 0.8984
        ["random", "0.5", "100", "55.0 ± 7.1", "1500.0", "89.8%", "1", "0.250"],
        ["gprune", "0.5", "—", "48.0", "—", "—", "—", "—"],
    ]


def test_every_category_of_scenes_has_a_column() -> None:
    cells = [
        cell("scenes", overall=0.8, text=0.9, chart=1.0),
        cell("scenes", "gprune", 0.3, flops=5e8, overall=0.4, text=0.0, chart=0.5),
    ]
    header, _, *body = rows(markdown(cells))
    assert header[3:7] == ["overall", "text", "chart", "relative"]
    assert body[1] == ["gprune", "0.3", "60", "40.0", "0.0", "50.0", "50.0%", "0.5", "0.250"]


def test_one_token_is_not_all_tokens() -> None:
    cells = [cell("gqa", exact=0.5), cell("gqa", "gprune", 1, exact=0.1), cell("gqa", "gprune", 1.0, exact=0.5)]
    assert [row[:2] for row in rows(markdown(cells))[2:]] == [["none", "1.0"], ["gprune", "1"], ["gprune", "1.0"]]


def test_the_same_cell_twice_is_no_second_seed() -> None:
    assert markdown([*PAPERLIKE, PAPERLIKE[0]]) == markdown(PAPERLIKE)


def test_without_the_unpruned_model_nothing_is_relative() -> None:
    [line] = lines([cell("gqa", "gprune", 0.5, exact=0.5)])
    assert line.relative is None and "—" in markdown([cell("gqa", "gprune", 0.5, exact=0.5)])


def test_an_unpruned_model_that_scores_nothing_is_no_reference() -> None:
    assert lines([cell("gqa", exact=0.0), cell("gqa", "gprune", 0.5, exact=0.5)])[1].relative is None


def answered(right: str, method: str = "none", keep: float = 1.0, seed: int | None = None) -> Cell:
    return replace(cell("scenes", method, keep, seed, overall=right.count("1") / len(right)), right=right)


def test_a_difference_has_the_standard_error_of_the_pairs() -> None:
    ours = [answered("1100", "random", 0.3, 0), answered("1010", "random", 0.3, 1)]
    theirs = [answered("1111")]
    mean, error = difference(ours, theirs) or (None, None)
    gaps = np.array([0, -0.5, -0.5, -1])
    assert mean == pytest.approx(gaps.mean()) and error == pytest.approx(gaps.std(ddof=1) / 2)
    assert difference(theirs, ours) == pytest.approx((-gaps.mean(), error))
    assert difference(ours, []) is None and difference(ours, [replace(theirs[0], right="")]) is None
    with pytest.raises(ValueError):
        difference(ours, [answered("111")])


def test_differences_to_the_unpruned_model_or_to_a_method_at_the_same_ratio() -> None:
    cells = [
        answered("1111"),
        answered("1110", "gprune", 0.5),
        answered("0000", "gprune", 0.3),
        answered("1000", "uniform", 0.3),
    ]
    column = ["—", "-25.0 ± 25.0", "-100.0 ± 0.0", "-75.0 ± 25.0"]
    header, _, *body = rows(markdown(cells))
    assert header[-3] == "− none" and [row[-3] for row in body] == column
    header, _, *body = rows(markdown(cells, against="uniform"))
    assert header[-3] == "− uniform" and [row[-3] for row in body] == ["—", "—", "-25.0 ± 25.0", "—"]
    assert "− " not in markdown([replace(each, right="") for each in cells])


def test_what_was_left_out_is_told() -> None:
    assert markdown(PAPERLIKE, ["fastv: no"]).endswith("Left out:\n\n- fastv: no\n")
    assert "Left out" not in markdown(PAPERLIKE)


def test_flops_that_were_not_counted_are_a_dash() -> None:
    assert rows(markdown([cell("gqa", flops=None, exact=0.5)]))[2][-2] == "—"


@pytest.mark.parametrize(
    ("flops", "written"), [(8.4614e8, "0.8461"), (2.1132e9, "2.113"), (9.96e11, "996"), (3.704e13, "37,040")]
)
def test_flops_of_small_and_large_models(flops: float, written: str) -> None:
    assert rows(markdown([cell("gqa", flops=flops, exact=0.5)]))[2][-2] == written


def test_documents_without_an_answer_are_told() -> None:
    broken = replace(PAPERLIKE[2], errors=["document 3: truncated"])
    text = markdown([broken])
    assert "1 documents of gqa have no answer with none keep=1.0 and count as wrong" in text
    assert "documents: 10 of gqa" in text and "200 visual tokens" in text


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        ([], "there are no cells"),
        ([PAPERLIKE[0], replace(PAPERLIKE[1], key=Key("n", "gqa"))], r"several models \(m, n\)"),
        ([PAPERLIKE[0], replace(PAPERLIKE[1], key=Key("m", "gqa", limit=7))], r"several limits \(7, None\)"),
    ],
)
def test_what_is_no_table(cells: list[Cell], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        markdown(cells)
