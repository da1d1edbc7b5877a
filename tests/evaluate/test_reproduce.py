"""`gprune reproduce`: experiments end to end, resumed, shared, refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from pictures import write_photos
from PIL import Image

import gprune.evaluate
import gprune.scenes.model
from gprune import FastV, GPrune, ToMe
from gprune.cli import main
from gprune.errors import GpruneError
from gprune.evaluate.cells import Cell, Key
from gprune.evaluate.embedded import Embedded
from gprune.evaluate.reproduction import refusal_on
from gprune.evaluate.runs import keys
from gprune.prompt import build_inputs
from gprune.pruners import PRUNERS
from gprune.scenes.benchmark import samples
from gprune.scenes.model import embedded_path, load_embedded


class Result(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Result]


@pytest.fixture(scope="module")
def embedded() -> tuple[Any, Any]:
    return load_embedded()


@pytest.fixture
def run(
    embedded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Iterator[Run]:
    """`gprune reproduce` in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gprune.scenes.model, "load_embedded", lambda device="cpu": embedded)

    def call(*arguments: object) -> Result:
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit:
            main(["reproduce", *map(str, arguments)])
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return Result(int(exit.value.code or 0), out, err)

    yield call
    assert not embedded[0]._forward_pre_hooks and not embedded[0]._forward_hooks


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Key]:
    """The cells that were measured, in order, by a stand-in that is quick."""
    done: list[Key] = []

    def measure(self: Embedded, key: Key) -> Cell:
        done.append(key)
        value = 0.9 if key.method == "none" else 0.25
        return Cell(key, {"overall": value, "text": value}, key.limit or 700, 283.0, 100.0, 1e9, 0.1)

    monkeypatch.setattr(Embedded, "measure", measure)
    return done


def toml(name: str, methods: list[str], keep: list[float], kind: str = "table", more: str = "") -> Path:
    path = Path(f"{name}.toml")
    path.write_text(
        f'title = "{name}"\nkind = "{kind}"\nmethods = {methods}\nkeep = {keep}\ntasks = ["gqa", "pope"]\n{more}'
    )
    return path


def test_list(run: Run) -> None:
    result = run()
    assert result.code == 0 and not list(Path().iterdir())
    assert [line.split()[0] for line in result.out.splitlines()][:4] == ["table1", "table2", "table3", "fig1a"]


def test_a_table_from_the_model_in_the_package(run: Run) -> None:
    """End to end, nothing stood in for."""
    result = run("table2", "--limit", 7, "--keep", "0.3")
    assert result.code == 0, result.err
    assert "wrote reproduction/table2.md" in result.err
    data = json.loads(Path("reproduction/table2.json").read_text())
    assert data["command"] == "gprune reproduce table2 --keep 0.3 --limit 7" and data["model"] == "embedded"
    assert [cell["key"]["method"] for cell in data["cells"]] == [
        "none",
        *["random"] * 3,
        "l2norm",
        "gprune:init=ones",
        "gprune",
    ]
    assert all(cell["n"] == 7 for cell in data["cells"]) and data["left_out"] == []
    assert data["paper"]["rows"][-1] == ["gprune", 0.3, 64.37, 87.69, 64.05, None]
    text = Path("reproduction/table2.md").read_text()
    ours, paper, beside = text.split("## ")[1:]
    assert ours.startswith("embedded\n\n`gprune reproduce table2 --keep 0.3 --limit 7`") and "| gprune | 0.3 |" in ours
    assert paper.startswith("paper (LLaVA-NeXT-8B)") and "| gprune | 0.3 | 64.37 | 87.69 | 64.05 | 98.7% | — |" in paper
    assert "arXiv 2501.02268, Table 2." in paper
    shares = [cell["scores"]["overall"] for cell in data["cells"]]
    assert f"| gprune | 0.3 | {shares[-1] / shares[0]:.1%} | 98.7% |" in beside
    assert len(list(Path("reproduction/cells").iterdir())) == len(data["cells"])


