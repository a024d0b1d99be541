"""A real endpoint in processes of its own, as ``make serve`` starts it, for tests."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import psutil

from bloodcells.bundle import ModelBundle

ROOT = Path(__file__).parents[1]
START_S = 240


@dataclass(frozen=True, kw_only=True)
class Served:
    """A running endpoint.

    Attributes:
        url: where it answers.
        token: opens all doors.
        classify_token: opens the door for single cells alone.
        review_token: another person's, who may review.
        process: ``python -m serve``.
        log: what it printed.
    """

    url: str
    token: str
    classify_token: str
    review_token: str
    process: subprocess.Popen[bytes]
    log: Path

    def client(self, token: str | None = None) -> httpx.Client:
        """Return a client that sends a token."""
        headers = {"Authorization": f"Bearer {token or self.token}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60, trust_env=False)

    def children(self, name: str) -> list[psutil.Process]:
        """Return the endpoint's processes of a name, such as ``ray::ServeReplica``."""
        family = psutil.Process(self.process.pid).children(recursive=True)
        found = []
        for process in family:
            with contextlib.suppress(psutil.Error):
                if name in process.name() or name in " ".join(process.cmdline()):
                    found.append(process)
        return found


def believing(bundle: ModelBundle) -> ModelBundle:
    """Return the bundle without its detector, to which drawn cells are no real ones."""
    calibration = replace(
        bundle.calibration, strange_above=None, strange_typical=None, novel_above=None
    )
    return replace(bundle, detector=None, calibration=calibration)


def free_port() -> int:
    """Return a loopback port that is free."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def served(folder: Path, *flags: str) -> Iterator[Served]:
    """Start the endpoint, wait until it answers, and end it with all that it started."""
    port, log = free_port(), folder / "serve.log"
    token, classify_token, review_token = (secrets.token_urlsafe(24) for _ in range(3))
    tokens = folder / "tokens"
    tokens.write_text(
        f"anna classify,archives,review {token}\nben classify {classify_token}\n"
        f"cara review {review_token}\n"
    )
    command = [sys.executable, "-m", "serve", "--port", str(port), "--root", str(folder / "data")]
    command += ["--tokens-file", str(tokens), *flags]
    environment = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS",)}
    with log.open("wb") as sink:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=sink, stderr=subprocess.STDOUT
        )
    endpoint = Served(
        url=f"http://127.0.0.1:{port}",
        token=token,
        classify_token=classify_token,
        review_token=review_token,
        process=process,
        log=log,
    )
    try:
        _wait(endpoint)
        yield endpoint
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(40)
        except subprocess.TimeoutExpired:
            process.kill()  # its reaper ends the rest


def _wait(endpoint: Served) -> None:
    deadline = time.monotonic() + START_S
    while f"listening on {endpoint.url}" not in endpoint.log.read_text():
        assert endpoint.process.poll() is None, endpoint.log.read_text()
        assert time.monotonic() < deadline, endpoint.log.read_text()
        time.sleep(0.2)
