"""Does a batch job of many rows stay as small as one of few, and is every row there once after it was killed twice?

Asks about 100,000 small pictures with an engine that answers at once, so that what is seen is the job: rows read, sent
to a worker, and written. It is killed without warning at a third of the rows and at two thirds, and called again.

    python benchmarks/batch_rows.py
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import psutil
import pyarrow.parquet as pq
from PIL import Image

from gprune.batch import Columns, Job, Progress, run
from gprune.batch.engine import Ask
from gprune.evaluate.answers import Response
from gprune.evaluate.cells import versions

COMMAND = "python benchmarks/batch_rows.py"
RESULTS = Path(__file__).parent / "results"

ROWS, PICTURES, STEP, BATCH = 100_000, 500, 10_000, 64
KILLED_AT = (ROWS // 3, 2 * ROWS // 3)


@dataclass(frozen=True)
class Sizes:
    """An engine that answers with the size of the picture."""

    on_gpu: ClassVar[bool] = False
    settings: ClassVar[dict[str, Any]] = {"engine": "sizes"}

    def check(self) -> None:
        """Nothing can be wrong."""

    def start(self) -> Ask:
        """Nothing to load."""

        def ask(asked: Sequence[tuple[Image.Image, str]]) -> list[Response]:
            return [Response(f"{picture.width}x{picture.height} {question}") for picture, question in asked]

        return ask


def write(folder: Path) -> Path:
    """Pictures, and a JSONL file with a row for each question about one of them."""
    for i in range(PICTURES):
        Image.effect_noise((48 + i % 32, 64), 64).save(folder / f"{i:03d}.png")
    table = folder / "questions.jsonl"
    with table.open("w") as file:
        for i in range(ROWS):
            row = {"image": f"{i % PICTURES:03d}.png", "question": f"how large is number {i}?", "id": f"row {i}"}
            file.write(json.dumps(row) + "\n")
    return table


def megabytes(processes: Sequence[psutil.Process]) -> float:
    """Memory that lies in the machine's for these alone, as far as they are there: USS, in MB."""
    used = 0
    for process in processes:
        try:
            used += process.memory_full_info().uss
        except psutil.Error:
            continue
    return used / 2**20


def work(table: Path, output: Path) -> None:
    """The job, which prints a JSON line at the start and whenever another 10,000 rows are done."""
    own = psutil.Process()
    seen = [-1]

    def note(state: Progress) -> None:
        if state.done // STEP == seen[0] and state.done != state.total:
            return
        seen[0] = state.done // STEP
        others = own.children(recursive=True)
        print(json.dumps({"done": state.done, "job": megabytes([own]), "others": megabytes(others)}), flush=True)

    run(Job(str(table), output, Sizes(), columns=Columns(id="id"), batch_size=BATCH), note)


def measured(table: Path, output: Path) -> list[dict[str, Any]]:
    """The lines of all runs, with what ended each."""
    lines: list[dict[str, Any]] = []
    for number, last in enumerate((*KILLED_AT, None), 1):
        started = time.perf_counter()
        with subprocess.Popen(
            [sys.executable, __file__, str(table), str(output)], stdout=subprocess.PIPE, text=True
        ) as job:
            assert job.stdout is not None
            for line in job.stdout:
                lines.append({"run": number, **json.loads(line), "seconds": time.perf_counter() - started})
                if last is not None and lines[-1]["done"] >= last:
                    os.kill(job.pid, signal.SIGKILL)
                    break
        if last is None and job.returncode:
            raise RuntimeError(f"the job ended with {job.returncode}")
    return lines


def check(output: Path) -> dict[str, int]:
    """What is in the output: rows, ids, and answers that are not the right one."""
    rows = pq.read_table(output)
    wrong = 0
    for id, question, answer in zip(*(rows[name].to_pylist() for name in ("id", "question", "answer")), strict=True):
        i = int(id.removeprefix("row "))
        asked = f"how large is number {i}?"
        wrong += question != asked or answer != f"{48 + i % PICTURES % 32}x64 {asked}"
    return {"rows": len(rows), "ids": len(set(rows["id"].to_pylist())), "wrong": wrong}


def markdown(lines: list[dict[str, Any]], found: dict[str, int], about: dict[str, Any]) -> str:
    """The table of the page."""
    return "\n".join(
        [
            f"{ROWS:,} rows about {PICTURES} small pictures, batches of {BATCH}, one worker; killed with `kill -9` "
            f"after {KILLED_AT[0]:,} and {KILLED_AT[1]:,} rows, and called again.",
            "",
            "| run | rows done | seconds | MB of the job | MB of Ray and its workers |",
            "|---|---|---|---|---|",
            *(
                f"| {line['run']} | {line['done']:,} | {line['seconds']:.0f} | {line['job']:.0f} "
                f"| {line['others']:.0f} |"
                for line in lines
            ),
            "",
            f"In the output: {found['rows']:,} rows, {found['ids']:,} ids, {found['wrong']} wrong answers.",
            "",
            f"On {about['device']}; gprune {about['gprune']}, ray {about['ray']}, python {about['python']}. Memory is "
            f"what processes have for themselves; what they share is in none. Written by `{COMMAND}`.",
            "",
        ]
    )


def main() -> None:
    """Measure, and write the results."""
    if len(sys.argv) == 3:
        work(Path(sys.argv[1]), Path(sys.argv[2]))
        return
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "answers"
        lines = measured(write(Path(folder)), output)
        found = check(output)
    about = versions(("gprune", "ray", "pyarrow"))
    RESULTS.joinpath("batch_rows.json").write_text(
        json.dumps({"about": about, "lines": lines, **found}, indent=1) + "\n"
    )
    RESULTS.joinpath("batch_rows.md").write_text(markdown(lines, found, about))
    print(markdown(lines, found, about))


if __name__ == "__main__":
    main()
