"""Finite retries: how often each piece of work was begun, across workers that died over it.

Ray Data begins a task anew for ever when its worker dies, and restarts a dead scorer for ever. A
worker asks the counter before it begins, and leaves the work alone after ``MAX_ATTEMPTS``.
"""

from __future__ import annotations

import time
from typing import Any, Final

import ray

from bloodcells.errors import RunIncompleteError

MAX_ATTEMPTS: Final = 5
"""Times that one piece of work is begun, in all."""

UNAVAILABLE_S: Final = 120.0
ASK_AGAIN_S: Final = 1.0

MAX_SCORER_STARTS: Final = 200
"""Times that scorers are started in one session, in all; preempted nodes cost a start each."""


class Attempts:
    """A counter that every worker of a session shares; travels with what is sent to them."""

    def __init__(self) -> None:
        self._counter: Any = _Counter.remote()  # type: ignore[attr-defined]  # ray adds it

    def begin(self, work: str, *, at_most: int = MAX_ATTEMPTS) -> int:
        """Return the number of this attempt at ``work``, from 1.

        Raises:
            RunIncompleteError: it was begun ``at_most`` times before.
        """
        attempt = self._count(work)
        if attempt > at_most:
            raise RunIncompleteError(
                f"{work} ended its process {at_most} times; it may need more memory than there is"
            )
        return attempt

    def _count(self, work: str) -> int:
        deadline = time.monotonic() + UNAVAILABLE_S
        while True:
            try:
                count: int = ray.get(self._counter.begin.remote(work))
                return count
            except ray.exceptions.ActorUnavailableError:  # cut off, or starting anew
                if time.monotonic() > deadline:
                    raise
                time.sleep(ASK_AGAIN_S)


# On the head node: any other may go in the middle of a run.
@ray.remote(num_cpus=0, resources={"node:__internal_head__": 0.001}, max_restarts=3)
class _Counter:
    def __init__(self) -> None:
        self._begun: dict[str, int] = {}

    def begin(self, work: str) -> int:
        self._begun[work] = self._begun.get(work, 0) + 1
        return self._begun[work]
