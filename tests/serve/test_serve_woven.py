"""What fills the placeholders of an image between whose visual tokens there is text, without an engine."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("vllm", reason="needs vLLM: make test-serve")

from gprune import Keep, Pruner, View, VisualTokens, get_pruner
from gprune.serve.woven import WovenModel

IMAGE, WIDTH = 99, 16
LINES = [*[IMAGE] * 5, 7, *[IMAGE] * 5, 7, *[IMAGE] * 5]
TILES = [*[IMAGE] * 4, 1, 2, *[IMAGE] * 4, 3, 1, *[IMAGE] * 4]
WORDS = torch.randn(10, WIDTH, generator=torch.Generator().manual_seed(0))


class Bare(WovenModel):
    """A model of which there is only what weaves."""

    def __init__(self, tower: str, pruner: Pruner) -> None:
        self.config = SimpleNamespace(image_token_id=IMAGE, vision_config=SimpleNamespace(model_type=tower))
        self._pruner = pruner
        self._placing = False

    def embed_input_ids(self, ids: Tensor, *_: Any, **__: Any) -> Tensor:
        return WORDS[ids]


def selected(pruner: Pruner, features: Tensor, grids: list[tuple[int, int]]) -> Any:
    rows = torch.arange(len(features)).split([height * width for height, width in grids])
    views = tuple(View(each, grid) for each, grid in zip(rows, grids, strict=True))
    return pruner.select(VisualTokens(features, views, (len(features),)))


@pytest.mark.parametrize("keep", [0.3, 1, 7, 1.0])
@pytest.mark.parametrize("scope", ["view", "image"])
@pytest.mark.parametrize("method", ["gprune", "graphcover", "apet"])
@pytest.mark.parametrize("tower", ["pixtral", "siglip"])
def test_text_stays_in_its_place(tower: str, method: str, scope: Any, keep: Keep) -> None:
    """Under a budget for the whole image too, when nobody knows how many tokens of a tile are kept."""
    ids = LINES if tower == "pixtral" else TILES
    grids = [(3, 5)] if tower == "pixtral" else [(2, 2)] * 3
    span = torch.tensor(ids)
    features = torch.randn(ids.count(IMAGE), WIDTH, generator=torch.Generator().manual_seed(1))
    pruner = get_pruner(method)(keep, scope=scope)
    selection = selected(pruner, features, grids)
    merged = features[selection.kept] if selection.features is None else selection.features
    visual = dict(zip(selection.kept.tolist(), merged, strict=True))
    expected, row = [], 0
    for token in ids:
        if token != IMAGE:
            expected.append(WORDS[token])
            continue
        if row in visual:
            expected.append(visual[row])
        row += 1
    found = Bare(tower, pruner)._weave(features, keep, span)
    assert torch.equal(found, torch.stack(expected))
