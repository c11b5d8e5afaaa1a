"""Measurements in processes of their own."""

import os

import pytest
from forkserver import LIBRARIES

from benchmarks.own_process import EndedEarly, in_a_process


def test_a_process_of_its_own_gives_its_result_or_says_how_it_ended() -> None:
    assert in_a_process(os.getpid, libraries=LIBRARIES) not in (os.getpid(), None)
    with pytest.raises(EndedEarly, match="ended with exit code 3"):
        in_a_process(os._exit, 3, libraries=LIBRARIES)
