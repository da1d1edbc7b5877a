"""A public name means one thing, and no two files share a name."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

import gprune

SOURCE = Path(gprune.__file__).parent

SAME = {"representativeness"}
"""What kernels compute is what `graph.py` defines."""

OF_EVERY_ROOM = {"__init__.py", "host.py", "plugin.py"}
"""What a room relies on in somebody else's library, and the entry point by which that library finds it."""


def public_names(file: Path) -> set[str]:
    """Those that a file defines; a command of the CLI has the name that is typed, whatever it calls."""
    names = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(node.name)
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        names |= {target.id for target in targets if isinstance(target, ast.Name)}
    commands = {file.stem, "app"} if file.parent.name == "cli" else set()
    return {name for name in names - commands - SAME if not name.startswith("_")}


def test_a_public_name_means_one_thing() -> None:
    files = defaultdict(list)
    for file in SOURCE.rglob("*.py"):
        for name in public_names(file):
            files[name].append(str(file.relative_to(SOURCE)))
    assert len(files) > 500
    assert {name: where for name, where in files.items() if len(where) > 1} == {}


def test_no_two_files_share_a_name() -> None:
    """But for the file of a command, which bears the name that is typed."""
    names = [file.name for file in SOURCE.rglob("*.py") if file.parent.name != "cli" and file.name not in OF_EVERY_ROOM]
    assert sorted(names) == sorted(set(names))
