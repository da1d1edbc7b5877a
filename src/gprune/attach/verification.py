"""Whether a pruned model still computes what it should: decoding with a KV cache, compared with a full recompute."""

from __future__ import annotations

import copy
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedModel

from .. import host
from ..errors import UnsupportedModel
from ..pruners import L2Norm, Unpruned
from .encoding import encode_call, encoding_of, unrecorded
from .support import family_of, unwrapped

if TYPE_CHECKING:
    from ..pruners import Method

STEPS = 3
"""Tokens that are decoded for a check."""

TOLERANCE = {torch.float64: 1e-3, torch.float32: 1e-3}
"""The change that rounding may make, as a share of the logits' norm, by dtype of the model; `COARSE` for others."""

COARSE = 0.1
"""A lost mask, position or cache changes half of the logits' norm or more."""

KEEP_ALL = L2Norm(keep=1.0)
KEEP_HALF = L2Norm(keep=0.5, positions="contiguous")
"""Half of the tokens, renumbered: what forgets that tokens were dropped shows in the logits."""

CHECKED: WeakSet[type] = WeakSet()


@torch.no_grad()
def verify(model: PreTrainedModel, inputs: Mapping[str, Any]) -> float:
    """Check that gprune and the installed transformers understand each other on a model.

    A row of text alone is added to the inputs, so that the batch is padded and its rows lose different numbers of
    tokens. Keeping all visual tokens must then give the logits that the model gives without a pruner; keeping half of
    them, with contiguous positions, the same logits with a KV cache as when each token is computed anew.

    Args:
        model: that can be pruned; runs that are attached to it are left alone.
        inputs: of the model, as the processor makes them: prompts with images, padded on the left.

    Returns:
        The largest change that was found, as a share of the logits' norm.

    Raises:
        UnsupportedModel: the logits change by more than rounding explains; says by how much and what to do.
        ValueError: the inputs carry no image.
    """
    model = unwrapped(model)
    family_of(model)
    with _bare(model) as bare:
        call = _padded(bare, dict(inputs))
        changes = {
            "keeping every visual token": _change(bare, call, (None, True), (KEEP_ALL, True)),
            "decoding with a KV cache after pruning": _change(bare, call, (KEEP_HALF, False), (KEEP_HALF, True)),
        }
    allowed = TOLERANCE.get(model.dtype, COARSE)
    for what, change in changes.items():
        if not change <= allowed:
            raise UnsupportedModel(
                f"{what} changes the logits of {type(model).__name__} by {change:.2g} of their norm, where rounding "
                f"explains {allowed:g}: gprune and transformers {host.installed()} do not understand "
                f"each other on this model; tested are {host.SUPPORTED}; pip install '{host.SUPPORTED}'"
            )
    return max(changes.values())


def verify_untested(model: PreTrainedModel, call: Mapping[str, Any]) -> None:
    """With a transformers newer than any that was tested, `verify` on the first call of a class of models.

    Args:
        model: that is called.
        call: the arguments of a forward that begins with images, by name.

    Raises:
        UnsupportedModel: see `verify`.
    """
    if not host.untested() or type(model) in CHECKED or torch.compiler.is_compiling():
        return
    CHECKED.add(type(model))
    try:
        change = verify(model, call)
    except BaseException:
        CHECKED.discard(type(model))
        raise
    warnings.warn(
        f"transformers {host.installed()} is newer than the newest that gprune was tested with, {host.NEWEST_TESTED}; "
        f"on this call of a {type(model).__name__}, pruned decoding equals a recompute (to {change:.0e} of the logits' "
        f"norm); gprune.verify(model, inputs) checks other inputs",
        stacklevel=2,
    )


