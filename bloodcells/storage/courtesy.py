"""How many requests a process has under way, so that a server that is throttled is asked less.

Pauses between tries do not do that alone: sixteen threads that each wait and try again still come
back as sixteen. Knows nothing of what is asked for.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class RequestLimit:
    """The most requests under way at once: half as many when the server says that it is too much.

    Grows by one whenever as many requests were answered as it allows, up to where it began. This is
    how TCP shares a line between senders that know nothing of each other; here the senders are the
    processes of a cluster, and the line is what the server allows.

    Args:
        most: where it begins, and its upper bound.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self.forget()

    def forget(self) -> None:
        """Begin anew, as a forked process must: its parent's requests are not its own."""
        self._changed = threading.Condition()
        self._allowed = float(self._most)
        self._under_way = 0
        self._num_cuts = 0

    @property
    def allowed(self) -> int:
        """How many requests may be under way now."""
        return int(self._allowed)

    @contextmanager
    def turn(self) -> Iterator[int]:
        """Wait until one more request may be made, and hold its place; yields when it began."""
        with self._changed:
            self._changed.wait_for(lambda: self._under_way < self.allowed)
            self._under_way += 1
            began = self._num_cuts
        try:
            yield began
        finally:
            with self._changed:
                self._under_way -= 1
                self._changed.notify_all()

    def answered(self) -> None:
        """Learn that a request was answered."""
        with self._changed:
            self._allowed = min(self._allowed + 1 / self._allowed, float(self._most))

    def throttled(self, began: int) -> None:
        """Learn that the server refused a request as one too many.

        Args:
            began: what :meth:`turn` yielded for it. A request that began before the limit was last
                cut says nothing about the limit as it is now: of many refused together, one counts.
        """
        with self._changed:
            if began == self._num_cuts:
                self._allowed = max(self._allowed / 2, 1.0)
                self._num_cuts += 1


def request_limit(most: int) -> RequestLimit:
    """Return a limit that begins anew in each forked process."""
    limit = RequestLimit(most)
    os.register_at_fork(after_in_child=limit.forget)
    return limit
