"""A keep-alive connection of the load generator: a request out, an answer and its time in.

Knows nothing of when to send what.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Protocol, cast

import httptools

from benchmarks.answers import Answer


class Owner(Protocol):
    """Who decides what a connection does.

    Attributes:
        start: time of ``perf_counter`` from which an answer's times count.
    """

    start: float

    def ready(self, connection: Connection) -> None:
        """Use a connection that has nothing to do."""

    def answered(self, connection: Connection, answer: Answer) -> None:
        """Take an answer; the connection may be closed by now."""

    def lost(self, connection: Connection) -> None:
        """Forget a connection that was closed while it had nothing to do."""


class Connection(asyncio.Protocol):
    """One keep-alive connection: a request, its answer, the next request.

    Args:
        owner: decides what is sent next.
    """

    def __init__(self, owner: Owner) -> None:
        self.owner = owner
        self.is_open = False
        self.is_waiting = False
        self.began = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is one but in name
        self.parser = httptools.HttpResponseParser(self)
        self.is_open = True
        self.owner.ready(self)

    def send(self, image: int, began: float, request: bytes) -> None:
        self.image, self.began = image, began
        self.body: list[bytes] = []
        self.retry_after: float | None = None
        self.is_waiting = True
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError as error:
            self.give_up(f"no HTTP: {error}")

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"retry-after":
            with contextlib.suppress(ValueError):
                self.retry_after = float(value)

    def on_body(self, body: bytes) -> None:
        self.body.append(body)

    def on_message_complete(self) -> None:
        if not self.parser.should_keep_alive():
            self.close()
        self._answer(self.parser.get_status_code(), b"".join(self.body))

    def connection_lost(self, error: Exception | None) -> None:
        self.is_open = False
        if self.is_waiting:
            self._answer(0, f"connection lost: {error}".encode())
        else:
            self.owner.lost(self)

    def give_up(self, why: str) -> None:
        self.close()
        if self.is_waiting:
            self._answer(0, why.encode())

    def close(self) -> None:
        self.is_open = False
        self.transport.abort()

    def _answer(self, status: int, body: bytes) -> None:
        self.is_waiting = False
        start = self.owner.start
        answer = Answer(
            image=self.image,
            began=self.began - start,
            ended=time.perf_counter() - start,
            status=status,
            retry_after_s=self.retry_after,
            body=body,
        )
        self.owner.answered(self, answer)
