"""MMTok: keep a set of tokens that covers the words of the question and the picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.nn.utils.rnn import pad_sequence

from ..checks import Above, Between, setting
from ..kernels.gram import Gram, gram_flops
from ..kernels.greedy import FacilityLocation
from ..tokens import View, VisualTokens
from .base import Need
from .stepwise import GreedyPruner, features_of


@dataclass
class MMTok(GreedyPruner):
    """Keep the tokens S with the largest f(M_tv; S) + alpha f(M_vv; S), f(M; S) = mean_i max_{j in S} M_ij, by greedy.

    Dong et al., "MMTok: Multimodal Coverage Maximization for Efficient Inference of VLMs", 2025, arXiv 2508.18264.
    M_tv is the softmax of cos(t_i, v_j) / tau_t of each word t_i of the question over the visual tokens v_j, M_vv that
    of cos(v_i, v_j) / tau_v of each visual token: f says how well S covers the words, and how well the picture. f is
    monotone and submodular, so that greedy reaches at least 1 - 1/e of the best. A larger ratio keeps all that a
    smaller one does.

    In the paper M_vv compares tokens before the projector, which gprune does not read; here both compare them as the
    LLM would receive them. The words are the LLM's own input embeddings of all text of the image's prompt, the chat
    template's too. A token whose norm is 0 points nowhere: its cosine to all is 0, to itself too.

    Args:
        keep, scope, positions: see `Pruner`.
        alpha: in [0, 100], the weight of the picture; 0 is the question alone.
        temperature: > 0, the paper's tau_v.
        text_temperature: > 0, the paper's tau_t.

    Raises:
        BadType, BadValue: an argument is not one of the values above.
    """

    alpha: float = setting(0.5, Between(0, 100))
    temperature: float = setting(0.2, Above(0))
    text_temperature: float = setting(0.02, Above(0))

    needs: ClassVar[tuple[Need, ...]] = ("question",)

    def objective(self, tokens: VisualTokens, views: Sequence[View], k: int) -> TwoCoverages:
        """By how much each token would raise the sum."""
        directions = normalize(features_of(tokens, views).double(), dim=-1)
        questions = [normalize(tokens.questions[view.image].double(), dim=-1) for view in views]
        # Words that fill up to the longest question weigh nothing.
        weights = pad_sequence([(1 / len(each)) * torch.ones_like(each[:, 0]) for each in questions], True)
        words = (pad_sequence(questions, True) @ directions.mT).div_(self.text_temperature).softmax(-1)
        # Softmax divides by the row; what is left is symmetric.
        similarity = Gram(directions, lambda cosine: cosine.clamp_(max=1).sub_(1).div_(self.temperature).exp_())
        sums = torch.cat([rows.sum(-1) for _, rows in similarity.parts()], -1)
        shares = self.alpha / sums.shape[-1] / sums
        most = 1 + shares.sum(-1, keepdim=True)
        return TwoCoverages(FacilityLocation(words, weights, most), FacilityLocation(similarity, shares, most))

    def selection_flops(self, count: int, kept: int, width: int, key_width: int) -> int:
        """The products of all pairs, and the first gains; those with the words, and the rows read, vary."""
        return gram_flops(count, width) + 2 * count**2 if kept else 0


class TwoCoverages:
    """What each index adds to how well the chosen ones represent the words, and the picture.

    Args:
        words, picture: of the same B sets of N.
    """

    def __init__(self, words: FacilityLocation, picture: FacilityLocation) -> None:
        self._words, self._picture = words, picture

    @property
    def gains(self) -> Tensor:
        """float64 [B, N]."""
        return self._words.gains + self._picture.gains

    def add(self, best: Tensor) -> None:
        """Choose one more of every set: int64 [B, 1]."""
        self._words.add(best)
        self._picture.add(best)
