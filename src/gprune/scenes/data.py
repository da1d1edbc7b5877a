"""Training batches of scenes: pixels, labels of every patch, and a caption and questions packed after each image."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.random import Generator
from PIL import Image
from torch import Tensor

from ..host import best_resolution
from .model import ASSISTANT, BOS, EOS, IMAGE, PAD, PATCH, PINPOINTS, TILE, USER, build_processor
from .questions import Question, caption_of, questions
from .scene import Scene, Split, make_scene, render, rng_of
from .vocabulary import BACKGROUNDS, CANVAS_WEIGHTS, CANVASES

IGNORED = -100


@dataclass(frozen=True)
class Batch:
    """Scenes of one size, right padded.

    `pixel_values` float32 [B, T, 3, TILE, TILE] (base view first), `image_sizes` int64 [B, 2], `input_ids` and `labels`
    int64 [B, L], `patches` int64 [B, T, P, P, 3] (shape, colour, character of every patch), `background` int64 [B],
    `asked` the answer spans: (row, first token, one past the last, category).
    """

    pixel_values: Tensor
    image_sizes: Tensor
    input_ids: Tensor
    labels: Tensor
    patches: Tensor
    background: Tensor
    asked: tuple[tuple[int, int, int, str], ...]


class SceneBatches(torch.utils.data.Dataset[Batch]):
    """Batch `i` is a function of (split, i) alone, so that a resumed run sees what an uninterrupted one would.

    Every `page_every`-th batch shows pages full of text; none when it is 0.
    """

    def __init__(self, split: Split, batch_size: int, first: int, last: int, page_every: int = 0) -> None:
        self.split, self.batch_size, self.first, self.last = split, batch_size, first, last
        self.page_every = page_every

    @cached_property
    def processor(self) -> Any:
        """That of the embedded model."""
        return build_processor()  # in the worker process that uses it

    def __len__(self) -> int:
        return self.last - self.first

    def __getitem__(self, i: int) -> Batch:
        number = self.first + i
        rng = rng_of(self.split, number, stream=3)
        size = CANVASES[rng.choice(len(CANVASES), p=CANVAS_WEIGHTS)]
        start = number * self.batch_size
        page = self.page_every > 0 and number % self.page_every == 0
        scenes = [make_scene(self.split, start + j, size=size, page=page) for j in range(self.batch_size)]
        drawn = [render(scene) for scene in scenes]
        pixels = self.processor.image_processor([picture for picture, _ in drawn], return_tensors="pt")
        patches = torch.stack([patch_labels(labels) for _, labels in drawn])
        visual = len(self.processor(images=drawn[0][0], text="<image>")["input_ids"][0])
        packed = [self._pack(scene, rng, visual) for scene in scenes]
        length = max(len(ids) for ids, _, _ in packed)
        input_ids = torch.full((len(scenes), length), PAD)
        labels = torch.full((len(scenes), length), IGNORED)
        for row, (ids, targets, _) in enumerate(packed):
            input_ids[row, : len(ids)] = torch.tensor(ids)
            labels[row, : len(targets)] = torch.tensor(targets)
        asked = tuple((row, *span) for row, (_, _, spans) in enumerate(packed) for span in spans)
        background = torch.tensor([BACKGROUNDS.index(scene.background) for scene in scenes])
        return Batch(pixels.pixel_values, pixels.image_sizes, input_ids, labels, patches, background, asked)

    def _pack(
        self, scene: Scene, rng: Generator, visual: int
    ) -> tuple[list[int], list[int], list[tuple[int, int, str]]]:
        """<bos><user><image>q1<assistant>a1<eos><user>q2 ...: the caption stands anywhere among the questions."""
        asked: list[Question] = questions(scene, rng)
        asked.insert(int(rng.integers(len(asked) + 1)), caption_of(scene))
        ids, labels, spans = [BOS], [IGNORED], []
        for i, question in enumerate(asked):
            prompt = [
                USER,
                *([IMAGE] * visual if i == 0 else []),
                *self._encode(question.question),
                ASSISTANT,
            ]
            answer = [*self._encode(question.answer), EOS]
            ids += prompt + answer
            labels += [IGNORED] * len(prompt) + answer
            spans.append((len(ids) - len(answer), len(ids), question.category))
        return ids, labels, spans

    def _encode(self, text: str) -> list[int]:
        return self.processor.tokenizer(text).input_ids


def patch_labels(labels: Image.Image) -> Tensor:
    """Labels of every patch of every tile, base view first, laid out as the processor lays out the tiles.

    Args:
        labels: the label picture of `render`.

    Returns:
        int64 [T, TILE / PATCH, TILE / PATCH, 3], read at the centre of each patch.
    """
    width, height = labels.size
    best_height, best_width = best_resolution((height, width), PINPOINTS)
    padded = Image.new("RGB", (best_width, best_height))
    padded.paste(labels, ((best_width - width) // 2, (best_height - height) // 2))
    pixels = np.asarray(padded)
    tiles = [np.asarray(labels.resize((TILE, TILE), Image.Resampling.NEAREST))]
    for top in range(0, best_height, TILE):
        tiles += [pixels[top : top + TILE, left : left + TILE] for left in range(0, best_width, TILE)]
    centres = slice(PATCH // 2, None, PATCH)
    return torch.from_numpy(np.stack(tiles)[:, centres, centres].astype(np.int64))
