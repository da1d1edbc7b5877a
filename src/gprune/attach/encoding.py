"""The visual features of a call: generate()'s own, or those of the same encoder call made here."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from .. import host
from ..families.views import SIEVE
from ..host import PIXELS, Modality
from .conversation import Conversation, Lease
from .tower_changing import changing_tower
from .tower_narrowing import GONE, narrowing_tower
from .tower_reading import encode_and_read, reader

if TYPE_CHECKING:
    from .choosing import BatchSelection
    from .hooks import Hooks
    from .run import Run

_ATTRIBUTE = "_gprune_encoding"


class EncoderOutputs(dict[str, ModelOutput]):
    """Pre-encoded features by modality, as forward takes them; carries what belongs to the call from hook to hook.

    Attributes:
        run: by which the call is pruned; None where it only goes on.
        conversation: what the cache that comes out must remember; that of the run, as long as the call is under way.
        chosen: what the run kept of each modality.
        ids: int64 [B, q], the token ids as the LLM sees them, placeholders at least, also where embeddings are given.
        cache: with which it goes on, where it only does that.
        gone: how many tokens fewer than its caller knows of are in the cache that comes out.
    """

    run: Run | None = None
    conversation: Conversation
    chosen: Mapping[Modality, BatchSelection] = {}
    ids: Tensor | None = None
    cache: Any = None
    gone: int = 0


@dataclass(frozen=True, eq=False)
class Encoding:
    """What an encoder was told and what it made, before `generate()` repeats it for beams.

    Args:
        arguments: of the call, by name.
        output: fields of the output, by name.
        signals: what was read in the vision tower on the way, by name: for each item of the output, [n, ...].
        lease: of the run that merged tokens in the tower, or left them out before it.
    """

    arguments: dict[str, Any]
    output: dict[str, Any]
    signals: dict[str, list[Tensor]] = field(default_factory=dict)
    lease: Lease | None = None


_ENCODING: ContextVar[bool] = ContextVar("gprune_encoding", default=False)
"""Whether this thread is encoding: some encoders of videos call that of images."""


@contextmanager
def _alone() -> Iterator[None]:
    token = _ENCODING.set(True)
    try:
        yield
    finally:
        _ENCODING.reset(token)


class RecordingEncoder:
    """A model's encoder that leaves an `Encoding` on its output, as the run in force needs it.

    `generate()` encodes before it calls forward, which then sees neither the sizes of the images nor which were
    repeated. An object, not a closure: a copy of the model must encode with the copy's weights.

    Args:
        encode: the method of the base model.
        hooks: of the model.
        modality: that it encodes.
    """

    def __init__(self, encode: Callable[..., Any], hooks: Hooks, modality: Modality) -> None:
        self.encode, self.hooks, self.modality = encode, hooks, modality
        self.__signature__ = inspect.signature(encode)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the encoder itself returns, with an `Encoding` on it where a run is in force."""
        arguments = self.__signature__.bind(*args, **kwargs).arguments
        call = partial(self.encode, *args, **kwargs)
        run = None if _ENCODING.get() else self.hooks.in_force()
        if run is None:
            return call()
        model = self.hooks.model
        tower, tokens = reader(run.selector, model, self.modality)
        signals: dict[str, list[Tensor]] = {}
        with (
            _alone(),
            changing_tower(model, run.method, arguments) as changes,
            narrowing_tower(run.method, self.modality) as narrowing,
        ):
            if tower is None or tokens is None:
                output = call()
            else:
                tokens = tokens if narrowing is None else narrowing.over_all(tokens)
                output, signals = encode_and_read(call, model.base_model, tower, tokens, arguments, run.selector.needs)
        if isinstance(output, ModelOutput):
            if narrowing is not None:
                signals[GONE] = narrowing.gone(output[host.POOLED])
            lease = Lease(run) if changes or narrowing is not None else None
            setattr(output, _ATTRIBUTE, Encoding(arguments, dict(output), signals, lease))
            if changes:  # who asks for features by themselves gets zeros in the place of what was merged away
                output[host.POOLED] = _finite(output[host.POOLED])
        return output


def _finite(features: Tensor | Sequence[Tensor]) -> Tensor | list[Tensor]:
    if isinstance(features, Tensor):
        return features.nan_to_num(nan=0.0)
    return [item.nan_to_num(nan=0.0) for item in features]


def encoding_of(output: ModelOutput) -> Encoding:
    """The recorded encoding; for features that were made elsewhere, one without arguments."""
    recorded = getattr(output, _ATTRIBUTE, None)
    return recorded if isinstance(recorded, Encoding) else Encoding({}, dict(output))


def unrecorded(output: ModelOutput) -> ModelOutput:
    """A copy of an encoder's output without its recorded encoding."""
    output = copy.copy(output)
    vars(output).pop(_ATTRIBUTE, None)
    return output


def encoded_by(call: Mapping[str, Any]) -> Run | None:
    """The run in or before whose tower tokens of the call's images left, which no other can prune."""
    leases = (encoding_of(output).lease for output in (call.get(host.ENCODED) or {}).values())
    return next((lease.run for lease in leases if lease is not None), None)


def is_cut(call: Mapping[str, Any]) -> bool:
    """Whether `generate()` has cut the features of a call to pieces for chunked prefill."""
    return any(output.get(host.UNPOOLED) is None for output in (call.get(host.ENCODED) or {}).values())


