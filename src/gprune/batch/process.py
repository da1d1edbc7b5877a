"""Answers of a transformers model in the worker's own process."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from PIL import Image

from ..attach import Run
from ..evaluate.answers import Response, answer, describe, prepare
from ..families.table import unsupported
from ..models import EMBEDDED, UnusableModel, load, read_config
from ..prompt import Chat, ask
from ..pruners import Auto
from ..spec import check_has_mask, parse_pruner
from ..tokens import Cover, Keep
from .engine import Ask


@dataclass(frozen=True)
class InProcess:
    """A model of transformers with a pruner attached, greedy decoding.

    Args:
        model: hub id, folder, or "embedded".
        method: as `gprune.spec.parse_pruner` reads it.
        keep: see `Method`.
        max_new_tokens: of an answer.
    """

    model: str = EMBEDDED
    method: str = Auto.name
    keep: Keep = 0.3
    max_new_tokens: int = 128

    on_gpu: ClassVar[bool] = True

    def __post_init__(self) -> None:
        # Workers may run in another folder.
        if self.model != EMBEDDED and os.path.isdir(self.model):
            object.__setattr__(self, "model", os.path.abspath(self.model))

    @property
    def settings(self) -> dict[str, Any]:
        """What the answers depend on, as it is kept beside them."""
        keep = str(self.keep) if isinstance(self.keep, Cover) else self.keep
        return {"engine": "transformers", **vars(self), "keep": keep}

    def check(self) -> None:
        """Raise ValueError or TypeError for an unknown method, budget, checkpoint or family; nothing is loaded."""
        check_has_mask(parse_pruner(self.method, self.keep))
        config = read_config(self.model)
        if reason := unsupported(config):
            raise UnusableModel(f"model {self.model} of type {config.model_type!r} cannot be pruned: {reason}")

    def start(self) -> Ask:
        """Load the model and attach the pruner."""
        model, processor = load(self.model)
        prepare(processor)
        run = parse_pruner(self.method, self.keep).attach(model)
        return partial(_answer, model, processor, run, self.max_new_tokens)


def _answer(
    model: Any, processor: Any, run: Run, max_new_tokens: int, asked: Sequence[tuple[Image.Image, str]]
) -> list[Response]:
    chats = [ask([picture], question) for picture, question in asked]
    return _answer_chats(model, processor, run, {"max_new_tokens": max_new_tokens}, chats)


def _answer_chats(model: Any, processor: Any, run: Run, given: dict[str, Any], chats: list[Chat]) -> list[Response]:
    """Response a batch; if that fails, one by one, and what fails alone is an error."""
    try:
        return answer(model, processor, run, chats, given)
    except torch.AcceleratorError:
        raise  # after it, nothing that this process asks of the GPU is answered
    except Exception as error:
        if len(chats) == 1:
            return [Response(error=describe(error))]
    return [each for chat in chats for each in _answer_chats(model, processor, run, given, [chat])]
