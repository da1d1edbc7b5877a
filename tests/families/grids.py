"""Families that keep the shape of an image: one view whose grid follows from its size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from .base import Family, Layout, Media, Size, Text, Video
from .parts import BEGIN, BREAK, END, IMAGE, IMAGE_AND_VIDEO, LINE, VIDEO, text, vision

PATCH, MERGE, FRAMES = 4, 2, 2
CELL = PATCH * MERGE
"""Side in pixels of what one token shows."""


class Mistral3(Family):
    """Text tokens break the lines of an image; images of a batch are padded to the largest."""

    def grid(self, size: Size) -> Size:
        """(lines, columns) of an image, which is resized to whole cells and at most eight of them."""
        lines, columns = (min(8, math.ceil(pixels / CELL)) for pixels in size)
        return lines, columns

    def image_layout(self, size: Size) -> Layout:
        lines, columns = self.grid(size)
        return lines * columns, [(list(range(lines * columns)), (lines, columns))]

    def image_ids(self, size: Size, text: Text) -> list[int]:
        lines, columns = self.grid(size)
        return [*([*[IMAGE] * columns, BREAK] * lines)[:-1], END]

    def image_pixels(self, size: Size, generator: Generator) -> dict[str, Tensor]:
        height, width = (cells * CELL for cells in self.grid(size))
        return {
            "pixel_values": torch.randn(1, 3, height, width, generator=generator),
            "image_sizes": torch.tensor([[height, width]]),
        }


class MRope(Family):
    """Pixels come as flat patches; text, time, height and width are numbered each on its own axis."""

    def grid(self, size: Size) -> Size:
        """(rows, columns) of the tokens of an image or a frame."""
        rows, columns = (max(1, round(pixels / CELL)) for pixels in size)
        return rows, columns

    def image_layout(self, size: Size) -> Layout:
        return self._layout(1, size)

    def image_pixels(self, size: Size, generator: Generator) -> dict[str, Tensor]:
        patches, grid = self._patches(1, size, generator)
        return {"pixel_values": patches, "image_grid_thw": grid}

    def token_types(self, ids: Tensor) -> dict[str, Tensor]:
        return {"mm_token_type_ids": (ids == IMAGE).long() + 2 * (ids == VIDEO)}

    def positions(self, model: Any, prompt: dict[str, Tensor]) -> Tensor:
        order = super().positions(model, prompt)
        shown = {name: grid for name, grid in prompt.items() if name.endswith("_grid_thw")}
        types = prompt["mm_token_type_ids"]
        axes = model.base_model.get_rope_index(prompt["input_ids"], mm_token_type_ids=types, **shown)[0]
        return torch.cat([order[None], axes])

    def _layout(self, times: int, size: Size) -> Layout:
        rows, columns = self.grid(size)
        area = rows * columns
        return times * area, [(list(range(t * area, (t + 1) * area)), (rows, columns)) for t in range(times)]

    def _patches(self, times: int, size: Size, generator: Generator) -> tuple[Tensor, Tensor]:
        grid = [times, *(cells * MERGE for cells in self.grid(size))]
        patches = torch.randn(math.prod(grid), 3 * FRAMES * PATCH**2, generator=generator)
        return patches, torch.tensor([grid])


class Qwen2VL(MRope):
    """A token of a video shows two frames; its frames follow each other without text between them."""

    takes_videos = True

    def video_layout(self, video: Video) -> Layout:
        return self._layout(math.ceil(video[0] / FRAMES), video[1])

    def video_pixels(self, video: Video, generator: Generator) -> dict[str, Tensor]:
        patches, grid = self._patches(math.ceil(video[0] / FRAMES), video[1], generator)
        return {"pixel_values_videos": patches, "video_grid_thw": grid}


class Qwen3VL(Qwen2VL):
    """A time stamp stands before every frame; features of inner layers of the vision tower may go to the LLM too."""

    def video_ids(self, video: Video, text: Text) -> list[int]:
        views = self.layout(video)[1]
        frames = [token for rows, _ in views for token in (*text(3), BEGIN, *[VIDEO] * len(rows), END)]
        return [*self.before, *frames, *self.after]

    def deepstack(self, model: Any, inputs: dict[str, Tensor], images: Sequence[Sequence[Media]]) -> list[Tensor]:
        levels = range(len(self.settings["vision_config"].get("deepstack_visual_indexes", ())) if any(images) else 0)
        return [
            torch.cat(self._read_encoders(model, inputs, images, lambda output, i=level: output.deepstack_features[i]))
            for level in levels
        ]


def _qwen(text_config: dict[str, Any], **vision_config: Any) -> dict[str, Any]:
    tower = {
        "depth": 2,
        "hidden_size": 16,
        "out_hidden_size": 32,
        "intermediate_size": 24,
        "num_heads": 2,
        "patch_size": PATCH,
        "spatial_merge_size": MERGE,
        "temporal_patch_size": FRAMES,
        **vision_config,
    }
    return {"text_config": text_config, "vision_config": tower, **IMAGE_AND_VIDEO}


def _rope(*sections: int, **settings: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [*sections], **settings}}


QWEN = {"vision_start_token_id": BEGIN, "vision_end_token_id": END}
GLM = {
    "image_start_token_id": BEGIN,
    "image_end_token_id": END,
    "video_start_token_id": LINE,
    "video_end_token_id": BREAK,
}

GRIDS: tuple[Family, ...] = (
    Qwen2VL(
        "qwen2_vl",
        {
            **_qwen(text("qwen2_vl_text", **_rope(1, 1, 2)), embed_dim=16, hidden_size=32, mlp_ratio=2),
            **QWEN,
        },
        before=(BEGIN,),
        after=(END,),
    ),
    Qwen2VL(
        "qwen2_5_vl",
        {
            **_qwen(text("qwen2_5_vl_text", **_rope(1, 1, 2)), window_size=16, fullatt_block_indexes=[1]),
            **QWEN,
        },
        before=(BEGIN,),
        after=(END,),
    ),
    Qwen3VL(
        "qwen3_vl",
        {
            **_qwen(
                text("qwen3_vl_text", **_rope(2, 1, 1)), num_position_embeddings=64, deepstack_visual_indexes=[0, 1]
            ),
            **QWEN,
        },
        before=(BEGIN,),
        after=(END,),
    ),
    Qwen3VL(
        "qwen3_5",
        {
            **_qwen(
                text(
                    "qwen3_5_text",
                    layer_types=["linear_attention", "full_attention"],
                    linear_num_key_heads=2,
                    linear_num_value_heads=4,
                    linear_key_head_dim=8,
                    linear_value_head_dim=8,
                    **_rope(1, 1, 0, partial_rotary_factor=0.5),
                ),
                num_position_embeddings=64,
            ),
            **QWEN,
        },
        before=(BEGIN,),
        after=(END,),
    ),
    MRope(
        "glm4v",
        {**_qwen(text("glm4v_text", **_rope(1, 1, 2, partial_rotary_factor=1.0)), image_size=32), **GLM},
        before=(BEGIN,),
        after=(END,),
    ),
    Mistral3(
        "mistral3",
        {
            "vision_config": vision("pixtral", image=64, patch=PATCH, head_dim=12),
            "text_config": text("mistral", sliding_window=None),
            "image_token_id": IMAGE,
            "spatial_merge_size": MERGE,
            "vision_feature_layer": -1,
        },
    ),
)
