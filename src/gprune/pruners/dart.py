"""DART: keep pivot tokens and what they least resemble."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..checks import Count, setting
from .decoder import DecoderPruner, InsideTokens, check_layer


@dataclass
class DART(DecoderPruner):
    """After `layer` layers keep a few pivots and the visual tokens that duplicate them least (arXiv 2502.11494).

    Pivots are the visual and the text tokens with the largest keys (the paper's K-norm; the L2 norm of the keys of
    the last of these layers, over all heads, which rotation by position leaves as it is). The visual pivots are kept.
    The rest of the budget is shared equally among all pivots: visual ones first, the largest first, each keeps those
    of the tokens still left whose hidden states have the smallest cosine to its own.

    Args:
        keep, match: see `DecoderPruner`.
        layer: int >= 1, layers that see all tokens.
        pivots: int >= 1, at most so many visual pivots, and as many of the text.
    """

    layer: int = setting(2, Count(1))
    pivots: int = setting(4, Count(1))

    def profile(self, layers: int, share: float) -> list[float]:
        """The first layers see all tokens, those after them the share."""
        check_layer("DART", self.layer, layers)
        return [1.0] * self.layer + [share] * (layers - self.layer)

    def choose(self, tokens: InsideTokens, k: int) -> Tensor:
        """The visual pivots, then what each pivot keeps in turn; ties go to the lower index."""
        visual = tokens.key_norms.sort(descending=True, stable=True).indices[: min(self.pivots, k)]
        text = tokens.text_key_norms.sort(descending=True, stable=True).indices[: self.pivots]
        states = normalize(tokens.states.float(), dim=-1)
        cosines = torch.cat([states[visual], normalize(tokens.text[text].float(), dim=-1)]) @ states.T
        cosines[:, visual] = torch.inf
        chosen, rest, pivots = [visual], k - len(visual), len(cosines)
        for number, to_pivot in enumerate(cosines):
            share = rest * (number + 1) // pivots - rest * number // pivots
            least = to_pivot.sort(stable=True).indices[:share]
            cosines[:, least] = torch.inf
            chosen.append(least)
        return torch.cat(chosen)
