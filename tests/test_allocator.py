"""Freed memory is used again without the kernel's help."""

from __future__ import annotations

import subprocess
import sys

import pytest

FAULTS_OF_BIG_ARRAYS = """
import resource, sys
import numpy as np
from bloodcells.allocator import keep_freed_memory

if sys.argv[1] == "keep":
    assert keep_freed_memory()
np.ones(2**23)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    np.ones(2**23)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", FAULTS_OF_BIG_ARRAYS, how],
        capture_output=True,
        text=True,
        check=True,
        env={"NUMPY_MADVISE_HUGEPAGE": "0"},
    )
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mallopt is glibc's")
def test_kept_memory_is_not_faulted_in_again() -> None:
    pages = 10 * 2**23 * 8 // 4096
    assert faults("leave") > pages / 2
    assert faults("keep") < pages / 100
