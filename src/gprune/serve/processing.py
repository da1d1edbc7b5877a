"""What vLLM does with a request before the model runs: a budget is read, and placeholders are reserved for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from ..errors import BadValue
from ..tokens import Keep, kept_count
from . import metrics
from .families import views
from .host import REQUESTS
from .settings import BEFORE, KEEP, TRUST_UUID, keep_of, keep_tensor, keeps_positions, pruner_of

with REQUESTS.checked():
    from vllm.multimodal.cache import LruKeyReplicatedSenderCache, MultiModalProcessorOnlyCache
    from vllm.multimodal.inputs import MultiModalFieldConfig
    from vllm.multimodal.parse import ImageProcessorItems, MultiModalDataItems
    from vllm.multimodal.processing import PromptReplacement, PromptUpdateDetails

if TYPE_CHECKING:
    Base: Any
else:
    Base = object

PROFILING: Mapping[str, object] = MappingProxyType({KEEP: 1.0})
"""Of the dummy requests with which vLLM measures memory: a client may ask for everything."""

OWN_NAMES = "renderer"
"""How the names begin that vLLM gives to images itself when all its caches are off."""


@dataclass
class Shortened(PromptUpdateDetails):
    """The placeholders of an image after pruning.

    Args:
        before: placeholders of the image before.
        kept: those that are left.
        text: how many of both are for text between visual tokens.
    """

    before: int = 0
    kept: int = 0
    text: int = 0


class PruningProcessor(Base):
    """Goes before a processor of vLLM whose images are pixels or embeddings; the latter are taken as they are."""

    def get_dummy_inputs(self, *args: Any, **kwargs: Any) -> Any:
        """vLLM's own, for which as much is kept as may be asked for."""
        return replace(super().get_dummy_inputs(*args, **kwargs), hf_processor_mm_kwargs=PROFILING)

    def _cached_apply_hf_processor(self, inputs: Any, timing_ctx: Any) -> Any:
        _check_images(inputs.mm_data_items.get("image"))
        if not getattr(self.info.get_hf_config(), TRUST_UUID, False):
            inputs = _without_names(inputs)
        if isinstance(inputs.cache, LruKeyReplicatedSenderCache):
            # It takes an image for sent once it was read. That of a request that is refused then never is, and the
            # next request with it would fail.
            inputs = replace(inputs, cache=self._images)
        result = super()._cached_apply_hf_processor(inputs, timing_ctx)
        if inputs.hf_processor_mm_kwargs is not PROFILING:
            images = [update.content for (update,) in result.prompt_updates.get("image", ())]
            before, kept, text = (
                sum(getattr(image, name, 0) for image in images) for name in ("before", "kept", "text")
            )
            self._check_room(before - kept)
            metrics.VISUAL.inc(before - text)
            metrics.KEPT.inc(kept - text)
        return result

    def _apply_hf_processor_main(self, mm_items: MultiModalDataItems, hf_kwargs: Mapping[str, object]) -> Any:
        keep = self._keep(hf_kwargs)
        data = super()._apply_hf_processor_main(mm_items, _without_keep(hf_kwargs))
        images = mm_items.get("image")
        if isinstance(images, ImageProcessorItems):
            data[KEEP] = torch.stack([keep_tensor(keep)] * len(images))
        return data

    def _get_mm_fields_config(self, hf_inputs: Any, hf_processor_mm_kwargs: Mapping[str, object]) -> Any:
        fields = super()._get_mm_fields_config(hf_inputs, hf_processor_mm_kwargs)
        return {**fields, KEEP: MultiModalFieldConfig.batched("image", keep_on_cpu=True)}

    def _get_prompt_updates(
        self, mm_items: MultiModalDataItems, hf_processor_mm_kwargs: Mapping[str, object], out_mm_kwargs: Any
    ) -> Sequence[Any]:
        updates = self._unpruned_updates(mm_items, hf_processor_mm_kwargs, out_mm_kwargs)
        images, keep = mm_items.get("image"), self._keep(hf_processor_mm_kwargs)
        if not isinstance(images, ImageProcessorItems):
            return updates
        return [self._shortened(update, images, keep) if update.modality == "image" else update for update in updates]

    def _unpruned_updates(
        self, mm_items: MultiModalDataItems, hf_processor_mm_kwargs: Mapping[str, object], out_mm_kwargs: Any
    ) -> Sequence[Any]:
        return super()._get_prompt_updates(mm_items, _without_keep(hf_processor_mm_kwargs), out_mm_kwargs)

    def _matched_updates_from_result(self, mm_prompt_updates: Any, match_result: Mapping[str, Sequence[Any]]) -> Any:
        if any(place is None for places in match_result.values() for place in places):
            raise BadValue(
                "the prompt has no place for one of its images; send a longer truncate_prompt_tokens, or none, and a "
                "placeholder for every image"
            )
        return super()._matched_updates_from_result(mm_prompt_updates, match_result)

    def _get_mm_prompt_updates(
        self, mm_items: MultiModalDataItems, hf_processor_mm_kwargs: Mapping[str, object], out_mm_kwargs: Any
    ) -> Any:
        """vLLM's own; what an image had before pruning is left with it, for the positions of what follows."""
        result = super()._get_mm_prompt_updates(mm_items, hf_processor_mm_kwargs, out_mm_kwargs)
        field = MultiModalFieldConfig.batched("image", keep_on_cpu=True)
        for item, (update,) in zip(out_mm_kwargs.get("image", ()), result.get("image", ()), strict=True):
            if isinstance(update.content, Shortened):
                (item[BEFORE],) = field.build_elems(BEFORE, torch.tensor([update.content.before]))
        return result

    @cached_property
    def _images(self) -> Any:
        """Images that were read, which are sent with every request."""
        return MultiModalProcessorOnlyCache(self.info.ctx.model_config)

    def _check_room(self, dropped: int) -> None:
        """Raise BadValue if positions would not last, of which vLLM counts only those of the tokens that are left."""
        config: Any = self.info.get_hf_config()
        if not keeps_positions(config):
            return
        most, length = config.get_text_config().max_position_embeddings, self.info.ctx.model_config.max_model_len
        if dropped > most - length:
            raise BadValue(
                f"{dropped} visual tokens of the prompt are dropped, and {most - length} may be: the model has {most} "
                f"positions, of which prompt and answer may take {length} (--max-model-len); send fewer or smaller "
                f"images, or a larger budget"
            )

    def _keep(self, request: Mapping[str, object]) -> Keep:
        return keep_of(self.info.get_hf_config(), request)

    def _shortened(self, update: Any, images: ImageProcessorItems, keep: Keep) -> Any:
        scope = pruner_of(self.info.get_hf_config(), keep).scope
        token = update.target[0]

        def replacement(index: int) -> Shortened:
            details = update.replacement(index)
            if not isinstance(details, PromptUpdateDetails):
                details = PromptUpdateDetails.from_seq(details)
            width, height = images.get_image_size(index)
            start, end = span_of(details.full, token)
            ranked = self._ranked(details.full[start:end], token, (height, width))
            others = end - start - sum(ranked)
            left = others + sum(kept_count([sum(ranked)] if scope == "image" else ranked, keep))
            full = [*details.full[:start], *[token] * left, *details.full[end:]]
            text = end - start - details.full.count(token)
            return Shortened(full, details.is_embed, end - start, left, text)

        return PromptReplacement(update.modality, update.target, replacement)

    def _ranked(self, span: Sequence[int], token: int, size: tuple[int, int]) -> list[int]:
        """How many tokens each view of an image has, given those from its first visual token to its last."""
        config: Any = self.info.get_hf_config()
        return [len(view) for view in views(config, len(span), size)]


