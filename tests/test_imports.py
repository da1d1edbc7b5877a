"""Imports point down: no circle of rooms, and nothing below imports what is above it."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import gprune

SOURCE = Path(gprune.__file__).parent

FLOORS: list[set[str]] = [
    {"errors", "aligned"},
    {"tokens", "kernels", "checks", "contract", "images", "plugins"},
    {"graph", "host"},
    {"coverage"},
    {"pruners"},
    {"families"},
    {"attach"},
    {"cost", "draw", "prompt", "models", "spec", "answering", "catalog"},
    {"scenes"},
    {"serve", "evaluate"},
    {"batch", "fitting"},
    {"app", "cli"},
]
"""From the ground up. Rooms of one floor may import each other, as long as no circle comes of it."""

SUGAR = {("pruners", "attach"), ("attach", "draw"), ("models", "scenes"), ("spec", "scenes")}
"""Inside functions, when they are called: `pruner(model)`, `report.show(image)`, and what the package has by name."""


def rooms_of(file: Path) -> tuple[str, set[str]]:
    """The room of a file, and those that it imports when it is run, types left out."""
    parts = file.relative_to(SOURCE).with_suffix("").parts
    found = set()

    def visit(nodes: list[ast.stmt]) -> None:
        for node in nodes:
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
                continue
            if isinstance(node, ast.ImportFrom) and node.level:
                above = parts[: len(parts) - node.level] if node.level <= len(parts) else ()
                names = [node.module] if node.module else [alias.name for alias in node.names]
                found.update((*above, *name.split("."))[0] for name in names)
            for field in ("body", "orelse", "handlers", "finalbody"):
                visit(getattr(node, field, []))

    visit(ast.parse(file.read_text()).body)
    return parts[0], found - {parts[0]}


def test_imports_point_down() -> None:
    floor = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    upward = set()
    for file in SOURCE.rglob("*.py"):
        room, imported = rooms_of(file)
        if room in ("__init__", "__main__"):
            continue
        assert room in floor, room
        upward |= {(room, other) for other in imported if floor.get(other, -1) > floor[room]}
    assert upward <= SUGAR, sorted(upward - SUGAR)


def files_of(file: Path, modules: dict[str, Path]) -> set[str]:
    """The files of the package that are imported when this one is, types and functions left out."""
    name = module_of(file)
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    found = set()

    def visit(nodes: list[ast.stmt]) -> None:
        for node in nodes:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                continue
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
                continue
            if isinstance(node, ast.ImportFrom) and node.level:
                parts = package.split(".")
                base = ".".join([*parts[: len(parts) - node.level + 1], *([node.module] if node.module else [])])
                inner = {f"{base}.{alias.name}" for alias in node.names}
                found.update((inner & modules.keys()) or {base})
            for field in ("body", "orelse", "handlers", "finalbody"):
                visit(getattr(node, field, []))

    visit(ast.parse(file.read_text()).body)
    return found & modules.keys()


def module_of(file: Path) -> str:
    parts = file.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_no_circle_of_files() -> None:
    modules = {module_of(file): file for file in SOURCE.rglob("*.py")}
    graph = {name: files_of(file, modules) - {name} for name, file in modules.items()}
    assert "gprune.host" in graph["gprune.attach.hooks"]
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_other_rooms_enter_attach_by_its_door() -> None:
    """What lies behind `gprune.attach` can be moved without anybody noticing."""
    imports = [
        (file, node)
        for file in SOURCE.rglob("*.py")
        if file.parent.name != "attach"
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    inside = [f"{file.name}: {node.module}" for file, node in imports if (node.module or "").startswith("attach.")]
    assert len(imports) > 100 and not inside, inside
