"""What measurements rely on in lmms-eval, and it in filelock: in those installed, and in some that have moved on."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from standing import Host

import gprune.contract
from gprune.cli import main
from gprune.contract import UnsupportedHost
from gprune.evaluate.host import FILELOCK, LMMS_EVAL, check_lmms_eval, is_padding


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    """An lmms-eval that fits."""
    host = Host(monkeypatch, LMMS_EVAL)
    clone: Any = lambda pad_source: SimpleNamespace(metadata={"__padding_only__": True})  # noqa: E731
    monkeypatch.setattr(sys.modules["lmms_eval.evaluator"], "_clone_padding_request", clone)
    return host


def told(capsys: pytest.CaptureFixture[str], folder: Path) -> tuple[int, str]:
    with pytest.raises(SystemExit) as exit:
        main(["eval", "--tasks", "scenes", "-o", str(folder)])
    return int(exit.value.code or 0), capsys.readouterr().err


def changing(host: Host, patch: pytest.MonkeyPatch, change: Callable[[], None]) -> None:
    """Have lmms-eval change filelock like this when an evaluation begins."""
    owner, _ = host.owner("lmms_eval.evaluator:simple_evaluate")
    patch.setattr(owner, "_enable_reentrant_filelocks", change, raising=False)


def test_one_that_fits(host: Host) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_lmms_eval()


def test_a_request_that_is_repeated_is_marked_as_ever(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_padding(SimpleNamespace(metadata={"__padding_only__": True}))
    assert not is_padding(SimpleNamespace(metadata={}))
    unmarked: Any = lambda pad_source: SimpleNamespace(metadata={"padding": True})  # noqa: E731
    monkeypatch.setattr(sys.modules["lmms_eval.evaluator"], "_clone_padding_request", unmarked)
    with pytest.raises(
        UnsupportedHost, match=r"the mark __padding_only__ of a repeated request.*pip install 'lmms-eval"
    ):
        check_lmms_eval()


def test_a_filelock_that_lmms_eval_cannot_change(
    host: Host, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def change() -> None:
        raise ModuleNotFoundError("No module named 'filelock._api'", name="filelock._api")

    changing(host, monkeypatch, change)
    host.version(FILELOCK, "4.3.1")
    code, error = told(capsys, tmp_path)
    assert code == 2 and "Traceback" not in error
    assert error.splitlines()[-1] == (
        "gprune: filelock 4.3.1 is installed, where lmms-eval relies on what is not there: No module named "
        "'filelock._api'. Tested was filelock<4.3: pip install 'filelock<4.3'"
    )


def test_an_lmms_eval_that_leaves_filelock_alone(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    changes: list[int] = []
    changing(host, monkeypatch, lambda: changes.append(1))
    host.version(LMMS_EVAL, "0.7.4")
    check_lmms_eval()
    assert changes == [1]


def test_the_command_refuses_one_that_has_moved_on(
    host: Host, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    host.version(LMMS_EVAL, "0.9.0")
    owner, _ = host.owner("lmms_eval.evaluator:simple_evaluate")
    host.shape(owner.simple_evaluate, "model", "tasks", "settings")
    code, error = told(capsys, tmp_path)
    assert code == 2
    assert (
        "lmms-eval 0.9.0 is installed" in error and "lmms_eval.evaluator:simple_evaluate takes no task_manager" in error
    )
    assert "pip install 'lmms-eval>=0.7.3,<0.8'" in error


def test_without_lmms_eval_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "lmms_eval", None)
    code, error = told(capsys, tmp_path)
    assert code == 2 and "pip install 'gprune[eval]'" in error


def test_the_installed_lmms_eval_fits() -> None:
    pytest.importorskip("lmms_eval", reason="needs the extra eval: make test-eval")
    gprune.contract.warn_once.cache_clear()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        check_lmms_eval()
    assert not [each for each in warned if "gprune was tested" in str(each.message)]
