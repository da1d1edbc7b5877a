"""PixelDedup without a model: which groups of a picture stay."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gprune import BadType, BadValue, Chain, FastV, GPrune, GraphCover, PixelDedup, cover
from gprune.tokens import kept_count

CHANNELS, VALUES = 2, 3


def groups_of(levels: list[list[int]]) -> Tensor:
    """A picture of groups, each of so many levels of 1/16: float32 [n, c, v], exact in binary."""
    return torch.tensor(levels, dtype=torch.float32).view(-1, CHANNELS, VALUES) / 16


def flat(*colours: int) -> Tensor:
    """A picture of groups of one colour each."""
    return groups_of([[colour] * CHANNELS * VALUES for colour in colours])


def longhand(groups: Tensor, tau: float) -> tuple[list[int], list[float]]:
    """What every group stands for, itself if it stays, and how far it is from what it was compared with."""
    x = groups.double().numpy()
    limit = tau * max(np.ptp(x[:, channel]) for channel in range(CHANNELS))

    def apart(one: int, other: int) -> float:
        return float(np.abs(x[one] - x[other]).max())

    one_colour = [i for i in range(len(x)) if max(np.ptp(x[i, channel]) for channel in range(CHANNELS)) <= limit]
    above_darkest = x.min(2) - x.min((0, 2))
    colours = [tuple(above_darkest[i] if limit == 0 else np.round(above_darkest[i] / limit)) for i in one_colour]
    ground = None
    if colours:  # the most common; among those as common that of the lowest values
        most = min(sorted(set(colours)), key=lambda colour: -colours.count(colour))
        ground = one_colour[colours.index(most)]
    stands_for: list[int] = []
    errors: list[float] = []
    for i in range(len(x)):
        to_ground = np.inf if ground is None else apart(i, ground)
        before = apart(i, stands_for[-1]) if stands_for else np.inf
        errors.append(np.inf if i in (0, ground) else min(to_ground, before))
        if to_ground <= limit:
            assert ground is not None
            stands_for.append(ground)
        else:
            stands_for.append(stands_for[-1] if before <= limit else i)
    return stands_for, errors


def expected(groups: Tensor, keep: float, tau: float) -> list[int]:
    stands_for, errors = longhand(groups, tau)
    left = [i for i, other in enumerate(stands_for) if i == other]
    while len(left) > kept_count(len(groups), keep):
        left.remove(min(left, key=lambda i: (errors[i], -i)))
    return left


pictures = st.lists(
    st.one_of(
        st.lists(st.integers(0, 16), min_size=CHANNELS * VALUES, max_size=CHANNELS * VALUES),
        st.integers(0, 16).map(lambda colour: [colour] * CHANNELS * VALUES),
        st.sampled_from([[8] * 6, [8, 8, 8, 9, 8, 8], [16, 1, 2, 3, 4, 5], [15, 1, 2, 3, 4, 5]]),
    ),
    min_size=1,
    max_size=30,
).map(groups_of)
taus = st.sampled_from([0.0, 1 / 16, 1 / 8, 0.25, 1.0])


@given(groups=pictures, tau=taus, keep=st.one_of(st.floats(0.05, 1), st.integers(1, 12)))
def test_it_leaves_what_the_rule_says(groups, tau, keep):
    assert PixelDedup(keep, tau).choose(groups).nonzero().squeeze(1).tolist() == expected(groups, keep, tau)


@given(groups=pictures, tau=taus)
def test_whatever_leaves_equals_one_that_stays(groups, tau):
    left = PixelDedup(tau=tau).choose(groups)
    limit = tau * (groups.amax((0, 2)) - groups.amin((0, 2))).max()
    for group in groups[~left]:
        assert (groups[left] - group).abs().amax((1, 2)).min() <= limit
    assert left.any()


@given(groups=pictures, tau=taus)
def test_how_pixels_were_normalised_does_not_matter(groups, tau):
    assert torch.equal(PixelDedup(tau=tau).choose(groups), PixelDedup(tau=tau).choose(4 * groups - 2))


def test_exact_duplicates_only_with_tau_0():
    text = [16, 1, 2, 3, 4, 5]
    picture = groups_of([[16] * 6, [16] * 6, text, text, [16, 1, 2, 3, 4, 6], [16] * 6, text])
    assert PixelDedup(tau=0).choose(picture).tolist() == [True, False, True, False, True, False, True]
    assert torch.equal(PixelDedup(tau=0).choose(picture), PixelDedup(tau=0).choose(picture.bfloat16()))


def test_a_gradient_does_not_leave_bit_by_bit():
    """Every group equals the one before it within tau, but only a few in a row equal the one that stays."""
    steps = flat(*range(17))
    assert PixelDedup(tau=1 / 16).choose(steps).tolist() == [i % 2 == 0 for i in range(17)]


def test_a_duplicate_elsewhere_stays_unless_it_is_background():
    mark, other = [16, 1, 2, 3, 4, 5], [0, 9, 9, 9, 9, 3]
    assert PixelDedup(tau=0).choose(groups_of([mark, other, mark])).all()
    assert PixelDedup(tau=0).choose(groups_of([mark, [7] * 6, other, [7] * 6])).tolist() == [True, True, True, False]


def test_nothing_of_noise_and_all_but_one_of_a_blank_page_leaves():
    noise = torch.randn(200, CHANNELS, 50, generator=torch.Generator().manual_seed(0))
    assert PixelDedup().choose(noise).all()
    assert PixelDedup(tau=0).choose(torch.full((200, CHANNELS, 50), 0.3)).nonzero().tolist() == [[0]]


@pytest.mark.parametrize(("keep", "left"), [(0.5, 100), (0.005, 1), (7, 7), (1000, 200)])
def test_the_bound_is_exact(keep, left):
    noise = torch.randn(200, CHANNELS, 50, generator=torch.Generator().manual_seed(0))
    assert int(PixelDedup(keep).choose(noise).sum()) == left


def test_what_is_nearest_to_its_prediction_leaves_first():
    picture = flat(0, 8, 10, 16, 3)  # apart by 8, 2, 6, 13; from the background, the first, by as much as they say
    orders = [PixelDedup(keep, tau=0).choose(picture).nonzero().squeeze(1).tolist() for keep in (5, 4, 3, 2, 1)]
    assert orders == [[0, 1, 2, 3, 4], [0, 1, 3, 4], [0, 1, 3], [0, 1], [0]]
    assert all(set(fewer) < set(more) for more, fewer in pairwise(orders))


def test_pixels_that_are_not_finite_stay():
    picture = flat(3, 3, 3, 3)
    picture[2] = torch.nan
    assert PixelDedup().choose(picture).all()


@pytest.mark.parametrize("tau", [-0.1, 1.1, float("nan")])
def test_tau_out_of_range(tau):
    with pytest.raises(BadValue, match=r"tau=.*accepted is a number in \[0, 1\]"):
        PixelDedup(tau=tau)


def test_a_budget_that_fits_the_picture_is_none():
    with pytest.raises(BadType, match=r"keep=cover\(0.9\) is a Cover; accepted is a float in \(0, 1\]"):
        PixelDedup(cover(0.9))


def test_it_never_promises_to_keep_all():
    assert not PixelDedup().keeps_all and not Chain(PixelDedup(), GPrune(1.0)).keeps_all
    assert Chain(GPrune(1.0), FastV(1.0)).keeps_all and not Chain(GPrune(1.0), FastV(0.5)).keeps_all


def test_chains_that_begin_with_it():
    chain = Chain(PixelDedup(0.5), GraphCover(0.5, scope="image"))
    assert (chain.keep, chain.acts, chain.parts) == (0.25, "before the LLM", (chain.first, chain.second))
    assert Chain(PixelDedup(), FastV(0.4)).acts == "in the LLM"
    assert Chain(PixelDedup(), GraphCover(cover(0.9))).keep == cover(0.9)
    assert Chain(PixelDedup(), GraphCover(40)).keep == 40


@pytest.mark.parametrize(
    ("place", "methods"),
    [
        ("first", (FastV(0.5), PixelDedup())),
        ("second", (GPrune(0.5), PixelDedup())),
        ("second", (PixelDedup(), PixelDedup())),
        ("second", (PixelDedup(), 0.5)),
    ],
)
def test_chains_of_the_wrong_order(place, methods):
    with pytest.raises(BadType, match=rf"{place}=.*or first PixelDedup, then either"):
        Chain(*methods)
