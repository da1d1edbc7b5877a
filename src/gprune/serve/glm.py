"""GLM-4V, whose visual tokens have places as those of Qwen-VL, in the experiment that `qwen.py` is."""

from __future__ import annotations

from typing import Any

from .host import GLM
from .qwen import GridModel, GridProcessor, PicturesOnly

with GLM.checked():
    from vllm.model_executor.models.glm4_1v import (
        Glm4vDummyInputsBuilder,
        Glm4vForConditionalGeneration,
        Glm4vMultiModalProcessor,
        Glm4vProcessingInfo,
    )
    from vllm.multimodal import MULTIMODAL_REGISTRY


class Glm4vInfo(PicturesOnly, Glm4vProcessingInfo):
    """Pictures alone."""

    def _get_vision_info(
        self, *, image_processor: Any = None, mm_kwargs: Any = None, **settings: Any
    ) -> tuple[Any, int]:
        """The size of a scaled image; vLLM asks for it without a processor here, and `GridProcessor` with one."""
        if image_processor is not None:
            settings |= {"num_frames": 1, "max_image_pixels": self._get_image_max_pixels()}
        return super()._get_vision_info(**settings)


class Glm4vProcessor(GridProcessor, Glm4vMultiModalProcessor):
    """Tells the grid of an image."""


@MULTIMODAL_REGISTRY.register_processor(Glm4vProcessor, info=Glm4vInfo, dummy_inputs=Glm4vDummyInputsBuilder)
class GPruneGlm4vForConditionalGeneration(GridModel, Glm4vForConditionalGeneration):
    """GLM-4V."""
