"""`gprune app`: wrong input is found before a page is opened."""

from __future__ import annotations

import importlib.util
import socket
import sys

import pytest

from gprune.cli import main

WITH_GRADIO = importlib.util.find_spec("gradio") is not None


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """The exit code and the one line on standard error."""
    with pytest.raises(SystemExit) as exit:
        main(["app", *arguments])
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "Traceback" not in error
    return int(exit.value.code or 0), error


@pytest.mark.parametrize("missing", [("gradio",), ("matplotlib",), ("gradio", "matplotlib")])
def test_without_its_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], missing: tuple[str, ...]
) -> None:
    for package in missing:
        monkeypatch.setitem(sys.modules, package, None)
    for room in ("gprune.app.page", "gprune.draw"):
        monkeypatch.delitem(sys.modules, room, raising=False)
    code, error = told(capsys)
    assert code == 2 and "pip install 'gprune[app]'" in error and "gprune[draw]" not in error


@pytest.mark.skipif(not WITH_GRADIO, reason="the web page needs gradio: make test-app")
def test_a_model_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    code, error = told(capsys, "--model", "/nowhere")
    assert code == 2 and "/nowhere cannot be loaded" in error


@pytest.mark.skipif(not WITH_GRADIO, reason="the web page needs gradio: make test-app")
def test_a_name_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    code, error = told(capsys, "--allowed-host", "a.example", "--allowed-host", "http://b.example:80")
    assert code == 2 and "allowed host 'http://b.example:80'" in error


@pytest.mark.skipif(not WITH_GRADIO, reason="the web page needs gradio: make test-app")
def test_a_port_that_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        code, error = told(capsys, "--port", port)
    assert code == 2 and port in error
