"""What vLLM's runners ask of a model whose visual tokens have places, without running one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("vllm", reason="needs vLLM: make test-serve")

from vllm.multimodal.inputs import PlaceholderRange
from vllm.utils.import_utils import resolve_obj_by_qualname
from vllm.v1.worker.cpu_worker import CPUWorker
from vllm.v1.worker.gpu.model_states.mm_pruning import MultiModalPruner

from gprune.serve.places import Placed, fill_in, prompt_positions, with_places
from gprune.serve.qwen import CPU_WORKER, GPruneQwen2_5_VLForConditionalGeneration, check_offered

IMAGE, TEXT, WIDTH = 9, 5, 6
KEPT = torch.tensor([1, 4, 5, 10]), torch.tensor([0, 7, 8])
GRIDS = (3, 4), (9, 1)
IMAGES = Placed(2, 4, GRIDS[0]), Placed(8, 3, GRIDS[1])
IDS = torch.tensor([TEXT] * 2 + [IMAGE] * 4 + [TEXT] * 2 + [IMAGE] * 3 + [TEXT] * 3)


def bare_model() -> Any:
    """A model without weights."""
    model = object.__new__(GPruneQwen2_5_VLForConditionalGeneration)
    vision = SimpleNamespace(spatial_merge_size=2)
    object.__setattr__(model, "config", SimpleNamespace(image_token_id=IMAGE, vision_config=vision))
    return model


def encoded() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    features = [torch.randn(rows * columns, WIDTH, generator=generator) for rows, columns in GRIDS]
    return [
        with_places(image.bfloat16(), kept, columns)
        for image, kept, (_, columns) in zip(features, KEPT, GRIDS, strict=True)
    ]


def media() -> list[Any]:
    return [
        SimpleNamespace(
            mm_position=PlaceholderRange(image.start, image.count),
            data={"image_grid_thw": SimpleNamespace(data=torch.tensor([1, image.grid[0] * 2, image.grid[1] * 2]))},
        )
        for image in IMAGES
    ]


class Rope:
    """Positions of the prompts of two requests, of which the second is asked for, as the runner for GPUs keeps them."""

    def __init__(self, positions: Tensor) -> None:
        self.rows = torch.stack([torch.zeros_like(positions), positions]).int()
        self.lead = 0

    def read_prefill_positions(self, row: int, length: int) -> Tensor:
        return self.rows[row, :, :length]

    def update_prefill_positions(self, row: int, positions: Tensor, lead: int) -> None:
        self.rows[row, :, : positions.shape[1]] = positions
        self.lead = lead


@pytest.mark.parametrize("chunk", [2, 3, 5, 14])
@pytest.mark.parametrize("cached", [0, 4, 9])
def test_the_newer_runner_fills_in_places(cached: int, chunk: int) -> None:
    model, features = bare_model(), encoded()
    positions, lead = model.get_mrope_input_positions(IDS.tolist(), list(reversed(media())))
    rope = Rope(positions)
    pruner = MultiModalPruner(model, rope, SimpleNamespace(mm_features={"a": media()}), WIDTH)
    states = SimpleNamespace(all_token_ids=SimpleNamespace(gpu=torch.stack([torch.zeros_like(IDS), IDS])))
    for start in range(cached, len(IDS), chunk):
        window = [
            part[max(start - image.start, 0) : max(start + chunk - image.start, 0)]
            for part, image in zip(features, IMAGES, strict=True)
        ]
        window = [part for part in window if len(part)]
        batch = SimpleNamespace(
            req_ids=["a"],
            idx_mapping_np=np.array([1]),
            prefill_len_np=np.array([len(IDS)]),
            num_computed_prefill_tokens_np=np.array([start]),
            num_scheduled_tokens=np.array([min(chunk, len(IDS) - start)]),
        )
        cleaned = pruner.recompute(window, batch, states)
        assert [part.tolist() for part in cleaned] == [part[:, :WIDTH].tolist() for part in window]
        if window:
            assert rope.lead == lead
    places = [
        torch.stack([kept // columns, kept % columns], dim=1) for kept, (_, columns) in zip(KEPT, GRIDS, strict=True)
    ]
    whole = fill_in(prompt_positions(len(IDS), IMAGES)[0], IDS == IMAGE, 0, places)
    assert torch.equal(rope.rows[1, :, cached:].long(), whole[:, cached:])


def settings(**changes: Any) -> Any:
    """Of vLLM, as far as it matters here."""
    given = {"pruning": True, "worker": "vllm.v1.worker.gpu_worker.Worker", "stages": 1, "drafts": None} | changes
    multimodal = SimpleNamespace(
        is_multimodal_pruning_enabled=lambda: given["pruning"], enable_mm_embeds=given.get("embeds", False)
    )
    return SimpleNamespace(
        model_config=SimpleNamespace(multimodal_config=multimodal, enable_prompt_embeds=given.get("prompts", False)),
        parallel_config=SimpleNamespace(worker_cls=given["worker"], pipeline_parallel_size=given["stages"]),
        speculative_config=given["drafts"],
    )


def test_one_gpu_is_offered() -> None:
    check_offered(settings())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"pruning": False}, "vLLM has to be started with --video-pruning-rate"),
        ({"worker": CPU_WORKER}, "vLLM's worker for CPUs"),
        ({"stages": 2}, "--pipeline-parallel-size"),
        ({"drafts": object()}, "--speculative-config"),
        ({"embeds": True}, "--enable-mm-embeds"),
        ({"prompts": True}, "--enable-prompt-embeds"),
    ],
)
def test_where_places_would_be_wrong(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=f"places in a grid: .*{reason}"):
        check_offered(settings(**changes))


def test_the_worker_for_cpus_is_known_by_its_name() -> None:
    assert resolve_obj_by_qualname(CPU_WORKER) is CPUWorker
