"""Qwen3-VL with experts, in the experiment that `qwen.py` is."""

from __future__ import annotations

from .host import QWEN_MOE
from .qwen import LayeredModel, PicturesOnly, Qwen3VLProcessor

with QWEN_MOE.checked():
    from vllm.model_executor.models.qwen3_vl import Qwen3VLDummyInputsBuilder
    from vllm.model_executor.models.qwen3_vl_moe import Qwen3VLMoeForConditionalGeneration, Qwen3VLMoeProcessingInfo
    from vllm.multimodal import MULTIMODAL_REGISTRY


class Qwen3VLMoeInfo(PicturesOnly, Qwen3VLMoeProcessingInfo):
    """Pictures alone."""


@MULTIMODAL_REGISTRY.register_processor(Qwen3VLProcessor, info=Qwen3VLMoeInfo, dummy_inputs=Qwen3VLDummyInputsBuilder)
class GPruneQwen3VLMoeForConditionalGeneration(LayeredModel, Qwen3VLMoeForConditionalGeneration):
    """Qwen3-VL with experts."""
