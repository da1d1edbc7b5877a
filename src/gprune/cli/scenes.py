"""`gprune scenes`: the embedded benchmark, and sample pictures of it."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from .models import EMBEDDED, load
from .options import (
    AsJson,
    Keeps,
    Methods,
    Model,
    WrongInput,
    baseline,
    output_files,
    possible,
    print_json,
    read_pruners,
)
from .progress import progress_bar


def scenes(
    method: Methods = "gprune,random,uniform,l2norm",
    keep: Keeps = "0.5,0.3,0.1",
    limit: Annotated[int, typer.Option(min=1, help="Questions; the seven categories take turns.")] = 700,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of a method that draws at random.")] = 3,
    model: Model = EMBEDDED,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures at once.")] = 16,
    sample: Annotated[
        int | None, typer.Option(min=1, help="Write so many test pictures and questions instead.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Write OUTPUT.md and OUTPUT.json too; with --sample, the folder."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure methods on the embedded benchmark: accuracy per category, beside the unpruned model.

    Example: `gprune scenes --method gprune,random --keep 0.5,0.3 --limit 140`
    """
    if sample is not None:
        return _write_sample(sample, output, as_json)
    from ..spec import seeded

    runs = [baseline()]
    for name, given in read_pruners(method, keep, masked=True):
        runs += [(name, each) for each in seeded(given, seeds)]
    files = [] if output is None else output_files(output)
    net, processor = load(model)
    runs, impossible = possible(net, runs)
    from ..attach import verify
    from ..scenes.benchmark import evaluate, examples, flops, mixed_inputs, rows

    verify(net, mixed_inputs(net, processor))
    tests = list(examples("test", limit))
    table: list[dict[str, Any]] = []
    with progress_bar() as progress:
        task = progress.add_task("", total=len(runs) * len(tests))
        for name, pruner in runs:
            progress.update(task, description=f"{name} keep={pruner.keep}")
            outcomes = evaluate(
                net,
                processor,
                tests,
                pruner,
                batch_size=batch_size,
                progress=lambda done: progress.advance(task, done),
            )
            spent = flops(net, processor, tests, pruner)
            table += rows(name, pruner.keep, getattr(pruner, "seed", None), outcomes, spent)
    text = markdown(table, impossible)
    for file, content in zip(files, (json.dumps(table, indent=1) + "\n", text), strict=False):
        file.write_text(content)
    if as_json:
        print_json(table)
    else:
        print(text, end="")


def markdown(table: list[dict[str, Any]], impossible: Sequence[str] = ()) -> str:
    """One line per method and ratio: accuracy in percent per category, mean ± standard deviation over seeds.

    Args:
        impossible: what could not be run, each with the reason.
    """
    categories = list(dict.fromkeys(row["category"] for row in table))
    lines = [
        "| method | keep | tokens | " + " | ".join(categories) + " | MFLOPs | seconds |",
        "|---|---|---|" + "---|" * (len(categories) + 2),
    ]
    # As text: 1 is one token and 1.0 is all of them, yet they are equal.
    for method, keep in dict.fromkeys((row["method"], str(row["keep"])) for row in table):
        part = [row for row in table if (row["method"], str(row["keep"])) == (method, keep)]
        cells = [_accuracy([row["accuracy"] for row in part if row["category"] == name]) for name in categories]
        whole = [row for row in part if row["category"] == "overall"]
        kept, spent, seconds = (
            statistics.fmean(row[name] for row in whole) for name in ("kept_tokens", "flops", "seconds")
        )
        lines.append(f"| {method} | {keep} | {kept:.0f} | {' | '.join(cells)} | {spent / 1e6:,.0f} | {seconds:.3f} |")
    overall = [row for row in table if row["category"] == "overall"]
    notes = [
        f"{overall[0]['n']} test questions; {overall[0]['visual_tokens']:.0f} visual tokens per picture on average. "
        "FLOPs per picture up to the first token of the answer; seconds per answer, on the machine at hand."
    ]
    shares = {row["method"]: row["edge_share"] for row in overall if row["edge_share"] is not None}
    notes += [f"Graph of {name}: {share:.0%} of all pairs of tokens are edges." for name, share in shares.items()]
    left_out = ["", *(f"Left out, {reason}." for reason in impossible)] if impossible else []
    return "\n".join([*lines, "", " ".join(notes), *left_out, ""])


def _accuracy(values: list[float]) -> str:
    mean = f"{100 * statistics.fmean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ± {100 * statistics.stdev(values):.1f}"


def _write_sample(count: int, folder: Path | None, as_json: bool) -> None:
    from ..scenes.benchmark import examples

    if folder is None:
        raise WrongInput("--sample needs a folder for its pictures; add -o FOLDER")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WrongInput(f"--sample cannot make the folder {folder} ({error}); give another name after -o") from error
    asked = []
    for example in examples("test", count):
        name = f"{example.index:03d}.png"
        example.picture.save(folder / name)
        asked.append({"picture": name, **vars(example.question)})
    (folder / "questions.json").write_text(json.dumps(asked, indent=1) + "\n")
    if as_json:
        print_json(asked)
    print(f"wrote {count} pictures and questions.json to {folder}", file=sys.stderr)