def span_of(tokens: Sequence[int], token: int) -> tuple[int, int]:
    """Where the placeholders of an image begin and end in what stands for it in a prompt."""
    return tokens.index(token), len(tokens) - tokens[::-1].index(token)


def _check_images(images: Any) -> None:
    """Raise BadValue for an image that only says where it is: transformers would fetch it, or open it on this disk."""
    if isinstance(images, ImageProcessorItems):
        for image in images.get_all():
            if image is not None and not isinstance(image, (Image.Image, np.ndarray, torch.Tensor)):
                raise BadValue(
                    f"an image is a {type(image).__name__}; accepted are pictures; send it as an image_url, in base64"
                )


def _without_names(inputs: Any) -> Any:
    """Have images known by what they show alone: one that bears a client's name could be another client's.

    Raises:
        BadValue: a client gives a name.
    """
    names = {name for given in (inputs.mm_uuid_items or {}).values() for name in given if name is not None}
    if any(not name.startswith(OWN_NAMES) for name in names):
        raise BadValue(
            "an image is named by a uuid, which this server does not accept, since clients could get each other's "
            "images by it; send the image without one, or start gprune serve with --trust-uuid if all clients may"
        )
    return replace(inputs, mm_uuid_items=None)


def _without_keep(request: Mapping[str, object]) -> Mapping[str, object]:
    return {name: value for name, value in request.items() if name != KEEP}
