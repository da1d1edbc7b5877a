"""Visual tokens without an answer: what is selected of them is what a call selects, and the LLM stays still."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from families import FAMILIES, Family

from gprune import CDPruner, ClsAttention, GPrune, Pruner, ToMe, UnsupportedModel, VisionZip
from gprune.attach import ImageReport, reports_of, visual_tokens
from gprune.families.table import FAMILIES as TABLE

CROSSED: list[tuple[str, Pruner]] = [(name, GPrune(0.4)) for name in FAMILIES]
CROSSED += [(name, CDPruner(5)) for name in ("llava_next", "internvl", "qwen2_vl") if name in FAMILIES]
CROSSED += [(name, method) for method in (ClsAttention(0.4), VisionZip(0.8)) for name in FAMILIES if TABLE[name].tower]
CROSSED += [(name, ToMe(0.8)) for name in ("llava", "llava_next", "paligemma") if name in FAMILIES]
CROSSED += [("llava_next", GPrune(9, scope="image")), ("llava_next", ToMe(0.4, where="tokens"))]


def called(family: Family, pruner: Pruner) -> list[ImageReport]:
    """What a call of the whole model keeps."""
    with torch.no_grad(), pruner(family.model()) as run:
        family.model()(**family.inputs(), use_cache=False)
    return run.images


def refuse(*_: Any, **__: Any) -> None:
    raise AssertionError("the LLM was run")


def same(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
    return a is b if a is None or b is None else torch.equal(a.nan_to_num(-1), b.nan_to_num(-1))


@pytest.mark.parametrize(("name", "pruner"), CROSSED, ids=lambda value: getattr(value, "name", value))
def test_the_selection_of_a_call(name: str, pruner: Pruner) -> None:
    family = FAMILIES[name]
    model = family.model()
    before = set(vars(model.base_model)), len(model._forward_pre_hooks)
    handle = model.get_decoder().register_forward_pre_hook(refuse)
    try:
        tokens = visual_tokens(pruner, model, family.inputs())
    finally:
        handle.remove()
    assert (set(vars(model.base_model)), len(model._forward_pre_hooks)) == before
    found, expected = reports_of(pruner, tokens, pruner.select(tokens)), called(family, pruner)
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.kept, other.kept) and same(one.scores, other.scores)
        assert (one.grids, one.n_before, one.n_after, one.edge_share) == (
            other.grids,
            other.n_before,
            other.n_after,
            other.edge_share,
        )
        assert all(torch.equal(a.rows, b.rows) for a, b in zip(one.views, other.views, strict=True))


def test_one_encoding_serves_methods_with_the_same_needs() -> None:
    family, pruner = FAMILIES["llava"], GPrune(0.4)
    tokens = visual_tokens(pruner, family.model(), family.inputs())
    for other in (replace(pruner, keep=3), replace(pruner, iterations=0)):
        [first, *_] = reports_of(other, tokens, other.select(tokens))
        assert torch.equal(first.kept, called(family, other)[0].kept)


def test_refusals() -> None:
    family = FAMILIES["llava"]
    with pytest.raises(ValueError, match="no pixel_values"):
        visual_tokens(GPrune(), family.model(), family.inputs(((),)))
    with pytest.raises(UnsupportedModel):
        visual_tokens(GPrune(), torch.nn.Linear(1, 1), family.inputs())
