"""Answers to prompts with a method attached: generated, timed, decoded, and what was kept for each of them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from . import host
from .attach import ImageReport, Run
from .pruners import Method


@dataclass(frozen=True, eq=False)
class Reply:
    """What a model made of one prompt.

    Args:
        text: of the answer, as the processor decodes it.
        visual_tokens: of the prompt, before pruning.
        images: a report for each image of the prompt; none of the unpruned model.
        seconds: for the whole answer, as an equal share of its batch.
    """

    text: str
    visual_tokens: int
    images: Sequence[ImageReport]
    seconds: float

    @property
    def kept_tokens(self) -> float:
        """Visual tokens of the prompt after pruning, on average over the LLM's layers."""
        return sum(each.ratio * each.n_before for each in self.images) if self.images else self.visual_tokens


@torch.no_grad()
def reply(run: Run, processor: Any, inputs: Mapping[str, Any], **arguments: Any) -> list[Reply]:
    """Answer a batch of prompts, by greedy decoding unless told otherwise.

    Args:
        run: a method attached to the model.
        processor: of the model.
        inputs: as `gprune.prompt.build_inputs` makes them.
        arguments: of `generate()`.
    """
    model: Any = run.model
    ids = inputs["input_ids"]
    started = time.perf_counter()
    output = model.generate(**{**inputs, "do_sample": False, **arguments})
    texts = processor.batch_decode(output[:, ids.shape[1] :], skip_special_tokens=True)
    seconds = (time.perf_counter() - started) / len(ids)
    visual = (ids == host.placeholder(model.config)).sum(1).tolist()
    return [
        Reply(text, tokens, images, seconds)
        for text, tokens, images in zip(texts, visual, _of_prompts(run.images, visual), strict=True)
    ]


@torch.no_grad()
def images_kept(method: Method, model: Any, inputs: Mapping[str, Any]) -> list[ImageReport]:
    """What a method keeps of the images of a batch of prompts: one report per image, and no answer.

    Args:
        method: attached to the model for it.
        model: any supported model.
        inputs: as `gprune.prompt.build_inputs` makes them.

    Raises:
        ValueError: the method is that of the unpruned model.
    """
    if method.acts == "nowhere":
        raise ValueError(f"method {method.name} keeps every token, so that there is nothing to show; give another")
    with method.attach(model) as run:
        model(**inputs, use_cache=False, logits_to_keep=1)
    return run.images


def _of_prompts(reports: Sequence[ImageReport], visual: Sequence[int]) -> Iterator[list[ImageReport]]:
    """The reports of each prompt, which follow one another; those of an earlier call are no prompt's without images."""
    rest = iter(reports)
    for tokens in visual:
        own: list[ImageReport] = []
        while sum(each.n_before for each in own) < tokens and (report := next(rest, None)) is not None:
            own.append(report)
        yield own
