"""From the call that was made to the call that reaches the LLM, without the dropped visual tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from .. import host
from ..families.placeholders import of_either
from ..families.views import SIEVE
from ..host import Modality
from .call_checks import NO_IDS, check_mask, check_new_padding, check_padding, check_step_lengths, check_unpacked
from .choosing import BatchSelection, Prompt, choose, gather
from .columns import TokenColumns, all_types, drop_columns, own_types, read_columns, skip_replayed
from .conversation import CacheState, Conversation, Lease
from .encoding import EncoderOutputs, encode_call, encoding_of, is_cut, keep_rows, sifted
from .positions import next_position, renumber
from .tower_narrowing import check_narrowed
from .verification import verify_untested

if TYPE_CHECKING:
    from .run import Run

NO_IMAGES = f"{NO_IDS}; images cannot be pruned so, nor a pruned cache continued; pass input_ids"

_NOT_TEXT = frozenset((host.ENCODED, "inputs_embeds", *host.PIXELS.values()))
"""Arguments with more than text."""

_TYPES = frozenset(host.TOKEN_TYPES)


def prune(model: PreTrainedModel, run: Run, call: dict[str, Any], state: CacheState | None) -> dict[str, Any] | None:
    """Rewrite a forward call that carries images or videos.

    Args:
        model: the model that is called.
        run: by which images and videos of the call are pruned.
        call: all its arguments, by name.
        state: that of its cache; None if nothing in it was pruned.

    Returns:
        The arguments for forward; their encoder outputs carry what the cache that comes out must remember. If nothing
        is dropped, now or before, they are those of the call, with the images encoded; None: the call as it is.

    Raises:
        ValueError: a call that cannot be pruned; says why and what to do.
    """
    carried, cached = host.modalities(call), host.columns_of(host.cache_of(call))
    _check_modalities(model, run, carried)
    if run.method.keeps_all and (call.get("input_ids") is None or is_cut(call)):
        return None  # of which gprune need not find the images
    check_step_lengths(run.method, call)
    if call.get("input_ids") is None:
        call = {**call, "input_ids": _ids_of(model, call)}
    if state is None and cached == 0:
        verify_untested(model, call)
    check_mask(call)
    untouched, state = state is None, state or _unpruned(model, call, cached)
    call = skip_replayed(model, call, state, cached)
    columns = read_columns(model, call, state, cached, visual=True)
    given, outputs = encode_call(model, call, carried)
    call = own_types(given)

    prompt = Prompt.of(model, call["input_ids"], columns.new, call.get("inputs_embeds"))
    made = dict(outputs)
    if "video" in made and call.get(SIEVE) is not None:
        made["video"] = sifted(made["video"], run.family.output, call[SIEVE])
    chosen = {modality: _chosen(model, run, modality, made[modality], prompt) for modality in carried}
    outputs.chosen, outputs.run, outputs.conversation = chosen, run, Conversation(Lease(run))
    run.report(chosen)
    if untouched and all(batch.everything for batch in chosen.values()):
        return _handed_over(given, outputs)

    drop = torch.zeros_like(columns.new)
    for modality, batch in chosen.items():
        outputs[modality] = keep_rows(made[modality], run.family.output, batch.order, batch.kept, batch.merged)
        if not batch.whole:
            gone = ~batch.kept.to(drop.device)
            drop = drop | torch.zeros_like(drop).masked_scatter(prompt.placeholders[modality], gone)
    start, numbering = state.start(cached), run.selector.positions
    after = next_position(columns.positions, columns.new, otherwise=start)
    columns = replace(columns, positions=renumber(columns.positions, drop, state.shift, numbering))
    shift = after - next_position(columns.positions, columns.new, otherwise=start - state.shift)
    call = {name: value for name, value in call.items() if name != SIEVE}
    if not all(batch.whole for batch in chosen.values()):
        call, columns = _shortened(model, call, columns, drop)
    outputs.gone = state.dropped + drop.shape[1] - columns.new.shape[1]
    full, shifted = bool(columns.mask.all()), state.shifted or numbering == "contiguous"
    solid = _text_begins(model, call["input_ids"], cached)
    outputs.conversation.state = CacheState(columns.mask, outputs.gone, after, shift, solid, full, shifted)
    return _rewritten(call, outputs, columns)


def _check_modalities(model: PreTrainedModel, run: Run, carried: Sequence[Modality]) -> None:
    if "video" in carried and run.family.video is None:
        raise ValueError(
            f"this call carries a video, whose tokens would be left unpruned; of "
            f"{model.config.model_type} only images can be pruned; detach the pruner for calls with videos"
        )
    if len(carried) > 1 and run.family.placeholders is of_either:
        raise ValueError(
            f"this call carries images and videos, which {model.config.model_type} tells apart by no token, so that it "
            f"takes only either; accepted is a call with images or one with videos; make two of it"
        )


def _chosen(model: PreTrainedModel, run: Run, modality: Modality, made: ModelOutput, prompt: Prompt) -> BatchSelection:
    """What the run keeps of the images, or the videos, that an encoder made."""
    check_narrowed(run.method, modality, encoding_of(made).signals)
    masks = run.masks if modality == "image" else ()
    return choose(run.selector, gather(run.selector, run.family, model, modality, made, prompt, masks))


def _shortened(
    model: PreTrainedModel, call: dict[str, Any], columns: TokenColumns, drop: Tensor
) -> tuple[dict[str, Any], TokenColumns]:
    """A call and its columns without the tokens that are True in `drop`, bool [B, q].

    Raises:
        ValueError: the LLM would take what is left for something else.
    """
    cached, length = columns.cached.shape[1], drop.shape[1]
    host.check_per_token(model, call)
    check_unpacked(model, call, cached)
    padding = int(bool(cached) and _mistakes_gaps(model, columns.positions))
    call, left = drop_columns(call, columns, drop, host.text_token(model), padding)
    if not cached:
        check_new_padding(model, columns.new, left.new)
        host.shorten_prompt(host.cache_of(call), length, left.new.shape[1])
    elif not left.new.all():
        check_padding(model)
    return call, left


def _text_begins(model: PreTrainedModel, ids: Tensor, cached: int) -> Tensor:
    """int64 []: the first column of the cache after which these token ids [B, q], which come on it, are all text."""
    visual = torch.isin(ids, ids.new_tensor(host.placeholders(model.config)))
    ends = torch.arange(cached + 1, cached + 1 + ids.shape[1], device=ids.device)
    return torch.where(visual, ends, 0).amax()


@torch.compiler.disable
def go_on(model: PreTrainedModel, call: dict[str, Any], cache: Any, conversation: Conversation) -> dict[str, Any]:
    """Rewrite a forward call that goes on with a pruned cache, by text alone.

    Raises:
        ValueError: it does not fit the cache.
    """
    state, cached = conversation.state, host.columns_of(cache)
    assert state is not None
    if call.get("input_ids") is None:
        raise ValueError(NO_IMAGES)
    check_mask(call)
    call = own_types(skip_replayed(model, call, state, cached))
    columns = read_columns(model, call, state, cached, visual=False)
    after = next_position(columns.positions, columns.new, otherwise=state.start(cached))
    full = state.full and call.get("attention_mask") is None
    conversation.state = replace(state, mask=columns.mask, next_position=after, full=full).for_static(cache)
    outputs = EncoderOutputs(call.get(host.ENCODED) or {})
    outputs.conversation, outputs.cache, outputs.gone = conversation, cache, state.dropped
    return _rewritten(call, outputs, replace(columns, positions=columns.positions - state.shift))


def decode(call: dict[str, Any], cache: Any, conversation: Conversation) -> dict[str, Any] | None:
    """What `go_on` makes of a call with one token a row, as almost all are; None if it is not as simple as most.

    What lies on the cache says already that text comes after its columns, and is left as it is. Where the rows are
    full, and the caller numbers their text as the LLM is told it, the call is passed on with nothing computed.
    """
    ids, state = call.get("input_ids"), conversation.state
    if state is None or state.static is not None or ids is None or ids.shape != state.token_shape:
        return None
    if not _NOT_TEXT.isdisjoint(call) and any(call.get(name) is not None for name in _NOT_TEXT):
        return None
    outputs = EncoderOutputs()
    outputs.conversation, outputs.cache = conversation, cache
    decoded = {**call, host.ENCODED: outputs}
    mask, positions = call.get("attention_mask"), call.get("position_ids")
    if mask is not None or not state.full:
        decoded["attention_mask"] = mask = state.shown(mask, host.columns_of(cache))
        if mask is None:
            return None
    if positions is None:
        decoded["position_ids"] = state.start(host.columns_of(cache)) - state.shift
    elif positions.ndim != state.shift.ndim:
        return None
    elif positions.ndim == 3:
        if len(positions) != 4:
            return None
        decoded["position_ids"] = positions[:1] + state.offset
    elif state.offset is not None:
        decoded["position_ids"] = positions + state.offset
    if conversation.rows is not None:
        conversation.rows.keys = None  # until there are new ones nobody else may hold these
    for name in _TYPES.intersection(call):  # as `own_types` and `all_types` do
        if (types := call[name]) is not None:
            before = 0 if name == host.EXPERT_TYPES else host.columns_of(cache)
            decoded[name] = pad(types[:, -1:], (before, 0))
    return decoded


def _rewritten(call: dict[str, Any], outputs: EncoderOutputs, columns: TokenColumns) -> dict[str, Any]:
    """A call with these columns."""
    rewritten = {**call, "attention_mask": columns.mask, "position_ids": columns.positions}
    return _handed_over(all_types(rewritten, columns.cached.shape[1]), outputs)


def _handed_over(call: dict[str, Any], outputs: EncoderOutputs) -> dict[str, Any]:
    """A call with what the encoders made; where embeddings are given, without the ids that were read from them."""
    outputs.ids = call["input_ids"]
    call = {**call, host.ENCODED: outputs}
    if call.get("inputs_embeds") is not None:
        del call["input_ids"]
    return call


def _unpruned(model: PreTrainedModel, call: dict[str, Any], cached: int) -> CacheState:
    """The state of a cache of which nothing was dropped: valid where the mask says so.

    Raises:
        ValueError: only the caller can know the position ids that come next.
    """
    ids, mask = call["input_ids"], call.get("attention_mask")
    zero = torch.zeros(ids.shape[0], 1, dtype=torch.long, device=ids.device)
    valid = zero.new_ones(ids.shape[0], cached) if mask is None else mask[:, :cached]
    after = zero + cached
    if host.has_rope_3d(model):
        if cached and call.get("position_ids") is None:
            raise ValueError(
                f"images come on a cache of {cached} columns of which none was pruned, without position_ids; "
                f"{model.config.model_type} remembers only where the prompt it saw last ended; pass position_ids of "
                f"shape [4, batch, length], or prefill all at once"
            )
        zero, after = zero.expand(4, -1, -1), after.expand(4, -1, -1)
    solid = torch.zeros((), dtype=torch.long, device=ids.device)
    return CacheState(valid.to(ids.device, torch.bool), dropped=0, next_position=after, shift=zero, solid=solid)


def _ids_of(model: PreTrainedModel, call: dict[str, Any]) -> Tensor:
    """Token ids int64 [B, q] as far as embeddings tell them: placeholders, and text, whatever it says.

    Raises:
        ValueError: there are no embeddings with visual tokens in them.
    """
    embeddings = call.get("inputs_embeds")
    if not isinstance(embeddings, Tensor):
        raise ValueError(NO_IMAGES)
    ids = torch.full(embeddings.shape[:2], host.text_token(model), device=embeddings.device)
    for token in host.placeholders(model.config):
        own = model.get_input_embeddings()(torch.tensor(token, device=embeddings.device))
        ids = ids.masked_fill((embeddings == own.to(embeddings)).all(-1), token)
    return ids


def _mistakes_gaps(model: PreTrainedModel, positions: Tensor) -> bool:
    """Whether gaps in these position ids, int64 [..., B, q], would be taken for the ends of packed sequences.

    So does FlashAttention with the only row of a batch, unless there is padding.
    """
    return "flash" in host.backend_of(host.decoder_of(model)) and positions.ndim == 2 and len(positions) == 1
