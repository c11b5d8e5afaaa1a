"""Every reader against damaged, hostile and accidental input: what it must never do is in `judging`.

PYTHONPATH=.:tests python -m fuzzing --count 10000                 all readers, each in a process of its own
PYTHONPATH=.:tests python -m fuzzing --count 10000 --readers gguf worlds
PYTHONPATH=.:tests python -m fuzzing --again DIR/gguf-17-4711      one input that failed, once more
"""
