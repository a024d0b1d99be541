"""What is asked of S3 is counted, and a server that is asked too much is asked less."""

from __future__ import annotations

import multiprocessing
import pickle
import random
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bloodcells import storage
from bloodcells.errors import Cause, UnavailableError
from bloodcells.storage import Traffic
from bloodcells.storage.courtesy import RequestLimit
from bloodcells.storage.s3_client import LIMIT
from tests.s3 import S3Server, faulty_proxy


class FirstOnes(random.Random):
    """Lets the first few requests fail, and no other."""

    def __init__(self, number: int) -> None:
        super().__init__(0)
        self.left = number

    def random(self) -> float:
        self.left -= 1
        return 0.0 if self.left >= 0 else 1.0

    def choice(self, kinds: Sequence[Any]) -> Any:
        return kinds[0]


@pytest.fixture(autouse=True)
def _as_it_began() -> Iterator[None]:
    storage.take_traffic()
    yield
    LIMIT.forget()


def test_every_request_is_counted(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with faulty_proxy(s3) as (endpoint, faults):
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        uris = [f"{s3.uri}/counted/{number}.bin" for number in range(20)]
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda uri: storage.put(uri, b"x"), uris))
            list(pool.map(storage.read, uris))
        assert len(list(storage.walk(f"{s3.uri}/counted"))) == 20
        storage.delete(f"{s3.uri}/counted", recursive=True)
        assert storage.take_traffic() == Traffic(requests=len(faults.seen))
        assert storage.take_traffic() == Traffic()


@pytest.mark.parametrize(
    ("kind", "cause"),
    [
        ("throttled", "throttled"),
        (503, "throttled"),
        (429, "throttled"),
        (500, "server"),
        (502, "server"),
        ("torn", "connection"),
        (408, "connection"),
    ],
)
def test_what_is_tried_again_is_counted_by_its_cause(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch, kind: int | str, cause: Cause
) -> None:
    storage.put(f"{s3.uri}/cause.bin", bytes(1000))
    storage.take_traffic()
    with faulty_proxy(s3) as (endpoint, faults):
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        faults.rate, faults.kinds, faults.rng = 0.5, (kind,), FirstOnes(3)
        assert storage.read(f"{s3.uri}/cause.bin") == bytes(1000)
        assert faults.failed == 3
        expected = Traffic(**{"requests": 4, f"retries_{cause}": 3})
        assert storage.take_traffic() == expected


def test_lost_connections_are_counted(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The HTTP library asks once more of its own accord, which nobody can see; hence five."""
    storage.put(f"{s3.uri}/lost.bin", b"x")
    storage.take_traffic()
    with faulty_proxy(s3) as (endpoint, faults):
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        faults.rate, faults.kinds, faults.rng = 0.5, ("reset",), FirstOnes(5)
        assert storage.read(f"{s3.uri}/lost.bin") == b"x"
        assert 1 <= storage.take_traffic().retries_connection <= 5 == faults.failed


def test_a_slow_answer_is_no_failure(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.put(f"{s3.uri}/slow.bin", b"x")
    storage.take_traffic()
    with faulty_proxy(s3) as (endpoint, faults):
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        faults.rate, faults.kinds = 1.0, ("slow",)
        assert storage.read(f"{s3.uri}/slow.bin") == b"x"
        assert (faults.met["slow"], faults.failed) == (1, 0)
    assert storage.take_traffic() == Traffic(requests=1)


def test_the_account_is_shared_and_its_sum_is_right(s3: S3Server) -> None:
    uri = f"{s3.uri}/shared.bin"
    storage.put(uri, b"x")
    storage.take_traffic()

    def read_some(_: int) -> Traffic:
        for _ in range(5):
            storage.read(uri)
        return storage.take_traffic()

    with ThreadPoolExecutor(6) as pool:
        accounts = list(pool.map(read_some, range(12)))
    assert sum(accounts, start=Traffic()) == Traffic(requests=60)


def test_a_forked_process_begins_anew(s3: S3Server) -> None:
    storage.put(f"{s3.uri}/forked.bin", b"x")
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(storage.take_traffic) == Traffic()
    assert storage.take_traffic() == Traffic(requests=1)


def test_why_storage_does_not_answer_travels_between_processes() -> None:
    error = pickle.loads(pickle.dumps(UnavailableError("s3://b/x", cause="throttled")))
    assert (str(error), error.cause) == ("s3://b/x", "throttled")


def test_of_many_that_are_refused_together_one_counts() -> None:
    limit = RequestLimit(64)
    with limit.turn() as first, limit.turn() as second:
        limit.throttled(first)
        limit.throttled(second)
        assert limit.allowed == 32
        with limit.turn() as third:
            limit.throttled(third)
    assert limit.allowed == 16


@given(st.lists(st.booleans(), max_size=300), st.integers(1, 64))
def test_the_limit_stays_in_its_bounds(answers: list[bool], most: int) -> None:
    limit = RequestLimit(most)
    for is_answered in answers:
        before = limit.allowed
        with limit.turn() as began:
            if is_answered:
                limit.answered()
                assert limit.allowed >= before
            else:
                limit.throttled(began)
                assert limit.allowed <= before
        assert 1 <= limit.allowed <= most
    for _ in range(most * most):
        limit.answered()
    assert limit.allowed == most


def test_no_more_are_under_way_than_allowed() -> None:
    limit = RequestLimit(3)
    under_way, most, lock = 0, 0, threading.Lock()
    enough = threading.Barrier(3)

    def ask(_: int) -> None:
        nonlocal under_way, most
        with limit.turn():
            with lock:
                under_way += 1
                most = max(most, under_way)
            enough.wait(30)  # three are let in, or nobody goes on
            with lock:
                under_way -= 1

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(ask, range(12)))
    assert most == 3


def test_a_throttled_server_is_asked_less(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    uris = [f"{s3.uri}/throttled/{number}.bin" for number in range(40)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda uri: storage.put(uri, uri.encode()), uris))
        with faulty_proxy(s3) as (endpoint, faults):
            monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
            faults.per_second = 20
            assert list(pool.map(storage.read, uris)) == [uri.encode() for uri in uris]
            assert faults.met["throttled"] > 0
            assert LIMIT.allowed < 32
