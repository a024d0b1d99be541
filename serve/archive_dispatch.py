"""Shards of several runs sent to the archive scorers: bounded, shared fairly, tried again.

Runs are driven in threads; what they send goes through the replica's event loop, where Serve's
handles live. Knows nothing of requests or of how a run is planned.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Final

from ray.exceptions import RayActorError, WorkerCrashedError
from ray.serve.exceptions import DeploymentUnavailableError, ReplicaUnavailableError

from bloodcells.accounting import PlannedShard
from bloodcells.errors import BloodcellsError, RunIncompleteError
from bloodcells.pipeline.attempts import MAX_ATTEMPTS
from bloodcells.pipeline.rows import failed
from bloodcells.publish import ShardOutcome
from bloodcells.runs import Run
from serve.archive_scorer import ShardTask

LOOK_EVERY_S: Final = 0.2
DRAIN_S: Final = 30.0
"""Longest that shards in flight are waited for once a run is to stop; what they publish counts."""

DEATHS: Final = (RayActorError, WorkerCrashedError, ReplicaUnavailableError)
"""What a shard ends with whose replica died: sending it again is right, and finite."""


@dataclass(frozen=True, kw_only=True)
class _Sent:
    planned: PlannedShard
    attempt: int
    answer: Future[ShardOutcome]


class FairSlots:
    """How many shards each run may have in flight: an equal share for each that has any to send.

    Args:
        total: shards in flight of all runs together.
    """

    def __init__(self, total: int) -> None:
        self._total = total
        self._held: dict[object, int] = {}
        self._wanting: set[object] = set()
        self._lock = threading.Lock()

    def take(self, run: object) -> bool:
        """Take a slot for a shard of a run; returns whether there was one."""
        with self._lock:
            self._wanting.add(run)
            held = self._held.get(run, 0)
            if held >= max(1, self._total // len(self._wanting)):
                return False
            if held and sum(self._held.values()) >= self._total:
                return False  # another still has more than its share; it gives some back soon
            self._held[run] = held + 1
            return True

    def give_back(self, run: object) -> None:
        """Give a slot back."""
        with self._lock:
            self._held[run] -= 1
            if not self._held[run]:
                del self._held[run]

    def leave(self, run: object) -> None:
        """Ask for no further slots: the others may share what this run does not use."""
        with self._lock:
            self._wanting.discard(run)


class Dispatcher:
    """Sends shards to the scorers and hands back what became of them.

    Args:
        scorers: Serve's handle of the scorers.
        loop: the event loop on which the handle is used.
        slots: bounds what is in flight.
    """

    def __init__(self, scorers: Any, loop: asyncio.AbstractEventLoop, slots: FairSlots) -> None:
        self._scorers = scorers
        self._loop = loop
        self._slots = slots

    def score(
        self,
        run: Run,
        wave: Sequence[PlannedShard],
        *,
        bundle_uri: str,
        check: Callable[[], None],
    ) -> Iterator[ShardOutcome]:
        """Have a wave of shards scored; yields what became of each, in order of completion.

        Args:
            run: whose shards they are.
            wave: the shards.
            bundle_uri: the run's model, pinned.
            check: raises what is to stop the run; asked some times a second. Then nothing more is
                sent, and what is in flight is waited for, a while.

        Raises:
            RunIncompleteError: the scorers do not start.
            RayError: something failed in a scorer that should not have.
        """
        waiting = deque((planned, 1) for planned in wave)
        answers: queue.SimpleQueue[_Sent] = queue.SimpleQueue()
        in_flight: set[Future[ShardOutcome]] = set()
        key, site = object(), run.profile

        def send(planned: PlannedShard, attempt: int) -> None:
            task = ShardTask(
                planned=planned,
                run_uri=run.uri,
                run_id=run.run_id,
                bundle_uri=bundle_uri,
                bundle_digest=run.settings.bundle_digest,
                site=site,
                attempt=attempt,
            )
            answer = asyncio.run_coroutine_threadsafe(self._ask(task), self._loop)
            in_flight.add(answer)
            answer.add_done_callback(
                lambda done: answers.put(_Sent(planned=planned, attempt=attempt, answer=done))
            )

        def received(sent: _Sent) -> ShardOutcome | None:
            """Return a shard's outcome; ``None`` where it is to be sent once more."""
            in_flight.discard(sent.answer)
            self._slots.give_back(key)
            try:
                return sent.answer.result()
            except DEATHS:
                if sent.attempt < MAX_ATTEMPTS:
                    waiting.append((sent.planned, sent.attempt + 1))
                    return None
                shard_id = sent.planned.shard_id
                return failed(
                    shard_id,
                    RunIncompleteError(
                        f"scoring shard {shard_id} ended its process {MAX_ATTEMPTS} times; it may "
                        "need more memory than there is"
                    ),
                )
            except DeploymentUnavailableError as error:
                raise RunIncompleteError(
                    "the archive scorers do not start; the server's log says why"
                ) from error

        stop: Exception | None = None
        deadline = float("inf")
        try:
            while (waiting or in_flight) and time.monotonic() < deadline:
                try:
                    if stop is None:
                        check()
                except BloodcellsError as error:
                    stop, deadline = error, time.monotonic() + DRAIN_S
                if stop is not None:
                    waiting.clear()
                while waiting and self._slots.take(key):
                    send(*waiting.popleft())
                if not waiting:
                    self._slots.leave(key)
                try:
                    sent = answers.get(timeout=LOOK_EVERY_S)
                except queue.Empty:
                    continue
                outcome = received(sent)
                if outcome is not None:
                    yield outcome
            if stop is not None:
                raise stop
        finally:
            self._slots.leave(key)
            for answer in in_flight:
                answer.add_done_callback(lambda done: self._slots.give_back(key))
                answer.cancel()

    async def _ask(self, task: ShardTask) -> ShardOutcome:
        outcome: ShardOutcome = await self._scorers.score.remote(task)
        return outcome
