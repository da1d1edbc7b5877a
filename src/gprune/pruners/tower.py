"""What the methods share that leave out tokens inside the vision tower, while the model encodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from ..errors import BadValue
from ..tokens import VisualTokens
from .base import Acts, Pruner, Selection


@dataclass
class TowerPruner(Pruner):
    """A method that leaves out tokens inside the vision tower, of every tile apart; NaN in the encoder's output."""

    label: ClassVar[str]
    """What it is called where it acts in the tower."""

    instead: ClassVar[str] = "use a method that acts before the LLM"
    """What to do where it cannot."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.acts == "in the tower" and self.scope == "image":
            raise BadValue(
                f'scope="image" with {self.label}: the vision tower sees one tile at a time, so tokens of different '
                f'views do not meet; accepted is scope="view"; for one budget per image {self.instead}'
            )

    def select(self, tokens: VisualTokens | Tensor) -> Selection:
        """Find what the tower left, where all that it left out is NaN.

        Args:
            tokens: the visual tokens of one image or a batch, or floating [N, d]: one image, one view.

        Returns:
            The rows that are left, and all fixed rows.

        Raises:
            NonFiniteFeatures: some features are NaN or Inf; names the image.
            BadType, BadValue: features are not floating point or not 2-D, or were encoded without this method.
        """
        if isinstance(tokens, Tensor):
            tokens = VisualTokens.of(tokens)
        gone = tokens.features.isnan().all(-1)
        features = tokens.features.masked_fill(gone[:, None], 0)
        return super().select(replace(tokens, features=features, signals={**tokens.signals, "gone": gone}))

    @property
    def acts(self) -> Acts:
        """In the tower, between its layers."""
        return "in the tower"

    def _select(self, tokens: VisualTokens, counts: Sequence[int]) -> Selection:
        """What the tower left; the first view of an image is a whole tile, which must have its number."""
        rest = ~tokens.signals["gone"]
        images: set[int] = set()
        for view, k in zip(tokens.views, counts, strict=True):
            if view.image not in images and (count := int(rest[view.rows].sum())) != k:
                raise BadValue(
                    f"image {view.image} has {count} of its {len(view)} visual tokens left, but {self.label} "
                    f"leaves {k} of them, inside the vision tower while the model encodes; encode images with this "
                    f"method attached, or {self.instead} for features that are made already"
                )
            images.add(view.image)
        return Selection(rest.nonzero().squeeze(1))
