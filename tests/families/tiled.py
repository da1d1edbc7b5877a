"""Families that cut an image into square tiles and add the whole image as one more; every tile is a view."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import torch
import transformers as T
from torch import Generator, Tensor

from .base import BATCH, Deepstack, Family, Layout, Media, Size, Text
from .parts import BEGIN, BREAK, END, GLOBAL, IMAGE, IMAGE_AND_VIDEO, LINE, TAG, VOCABULARY, siglip, text, vision

PIXELS, SIDE = 12, 3
TOKENS = [IMAGE] * SIDE**2


@dataclass(frozen=True, eq=False)
class Tiled(Family):
    """The tiles row by row, then the whole image; an image that fits in one tile is that tile alone."""

    def tiles(self, size: Size) -> Size:
        """(rows, columns) of the tiles without the whole image: one for every 32 pixels, at most three."""
        rows, columns = (min(3, math.ceil(pixels / 32)) for pixels in size)
        return rows, columns

    def number(self, size: Size) -> int:
        """Number of tiles with the whole image."""
        tiles = math.prod(self.tiles(size))
        return tiles + 1 if tiles > 1 else 1

    def image_layout(self, size: Size) -> Layout:
        area, number = SIDE**2, self.number(size)
        return number * area, [(list(range(i * area, (i + 1) * area)), (SIDE, SIDE)) for i in range(number)]

    def image_pixels(self, size: Size, generator: Generator) -> dict[str, Tensor]:
        return {"pixel_values": torch.randn(self.number(size), 3, PIXELS, PIXELS, generator=generator)}


class AyaVision(Tiled):
    """Every tile has a tag before it, the whole image another."""

    def image_ids(self, size: Size, text: Text) -> list[int]:
        tiles = [TAG, *TOKENS] * (self.number(size) - 1)
        return [*self.before, *tiles, GLOBAL, *TOKENS, *self.after]


class Cohere2Vision(Tiled):
    """Every tile has a line break after it."""

    def image_ids(self, size: Size, text: Text) -> list[int]:
        return [*self.before, *[*TOKENS, LINE] * self.number(size), *self.after]


class Idefics3(Tiled):
    """Every tile has a tag with its row and column before it, every row of tiles a line break after it.

    A batch is padded to the most tiles of its prompts with tiles of zeros.
    """

    def image_ids(self, size: Size, text: Text) -> list[int]:
        ids: list[int] = []
        rows, columns = self.tiles(size)
        for row in range(rows if self.number(size) > 1 else 0):
            for column in range(columns):
                ids += [BEGIN, 10 + 6 * row + column, *TOKENS]
            ids += [LINE] * (2 if row == rows - 1 else 1)
        return [*ids, BEGIN, GLOBAL, *TOKENS, BEGIN]

    def image_pixels(self, size: Size, generator: Generator) -> dict[str, Tensor]:
        pixels = super().image_pixels(size, generator)["pixel_values"]
        return {"pixel_values": pixels, "pixel_attention_mask": torch.ones_like(pixels[:, 0]).long()}

    def collate(self, pixels: Sequence[Sequence[dict[str, Tensor]]]) -> dict[str, Tensor]:
        blank = {name: torch.zeros_like(tiles[:1]) for name, tiles in next(chain(*pixels)).items()}
        prompts = [Family.collate(self, [prompt or [blank]]) for prompt in pixels]
        return super().collate([[{name: tiles[None] for name, tiles in prompt.items()}] for prompt in prompts])

    def cut(self, inputs: dict[str, Tensor], row: int, images: Sequence[Sequence[Media]]) -> dict[str, Tensor]:
        tiles = self._rows(images[row : row + 1])
        return {name: inputs[name][row : row + 1, : tiles[name]] for name in tiles}


class GraniteDocling(Deepstack, Idefics3):
    """An image that fits in one tile has the tag of the first. Logits are scaled."""

    def image_ids(self, size: Size, text: Text) -> list[int]:
        ids = super().image_ids(size, text)
        return ids if self.number(size) > 1 else [BEGIN, 10, *TOKENS, LINE]

    def image_pixels(self, size: Size, generator: Generator) -> dict[str, Tensor]:
        pixels = super().image_pixels(size, generator)["pixel_values"]
        return {"pixel_values": pixels, "pixel_attention_mask": torch.ones(len(pixels), dtype=torch.bool)}

    def logits(self, model: Any, ids: Tensor, arguments: dict[str, Any]) -> Tensor:
        return super().logits(model, ids, arguments) / model.config.text_config.logits_scaling


class Ovis2(Tiled):
    """The whole image first; the tokens that tell how the tiles lie are learned by the encoder too."""

    indicators = (BEGIN, BREAK, LINE, TAG, END)

    def image_ids(self, size: Size, text: Text) -> list[int]:
        rows, columns = self.tiles(size)
        row = [*([*TOKENS, BREAK] * columns)[:-1], LINE]
        tiles = (row * rows)[:-1] if self.number(size) > 1 else []
        return [BEGIN, *TOKENS, TAG, *tiles, END]

    def embeddings(self, model: Any, ids: Tensor, features: list[Tensor]) -> Tensor:
        embeddings = super().embeddings(model, ids, features)
        learned = model.base_model.visual_embeddings_table.weight[-len(self.indicators) :]
        for token, row in zip(self.indicators, learned, strict=True) if features else ():
            embeddings = torch.where((ids == token)[:, None], row, embeddings)
        return embeddings


class Llama4(Tiled):
    """Separators stand between the tiles of a row and after every row.

    Its forward projects the features; its text model has the head.
    """

    def image_ids(self, size: Size, text: Text) -> list[int]:
        rows, columns = self.tiles(size)
        row = [*([*TOKENS, BREAK] * columns)[:-1], LINE]
        return [BEGIN, *row * (rows if self.number(size) > 1 else 0), GLOBAL, *TOKENS, END]

    def encode(self, model: Any, inputs: dict[str, Tensor], images: Sequence[Sequence[Media]] = BATCH) -> list[Tensor]:
        return self._read_encoders(
            model, inputs, images, lambda output: model.multi_modal_projector(output.last_hidden_state)
        )

    def logits(self, model: Any, ids: Tensor, arguments: dict[str, Any]) -> Tensor:
        return model.language_model(**arguments).logits


class Lfm2Vl(Tiled):
    """Every tile has a tag before it; the whole image keeps its shape; tiles come as padded patches."""

    def grids(self, size: Size) -> list[Size]:
        """(rows, columns) of every tile."""
        whole = (max(1, min(4, round(size[0] / 8))), max(1, min(4, round(size[1] / 8))))
        return [(SIDE, SIDE)] * (self.number(size) - 1) + [whole]

    def image_layout(self, size: Size) -> Layout:
        count, views = 0, []
        for grid in self.grids(size):
            views.append((list(range(count, count + math.prod(grid))), grid))
            count += math.prod(grid)
        return count, [*views]

    def image_ids(self, size: Size, text: Text) -> list[int]:
        rows, columns = self.tiles(size)
        whole = [IMAGE] * math.prod(self.grids(size)[-1])
        if self.number(size) == 1:
            return [BEGIN, *whole, END]
        tiles = [token for i in range(rows) for j in range(columns) for token in (10 + 6 * i + j, *TOKENS)]
        return [BEGIN, *tiles, TAG, *whole, END]

    def image_pixels(self, size: Size, generator: Generator) -> dict[str, Tensor]:
        shapes = 2 * torch.tensor(self.grids(size))
        pixels = torch.zeros(len(shapes), 80, 3 * 4**2)
        mask = (torch.arange(80) < shapes.prod(1, keepdim=True)).long()
        pixels[mask.bool()] = torch.randn(int(mask.sum()), 3 * 4**2, generator=generator)
        return {"pixel_values": pixels, "pixel_attention_mask": mask, "spatial_shapes": shapes}


class PerceptionLM(Tiled):
    """The whole image first, then two tiles: a call has as many tiles for each of its images."""

    def number(self, size: Size) -> int:
        return 3

    def image_pixels(self, size: Size, generator: Generator) -> dict[str, Tensor]:
        return {"pixel_values": super().image_pixels(size, generator)["pixel_values"][None]}


class InOneItem(Tiled):
    """The tiles and then the whole image are one item of the encoder's output."""

    whole_pixels, tile_pixels = 16, 8

    def number_of_tiles(self, size: Size) -> int:
        """The whole image is not one of them."""
        return self.number(size) - 1

    def image_pixels(self, size: Size, generator: Generator) -> dict[str, Tensor]:
        tiles, whole, tile = self.number_of_tiles(size), self.whole_pixels, self.tile_pixels
        pixels = {
            "pixel_values": torch.randn(1, 3, whole, whole, generator=generator),
            "num_local_patches": torch.tensor([tiles]),
        }
        # A processor leaves them out where no image has any.
        return pixels | (
            {"pixel_values_local": torch.randn(tiles, 3, tile, tile, generator=generator)} if tiles else {}
        )


