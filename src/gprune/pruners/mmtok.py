"""MMTok: keep a set of tokens that covers the words of the question and the picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..checks import Above, Between, setting
from ..kernels.gram import Gram, gram_flops
from ..tokens import View, VisualTokens
from .base import Need, SetPruner
from .graphcover import FacilityLocation


@dataclass
class MMTok(SetPruner):
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
    ordered: ClassVar[bool] = True

    def choose(self, tokens: VisualTokens, view: View, k: int) -> Tensor:
        """Again and again the token that raises the sum most; ties go to the lower index.

        Returns:
            k rows of `view`, int64 [k], in the order chosen.
        """
        directions = normalize(tokens.features[view.rows].double(), dim=-1)
        words = normalize(tokens.questions[view.image].double(), dim=-1) @ directions.T
        words = (words / self.text_temperature).softmax(-1) / len(words)
        # Softmax divides by the row; what is left is symmetric.
        similarity = Gram(directions, lambda cosine: cosine.sub_(1).div_(self.temperature).exp_())
        sums = torch.cat([rows.sum(-1) for _, rows in similarity.parts()])
        picture = FacilityLocation(similarity, self.alpha / len(sums) / sums)
        covered = torch.zeros_like(words[:, :1])
        taken = torch.zeros_like(sums, dtype=torch.bool)
        chosen = []
        for _ in range(k):
            gains = picture.gains + (words - covered).clamp_(min=0).sum(0)
            best = gains.masked_fill(taken, -torch.inf).argmax(-1, keepdim=True)
            chosen.append(best)
            taken[best] = True
            picture.add(best)
            covered = torch.maximum(covered, words[:, best])
        return view.rows[torch.cat(chosen)]

    def selection_flops(self, count: int, kept: int, width: int, key_width: int) -> int:
        """The products of all pairs, and the first gains; those with the words, and the rows read, vary."""
        return gram_flops(count, width) + 2 * count**2 if kept else 0
