"""CDPruner: keep tokens that differ from one another and have to do with the question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..kernels.gram import Gram, gram_flops
from ..tokens import View, VisualTokens
from .base import Need
from .stepwise import GreedyPruner, features_of

NOTHING = 1e-9
"""A share of volume this small is rounding: the tokens kept span all others."""


@dataclass
class CDPruner(GreedyPruner):
    """Keep the set of tokens with the largest determinant of their similarities, weighted by relevance: greedy MAP.

    Zhang et al., "Beyond Attention or Similarity: Maximizing Conditional Diversity for Token Pruning in MLLMs",
    NeurIPS 2025, arXiv 2506.10967. With L(i, j) the cosine of two tokens and r(i) the relevance of a token to the
    question, the kernel of the determinantal point process is L'(i, j) = r(i) L(i, j) r(j); each step of greedy adds
    the token that makes log det L' of those kept largest, by the Cholesky update of Chen et al., "Fast Greedy
    MAP Inference for Determinantal Point Process", NeurIPS 2018.

    The paper measures relevance with the text tower that was trained with the vision tower, where there is one. Here
    it is the same for all models: the cosine of a token and the mean of the LLM's own input embeddings of all text of
    the image's prompt, the chat template's too, scaled to [0, 1] over the view.

    A larger ratio keeps all that a smaller one does.
    """

    needs: ClassVar[tuple[Need, ...]] = ("question",)

    def objective(self, tokens: VisualTokens, views: Sequence[View], k: int) -> Volume:
        """How large each token makes the determinant; once those kept span all others, these follow by relevance."""
        directions = normalize(features_of(tokens, views).double(), dim=-1)
        questions = torch.stack([tokens.questions[view.image].double().mean(0) for view in views])
        relevant = relevance(directions, questions)
        return Volume(relevant[..., None] * directions, relevant, k)

    def selection_flops(self, count: int, kept: int, width: int, key_width: int) -> int:
        """The products of all pairs, and with the question; each step but the first two that of the rows before."""
        return gram_flops(count, width) + 2 * count * width + count * (kept - 1) * (kept - 2) if kept else 0


def relevance(directions: Tensor, questions: Tensor) -> Tensor:
    """float64 [B, N] in [0, 1]: how near each token points to its question.

    All ones if no token of a view is nearer than another.

    Args:
        directions: float64 [B, N, d], of norm 1 or 0.
        questions: float64 [B, d], the mean of each question's embeddings.
    """
    return min_max((directions @ normalize(questions, dim=-1)[..., None]).squeeze(-1))


def min_max(values: Tensor) -> Tensor:
    """Values, floating [..., N], N >= 1, each N of them scaled to [0, 1]; all ones if they are equal."""
    low, high = values.aminmax(dim=-1, keepdim=True)
    return torch.where(high == low, 1, (values - low) / (high - low))


class Volume:
    """How large each index makes the determinant of all products of the chosen vectors.

    Args:
        vectors: float64 [B, N, d], of norm at most 1.
        otherwise: float64 [B, N] in [0, 1], which index is next when all determinants are 0.
        k: how many are chosen at most; the steps keep B x k x N numbers.
        max_memory: see `Gram`.
    """

    def __init__(self, vectors: Tensor, otherwise: Tensor, k: int, max_memory: int | None = None) -> None:
        self._kernel, self._otherwise = Gram(vectors, max_memory=max_memory), otherwise * NOTHING
        self._volume = (vectors * vectors).sum(-1)
        # What is left of the kernel's rows of those chosen, over the root of their volumes.
        self._rows, self._step = vectors.new_zeros(len(vectors), k, vectors.shape[1]), 0

    @property
    def gains(self) -> Tensor:
        """float64 [B, N]."""
        return torch.where(self._volume > NOTHING, self._volume, self._otherwise)

    def add(self, best: Tensor) -> None:
        """Choose one more of every set: int64 [B, 1]."""
        before = self._rows[:, : self._step]
        own = before.gather(2, best[:, None].expand(-1, self._step, -1)).mT
        row = torch.baddbmm(self._kernel.rows(best), own, before, alpha=-1).squeeze(1)
        volume = self._volume.gather(1, best)
        row *= (volume > NOTHING) / volume.clamp(min=NOTHING).sqrt()
        self._rows[:, self._step] = row
        self._step += 1
        self._volume = torch.addcmul(self._volume, row, row, value=-1)
