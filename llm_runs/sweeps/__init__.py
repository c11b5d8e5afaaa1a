"""Many runs: a grid of objectives, strengths, seeds and data settings over one configuration, as resumable jobs.

    SWEEP.yaml -> runs of every data setting -> tasks, each thing that runs share once -> jobs -> records
    spec.py                                     stages.py, tasks.py                      work.py, local.py, slurm.py

`states.py` and `status.py` read what there is without loading torch; `estimate.py` says beforehand what it will take.
"""
