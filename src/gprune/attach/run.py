"""A pruner at work on a model: two hooks, put on and taken off."""

from __future__ import annotations

import warnings
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from .. import host
from ..errors import UnsupportedModel
from ..host import PIXELS, Modality
from ..pruners.base import Pruner
from .encoder import EncoderOutputs, RecordingEncoder, modalities
from .report import ImageReport, report_images
from .rewrite import rewrite_call
from .selection import BatchSelection, select_visual
from .signals import check_needs, reader
from .state import CacheState, read_state, write_state
from .support import layout_of, unwrapped
from .verification import verify_untested


def attach(pruner: Pruner, model: PreTrainedModel) -> Run:
    """Prune the images and videos of every call of `model`, `model.generate(...)` included, until the run is detached.

    A model can carry several runs: the last one attached is in force until detached, then the one before.

    Args:
        pruner: the method.
        model: a `...ForConditionalGeneration` model of a supported family, or PEFT's adapters around one.

    Raises:
        UnsupportedModel: the model is of another kind, or transformers is too old; says what is supported.
    """
    return Run(pruner, model)


class Run:
    """A pruner attached to a model by `pruner.attach(model)`; a context manager that detaches at its end.

    What the caller of the model gives and `generate()` returns keeps its length; only what reaches the LLM is
    shortened. So logits, hidden states and attentions are as long as what was kept. A KV cache filled while a
    pruner is attached can only be continued while one is.

    Attributes:
        pruner: the method.
        model: the model, without what PEFT wraps around it.
    """

    def __init__(self, pruner: Pruner, model: PreTrainedModel) -> None:
        model = unwrapped(model)
        self._layout = layout_of(model)
        self._selector = pruner.before_llm
        check_needs(self._selector, model, self._layout)
        self.pruner, self.model = pruner, model
        self._arguments = host.forward_arguments(model)
        self._last: dict[Modality, BatchSelection] = {}
        self._reports: dict[Modality, list[ImageReport]] = {}
        self._pruned: CacheState | None = None
        self._attached = True
        self._outer = _run_in_force(model)
        if self._outer is not None:
            self._outer._remove_hooks()
        self._add_hooks()

    @property
    def images(self) -> list[ImageReport]:
        """One report per image of the last call that carried images, in prompt order; beams share one."""
        return self._report("image")

    @property
    def videos(self) -> list[ImageReport]:
        """One report per video of the last call that carried videos; its views are the frames."""
        return self._report("video")

    def detach(self) -> None:
        """Leave the model as it was before; does nothing the second time."""
        if not self._attached:
            return
        self._attached = False
        if _run_in_force(self.model) is not self:
            return
        self._remove_hooks()
        outer = self._outer
        while outer is not None and not outer._attached:
            outer = outer._outer
        if outer is not None:
            outer._add_hooks()

    def __enter__(self) -> Run:
        if not self._attached:
            raise RuntimeError("this run is detached and would prune nothing; use a new pruner.attach(model)")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()

    def _report(self, modality: Modality) -> list[ImageReport]:
        last = self._last.pop(modality, None)
        if last is not None:
            self._reports[modality] = report_images(
                last.selection, last.sizes, last.views, last.ranked, last.per_layer, last.pair_cost
            )
        return self._reports.get(modality, [])

    def _add_hooks(self) -> None:
        self._stock_masks = host.mask_maker(self.model)
        self._replaced: list[tuple[dict[str, Any], str, Any]] = []
        self._replace(self.model, host.MASK_MAKER, self._create_masks)
        base = self.model.base_model
        for modality in PIXELS:
            if (encoder := host.encoder_of(self.model, modality)) is not None:
                recording = RecordingEncoder(encoder, *reader(self._selector, self.model, modality))
                self._replace(base, host.encoder_name(modality), recording)
        self._handles = [
            self.model.register_forward_pre_hook(self._before, with_kwargs=True),
            self.model.register_forward_hook(self._after, with_kwargs=True),
        ]
        try:
            self._handles += self.pruner.hooks(self)
        except Exception:
            self.detach()
            raise

    def _replace(self, module: Module, name: str, value: Any) -> None:
        """Set an attribute of this module alone, remembering what to put back."""
        attributes = vars(module)
        self._replaced.append((attributes, name, attributes.get(name)))
        attributes[name] = value

    def _remove_hooks(self) -> None:
        for handle in self._handles:
            handle.remove()
        for attributes, name, before in self._replaced:
            del attributes[name]
            if before is not None:
                attributes[name] = before

    def _create_masks(self, attention_mask: Tensor | None = None, **others: Any) -> Any:
        """Leave the mask of pruned columns 2-D, where `generate()` prepares a 4-D one for a static cache."""
        if host.first_step(others) or read_state(host.cache_of(others)) is not None:
            return attention_mask
        return self._stock_masks(attention_mask=attention_mask, **others)

    def _before(
        self, model: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[()], dict[str, Any]] | None:
        call = {**dict(zip(self._arguments, args, strict=False)), **kwargs}
        host.check_arguments(call)
        ids, cache = call.get("input_ids"), host.cache_of(call)
        state, carried = read_state(cache), modalities(call)
        if not torch.compiler.is_compiling():  # what is compiled has a state, and must not depend on this one
            pruned, self._pruned = self._pruned, None
            if pruned is not None and state is None and not carried:
                _check_continuation(call, pruned)
        if "video" in carried and self._layout.video is None:
            raise ValueError(
                f"this call carries a video, whose tokens would be left unpruned; of {model.config.model_type} only "
                f"images can be pruned; detach the pruner for calls with videos"
            )
        if ids is None:
            _without_ids(needed=bool(carried) or state is not None)
            return None
        if state is None and not carried:
            return None
        if state is not None and state.static is not None and not carried and ids.shape[1] == 1:
            return (), {**call, **state.static.arguments(cache)}
        if state is None and host.columns_of(cache) == 0:
            verify_untested(model, call)
        return (), self._rewrite(call, state)

    def _after(self, model: PreTrainedModel, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        outputs = kwargs.get(host.ENCODED)
        if not isinstance(outputs, EncoderOutputs) or outputs.state is None:
            return
        cache = host.cache_of(kwargs) or host.cache_in(output)
        if cache is not None:
            write_state(cache, outputs.state)
        if outputs and not torch.compiler.is_compiling():
            self._pruned = outputs.state

    @torch.compiler.disable
    def _rewrite(self, call: dict[str, Any], state: CacheState | None) -> dict[str, Any]:
        return rewrite_call(self.model, self._layout, call, state, self._select, self._selector.positions)

    def _select(
        self, modality: Modality, output: ModelOutput, ids: Tensor, placeholders: Tensor, text: Tensor
    ) -> BatchSelection:
        batch = select_visual(self._selector, self._layout, self.model, modality, output, ids, placeholders, text)
        self._last[modality] = batch
        # Ids, not the models: a pruner stays small, and can be pickled.
        warned: set[int] = vars(self.pruner).setdefault("_warned_models", set())
        if id(self.model) not in warned and (message := self._selector.warning(batch.selection)):
            warned.add(id(self.model))
            warnings.warn(message, stacklevel=2)
        return batch


def _run_in_force(model: PreTrainedModel) -> Run | None:
    owners = (getattr(hook, "__self__", None) for hook in model._forward_pre_hooks.values())
    return next((owner for owner in owners if isinstance(owner, Run)), None)


def _check_continuation(call: dict[str, Any], pruned: CacheState) -> None:
    """Raise UnsupportedModel if a call goes on with what was just pruned, but not with its cache.

    That is a single token beside as many cached columns as were just filled, or beside a mask or position that says
    that more came before it than its cache holds.

    Args:
        call: one without images, whose cache has no state.
        pruned: the state of the cache that the call before it filled.
    """
    ids, mask, positions = (call.get(name) for name in ("input_ids", "attention_mask", "position_ids"))
    if ids is None or ids.shape[1] != 1 or call.get("use_cache") is False:
        return
    cache = host.cache_of(call)
    cached = host.columns_of(cache)
    before = 0
    if isinstance(mask, Tensor) and mask.ndim == 2:
        before = mask.shape[1] - 1
    elif isinstance(positions, Tensor):
        before = int(positions.max())
    if cached == pruned.mask.shape[1] or before > cached or (cache is None and mask is None and positions is None):
        held = "no KV cache" if cache is None else f"a KV cache of {cached} columns that gprune did not see filled"
        raise UnsupportedModel(
            f"the call before this one pruned a prompt, and this one goes on with one token and {held}, so that "
            f"it would be answered wrong; accepted is the cache that the pruned call returned, or a copy.deepcopy of "
            f"it, under {' or '.join(host.CACHES)} in transformers {host.installed()}; pass that, or use_cache=False "
            f"for a prompt of its own"
        )


def _without_ids(needed: bool) -> None:
    message = "inputs_embeds is given without input_ids, in which the images' placeholders would be found"
    if needed:
        raise ValueError(f"{message}; images cannot be pruned so, nor a pruned cache continued; pass input_ids")
    warnings.warn(f"{message}; nothing is pruned in this call; pass input_ids and pixel_values", stacklevel=2)
