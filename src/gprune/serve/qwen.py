"""Models of vLLM whose visual tokens have a place in a grid, which those that are kept keep; see docs/serving.md."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from .host import GRIDS
from .one_axis import EagerEncoder, PruningModel
from .placing import PlacingModel
from .processing import PROFILING, PruningProcessor

with GRIDS.checked():
    from vllm.model_executor.models.qwen2_5_vl import (
        Qwen2_5_VLDummyInputsBuilder,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLMultiModalProcessor,
        Qwen2_5_VLProcessingInfo,
    )
    from vllm.model_executor.models.qwen2_vl import (
        Qwen2VLDummyInputsBuilder,
        Qwen2VLForConditionalGeneration,
        Qwen2VLMultiModalProcessor,
        Qwen2VLProcessingInfo,
    )
    from vllm.model_executor.models.qwen3_vl import (
        Qwen3VLDummyInputsBuilder,
        Qwen3VLForConditionalGeneration,
        Qwen3VLMultiModalProcessor,
        Qwen3VLProcessingInfo,
    )
    from vllm.multimodal import MULTIMODAL_REGISTRY
    from vllm.multimodal.parse import ImageProcessorItems

if TYPE_CHECKING:
    Base: Any
else:
    Base = object


class GridProcessor(PruningProcessor):
    """Goes before a processor of vLLM that tells the grid of an image."""

    def _cached_apply_hf_processor(self, inputs: Any, timing_ctx: Any) -> Any:
        images = inputs.mm_data_items.get("image")
        if images and inputs.hf_processor_mm_kwargs is not PROFILING:
            self._check_span(images)
        return super()._cached_apply_hf_processor(inputs, timing_ctx)

    def _check_span(self, images: ImageProcessorItems) -> None:
        """Raise ValueError if images take more positions than the model has; vLLM counts the tokens that are left."""
        config: Any = self.info.get_hf_config()
        cell = config.vision_config.patch_size * config.vision_config.spatial_merge_size
        processor = self.info.get_image_processor()
        span = 0
        for index in range(len(images)):
            width, height = images.get_image_size(index)
            resized, _ = self.info._get_vision_info(
                image_width=width, image_height=height, image_processor=processor, mm_kwargs={}
            )
            span += max(resized) // cell
        most = config.text_config.max_position_embeddings
        if span > most:
            raise ValueError(
                f"the images span {span} positions, however few of their tokens are kept, and the model has {most}; "
                f"send fewer or smaller ones"
            )


class GridModel(EagerEncoder, PruningModel):
    """Goes before a model of vLLM that numbers text, time, height and width."""

    _sizes: ClassVar[str] = "image_grid_thw"
    _axes: ClassVar[int] = 3

    def _keeps_positions(self, config: Any) -> bool:
        return True

    def _unpruned_positions(self, tokens: list[int], features: list[Any]) -> tuple[Tensor, int]:
        return super(PlacingModel, self).get_mrope_input_positions(tokens, features)

    def _places_of(self, kept: Tensor, size: tuple[int, int]) -> Tensor:
        columns = size[1] // self.config.vision_config.spatial_merge_size
        return torch.stack([torch.zeros_like(kept), kept // columns, kept % columns], dim=1)

    def _check_positions(self, config: Any) -> None:
        """vLLM has four times as many positions as such a model says, for videos."""


class LayeredModel(GridModel):
    """Goes before a model whose features of inner layers of the vision tower lie beside the last ones."""

    def _compared(self, features: Tensor) -> Tensor:
        """The last features alone."""
        return features[:, : self.visual_dim]


class PicturesOnly(Base):
    """Goes before what vLLM knows of a model's inputs: its answers about videos do not all equal transformers'."""

    def get_supported_mm_limits(self) -> dict[str, int | None]:
        """Pictures alone."""
        return {"image": None, "video": 0}


class Qwen2VLInfo(PicturesOnly, Qwen2VLProcessingInfo):
    pass


class Qwen2_5_VLInfo(PicturesOnly, Qwen2_5_VLProcessingInfo):
    pass


class Qwen3VLInfo(PicturesOnly, Qwen3VLProcessingInfo):
    pass


class Qwen2VLProcessor(GridProcessor, Qwen2VLMultiModalProcessor):
    pass


class Qwen2_5_VLProcessor(GridProcessor, Qwen2_5_VLMultiModalProcessor):
    pass


class Qwen3VLProcessor(GridProcessor, Qwen3VLMultiModalProcessor):
    pass


@MULTIMODAL_REGISTRY.register_processor(Qwen2VLProcessor, info=Qwen2VLInfo, dummy_inputs=Qwen2VLDummyInputsBuilder)
class GPruneQwen2VLForConditionalGeneration(GridModel, Qwen2VLForConditionalGeneration):
    pass


@MULTIMODAL_REGISTRY.register_processor(
    Qwen2_5_VLProcessor, info=Qwen2_5_VLInfo, dummy_inputs=Qwen2_5_VLDummyInputsBuilder
)
class GPruneQwen2_5_VLForConditionalGeneration(GridModel, Qwen2_5_VLForConditionalGeneration):
    pass


@MULTIMODAL_REGISTRY.register_processor(Qwen3VLProcessor, info=Qwen3VLInfo, dummy_inputs=Qwen3VLDummyInputsBuilder)
class GPruneQwen3VLForConditionalGeneration(LayeredModel, Qwen3VLForConditionalGeneration):
    pass
