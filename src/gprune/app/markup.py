"""What the page says, as HTML; all that comes from a user or a model is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from ..evaluate.fidelity_table import Fidelity
from ..pruners import Unpruned
from ..tokens import Cover, Keep
from .studio import Answer, Neighbourhood, Panel

CSS = """
body:not(.dark) { --color-accent: #c2410c; } /* Gradio's orange is too pale for text on white, and under it */
body { --block-info-text-color: var(--body-text-color); }
#ask { background: #c2410c; color: white; }
input[type=range]::-webkit-slider-thumb { border: 2px solid var(--color-accent); }
input[type=range]::-moz-range-thumb { border: 2px solid var(--color-accent); }
:focus-visible { outline: 3px solid var(--color-accent) !important; outline-offset: 1px; }
.html-container { padding: 0 !important; }
.block:has(> .html-container > .prose:empty) { display: none; }
#header h1 { margin: 0; font-size: 1.4rem; }
#header p, .caption, .message { color: var(--body-text-color); opacity: 0.8; margin: 0.2rem 0; }
.error { color: var(--error-text-color, #b91c1c); margin: 0.2rem 0; overflow-wrap: anywhere; }
.min_value, .max_value { color: var(--body-text-color) !important; }

#examples .grid-wrap { height: auto; min-height: 0; }
#examples .grid-container { grid-template-columns: repeat(5, minmax(0, 1fr)) !important;
  grid-auto-rows: auto !important; }
#examples .thumbnail-item { width: 100% !important; height: auto !important; aspect-ratio: 1; }
#examples .caption-label { display: none; } /* read out, not shown */

.chips .wrap { gap: 0.35rem; }
.chips label { padding: 0.15rem 0.7rem !important; border-radius: 999px; box-shadow: none !important; }
.chips label span { margin: 0 !important; }
.chips input { position: absolute; opacity: 0; } /* still there for keys and readers */
.chips label:has(:checked) { background: #c2410c; border-color: #c2410c; color: white; }
.chips label:has(:focus-visible) { outline: 3px solid var(--color-accent); outline-offset: 2px; }
#more .form { border: 0; background: none; }
#more .chips { border: 0; background: none; padding: 0.2rem 0; }

.panel { background: none !important; border: 0 !important; border-radius: 0 !important; }
.panel img { cursor: crosshair; border-radius: 4px; }
.row:has(> .panel) { align-items: flex-end; }
.panel .icon-button-wrapper { top: -1.6rem !important; right: 0 !important; border: 0; background: none;
  box-shadow: none; }
.panel > label[data-testid=block-label] { position: static; display: block; border: 0; padding: 0.2rem 1.8rem 0.3rem 0;
  background: none; box-shadow: none; color: var(--body-text-color); font-size: 0.85rem;
  font-variant-numeric: tabular-nums; white-space: normal; }
.panel > label[data-testid=block-label] svg, .panel > label[data-testid=block-label] span { display: none; }

.legend { display: flex; flex-wrap: wrap; gap: 0.25rem 1.25rem; margin: 0; padding: 0; list-style: none; }
.legend li { display: flex; align-items: center; gap: 0.4rem; margin: 0 !important; font-size: 0.85rem; }
.legend i { width: 1.6rem; height: 1.1rem; border-radius: 3px; border: 1px solid var(--border-color-primary); }
.legend .kept { background: linear-gradient(90deg, #3b82c4, #e8a33d); }
.legend .dropped { background: repeating-linear-gradient(135deg, #969696 0 1.5px, #ebebeb 1.5px 7px); }
.legend .merged { background: repeating-linear-gradient(45deg, #5f82c8 0 1.5px, #dee8f7 1.5px 7px); }

.answers { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 0.75rem; }
.answers article { border: 1px solid var(--border-color-primary); border-radius: 8px; padding: 0.75rem; }
.answers h3, #kept h3 { margin: 0; font-size: 0.9rem; color: var(--body-text-color); opacity: 0.8; }
.answers .said { font-size: 1.15rem; margin: 0.4rem 0; min-height: 1.5em; overflow-wrap: anywhere;
  max-height: 10em; overflow-y: auto; }
.compared { font-size: 0.9rem; font-variant-numeric: tabular-nums; }
.compared, .compared tr, .compared th, .compared td { border: 0 !important; }
.compared th, .compared td { padding: 0.15rem 1rem 0.15rem 0; text-align: right; }
.compared th:first-child, .compared td:first-child { text-align: left; }
.figures { width: 100%; font-size: 0.85rem; }
.figures, .figures tr, .figures td { border: 0 !important; }
.figures td { padding: 0.1rem 0; }
.figures td:last-child { text-align: right; font-variant-numeric: tabular-nums; }

@media (min-width: 1000px) {
  #results { position: sticky; top: 1rem; align-self: flex-start; } /* seen while the sliders are moved */
}
@media (max-width: 640px) {
  main { padding: 0.75rem !important; }
  #results { display: flex; }
  #answers { order: -1; } /* below the button that asks, not below all the pictures */
  .compared, .compared tbody { display: block; }
  .compared tr:first-child { display: none; }
  .compared tr { display: grid; grid-template-columns: 1fr 1fr; padding: 0.4rem 0;
    border-top: 1px solid var(--border-color-primary) !important; }
  .compared td { display: flex; justify-content: space-between; }
  .compared td:first-child { grid-column: 1 / 3; font-weight: bold; }
  .compared td:not(:first-child)::before { content: attr(data-label); color: var(--body-text-color); opacity: 0.8; }
}
"""


def header(model: str) -> str:
    """The top of the page."""
    note = " It knows the rendered scenes, and nothing about photos." if model == "embedded" else ""
    return (
        "<h1>gprune: see what a pruner throws away</h1>"
        f"<p>Striped patches never reach the language model. Model: {escape(model)}.{note}</p>"
    )


def legend() -> str:
    """What the pictures of all methods show, once."""
    meanings = (
        ("kept", "kept"),
        ("dropped", "dropped"),
        ("merged", "merged into kept ones, all or some of them"),
    )
    marks = "".join(f'<li><i class="{name}" aria-hidden="true"></i>{words}</li>' for name, words in meanings)
    return f'<ul class="legend" aria-label="What the patches show">{marks}</ul>'


def message(text: str) -> str:
    """A hint."""
    return f'<p class="message">{escape(text)}</p>'


def error(text: object) -> str:
    """What went wrong."""
    return f'<p class="error" role="alert">{escape(str(text))}</p>'


def caption(panel: Panel) -> str:
    """What stands above the picture of a method."""
    note = error(panel.note) if panel.failed else f'<p class="caption">{escape(panel.note)}</p>'
    return f"<h3>{escape(column_name(panel.method, panel.keep))}</h3>\n{note}"


def column_name(method: str, keep: Keep) -> str:
    """What a method with a budget is called."""
    budget = f"cover {keep.share:g}" if isinstance(keep, Cover) else f"keep {keep}"
    return f"{method}, {budget}"


def answers(given: Sequence[Answer]) -> str:
    """A card for every answer; cost in proportion to that of the first, the unpruned model's."""
    return f'<div class="answers">{"".join(_card(answer, given[0]) for answer in given)}</div>'


def comparison(measured: Fidelity) -> str:
    """A row for every method and ratio: how much of the unpruned answer it would have said."""
    titles = ("method", "keep", "tokens", "agree", "same answer", "NLL rises by", "coverage")
    lines = [
        (
            row["method"],
            f"{row['keep']:g}",
            f"{row['kept_tokens']:.0f}",
            f"{row['agreement']:.0%}",
            "yes" if row["exact"] == 1 else "no",
            f"{row['rise']:.2f}",
            "—" if row["coverage"] is None else f"{row['coverage']:.2f}",
        )
        for row in measured.rows[1:]
    ]
    cells = [
        "".join(f'<td data-label="{title}">{escape(cell)}</td>' for title, cell in zip(titles, line, strict=True))
        for line in lines
    ]
    head = "".join(f'<th scope="col">{title}</th>' for title in titles)
    hint = (
        f"Of the {measured.rows[0]['answer_tokens']} tokens that the model answers without pruning, with the one that "
        "ends the answer, so many are the likeliest with it. One picture decides nothing: gprune fidelity FOLDER "
        "measures many, with standard errors, and says which budget to choose."
    )
    return f'<table class="compared"><tr>{head}</tr><tr>{"</tr><tr>".join(cells)}</tr></table>{message(hint)}'


def patch(found: Neighbourhood) -> str:
    """The score, rank and edges of a patch."""
    near = "".join(
        _row(f"nearest {i}", f"row {patch.row + 1}, column {patch.column + 1}: cosine {cosine:.3f}")
        for i, (patch, cosine) in enumerate(found.nearest, 1)
    )
    where = f"row {found.patch.row + 1}, column {found.patch.column + 1}"
    rows = [
        _row("patch", f"{where} of {found.name}"),
        _row("score S(t) / D", f"{found.score:.4g}"),
        _row("rank", f"{found.rank} of {found.count}"),
        _row("degree, with itself", str(found.degree)),
    ]
    return f'<table class="figures">{"".join(rows)}{near}</table>'


def _card(answer: Answer, whole: Answer) -> str:
    name = "all tokens" if answer.method == Unpruned.name else column_name(answer.method, answer.keep)
    said = error(answer.error) if answer.error is not None else f'<p class="said">{escape(answer.text)}</p>'
    return f"<article><h3>{escape(name)}</h3>{said}{_figures(answer, whole)}</article>"


def _figures(answer: Answer, whole: Answer) -> str:
    if answer.cost is None or answer.seconds is None or whole.cost is None:
        return ""
    spent, all_of_it = answer.cost, whole.cost
    rows = [
        ("visual tokens", f"{spent.kept_tokens:,} of {spent.visual_tokens:,}"),
        ("GFLOPs", f"{spent.total / 1e9:,.2f} ({spent.total / all_of_it.total:.0%})"),
        ("KV cache", f"{spent.kv_bytes / 2**20:,.2f} MiB ({spent.kv_bytes / all_of_it.kv_bytes:.0%})"),
        ("seconds", f"{answer.seconds:.3f}"),
    ]
    return f'<table class="figures">{"".join(_row(*row) for row in rows)}</table>'


def _row(name: str, value: str) -> str:
    return f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>"
