"""Cells by lmms-eval: scores, costs and errors of whole tasks, in this process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from lmmsenv import answers, photos_folder  # noqa: F401  (a fixture; skips without lmms-eval)
from photos.make import CORRUPT, TEXT_ONLY, TWO_IMAGES, documents

from gprune.evaluate.cells import Cell, Key
from gprune.evaluate.harness import Harness, Tasks
from gprune.scenes.benchmark import run_benchmark, samples, scores
from gprune.scenes.model import load_embedded
from gprune.spec import parse_pruner

LIMIT = 21


@pytest.fixture(scope="module")
def tasks(photos: Path) -> Tasks:
    return Tasks([photos])


@pytest.fixture(scope="module")
def harness(tasks: Tasks, tmp_path_factory: pytest.TempPathFactory) -> Harness:
    return Harness("embedded", batch_size=3, tasks=tasks, log_samples=tmp_path_factory.mktemp("samples"))


@pytest.fixture(scope="module")
def one_by_one(tasks: Tasks, tmp_path_factory: pytest.TempPathFactory) -> Harness:
    return Harness("embedded", batch_size=1, tasks=tasks, log_samples=tmp_path_factory.mktemp("samples"))


def logged(harness: Harness, cell: Cell) -> list[str]:
    assert harness.log_samples is not None
    return answers(harness.log_samples / f"{cell.key.name}.jsonl")


@pytest.mark.parametrize(
    "method, keep, seed", [("none", 1.0, None), ("gprune", 0.5, None), ("random", 30, 2), ("fastv", 0.5, None)]
)
def test_scenes_are_scored_as_by_the_benchmark(harness: Harness, method: str, keep: float, seed: int | None) -> None:
    cell = harness.measure(Key("embedded", "scenes", method, keep, seed, LIMIT))
    pruner = parse_pruner(method if seed is None else f"{method}:seed={seed}", keep)
    tests = list(samples("test", LIMIT))
    outcomes = run_benchmark(*load_embedded(), tests, pruner, batch_size=7)
    assert logged(harness, cell) == [outcome.answer for outcome in outcomes]
    assert cell.scores == pytest.approx(scores(outcomes)) and list(cell.scores) == list(scores(outcomes))
    assert cell.n == LIMIT and cell.errors == []
    assert cell.visual_tokens == pytest.approx(sum(outcome.visual_tokens for outcome in outcomes) / LIMIT)
    assert cell.kept_tokens == pytest.approx(sum(outcome.kept_tokens for outcome in outcomes) / LIMIT)
    assert cell.flops and cell.seconds > 0
    assert {"gprune", "torch", "lmms-eval", "device"} <= set(cell.versions)


def test_photos_and_documents(harness: Harness, one_by_one: Harness) -> None:
    key = Key("embedded", "photos", "gprune", 0.5)
    together, alone = harness.measure(key), one_by_one.measure(key)
    texts = logged(harness, together)
    assert texts == logged(one_by_one, alone)
    assert together.scores == alone.scores and list(together.scores) == ["answered", "words"]
    assert together.scores["answered"] == sum(map(bool, texts)) / len(texts)
    assert together.n == len(documents()) == len(texts)
    assert texts[CORRUPT] == "" and all(texts[number] for number in TWO_IMAGES)
    assert len(together.errors) == 1
    assert together.errors[0].startswith(f"document {CORRUPT}: UnidentifiedImageError")
    assert together.flops == alone.flops
    with_images = len(texts) - len(TEXT_ONLY) - 1
    assert together.visual_tokens * with_images == pytest.approx(round(together.visual_tokens * with_images))


def test_answers_end_where_the_task_says(harness: Harness) -> None:
    whole, cut = (harness.measure(Key("embedded", task)) for task in ("photos", "photos_until"))
    assert [text.split(" ")[0] for text in logged(harness, whole)] == logged(harness, cut)
    assert any(" " in text for text in logged(harness, whole))


def test_a_limit_is_that_many_documents(harness: Harness) -> None:
    cell = harness.measure(Key("embedded", "photos", limit=2))
    assert cell.n == 2 and cell.visual_tokens == cell.kept_tokens > 0
    assert len(logged(harness, cell)) == 2


def test_only_text_costs_no_visual_tokens(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "gprune.evaluate.lmms.message_part", lambda part: {"type": "text", "text": part.get("text", "a")}
    )
    cell = harness.measure(Key("embedded", "photos", "gprune", 0.5, limit=2))
    assert cell.visual_tokens == cell.kept_tokens == 0 and cell.flops


def test_nothing_answered_is_an_error_and_says_what_was_wrong(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(part: object) -> None:
        raise OSError("the disk is gone")

    monkeypatch.setattr("gprune.evaluate.lmms.message_part", fail)
    with pytest.raises(RuntimeError, match=r"not one of 2 documents .* the disk is gone"):
        harness.measure(Key("embedded", "photos", limit=2))


def test_the_model_is_left_as_it_was(harness: Harness) -> None:
    model = harness._model
    harness.measure(Key("embedded", "photos", "fastv", 0.5, limit=1))
    assert not model._forward_pre_hooks and not model._forward_hooks


def test_what_is_said_is_held_back(harness: Harness, capfd: pytest.CaptureFixture[str]) -> None:
    harness.measure(Key("embedded", "photos", limit=1))
    assert capfd.readouterr() == ("", "")


def test_progress(tasks: Tasks) -> None:
    seen: list[tuple[int, int]] = []
    harness = Harness("embedded", batch_size=2, tasks=tasks, answered=lambda done, total: seen.append((done, total)))
    harness.measure(Key("embedded", "photos", limit=3))
    assert seen == [(2, 3), (3, 3)]


@pytest.fixture
def every_task(tasks: Tasks) -> Iterator[Tasks]:
    with pytest.raises(ValueError, match="close names are scenes"):
        tasks.check("scnes")
    yield tasks


def test_tasks_that_cannot_be_run(every_task: Tasks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    for name, limit, reason in (
        ("mmbench", None, "is a group of tasks; name those wanted: mmbench_en_dev, "),
        ("mme", 3, "limit=3 is odd"),
        ("mmbench_en_dev", None, "mmbench_en_dev_static"),
        ("qqqqqqqqqqqq", None, "--tasks list"),
    ):
        with pytest.raises(ValueError, match=reason):
            every_task.check(name, limit)
    with pytest.raises(ValueError, match="multiple_choice; accepted are tasks with generate_until"):
        every_task.load("photos_choice")


def test_the_tasks_of_the_paper_are_there(every_task: Tasks) -> None:
    from gprune.cli.eval import PAPER_TASKS
    from gprune.evaluate.harness import PAPER_METRICS

    for name in PAPER_TASKS.split(","):
        every_task.check(name)
        config = every_task.manager._get_config(name)
        metrics = [each["metric"] for each in config["metric_list"]]
        assert PAPER_METRICS.get(name, metrics[0]) in metrics
        assert config["output_type"] == "generate_until"


@pytest.mark.parametrize(
    "key, reason",
    [
        (Key("another", "photos"), "is of another model"),
        (Key("embedded", "photos", "grpune", 0.5), "method 'grpune' is unknown"),
        (Key("embedded", "photos", "gprune", 0), "keep=0 keeps no token"),
        (Key("embedded", "photos", "gprune", 0.5, seed=1), "draws nothing at random"),
        (Key("embedded", "photos", "fastv", 0.1), "smallest keep"),
    ],
)
def test_keys_that_cannot_be_measured(harness: Harness, key: Key, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        harness.measure(key)
