"""The true mask of a scene, as the methods that go by a mask take it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gprune import Background, Foreground, VisualTokens
from gprune.scenes.scene import foreground, make_scene, render


@pytest.mark.parametrize("index", range(6))
def test_the_mask_is_inside_the_boxes_and_meets_each(index):
    scene = make_scene("validation", index)
    picture, labels = render(scene)
    mask = foreground(labels)
    assert mask.shape == (picture.height, picture.width) and mask.dtype == bool
    boxes = np.zeros_like(mask)
    for item in scene.items:
        left, top, right, bottom = (round(edge) for edge in item.box)
        assert mask[max(top, 0) : bottom + 1, max(left, 0) : right + 1].any()
        boxes[max(top - 3, 0) : bottom + 4, max(left - 3, 0) : right + 4] = True
    assert not (mask & ~boxes).any()


def test_tokens_are_kept_by_the_true_mask():
    scene = make_scene("validation", 0)
    _, labels = render(scene)
    mask = foreground(labels)
    rows, columns = mask.shape[0] // 8, mask.shape[1] // 8
    tokens = VisualTokens.of(torch.ones(rows * columns, 4), (rows, columns))
    cells = np.stack([mask[: rows * 8, : columns * 8]]).reshape(rows, 8, columns, 8).mean((1, 3)).flatten()
    inside, outside = (method(0.2, mask=mask).select(tokens).kept for method in (Foreground, Background))
    assert cells[inside].min() >= 0.5 > cells[outside].max() == 0
