"""The command line in the process of the tests, with the model of the package loaded once."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pictures import write_photos

import gprune.scenes.model
from gprune.cli import main


@dataclass(frozen=True)
class Result:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]


Run = Callable[..., Result]


@pytest.fixture(scope="session")
def embedded() -> tuple[Any, Any]:
    return gprune.scenes.model.load_embedded()


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture
def run(
    embedded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Iterator[Run]:
    """Run a command in an empty folder; afterwards the model must be as it was."""
    model, _ = embedded
    attributes = set(vars(model))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr(gprune.scenes.model, "load_embedded", lambda device="cpu": embedded)

    def call(*arguments: object) -> Result:
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return Result(int(exit.value.code or 0), out, err)

    yield call
    assert not model._forward_pre_hooks and not model._forward_hooks
    assert set(vars(model)) == attributes


@pytest.fixture
def nothing_loads(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong input is to be found before a model is loaded."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(gprune.scenes.model, "load_embedded", refuse)
    monkeypatch.setattr("transformers.AutoModelForImageTextToText.from_pretrained", refuse)
