"""Telling the keeper of archive runs that there is something new, as well as that can be done.

It looks by itself every two seconds; being told only spares it the wait.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from serve.logs import LOGGER


def poking(keeper: Any) -> Callable[[], Awaitable[None]]:
    """Return what tells the keeper to look.

    Args:
        keeper: Serve's handle of it.
    """

    async def poke() -> None:
        try:
            await keeper.poke.remote()
        except (RayError, RayServeException) as error:
            LOGGER.warning("the keeper was not told: %s", type(error).__name__)

    return poke
