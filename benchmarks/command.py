"""What the benchmarks' commands have in common: a folder to work in, errors in a sentence, an end.

Knows nothing of what is measured.
"""

from __future__ import annotations

import shutil
import signal
import sys
import tempfile
import types
from collections.abc import Callable
from pathlib import Path

from benchmarks.processes import ContenderError
from bloodcells.errors import BloodcellsError


def in_a_folder(name: str, parent: str | None, measure: Callable[[Path], None]) -> int:
    """Measure in a temporary folder that is taken away afterwards; returns the exit code.

    Args:
        name: of the benchmark.
        parent: where the folder is made; the system's own place by default.
        measure: gets the folder. SIGTERM interrupts it as Ctrl-C does, so that whatever it has
            started is ended as well.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    work = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=parent))
    try:
        measure(work)
    except (BloodcellsError, ContenderError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: what was measured so far is in the --json file", file=sys.stderr)
        return 130
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return 0


def _interrupt(number: int, frame: types.FrameType | None) -> None:
    raise KeyboardInterrupt
