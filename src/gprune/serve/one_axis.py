"""vLLM's own models, with a pruner between their projector and their language model."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from ..pruners import NonFiniteFeatures, Pruner, Selection
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

if TYPE_CHECKING:
    from .tower_signals import TowerReader

    Base: Any
else:
    Base = object

Signals = Mapping[str, Tensor]
"""What is known of the visual tokens of an image beside their features, by name: [n, ...]."""

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
        self._reader = reader_of(self, self._pruner, vllm_config)

    def embed_multimodal(self, **inputs: Any) -> Sequence[Tensor]:
        """The features of images or videos, floating [n, d] each."""
        inputs.pop(BEFORE, None)
        keeps, sizes = inputs.pop(KEEP, None), inputs.get(self._sizes)
        if keeps is None:  # videos, or images that were encoded elsewhere
            return [self._with_places(item) for item in super().embed_multimodal(**inputs)]
        features, signals = self._encode(inputs)
        return [
            self._prune(image, unpacked(keep), (1, 1) if sizes is None else tuple(sizes[i][-2:].tolist()), own)
            for i, (image, keep, own) in enumerate(zip(features, keeps, signals, strict=True))
        ]

    def _encode(self, inputs: Mapping[str, Any]) -> tuple[Sequence[Tensor], Sequence[Signals]]:
        """The features of images, and what is read of their visual tokens in the vision tower, if it is."""
        if self._reader is None:
            features = super().embed_multimodal(**inputs)
            return features, [{}] * len(features)
        with self._reader.reading() as readings:
            features = super().embed_multimodal(**inputs)
        return features, self._reader.signals(readings, inputs, features)

    def _prune(self, features: Tensor, keep: Keep, size: tuple[int, int], signals: Signals) -> Tensor:
        where = views(self.config, len(features), size, features.device)
        selection = self._select(VisualTokens(self._compared(features), where, (len(features),), signals), keep)
        kept = features[selection.kept] if selection.features is None else selection.features
        return self._with_places(kept, self._places_of(selection.kept, size))

    def _compared(self, features: Tensor) -> Tensor:
        """What tokens are chosen by, of features [n, d]."""
        return features

    def _select(self, tokens: VisualTokens, keep: Keep) -> Selection:
        _wait(tokens.features)
        started = time.perf_counter()
        selection = select_rows(replace(self._pruner, keep=keep), tokens)
        _wait(selection.kept)
        metrics.SECONDS.inc(time.perf_counter() - started)
        return selection


class EagerEncoder(Base):
    """Goes before a model of vLLM whose encoder can run as a CUDA graph, which would end where pruning begins."""

    def get_encoder_cudagraph_config(self) -> Any:
        """Without any input."""
        config = super().get_encoder_cudagraph_config()
        config.modalities = []
        return config


def reader_of(model: Any, pruner: Pruner, vllm_config: Any) -> TowerReader | None:
    """What reads the vision tower of a model of vLLM, if the method needs to know of it.

    Raises:
        ValueError: vLLM is started in a way in which a worker does not see every image.
    """
    if not pruner.needs:
        return None
    if vllm_config.model_config.multimodal_config.mm_encoder_tp_mode == "data":
        raise ValueError(
            f"{pruner.name} needs the {' and the '.join(pruner.needs)} of the vision tower for every image, which "
            f"with --mm-encoder-tp-mode data each worker computes for some of them; leave that option out"
        )
    from .tower_signals import TowerReader

    return TowerReader(model, vllm_config.model_config.hf_config, pruner.needs)


def select_rows(pruner: Pruner, tokens: VisualTokens) -> Selection:
    """What is kept; an image with features that are NaN or Inf must not end the server, and loses those first."""
    try:
        return pruner.select(tokens)
    except NonFiniteFeatures as error:
        logger.error("gprune: %s; they count as zeros when tokens are chosen, and the answer may be useless", error)
        finite = tokens.features.isfinite().all(-1, keepdim=True)
        return pruner.select(replace(tokens, features=tokens.features.where(finite, 0)))


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
