"""`gprune.fit` on the model in the package: it learns, goes on where it was stopped, and refuses what it cannot use."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import gprune
from gprune import Diverged, FitSettings, Fitted, Learned
from gprune.attach import encoded
from gprune.errors import BadType, BadValue
from gprune.evaluate.answers import prepare
from gprune.evaluate.forcing import answer_logits
from gprune.evaluate.items import Query
from gprune.fitting.classroom import Classroom, TaughtBatch
from gprune.fitting.lessons import split_items
from gprune.prompt import build_inputs
from gprune.pruners.scorer import Scorer, ScorerFacts, model_mark
from gprune.scenes.benchmark import samples
from gprune.scenes.model import load_embedded

SHORT = FitSettings(question=True, steps=2, batch_size=2, rate=0.01, max_new_tokens=3, validate_every=1)


@pytest.fixture(scope="module")
def loaded() -> tuple[Any, Any]:
    model, processor = load_embedded()
    prepare(processor)
    return model, processor


@pytest.fixture(scope="module")
def items() -> list[Query]:
    """Small pictures, so that there are few tokens."""
    return [([each.picture.resize((64, 128))], each.question.question) for each in samples("train", 4)]


def scorer_of(model: Any, question: bool) -> Scorer:
    """A scorer for the model, untrained."""
    embeddings = model.get_input_embeddings().weight
    facts = ScorerFacts("embedded", model.config.model_type, embeddings.shape[1], question, "nothing")
    scorer = Scorer.untrained(facts, model_mark(embeddings), torch.Generator().manual_seed(0))
    for weight in scorer.weights.values():
        weight.requires_grad_()
    return scorer


def taught(classroom: Classroom, items: Sequence[Query]) -> TaughtBatch:
    return classroom.batch({str(number): item for number, item in enumerate(items)})


def test_the_loss_is_that_of_the_attached_method(loaded: tuple[Any, Any], items: list[Query], tmp_path: Path) -> None:
    """Divergence and agreement of every prompt at its own budget, with the pruner attached in place of gates."""
    model, processor = loaded
    scorer = scorer_of(model, question=True)
    scorer.save(tmp_path)
    classroom = Classroom(model, processor, True, 6)
    batch = taught(classroom, items[:3])
    with torch.no_grad():
        strayed, agreed = classroom.pupil(scorer, batch, [0.5, 0.2, 7])
    expected, same = 0.0, 0
    for item, keep, answer in zip(items[:3], [0.5, 0.2, 7], batch.answers, strict=True):
        inputs = build_inputs(model, processor, [item])  # type: ignore[list-item]
        [whole] = answer_logits(model, inputs, [answer])
        with Learned(keep, weights=str(tmp_path))(model):
            [pruned] = answer_logits(model, inputs, [answer])
        p, q = (logits.double().log_softmax(-1) for logits in (whole, pruned))
        expected += float((p.exp() * (p - q)).sum())
        same += int((pruned.argmax(-1) == answer).sum())
        assert torch.equal(whole.argmax(-1), answer)
    assert float(strayed) == pytest.approx(expected, rel=1e-3, abs=1e-4) and agreed == same


def test_a_few_steps_lower_the_loss(loaded: tuple[Any, Any], items: list[Query]) -> None:
    """Of two items, on average over draws of the noise that no step has seen."""
    model, processor = loaded
    scorer, classroom = scorer_of(model, question=True), Classroom(model, processor, True, 6)
    batch = taught(classroom, items[:2])
    optimizer = torch.optim.Adam(list(scorer.weights.values()), lr=0.003)

    def loss(seed: int) -> torch.Tensor:
        return classroom.pupil(scorer, batch, [0.2, 0.2], torch.Generator().manual_seed(seed))[0]

    with torch.no_grad():
        before = sum(float(loss(100 + seed)) for seed in range(5)) / 5
    for step in range(10):
        optimizer.zero_grad()
        loss(step).backward()
        assert all(weight.grad is not None and weight.grad.any() for weight in scorer.weights.values())
        optimizer.step()
    with torch.no_grad():
        after = sum(float(loss(100 + seed)) for seed in range(5)) / 5
    assert after < 0.7 * before


def fitted(loaded: tuple[Any, Any], items: Sequence[Query], folder: Path, **given: Any) -> Fitted:
    return gprune.fit(*loaded, items, folder, [0.3], **{"settings": SHORT, **given})


def test_a_run_that_is_stopped_comes_to_the_same_scorer(
    loaded: tuple[Any, Any], items: list[Query], tmp_path: Path
) -> None:
    model, _ = loaded
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    first = fitted(loaded, items, whole)

    def stop(step: int, loss: float) -> None:
        if step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fitted(loaded, items, stopped, progress=stop)
    assert not (stopped / "scorer.json").exists() and not (stopped / "scorer.safetensors").exists()
    assert all(weight.requires_grad for weight in model.parameters())
    steps: list[int] = []
    again = fitted(loaded, items, stopped, progress=lambda step, loss: steps.append(step))
    assert steps == [2]
    assert again.curve == first.curve and [row["step"] for row in again.curve] == [1, 2]
    one, other = (load_file(folder / "scorer.safetensors") for folder in (whole, stopped))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)

    methods = [name for name, _ in first.fidelity.runs]
    assert methods == ["none", f"learned:weights={whole}", "graphvote", "graphcover", "random"]
    assert f"learned:weights={whole}" in (whole / "table.md").read_text()
    at_best = min(first.curve, key=lambda row: row["validation"]["0.3"]["kl"])["validation"]["0.3"]
    assert first.fidelity.rows[1]["agreement"] == pytest.approx(at_best["agreement"])
    pruner = Learned.from_pretrained(whole, keep=0.3)
    assert pruner.scorer.facts.question and "3 items, in 2 steps of 2, keeping 0.3" in pruner.scorer.facts.trained_on
    tokens, _ = encoded(pruner, model, build_inputs(model, loaded[1], [items[0]]))  # type: ignore[list-item]
    assert len(pruner.select(tokens).kept) < len(tokens.features)

    for given, wrong in (({"settings": FitSettings(steps=9)}, "question, steps, "), ({"items": items[:3]}, "items;")):
        with pytest.raises(BadValue, match=f"holds a run with other {wrong}.*or another folder"):
            fitted(loaded, **{"items": items, "folder": whole, **given})
    (whole / "fit" / "state.pt").write_bytes(b"nonsense")
    with pytest.raises(BadValue, match=r"(?s)state.pt cannot be read .*; delete it, and the run begins anew"):
        fitted(loaded, items, whole)
    (whole / "fit" / "state.pt").unlink()
    with pytest.raises(BadValue, match="holds a scorer already; it is not overwritten; give another folder"):
        fitted(loaded, items, whole)


def test_a_loss_that_is_nan_stops_and_leaves_no_scorer(
    loaded: tuple[Any, Any], items: list[Query], tmp_path: Path
) -> None:
    model = copy.deepcopy(loaded[0])
    with torch.no_grad():
        model.get_decoder().norm.weight[0] = torch.nan
    with pytest.raises(Diverged, match=r"loss of step 0 is nan; the scorer was not written.*give a smaller rate"):
        gprune.fit(model, loaded[1], items, tmp_path / "scorer", [0.3], settings=SHORT)
    assert not (tmp_path / "scorer").exists()


def test_pictures_that_are_too_few_or_cannot_be_read(
    loaded: tuple[Any, Any], items: list[Query], tmp_path: Path
) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    broken: Query = ([tmp_path / "broken.png"], "what?")
    same = [(items[0][0], "one"), ([items[0][0][0].copy()], "two")]  # type: ignore[union-attr]
    for given, count in (([], "0 items have 0"), (items[:1], "1 items have 1"), (same, "2 items have 1")):
        with pytest.raises(BadValue, match=f"{count} different pictures that can be read; accepted are at least 2"):
            fitted(loaded, given, tmp_path / "scorer")
    with pytest.raises(BadValue, match=r"1 items have 0 different .* \(item 0: .*broken.png.*\); accepted"):
        fitted(loaded, [broken], tmp_path / "scorer")
    with pytest.raises(BadType, match="is no pair"):
        fitted(loaded, ["picture.png"], tmp_path / "scorer")  # type: ignore[list-item]
    assert not (tmp_path / "scorer").exists()
    found = split_items([*items, broken])
    assert len(found.training) + len(found.validation) == 4 and len(found.errors) == 1


def test_no_picture_is_on_both_sides_whatever_the_order() -> None:
    asked: list[Query] = [
        ([Image.new("RGB", (8, 8), (shade, 0, 0))], question) for shade in range(20) for question in ("one", "two")
    ]
    lessons, again = split_items(asked), split_items(asked[::-1])
    shades = [{item[0][0].getpixel((0, 0))[0] for item in part} for part in (lessons.training, lessons.validation)]  # type: ignore[union-attr,index]
    assert not shades[0] & shades[1] and len(shades[1]) == 4 and len(lessons.validation) == 8
    assert lessons.fingerprint != split_items(asked[2:]).fingerprint
    assert {id(item) for item in lessons.validation} == {id(item) for item in again.validation}


def test_settings_and_folders_that_are_refused(loaded: tuple[Any, Any], items: list[Query], tmp_path: Path) -> None:
    for name in ("steps", "batch_size", "max_new_tokens", "validate_every"):
        with pytest.raises(BadValue, match=rf"{name}=0 is out of range; accepted is an int >= 1"):
            FitSettings(**{name: 0})
    with pytest.raises(BadType, match="question=1 is an int; accepted is False or True"):
        FitSettings(question=1)  # type: ignore[arg-type]
    with pytest.raises(BadValue, match="has a colon in its path, which ends a setting; give another name"):
        fitted(loaded, items, tmp_path / "a:b")
    with pytest.raises(BadValue, match="keeps is empty; accepted is at least one budget"):
        gprune.fit(*loaded, items, tmp_path / "scorer", [])
    with pytest.raises(BadValue, match=r"keep=1.5 is not a ratio"):
        gprune.fit(*loaded, items, tmp_path / "scorer", [1.5])
