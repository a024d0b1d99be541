"""Trouble from outside, as a user meets it: one clear sentence, an exit code, and no work lost."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bloodcells import storage
from bloodcells.synthetic import BALANCED, ImageFile, draw_slide, write_archive
from tests.s3 import S3Server, credentials, faulty_proxy

pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def images() -> list[ImageFile]:
    return list(draw_slide(BALANCED, 60, seed=11))


def job(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "jobs.score", "--site", "none", *arguments],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=380,
        check=False,
    )


def complaint(done: subprocess.CompletedProcess[str]) -> str:
    """Return the one line in which a job says what is wrong."""
    assert done.returncode != 0
    assert "Traceback" not in done.stderr, done.stderr
    (line,) = (
        line for line in done.stderr.splitlines() if line.startswith(("error:", "incomplete:"))
    )
    return line


def test_a_store_that_is_not_there(tmp_path: Path) -> None:
    line = complaint(job("--store", str(tmp_path / "nowhere"), "--out", str(tmp_path / "run")))
    assert str(tmp_path / "nowhere") in line
    assert not (tmp_path / "run").exists()


def test_a_wrong_credential(s3: S3Server, tmp_path: Path) -> None:
    storage.put(f"{s3.uri}/trouble/a.tar", b"x" * 1024)
    arguments = ("--store", f"{s3.uri}/trouble/a.tar", "--out", str(tmp_path / "run"))
    line = complaint(job(*arguments, AWS_SECRET_ACCESS_KEY="wrong"))
    assert "AWS_SECRET_ACCESS_KEY" in line or "credential" in line
    assert not (tmp_path / "run").exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 200 kB."""
    mount = tmp_path / "disk"
    mount.mkdir()
    options = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(mount)]
    if subprocess.run(options, check=False, capture_output=True).returncode:
        pytest.skip("mounting a small file system is not allowed here")
    yield mount
    subprocess.run(["umount", "--lazy", str(mount)], check=True)


def test_a_full_disk_loses_nothing(images: list[ImageFile], small_disk: Path) -> None:
    store = small_disk.parent / "slide.tar"
    write_archive(store, images, "tar")
    filler = small_disk / "filler"
    filler.write_bytes(b"x" * 100_000)
    arguments = ("--store", str(store), "--out", str(small_disk / "run"), "--shard-size", "5")
    line = complaint(job(*arguments))
    assert "full" in line or "space" in line
    parts = set((small_disk / "run" / "scores").glob("part-*"))
    assert 0 < len(parts) < 12
    for part in parts:
        pq.read_table(part)
    filler.unlink()
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
    done = job(*arguments)
    assert done.returncode == 0, done.stderr
    rows = pa.concat_tables(
        [pq.read_table(part) for part in (small_disk / "run" / "scores").iterdir()]
    )
    assert len(rows) == len(images) == len(set(rows["image_uri"].to_pylist()))


def test_an_s3_that_fails_half_of_its_requests_for_a_minute(
    images: list[ImageFile], s3: S3Server, tmp_path: Path
) -> None:
    """Half of all requests fail: errors, lost connections and torn answers."""
    write_archive(tmp_path / "slide.tar", images, "tar")
    storage.put(f"{s3.uri}/outage/slide.tar", (tmp_path / "slide.tar").read_bytes())
    with faulty_proxy(s3) as (endpoint, faults):
        faults.rate = 0.5
        threading.Thread(target=lambda: (time.sleep(60), setattr(faults, "rate", 0))).start()
        arguments = ("--store", f"{s3.uri}/outage/slide.tar", "--out", f"{s3.uri}/outage/run")
        done = job(*arguments, "--shard-size", "10", **credentials(endpoint))
    assert done.returncode == 0, done.stderr
    assert faults.failed > 10
    parts = list(storage.listdir(f"{s3.uri}/outage/run/scores"))
    rows = pa.concat_tables([pq.read_table(pa.BufferReader(storage.read(p.uri))) for p in parts])
    assert len(rows) == len(images) == len(set(rows["image_uri"].to_pylist()))
    assert not list(storage.listdir(f"{s3.uri}/outage/run/quarantine")) or all(
        pq.read_table(pa.BufferReader(storage.read(p.uri))).num_rows == 0
        for p in storage.listdir(f"{s3.uri}/outage/run/quarantine")
    )


def test_a_ray_that_does_not_start(images: list[ImageFile], tmp_path: Path) -> None:
    write_archive(tmp_path / "slide.tar", images[:3], "tar")
    (tmp_path / "file").touch()
    arguments = ("--store", str(tmp_path / "slide.tar"), "--out", str(tmp_path / "run"))
    line = complaint(job(*arguments, RAY_TMPDIR=str(tmp_path / "file")))
    assert "Ray did not start" in line
