"""`keep=cover(...)`: as few tokens of a method's order as cover a share of every view."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from towered import features, known, two_views, view_of

from gprune import PRUNERS, Auto, Chain, Cover, FastV, GPrune, GraphCover, Pruner, ToMe, VisualTokens, cover, kept_count
from gprune.cost import cost
from gprune.coverage import REACHED
from gprune.errors import BadType, BadValue
from gprune.spec import parse_keep, parse_pruner

KINDS = {name: kind for name, kind in PRUNERS.items() if issubclass(kind, Pruner)}
ORDERED = {name: kind for name, kind in KINDS.items() if kind.ordered and "scorer" not in kind.needs}
every_ordered = pytest.mark.parametrize("method", ORDERED.values(), ids=ORDERED)


def covered_by(tokens: torch.Tensor, kept: list[int]) -> float:
    """The share of tokens [N, d] that some of them cover, in float64, pair by pair."""
    wide = tokens.double()
    total = reached = 0.0
    for one in wide:
        nearest = 0.0
        for other in wide[kept]:
            if one.norm() > 0 and other.norm() > 0:
                cosine = float(one @ other / one.norm() / other.norm())
                nearest = max(nearest, torch.tensor((min(cosine, 1.0) - 1) / 0.1).double().exp().item())
        total += float(one.norm())
        reached += float(one.norm()) * nearest
    return reached / total if total else 1.0


def clustered(n: int, groups: int, seed: int) -> torch.Tensor:
    """Tokens [n, 8] near so many centres."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(groups, 8, generator=generator)
    noise = torch.randn(n, 8, generator=generator)
    return centres[torch.randint(0, groups, (n,), generator=generator)] + 0.2 * noise


def test_methods_that_order_tokens_take_it_and_the_others_say_why_not():
    assert {"gprune", "graphcover", "graphvote", "auto", "divprune", "random", "scope", "mmtok"} <= ORDERED.keys()
    others = [partial(kind, keep=cover(0.9)) for kind in KINDS.values() if not kind.ordered]
    others += [partial(ToMe, keep=cover(0.9), where="tokens")]
    assert len(others) > 5
    for method in others:
        with pytest.raises(BadValue, match=r"keep=cover\(0.9\) goes down .* has none: .*take GraphCover"):
            method()


@every_ordered
@settings(max_examples=15, deadline=None)
@given(n=st.integers(1, 40), groups=st.integers(1, 9), seed=st.integers(0, 99), share=st.sampled_from([0.3, 0.8, 0.99]))
def test_it_is_the_shortest_beginning_of_the_order_that_covers_enough(method, n, groups, seed, share):
    tokens = known(clustered(n, groups, seed), seed)
    selection = method(cover(share), scope="view").select(tokens)
    k = len(selection.kept)
    counted = GraphCover if method is Auto else method
    assert k >= 1
    assert covered_by(tokens.features, selection.kept.tolist()) >= share - 2 * REACHED
    assert float(selection.coverage) == pytest.approx(covered_by(tokens.features, selection.kept.tolist()), abs=1e-5)
    if k > 1:
        assert covered_by(tokens.features, counted(k - 1, scope="view").select(tokens).kept.tolist()) < share
    assert torch.equal(selection.kept, counted(k, scope="view").select(tokens).kept)


@pytest.mark.parametrize("name", sorted(ORDERED.keys() - {"auto"}))
def test_the_order_does_not_depend_on_how_many_are_kept(name):
    """But for Auto, which is another method for few tokens."""
    method = ORDERED[name]
    tokens = known(clustered(30, 7, seed=1), 1)
    kept = [set(method(k, scope="view").select(tokens).kept.tolist()) for k in range(1, 31)]
    assert all(few < many for few, many in pairwise(kept))


def test_auto_covers_with_what_graphcover_keeps():
    tokens = clustered(60, 20, seed=2)
    for share in (0.2, 0.6, 0.95):
        kept = Auto(cover(share)).select(tokens).kept
        assert torch.equal(kept, GraphCover(cover(share)).select(tokens).kept)


@every_ordered
@pytest.mark.parametrize("most", [0.25, 5])
def test_it_stays_within_its_bound(method, most):
    tokens = known(features(40), 0)
    selection = method(cover(1.0, at_most=most), scope="view").select(tokens)
    assert len(selection.kept) == kept_count(40, most)
    assert float(selection.coverage) == pytest.approx(covered_by(tokens.features, selection.kept.tolist()), abs=1e-5)


