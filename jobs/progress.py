"""Progress of a long job: a line that renews itself in a terminal, one now and then in a log."""

from __future__ import annotations

import sys
import time
from typing import Final, TextIO

from bloodcells.publish import ShardOutcome
from jobs.flags import printable

LOG_EVERY_S: Final = 10.0
DRAW_EVERY_S: Final = 0.2


def say(text: str) -> None:
    """Print a line for a person who follows the job."""
    print(printable(text), file=sys.stderr, flush=True)


class Progress:
    """Counts finished images against a total and prints images, images/s and the time left.

    The speed is taken from the first images that are finished on: what came before was start-up.

    Args:
        total: images to do, those done before included.
        done: images done by an earlier session; they count as done, not towards the speed.
        stream: where to print.
    """

    def __init__(self, total: int, *, done: int = 0, stream: TextIO = sys.stderr) -> None:
        self.total = total
        self.done = done
        self._stream = stream
        self._is_terminal = stream.isatty()
        self._start: float | None = None
        self._before = done
        self._last_print = -LOG_EVERY_S

    def add(self, num_images: int) -> None:
        """Count images as finished, and print where it is time to."""
        self.done += num_images
        now = time.monotonic()
        if self._start is None:
            self._start, self._before = now, self.done
        every = DRAW_EVERY_S if self._is_terminal else LOG_EVERY_S
        if now - self._last_print >= every or self.done == self.total:
            self._last_print = now
            self._print(now - self._start)

    def close(self) -> None:
        """End the line that renews itself."""
        if self._is_terminal:
            self._stream.write("\n")
            self._stream.flush()

    def _print(self, elapsed: float) -> None:
        percent = 100 * self.done / max(self.total, 1)
        line = f"scored {self.done:,} of {self.total:,} images ({percent:.0f} %)"
        if self.done > self._before and elapsed > 0:
            rate = (self.done - self._before) / elapsed
            line += f", {rate:,.0f} images/s, {_duration((self.total - self.done) / rate)} left"
        if self._is_terminal:
            self._stream.write(f"\r\x1b[K{line}")
        else:
            self._stream.write(f"{line}\n")
        self._stream.flush()


class ScoringClock:
    """Measures a session's scoring, from the first shard begun to the last one published.

    Start-up, planning and compilation are outside; each scorer's clock is its node's.
    """

    def __init__(self) -> None:
        self._begun = float("inf")
        self._ended = 0.0
        self._num_images = 0
        self._bytes_read = 0

    def add(self, outcome: ShardOutcome) -> None:
        """Count one published shard."""
        if outcome.error:
            return
        self._begun = min(self._begun, outcome.begun_at)
        self._ended = max(self._ended, outcome.published_at)
        self._num_images += outcome.num_scored + outcome.num_quarantined
        self._bytes_read += outcome.bytes_read

    def timings(self) -> dict[str, float]:
        """Return ``scoring_seconds``, ``images_per_second`` and ``bytes_read`` of this session."""
        if not self._num_images:
            return {"bytes_read": 0}
        seconds = max(self._ended - self._begun, 1e-9)
        return {
            "scoring_seconds": round(seconds, 3),
            "images_per_second": round(self._num_images / seconds, 2),
            "bytes_read": self._bytes_read,
        }


def _duration(seconds: float) -> str:
    """Return seconds as ``2 h 05 min``, ``3 min 20 s`` or ``12 s``."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    if whole >= 60:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole} s"
