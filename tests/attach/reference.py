"""What a pruned model must compute, by the long way: stock modules, hand-made embeddings and position ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from families import BATCH, FAMILIES, Family, Media, is_visual
from torch import Tensor

from gprune.pruners import Pruner


@dataclass(frozen=True, eq=False)
class KeptPrompt:
    """One prompt after pruning.

    Args:
        family: of the model.
        ids: int64 [n], the tokens that are left.
        embeddings: [1, n, d].
        positions: int64 [..., 1, n], position ids.
        next_position: int64 [..., 1, 1], position id of the first new token.
        kept: bool [length], which tokens of the prompt are left.
        blocks: int64 [n], tokens of the same block see each other both ways, -1 is in none.
        experts: int64 [n], by which experts they are taken, where there are some for images; 0 those of text.
        visual: bool [n], which of the tokens that are left are visual tokens.
        deepstack: [sum of visual, d] per layer of the text model that adds them to its visual tokens.
    """

    family: Family
    ids: Tensor
    embeddings: Tensor
    positions: Tensor
    next_position: Tensor
    kept: Tensor
    blocks: Tensor
    experts: Tensor
    visual: Tensor
    deepstack: list[Tensor]

    def followed_by(self, model: Any, token: Tensor) -> KeptPrompt:
        """The prompt with one more token, int64 []; text, even if it is the id of a placeholder."""
        embedding = self.family.embeddings(model, token[None], [])
        return replace(
            self,
            ids=torch.cat([self.ids, token[None]]),
            embeddings=torch.cat([self.embeddings, embedding[None]], dim=1),
            positions=torch.cat([self.positions, self.next_position], dim=-1),
            next_position=self.next_position + 1,
            blocks=torch.cat([self.blocks, torch.tensor([-1])]),
            experts=torch.cat([self.experts, torch.tensor([0])]),
            visual=torch.cat([self.visual, torch.tensor([False])]),
        )


def kept_rows(family: Family, pruner: Pruner, features: Tensor, media: Media) -> Tensor:
    """Rows of one image that the pruner keeps, selected alone, with views from the size of the image."""
    return pruner.select(family.tokens(features, media)).kept


def encode(model: Any, inputs: dict[str, Tensor], images: Sequence[Sequence[Media]] = BATCH) -> list[Tensor]:
    """The visual tokens of every image."""
    return FAMILIES[model.config.model_type].encode(model, inputs, images)


def kept_prompts(
    family: Family,
    model: Any,
    pruner: Pruner,
    inputs: dict[str, Tensor],
    images: Sequence[Sequence[Media]] = BATCH,
) -> list[KeptPrompt]:
    """Every prompt of a batch after pruning, one at a time."""
    return [
        _kept_prompt(family, model, pruner, family.prompt_of(inputs, row, images), media)
        for row, media in enumerate(images)
    ]


def text_logits(model: Any, prompt: KeptPrompt) -> Tensor:
    """Logits [n, vocabulary] of one prompt by the text model alone, without a cache."""
    arguments = {
        "inputs_embeds": prompt.embeddings,
        "position_ids": prompt.positions,
        "attention_mask": _mask(prompt),
        "use_cache": False,
    }
    if prompt.deepstack:
        arguments |= {"visual_pos_masks": prompt.visual[None], "deepstack_visual_embeds": prompt.deepstack}
    if prompt.experts.any():
        arguments |= {"moe_mm_token_type_ids": prompt.experts[None]}
    return prompt.family.logits(model, prompt.ids, arguments)[0]


def greedy(model: Any, prompt: KeptPrompt, steps: int) -> tuple[Tensor, Tensor]:
    """Logits [steps, vocabulary] and tokens [steps] of greedy decoding: everything anew for every token."""
    logits, tokens = [], []
    for _ in range(steps):
        logits.append(text_logits(model, prompt)[-1])
        tokens.append(logits[-1].argmax())
        prompt = prompt.followed_by(model, tokens[-1])
    return torch.stack(logits), torch.stack(tokens)


def embedded(prompts: Sequence[KeptPrompt]) -> dict[str, Tensor]:
    """The prompts as a left-padded batch for a stock model: inputs_embeds, position_ids, attention_mask.

    For families that need no more than that: no tokens that see what comes after them, no features for inner layers,
    no experts for images.
    """
    assert not any(prompt.deepstack or (prompt.blocks >= 0).any() or prompt.experts.any() for prompt in prompts)
    length = max(len(prompt.ids) for prompt in prompts)
    rows, axes, width = len(prompts), prompts[0].positions.shape[:-2], prompts[0].embeddings.shape[-1]
    mask = torch.zeros(rows, length, dtype=torch.long)
    embeddings = torch.zeros(rows, length, width)
    positions = torch.zeros(*axes, rows, length, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        start = length - len(prompt.ids)
        mask[row, start:] = 1
        embeddings[row, start:] = prompt.embeddings[0]
        positions[..., row, start:] = prompt.positions[..., 0, :]
    return {"inputs_embeds": embeddings, "position_ids": positions, "attention_mask": mask}


def _kept_prompt(
    family: Family, model: Any, pruner: Pruner, prompt: dict[str, Tensor], media: Sequence[Media]
) -> KeptPrompt:
    ids = prompt["input_ids"][0]
    features = family.encode(model, prompt, [media])
    rows = [kept_rows(family, pruner, image, one) for image, one in zip(features, media, strict=True)]
    starts = torch.tensor([0, *map(len, features)]).cumsum(0).tolist()
    kept_visual = torch.zeros(starts[-1], dtype=torch.bool)
    for start, own in zip(starts, rows, strict=False):
        kept_visual[start + own] = True
    visual = is_visual(ids)
    assert int(visual.sum()) == len(kept_visual)
    kept = torch.ones_like(visual).masked_scatter(visual, kept_visual)

    positions = family.positions(model, prompt)
    next_position = _next_position(positions)
    positions = positions[..., kept]
    if pruner.positions == "contiguous":
        positions = torch.arange(int(kept.sum())).expand_as(positions)
        next_position = torch.full_like(next_position, int(kept.sum()))
    return KeptPrompt(
        family=family,
        ids=ids[kept],
        embeddings=family.embeddings(model, ids, features)[kept][None],
        positions=positions,
        next_position=next_position,
        kept=kept,
        blocks=family.blocks(ids)[kept],
        experts=family.experts(ids)[kept],
        visual=visual[kept],
        deepstack=[level[kept_visual] for level in family.deepstack(model, prompt, [media])],
    )


def _next_position(positions: Tensor) -> Tensor:
    """int64 [..., 1, 1]: the axes of an image end apart, but what comes after it goes on from the largest."""
    last = positions.amax(-1, keepdim=True)
    if positions.ndim == 3:
        last[1:] = last[1:].amax()
    return last + 1


def _mask(prompt: KeptPrompt) -> Tensor:
    """int64 [1, n], or float [1, 1, n, n] if some tokens see what comes after them."""
    length = len(prompt.ids)
    if (prompt.blocks < 0).all():
        return torch.ones(1, length, dtype=torch.long)
    same = (prompt.blocks[:, None] == prompt.blocks) & (prompt.blocks >= 0)
    seen = torch.ones(length, length).tril().bool() | same
    return torch.zeros(length, length).masked_fill(~seen, torch.finfo(torch.float32).min)[None, None]
