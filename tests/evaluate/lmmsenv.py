"""What the tests of all that runs on lmms-eval share: tests are skipped without it, and nothing reaches a hub."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
os.environ.update(OFFLINE)  # read by the hub's libraries when they are imported

pytest.importorskip("lmms_eval", reason="needs the extra eval: make test-eval")


@pytest.fixture(scope="session", name="photos")
def photos_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the tasks on photographs and documents."""
    import datasets.config
    from photos.make import write

    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_DATASETS_CACHE", str(cache))
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
        yield write(tmp_path_factory.mktemp("photos"))


def answers(path: Path) -> list[str]:
    """Of a file of logged samples, of gprune's or of lmms-eval's own command."""
    rows: list[dict[str, Any]] = [json.loads(line) for line in path.read_text().splitlines()]
    given = [row["filtered_resps"] for row in sorted(rows, key=lambda row: row["doc_id"])]
    return [each if isinstance(each, str) else each[0] for each in given]
