"""The garbage collector of a rank's process: off while it starts, rare while it runs.

Rule: a collection walks through cold memory on a core that solvers use, and
what a rank makes (messages, records) is freed by counting references.

    gc.disable() (cli/entry.py) --> imports --> settle_collector() --> the rank's loop
"""

from __future__ import annotations

import gc

OBJECTS_BETWEEN = 50_000
"""Containers made and not freed before the young generation is looked at."""


def settle_collector() -> None:
    """Leave what was imported out of all collections, and collect rarely from now on."""
    gc.freeze()
    gc.set_threshold(OBJECTS_BETWEEN, 20, 20)
    gc.enable()
