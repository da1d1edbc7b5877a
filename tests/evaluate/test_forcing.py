"""Teacher forcing: the logits of a given answer are those of decoding it step by step, under every kind of method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from families import FAMILIES, Family
from torch import Tensor

from gprune import CDPruner, Chain, FastV, GPrune, Method, PyramidDrop, ToMe, Unpruned, VisionZip, refusal
from gprune.evaluate.forcing import answer_logits, greedy_answers

METHODS: list[Method] = [
    Unpruned(),
    GPrune(keep=0.4),
    GPrune(keep=0.4, positions="contiguous"),
    CDPruner(keep=0.4),
    VisionZip(keep=0.4),
    ToMe(keep=0.5),
    FastV(keep=0.7, layer=1),
    PyramidDrop(keep=0.7),
    Chain(GPrune(keep=0.6), FastV(keep=0.8, layer=1)),
]
LENGTHS = (5, 1, 7)
close = {"rtol": 0, "atol": 1e-5}


@pytest.fixture(params=FAMILIES.values(), ids=FAMILIES)
def family(request: pytest.FixtureRequest) -> Family:
    return request.param


def answers_of(lengths: Sequence[int] = LENGTHS) -> list[Tensor]:
    """Tokens that no greedy decoding would give, so that nothing but forcing explains their logits."""
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(3, 88, (length,), generator=generator) for length in lengths]


def decoded(model: Any, inputs: dict[str, Tensor], answers: list[Tensor]) -> list[Tensor]:
    """The logits of these answers by `generate()`, a token a step."""
    start, longest = inputs["input_ids"].shape[1], max(map(len, answers))

    def forced(row: int, ids: Tensor) -> list[int]:
        step = len(ids) - start
        return [int(answers[row][step]) if step < len(answers[row]) else 5]

    output = model.generate(
        **inputs,
        max_new_tokens=longest,
        do_sample=False,
        prefix_allowed_tokens_fn=forced,
        return_dict_in_generate=True,
        output_logits=True,
    )
    steps = torch.stack(output.logits, dim=1)
    return [row[: len(answer)] for row, answer in zip(steps, answers, strict=True)]


def test_logits_of_an_answer_are_those_of_decoding_it(family: Family) -> None:
    model, inputs, answers = family.model(), family.inputs(), answers_of()
    tried = [method for method in METHODS if refusal(method, model) is None]
    assert len(tried) >= 3
    found = []
    for method in tried:
        with method(model):
            expected = decoded(model, inputs, answers)
            logits = answer_logits(model, inputs, answers)
        assert [each.shape[0] for each in logits] == list(LENGTHS)
        for own, other in zip(logits, expected, strict=True):
            torch.testing.assert_close(own, other, **close, msg=lambda text, method=method: f"{method}: {text}")
        found.append(logits[0])
    assert not torch.allclose(found[0], found[1], atol=1e-3)  # pruning shows


@pytest.mark.parametrize("name", [name for name in ("llava_next", "qwen2_5_vl", "internvl") if name in FAMILIES])
def test_all_tokens_agree_exactly_where_the_greedy_answers_are_equal(name: str) -> None:
    model, inputs, steps = FAMILIES[name].model(), FAMILIES[name].inputs(), 4
    reference = greedy_answers(model, inputs, steps)
    seen = set()
    for method in (Unpruned(), GPrune(keep=0.95), GPrune(keep=0.7), GPrune(keep=0.4), FastV(keep=0.7, layer=1)):
        with method(model):
            own = greedy_answers(model, inputs, steps)
            logits = answer_logits(model, inputs, reference)
        for row, (answer, each) in enumerate(zip(reference, logits, strict=True)):
            agree = torch.equal(each.argmax(-1), answer)
            assert agree == torch.equal(own[row], answer)
            assert agree or method.acts != "nowhere"
            seen.add(agree)
    assert seen == {True, False}


def test_a_greedy_answer_ends_with_its_end_and_heeds_no_settings_of_the_checkpoint(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    family = FAMILIES["llava"]
    model, inputs = family.model(), family.inputs()
    whole = greedy_answers(model, inputs, 6)
    stock = model.generate(**inputs, max_new_tokens=6, do_sample=False)
    assert torch.equal(torch.stack(whole), stock[:, inputs["input_ids"].shape[1] :])
    end = int(whole[0][2])
    for name, value in {"repetition_penalty": 9.0, "do_sample": True, "eos_token_id": [end, 1]}.items():
        monkeypatch.setattr(model.generation_config, name, value)
    ended = greedy_answers(model, inputs, 6)
    for answer, before in zip(ended, whole, strict=True):
        stop = next((i + 1 for i, token in enumerate(before.tolist()) if token in (end, 1)), 6)
        assert torch.equal(answer, before[:stop])
    assert len(ended[0]) < 6
