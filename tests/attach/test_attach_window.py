"""A cache that keeps all of a prompt, and of what is generated only a window: Unlimited-OCR's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from families import BATCH, FAMILIES, Family
from reference import embedded, kept_prompts

from gprune import GPrune

WINDOW, STEPS = 4, 14
STATIC = {"cache_implementation": "static", "disable_compile": True}
PRUNER = GPrune(keep=0.4)

pytestmark = pytest.mark.skipif("unlimited_ocr" not in FAMILIES, reason="this transformers has no Unlimited-OCR")


@pytest.fixture(autouse=True)
def no_grad() -> Any:
    with torch.no_grad():
        yield


def windowed() -> Family:
    """The family with a window that a few tokens fill."""
    family = FAMILIES["unlimited_ocr"]
    text = {**family.settings["text_config"], "sliding_window": WINDOW}
    return replace(family, settings={**family.settings, "text_config": text})


@pytest.mark.parametrize("settings", [{}, STATIC], ids=["dynamic", "static"])
@pytest.mark.parametrize("row", range(3))
def test_the_window_begins_after_the_prompt_that_is_left(row: int, settings: dict[str, Any]) -> None:
    """As stock generates from the embeddings of the kept prompt."""
    family = windowed()
    model, inputs = family.model(), family.inputs()
    expected = model.generate(
        **embedded(kept_prompts(family, model, PRUNER, inputs)[row : row + 1]), max_new_tokens=STEPS
    )
    prompt = family.prompt_of(inputs, row, BATCH)
    with PRUNER(model):
        output = model.generate(**prompt, **settings, max_new_tokens=STEPS)
    assert torch.equal(output[:, prompt["input_ids"].shape[1] :], expected)
    assert len(set(expected[0].tolist())) > 2


def test_rows_of_the_cache_in_another_order() -> None:
    family = FAMILIES["unlimited_ocr"]
    model, inputs = family.model(), family.inputs()
    tokens, order = torch.tensor([[7], [8], [9]]), torch.tensor([2, 0, 1])
    mask = torch.nn.functional.pad(inputs["attention_mask"], (0, 1), value=1)
    with PRUNER(model):
        expected = model(tokens, attention_mask=mask, cache=model(**inputs).cache).logits
        cache = model(**inputs).cache
        cache.reorder_cache(order)
        logits = model(tokens[order], attention_mask=mask[order], cache=cache).logits
    torch.testing.assert_close(logits, expected[order], rtol=0, atol=1e-5)


def test_padding_that_pruning_would_make_is_refused() -> None:
    """Stock reads padding at the wrong columns once the window is full, so there must be no more of it than before."""
    family = FAMILIES["unlimited_ocr"]
    model = family.model()
    inputs = family.inputs((((40, 20),), ((30, 18),)))
    inputs["input_ids"] = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, 5)
    inputs["attention_mask"] = torch.ones_like(inputs["attention_mask"])
    with PRUNER(model), pytest.raises(ValueError, match=r"reference_sliding_attention.*unlimited_ocr.*one prompt at a"):
        model.generate(**inputs, max_new_tokens=2)
    with GPrune(keep=1.0)(model):
        assert model.generate(**inputs, max_new_tokens=2).shape[1] == inputs["input_ids"].shape[1] + 2
