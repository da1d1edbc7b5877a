"""What vLLM's runners ask of a model that keeps positions, without weights: both of them step by step, as on a GPU."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("vllm", reason="needs vLLM: make test-serve")

from vllm.multimodal.inputs import MultiModalFeatureSpec, PlaceholderRange
from vllm.v1.worker.gpu.mm.encoder_runner import EncoderRunner

from gprune.serve.places import with_places
from gprune.serve.placing import PlacingModel, check_offered
from gprune.serve.settings import BEFORE

WIDTH, ROOM = 6, 64
COUNTS = (12, 9)
KEPT = torch.tensor([1, 4, 5, 10]), torch.tensor([0, 7, 8])
RANGES = PlaceholderRange(2, 4), PlaceholderRange(8, 5, torch.tensor([False, True, True, True, False]))
"""The second one has markers of text around its three visual tokens."""
LENGTH = 15
TEXT = torch.tensor([True] * 2 + [False] * 4 + [True] * 3 + [False] * 3 + [True] * 3)
UNPRUNED = [0, 1, 3, 6, 7, 12, 14, 15, 16, 17, 24, 25, 26, 27, 28]
"""Where the tokens that are left are in the prompt before pruning, of 29 tokens."""


class Received(torch.nn.Module):
    """In the place of a model of vLLM: what reaches it."""

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__()
        self.cos_sin_cache = torch.zeros(vllm_config.model_config.hf_config.get_text_config().max_position_embeddings)

    def embed_input_ids(self, ids: Tensor, features: Any = None, *, is_multimodal: Tensor | None = None) -> Tensor:
        self.features = [] if features is None else list(features)
        return torch.zeros(len(ids), WIDTH)

    def forward(self, ids: Any, positions: Tensor, stage: Any, embeddings: Any) -> Tensor:
        return positions


class Model(PlacingModel, Received):
    pass


def settings(**changes: Any) -> Any:
    """Of vLLM, as far as it matters here."""
    given = {"positions": "original", "rope": "default", "length": 30, "room": ROOM, "section": [1]} | changes
    rope = {"rope_type": given["rope"], "rope_theta": 1e4}
    text = SimpleNamespace(rope_parameters=rope, max_position_embeddings=given["room"])
    config = SimpleNamespace(gprune_positions=given["positions"], mrope_section=given["section"])
    config.get_text_config = lambda: text
    multimodal = SimpleNamespace(
        is_multimodal_pruning_enabled=lambda: given.get("pruning", False),
        enable_mm_embeds=given.get("embeds", False),
    )
    return SimpleNamespace(
        model_config=SimpleNamespace(
            hf_config=config,
            multimodal_config=multimodal,
            uses_mrope=given["section"] is not None,
            enable_prompt_embeds=given.get("prompts", False),
            max_model_len=given["length"],
        ),
        parallel_config=SimpleNamespace(
            pipeline_parallel_size=given.get("stages", 1),
            prefill_context_parallel_size=given.get("contexts", 1),
            use_ubatching=given.get("ubatches", False),
        ),
        scheduler_config=SimpleNamespace(max_num_batched_tokens=ROOM),
        speculative_config=given.get("drafts"),
    )


def encoded() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = [torch.randn(count, WIDTH, generator=generator) for count in COUNTS]
    return [with_places(image.bfloat16()[kept], kept[:, None]) for image, kept in zip(images, KEPT, strict=True)]


def media() -> list[MultiModalFeatureSpec]:
    return [
        MultiModalFeatureSpec(
            data={BEFORE: SimpleNamespace(data=torch.tensor(count))},  # type: ignore[arg-type]
            modality="image",
            identifier=str(count),
            mm_position=where,
        )
        for count, where in zip(COUNTS, RANGES, strict=True)
    ]


def step(model: Model, runner: EncoderRunner, starts: list[int], counts: list[int], whole: Tensor) -> Tensor:
    """Positions int64 [n] of a step of two requests with the same prompt, as they reach the language model."""
    total = sum(counts)
    features, visual = runner.gather_mm_embeddings(
        ["a", "b"],
        total,
        np.array(counts),
        np.array([0, counts[0], total]),
        np.array([LENGTH, LENGTH]),
        np.array(starts),
    )
    model.embed_input_ids(torch.zeros(total, dtype=torch.long), features, is_multimodal=visual)
    given = torch.cat([whole[:, start : start + count] for start, count in zip(starts, counts, strict=True)], dim=1)
    assert all(part.shape[1] == WIDTH for part in model.features)
    padded = torch.nn.functional.pad(given, (0, 3), value=1)
    return model.forward(None, padded)


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 15])
@pytest.mark.parametrize("cached", [0, 4, 9, 10])
def test_places_reach_the_language_model(cached: int, chunk: int) -> None:
    """Two requests at a time, one ahead of the other; nothing moves in memory, as CUDA graphs need it."""
    model = Model(vllm_config=settings())
    whole, ahead = model.get_mrope_input_positions([7] * LENGTH, list(reversed(media())))
    assert ahead == 29 - LENGTH
    assert torch.equal(whole[:, TEXT], torch.tensor(UNPRUNED).expand(3, -1)[:, TEXT])
    images = dict(zip(map(str, COUNTS), encoded(), strict=True))
    cache = SimpleNamespace(mm_features={"a": media(), "b": media()}, encoder_outputs=images)
    runner = EncoderRunner(model, ROOM, WIDTH, cache, torch.bfloat16, torch.device("cpu"))
    addresses = set()
    for first in range(cached, LENGTH, chunk):
        second = first - 2 if first > cached + 2 else cached
        counts = [min(chunk, LENGTH - first), min(chunk, LENGTH - second)]
        positions = step(model, runner, [first, second], counts, whole)
        addresses.add(positions.data_ptr())
        expected = UNPRUNED[first : first + counts[0]] + UNPRUNED[second : second + counts[1]] + [1, 1, 1]
        assert positions.tolist() == expected
    assert len(addresses) == 1
    nothing_embedded = model.forward(None, whole)
    assert torch.equal(nothing_embedded, whole[0])


def test_what_was_not_pruned_keeps_its_positions() -> None:
    model = Model(vllm_config=settings())
    video = MultiModalFeatureSpec({}, "video", "0", PlaceholderRange(3, 4))  # type: ignore[arg-type]
    positions, ahead = model.get_mrope_input_positions([7] * 9, [video])
    assert (positions.tolist(), ahead) == ([list(range(9))] * 3, 0)


def test_contiguous_positions_are_those_of_vllm() -> None:
    model = Model(vllm_config=settings(positions="contiguous", section=None, stages=2, rope="longrope", length=ROOM))
    positions = torch.arange(5)
    assert model.forward(None, positions) is positions


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"section": None}, 'need both of "gprune_positions": "original" and "mrope_section"'),
        ({"positions": "contiguous"}, 'need both of "gprune_positions": "original" and "mrope_section"'),
        ({"positions": "own"}, "gprune_positions is 'own'; accepted are original, contiguous"),
        ({"pruning": True}, "--video-pruning-rate"),
        ({"stages": 2}, "--pipeline-parallel-size"),
        ({"contexts": 2}, "--prefill-context-parallel-size"),
        ({"ubatches": True}, "--enable-dbo"),
        ({"drafts": object()}, "--speculative-config"),
        ({"embeds": True}, "--enable-mm-embeds"),
        ({"prompts": True}, "--enable-prompt-embeds"),
        ({"rope": "longrope"}, "of type longrope, which depend on the length of a prompt"),
        ({"length": ROOM}, "give a smaller --max-model-len: what it leaves of 64"),
    ],
)
def test_where_positions_would_be_wrong(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Model(vllm_config=settings(**changes))


def test_a_table_that_is_too_short(monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings()
    monkeypatch.setattr(Received, "__init__", lambda self, **_: torch.nn.Module.__init__(self))
    with pytest.raises(ValueError, match="no table of rotary positions, or a shorter one"):
        Model(vllm_config=config)


def test_three_axes_are_offered_by_the_same_rules() -> None:
    with pytest.raises(ValueError, match="--pipeline-parallel-size"):
        check_offered(settings(positions=None, stages=2), True)
    check_offered(settings(positions=None), True)
