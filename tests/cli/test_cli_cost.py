"""`gprune cost`: what the cost model says, as rows and as a table."""

from __future__ import annotations

import re
from pathlib import Path

from conftest import Run

from gprune import GPrune
from gprune.cost import cost
from gprune.scenes.model import build_config, embedded_path

KEYS = [
    "method",
    "keep",
    "visual_tokens",
    "kept_tokens",
    "prompt_tokens",
    "flops",
    "flops_vision",
    "flops_projector",
    "flops_selection",
    "flops_prefill",
    "flops_decode_step",
    "macs",
    "kv_bytes",
]


def test_rows_are_those_of_the_cost_model(run: Run, nothing_loads: None) -> None:
    sizes = ("--image-size", "640x480, 100x300", "--text-tokens", "20")
    result = run("cost", "--model", "embedded", *sizes, "--keep", "0.5,40", "--method", "gprune:iterations=2", "--json")
    assert (result.code, result.err) == (0, "")
    assert [list(row) for row in result.rows] == [KEYS] * 3
    runs = [(1.0, "none", 1.0), *((GPrune(k, iterations=2), "gprune:iterations=2", k) for k in (0.5, 40))]
    for row, (keep, method, budget) in zip(result.rows, runs, strict=True):
        spent = cost(build_config(), [(480, 640), (300, 100)], 20, keep)  # height first
        assert (row["method"], row["keep"]) == (method, budget)
        assert (row["visual_tokens"], row["kept_tokens"]) == (spent.visual_tokens, spent.kept_tokens)
        assert (row["prompt_tokens"], row["flops"], row["macs"]) == (spent.prompt_tokens, spent.total, spent.macs)
        assert (row["flops_decode_step"], row["kv_bytes"]) == (spent.decode_flops, spent.kv_bytes)
        assert {key.removeprefix("flops_"): row[key] for key in KEYS[6:10]} == spent.flops


def test_table_of_the_model_of_the_paper(run: Run, nothing_loads: None) -> None:
    result = run("cost", "--keep", "0.3")
    assert (result.code, result.err) == (0, "")
    header, *lines = result.out.splitlines()[:3]
    assert [line.split()[0] for line in (header, *lines)] == ["method", "none", "auto"]
    assert "100.0%" in lines[0]


def test_what_cannot_be_counted_is_left_out(run: Run, nothing_loads: None) -> None:
    result = run("cost", "--model", "embedded", "--method", "gprune,fastv", "--keep", "0.3", "--json")
    assert (result.code, [row["method"] for row in result.rows]) == (0, ["none", "gprune"])
    assert result.err.startswith("gprune: left out, fastv: FastV acts inside the vision tower or the LLM")
    alone = run("cost", "--model", "embedded", "--method", "fastv", "--keep", "0.3", "--json")
    assert (alone.code, alone.out) == (2, "") and "FastV acts inside" in alone.err


def test_the_names_that_are_said_to_be_accepted_are(run: Run, nothing_loads: None) -> None:
    refused = run("cost", "--model", "no/such-model")
    assert refused.code == 2
    names = re.search(r"accepted are (.*?), and the hub id", refused.err)
    assert names is not None and "llava-next-8b" in names[1]
    for name in names[1].split(", "):
        cost(name if name != "embedded" else build_config(), [(64, 64)], 8)


def test_a_size_is_written_with_any_cross(run: Run, nothing_loads: None) -> None:
    small, capital, sign = (
        run("cost", "--model", "embedded", "--image-size", f"160{cross}64", "--keep", "0.3", "--json").out
        for cross in "xX×"
    )
    assert small == capital == sign


def test_config_of_a_folder(run: Run, nothing_loads: None, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((embedded_path() / "config.json").read_bytes())
    folder, embedded = (run("cost", "--model", name, "--keep", "0.3", "--json").rows for name in (tmp_path, "embedded"))
    assert folder == embedded
