"""Models of vLLM with text between the visual tokens of one image: marks of tiles, or the ends of lines.

How many tokens are kept on either side of such text depends on what a picture shows, and vLLM must know before. So an
image takes one row of placeholders, as many as tokens are kept and stand between them, and what fills the row are
their features with the embeddings of the text in its places.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..host import placeholder
from ..tokens import Keep, VisualTokens
from .families import woven_views
from .host import WOVEN
from .one_axis import EagerEncoder, PruningModel
from .processing import PruningProcessor, span_of
from .settings import BEFORE, KEEP, unpacked

with WOVEN.checked():
    from vllm.model_executor.models.idefics3 import (
        Idefics3DummyInputsBuilder,
        Idefics3ForConditionalGeneration,
        Idefics3MultiModalProcessor,
        Idefics3ProcessingInfo,
    )
    from vllm.model_executor.models.llava import (
        LlavaDummyInputsBuilder,
        LlavaForConditionalGeneration,
        PixtralHFMultiModalProcessor,
        PixtralHFProcessingInfo,
    )
    from vllm.model_executor.models.mistral3 import (
        Mistral3DummyInputsBuilder,
        Mistral3ForConditionalGeneration,
        Mistral3MultiModalProcessor,
        Mistral3ProcessingInfo,
    )
    from vllm.model_executor.models.smolvlm import SmolVLMForConditionalGeneration, SmolVLMProcessingInfo
    from vllm.multimodal import MULTIMODAL_REGISTRY
    from vllm.multimodal.inputs import MultiModalFieldConfig, MultiModalKwargsItems
    from vllm.multimodal.parse import ImageProcessorItems

SPAN = "gprune_span"
"""The input of a model with the tokens of an image before pruning, from the first visual one to the last."""


class WovenProcessor(PruningProcessor):
    """Goes before a processor of vLLM that puts text between the visual tokens of an image."""

    def _apply_hf_processor_main(self, mm_items: Any, hf_kwargs: Mapping[str, object]) -> Any:
        data = super()._apply_hf_processor_main(mm_items, hf_kwargs)
        images = mm_items.get("image")
        if isinstance(images, ImageProcessorItems):
            given = MultiModalKwargsItems.from_hf_inputs(data, self._get_mm_fields_config(data, hf_kwargs))
            (update,) = self._unpruned_updates(mm_items, hf_kwargs, given)
            token = update.target[0]
            spans = []
            for index in range(len(images)):
                tokens = update.replacement(index).full
                start, end = span_of(tokens, token)
                spans.append(torch.tensor(tokens[start:end]))
            data[SPAN] = spans
        return data

    def _get_mm_fields_config(self, hf_inputs: Any, hf_processor_mm_kwargs: Mapping[str, object]) -> Any:
        fields = super()._get_mm_fields_config(hf_inputs, hf_processor_mm_kwargs)
        return {**fields, SPAN: MultiModalFieldConfig.batched("image", keep_on_cpu=True)}

    def _ranked(self, span: Sequence[int], token: int, size: tuple[int, int]) -> list[int]:
        config: Any = self.info.get_hf_config()
        return [len(view) for view in woven_views(config, torch.tensor(span) == token)]


class WovenModel(PruningModel):
    """Goes before a model of vLLM whose processor is a `WovenProcessor`."""

    def embed_multimodal(self, **inputs: Any) -> Sequence[Tensor]:
        """The features of images with the text between them, floating [n, d] each."""
        keeps, spans = inputs.pop(KEEP, None), inputs.pop(SPAN, None)
        if keeps is None or spans is None:  # images that were encoded elsewhere
            return super().embed_multimodal(**inputs)
        features, _ = self._encode({name: value for name, value in inputs.items() if name != BEFORE})
        return [
            self._weave(image, unpacked(keep), span) for image, keep, span in zip(features, keeps, spans, strict=True)
        ]

    def _weave(self, features: Tensor, keep: Keep, span: Tensor) -> Tensor:
        visual = span == placeholder(self.config)
        where = woven_views(self.config, visual, features.device)
        selection = self._select(VisualTokens(features, where, (len(features),)), keep)
        chosen = torch.zeros(len(features), dtype=torch.bool, device=features.device)
        chosen[selection.kept] = True
        if selection.features is not None:
            features = features.index_copy(0, selection.kept, selection.features)
        visual = visual.to(features.device)
        stays = ~visual
        stays[visual] = chosen
        rows = features.new_empty(len(span), features.shape[1])
        rows[visual] = features
        rows[~visual] = self.embed_input_ids(span.to(features.device)[~visual]).to(features.dtype)
        return self._with_places(rows[stays], stays.nonzero())


class TiledProcessor(WovenProcessor, Idefics3MultiModalProcessor):
    """Tokens with row and column tell tiles apart."""


class LlavaPixtralProcessor(WovenProcessor, PixtralHFMultiModalProcessor):
    """A token ends each line."""


class Mistral3Processor(WovenProcessor, Mistral3MultiModalProcessor):
    """A token ends each line."""


@MULTIMODAL_REGISTRY.register_processor(
    TiledProcessor, info=Idefics3ProcessingInfo, dummy_inputs=Idefics3DummyInputsBuilder
)
class GPruneIdefics3ForConditionalGeneration(EagerEncoder, WovenModel, Idefics3ForConditionalGeneration):
    """Idefics 3."""


@MULTIMODAL_REGISTRY.register_processor(
    TiledProcessor, info=SmolVLMProcessingInfo, dummy_inputs=Idefics3DummyInputsBuilder
)
class GPruneSmolVLMForConditionalGeneration(EagerEncoder, WovenModel, SmolVLMForConditionalGeneration):
    """SmolVLM."""


@MULTIMODAL_REGISTRY.register_processor(
    LlavaPixtralProcessor, info=PixtralHFProcessingInfo, dummy_inputs=LlavaDummyInputsBuilder
)
class GPruneLlavaPixtralForConditionalGeneration(WovenModel, LlavaForConditionalGeneration):
    """Pixtral, as a LLaVA of transformers."""


@MULTIMODAL_REGISTRY.register_processor(
    Mistral3Processor, info=Mistral3ProcessingInfo, dummy_inputs=Mistral3DummyInputsBuilder
)
class GPruneMistral3ForConditionalGeneration(WovenModel, Mistral3ForConditionalGeneration):
    """Mistral Small 3.1 and later."""
