"""The embedded benchmark: one question a picture, exact match, per category and method."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..answering import reply
from ..cost import UNPRUNED, measure
from ..prompt import build_inputs
from ..pruners import Method
from .questions import Question, question_of
from .scene import Kind, Split, foreground, make_scene, render, rng_of
from .vocabulary import CATEGORIES

QUESTIONS = 2100
"""Of the test set, where no limit is given: 300 of each category."""

FALSE_YES = "false yes"
"""The share of questions about what is not there that are answered by yes."""

LONGEST_ANSWER = 8
"""Tokens that an answer may have; the longest right one has five."""

_NEEDS: dict[str, Kind] = {"text": "text", "chart": "chart"}
_STRIDE = 10**6  # where to look on when a scene gives no question of the wanted category


@dataclass(frozen=True)
class Sample:
    """One question of the benchmark, the picture that it is about, and what in it is no background.

    Args:
        foreground: bool [height, width].
    """

    index: int
    picture: Image.Image
    question: Question
    foreground: NDArray[np.bool_]


@dataclass(frozen=True)
class Outcome:
    """What a model made of one sample."""

    sample: Sample
    answer: str
    right: bool
    visual_tokens: int
    kept_tokens: float
    seconds: float


def samples(split: Split, count: int) -> Iterator[Sample]:
    """The first `count` samples of a split; the categories take turns."""
    for index in range(count):
        category = CATEGORIES[index % len(CATEGORIES)]
        question, number = None, index
        while question is None:
            scene = make_scene(split, number, needs=_NEEDS.get(category))
            question = question_of(scene, category, rng_of(split, number, stream=2))
            number += _STRIDE
        picture, labels = render(scene)
        yield Sample(index, picture, question, foreground(labels))


def mixed_inputs(model: Any, processor: Any) -> Any:
    """A batch of questions about one picture of every size, so that prompts are padded; see `build_inputs`."""
    sizes = {sample.picture.size: sample for sample in samples("test", 4 * len(CATEGORIES))}
    return _inputs(model, processor, list(sizes.values()))


def run_benchmark(
    model: Any,
    processor: Any,
    tests: Sequence[Sample],
    method: Method = UNPRUNED,
    *,
    batch_size: int = 32,
    answered: Callable[[int], None] = lambda done: None,
) -> list[Outcome]:
    """Answer every sample by greedy decoding, batched over pictures of one size and questions of one category.

    Args:
        model: any supported model.
        processor: its processor.
        tests: what to ask.
        method: attached to the model for it; one that goes by a mask gets the foreground of every picture.
        batch_size: pictures at once.
        answered: called with the number of samples answered so far.

    Returns:
        One outcome per sample, in their order. `right` is exact match without regard to case.
    """
    outcomes: dict[int, Outcome] = {}
    with method.attach(model) as run:
        for batch in _batches(tests, batch_size):
            run.masks = [sample.foreground for sample in batch]
            replies = reply(run, processor, _inputs(model, processor, batch), max_new_tokens=LONGEST_ANSWER)
            for sample, each in zip(batch, replies, strict=True):
                answer = each.text.strip()
                right = answer.lower() == sample.question.answer
                outcomes[sample.index] = Outcome(
                    sample, answer, right, each.visual_tokens, each.kept_tokens, each.seconds
                )
            answered(len(outcomes))
    return [outcomes[sample.index] for sample in tests]


def mean_flops(model: Any, processor: Any, tests: Sequence[Sample], method: Method = UNPRUNED) -> float:
    """Floating-point operations per picture up to the first token of its answer: the mean over `tests`.

    Of the pictures of one size, that with the question of middle length is measured.
    """
    sizes: dict[tuple[int, int], list[Sample]] = {}
    for sample in tests:
        sizes.setdefault(sample.picture.size, []).append(sample)
    total = 0
    for group in sizes.values():
        group.sort(key=lambda sample: len(processor.tokenizer(sample.question.question).input_ids))
        middle = group[len(group) // 2]
        inputs = _inputs(model, processor, [middle])
        total += len(group) * measure(model, inputs, method, [middle.foreground]).total
    return total / len(tests)


def scores(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Shares of right answers, overall and per category, and of wrong ones to whether something is there that is not.

    Those of which there is no question are left out.
    """
    parts = {
        "overall": outcomes,
        **{name: [o for o in outcomes if o.sample.question.category == name] for name in CATEGORIES},
    }
    absent = [o for o in parts["presence"] if o.sample.question.answer == "no"]
    found = {name: fmean(outcome.right for outcome in part) for name, part in parts.items() if part}
    return {**found, **({FALSE_YES: fmean(o.answer.lower() == "yes" for o in absent)} if absent else {})}


def _inputs(model: Any, processor: Any, part: Sequence[Sample]) -> Any:
    return build_inputs(model, processor, [([sample.picture], sample.question.question) for sample in part])


def _batches(tests: Sequence[Sample], size: int) -> Iterator[list[Sample]]:
    """Of pictures of one size and questions of one category: their prompts and answers are about as long."""
    alike: dict[tuple[tuple[int, int], str], list[Sample]] = {}
    for sample in tests:
        alike.setdefault((sample.picture.size, sample.question.category), []).append(sample)
    for group in alike.values():
        yield from (group[i : i + size] for i in range(0, len(group), size))
