"""Ends what a killed driver leaves of the Ray that it started.

When a driver is killed, its raylet dies with it and most workers follow within two seconds, but the
raylet's agents first try for 60 s to report the death to a control store that is dead as well (Ray
2.60, ``report_raylet_error_logs``), and an HAProxy that Ray Serve started goes on for ever. This
process waits at the other end of a pipe for the driver's death, however it comes, and then ends
what is left. It looks at the driver's family now and then while it lives, and knows what came
since by a mark in the environment that all inherit (processes that name themselves, as Ray's
workers do, overwrite theirs).
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import uuid
from typing import Final

import psutil

GRACE_S: Final = 5.0
"""Time for Ray's processes to end by themselves."""

LOOK_EVERY_S: Final = 2.0

MARK: Final = "BLOODCELLS_FAMILY"
"""Environment variable that tells the processes of one driver's Ray from all others."""

_reapers: Final[list[subprocess.Popen[bytes]]] = []
"""Kept until this process ends: a forgotten ``Popen`` closes its pipe, which means the end."""


def start_reaper() -> None:
    """Watch over the Ray that this process is about to start on this machine."""
    os.environ[MARK] = uuid.uuid4().hex
    reaper = subprocess.Popen(
        [sys.executable, "-m", "bloodcells.pipeline.reaper", os.environ[MARK]],
        stdin=subprocess.PIPE,  # never written to
        stdout=subprocess.DEVNULL,  # or whoever reads the job's output would wait for the reaper
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    _reapers.append(reaper)


def end_marked(mark: str) -> None:
    """End the processes that carry a mark, but for this one and its reaper."""
    _end({process for process in _marked(mark) if process.pid != os.getpid()}, grace_s=0.0)


def _end(family: set[psutil.Process], *, grace_s: float) -> None:
    _, alive = psutil.wait_procs(list(family), timeout=grace_s)
    for member in alive:
        # A psutil process is a pid and its start time, so a pid used anew is left alone.
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()


def _marked(mark: str) -> set[psutil.Process]:
    marked = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == mark and mark not in process.cmdline():
                marked.add(process)
    return marked


def _descendants(driver: psutil.Process) -> set[psutil.Process]:
    """Return the family of the driver's raylet as it is now."""
    with contextlib.suppress(psutil.Error, OSError):
        return {
            member
            for child in driver.children()
            if child.name() == "raylet"
            for member in child.children(recursive=True)
        }
    return set()


def _main() -> None:
    driver = psutil.Process(os.getppid())
    family: set[psutil.Process] = set()
    while not select.select([sys.stdin], [], [], LOOK_EVERY_S)[0]:
        family = {member for member in family if member.is_running()} | _descendants(driver)
    _end(family | _marked(sys.argv[1]), grace_s=GRACE_S)


if __name__ == "__main__":
    _main()
