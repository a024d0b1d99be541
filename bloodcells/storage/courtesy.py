"""How fast a process asks, so that a server that throttles it is asked less.

Pauses between tries do not do that: of sixteen threads some are always back. Nor does a bound on
requests under way, for what is refused is refused at once. Knows nothing of what is asked for.
"""

from __future__ import annotations

import math
import os
import threading
import time
from typing import Final

LEAST_RATE: Final = 2.0
"""Requests in a second that a process makes however often it is refused. Sixteen threads that wait
their turn at this pace still let the heartbeat of a lease through, well before it expires."""

FREE_RATE: Final = 2000.0
"""Requests in a second from which on a process is not held back: it makes no more anyway."""

GAIN: Final = 1.0
"""By how much the rate grows in a second, in requests a second; 5 % of it where that is more."""

CUT: Final = 0.7
"""What is left of the rate after a refusal. Halving it left more of the server unused."""

_GAIN_SHARE: Final = 0.05
_WINDOW_S: Final = 2.0


class RequestPace:
    """The most requests in a second: less than was asked of late when the server refuses one.

    From then on the rate grows with each answer, until it is free again. This is how TCP shares a
    line between senders that know nothing of each other; here the senders are the processes of a
    cluster, and the line is what the server allows.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Begin anew, as a forked process must: its parent may have held the lock."""
        self._lock = threading.Lock()
        self.rate = math.inf
        self._next = self._cut_at = self._counted_from = -math.inf
        self._num_counted = 0

    def wait(self) -> float:
        """Wait until the next request may be made; returns when that was, by a steady clock."""
        with self._lock:
            now = time.monotonic()
            if now - self._counted_from > _WINDOW_S:
                self._counted_from, self._num_counted = now, 0
            self._num_counted += 1
            begins = max(now, self._next)
            self._next = begins + 1 / self.rate
        if begins > now:
            time.sleep(begins - now)
        return begins

    def answered(self) -> None:
        """Learn that a request was answered."""
        with self._lock:
            if self.rate < math.inf:
                self.rate += max(GAIN / self.rate, _GAIN_SHARE)
                if self.rate > FREE_RATE:
                    self.rate = math.inf

    def refused(self, begun: float) -> None:
        """Learn that the server refused a request as one too many.

        Args:
            begun: what :meth:`wait` returned for it. A request from before the rate was last cut
                says nothing about the rate as it is now: of many refused together, one counts.
        """
        with self._lock:
            if begun <= self._cut_at:
                return
            self._cut_at = time.monotonic()
            seen = self._num_counted / max(self._cut_at - self._counted_from, 1.0)
            self.rate = max(min(self.rate, seen) * CUT, LEAST_RATE)


def request_pace() -> RequestPace:
    """Return a pace that begins anew in each forked process."""
    pace = RequestPace()
    os.register_at_fork(after_in_child=pace.forget)
    return pace
