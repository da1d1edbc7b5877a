"""Hidden states and attentions of assisted decoding, which `generate()` cuts by the length of the prompt it got."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .. import host

STATES = {"hidden_states": (-2,), "attentions": (-2, -1)}
"""The fields of an output that are cut, and the dimensions that are cut from the front."""


class Shorter(Tensor):
    """A tensor with fewer tokens than its reader thinks: slices from the front end earlier by as many as are gone.

    Attributes:
        gone: how many tokens.
        cut: the dimensions, counted from the last, that have one entry a token.
    """

    gone: int
    cut: tuple[int, ...]

    @classmethod
    def of(cls, values: Tensor, gone: int, cut: tuple[int, ...]) -> Shorter:
        """The same values, to be read by one who does not know of so many tokens gone."""
        shorter = values.as_subclass(cls)
        shorter.gone, shorter.cut = gone, cut
        return shorter

    def __getitem__(self, index: Any) -> Tensor:
        """An ordinary tensor."""
        parts = list(index) if isinstance(index, tuple) else [index]
        for dim in self.cut:
            part = parts[dim] if len(parts) >= -dim and parts[0] is Ellipsis else None
            if isinstance(part, slice) and part.start is None and part.stop is not None:
                parts[dim] = slice(None, part.stop - self.gone)
        return self.as_subclass(Tensor)[tuple(parts)]

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """What is computed from it is ordinary."""
        with torch._C.DisableTorchFunctionSubclass():
            return function(*args, **(kwargs or {}))


def is_drafted(call: Mapping[str, Any]) -> bool:
    """Whether assisted decoding makes this call: it asks for logits of more than the last token, with a cache."""
    wanted = call.get(host.LOGITS)
    return isinstance(wanted, int) and wanted > 1 and host.cache_of(call) is not None


def shorten_states(call: Mapping[str, Any], output: Any, gone: int) -> None:
    """Have `generate()` cut the hidden states and attentions of a call, if it is a drafted one, where they end."""
    if not is_drafted(call):
        return
    for name, cut in STATES.items():
        layers = output.get(name) if isinstance(output, dict) else None
        if layers is not None:
            output[name] = tuple(None if each is None else Shorter.of(each, gone, cut) for each in layers)
