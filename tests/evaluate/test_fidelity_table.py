"""What fidelity comes to: standard errors against the jackknife, differences in pairs, and advice."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence

import pytest

from gprune.evaluate.fidelity_table import Fidelity, estimate
from gprune.evaluate.records import Record, Score, label


def score(agreed: int, nll: float = 0.0, kept: float = 100.0, flops: float | None = 1e9) -> Score:
    return Score(nll, agreed, 0.25 * nll, 100, kept, 0.9, 0.5, None, flops, 0.1)


def record(tokens: int, seen: str, scores: dict[str, Score] | None = None) -> Record:
    return Record(["a.png"], seen, "what?", "this", [7] * tokens, 0.4, 0.8, scores or {})


def measured(agreed: dict[tuple[str, float], Sequence[int]], tokens: Sequence[int]) -> Fidelity:
    """Methods at budgets, and how many of each answer's tokens agree; the unpruned model's all do."""
    runs = [("none", 1.0), *agreed]
    records = [
        record(
            count,
            str(i),
            {
                label("none", 1.0): score(count, 0.1 * count),
                **{label(*run): score(each[i], 0.1 * count + i, 100 * run[1], None) for run, each in agreed.items()},
            },
        )
        for i, count in enumerate(tokens)
    ]
    return Fidelity(records, runs)


def test_with_answers_of_one_length_the_error_is_that_of_a_mean() -> None:
    values = [0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0]
    found = estimate([record(4, str(i)) for i in range(7)], lambda each: values[int(each.seen)], lambda each: 1)
    assert found.value == pytest.approx(statistics.fmean(values))
    assert found.error == pytest.approx(statistics.stdev(values) / math.sqrt(7))


def test_the_error_of_a_share_of_tokens_is_that_of_the_jackknife_over_pictures() -> None:
    draw = random.Random(0)
    records = [record(draw.randint(1, 30), str(i // 2)) for i in range(240)]  # two questions about each picture
    quality = {str(i): draw.betavariate(8, 1) for i in range(120)}
    parts = {id(each): sum(draw.random() < quality[each.seen] for _ in each.tokens) for each in records}

    def share(some: Sequence[Record]) -> float:
        return sum(parts[id(each)] for each in some) / sum(len(each.tokens) for each in some)

    found = estimate(records, lambda each: parts[id(each)], lambda each: len(each.tokens))
    without = [share([each for each in records if each.seen != str(i)]) for i in range(120)]
    jackknife = math.sqrt(119 / 120 * sum((each - statistics.fmean(without)) ** 2 for each in without))
    assert found.value == pytest.approx(share(records))
    assert found.error == pytest.approx(jackknife, rel=0.05)
    apart = estimate(
        [record(len(each.tokens), str(i)) for i, each in enumerate(records)],
        lambda each: parts[id(records[int(each.seen)])],
        lambda each: len(each.tokens),
    )
    assert apart.error is not None and found.error is not None and apart.error < 0.9 * found.error


def test_one_picture_has_no_error() -> None:
    assert estimate([record(4, "a"), record(2, "a")], lambda each: 1, lambda each: len(each.tokens)) == (1 / 3, None)
    assert " ± " not in measured({("random", 0.5): [2]}, [4]).markdown().split("\n\n")[0]


def test_rows() -> None:
    found = measured({("gprune", 0.5): [4, 3, 8], ("random", 0.5): [2, 1, 6]}, [4, 4, 8])
    unpruned, gprune, random_ = found.rows
    assert (unpruned["agreement"], unpruned["exact"], unpruned["rise"], unpruned["rise_se"]) == (1, 1, 0, 0)
    assert unpruned["nll"] == pytest.approx(0.1) and unpruned["answer_tokens"] == 16
    assert (gprune["agreement"], gprune["exact"]) == (15 / 16, pytest.approx(2 / 3))
    assert gprune["rise"] == pytest.approx((0 + 1 + 2) / 16)
    assert (gprune["behind"], gprune["behind_se"]) == (0, 0)
    assert random_["behind"] == 6 / 16
    # Two tokens of every answer: the error is that of the lengths alone, far below those of the two apart.
    parts = [2 - 6 / 16 * count for count in (4, 4, 8)]
    assert random_["behind_se"] == pytest.approx(math.sqrt(sum(each**2 for each in parts) * 3 / 2) / 16)
    assert (random_["kept_tokens"], random_["flops"], unpruned["flops"]) == (50, None, 1e9)


def test_the_advice_is_the_smallest_budget_that_is_enough() -> None:
    found = measured(
        {
            ("gprune", 0.5): [10, 10],
            ("gprune", 0.3): [9, 9],
            ("gprune", 0.1): [5, 5],
            ("random", 0.5): [9, 10],
            ("random", 0.3): [10, 9],
            ("random", 0.1): [2, 2],
        },
        [10, 10],
    )
    assert found.recommendation(0.95) == "random, keep 0.3: 95.0 % of tokens agree; 0.1: 20.0 %"
    assert found.recommendation(0.96) == "gprune, keep 0.5: 100.0 % of tokens agree; 0.3: 90.0 %"
    assert found.recommendation(0.1) == "gprune, keep 0.1: 50.0 % of tokens agree"
    poor = measured({("gprune", 0.3): [5, 5], ("random", 0.3): [6, 5]}, [10, 10])
    assert poor.recommendation(0.98) == (
        "none keeps 98.0% of tokens; the most: random, keep 0.3: 55.0 % of tokens agree; try a larger keep"
    )


def test_the_table_says_what_was_left_out() -> None:
    found = measured({("random", 0.5): [2, 3]}, [4, 4])
    text = Fidelity(found.records, found.runs, ["item 3: no picture"], ["fastv: too late"]).markdown()
    lines = text.splitlines()
    assert [line.split(" | ")[0] for line in lines[2:4]] == ["| none", "| random"]
    assert "62.5 ± 12.5" in lines[3] and lines[3].endswith("| — |")
    assert "2 items, 8 tokens in the unpruned model's answers, 100 visual tokens per item" in text
    assert "40% are edges at gprune's similarity 0.5; a tenth would be at 0.80" in text
    assert text.endswith("\nLeft out, fastv: too late.\n\nLeft out, item 3: no picture.\n")


def test_cells_carry_the_agreement() -> None:
    [_, cell] = measured({("random", 0.5): [2, 3]}, [4, 4]).cells("m")
    assert (cell.key.model, cell.key.method, cell.key.keep) == ("m", "random", 0.5)
    assert cell.scores == {"agreement": 5 / 8} and cell.kept_tokens == 50
