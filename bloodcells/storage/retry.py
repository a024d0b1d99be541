"""Trying again what an outage may have spoilt. Knows nothing of what it repeats."""

from __future__ import annotations

import functools
import logging
import random
import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from bloodcells.errors import UnavailableError
from bloodcells.storage.traffic import TRAFFIC

RETRY_SECONDS = 180.0
"""How long one operation is tried. An S3 that is down for a minute must not end a run; a wrong
endpoint must not hold it for ever."""

FIRST_DELAY_SECONDS = 0.1
LONGEST_DELAY_SECONDS = 10.0

_log = logging.getLogger(__name__)
_P = ParamSpec("_P")
_R = TypeVar("_R")


def retrying(operation: Callable[_P, _R]) -> Callable[_P, _R]:
    """Repeat ``operation`` while it raises ``UnavailableError``, for ``RETRY_SECONDS`` at most.

    The pause doubles from one try to the next, up to a limit, and half of it is random, so that a
    hundred workers that failed together do not come back together.
    """

    @functools.wraps(operation)
    def tried(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        deadline = time.monotonic() + RETRY_SECONDS
        delay = FIRST_DELAY_SECONDS
        while True:
            try:
                return operation(*args, **kwargs)
            except UnavailableError as error:
                pause = delay * random.uniform(0.5, 1.0)
                if time.monotonic() + pause > deadline:
                    raise UnavailableError(
                        f"{error} Tried for {RETRY_SECONDS:.0f} s; start the command again when "
                        "the storage answers: finished work is kept.",
                        cause=error.cause,
                    ) from error
                level = logging.WARNING if pause > 1 else logging.DEBUG
                _log.log(level, "%s Trying again in %.1f s.", error, pause)
                time.sleep(pause)
                TRAFFIC.add_retry(error.cause)
                delay = min(2 * delay, LONGEST_DELAY_SECONDS)

    return tried
