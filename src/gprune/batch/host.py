"""What a job relies on in Ray, beyond what Ray documents for its users."""

from __future__ import annotations

from ..contract import Contract

RAY = Contract(
    "ray",
    ">=2.60,<2.61",
    (
        "ray._private.services:canonicalize_bootstrap_address(addr)",
        "ray.data.exceptions:ExecutionTimeoutError",
        "ray.data:Dataset.context",
        # Ray lets anything be set on it, so that a setting of another name would only be lost.
        "ray.data:DataContext.enable_progress_bars",
        "ray.data:DataContext.execution_no_progress_timeout_s",
        "ray.data:DataContext.wait_for_min_actors_s",
    ),
)
"""Where a cluster is, and how long a job waits."""
