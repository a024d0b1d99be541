"""The follower of a run that the endpoint drives: keeps its note, and stops it where that is asked.

A note is written at once when a run's status changes and else at most once a second, however fast
shards are done. Knows nothing of Ray.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from bloodcells.errors import StorageError
from bloodcells.pipeline.following import Follower, Pace
from bloodcells.publish import ShardOutcome
from bloodcells.runs import Run
from serve.archive_records import ArchiveRecords, ArchiveRequest, Note, Status
from serve.archive_words import for_client

NOTE_EVERY_S: Final = 1.0


class NoteTaker(Follower):
    """Follows one run.

    Args:
        records: where notes are kept.
        request: the run.
        stop: raises what is to end the run.
    """

    def __init__(
        self, records: ArchiveRecords, request: ArchiveRequest, stop: Callable[[], None]
    ) -> None:
        self._records = records
        self.request = request
        self._stop = stop
        before = records.note(request.id)
        self._note = replace(
            before or Note(status="queued", asked=0),
            asked=request.asked,
            message=None,
            images_per_second=None,
            seconds_left=None,
        )
        self._pace = Pace()
        self._shards_done = 0
        self._written = 0.0

    def check(self) -> None:
        """Raise what is to end the run."""
        self._stop()

    def changed(self, run: Run) -> None:
        """Note that the run is being planned, or is complete already."""
        if run.status == "complete":
            self._shards_done = run.counts.get("shards", 0)
        self._see(run, "complete" if run.status == "complete" else "planning")

    def scoring(self, run: Run, num_done: int) -> None:
        """Note that scoring begins."""
        self._shards_done = num_done
        self._pace.see(time.monotonic(), run.counts["scored"] + run.counts["quarantined"])
        self._see(run, "running")

    def entered(self, run: Run, outcome: ShardOutcome) -> None:
        """Count a shard, and note it where the last note is a second old."""
        self._shards_done += not outcome.error
        done = run.counts["scored"] + run.counts["quarantined"]
        self._pace.see(time.monotonic(), done)
        speed = self._pace.images_per_second()
        self._note = replace(
            self._note,
            counts=self._counts(run),
            images_per_second=None if speed is None else round(speed, 2),
            seconds_left=None if speed is None else round((run.counts["listed"] - done) / speed, 1),
        )
        if time.monotonic() - self._written >= NOTE_EVERY_S:
            self._write()

    def end(self, status: Status, message: str | None = None) -> None:
        """Note how the run ended, or that it waits."""
        self._note = replace(
            self._note,
            status=status,
            message=message and for_client(message, self._records.root_uri),
            images_per_second=self._note.images_per_second if status == "complete" else None,
            seconds_left=None,
        )
        self._write()

    def _see(self, run: Run, status: Status) -> None:
        self._note = replace(
            self._note,
            status=status,
            counts=self._counts(run),
            bundle_digest=run.settings.bundle_digest,
            site=run.site,
            problems=[
                {
                    "uri": for_client(problem["uri"], self._records.root_uri),
                    "detail": for_client(problem["detail"], self._records.root_uri),
                }
                for problem in run.source_problems
            ],
        )
        self._write()

    def _counts(self, run: Run) -> dict[str, int]:
        names = ("listed", "scored", "quarantined", "shards")
        return {name: run.counts.get(name, 0) for name in names} | {
            "shards_done": self._shards_done
        }

    def _write(self) -> None:
        self._written = time.monotonic()
        # The run itself says what is to be done when storage is out of reach.
        with contextlib.suppress(StorageError):
            self._records.save_note(self.request.id, self._note)
