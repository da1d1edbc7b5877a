"""Compiled models: the same tokens, and no more compilation for images of other sizes."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from decoding import PLACEHOLDERS, beam_search, cache_of, present, with_cache
from families import BATCH, FAMILIES, Family, Size
from reference import kept_prompts, text_logits
from torch._dynamo.utils import counters
from transformers import CompileConfig

from gprune.pruners import GPrune
from gprune.pruners.base import Positions

STEPS = 4
OTHERS: tuple[tuple[Size, ...], ...] = (((40, 40),), ((20, 40),), ((30, 18),))
CASES: list[tuple[str, Positions]] = [("llava_next", "contiguous")]
CASES += [(name, "original") for name in present("llava_next", "qwen3_vl", "smolvlm", "gemma3")]


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    with torch.no_grad():
        yield
    torch._dynamo.reset()


def compiled_once() -> CompileConfig:
    """Without a compiler behind it: graphs are what is tested."""
    config = CompileConfig(fullgraph=True, backend="eager", mode=None)
    config._compile_all_devices = True
    return config


@pytest.mark.parametrize(("name", "positions"), CASES)
def test_decoding_into_a_static_cache_is_compiled_once(name: str, positions: Positions) -> None:
    family, pruner = FAMILIES[name], GPrune(keep=0.4, positions=positions)
    model, graphs = family.model(), []
    for images in (BATCH, OTHERS):
        inputs = family.inputs(images)
        prompts = kept_prompts(family, model, pruner, inputs, images)
        with pruner(model):
            output = model.generate(
                **inputs,
                max_new_tokens=STEPS,
                do_sample=False,
                suppress_tokens=PLACEHOLDERS,
                cache_implementation="static",
                compile_config=compiled_once(),
            )
        expected = torch.cat([beam_search(model, prompt, 1, STEPS) for prompt in prompts])
        assert torch.equal(output[:, -STEPS:], expected)
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] > 0
    assert graphs[1] == graphs[0]


@pytest.mark.filterwarnings("ignore")
def test_compiled_model() -> None:
    """As a whole for a bare call, and by its forward for generate()."""
    family: Family = FAMILIES["llava_next"]
    pruner, inputs = GPrune(keep=0.4), family.inputs()
    model: Any = copy.deepcopy(family.model())
    kept = kept_prompts(family, model, pruner, inputs)
    expected = torch.stack([text_logits(model, prompt)[-1] for prompt in kept])
    tokens = torch.cat([beam_search(model, prompt, 1, 2) for prompt in kept])
    with pruner(model) as run:
        logits = torch.compile(model, backend="eager")(**inputs).logits[:, -1]
        assert counters["stats"]["unique_graphs"] > 0
        assert len(run.images) == 3
        model.forward = torch.compile(model.forward, backend="eager")
        output = model.generate(**inputs, max_new_tokens=2, do_sample=False, suppress_tokens=PLACEHOLDERS)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)
    assert torch.equal(output[:, -2:], tokens)


def test_a_compiled_model_goes_on_with_its_pruned_cache() -> None:
    """The prefill runs compiled too, and must leave on the cache what its conversation remembers."""
    family = FAMILIES["llava_next"]
    inputs, answers = family.inputs(), []
    mask = torch.nn.functional.pad(inputs["attention_mask"], (0, 1), value=1)
    for compiled in (False, True):
        model = copy.deepcopy(family.model())
        if compiled:
            model.compile(backend="eager")
        with GPrune(keep=0.4)(model):
            output = model(**inputs)
            token = output.logits[:, -1].argmax(-1, keepdim=True)
            answers.append(model(input_ids=token, attention_mask=mask, **with_cache(cache_of(output))).logits)
    torch.testing.assert_close(*answers, rtol=0, atol=2e-5)
