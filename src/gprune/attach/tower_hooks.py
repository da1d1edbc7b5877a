"""What hooks on the layers of a vision tower do in a call: a class with a method for each place, here doing nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.nn import Module
from transformers import PreTrainedModel

from .. import host
from ..errors import UnsupportedModel
from ..families.table import FAMILIES, families_of
from ..pruners.tower import TowerPruner
from ..tokens import kept_count

_Method = TypeVar("_Method", bound=TowerPruner)


class TowerHooks(Generic[_Method]):
    """What a method does in the tower of a model, and what its hooks hand one another during a call.

    A layer is attention, then MLP, each added to its input. Its hooks come in the order of the methods.

    Args:
        method: with its settings.
        model: whose tower it is.
        arguments: that its encoder is called with.
    """

    def __init__(self, method: _Method, model: PreTrainedModel, arguments: Mapping[str, Any]) -> None:
        config: Any = model.config
        self.method, self.model, self.arguments = method, model, arguments
        self.tower, self.projector = tower_and_projector(model)
        self.class_token = int(host.has_class_token(self.tower))
        self.heads: int = config.vision_config.num_attention_heads
        self.queries: Tensor | None = None
        self.keys: Tensor | None = None
        self.forget()

    def check(self) -> None:
        """Raise UnsupportedModel or UnfitSettings unless the method can do this in the tower of the model."""

    def forget(self) -> None:
        """Nothing is left of the call before."""

    def begin(self, tower: Module, args: Any) -> None:
        """Before the tower."""
        self.forget()
        if host.recomputes(tower):
            raise ValueError(
                f"{self.method.label} with gradient checkpointing: the layers would be computed again without what "
                f"is known of their tokens; call model.gradient_checkpointing_disable(), or {self.method.instead}"
            )

    def narrow(self, index: int, layer: Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Before a layer."""

    def weigh(self, attention: Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        """Before the attention of a layer."""

    def note_queries(self, projection: Module, args: Any, output: Tensor) -> None:
        """Keep the queries of a layer."""
        self.queries = output.detach()

    def note_keys(self, projection: Module, args: Any, output: Tensor) -> None:
        """Keep the keys of a layer."""
        self.keys = output.detach()

    def merge(self, index: int, norm: Module, args: tuple[Tensor]) -> tuple[Tensor] | None:
        """Before the MLP of a layer."""

    def note_mlp(self, mlp: Module, args: Any, output: Tensor) -> Tensor | None:
        """After the MLP of a layer."""

    def join(self, index: int, layer: Module, args: Any, output: Tensor) -> Tensor | None:
        """After a layer."""

    def put_back(self, projector: Module, args: Any, output: Tensor) -> Tensor | None:
        """After the projector: visual tokens at the places of their patches, NaN where one was left out."""

    def refuse_video(self, resampler: Module, args: Any) -> None:
        """Frames are pooled before the projector, so that none of their tokens may be missing."""
        raise ValueError(
            f"this call carries a video, whose frames are pooled before the projector, so that {self.method.label} "
            f"cannot leave tokens out; detach the pruner for calls with videos, or {self.method.instead}"
        )

    def tokens_of_tile(self, patches: int) -> int:
        """How many of the patches of a tile are left in the end."""
        return kept_count(patches, self.method.keep)

    def spread(self, tokens: Tensor, places: Tensor, patches: int) -> Tensor:
        """Visual tokens [tiles, k, d] at their places, int64 [tiles, k, 1], of [tiles, patches, d]; NaN elsewhere.

        What became NaN by itself turns to Inf, which no method takes for a visual token.
        """
        tokens = tokens.masked_fill(tokens.isnan(), torch.inf)
        whole = tokens.new_full((len(tokens), patches, tokens.shape[-1]), torch.nan)
        return whole.scatter(1, places.to(tokens.device).expand_as(tokens), tokens)


def unsupported_tower(method: TowerPruner, model: PreTrainedModel, reason: str) -> UnsupportedModel:
    """That a method cannot act in the tower of a model."""
    return UnsupportedModel(
        f"{method.label} leaves out tokens inside the vision tower, which cannot be done in a "
        f"{type(model).__name__} (model_type={model.config.model_type!r}): {reason}; accepted are "
        f"{', '.join(families_of(method))}; {method.instead}"
    )


def tower_and_projector(model: PreTrainedModel) -> tuple[Any, Any]:
    """The tower of a family in which tokens can be left out, and what makes visual tokens of its patches."""
    row = FAMILIES[model.config.model_type]
    assert row.tower is not None
    return getattr(model.base_model, row.tower.name), getattr(model.base_model, row.projector)


def tower_layers(tower: Module) -> Any:
    """The layers of a tower, in order."""
    return next(module for name, module in tower.named_modules() if name.endswith("encoder.layers"))