def encode_call(
    model: PreTrainedModel, call: dict[str, Any], carried: Sequence[Modality]
) -> tuple[dict[str, Any], EncoderOutputs]:
    """Take the pixels out of a call, encoding them if `generate()` has not.

    Returns:
        The call and the encoder outputs for it.

    Raises:
        ValueError: the features were cut into chunks.
    """
    outputs = EncoderOutputs(call.get(host.ENCODED) or {})
    for modality in carried:
        if outputs.get(modality) is None:
            inputs = {name: call[name] for name in host.encoder_arguments(model, modality) if name in call}
            outputs[modality] = host.encode(model, modality, **inputs)
            host.check_encoded(outputs[modality], modality, (host.UNPOOLED,))
            if not hasattr(outputs[modality], _ATTRIBUTE):  # no run in force, as for `verify`
                setattr(outputs[modality], _ATTRIBUTE, Encoding(inputs, dict(outputs[modality])))
            call = {name: value for name, value in call.items() if name != PIXELS[modality]}
        # generate() rebuilds the output with little but the pooled features when it cuts it for chunked prefill.
        if outputs[modality].get(host.UNPOOLED) is None:
            raise ValueError(
                f"the {modality} features come without {host.UNPOOLED}, as when generate() cuts them to pieces "
                f"for prefill_chunk_size; they can only be pruned whole; leave prefill_chunk_size out, or pass all "
                f"that {host.encoder_name(modality)} returned as {host.ENCODED}"
            )
    return call, outputs


def sifted(output: ModelOutput, name: str, left: Tensor) -> ModelOutput:
    """A copy of an encoder's output with only those of its rows that stand in the prompts.

    Args:
        name: the field that holds the features.
        left: bool [N], which of them do; with beams, as often as `generate()` repeats every value.

    Raises:
        ValueError: it has another length.
    """
    encoding = encoding_of(output)
    sizes = [len(item) for item in encoding.output[name]]
    times, rest = divmod(len(left), sum(sizes))
    if rest or not times:
        raise ValueError(
            f"{SIEVE} has {len(left)} values for {sum(sizes)} rows of video features; the numbers must be equal; pass "
            f"it as the processor made it"
        )
    own = [part.cpu() for part in left.view(-1, times)[:, 0].bool().split(sizes)]

    def rows(items: Sequence[Tensor]) -> list[Tensor]:
        return [item[part.to(item.device)] for item, part in zip(items, own, strict=True)]

    items = rows(encoding.output[name])
    signals = {signal: rows(values) for signal, values in encoding.signals.items()}
    output = copy.copy(output)
    output[name] = items * times
    arguments = {**encoding.arguments, SIEVE: own}
    made = {**encoding.output, name: items}
    setattr(output, _ATTRIBUTE, replace(encoding, arguments=arguments, output=made, signals=signals))
    return output


def prompt_order(output: ModelOutput, name: str, placeholders: Tensor) -> list[int]:
    """Which item of the encoder's own output stands at each place of the prompts.

    `generate()` repeats the images of a prompt for beams. Their order is worked out anew here: not every family's
    own repetition is right for prompts of several images.

    Args:
        name: the field of the output that holds the features: items [n, d], in a list or stacked.
        placeholders: bool [B, q]; the rows of a repeated prompt follow one another.

    Returns:
        Indices into the field of `encoding_of(output)`, as often as the items were repeated.
    """
    sizes = [len(item) for item in encoding_of(output).output[name]]
    times, rest = divmod(sum(len(item) for item in output[name]), max(sum(sizes), 1))
    if sizes and (rest or not times):  # where images and videos have one placeholder, generate() loses some
        times = _times_of(placeholders, sum(sizes))
    if times <= 1:
        return list(range(len(sizes)))
    order: list[int] = []
    start = 0
    for left in placeholders.sum(dim=1)[::times].tolist():
        end = start
        while left > 0 and end < len(sizes):
            left -= sizes[end]
            end += 1
        order += list(range(start, end)) * times
        start = end
    return order


def _times_of(placeholders: Tensor, count: int) -> int:
    """How often prompts, which had `count` placeholders in all, were repeated row by row; 1 if they do not tell."""
    times, rest = divmod(int(placeholders.sum()), count)
    if rest or not times or len(placeholders) % times:
        return 1
    rows = placeholders.unflatten(0, (-1, times))
    return times if bool((rows == rows[:, :1]).all()) else 1


def keep_rows(
    output: ModelOutput, name: str, order: Sequence[int], kept: Tensor, merged: Tensor | None = None
) -> ModelOutput:
    """A copy of an encoder's output with only some of its rows, in the container forward expects.

    The original is left alone: `generate()` may use it again.

    Args:
        name: the field that holds the features. Deepstack features, which a model adds to its first layers, lose
            the same rows on every level.
        order: that of the items in the prompts.
        kept: bool [N], the rows to keep of the items in this order.
        merged: floating [N, d], what takes the place of the items' rows; deepstack features stay those of the rows.
    """
    made = encoding_of(output).output
    output = copy.copy(output)

    def rows(items: Tensor | Sequence[Tensor], merged: Tensor | None = None) -> Tensor | list[Tensor]:
        all_rows = torch.cat([items[index] for index in order]) if merged is None else merged
        left = all_rows[kept]
        return left.unsqueeze(0) if isinstance(items, Tensor) else [left]

    output[name] = rows(made[name], merged)
    if made.get(host.DEEPSTACK) is not None:
        output[host.DEEPSTACK] = [rows(level) for level in made[host.DEEPSTACK]]
    return output
