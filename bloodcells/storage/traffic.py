"""What a process asks of storage: bytes read, requests made, and what had to be tried again.

Knows nothing of what is asked for, nor of whom.
"""

from __future__ import annotations

import os
import threading
from dataclasses import asdict, dataclass
from typing import Final

from bloodcells.errors import Cause


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Requests to S3, and what was tried again, by why the try before failed.

    Attributes:
        requests: requests to S3, each try counted.
        retries_throttled: tries again after the server asked for fewer requests (429, 503).
        retries_server: tries again after any other error of the server's own.
        retries_connection: tries again because no whole answer came: lost connections, timeouts,
            answers that broke off; also a network mount whose server is away.
    """

    requests: int = 0
    retries_throttled: int = 0
    retries_server: int = 0
    retries_connection: int = 0

    def __add__(self, other: Traffic) -> Traffic:
        mine, theirs = asdict(self), asdict(other)
        return Traffic(**{name: mine[name] + theirs[name] for name in mine})

    def __bool__(self) -> bool:
        return self != Traffic()


class TrafficCounter:
    """Counts what this process asks of storage, from any thread.

    Whoever takes the account gets what was counted since it was taken last. So where several shards
    are worked on at once in a process, each is given some of what they share, and the sum over all
    of them is right.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Begin anew, as a forked process must: its parent may have held the lock."""
        self._lock = threading.Lock()
        self._not_taken = Traffic()
        self.bytes_read = 0

    def add_bytes(self, count: int) -> None:
        """Count bytes of file content that were read."""
        with self._lock:
            self.bytes_read += count

    def add_request(self) -> None:
        """Count one request to S3."""
        self._add(Traffic(requests=1))

    def add_retry(self, cause: Cause) -> None:
        """Count that something is tried again."""
        self._add(Traffic(**{f"retries_{cause}": 1}))

    def take(self) -> Traffic:
        """Return what was counted since the last call."""
        with self._lock:
            taken, self._not_taken = self._not_taken, Traffic()
        return taken

    def _add(self, traffic: Traffic) -> None:
        with self._lock:
            self._not_taken += traffic


TRAFFIC: Final = TrafficCounter()

os.register_at_fork(after_in_child=TRAFFIC.forget)
