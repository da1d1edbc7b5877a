"""Prints what gprune and some of its extras require, one a line, without upper bounds.

    python constraints/newest.py draw test

pip makes the newest of everything of it, the versions that pyproject.toml does not let in yet: `make test-newest`.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"


def without_upper_bounds(requirement: str) -> str:
    """`transformers>=5.19,<5.25` is `transformers>=5.19`; extras, markers and excluded versions stay."""
    parsed = Requirement(requirement)
    kept = []
    for bound in parsed.specifier:
        if bound.operator == "~=":  # a lower and an upper bound in one
            kept.append(f">={bound.version}")
        elif bound.operator in (">=", ">", "!="):
            kept.append(str(bound))
    parsed.specifier = SpecifierSet(",".join(kept))
    return str(parsed)


def newest(extras: list[str], pyproject: Path = PYPROJECT) -> list[str]:
    """The requirements of the project and of the extras named, without upper bounds."""
    project = tomllib.loads(pyproject.read_text())["project"]
    optional = project["optional-dependencies"]
    unknown = [extra for extra in extras if extra not in optional]
    if unknown:
        raise SystemExit(f"no such extra: {', '.join(unknown)}; there are {', '.join(sorted(optional))}")
    wanted = project["dependencies"] + [requirement for extra in extras for requirement in optional[extra]]
    return [without_upper_bounds(requirement) for requirement in wanted]


if __name__ == "__main__":
    print("\n".join(newest(sys.argv[1:])))
