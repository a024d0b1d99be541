"""Freed memory is kept for the next forward pass, not handed back to the system.

glibc gives large blocks back at once, and a forward pass on a CPU asks for the same large blocks
again and again; the kernel then fills each page with zeros anew. Keeping them made a pass of
``tf_efficientnet_lite0`` in batches of 32 1.3 times faster on one core.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Final

M_TRIM_THRESHOLD: Final = -1
M_MMAP_MAX: Final = -4
"""Parameters of ``mallopt(3)``, from glibc's ``malloc.h``."""

KEPT_BYTES: Final = 2**31 - 1


def keep_freed_memory() -> bool:
    """Let this process keep up to 2 GiB of freed memory; returns whether the C library can."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # another C library than glibc
        return False
    return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, KEPT_BYTES))
