"""Whole jobs on Ray: the same as a plain loop, shared among workers, and gone on with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from rayenv import (
    NEW_TOKENS,
    Stub,
    answer_one_by_one,
    cluster,
    corrupt,
    ray,
    rows_of,
    scenes,
    write_folder,
    write_parquet,
)
from standin import StandIn, serving

import gprune.batch.workers
from gprune.batch import Columns, InProcess, Job, Progress, Server, run

__all__ = ["cluster"]
pytestmark = pytest.mark.usefixtures("cluster")

ROWS, BAD = 200, (0, 3, 50, 51, 52, 53, 120, 199)


def stub_job(tmp_path: Path, count: int) -> Job:
    folder = write_folder(tmp_path / "photos", count)
    return Job(str(folder), tmp_path / "out.parquet", Stub(), "what?", actors=2, batch_size=4)


def test_two_hundred_rows_are_answered_as_by_a_plain_loop(tmp_path: Path) -> None:
    asked = scenes(ROWS)
    pictures = [corrupt(picture, i) if i in BAD else picture for i, (picture, _) in enumerate(asked)]
    table = {
        "image": pictures,
        "question": [question for _, question in asked],
        "name": [f"{i:03d}" for i in range(ROWS)],
    }
    path = write_parquet(tmp_path / "table.parquet", table)
    seen: list[Progress] = []
    job = Job(
        str(path),
        tmp_path / "out.parquet",
        InProcess(keep=0.4, max_new_tokens=NEW_TOKENS),
        columns=Columns(id="name"),
        actors=2,
        part_rows=64,
    )
    summary = run(job, seen.append)
    rows = rows_of(job.output)
    assert [row["id"] for row in rows] == table["name"]
    assert [row["question"] for row in rows] == table["question"]
    assert [i for i, row in enumerate(rows) if row["error"] is not None] == list(BAD)
    good = [i for i in range(ROWS) if i not in BAD]
    expected = answer_one_by_one([asked[i] for i in good], 0.4)
    assert [(rows[i]["answer"], rows[i]["visual_tokens"], rows[i]["kept_tokens"]) for i in good] == expected
    assert all(rows[i]["answer"] is rows[i]["visual_tokens"] is None for i in BAD)
    assert (summary.rows, summary.good, summary.bad, summary.before) == (ROWS, ROWS - len(BAD), len(BAD), 0)
    assert summary.visual_tokens == sum(each[1] for each in expected)
    assert summary.kept_tokens == pytest.approx(sum(each[2] for each in expected))
    assert summary.first_error is not None and 0 < summary.start_seconds < summary.seconds
    assert seen[0] == Progress(0, ROWS) and seen[-1].done == ROWS
    assert seen[-1].visual_tokens == summary.visual_tokens


@pytest.mark.parametrize("kind", ["folder", "row group"])
def test_two_workers_share_the_work(tmp_path: Path, kind: str) -> None:
    """Each waits for the other in its first three batches: it would be for ever if one had them all."""
    job = stub_job(tmp_path, count=96)
    table = write_parquet(tmp_path / "t.parquet", {"image": [picture for picture, _ in scenes(96)]})
    (tmp_path / "met").mkdir()
    run(replace(job, engine=Stub(str(tmp_path / "met")), input=job.input if kind == "folder" else str(table)))
    workers = Counter(row["answer"].split()[-1] for row in rows_of(job.output))
    assert sum(workers.values()) == 96 and len(workers) == 2 and min(workers.values()) >= 3 * job.batch_size


def test_only_what_is_missing_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what a worker warned of arrives."""
    job = stub_job(tmp_path, count=8)
    with pytest.warns(UserWarning, match="nearly all pairs are edges"):
        assert run(replace(job, engine=Stub("warn"))).before == 0
    write_folder(Path(job.input), 12)
    before = {row["id"]: row["answer"] for row in rows_of(job.output)}
    summary = run(job)
    after = {row["id"]: row["answer"] for row in rows_of(job.output)}
    assert (summary.rows, summary.before) == (12, 8) and len(after) == len(rows_of(job.output)) == 12
    assert before.items() <= after.items()
    monkeypatch.setattr(gprune.batch.workers, "ray_running", lambda *_: pytest.fail("Ray was started"))
    summary = run(job)
    assert (summary.rows, summary.good, summary.before, summary.rows_per_second) == (12, 12, 12, 0)


@pytest.mark.parametrize(("does", "reason"), [("fail to start", "the model is too large"), ("fail", "the GPU is lost")])
def test_a_worker_that_cannot_answer(tmp_path: Path, does: str, reason: str) -> None:
    with pytest.raises(RuntimeError, match=f"a worker cannot answer .*{reason}"):
        run(replace(stub_job(tmp_path, count=4), engine=Stub(does)))


def test_a_row_that_kills_its_worker_does_not_hold_up_the_job_for_ever(tmp_path: Path) -> None:
    job = stub_job(tmp_path, count=4)
    with pytest.raises(RuntimeError, match="no row was answered for 10 seconds"):
        run(replace(job, engine=Stub("die"), patience=10))
    assert run(job).good == 4


def test_a_table_of_a_stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "root"
    root.mkdir()
    for name, side in {"a": 8, "large": 50}.items():
        Image.new("RGB", (side, side)).save(root / f"{name}.png")
    os.mkfifo(root / "pipe.png")
    rows = [json.dumps({"image": name}) for name in ("a.png", "pipe.png", "/etc/passwd", "large.png")]
    (root / "t.jsonl").write_text("\n".join([*rows, "[" * 200_000]))
    monkeypatch.chdir(tmp_path)
    job = Job(str(root / "t.jsonl"), tmp_path / "out", Stub(), "what?", root="root", max_pixels=2000)
    summary = run(job)
    assert (summary.good, summary.bad) == (1, 4)
    reasons = [str(row["error"]) for row in rows_of(job.output)[1:]]
    wanted = ("it is not a file", "it is not below", "accepted are at most 2,000 pixels", "no JSON object")
    assert all(each in reason for each, reason in zip(wanted, reasons, strict=True)), reasons
    with pytest.raises(ValueError, match="root nowhere is no folder; accepted is one of this machine"):
        run(replace(job, root="nowhere"))
    with pytest.raises(ValueError, match="max_pixels"):  # rows that were too large would stay as they are
        run(replace(job, max_pixels=3000))


def test_more_workers_than_there_is_room_for(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="3 workers need 4 CPUs; Ray has 3 CPUs"):
        run(replace(stub_job(tmp_path, count=12), actors=3))


def test_a_server_is_asked(tmp_path: Path) -> None:
    with serving(StandIn({128: [400] * 99})) as server:
        job = replace(stub_job(tmp_path, count=12), engine=Server(server.url, "llava"))
        summary = run(job)
    rows = rows_of(job.output)
    sizes = {i: picture for i, (picture, _) in enumerate(scenes(12))}
    assert summary.visual_tokens == 0 and summary.rows == 12 == len(rows) and len(sizes) == 12
    assert all((row["answer"] is None) == (row["error"] is not None) for row in rows)
    assert all("what?" in row["answer"] for row in rows if row["answer"])
    assert all("the server says 400" in row["error"] for row in rows if row["error"])
    assert summary.good == sum(row["error"] is None for row in rows) > 0


def test_the_reason_where_ray_is_not_installed() -> None:
    code = "import sys; sys.modules['ray'] = None; import gprune.batch"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "pip install 'gprune[ray]'" in done.stderr and ray.is_initialized()
