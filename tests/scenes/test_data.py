"""Labels of patches lie where the processor puts the pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gprune.scenes.data import SceneBatches, patch_labels
from gprune.scenes.model import PATCH, TILE, build_processor
from gprune.scenes.scene import Scene, Thing, render
from gprune.scenes.vocabulary import CANVASES, COLORS, SHAPES

NAMES = list(COLORS)


def tiles(scene: Scene) -> tuple[torch.Tensor, torch.Tensor]:
    """What the processor makes of a scene, as 0..255 [T, 3, TILE, TILE], and the labels of its patches."""
    picture, labels = render(scene)
    pixels = build_processor().image_processor(picture, return_tensors="pt")["pixel_values"][0]
    return (pixels * 0.5 + 0.5) * 255, patch_labels(labels)


@pytest.mark.parametrize("size", CANVASES)
def test_labelled_patches_have_the_colour_of_their_label(size: tuple[int, int]) -> None:
    """Large squares in a ragged order, so that no swap of axes, tiles or margins goes unseen."""
    width, height = size
    boxes = [
        (0, 0, width * 0.55, height * 0.3),
        (width * 0.7, 0, width, height * 0.6),
        (0, height * 0.45, width * 0.35, height),
        (width * 0.5, height * 0.75, width, height),
    ]
    items = tuple(
        Thing("shape", tuple(round(side) for side in box), shape="square", color=color)  # type: ignore[arg-type]
        for box, color in zip(boxes, ("red", "blue", "yellow", "white"), strict=True)
    )
    pixels, labels = tiles(Scene(("test", 0), size, "wood", items))
    assert len(pixels) == len(labels)
    side = TILE // PATCH
    seen = set()
    for tile in range(len(labels)):
        for row in range(side):
            for column in range(side):
                patch = pixels[tile, :, row * PATCH : (row + 1) * PATCH, column * PATCH : (column + 1) * PATCH]
                shape, color, character = labels[tile, row, column].tolist()
                assert character == 0 and (shape == 0) == (color == 0)
                around = labels[tile, max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2, 1]
                if color and (around == color).all():
                    assert shape == 1 + SHAPES.index("square")
                    expected = torch.tensor(COLORS[NAMES[color - 1]], dtype=torch.float32)
                    centre = patch[:, PATCH // 2, PATCH // 2]
                    # the base view is scaled down and rings a little next to an outline
                    torch.testing.assert_close(centre, expected, atol=12 if tile == 0 else 1, rtol=0)
                    seen.add((tile == 0, NAMES[color - 1]))
                elif not color and (around == 0).all():
                    assert min((patch.mean((1, 2)) - torch.tensor(c)).abs().max() for c in COLORS.values()) > 12
    assert {color for base, color in seen if not base} == {"red", "blue", "yellow", "white"}
    assert len({color for base, color in seen if base}) >= 2


def test_batches_are_a_function_of_their_number() -> None:
    whole, part = SceneBatches("train", 3, 0, 6), SceneBatches("train", 3, 4, 6)
    one, other = whole[5], part[1]
    for name in ("pixel_values", "image_sizes", "input_ids", "labels", "patches", "background"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    assert one.asked == other.asked


def test_labels_in_a_batch_are_those_of_the_pixels() -> None:
    """In unscaled tiles, wherever a patch is labelled as all of one colour, the colour itself is there."""
    data = SceneBatches("train", 4, 0, 12)
    found, right = 0, 0
    for number in range(12):
        batch = data[number]
        pixels = ((batch.pixel_values[:, 1:] * 0.5 + 0.5) * 255).round()
        centres = pixels[..., PATCH // 2 :: PATCH, PATCH // 2 :: PATCH].permute(0, 1, 3, 4, 2)
        labels = batch.patches[:, 1 : 1 + pixels.shape[1], ..., 1]
        shapes = (batch.patches[:, 1 : 1 + pixels.shape[1], ..., 0] > 0) & (labels > 0)
        palette = torch.tensor([COLORS[name] for name in NAMES], dtype=torch.float32)
        expected = palette[(labels - 1).clamp(min=0)]
        found += int(shapes.sum())
        right += int(((centres - expected).abs().amax(-1) <= 1)[shapes].sum())
    assert found > 300
    assert right / found > 0.8  # the rest are outlines


def test_background_is_the_one_drawn() -> None:
    batch = SceneBatches("train", 8, 0, 1)[0]
    assert batch.background.shape == (8,)
    assert set(np.unique(batch.background)) <= set(range(5))
