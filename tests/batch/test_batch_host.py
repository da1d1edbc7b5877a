"""What a job relies on in Ray: in the one that is installed, and in one that has moved on."""

from __future__ import annotations

import subprocess
import sys
import warnings

import pytest
from standing import Host

pytest.importorskip("ray", reason="needs Ray: make test-batch")

import gprune.contract
from gprune.batch.host import RAY
from gprune.contract import UnsupportedHost

MOVED_ON = """
import sys
from ray.data import DataContext
del DataContext.wait_for_min_actors_s
from gprune.cli import main
main(["batch", "photos", "-o", "out", "--question", "what?"])
"""


def test_the_installed_ray_fits() -> None:
    gprune.contract.warn_once.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        RAY.check()


@pytest.mark.parametrize("name", RAY.names)
def test_a_ray_without_a_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, last = Host(monkeypatch, RAY).owner(name)
    delattr(owner, last)
    with pytest.raises(UnsupportedHost, match=name.partition("(")[0]):
        RAY.check()


def test_another_version_that_fits_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    Host(monkeypatch, RAY).version(RAY, "2.71.0")
    with pytest.warns(
        UserWarning, match=r"ray 2\.71\.0 is installed, but gprune was tested with ray>=2\.60,<2\.61"
    ) as said:
        RAY.check()
    assert len(said) == 1


def test_the_command_refuses_before_anything_is_read() -> None:
    done = subprocess.run([sys.executable, "-c", MOVED_ON], capture_output=True, text=True, timeout=240)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "ray.data:DataContext.wait_for_min_actors_s is missing" in line
    assert line.endswith("Tested was ray>=2.60,<2.61: pip install 'ray>=2.60,<2.61'")
