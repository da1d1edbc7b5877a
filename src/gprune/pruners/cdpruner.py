"""CDPruner: keep tokens that differ from one another and have to do with the question."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..kernels.gram import Gram, gram_flops
from ..tokens import View, VisualTokens
from .base import Need, SetPruner

NOTHING = 1e-9
"""A share of volume this small is rounding: the tokens kept span all others."""


@dataclass
class CDPruner(SetPruner):
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
    ordered: ClassVar[bool] = True

    def choose(self, tokens: VisualTokens, view: View, k: int) -> Tensor:
        """Again and again the token that raises the determinant most; ties go to the lower index.

        Once the tokens kept span all others, these follow by relevance.

        Returns:
            k rows of `view`, int64 [k], in the order chosen.
        """
        features = tokens.features[view.rows].double()
        directions = normalize(features, dim=-1)
        relevant = relevance(features, tokens.questions[view.image])
        return view.rows[greedy_map(relevant[:, None] * directions, relevant, k)]

    def selection_flops(self, count: int, kept: int, width: int, key_width: int) -> int:
        """The products of all pairs; each step that of the rows of those before with one column."""
        return gram_flops(count, width) + count * kept * (kept - 1) if kept else 0


def relevance(features: Tensor, question: Tensor) -> Tensor:
    """float64 [N] in [0, 1]: how near each token [N, d] points to the mean of the question's embeddings [q, d].

    All ones if no token is nearer than another.
    """
    near = normalize(features.double(), dim=-1) @ normalize(question.double().mean(0), dim=0)
    return min_max(near)


def min_max(values: Tensor) -> Tensor:
    """Values, floating [N], N >= 1, scaled to [0, 1]; all ones if they are equal."""
    low, high = values.aminmax()
    return torch.ones_like(values) if high == low else (values - low) / (high - low)


def greedy_map(vectors: Tensor, otherwise: Tensor, k: int, max_memory: int | None = None) -> Tensor:
    """Again and again the index that makes the determinant of all products of the chosen vectors largest.

    Args:
        vectors: float64 [N, d], of norm at most 1.
        otherwise: float64 [N] in [0, 1], which index is next when all determinants are 0.
        k: at most N.
        max_memory: see `Gram`; the steps keep k x N numbers beside.

    Returns:
        int64 [k], in the order chosen; ties go to the lower index.
    """
    kernel = Gram(vectors, max_memory=max_memory)
    volume = (vectors * vectors).sum(1)
    rows = vectors.new_zeros(k, len(vectors))
    taken = torch.zeros_like(volume, dtype=torch.bool)
    chosen = []
    for step in range(k):
        gain = torch.where(volume > NOTHING, volume, otherwise * NOTHING).masked_fill(taken, -1)
        best = gain.argmax(-1, keepdim=True)
        chosen.append(best)
        taken[best] = True
        root = volume[best].clamp(min=NOTHING).sqrt()
        rows[step] = (kernel.rows(best) - rows[:step, best].T @ rows[:step]).squeeze(0) / root
        rows[step] *= volume[best] > NOTHING
        volume = volume - rows[step] ** 2
    return torch.cat(chosen)
