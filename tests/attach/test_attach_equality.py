"""A pruned model against a full recompute on hand-made embeddings and position ids, for every family."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from decoding import PLACEHOLDERS, cache_of, since, with_cache
from families import BATCH, FAMILIES, IMAGE, Family, prompt_of
from reference import encode, greedy, kept_prompts, kept_rows, text_logits
from torch.nn.functional import cross_entropy

from gprune import Keep, cover
from gprune.pruners import GPrune, GraphCover, L2Norm, Pruner, Uniform

STEPS = 9  # the prefill and 8 decode steps
LOGITS: dict[str, Any] = {"do_sample": False, "return_dict_in_generate": True, "output_logits": True}
CACHE_ONLY = ("ernie4_5_vl_moe",)
"""Families whose own generation fails without a cache, unpruned."""

close = {"rtol": 0, "atol": 1e-5}

STATIC_SINCE = {"gemma4": "5.23", "gemma4_unified": "5.25", "llama4": "5.20"}
"""The first transformers whose own static cache gives what its dynamic one does, or does not fail, unpruned."""


@pytest.fixture(params=FAMILIES.values(), ids=FAMILIES)
def family(request: pytest.FixtureRequest) -> Family:
    return request.param


@torch.no_grad()
@pytest.mark.parametrize(("attention", "method", "keep"), [("eager", Uniform, 7), ("sdpa", GPrune, 0.4)])
def test_generation_equals_full_recompute(family: Family, attention: str, method: type[Pruner], keep: Keep) -> None:
    model, inputs = family.model(attention), family.inputs()
    length = inputs["input_ids"].shape[1]
    expected = {}
    for positions in ("original", "contiguous"):
        pruner = method(keep, positions=positions)
        runs = [greedy(model, prompt, STEPS) for prompt in kept_prompts(family, model, pruner, inputs)]
        expected[positions] = logits = torch.stack([logits for logits, _ in runs])
        with pruner(model):
            output = model.generate(**inputs, max_new_tokens=STEPS, **LOGITS)
        torch.testing.assert_close(torch.stack(output.logits, 1), logits, **close)
        assert torch.equal(output.sequences[:, :length], inputs["input_ids"])
        assert torch.equal(output.sequences[:, length:], torch.stack([tokens for _, tokens in runs]))
        assert cache_of(output).get_seq_length() < length
    pictures = expected["original"][:2] - expected["contiguous"][:2]
    if family.knows_positions:
        assert pictures.abs().amax((1, 2)).min() > 1e-2  # the two numberings can be told apart


@torch.no_grad()
def test_a_budget_of_coverage_equals_full_recompute(family: Family) -> None:
    model, inputs, pruner = family.model(), family.inputs(), GraphCover(keep=cover(0.7, at_most=0.8))
    runs = [greedy(model, prompt, 3) for prompt in kept_prompts(family, model, pruner, inputs)]
    with pruner(model) as run:
        output = model.generate(**inputs, max_new_tokens=3, **LOGITS)
    torch.testing.assert_close(torch.stack(output.logits, 1), torch.stack([logits for logits, _ in runs]), **close)
    assert any(report.n_after < report.n_before for report in run.images)


@torch.no_grad()
@pytest.mark.parametrize("positions", ["original", "contiguous"])
def test_forward_and_decoding_by_hand_equal_full_recompute(family: Family, positions: str) -> None:
    model, inputs, pruner = family.model(), family.inputs(), GPrune(keep=0.4, positions=positions)
    runs = [greedy(model, prompt, STEPS) for prompt in kept_prompts(family, model, pruner, inputs)]
    mask = inputs["attention_mask"]
    with pruner(model):
        output = model(**inputs)
        logits, cache = [output.logits[:, -1]], cache_of(output)
        while len(logits) < STEPS:
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            token = logits[-1].argmax(-1, keepdim=True)
            output = model(input_ids=token, attention_mask=mask, **with_cache(cache))
            logits.append(output.logits[:, -1])
    torch.testing.assert_close(torch.stack(logits, 1), torch.stack([logits for logits, _ in runs]), **close)


@pytest.mark.parametrize("positions", ["original", "contiguous"])
def test_loss_and_gradient_with_right_padding(family: Family, positions: str) -> None:
    model, inputs = family.model(), family.inputs(side="right")
    pruner = L2Norm(keep=0.4, positions=positions)
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == IMAGE, -100)
    labels = labels.masked_fill(inputs["attention_mask"] == 0, -100)
    names = ("projector", "aligner", "merger", "connector", "embed_vision", "vision_projection")
    names = (*names, "embeddings_table", "resampler")
    outside = ((name, weight) for name, weight in model.named_parameters() if "vit_merger" not in name)
    weight = next(weight for name, weight in outside if any(part in name for part in names) and weight.ndim > 1)

    predicted, wanted = [], []
    for row, prompt in enumerate(kept_prompts(family, model, pruner, inputs)):
        predicted.append(text_logits(model, prompt)[:-1])
        wanted.append(labels[row][: len(prompt.kept)][prompt.kept][1:])
    loss = cross_entropy(torch.cat(predicted), torch.cat(wanted))
    (gradient,) = torch.autograd.grad(loss, weight)
    assert gradient.abs().max() > 1e-3

    with pruner(model):
        output = model(**inputs, labels=labels, use_cache=False)
    torch.testing.assert_close(output.loss, loss, **close)
    torch.testing.assert_close(torch.autograd.grad(output.loss, weight)[0], gradient, **close)


@torch.no_grad()
def test_keeping_everything_changes_no_bit(family: Family) -> None:
    model, inputs = family.model(), family.inputs()
    # Without a cache, a placeholder that the model speaks would be one without an image.
    arguments = {**inputs, **LOGITS, "max_new_tokens": 4, "suppress_tokens": PLACEHOLDERS}
    modes: list[dict[str, Any]] = [{}] if family.name in CACHE_ONLY else [{}, {"use_cache": False}]
    if since(STATIC_SINCE.get(family.name, "5.19")):
        modes.append({"cache_implementation": "static", "disable_compile": True})
    for settings in modes:
        stock, stock_forward = model.generate(**arguments, **settings), model(**inputs)
        with GPrune(keep=1.0)(model) as run:
            output, forward = model.generate(**arguments, **settings), model(**inputs)
        assert all(map(torch.equal, output.logits, stock.logits))
        assert torch.equal(forward.logits, stock_forward.logits)
        assert all(image.n_after == image.n_before for image in run.images)
        assert len(run.images) == 3


@torch.no_grad()
def test_batch_of_n_equals_n_batches_of_one(family: Family) -> None:
    model, inputs = family.model(), family.inputs()
    length = inputs["input_ids"].shape[1]
    with GPrune(keep=0.4)(model) as run:
        output = model.generate(**inputs, max_new_tokens=4, **LOGITS)
        reports = iter(run.images)
        for row, sizes in enumerate(BATCH):
            prompt = prompt_of(inputs, row)
            alone = model.generate(**prompt, max_new_tokens=4, **LOGITS)
            logits = torch.stack([step[row] for step in output.logits])
            torch.testing.assert_close(logits, torch.cat(alone.logits), **close)
            own = alone.sequences[0, prompt["input_ids"].shape[1] :]
            assert torch.equal(output.sequences[row, length:], own)
            for report in run.images if sizes else []:
                assert torch.equal(next(reports).kept, report.kept)


@torch.no_grad()
def test_report_of_every_image(family: Family) -> None:
    model, inputs, pruner = family.model(), family.inputs(), GPrune(keep=0.4)
    with pruner(model) as run:
        assert run.images == []
        model.generate(**inputs, max_new_tokens=1)
    sizes = [size for prompt in BATCH for size in prompt]
    assert len(run.images) == len(sizes)
    for report, features, size in zip(run.images, encode(model, inputs), sizes, strict=True):
        count, views = family.layout(size)
        assert torch.equal(report.kept, kept_rows(family, pruner, features, size))
        assert (report.n_before, report.n_after) == (count, len(report.kept))
        assert report.grids == tuple(grid for _, grid in views)
        assert [view.rows.tolist() for view in report.views] == [rows for rows, _ in views]
        alone = pruner.select(family.tokens(features, size))
        assert report.scores is not None and alone.scores is not None and alone.edge_share is not None
        torch.testing.assert_close(report.scores, alone.scores, equal_nan=True, **close)
        pairs = torch.tensor([len(rows) * (len(rows) - 1) for rows, _ in views])
        share = (alone.edge_share * pairs).sum() / pairs.sum()
        assert report.edge_share == pytest.approx(share.item(), abs=1e-6)
