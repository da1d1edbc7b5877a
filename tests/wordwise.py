"""The methods that merge inside the LLM by what the text attends to, in float64, a token at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from bipartite import merge_once
from torch import Tensor

from gprune import InsideTokens

Merged = dict[int, Tensor]
"""Which tokens stay, and the weights, float32 [n], of what each becomes a sum of."""


def density_peaks(distance: np.ndarray, count: int) -> list[int]:
    """The most dense tokens far from denser ones; of equal ones the first is denser."""
    n = len(distance)
    near = [sorted(np.delete(distance[i], i))[:5] for i in range(n)]
    thin = [(sum(d * d for d in own) / max(len(own), 1), i) for i, own in enumerate(near)]
    rank = []
    for i in range(n):
        denser = [distance[i, j] for j in range(n) if thin[j] < thin[i]]
        rank.append(math.exp(-thin[i][0]) * (min(denser) if denser else max(distance[i])))
    return sorted(sorted(range(n), key=lambda i: -rank[i])[:count])


def scores_by(seen: InsideTokens, raters: Sequence[int]) -> list[float]:
    """The mean of what these tokens of the text pay to each, else what the last token of the prompt does."""
    if not raters:
        return seen.attention.tolist()
    return [float(np.mean([seen.text_attention[t, i].item() for t in raters])) for i in range(len(seen))]


def sparsevlm_raters(seen: InsideTokens) -> list[int]:
    """Tokens of the text that see the image and are more about it than the mean of them."""
    readers = [t for t, paid in enumerate(seen.text_attention.tolist()) if any(paid)]
    about = dict.fromkeys(readers, 0.0)
    for visual in seen.embeddings.double().numpy():
        products = [math.fsum(visual * seen.text_embeddings[t].double().numpy()) for t in readers]
        powers = [math.exp(product - max(products)) for product in products]
        for t, power in zip(readers, powers, strict=True):
            about[t] += power / sum(powers) / len(seen.embeddings)
    return [t for t in readers if about[t] > sum(about.values()) / len(about)] or readers


def sparsevlm(seen: InsideTokens, k: int, recycled: float = 0.3, clusters: float = 0.1) -> Merged:
    """arXiv 2410.04417."""
    n = len(seen)
    score = scores_by(seen, sparsevlm_raters(seen))
    order = sorted(range(n), key=lambda i: -score[i])
    centres = min(math.ceil(recycled * clusters * (n - k) - 1e-6), k // 2)
    groups = {i: [i] for i in order[: k - centres]}
    if centres:
        removed = order[k - centres :]
        again = sorted(removed[: max(centres, math.floor(recycled * len(removed) + 1e-6))])
        distance = cosine_distances(seen.states[again])
        peaks = density_peaks(distance, centres)
        groups |= {again[peak]: [] for peak in peaks}
        for index, i in enumerate(again):
            nearest = index if index in peaks else min(peaks, key=lambda peak: distance[index, peak])
            groups[again[nearest]].append(i)
    return {i: torch.zeros(n).index_fill(0, torch.tensor(own), 1) for i, own in groups.items()}


def pumer(seen: InsideTokens, k: int, dropped: float = 0.25) -> Merged:
    """arXiv 2305.17530, of the image alone."""
    n = len(seen)
    score = scores_by(seen, [t for t, paid in enumerate(seen.text_attention.tolist()) if any(paid)])
    merges = min(n - k - math.floor(dropped * (n - k) + 1e-6), k)
    left = sorted(sorted(range(n), key=lambda i: -score[i])[: k + merges])
    parts = merge_once(seen.states[left], merges) if merges else [[index] for index in range(k)]
    groups = [[left[index] for index in own] for own in parts]
    return {own[0]: torch.zeros(n).index_fill(0, torch.tensor(own), 1 / len(own)) for own in groups}


def cosine_distances(values: Tensor) -> np.ndarray:
    """Of every pair; 1 to a token that is zero."""
    x = values.double().numpy()
    lengths = np.linalg.norm(x, axis=1)
    directions = x / np.where(lengths > 0, lengths, 1)[:, None]
    return np.maximum(1 - directions @ directions.T, 0)
