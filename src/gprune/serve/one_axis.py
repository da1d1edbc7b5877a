"""vLLM's own models, with a pruner between their projector and their language model."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..pruners import NonFiniteFeatures, Pruner
from ..tokens import Keep, VisualTokens
from . import metrics
from .families import views
from .host import MODELS
from .placing import PlacingModel
from .processing import PruningProcessor
from .settings import BEFORE, KEEP, keep_of, pruner_of, unpacked

with MODELS.checked():
    from vllm.model_executor.models.interns1 import (
        InternS1DummyInputsBuilder,
        InternS1ForConditionalGeneration,
        InternS1MultiModalProcessor,
        InternS1ProcessingInfo,
    )
    from vllm.model_executor.models.llava import (
        LlavaDummyInputsBuilder,
        LlavaForConditionalGeneration,
        LlavaMultiModalProcessor,
        LlavaProcessingInfo,
    )
    from vllm.model_executor.models.llava_next import (
        LlavaNextForConditionalGeneration,
        LlavaNextMultiModalProcessor,
        LlavaNextProcessingInfo,
    )
    from vllm.model_executor.models.llava_onevision import (
        LlavaOnevisionDummyInputsBuilder,
        LlavaOnevisionForConditionalGeneration,
        LlavaOnevisionMultiModalProcessor,
        LlavaOnevisionProcessingInfo,
    )
    from vllm.model_executor.models.utils import WeightsMapper
    from vllm.multimodal import MULTIMODAL_REGISTRY

logger = logging.getLogger(__name__)

FLAT_TOWER = WeightsMapper(
    orig_to_new_regex={
        re.compile(r"^(model\.)?vision_tower\.(?!vision_model\.)"): "vision_tower.vision_model.",
    }
)
"""Checkpoints written by transformers 5 lack a level of names that vLLM's CLIP and SigLIP have."""


class PruningModel(PlacingModel):
    """Goes before a model of vLLM: images come out of its encoder with as many tokens as their budget says."""

    config: Any
    _pruner: Pruner
    _sizes: ClassVar[str] = "image_sizes"
    """The input that ends in (height, width) of each image, where there is one; the others are square."""

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        config = vllm_config.model_config.hf_config
        self._pruner = pruner_of(config, keep_of(config, {}))

    def embed_multimodal(self, **inputs: Any) -> Sequence[Tensor]:
        """The features of images or videos, floating [n, d] each."""
        inputs.pop(BEFORE, None)
        keeps, sizes = inputs.pop(KEEP, None), inputs.get(self._sizes)
        features = super().embed_multimodal(**inputs)
        if keeps is None:  # videos, or images that were encoded elsewhere
            return [self._with_places(item) for item in features]
        return [
            self._prune(image, unpacked(keep), (1, 1) if sizes is None else tuple(sizes[i][-2:].tolist()))
            for i, (image, keep) in enumerate(zip(features, keeps, strict=True))
        ]

    def _prune(self, features: Tensor, keep: Keep, size: tuple[int, int]) -> Tensor:
        kept = self._choose(features, keep, size)
        return self._with_places(features[kept], self._places_of(kept, size))

    def _choose(self, features: Tensor, keep: Keep, size: tuple[int, int]) -> Tensor:
        """The kept rows of an image's features: int64 [k], ascending."""
        _wait(features)
        started = time.perf_counter()
        where = views(self.config, len(features), size, features.device)
        kept = select_rows(replace(self._pruner, keep=keep), VisualTokens(features, where, (len(features),)))
        _wait(kept)
        metrics.SECONDS.inc(time.perf_counter() - started)
        return kept


def select_rows(pruner: Pruner, tokens: VisualTokens) -> Tensor:
    """The kept rows; an image with features that are NaN or Inf must not end the server, and loses those first."""
    try:
        return pruner.select(tokens).kept
    except NonFiniteFeatures as error:
        logger.error("gprune: %s; they count as zeros when tokens are chosen, and the answer may be useless", error)
        finite = tokens.features.isfinite().all(-1, keepdim=True)
        return pruner.select(replace(tokens, features=tokens.features.where(finite, 0))).kept


def _wait(tensor: Tensor) -> None:
    """A GPU works on while the host's clock runs."""
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)


class LlavaProcessor(PruningProcessor, LlavaMultiModalProcessor):
    pass


class LlavaNextProcessor(PruningProcessor, LlavaNextMultiModalProcessor):
    pass


class LlavaOnevisionProcessor(PruningProcessor, LlavaOnevisionMultiModalProcessor):
    pass


class InternVLProcessor(PruningProcessor, InternS1MultiModalProcessor):
    pass


@MULTIMODAL_REGISTRY.register_processor(LlavaProcessor, info=LlavaProcessingInfo, dummy_inputs=LlavaDummyInputsBuilder)
class GPruneLlavaForConditionalGeneration(PruningModel, LlavaForConditionalGeneration):
    hf_to_vllm_mapper = FLAT_TOWER | LlavaForConditionalGeneration.hf_to_vllm_mapper


@MULTIMODAL_REGISTRY.register_processor(
    LlavaNextProcessor, info=LlavaNextProcessingInfo, dummy_inputs=LlavaDummyInputsBuilder
)
class GPruneLlavaNextForConditionalGeneration(PruningModel, LlavaNextForConditionalGeneration):
    hf_to_vllm_mapper = FLAT_TOWER | LlavaNextForConditionalGeneration.hf_to_vllm_mapper


@MULTIMODAL_REGISTRY.register_processor(
    LlavaOnevisionProcessor, info=LlavaOnevisionProcessingInfo, dummy_inputs=LlavaOnevisionDummyInputsBuilder
)
class GPruneLlavaOnevisionForConditionalGeneration(PruningModel, LlavaOnevisionForConditionalGeneration):
    hf_to_vllm_mapper = FLAT_TOWER | LlavaOnevisionForConditionalGeneration.hf_to_vllm_mapper


@MULTIMODAL_REGISTRY.register_processor(
    InternVLProcessor, info=InternS1ProcessingInfo, dummy_inputs=InternS1DummyInputsBuilder
)
class GPruneInternVLForConditionalGeneration(PruningModel, InternS1ForConditionalGeneration):
    pass
