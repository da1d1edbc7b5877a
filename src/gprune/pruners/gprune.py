"""G-Prune: keep the tokens that represent the most others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import get_args

import torch
from torch import Tensor

from ..checks import Above, Between, Count, OneOf, setting
from ..graph import Init, rank_views
from ..tokens import VisualTokens
from .base import ScorePruner, Selection, keep_top

DEGENERATE_SHARE = 0.95


@dataclass
class GPrune(ScorePruner):
    """Keep the tokens with the largest S(t) / D over their view's cosine graph (arXiv 2501.02268, Eq. 1-6).

    Args:
        keep, scope, positions: see `Pruner`.
        similarity: cosine similarity from which two tokens are joined, in [-1, 1]; the paper's s.
        iterations: propagation steps >= 0; the paper's t. With 0 the score is S(0) / D.
        temperature: softmax temperature > 0 (not named in the paper; 0.03 in its released code).
        init: "norm" starts from the L2 norms (Eq. 2), "ones" from ones (the paper's Table 2, graph only).
        max_memory: bytes >= 0 of edges kept between two steps; what it does not hold is computed anew in each, so that
            it changes memory and time, not what is kept. None is 512 MiB, on a GPU 1 GiB.

    Raises:
        BadType, BadValue: an argument is not one of the values above.
    """

    similarity: float = setting(0.5, Between(-1, 1))
    iterations: int = setting(5, Count(0))
    temperature: float = setting(0.03, Above(0))
    init: Init = setting("norm", OneOf(get_args(Init)))
    max_memory: int | None = setting(None, Count(0))

    def score(self, tokens: VisualTokens) -> Tensor:
        """S(t) / D of every token (Eq. 5): float32 [N], NaN on fixed rows."""
        return self._graph(tokens)[0]

    def warning(self, selection: Selection) -> str | None:
        """Say so when the graph, averaged over the views, is nearly complete or nearly empty."""
        if selection.edge_share is None or selection.isolated_share is None or not len(selection.edge_share):
            return None
        edges, isolated = torch.stack([selection.edge_share.mean(), selection.isolated_share.mean()]).tolist()
        if edges > DEGENERATE_SHARE:
            finding = f"{edges:.1%} of all pairs of visual tokens are edges"
            remedy = f"raise it, for example to {(self.similarity + 1) / 2:.3g}"
        elif isolated > DEGENERATE_SHARE:
            finding = f"{isolated:.1%} of the visual tokens have no edge but their own"
            remedy = f"lower it, for example to {self.similarity / 2:.3g}"
        else:
            return None
        return (
            f"{finding} at similarity={self.similarity}, so the graph says little about which tokens to "
            f"keep; {remedy}, until the share of edges lies well between none and all"
        )

    def selection_flops(self, count: int, kept: int, width: int, key_width: int) -> int:
        """The graph is the products of all pairs, and each iteration that of a vector and a matrix."""
        return 2 * count**2 * (width + self.iterations)

    def _select(self, tokens: VisualTokens, counts: Sequence[int]) -> Selection:
        scores, edge_share, isolated_share = self._graph(tokens)
        return replace(keep_top(scores, tokens, counts), edge_share=edge_share, isolated_share=isolated_share)

    def _graph(self, tokens: VisualTokens) -> tuple[Tensor, Tensor, Tensor]:
        """Scores [N], and per view the share of pairs that are edges and the share of isolated tokens.

        A view without pairs (0 or 1 tokens) has share 0 of both: there is nothing to be degenerate.
        """
        features, sizes = tokens.features, [len(view) for view in tokens.views]
        scores = features.new_full((len(features),), torch.nan, dtype=torch.float32)
        rows = tokens.rows
        scores[rows], degrees = rank_views(
            features[rows], sizes, self.similarity, self.iterations, self.temperature, self.init, self.max_memory
        )
        lengths = torch.tensor(sizes, device=features.device, dtype=torch.int64)
        of_view = torch.arange(len(sizes), device=features.device).repeat_interleave(lengths, output_size=len(rows))

        def per_view(values: Tensor) -> Tensor:
            return torch.zeros_like(lengths).index_add_(0, of_view, values)

        edges = per_view(degrees - 1) / (lengths * (lengths - 1)).clamp(min=1)
        isolated = per_view((degrees == 1).long()) / lengths.clamp(min=1)
        return scores, edges, isolated * (lengths > 1)