def test_cells_are_shared_and_not_measured_again(run: Run, measured: list[Key]) -> None:
    first, second = toml("first", ["gprune"], [0.5, 0.3]), toml("second", ["gprune", "uniform"], [0.3])
    assert run(first, "-o", "out").code == 0
    assert [(key.method, key.keep) for key in measured] == [("none", 1.0), ("gprune", 0.5), ("gprune", 0.3)]
    before = {path: path.stat().st_mtime_ns for path in Path("out/cells").iterdir()}
    assert run(first, second, "-o", "out").code == 0
    assert [(key.method, key.keep) for key in measured[3:]] == [("uniform", 0.3)]
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    assert Path("out/first.md").exists() and "| uniform | 0.3 |" in Path("out/second.md").read_text()


def test_a_run_that_was_stopped_goes_on(run: Run, measured: list[Key], monkeypatch: pytest.MonkeyPatch) -> None:
    path = toml("mine", ["gprune"], [0.5, 0.3])
    with monkeypatch.context() as patch:
        measure = Embedded.measure

        def stop(self: Embedded, key: Key) -> Cell:
            if key.keep == 0.3:
                raise RuntimeError("the power went off")
            return measure(self, key)

        patch.setattr(Embedded, "measure", stop)
        result = run(path)
    assert (result.code, Path("reproduction/mine.md").exists()) == (1, False) and "power" in result.err
    assert len(list(Path("reproduction/cells").glob("*.json"))) == 2
    assert run(path).code == 0
    assert [key.keep for key in measured] == [1.0, 0.5, 0.3]


def test_options_take_the_place_of_the_file(run: Run, measured: list[Key]) -> None:
    assert run(toml("mine", ["random"], [0.5], more="seeds = 2"), "--keep", "0.3,20,0.3", "--limit", 9).code == 0
    assert [(key.task, key.method, key.keep, key.seed, key.limit) for key in measured] == [
        ("scenes", "none", 1.0, None, 9),
        *(("scenes", "random", keep, seed, 9) for keep in (0.3, 20) for seed in (0, 1)),
    ]
    assert len(json.loads(Path("reproduction/mine.json").read_text())["cells"]) == len(measured)


def test_what_the_model_does_not_allow_is_left_out(run: Run, measured: list[Key]) -> None:
    result = run(toml("mine", ["fastv", "gprune"], [0.5, 0.1]))
    assert result.code == 0
    assert [(key.method, key.keep) for key in measured[1:]] == [("fastv", 0.5), ("gprune", 0.5), ("gprune", 0.1)]
    reason = "left out, fastv: FastV(keep=0.1) drops too late for that in an LLM of 5 layers: the smallest keep is 0.4"
    assert result.err.count(reason) == 1
    assert reason.replace("left out, ", "- ") in Path("reproduction/mine.md").read_text()
    [left_out] = json.loads(Path("reproduction/mine.json").read_text())["left_out"]
    assert left_out in result.err


def test_a_budget_that_a_method_cannot_take_is_left_out(run: Run, measured: list[Key]) -> None:
    result = run(toml("mine", ["fastv", "gprune"], [0.5]), "--keep", "20,0.5")
    assert result.code == 0
    assert [(key.method, key.keep) for key in measured[1:]] == [("fastv", 0.5), ("gprune", 20), ("gprune", 0.5)]
    reason = "left out, fastv: keep=20 is an int; accepted is a float in (0, 1]"
    assert result.err.count(reason) == 1
    assert reason.replace("left out, ", "- ") in Path("reproduction/mine.md").read_text()


def test_nothing_but_the_unpruned_model_is_no_experiment(run: Run, measured: list[Key]) -> None:
    path = toml("mine", ["fastv"], [0.1])
    result = run(path)
    assert result.code == 2 and "smallest keep is 0.4" in result.err
    assert not measured and [each for each in Path().iterdir()] == [path]


