"""A job on a Ray cluster of two machines, both of them here, which lets in who has its token."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from rayenv import NEW_TOKENS, QUESTION, answer_one_by_one, rows_of, scenes, write_folder

COUNT, BAD = 40, (7, 33)
SECONDS = 200


@dataclass(frozen=True)
class Cluster:
    """Its address, and the environment of those who belong to it."""

    address: str
    environment: dict[str, str]


@pytest.fixture(scope="module")
def machines() -> Iterator[Cluster]:
    """Two machines with two CPUs each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    ray = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a" * 64, "RAY_USAGE_STATS_ENABLED": "0"}
    python = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])  # has `witnessed`
    environment = {**os.environ, **ray, "PYTHONPATH": python, "COLUMNS": "160"}
    # The names of sockets below this folder may have 107 letters, which pytest's own folders do not leave.
    folder = Path(tempfile.mkdtemp(prefix="ray"))
    head = ["--head", "--port", address.split(":")[1], "--include-dashboard", "false"]
    try:
        with ExitStack() as stack:
            for name, role in (("first", head), ("second", ["--address", address])):
                stack.enter_context(_machine(folder / name, role, environment))
            yield Cluster(address, environment)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _machine(folder: Path, role: list[str], environment: dict[str, str]) -> Iterator[None]:
    folder.mkdir()
    command = [str(Path(sys.executable).with_name("ray")), "start", *role, "--block", "--num-cpus", "2"]
    command += ["--temp-dir", str(folder), "--object-store-memory", str(10**8)]
    log = folder / "log"
    with (
        log.open("w") as output,
        subprocess.Popen(command, stdout=output, stderr=output, env=environment, process_group=0) as process,
    ):
        try:
            wait_for(lambda: "Ray runtime started" in log.read_text(), process, log)
            yield
        finally:
            # With all that it has started. Asked to end, the first machine would wait half a minute for its work to go.
            os.killpg(process.pid, signal.SIGKILL)


def wait_for(done: Callable[[], object], process: subprocess.Popen[str] | subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + SECONDS
    while not done():
        assert process.poll() is None and time.monotonic() < end, log.read_text()
        time.sleep(0.01)


def command(folder: Path, out: Path, address: str) -> list[str]:
    job = ["batch", str(folder), "-o", str(out), "--question", QUESTION, "--keep", "0.4", "--batch-size", "2"]
    job += ["--max-new-tokens", str(NEW_TOKENS), "--part-rows", "2", "--actors", "2", "--address", address]
    return [sys.executable, "-m", "gprune", *job]


GO_ON = """
import json, sys
from pathlib import Path
from gprune.batch import Job, run
from witnessed import Witnessed
folder, out, question, tokens, witness = sys.argv[1:]
engine = Witnessed(keep=0.4, max_new_tokens=int(tokens), folder=witness)
summary = run(Job(folder, Path(out), engine, question, actors=2, batch_size=2, address="auto"))
print(json.dumps([summary.rows, summary.good, summary.bad, summary.before]))
"""


def test_killed_then_finished_by_both_machines(machines: Cluster, tmp_path: Path) -> None:
    folder, out = write_folder(tmp_path / "photos", COUNT, BAD), tmp_path / "out.parquet"
    log, witness = tmp_path / "log", tmp_path / "witness"
    with (
        log.open("w") as output,
        subprocess.Popen(
            command(folder, out, machines.address), stdout=output, stderr=output, env=machines.environment
        ) as killed,
    ):
        wait_for(lambda: len(list(out.glob("part-*"))) >= 2, killed, log)
        killed.send_signal(signal.SIGKILL)
    before = rows_of(out)
    assert 4 <= len(before) < COUNT

    witness.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", GO_ON, str(folder), str(out), QUESTION, str(NEW_TOKENS), str(witness)],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        # With more than one Ray on this machine, this is the one that "auto" finds.
        env={**machines.environment, "RAY_ADDRESS": machines.address},
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [COUNT, COUNT - len(BAD), len(BAD), len(before)]
    assert len([path for path in witness.iterdir() if "-" not in path.name]) == 2, "one machine did all"

    rows = {row["id"]: row for row in rows_of(out)}
    assert len(rows) == len(rows_of(out)) == COUNT
    names = [f"{('a', 'b/c')[i % 2]}/{i:03d}.png" for i in range(COUNT)]
    good = [i for i in range(COUNT) if i not in BAD]
    expected = answer_one_by_one([(scenes(COUNT)[i][0], QUESTION) for i in good], 0.4)
    assert [tuple(rows[names[i]][n] for n in ("answer", "visual_tokens", "kept_tokens")) for i in good] == expected
    assert all(rows[names[i]]["error"] for i in BAD)


def test_another_token(machines: Cluster, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "photos", 2)
    done = subprocess.run(
        command(folder, tmp_path / "out", machines.address),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        env={**machines.environment, "RAY_AUTH_TOKEN": "b" * 64},
    )
    [line] = [line for line in done.stderr.splitlines() if line.startswith("gprune: ")]
    assert done.returncode == 2 and machines.address in line
    assert "token is missing or incorrect" in line and "RAY_AUTH_MODE=token" in line
    assert not list((tmp_path / "out").glob("part-*"))