@pytest.mark.parametrize("name", sorted(ORDERED.keys() - {"random"}))
def test_every_view_is_covered_apart_and_a_batch_is_its_images(name):
    """But for Random, whose draw is one for an image."""
    method, tokens = ORDERED[name], two_views()
    both = method(cover(0.7), scope="view").select(tokens)
    parts = [method(cover(0.7), scope="view").select(view_of(tokens, number)) for number in (0, 1)]
    assert torch.equal(both.coverage, torch.cat([part.coverage for part in parts]))
    assert both.kept.tolist() == [*parts[0].kept.tolist(), 16, *(17 + parts[1].kept).tolist()]
    batch = method(cover(0.7), scope="view").select(VisualTokens.cat([tokens, tokens]))
    assert batch.kept.tolist() == [*both.kept.tolist(), *(len(tokens.features) + both.kept).tolist()]


def test_with_image_scope_the_image_is_covered_as_a_whole():
    tokens = two_views()
    image = GraphCover(cover(0.8), scope="image").select(tokens)
    assert torch.equal(image.kept, GraphCover(cover(0.8)).select(tokens.per_image()).kept)
    assert len(image.coverage) == 1


@every_ordered
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_of_tokens_that_are_all_alike_one_covers_all(method, value):
    tokens = known(torch.full((20, 8), value), 0)
    assert len(method(cover(0.99), scope="view").select(tokens).kept) == 1


def test_all_of_a_picture_is_covered_without_its_copies():
    own = clustered(12, 12, seed=3)
    assert len(GraphCover(cover(1.0)).select(torch.cat([own, own, 2 * own])).kept) == 12


def test_views_without_tokens_and_tokens_without_views():
    tokens = VisualTokens(torch.ones(2, 4), (), (2,))
    selection = GraphCover(cover(0.5)).select(tokens)
    assert selection.kept.tolist() == [0, 1] and len(selection.coverage) == 0


@pytest.mark.parametrize(
    ("share", "most", "error", "sentence"),
    [
        (90, 1.0, BadValue, r"share=90 is out of range; accepted is a number in \[0, 1\]"),
        (float("nan"), 1.0, BadValue, "share=nan"),
        ("0.9", 1.0, BadType, "share='0.9' is a str"),
        (True, 1.0, BadType, "share=True is a bool"),
        (0.9, 0, BadValue, "at_most=0 keeps no token"),
        (0.9, 1.5, BadValue, "at_most=1.5 is not a ratio"),
        (0.9, None, BadType, "at_most=None"),
    ],
)
def test_what_is_no_share_or_bound_is_refused(share, most, error, sentence):
    with pytest.raises(error, match=sentence):
        cover(share, most)


def test_where_the_number_must_be_known_before_it_is_refused():
    for use in (
        lambda: kept_count(10, cover(0.9)),
        lambda: cost("llava-next-8b", [(336, 336)], 10, GPrune(cover(0.9))),
        lambda: Chain(GPrune(cover(0.9)), FastV(0.4)),
    ):
        with pytest.raises(BadValue, match=r"cover:0.9 depends on what the picture shows"):
            use()
    with pytest.raises(BadType, match="is a Cover; accepted is a float"):
        FastV(cover(0.9))


@pytest.mark.parametrize("budget", [cover(0.9), cover(0.5, at_most=0.25), cover(1.0, at_most=12), cover(0.9, 1)])
def test_it_is_written_and_read_as_it_is(budget):
    assert eval(repr(budget), {"cover": cover}) == budget
    assert parse_keep(str(budget)) == budget
    assert type(parse_keep(str(budget)).at_most) is type(budget.at_most)  # 1.0 is every token, 1 is one
    assert parse_pruner("graphcover:temperature=0.2", budget) == GraphCover(budget, temperature=0.2)
    assert replace(GraphCover(), keep=budget).keep == budget and isinstance(budget, Cover)


@pytest.mark.parametrize("text", ["cover", "cover:", "cover:a", "cover:0.9:0.5", "cover:0.9:at_most=", "cover:7"])
def test_what_is_no_budget_is_not_read(text):
    with pytest.raises(ValueError, match=r"."):
        parse_keep(text)
