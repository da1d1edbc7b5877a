"""Visual tokens with what a vision tower and a prompt would tell of them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from gprune import InsideTokens, View, VisualTokens


def features(n: int, d: int = 8, seed: int = 0) -> Tensor:
    """Tokens that lean to one side, so that their cosines are not about 0."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator) + torch.randn(d, generator=generator)


def clustered(n: int, d: int = 8, seed: int = 0) -> Tensor:
    """Tokens scattered closely about a few directions."""
    return features(4, d, seed + 100)[torch.arange(n) ** 2 % 4] + 0.05 * features(n, d, seed)


def zeros_among(n: int, d: int = 8, seed: int = 0) -> Tensor:
    """Tokens of which every third is zero."""
    return features(n, d, seed) * (torch.arange(n) % 3 > 0)[:, None]


def known(tokens: Tensor, seed: int = 0, views: tuple[View, ...] | None = None) -> VisualTokens:
    """One image with random attention, keys and question; NaN on fixed rows."""
    count, width = tokens.shape
    generator = torch.Generator().manual_seed(seed + 1000)
    attention = torch.rand(count, generator=generator)
    keys = torch.randn(count, 6, generator=generator) + torch.randn(6, generator=generator)
    question = torch.randn(5, width, generator=generator)
    views = views or (View(torch.arange(count)),)
    image = VisualTokens(tokens, views, (count,))
    signals = {"attention": attention, "keys": keys, "middle attention": torch.rand(count, generator=generator)}
    for values in signals.values():
        values[image.fixed] = torch.nan
    return VisualTokens(tokens, views, (count,), signals, (question,))


def two_views(seed: int = 0) -> VisualTokens:
    """A view of 16 tokens, a fixed row, a view of 24."""
    return known(features(41, seed=seed), seed, (View(torch.arange(16), (4, 4)), View(torch.arange(17, 41), (4, 6))))


def view_of(tokens: VisualTokens, number: int) -> VisualTokens:
    """One of its views as an image of its own."""
    rows = tokens.views[number].rows
    signals = {name: values[rows] for name, values in tokens.signals.items()}
    view = View(torch.arange(len(rows)), tokens.views[number].grid)
    return VisualTokens(tokens.features[rows], (view,), (len(rows),), signals, tokens.questions)


def inside(n: int, text: int, seed: int, d: int = 12) -> InsideTokens:
    """n visual tokens of one image about three directions, and the text of its prompt, in front of a layer."""
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(n, d, generator=generator) + 2 * torch.randn(3, d, generator=generator)[torch.arange(n) % 3]
    return InsideTokens(
        states=states,
        attention=torch.rand(n, generator=generator),
        key_norms=torch.rand(n, generator=generator),
        change=torch.rand(n, generator=generator),
        text=torch.randn(text, d, generator=generator),
        text_key_norms=torch.rand(text, generator=generator),
        text_attention=torch.rand(text, n, generator=generator)
        * (torch.arange(text)[:, None] > 0),  # the first is before
        embeddings=torch.randn(n + 5, d, generator=generator),
        text_embeddings=torch.randn(text, d, generator=generator),
    )


def cosines(values: Tensor) -> np.ndarray:
    """Of every pair: float64 [N, N]; 0 with a token that is zero."""
    x = values.double().numpy()
    lengths = np.linalg.norm(x, axis=1)
    directions = x / np.where(lengths > 0, lengths, 1)[:, None]
    return directions @ directions.T
