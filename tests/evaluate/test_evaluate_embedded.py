"""Cells of the embedded model are what the benchmark says of it."""

from __future__ import annotations

import pytest

from gprune import Random, Unpruned
from gprune.evaluate.cells import Key, versions
from gprune.evaluate.embedded import Embedded, method_of
from gprune.scenes.benchmark import FALSE_YES, QUESTIONS, run_benchmark, samples
from gprune.scenes.model import load_embedded
from gprune.scenes.vocabulary import CATEGORIES


@pytest.fixture(scope="module")
def embedded() -> Embedded:
    return Embedded()


def test_a_cell_is_what_the_benchmark_says(embedded: Embedded) -> None:
    key = Key("embedded", "scenes", "random", 0.1, 2, 14)
    cell = embedded.measure(key)
    outcomes = run_benchmark(*load_embedded(), list(samples("test", 14)), Random(0.1, seed=2))
    assert list(cell.scores) == ["overall", *CATEGORIES, *([FALSE_YES] if FALSE_YES in cell.scores else [])]
    assert cell.right == "".join("1" if outcome.right else "0" for outcome in outcomes)
    assert cell.scores["overall"] == sum(outcome.right for outcome in outcomes) / 14
    for i, category in enumerate(CATEGORIES):
        assert cell.scores[category] == (outcomes[i].right + outcomes[i + 7].right) / 2
    assert 0 < cell.scores["overall"] < 1
    assert cell.kept_tokens == pytest.approx(sum(outcome.kept_tokens for outcome in outcomes) / 14)
    assert cell.visual_tokens == pytest.approx(sum(outcome.visual_tokens for outcome in outcomes) / 14)
    assert (cell.key, cell.n, cell.errors, cell.versions) == (key, 14, [], versions())
    unpruned = embedded.measure(Key("embedded", "scenes", limit=14))
    assert cell.flops is not None and unpruned.flops is not None and cell.flops < unpruned.flops
    assert unpruned.kept_tokens == unpruned.visual_tokens and unpruned.seconds > 0


def test_masks_are_those_of_the_pictures(embedded: Embedded) -> None:
    """Of the last of seven questions, about the background, only the background is needed."""
    last = [embedded.measure(Key("embedded", "scenes", each, 0.1, None, 21)) for each in ("foreground", "background")]
    assert last[0].scores["background"] < last[1].scores["background"]


def test_categories_without_a_question_are_left_out(embedded: Embedded) -> None:
    assert list(embedded.measure(Key("embedded", "scenes", limit=2)).scores) == ["overall", *CATEGORIES[:2]]


def test_all_questions_without_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = []

    def stop(split: str, count: int) -> None:
        counts.append((split, count))
        raise KeyboardInterrupt

    monkeypatch.setattr("gprune.evaluate.embedded.samples", stop)
    with pytest.raises(KeyboardInterrupt):
        Embedded().measure(Key("embedded", "scenes"))
    assert counts == [("test", QUESTIONS)] == [("test", 2100)]


def test_progress_is_told() -> None:
    seen: list[tuple[int, int]] = []
    benchmark = Embedded(batch_size=2, answered=lambda done, total: seen.append((done, total)))
    first, second = (
        benchmark.measure(Key("embedded", "scenes", method, keep, limit=3))
        for method, keep in (("none", 1.0), ("uniform", 0.3))
    )
    assert first.n == second.n == 3 and seen == 2 * [(1, 3), (2, 3), (3, 3)]


def test_methods_of_keys() -> None:
    assert method_of(Key("embedded", "scenes")) == Unpruned()
    assert method_of(Key("embedded", "scenes", "random", 7, 5)) == Random(7, seed=5)


@pytest.mark.parametrize("key", [Key("embedded", "gqa"), Key("another", "scenes")])
def test_other_models_and_tasks_are_refused(key: Key) -> None:
    with pytest.raises(ValueError, match="is not of embedded on the embedded benchmark"):
        Embedded().measure(key)
