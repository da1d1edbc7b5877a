"""How fast is G-Prune's ranking beside the released form of the algorithm, and beside the bare product of all pairs?

Times, for one to 32 views of N tokens of width d: the released form (a softmax, and a power of the matrix; the
reference of the tests), `gprune.graph.rank_views`, and the product X X^T alone, interleaved. Memory is what the
call needs at its peak beyond its input. Combinations that would take too long or too much memory are left out.

    python benchmarks/kernels.py
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gprune.evaluate.cells import versions
from gprune.graph import rank_views

COMMAND = "python benchmarks/kernels.py"
RESULTS = Path(__file__).parent / "results"

COUNTS = (576, 2304, 2880, 8192, 16384, 32768, 131072)
WIDTHS = (576, 1024, 4096)
BATCHES = (1, 8, 32)
LARGEST_OF_A_BATCH = 2880
"""Tokens of a LLaVA-NeXT image; larger views, as of a video, come alone."""
CLUSTERS = 64
"""Directions that the tokens are scattered about: one in 64 pairs is an edge."""
REPEATS = 5
PATIENCE = {"cpu": 20.0, "cuda": 1.0}
"""Seconds that a call may take by its number of operations; those above are left out."""
ROOM = 0.4
"""Share of the machine's memory that a call may take."""

Form = Callable[[Tensor, int, int], Any]
"""(features [batch * N, d], batch, N) -> anything."""


@dataclass(frozen=True)
class Row:
    """One form at one size: seconds over the repeats, bytes, and 2 N^2 d operations over time and GEMM rate."""

    form: str
    tokens: int
    width: int
    batch: int
    median: float
    fastest: float
    slowest: float
    peak_bytes: int
    gemm_share: float


def released(features: Tensor, batch: int, count: int) -> Tensor:
    """As the authors' release, which knows one view at a time: a softmax over the edges, and a power of the matrix."""
    norms = features.norm(dim=-1)
    cosine = (features @ features.mT) / (norms[:, None] * norms)
    edges = cosine.fill_diagonal_(1) >= 0.5
    flow = torch.linalg.matrix_power(cosine.div(0.03).masked_fill(~edges, -torch.inf).softmax(-1), 5)
    return (norms @ flow) / edges.sum(-1)


def ours(features: Tensor, batch: int, count: int) -> Tensor:
    """One call for all views."""
    return rank_views(features, [count] * batch)[0]


def product(features: Tensor, batch: int, count: int) -> None:
    """Each view with itself; what comes out is let go."""
    for view in features.view(batch, count, -1):
        view @ view.T


FORMS: dict[str, Form] = {"released form": released, "gprune": ours, "X X^T": product}


def operations(form: str, count: int, width: int) -> float:
    """Floating-point operations of a view: the product, half of it, or with three of N x N matrices for the power."""
    return {"released form": 2.0 * (width + 3 * count), "gprune": width, "X X^T": 2.0 * width}[form] * count * count


def memory(form: str, count: int) -> float:
    """Bytes of the matrices that a form keeps: the released one has five at its peak."""
    return {"released form": 5, "gprune": 0, "X X^T": 1}[form] * 4.0 * count * count


def clustered_on(device: str, count: int, width: int) -> Tensor:
    """Tokens of `CLUSTERS` regions: [count, width], float32 on a CPU, bfloat16 on a GPU."""
    generator = torch.Generator(device).manual_seed(0)
    centres = torch.randn(CLUSTERS, width, generator=generator, device=device)
    members = torch.randint(CLUSTERS, (count,), generator=generator, device=device)
    noise = torch.randn(count, width, generator=generator, device=device)
    return noise.mul_(0.6).add_(centres[members]).to(torch.float32 if device == "cpu" else torch.bfloat16)


def seconds(call: Callable[[], object], device: str) -> float:
    """How long a call takes, by the device's own clock."""
    if device == "cpu":
        started = time.perf_counter()
        call()
        return time.perf_counter() - started
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000


def peak(call: Callable[[], object], device: str) -> int:
    """Bytes that a call needs at its peak beyond what is there before: by PyTorch on a GPU, by Linux on a CPU."""
    if device != "cpu":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5")  # the highest memory so far is forgotten
    before = _resident("VmRSS")
    call()
    return max(0, _resident("VmHWM") - before)


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])


def gemm_rate(device: str) -> float:
    """Floating-point operations per second of a large product in the dtype of the features: the best of five."""
    size = 4096 if device == "cpu" else 8192
    square = clustered_on(device, size, size)
    return 2 * size**3 / min(seconds(lambda: square @ square, device) for _ in range(REPEATS))


