"""What the page says, as HTML; all that comes from a user or a model is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from ..pruners import Unpruned
from .studio import Answer, Neighbourhood, Panel

CSS = """
#examples .grid-wrap { height: auto; min-height: 0; }
#examples .grid-container { grid-template-columns: repeat(5, minmax(0, 1fr)) !important;
  grid-auto-rows: auto !important; }
#examples .thumbnail-item { width: 100% !important; height: auto !important; aspect-ratio: 1; }
#header h1 { margin: 0; font-size: 1.4rem; }
#header p, .caption, .message { color: var(--body-text-color); opacity: 0.8; margin: 0.2rem 0; }
.error { color: var(--error-text-color, #b91c1c); margin: 0.2rem 0; overflow-wrap: anywhere; }
.panel img { cursor: crosshair; }
.answers { display: grid; grid-template-columns: repeat(auto-fit, minmax(170px, 1fr)); gap: 0.75rem; }
.answers article { border: 1px solid var(--border-color-primary); border-radius: 8px; padding: 0.75rem; }
.answers h3 { margin: 0; font-size: 0.9rem; color: var(--body-text-color); opacity: 0.8; }
.answers .said { font-size: 1.15rem; margin: 0.4rem 0; min-height: 1.5em; overflow-wrap: anywhere;
  max-height: 10em; overflow-y: auto; }
.figures { width: 100%; font-size: 0.85rem; }
.figures, .figures tr, .figures td { border: 0 !important; }
.figures td { padding: 0.1rem 0; }
.figures td:last-child { text-align: right; font-variant-numeric: tabular-nums; }
"""


def header(model: str) -> str:
    """The top of the page."""
    note = " It knows the rendered scenes, and nothing about photos." if model == "embedded" else ""
    return (
        "<h1>gprune: see what a pruner throws away</h1>"
        f"<p>Grey patches never reach the language model. Model: {escape(model)}.{note}</p>"
    )


def message(text: str) -> str:
    """A hint."""
    return f'<p class="message">{escape(text)}</p>'


def error(text: object) -> str:
    """What went wrong."""
    return f'<p class="error" role="alert">{escape(str(text))}</p>'


def caption(panel: Panel) -> str:
    """What stands above the picture of a method."""
    return f'<p class="caption"><b>{escape(panel.method)}</b> {escape(panel.note)}</p>'


def answers(given: Sequence[Answer], keep: float) -> str:
    """A card for every answer; cost in proportion to that of the first, the unpruned model's."""
    return f'<div class="answers">{"".join(_card(answer, given[0], keep) for answer in given)}</div>'


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
    return (
        f'<table class="figures">{"".join(rows)}{near}</table>'
        '<p class="caption">Its neighbours keep their colours; red: the patch, orange: the nearest.</p>'
    )


def _card(answer: Answer, whole: Answer, keep: float) -> str:
    title = "all tokens" if answer.method == Unpruned.name else f"{answer.method}, keep {keep:g}"
    said = error(answer.error) if answer.error is not None else f'<p class="said">{escape(answer.text)}</p>'
    return f"<article><h3>{escape(title)}</h3>{said}{_figures(answer, whole)}</article>"


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
