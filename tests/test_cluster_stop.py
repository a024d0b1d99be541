"""``cluster.stop`` on a real head behind a token: jobs are asked, and have time to end."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.local import LocalCluster

PATIENCE_S = 120

JOB = """
import pathlib, signal, sys, time
place = pathlib.Path(sys.argv[1])
def stop(*_):
    time.sleep(5)  # longer than the 3 s that Ray gives by itself
    (place / "ended").touch()
    sys.exit(130)
signal.signal(signal.SIGTERM, stop)
(place / "begun").touch()
time.sleep(600)
"""


@pytest.fixture(scope="module")
def head() -> Iterator[LocalCluster]:
    with tempfile.TemporaryDirectory(prefix="bc-", ignore_cleanup_errors=True) as folder:
        cluster = LocalCluster(folder=Path(folder), extra_env={"RAY_JOB_STOP_WAIT_TIME_S": "60"})
        try:
            cluster.start_head()
            yield cluster
        finally:
            cluster.stop()


def run(cluster: LocalCluster, *command: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command],
        env=os.environ | cluster.environment | env,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )


def begin(cluster: LocalCluster, place: Path) -> None:
    place.mkdir()
    command = shlex.join([sys.executable, "-c", JOB, str(place)])
    submit = ("job", "submit", "--no-wait", "--address", cluster.dashboard, "--")
    said = run(cluster, "-m", "ray.scripts.scripts", *submit, *shlex.split(command))
    assert said.returncode == 0, said.stderr
    deadline = time.monotonic() + PATIENCE_S
    while not (place / "begun").exists():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_every_job_has_stopped_when_it_returns(head: LocalCluster, tmp_path: Path) -> None:
    places = [tmp_path / "first", tmp_path / "second"]
    for place in places:
        begin(head, place)
    said = run(head, "-m", "cluster.stop", "--address", head.dashboard)
    assert said.returncode == 0, said.stderr
    assert all((place / "ended").exists() for place in places)
    again = run(head, "-m", "cluster.stop", "--address", head.dashboard)
    assert again.returncode == 0, again.stderr


def test_a_job_that_takes_longer_is_named(head: LocalCluster, tmp_path: Path) -> None:
    begin(head, tmp_path / "job")
    said = run(head, "-m", "cluster.stop", "--address", head.dashboard, "--seconds", "0")
    assert said.returncode == 1
    assert "had not stopped after 0 s" in said.stderr


@pytest.mark.parametrize(
    "command", [("cluster.stop",), ("cluster.submit", "--id", "x", "--", "true")], ids=" ".join
)
def test_a_stranger_is_told_what_is_missing(head: LocalCluster, command: tuple[str, ...]) -> None:
    module, *rest = command
    where = ("--address", head.dashboard)
    said = run(head, "-m", module, *where, *rest, RAY_AUTH_TOKEN="0" * 64)
    assert said.returncode == 1
    assert "RAY_AUTH_TOKEN" in said.stderr
    assert "Traceback" not in said.stderr
