"""`gprune ask`: an answer for every method and budget, and numbers that agree with the cost model's."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Run
from pictures import photo, write_bad, write_odd
from PIL import Image

from gprune import Auto, kept_count
from gprune.cost import cost

KEYS = [
    *("method", "keep", "answer", "visual_tokens", "kept_tokens", "coverage", "prompt_tokens", "flops", "kv_bytes"),
    "seconds",
]
SHORT = ("--max-new-tokens", "3")


def test_a_row_for_every_method_and_budget(run: Run, photos: dict[str, Path]) -> None:
    methods = ["gprune:init=ones:similarity=0.7", "random"]
    result = run("ask", photos["astronaut"], "hi", "--method", ", ".join(methods), "--keep", "0.5,20", "--json", *SHORT)
    assert result.code == 0
    assert [list(row) for row in result.rows] == [KEYS] * 4
    assert [(row["method"], row["keep"]) for row in result.rows] == [(m, k) for m in methods for k in (0.5, 20)]
    views, newlines = [64, 256], 16  # a square picture: 8 x 8 and 16 x 16, with a newline token after each line
    for row in result.rows:
        assert row["visual_tokens"] == sum(views) + newlines
        assert row["kept_tokens"] == sum(kept_count(views, row["keep"])) + newlines


@pytest.mark.parametrize(
    ("name", "methods", "keeps"),
    [("astronaut", "gprune,l2norm", "0.3,7"), ("coffee", "random", "0.1"), ("chelsea", "gprune:scope=image", "0.5")],
)
def test_counts_are_those_of_the_cost_model(
    run: Run, photos: dict[str, Path], name: str, methods: str, keeps: str
) -> None:
    arguments = ("--method", methods, "--keep", keeps, "--json")
    rows = run("ask", photos[name], "what color is the cup?", "--compare", *arguments, *SHORT).rows
    width, height = photo(name).size
    text = rows[0]["prompt_tokens"] - rows[0]["visual_tokens"]
    size = ("--image-size", f"{width}x{height}", "--text-tokens", text)
    counted = run("cost", "--model", "embedded", *size, *arguments).rows
    for row, expected in zip(rows, counted, strict=True):
        for key in ("method", "keep", "visual_tokens", "kept_tokens", "prompt_tokens", "flops", "kv_bytes"):
            assert row[key] == expected[key], key
        assert row["seconds"] > 0
    assert (rows[0]["method"], rows[0]["keep"], rows[0]["kept_tokens"]) == ("none", 1.0, rows[0]["visual_tokens"])


def test_budgets_that_follow_the_picture(run: Run, photos: dict[str, Path]) -> None:
    asked = ("ask", photos["astronaut"], "hi", "--json", *SHORT)
    row, other = run(*asked, "--method", "gprune:shares=global,gprune", "--keep", "0.3").rows
    assert row["kept_tokens"] == other["kept_tokens"] == sum(kept_count([64, 256], 0.3)) + 16
    (row,) = run(*asked, "--method", "prumerge", "--keep", "own").rows
    assert row["keep"] == "own" and 2 + 16 <= row["kept_tokens"] < 0.3 * 336
    refused = run(*asked, "--method", "gprune", "--keep", "own")
    assert refused.code != 0 and "GPrune finds none" in refused.err


def test_answers_are_those_of_the_library(run: Run, photos: dict[str, Path], embedded: tuple[Any, Any]) -> None:
    model, processor = embedded
    rows = run("ask", photos["coffee"], "describe the picture.", "--compare", "--json", "--max-new-tokens", "12").rows
    inputs = processor(
        images=photo("coffee"), text="<bos><user><image>describe the picture.<assistant>", return_tensors="pt"
    )
    settings: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False}
    with torch.no_grad():
        outputs = [model.generate(**inputs, **settings)]
        with Auto(keep=0.3)(model):
            outputs.append(model.generate(**inputs, **settings))
    start = inputs["input_ids"].shape[1]
    expected = [processor.decode(output[0, start:], skip_special_tokens=True).strip() for output in outputs]
    assert [row["answer"] for row in rows] == expected


def test_every_token_kept_gives_the_unpruned_answer(run: Run, photos: dict[str, Path]) -> None:
    whole, kept = run(
        "ask", photos["astronaut"], "hi", "--compare", "--keep", "1.0", "--json", "--max-new-tokens", 8
    ).rows
    assert (whole["answer"], whole["kept_tokens"]) == (kept["answer"], kept["visual_tokens"])


def test_the_unpruned_model_is_a_method(run: Run, photos: dict[str, Path]) -> None:
    named, compared = (
        run("ask", photos["coffee"], "what is it?", "--json", *more).rows[0]
        for more in (("--method", "none", "--keep", "1.0"), ("--compare",))
    )
    assert {**named, "seconds": 0} == {**compared, "seconds": 0} and named["method"] == "none"
    result = run("ask", photos["coffee"], "what is it?", "--method", "none", "--keep", "0.5")
    assert result.code == 2 and "accepted is 1.0" in result.err


def test_several_pictures_of_every_odd_kind(run: Run, tmp_path: Path) -> None:
    odd = write_odd(tmp_path)
    names = [name for name in odd if name != "strip.png"]
    [row] = run("ask", *(odd[name][0] for name in names), "how many shapes are there?", "--json", *SHORT).rows
    sizes = [odd[name][1].shape[:2] for name in names]
    spent = cost(_config(), sizes, row["prompt_tokens"] - row["kept_tokens"], 0.3)
    assert (row["visual_tokens"], row["kept_tokens"]) == (spent.visual_tokens, spent.kept_tokens)


@pytest.mark.parametrize("name", ["one_pixel.png", "strip.png"])
def test_a_picture_of_extreme_shape(run: Run, tmp_path: Path, name: str) -> None:
    path, pixels = write_odd(tmp_path)[name]
    result = run("ask", path, "what is the background?", "--json", "--picture", "kept.png", *SHORT)
    assert result.code == 0
    spent = cost(_config(), [pixels.shape[:2]], 1, 0.3)
    assert (result.rows[0]["visual_tokens"], result.rows[0]["kept_tokens"]) == (spent.visual_tokens, spent.kept_tokens)
    assert Image.open("kept.png").size[0] > 200


def _config() -> Any:
    from gprune.scenes.model import build_config

    return build_config()


def test_bad_pictures_are_wrong_input(run: Run, nothing_loads: None, tmp_path: Path, photos: dict[str, Path]) -> None:
    for name, (path, reason) in write_bad(tmp_path).items():
        result = run("ask", photos["coffee"], path, "what is this?", "--json", "--picture", "kept.png")
        assert (result.code, result.out) == (2, ""), name
        assert result.err.startswith(f"gprune: {path} ") and reason in result.err and result.err.count("\n") == 1
    assert not list(Path().iterdir())


def test_without_json_the_answer_and_a_table_are_printed(run: Run, photos: dict[str, Path]) -> None:
    result = run("ask", photos["coffee"], "hi", "--compare", "--keep", "0.5", "--picture", "kept.png", *SHORT)
    assert result.code == 0
    lines = result.out.splitlines()
    assert lines[0].startswith("none: ") and any(line.startswith("auto keep=0.5: ") for line in lines)
    assert "FLOPs and KV cache: up to the first new token." in result.out
    assert "Among the visual tokens are 10 ends of rows or the like" in result.out  # of a grid of 10 x 16
    assert Image.open("kept.png").format == "PNG"


def test_the_picture_shows_every_run_but_the_unpruned(
    run: Run, photos: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import gprune.draw

    drawn: list[Any] = []
    monkeypatch.setattr(gprune.draw, "draw", lambda *args, **_: drawn.append(args) or Image.new("RGB", (1, 1)))
    arguments = ("--compare", "--keep", "0.5,0.3", "--json", "--picture", "x.png")
    rows = run("ask", photos["coffee"], photos["chelsea"], "hi", *arguments, *SHORT).rows
    [(picture, reports)] = drawn
    np.testing.assert_array_equal(np.asarray(picture), np.asarray(photo("coffee")))
    assert [title for title, _ in reports] == ["auto keep=0.5", "auto keep=0.3"]
    for row, (_, report) in zip(rows[1:], reports, strict=True):
        assert 0 < report.n_after < row["kept_tokens"], "the report is of the first picture alone"


def test_drawing_without_matplotlib_fails_before_any_work(
    run: Run, nothing_loads: None, photos: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "gprune.draw", raising=False)
    for arguments in (("ask", photos["coffee"], "hi", "--picture", "x.png"), ("show", photos["coffee"], "-o", "x.png")):
        result = run(*arguments)
        assert (result.code, result.out) == (2, "")
        assert "pip install 'gprune[draw]'" in result.err
    assert not Path("x.png").exists()


@pytest.mark.parametrize("command", ["ask", "show"])
def test_impossible_combinations_are_left_out_with_the_reason(run: Run, photos: dict[str, Path], command: str) -> None:
    given = ("ask", photos["coffee"], "hi", *SHORT) if command == "ask" else ("show", photos["coffee"])
    methods = "gprune,pixeldedup,fastv,foreground,prumerge"
    picture = ("--picture" if command == "ask" else "-o", "kept.png")
    result = run(*given, "--method", methods, "--keep", "0.3,own,0.5", "--json", *picture)
    assert result.code == 0
    assert [(row["method"], row["keep"]) for row in result.rows] == [
        *(("gprune", keep) for keep in (0.3, 0.5)),
        ("fastv", 0.5),
        *(("prumerge", keep) for keep in (0.3, "own", 0.5)),
    ]
    said = [line for line in result.err.splitlines() if line.startswith("gprune: left out, ")]
    for reason in ("gprune: keep='own'", "pixeldedup: PixelDedup leaves", "fastv: FastV(keep=0.3) drops too late"):
        assert sum(reason in line for line in said) == 1, (reason, said)
    assert sum("foreground: Foreground has no mask" in line for line in said) == 1
    assert Image.open("kept.png").format == "PNG"
    alone = run(*given, "--method", "pixeldedup", *picture)
    assert (alone.code, alone.out) == (2, "") and "PixelDedup leaves patches out" in alone.err


def test_it_is_said_of_which_pictures_the_small_model_knows_nothing(run: Run, photos: dict[str, Path]) -> None:
    Path("scene").mkdir()
    assert run("scenes", "--sample", "2", "-o", "scene").code == 0
    result = run("ask", "scene/000.png", photos["coffee"], "scene/001.png", "hi", "--json", *SHORT)
    said = [line for line in result.err.splitlines() if "unlike the rendered scenes" in line]
    assert len(said) == 1 and said[0].startswith(f"gprune: {photos['coffee']} (600 x 400) is unlike")
