"""Tables: whatever the width, every name and number is there in full."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from gprune.cli.printing import print_json, print_markdown, print_table

COLUMNS = ("method", "acts", "arXiv", "tokens")
ROWS = [
    ("llavascissor:level=0.875", "before the LLM", "2506.21862", "2,340 -> 1,188"),
    ("gprune", "before the LLM", "2501.02268", ""),
]
WORDS = [word for row in (*ROWS, COLUMNS[1:]) for cell in row for word in cell.split()]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Standard output counts as a terminal of `COLUMNS` columns."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")


@pytest.mark.parametrize("width", [30, 60, 72, 80, 200])
def test_no_width_of_a_terminal_cuts_a_word(
    terminal: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    print_table(COLUMNS, ROWS, "a caption")
    out = capsys.readouterr().out
    assert "…" not in out and "caption" in out
    plain = _without_styles(out)
    for word in WORDS:
        assert word in plain, (width, word)
    if width >= 80:
        assert max(map(len, plain.splitlines())) <= width


@given(st.integers(1, 200))
def test_in_a_pipe_every_row_is_a_line(width: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", str(width))
        console = Console(record=True)
        assert not console.is_terminal
        from contextlib import redirect_stdout
        from io import StringIO

        with redirect_stdout(StringIO()) as out:
            print_table(COLUMNS, ROWS)
    header, first, second = out.getvalue().splitlines()
    assert header.split() == list(COLUMNS)
    assert first.split() == [word for cell in ROWS[0] for word in cell.split()]
    assert header.index("acts") + len("acts") == first.index("LLM") + len("LLM")
    assert second.startswith("gprune ")


def test_markdown_is_a_table_on_a_terminal_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    text = "before\n\n| method | keep |\n| --- | --- |\n| gprune | 0.5 |\n| none |  |\n\nafter\n"
    print_markdown(text)
    assert capsys.readouterr().out == text
    request.getfixturevalue("terminal")
    monkeypatch.setenv("COLUMNS", "80")
    print_markdown(text)
    out = _without_styles(capsys.readouterr().out)
    assert out.startswith("before\n\n┏") and out.endswith("after\n\n")
    assert "│ gprune │  0.5 │" in out and "│ none   │      │" in out and "---" not in out


def test_json_is_an_object_in_each_line(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"method": "gprune", "keep": 0.5}, {"method": "none", "keep": None}]
    print_json(rows)
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == rows


def _without_styles(text: str) -> str:
    import re

    return re.sub(r"\x1b\[[0-9;]*m", "", text)
