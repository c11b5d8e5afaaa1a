"""Runs that sample from the policy while they train: rlhf_ppo, espo, rso, iterative_dpo, accelerated; and best_of_n, which only samples.

Each method is a small loop over shared steps (`rounds.Bench`): sample, score, reference log-probs, pair and label, train, evaluate.
"""
