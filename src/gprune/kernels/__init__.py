"""Faster ways to compute what `gprune.graph` defines, chosen behind it."""
