"""`gprune eval`: cells, tables, stopping and going on, several processes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from lmmsenv import OFFLINE, answers, photos_folder  # noqa: F401  (a fixture; skips without lmms-eval)

from gprune.cli import main
from gprune.evaluate.cells import Cell, read_cells

ENVIRONMENT = {**os.environ, **OFFLINE}
METHODS = ("--method", "gprune,random", "--keep", "0.5")


@pytest.fixture
def wanted(photos: Path) -> tuple[str, ...]:
    tasks = ("--tasks", "photos,scenes", "--limit", "7", "--include-path", str(photos))
    return ("eval", *tasks, *METHODS, "--batch-size", "3")


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit:
        main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return int(exit.value.code or 0), out, err


def without_time(folder: Path) -> list[Cell]:
    """The cells in a folder, without what differs from run to run."""
    return [
        replace(cell, seconds=0.0, versions={}, errors=[error.partition(" at 0x")[0] for error in cell.errors])
        for cell in read_cells(folder / "cells")
    ]


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("", 0))
        return int(server.getsockname()[1])


@pytest.mark.timeout(600)
def test_stopped_and_called_again_and_in_several_processes(
    wanted: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    killed, together = tmp_path / "killed", tmp_path / "together"
    command = [sys.executable, "-m", "gprune", *wanted, "--log-samples", "-o", str(killed)]
    with subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        while len(list((killed / "cells").glob("*.json"))) < 2:
            assert process.poll() is None, process.stderr and process.stderr.read().decode()
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    finished = {path: path.stat().st_mtime_ns for path in (killed / "cells").glob("*.json")}
    assert 2 <= len(finished) < 6 and not (killed / "table.md").exists()

    code, out, err = call(capsys, *wanted, "--log-samples", "-o", killed)
    assert code == 0 and "6/6" in err
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert len(without_time(killed)) == 6
    assert out == (killed / "table.md").read_text()
    for row in ("| none | 1.0 |", "| gprune | 0.5 |", "| random | 0.5 |", "photos", "overall"):
        assert row in out

    launch = [str(Path(sys.executable).with_name("accelerate")), "launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--main_process_port", str(free_port()), "-m", "gprune", *wanted, "--log-samples", "-o", str(together)]
    result = subprocess.run(launch, env=ENVIRONMENT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout == (together / "table.md").read_text()
    assert without_time(together) == without_time(killed)
    samples = sorted(path.name for path in (killed / "samples").iterdir())
    assert len(samples) == 6
    for name in samples:
        numbers = [json.loads(line)["doc_id"] for line in (together / "samples" / name).read_text().splitlines()]
        assert numbers == [0, 2, 4, 6, 1, 3, 5]  # those of the first process, then those of the second
        assert answers(together / "samples" / name) == answers(killed / "samples" / name)


def test_what_is_finished_is_only_read(
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    few = ("eval", "--tasks", "photos", "--limit", "1", "--include-path", photos, "-o", tmp_path / "a")
    code, out, err = call(capsys, *few, "--method", "uniform,fastv", "--keep", "0.5,0.1")
    assert code == 0 and "left out, fastv: FastV(keep=0.1)" in err
    rows = [" ".join(line.split()[1:4]) for line in out.splitlines() if line.startswith("| ")][2:]
    assert rows == ["none | 1.0", "uniform | 0.5", "uniform | 0.1", "fastv | 0.5"]
    few = (*few, "--method", "uniform", "--keep", "0.5,0.1")

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("gprune.evaluate.harness.load", refuse)
    code, again, err = call(capsys, *few)
    assert (code, err) == (0, "")
    assert [line for line in again.splitlines() if line.startswith("| uniform")] == [
        line for line in out.splitlines() if line.startswith("| uniform")
    ]
    damaged = next((tmp_path / "a" / "cells").glob("*uniform*"))
    damaged.write_text("{")
    code, out, err = call(capsys, *few)
    assert (code, out) == (2, "") and f"{damaged.name} is no measured cell" in err
    assert damaged.read_text() == "{"


@pytest.mark.parametrize(
    "arguments, reason",
    [
        (("--tasks", "scenes", "--method", "grpune"), "method 'grpune' is unknown; methods are gprune"),
        (("--tasks", "scenes", "--method", "foreground"), "Foreground has no mask"),
        (("--tasks", "scenes", "--keep", "0"), "keep=0 keeps no token"),
        (("--tasks", "scenes", "--keep", "half"), "--keep half: 'half' is no budget"),
        (("--tasks", "scenes,photo_s"), "task 'photo_s' is unknown; close names are photos, "),
        (("--tasks", "scenes", "--method", "fastv", "--keep", "0.1"), "the smallest keep is 0.4"),
        (("--tasks", "scenes", "--model", "./no/such/model"), "model ./no/such/model cannot be loaded"),
    ],
)
def test_wrong_input(
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    reason: str,
) -> None:
    code, out, err = call(capsys, "eval", *arguments, "--include-path", photos, "-o", tmp_path / "out")
    assert (code, out) == (2, "")
    assert err.startswith("gprune: ") and err.count("\n") == 1 and reason in err
    assert not list((tmp_path / "out").glob("**/*.*"))


def test_an_output_that_is_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("mine")
    for output in (tmp_path / "file", tmp_path / "file" / "below"):
        code, out, err = call(capsys, "eval", "--tasks", "scenes", "-o", output)
        assert (code, out) == (2, "") and "give another name" in err
    assert (tmp_path / "file").read_text() == "mine"
