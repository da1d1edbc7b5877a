"""Pictures to begin with: scenes of the benchmark, and photographs where scikit-image is installed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from PIL import Image

from ..scenes.benchmark import samples
from ..scenes.vocabulary import CATEGORIES

PHOTOS = ("astronaut", "coffee", "chelsea")


@dataclass(frozen=True)
class Example:
    """A picture with a question about it, and the command that makes its file."""

    picture: Image.Image
    name: str
    question: str
    origin: str


@cache
def examples() -> list[Example]:
    """A scene of every category, then the photographs."""
    count = len(CATEGORIES)
    found = [
        Example(
            each.picture,
            f"scenes/{each.index:03}.png",
            each.question.question,
            f"gprune scenes --sample {count} -o scenes",
        )
        for each in samples("test", count)
    ]
    try:
        import skimage.data as photos
    except ImportError:
        return found
    return found + [
        Example(
            Image.fromarray(getattr(photos, name)()),
            f"{name}.png",
            "what is the background?",
            f"python -c \"import skimage; skimage.io.imsave('{name}.png', skimage.data.{name}())\"",
        )
        for name in PHOTOS
    ]
