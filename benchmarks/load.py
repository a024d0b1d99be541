"""Sends images to a server, one a request, and times the answers.

    python -m benchmarks.load --url http://127.0.0.1:8000/v1/classify --images DIR --out load.json

Closed loop: as many clients as ``--concurrency`` each wait for their answer and send the next image
at once. With ``--rate`` requests come when they come (Poisson), and a request's time counts
from when it was due. It shares the cores with the server it measures, so it is made to cost little:
callbacks of uvloop and httptools, 12 to 15 µs of CPU a request, where aiohttp took 83 to 111 (16 kB
images, 64 connections, a server that only answers). Answers are read after the last has come. Knows
nothing of who answers.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import random
import time
from collections import deque
from collections.abc import Coroutine, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import numpy as np
import uvloop

from benchmarks.answers import Answer, Judgement, summarise
from benchmarks.connection import Connection

LONGEST_WAIT_S: Final = 5.0
"""Longest that a client waits of what ``Retry-After`` asks for: measuring takes seconds."""

REOPEN_AFTER_S: Final = 0.1
LOOK_EVERY_S: Final = 0.25


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How to load a server.

    Attributes:
        url: where every request goes, ``http://host:port/path``.
        concurrency: clients of the closed loop; with ``rate``, most connections.
        seconds: length of the window in which is measured.
        warm_up_s: seconds of the same load before it.
        rate: requests a second, come what may; ``None`` is the closed loop.
        is_patient: whether a client that is told to come again later does so.
        timeout_s: longest to wait for an answer.
        bearer: token, empty for none.
        seed: of the times at which requests come.
    """

    url: str
    concurrency: int
    seconds: float
    warm_up_s: float = 2.0
    rate: float | None = None
    is_patient: bool = False
    timeout_s: float = 60.0
    bearer: str = ""
    seed: int = 0


