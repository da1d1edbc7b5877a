"""Leaves patches out before a vision tower, and puts what it made of the others back to their places.

A tower of packed patches is given the patches of all pictures in one row, and works out of the grids of the pictures
where each patch lies and which see each other. It takes that ready-made too: so it is called with fewer patches, and
with those parts of its own tables that are theirs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.functional import pad
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from .. import host
from ..errors import UnsupportedModel
from ..families.patches import Arguments, ToTokens
from ..families.table import FAMILIES, families_of, missing
from ..host import Modality
from ..pruners.base import Method
from ..pruners.pixeldedup import PixelDedup

GONE = "gone"
"""The signal that says of every visual token, bool [n], whether its patches were left out."""

_NARROWING: ContextVar[Narrowing | None] = ContextVar("gprune_narrowing", default=None)
"""What leaves patches out of the tower that this thread is encoding with."""


def narrower_in(method: Method) -> PixelDedup | None:
    """The part of a method that leaves patches out; None if none does."""
    return next((part for part in method.parts if isinstance(part, PixelDedup)), None)


def check_packed(method: PixelDedup, model: PreTrainedModel) -> None:
    """Raise UnsupportedModel unless patches can be left out before the vision tower of this model."""
    family = model.config.model_type
    if reason := missing(method, family):
        raise UnsupportedModel(
            f"{type(method).__name__} leaves patches out before the vision tower, which cannot be done in a "
            f"{type(model).__name__} (model_type={family!r}): {reason}; accepted are "
            f"{', '.join(families_of(method))}; use a method that acts before the LLM"
        )
    host.check_packed_tower(_tower(model))


@contextmanager
def narrowing_tower(method: Method, modality: Modality) -> Iterator[Narrowing | None]:
    """While it lasts, patches of this thread's pictures are left out, if the method does that.

    Yields:
        What leaves them out; None if nothing does.

    Raises:
        ValueError: the method does that, and this is a video.
    """
    part = narrower_in(method)
    if part is None:
        yield None
        return
    if modality == "video":
        raise _no_video(part)
    narrowing = Narrowing(part)
    token = _NARROWING.set(narrowing)
    try:
        yield narrowing
    finally:
        _NARROWING.reset(token)


def check_narrowed(method: Method, modality: Modality, signals: Mapping[str, Any]) -> None:
    """Raise ValueError if a method leaves patches out, and features were encoded without it.

    Args:
        signals: that were recorded beside the features.
    """
    part = narrower_in(method)
    if part is None or GONE in signals:
        return
    if modality == "video":
        raise _no_video(part)
    raise ValueError(
        f"{type(part).__name__} leaves patches out before the vision tower, but these {modality} features were encoded "
        f"while it was not attached; pass the pixels, or encode while it is attached"
    )


def put_before_tower(model: PreTrainedModel) -> list[RemovableHandle]:
    """Put hooks on the vision tower of a model that leave patches out where a thread is `narrowing_tower`."""
    tower = _tower(model)
    return [
        tower.register_forward_pre_hook(_before, with_kwargs=True),
        # After hooks that read the tower's output as it made it.
        tower.register_forward_hook(_after),
    ]


def _before(tower: Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[()], dict[str, Any]] | None:
    narrowing = _NARROWING.get()
    return None if narrowing is None else narrowing.narrow(tower, args, kwargs)


def _after(tower: Module, args: Any, output: ModelOutput) -> ModelOutput | None:
    narrowing = _NARROWING.get()
    return None if narrowing is None else narrowing.put_back(output)


def _tower(model: PreTrainedModel) -> Any:
    row = FAMILIES[model.config.model_type]
    assert row.tower is not None
    return getattr(model.base_model, row.tower.name)


def _no_video(method: PixelDedup) -> ValueError:
    return ValueError(
        f"this call carries a video, and {type(method).__name__} compares what lies side by side in a picture, not the "
        f"frames of a video; detach the pruner for calls with videos, or use a method that acts before the LLM"
    )


class Narrowing:
    """Which patches are left out of a tower during one call of its encoder.

    Attributes:
        left: bool [N], of all visual tokens, those whose patches the tower is given; None before it is called.
    """

    def __init__(self, method: PixelDedup) -> None:
        self.method = method
        self.left: Tensor | None = None
        self._patches: Tensor | None = None

    @torch.compiler.disable
    def narrow(
        self, tower: Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[()], dict[str, Any]] | None:
        """Before the tower: from its call to one with fewer patches; None if it is given all."""
        call, area = host.packed_call(tower, args, kwargs), host.patches_of_token(tower)
        pixels, grids = call[host.PATCHES], call[host.GRIDS]
        groups = pixels.detach().unflatten(0, (-1, area))
        # [N, patches, values] -> [N, channels, values of all its patches].
        groups = groups.unflatten(-1, (host.colour_channels(tower), -1)).transpose(1, 2).flatten(2)
        sizes = (grids.prod(1) // area).tolist()
        self.left = torch.cat([self.method.choose(image) for image in groups.split(sizes)])
        self._patches = None
        if self.left.all():
            return None
        patches = self.left.repeat_interleave(area)
        tables, self._patches = _narrowed(host.packed_tables(tower, grids), self.left.to(grids.device), area)
        return (), {**call, **tables, host.PATCHES: pixels[patches]}

    def put_back(self, output: ModelOutput) -> ModelOutput | None:
        """After the tower: its visual tokens at their places, zeros where patches were left out."""
        if self._patches is None:
            return None
        output[host.POOLED] = self._whole(output[host.POOLED])
        if output.get(host.DEEPSTACK) is not None:
            output[host.DEEPSTACK] = [self._whole(level) for level in output[host.DEEPSTACK]]
        return output

    def gone(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Of the visual tokens of each picture, [n, d], those that were left out: bool [n], on their device."""
        assert self.left is not None
        parts = (~self.left).split([len(item) for item in features])
        return [part.to(item.device) for part, item in zip(parts, features, strict=True)]

    def over_all(self, tokens: ToTokens) -> ToTokens:
        """`tokens`, given values of the patches that were left, [1, n, c]: of the others they are NaN."""

        def spread(base: Any, values: Tensor, arguments: Arguments, count: int) -> Tensor:
            if self._patches is not None:
                left = self._patches.to(values.device)
                whole = values.new_full((1, len(left), values.shape[-1]), torch.nan)
                whole[:, left] = values
                values = whole
            return tokens(base, values, arguments, count)

        return spread

    def _whole(self, tokens: Tensor) -> Tensor:
        left = cast(Tensor, self.left).to(tokens.device)
        whole = tokens.new_zeros(len(left), tokens.shape[-1])
        return whole.index_copy(0, left.nonzero().squeeze(1), tokens)


