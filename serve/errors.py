"""How the endpoint says no: one shape for every error, with a status, a code and a remedy.

Knows nothing of what went wrong. The body is ``{"error": {"code", "message", "request_id"}}``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class ApiError(Exception):
    """An answer other than success, meant for the client.

    Attributes:
        status: the HTTP status.
        code: a word for programs, in ``snake_case``; it never changes.
        message: a sentence for a person, with the remedy. It must hold nothing of the server's own:
            no path that the client did not name, no stack trace.
        headers: HTTP headers of the answer, such as ``Retry-After``.
        extra: what the body has beside ``error``, such as the state that a request conflicts with.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        headers: Mapping[str, str] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.headers = dict(headers or {})
        self.extra = dict(extra or {})

    def body(self, request_id: str) -> dict[str, Any]:
        """Return the answer's JSON body."""
        told = {"code": self.code, "message": self.message, "request_id": request_id}
        return {"error": told, **self.extra}
