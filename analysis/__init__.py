"""Run records, statistics and claims. Reads records only; imports no producer (``toy_bandits``, ``llm_runs``)."""