@pytest.mark.parametrize("keep", [0.5, 0.3, 0.1, 1.0])
def test_refusals_are_those_of_the_loaded_model(embedded: tuple[Any, Any], keep: float) -> None:
    wanted = keys("embedded", ["scenes"], PRUNERS, [keep])
    refusal = refusal_on("embedded")
    for key in wanted[1:]:
        try:
            pruner = PRUNERS[key.method](keep)
            pruner.attach(embedded[0]).detach()
            assert refusal(key) is None
        except GpruneError as error:
            assert refusal(key) == str(error)


def test_curves(run: Run, measured: list[Key]) -> None:
    more = 'across = "flops"\ncategories = ["overall", "text"]'
    result = run(toml("mine", ["gprune", "uniform"], [0.5, 0.3], "curves", more))
    assert result.code == 0, result.err
    with Image.open("reproduction/mine.png") as picture:
        assert picture.width > 700
    cells = json.loads(Path("reproduction/mine.json").read_text())["cells"]
    assert [(cell["key"]["method"], cell["key"]["keep"]) for cell in cells] == [
        (key.method, key.keep) for key in measured
    ]


class Tasks:
    def check(self, name: str, limit: int | None = None) -> None:
        if name not in ("gqa", "pope"):
            raise ValueError(f"task {name!r} is unknown")


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, Key]]:
    """What was measured through lmms-eval, by a stand-in for it."""
    done: list[tuple[str, int, Key]] = []

    class Harness:
        def __init__(self, model: str, *, batch_size: int, answered: Any) -> None:
            self.model, self.batch_size = model, batch_size

        def measure(self, key: Key) -> Cell:
            done.append((self.model, self.batch_size, key))
            return Cell(key, {"exact_match": 0.5, "other": 0.1}, 3, 100.0, 30.0, None, 0.1)

    monkeypatch.setitem(sys.modules, "gprune.evaluate.harness", SimpleNamespace(Harness=Harness, Tasks=Tasks))
    return done


def test_another_model_goes_through_lmms_eval(run: Run, harness: list[tuple[str, int, Key]]) -> None:
    model = str(embedded_path())
    result = run(toml("mine", ["foreground", "gprune"], [0.3]), "--model", model, "--limit", 3)
    assert result.code == 0, result.err
    assert "left out, foreground: Foreground has no mask" in result.err  # which no task comes with
    assert harness == [
        (model, 1, Key(model, t, m, k, None, 3)) for t in ("gqa", "pope") for m, k in (("none", 1.0), ("gprune", 0.3))
    ]
    text = Path("reproduction/mine.md").read_text()
    assert "| method | keep | tokens | gqa | pope | relative |" in text
    assert f"`gprune reproduce mine --model {model} --limit 3`" in text


def test_tasks_are_chosen(run: Run, harness: list[tuple[str, int, Key]]) -> None:
    path = toml("mine", ["gprune"], [0.3], "curves", 'across = "keep"\ncategories = ["text"]')
    assert run(path, "--model", embedded_path(), "--tasks", "pope", "--batch-size", 4).code == 0
    assert {(size, key.task) for _, size, key in harness} == {(4, "pope")}
    assert Path("reproduction/mine.png").exists()


def test_an_unknown_task_is_found_first(run: Run, harness: list[tuple[str, int, Key]]) -> None:
    result = run(toml("mine", ["gprune"], [0.3]), "--tasks", "gqa,gpa", "--model", embedded_path())
    assert result.code == 2 and "task 'gpa' is unknown" in result.err and not harness
    assert not Path("reproduction").exists()


