"""The endpoint's log: one JSON object a request, in Ray Serve's log files.

It says who asked for what and how it ended. It holds no image data, no token and no query string;
whatever a client chose (paths, names) is JSON-escaped, so that it cannot forge a line.
"""

from __future__ import annotations

import json
import logging
from typing import Any, Final

LOGGER: Final = logging.getLogger("ray.serve.bloodcells")
"""Below Ray Serve's own logger: its handlers write the replica's log file."""


def log_request(**fields: Any) -> None:
    """Write one line for a request."""
    LOGGER.info(json.dumps(fields, ensure_ascii=True, default=str))


def log_failure(request_id: str, error: BaseException) -> None:
    """Write why a request failed that should not have; the stack trace is for the log alone."""
    LOGGER.error(json.dumps({"request_id": request_id, "event": "failure"}), exc_info=error)
