"""What methods say that need more than features, when they do not get it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from towered import features, known

from gprune import (
    BAT,
    SCOPE,
    CDPruner,
    ClsAttention,
    Pruner,
    VisionZip,
    VisPruner,
    ZeroTPrune,
)

BY_TOWER = [ClsAttention(), VisionZip(), BAT(), ZeroTPrune(), SCOPE(), VisPruner()]


@pytest.mark.parametrize("pruner", BY_TOWER, ids=lambda pruner: pruner.name)
def test_features_alone_are_not_enough(pruner: Pruner):
    need = pruner.needs[0]
    with pytest.raises(ValueError, match=rf"{type(pruner).__name__} needs the {need} of the vision tower"):
        pruner.select(features(9))
    tokens = known(features(9))
    with pytest.raises(ValueError, match="a row for each of the 9 tokens"):
        pruner.select(replace(tokens, signals={name: values[:8] for name, values in tokens.signals.items()}))


def test_a_question_is_needed_for_each_image():
    with pytest.raises(ValueError, match="CDPruner needs the question about each image"):
        CDPruner().select(features(9))
    tokens = known(features(9))
    with pytest.raises(ValueError, match="q >= 1"):
        CDPruner().select(replace(tokens, questions=(torch.zeros(0, 8),)))


@pytest.mark.parametrize("pruner", BY_TOWER, ids=lambda pruner: pruner.name)
def test_what_is_beside_must_be_finite(pruner: Pruner):
    tokens, need = known(features(9)), pruner.needs[0]
    tokens.signals[need][3] = torch.nan
    with pytest.raises(ValueError, match=f"the {need} of some tokens is NaN"):
        pruner.select(tokens)
