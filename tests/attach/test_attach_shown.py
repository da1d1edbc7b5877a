"""What a run and its reports say of themselves: counts, in few words, and pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from families import FAMILIES
from PIL import Image

from gprune import Chain, FastV, GPrune, ImageReport, Uniform
from gprune.draw import draw
from gprune.errors import BadValue
from gprune.scenes.benchmark import samples
from gprune.tokens import View


@pytest.fixture(scope="module")
def embedded() -> Any:
    from gprune.scenes.model import load_embedded

    return load_embedded()


def asked(embedded: Any) -> tuple[Image.Image, Any]:
    from gprune.prompt import build_inputs

    [sample] = samples("test", 1)
    return sample.picture, build_inputs(*embedded, [([sample.picture], "hi")])


def test_a_run_says_its_method_its_model_and_its_counts(embedded: Any) -> None:
    _, inputs = asked(embedded)
    model, _ = embedded
    with GPrune(0.3)(model) as run:
        assert repr(run) == f"<Run of GPrune(keep=0.3) on {type(model).__name__}: no image yet>"
        model(**inputs)
        [report] = run.images
        counts = f"{report.n_after} of {report.n_before} tokens kept"
        assert repr(run) == f"<Run of GPrune(keep=0.3) on {type(model).__name__}: 1 image, {counts}>"
        assert run._repr_html_().count(counts) == 1 and "<ol><li>" in run._repr_html_()
    assert ", detached: 1 image" in repr(run)
    with Chain(GPrune(0.5), FastV(0.8))(model) as run:
        assert repr(run).startswith("<Run of GPrune(keep=0.5) then FastV(keep=0.8) on ")


def test_a_report_says_its_counts_in_a_line(embedded: Any) -> None:
    _, inputs = asked(embedded)
    model, _ = embedded
    with GPrune(0.3)(model) as run:
        model(**inputs)
    [report] = run.images
    views = sum(map(len, report.views))
    in_views = sum(int(torch.isin(view.rows, report.kept).sum()) for view in report.views)
    assert report.fixed == report.n_before - views == report.n_after - in_views > 0
    assert f"{report.fixed} of them ends of rows" in report.summary
    grids = ", ".join(f"{rows} x {columns}" for rows, columns in report.grids if rows)
    assert (
        repr(report) == f"ImageReport({report.summary}; {len(report.views)} views: {grids})" and len(repr(report)) < 200
    )
    assert report.summary in report._repr_html_()
    with FastV(0.6)(model) as run:
        model(**inputs)
    [inside] = run.images
    assert inside.summary.endswith(f"in the last layer of the LLM, {inside.ratio:.0%} on average over its layers")


def test_a_report_of_many_tiles_stays_short() -> None:
    views = tuple(View(torch.arange(4 * i, 4 * i + 4), (2, 2)) for i in range(40))
    report = ImageReport(torch.arange(80), views, None, 160, 80, None)
    assert repr(report) == "ImageReport(80 of 160 tokens kept; 40 views: 2 x 2, 2 x 2, 2 x 2, 2 x 2, ...)"


def test_what_was_kept_is_shown_as_it_is_drawn(embedded: Any) -> None:
    picture, inputs = asked(embedded)
    model, processor = embedded
    with GPrune(0.3)(model) as run:
        model(**inputs)
    [report] = run.images
    expected = np.asarray(draw(picture, [("kept", report)]))
    np.testing.assert_array_equal(np.asarray(report.show(picture)), expected)
    np.testing.assert_array_equal(np.asarray(report.show(picture.convert("RGBA"), processor)), expected)


@pytest.mark.parametrize("name", [name for name, row in FAMILIES.items() if name in ("idefics3", "internvl", "llava")])
def test_tiles_are_not_drawn_as_if_each_were_the_picture(name: str) -> None:
    family = FAMILIES[name]
    model, inputs = family.model(), family.inputs()
    with torch.no_grad(), Uniform(0.5)(model) as run:
        model(**inputs)
    for report in run.images:
        if name == "llava":
            assert report.show(Image.new("RGB", (20, 20))).mode == "RGB"
        else:
            with pytest.raises(BadValue, match=r"tiles=gprune\.draw\.tiles_of"):
                report.show(Image.new("RGB", (20, 20)))
