"""The method of a server and the budget of a request.

The method is the operator's, for it decides what an image costs; the budget is the client's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

import torch
from torch import Tensor

from ..pruners import PRUNERS, GPrune, Method, PixelDedup, Pruner, ScorePruner, SetPruner, get_pruner
from ..pruners.base import Positions
from ..spec import parse_pruner
from ..tokens import Keep, check_keep

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


def served_pruner(method: str, keep: Keep) -> Pruner:
    """A method that chooses by the features alone, which is all that vLLM has when it must choose.

    Raises:
        ValueError, TypeError: unknown method or setting, one that needs more, or no budget.
    """
    kind = get_pruner(method.partition(":")[0])
    if ":positions=" in method:
        raise ValueError(f"method {method!r}: what positions are kept is a matter of the server; give it --positions")
    pruner = parse_pruner(method, keep) if _by_features_alone(kind) else None
    if not isinstance(pruner, Pruner) or pruner.needs:
        names = [name for name, each in PRUNERS.items() if _by_features_alone(each)]
        reason = "it needs more than the features of the visual tokens"
        if issubclass(kind, PixelDedup):
            reason = "how many tokens it keeps depends on what a picture shows, and vLLM must know it before"
        raise ValueError(f"method {method!r} cannot be served by vLLM: {reason}; accepted are {', '.join(names)}")
    return pruner


def pruner_of(config: Any, keep: Keep) -> Pruner:
    """The server's method, with a budget; G-Prune where the config names none."""
    return served_pruner(getattr(config, METHOD, GPrune.name), keep)


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


def _by_features_alone(method: type[Method]) -> bool:
    return issubclass(method, (ScorePruner, SetPruner)) and not method.needs
