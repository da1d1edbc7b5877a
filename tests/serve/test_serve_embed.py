"""Pruned features for a vLLM that knows nothing of pruning."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from gprune import GPrune, Random, ToMe
from gprune.prompt import build_inputs
from gprune.pruners import Pruner
from gprune.scenes.benchmark import samples
from gprune.scenes.model import load_embedded
from gprune.serve import embed

PICTURES = [example.picture for example in samples("test", 4)]
DIFFERENT = "have different lengths"


@pytest.mark.filterwarnings(f"ignore:.*{DIFFERENT}")
@pytest.mark.parametrize("pruner", [GPrune(0.3), GPrune(40), Random(0.5, seed=3), GPrune(1.0)])
def test_rows_are_those_that_the_model_would_read(pruner: Pruner) -> None:
    model, processor = load_embedded()
    features = embed(pruner, model, processor, PICTURES)
    for picture, rows in zip(PICTURES, features, strict=True):
        inputs = build_inputs(model, processor, [([picture], "what is there?")])
        with torch.no_grad():
            encoded = model.get_image_features(inputs.pixel_values, inputs.image_sizes).pooler_output[0]
        with pruner(model) as run:
            model(**inputs)
        assert torch.equal(rows, encoded[run.images[0].kept])


def test_merged_tokens_come_merged() -> None:
    model, processor = load_embedded()
    pruner = ToMe(0.3, where="tokens")
    (rows,) = embed(pruner, model, processor, PICTURES[:1])
    inputs = build_inputs(model, processor, [(PICTURES[:1], "")])
    with torch.no_grad():
        encoded = model.get_image_features(inputs.pixel_values, inputs.image_sizes).pooler_output[0]
    assert len(rows) < len(encoded)
    assert not torch.isin(rows, encoded).all()


def test_lengths_that_vllm_cannot_take_together_are_warned_of() -> None:
    square, wide = Image.new("RGB", (64, 64)), Image.new("RGB", (128, 64))
    model, processor = load_embedded()
    with pytest.warns(UserWarning, match=DIFFERENT) as warned:
        features = embed(GPrune(0.3), model, processor, [square, wide, square])
    lengths = [len(rows) for rows in features]
    assert lengths[0] == lengths[2] != lengths[1]
    (warning,) = warned
    assert warning.filename == __file__
    assert f"({min(lengths)}, {max(lengths)} rows)" in str(warning.message)


def test_lengths_that_are_one_are_not(recwarn: pytest.WarningsRecorder) -> None:
    embed(GPrune(0.3), *load_embedded(), [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")])
    assert not [each for each in recwarn if DIFFERENT in str(each.message)]


def test_no_pictures() -> None:
    assert embed(GPrune(0.3), *load_embedded(), []) == []
