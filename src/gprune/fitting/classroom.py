"""What a batch of items says of a scorer: how far the model strays from its own answers without the dropped tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import kl_div

from .. import host
from ..attach import encoded
from ..evaluate.forcing import answer_logits, greedy_answers, trained_logits
from ..evaluate.items import Query, open_query
from ..prompt import build_inputs
from ..pruners import CDPruner, Uniform
from ..pruners.scorer import Scorer
from ..tokens import Keep, VisualTokens, kept_count
from .gates import gated, standardised, straight_through


@dataclass(frozen=True, eq=False)
class TaughtBatch:
    """Items with the model's own answers to all tokens.

    Args:
        call: arguments of the model, with the pictures encoded.
        tokens: the visual tokens of the pictures, with the questions if the scorer reads them.
        visual: bool [B, q], the columns of the prompts that hold them.
        answers: int64 [n] per prompt.
        taught: float32 [n, vocabulary] per prompt, the log-probabilities that the model gives to every token there.
    """

    call: dict[str, Any]
    tokens: VisualTokens
    visual: Tensor
    answers: list[Tensor]
    taught: list[Tensor]

    def counts(self, keeps: Sequence[Keep]) -> list[int]:
        """How many tokens of each view are kept where every prompt has a budget of its own."""
        ends = list(accumulate(self.visual.sum(1).tolist()))
        starts = accumulate(self.tokens.sizes[:-1], initial=0)
        counts = [0] * len(self.tokens.views)
        for image, start in enumerate(starts):
            keep = keeps[next(row for row, end in enumerate(ends) if start < end)]
            own = [i for i, view in enumerate(self.tokens.views) if view.image == image]
            for i, k in zip(own, kept_count([len(self.tokens.views[i]) for i in own], keep), strict=True):
                counts[i] = k
        return counts


class Classroom:
    """A model as teacher and pupil; it answers every item once.

    Args:
        model: frozen.
        processor: its processor.
        question: whether the scorer reads the question too.
        max_new_tokens: of an answer.
    """

    def __init__(self, model: Any, processor: Any, question: bool, max_new_tokens: int) -> None:
        self.model, self.processor, self.max_new_tokens = model, processor, max_new_tokens
        self.answers: dict[str, list[int]] = {}
        self._reader = CDPruner(1.0) if question else Uniform(1.0)

    @torch.no_grad()
    def batch(self, items: dict[str, Query]) -> TaughtBatch:
        """Items by their names, with the model's answers, which are kept under these."""
        opened = [open_query(item) for item in items.values()]
        inputs = build_inputs(self.model, self.processor, [(each.pictures, each.question) for each in opened])
        if not items.keys() <= self.answers.keys():
            answers = greedy_answers(self.model, inputs, self.max_new_tokens)
            self.answers |= {name: answer.tolist() for name, answer in zip(items, answers, strict=True)}
        ids = inputs["input_ids"]
        answers = [ids.new_tensor(self.answers[name]) for name in items]
        tokens, call = encoded(self._reader, self.model, inputs)
        taught = [each.float().log_softmax(-1) for each in answer_logits(self.model, call, answers)]
        return TaughtBatch(call, tokens, ids == host.placeholder(self.model.config), answers, taught)

    def pupil(
        self, scorer: Scorer, batch: TaughtBatch, keeps: Sequence[Keep], generator: torch.Generator | None = None
    ) -> tuple[Tensor, int]:
        """How far the answers stray when each prompt keeps what the scorer ranks highest, and how many tokens agree.

        Args:
            scorer: gradients reach its weights.
            keeps: a budget for each prompt.
            generator: of the noise on the scores; None for none.

        Returns:
            Kullback-Leibler divergence KL(all tokens || kept tokens) in nats, the sum over the tokens of the answers:
            float32 []. And of how many of these tokens the most likely one is the same.
        """
        scores = standardised(scorer.scores(batch.tokens), batch.tokens)
        noise = torch.zeros(len(scores))
        if generator is not None:
            noise = -(-torch.rand(len(scores), generator=generator).clamp(1e-9, 1 - 1e-7).log()).log()
        gates = straight_through(scores, batch.tokens, batch.counts(keeps), noise.to(scores.device))
        with gated(self.model, batch.visual, gates):
            logits = trained_logits(self.model, batch.call, batch.answers)
        strayed, agreed = scores.new_zeros(()), 0
        for own, taught, answer in zip(logits, batch.taught, batch.answers, strict=True):
            strayed = strayed + kl_div(own.float().log_softmax(-1), taught, reduction="sum", log_target=True)
            agreed += int((own.argmax(-1) == answer).sum())
        return strayed, agreed
