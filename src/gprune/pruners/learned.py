"""Learned: rank tokens by a small network that was trained on the model's own answers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from torch import Tensor

from ..checks import Accepted, setting
from ..errors import BadValue, UnfitSettings
from ..tokens import Keep, VisualTokens
from .base import Need, ScorePruner
from .scorer import Scorer

_MISSING = "Learned has no scorer, which is trained for each model; give weights=FOLDER, written by `gprune fit`"


class Folder(Accepted):
    """The path of a folder, as text."""

    kinds = (str,)

    def __contains__(self, value: str) -> bool:
        return bool(value)

    def __str__(self) -> str:
        return "the path of a folder, as text"

    def remedy(self, value: Any, default: Any) -> str:
        """A scorer has to be trained."""
        return "pass the folder that `gprune fit` wrote"


@dataclass
class Learned(ScorePruner):
    """Keep the tokens that a trained scorer ranks highest.

    The idea is that of Rao et al., "DynamicViT: Efficient Vision Transformers with Dynamic Token Sparsification",
    NeurIPS 2021, arXiv 2106.02034: a small network predicts from the local features of a token and the global ones of
    all which tokens are worth their computation, and learns it while tokens are dropped. A scorer that reads the
    question aligns tokens with its words, as Cao et al. do in "MADTP: Multimodal Alignment-Guided Dynamic Token Pruning
    for Accelerating Vision-Language Transformer", CVPR 2024, arXiv 2403.02991. `Scorer` says how it is built.

    The papers prune in several stages between the layers of the tower and fine-tune the model with it; here tokens are
    dropped once, before the LLM, the model is frozen, and the scorer alone learns, from the answers that the model
    gives to all tokens (`gprune.fit`). A larger ratio keeps all that a smaller one does.

    Args:
        keep, scope, positions: see `Pruner`.
        weights: the folder of the scorer, which is read at once. Without one nothing can be pruned.

    Raises:
        BadType, BadValue: an argument is not one of the values above, or the folder holds no scorer.
    """

    weights: str | None = setting(None, Folder())

    needs: ClassVar[tuple[Need, ...]] = ("scorer",)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._scorer = None if self.weights is None else Scorer.load(Path(self.weights))
        if self._scorer is not None and self._scorer.facts.question:
            self.needs = (*self.needs, "question")  # type: ignore[misc]

    @classmethod
    def from_pretrained(cls, weights: str | Path, keep: Keep = 0.3, **settings: Any) -> Self:
        """The method with the scorer in a folder: `Learned.from_pretrained("scorer/", keep=0.3)`."""
        return cls(keep, weights=str(weights), **settings)

    @property
    def scorer(self) -> Scorer:
        """The trained network.

        Raises:
            BadValue: there is none.
        """
        if self._scorer is None:
            raise BadValue(_MISSING)
        return self._scorer

    def score(self, tokens: VisualTokens) -> Tensor:
        """What the scorer says of every token: float32 [N]."""
        return self.scorer.scores(tokens)

    def selection_flops(self, count: int, kept: int, width: int, key_width: int) -> int:
        """The products of the network; those with the words of the question vary, and are left out."""
        return self.scorer.flops(count) if kept else 0

    def check_model(self, family: str, embeddings: Tensor) -> None:
        """Raise UnfitSettings if there is no scorer, or one that was trained on another model."""
        if self._scorer is None:
            raise UnfitSettings(_MISSING)
        self._scorer.check_model(family, embeddings)
