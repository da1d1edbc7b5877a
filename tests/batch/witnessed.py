"""The model in the package, in workers of which it is told where they are, for the test on a cluster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from PIL import Image
from rayenv import meet, ray

from gprune.batch import InProcess
from gprune.batch.engine import Ask
from gprune.evaluate.answers import Response


@dataclass(frozen=True)
class Witnessed(InProcess):
    """A worker leaves the name of its machine in a folder, and waits in its first batch for another worker.

    Args:
        folder: of the names.
    """

    folder: str = ""

    @property
    def settings(self) -> dict[str, Any]:
        return {name: value for name, value in super().settings.items() if name != "folder"}

    def start(self) -> Ask:
        stock, batches = super().start(), count()

        def ask(asked: Sequence[tuple[Image.Image, str]]) -> list[Response]:
            if not next(batches):
                meet(Path(self.folder), 0)
                (Path(self.folder) / ray.get_runtime_context().get_node_id()).touch()
            return stock(asked)

        return ask
