"""The program itself: help with an example, quick to start, and installed."""

from __future__ import annotations

import platform
import re
import subprocess
import sys
import warnings
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from conftest import Run

import gprune
from gprune.cli.options import RECOMMENDED
from gprune.pruners import Auto, get_pruner


@pytest.mark.parametrize("command", ["ask", "show", "scenes", "fidelity", "cost"])
def test_help_shows_an_example_that_parses(run: Run, photos: dict[str, Path], command: str) -> None:
    result = run(command, "--help")
    assert (result.code, result.err) == (0, "")
    [example] = re.findall(r"Example: `(gprune .*?)`\n *\n", result.out, re.DOTALL)
    assert example.split()[1] == command
    options = set(re.findall(r"--?[a-z][a-z-]*", example.partition(command)[2]))
    listed = set(re.findall(r"--?[a-z][a-z-]*", result.out.split("Options:")[1]))
    assert options and options <= listed


def test_help_names_the_commands(run: Run) -> None:
    for arguments in (("--help",), ()):
        result = run(*arguments)
        for command in ("ask", "show", "scenes", "cost"):
            assert re.search(rf"\b{command}\b", result.out + result.err)


def test_help_is_short_and_cuts_nothing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    result = run("-h")
    assert (
        result == run("--help")
        and max(map(len, result.out.splitlines())) <= 80
        and "..." not in result.out.split("Commands:")[1]
    )
    assert run("ask", "-h") == run("ask", "--help")


def test_version_names_what_gprune_runs_on(run: Run) -> None:
    result = run("--version")
    versions = dict(line.split() for line in result.out.splitlines())
    assert (result.code, result.err, versions["gprune"]) == (0, "", gprune.__version__)
    assert versions["torch"] == version("torch") and versions["transformers"] == version("transformers")
    assert versions["python"] == platform.python_version()
    assert ("vllm" in versions) == (find_spec("vllm") is not None)


def test_a_warning_is_one_line_on_standard_error(
    run: Run, monkeypatch: pytest.MonkeyPatch, photos: dict[str, Path]
) -> None:
    def warn(*_: Any, **__: Any) -> None:
        warnings.warn("the graph is\ncomplete", stacklevel=2)
        raise RuntimeError("stop")

    monkeypatch.setattr(sys.modules["gprune.cli.show"], "load_model", warn)
    result = run("show", photos["coffee"])
    assert (result.code, result.out) == (1, "")
    assert result.err == "gprune: the graph is complete\ngprune: stop\n"


def test_the_recommended_method_is_the_library_s() -> None:
    """By its name alone, since commands must not import the methods."""
    assert get_pruner(RECOMMENDED) is Auto


def test_commands_import_neither_torch_nor_transformers_themselves() -> None:
    """Help and wrong options are to be answered at once."""
    code = (
        "import sys, types; package = types.ModuleType('gprune'); package.__path__ = [sys.argv[1]]; "
        "sys.modules['gprune'] = package; import gprune.cli; "
        "print([name for name in ('torch', 'transformers', 'matplotlib', 'numpy') if name in sys.modules])"
    )
    folder = Path(sys.modules["gprune"].__file__ or "").parent
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_installed_program(tmp_path: Path) -> None:
    program = Path(sys.executable).parent / "gprune"
    (tmp_path / "text.jpg").write_text("no picture")
    done = subprocess.run(
        [program, "show", "text.jpg", "-o", "x.png"], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("gprune: text.jpg is not a picture, whatever its name says; ")
