"""The plug-in as lmms-eval runs it: found by its name, with arguments, files and a cache of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
from lmmsenv import OFFLINE, answers, photos_folder  # noqa: F401  (a fixture; skips without lmms-eval)
from photos.make import CORRUPT, documents

from gprune.evaluate import tasks
from gprune.scenes.benchmark import samples


@pytest.fixture(scope="module")
def model_class() -> Any:
    from lmms_eval.models import get_model

    return get_model("gprune")


def test_lmms_eval_finds_the_model_by_its_name(model_class: Any) -> None:
    from gprune.evaluate.lmms import GPruneModel

    assert model_class is GPruneModel and not model_class.is_simple


def test_the_plain_command(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    result = subprocess.run(
        [
            *(sys.executable, "-m", "lmms_eval", "--model", "gprune", "--tasks", "scenes", "--limit", "7"),
            *("--model_args", f"pretrained=embedded,method=gprune:init=ones,keep=0.5,report={report}"),
            *("--batch_size", "3", "--include_path", tasks.__path__[0], "--output_path", str(tmp_path / "out")),
            "--log_samples",
        ],
        env={**os.environ, **OFFLINE},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    written = json.loads(report.read_text())
    assert written["settings"] == {
        "pretrained": "embedded",
        "method": "gprune:init=ones",
        "keep": 0.5,
        "batch_size": 3,
        "seed": None,
    }
    assert {"gprune", "torch", "transformers", "lmms-eval", "python", "device"} == set(written["versions"])
    (scores,) = (tmp_path / "out").rglob("*_results.json")
    (log,) = (tmp_path / "out").rglob("*_samples_scenes.jsonl")
    costs = written["tasks"]["scenes"]
    assert [each["text"] for each in costs["documents"]] == answers(log)
    right = [
        each["text"] == example.question.answer
        for each, example in zip(costs["documents"], samples("test", 7), strict=True)
    ]
    assert json.loads(scores.read_text())["results"]["scenes"]["overall,none"] == pytest.approx(sum(right) / 7)
    assert costs["n"] == 7 and costs["flops"] > 0 and costs["seconds"] > 0 and costs["errors"] == []
    assert 0.45 < costs["kept_tokens"] / costs["visual_tokens"] < 0.56


def test_a_report_and_a_cache_of_responses(
    model_class: Any, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    asked: list[int] = []
    generate = model_class.generate_until

    def counted(model: Any, requests: list[Any]) -> list[str]:
        asked.append(len(requests))
        return generate(model, requests)

    monkeypatch.setattr(model_class, "generate_until", counted)
    report = tmp_path / "report.json"

    def run() -> tuple[list[Any], Any]:
        results = simple_evaluate(
            "gprune",
            model_args=f"pretrained=embedded,method=uniform,keep=20,report={report}",
            tasks=["photos"],
            task_manager=TaskManager(include_path=[str(photos)], include_defaults=False),
            use_cache=str(tmp_path / "cache"),
            bootstrap_iters=0,
            cli_args=Namespace(output_path=None, process_with_media=False, reasoning_tags=None),
        )
        texts = [sample["resps"][0][0] for sample in results["samples"]["photos"]]
        return texts, json.loads(report.read_text())["tasks"].get("photos")

    count = len(documents())
    texts, costs = run()
    assert asked == [count] == [len(texts)] == [costs["n"]]
    assert [each["text"] for each in costs["documents"]] == texts
    assert [each["number"] for each in costs["documents"]] == list(range(count))
    assert [each["error"] is None for each in costs["documents"]] == [number != CORRUPT for number in range(count)]
    again, costs = run()
    # What has no answer is asked again; all else comes from the cache.
    assert again == texts and sum(asked[1:]) == texts.count("") < count
    assert CORRUPT in [each["number"] for each in costs["documents"]]


@pytest.mark.parametrize(
    "arguments, reason",
    [
        ({"method": "grpune"}, "method 'grpune' is unknown"),
        ({"method": "gprune", "keep": "2.0"}, "keep=2.0 is not a ratio"),
        ({"method": "gprune", "keep": 0}, "keep=0 keeps no token"),
        ({"method": "gprune", "seed": 1}, "draws nothing at random"),
        ({"method": "foreground"}, "has no mask"),
        ({"batch_size": "auto"}, "batch_size='auto'"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"report": "no/such/folder/report.json"}, "make it first"),
        ({"pretrained": "./no/such/model"}, "cannot be loaded"),
    ],
)
def test_wrong_arguments(model_class: Any, arguments: dict[str, Any], reason: str) -> None:
    with pytest.raises((ValueError, TypeError), match=reason):
        model_class(**arguments)


def test_only_generated_text(model_class: Any) -> None:
    model = model_class()
    for method in (model.loglikelihood, model.generate_until_multi_round):
        with pytest.raises(NotImplementedError, match="output_type generate_until"):
            method([])


def test_videos_are_refused(model_class: Any) -> None:
    from gprune.evaluate.lmms import chat_message

    with pytest.raises(NotImplementedError, match="holds video"):
        chat_message({"role": "user", "content": [{"type": "video", "url": "a.mp4"}]})
    assert chat_message({"role": "system", "content": "be brief"}) == {
        "role": "system",
        "content": [{"type": "text", "text": "be brief"}],
    }


def test_the_package_holds_its_tasks() -> None:
    assert (Path(tasks.__path__[0]) / "scenes" / "scenes.yaml").is_file()
