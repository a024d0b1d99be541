"""When those who were turned away should come again: one after the other, not all at once.

Told the same second, a thousand clients would all come back in it, find room for a few, and be
turned away again, which costs the replica more than scoring does. So each is told to come when
those who were told before are done.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Final

LONGEST_S: Final = 30
"""Longest that a client is told to wait: of those before it some never come back."""


class Turns:
    """Images that were turned away, as if they stood in a queue behind the one that is full.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._expected = 0.0
        self._counted_at = clock()

    def next(self, num_images: int, *, waiting: int, images_per_s: float) -> int:
        """Give images that are turned away a turn; returns the seconds until then, at least 1.

        Args:
            num_images: how many.
            waiting: images that wait already, or are being scored.
            images_per_s: how fast they are scored.
        """
        now = self._clock()
        done = (now - self._counted_at) * images_per_s
        self._counted_at = now
        self._expected = max(0.0, self._expected - done)
        seconds = math.ceil((waiting + self._expected) / images_per_s)
        self._expected = min(self._expected + num_images, LONGEST_S * images_per_s)
        return min(max(seconds, 1), LONGEST_S)
