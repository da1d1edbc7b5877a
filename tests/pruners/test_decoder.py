"""The methods that act inside the LLM: when they drop tokens, how many, and which."""

from __future__ import annotations

import dataclasses
import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from towered import inside

from gprune import (
    DART,
    VTW,
    Chain,
    DecoderPruner,
    FastV,
    GPrune,
    InsideTokens,
    PuMer,
    PyramidDrop,
    SparseVLM,
    Uniform,
    V2Drop,
    pruners,
)
from gprune.pruners.decoder import layer_cost, mean_layer_cost, share_at_cost

METHODS: tuple[type[DecoderPruner], ...] = (FastV, VTW, PyramidDrop, DART, V2Drop, SparseVLM, PuMer)
LAYERS = st.integers(4, 80)
KEEP = st.floats(0.01, 1.0)
PAIRS = st.floats(0, 3)


@given(LAYERS, st.integers(1, 79), KEEP)
def test_fastv_keeps_what_makes_up_for_the_first_layers(layers: int, layer: int, keep: float) -> None:
    if layer >= layers:
        return
    share = (keep * layers - layer) / (layers - layer)
    if share < 0:
        with pytest.raises(ValueError, match=rf"smallest keep is {layer / layers:.4g}"):
            FastV(keep, layer=layer).schedule(layers)
        return
    for method in (FastV, DART):
        schedule = method(keep, layer=layer).schedule(layers)
        assert schedule[:layer] == [1.0] * layer
        assert schedule[layer:] == pytest.approx([share] * (layers - layer), abs=1e-9)


