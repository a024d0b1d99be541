"""Ends what a killed job leaves of the Ray that it started.

When a driver is killed, its raylet dies with it and most workers follow within two seconds, but the
raylet's agents first try for 60 s to report the death to a control store that is dead as well (Ray
2.60, ``report_raylet_error_logs``). This process waits at the other end of a pipe for the driver's
death, however it comes, and then ends what is left of the raylet's family.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from typing import Final

import psutil

GRACE_S: Final = 5.0
"""Time for Ray's processes to end by themselves."""


_reapers: Final[list[subprocess.Popen[bytes]]] = []
"""Kept until this process ends: a forgotten ``Popen`` closes its pipe, which means the end."""


def start_reaper() -> None:
    """Watch over the Ray that this process has just started on this machine."""
    reaper = subprocess.Popen(
        [sys.executable, "-m", "bloodcells.pipeline.reaper"],
        stdin=subprocess.PIPE,  # never written to
        stdout=subprocess.DEVNULL,  # or whoever reads the job's output would wait for the reaper
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    _reapers.append(reaper)


def _main() -> None:
    driver = psutil.Process(os.getppid())
    family = [
        member
        for child in driver.children()
        if child.name() == "raylet"
        for member in child.children(recursive=True)
    ]
    sys.stdin.read()
    _, alive = psutil.wait_procs(family, timeout=GRACE_S)
    for member in alive:
        # A psutil process is a pid and its start time, so a pid used anew is left alone.
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()


if __name__ == "__main__":
    _main()