class Step3p7(InOneItem):
    """Tags stand around every tile and around the whole image, and between the rows of tiles."""

    whole_pixels, tile_pixels = 24, 16
    whole_side, tile_side = 3, 2

    def image_layout(self, size: Size) -> Layout:
        area, tiles, whole = self.tile_side**2, self.number_of_tiles(size), self.whole_side**2
        views: list[tuple[list[int], Size | None]] = [
            (list(range(i * area, (i + 1) * area)), (self.tile_side, self.tile_side)) for i in range(tiles)
        ]
        count = tiles * area + whole
        return count, [*views, (list(range(tiles * area, count)), (self.whole_side, self.whole_side))]

    def image_ids(self, size: Size, text: Text) -> list[int]:
        (rows, columns), tiles = self.tiles(size), self.number_of_tiles(size)
        row = [TAG, *[IMAGE] * self.tile_side**2, BREAK] * columns
        lines = [*[*row, LINE] * (rows - 1), *row] if tiles else []
        return [*lines, BEGIN, *[IMAGE] * self.whole_side**2, END]


class DeepseekOcr2(InOneItem):
    """Its queries are as many for every small image, here fewer; a separator follows those of the whole image."""

    queries = 6

    def build(self) -> tuple[Any, Any]:
        config, kind = super().build()
        return config, partial(_with_queries, kind, self.queries)

    def image_layout(self, size: Size) -> Layout:
        number, each = self.number(size), self.queries
        return number * each + 1, [(list(range(i * each, (i + 1) * each)), None) for i in range(number)]


