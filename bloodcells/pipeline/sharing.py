"""A cluster that several runs share: how many scorers each of them may have.

Runs tell a small actor on the head node that they are at work; each takes its equal part of the
room. When a run joins or leaves, or nodes do, the others regroup. Ray itself would give everything
to who came first.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable
from typing import Any, Final

import ray

NAMESPACE: Final = "bloodcells"
NAME: Final = "runs_at_work"

ASK_EVERY_S: Final = 5.0

FORGET_AFTER_S: Final = 120.0
"""A run that was not heard of for so long was killed; longer than a slow shard takes."""

SETTLE_S: Final = 30.0
"""A run regroups no sooner than this after it began to score: starting scorers takes seconds."""


class Room:
    """The scorers that one run may have, now and as the cluster changes.

    Args:
        capacity: counts the scorers that the cluster has room for.
        at_least, at_most: bounds that the user gave; ``at_most`` is ``None`` for none.
        is_shared: whether other runs may be at work on the cluster.
    """

    def __init__(
        self,
        capacity: Callable[[], int],
        *,
        at_least: int = 1,
        at_most: int | None = None,
        is_shared: bool = False,
    ) -> None:
        self._capacity = capacity
        self._at_least = at_least
        self._at_most = at_most
        self._runs = _RunsAtWork() if is_shared else None
        self._taken = 0
        self._taken_at = self._asked_at = time.monotonic()

    def take(self) -> int:
        """Return how many scorers to have from now on."""
        self._taken = self._fair()
        self._taken_at = self._asked_at = time.monotonic()
        return self._taken

    def has_changed(self) -> bool:
        """Say whether what was taken should be given back and taken anew; cheap to ask often."""
        now = time.monotonic()
        if self._runs is None or now - self._asked_at < ASK_EVERY_S:
            return False
        self._asked_at = now
        return self._fair() != self._taken and now - self._taken_at >= SETTLE_S

    def leave(self) -> None:
        """Let the other runs have the room."""
        if self._runs is not None:
            self._runs.leave()

    def _fair(self) -> int:
        share = self._capacity() // (self._runs.count() if self._runs is not None else 1)
        if self._at_most is not None:
            share = min(share, self._at_most)
        return max(share, self._at_least, 1)


class _RunsAtWork:
    """This run's word with the actor that knows all runs at work on the cluster."""

    def __init__(self) -> None:
        self._id = uuid.uuid4().hex

    def count(self) -> int:
        """Say that this run is at work; returns how many are, this one included."""
        for _ in range(2):  # the actor goes with the last run, which may be this very moment
            with contextlib.suppress(ray.exceptions.RayActorError):
                num_runs: int = ray.get(_registry().hear_of.remote(self._id))
                return num_runs
        return 1

    def leave(self) -> None:
        """Say that this run is over."""
        with contextlib.suppress(ray.exceptions.RayError):
            ray.get(_registry().forget.remote(self._id))


def _registry() -> Any:
    return _Registry.options(  # type: ignore[attr-defined]  # ray adds it
        name=NAME, namespace=NAMESPACE, get_if_exists=True, lifetime="detached"
    ).remote()


# On the head node, which is always there: on another it would keep that node from being given back.
@ray.remote(num_cpus=0, resources={"node:__internal_head__": 0.001}, max_restarts=-1)
class _Registry:
    def __init__(self) -> None:
        self._heard: dict[str, float] = {}

    def hear_of(self, run_id: str) -> int:
        now = time.monotonic()
        self._heard[run_id] = now
        self._heard = {k: at for k, at in self._heard.items() if now - at < FORGET_AFTER_S}
        return len(self._heard)

    def forget(self, run_id: str) -> None:
        self._heard.pop(run_id, None)
        if not self._heard:
            ray.actor.exit_actor()  # type: ignore[no-untyped-call]
