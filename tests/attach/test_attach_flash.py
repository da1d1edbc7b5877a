"""FlashAttention-2 as transformers dispatches it, with kernels in plain torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers.modeling_flash_attention_utils as dispatch
from decoding import MAIN, PLACEHOLDERS, cache_of, joined, with_cache
from families import BATCH, FAMILIES, Family, Size
from reference import KeptPrompt, kept_prompts, text_logits
from torch import Tensor

from gprune.pruners import GPrune
from gprune.pruners.base import Positions

SETTINGS: dict[str, Any] = {
    "max_new_tokens": 4,
    "do_sample": False,
    "suppress_tokens": PLACEHOLDERS,
    "return_dict_in_generate": True,
    "output_logits": True,
}
close = {"rtol": 0, "atol": 1e-5}


class Kernels:
    """Stand-ins for the two kernels; `calls` names those that ran."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def padded(self, query: Tensor, key: Tensor, value: Tensor, **settings: Any) -> Tensor:
        """[B, q, heads, d] of rows that all have the same length."""
        self.calls.append("padded")
        return torch.stack([_attention(*row, **settings) for row in zip(query, key, value, strict=True)])

    def packed(
        self, query: Tensor, key: Tensor, value: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, **settings: Any
    ) -> Tensor:
        """[sum of q, heads, d] of rows that follow one another."""
        self.calls.append("packed")
        queries, keys = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
        rows = zip(queries, queries[1:], keys, keys[1:], strict=False)
        return torch.cat([_attention(query[a:b], key[c:d], value[c:d], **settings) for a, b, c, d in rows])


def _attention(query: Tensor, key: Tensor, value: Tensor, causal: bool, scale: float | None, **_: Any) -> Tensor:
    query, key, value = (part.transpose(0, 1) for part in (query, key, value))
    key, value = (part.repeat_interleave(len(query) // len(part), 0) for part in (key, value))
    scores = query @ key.transpose(1, 2) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if causal:  # the last query sees the last key
        ahead = torch.ones_like(scores[0]).triu(1 + scores.shape[2] - scores.shape[1]).bool()
        scores = scores.masked_fill(ahead, -torch.inf)
    return (scores.softmax(-1) @ value).transpose(0, 1)


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Kernels:
    def settings(is_causal: bool, softmax_scale: float | None, **_: Any) -> dict[str, Any]:
        return {"causal": is_causal, "scale": softmax_scale}

    def packed(query: Tensor, key: Tensor, value: Tensor, **others: Any) -> Tensor:
        return made.packed(query, key, value, **others)

    made = Kernels()
    functions = (made.padded, packed, None, dispatch._pad_input, dispatch._unpad_input)
    monkeypatch.setattr(dispatch, "lazy_import_flash_attention", lambda *_, **__: (functions, (settings, settings)))
    return made


@pytest.fixture(params=MAIN)
def family(request: pytest.FixtureRequest) -> Iterator[Family]:
    config = FAMILIES[request.param].model().get_decoder().config
    before = config._attn_implementation
    yield FAMILIES[request.param]
    config._attn_implementation = before


@pytest.fixture(autouse=True)
def no_grad() -> Any:
    with torch.no_grad():
        yield


def causal(prompt: KeptPrompt) -> KeptPrompt:
    """FlashAttention knows no blocks: with it, no token sees what comes after it."""
    return replace(prompt, blocks=torch.full_like(prompt.blocks, -1))


@pytest.mark.parametrize("use_cache", [True, False], ids=["cache", "no cache"])
@pytest.mark.parametrize("images", [BATCH[1:2], BATCH], ids=["one prompt", "padded batch"])
@pytest.mark.parametrize("positions", ["original", "contiguous"])
def test_generation_equals_the_long_way(
    family: Family, kernels: Kernels, positions: Positions, images: Sequence[Sequence[Size]], use_cache: bool
) -> None:
    """Without padding, gaps in the position ids must not be read as the ends of packed sequences."""
    pruner, model, inputs = GPrune(keep=0.4, positions=positions), family.model(), family.inputs(images)
    prompts = kept_prompts(family, model, pruner, inputs, images)
    model.get_decoder().config._attn_implementation = "flash_attention_2"
    with pruner(model):
        output = model.generate(**inputs, use_cache=use_cache, **SETTINGS)
    model.get_decoder().config._attn_implementation = "sdpa"
    assert len(kernels.calls) == 4 * model.config.get_text_config().num_hidden_layers
    for row, prompt in enumerate(prompts):
        for token in output.sequences[row, -4:]:
            prompt = prompt.followed_by(model, token)
        logits = torch.stack([step[row] for step in output.logits])
        torch.testing.assert_close(logits, text_logits(model, causal(prompt))[-5:-1], **close)


def test_second_image_on_a_pruned_cache(family: Family, kernels: Kernels) -> None:
    pruner, model = GPrune(keep=0.4), family.model()
    sizes = BATCH[1]
    turns = [family.inputs(((size,),), seed=seed) for seed, size in enumerate(sizes)]
    kept = [kept_prompts(family, model, pruner, turn, ((size,),))[0] for turn, size in zip(turns, sizes, strict=True)]
    whole = joined(*kept)
    model.get_decoder().config._attn_implementation = "flash_attention_2"
    with pruner(model):
        cache = None
        for turn in turns:
            call = {name: value for name, value in turn.items() if name != "attention_mask"}
            output = model(**call, **with_cache(cache))
            cache = cache_of(output)
    model.get_decoder().config._attn_implementation = "sdpa"
    assert kernels.calls
    torch.testing.assert_close(output.logits[0, -1], text_logits(model, causal(whole))[-1], **close)


def test_stand_ins_are_causal_attention(kernels: Kernels) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(2, length, heads, 8, generator=generator) for length, heads in ((5, 4), (9, 2), (9, 2))
    )
    seen = torch.ones(5, 9).tril(4).bool()
    expected = torch.nn.functional.scaled_dot_product_attention(
        *(part.transpose(1, 2) for part in (query, key, value)), attn_mask=seen, enable_gqa=True
    ).transpose(1, 2)
    made = kernels.padded(query, key, value, causal=True, scale=None)
    torch.testing.assert_close(made, expected)
    ends = torch.tensor([0, 5, 10]), torch.tensor([0, 9, 18])
    packed = kernels.packed(query.flatten(0, 1), key.flatten(0, 1), value.flatten(0, 1), *ends, causal=True, scale=None)
    torch.testing.assert_close(packed.view_as(expected), expected)
