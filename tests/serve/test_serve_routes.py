"""Two other ways to run vLLM: on several devices, and without the plug-in."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest
import torch
from engines import answers, contiguous, engine, expected, load, picture, prompt, pruned
from servable import write_llava
from vllm.utils.import_utils import resolve_obj_by_qualname

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


@pytest.mark.filterwarnings("ignore:.*have different lengths")
def test_stock_vllm_with_pruned_features() -> None:
    """One length after the other, as docs/serving.md has it."""
    path = embedded_path()
    model, processor = load(path)
    images = [*IMAGES, picture(*IMAGES[0].size, seed=43)]
    features = embed(contiguous(KEEP), model, processor, images)
    requests = [prompt(processor, [image]) for image in images]
    by_length = defaultdict(list)
    for i, rows in enumerate(features):
        requests[i]["multi_modal_data"] = {"image": rows[None]}
        by_length[len(rows)].append(i)
    assert sorted(map(len, by_length.values())) == [1, 1, 2]
    with engine(path, enable_mm_embeds=True, limit_mm_per_prompt={"image": 0}) as llm:
        outputs = {
            i: output
            for alike in by_length.values()
            for i, output in zip(alike, answers(llm, [requests[i] for i in alike]), strict=True)
        }
    for i, image in enumerate(images):
        length, tokens = expected(model, processor, [image], contiguous(KEEP))
        assert (len(outputs[i].prompt_token_ids), list(outputs[i].outputs[0].token_ids)) == (length, tokens)


@pytest.mark.parametrize(
    "name", ["interns1.InternS1", "llava.Llava", "llava_next.LlavaNext", "llava_onevision.LlavaOnevision"]
)
def test_stock_vllm_takes_no_two_lengths_together(name: str) -> None:
    """What `embed` warns of; where vLLM has learnt it, the warning can go."""
    schema = resolve_obj_by_qualname(f"vllm.model_executor.models.{name}ImageEmbeddingInputs")
    schema(data=[torch.zeros(2, 4), torch.zeros(2, 4)])
    with pytest.raises(ValueError, match="inconsistent shapes"):
        schema(data=[torch.zeros(2, 4), torch.zeros(3, 4)])
