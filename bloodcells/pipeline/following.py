"""Who follows a run while it goes on, and how fast it is. Knows nothing of how it is driven."""

from __future__ import annotations

from collections import deque
from typing import Final

import pyarrow as pa

from bloodcells.publish import ShardOutcome
from bloodcells.runs import Run


class Follower:
    """Is told how a run goes, and may stop it. This one is silent and lets it go on."""

    def say(self, text: str) -> None:
        """Hear a sentence for a person."""

    def check(self) -> None:
        """Raise what ends the run, where it should; asked now and then while it goes on."""

    def changed(self, run: Run) -> None:
        """See the run in another status: it is being planned, or is complete already."""

    def scoring(self, run: Run, num_done: int) -> None:
        """See the run as its scoring begins; so many shards were done in earlier sessions."""

    def entered(self, run: Run, outcome: ShardOutcome) -> None:
        """See what became of one more shard; the run's counts hold it already."""

    def ended(self) -> None:
        """Learn that no further shard is scored in this session, for whatever reason."""

    def finished(self, run: Run, slides: pa.Table, evaluation: str | None) -> None:
        """See a complete run, its slides, and how it compares with the store's own labels."""


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


class Pace:
    """How fast images are finished of late, and so how long the rest takes.

    Args:
        window_s: seconds of the past that count.
    """

    def __init__(self, window_s: float = 60.0) -> None:
        self._window_s: Final = window_s
        self._seen: deque[tuple[float, int]] = deque()

    def see(self, at: float, num_done: int) -> None:
        """Note how many images are done at a moment, in seconds of any steady clock."""
        self._seen.append((at, num_done))
        while len(self._seen) > 2 and at - self._seen[1][0] >= self._window_s:
            self._seen.popleft()

    def images_per_second(self) -> float | None:
        """Return the speed over the window; ``None`` before two moments with work between."""
        if len(self._seen) < 2:
            return None
        (begun, before), (ended, after) = self._seen[0], self._seen[-1]
        return (after - before) / (ended - begun) if after > before and ended > begun else None
