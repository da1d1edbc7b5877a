"""Methods as dictionaries: what JSON keeps of a method makes the same method again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gprune import (
    PRUNERS,
    Auto,
    Chain,
    FastV,
    Foreground,
    GPrune,
    GraphCover,
    Method,
    PixelDedup,
    PruMerge,
    Random,
    ScorePruner,
    Unpruned,
    VisualTokens,
    cover,
)
from gprune.errors import BadType, BadValue


def again(method: Method) -> Method:
    return Method.from_dict(json.loads(json.dumps(method.to_dict())))


MADE: Sequence[Method] = [
    *(kind(1.0) for kind in PRUNERS.values()),  # type: ignore[call-arg]
    GPrune(7, init="ones", similarity=0.25, max_memory=1),
    GraphCover(cover(0.9)),
    GraphCover(cover(0.75, at_most=12), temperature=0.5),
    PruMerge("own"),
    Random(0.3, seed=2**40, scope="image"),
    Unpruned(),
    Chain(GPrune(5), FastV(0.4, layer=1)),
    Chain(PixelDedup(), Auto(0.2)),
]


@pytest.mark.parametrize("method", MADE, ids=lambda method: f"{method.name}-{method.keep}")
def test_a_method_comes_back_as_it_was(method: Method) -> None:
    made = again(method)
    assert made == method and type(made) is type(method) and made.to_dict() == method.to_dict()
    assert type(made).from_dict(method.to_dict()) == method


@given(st.one_of(st.floats(0.001, 1), st.integers(1, 10**6)), st.floats(-1, 1), st.integers(0, 50))
def test_every_number_comes_back(keep: Any, similarity: float, iterations: int) -> None:
    method = GPrune(keep, similarity=similarity, iterations=iterations)
    assert again(method) == method and type(again(method).keep) is type(keep)


def test_a_mask_comes_back() -> None:
    mask = np.arange(12).reshape(3, 4) % 5 == 0
    features = torch.randn(12, 8, generator=torch.Generator().manual_seed(0))
    tokens = VisualTokens.of(features, (3, 4))
    for given_mask in (mask, torch.as_tensor(mask), mask.tolist()):
        method = Foreground(0.25, mask=given_mask)
        made = again(method)
        assert isinstance(made, Foreground)
        assert made.select(tokens).kept.tolist() == method.select(tokens).kept.tolist() == [0, 5, 10]


def test_what_is_left_out_is_the_default() -> None:
    assert Method.from_dict({"method": "gprune", "keep": 0.5}) == GPrune(0.5)


@dataclass
class Shortest(ScorePruner):
    """A class of a user's own."""

    power: float = 1.0

    def score(self, tokens: VisualTokens) -> Tensor:
        return -(tokens.features.norm(dim=-1) ** self.power)


def test_a_class_of_one_s_own_is_made_by_itself() -> None:
    method = Shortest(0.5, power=3.0)
    assert Shortest.from_dict(method.to_dict()) == method
    with pytest.raises(BadValue, match="call its own from_dict"):
        Method.from_dict(method.to_dict())


@pytest.mark.parametrize(
    ("recipe", "error", "reason"),
    [
        ({"keep": 0.5}, BadValue, "names no method; accepted is a dictionary"),
        ({"method": "magic"}, BadValue, "whose 'method' is one of gprune, "),
        ("gprune", BadValue, "names no method"),
        ({"method": "gprune", "speed": 3}, BadValue, "gprune has no setting 'speed'; accepted are keep, scope"),
        ({"method": "gprune", "similarity": 2.0}, BadValue, "similarity=2.0 is out of range"),
        ({"method": "chain", "first": {"method": "fastv"}, "second": {"method": "fastv"}}, BadType, "no place there"),
    ],
)
def test_what_is_no_method(recipe: Any, error: type[Exception], reason: str) -> None:
    with pytest.raises(error, match=reason):
        Method.from_dict(recipe)


def test_another_method_is_not_made_in_silence() -> None:
    with pytest.raises(BadType, match=r"is no FastV; call GPrune\.from_dict, or Method\.from_dict"):
        FastV.from_dict(GPrune(0.5).to_dict())
