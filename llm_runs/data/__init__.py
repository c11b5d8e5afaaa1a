"""Preference data as people have them: read, checked, rendered to token ids once, split, and described in a report.

    source -> records -> comparisons | scored completions | unpaired labels -> pairs -> token ids -> training and held-out pairs
    sources.py           formats.py, conversations.py                      pairing.py  rendering.py  splitting.py

`load` does all of it, `save` writes what it gave with the report, `report.py` describes it.
"""

from llm_runs.data.artefact import save
from llm_runs.data.loading import Loaded, load
from llm_runs.data.problems import PreferenceFileError, Problem

__all__ = ["Loaded", "PreferenceFileError", "Problem", "load", "save"]
