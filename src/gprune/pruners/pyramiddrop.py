"""PyramidDrop: fewer visual tokens from stage to stage of the LLM."""

from __future__ import annotations

from dataclasses import dataclass

from ..checks import Count, setting
from ..errors import UnfitSettings
from .decoder import DecoderPruner


@dataclass
class PyramidDrop(DecoderPruner):
    """The layers fall into equal stages, each of which sees the same part of the tokens of the one before.

    The tokens that go on are those to which the last token of the prompt pays the most attention in the last layer of
    the stage, averaged over the heads (arXiv 2410.17247). The factor between stages, the paper's lambda, follows from
    `keep`: with four stages it solves (1 + f + f^2 + f^3) / 4 = keep. The paper's 0.5 comes to keep=0.47.

    Args:
        keep, match: see `DecoderPruner`.
        stages: int >= 2; the paper uses 4.
    """

    stages: int = setting(4, Count(2))

    def profile(self, layers: int, share: float) -> list[float]:
        """Powers of the share: 1, share, share^2, ..."""
        if layers < self.stages:
            raise UnfitSettings(
                f"PyramidDrop(stages={self.stages}) needs a layer for every stage, but the LLM has {layers}; "
                f"pass stages={layers} or fewer"
            )
        starts = [round(layers * stage / self.stages) for stage in range(self.stages)]
        return [share ** (sum(start <= layer for start in starts) - 1) for layer in range(layers)]
