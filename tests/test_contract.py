"""What gprune relies on in vLLM, lmms-eval and Gradio is refused by name where it is missing or shaped otherwise."""

from __future__ import annotations

import multiprocessing
import sys
import warnings
from pathlib import Path

import pytest
from standing import Host

from gprune.app.host import GRADIO
from gprune.contract import Contract, UnsupportedHost
from gprune.evaluate.host import LMMS_EVAL
from gprune.serve.host import GRIDS, MODELS, REQUESTS

CONTRACTS = {"requests": REQUESTS, "models": MODELS, "grids": GRIDS, "lmms-eval": LMMS_EVAL, "gradio": GRADIO}
NAMES = [
    pytest.param(contract, name, id=name.partition("(")[0])
    for contract in CONTRACTS.values()
    for name in contract.names
]

SHAPES = """
class Model:
    kind = "model"
    def __init__(self, config, prefix=""): ...
    def encode(self, pixels, *, sizes=None): ...
    def anything(self, **kwargs): ...
    @staticmethod
    def made(seq): ...
def evaluate(model, tasks, limit=None): ...
"""


@pytest.fixture
def shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    """A library with real functions, of version 2.1."""
    (tmp_path / "shapes").mkdir()
    (tmp_path / "shapes" / "__init__.py").write_text(SHAPES)
    (tmp_path / "shapes" / "broken.py").write_text("import nowhere_at_all\n")
    monkeypatch.syspath_prepend(tmp_path)
    for module in ("shapes", "shapes.broken"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    host = Host(monkeypatch, Contract("none", ">=0.0"))
    host.version(relying(), "2.1")
    return host


def relying(*names: str) -> Contract:
    return Contract("shapes", ">=2.0,<3", names)


def refused(contract: Contract) -> str:
    with pytest.raises(UnsupportedHost) as error:
        contract.check()
    return str(error.value)


def silently(contract: Contract) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        contract.check()


def test_what_is_there_is_taken(shapes: Host) -> None:
    names = ("shapes", "shapes:Model.kind", "shapes:Model(config, prefix)", "shapes:Model(config)", "shapes:Model(...)")
    methods = ("encode(pixels, sizes)", "encode(pixels)", "anything(whatever)", "anything()", "made(seq)")
    functions = ("shapes:evaluate(model, tasks)", "shapes:evaluate(limit, ...)")
    silently(relying(*names, *(f"shapes:Model.{each}" for each in methods), *functions))


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("shapes.inner", "shapes.inner is missing"),
        ("shapes.broken:Model", "shapes.broken cannot be imported (No module named 'nowhere_at_all')"),
        ("shapes:Modell", "shapes:Modell is missing"),
        ("shapes:Model.code", "shapes:Model.code is missing"),
        ("shapes:Model.kind()", "shapes:Model.kind does not tell its arguments"),
        ("shapes:Model.encode(pixels, sizes, grids, masks)", "shapes:Model.encode takes no grids, masks"),
        ("shapes:Model(prefix)", "shapes:Model requires config"),
        ("shapes:evaluate(limit)", "shapes:evaluate requires model, tasks"),
        ("shapes:evaluate(metric, ...)", "shapes:evaluate takes no metric"),
    ],
)
def test_what_is_not_is_named(shapes: Host, name: str, fault: str) -> None:
    assert refused(relying("shapes:Model", name)) == (
        f"shapes 2.1 is installed, where gprune relies on what is not there: {fault}. "
        f"Tested was shapes>=2.0,<3: pip install 'shapes>=2.0,<3'"
    )


def test_much_that_is_missing_is_counted(shapes: Host) -> None:
    said = refused(relying(*(f"shapes:name_{i}" for i in range(5)), "shapes:name_0"))
    assert "name_0 is missing; shapes:name_1 is missing; shapes:name_2 is missing; 2 more. Tested" in said


def test_an_error_is_an_import_error_so_that_commands_say_it_in_one_line(shapes: Host) -> None:
    with pytest.raises(ImportError):
        relying("shapes:nothing").check()


def test_imports_begin_after_the_check(shapes: Host) -> None:
    with pytest.raises(UnsupportedHost, match="shapes:nothing is missing"), relying("shapes:nothing").checked():
        raise AssertionError("the block is not entered")


def test_the_name_that_it_is_installed_by_may_be_another(shapes: Host) -> None:
    silently(Contract("shapes-cpu", ">=2,<3", ("shapes",), also=("shapes",)))


@pytest.mark.parametrize("number", ["1.9.9", "3.0.0", "3.1.0.dev4"])
def test_an_untested_version_that_fits_is_warned_of_once(shapes: Host, number: str) -> None:
    shapes.version(relying(), number)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        relying("shapes:Model").check()
        relying("shapes:evaluate").check()
    assert [str(each.message) for each in warned] == [
        f"shapes {number} is installed, but gprune was tested with shapes>=2.0,<3; all names that it relies on are "
        f"there; if something goes wrong, pip install 'shapes>=2.0,<3'"
    ]


@pytest.mark.parametrize("number", ["2.0.0", "2.9.1.dev3+g1234", "2.5+cpu"])
def test_a_tested_version_is_not_warned_of(shapes: Host, number: str) -> None:
    shapes.version(relying(), number)
    silently(relying("shapes:Model"))


def test_an_unknown_version_is_warned_of(shapes: Host) -> None:
    shapes.version(relying(), None)
    with pytest.warns(UserWarning, match="no shapes of a known version is installed, but gprune was tested with"):
        relying("shapes:Model").check()


def test_processes_that_another_started_leave_the_warning_to_it(shapes: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes.version(relying(), "4.0")
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: object())
    silently(relying("shapes:Model"))


@pytest.mark.parametrize("contract", CONTRACTS.values(), ids=CONTRACTS)
def test_a_host_that_fits(contract: Contract, monkeypatch: pytest.MonkeyPatch) -> None:
    Host(monkeypatch, contract)
    silently(contract)


@pytest.mark.parametrize("contract", CONTRACTS.values(), ids=CONTRACTS)
def test_a_newer_host_that_fits(contract: Contract, monkeypatch: pytest.MonkeyPatch) -> None:
    Host(monkeypatch, contract).version(contract, "99.0")
    with pytest.warns(
        UserWarning, match=rf"{contract.library} 99\.0 is installed, but gprune was tested with"
    ) as warned:
        contract.check()
    assert len(warned) == 1


@pytest.mark.parametrize(("contract", "name"), NAMES)
def test_a_host_without_a_name(contract: Contract, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, last = Host(monkeypatch, contract).owner(name)
    delattr(owner, last)
    # Every class in Python has some names, `__or__` among them: that one is then not missing, but shaped otherwise.
    assert name.partition("(")[0] in refused(contract)


@pytest.mark.parametrize(("contract", "name"), [each for each in NAMES if "(" in each.values[1]])
def test_a_host_with_another_signature(contract: Contract, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(monkeypatch, contract)
    owner, last = host.owner(name)
    host.shape(getattr(owner, last), "another")
    said = name.partition("(")[0]
    assert f"{said} requires another" in (error := refused(contract)) or f"{said} takes no " in error
