"""`gprune show`: a PNG of what is kept, with the numbers on request, or an error and no file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import Run
from pictures import PHOTOS, write_bad, write_odd
from PIL import Image

from gprune import kept_count


@pytest.mark.parametrize("name", PHOTOS)
def test_a_photograph(run: Run, photos: dict[str, Path], name: str) -> None:
    result = run("show", photos[name], "--keep", "0.5,0.1", "--iterations", "0,5")
    assert (result.code, result.out) == (0, "")
    assert result.err.endswith("wrote gprune.png\n")
    picture = Image.open("gprune.png")
    assert picture.format == "PNG" and min(picture.size) > 500


def test_rows(run: Run, photos: dict[str, Path]) -> None:
    result = run("show", photos["astronaut"], "--method", "gprune,uniform", "--keep", "0.5,30", "--json", "-o", "a.PNG")
    assert result.code == 0 and Path("a.PNG").exists()
    names = ["method", "keep", "visual_tokens", "kept_tokens", "edge_share", "coverage"]
    assert [list(row) for row in result.rows] == [names] * 4
    assert [(row["method"], row["keep"]) for row in result.rows] == [
        ("gprune", 0.5),
        ("gprune", 30),
        ("uniform", 0.5),
        ("uniform", 30),
    ]
    views, newlines = [64, 256], 16  # a square picture: 8 x 8 and 16 x 16
    for row in result.rows:
        assert row["visual_tokens"] == sum(views) + newlines
        assert row["kept_tokens"] == sum(kept_count(views, row["keep"])) + newlines
        assert (row["edge_share"] is None) == (row["method"] == "uniform")


def test_every_panel(run: Run, photos: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    import gprune.draw

    drawn: list[Any] = []
    monkeypatch.setattr(gprune.draw, "draw", lambda *args, **_: drawn.append(args) or Image.new("RGB", (1, 1)))
    run("show", photos["coffee"], "--method", "gprune:scope=image,random:seed=3", "--keep", "9", "--iterations", "0, 2")
    [(_, kept, scores, *_)] = drawn
    assert [title for title, _ in kept] == ["gprune:scope=image keep=9", "random:seed=3 keep=9"]
    assert [title for title, _ in scores] == ["scores, iterations=0", "scores, iterations=2"]
    assert not scores[0][1].scores.equal(scores[1][1].scores)


def test_odd_pictures(run: Run, tmp_path: Path) -> None:
    odd = write_odd(tmp_path)
    for name in ("one_pixel.png", "strip.png", "rotated.png", "sixteen_bit.png", "animated.gif", "rgba.png"):
        result = run("show", odd[name][0], "--keep", "0.3", "-o", "kept.png")
        assert result.code == 0, (name, result.err)
        assert min(Image.open("kept.png").size) > 100
        Path("kept.png").unlink()


def test_bad_pictures_are_wrong_input(run: Run, nothing_loads: None, tmp_path: Path) -> None:
    for name, (path, reason) in write_bad(tmp_path).items():
        result = run("show", path, "-o", "kept.png")
        assert (result.code, result.out) == (2, ""), name
        assert result.err.startswith(f"gprune: {path} ") and reason in result.err and result.err.count("\n") == 1
    assert not list(Path().iterdir())


def test_an_earlier_picture_survives_an_error(
    run: Run, photos: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import gprune.draw

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("no\nluck")

    Path("kept.png").write_bytes(b"earlier")
    monkeypatch.setattr(gprune.draw, "draw", broken)
    result = run("show", photos["coffee"], "--keep", "0.3", "-o", "kept.png")
    assert (result.code, result.out) == (1, "")
    assert result.err.endswith("gprune: no luck\n")
    assert Path("kept.png").read_bytes() == b"earlier"
