"""Training is reproducible from its seed, and an interruption leaves no trace."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from gprune.scenes.data import IGNORED, SceneBatches
from gprune.scenes.train import Recipe, Trainer, train

RECIPE = Recipe(batch_size=2, tower_steps=2, align_steps=2, joint_steps=2, warmup_steps=1)


def run(out: Path) -> dict[str, torch.Tensor]:
    train(RECIPE, out, workers=0, validation_batches=1)  # validates where phases end
    return load_file(out / "checkpoint" / "model.safetensors")


@pytest.mark.thorough
def test_an_interrupted_run_goes_on_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(tmp_path / "whole")
    stock = Trainer.train_step

    def interrupted(self: Trainer, batch: object) -> float:
        if self.step == 3:
            raise KeyboardInterrupt
        return stock(self, batch)  # type: ignore[arg-type]

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "train_step", interrupted)
        run(tmp_path / "parts")
    assert not (tmp_path / "parts" / "checkpoint").exists()
    parts = run(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    logs = [(tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("whole", "parts")]
    assert [json.loads(line)["validation"] for line in logs[0]] == [json.loads(line)["validation"] for line in logs[1]]


def test_the_tower_is_frozen_while_the_language_model_learns() -> None:
    trainer = Trainer(Recipe(batch_size=2, tower_steps=0, align_steps=2, joint_steps=1), torch.device("cpu"))
    tower = {name: value.clone() for name, value in trainer.tower.state_dict().items()}
    words = trainer.model.get_input_embeddings().weight.clone()
    trainer.train_step(SceneBatches("train", 2, 0, 1)[0])
    assert all(torch.equal(value, tower[name]) for name, value in trainer.tower.state_dict().items())
    assert not torch.equal(trainer.model.get_input_embeddings().weight, words)


def test_the_rate_warms_up_stays_and_decays_in_the_end() -> None:
    recipe = Recipe(tower_steps=1000, align_steps=1000, joint_steps=1000, warmup_steps=100)
    assert recipe.phase(0)[1] == pytest.approx(recipe.tower_rate / 100)
    assert [recipe.phase(step)[0] for step in (999, 1000, 1999, 2000)] == ["tower", "align", "align", "joint"]
    assert recipe.phase(1999)[1] == recipe.align_rate
    rates = [recipe.phase(step)[1] for step in range(2100, 3000)]
    assert rates[0] == recipe.joint_rate and rates[-1] < 0.05 * recipe.joint_rate
    assert rates == sorted(rates, reverse=True)
    with pytest.raises(IndexError):
        recipe.phase(3000)


def test_labels_are_the_answers_to_their_questions() -> None:
    data = SceneBatches("train", 2, 0, 3)
    batch = data[1]
    decode = data.processor.tokenizer.decode
    for row, first, last, category in batch.asked:
        answer = batch.labels[row, first:last]
        assert torch.equal(answer, batch.input_ids[row, first:last])
        assert batch.labels[row, first - 1] == IGNORED
        if category == "presence":
            assert decode(answer, skip_special_tokens=True) in ("yes", "no")
    spans = sum(last - first for _, first, last, _ in batch.asked)
    assert int((batch.labels != IGNORED).sum()) == spans
