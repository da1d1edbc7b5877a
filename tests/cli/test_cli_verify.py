"""`gprune verify`, and that `gprune scenes` begins with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import Run

from gprune import host


def test_the_embedded_model(run: Run) -> None:
    result = run("verify")
    assert result.code == 0 and not result.err
    assert f"embedded (llava_next) with transformers {host.installed()}" in result.out
    assert "prompts and one of text, padded, equals a full recompute" in result.out


def test_pictures_of_ones_own(run: Run, photos: dict[str, Path]) -> None:
    pictures = list(photos.values())[:3]
    [row] = run("verify", *pictures, "--json").rows
    assert row["prompts"] == 3 and row["change"] < 1e-5
    assert list(row) == ["model", "model_type", "transformers", "prompts", "change"]


def test_wrong_input(run: Run, nothing_loads: None) -> None:
    result = run("verify", "missing.png")
    assert result.code == 2 and "missing.png does not exist" in result.err


@pytest.mark.parametrize("command", [["verify"], ["scenes", "--limit", "7", "--method", "random"]])
def test_a_host_that_loses_the_cache(run: Run, command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoding that does not see what was cached: the fault of a cache under a name that gprune does not know."""
    monkeypatch.setattr(host, "cache_of", lambda call: None)
    result = run(*command)
    assert result.code == 1 and not result.out
    assert "gprune" in result.err and "transformers" in result.err


def test_a_host_whose_masks_are_lost(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from gprune.attach import call

    made = call._rewritten

    def unmasked(*args: Any) -> dict[str, Any]:
        return {name: value for name, value in made(*args).items() if name != "attention_mask"}

    monkeypatch.setattr(call, "_rewritten", unmasked)
    result = run("verify")
    assert result.code == 1 and "decoding with a KV cache after pruning changes the logits" in result.err