@given(st.integers(1, 20), st.floats(0.26, 1.0))
def test_pyramiddrop_solves_the_polynomial(quarter: int, keep: float) -> None:
    schedule = PyramidDrop(keep).schedule(4 * quarter)
    roots = np.roots([1, 1, 1, 1 - 4 * keep])
    (factor,) = [root.real for root in roots if abs(root.imag) < 1e-9 and 0 <= root.real <= 1 + 1e-9]
    expected = [factor ** (layer // quarter) for layer in range(4 * quarter)]
    assert schedule == pytest.approx(expected, abs=1e-6)


def test_pyramiddrop_of_the_paper() -> None:
    """LLaVA-1.5 has 32 layers: 8 a stage, with lambda = 0.5."""
    counts = PyramidDrop(0.46875).counts(576, 32)
    assert counts == [576] * 8 + [288] * 8 + [144] * 8 + [72] * 8
    assert PyramidDrop(0.5, stages=2).schedule(6) == pytest.approx([1, 1, 1, 0, 0, 0])


def test_fastv_of_the_paper() -> None:
    """K = 2, R = 50 % of LLaVA-1.5."""
    assert FastV(0.53125).counts(576, 32) == [576] * 2 + [288] * 30


@given(LAYERS, KEEP)
def test_vtw_keeps_all_tokens_in_the_nearest_number_of_layers(layers: int, keep: float) -> None:
    seeing = round(keep * layers)
    if seeing == 0:
        with pytest.raises(ValueError, match="no visual token at all"):
            VTW(keep).schedule(layers)
    else:
        assert VTW(keep).counts(50, layers) == [50] * seeing + [0] * (layers - seeing)


@given(st.sampled_from([FastV, PyramidDrop, DART, V2Drop, SparseVLM, PuMer]), LAYERS, st.floats(0.6, 1.0), PAIRS)
def test_schedules_come_to_the_budget(method: type[DecoderPruner], layers: int, keep: float, pairs: float) -> None:
    by_tokens, by_flops = method(keep).schedule(layers, pairs), method(keep, match="flops")
    assert mean_layer_cost(by_tokens, 0) == pytest.approx(keep)
    try:
        schedule = by_flops.schedule(layers, pairs)
    except ValueError:
        assert mean_layer_cost(by_flops.profile(layers, 0.0), pairs) > layer_cost(keep, pairs)
    else:
        assert mean_layer_cost(schedule, pairs) == pytest.approx(layer_cost(keep, pairs))
        assert sum(schedule) <= sum(by_tokens) + 1e-6
        assert schedule == sorted(schedule, reverse=True) and schedule[0] == 1


@given(LAYERS, st.floats(0.1, 1.0), PAIRS)
def test_vtw_comes_nearest_to_the_budget_in_flops(layers: int, keep: float, pairs: float) -> None:
    spent = [abs(seeing / layers * layer_cost(1, pairs) - layer_cost(keep, pairs)) for seeing in range(layers + 1)]
    if spent.index(min(spent)) == 0:
        return
    seeing = sum(VTW(keep, match="flops").schedule(layers, pairs))
    assert spent[int(seeing)] == pytest.approx(min(spent))


@given(st.floats(0, 5), PAIRS)
def test_share_at_cost_inverts_layer_cost(share: float, pairs: float) -> None:
    assert share_at_cost(layer_cost(share, pairs), pairs) == pytest.approx(share)
    assert layer_cost(share, pairs) == pytest.approx(share * (1 + pairs * share))


@given(st.sampled_from(METHODS), st.integers(0, 3000), LAYERS, st.floats(0.55, 1.0))
def test_counts_never_rise_and_never_leave_an_image_bare(
    method: type[DecoderPruner], n: int, layers: int, keep: float
) -> None:
    pruner = method(keep)
    counts = pruner.counts(n, layers)
    assert counts[0] == n and counts == sorted(counts, reverse=True)
    for count, share in zip(counts, pruner.schedule(layers), strict=True):
        exact = n * share
        assert count == (math.floor(exact + 1e-6) or int(n > 0 and share > 1e-9))


@given(st.integers(1, 30), st.integers(0, 6), st.integers(0, 2**20), st.data())
def test_most_attended(n: int, text: int, seed: int, data: st.DataObject) -> None:
    seen, k = inside(n, text, seed), data.draw(st.integers(1, n))
    seen.attention[data.draw(st.integers(0, n - 1))] = seen.attention[0]  # a tie
    order = sorted(range(n), key=lambda i: (-seen.attention[i].item(), i))
    for pruner in (FastV(0.5), PyramidDrop(0.5)):
        assert pruner.choose(seen, k).tolist() == order[:k]


def test_v2drop_drops_after_the_layers_of_the_paper() -> None:
    """3, 17 and 22 of LLaVA-1.5's 32 layers; a half each time."""
    expected = [576] * 3 + [288] * 14 + [144] * 5 + [72] * 10
    assert V2Drop(sum(expected) / 576 / 32).counts(576, 32) == expected
    assert V2Drop(0.46875).schedule(4) == pytest.approx([1, 0.5, 0.25, 0.125])


@given(st.integers(1, 30), st.integers(0, 2**20), st.data())
def test_v2drop_keeps_what_changed_most(n: int, seed: int, data: st.DataObject) -> None:
    seen, k = inside(n, 3, seed), data.draw(st.integers(1, n))
    seen.change[data.draw(st.integers(0, n - 1))] = seen.change[0]  # a tie
    assert V2Drop(0.5).choose(seen, k).tolist() == sorted(range(n), key=lambda i: (-seen.change[i].item(), i))[:k]


def dart(seen: InsideTokens, k: int, pivots: int) -> list[int]:
    """In float64, a token at a time."""
    states, text = seen.states.double().numpy(), seen.text.double().numpy()
    own = sorted(range(len(states)), key=lambda i: -seen.key_norms[i].item())[: min(pivots, k)]
    others = sorted(range(len(text)), key=lambda i: -seen.text_key_norms[i].item())[:pivots]
    all_pivots = [states[i] for i in own] + [text[i] for i in others]
    kept = list(own)
    for number, pivot in enumerate(all_pivots):
        share = math.floor((k - len(own)) * (number + 1) / len(all_pivots)) - math.floor(
            (k - len(own)) * number / len(all_pivots)
        )
        for _ in range(share):
            left = [i for i in range(len(states)) if i not in kept]
            kept.append(min(left, key=lambda i: states[i] @ pivot / np.linalg.norm(states[i]) / np.linalg.norm(pivot)))
    return kept


@given(st.integers(1, 40), st.integers(0, 9), st.integers(1, 5), st.integers(0, 2**20), st.data())
def test_dart_keeps_pivots_and_what_duplicates_them_least(
    n: int, text: int, pivots: int, seed: int, data: st.DataObject
) -> None:
    seen, k = inside(n, text, seed), data.draw(st.integers(1, n))
    chosen = DART(0.7, pivots=pivots).choose(seen, k).tolist()
    assert chosen == dart(seen, k, pivots)


def test_chain_multiplies_budgets() -> None:
    chain = Chain(GPrune(keep=0.5, scope="image", positions="contiguous"), FastV(keep=0.4))
    assert (chain.keep, chain.parts, chain.name) == (0.2, (chain.first, chain.second), "chain")
    assert Chain(Uniform(keep=64), FastV(keep=0.5)).keep == 32
    assert Chain(Uniform(keep=1), FastV(keep=0.5)).keep == 1
    assert pickle.loads(pickle.dumps(chain)) == eval(repr(chain), vars(pruners)) == chain
    assert dataclasses.replace(chain, first=GPrune(0.4)) == Chain(GPrune(0.4), FastV(0.4)) != chain


def test_a_number_of_tokens_is_no_share_of_the_layers() -> None:
    with pytest.raises(TypeError, match=r"keep=128 is an int; accepted is a float .*over the layers.*for example 0.3"):
        FastV(128)


@pytest.mark.parametrize(
    ("place", "methods"),
    [
        ("first", (FastV(0.5), VTW(0.5))),
        ("first", (Chain(GPrune(0.5), VTW(0.5)), VTW(0.5))),
        ("first", (0.5, VTW(0.5))),
        ("second", (GPrune(0.5), Uniform(0.5))),
        ("second", (GPrune(0.5), Chain(GPrune(0.5), VTW(0.5)))),
    ],
)
def test_chain_of_the_wrong_kinds(place: str, methods: Any) -> None:
    with pytest.raises(TypeError, match=rf"{place}=.*accepted is first a method that acts before the LLM"):
        Chain(*methods)


def test_a_method_of_ones_own_is_one_class() -> None:
    @dataclasses.dataclass
    class Last(DecoderPruner):
        def profile(self, layers: int, share: float) -> list[float]:
            return [1.0] + [share] * (layers - 1)

        def choose(self, tokens: InsideTokens, k: int) -> torch.Tensor:
            return torch.arange(len(tokens) - k, len(tokens))

    assert Last(0.7).counts(100, 3) == [100, 55, 55]
    assert Last(0.7).choose(inside(5, 0, 0), 2).tolist() == [3, 4]
