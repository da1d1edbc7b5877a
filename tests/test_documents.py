"""What the documents show is run, as far as that goes offline; what is not run says why, in a comment before it:

    <!-- not run: needs vLLM -->

The blocks of a document are run in order, in one namespace and one folder. Both have what a reader would have: a
loaded model and its inputs, some pictures, and a checkpoint at path/to/model.
"""

from __future__ import annotations

import ast
import doctest
import importlib
import re
import runpy
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer.main
from families import FAMILIES
from PIL import Image

import gprune
from gprune.cli import app, main
from gprune.images import open_image
from gprune.prompt import build_inputs
from gprune.scenes import model as scenes_model
from gprune.scenes.benchmark import samples

ROOT = Path(gprune.__file__).parents[2]
DOCUMENTS = {
    str(file.relative_to(ROOT)): file.read_text()
    for file in (*ROOT.glob("docs/*.md"), *(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "SECURITY")))
}
FENCE = re.compile(r"(?ms)^(?:<!-- not run: ([^\n]*) -->\n)?^```(\w+)\n(.*?)^```$")
EXAMPLES = doctest.DocTestParser()
COMMANDS: Any = typer.main.get_command(app)


@dataclass(frozen=True)
class Block:
    """A fenced block: in which line of its document its content begins, and why it is not run, if it says so."""

    document: str
    line: int
    language: str
    content: str
    reason: str | None

    @property
    def commands(self) -> list[str]:
        """What is typed into a shell, a line each; of a session with answers, what follows the prompts."""
        lines = self.content.replace("\\\n", "").splitlines()
        if self.language == "console":
            lines = [line[2:] for line in lines if line.startswith("$ ")]
        return [command.strip() for line in lines for command in line.partition(" #")[0].split("&&") if command.strip()]


def blocks(document: str, *languages: str) -> list[Block]:
    text = DOCUMENTS[document]
    return [
        Block(document, text[: found.start(3)].count("\n") + 1, found[2], found[3], found[1])
        for found in FENCE.finditer(text)
        if found[2] in languages
    ]


