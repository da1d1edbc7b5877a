"""Answers in batches: the same as one by one, cut where the task says, and what they cost."""

from __future__ import annotations

from typing import Any

import pytest
from pictures import photo

from gprune import FastV, GPrune, Unpruned
from gprune.evaluate.answers import answer, flops, generation_arguments, prepare, until_stop
from gprune.prompt import Chat, ask
from gprune.scenes.benchmark import samples
from gprune.scenes.model import load_embedded

SHORT = {"max_new_tokens": 8}


@pytest.fixture(scope="module")
def embedded() -> tuple[Any, Any]:
    model, processor = load_embedded()
    prepare(processor)
    return model, processor


@pytest.fixture(scope="module")
def chats() -> list[Chat]:
    tests = list(samples("test", 4))
    pictures = [each.picture for each in tests]
    return [
        *(ask([each.picture], each.question.question) for each in tests),
        ask([], "what color is the circle?"),
        ask(pictures[:2], "how many shapes are there?"),
        ask([photo("coffee")], "what is it?"),
    ]


@pytest.mark.parametrize("pruner", [Unpruned(), GPrune(0.5), FastV(0.5)])
def test_a_batch_is_answered_as_one_by_one(embedded: tuple[Any, Any], chats: list[Chat], pruner: Any) -> None:
    with pruner.attach(embedded[0]) as run:
        together = answer(*embedded, run, chats, SHORT)
        alone = [answer(*embedded, run, [chat], SHORT)[0] for chat in chats]
    for one, other in zip(together, alone, strict=True):
        assert (one.text, one.visual_tokens) == (other.text, other.visual_tokens)
        assert one.kept_tokens == pytest.approx(other.kept_tokens)
        assert one.seconds > 0 and one.error is None
    if pruner == Unpruned():
        assert [each.text for each in together[:2]] == ["03", "circle"]
    assert together[4].visual_tokens == together[4].kept_tokens == 0
    assert together[5].visual_tokens == together[0].visual_tokens + together[1].visual_tokens
    for each in together[:4]:
        share = each.kept_tokens / each.visual_tokens
        assert share == 1 if pruner == Unpruned() else 0.45 < share < 0.56  # newlines stay


def test_what_the_processor_refuses_is_an_error_and_the_others_are_answered(
    embedded: tuple[Any, Any], chats: list[Chat]
) -> None:
    refused = ask([photo("coffee")], "is this an <image> or not?")  # a placeholder too many
    answers = answer(*embedded, Unpruned().attach(embedded[0]), [chats[0], refused, chats[1]], SHORT)
    assert [each.text for each in answers] == ["03", "", "circle"]
    assert [each.error is None for each in answers] == [True, False, True]


def test_flops_are_the_mean(embedded: tuple[Any, Any], chats: list[Chat]) -> None:
    whole = Unpruned().attach(embedded[0])
    one, other = (flops(*embedded, whole, [chat]) for chat in (chats[0], chats[4]))
    assert one is not None and other is not None and one > other
    assert flops(*embedded, whole, [chats[0], chats[4]]) == (one + other) / 2
    assert flops(*embedded, whole, []) is None
    with GPrune(0.3)(embedded[0]) as run:
        pruned = flops(*embedded, run, [chats[0]])
    assert pruned is not None and pruned < one


@pytest.mark.parametrize(
    "text, until, expected",
    [
        ("yes. it is", ".", "yes"),
        ("yes\n\nQ: no", ["\n\n"], "yes"),
        ("\n\n yes ", ["\n\n"], "yes"),
        ("a b|c", ["|", " "], "a"),
        ("a.*b", ["x", ".*"], "a"),
        (" yes ", None, "yes"),
        ("yes", [""], "yes"),
    ],
)
def test_cut(text: str, until: str | list[str] | None, expected: str) -> None:
    assert until_stop(text, until) == expected


@pytest.mark.parametrize(
    "given, expected",
    [
        ({}, {"max_new_tokens": 1024, "do_sample": False}),
        (
            {"max_new_tokens": 16, "temperature": 0, "top_p": 1.0, "num_beams": 1, "do_sample": False, "until": ["\n"]},
            {"max_new_tokens": 16, "num_beams": 1, "do_sample": False},
        ),
        (
            {"max_new_tokens": 2, "temperature": 0.5, "top_p": 0.9, "image_aspect_ratio": "pad"},
            {"max_new_tokens": 2, "temperature": 0.5, "top_p": 0.9, "do_sample": True},
        ),
        ({"max_new_tokens": 2, "temperature": 0.5, "do_sample": False}, {"max_new_tokens": 2, "do_sample": False}),
        ({"max_new_tokens": 2, "num_beams": None}, {"max_new_tokens": 2, "do_sample": False}),
    ],
)
def test_generation_arguments(given: dict[str, Any], expected: dict[str, Any]) -> None:
    assert generation_arguments(given) == expected


def test_a_tokenizer_without_padding_pads_on_the_left(embedded: tuple[Any, Any], chats: list[Chat]) -> None:
    model, processor = embedded
    before = processor.tokenizer.pad_token
    processor.tokenizer.pad_token, processor.tokenizer.padding_side = None, "right"
    prepare(processor)
    answers = answer(model, processor, Unpruned().attach(model), chats[:2], SHORT)
    processor.tokenizer.pad_token = before
    assert [each.text for each in answers] == ["03", "circle"]
