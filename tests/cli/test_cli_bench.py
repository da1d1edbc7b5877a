"""`gprune bench`: which measurements it makes of which model, what it writes, what it refuses; never how fast."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Run

from gprune.cost import cost
from gprune.evaluate.throughput_table import speed_tables
from gprune.families import architectures
from gprune.families.architectures import architecture
from gprune.scenes.model import build_config

QUICK = ("--repeats", 1, "--new-tokens", 2, "--text-tokens", 12, "--image-size", "64x48")


def tiny() -> Any:
    config: Any = architecture("llava-1.5-7b")
    narrow = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config.vision_config.update({**narrow, "image_size": 56})
    config.text_config.update({**narrow, "num_key_value_heads": 2, "head_dim": 8})
    return config


def test_every_method_ratio_and_setting_on_the_embedded_model(run: Run) -> None:
    options = ("--model", "embedded", "--method", "random,tome", "--keep", "0.5,0.3", "--batch-size", "1, 2")
    result = run("bench", *options, *QUICK, "-o", "speed.md", "--json")
    assert result.code == 0
    runs = [("none", 1.0), ("random", 0.5), ("random", 0.3), ("tome", 0.5), ("tome", 0.3)]
    found = [(row["batch_size"], row["method"], row["keep"]) for row in result.rows]
    assert found == [(batch, *run) for batch in (1, 2) for run in runs]
    for row in result.rows:
        assert (row["image_size"], row["text_tokens"], row["new_tokens"], row["error"]) == ("64x48", 12, 2, None)
        assert len(row["laps_seconds"]) == len(row["laps_first_seconds"]) == 1
    full, half = result.rows[0], result.rows[1]
    spent = [cost(build_config(), [(48, 64)], 12, keep) for keep in (1.0, 0.5)]
    assert [row["kept_tokens"] for row in (full, half)] == [each.kept_tokens for each in spent]
    assert half["flops_share"] == spent[1].total / spent[0].total
    assert half["ideal_speedup"] == pytest.approx(spent[0].total / spent[1].total)
    assert half["of_ideal"] == pytest.approx(half["first_token_speedup"] / half["ideal_speedup"])
    assert half["samples_speedup"] == pytest.approx(full["laps_seconds"][0] / half["laps_seconds"][0])
    written = json.loads(Path("speed.json").read_text())
    assert written["rows"] == result.rows and written["left_out"] == []
    about = written["about"]
    assert (about["model"], about["weights"], about["dtype"]) == ("embedded", "checkpoint", "float32")
    assert (about["parameters"], about["repeats"], about["torch"]) == (2_516_416, 1, torch.__version__)
    text = Path("speed.md").read_text()
    assert text.startswith(speed_tables(result.rows))
    assert "embedded, 2,516,416 parameters (checkpoint weights), float32" in text


def test_an_architecture_with_random_weights(run: Run, nothing_loads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(architectures.ARCHITECTURES, "tiny", tiny)
    options = ("--model", "tiny", "--method", "gprune", "--keep", "0.5", "--dtype", "bfloat16", "--attention", "eager")
    result = run("bench", *options, *QUICK, "-o", "speed")
    assert (result.code, "left out" in result.err) == (0, False)
    written = json.loads(Path("speed.json").read_text())
    about = written["about"]
    assert (about["weights"], about["dtype"], about["attention"]) == ("random", "bfloat16", "eager")
    assert [(row["visual_tokens"], row["kept_tokens"]) for row in written["rows"]] == [(16, 16), (16, 8)]
    assert result.out == Path("speed.md").read_text()


@pytest.mark.parametrize(("gpu", "name"), [(False, "llava-next-0.5b"), (True, "llava-next-8b")])
def test_the_default_is_what_the_machine_can_run(
    run: Run, nothing_loads: None, monkeypatch: pytest.MonkeyPatch, gpu: bool, name: str
) -> None:
    asked: list[Any] = []

    def stop(config: Any, *_: Any) -> None:
        asked.append(config.to_dict())
        raise RuntimeError("no further")

    monkeypatch.setattr("torch.cuda.is_available", lambda: gpu)
    monkeypatch.setattr("gprune.evaluate.noise.build_prompts", stop)
    assert run("bench").code == 1
    assert asked == [architecture(name).to_dict()]


@pytest.mark.parametrize(
    ("capabilities", "dtype"),
    [({"avx512_bf16": True}, "bfloat16"), ({"amx_bf16": True}, "bfloat16"), ({"avx2": True}, "float32")],
)
def test_an_architecture_on_a_cpu_is_in_the_dtype_that_it_multiplies(
    run: Run, monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], dtype: str
) -> None:
    monkeypatch.setitem(architectures.ARCHITECTURES, "tiny", tiny)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: capabilities, raising=False)
    assert run("bench", "--model", "tiny", "--method", "random", "--keep", "0.5", *QUICK, "-o", "speed").code == 0
    assert json.loads(Path("speed.json").read_text())["about"]["dtype"] == dtype


def test_left_out_methods_are_named_in_the_table(run: Run) -> None:
    result = run("bench", "--model", "embedded", "--method", "fastv,random", "--keep", "0.3", *QUICK)
    assert result.code == 0
    assert [line.split()[1] for line in result.out.splitlines()[4:6]] == ["none", "random"]
    assert "Left out, fastv: FastV(keep=0.3) drops too late" in result.out


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--keep", "0"), "keep=0 keeps no token"),
        (("--method", "magic"), "method 'magic' is unknown"),
        (("--batch-size", "0"), "--batch-size 0: 0 is no number of prompts; accepted are integers >= 1"),
        (("--batch-size", "1,many"), "--batch-size 1,many: 'many' is not a whole number"),
        (("--image-size", "640"), "'640' is not WIDTHxHEIGHT"),
        (("--image-size", "640x0"), "'640x0' has no pixels"),
        (
            ("--model", "no/such-model"),
            "accepted are embedded, llava-next-8b, llava-next-0.5b, llava-1.5-7b, qwen2.5-vl-7b, smolvlm-256m",
        ),
        (("--model", "smolvlm-256m", "--text-tokens", "31"), "has at least 32 tokens beside the visual ones"),
        (("-o", "nowhere/speed"), "the folder nowhere does not exist"),
    ],
)
def test_wrong_input(
    run: Run, nothing_loads: None, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], reason: str
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("gprune.evaluate.noise.random_model", lambda *_: pytest.fail("weights were drawn"))
    result = run("bench", *arguments)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("gprune: ") and result.err.count("\n") == 1
    assert reason in result.err
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--text-tokens", "2"), "text_tokens=2 is too few: a prompt of llava_next with an image of 640x480"),
        (("--attention", "magic"), "magic"),
        (("--method", "fastv", "--keep", "0.1"), "FastV(keep=0.1) drops too late"),
    ],
)
def test_what_only_the_model_can_refuse(run: Run, arguments: tuple[str, ...], reason: str) -> None:
    result = run("bench", "--model", "embedded", *arguments, "-o", "speed")
    assert (result.code, result.out) == (2, "")
    assert reason in result.err
    assert not list(Path().iterdir())


@pytest.mark.parametrize("option", ["--repeats", "--new-tokens", "--text-tokens"])
def test_counts_start_at_one(run: Run, nothing_loads: None, option: str) -> None:
    result = run("bench", option, "0")
    assert result.code == 2 and f"Invalid value for '{option}'" in " ".join(result.err.replace("│", " ").split())
