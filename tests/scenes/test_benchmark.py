"""The benchmark asks every category, counts right, and does not depend on how it is batched."""

from __future__ import annotations

from collections import Counter
from functools import cache
from typing import Any

import pytest
import torch
from test_questions import answer

from gprune import Background, Foreground, GPrune, Method, Random, ToMe, Unpruned
from gprune.cost import cost
from gprune.scenes.benchmark import (
    FALSE_YES,
    LONGEST_ANSWER,
    QUESTIONS,
    Outcome,
    Sample,
    mean_flops,
    run_benchmark,
    samples,
    scores,
)
from gprune.scenes.model import build_model, build_processor, build_tokenizer
from gprune.scenes.scene import Scene, make_scene, render
from gprune.scenes.vocabulary import CATEGORIES

pytestmark = pytest.mark.filterwarnings("ignore:.*pairs of visual tokens are edges")  # random weights


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
def sample() -> list[Sample]:
    return list(samples("test", 3 * len(CATEGORIES)))


def scene_of(example: Sample) -> Scene:
    """The scene that an example was drawn from, found by its picture."""
    needs: Any = example.question.category if example.question.category in ("text", "chart") else None
    numbers = range(example.index, example.index + 20 * 10**6, 10**6)
    scenes = (make_scene("test", number, needs=needs) for number in numbers)
    return next(scene for scene in scenes if render(scene)[0].tobytes() == example.picture.tobytes())


def test_categories_take_turns() -> None:
    assert [example.question.category for example in sample()] == [*CATEGORIES] * 3
    assert [example.index for example in sample()] == list(range(21))


def test_examples_are_the_same_every_time_and_in_every_length() -> None:
    again = list(samples("test", 10))
    for one, other in zip(sample(), again, strict=False):
        assert one.question == other.question
        assert one.picture.tobytes() == other.picture.tobytes()


def test_splits_share_no_example() -> None:
    pictures = [
        example.picture.tobytes() for split in ("test", "validation", "train") for example in samples(split, 35)
    ]  # type: ignore[arg-type]
    assert len(set(pictures)) == len(pictures)


def test_answers_are_those_of_the_scenes() -> None:
    for example in samples("test", 70):
        question = example.question
        assert answer(scene_of(example), question.question) == (question.category, question.answer)


def test_presence_is_balanced_and_the_answers_are_many() -> None:
    asked = [example.question for example in samples("test", 700)]
    presence = Counter(question.answer for question in asked if question.category == "presence")
    assert set(presence) == {"yes", "no"} and abs(presence["yes"] - presence["no"]) < 40
    for category in CATEGORIES:
        answers = Counter(question.answer for question in asked if question.category == category)
        assert answers.most_common(1)[0][1] < 70, "one answer must not be right most of the time"


def test_the_longest_answer_fits() -> None:
    tokenizer = build_tokenizer()
    lengths = [len(tokenizer(example.question.answer).input_ids) for example in samples("test", 700)]
    assert max(lengths) + 1 <= LONGEST_ANSWER  # and <eos>


@pytest.mark.parametrize("pruner", [Unpruned(), GPrune(keep=0.3)], ids=lambda p: p.name)
def test_batch_size_does_not_change_the_answers(pruner: Method) -> None:
    single, batched = (run_benchmark(*model(), sample(), pruner, batch_size=size) for size in (1, 16))
    assert [outcome.sample for outcome in single] == [outcome.sample for outcome in batched] == sample()
    for one, other in zip(single, batched, strict=True):
        assert one.answer == other.answer
        assert (one.visual_tokens, one.kept_tokens) == (other.visual_tokens, other.kept_tokens)
    assert len({outcome.answer for outcome in single}) > 5


def test_outcomes_are_in_order_and_counted_as_the_cost_model_counts() -> None:
    net, _ = model()
    outcomes = run_benchmark(*model(), sample()[:7], Random(keep=0.3))
    for outcome, example in zip(outcomes, sample(), strict=False):
        width, height = example.picture.size
        spent = cost(net, [(height, width)], 5, 0.3)
        assert outcome.right == (outcome.answer.lower() == example.question.answer)
        assert (outcome.visual_tokens, outcome.kept_tokens) == (spent.visual_tokens, spent.kept_tokens)
        assert outcome.sample is example and outcome.seconds > 0


def test_evaluation_leaves_the_model_unpatched() -> None:
    net, _ = model()
    run_benchmark(*model(), sample()[:1], GPrune(keep=0.5))
    assert not net._forward_pre_hooks and not net._forward_hooks


def test_a_right_answer_counts_without_regard_to_case(monkeypatch: pytest.MonkeyPatch) -> None:
    _, processor = model()
    told = iter([sample()[0].question.answer.upper() + " ", "something else"])
    monkeypatch.setattr(processor, "batch_decode", lambda *_, **__: [next(told)])
    first, second = (run_benchmark(*model(), [sample()[0]])[0] for _ in range(2))
    assert (first.right, first.answer) == (True, sample()[0].question.answer.upper())
    assert second.right is False


def test_progress_and_masks() -> None:
    done: list[int] = []
    run_benchmark(*model(), sample(), Foreground(0.3), batch_size=4, answered=done.append)
    assert done == sorted(set(done)) and done[-1] == len(sample())


def test_flops_are_close_to_those_of_every_picture() -> None:
    net, processor = model()
    for method in (GPrune(0.3), ToMe(0.5), Background(0.3)):
        each = [mean_flops(net, processor, [one], method) for one in sample()]
        assert mean_flops(net, processor, sample(), method) == pytest.approx(sum(each) / len(each), rel=0.005)


def outcome(number: int, answer: str) -> Outcome:
    example = list(samples("test", number + 1))[number]
    return Outcome(example, answer, answer == example.question.answer, 100, 30, 0.5)


def test_scores_are_shares_of_right_answers_and_of_things_seen_that_are_not_there() -> None:
    presence = [example for example in samples("test", 70) if example.question.category == "presence"]
    yes = [outcome(example.index, "yes") for example in presence]
    text = [outcome(0, "nonsense"), outcome(7, sample()[7].question.answer)]
    absent = [example for example in presence if example.question.answer == "no"]
    right = len(presence) - len(absent)
    found = scores([*text, *yes])
    assert found == {
        "overall": pytest.approx((right + 1) / (len(presence) + 2)),
        "text": 0.5,
        "presence": pytest.approx(right / len(presence)),
        FALSE_YES: 1.0,
    }
    assert next(iter(found)) == "overall" and 0 < right < len(presence)
    assert scores([outcome(example.index, "no") for example in presence])[FALSE_YES] == 0.0
    assert FALSE_YES not in scores(text)


def test_every_category_is_asked_as_often() -> None:
    assert QUESTIONS % len(CATEGORIES) == 0
