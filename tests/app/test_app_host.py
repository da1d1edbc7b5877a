"""What the page relies on in Gradio: in the one that is installed, and in one that has moved on."""

from __future__ import annotations

import subprocess
import sys
import warnings

import pytest

import gprune.contract
from gprune.app.host import GRADIO

gradio = pytest.importorskip("gradio", reason="the web page needs gradio: make test-app")

MOVED_ON = """
import gradio
gradio.Blocks.preprocess_data = lambda self, event: None
from gprune.cli import main
main(["app"])
"""


def test_the_installed_gradio_fits() -> None:
    gprune.contract.warn_once.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        GRADIO.check()


def test_the_command_refuses_before_a_page_is_opened() -> None:
    done = subprocess.run([sys.executable, "-c", MOVED_ON], capture_output=True, text=True, timeout=240)
    assert done.returncode == 2
    line = done.stderr.splitlines()[-1]
    assert "gradio.blocks:Blocks.preprocess_data takes no block_fn, inputs, state, explicit_call" in line
    assert line.endswith("Tested was gradio>=6.31,<6.32: pip install 'gradio>=6.31,<6.32'")