def documents_with(*languages: str) -> list[str]:
    return [name for name in sorted(DOCUMENTS) if blocks(name, *languages)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The reader's own folder, which is the current one."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "docs").symlink_to(ROOT / "docs")
    (folder / "path/to").mkdir(parents=True)
    (folder / "path/to/model").symlink_to(ROOT / "src/gprune/scenes/checkpoint")
    for sample, name in zip(samples("validation", 2), ("photo.png", "a.jpg"), strict=True):
        sample.picture.save(folder / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        embedded = scenes_model.load_embedded()
        patch.setattr(scenes_model, "load_embedded", lambda device="cpu": embedded)
        yield folder


@pytest.fixture
def names(folder: Path) -> dict[str, Any]:
    """What snippets take for granted."""
    model, processor = scenes_model.load_embedded()
    inputs = build_inputs(model, processor, [([open_image("docs/images/scene.png")], "what text is written?")])
    family = FAMILIES["qwen2_5_vl"]
    clips = {"video_model": family.model(), "video_inputs": family.video_inputs([[(12, (20, 40))]])}
    return {"model": model, "processor": processor, "inputs": inputs, **clips}


@pytest.mark.parametrize("document", documents_with("python"))
def test_python_runs(document: str, names: dict[str, Any]) -> None:
    for block in blocks(document, "python"):
        if block.reason is None:
            # So that a traceback names the line of the document.
            exec(compile("\n" * (block.line - 1) + block.content, document, "exec"), names)


@pytest.mark.parametrize("document", documents_with("python"))
def test_python_that_is_not_run_names_what_gprune_has(document: str) -> None:
    for block in blocks(document, "python"):
        if block.reason and "line of a table" not in block.reason:
            for node in ast.walk(ast.parse(block.content)):
                if isinstance(node, ast.ImportFrom) and str(node.module) == "gprune":
                    assert {each.name for each in node.names} <= set(gprune.__all__)
                if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "gprune":
                    assert node.attr in gprune.__all__


@pytest.mark.parametrize("document", documents_with("pycon"))
def test_examples_say_what_comes_out(document: str, names: dict[str, Any]) -> None:
    runner, said = doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS), []
    for block in blocks(document, "pycon"):
        test = EXAMPLES.get_doctest(block.content, names, document, document, block.line - 1)
        runner.run(test, out=said.append, clear_globs=False)
        names = test.globs
    assert runner.tries > 0 and runner.failures == 0, "".join(said)


def mentioned(document: str) -> list[str]:
    """Every command of gprune in a document, in blocks and in the text."""
    typed = [command for block in blocks(document, "sh", "console") for command in block.commands]
    text = FENCE.sub("", DOCUMENTS[document])
    return [each for each in (*typed, *re.findall(r"`(gprune [^`\n]*)`", text)) if each.startswith("gprune ")]


@pytest.mark.parametrize("document", [name for name in sorted(DOCUMENTS) if mentioned(name)])
def test_commands_and_their_options_exist(document: str) -> None:
    for command in mentioned(document):
        name, *arguments = shlex.split(command)[1:]
        kind = COMMANDS.commands[name]
        try:
            kind.make_context(name, arguments)
        except Exception as error:
            # A text may name a command without what it asks about.
            assert type(error).__name__ == "MissingParameter", f"{document}: {command}: {error}"


@pytest.mark.parametrize("document", documents_with("sh"))
def test_shell_commands_run(document: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for block in blocks(document, "sh"):
        for command in block.commands if block.reason is None else ():
            words = shlex.split(command)
            if words[0] == "make":  # of which the target is checked, below
                continue
            assert words[0] == "gprune", f"{document}: {command}: say before the block why it is not run"
            with pytest.raises(SystemExit) as ended:
                main(words[1:])
            assert not ended.value.code, f"{document}: {command}: {capsys.readouterr().err}"


@pytest.mark.parametrize("example", sorted(ROOT.glob("examples/*.py")), ids=lambda file: file.stem)
def test_notebooks_run_and_draw(example: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "docs").symlink_to(folder / "docs")
    monkeypatch.chdir(tmp_path)
    drawn = runpy.run_path(str(example))["drawn"]
    (written,) = tmp_path.glob("*.png")
    assert np.array_equal(Image.open(written), drawn)


def test_targets_of_make_exist() -> None:
    targets = set(re.findall(r"(?m)^([\w-]+):", (ROOT / "Makefile").read_text()))
    for document, text in DOCUMENTS.items():
        for target in re.findall(r"(?m)(?:^|`)make ([a-z][\w-]*)", text):
            family = target.partition("-")[0]
            assert target in targets or family == "lock", f"{document}: make {target}"


def test_links_lead_to_files() -> None:
    for document, text in DOCUMENTS.items():
        for link in re.findall(r"\]\(([^)#\s:]+)(?:#[^)\s]*)?\)", FENCE.sub("", text)):
            assert ((ROOT / document).parent / link).exists(), f"{document}: {link}"


def test_every_document_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text()
    for document in DOCUMENTS:
        if document.startswith("docs/"):
            assert f": {Path(document).name}\n" in navigation, document


def test_the_reference_has_every_public_name_once() -> None:
    pages = "".join(text for name, text in DOCUMENTS.items() if name.startswith("docs/api"))
    assert sorted(re.findall(r"(?m)^::: gprune\.(\w+)$", pages)) == sorted(gprune.__all__)


def test_the_reference_names_what_is_there() -> None:
    for module, name in re.findall(r"(?m)^::: ([\w.]+)\.(\w+)$", DOCUMENTS["docs/api_rooms.md"]):
        if module not in ("gprune.batch", "gprune.serve"):  # they need Ray, or vLLM
            assert hasattr(importlib.import_module(module), name), f"{module}.{name}"


def test_every_method_has_an_example() -> None:
    examples = "".join(block.content for block in blocks("docs/api_methods.md", "pycon"))
    without = {kind.__name__ for kind in gprune.PRUNERS.values() if f"gprune.{kind.__name__}(" not in examples}
    assert without == {"Learned"}  # of which no scorer ships
