"""The load generator against a small server that behaves as told."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any

import pytest

from benchmarks.answers import (
    Load,
    summarise,
    why_void,
)
from benchmarks.contenders import serving as contenders
from tests.known_answers import IMAGES, STRICT, right

pytest.importorskip("httptools", reason="httptools comes with the extra 'bench'")
pytest.importorskip("uvloop", reason="uvloop comes with the extra 'bench'")

from benchmarks.load import Generator, Plan

Behaviour = Callable[[int, bytes], Awaitable[bytes | None]]
"""Takes the number of a request and its body; returns an HTTP answer, ``None`` hangs up."""


def http(body: bytes, status: str = "200 OK", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class LocalServer:
    """Answers on a port of its own, and remembers what came."""

    def __init__(self, behave: Behaviour) -> None:
        self.behave = behave
        self.bodies: list[bytes] = []
        self.heads: list[bytes] = []
        self.num_open = self.most_open = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
                body = await reader.readexactly(length)
                self.heads.append(head)
                self.bodies.append(body)
                self.num_open += 1
                self.most_open = max(self.most_open, self.num_open)
                answer = await self.behave(len(self.bodies) - 1, body)
                self.num_open -= 1
                if answer is None:
                    break
                writer.write(answer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


def load(behave: Behaviour, **plan: Any) -> tuple[Load, Generator, LocalServer]:
    """Load a local server; returns what came of it, the generator and the server."""
    local = LocalServer(behave)

    async def both() -> Generator:
        server = await asyncio.start_server(local.serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        chosen = Plan(
            **{"seconds": 0.6, "warm_up_s": 0.1, **plan}, url=f"http://127.0.0.1:{port}/x"
        )
        generator = Generator(chosen, IMAGES)
        await generator.run()
        server.close()
        return generator

    generator = asyncio.run(both())
    return summarise(generator.answers, generator.plan.seconds, STRICT), generator, local


def answers_after(seconds: float) -> Behaviour:
    async def behave(number: int, body: bytes) -> bytes:
        await asyncio.sleep(seconds)
        return http(right(IMAGES.index(body)))

    return behave


def test_the_closed_loop_keeps_its_concurrency_and_its_connections() -> None:
    found, generator, local = load(answers_after(0.02), concurrency=8, bearer="secret")
    assert local.most_open == generator.most_in_flight == generator.num_connections == 8
    assert found.mean_in_flight == pytest.approx(8, abs=1)
    assert local.bodies[:8] == IMAGES + IMAGES  # in turn
    assert b"POST /x HTTP/1.1" in local.heads[0]
    assert b"Authorization: Bearer secret" in local.heads[0]
    assert why_void(asdict(found)) is None
    assert found.p50_ms is not None
    assert found.p50_ms >= 20
    assert 100 < found.images_per_second < 400
    assert (found.agreement, found.num_refused) == (1.0, 0)
    assert generator.cpu_seconds > 0


def test_wrong_answers_are_counted_and_make_it_void() -> None:
    async def behave(number: int, body: bytes) -> bytes:
        image = IMAGES.index(body)
        return http(right((image + 1) % 4 if number == 5 else image))

    found, _, _ = load(behave, concurrency=2, seconds=0.2)
    assert found.num_wrong == 1
    assert "1 wrong: wrong by 0.68" in str(why_void(asdict(found)))


@pytest.mark.parametrize("fault", ["hang up", "error", "no HTTP"])
def test_failures_are_counted_and_the_loop_goes_on(fault: str) -> None:
    faults = {"hang up": None, "error": http(b"oh", "500 Oh"), "no HTTP": b"hello\r\n\r\n"}

    async def behave(number: int, body: bytes) -> bytes | None:
        await asyncio.sleep(0.005)
        return faults[fault] if number == 3 else http(right(IMAGES.index(body)))

    found, generator, local = load(behave, concurrency=2)
    assert found.num_failed == 1
    assert why_void(asdict(found)) is not None
    assert len(local.bodies) > 10
    assert generator.num_connections == (2 if fault == "error" else 3)


def test_nobody_waits_for_ever() -> None:
    async def behave(number: int, body: bytes) -> bytes:
        await asyncio.sleep(30 if number == 1 else 0.01)
        return http(right(IMAGES.index(body)))

    began = time.monotonic()
    found, _, _ = load(behave, concurrency=2, timeout_s=0.3)
    assert time.monotonic() - began < 5
    assert found.num_failed == 1
    assert "no answer in 0.3 s" in found.reasons[0]


def test_a_server_that_is_not_there_is_a_failure() -> None:
    plan = Plan(url=f"http://127.0.0.1:{contenders.free_port()}/", concurrency=2, seconds=0.3)
    generator = Generator(plan, IMAGES)
    found = summarise(asyncio.run(generator.run()), 0.3, STRICT)
    assert found.num_failed >= 2
    assert found.num_answered == 0


def test_an_answer_in_chunks_and_a_closed_connection_are_fine() -> None:
    async def behave(number: int, body: bytes) -> bytes:
        whole = right(IMAGES.index(body))
        if number % 2:
            return http(whole, "200 OK", "Connection: close")
        pieces = [whole[:70], whole[70:], b""]
        chunks = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
        return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks

    found, generator, _ = load(behave, concurrency=2, seconds=0.4)
    assert why_void(asdict(found)) is None
    assert generator.num_connections > 2


def test_a_patient_client_comes_again_when_told() -> None:
    async def full(number: int, body: bytes) -> bytes:
        await asyncio.sleep(0.01)
        return http(b"{}", "503 Full", "Retry-After: 1")

    patient, _, _ = load(full, concurrency=4, is_patient=True)
    impatient, _, _ = load(full, concurrency=4)
    assert sum(patient.statuses.values()) <= 8
    assert impatient.num_refused > 40
    assert (impatient.refused_share, impatient.num_without_retry_after) == (1.0, 0)
    assert impatient.refused_p50_ms is not None
    assert impatient.refused_p50_ms >= 10
    assert why_void(asdict(impatient)) is not None


def test_requests_at_a_rate_come_whatever_the_server_does() -> None:
    found, _, local = load(answers_after(0.1), rate=100, concurrency=64, seconds=1.0)
    assert 70 < found.num_answered < 130
    assert local.most_open > 4


def test_a_wait_for_a_connection_counts() -> None:
    found, _, local = load(answers_after(0.02), rate=100, concurrency=1, seconds=1.0)
    assert local.most_open == 1
    assert found.p99_ms is not None
    assert found.p99_ms > 200
