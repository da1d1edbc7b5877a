"""What all methods share that need more than features: views, and what they say without it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from towered import features, known, two_views, view_of

from gprune import (
    BAT,
    Background,
    CDPruner,
    ClsAttention,
    Foreground,
    Pruner,
    VisionZip,
    ZeroTPrune,
)

MASK = torch.arange(48).view(6, 8) % 5 < 2
METHODS = {
    "clsattention": ClsAttention,
    "visionzip": VisionZip,
    "bat": BAT,
    "zerotprune": ZeroTPrune,
    "cdpruner": CDPruner,
    "foreground": lambda *args, **settings: Foreground(*args, mask=MASK, **settings),
    "background": lambda *args, **settings: Background(*args, mask=MASK, **settings),
}
every = pytest.mark.parametrize("make", METHODS.values(), ids=METHODS)


@every
def test_views_are_pruned_apart(make):
    tokens = two_views()
    pruner = make(0.5)
    together = pruner.select(tokens)
    first, second = (pruner.select(view_of(tokens, number)) for number in (0, 1))
    assert together.kept.tolist() == [*first.kept.tolist(), 16, *(17 + second.kept).tolist()]
    if together.features is not None:
        assert first.features is not None and second.features is not None
        expected = torch.cat([first.features, tokens.features[16:17], second.features])
        torch.testing.assert_close(together.features, expected, rtol=0, atol=1e-6)


@every
def test_all_views_of_an_image_together(make):
    if make in (METHODS["foreground"], METHODS["background"]):
        with pytest.raises(ValueError, match="has no grid"):
            make(0.5, scope="image").select(two_views())
        return
    kept = make(0.5, scope="image").select(two_views()).kept
    assert len(kept) == 21
    assert kept.tolist() != make(0.5).select(two_views()).kept.tolist()


@pytest.mark.parametrize("pruner", [ClsAttention(), VisionZip(), BAT(), ZeroTPrune()], ids=lambda pruner: pruner.name)
def test_features_alone_are_not_enough(pruner: Pruner):
    need = pruner.needs[0]
    with pytest.raises(ValueError, match=rf"{type(pruner).__name__} needs the {need} of the vision tower"):
        pruner.select(features(9))
    tokens = known(features(9))
    with pytest.raises(ValueError, match="a row for each of the 9 tokens"):
        pruner.select(replace(tokens, beside={name: values[:8] for name, values in tokens.beside.items()}))


def test_a_question_is_needed_for_each_image():
    with pytest.raises(ValueError, match="CDPruner needs the question about each image"):
        CDPruner().select(features(9))
    tokens = known(features(9))
    with pytest.raises(ValueError, match="q >= 1"):
        CDPruner().select(replace(tokens, questions=(torch.zeros(0, 8),)))


@pytest.mark.parametrize("pruner", [ClsAttention(), VisionZip(), BAT(), ZeroTPrune()], ids=lambda pruner: pruner.name)
def test_what_is_beside_must_be_finite(pruner: Pruner):
    tokens, need = known(features(9)), pruner.needs[0]
    tokens.beside[need][3] = torch.nan
    with pytest.raises(ValueError, match=f"the {need} of some tokens is NaN"):
        pruner.select(tokens)
