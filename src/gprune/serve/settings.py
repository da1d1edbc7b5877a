"""The method of a server and the budget of a request.

The method is the operator's, for it decides what an image costs; the budget is the client's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

import torch
from torch import Tensor

from ..pruners import PRUNERS, GPrune, Method, PixelDedup, Pruner, get_pruner
from ..pruners.base import Need, Positions
from ..pruners.tower import TowerPruner
from ..spec import parse_pruner
from ..tokens import Keep, check_keep
from .families import EXPERIMENTAL

METHOD, KEEP = "gprune_method", "gprune_keep"
"""Entries of the model's config (`--hf-overrides`); `KEEP` is also one of a request's `mm_processor_kwargs`."""

TRUST_UUID = "gprune_trust_uuid"
"""Another one: whether clients may name pictures by a `uuid` of their own."""

POSITIONS, AXES = "gprune_positions", "mrope_section"
"""Two more of a model that numbers its tokens along one axis: "original" if kept ones keep their positions, and then
`[1]` for the other, which has vLLM ask the model for the positions of each prompt."""

BEFORE = "gprune_before"
"""What an image has beside its pixels: how many visual tokens it had before pruning."""

CONNECTOR = "gprune"
"""What vLLM is to fetch pictures with (`VLLM_MEDIA_CONNECTOR`); see `media.py`."""

_MOST = 2.0**53
"""More tokens than any image has; up to here a float64 counts exactly."""


READ_TOWERS = ("clip_vision_model", "siglip_vision_model")
"""Vision towers whose attention can be read in vLLM, by model_type."""

READ_FAMILIES = ("llava", "llava_next", "llava_onevision")
"""The models of which that was tested."""

_WHY: dict[Need, str] = {
    "question": "it needs the question, and vLLM encodes and keeps images without the prompts they stand in",
    "mask": "it needs a mask for every picture, which requests do not have",
    "frames": "it compares the frames of videos, which are not pruned there",
    "tiles": 'shares="global" needs to know which part of a picture each tile shows',
    "scorer": "it needs a scorer that was trained for the model, which was not tried there",
}
"""Why methods that need this cannot be served."""


def served_pruner(method: str, keep: Keep, config: Any = None) -> Pruner:
    """A method for what vLLM has when it must choose: the features, and of some models what their vision tower knows.

    Args:
        method: see `parse_pruner`.
        keep: the budget.
        config: of the model; None: one of which nothing but the features is known.

    Raises:
        ValueError, TypeError: unknown method or setting, one that needs more, or no budget.
    """
    kind = get_pruner(method.partition(":")[0])
    if ":positions=" in method:
        raise ValueError(f"method {method!r}: what positions are kept is a matter of the server; give it --positions")
    pruner = parse_pruner(method, keep) if _refusal(kind, kind.needs, config) is None else None
    reason = _refusal(kind, kind.needs if pruner is None else pruner.needs, config)
    if reason is not None or not isinstance(pruner, Pruner):
        names = [name for name, each in PRUNERS.items() if _refusal(each, each.needs, config) is None]
        raise ValueError(f"method {method!r} cannot be served by vLLM: {reason}; accepted are {', '.join(names)}")
    return pruner


def pruner_of(config: Any, keep: Keep) -> Pruner:
    """The server's method, with a budget; G-Prune where the config names none."""
    return served_pruner(getattr(config, METHOD, GPrune.name), keep, config)


def keep_of(config: Any, request: Mapping[str, object]) -> Keep:
    """The budget of a request: its own, or else the server's.

    Args:
        config: of the model.
        request: its `mm_processor_kwargs`.

    Raises:
        ValueError: it is no budget, or the request has other entries.
    """
    if others := sorted(set(request) - {KEEP}):
        raise ValueError(
            f"mm_processor_kwargs has {', '.join(others)}; with gprune a request may only set {KEEP}, for other "
            f"arguments of the processor can change how many visual tokens an image has; set them for all with "
            f"--mm-processor-kwargs when the server is started"
        )
    keep: Any = request.get(KEEP, getattr(config, KEEP, Pruner.keep))
    try:
        check_keep(keep)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{KEEP}: {error}") from error
    return keep


def keeps_positions(config: Any) -> bool:
    """Whether the tokens that are left of a prompt have the positions of the unpruned one.

    Args:
        config: of a model with one axis of positions.

    Raises:
        ValueError: its entry is neither of the two that there are.
    """
    positions = getattr(config, POSITIONS, "contiguous")
    if positions not in get_args(Positions):
        raise ValueError(f"{POSITIONS} is {positions!r}; accepted are {', '.join(get_args(Positions))}")
    return positions == "original"


def keep_tensor(keep: Keep) -> Tensor:
    """A budget on its way to the model: float64 [2], a ratio or a number of tokens, 0 the one that it is not."""
    keep = check_keep(keep)
    ratio, count = (keep, 0.0) if isinstance(keep, float) else (0.0, min(keep, _MOST))
    return torch.tensor([ratio, count], dtype=torch.float64)


def unpacked(keep: Tensor) -> Keep:
    """The inverse of `packed`."""
    ratio, count = keep.tolist()
    return int(count) or ratio


def _refusal(kind: type[Method], needs: Sequence[Need], config: Any) -> str | None:
    """Why a method cannot be served for a model; None if it can."""
    if issubclass(kind, PixelDedup):
        return "how many tokens it keeps depends on what a picture shows, and vLLM must know it before"
    if issubclass(kind, TowerPruner):
        return "it changes the vision tower, which is vLLM's own there"
    if not issubclass(kind, Pruner):
        return "it acts in the layers of the LLM, which in vLLM all get every token of a prompt"
    if unmet := [why for need, why in _WHY.items() if need in needs]:
        return unmet[0]
    if kind.merges and config is not None and config.model_type in EXPERIMENTAL:
        return f"it merges tokens, which was not tried with places in a grid, as {config.model_type} has them"
    if needs and not _is_readable(config):
        return (
            f"it needs the {needs[0]} of the vision tower, which is read in vLLM of llava, llava_next and "
            f"llava_onevision with a CLIP or SigLIP tower alone"
        )
    return None


def _is_readable(config: Any) -> bool:
    return config is not None and config.model_type in READ_FAMILIES and config.vision_config.model_type in READ_TOWERS
