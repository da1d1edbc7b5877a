"""Position ids: as the caller of a model numbers its tokens, and as the LLM is told them.

Most families number tokens along one axis: [B, q]. With multimodal RoPE (Qwen-VL, GLM-4V) it is [4, B, q]: a row
that counts tokens like a text model, and time, height and width. The LLM only reads the first to tell packed
sequences apart, and must find no gaps there.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedModel

from .. import host
from ..pruners.base import Positions
from .conversation import CacheState

if TYPE_CHECKING:
    from .hooks import Hooks


def next_position(positions: Tensor, new: Tensor, otherwise: Tensor) -> Tensor:
    """The position id after the last new token of each row, or else `otherwise`.

    Args:
        positions: int64 [..., B, q].
        new: bool [B, q], which of them are tokens.
        otherwise: int64 [..., B, 1].
    """
    after = torch.where(new, positions + 1, 0).amax(-1, keepdim=True)
    if after.ndim == 3:
        after[1:] = after[1:].amax(0, keepdim=True)
    return torch.where(after > 0, after, otherwise)


def token_row(model: PreTrainedModel, positions: Tensor) -> Tensor | None:
    """int64 [B or 1, q]: of position ids that a caller gave, those that count tokens; None if they do not tell."""
    if positions.ndim == 2 or positions.shape[0] == 4:
        return positions if positions.ndim == 2 else positions[0]
    if positions.shape[0] == 1:  # generate() goes on: the tokens' numbers with the model's last offset on top
        offset = host.rope_offset(model)
        return positions[0] if offset is None else positions[0] - offset.to(positions.device)
    return None


def read_positions(
    model: PreTrainedModel, call: dict[str, Any], state: CacheState, start: Tensor, new: Tensor, visual: bool
) -> Tensor:
    """The position ids of a call in its caller's numbering, made up where the caller gave none.

    Args:
        call: the arguments by name.
        state: that of the cache before the call.
        start: int64 [..., B, 1], the number of the next token.
        new: bool [B, q], which columns of the call hold a token.
        visual: whether the call carries images or videos.

    Returns:
        int64 [B, q], or [4, B, q] with multimodal RoPE.

    Raises:
        ValueError: images are numbered as if they were text.
    """
    given = call.get("position_ids")
    batch, length = new.shape
    if not host.has_rope_3d(model):
        positions = start + torch.arange(length, device=new.device) if given is None else given
        return positions.expand(*positions.shape[:-2], batch, length)

    cached = bool(state.columns)
    if visual and given is not None and given.ndim == 3 and _like_text(given, cached):
        raise ValueError(
            "position_ids of shape [1, batch, length] number images like text, as generate() does in "
            "transformers<5.23, and of some families later, for images that are added to a cache; call forward for "
            "them, or prefill all at once"
        )
    tokens = None if given is None else token_row(model, given)
    if tokens is None:
        tokens = start[0] + (new.cumsum(dim=1) - 1).clamp(min=0)
    tokens = tokens.expand(batch, length)
    if given is not None and given.shape[0] in (3, 4) and given.ndim == 3 and (visual or given.shape[0] == 3):
        rope = given[-3:].expand(3, batch, length)
    elif visual and given is None:
        rope = _grid_positions(model, call, new, start, cached)
    else:
        # The model's own offset may be of another conversation by now.
        rope = tokens + (state.next_position - state.next_position[:1])[1:]
    return torch.cat([tokens[None], rope])


def renumber(positions: Tensor, drop: Tensor, shift: Tensor, numbering: Positions) -> Tensor:
    """Position ids as the LLM is told them.

    Args:
        positions: int64 [..., B, q], in the caller's numbering.
        drop: bool [B, q], tokens that do not reach the LLM.
        shift: int64 [..., B, 1], the caller's numbers minus the LLM's before these tokens.
        numbering: "contiguous" counts only what is left, along every axis alike.
    """
    positions = positions - shift
    dropped = drop.cumsum(dim=1)
    if positions.ndim == 2:
        return positions - dropped if numbering == "contiguous" else positions
    tokens = positions[:1] - dropped
    return torch.cat([tokens, tokens.expand(3, -1, -1) if numbering == "contiguous" else positions[1:]])


def _like_text(given: Tensor, cached: bool) -> bool:
    """Whether position ids, int64 [1, 3 or 4, B, q], of a call with images number them like text."""
    return given.shape[0] == 1 or (cached and bool((given[-3:] == given[-1]).all()))


def _grid_positions(model: PreTrainedModel, call: dict[str, Any], new: Tensor, start: Tensor, cached: bool) -> Tensor:
    """int64 [3, B, q]: time, height and width as the model itself would number them, from `start` on."""
    if cached:  # some families look at what comes before an image: a token of text
        first = {"input_ids": host.text_token(model), **dict.fromkeys(host.TOKEN_TYPES, 0)}
        given = {
            name: pad(call[name], (1, 0), value=fill) for name, fill in first.items() if call.get(name) is not None
        }
        call, new = {**call, **given}, pad(new, (1, 0), value=True)
    positions = host.positions_3d(model, call, new)
    if positions is None:
        positions = (new.cumsum(dim=1) - 1).clamp(min=0).expand(3, -1, -1)
    positions = positions[-3:]
    return (positions[..., 1:] - 1 if cached else positions) + start[1:]


class RopeIndex:
    """Numbers a prompt along three axes as the model does, and says so where it has fewer images than placeholders."""

    def __init__(self, number: Callable[..., Any], hooks: Hooks) -> None:
        self.number, self.hooks = number, hooks
        self.__signature__ = inspect.signature(number)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the model itself returns; ValueError where grids are missing."""
        try:
            return self.number(*args, **kwargs)
        except StopIteration as error:
            raise ValueError(
                "input_ids or mm_token_type_ids has placeholders of more images or videos than there are grids for "
                "(image_grid_thw, video_grid_thw); the numbers must be equal; pass them as the processor made them"
            ) from error
