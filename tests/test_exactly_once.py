"""Killed again and again, a run ends with every image once, bit for bit as if never killed.

Real processes: the job is started as a user would start it and killed with SIGKILL.
"""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bloodcells.synthetic import BALANCED, draw_slide, write_archive

NUM_IMAGES = 90
SHARD_SIZE = 1
NUM_SHARDS = NUM_IMAGES // SHARD_SIZE
PATIENCE_S = 200  # a job starts in 15 s, but other tests may want the same cores


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store") / "slides"
    write_archive(folder, draw_slide(BALANCED, NUM_IMAGES, seed=7), "folder")
    return folder


@pytest.fixture(scope="module")
def uninterrupted(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("uninterrupted") / "run"
    finish(store, run, {})
    return run


@pytest.fixture(scope="module")
def outside_ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Start Ray as an operator would, apart from any job; yields the environment of a job on it."""
    port = random.randint(20000, 30000)
    ray = str(Path(sys.executable).with_name("ray"))
    command = [ray, "start", "--head", "--block", f"--port={port}", "--num-cpus=2"]
    command += ["--node-ip-address=127.0.0.1", "--disable-usage-stats"]
    command += ["--include-dashboard=false", f"--object-store-memory={256 << 20}"]
    # Ray asks for a token; the operator gives the same one to the cluster and to its jobs.
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    head = subprocess.Popen(
        command,
        env={**os.environ, **token},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert head.stdout is not None
    assert any("Ray runtime started" in line for line in head.stdout)
    yield {"RAY_ADDRESS": f"127.0.0.1:{port}", **token}
    kill_tree(head)


def start(store: Path, run: Path, env: dict[str, str], *more: str) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "jobs.score",
        "--store",
        str(store),
        "--out",
        str(run),
        "--site",
        "none",
    ]
    command += ["--shard-size", str(SHARD_SIZE), *more]
    return subprocess.Popen(
        command,
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(store: Path, run: Path, env: dict[str, str], *more: str) -> str:
    job = start(store, run, env, *more)
    output, _ = job.communicate(timeout=600)
    assert job.returncode == 0, output
    return output


def kill_tree(process: subprocess.Popen[str] | subprocess.Popen[bytes]) -> None:
    children = psutil.Process(process.pid).children(recursive=True)
    for victim in (process, *children):
        try:
            victim.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait(timeout=30)


def num_published(run: Path) -> int:
    return len(list((run / "scores").glob("part-*.parquet")))


def all_rows(run: Path, table: str) -> pa.Table:
    parts = sorted((run / table).glob("part-*.parquet"))
    return pa.concat_tables([pq.read_table(part) for part in parts])


def assert_same_runs(run: Path, expected: Path) -> None:
    rows = all_rows(run, "scores")
    assert len(rows) == NUM_IMAGES
    assert len(set(rows["image_uri"].to_pylist())) == NUM_IMAGES
    assert rows.equals(all_rows(expected, "scores"))
    for table in ("scores", "quarantine"):
        assert [p.name for p in sorted((run / table).iterdir())] == [
            p.name for p in sorted((expected / table).iterdir())
        ]
        for part in (run / table).iterdir():
            assert part.read_bytes() == (expected / table / part.name).read_bytes()
    assert pq.read_table(run / "slides.parquet").equals(pq.read_table(expected / "slides.parquet"))


def kill_at_random_moments(
    store: Path, run: Path, env: dict[str, str], rng: random.Random, *, times: int
) -> None:
    """Kill the driver while it starts, and every third time when further shards are done."""
    for kill in range(times):
        job = start(store, run, env)
        if kill % 3 != 1:
            time.sleep(rng.uniform(0.5, 8))
        else:
            goal = num_published(run) + rng.randint(1, 10)
            deadline = time.monotonic() + PATIENCE_S
            while num_published(run) < goal and time.monotonic() < deadline:
                assert job.poll() is None, job.communicate()[0]
                time.sleep(0.01)
        job.send_signal(signal.SIGKILL)
        job.wait(timeout=30)
        print(f"kill {kill}: {num_published(run)} of {NUM_SHARDS} shards are done")
    assert 0 < num_published(run) < NUM_SHARDS, "the kills must come amid the work"


def kill_a_scorer_once_busy(job: subprocess.Popen[str], run: Path) -> None:
    goal = num_published(run) + 2
    deadline = time.monotonic() + PATIENCE_S
    while num_published(run) < goal and time.monotonic() < deadline:
        time.sleep(0.01)
    # Only among what these tests started: other Rays may be on the machine.
    scorers = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "ScoringActor" in " ".join(process.cmdline()):
                scorers.append(process)
    assert scorers, "no scorer process found"
    scorers[0].kill()


@pytest.mark.timeout(1500)
def test_killed_ten_times_with_ray_started_by_the_job(
    store: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    kill_at_random_moments(store, tmp_path / "run", {}, random.Random(1), times=10)
    job = start(store, tmp_path / "run", {})
    kill_a_scorer_once_busy(job, tmp_path / "run")
    output, _ = job.communicate(timeout=600)
    assert job.returncode == 0, output
    assert_same_runs(tmp_path / "run", uninterrupted)


@pytest.mark.timeout(1500)
def test_killed_four_times_with_ray_outside(
    store: Path, uninterrupted: Path, outside_ray: dict[str, str], tmp_path: Path
) -> None:
    kill_at_random_moments(store, tmp_path / "run", outside_ray, random.Random(2), times=4)
    job = start(store, tmp_path / "run", outside_ray)
    kill_a_scorer_once_busy(job, tmp_path / "run")
    output, _ = job.communicate(timeout=600)
    assert job.returncode == 0, output
    assert_same_runs(tmp_path / "run", uninterrupted)


@pytest.mark.timeout(600)
def test_no_process_of_a_killed_job_outlives_it(store: Path, tmp_path: Path) -> None:
    job = start(store, tmp_path / "run", {})
    deadline = time.monotonic() + PATIENCE_S
    while num_published(tmp_path / "run") < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    family = psutil.Process(job.pid).children(recursive=True)
    assert any("raylet" in process.name() for process in family)
    job.send_signal(signal.SIGKILL)
    job.wait(timeout=30)
    _, alive = psutil.wait_procs(family, timeout=30)
    assert not [p for p in alive if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def test_a_finished_run_changes_nothing(store: Path, uninterrupted: Path) -> None:
    before = {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in uninterrupted.rglob("*")}
    started = time.monotonic()
    assert "complete already" in finish(store, uninterrupted, {})
    assert time.monotonic() - started < 30
    assert before == {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in uninterrupted.rglob("*")}


@pytest.mark.timeout(300)
def test_of_two_runs_into_one_folder_one_is_refused(store: Path, tmp_path: Path) -> None:
    jobs = [start(store, tmp_path / "run", {}, "--shard-size", "50") for _ in range(2)]
    outputs = [job.communicate(timeout=170)[0] for job in jobs]
    codes = sorted(job.returncode for job in jobs)
    assert codes == [0, 1], outputs
    refused = next(out for job, out in zip(jobs, outputs, strict=True) if job.returncode)
    assert "another run holds" in refused
    assert len(all_rows(tmp_path / "run", "scores")) == NUM_IMAGES
