"""The list of methods: what the file says is what the classes say, without importing them."""

from __future__ import annotations

import subprocess
import sys

import pytest

import gprune
from gprune import PRUNERS
from gprune.catalog import described


@pytest.mark.parametrize("name", PRUNERS)
def test_the_file_says_what_the_class_says(name: str) -> None:
    [row] = [row for row in gprune.methods() if row["method"] == name]
    assert [row] == described([PRUNERS[name]]), "run `make methods`"


def test_every_method_has_a_row_in_the_order_of_the_classes() -> None:
    assert [row["method"] for row in gprune.methods()] == list(PRUNERS), "run `make methods`"


@pytest.mark.parametrize("code", ["import gprune; gprune.methods()", "import gprune.cli; gprune.cli.main(['methods'])"])
def test_listing_takes_no_pytorch(code: str) -> None:
    done = subprocess.run([sys.executable, "-X", "importtime", "-c", code], capture_output=True, text=True, check=True)
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert "gprune.plugins" in imported and not {"torch", "transformers"} & imported


def test_it_shows_itself_as_a_table() -> None:
    table = gprune.methods()
    head, first, *others = repr(table).splitlines()
    assert head.split() == ["method", "acts", "needs", "arXiv", "families"]
    assert first.split() == ["gprune", "before", "the", "LLM", "2501.02268", str(len(table[0]["families"]))]
    assert len(others) == len(table) - 1
    html = table._repr_html_()
    assert (
        html.count("<tr>") == len(table) + 1
        and "<td>visionzip</td><td>before the LLM</td><td>attention, keys</td>" in html
    )
