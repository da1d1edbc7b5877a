"""What every method in PRUNERS promises: budgets, determinism, hard inputs, settings."""

from __future__ import annotations

import math
import pickle
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scorers import scorer_folder
from towered import features, inside, known, two_views, view_of

from gprune import (
    PRUNERS,
    DecoderPruner,
    EvoViT,
    Foreground,
    Learned,
    Method,
    NonFiniteFeatures,
    PixelDedup,
    Pruner,
    ToMe,
    View,
    VisualTokens,
)
from gprune.checks import Above, Accepted, Between, Count, OneOf
from gprune.errors import BadType, BadValue, GpruneError
from gprune.pruners import get_pruner
from gprune.pruners.clip import ClipPruner
from gprune.tokens import Budget, kept_count

MASK = torch.arange(48).view(6, 8) % 5 < 2


def make(method: type[Method], *keep: Any, **values: Any) -> Any:
    """A method with these settings, and with a mask or a scorer if it has one."""
    if issubclass(method, Learned):
        values = {"weights": scorer_folder(8, question=True), **values}
    return method(*keep, **values, **({"mask": MASK} if issubclass(method, Foreground) else {}))


SELECTING: dict[str, Callable[..., Pruner]] = {
    name: partial(make, method) for name, method in PRUNERS.items() if issubclass(method, Pruner)
} | {"tome of tokens": partial(ToMe, where="tokens")}
CLIPS = {name for name in SELECTING if issubclass(PRUNERS.get(name, ToMe), ClipPruner)} - {"evs"}
BEFORE_TOWER = {name: method for name, method in PRUNERS.items() if method is PixelDedup}
INSIDE = {name: method for name, method in PRUNERS.items() if issubclass(method, DecoderPruner)}

every_method = pytest.mark.parametrize("method", PRUNERS.values(), ids=PRUNERS)
every_selecting = pytest.mark.parametrize("method", SELECTING.values(), ids=SELECTING)
every_inside = pytest.mark.parametrize("method", INSIDE.values(), ids=INSIDE)
half_precision = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])


def image(sizes: Sequence[int], fixed: int = 1, seed: int = 0) -> VisualTokens:
    """One image with a view of each size, each followed by `fixed` fixed rows."""
    starts = [sum(sizes[:i]) + fixed * i for i in range(len(sizes))]
    rows = (torch.arange(start, start + size) for start, size in zip(starts, sizes, strict=True))
    views = tuple(View(own, (1, len(own))) for own in rows)
    return known(features(sum(sizes) + fixed * len(sizes), seed=seed), seed, views)


def budgeted(pruner: Pruner, tokens: VisualTokens) -> VisualTokens:
    """With the views that each have a budget of their own."""
    return tokens.per_image() if pruner.scope == "image" else tokens


def counts(pruner: Pruner, tokens: VisualTokens) -> list[int]:
    """How many tokens of each view are to be kept."""
    of_images = ([len(view) for view in tokens.views if view.image == i] for i in range(len(tokens.sizes)))
    return [k for sizes in of_images for k in kept_count(sizes, pruner.keep)]


def reaching(pruner: Pruner, tokens: VisualTokens) -> VisualTokens:
    """The tokens as the method gets them: what one in the vision tower has merged away there is NaN."""
    if pruner.acts != "in the tower":
        return tokens
    own = tokens.features.clone()
    for view, k in zip(tokens.views, counts(pruner, tokens), strict=True):
        own[view.rows[k:]] = torch.nan
    return replace(tokens, features=own)


def check_budget(pruner: Pruner, tokens: VisualTokens) -> None:
    """Exactly k of every view and all fixed rows, ascending."""
    kept = pruner.select(reaching(pruner, tokens)).kept
    tokens = budgeted(pruner, tokens)
    assert kept.dtype == torch.int64
    assert kept.tolist() == sorted(set(kept.tolist()))
    assert [int(torch.isin(view.rows, kept).sum()) for view in tokens.views] == counts(pruner, tokens)
    assert torch.isin(tokens.fixed.nonzero(), kept).all()


def same(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    """Bit for bit, NaN for NaN."""
    if one is None or other is None:
        return one is other
    return one.dtype == other.dtype and torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)


