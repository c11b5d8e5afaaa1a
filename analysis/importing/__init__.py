"""``python -m analysis import``: runs of other programs as records, so that they appear beside the suite's own.

A module per source (`trainer_state`, `lm_eval_results`, `event_files`) makes an `imported.Imported` of files; `names` says which of their
numbers mean the same as ours; `command` writes the records.
"""
