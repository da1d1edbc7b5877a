"""The embedded benchmark: one question a picture, exact match, per category and method."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
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

_NEEDS: dict[str, Kind] = {"text": "text", "chart": "chart"}
_STRIDE = 10**6  # where to look on when a scene gives no question of the wanted category
MAX_NEW_TOKENS = 8  # the longest answer is five tokens


@dataclass(frozen=True)
class Example:
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
    """What a model made of one example."""

    category: str
    answer: str
    right: bool
    visual_tokens: int
    kept_tokens: float
    edge_share: float | None
    seconds: float


def examples(split: Split, count: int) -> Iterator[Example]:
    """The first `count` examples of a split; the categories take turns."""
    for index in range(count):
        category = CATEGORIES[index % len(CATEGORIES)]
        question, number = None, index
        while question is None:
            scene = make_scene(split, number, needs=_NEEDS.get(category))
            question = question_of(scene, category, rng_of(split, number, stream=2))
            number += _STRIDE
        picture, labels = render(scene)
        yield Example(index, picture, question, foreground(labels))


def mixed_inputs(model: Any, processor: Any) -> Any:
    """A batch of questions about one picture of every size, so that prompts are padded; see `build_inputs`."""
    sizes = {example.picture.size: example for example in examples("test", 4 * len(CATEGORIES))}
    return _inputs(model, processor, list(sizes.values()))


def evaluate(
    model: Any,
    processor: Any,
    tests: Sequence[Example],
    method: Method = UNPRUNED,
    *,
    batch_size: int = 16,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Outcome]:
    """Answer every example by greedy decoding, batched over pictures of equal size.

    Args:
        model: any supported model.
        processor: its processor.
        tests: what to ask.
        method: attached to the model for it.
        batch_size: pictures at once.
        progress: called with the number of examples done since the last call.

    Returns:
        One outcome per example, in their order. `right` is exact match without regard to case.
    """
    outcomes: dict[int, Outcome] = {}
    with method.attach(model) as run:
        for batch in _batches(tests, batch_size):
            run.masks = [example.foreground for example in batch]
            replies = reply(run, processor, _inputs(model, processor, batch), max_new_tokens=MAX_NEW_TOKENS)
            for example, each in zip(batch, replies, strict=True):
                answer = each.text.strip()
                outcomes[example.index] = Outcome(
                    example.question.category,
                    answer,
                    answer.lower() == example.question.answer,
                    each.visual_tokens,
                    each.kept_tokens,
                    each.images[0].edge_share if each.images else None,
                    each.seconds,
                )
            progress(len(batch))
    return [outcomes[example.index] for example in tests]


def flops(model: Any, processor: Any, tests: Sequence[Example], method: Method = UNPRUNED) -> float:
    """Floating-point operations per picture up to the first token of its answer: the mean over `tests`.

    Pictures of one size with questions of one length cost the same, so that one of them is measured.
    """
    alike: dict[tuple[tuple[int, int], int], list[Example]] = {}
    for example in tests:
        length = len(processor.tokenizer(example.question.question).input_ids)
        alike.setdefault((example.picture.size, length), []).append(example)
    total = 0
    for group in alike.values():
        inputs = _inputs(model, processor, group[:1])
        total += len(group) * measure(model, inputs, method, [group[0].foreground]).total
    return total / len(tests)


def rows(method: str, keep: float, seed: int | None, outcomes: Iterable[Outcome], spent: float) -> list[dict[str, Any]]:
    """One flat row per category and one for all of them ("overall"): means over the examples.

    Args:
        spent: floating-point operations per picture, of `flops`.
    """
    table = []
    outcomes = list(outcomes)
    for category in (*CATEGORIES, "overall"):
        part = [o for o in outcomes if category in (o.category, "overall")]
        if not part:
            continue
        shares = [o.edge_share for o in part if o.edge_share is not None]
        table.append(
            {
                "method": method,
                "keep": keep,
                "seed": seed,
                "category": category,
                "accuracy": round(sum(o.right for o in part) / len(part), 4),
                "n": len(part),
                "visual_tokens": round(sum(o.visual_tokens for o in part) / len(part), 1),
                "kept_tokens": round(sum(o.kept_tokens for o in part) / len(part), 1),
                "flops": round(spent),
                "edge_share": round(sum(shares) / len(shares), 4) if shares else None,
                "seconds": round(sum(o.seconds for o in part) / len(part), 4),
            }
        )
    return table


def _inputs(model: Any, processor: Any, batch: Sequence[Example]) -> Any:
    return build_inputs(model, processor, [([example.picture], example.question.question) for example in batch])


def _batches(tests: Sequence[Example], size: int) -> Iterator[list[Example]]:
    waiting: dict[tuple[int, int], list[Example]] = {}
    for example in tests:
        group = waiting.setdefault(example.picture.size, [])
        group.append(example)
        if len(group) == size:
            yield waiting.pop(example.picture.size)
    yield from waiting.values()
