"""Rows and tables of what `throughput` measured: medians, spreads, and ratios to the unpruned model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median
from typing import Any

from .cells import BASELINE
from .tables import layout
from .throughput import Speed


def rows(speeds: Sequence[Speed]) -> list[dict[str, Any]]:
    """One flat row per measurement: medians over the laps, with the least and the most, and the laps themselves.

    "..._speedup" is how many times as fast as the unpruned model in the same setting; the median of a rate is that of
    the median seconds. "ideal_speedup" is how many times as few FLOPs come before the first token, and "of_ideal" how
    much of that "first_token_speedup" is. What could not be measured is None.
    """
    unpruned = {speed.setting: speed for speed in speeds if speed.method == BASELINE}
    return [_row(speed, unpruned.get(speed.setting)) for speed in speeds]


def _row(speed: Speed, unpruned: Speed | None) -> dict[str, Any]:
    setting, spent, own = speed.setting, speed.cost, _summary(speed)
    base = {} if unpruned is None else _summary(unpruned)
    full = None if unpruned is None or unpruned.cost is None else unpruned.cost.total
    share = None if spent is None or full is None else spent.total / full
    speedup = _ratio(base.get("first_token_seconds"), own["first_token_seconds"])
    height, width = setting.image_size
    return {
        "method": speed.method,
        "keep": speed.keep,
        "batch_size": setting.batch_size,
        "image_size": f"{width}x{height}",
        "text_tokens": setting.text_tokens,
        "new_tokens": setting.new_tokens,
        "visual_tokens": None if spent is None else spent.visual_tokens,
        "kept_tokens": None if spent is None else spent.kept_tokens,
        "flops": None if spent is None else spent.total,
        "flops_share": share,
        "kv_bytes": None if spent is None else spent.kv_bytes,
        **own,
        "samples_speedup": _ratio(own["samples_per_second"], base.get("samples_per_second")),
        "first_token_speedup": speedup,
        "ideal_speedup": _ratio(1.0, share),
        "of_ideal": None if speedup is None or share is None else speedup * share,
        "decode_speedup": _ratio(own["decode_tokens_per_second"], base.get("decode_tokens_per_second")),
        "peak_bytes": max((lap.peak for lap in speed.laps if lap.peak is not None), default=None),
        "laps_first_seconds": [lap.first for lap in speed.laps],
        "laps_seconds": [lap.total for lap in speed.laps],
        "error": speed.error,
    }


def _summary(speed: Speed) -> dict[str, float | None]:
    batch, decoded = speed.setting.batch_size, speed.setting.new_tokens - 1
    first, total = [lap.first for lap in speed.laps], [lap.total for lap in speed.laps]
    decoding = [lap.total - lap.first for lap in speed.laps] if decoded else []
    return {
        "samples_per_second": batch / median(total) if total else None,
        "samples_per_second_min": batch / max(total) if total else None,
        "samples_per_second_max": batch / min(total) if total else None,
        "first_token_seconds": median(first) if first else None,
        "first_token_seconds_min": min(first, default=None),
        "first_token_seconds_max": max(first, default=None),
        "decode_tokens_per_second": batch * decoded / median(decoding) if decoding else None,
        "decode_tokens_per_second_min": batch * decoded / max(decoding) if decoding else None,
        "decode_tokens_per_second_max": batch * decoded / min(decoding) if decoding else None,
    }


def _ratio(value: float | None, of: float | None) -> float | None:
    return None if value is None or of is None else value / of


HEADINGS = (
    "method",
    "keep",
    "tokens",
    "samples/s",
    "×",
    "first token ms",
    "×",
    "ideal ×",
    "of ideal",
    "decode tokens/s",
    "×",
    "peak GB",
    "KV cache MB",
    "TFLOPs",
)


def speed_tables(table: Sequence[dict[str, Any]]) -> str:
    """A table per setting: medians, and in brackets the least and the most of the laps.

    Args:
        table: of `rows`.
    """
    names = ("batch_size", "image_size", "text_tokens", "new_tokens")
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in table:
        groups.setdefault(tuple(row[name] for name in names), []).append(row)
    parts = []
    for (batch, size, text, new), own in groups.items():
        visual = next((f"{row['visual_tokens']:,}" for row in own if row["visual_tokens"] is not None), "unknown")
        parts.append(
            f"Batch of {batch}, image of {size}, visual tokens: {visual}, other tokens: {text}, new tokens: {new}.\n\n"
            + layout(HEADINGS, map(_cells, own))
        )
    return "\n".join(parts)


def _cells(row: dict[str, Any]) -> list[str]:
    def number(name: str, scale: float = 1.0) -> str:
        return "—" if row[name] is None else _three_digits(row[name] * scale)

    def times(name: str) -> str:
        return "—" if row[name] is None else f"{row[name]:.2f}"

    def spread(name: str, scale: float = 1.0) -> str:
        if row[name] is None:
            return row["error"] or "—"
        return f"{number(name, scale)} ({number(f'{name}_min', scale)}–{number(f'{name}_max', scale)})"

    return [
        row["method"],
        str(row["keep"]),
        "—" if row["kept_tokens"] is None else f"{row['kept_tokens']:,}",
        spread("samples_per_second"),
        times("samples_speedup"),
        spread("first_token_seconds", 1e3),
        times("first_token_speedup"),
        times("ideal_speedup"),
        times("of_ideal"),
        spread("decode_tokens_per_second"),
        times("decode_speedup"),
        number("peak_bytes", 1e-9),
        number("kv_bytes", 1e-6),
        number("flops", 1e-12),
    ]


def _three_digits(value: float) -> str:
    """Three significant digits, all of those before the point, and no exponent."""
    rounded = float(f"{value:.2e}")
    places = 2 - math.floor(math.log10(rounded)) if rounded > 0 else 0
    return f"{value:,.{max(0, places)}f}"
