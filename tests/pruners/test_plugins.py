"""Methods that other packages bring: found by name everywhere, refused with the reason, and never in gprune's way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import gprune
from gprune import PRUNERS, BadValue, GPrune, Method, Pruner
from gprune.pruners import every_method, get_pruner
from gprune.spec import parse_pruner

MODULE = '''
"""A package of somebody else."""
from dataclasses import dataclass

from gprune import Method, ScorePruner


@dataclass
class Smallest(ScorePruner):
    """Keep the smallest (arXiv 2401.00001)."""

    power: float = 1.0

    def score(self, tokens):
        return -(tokens.features.norm(dim=-1) ** self.power)


class Unfinished(ScorePruner):
    name = "unfinished"


class Demanding(ScorePruner):
    def __init__(self, keep, power):
        self.keep, self.power = keep, power

    def score(self, tokens):
        return tokens.features.norm(dim=-1)


SETTING = 3
'''

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Install a package whose methods are `name="module:class"`."""
    monkeypatch.syspath_prepend(tmp_path)

    def installed(package: str = "somebody", **methods: str) -> None:
        (tmp_path / "somebody_s_methods.py").write_text(MODULE)
        folder = tmp_path / f"{package}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        lines = [f"{name} = {value}" for name, value in methods.items()]
        (folder / "entry_points.txt").write_text("\n".join(["[gprune.methods]", *lines, ""]))

    return installed


def test_a_method_of_another_package_has_its_name_everywhere(install: Install) -> None:
    install(smallest="somebody_s_methods:Smallest")
    features = torch.diag(torch.tensor([4.0, 1.0, 3.0, 2.0]))
    method = parse_pruner("smallest:power=2.0", 2)
    assert isinstance(method, Pruner) and method.select(features).kept.tolist() == [1, 3]
    again = Method.from_dict(method.to_dict())
    assert again == method and type(again) is get_pruner("smallest")
    assert list(every_method()) == [*PRUNERS, "smallest"]
    with pytest.raises(BadValue, match="pumer, smallest; pass one of these names"):
        get_pruner("smaller")


def test_it_is_listed(install: Install) -> None:
    install(smallest="somebody_s_methods:Smallest", gprune="somebody_s_methods:Smallest")
    with pytest.warns(UserWarning, match="left out, the name 'gprune'"):
        table = gprune.methods()
    assert [row["method"] for row in table] == [*PRUNERS, "smallest"]
    assert table[-1]["acts"] == "before the LLM" and table[-1]["source"] == "2401.00001"
    assert table[-1]["families"] == table[0]["families"]


def test_nothing_is_imported_before_it_is_asked_for(install: Install) -> None:
    install(exploding="no_such_module:Method")
    assert get_pruner("gprune") is GPrune
    with pytest.raises(BadValue, match="pumer, exploding; pass"):
        get_pruner("magic")


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("exploding", "no_such_module:Method", r"imported from no_such_module:Method \(ModuleNotFoundError: No module"),
        ("missing", "somebody_s_methods:Missing", "AttributeError"),
        ("number", "somebody_s_methods:SETTING", "is 3; accepted is a subclass of gprune.Method"),
        ("unfinished", "somebody_s_methods:Unfinished", "with all that is abstract there"),
        ("demanding", "somebody_s_methods:Demanding", r"cannot be made by Demanding\(1.0\)"),
        ("tiny", "somebody_s_methods:Smallest", "whose name is 'smallest'; .* must write name = \"tiny\""),
        ("gprune", "somebody_s_methods:Smallest", "'gprune' of a method of another package is gprune's own"),
        ("all", "somebody_s_methods:Smallest", "is gprune's own"),
        ("a,b", "somebody_s_methods:Smallest", "accepted are letters, digits, _ and -"),
    ],
)
def test_what_cannot_be_used_is_named_and_left_out(install: Install, name: str, value: str, reason: str) -> None:
    install(**{name: value, "smallest": "somebody_s_methods:Smallest"})
    with pytest.warns(UserWarning, match=f"left out, .*{reason}"):
        assert list(every_method()) == [*PRUNERS, "smallest"]
    if name not in PRUNERS:
        with pytest.raises(BadValue, match=reason):
            get_pruner(name)
    assert get_pruner("gprune") is GPrune


def test_two_packages_cannot_bring_one_name(install: Install) -> None:
    for package in ("somebody", "another"):
        install(package, smallest="somebody_s_methods:Smallest")
    with pytest.raises(BadValue, match="'smallest' is brought by several packages"):
        get_pruner("smallest")
