"""Finite retries: how often each piece of work was begun, across workers that died over it.

Ray Data begins a task anew for ever when its worker dies, and restarts a dead scorer for ever. A
worker asks the counter before it begins, and leaves the work alone after ``MAX_ATTEMPTS``.
"""

from __future__ import annotations

from typing import Any, Final

import ray

from bloodcells.errors import RunIncompleteError

MAX_ATTEMPTS: Final = 5
"""Times that one piece of work is begun, in all."""

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
        attempt: int = ray.get(self._counter.begin.remote(work))
        if attempt > at_most:
            raise RunIncompleteError(
                f"{work} ended its process {at_most} times; it may need more memory than there is"
            )
        return attempt


@ray.remote(num_cpus=0, max_restarts=3, max_task_retries=3)  # it may sit on a node that goes
class _Counter:
    def __init__(self) -> None:
        self._begun: dict[str, int] = {}

    def begin(self, work: str) -> int:
        self._begun[work] = self._begun.get(work, 0) + 1
        return self._begun[work]
