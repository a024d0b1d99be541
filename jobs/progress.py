"""Progress of a long job: a line that renews itself in a terminal, one now and then in a log."""

from __future__ import annotations

import sys
import time
from typing import Final, TextIO

import pyarrow as pa

from bloodcells.pipeline.following import Follower
from bloodcells.publish import ShardOutcome
from bloodcells.runs import Run
from jobs.flags import printable
from jobs.slide_table import format_slides

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


class Terminal(Follower):
    """Tells a person at a terminal, or who reads its log, how a run goes."""

    def __init__(self) -> None:
        self._progress: Progress | None = None

    def say(self, text: str) -> None:
        """Print a sentence."""
        say(text)

    def scoring(self, run: Run, num_done: int) -> None:
        """Begin to count images."""
        counts = run.counts
        self._progress = Progress(counts["listed"], done=counts["scored"] + counts["quarantined"])

    def entered(self, run: Run, outcome: ShardOutcome) -> None:
        """Count a shard's images."""
        if self._progress is not None:
            self._progress.add(outcome.num_scored + outcome.num_quarantined)

    def ended(self) -> None:
        """End the line that renews itself."""
        if self._progress is not None:
            self._progress.close()

    def finished(self, run: Run, slides: pa.Table, evaluation: str | None) -> None:
        """Print the slides on stdout: they are the result."""
        print(format_slides(slides), flush=True)
        if evaluation is not None:
            print(f"against the store's labels: {evaluation}", flush=True)


def _duration(seconds: float) -> str:
    """Return seconds as ``2 h 05 min``, ``3 min 20 s`` or ``12 s``."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    if whole >= 60:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole} s"
