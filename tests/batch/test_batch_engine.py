"""What a worker sends, and the model in its process: the same as one by one, and errors of rows and of the engine."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from rayenv import NEW_TOKENS, QUESTION, Stub, answer_one_by_one, corrupt, pa, png, scenes

from gprune.batch import InProcess
from gprune.batch import process as module
from gprune.batch.engine import SENT, Worker
from gprune.batch.pictures import READ


def table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=READ)


def sent(worker: Worker, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    answered = worker(table(rows))
    assert answered.schema.equals(SENT)
    return answered.to_pylist()


def test_a_batch_is_answered_as_one_by_one() -> None:
    asked = scenes(10)
    worker = Worker(InProcess(keep=0.4, max_new_tokens=NEW_TOKENS))
    rows = [{"id": str(i), "question": question, "picture": picture} for i, (picture, question) in enumerate(asked)]
    given = sent(worker, rows)
    expected = answer_one_by_one(asked, 0.4)
    assert [(row["answer"], row["visual_tokens"], row["kept_tokens"]) for row in given] == expected
    assert [(row["id"], row["question"]) for row in given] == [(row["id"], row["question"]) for row in rows]
    assert all(row["error"] is row["failure"] is None and row["seconds"] > 0 for row in given)


def test_bad_rows_do_not_touch_others() -> None:
    asked = scenes(3)
    worker = Worker(InProcess(keep=0.4, max_new_tokens=NEW_TOKENS))
    bomb = Image.new("1", (10_000, 10_000))
    bad = [
        {"picture": b"", "error": None},
        {"picture": b"text", "error": None},
        {"picture": corrupt(asked[0][0], 0), "error": None},
        {"picture": png(bomb), "error": None},
        {"picture": None, "error": "not found"},
    ]
    rows = [{"id": str(i), "question": question, "picture": picture} for i, (picture, question) in enumerate(asked)]
    mixed = [
        rows[0],
        {"id": "x", "question": "?", **bad[0]},
        rows[1],
        *({"id": "y", "question": "?", **e} for e in bad[1:]),
    ]
    mixed.append(rows[2])
    given = sent(worker, mixed)
    assert [row["answer"] for row in given if row["error"] is None] == [row[0] for row in answer_one_by_one(asked, 0.4)]
    reasons = [row["error"] for row in given if row["error"] is not None]
    wanted = ("is empty", "is not a picture", "cannot be read", "accepted are at most 40,000,000 pixels", "not found")
    assert all(reason in found for reason, found in zip(wanted, reasons, strict=True)), reasons
    assert all(row["visual_tokens"] is row["kept_tokens"] is row["answer"] is None for row in given if row["error"])
    assert [row["error"] for row in sent(worker, [{"id": "z", "question": "?", **bad[4]}])] == ["not found"]


def test_another_limit_of_pixels() -> None:
    rows = [{"id": str(side), "question": "?", "picture": png(Image.new("RGB", (side, side)))} for side in (30, 31)]
    given = sent(Worker(Stub(), max_pixels=900), rows)
    assert [row["error"] is None for row in given] == [True, False]
    assert "it has 31 x 31 pixels; accepted are at most 900 pixels" in given[1]["error"]


def test_a_format_that_is_not_opened() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (30, 30)).save(buffer, "EPS")
    [row] = sent(Worker(Stub()), [{"id": "a", "question": "?", "picture": buffer.getvalue()}])
    assert row["error"] == "the file is not a picture"


def test_a_row_that_fails_in_the_model_is_an_error_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    stock = module.answer

    def fragile(model: Any, processor: Any, run: Any, chats: Any, given: Any) -> Any:
        if any(chat[0]["content"][1]["text"] == "boom" for chat in chats):
            raise torch.OutOfMemoryError("2 TB are not there")
        return stock(model, processor, run, chats, given)

    monkeypatch.setattr(module, "answer", fragile)
    worker = Worker(InProcess(keep=0.4, max_new_tokens=NEW_TOKENS))
    asked = scenes(3)
    rows = [{"id": str(i), "question": question, "picture": picture} for i, (picture, question) in enumerate(asked)]
    rows.insert(1, {"id": "bad", "question": "boom", "picture": asked[0][0]})
    given = sent(worker, rows)
    assert given.pop(1)["error"] == "OutOfMemoryError: 2 TB are not there"
    assert [row["answer"] for row in given] == [row[0] for row in answer_one_by_one(asked, 0.4)]


def test_a_lost_gpu_is_no_error_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(*_: Any) -> Any:
        raise torch.AcceleratorError("device-side assert", 710)

    monkeypatch.setattr(module, "answer", lost)
    [row] = sent(Worker(InProcess()), [{"id": "a", "question": QUESTION, "picture": scenes(1)[0][0]}])
    assert "device-side assert" in row["failure"] and row["id"] is None


@pytest.mark.parametrize(("does", "reason"), [("fail to start", "the model is too large"), ("fail", "the GPU is lost")])
def test_an_engine_that_fails(does: str, reason: str) -> None:
    worker = Worker(Stub(does))
    for _ in range(2):
        [row] = sent(worker, [{"id": "a", "question": "?", "picture": scenes(1)[0][0]}])
        assert reason in row["failure"] and row["id"] is row["error"] is None


def test_warnings_are_sent() -> None:
    given = sent(Worker(Stub("warn")), [{"id": i, "question": "?", "picture": scenes(1)[0][0]} for i in "ab"])
    assert [row["warning"] for row in given] == ["nearly all pairs are edges", None]


def test_a_folder_is_the_same_from_every_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "embedded").mkdir()
    assert InProcess("model").settings["model"] == str(tmp_path / "model")
    assert [InProcess(name).model for name in ("embedded", "org/model")] == ["embedded", "org/model"]


@pytest.mark.parametrize(
    ("engine", "reason"),
    [
        (InProcess(method="magic"), "method 'magic' is unknown"),
        (InProcess(keep=1.5), "keep=1.5 is not a ratio"),
        (InProcess("./no/such/model"), r"model \./no/such/model cannot be loaded"),
    ],
)
def test_what_is_known_before(engine: InProcess, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        engine.check()
