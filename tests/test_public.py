"""What a newcomer meets in Python: names that can be found, and errors that say what to do."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import gprune
from gprune import BadType, GPrune, VisualTokens, cover, kept_count


def test_dir_has_every_public_name_before_it_is_imported() -> None:
    code = "import gprune, sys; print(*dir(gprune)); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names, torch_is_there = done.stdout.splitlines()
    assert set(gprune.__all__) | {"__version__", "__doc__"} <= set(names.split()) and torch_is_there == "False"
    assert not [name for name in names.split() if name.startswith("_") and not name.startswith("__")]


def test_what_is_cited_is_this_version() -> None:
    cited = (Path(gprune.__file__).parents[2] / "CITATION.cff").read_text().splitlines()
    assert f"version: {gprune.__version__}" in cited


def test_help_finds_what_it_names() -> None:
    members = dict(inspect.getmembers(gprune))
    assert set(gprune.__all__) <= set(members)
    defined = [
        members[name] for name in gprune.__all__ if inspect.isroutine(members[name]) or inspect.isclass(members[name])
    ]
    assert len(defined) > 60 and all(map(inspect.getdoc, defined))


def test_the_example_of_the_package_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (96, 128), "navy").save("photo.jpg")
    _, _, example = (gprune.__doc__ or "").partition("\n\n")
    found: dict[str, Any] = {name: getattr(gprune, name) for name in gprune.__all__}
    exec(example, found)
    [report] = found["run"].images
    assert 0 < report.n_after < report.n_before
    assert report.show(gprune.open_image("photo.jpg")).mode == "RGB"


@pytest.mark.parametrize(
    ("call", "remedy"),
    [
        (lambda: GPrune(np.float32(0.25)), r"pass 0\.25, which \.item\(\) gives"),
        (lambda: GPrune(np.int64(3)), r"pass 3, which \.item\(\) gives"),
        (lambda: GPrune(torch.tensor(0.25)), r"pass 0\.25, which \.item\(\) gives"),
        (lambda: GPrune(iterations=np.int32(3)), r"pass 3, which \.item\(\) gives"),
        (lambda: cover(np.float16(0.5)), r"pass 0\.5, which \.item\(\) gives"),
        (lambda: GPrune().select(np.zeros((4, 3), np.float32)), r"pass torch\.as_tensor\(features\)"),
        (lambda: GPrune().select([[1.0, 2.0]]), r"pass torch\.as_tensor\(features\)"),
        (lambda: VisualTokens.of(np.zeros((4, 3), np.float32)), r"pass torch\.as_tensor\(features\)"),
        (lambda: gprune.open_image(np.zeros((4, 4, 3), np.uint8)), r"PIL\.Image\.fromarray"),
        (lambda: gprune.build_inputs(None, None, [(Image.new("RGB", (9, 9)), "hi")]), "pictures as a list"),
        (lambda: gprune.build_inputs(None, None, [([Image.new("RGB", (9, 9))], 3)]), r"\(list, int\)"),
    ],
)
def test_what_is_near_is_refused_with_the_remedy(call: Callable[[], Any], remedy: str) -> None:
    with pytest.raises(BadType, match=remedy):
        call()


def test_counts_of_numpy_are_counts() -> None:
    assert kept_count(np.int64(10), 0.3) == kept_count(10, 0.3) == 3
