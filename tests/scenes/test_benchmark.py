"""The benchmark asks every category, counts right, and does not depend on how it is batched."""

from __future__ import annotations

from collections import Counter
from functools import cache
from typing import Any

import pytest
import torch
from test_questions import answer

from gprune import GPrune, Method, Random, Unpruned
from gprune.cost import cost
from gprune.scenes.benchmark import MAX_NEW_TOKENS, Example, Outcome, evaluate, examples, rows
from gprune.scenes.model import build_model, build_processor, build_tokenizer
from gprune.scenes.scene import Scene, make_scene, render
from gprune.scenes.vocabulary import CATEGORIES

pytestmark = pytest.mark.filterwarnings("ignore:.*pairs of visual tokens are edges")  # random weights

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


@cache
def model() -> tuple[Any, Any]:
    """Random weights, larger than at the start of training: its answers differ from picture to picture."""
    torch.manual_seed(0)
    net = build_model().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3)
    return net, build_processor()


@cache
def sample() -> list[Example]:
    return list(examples("test", 3 * len(CATEGORIES)))


def scene_of(example: Example) -> Scene:
    """The scene that an example was drawn from, found by its picture."""
    needs: Any = example.question.category if example.question.category in ("text", "chart") else None
    numbers = range(example.index, example.index + 20 * 10**6, 10**6)
    scenes = (make_scene("test", number, needs=needs) for number in numbers)
    return next(scene for scene in scenes if render(scene)[0].tobytes() == example.picture.tobytes())


def test_categories_take_turns() -> None:
    assert [example.question.category for example in sample()] == [*CATEGORIES] * 3
    assert [example.index for example in sample()] == list(range(21))


def test_examples_are_the_same_every_time_and_in_every_length() -> None:
    again = list(examples("test", 10))
    for one, other in zip(sample(), again, strict=False):
        assert one.question == other.question
        assert one.picture.tobytes() == other.picture.tobytes()


def test_splits_share_no_example() -> None:
    pictures = [
        example.picture.tobytes() for split in ("test", "validation", "train") for example in examples(split, 35)
    ]  # type: ignore[arg-type]
    assert len(set(pictures)) == len(pictures)


def test_answers_are_those_of_the_scenes() -> None:
    for example in examples("test", 70):
        question = example.question
        assert answer(scene_of(example), question.question) == (question.category, question.answer)


def test_presence_is_balanced_and_the_answers_are_many() -> None:
    asked = [example.question for example in examples("test", 700)]
    presence = Counter(question.answer for question in asked if question.category == "presence")
    assert set(presence) == {"yes", "no"} and abs(presence["yes"] - presence["no"]) < 40
    for category in CATEGORIES:
        answers = Counter(question.answer for question in asked if question.category == category)
        assert answers.most_common(1)[0][1] < 70, "one answer must not be right most of the time"


def test_the_longest_answer_fits() -> None:
    tokenizer = build_tokenizer()
    lengths = [len(tokenizer(example.question.answer).input_ids) for example in examples("test", 700)]
    assert max(lengths) + 1 <= MAX_NEW_TOKENS  # and <eos>


@pytest.mark.parametrize("pruner", [Unpruned(), GPrune(keep=0.3)], ids=lambda p: p.name)
def test_batch_size_does_not_change_the_answers(pruner: Method) -> None:
    done: list[int] = []
    single = evaluate(*model(), sample(), pruner, batch_size=1)
    batched = evaluate(*model(), sample(), pruner, batch_size=16, progress=done.append)
    assert sum(done) == len(sample())
    for one, other in zip(single, batched, strict=True):
        assert one.answer == other.answer
        assert (one.visual_tokens, one.kept_tokens) == (other.visual_tokens, other.kept_tokens)
        assert one.edge_share == pytest.approx(other.edge_share, abs=0.01)
    assert len({outcome.answer for outcome in single}) > 5


def test_outcomes_are_in_order_and_counted_as_the_cost_model_counts() -> None:
    net, _ = model()
    outcomes = evaluate(*model(), sample()[:7], Random(keep=0.3))
    for outcome, example in zip(outcomes, sample(), strict=False):
        width, height = example.picture.size
        spent = cost(net, [(height, width)], 5, 0.3)
        assert outcome.category == example.question.category
        assert outcome.right == (outcome.answer.lower() == example.question.answer)
        assert (outcome.visual_tokens, outcome.kept_tokens) == (spent.visual_tokens, spent.kept_tokens)
        assert outcome.edge_share is None and outcome.seconds > 0


def test_evaluation_leaves_the_model_unpatched() -> None:
    net, _ = model()
    evaluate(*model(), sample()[:1], GPrune(keep=0.5))
    assert not net._forward_pre_hooks and not net._forward_hooks


def test_a_right_answer_counts_without_regard_to_case(monkeypatch: pytest.MonkeyPatch) -> None:
    net, processor = model()
    told = iter([sample()[0].question.answer.upper() + " ", "something else"])
    monkeypatch.setattr(processor, "batch_decode", lambda *_, **__: [next(told)])
    first, second = (evaluate(net, processor, [sample()[0]])[0] for _ in range(2))
    assert (first.right, first.answer) == (True, sample()[0].question.answer.upper())
    assert second.right is False


def outcome(category: str, right: bool, kept: int, share: float | None = None) -> Outcome:
    return Outcome(category, "a", right, 100, kept, share, 0.5)


def test_rows_are_means_per_category_and_over_all() -> None:
    table = rows("m", 0.3, 4, [outcome("text", True, 30), outcome("text", False, 34), outcome("chart", True, 38)], 5e6)
    assert [list(row) for row in table] == [KEYS] * 3
    assert [row["category"] for row in table] == ["text", "chart", "overall"]
    assert [row["accuracy"] for row in table] == [0.5, 1.0, 0.6667]
    assert [row["n"] for row in table] == [2, 1, 3]
    assert [row["kept_tokens"] for row in table] == [32.0, 38.0, 34.0]
    assert {(row["method"], row["keep"], row["seed"], row["visual_tokens"], row["seconds"]) for row in table} == {
        ("m", 0.3, 4, 100.0, 0.5)
    }
    assert all(row["edge_share"] is None for row in table)


def test_rows_average_the_edge_share() -> None:
    table = rows("m", 0.3, None, [outcome("text", True, 30, 0.25), outcome("text", True, 30, 0.75)], 5e6)
    assert [row["edge_share"] for row in table] == [0.5, 0.5]
