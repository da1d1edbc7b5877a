"""Fidelity on the model in the package: against what its answers are when they are generated, and never twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pictures import halves

import gprune
from gprune import FastV, GPrune, Unpruned
from gprune.answering import reply
from gprune.errors import BadType, BadValue
from gprune.evaluate.items import Query
from gprune.evaluate.likeness import feature_coverage
from gprune.evaluate.records import label
from gprune.prompt import build_inputs
from gprune.scenes.benchmark import samples
from gprune.scenes.model import load_embedded

QUESTION = "describe the picture"  # answered by sentences


@pytest.fixture(scope="module")
def loaded() -> tuple[Any, Any]:
    return load_embedded()


@pytest.fixture(scope="module")
def items() -> list[Query]:
    shown = list(samples("test", 5))
    return [*(([each.picture], each.question.question) for each in shown), ([shown[0].picture], QUESTION)]


def test_scores_are_those_of_generated_answers(loaded: tuple[Any, Any], items: list[Query]) -> None:
    model, processor = loaded
    found = gprune.fidelity(model, processor, items, ["gprune", "fastv"], [0.5], max_new_tokens=12)
    assert [len(each.tokens) <= 12 for each in found.records] == [True] * len(items)
    equal = []
    for (pictures, question), record in zip(items, found.records, strict=True):
        inputs = build_inputs(model, processor, [(pictures, question)])
        generated = {}
        for method in (Unpruned(), GPrune(keep=0.5), FastV(keep=0.5)):
            with method(model) as run:
                [answer] = reply(run, processor, inputs, max_new_tokens=12)
            score = record.scores[label(method.name, method.keep)]
            generated[method.name] = answer.text.strip()
            assert (generated[method.name] == record.answer) == (score.agreed == len(record.tokens))
            assert score.visual_tokens == answer.visual_tokens
            assert score.kept_tokens == pytest.approx(answer.kept_tokens)
            equal.append(generated[method.name] == record.answer)
        assert generated["none"] == record.answer
        assert record.scores["none keep=1.0"].first_kl == pytest.approx(0, abs=1e-5)
    assert not all(equal)


def test_likelihood_divergence_and_coverage_by_the_long_way(loaded: tuple[Any, Any], items: list[Query]) -> None:
    model, processor = loaded
    [record] = gprune.fidelity(model, processor, items[-1:], ["gprune"], [0.3], max_new_tokens=6).records
    inputs = build_inputs(model, processor, [items[-1]])  # type: ignore[list-item]
    start = inputs["input_ids"].shape[1]
    steps = {}
    for method in (Unpruned(), GPrune(keep=0.3)):
        with method(model) as run:
            output = model.generate(
                **inputs,
                max_new_tokens=len(record.tokens),
                min_new_tokens=len(record.tokens),
                do_sample=False,
                prefix_allowed_tokens_fn=lambda row, ids: [record.tokens[len(ids) - start]],
                return_dict_in_generate=True,
                output_logits=True,
            )
        steps[method.name] = torch.cat(output.logits).log_softmax(-1)
    score = record.scores["gprune keep=0.3"]
    own = [float(row[token]) for row, token in zip(steps["gprune"], record.tokens, strict=True)]
    assert score.nll == pytest.approx(-sum(own), abs=1e-4)
    p, q = steps["none"][0].double(), steps["gprune"][0].double()
    assert score.first_kl == pytest.approx(float((p.exp() * (p - q)).sum()), abs=1e-5)
    tokens = gprune.attach.preview.visual_tokens(GPrune(keep=0.3), model, inputs)
    assert (score.coverage, score.worst_coverage) == pytest.approx(feature_coverage(tokens, [run.images[0].kept]))
    assert score.edge_share == pytest.approx(run.images[0].edge_share)
    assert record.edge_share == pytest.approx(run.images[0].edge_share, abs=1e-4)


def test_batches_and_several_pictures(loaded: tuple[Any, Any], items: list[Query]) -> None:
    two = ([*items[0][0], *items[1][0]], items[0][1])
    given, methods = [*items[:3], two, *items[3:]], ["gprune", "tome", "vtw"]
    alone = gprune.fidelity(*loaded, given, methods, [0.5], max_new_tokens=6)
    batch = gprune.fidelity(*loaded, given, methods, [0.5], max_new_tokens=6, batch_size=5)
    assert batch.runs == alone.runs
    for one, other in zip(alone.records, batch.records, strict=True):
        assert one.tokens == other.tokens and one.scores.keys() == other.scores.keys()
        assert one.tenth == pytest.approx(other.tenth, abs=0.002)
        for name, score in one.scores.items():
            assert score.kept_tokens == pytest.approx(other.scores[name].kept_tokens)
            assert score.coverage == pytest.approx(other.scores[name].coverage, abs=1e-4)
            assert (score.nll, score.first_kl) == pytest.approx(
                (other.scores[name].nll, other.scores[name].first_kl), abs=2e-3
            )
            assert score.flops == other.scores[name].flops
    sizes = [record.scores["none keep=1.0"].visual_tokens for record in alone.records]
    assert sizes[3] == sizes[0] + sizes[1]
    assert all(record.scores["vtw keep=0.5"].coverage is None for record in alone.records)


def test_what_is_in_the_folder_is_not_measured_again(
    loaded: tuple[Any, Any], items: list[Query], tmp_path: Path
) -> None:
    model, processor = loaded
    done: list[int] = []
    whole = {"max_new_tokens": 4, "folder": tmp_path}

    def stop(count: int) -> None:
        done.append(count)
        if len(done) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gprune.fidelity(model, processor, items, ["gprune"], [0.3], **whole, progress=stop)  # type: ignore[arg-type]
    assert len(list(tmp_path.glob("*.json"))) == 2 and done == [2, 2]
    first = gprune.fidelity(model, processor, items, ["gprune"], [0.3], **whole)  # type: ignore[arg-type]
    calls: list[str] = []
    counting = model.lm_head.register_forward_pre_hook(lambda *_: calls.append("forward"))
    again = gprune.fidelity(model, processor, items, ["gprune"], [0.3], **whole)  # type: ignore[arg-type]
    assert again == first and not calls
    other = gprune.fidelity(model, processor, items, ["gprune", "random"], [0.3], **whole)  # type: ignore[arg-type]
    assert calls
    for before, after in zip(first.records, other.records, strict=True):
        assert before.scores.items() <= after.scores.items() and "random keep=0.3" in after.scores
    assert len(list(tmp_path.glob("*.json"))) == len(items)
    counting.remove()
    gprune.fidelity(model, processor, items[:1], ["gprune"], [0.3], max_new_tokens=3, folder=tmp_path)
    assert len(list(tmp_path.glob("*.json"))) == len(items) + 1  # another answer


def test_a_damaged_file_is_named(loaded: tuple[Any, Any], items: list[Query], tmp_path: Path) -> None:
    gprune.fidelity(*loaded, items[:1], ["random"], [0.3], max_new_tokens=2, folder=tmp_path)
    [path] = tmp_path.glob("*.json")
    for text in ("", "[]", "{}", json.dumps({**json.loads(path.read_text()), "scores": {"none keep=1.0": {}}})):
        path.write_text(text)
        with pytest.raises(ValueError, match=f"{path.name} is no measured item"):
            gprune.fidelity(*loaded, items[:1], ["random"], [0.3], max_new_tokens=2, folder=tmp_path)


def test_what_cannot_be_asked_is_left_out_with_the_reason(
    loaded: tuple[Any, Any], items: list[Query], tmp_path: Path
) -> None:
    (tmp_path / "text.png").write_text("no picture")
    bad: list[Query] = [([tmp_path / "text.png"], "what?"), ([halves()], "what is <image> here?")]
    for size in (1, 3):
        found = gprune.fidelity(
            *loaded, [bad[0], items[0], bad[1]], ["random", "fastv"], [0.5, 0.1], max_new_tokens=2, batch_size=size
        )
        assert len(found.records) == 1 and len(found.errors) == 2
        assert found.errors[0].startswith("item 0: ") and "text.png is not a picture" in found.errors[0]
        assert found.errors[1].startswith("item 2: ")
        assert [name for name, _ in found.runs] == ["none", "random", "random", "fastv"]
        [reason] = found.left_out
        assert reason.startswith("fastv: FastV(keep=0.1) drops too late")
    with pytest.raises(BadValue, match=r"not one of 1 items can be read; item 0: .*text\.png"):
        gprune.fidelity(*loaded, bad[:1], ["random"], [0.5])
    with pytest.raises(BadValue, match="there are none"):
        gprune.fidelity(*loaded, [], ["random"], [0.5])
    with pytest.raises(BadValue, match="smallest keep"):
        gprune.fidelity(*loaded, items, ["fastv"], [0.1])
    with pytest.raises(BadValue, match="no method is given"):
        gprune.fidelity(*loaded, items, ["none"], [1.0])
    for name in ("max_new_tokens", "batch_size"):
        with pytest.raises(BadValue, match=f"{name}=0 is out of range; accepted is an int >= 1"):
            gprune.fidelity(*loaded, items, ["random"], [0.5], **{name: 0})  # type: ignore[arg-type]
    with pytest.raises(BadType, match="is no pair"):
        gprune.fidelity(*loaded, ["a.png"], ["random"], [0.5])  # type: ignore[list-item]


def test_a_run_that_is_attached_changes_nothing_and_stays(loaded: tuple[Any, Any], items: list[Query]) -> None:
    model, processor = loaded
    alone = gprune.fidelity(model, processor, items[:2], ["random"], [0.3], max_new_tokens=4)
    with GPrune(keep=0.1)(model) as run:
        inside = gprune.fidelity(model, processor, items[:2], ["random"], [0.3], max_new_tokens=4)
        assert run.attached
    for one, other in zip(alone.records, inside.records, strict=True):
        assert one.tokens == other.tokens
        assert {name: each.nll for name, each in one.scores.items()} == {
            name: each.nll for name, each in other.scores.items()
        }
    assert not model._forward_pre_hooks
