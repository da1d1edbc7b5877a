"""Scorers with random weights, as files."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from gprune import Keep, Learned
from gprune.pruners.scorer import Scorer, ScorerFacts, model_mark

_ROOT = TemporaryDirectory()


def random_scorer(width: int, *, question: bool = False, seed: int = 0, family: str = "llava") -> Scorer:
    """A scorer for tokens of this width, whose biases are not 0."""
    generator = torch.Generator().manual_seed(seed)
    facts = ScorerFacts("somewhere/model", family, width, question, "nothing")
    scorer = Scorer.untrained(facts, torch.randn(width, generator=generator), generator)
    drawn = {name: torch.randn(weight.shape, generator=generator) for name, weight in scorer.weights.items()}
    return Scorer({name: drawn[name] if "bias" in name else scorer.weights[name] for name in drawn}, scorer.mark, facts)


@cache
def scorer_folder(width: int, *, question: bool = False) -> str:
    """The folder of `random_scorer`, the same for all tests of a process."""
    folder = Path(_ROOT.name) / f"{width}-{question}"
    random_scorer(width, question=question).save(folder)
    return str(folder)


def made_for(model: Any, folder: Path, keep: Keep = 0.5) -> Learned:
    """The method with a random scorer in a folder that fits a model."""
    embeddings = model.get_input_embeddings().weight
    scorer = random_scorer(embeddings.shape[1], family=model.config.model_type)
    replace(scorer, mark=model_mark(embeddings)).save(folder)
    return Learned(keep, weights=str(folder))
