"""Models of vLLM whose visual tokens have a place in a grid: an experiment, see docs/serving.md.

The kept tokens are to keep their places. vLLM asks a model for the places of its visual tokens when their features
reach the language model, though only since it prunes videos itself, and only if told to (`--video-pruning-rate`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from ..tokens import Keep
from .host import GRIDS
from .one_axis import EagerEncoder, PruningModel, Signals
from .places import Placed, fill_in, prompt_positions, split_places, with_places
from .processing import PROFILING, PruningProcessor

with GRIDS.checked():
    from vllm.model_executor.models.interfaces import SupportsMultiModalPruning
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

CPU_WORKER = "vllm.v1.worker.cpu_worker.CPUWorker"


class PicturesOnly(Base):
    """Goes before what vLLM knows of a model's inputs: with the pruning of videos on, videos would be pruned."""

    def get_supported_mm_limits(self) -> dict[str, int | None]:
        """Pictures alone."""
        return {"image": None, "video": 0}


class PlacingProcessor(PruningProcessor):
    """Goes before a processor of vLLM that tells the grid of an image."""

    def _cached_apply_hf_processor(self, inputs: Any, timing_ctx: Any) -> Any:
        # Refused before vLLM takes the images for sent: it would not send them with the next request.
        images = inputs.mm_data_items.get("image")
        if images and inputs.hf_processor_mm_kwargs is not PROFILING:
            self._check_end(inputs.prompt)
            self._check_span(images)
        return super()._cached_apply_hf_processor(inputs, timing_ctx)

    def _check_end(self, prompt: Sequence[int]) -> None:
        """Raise ValueError if the prompt ends in an image: positions go on after the last token of text."""
        config: Any = self.info.get_hf_config()
        if list(prompt[-1:]) == [config.image_token_id]:
            raise ValueError(
                "the prompt ends in an image; with gprune at least one token has to follow, as in every chat template"
            )

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


class PlacingModel(EagerEncoder, PruningModel):
    """Goes before a model of vLLM: what comes out of the encoder has its place in columns after the features."""

    _sizes: ClassVar[str] = "image_grid_thw"
    _own_pruning: ClassVar[str | None] = "is_multimodal_pruning_enabled"
    """What a model of vLLM that prunes videos itself looks at; None where it does not."""

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        check_offered(vllm_config)
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        if self._own_pruning is not None:  # it would add other columns
            if not hasattr(self, self._own_pruning):
                raise GRIDS.refusal([f"{type(self).__name__}.{self._own_pruning} is missing"])
            setattr(self, self._own_pruning, False)

    def get_mrope_input_positions(self, input_tokens: list[int], mm_features: list[Any]) -> tuple[Tensor, int]:
        """int64 [3, n], all but the heights and widths of visual tokens; and the lead of what follows."""
        merge = self.config.vision_config.spatial_merge_size
        images = []
        for feature in sorted(mm_features, key=lambda feature: feature.mm_position.offset):
            _, rows, columns = feature.data["image_grid_thw"].data.tolist()
            where = feature.mm_position
            images.append(Placed(where.offset, where.length, (rows // merge, columns // merge)))
        return prompt_positions(len(input_tokens), images)

    def recompute_mrope_positions(
        self,
        input_ids: list[int] | Tensor,
        multimodal_embeddings: Sequence[Tensor],
        mrope_positions: Tensor,
        num_computed_tokens: int,
    ) -> tuple[Sequence[Tensor], Tensor, int]:
        """Features without places, the positions with them, and the lead of what follows the prompt.

        Args:
            input_ids: int [n], the prompt.
            multimodal_embeddings: of the next visual tokens of this prompt, [k, d + COLUMNS] each.
            mrope_positions: int64 [3, n].
            num_computed_tokens: of the prompt so far.
        """
        parts = [split_places(features) for features in multimodal_embeddings]
        if parts:
            visual = torch.as_tensor(input_ids, device=mrope_positions.device) == self.config.image_token_id
            places = [places for _, places in parts]
            mrope_positions = fill_in(mrope_positions, visual, num_computed_tokens, places)
        following = int(mrope_positions[0, -1]) + 1  # the last token is text
        return [features for features, _ in parts], mrope_positions, following - mrope_positions.shape[1]

    def _prune(self, features: Tensor, keep: Keep, size: tuple[int, int], signals: Signals) -> Tensor:
        columns = size[1] // self.config.vision_config.spatial_merge_size
        return with_places(features, self._choose(features, keep, size), columns)


class LayeredModel(PlacingModel):
    """Goes before a model whose features of inner layers of the vision tower lie beside the last ones."""

    def _choose(self, features: Tensor, keep: Keep, size: tuple[int, int]) -> Tensor:
        """By the last features alone."""
        return super()._choose(features[:, : self.visual_dim], keep, size)


def check_offered(config: Any) -> None:
    """Raise ValueError if vLLM is started in a way in which tokens would get wrong places.

    Args:
        config: of vLLM.
    """
    for wrong, reason in (
        (
            not config.model_config.multimodal_config.is_multimodal_pruning_enabled(),
            "vLLM has to be started with --video-pruning-rate 0.5, or else it never asks for their places",
        ),
        (
            config.parallel_config.worker_cls == CPU_WORKER,
            "vLLM's worker for CPUs never asks for their places",
        ),
        (
            config.parallel_config.pipeline_parallel_size > 1,
            "with --pipeline-parallel-size, vLLM tells their places to the first stage only",
        ),
        (
            config.speculative_config is not None,
            "with --speculative-config, vLLM looks for their places one token too late",
        ),
        (
            config.model_config.enable_prompt_embeds or config.model_config.multimodal_config.enable_mm_embeds,
            "with --enable-prompt-embeds or --enable-mm-embeds, features come without places",
        ),
    ):
        if wrong:
            raise ValueError(f"gprune cannot prune a model whose visual tokens have places in a grid: {reason}")


class Qwen2VLInfo(PicturesOnly, Qwen2VLProcessingInfo):
    pass


class Qwen2_5_VLInfo(PicturesOnly, Qwen2_5_VLProcessingInfo):
    pass


class Qwen3VLInfo(PicturesOnly, Qwen3VLProcessingInfo):
    pass


class Qwen2VLProcessor(PlacingProcessor, Qwen2VLMultiModalProcessor):
    pass


class Qwen2_5_VLProcessor(PlacingProcessor, Qwen2_5_VLMultiModalProcessor):
    pass


class Qwen3VLProcessor(PlacingProcessor, Qwen3VLMultiModalProcessor):
    pass


@MULTIMODAL_REGISTRY.register_processor(Qwen2VLProcessor, info=Qwen2VLInfo, dummy_inputs=Qwen2VLDummyInputsBuilder)
class GPruneQwen2VLForConditionalGeneration(PlacingModel, Qwen2VLForConditionalGeneration, SupportsMultiModalPruning):
    _own_pruning = None


@MULTIMODAL_REGISTRY.register_processor(
    Qwen2_5_VLProcessor, info=Qwen2_5_VLInfo, dummy_inputs=Qwen2_5_VLDummyInputsBuilder
)
class GPruneQwen2_5_VLForConditionalGeneration(PlacingModel, Qwen2_5_VLForConditionalGeneration):
    pass


@MULTIMODAL_REGISTRY.register_processor(Qwen3VLProcessor, info=Qwen3VLInfo, dummy_inputs=Qwen3VLDummyInputsBuilder)
class GPruneQwen3VLForConditionalGeneration(LayeredModel, Qwen3VLForConditionalGeneration):
    pass
