"""What a pruned model must compute, by the long way: stock modules, hand-made embeddings and position ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from families import BATCH, IMAGE, Family, Size, prompt_of
from torch import Tensor

from gprune.pruners import Pruner


@dataclass
class KeptPrompt:
    """One prompt after pruning: embeddings [1, n, d], position ids [1, n], which tokens are left [length]."""

    embeddings: Tensor
    positions: Tensor
    kept: Tensor


def kept_rows(family: Family, pruner: Pruner, features: Tensor, size: Size) -> Tensor:
    """Rows of one image that the pruner keeps, selected alone, with views from the size of the image."""
    return pruner.select(family.tokens(features, size)).kept


def encode(model: Any, inputs: dict[str, Tensor]) -> list[Tensor]:
    """The visual tokens of every image."""
    if "pixel_values" not in inputs:
        return []
    names = ("pixel_values", "image_sizes")
    arguments = {name: inputs[name] for name in names if name in inputs}
    return list(model.model.get_image_features(**arguments, return_dict=True).pooler_output)


def kept_prompts(
    family: Family,
    model: Any,
    pruner: Pruner,
    inputs: dict[str, Tensor],
    images: Sequence[Sequence[Size]] = BATCH,
) -> list[KeptPrompt]:
    """Every prompt of a batch after pruning, one at a time."""
    prompts = []
    for row, sizes in enumerate(images):
        prompt = prompt_of(inputs, row, images)
        ids = prompt["input_ids"][0]
        embeddings = model.get_input_embeddings()(ids)
        kept = torch.ones(len(ids), dtype=torch.bool)
        if sizes:
            features = encode(model, prompt)
            places = ids == IMAGE
            assert int(places.sum()) == sum(map(len, features))
            embeddings = embeddings.masked_scatter(places[:, None], torch.cat(features))
            start = 0
            for image, size in zip(features, sizes, strict=True):
                own = places.nonzero()[start : start + len(image), 0]
                kept[own] = False
                kept[own[kept_rows(family, pruner, image, size)]] = True
                start += len(image)
        numbers = kept.nonzero()[:, 0] if pruner.positions == "original" else torch.arange(int(kept.sum()))
        prompts.append(KeptPrompt(embeddings[kept][None], numbers[None], kept))
    return prompts


def text_logits(model: Any, prompt: KeptPrompt) -> Tensor:
    """Logits [n, vocabulary] of one prompt by the text model alone, without a cache."""
    output = model.model.language_model(
        inputs_embeds=prompt.embeddings,
        position_ids=prompt.positions,
        attention_mask=torch.ones(prompt.positions.shape, dtype=torch.long),
        use_cache=False,
    )
    return model.lm_head(output.last_hidden_state)[0]


def greedy(model: Any, prompt: KeptPrompt, steps: int) -> tuple[Tensor, Tensor]:
    """Logits [steps, vocabulary] and tokens [steps] of greedy decoding: everything anew for every token.

    New tokens are numbered on from the length of the prompt before pruning, or after it if that is contiguous.
    """
    original = not torch.equal(prompt.positions[0], torch.arange(prompt.positions.shape[1]))
    position = len(prompt.kept) if original else prompt.positions.shape[1]
    logits, tokens = [], []
    for step in range(steps):
        logits.append(text_logits(model, prompt)[-1])
        tokens.append(logits[-1].argmax())
        prompt = KeptPrompt(
            torch.cat([prompt.embeddings, model.get_input_embeddings()(tokens[-1])[None, None]], dim=1),
            torch.cat([prompt.positions, torch.tensor([[position + step]])], dim=1),
            prompt.kept,
        )
    return torch.stack(logits), torch.stack(tokens)


def embedded(prompts: Sequence[KeptPrompt]) -> dict[str, Tensor]:
    """The prompts as a left-padded batch for a stock model: inputs_embeds, position_ids, attention_mask."""
    length = max(prompt.positions.shape[1] for prompt in prompts)
    batch = {
        "inputs_embeds": torch.zeros(len(prompts), length, prompts[0].embeddings.shape[-1]),
        "position_ids": torch.zeros(len(prompts), length, dtype=torch.long),
        "attention_mask": torch.zeros(len(prompts), length, dtype=torch.long),
    }
    for row, prompt in enumerate(prompts):
        start = length - prompt.positions.shape[1]
        batch["inputs_embeds"][row, start:] = prompt.embeddings[0]
        batch["position_ids"][row, start:] = prompt.positions[0]
        batch["attention_mask"][row, start:] = 1
    return batch