def measure(device: str, rate: float) -> list[Row]:
    """Every form at every size that time and memory allow."""
    if device == "cpu":
        room = ROOM * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    else:
        room = ROOM * torch.cuda.get_device_properties(0).total_memory
    rows = []
    for width in WIDTHS:
        for count in COUNTS:
            for batch in BATCHES:
                forms = {
                    name: form
                    for name, form in FORMS.items()
                    if (batch == 1 or name != "released form")
                    and batch * operations(name, count, width) < PATIENCE[device] * rate
                    and memory(name, count) + 4.0 * batch * count * width < room
                }
                if "gprune" in forms and (batch == 1 or count <= LARGEST_OF_A_BATCH):
                    rows += compare(forms, batch, count, width, device, rate)
                    print(*(f"{row.form} {row.median:.4f} s" for row in rows[-len(forms) :]), sep=", ", file=sys.stderr)
    return rows


def compare(forms: dict[str, Form], batch: int, count: int, width: int, device: str, rate: float) -> list[Row]:
    """The forms in turn, again and again, on the same features; a call of more than two seconds is timed once."""
    features = clustered_on(device, batch * count, width)
    print(f"N={count} d={width} batch={batch}: ", end="", file=sys.stderr, flush=True)
    needs = {name: peak(lambda form=form: form(features, batch, count), device) for name, form in forms.items()}  # type: ignore[misc]
    times: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(REPEATS):
        for name, form in forms.items():
            if not times[name] or times[name][0] < 2:
                times[name].append(seconds(lambda form=form: form(features, batch, count), device))  # type: ignore[misc]
    return [
        Row(
            name,
            count,
            width,
            batch,
            statistics.median(taken),
            min(taken),
            max(taken),
            needs[name],
            2.0 * batch * count * count * width / statistics.median(taken) / rate,
        )
        for name, taken in times.items()
    ]


def find(rows: list[Row], form: str, tokens: int, width: int, batch: int = 1) -> Row | None:
    """The row of a form at a size, if it was measured."""
    wanted = (form, tokens, width, batch)
    return next((row for row in rows if (row.form, row.tokens, row.width, row.batch) == wanted), None)


def ratio(rows: list[Row], one: tuple[str, int, int], other: tuple[str, int, int]) -> str:
    """The median of one row over that of another, (form, tokens, width); a dash if one was left out."""
    above, below = find(rows, *one), find(rows, *other)
    return f"{above.median / below.median:.2f}" if above and below else "—"


def markdown(rows: list[Row], rate: float, machine: dict[str, str]) -> str:
    """The ratios that matter, and every row."""
    large = find(rows, "gprune", 32768, 1024)
    lines = [
        f"`{COMMAND}`, {', '.join(f'{name} {value}' for name, value in machine.items())}. "
        f"Measured rate of a large product: {rate / 1e9:,.0f} GFLOP/s.",
        "",
        "| what | measured |",
        "|---|---|",
        f"| N = 2304, d = 4096: gprune / X X^T | {ratio(rows, ('gprune', 2304, 4096), ('X X^T', 2304, 4096))} |",
        f"| N = 2304, d = 4096: released form / gprune "
        f"| {ratio(rows, ('released form', 2304, 4096), ('gprune', 2304, 4096))} |",
        f"| N = 32768, d = 1024: peak memory beyond the input; all pairs in float32 are 4.3 GB "
        f"| {f'{large.peak_bytes / 1e9:.2f} GB' if large else '—'} |",
        f"| d = 1024: time at N = 16384 / at 8192 | {ratio(rows, ('gprune', 16384, 1024), ('gprune', 8192, 1024))} |",
        f"| d = 1024: time at N = 32768 / at 16384 | {ratio(rows, ('gprune', 32768, 1024), ('gprune', 16384, 1024))} |",
        "",
        "Share: the operations of the whole product X X^T in this time, over the measured rate; half of them suffice.",
        "",
        "| N | d | batch | form | median s | fastest to slowest | peak memory | share |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.tokens} | {row.width} | {row.batch} | {row.form} | {row.median:.4f} | {row.fastest:.4f} to "
        f"{row.slowest:.4f} | {row.peak_bytes / 2**20:,.0f} MiB | {row.gemm_share:.0%} |"
        for row in rows
    ]
    return "\n".join([*lines, ""])


def record(name: str, content: dict[str, Any], text: str) -> None:
    """Write what was measured to results/NAME.json, and the tables of it to results/NAME.md; print them."""
    stem = RESULTS / name
    stem.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")
    stem.with_suffix(".md").write_text(text)
    print(text)


def main() -> None:
    """Measure on the GPU if there is one, and write results/kernels_cpu or results/kernels_cuda."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    machine = {**versions(("gprune", "torch", "triton")), "threads": str(torch.get_num_threads())}
    if device == "cpu":
        machine["processor"] = platform.processor() or platform.machine()
    rate = gemm_rate(device)
    rows = measure(device, rate)
    content = {"machine": machine, "gemm_rate": rate, "rows": [asdict(row) for row in rows]}
    record(f"kernels_{device}", content, markdown(rows, rate, machine))


if __name__ == "__main__":
    main()
