"""Cells of the embedded model are what the benchmark says of it."""

from __future__ import annotations

import pytest

from gprune import Random, Unpruned
from gprune.evaluate.cells import Key, versions
from gprune.evaluate.embedded import QUESTIONS, Embedded, pruner_of
from gprune.scenes.benchmark import evaluate, examples
from gprune.scenes.model import load_embedded
from gprune.scenes.vocabulary import CATEGORIES


@pytest.fixture(scope="module")
def embedded() -> Embedded:
    return Embedded()


def test_a_cell_is_what_the_benchmark_says(embedded: Embedded) -> None:
    key = Key("embedded", "scenes", "random", 0.1, 2, 14)
    cell = embedded.measure(key)
    outcomes = evaluate(*load_embedded(), list(examples("test", 14)), Random(0.1, seed=2))
    assert list(cell.scores) == ["overall", *CATEGORIES]
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
    monkeypatch.setattr("gprune.evaluate.embedded.examples", lambda split, n: counts.append((split, n)) or [None] * n)
    assert len(Embedded().tests(None)) == QUESTIONS == 700 and counts == [("test", 700)]


def test_methods_of_keys() -> None:
    assert pruner_of(Key("embedded", "scenes")) == Unpruned()
    assert pruner_of(Key("embedded", "scenes", "random", 7, 5)) == Random(7, seed=5)


@pytest.mark.parametrize("key", [Key("embedded", "gqa"), Key("another", "scenes")])
def test_other_models_and_tasks_are_refused(key: Key) -> None:
    with pytest.raises(ValueError, match="not of the embedded model and benchmark"):
        Embedded().measure(key)
