"""How bulk work stands back on a machine that it shares with single cells: Linux priorities.

Three of them count, one inside the other: the session that a process belongs to, where the kernel
groups processes by session (autogroups; most distributions do); its threads' scheduling class; and
their niceness. A niceness, or the class for idle threads, counts within a session alone: towards
the processes of all others the session as a whole has one weight, and with scorers in the session
of the endpoint its clients and proxies elsewhere waited half a second for a core.
"""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path
from typing import Final

LOWEST_NICENESS: Final = 19
AUTOGROUP: Final = Path("/proc/self/autogroup")
SWITCH: Final = Path("/proc/sys/kernel/sched_autogroup_enabled")


def groups_by_session() -> bool:
    """Return whether this kernel groups processes by session, and is told to."""
    return SWITCH.exists() and SWITCH.read_text().strip() == "1"


def stand_back_as_process() -> None:
    """Give this process a session of its own, of the lowest weight.

    Nothing happens where the kernel has no such groups or refuses: threads still stand back within
    their session.
    """
    if not groups_by_session():
        return
    with contextlib.suppress(OSError):
        if os.getpgid(0) == os.getpid():  # a group's leader may not leave its session
            os.setpgid(0, os.getpgid(os.getppid()))
        os.setsid()
        AUTOGROUP.write_text(str(LOWEST_NICENESS))


def stand_back_as_thread() -> None:
    """Let the calling thread run only where no other of its session wants the core.

    Linux's ``SCHED_IDLE`` has 1/340 of the weight of an ordinary thread, and a thread that wakes up
    for a single cell takes the core from it at once. Niceness alone (weight 1/68 at most) leaves it
    the rest of its time slice. Where the class is refused, niceness has to do.
    """
    try:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    except (AttributeError, OSError):
        lower_thread(LOWEST_NICENESS)


def lower_thread(niceness: int) -> None:
    """Give the calling thread a niceness, up to 19; it may not take it back."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)
