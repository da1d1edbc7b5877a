"""Cells: round trips, and damaged or foreign files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gprune.evaluate.cells import Cell, Key, load_cell, read_cells, save, versions

KEY = Key("embedded", "scenes", "gprune:init=ones", 0.3, None, 70)
CELL = Cell(KEY, {"overall": 0.5, "text": 0.25}, 70, 283.0, 85.5, 1.0e9, 0.1, ["document 3: truncated"], {"torch": "2"})


def test_round_trip(tmp_path: Path) -> None:
    assert load_cell(KEY, tmp_path) is None
    save(CELL, tmp_path)
    assert load_cell(KEY, tmp_path) == CELL
    assert read_cells(tmp_path) == [CELL]


@given(
    st.builds(
        Key,
        st.just("m"),
        st.sampled_from(["gqa", "mmbench_en_dev"]),
        st.sampled_from(["gprune", "gprune:init=ones", "tome:where=tokens"]),
        st.one_of(st.integers(1, 3), st.sampled_from([0.3, 1.0, "own"])),
        st.sampled_from([None, 0, 1]),
        st.sampled_from([None, 1, 7]),
    ),
    st.sampled_from([{"seed": 5}, {"limit": 9}, {"keep": 0.7}, {"keep": 9}, {"task": "mme"}, {"method": "random"}]),
)
def test_other_key_other_file(key: Key, change: dict[str, object]) -> None:
    assert replace(key, **change).name != key.name  # type: ignore[arg-type]


def test_the_number_that_a_method_finds_comes_back(tmp_path: Path) -> None:
    cell = replace(CELL, key=replace(KEY, method="prumerge", keep="own"))
    save(cell, tmp_path)
    assert load_cell(cell.key, tmp_path) == cell


def test_one_token_is_not_all_tokens() -> None:
    assert Key("m", "gqa", keep=1).name != Key("m", "gqa", keep=1.0).name


def test_another_model_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    save(CELL, tmp_path)
    with pytest.raises(ValueError, match="folder of its own"):
        load_cell(replace(KEY, model="another"), tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", json.dumps({"key": {}})])
def test_damaged_file_is_named(tmp_path: Path, text: str) -> None:
    path = save(CELL, tmp_path)
    path.write_text(text)
    with pytest.raises(ValueError, match=f"{path.name} is no measured cell"):
        load_cell(KEY, tmp_path)


def test_versions_leave_out_what_is_not_installed() -> None:
    found = versions(["torch", "no-such-package"])
    assert set(found) == {"torch", "python", "device"}