def _narrowed(tables: dict[str, Tensor], left: Tensor, area: int) -> tuple[dict[str, Tensor], Tensor]:
    """What a tower's tables are without some patches.

    Args:
        tables: as `host.packed_tables` makes them.
        left: bool [N], which visual tokens are left.
        area: patches of each.

    Returns:
        The tables, and bool [P], which patches are left, as the tower orders them.
    """
    patches = left.repeat_interleave(area)
    narrowed = {
        name: values[patches] for name, values in tables.items() if name in (host.PLACES, host.TAPS, host.WEIGHTS)
    }
    narrowed[host.ENDS] = _counted(patches)[tables[host.ENDS]]
    if host.WINDOWS in tables:
        order = tables[host.WINDOWS].to(left.device)
        in_order = left[order]
        narrowed[host.WINDOWS] = (left.cumsum(0) - 1)[order[in_order]]
        patches = in_order.repeat_interleave(area)
        # A window without patches is none.
        narrowed[host.WINDOW_ENDS] = _counted(patches)[tables[host.WINDOW_ENDS]].unique_consecutive()
    return narrowed, patches


def _counted(patches: Tensor) -> Tensor:
    """int32 [P + 1]: how many of the first patches are left."""
    return pad(patches.cumsum(0, dtype=torch.int32), (1, 0))
