"""Processes for tests that need several, or that are killed: forked from a server that has imported everything once."""

from __future__ import annotations

import multiprocessing

# There is one server in a process: whoever starts it says what all that come after find loaded.
LIBRARIES = [
    "llm_runs.pipeline",
    "llm_runs.online.runs",
    "llm_runs.comparison",
    "toy_bandits.__main__",
    "test_training",
]
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(LIBRARIES)