@contextmanager
def _bare(model: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """The same weights in a model without hooks of its own, for inference; what a check moves is put back."""
    from .run import attach  # which comes here with a transformers that was not tested

    bare = copy.copy(model)
    for name in vars(model):
        if name.startswith(("_forward_hooks", "_forward_pre_hooks")):
            vars(bare)[name] = OrderedDict()
    vars(bare).pop(host.MASK_MAKER, None)
    modes = [(module, module.training) for module in model.modules()]
    offset = host.rope_offset(model) if host.has_rope_3d(model) else None
    model.eval()
    try:
        with attach(Unpruned(), model):  # of the parts that the two share, the hooks that are on them stand by
            yield bare
    finally:
        for module, training in modes:
            module.training = training
        if host.has_rope_3d(model):
            host.set_rope_offset(model, offset)


def _padded(model: PreTrainedModel, inputs: dict[str, Any]) -> dict[str, Any]:
    """What `generate()` takes: the inputs with their images encoded, and a row of text alone below them."""
    carried = host.modalities(inputs)
    if "image" not in carried:
        raise ValueError(
            f"the inputs carry no image, only {', '.join(inputs)}; accepted are prompts with images; add one"
        )
    if (inputs["input_ids"] == host.sound_token(model.config)).any():
        raise ValueError(
            "the prompts hold sounds, which this check does not pass on; accepted are prompts with images or videos "
            "alone; leave the sounds out"
        )
    call, outputs = encode_call(model, inputs, carried)
    told = {name: value for each in outputs.values() for name, value in encoding_of(each).arguments.items()}
    ids = call["input_ids"]
    mask = call.get("attention_mask")
    mask = torch.ones_like(ids) if mask is None else mask
    text = ids[0, mask[0].bool() & ~torch.isin(ids[0], ids.new_tensor(host.placeholders(model.config)))]
    row = pad(torch.stack([text, torch.ones_like(text)]), (ids.shape[1] - len(text), 0))
    types = {name: call[name] for name in host.TOKEN_TYPES if call.get(name) is not None}
    return {
        "input_ids": torch.cat([ids, row[:1]]),
        "attention_mask": torch.cat([mask, row[1:].to(mask)]),
        **{name: pad(own, (0, 0, 0, 1)) for name, own in types.items()},
        **{name: value for name, value in {**told, **call}.items() if name in host.grid_arguments(model)},
        host.ENCODED: {modality: _unmerged(output) for modality, output in outputs.items()},
    }


def _unmerged(output: Any) -> Any:
    """An encoder's output in which tokens that were merged in the tower are zeros, no longer known as gone."""
    return output if encoding_of(output).lease is None else unrecorded(output)


Way = tuple["Method | None", bool]
"""(what prunes, whether with a KV cache)."""


def _change(model: PreTrainedModel, call: dict[str, Any], one: Way, other: Way) -> float:
    """How far the logits of two ways of decoding the same tokens are apart, as a share of their norm."""
    tokens, expected = _decode(model, call, *one)
    _, logits = _decode(model, call, *other, tokens)
    return float((logits - expected).norm() / expected.norm())


def _decode(
    model: Any, call: dict[str, Any], pruner: Method | None, cached: bool, tokens: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Tokens int64 [B, STEPS], greedy or as they are given, and the logits of each, float32 [B, STEPS, vocabulary]."""
    length = call["input_ids"].shape[1]

    def forced(row: int, ids: Tensor) -> list[int]:
        assert tokens is not None
        return [int(tokens[row, len(ids) - length])]

    run = None if pruner is None else pruner.attach(model)
    try:
        output: Any = model.generate(
            **call,
            use_cache=cached,
            max_new_tokens=STEPS,
            min_new_tokens=STEPS,
            do_sample=False,
            num_beams=1,
            num_return_sequences=1,
            suppress_tokens=host.placeholders(model.config),
            prefix_allowed_tokens_fn=None if tokens is None else forced,
            return_dict_in_generate=True,
            output_logits=True,
        )
    finally:
        if run is not None:
            run.detach()
    return output.sequences[:, length:], torch.stack(output.logits, dim=1).float()