def test_heatmaps_and_kept_patches(run: Run, embedded: tuple[Any, Any]) -> None:
    result = run("fig5", "fig6", "--keep", "0.5,0.2")
    assert result.code == 0, result.err
    assert "left out, fastv: FastV(keep=0.2)" in result.err
    for name in ("fig5", "fig6"):
        with Image.open(f"reproduction/{name}.png") as picture:
            assert 700 < picture.width <= 1200 and picture.height > 300
    heat, kept = (json.loads(Path(f"reproduction/{name}.json").read_text()) for name in ("fig5", "fig6"))
    first, fifth = _example(0), _example(5)
    assert [row["iterations"] for row in heat["rows"]] == [0, 1, 2, 5, 10]
    for row in heat["rows"]:
        report = _report(embedded, first, GPrune(iterations=row["iterations"]))
        for values, view in zip(row["views"], report.views, strict=True):
            np.testing.assert_allclose(values, report.scores[view.rows], rtol=1e-3)
    assert [(row["method"], row["keep"]) for row in kept["rows"]] == [
        ("tome", 0.5),
        ("tome", 0.2),
        ("fastv", 0.5),
        ("gprune", 0.5),
        ("gprune", 0.2),
    ]
    for row, pruner in zip(kept["rows"], (ToMe(0.5), ToMe(0.2), FastV(0.5), GPrune(0.5), GPrune(0.2)), strict=True):
        assert row["kept"] == _report(embedded, fifth, pruner).kept.tolist()


def _example(number: int) -> Any:
    return list(samples("test", number + 1))[number]


def _report(embedded: tuple[Any, Any], example: Any, pruner: Any) -> Any:
    model, processor = embedded
    inputs = build_inputs(model, processor, [([example.picture], example.question.question)])
    with torch.no_grad(), pruner.attach(model) as attached:
        model(**inputs)
    return attached.images[0]


def test_histogram_of_norms(run: Run, embedded: tuple[Any, Any]) -> None:
    assert run("fig1b", "--limit", 2).code == 0
    data = json.loads(Path("reproduction/fig1b.json").read_text())
    model, processor = embedded
    norms, covered = [], []
    for example in samples("test", 2):
        inputs = build_inputs(model, processor, [([example.picture], "hi")])
        with torch.no_grad():
            [features] = model.get_image_features(inputs["pixel_values"], inputs["image_sizes"]).pooler_output
        newline = (features == model.base_model.image_newline).all(-1)
        norms += features[~newline].norm(dim=-1).tolist()
        rows = (len(features) - 64) - int((~newline).sum() - 64)  # a newline ends every row of the grid
        for grid in ((8, 8), (rows, (int((~newline).sum()) - 64) // rows)):
            mask = Image.fromarray(example.foreground.astype(np.float32))
            covered += (np.asarray(mask.resize(grid[::-1], Image.Resampling.BOX)) > 0.5).ravel().tolist()
    assert data["tokens"]["whole image"] == len(norms)
    assert data["tokens"]["foreground"] == sum(covered)
    assert data["tokens"]["background"] == len(norms) - sum(covered)
    inside = [norm for norm, share in zip(norms, covered, strict=True) if share]
    assert data["median"] == pytest.approx({**data["median"], "whole image": np.median(norms)}, abs=0.01)
    assert data["median"]["foreground"] == pytest.approx(np.median(inside), abs=0.01)
    counts = np.histogram(np.array(norms), np.array(data["edges"]))[0] / len(norms) * 100
    assert np.abs(counts - np.array(data["percent"]["whole image"])).max() < 100 * 2 / len(norms)  # at rounded edges
    with Image.open("reproduction/fig1b.png") as picture:
        assert picture.width > 700


def test_pictures_of_ones_own(run: Run, tmp_path: Path) -> None:
    photos = write_photos(tmp_path)
    photo = photos["coffee"]
    Image.open(photo).convert("L").point(lambda value: 255 * (value > 128)).save("mask.png")
    result = run("fig1b", "fig6", "--image", photo, "--mask", "mask.png", "--model", embedded_path(), "--keep", "0.5")
    assert result.code == 0, result.err
    assert {row["picture"] for row in json.loads(Path("reproduction/fig6.json").read_text())["rows"]} == {str(photo)}
    tokens = json.loads(Path("reproduction/fig1b.json").read_text())["tokens"]
    assert 0 < tokens["foreground"] < tokens["whole image"] == tokens["foreground"] + tokens["background"]


@pytest.fixture
def nothing_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(gprune.scenes.model, "load_embedded", refuse)
    monkeypatch.setattr("transformers.AutoModelForImageTextToText.from_pretrained", refuse)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("table4",), "experiment 'table4' is unknown; accepted are table1, table2, table3, fig1a"),
        (("table1", "all"), "experiment 'all' is unknown"),
        (("nowhere.toml",), "nowhere.toml cannot be read"),
        (("table1", "--keep", "0"), "keep=0 keeps no token"),
        (("fig6", "--keep", "0.5,0"), "keep=0 keeps no token"),
        (("table1", "--keep", "much"), "--keep much: 'much' is no budget"),
        (("table1", "--model", "./no/such"), "model ./no/such cannot be loaded"),
        (("fig5", "--model", "MODEL"), "fig5 shows pictures, and only the embedded model comes with some"),
        (("fig1b", "--model", "MODEL"), "fig1b needs pictures whose foreground is known"),
        (("fig5", "--image", "nowhere.png"), "nowhere.png does not exist"),
        (("fig1b", "--mask", "nowhere.png"), "there are 1 masks for 0 pictures"),
        (("table1", "--image", "nowhere.png"), "--image and --mask are for fig1b, fig5 and fig6"),
    ],
)
def test_wrong_input(run: Run, nothing_loads: None, arguments: tuple[str, ...], reason: str) -> None:
    result = run(*(str(embedded_path()) if argument == "MODEL" else argument for argument in arguments))
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("gprune: ") and result.err.count("\n") == 1 and reason in result.err
    assert not list(Path().iterdir())


