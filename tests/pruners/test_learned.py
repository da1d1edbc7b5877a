"""Learned: scores by the long way in float64, the folder of a scorer, and scorers that do not fit."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import FAMILIES
from scorers import made_for, random_scorer, scorer_folder
from towered import features, known, two_views

import gprune
from gprune import Learned, UnfitSettings, VisualTokens
from gprune.errors import BadType, BadValue
from gprune.pruners.scorer import Scorer
from gprune.spec import parse_pruner


def by_hand(scorer: Scorer, tokens: VisualTokens) -> list[float]:
    """The score of every token, view by view and token by token; NaN on fixed rows."""
    weights = {name: weight.double().numpy() for name, weight in scorer.weights.items()}
    x = tokens.features.double().numpy()
    found = [math.nan] * len(x)

    def gelu(values: np.ndarray) -> np.ndarray:
        return np.array([v * (1 + math.erf(v / math.sqrt(2))) / 2 for v in values])

    def hidden(values: np.ndarray, name: str) -> np.ndarray:
        normed = (values - values.mean()) / math.sqrt(values.var() + 1e-5)
        return gelu(weights[f"{name}.weight"] @ normed + weights[f"{name}.bias"])

    for view in tokens.views:
        rows = view.rows.tolist()
        local = {row: hidden(x[row], "token") for row in rows}
        shown = sum(local.values()) / len(rows)
        asked = tokens.questions[view.image].double().numpy() if scorer.facts.question else []
        words = [hidden(word, "word") for word in asked]
        for row in rows:
            parts = [local[row], shown]
            if scorer.facts.question:
                heard = np.exp([local[row] @ word / math.sqrt(len(shown)) for word in words])
                read = sum(part * word for part, word in zip(heard / heard.sum(), words, strict=True))
                parts += [read, local[row] * read]
            mixed = gelu(weights["mix.weight"] @ np.concatenate(parts) + weights["mix.bias"])
            found[row] = float(weights["score.weight"][0] @ mixed)
    return found


@pytest.mark.parametrize("question", [False, True])
@pytest.mark.parametrize("seed", [0, 1])
def test_scores_are_those_by_hand(question: bool, seed: int, tmp_path: Path) -> None:
    scorer = random_scorer(8, question=question, seed=seed)
    scorer.save(tmp_path)
    tokens = VisualTokens.cat([two_views(seed), known(features(12, seed=seed + 5), seed + 5)])
    selection = Learned(0.3, weights=str(tmp_path)).select(tokens)
    expected = by_hand(scorer, tokens)
    assert selection.scores is not None
    np.testing.assert_allclose(selection.scores.numpy(), expected, rtol=1e-5, atol=1e-5)
    for view in tokens.views:
        best = sorted(view.rows.tolist(), key=lambda row: -expected[row])[: int(0.3 * len(view))]
        assert set(best) == set(selection.kept.tolist()) & set(view.rows.tolist())


def test_only_a_scorer_that_reads_the_question_needs_it() -> None:
    blind, reading = (Learned(0.5, weights=scorer_folder(8, question=question)) for question in (False, True))
    assert blind.needs == Learned.needs == ("scorer",) and reading.needs == ("scorer", "question")
    tokens = two_views()
    other = replace(tokens, questions=(-tokens.questions[0],))
    assert torch.equal(blind.score(tokens), blind.score(other))
    assert not torch.allclose(reading.score(tokens), reading.score(other))
    assert len(blind.select(replace(tokens, questions=())).kept) == 21
    with pytest.raises(BadValue, match="Learned needs the question about each image"):
        reading.select(replace(tokens, questions=()))


def test_gradients_reach_every_weight() -> None:
    scorer = random_scorer(8, question=True)
    for weight in scorer.weights.values():
        weight.requires_grad_()
    scorer.scores(two_views()).square().sum().backward()
    assert all(weight.grad is not None and weight.grad.abs().max() > 0 for weight in scorer.weights.values())


@pytest.mark.parametrize("question", [False, True])
def test_a_scorer_comes_back_from_its_folder(question: bool, tmp_path: Path) -> None:
    scorer = random_scorer(12, question=question)
    scorer.save(tmp_path / "new" / "folder")
    again = Scorer.load(tmp_path / "new" / "folder")
    assert again.facts == scorer.facts and torch.equal(again.mark, scorer.mark)
    assert again.weights.keys() == scorer.weights.keys()
    assert all(torch.equal(again.weights[name], scorer.weights[name]) for name in scorer.weights)
    assert sorted(file.name for file in (tmp_path / "new" / "folder").iterdir()) == [
        "scorer.json",
        "scorer.safetensors",
    ]
    loaded = Learned.from_pretrained(tmp_path / "new" / "folder", keep=7, scope="image")
    assert loaded == parse_pruner(f"learned:weights={tmp_path / 'new' / 'folder'}:scope=image", 7)


def test_a_copy_prunes_without_the_folder(tmp_path: Path) -> None:
    random_scorer(8).save(tmp_path)
    pruner = Learned(0.5, weights=str(tmp_path))
    for file in tmp_path.iterdir():
        file.unlink()
    assert torch.equal(copy.deepcopy(pruner).select(two_views()).kept, pruner.select(two_views()).kept)


def test_weights_that_are_no_folder_are_refused(tmp_path: Path) -> None:
    for value, error in ((3, BadType), (True, BadType), ("", BadValue)):
        with pytest.raises(error, match=r"weights=.*accepted is the path of a folder, as text; pass the folder that"):
            Learned(0.5, weights=value)  # type: ignore[arg-type]
    with pytest.raises(BadValue, match=r"nowhere holds no scorer: scorer.safetensors is not there; accepted is .*"):
        parse_pruner(f"learned:weights={tmp_path / 'nowhere'}", 0.5)


def damage_checksum(folder: Path) -> None:
    random_scorer(8, seed=1).save(folder / "other")
    (folder / "other" / "scorer.safetensors").replace(folder / "scorer.safetensors")


def damage_facts(folder: Path) -> None:
    facts = json.loads((folder / "scorer.json").read_text())
    (folder / "scorer.json").write_text(json.dumps({**facts, "width": 9}))


def damage_json(folder: Path) -> None:
    (folder / "scorer.json").write_text("[]")


def cut_short(folder: Path) -> None:
    (folder / "scorer.json").write_text((folder / "scorer.json").read_text()[:40])


@pytest.mark.parametrize("damage", [damage_checksum, damage_facts, damage_json, cut_short])
def test_a_damaged_scorer_is_refused(damage: Any, tmp_path: Path) -> None:
    random_scorer(8).save(tmp_path)
    damage(tmp_path)
    with pytest.raises(BadValue, match=r"the scorer in .* is damaged .*; accepted is a folder with .*; write it again"):
        Learned(0.5, weights=str(tmp_path))


def test_without_a_scorer_nothing_is_pruned() -> None:
    with pytest.raises(BadValue, match=r"Learned has no scorer.*weights=FOLDER, written by `gprune fit`"):
        Learned(0.5).select(two_views())
    assert "Learned has no scorer" in str(gprune.refusal(Learned(0.5), FAMILIES["llava"].model()))


def test_a_scorer_for_another_width_is_refused() -> None:
    pruner = Learned(0.5, weights=scorer_folder(8))
    with pytest.raises(BadValue, match="for tokens of width 8, those of somewhere/model, but these have 12"):
        pruner.select(features(10, 12))
    with pytest.raises(
        UnfitSettings,
        match=r"trained on somewhere/model \(llava, tokens of width 8\), and this model is of the .* qwen",
    ):
        pruner.attach(FAMILIES["qwen2_5_vl"].model())


def test_a_model_of_the_same_family_and_width_is_known_by_its_embeddings(tmp_path: Path) -> None:
    family = FAMILIES["llava"]
    model, other = family.model(), copy.deepcopy(family.model())
    pruner = made_for(model, tmp_path)
    with pruner(model) as run:
        model(**family.inputs())
    assert run.images and all(image.n_after < image.n_before for image in run.images)
    with torch.no_grad():
        other.get_input_embeddings().weight.normal_(generator=torch.Generator().manual_seed(3))
    with pytest.raises(UnfitSettings, match="this model is another one of the family llava: its embeddings differ"):
        pruner.attach(other)
    with torch.no_grad():  # a little training, or another dtype, makes no other model
        weight = other.get_input_embeddings().weight
        weight.copy_(model.get_input_embeddings().weight)
        weight.mul_(1 + 0.02 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(4)))
    assert gprune.refusal(pruner, other.bfloat16()) is None
