"""`python -m gprune`, as launchers of several processes start it."""

from .cli import main

main()
