"""G-Prune, the baselines, and how a method is written; what all methods promise is in pruners/."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

import gprune
from gprune import (
    GPrune,
    L2Norm,
    Pruner,
    Random,
    ScorePruner,
    SetPruner,
    Uniform,
    View,
    VisualTokens,
    get_pruner,
)
from gprune.graph import representativeness


def features(n: int, d: int = 8, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator) + torch.randn(d, generator=generator)


def image(sizes: list[int], fixed: int = 1, seed: int = 0) -> VisualTokens:
    """One image with a view of each size, each followed by `fixed` fixed rows."""
    starts = [sum(sizes[:i]) + fixed * i for i in range(len(sizes))]
    views = tuple(View(torch.arange(start, start + size)) for start, size in zip(starts, sizes, strict=True))
    count = sum(sizes) + fixed * len(sizes)
    return VisualTokens(features(count, seed=seed), views, (count,))


def scores_of(pruner: Pruner, tokens: VisualTokens | Tensor) -> Tensor:
    scores = pruner.select(tokens).scores
    assert scores is not None
    return scores


# --- by name ---


def test_an_unknown_name_is_answered_with_those_there_are():
    with pytest.raises(ValueError, match="'g-prune' is unknown; methods are gprune, random, uniform, l2norm"):
        get_pruner("g-prune")


# --- writing a method ---


@dataclass
class Last(ScorePruner):
    def score(self, tokens):
        return torch.arange(len(tokens.features))


@dataclass
class Broken(SetPruner):
    rows: tuple[int, ...] = ()

    def choose(self, tokens, view, k):
        return torch.tensor(self.rows)


def test_a_new_method_is_one_class_with_one_line():
    assert Last.name == "last"
    assert Last(0.3).select(features(10)).kept.tolist() == [7, 8, 9]
    assert Last(3).select(image([4, 2])).kept.tolist() == [2, 3, 4, 6, 7]


def test_equal_scores_go_to_the_lower_index():
    class Parity(ScorePruner):
        def score(self, tokens):
            return torch.arange(len(tokens.features)) % 2

    assert Parity(0.3).select(features(200)).kept.tolist() == list(range(1, 120, 2))
    assert Parity(0.6).select(features(200)).kept.tolist() == sorted([*range(1, 200, 2), *range(0, 40, 2)])


@pytest.mark.parametrize("rows", [(0, 1), (0, 1, 1), (0, 1, 2, 3), (0, 1, 5)])
def test_a_set_that_is_not_k_rows_of_the_view_is_refused(rows):
    with pytest.raises(ValueError, match=r"Broken.choose returned rows .* view of 4 tokens.*k=3 distinct"):
        Broken(3, rows).select(VisualTokens(features(6), (View(torch.arange(4)),), (6,)))


def test_scores_that_rank_nothing_are_refused():
    class PerFeature(ScorePruner):
        def score(self, tokens):
            return tokens.features

    class NotANumber(ScorePruner):
        def score(self, tokens):
            return tokens.features.norm(dim=-1) / 0 * 0

    with pytest.raises(ValueError, match=r"shape \(6, 8\) for 6 tokens"):
        PerFeature(0.5).select(features(6))
    with pytest.raises(ValueError, match="scores are NaN or Inf"):
        NotANumber(0.5).select(features(6))
    with pytest.raises(ValueError, match="too large to square in float32"):
        GPrune(0.5).select(features(6) * 1e30)


# --- GPrune ---


def test_gprune_keeps_the_most_representative_tokens_of_every_view():
    tokens = image([16, 24, 16])
    selection, all_scores = GPrune(0.25).select(tokens), scores_of(GPrune(0.25), tokens)
    expected = tokens.fixed.nonzero().flatten().tolist()
    for view in tokens.views:
        scores = representativeness(tokens.features[view.rows][None])[0][0]
        torch.testing.assert_close(all_scores[view.rows], scores, rtol=1e-6, atol=0)
        expected += view.rows[scores.topk(len(view) // 4).indices].tolist()
    assert selection.kept.tolist() == sorted(expected)


def test_gprune_passes_its_settings_on():
    tokens = features(40)
    scores = scores_of(GPrune(0.5, similarity=0.7, iterations=2, temperature=0.1, init="ones"), tokens)
    expected, _ = representativeness(tokens[None], 0.7, 2, 0.1, "ones")
    assert torch.equal(scores, expected[0])
    assert not torch.equal(scores, scores_of(GPrune(0.5), tokens))


def test_views_exchange_nothing_unless_the_scope_is_the_image():
    tokens = image([16, 24])
    changed = VisualTokens(tokens.features.clone(), tokens.views, tokens.sizes)
    changed.features[changed.views[1].rows] += 1.0
    first = tokens.views[0].rows
    before, after = (scores_of(GPrune(0.5), each)[first] for each in (tokens, changed))
    torch.testing.assert_close(before, after, rtol=1e-6, atol=0)
    before, after = (scores_of(GPrune(0.5, scope="image"), each)[first] for each in (tokens, changed))
    assert not torch.allclose(before, after, rtol=1e-3)


def test_the_scope_image_is_one_graph_with_one_budget():
    tokens = image([16, 24], fixed=0)
    whole, joined = GPrune(0.25, scope="image").select(tokens), GPrune(0.25).select(tokens.features)
    assert torch.equal(whole.kept, joined.kept)
    assert whole.edge_share is not None and joined.edge_share is not None
    assert torch.equal(whole.edge_share, joined.edge_share)


def test_memory_changes_nothing():
    tokens = VisualTokens.cat([image([12, 12, 5, 600], seed=seed) for seed in range(4)])
    whole = GPrune(0.5).select(tokens)
    split = GPrune(0.5, max_memory=0).select(tokens)
    assert torch.equal(split.kept, whole.kept)
    assert whole.edge_share is not None and split.edge_share is not None
    assert torch.equal(split.edge_share, whole.edge_share)


def test_tokens_that_say_the_same_share_one_score():
    """Eq. 5 by hand: each of three equal tokens has a third of the score of a lone one of equal norm."""
    tokens = torch.tensor([[1.0, 0], [1.0, 0], [1.0, 0], [0, 1.0]])
    torch.testing.assert_close(scores_of(GPrune(0.5), tokens), torch.tensor([1 / 3, 1 / 3, 1 / 3, 1.0]))


def test_the_shares_describe_the_graph_of_each_view():
    axes = torch.eye(4)
    views = (axes, axes[[0, 0, 0]], axes[[0, 0, 1, 2]], axes[[0]])
    selection = GPrune(0.5).select(VisualTokens.cat([VisualTokens.of(view) for view in views]))
    torch.testing.assert_close(selection.edge_share, torch.tensor([0.0, 1.0, 1 / 6, 0.0]))
    torch.testing.assert_close(selection.isolated_share, torch.tensor([1.0, 0.0, 0.5, 0.0]))


@pytest.mark.parametrize(
    ("tokens", "similarity", "parts"),
    [
        (torch.ones(9, 4), 0.5, ["100.0% of all pairs", "similarity=0.5", "raise it", "0.75"]),
        (
            torch.eye(9),
            0.4,
            ["100.0% of the visual tokens have no edge but their own", "similarity=0.4", "lower", "0.2"],
        ),
    ],
)
def test_a_graph_that_says_nothing_is_warned_about(tokens, similarity, parts):
    pruner = GPrune(0.5, similarity)
    message = pruner.warning(pruner.select(tokens))
    assert message is not None
    assert all(part in message for part in parts)


@pytest.mark.parametrize("pairs_without_edge", [1, 2, 3])
def test_the_warning_starts_above_95_percent_of_the_pairs(pairs_without_edge):
    """Of 8 tokens, 28 pairs: 27 edges are 96.4 %, 26 are 92.9 %."""
    tokens = torch.zeros(8, 3)
    tokens[:, 0] = 1.0
    # The first token leans 45 degrees to one side and the next ones to the other: 90 apart, 45 from the rest.
    tokens[0, 1] = 1.0
    tokens[1 : 1 + pairs_without_edge, 1] = -1.0
    pruner = GPrune(0.5)
    selection = pruner.select(tokens)
    torch.testing.assert_close(selection.edge_share, torch.tensor([1 - pairs_without_edge / 28]))
    assert (pruner.warning(selection) is None) == (pairs_without_edge > 1)


@pytest.mark.parametrize("tokens", [features(40), torch.ones(1, 4), torch.zeros(1, 4), torch.zeros(0, 4)])
def test_other_graphs_are_not_warned_about(tokens):
    assert GPrune(0.5).warning(GPrune(0.5).select(tokens)) is None


@pytest.mark.parametrize("method", [Random, Uniform, L2Norm])
def test_methods_without_a_graph_do_not_warn(method):
    assert method(0.5).warning(method(0.5).select(torch.ones(9, 4))) is None


# --- the baselines ---


def test_l2norm_keeps_the_longest_tokens():
    assert L2Norm(0.5).select(torch.tensor([[1.0, 1], [0, 3], [2, 2], [0, 0]])).kept.tolist() == [1, 2]


def test_random_follows_its_seed_and_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    draws = {tuple(Random(0.3, seed=seed).select(features(50)).kept.tolist()) for seed in (0, 1, 2, 0)}
    assert len(draws) == 3
    assert torch.equal(torch.get_rng_state(), before)


def test_random_keeps_every_place_equally_often():
    counts = torch.zeros(10)
    for seed in range(600):
        counts[Random(3, seed=seed).select(torch.zeros(10, 1)).kept] += 1
    # 180 expected of each place; five standard deviations of a binomial(600, 0.3) are 56.
    assert (counts - 180).abs().max() < 56


def test_random_keeps_more_of_the_same_when_it_may_keep_more():
    few, many = (set(Random(keep, seed=3).select(features(60)).kept.tolist()) for keep in (0.2, 0.6))
    assert few < many


def test_random_draws_apart_in_views_of_equal_size():
    base, grid = (rows for rows in Random(0.5).select(image([40, 40], fixed=0)).kept.split(20))
    assert base.tolist() != (grid - 40).tolist()


# --- the package ---


def test_importing_gprune_does_not_import_transformers():
    code = "import sys, gprune; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_unknown_names_of_the_package_are_attribute_errors():
    with pytest.raises(AttributeError, match="'gprune' has no attribute 'Gprune'"):
        gprune.Gprune  # noqa: B018
