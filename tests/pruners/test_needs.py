"""What all methods share that need more than features: budgets, views, determinism, and what they say without it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from towered import features, known, two_views, view_of

from gprune import (
    BAT,
    Background,
    CDPruner,
    ClsAttention,
    Foreground,
    Pruner,
    VisionZip,
    VisualTokens,
    ZeroTPrune,
    get_pruner,
    kept_count,
)

MASK = torch.arange(48).view(6, 8) % 5 < 2
METHODS = {
    "clsattention": ClsAttention,
    "visionzip": VisionZip,
    "bat": BAT,
    "zerotprune": ZeroTPrune,
    "cdpruner": CDPruner,
    "foreground": lambda *args, **settings: Foreground(*args, mask=MASK, **settings),
    "background": lambda *args, **settings: Background(*args, mask=MASK, **settings),
}
every = pytest.mark.parametrize("make", METHODS.values(), ids=METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_names(name):
    assert METHODS[name]().name == name
    assert isinstance(METHODS[name](), get_pruner(name))


@every
@settings(max_examples=25, deadline=None)
@given(keep=st.floats(0.01, 1.0) | st.integers(1, 60), seed=st.integers(0, 50))
def test_every_budget_is_exact(make, keep, seed):
    tokens = two_views(seed)
    kept = make(keep).select(tokens).kept
    assert 16 in kept
    sizes = [16, 24]
    counts = [kept_count(size, keep) for size in sizes] if isinstance(keep, float) else kept_count(sizes, keep)
    assert [int(torch.isin(view.rows, kept).sum()) for view in tokens.views] == counts
    assert torch.equal(kept, kept.unique())


@every
def test_views_are_pruned_apart(make):
    tokens = two_views()
    pruner = make(0.5)
    together = pruner.select(tokens)
    first, second = (pruner.select(view_of(tokens, number)) for number in (0, 1))
    assert together.kept.tolist() == [*first.kept.tolist(), 16, *(17 + second.kept).tolist()]
    if together.features is not None:
        assert first.features is not None and second.features is not None
        expected = torch.cat([first.features, tokens.features[16:17], second.features])
        torch.testing.assert_close(together.features, expected, rtol=0, atol=1e-6)


@every
def test_images_of_a_batch_are_pruned_as_if_alone(make):
    images = [known(features(n, seed=n), n) for n in (9, 30)]
    images = [replace(each, views=(replace(each.views[0], grid=(3, each.sizes[0] // 3)),)) for each in images]
    pruner = make(0.4)
    first, second = (pruner.select(image).kept for image in images)
    assert pruner.select(VisualTokens.cat(images)).kept.tolist() == [*first.tolist(), *(9 + second).tolist()]


@every
def test_all_views_of_an_image_together(make):
    if make in (METHODS["foreground"], METHODS["background"]):
        with pytest.raises(ValueError, match="has no grid"):
            make(0.5, scope="image").select(two_views())
        return
    kept = make(0.5, scope="image").select(two_views()).kept
    assert len(kept) == 21
    assert kept.tolist() != make(0.5).select(two_views()).kept.tolist()


@every
def test_the_same_again(make):
    one, other = make(0.5).select(two_views()), make(0.5).select(two_views())
    assert torch.equal(one.kept, other.kept)
    assert one.features is None or (other.features is not None and torch.equal(one.features, other.features))


@every
def test_keeping_all_changes_nothing(make):
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        tokens = replace(two_views(), features=two_views().features.to(dtype))
        selection = make(1.0).select(tokens)
        assert selection.kept.tolist() == list(range(41))
        assert selection.features is None or torch.equal(selection.features, tokens.features)


@every
def test_autocast_changes_nothing(make):
    outside = make(0.5).select(two_views())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = make(0.5).select(two_views())
    assert torch.equal(inside.kept, outside.kept)
    assert inside.features is None or (outside.features is not None and torch.equal(inside.features, outside.features))


@every
def test_tokens_that_are_all_equal(make):
    tokens = replace(
        two_views(),
        features=torch.ones(41, 8),
        beside={"attention": torch.full((41,), 0.02), "keys": torch.ones(41, 6)},
    )
    selection = make(0.5).select(tokens)
    assert len(selection.kept) == 21
    assert selection.features is None or torch.equal(selection.features, torch.ones(21, 8))


@every
def test_tokens_without_a_direction(make):
    tokens = replace(
        two_views(), features=torch.zeros(41, 8), beside={"attention": torch.zeros(41), "keys": torch.zeros(41, 6)}
    )
    selection = make(0.5).select(tokens)
    assert len(selection.kept) == 21
    assert selection.features is None or torch.equal(selection.features, torch.zeros(21, 8))


@pytest.mark.parametrize("pruner", [ClsAttention(), VisionZip(), BAT(), ZeroTPrune()], ids=lambda pruner: pruner.name)
def test_features_alone_are_not_enough(pruner: Pruner):
    need = pruner.needs[0]
    with pytest.raises(ValueError, match=rf"{type(pruner).__name__} needs the {need} of the vision tower"):
        pruner.select(features(9))
    tokens = known(features(9))
    with pytest.raises(ValueError, match="a row for each of the 9 tokens"):
        pruner.select(replace(tokens, beside={name: values[:8] for name, values in tokens.beside.items()}))


def test_a_question_is_needed_for_each_image():
    with pytest.raises(ValueError, match="CDPruner needs the question about each image"):
        CDPruner().select(features(9))
    tokens = known(features(9))
    with pytest.raises(ValueError, match="q >= 1"):
        CDPruner().select(replace(tokens, questions=(torch.zeros(0, 8),)))


@pytest.mark.parametrize("pruner", [ClsAttention(), VisionZip(), BAT(), ZeroTPrune()], ids=lambda pruner: pruner.name)
def test_what_is_beside_must_be_finite(pruner: Pruner):
    tokens, need = known(features(9)), pruner.needs[0]
    tokens.beside[need][3] = torch.nan
    with pytest.raises(ValueError, match=f"the {need} of some tokens is NaN"):
        pruner.select(tokens)
