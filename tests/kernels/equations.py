"""The equations of the paper with all pairs at once: a softmax over the edges, and a power of the matrix."""

from __future__ import annotations

import torch
from torch import Tensor


def equations(
    features: Tensor, similarity: float = 0.5, iterations: int = 5, temperature: float = 0.03, init: str = "norm"
) -> tuple[Tensor, Tensor]:
    """S(t) / D, in the dtype of the features, and D, int64, of the views in [..., N, d] (Eq. 1-5)."""
    norms = features.norm(dim=-1)
    cosine = (features @ features.mT) / (norms[..., :, None] * norms[..., None, :])
    itself = torch.eye(features.shape[-2], dtype=torch.bool, device=features.device)
    edges = cosine.ge(similarity) | itself
    logits = cosine.masked_fill(itself, 1).div(temperature).masked_fill(~edges, -torch.inf)
    flow = torch.linalg.matrix_power(logits.softmax(-1), iterations)
    scores = (norms if init == "norm" else torch.ones_like(norms))[..., None, :] @ flow
    degrees = edges.sum(-1)
    return scores.squeeze(-2) / degrees, degrees


def clustered(count: int, width: int = 24, clusters: int = 7, noise: float = 0.6, seed: int = 0) -> Tensor:
    """Tokens scattered about a few directions, as those of a picture's regions: float32 [count, width]."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(clusters, width, generator=generator)
    members = torch.randint(clusters, (count,), generator=generator)
    return centres[members] + noise * torch.randn(count, width, generator=generator)
