"""Archives through the endpoint beside ``jobs.score``, and what they cost single cells."""

from __future__ import annotations

import http.client
import io
import itertools
import json
import shutil
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pyarrow.parquet as pq

from benchmarks import machine
from benchmarks.answers import why_void
from benchmarks.contenders.serving import TOKEN, ours
from benchmarks.processes import ContenderError, run
from benchmarks.serving import ROOT, Bench, Target, started

SHARD_SIZE: Final = 256
CELLS_PER_SECOND: Final = 10.0
CELLS_WINDOWS: Final = 4
"""Single cells are watched for so many times ``--seconds``: ten a second give a p99 slowly."""

ENDED: Final = ("complete", "incomplete", "cancelled", "failed")


def measure_archives(bench: Bench, num_images: int) -> dict[str, Any]:
    """Score an archive both ways, once, and single cells alone and beside one.

    Returns:
        ``job_speed``, ``serve_speed`` (images/s) and their ``ratio``; ``alone_ms``, ``beside_ms``
        (p99) and their ``ms_ratio``, ``None`` where a load is void; and what they come from.

    Raises:
        ContenderError: a process failed, an image was lost, or a run did not end.
    """
    archive = bench.work / "archives" / f"cells-{num_images}.tar"
    if not archive.exists():
        write_archive(bench.images, num_images, archive)
    job = _score_by_job(bench, archive, num_images)
    bench.say(f"jobs.score               {job['images_per_second']:8.0f} images/s")
    with started(bench, ours("--read", str(archive.parent))) as target:
        alone = _single_cells(target)
        served = _score_by_endpoint(target, archive, num_images)
        bench.say(f"through the endpoint     {served['images_per_second']:8.0f} images/s")
        beside = _beside_an_archive(target, archive)
    alone_ms, beside_ms = (None if why_void(load) else load["p99_ms"] for load in (alone, beside))
    if beside["archive_status"] in ENDED:
        beside_ms = None
    return {
        "num_images": num_images,
        "job_speed": job["images_per_second"],
        "serve_speed": served["images_per_second"],
        "ratio": served["images_per_second"] / job["images_per_second"],
        "alone_ms": alone_ms,
        "beside_ms": beside_ms,
        "ms_ratio": beside_ms / alone_ms if alone_ms and beside_ms else None,
        "job": job,
        "serve": served,
        "alone": alone,
        "beside": beside,
    }


def write_archive(images: Path, num_images: int, archive: Path) -> Path:
    """Write a tar of so many images, again from the first where there are fewer."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    paths = sorted(images.glob("*.jpg"))
    with tarfile.open(archive, "w") as tar:
        for number, path in enumerate(itertools.islice(itertools.cycle(paths), num_images)):
            data = path.read_bytes()
            member = tarfile.TarInfo(f"slide-{number // 5000}/{number:06d}.jpg")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return archive


def _score_by_job(bench: Bench, archive: Path, num_images: int) -> dict[str, Any]:
    out = bench.work / "job"
    shutil.rmtree(out, ignore_errors=True)
    finished = run(
        [
            *(sys.executable, "-m", "jobs.score", "--store", str(archive), "--out", str(out)),
            *("--bundle", bench.bundle, "--shard-size", str(SHARD_SIZE)),
        ],
        env=machine.environment(),
        cwd=ROOT,
        log=bench.work / "job.log",
        timeout_s=bench.timeout_s,
    )
    return read_run(out, num_images) | {"total_seconds": finished.seconds}


def _score_by_endpoint(target: Target, archive: Path, num_images: int) -> dict[str, Any]:
    began = time.perf_counter()
    run_id = _begin(target, archive)
    ended = _wait(target, run_id, lambda view: view["status"] in ENDED)
    seconds = time.perf_counter() - began
    if ended["status"] != "complete":
        raise ContenderError(f"the archive run ended {ended['status']}: {ended['message']}")
    folder = target.place.root / "runs" / run_id
    return read_run(folder, num_images) | {"total_seconds": seconds}


def _single_cells(target: Target) -> dict[str, Any]:
    load = target.load(
        rate=CELLS_PER_SECOND, concurrency=64, seconds=CELLS_WINDOWS * target.bench.seconds
    )
    target.bench.say(
        f"single cells             p50 {load['p50_ms']:.1f} ms, p99 {load['p99_ms']:.1f}"
    )
    return load


def _beside_an_archive(target: Target, archive: Path) -> dict[str, Any]:
    """Load single cells while an archive is scored, from its first shard on."""
    run_id = _begin(target, archive)
    _wait(target, run_id, lambda view: view["counts"]["shards_done"] > 0)
    load = _single_cells(target)
    view = _ask(target, "GET", f"/v1/archives/{run_id}")
    if view["status"] in ENDED:
        target.bench.say("void: the archive had ended by then; give more --archive-images")
    else:
        _ask(target, "POST", f"/v1/archives/{run_id}/cancel")
        _wait(target, run_id, lambda view: view["status"] in ENDED)
    return load | {"archive_status": view["status"], "num_scored": view["counts"]["scored"]}


def read_run(folder: Path, num_images: int) -> dict[str, Any]:
    """Return how fast a run was.

    ``images_per_second`` is ``run.json``'s own: all images over the time from the first shard begun
    to the last one published. ``published_per_second`` needs no clock but the file system's: the
    images of all shards but the first published, over the time from its publication to the last.

    Raises:
        ContenderError: the run did not score every image.
    """
    record = json.loads((folder / "run.json").read_text())
    parts = sorted((folder / "scores").glob("part-*.parquet"), key=lambda p: p.stat().st_mtime)
    rows = [pq.read_metadata(part).num_rows for part in parts]
    if sum(rows) != num_images or record["counts"]["scored"] != num_images:
        raise ContenderError(
            f"{folder.name}: {sum(rows):,} rows for {num_images:,} images; nothing is compared "
            "that did not do the same work"
        )
    span = parts[-1].stat().st_mtime - parts[0].stat().st_mtime
    return {
        "images_per_second": float(record["timings"]["images_per_second"]),
        "published_per_second": sum(rows[1:]) / span if span > 0 else None,
        "timings": record["timings"],
    }


def _begin(target: Target, archive: Path) -> str:
    asked = {"store": str(archive), "out": None, "slide_pattern": None, "shard_size": SHARD_SIZE}
    return str(_ask(target, "POST", "/v1/archives", asked)["id"])


def _wait(
    target: Target, run_id: str, is_enough: Callable[[dict[str, Any]], bool]
) -> dict[str, Any]:
    """Ask once a second, which costs nothing that shows, until it is enough."""
    deadline = time.monotonic() + target.bench.timeout_s
    while not is_enough(view := _ask(target, "GET", f"/v1/archives/{run_id}")):
        target.server.require_alive()
        if view["status"] in ENDED or time.monotonic() > deadline:
            raise ContenderError(f"the archive run is {view['status']}: {view['message']}")
        time.sleep(1.0)
    return view


def _ask(target: Target, method: str, path: str, body: Any = None) -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    connection = http.client.HTTPConnection("127.0.0.1", target.place.port, timeout=60)
    try:
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        response = connection.getresponse()
        data = response.read()
    except OSError as error:
        raise ContenderError(f"{method} {path}: {error}") from error
    finally:
        connection.close()
    if response.status >= 300:
        raise ContenderError(f"{method} {path}: {response.status} {data[:400]!r}")
    found: dict[str, Any] = json.loads(data)
    return found
