"""Counters on the `/metrics` page of vLLM.

Tokens are counted where requests are read, seconds where the model runs; when these are two processes, the page shows
the latter only if prometheus_client shares its numbers between processes (`PROMETHEUS_MULTIPROC_DIR`), as
`gprune serve` has it do.
"""

from prometheus_client import Counter

VISUAL = Counter("gprune_visual_tokens", "Visual tokens of the images of all requests, before pruning.")
KEPT = Counter("gprune_kept_tokens", "Visual tokens of the images of all requests that reach the language model.")
SECONDS = Counter("gprune_selection_seconds", "Time spent choosing tokens, summed over the workers.")