class Generator:
    """Carries out a plan once.

    Args:
        plan: what to do.
        images: the bodies, sent in turn.
    """

    def __init__(self, plan: Plan, images: Sequence[bytes]) -> None:
        self.plan = plan
        self.requests = [_request(plan, image) for image in images]
        self.answers: list[Answer] = []
        self.num_connections = 0
        self.cpu_seconds = 0.0
        self.num_in_flight = self.most_in_flight = 0
        self._sent = 0
        self._free: list[Connection] = []
        self._busy: set[Connection] = set()
        self._due: deque[float] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._random = random.Random(plan.seed)
        self._fault: Exception | None = None

    async def run(self) -> list[Answer]:
        """Send until the window is over and return all answers, with times from its beginning."""
        asyncio.get_running_loop().set_exception_handler(self._note_fault)
        self.start = time.perf_counter() + self.plan.warm_up_s
        self.end = self.start + self.plan.seconds
        if self.plan.rate is None:
            for _ in range(self.plan.concurrency):
                self._open()
        else:
            self._spawn(self._arrive())
        self._spawn(self._measure_cpu())
        while self._now() < self.end or self._busy or self._due:
            await asyncio.sleep(LOOK_EVERY_S)
            self._end_overdue()
            if self._fault is not None:
                raise self._fault
        for task in self._tasks:
            task.cancel()
        for connection in self._free:
            connection.close()
        return self.answers

    def ready(self, connection: Connection) -> None:
        """Give a connection that has nothing to do the next request, if one is due."""
        if self.plan.rate is None:
            if self._now() < self.end:
                self._send(connection, self._now())
            else:
                self._free.append(connection)
        elif self._due:
            self._send(connection, self._due.popleft())
        else:
            self._free.append(connection)

    def answered(self, connection: Connection, answer: Answer) -> None:
        """Note an answer; a client that was turned away may wait before the next."""
        self._busy.discard(connection)
        self.num_in_flight -= 1
        self.answers.append(answer)
        if not connection.is_open:
            self._replace(connection)
        elif self.plan.is_patient and answer.status == 503:
            told = min(answer.retry_after_s or 0.0, LONGEST_WAIT_S)
            self._spawn(self._later(connection, told * self._random.uniform(1.0, 1.5)))
        else:
            self.ready(connection)

    def lost(self, connection: Connection) -> None:
        """Forget a connection that the server closed."""
        if connection in self._free:
            self._free.remove(connection)
            self._replace(connection)

    def _replace(self, connection: Connection) -> None:
        if self.plan.rate is None and self._now() < self.end:
            self._spawn(self._reopen())
        elif self._due:
            self._open()

    def _send(self, connection: Connection, began: float) -> None:
        image = self._sent % len(self.requests)
        self._sent += 1
        self._busy.add(connection)
        self.num_in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.num_in_flight)
        connection.send(image, began, self.requests[image])

    def _open(self) -> None:
        self.num_connections += 1
        self._spawn(self._connect())

    async def _connect(self) -> None:
        parts = urlsplit(self.plan.url)
        host, port = parts.hostname or "127.0.0.1", parts.port or 80
        try:
            await asyncio.get_running_loop().create_connection(lambda: Connection(self), host, port)
        except OSError as error:
            self.answers.append(Answer.failed(0, self._now() - self.start, str(error)))
            if self.plan.rate is None and self._now() < self.end:
                self._spawn(self._reopen())
            elif self._due:
                self._due.popleft()

    async def _reopen(self) -> None:
        await asyncio.sleep(REOPEN_AFTER_S)
        self._open()

    async def _later(self, connection: Connection, seconds: float) -> None:
        await asyncio.sleep(min(seconds, max(0.0, self.end - self._now())))
        if connection.is_open:
            self.ready(connection)
        else:
            self._replace(connection)

    async def _arrive(self) -> None:
        """Send requests when they are due, over a free connection or a new one."""
        assert self.plan.rate is not None
        due = self.start - self.plan.warm_up_s
        while (due := due + self._random.expovariate(self.plan.rate)) < self.end:
            if (wait := due - self._now()) > 0:
                await asyncio.sleep(wait)
            if self._free:
                self._send(self._free.pop(), due)
            else:
                self._due.append(due)
                if self.num_in_flight + len(self._due) <= self.plan.concurrency:
                    self._open()

    async def _measure_cpu(self) -> None:
        await asyncio.sleep(self.start - self._now())
        before = time.process_time()
        await asyncio.sleep(self.end - self._now())
        self.cpu_seconds = time.process_time() - before

    def _end_overdue(self) -> None:
        for connection in list(self._busy):
            if self._now() - connection.began > self.plan.timeout_s:
                connection.give_up(f"no answer in {self.plan.timeout_s:g} s")
        while self._due and self._now() - self._due[0] > self.plan.timeout_s:
            began = self._due.popleft() - self.start
            self.answers.append(Answer.failed(0, began, "no connection was free"))

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _note_fault(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Keep what went wrong in a callback: the loop would only log it, and measure nothing."""
        self._fault = context.get("exception") or RuntimeError(context["message"])

    @staticmethod
    def _now() -> float:
        return time.perf_counter()


def _request(plan: Plan, image: bytes) -> bytes:
    parts = urlsplit(plan.url)
    lines = [
        f"POST {parts.path or '/'} HTTP/1.1",
        f"Host: {parts.netloc}",
        "Content-Type: image/jpeg",
        f"Content-Length: {len(image)}",
        *([f"Authorization: Bearer {plan.bearer}"] if plan.bearer else []),
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + image


def main() -> None:
    """Load a server from the command line and write what came of it as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--url", required=True)
    parser.add_argument("--images", required=True, type=Path, help="folder of JPEG files")
    parser.add_argument("--expected", type=Path, help="float32 (N, 8) in a .npy file")
    parser.add_argument("--tolerance", type=float, help="of probabilities; else the class counts")
    parser.add_argument("--concurrency", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--warm-up", type=float, default=2.0)
    parser.add_argument("--rate", type=float, help="requests a second, come what may")
    parser.add_argument("--patient", action="store_true", help="come again when told to")
    parser.add_argument("--timeout", type=float, default=60.0)
    parser.add_argument("--bearer", default="")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", required=True, type=Path)
    flags = parser.parse_args()
    images = [path.read_bytes() for path in sorted(flags.images.glob("*.jpg"))]
    plan = Plan(
        url=flags.url,
        concurrency=flags.concurrency,
        seconds=flags.seconds,
        warm_up_s=flags.warm_up,
        rate=flags.rate,
        is_patient=flags.patient,
        timeout_s=flags.timeout,
        bearer=flags.bearer,
        seed=flags.seed,
    )
    generator = Generator(plan, images)
    gc.disable()  # a collection would stand in somebody's latency
    uvloop.run(generator.run())
    judgement = Judgement(
        expected=None if flags.expected is None else np.load(flags.expected),
        tolerance=flags.tolerance,
    )
    load = summarise(generator.answers, plan.seconds, judgement)
    document = asdict(load) | {
        "concurrency": plan.concurrency,
        "rate": plan.rate,
        "num_connections": generator.num_connections,
        "most_in_flight": generator.most_in_flight,
        "cpu_share": generator.cpu_seconds / plan.seconds,
    }
    flags.out.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
