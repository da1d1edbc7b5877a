"""`gprune reproduce`: the paper's tables and figures, on the embedded model or any other."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .loading import EMBEDDED, load_model
from .measuring import Bars, make_folder, possible_cells
from .options import Model, WrongInput, checking_input, read_list, say_left_out

if TYPE_CHECKING:
    from ..evaluate.cells import Key
    from ..evaluate.experiment import Experiment
    from ..evaluate.reproduction import Setting
    from ..evaluate.vision import Gallery


def reproduce(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="Experiments, TOML files like theirs, or all; left out: a list of them.", metavar="NAME..."
        ),
    ] = None,
    model: Model = EMBEDDED,
    tasks: Annotated[
        str | None,
        typer.Option(help="Comma-separated, by their names in lmms-eval, instead of the paper's or of scenes."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="So many first documents of every task.")] = None,
    keep: Annotated[
        str | None,
        typer.Option(help="Instead of the experiment's. Comma-separated: 0.3 is a ratio, 100 a number of tokens."),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Documents at once; left out: 32 of scenes, 1 of any other task.")
    ] = None,
    image: Annotated[
        list[Path] | None, typer.Option(help="A picture for fig1b, fig5 and fig6; may be given several times.")
    ] = None,
    mask: Annotated[
        list[Path] | None,
        typer.Option(help="For fig1b, of each --image in turn: a picture that is black where the background is."),
    ] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="The folder to write to.")] = Path("reproduction"),
) -> None:
    """Run experiments of the paper and write their tables and figures.

    Finished measurements are kept in OUTPUT/cells, shared by all experiments, and not repeated.

    Example: `gprune reproduce table2 fig4 --limit 140 -o reproduction`
    """
    if not names:
        return _list()
    experiments = _chosen(names)
    measured = [each for each in experiments if each.of_cells]
    drawn = [each for each in experiments if not each.of_cells]
    if (image or mask) and not drawn:
        raise WrongInput("--image and --mask are for fig1b, fig5 and fig6; name one of them, or leave them out")
    setting = _setting(model, tasks, keep, limit)
    with checking_input():
        wanted = {each.name: setting.keys_of(each) for each in measured}
        if any(each.kind != "table" for each in experiments):
            from ..evaluate import figures  # noqa: F401  its error names the extra where matplotlib is missing
    if drawn:
        from ..evaluate.vision import Gallery

        with checking_input():
            gallery = Gallery(image or [], mask or [], scenes=model == EMBEDDED)
        drawn = _with_pictures(drawn, gallery, skip=names == ["all"])
    possible, left_out = _possible(model, wanted)
    _check_cells(possible, output)
    make_folder(output)
    # First what is drawn, so that its model is gone when another is loaded to measure.
    if drawn:
        _draw(drawn, setting, gallery, output)
    if measured:
        _measure(measured, setting, possible, left_out, batch_size, output)


def _list() -> None:
    from ..evaluate.experiment import shipped

    for name, experiment in shipped().items():
        print(f"{name:8}{experiment.title}")


def _chosen(names: Sequence[str]) -> list[Experiment]:
    """The experiments of these names, each once."""
    from ..evaluate.experiment import read, shipped

    known = shipped()
    found: dict[str, Experiment] = {}
    for name in dict.fromkeys(known if names == ["all"] else names):
        if name not in known and not name.endswith(".toml"):
            raise WrongInput(
                f"experiment {name!r} is unknown; accepted are {', '.join(known)}, paths of .toml files, or all alone"
            )
        with checking_input():
            experiment = known.get(name) or read(Path(name))
        if experiment.name in found:
            raise WrongInput(f"two experiments are called {experiment.name}, and so would be their files; rename one")
        found[experiment.name] = experiment
    return list(found.values())


def _setting(model: str, tasks: str | None, keep: str | None, limit: int | None) -> Setting:
    from ..evaluate.reproduction import Setting
    from ..spec import parse_keep

    chosen = () if tasks is None else tuple(read_list(tasks, "tasks", str))
    budgets = () if keep is None else tuple(read_list(keep, "keep", parse_keep))
    with checking_input():
        return Setting(model, chosen, budgets, limit)


def _with_pictures(drawn: Sequence[Experiment], gallery: Gallery, *, skip: bool) -> list[Experiment]:
    """The figures whose pictures are there; the others are skipped or an error."""
    there = []
    for experiment in drawn:
        try:
            gallery.check(experiment)
            there.append(experiment)
        except ValueError as error:
            if not skip:
                raise WrongInput(str(error)) from error
            say_left_out([str(error)])
    return there


def _possible(model: str, wanted: dict[str, list[Key]]) -> tuple[dict[str, list[Key]], dict[str, list[str]]]:
    """Of each experiment the cells that the model allows, and of the others why not."""
    from ..evaluate.reproduction import refusal_on

    if not wanted:
        return {}, {}
    with checking_input():
        refusal = refusal_on(model)
    found = {name: possible_cells(keys, refusal) for name, keys in wanted.items()}
    say_left_out(list(dict.fromkeys(reason for _, reasons in found.values() for reason in reasons)))
    return {name: keys for name, (keys, _) in found.items()}, {name: reasons for name, (_, reasons) in found.items()}


def _check_cells(wanted: dict[str, list[Key]], output: Path) -> None:
    """Find damaged cells, and tasks that are unknown, before anything is measured."""
    from ..evaluate.cells import load_cell
    from ..evaluate.reproduction import check_tasks

    with checking_input():
        check_tasks([key for keys in wanted.values() for key in keys if load_cell(key, output / "cells") is None])


def _draw(drawn: Sequence[Experiment], setting: Setting, gallery: Gallery, output: Path) -> None:
    from ..evaluate.reproduction import write_drawn
    from ..evaluate.vision import Vision

    vision = Vision(*load_model(setting.model))
    for experiment in drawn:
        with checking_input():
            path, left_out = write_drawn(experiment, setting, vision, gallery, output)
        say_left_out(left_out)
        print(f"wrote {path}", file=sys.stderr)


def _measure(
    measured: Sequence[Experiment],
    setting: Setting,
    possible: dict[str, list[Key]],
    left_out: dict[str, list[str]],
    batch_size: int | None,
    output: Path,
) -> None:
    from ..evaluate.reproduction import measurer, write_measured
    from ..evaluate.runs import measure_cells

    bars = Bars()
    measure = measurer(batch_size, bars.answered)
    with bars.shown(sum(map(len, possible.values()))):
        for each in measured:
            cells = measure_cells(
                possible[each.name], output / "cells", measure, started=bars.started, finished=bars.finished
            )
            bars.say(f"wrote {write_measured(each, setting, cells, left_out[each.name], output)}")
