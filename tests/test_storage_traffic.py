"""What is asked of S3 is counted, and a server that is asked too much is asked less."""

from __future__ import annotations

import math
import multiprocessing
import pickle
import random
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bloodcells import storage
from bloodcells.errors import Cause, UnavailableError
from bloodcells.storage import Traffic
from bloodcells.storage.courtesy import CUT, LEAST_RATE, RequestPace
from bloodcells.storage.s3_client import PACE
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
    PACE.forget()


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
    pace = RequestPace()
    begun = [pace.wait() for _ in range(64)]
    assert pace.rate == math.inf
    for moment in begun:
        pace.refused(moment)
    first = pace.rate
    assert LEAST_RATE <= first <= 64 * CUT
    pace.refused(pace.wait())
    assert LEAST_RATE <= pace.rate <= first * CUT


@given(st.lists(st.booleans(), max_size=300))
def test_the_pace_falls_and_grows_within_its_bounds(answers: list[bool]) -> None:
    pace = RequestPace()
    for number, is_answered in enumerate(answers):
        before = pace.rate
        if is_answered:
            pace.answered()
            assert pace.rate >= before
        else:
            pace.refused(time.monotonic() + number)
            assert LEAST_RATE <= pace.rate <= max(before * CUT, LEAST_RATE)
    for _ in range(100_000 if any(answers) else 0):
        pace.answered()
        if pace.rate == math.inf:
            break
    assert pace.rate == math.inf or not any(answers)


def test_requests_begin_at_their_pace() -> None:
    pace = RequestPace()
    pace.rate = 50.0
    with ThreadPoolExecutor(8) as pool:
        begun = sorted(pool.map(lambda _: pace.wait(), range(16)))
    assert all(later - earlier >= 0.0199 for earlier, later in pairwise(begun))


def test_a_throttled_server_is_asked_less(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    uris = [f"{s3.uri}/throttled/{number}.bin" for number in range(40)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda uri: storage.put(uri, uri.encode()), uris))
        assert math.inf == PACE.rate
        with faulty_proxy(s3) as (endpoint, faults):
            monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
            faults.per_second = 20
            assert list(pool.map(storage.read, uris)) == [uri.encode() for uri in uris]
            assert faults.met["throttled"] > 0
            assert math.inf > PACE.rate
