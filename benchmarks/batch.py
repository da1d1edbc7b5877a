"""How many pictures a second does a batch job answer, and is every row there once after it was killed?

Writes rendered scenes with a question each, some of them damaged, and answers them with the model in the package: by a
plain loop, by `gprune batch` with one worker and with two, and by a job that is killed without warning in the middle
and called again.

    python benchmarks/batch.py
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

from gprune.batch import InProcess
from gprune.evaluate.cells import versions
from gprune.images import open_image
from gprune.scenes.benchmark import samples

COMMAND = "python benchmarks/batch.py"
RESULTS = Path(__file__).parent / "results"

PICTURES = 1000
DAMAGED = range(100, PICTURES, 200)
KEEP, NEW_TOKENS, BATCH, PART = 0.3, 8, 8, 50


@dataclass(frozen=True)
class Row:
    """One way to answer all pictures.

    Args:
        run: what was done.
        done: rows answered by it; a killed job's are those in finished parts.
        before: rows that earlier runs had finished.
        seconds: from start to end.
        start: seconds of these until the first rows were answered.
        rate: rows a second after that.
    """

    run: str
    done: int
    before: int
    seconds: float
    start: float | None
    rate: float | None


def write(folder: Path) -> Path:
    """Pictures, and a JSONL file of their questions."""
    lines = []
    for example in samples("test", PICTURES):
        path = folder / f"{example.index:04d}.png"
        example.picture.save(path)
        if example.index in DAMAGED:
            path.write_bytes(path.read_bytes()[:-200])
        lines.append(json.dumps({"image": path.name, "question": example.question.question, "id": path.stem}))
    table = folder / "questions.jsonl"
    table.write_text("\n".join(lines) + "\n")
    return table


def plain(table: Path) -> tuple[Row, dict[str, str]]:
    """Batches one after the other in this process, damaged pictures left out; and the answers by id."""
    started = time.perf_counter()
    rows = [json.loads(line) for line in table.read_text().splitlines()]
    good = [row for i, row in enumerate(rows) if i not in DAMAGED]
    ask = InProcess("embedded", "gprune", KEEP, max_new_tokens=NEW_TOKENS).start()
    ready = time.perf_counter() - started
    answers = {}
    for i in range(0, len(good), BATCH):
        batch = good[i : i + BATCH]
        given = ask([(open_image(table.parent / row["image"]), row["question"]) for row in batch])
        answers |= {row["id"]: answer.text for row, answer in zip(batch, given, strict=True)}
    seconds = time.perf_counter() - started
    return Row("plain loop", len(good), 0, seconds, ready, len(good) / (seconds - ready)), answers


def command(table: Path, output: Path, actors: int) -> list[str]:
    """The job as a user calls it."""
    options = f"--method gprune --keep {KEEP} --max-new-tokens {NEW_TOKENS} --batch-size {BATCH}"
    rows = f"--part-rows {PART} --id-column id --json"
    program = [sys.executable, "-m", "gprune", "batch", str(table), "-o", str(output), "--actors", str(actors)]
    return [*program, *options.split(), *rows.split()]


def finish(name: str, table: Path, output: Path, actors: int) -> Row:
    """Run a job to its end."""
    started = time.perf_counter()
    done = subprocess.run(command(table, output, actors), stdout=subprocess.PIPE, check=True)
    seconds = time.perf_counter() - started
    summary = json.loads(done.stdout)
    start = summary["start_seconds"] + seconds - summary["seconds"]  # with that of Python
    answered = summary["rows"] - summary["before"]
    return Row(name, answered, summary["before"], seconds, start, answered / (seconds - start))


def kill(name: str, table: Path, output: Path, actors: int) -> Row:
    """Run a job until half of its parts are there, and kill it as the kernel would."""
    started = time.perf_counter()
    with subprocess.Popen(command(table, output, actors), stdout=subprocess.DEVNULL) as job:
        while len(list(output.glob("part-*"))) < PICTURES // PART // 2:
            if job.poll() is not None:
                raise RuntimeError("the job ended before it could be killed")
            time.sleep(0.01)
        os.kill(job.pid, signal.SIGKILL)
    return Row(name, pq.read_table(output).num_rows, 0, time.perf_counter() - started, None, None)


def check(output: Path, answers: dict[str, str]) -> dict[str, int]:
    """Rows, ids, errors, and answers that are not those of the plain loop, in the output of a job."""
    rows = pq.read_table(output).to_pylist()
    return {
        "rows": len(rows),
        "ids": len({row["id"] for row in rows}),
        "errors": sum(row["error"] is not None for row in rows),
        "other answers": sum(row["answer"] != answers.get(row["id"]) for row in rows),
    }


def markdown(rows: list[Row], checks: dict[str, dict[str, int]], about: dict[str, Any]) -> str:
    """The table of the page, and what its rows were checked for."""

    def number(value: float | None) -> str:
        return "—" if value is None else f"{value:.1f}"

    lines = [
        f"{PICTURES} rendered scenes with a question each, {len(DAMAGED)} of them damaged; {about['model']} model, "
        f"{about['method']}, {KEEP:.0%} kept, batches of {BATCH}, parts of {PART} rows.",
        "",
        "| run | rows answered | finished before | seconds | to the first row | rows/s after it |",
        "|---|---|---|---|---|---|",
        *(
            f"| {row.run} | {row.done} | {row.before} | {row.seconds:.1f} | {number(row.start)} | {number(row.rate)} |"
            for row in rows
        ),
        "",
        "| output of | rows | ids | errors | answers other than the plain loop's |",
        "|---|---|---|---|---|",
        *(f"| {name} | {' | '.join(map(str, found.values()))} |" for name, found in checks.items()),
        "",
        f"On {about['device']}; {', '.join(f'{name} {about[name]}' for name in ('gprune', 'ray', 'torch', 'python'))}. "
        f"The plain loop has {about['threads']} threads. Written by `{COMMAND}`.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print, and write the results."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "scenes").mkdir()
        table = write(folder / "scenes")
        loop, answers = plain(table)
        rows = [
            loop,
            finish("one worker", table, folder / "one", 1),
            finish("two workers", table, folder / "two", 2),
            kill("two workers, killed", table, folder / "killed", 2),
            finish("called again", table, folder / "killed", 2),
        ]
        checks = {name: check(folder / name, answers) for name in ("one", "two", "killed")}
    about = {
        "command": COMMAND,
        "model": "embedded",
        "method": "gprune",
        "threads": torch.get_num_threads(),
        **versions(("gprune", "ray", "torch", "transformers", "pyarrow")),
    }
    content = {"about": about, "rows": [asdict(row) for row in rows], "checks": checks}
    (RESULTS / "batch.json").write_text(json.dumps(content, indent=1) + "\n")
    text = markdown(rows, checks, about)
    (RESULTS / "batch.md").write_text(text)
    print(text, end="")


if __name__ == "__main__":
    main()
