"""Rows and tables, from recorded laps."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gprune.cost import Cost
from gprune.evaluate.throughput import Lap, Speed, Workload
from gprune.evaluate.throughput_table import HEADINGS, rows, speed_tables

SETTING = Workload(batch_size=4, image_size=(480, 640), text_tokens=75, new_tokens=11)


def counted(kept: int, flops: int) -> Cost:
    return Cost(1000, kept, 75, {"prefill": flops}, 5, 2_000_000)


FULL = Speed(
    "none",
    1.0,
    SETTING,
    counted(1000, 8_000_000_000_000),
    [Lap(1.0, 3.0, 7_000_000_000), Lap(2.0, 4.0, 9_000_000_000), Lap(1.5, 8.0, 8_000_000_000)],
)
PRUNED = Speed("gprune", 0.3, SETTING, counted(300, 2_000_000_000_000), [Lap(0.5, 1.0, None), Lap(0.25, 1.0, None)])
FAILED = Speed("fastv", 0.3, SETTING, error="out of memory")


def test_medians_spreads_and_ratios() -> None:
    full, pruned, _ = rows([FULL, PRUNED, FAILED])
    expected: dict[str, Any] = {
        "method": "gprune",
        "keep": 0.3,
        "batch_size": 4,
        "image_size": "640x480",
        "visual_tokens": 1000,
        "kept_tokens": 300,
        "flops": 2_000_000_000_000,
        "flops_share": 0.25,
        "kv_bytes": 2_000_000,
        "samples_per_second": 4 / 1.0,
        "first_token_seconds": 0.375,
        "first_token_seconds_min": 0.25,
        "first_token_seconds_max": 0.5,
        # ten tokens are decoded after the first of each of four answers, in 0.5 and 0.75 s
        "decode_tokens_per_second": 40 / 0.625,
        "decode_tokens_per_second_min": 40 / 0.75,
        "decode_tokens_per_second_max": 40 / 0.5,
        "samples_speedup": 4.0,
        "first_token_speedup": 1.5 / 0.375,
        "ideal_speedup": 4.0,
        "of_ideal": 1.0,
        "decode_speedup": 2.0 / 0.625,
        "peak_bytes": None,
        "laps_first_seconds": [0.5, 0.25],
        "laps_seconds": [1.0, 1.0],
        "error": None,
    }
    assert {name: pruned[name] for name in expected} == expected
    assert (full["samples_per_second"], full["samples_per_second_min"], full["samples_per_second_max"]) == (
        1,
        0.5,
        4 / 3,
    )
    assert [full[f"{name}_speedup"] for name in ("samples", "first_token", "decode")] == [1.0] * 3
    assert full["peak_bytes"] == 9_000_000_000


def test_what_failed_has_no_numbers() -> None:
    failed = rows([FULL, FAILED])[1]
    known = {"method", "keep", "batch_size", "image_size", "text_tokens", "new_tokens", "error"}
    assert {name for name, value in failed.items() if value not in (None, [])} == known


def test_without_an_unpruned_model_in_the_same_setting_there_are_no_ratios() -> None:
    elsewhere = replace(FULL, setting=replace(SETTING, batch_size=1))
    for speeds in ([elsewhere, PRUNED], [replace(FULL, laps=[], cost=None, error="out of memory"), PRUNED]):
        row = rows(speeds)[1]
        assert [row[f"{name}_speedup"] for name in ("samples", "first_token", "decode")] == [None] * 3
        assert row["flops_share"] is row["ideal_speedup"] is row["of_ideal"] is None and row["samples_per_second"] == 4


def test_one_new_token_is_no_decoding() -> None:
    row = rows([replace(PRUNED, setting=replace(SETTING, new_tokens=1))])[0]
    assert row["decode_tokens_per_second"] is None and row["first_token_seconds"] == 0.375


def test_table_per_setting() -> None:
    small = replace(SETTING, batch_size=1, image_size=(336, 672))
    text = speed_tables(rows([FULL, PRUNED, FAILED, replace(FULL, setting=small)]))
    first, second = text.split("Batch of ")[1:]
    assert first.startswith("4, image of 640x480, visual tokens: 1,000, other tokens: 75, new tokens: 11.")
    assert second.startswith("1, image of 672x336")
    lines = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in first.splitlines() if "|" in line]
    assert lines[0] == list(HEADINGS) and {len(line) for line in lines} == {len(HEADINGS)}
    assert [" ".join(line) for line in lines[2:]] == [
        "none 1.0 1,000 1.00 (0.500–1.33) 1.00 1,500 (1,000–2,000) 1.00 1.00 1.00 20.0 (6.15–20.0) 1.00 9.00 2.00 8.00",
        "gprune 0.3 300 4.00 (4.00–4.00) 4.00 375 (250–500) 4.00 4.00 1.00 64.0 (53.3–80.0) 3.20 — 2.00 2.00",
        "fastv 0.3 — out of memory — out of memory — — — out of memory — — — —",
    ]


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.00012345, "0.123"), (0.0123, "12.3"), (99.96, "99,960"), (0.0009996, "1.00")]
)
def test_three_digits_without_exponent(seconds: float, shown: str) -> None:
    speed = replace(PRUNED, laps=[Lap(seconds, 2 * seconds, None)])
    assert f"| {shown} ({shown}–{shown}) |" in speed_tables(rows([speed]))


def test_the_docs_show_the_committed_results() -> None:
    root = Path(__file__).parents[2]
    recorded = json.loads((root / "benchmarks/results/throughput_cpu.json").read_text())["rows"]
    written = (root / "benchmarks/results/throughput_cpu.md").read_text()
    assert written.startswith(speed_tables(recorded))
    assert written in (root / "docs/throughput.md").read_text()
