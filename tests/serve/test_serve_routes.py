"""Two other ways to run vLLM: on several devices, and without the plug-in."""

from __future__ import annotations

from pathlib import Path

import pytest
from engines import answers, contiguous, engine, expected, load, picture, prompt, pruned
from servable import write_llava

from gprune.scenes.model import embedded_path
from gprune.serve import embed

IMAGES = [picture(*size, seed=40 + i) for i, size in enumerate([(64, 64), (128, 64), (60, 190)])]
KEEP = 0.4


def test_two_devices_answer_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them chooses the tokens, from features that they make together."""
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # or vLLM wants a memory bank for each
    path = write_llava(tmp_path)
    model, processor = load(path)
    with engine(path, **pruned(path, gprune_keep=KEEP), tensor_parallel_size=2) as llm:
        outputs = answers(llm, [prompt(processor, [image]) for image in IMAGES])
    for image, output in zip(IMAGES, outputs, strict=True):
        length, tokens = expected(model, processor, [image], contiguous(KEEP))
        assert (len(output.prompt_token_ids), list(output.outputs[0].token_ids)) == (length, tokens)


def test_stock_vllm_with_pruned_features() -> None:
    """One after the other: vLLM stacks what it encodes together, and ends when the lengths differ."""
    path = embedded_path()
    model, processor = load(path)
    features = embed(contiguous(KEEP), model, processor, IMAGES)
    requests = [prompt(processor, [image]) for image in IMAGES]
    for request, rows in zip(requests, features, strict=True):
        request["multi_modal_data"] = {"image": rows[None]}
    with engine(path, enable_mm_embeds=True, limit_mm_per_prompt={"image": 0}) as llm:
        outputs = [output for request in requests for output in answers(llm, [request])]
    for image, output in zip(IMAGES, outputs, strict=True):
        length, tokens = expected(model, processor, [image], contiguous(KEEP))
        assert (len(output.prompt_token_ids), list(output.outputs[0].token_ids)) == (length, tokens)
