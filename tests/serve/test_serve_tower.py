"""Methods that ask the vision tower, and those that merge, in vLLM: answers are those of transformers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from engines import answers, crossed, engine, expected, load, picture, prompt, pruned
from servable import WRITERS

from gprune import get_pruner
from gprune.scenes.model import embedded_path
from gprune.serve.one_axis import reader_of

METHODS = ("clsattention", "scope", "vispruner", "hiprune", "visionzip", "prumerge", "bat", "zerotprune", "apet")
SIZES = ((64, 64), (100, 40), (30, 90))
BUDGETS = (0.3, 20, 1.0)


@pytest.fixture(
    scope="module", params=crossed(["llava", "llava_next", "llava_onevision"], ["llava", "llava_onevision"])
)
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CLIP with its class token, tiles of CLIP, and of SigLIP, which has none."""
    name = request.param
    return embedded_path() if name == "llava_next" else WRITERS[name](tmp_path_factory.mktemp(name))


@pytest.fixture(scope="module")
def llm(path: Path) -> Iterator[Any]:
    """Takes 32 tokens of a prompt at a time; the worker is told by which method to choose."""
    options = pruned(path, gprune_method="clsattention", gprune_keep=0.3)
    with engine(path, **options, worker_cls="choosing_worker.ChoosingWorker", max_num_batched_tokens=32) as llm:
        yield llm


@pytest.fixture(scope="module")
def reference(path: Path) -> tuple[Any, Any]:
    return load(path)


@pytest.mark.parametrize("method", METHODS)
def test_answers_equal_those_of_transformers(llm: Any, reference: tuple[Any, Any], method: str) -> None:
    """Pictures that no method has seen before, so that none comes out of a cache."""
    model, processor = reference
    llm.collective_rpc("choose_by", args=(method,))
    first = 100 * METHODS.index(method)
    images = [picture(*size, seed=first + i) for i, size in enumerate(SIZES)]
    asked = [(image, keep) for keep in BUDGETS for image in images]
    outputs = answers(llm, [prompt(processor, [image], keep) for image, keep in asked])
    for (image, keep), output in zip(asked, outputs, strict=True):
        pruner = get_pruner(method)(keep, positions="contiguous")
        found = len(output.prompt_token_ids), list(output.outputs[0].token_ids)
        assert found == expected(model, processor, [image], pruner)


def test_workers_that_see_some_images_alone_are_refused() -> None:
    split = SimpleNamespace(multimodal_config=SimpleNamespace(mm_encoder_tp_mode="data"))
    settings = SimpleNamespace(model_config=split)
    with pytest.raises(ValueError, match=r"visionzip needs the attention and the keys of .* leave that option out"):
        reader_of(None, get_pruner("visionzip")(0.3), settings)
    assert reader_of(None, get_pruner("gprune")(0.3), settings) is None