def test_every_method_is_in_one_of_the_lists_and_found_by_its_name():
    assert {*SELECTING, *INSIDE, *BEFORE_TOWER} - {"tome of tokens"} == set(PRUNERS)
    assert all(get_pruner(name) is method and method.name == name for name, method in PRUNERS.items())


# --- what is selected ---

images = st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=4), min_size=1, max_size=3)
keeps = st.one_of(st.floats(0, 1, exclude_min=True), st.integers(1, 40))


@every_selecting
@settings(max_examples=20, deadline=None)
@given(sizes=images, keep=keeps, fixed=st.integers(0, 2))
def test_exactly_k_sorted_rows_of_every_view_and_all_fixed_rows(method, sizes, keep, fixed):
    check_budget(method(keep), VisualTokens.cat([image(views, fixed, seed) for seed, views in enumerate(sizes)]))


@every_selecting
@pytest.mark.parametrize("keep", [0.3, 1.0, 1, 5])
@pytest.mark.parametrize("sizes", [[1], [1, 1], [0], [0, 0], [0, 1, 7]])
def test_views_of_one_token_and_of_none(method, keep, sizes):
    check_budget(method(keep), image(sizes))


@every_selecting
def test_an_image_without_views_keeps_its_fixed_rows(method):
    assert method(0.5).select(replace(image([3], fixed=0), views=())).kept.tolist() == [0, 1, 2]


