"""What a job says of its progress, and how it takes its own time."""

from __future__ import annotations

import io

import pytest

from bloodcells.pipeline.following import ScoringClock
from bloodcells.publish import ShardOutcome
from jobs import progress
from jobs.progress import Progress


class Clock:
    """Stands in for ``time.monotonic``."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress.time, "monotonic", clock.monotonic)
    return clock


def test_a_log_gets_a_line_now_and_then_and_one_at_the_end(clock: Clock) -> None:
    log = io.StringIO()
    shown = Progress(10_000, done=2_000, stream=log)
    clock.now += 30  # starting up, which is no speed
    for _ in range(80):
        shown.add(100)
        clock.now += 0.5
    shown.close()
    lines = log.getvalue().splitlines()
    assert lines[0] == "scored 2,100 of 10,000 images (21 %)"
    assert lines[1] == "scored 4,100 of 10,000 images (41 %), 200 images/s, 30 s left"
    assert lines[-1] == "scored 10,000 of 10,000 images (100 %), 200 images/s, 0 s left"
    assert len(lines) == 5


def test_a_terminal_has_one_line_that_renews_itself(clock: Clock) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    shown = Progress(7_200_000, stream=terminal)
    for _ in range(3):
        shown.add(1000)
        clock.now += 1
    shown.close()
    assert terminal.getvalue().count("\n") == 1
    assert terminal.getvalue().endswith("1,000 images/s, 1 h 59 min left\n")


def test_a_sessions_speed_is_over_what_it_published() -> None:
    clock = ScoringClock()
    assert clock.timings() == {"bytes_read": 0}
    for begun, published in ((100.0, 104.0), (101.0, 110.0)):
        clock.add(
            ShardOutcome(
                shard_id="a",
                num_scored=40,
                num_quarantined=10,
                bytes_read=7,
                begun_at=begun,
                published_at=published,
            )
        )
    clock.add(ShardOutcome(shard_id="b", error="the store does not answer"))
    assert clock.timings() == {"scoring_seconds": 10, "images_per_second": 10, "bytes_read": 14}