class UnlimitedOcr(InOneItem):
    """The tiles are put together to one grid; a newline row ends its lines and those of the whole image."""

    whole_pixels, tile_pixels = 24, 16
    whole_side, tile_side = 3, 2

    def image_layout(self, size: Size) -> Layout:
        rows, columns = (tiles * self.tile_side for tiles in self.tiles(size))
        grids = [(rows, columns), (self.whole_side, self.whole_side)] if self.number_of_tiles(size) else []
        count, views = 0, []
        for lines, width in grids or [(self.whole_side, self.whole_side)]:
            places = range(count, count + lines * (width + 1))
            views.append(([row for row in places if (row - count) % (width + 1) < width], (lines, width)))
            count = places.stop
        return count + 1, views

    def image_pixels(self, size: Size, generator: Generator) -> dict[str, Tensor]:
        grid = torch.tensor([self.tiles(size)[::-1]])
        return super().image_pixels(size, generator) | {"patches_grid": grid}

    def collate(self, pixels: Sequence[Sequence[dict[str, Tensor]]]) -> dict[str, Any]:
        arguments = super().collate(pixels)
        # As its processor leaves them.
        lists = {name: arguments[name].tolist() for name in ("num_local_patches", "patches_grid")}
        return {**arguments, **lists}


def _with_queries(kind: Any, queries: int, config: Any) -> Any:
    model = kind(config)
    width = config.vision_config.encoder_config.hidden_size
    model.model.vision_tower.query_768_resolution = torch.nn.Embedding(queries, width)
    return model