@every_selecting
@pytest.mark.parametrize("keep", [1.0, 30, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_whole_budget_keeps_every_token_as_it_is(method, keep, dtype):
    tokens = image([20, 10])
    tokens = replace(tokens, features=tokens.features.to(dtype))
    selection = method(keep).select(tokens)
    assert selection.kept.tolist() == list(range(32))
    assert selection.features is None or torch.equal(selection.features, tokens.features)


@every_selecting
@pytest.mark.parametrize("keep", [0.4, 7])
def test_a_batch_keeps_what_its_images_keep_alone(method, keep):
    alone = [image([16, 24], seed=1), image([16], seed=2), image([9, 16, 1], seed=3), image([16, 24], seed=4)]
    pruner = method(keep)
    batch = pruner.select(reaching(pruner, VisualTokens.cat(alone)))
    own = [pruner.select(reaching(pruner, tokens)) for tokens in alone]
    starts = [sum(len(tokens.features) for tokens in alone[:i]) for i in range(len(alone))]
    assert batch.kept.tolist() == [start + row for start, each in zip(starts, own, strict=True) for row in each.kept]
    for values, parts in ((batch.scores, "scores"), (batch.features, "features")):
        if values is not None:
            expected = torch.cat([getattr(each, parts) for each in own])
            torch.testing.assert_close(values, expected, rtol=1e-6, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("name", sorted(SELECTING.keys() - {"random"}))
def test_views_are_pruned_apart(name):
    """All but Random, whose draw is one for an image."""
    pruner, tokens = SELECTING[name](0.5, scope="view"), two_views()
    both = pruner.select(reaching(pruner, tokens))
    first, second = (pruner.select(reaching(pruner, view_of(tokens, number))) for number in (0, 1))
    assert both.kept.tolist() == [*first.kept.tolist(), 16, *(17 + second.kept).tolist()]
    if both.features is not None:
        expected = torch.cat([first.features, tokens.features[16:17], second.features])
        torch.testing.assert_close(both.features, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", sorted(SELECTING.keys() - {"tome", "evovit", "foreground", "background", *CLIPS}))
@pytest.mark.parametrize("keep", [0.3, 7, 1.0])
def test_with_image_scope_all_views_of_an_image_are_one(name, keep):
    """All but those for which views must lie apart: in the tower, on the grid of the picture, or as frames."""
    tokens = VisualTokens.cat([image([16, 24], seed=1), image([9, 16, 1], seed=3)])
    kept = SELECTING[name](keep, scope="image").select(tokens).kept
    assert torch.equal(kept, SELECTING[name](keep).select(tokens.per_image()).kept)
    assert len(kept) == kept_count(40, keep) + 2 + kept_count(26, keep) + 3


@every_selecting
def test_selecting_again_and_under_autocast_gives_the_same_bits(method):
    pruner = method(0.4)
    tokens = reaching(pruner, image([16, 24]))
    before, state = tokens.features.clone(), torch.get_rng_state()
    once, again = pruner.select(tokens), pruner.select(tokens)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside_autocast = pruner.select(tokens)
    for other in (again, inside_autocast):
        assert all(same(getattr(once, each), getattr(other, each)) for each in ("kept", "scores", "features"))
    assert same(tokens.features, before) and torch.equal(torch.get_rng_state(), state)


@every_selecting
@half_precision
def test_half_precision_keeps_what_its_float32_values_keep(method, dtype):
    pruner = method(0.3)
    tokens = reaching(pruner, image([30, 20]))
    low = replace(tokens, features=tokens.features.to(dtype))
    half, full = pruner.select(low), pruner.select(replace(low, features=low.features.float()))
    assert torch.equal(half.kept, full.kept)
    assert half.scores is None or half.scores.dtype == torch.float32
    assert same(half.scores, full.scores)
    assert same(half.features, None if full.features is None else full.features.to(dtype))


@every_selecting
def test_scores_are_nan_on_fixed_rows_only(method):
    pruner, tokens = method(0.5), image([6, 5], fixed=2)
    scores = pruner.select(reaching(pruner, tokens)).scores
    assert scores is None or torch.equal(scores.isnan(), tokens.fixed)


@every_selecting
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_features_that_are_not_finite_name_the_image(method, bad):
    pruner = method(0.5)
    tokens = reaching(pruner, VisualTokens.cat([image([4]), image([6, 3]), image([5])]))
    tokens.features[5, 0] = bad
    tokens.features[12, 3] = bad
    message = "image 1 (of 3, counted from 0): 2 of its 11 visual tokens contain NaN or Inf"
    with pytest.raises(NonFiniteFeatures, match=re.escape(message)):
        pruner.select(tokens)


@every_selecting
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_tokens_that_are_all_zero_or_all_alike(method, value):
    tokens = image([16, 24])
    alike = {name: torch.full_like(values, value) for name, values in tokens.signals.items()}
    tokens = replace(tokens, features=torch.full_like(tokens.features, value), signals=alike)
    pruner = method(0.5)
    check_budget(pruner, tokens)
    selection = pruner.select(reaching(pruner, tokens))
    assert selection.features is None or torch.equal(selection.features, tokens.features[selection.kept])


@every_selecting
def test_features_that_require_grad_are_selected_from(method):
    pruner, tokens = method(0.5), image([10], fixed=0)
    tokens = reaching(pruner, tokens)
    tokens.features.requires_grad_()
    assert len(pruner.select(tokens).kept) == 5


@every_selecting
def test_features_that_are_no_token_matrix_are_refused(method):
    with pytest.raises(BadValue, match=r"shape \(1, 4, 2\).*VisualTokens.cat"):
        method(0.5).select(torch.zeros(1, 4, 2))
    with pytest.raises(BadType, match=r"torch.int64.*floating"):
        method(0.5).select(torch.zeros(4, 2, dtype=torch.int64))


# --- what is chosen inside the LLM ---


@every_inside
@settings(max_examples=20, deadline=None)
@given(n=st.integers(1, 30), text=st.integers(0, 6), seed=st.integers(0, 2**20), data=st.data())
def test_exactly_k_distinct_tokens_and_the_same_again(method, n, text, seed, data):
    tokens, k = inside(n, text, seed), data.draw(st.integers(1, n))
    chosen = method(0.7).choose(tokens, k)
    assert len(chosen) == k and set(chosen.tolist()) <= set(range(n)) and len(chosen.unique()) == k
    assert torch.equal(method(0.7).choose(tokens, k), chosen)
    zeros = replace(tokens, states=torch.zeros_like(tokens.states), attention=torch.zeros(n), key_norms=torch.zeros(n))
    assert len(method(0.7).choose(zeros, k).unique()) == k


@every_inside
@half_precision
def test_half_precision_states_choose_what_their_float32_values_choose(method, dtype):
    tokens = inside(40, 6, seed=0)
    low = replace(tokens, states=tokens.states.to(dtype), text=tokens.text.to(dtype))
    full = replace(low, states=low.states.float(), text=low.text.float())
    assert torch.equal(method(0.7).choose(low, 12), method(0.7).choose(full, 12))


@every_inside
def test_the_whole_budget_keeps_every_token_in_every_layer(method):
    for match in ("tokens", "flops"):
        assert method(1.0, match=match).counts(577, 32, 0.7) == [577] * 32
        assert method(0.6, match=match).counts(0, 32, 0.7) == [0] * 32


# --- settings ---


def declared(method: type[Method]) -> Iterator[tuple[str, Accepted, Any]]:
    """Name, what is accepted, and default of every setting; masks and folders have no range, and Evo-ViT one scope."""
    for each in fields(method):  # type: ignore[arg-type]
        if each.name not in ("mask", "weights") and not (each.name == "scope" and method is EvoViT):
            yield each.name, each.metadata["accepted"], each.default


def out_of_range(accepted: Accepted) -> list[Any]:
    """Values of an accepted type that are not accepted themselves."""
    no_number = [math.nan, math.inf, -math.inf]
    match accepted:
        case Between(least, most):
            return [*no_number, math.nextafter(least, -math.inf), math.nextafter(most, math.inf), 10**400]
        case Above(bound):
            return [*no_number, bound, bound - 1]
        case Count(least, most):
            return [least - 1, *([] if most == math.inf else [int(most) + 1])]
        case OneOf():
            return [] if bool in accepted.kinds else ["", "nonsense"]
        case Budget():
            counts = [0, -1] if int in accepted.kinds else []
            words = ["", "nonsense"] if str in accepted.kinds else []
            return [*no_number, 0.0, -0.3, math.nextafter(1, 2), 30.0, *counts, *words]
    raise NotImplementedError(accepted)


def another(accepted: Accepted) -> Any:
    """An accepted value that is no default."""
    match accepted:
        case Between(_, most):
            return most
        case Above(bound):
            return bound + 0.5
        case Count(least):
            return least + 8
        case OneOf(values):
            return values[1]
    return 0.7


def changed(method: type[Method]) -> Any:
    """The method with every setting at another value than its default, but for shares, which go with one scope."""
    return make(method, **{name: another(accepted) for name, accepted, _ in declared(method) if name != "shares"})


def sharing(method: type[Method]) -> list[Any]:
    """The method with the other shares, where it has them."""
    try:
        return [make(method, shares="global")]
    except (BadValue, TypeError):
        return []


@every_method
def test_values_that_a_setting_does_not_accept_are_refused_with_what_it_accepts(method):
    for name, accepted, default in declared(method):
        wrong = [value for value in (True, None, [0.5], "0.5", 1, 0.5) if not isinstance(value, accepted.kinds)]
        wrong += [True] if int in accepted.kinds else []
        wrong = [value for value in wrong if value is not None or default is not None]
        for values, error in ((wrong, BadType), (out_of_range(accepted), BadValue)):
            assert values or bool in accepted.kinds  # of which both are accepted
            for value in values:
                sentence = rf"^{re.escape(f'{name}={value!r} ')}.*; accepted is {re.escape(str(accepted))}; .*"
                with pytest.raises(error, match=sentence):
                    make(method, **{name: value})
                with pytest.raises(GpruneError):
                    replace(changed(method), **{name: value})


@every_method
def test_it_is_written_copied_and_pickled_as_it_is(method):
    for pruner in (make(method), changed(method), *sharing(method)):
        assert eval(repr(pruner), {method.__name__: partial(make, method)}) == pruner
        assert replace(pruner) == pruner
        assert pickle.loads(pickle.dumps(pruner)) == pruner
        assert pickle.loads(pickle.dumps(pruner)).needs == pruner.needs
    for name, _, default in declared(method):
        assert name == "shares" or getattr(changed(method), name) != default


@every_method
def test_another_seed_changes_the_seed_alone(method):
    pruner = make(method)
    assert pruner.with_seed(3) == (replace(pruner, seed=3) if hasattr(pruner, "seed") else pruner)
    assert pruner.parts == (pruner,)
