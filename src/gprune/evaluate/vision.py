"""What a model makes of single pictures: norms of their visual tokens, scores over them, and what is kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ..answering import images_kept
from ..attach import ImageReport, refusal
from ..draw import centre_crop, draw, tiles_of
from ..errors import UnsupportedModel
from ..images import open_image
from ..prompt import build_inputs
from ..pruners import Foreground, GPrune, L2Norm, Method
from ..pruners.masked import coverage
from ..scenes.benchmark import samples
from ..spec import parse_pruner
from ..tokens import Keep
from .experiment import Experiment
from .runs import refusal_of

_QUESTION = "describe the picture."
"""Of pictures that come without one; methods inside the LLM go by it."""


@dataclass(frozen=True)
class Asked:
    """A picture and the question that it goes into the model with."""

    name: str
    picture: Image.Image
    question: str


class Gallery:
    """The pictures that figures are of.

    Args:
        images: files of pictures.
        masks: files of pictures, one for each of `images`, black where that has background.
        scenes: whether test pictures of the embedded benchmark take the place of what is not given.

    Raises:
        ValueError: a file cannot be opened, or there are not as many masks as pictures.
    """

    def __init__(self, images: Sequence[Path], masks: Sequence[Path], *, scenes: bool) -> None:
        if masks and len(masks) != len(images):
            raise ValueError(f"there are {len(masks)} masks for {len(images)} pictures; give one --mask per --image")
        self._asked = [Asked(str(path), open_image(path), _QUESTION) for path in images]
        self._masks: list[NDArray[np.bool_]] = [np.asarray(open_image(mask)).max(-1) > 0 for mask in masks]
        self._scenes = scenes

    def check(self, experiment: Experiment) -> None:
        """Raise ValueError unless there are pictures for this experiment."""
        if self._scenes:
            return
        if experiment.kind == "histogram" and not self._masks:
            raise ValueError(
                f"{experiment.name} needs pictures whose foreground is known, and only the embedded model comes with "
                f"some; give each an --image and a --mask"
            )
        if not self._asked:
            raise ValueError(
                f"{experiment.name} shows pictures, and only the embedded model comes with some; give an --image"
            )

    def asked(self, experiment: Experiment) -> list[Asked]:
        """The pictures that are given, or the test pictures that the experiment names."""
        if self._asked:
            return self._asked
        tests = list(samples("test", max(experiment.pictures) + 1))
        return [Asked(f"scenes {i}", tests[i].picture, tests[i].question.question) for i in experiment.pictures]

    def masked(self, count: int) -> Iterator[tuple[Image.Image, NDArray[np.bool_]]]:
        """The pictures given with masks, or the first test pictures with their true masks: bool [height, width]."""
        if self._masks:
            yield from ((each.picture, mask) for each, mask in zip(self._asked, self._masks, strict=True))
        else:
            yield from ((each.picture, each.foreground) for each in samples("test", count))


class Vision:
    """A model that looks at pictures.

    Args:
        model: of a supported family.
        processor: its processor.
    """

    def __init__(self, model: Any, processor: Any) -> None:
        self.model, self.processor = model, processor

    def heatmaps(self, asked: Asked, iterations: Sequence[int]) -> tuple[Image.Image, list[dict[str, Any]]]:
        """G-Prune's scores after so many iterations over a picture, and the same as numbers."""
        reports = [self._report(asked, GPrune(iterations=step)) for step in iterations]
        titled = [(f"{step} iterations", report) for step, report in zip(iterations, reports, strict=True)]
        rows = [
            {"picture": asked.name, "iterations": step, "edge_share": report.edge_share, "views": _scores(report)}
            for step, report in zip(iterations, reports, strict=True)
        ]
        return self._draw(asked, [], titled), rows

    def kept(self, asked: Asked, method: str, keeps: Sequence[Keep]) -> tuple[Image.Image, list[dict[str, Any]]]:
        """What a method keeps of a picture at several ratios, and the same as numbers."""
        reports = [self._report(asked, parse_pruner(method, keep)) for keep in keeps]
        titled = [(f"{method} keep={keep}", report) for keep, report in zip(keeps, reports, strict=True)]
        rows = [
            {
                "picture": asked.name,
                "method": method,
                "keep": keep,
                "visual_tokens": report.n_before,
                "kept": report.kept.tolist(),
            }
            for keep, report in zip(keeps, reports, strict=True)
        ]
        return self._draw(asked, titled, []), rows

    def possible(self, method: str, keeps: Sequence[Keep]) -> tuple[list[Keep], list[str]]:
        """The budgets at which a method goes on the model, and of the others why not."""
        reasons = [refusal_of(method, keep, self.model) for keep in keeps]
        some = [keep for keep, reason in zip(keeps, reasons, strict=True) if reason is None]
        return some, [f"{method}: {reason}" for reason in reasons if reason]

    def norms(self, pictures: Iterable[tuple[Image.Image, NDArray[np.bool_]]]) -> dict[str, NDArray[np.float32]]:
        """L2 norms of the visual tokens of pictures: float32 [n], of all, of the foreground and of the background.

        A token is foreground if more than half of its patch is.

        Raises:
            UnsupportedModel: the views of the model do not show the whole picture.
        """
        if reason := refusal(Foreground(0.5), self.model):
            raise UnsupportedModel(reason)
        every, inside = [], []
        for picture, mask in pictures:
            report = self._report(Asked("", picture, _QUESTION), L2Norm(0.5))
            assert report.scores is not None
            for view in report.views:
                if view.grid is not None:
                    every.append(report.scores[view.rows])
                    inside.append(coverage(torch.from_numpy(mask), view.grid) > 0.5)
        norms, covered = torch.cat(every).numpy(), torch.cat(inside).numpy()
        return {"whole image": norms, "foreground": norms[covered], "background": norms[~covered]}

    def _report(self, asked: Asked, pruner: Method) -> ImageReport:
        return images_kept(pruner, self.model, self._inputs(asked))[0]

    def _inputs(self, asked: Asked) -> Any:
        return build_inputs(self.model, self.processor, [([asked.picture], asked.question)])

    def _draw(
        self, asked: Asked, kept: Sequence[tuple[str, ImageReport]], scores: Sequence[tuple[str, ImageReport]]
    ) -> Image.Image:
        box = centre_crop(self.processor, asked.picture.size)
        return draw(asked.picture, kept, scores, box, tiles_of(self.model, self._inputs(asked)))


def _scores(report: ImageReport) -> list[list[float]]:
    """The scores of every view, to four digits."""
    assert report.scores is not None
    return [[float(f"{score:.4g}") for score in report.scores[view.rows].tolist()] for view in report.views]
