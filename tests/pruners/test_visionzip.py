"""VisionZip: dominant tokens as they are, contextual tokens as means of what they stand for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from towered import clustered, cosines, features, known

from gprune import VisionZip, VisualTokens


def zipped(tokens: VisualTokens, k: int) -> dict[int, np.ndarray]:
    """The paper's two steps, a token at a time: row -> what stands there."""
    n = len(tokens.features)
    x, attention = tokens.features.double().numpy(), tokens.signals["attention"].tolist()
    contextual = k * 10 // 64
    order = sorted(range(n), key=lambda i: -attention[i])
    dominant, rest = order[: k - contextual], sorted(order[k - contextual :])
    result = {i: x[i] for i in dominant}
    targets = [rest[(2 * i + 1) * len(rest) // (2 * contextual)] for i in range(contextual)]
    cosine = cosines(tokens.signals["keys"])
    groups: dict[int, list[int]] = {target: [target] for target in targets}
    for i in rest:
        if i not in targets and targets:
            groups[max(targets, key=lambda target: cosine[i, target])].append(i)
    return result | {target: x[own].mean(0) for target, own in groups.items()}


@pytest.mark.parametrize("make", [features, clustered])
@pytest.mark.parametrize("seed", range(4))
def test_equals_the_paper(make, seed):
    tokens = known(make(50, seed=seed), seed)
    for k in range(1, 51):
        selection, expected = VisionZip(k).select(tokens), zipped(tokens, k)
        assert selection.kept.tolist() == sorted(expected)
        assert selection.features is not None
        wanted = torch.tensor(np.stack([expected[i] for i in sorted(expected)])).float()
        torch.testing.assert_close(selection.features, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("k", "contextual"), [(64, 10), (128, 20), (192, 30), (6, 0), (7, 1)])
def test_the_split_is_that_of_the_paper(k, contextual):
    tokens = known(features(576))
    selection = VisionZip(k).select(tokens)
    assert selection.features is not None
    merged = (selection.features != tokens.features[selection.kept]).any(-1)
    assert int(merged.sum()) == contextual


@settings(max_examples=30, deadline=None)
@given(st.integers(10, 40), st.integers(0, 50), st.data())
def test_nothing_is_lost(n, seed, data):
    """The merged tokens, times how many they stand for, add up to all that was not dominant."""
    tokens = known(features(n, seed=seed), seed)
    k = data.draw(st.integers(7, n))
    selection = VisionZip(k).select(tokens)
    by_attention = tokens.signals["attention"].sort(descending=True).indices
    rest = set(by_attention[k - k * 10 // 64 :].tolist())
    assert selection.features is not None
    means = selection.features[[i for i, row in enumerate(selection.kept.tolist()) if row in rest]].double()
    whole = tokens.features[sorted(rest)].double().sum(0)
    sizes = torch.linalg.lstsq(means.T, whole[:, None]).solution[:, 0] if len(means) < 8 else None
    if sizes is not None:
        torch.testing.assert_close(means.T @ sizes.round(), whole, rtol=0, atol=1e-3)
        assert round(sizes.sum().item()) == len(rest)


def test_tokens_of_half_precision_are_averaged_in_full():
    """Their sum would be too large."""
    tokens = known(features(30).half() * 4000)
    assert tokens.features.sum(0).isinf().any()
    selection = VisionZip(7).select(tokens)
    assert selection.features is not None and selection.features.dtype == torch.float16
    expected = zipped(tokens, 7)
    wanted = torch.tensor(np.stack([expected[i] for i in sorted(expected)])).half()
    torch.testing.assert_close(selection.features, wanted, rtol=1e-3, atol=0)


def test_contextual_tokens_with_equal_keys_stand_at_least_for_themselves():
    tokens = known(features(60))
    tokens.signals["keys"][:] = 1
    selection = VisionZip(20).select(tokens)
    rest = tokens.signals["attention"].sort(descending=True).indices[17:].sort().values
    first, second, third = (rest[(2 * i + 1) * 43 // 6] for i in range(3))
    assert selection.features is not None
    placed = dict(zip(selection.kept.tolist(), selection.features, strict=True))
    for alone in (second, third):
        assert torch.equal(placed[int(alone)], tokens.features[alone])
    others = [row for row in rest.tolist() if row not in (second, third)]
    torch.testing.assert_close(placed[int(first)], tokens.features[others].mean(0), rtol=0, atol=1e-5)