@pytest.mark.parametrize("arguments", [("--limit", "0"), ("--batch-size", "0"), ("--speed", "3")])
def test_usage(run: Run, nothing_loads: None, arguments: tuple[str, ...]) -> None:
    assert run("table1", *arguments).code == 2 and not list(Path().iterdir())


def test_two_experiments_of_one_name(run: Run, nothing_loads: None) -> None:
    path = toml("table1", ["gprune"], [0.3])
    result = run("table1", path)
    assert result.code == 2 and "two experiments are called table1" in result.err


def test_an_output_that_is_no_folder(run: Run, nothing_loads: None) -> None:
    Path("file").write_text("")
    for output in ("file", "file/below"):
        result = run("table2", "--limit", 7, "-o", output)
        assert result.code == 2 and f"output {output} cannot be made a folder" in result.err


def test_a_damaged_cell_is_named_before_anything_is_measured(run: Run, nothing_loads: None) -> None:
    folder = Path("reproduction/cells")
    folder.mkdir(parents=True)
    (folder / "scenes-first7-gprune-0.3.json").write_text("{")
    result = run("table2", "--limit", 7)
    assert result.code == 2 and "scenes-first7-gprune-0.3.json is no measured cell" in result.err


def test_all_skips_figures_without_pictures(run: Run, measured: list[Key], harness: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(Tasks, "check", lambda *_: None)
    result = run("all", "--model", embedded_path(), "--limit", 2)
    # The stand-in counts no FLOPs, which fig3 is drawn over.
    assert result.code == 1 and "FLOPs of some cells were not counted" in result.err
    for name in ("fig1b", "fig5", "fig6"):
        assert f"left out, {name}" in result.err
    assert {path.stem for path in Path("reproduction").glob("*.*")} == {"table1", "table2", "table3", "fig1a"}
    assert not measured


def test_without_matplotlib_only_tables(run: Run, measured: list[Key], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "gprune.evaluate.figures", raising=False)
    monkeypatch.delattr(gprune.evaluate, "figures", raising=False)
    result = run("fig4")
    assert result.code == 2 and "pip install 'gprune[draw]'" in result.err and not measured
    assert run("table2").code == 0
