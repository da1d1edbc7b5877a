"""Random pruning: the baseline every method has to beat."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..checks import Count, setting
from ..tokens import VisualTokens
from .base import ScorePruner


@dataclass
class Random(ScorePruner):
    """Keep tokens drawn uniformly at random (baseline of the paper's Table 1).

    The draw depends on the seed and the image's number of tokens alone, not on its place in a batch, on the
    device or on earlier calls: images of equal size keep the same places, so average over several seeds. A
    larger ratio keeps all that a smaller one does.

    Args:
        keep, scope, positions: see `Pruner`.
        seed: int in [0, 2**63).

    Raises:
        BadType, BadValue: an argument is not one of the values above.
    """

    seed: int = setting(0, Count(0, 2**63 - 1))

    def with_seed(self, seed: int) -> Random:
        """The method drawing with another seed."""
        return replace(self, seed=seed)

    def score(self, tokens: VisualTokens) -> Tensor:
        """A random order of each image's tokens: float32 [N]."""
        draws = [torch.rand(n, generator=torch.Generator().manual_seed(self.seed)) for n in tokens.sizes]
        return torch.cat(draws).to(tokens.features.device)
