"""What the tests that run vLLM share: they are skipped without it, nothing reaches a hub, one engine runs at a time."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

os.environ.update(HF_HUB_OFFLINE="1", VLLM_NO_USAGE_STATS="1", DO_NOT_TRACK="1", TOKENIZERS_PARALLELISM="false")
pytest.importorskip("vllm", reason="needs vLLM: make test-serve")

from families import SINCE
from packaging.version import Version

from gprune import GPrune, Keep, Pruner
from gprune.host import installed
from gprune.prompt import ask, build_inputs
from gprune.serve.families import served_architecture

SMALL: dict[str, Any] = {
    "dtype": "float32",
    "max_model_len": 2048,
    "max_num_seqs": 4,
    "kv_cache_memory_bytes": 2**27,
    "enforce_eager": True,
}
DEFAULT = 0.3
"""Budget of requests that name none."""
BUDGETS = (None, 0.5, 20, 1, 1.0)
Asked = tuple[Sequence[Image.Image], Keep | None, str]
"""Pictures, their budget, and the question about them."""
STEPS = 12
QUESTION = "what is in the picture?"


def crossed(names: Iterable[str], now: Sequence[str]) -> list[Any]:
    """Parameters of which all but `now` are left to `make test-serve-thorough`: an engine takes half a minute."""
    return [name if name in now else pytest.param(name, marks=pytest.mark.thorough) for name in names]


def check_runnable(name: str) -> None:
    """Skip the test of a family whose processor, or whose pruning by transformers, needs what is not installed."""
    if name == "smolvlm":
        pytest.importorskip("num2words", reason="its processor needs num2words")
    if installed() < Version(SINCE.get(name, "5.19")):
        pytest.skip(f"transformers prunes {name} from {SINCE[name]} on")


@contextmanager
def engine(path: Path, **options: Any) -> Iterator[Any]:
    """A vLLM in processes of its own, which end with the context."""
    from vllm import LLM

    llm = LLM(str(path), **{**SMALL, **options})
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()


def pruned(path: Path, **settings: Any) -> dict[str, Any]:
    """The options with which vLLM prunes a checkpoint."""
    from transformers import AutoConfig

    name = served_architecture(AutoConfig.from_pretrained(path), experimental=True)
    return {"hf_overrides": {"architectures": [name], **settings}}


def placed(path: Path, **settings: Any) -> dict[str, Any]:
    """The same, kept tokens with the positions of the unpruned prompt, which may be longer than what vLLM takes."""
    original = {"gprune_positions": "original", "mrope_section": [1]}
    return {**pruned(path, **original, **settings), "max_model_len": 1024}


def load(path: Path) -> tuple[Any, Any]:
    """The same checkpoint in transformers."""
    import transformers

    model = transformers.AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32)
    model.generation_config.eos_token_id = None
    return model.eval(), transformers.AutoProcessor.from_pretrained(path)


def picture(width: int, height: int, seed: int) -> Image.Image:
    """Coloured squares, so that some tokens are alike and some are not."""
    cells = np.random.default_rng(seed).integers(0, 255, (-(-height // 12), -(-width // 12), 3), dtype=np.uint8)
    return Image.fromarray(cells).resize((width, height), Image.Resampling.NEAREST)


def prompt(
    processor: Any, images: Sequence[Image.Image], keep: Keep | None = None, question: str = QUESTION
) -> dict[str, Any]:
    """A request for vLLM; without a budget, the server's holds."""
    text = processor.apply_chat_template(ask(images, question), add_generation_prompt=True, tokenize=False)
    request: dict[str, Any] = {"prompt": text, "multi_modal_data": {"image": list(images)}}
    return request if keep is None else {**request, "mm_processor_kwargs": {"gprune_keep": keep}}


def answers(llm: Any, requests: Sequence[dict[str, Any]]) -> list[Any]:
    """Greedy answers of vLLM, together."""
    from vllm import SamplingParams

    return llm.generate(requests, SamplingParams(temperature=0, max_tokens=STEPS, ignore_eos=True), use_tqdm=False)


def expected(
    model: Any, processor: Any, images: Sequence[Image.Image], pruner: Pruner, question: str = QUESTION
) -> tuple[int, list[int]]:
    """Tokens of the prompt after pruning, and the greedy answer, of transformers with this pruner."""
    inputs = build_inputs(model, processor, [(images, question)])
    with pruner.attach(model) as run:
        output = model.generate(**inputs, max_new_tokens=STEPS, do_sample=False)
    length = inputs["input_ids"].shape[1]
    dropped = sum(report.n_before - report.n_after for report in run.images)
    return length - dropped, output[0, length:].tolist()


def contiguous(keep: Keep, **settings: Any) -> GPrune:
    """G-Prune with the positions that vLLM gives: of the families here, those of text."""
    return GPrune(keep, positions="contiguous", **settings)


def check(llm: Any, reference: tuple[Any, Any], asked: Sequence[Asked]) -> list[Any]:
    """What vLLM gives to these requests at once, each of which must equal what transformers gives."""
    model, processor = reference
    outputs = answers(llm, [prompt(processor, *one) for one in asked])
    for (images, keep, question), output in zip(asked, outputs, strict=True):
        length, tokens = expected(model, processor, images, GPrune(DEFAULT if keep is None else keep), question)
        assert (len(output.prompt_token_ids), list(output.outputs[0].token_ids)) == (length, tokens)
    return outputs
