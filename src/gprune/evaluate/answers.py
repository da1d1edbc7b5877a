"""Answers of a model to conversations in batches, and what each of them cost."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import GenerationConfig

from ..answering import reply
from ..attach import Run
from ..cost import measure
from ..prompt import Chat, build_chat_inputs

DEFAULT_NEW_TOKENS = 1024
"""Of an answer, where the task does not say."""


@dataclass(frozen=True)
class Response:
    """What a model made of one conversation.

    Args:
        text: of the answer; empty where there is an error.
        visual_tokens: of the conversation, before pruning.
        kept_tokens: the same after pruning, on average over the LLM's layers.
        seconds: for the whole answer, as an equal share of its batch.
        error: why there is no answer.
    """

    text: str = ""
    visual_tokens: int = 0
    kept_tokens: float = 0.0
    seconds: float = 0.0
    error: str | None = None


def answer(model: Any, processor: Any, run: Run, chats: Sequence[Chat], given: Mapping[str, Any]) -> list[Response]:
    """Response a batch of conversations.

    Args:
        model: any supported model.
        processor: its processor.
        run: a method attached to the model.
        chats: each with any number of pictures, or none.
        given: generation arguments as tasks write them: "until", a string or several at which an answer is cut, and
            those of transformers' `GenerationConfig`; others are left out. A temperature of 0 is greedy decoding.

    Returns:
        One answer per conversation; one that the processor refuses is an error, and the others are answered.
    """
    try:
        inputs = build_chat_inputs(model, processor, chats)
    except Exception as error:  # what a processor raises for a prompt that it cannot read depends on its version
        if len(chats) == 1:
            return [Response(error=describe(error))]
        return [each for chat in chats for each in answer(model, processor, run, [chat], given)]
    return [
        Response(until_stop(each.text, given.get("until")), each.visual_tokens, each.kept_tokens, each.seconds)
        for each in reply(run, processor, inputs, **generation_arguments(given))
    ]


def flops(model: Any, processor: Any, run: Run, chats: Iterable[Chat]) -> float | None:
    """Floating-point operations up to the first token of an answer: the mean; None without conversations."""
    counts = [measure(model, build_chat_inputs(model, processor, [chat]), run.method).total for chat in chats]
    return sum(counts) / len(counts) if counts else None


def prepare(processor: Any) -> None:
    """Have a processor pad batches, on the left as generation needs it, even if its tokenizer has no token for that."""
    tokenizer = processor.tokenizer
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token


def generation_arguments(given: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `given` that `generate()` knows, greedy unless there is a temperature."""
    known = vars(GenerationConfig())
    arguments = {name: value for name, value in given.items() if name in known and value is not None}
    arguments.setdefault("max_new_tokens", DEFAULT_NEW_TOKENS)
    sample = bool(arguments.get("temperature")) and arguments.get("do_sample", True)
    if not sample:
        for name in ("temperature", "top_p", "top_k"):
            arguments.pop(name, None)
    return {**arguments, "do_sample": sample}


def until_stop(text: str, until: str | Sequence[str] | None) -> str:
    """An answer up to the first of the strings `until`, without blanks around it."""
    stops = [until] if isinstance(until, str) else [stop for stop in until or () if stop]
    # Blanks before an answer are no part of it: a line feed there does not end it.
    text = text.lstrip()
    return re.split("|".join(map(re.escape, stops)), text, maxsplit=1)[0].strip() if stops else text.strip()


def describe(error: Exception) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
