"""What storage says and does when it is refused, cut off or full: a sentence, finite patience."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bloodcells import storage
from bloodcells.errors import (
    AccessDeniedError,
    BloodcellsError,
    NotFoundError,
    StorageError,
    StorageFullError,
    UnavailableError,
)
from bloodcells.storage import local, retry
from tests.s3 import S3Server, faulty_proxy


@pytest.fixture
def short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "RETRY_SECONDS", 2.0)


def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    uri = str(tmp_path / "file.bin")
    code = (
        "import resource, signal, sys\n"
        "from bloodcells import storage\n"
        "from bloodcells.storage import local\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "local._FULL.add(27)  # EFBIG, the limit that a test can set without a disk of its own\n"
        "storage.put(sys.argv[1], bytes(100_000))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, uri], capture_output=True, text=True)
    assert "StorageFullError" in done.stderr.splitlines()[-1]
    assert "free space" in done.stderr.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (errno.ENOENT, NotFoundError),
        (errno.ENOTDIR, NotFoundError),
        (errno.EACCES, AccessDeniedError),
        (errno.EROFS, AccessDeniedError),
        (errno.ENOSPC, StorageFullError),
        (errno.EDQUOT, StorageFullError),
        (errno.ESTALE, UnavailableError),
        (errno.EIO, UnavailableError),
        (errno.EISDIR, StorageError),
        (errno.EINVAL, StorageError),
    ],
)
def test_every_error_of_the_system_is_ours(code: int, expected: type[BloodcellsError]) -> None:
    error = local._translate(OSError(code, os.strerror(code)), "/data/x")
    assert type(error) is expected
    assert "/data/x" in str(error)


def test_wrong_credentials_fail_at_once(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.put(f"{s3.uri}/secret.bin", b"x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    began = time.monotonic()
    for attempt in (
        lambda: storage.read(f"{s3.uri}/secret.bin"),
        lambda: storage.stat(f"{s3.uri}/secret.bin"),
        lambda: storage.put(f"{s3.uri}/secret.bin", b"y"),
        lambda: list(storage.listdir(s3.uri)),
    ):
        with pytest.raises(AccessDeniedError, match="AWS_SECRET_ACCESS_KEY"):
            attempt()
    assert time.monotonic() - began < 5


def test_no_credentials_fail_at_once(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(AccessDeniedError, match="AWS_ACCESS_KEY_ID"):
        storage.read(f"{s3.uri}/secret.bin")
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(AccessDeniedError, match="nobody"):
        storage.read(f"{s3.uri}/secret.bin")


def test_a_bucket_that_is_not_there_is_named(s3: S3Server) -> None:
    for attempt in (
        lambda: storage.stat("s3://no-such-bucket"),
        lambda: storage.read("s3://no-such-bucket/x"),
        lambda: list(storage.walk("s3://no-such-bucket/x")),
    ):
        with pytest.raises(NotFoundError, match="no-such-bucket"):
            attempt()


def test_an_s3_that_fails_half_of_its_requests_is_lived_through(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = os.urandom(200_000)
    with faulty_proxy(s3) as (endpoint, faults):
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        faults.rate = 0.5
        uris = [f"{s3.uri}/faulty/{number}.bin" for number in range(12)]
        with ThreadPoolExecutor(6) as pool:
            list(pool.map(lambda uri: storage.put(uri, data), uris))
            assert all(pool.map(lambda uri: storage.read(uri) == data, uris))
            assert all(pool.map(lambda uri: storage.read_range(uri, 7, 9) == data[7:16], uris))
        assert [entry.uri for entry in storage.walk(f"{s3.uri}/faulty")] == sorted(uris)
        with storage.open_read(uris[0]) as file:
            assert file.read() == data
        assert storage.put_if_absent(f"{s3.uri}/faulty/lease", b"me")
        storage.delete(f"{s3.uri}/faulty", recursive=True)
        assert faults.failed > 20


def test_an_outage_is_lived_through(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"{s3.uri}/outage.bin"
    storage.put(uri, b"x")
    with faulty_proxy(s3) as (endpoint, faults):
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        faults.rate = 1.0
        recovery = threading.Timer(3.0, lambda: setattr(faults, "rate", 0.0))
        recovery.start()
        assert storage.read(uri) == b"x"
        recovery.join()


@pytest.mark.usefixtures("short_patience")
@pytest.mark.parametrize("kind", [503, 429, "reset", "torn"])
def test_patience_has_an_end(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch, kind: int | str
) -> None:
    uri = f"{s3.uri}/patience.bin"
    storage.put(uri, bytes(1000))
    with faulty_proxy(s3) as (endpoint, faults):
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        assert storage.exists(uri)  # the client is made, which takes its time
        faults.rate, faults.kinds = 1.0, (kind,)
        with pytest.raises(UnavailableError, match=r"patience\.bin"):
            storage.read(uri)
        assert faults.failed >= 2


@pytest.mark.usefixtures("short_patience", "s3")
def test_a_server_that_is_not_there_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        with pytest.raises(UnavailableError, match="s3://bucket/x"):
            storage.read("s3://bucket/x")


@pytest.mark.usefixtures("short_patience")
def test_a_refusal_is_not_tried_again(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with faulty_proxy(s3) as (endpoint, faults):
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        with pytest.raises(NotFoundError):
            storage.read(f"{s3.uri}/nothing")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        with pytest.raises(AccessDeniedError):
            storage.read(f"{s3.uri}/nothing")
        assert len(faults.seen) == 2


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="no /proc here")
def test_an_outage_amid_a_file_is_ours() -> None:
    uri = "/proc/self/mem"  # whose first page gives EIO
    with storage.open_read(uri) as file, pytest.raises(UnavailableError, match="does not answer"):
        file.read(10)


def test_an_endpoint_that_is_no_url_is_one_sentence(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "localhost:9000")
    with pytest.raises(StorageError, match="check bucket and endpoint"):
        storage.read(f"{s3.uri}/anything")
