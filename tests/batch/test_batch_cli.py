"""`gprune batch` as it is called: killed, out of room, gone on with; wrong input."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rayenv import NEW_TOKENS, QUESTION, answer_one_by_one, rows_of, scenes, write_folder

COUNT, BAD = 160, (7, 77, 150)


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "gprune", "batch", *map(str, arguments)]


def call(*arguments: object) -> subprocess.CompletedProcess[str]:
    wide = {**os.environ, "COLUMNS": "160"}
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=240, env=wide)


def wait_for(done: Callable[[], object], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 200
    while not done():
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        time.sleep(0.02)


def test_killed_then_out_of_room_then_finished(tmp_path: Path) -> None:
    """Every row is there exactly once, and as a plain loop answers it."""
    folder, out = write_folder(tmp_path / "photos", COUNT, BAD), tmp_path / "out.parquet"
    job = (folder, "-o", out, "--question", QUESTION, "--keep", "0.4", "--max-new-tokens", NEW_TOKENS)
    job = (*job, "--batch-size", 4, "--part-rows", 8)
    parts: Callable[[], list[Path]] = lambda: sorted(out.glob("part-*.parquet"))  # noqa: E731

    with subprocess.Popen(command(*job), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as killed:
        wait_for(lambda: len(parts()) >= 2, killed)
        killed.send_signal(signal.SIGKILL)
        killed.communicate()
    first = {part: part.read_bytes() for part in parts()}
    before = len(rows_of(out))
    assert 8 <= before < COUNT

    with subprocess.Popen(command(*job), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as full:
        wait_for(lambda: len(parts()) >= len(first) + 2, full)
        # No file of this process can grow any more, as on a full disk.
        resource.prlimit(full.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        stdout, stderr = full.communicate(timeout=100)
    assert full.returncode == 1 and "rows/s" not in stdout
    [line] = [line for line in stderr.splitlines() if line.startswith("gprune: ")]
    assert "cannot be written" in line and "are intact" in line
    second = {part: part.read_bytes() for part in parts()}
    assert first.items() < second.items()
    between = len(rows_of(out))
    assert before < between < COUNT

    done = call(*job)
    assert done.returncode == 0, done.stderr
    for word in ("rows/s", "good", f" {COUNT - len(BAD)} ", f" {between} ", "->", "The first error: "):
        assert word in done.stdout
    assert f"{COUNT}/{COUNT}" in done.stderr and "% of visual tokens saved" in done.stderr
    assert "Traceback" not in done.stderr
    once_more = call(*job, "--json")
    summary = json.loads(once_more.stdout)
    assert (once_more.returncode, summary["good"], summary["bad"]) == (0, COUNT - len(BAD), len(BAD))
    assert summary["rows"] == summary["before"] == COUNT
    assert second.items() < {part: part.read_bytes() for part in parts()}.items()
    rows = {row["id"]: row for row in rows_of(out)}
    assert len(rows) == len(rows_of(out)) == COUNT
    names = [f"{('a', 'b/c')[i % 2]}/{i:03d}.png" for i in range(COUNT)]
    good = [i for i in range(COUNT) if i not in BAD]
    expected = answer_one_by_one([(scenes(COUNT)[i][0], QUESTION) for i in good], 0.4)
    assert [rows[names[i]]["answer"] for i in good] == [each[0] for each in expected]
    assert all(rows[names[i]]["error"] for i in BAD)
    assert not [path for path in out.iterdir() if path.suffix == ".tmp"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("nowhere", "-o", "out"), "nowhere does not exist"),
        (("photos", "-o", "out"), "bring no question"),
        (("photos", "-o", "out", "--question", " "), "the question is empty"),
        (("photos", "-o", "photos", "--question", "?"), "folder with other files"),
        (("photos", "-o", "/proc/out", "--question", "?"), "cannot be made or written"),
        (("photos", "-o", "out", "--question", "?", "--keep", "0.3,0.5"), "are 2 jobs"),
        (("photos", "-o", "out", "--question", "?", "--keep", "1.5"), "keep=1.5 is not a ratio"),
        (("photos", "-o", "out", "--question", "?", "--method", "magic"), "method 'magic' is unknown"),
        (("photos", "-o", "out", "--question", "?", "--model", "./none"), "model ./none cannot be loaded"),
        (("photos", "-o", "out", "--question", "?", "--server", "http://127.0.0.1:9/v1"), "does not list its models"),
        (("photos", "-o", "out", "--question", "?", "--server", "http://x/v1", "--method", "tome"), "cannot be chosen"),
        (("photos", "-o", "out", "--question", "?", "--root", "nowhere"), "root nowhere is no folder"),
        (("photos", "-o", "out", "--question", "?", "--address", "127.0.0.1:9"), "no Ray cluster at 127.0.0.1:9"),
        (("photos", "-o", "out", "--question", "?", "--address", "local"), "no Ray cluster at local"),
        (("photos", "-o", "out", "--question", "?", "--address", "ray://x:1"), "no Ray cluster at ray://x:1"),
    ],
)
def test_wrong_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], reason: str) -> None:
    from gprune.cli import main

    write_folder(tmp_path / "photos", 2)
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    said: list[str] = []
    monkeypatch.setattr("gprune.cli.say", lambda message: said.append(str(message)))
    with pytest.raises(SystemExit) as exit:
        main(["batch", *arguments])
    assert exit.value.code == 2 and len(said) == 1 and reason in said[0]
    assert sorted(tmp_path.rglob("*")) == before


def test_other_settings_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gprune.batch.engine import ANSWERED
    from gprune.batch.job import Job
    from gprune.batch.parts import opened
    from gprune.batch.process import InProcess
    from gprune.cli import main

    folder, out = write_folder(tmp_path / "photos", 2), tmp_path / "out"
    job = Job(str(folder), out, InProcess(keep=0.5), "?")
    with opened(out, job.settings, size=1) as parts:
        parts.add(ANSWERED.empty_table().from_pylist([{"id": "a/000.png", "question": "?"}], schema=ANSWERED))
    said: list[str] = []
    monkeypatch.setattr("gprune.cli.say", lambda message: said.append(str(message)))
    with pytest.raises(SystemExit) as exit:
        main(["batch", str(folder), "-o", str(out), "--question", "?", "--keep", "0.3"])
    assert exit.value.code == 2 and "made with keep=0.5, wanted is 0.3" in said[0]