SQUARES = siglip(image=PIXELS, patch=PIXELS // SIDE // 2)

IDEFICS3: dict[str, Any] = {
    "vision_config": {name: value for name, value in SQUARES.items() if name != "model_type"},
    "text_config": text(),
    "image_token_id": IMAGE,
    "scale_factor": 2,
}
COHERE2: dict[str, Any] = {
    "vision_config": SQUARES,
    "text_config": text("cohere2", layer_types=["sliding_attention", "full_attention"], sliding_window=512),
    "image_token_id": IMAGE,
    "downsample_factor": 2,
}
SAM = {
    "hidden_size": 16,
    "output_channels": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 24,
    "patch_size": 2,
    "window_size": 2,
    "global_attn_indexes": [1],
    "mlp_dim": 24,
    "downsample_channels": [12, 16],
}
EXPERTS = {
    "mlp_layer_types": ["dense", "sparse"],
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "n_shared_experts": 1,
}
PERCEPTION_TOWER = vision("clip_vision_model", image=PIXELS, patch=PIXELS // SIDE // 2, model_args={"embed_dim": 24})

TILED: tuple[Family, ...] = (
    Idefics3("idefics3", IDEFICS3),
    Idefics3("smolvlm", IDEFICS3),
    GraniteDocling(
        "granite_docling",
        {
            "vision_config": {
                **{name: value for name, value in SQUARES.items() if name not in ("model_type", "vision_use_head")},
                "out_hidden_size": 32,
                "scale_factor": 2,
                "deepstack_visual_indexes": [0, 1],
            },
            "text_config": text(
                "granite_docling_text",
                num_hidden_layers=3,
                attention_multiplier=0.35,
                residual_multiplier=0.9,
                embedding_multiplier=2.0,
                logits_scaling=2.0,
            ),
            "image_token_id": IMAGE,
            "tie_word_embeddings": False,
        },
    ),
    Ovis2(
        "ovis2",
        {
            "vision_config": {
                "hidden_size": 16,
                "intermediate_size": 24,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "image_size": PIXELS,
                "patch_size": PIXELS // SIDE // 2,
                "hidden_stride": 2,
                "vocab_size": 40,
                "num_visual_indicator_tokens": len(Ovis2.indicators),
            },
            "text_config": text("qwen2"),
            "image_token_id": IMAGE,
            "visual_indicator_token_ids": list(Ovis2.indicators),
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "tie_word_embeddings": False,
        },
    ),
    Tiled(
        "internvl",
        {
            "vision_config": {**SQUARES, "model_type": "internvl_vision"},
            "text_config": text("qwen2"),
            "image_token_id": IMAGE,
            "image_seq_length": SIDE**2,
        },
        before=(BEGIN,),
        after=(END,),
    ),
    Tiled(
        "qianfan_ocr",
        {
            "vision_config": {**SQUARES, "model_type": "qianfan_ocr_vision"},
            "text_config": text("qwen3"),
            "image_token_id": IMAGE,
            "image_seq_length": SIDE**2,
        },
        before=(BEGIN,),
        after=(END,),
    ),
    AyaVision(
        "aya_vision",
        {**COHERE2, "vision_feature_layer": -1, "vision_feature_select_strategy": "full"},
        before=(BEGIN,),
        after=(END,),
    ),
    Cohere2Vision(
        "cohere2_vision",
        {**COHERE2, "alignment_intermediate_size": 32},
        before=(BEGIN,),
        after=(END,),
    ),
    Llama4(
        "llama4",
        {
            "vision_config": {
                "hidden_size": 16,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "image_size": PIXELS,
                "patch_size": PIXELS // SIDE // 2,
                "vision_output_dim": 24,
                "projector_input_dim": 24,
                "projector_output_dim": 24,
                "pixel_shuffle_ratio": 0.5,
            },
            "text_config": text(
                "llama4_text",
                intermediate_size_mlp=48,
                num_local_experts=4,
                num_experts_per_tok=1,
                interleave_moe_layer_step=2,
                no_rope_layers=[1, 0],
                attention_chunk_size=512,
            ),
            "boi_token_index": BEGIN,
            "eoi_token_index": END,
            "image_token_index": IMAGE,
        },
    ),
    Lfm2Vl(
        "lfm2_vl",
        {
            "vision_config": {
                "model_type": "siglip2_vision_model",
                "hidden_size": 16,
                "intermediate_size": 24,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "num_patches": 64,
                "patch_size": 4,
                "vision_use_head": False,
            },
            "text_config": text("lfm2", layer_types=["conv", "full_attention"], block_auto_adjust_ff_dim=False),
            "image_token_id": IMAGE,
            "projector_hidden_size": 24,
            "downsample_factor": 2,
            "tie_word_embeddings": False,
        },
    ),
    Step3p7(
        "step3p7",
        {
            "vision_config": {
                "hidden_size": 16,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "image_size": 24,
                "patch_size": 2,
                "mlp_ratio": 2.0,
            },
            "text_config": text(
                "step3p5",
                layer_types=["sliding_attention", "full_attention"],
                sliding_window=512,
                mlp_layer_types=["dense", "sparse"],
                n_routed_experts=4,
                num_experts_per_tok=2,
                moe_intermediate_size=16,
                share_expert_dim=16,
            ),
            "image_token_id": IMAGE,
        },
    ),
    DeepseekOcr2(
        "deepseek_ocr2",
        {
            "vision_config": {
                "sam_config": SAM,
                "encoder_config": {
                    "hidden_size": 16,
                    "intermediate_size": 24,
                    "num_hidden_layers": 2,
                    "num_attention_heads": 2,
                    "num_key_value_heads": 2,
                    "vocab_size": 8,
                },
            },
            "text_config": text("deepseek_ocr2_text", **EXPERTS),
            "image_token_id": IMAGE,
        },
    ),
    UnlimitedOcr(
        "unlimited_ocr",
        {
            "vision_config": {
                "sam_config": SAM,
                "encoder_config": {
                    "hidden_size": 16,
                    "intermediate_size": 24,
                    "num_hidden_layers": 2,
                    "num_attention_heads": 2,
                    "image_size": 24,
                    "patch_size": 8,
                },
            },
            "text_config": text("unlimited_ocr_text", **EXPERTS, num_key_value_heads=4, sliding_window=512),
            "image_token_id": IMAGE,
        },
    ),
    PerceptionLM(
        "perception_lm",
        {
            "vision_config": T.AutoConfig.for_model(**PERCEPTION_TOWER),  # the released tower needs timm
            "text_config": text(),
            "vision_use_cls_token": True,
            "projector_pooling_ratio": 2,
            **IMAGE_AND_VIDEO,
        },
    ),
)
