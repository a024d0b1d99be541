"""Whole runs on an S3 whose requests fail: exact in the end, and what was tried again is told."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bloodcells import storage
from bloodcells.storage import Traffic
from bloodcells.synthetic import BALANCED, ImageFile, draw_slide
from jobs.score import ScoreConfig, score
from tests.s3 import Faults, S3Server, credentials, faulty_proxy

pytestmark = pytest.mark.timeout(600)

JOB = """
import json, sys
from dataclasses import asdict
from bloodcells import storage
from bloodcells.pipeline import planning
from bloodcells.stores import opening
from jobs.score import ScoreConfig, score

opening.MOST_AT_TOP, planning.SHARDS_LISTED_FIRST, planning.SHARDS_LISTED = json.loads(sys.argv[1])
planning.LEAST_SHARD_SIZE = 1
score(ScoreConfig(scorers="1", site="none", **json.loads(sys.argv[2])))
print("after the record:", json.dumps(asdict(storage.take_traffic())))
"""
"""A job as ``jobs.score`` runs it, that cuts its stores as large ones are cut where it is told to,
and tells of the requests that it made after it wrote its record."""

AS_IT_IS = (5000, 10, 32)


@pytest.fixture(scope="module")
def images() -> list[ImageFile]:
    return list(draw_slide(BALANCED, 60, seed=12))


def put_images(root: str, images: list[ImageFile]) -> None:
    for image in images:
        storage.put(f"{root}/{image.name}", image.data)


def job(
    store: str, out: str, *, env: dict[str, str], cut: tuple[int, ...] = AS_IT_IS, **more: object
) -> tuple[Traffic, str]:
    """Run a job to its end; returns what it asked after its record, and what it said."""
    flags = {"store": [store], "out": out, "shard_size": 8, **more}
    done = subprocess.run(
        [sys.executable, "-c", JOB, json.dumps(cut), json.dumps(flags)],
        env={**{k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}, **env},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("after the record:"))
    return Traffic(**json.loads(line.partition(": ")[2])), done.stderr


def record(run_uri: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(storage.read(f"{run_uri}/run.json"))
    return found


def rows(run_uri: str, table: str = "scores") -> pa.Table:
    parts = [
        pq.read_table(io.BytesIO(storage.read(part.uri)))
        for part in storage.listdir(f"{run_uri}/{table}")
    ]
    return pa.concat_tables(parts).sort_by("image_uri")


@pytest.fixture(scope="module")
def flawless(s3: S3Server, images: list[ImageFile]) -> str:
    """A run that met no fault."""
    put_images(f"{s3.uri}/faults/store", images)
    job(f"{s3.uri}/faults/store", f"{s3.uri}/faults/flawless", env=s3.env)
    return f"{s3.uri}/faults/flawless"


def through_faults(
    s3: S3Server, name: str, rate: float, kinds: tuple[int | str, ...]
) -> tuple[Faults, str, Traffic, str]:
    run_uri = f"{s3.uri}/faults/{name}"
    with faulty_proxy(s3) as (endpoint, faults):
        faults.rate, faults.kinds = rate, kinds
        after, said = job(f"{s3.uri}/faults/store", run_uri, env=credentials(endpoint))
    return faults, run_uri, after, said


def assert_exact(run_uri: str, flawless: str, num_images: int) -> None:
    found = rows(run_uri)
    assert len(found) == num_images == len(set(found["image_uri"].to_pylist()))
    assert found.equals(rows(flawless))
    assert len(rows(run_uri, "quarantine")) == 0
    assert record(run_uri)["status"] == "complete"


def test_every_twentieth_request_fails(
    s3: S3Server, flawless: str, images: list[ImageFile]
) -> None:
    kinds = (503, "reset", "slow", "throttled")
    faults, run_uri, after, said = through_faults(s3, "twentieth", 0.05, kinds)
    assert_exact(run_uri, flawless, len(images))
    told = Traffic(**record(run_uri)["storage"]) + after
    assert told.retries_throttled == faults.met[503] + faults.met["throttled"] > 0
    assert told.retries_server == 0
    # The HTTP library asks once more of its own accord where a connection is lost.
    assert told.retries_connection <= faults.met["reset"]
    assert len(faults.seen) - faults.met["reset"] <= told.requests <= len(faults.seen)
    assert "were tried again" in said


def test_every_third_request_fails_and_each_is_told(
    s3: S3Server, flawless: str, images: list[ImageFile]
) -> None:
    kinds = (500, 503, "torn", "throttled")
    faults, run_uri, after, said = through_faults(s3, "third", 0.33, kinds)
    assert_exact(run_uri, flawless, len(images))
    told = Traffic(**record(run_uri)["storage"]) + after
    assert told == Traffic(
        requests=len(faults.seen),
        retries_throttled=faults.met[503] + faults.met["throttled"],
        retries_server=faults.met[500],
        retries_connection=faults.met["torn"],
    )
    assert faults.failed > 40
    report = storage.read(f"{run_uri}/report.html").decode()
    assert "requests went to S3" in report and "were tried again" in report
    assert "of " in said and "requests to S3" in said


@pytest.mark.usefixtures("ray_cluster")
def test_a_run_that_goes_on_adds_to_what_it_asked(
    s3: S3Server, images: list[ImageFile], tmp_path: Path
) -> None:
    put_images(f"{s3.uri}/adds/store", images[:10])
    config = ScoreConfig(
        store=(f"{s3.uri}/adds/store",), out=f"{s3.uri}/adds/run", shard_size=5, scorers="1"
    )
    score(config)
    first = record(config.out)
    assert first["storage"]["requests"] > len(images[:10])
    assert not any(n for name, n in first["storage"].items() if name != "requests")
    storage.delete(next(storage.listdir(f"{config.out}/scores")).uri)
    storage.put(f"{config.out}/run.json", json.dumps({**first, "status": "running"}).encode())
    score(config)
    assert record(config.out)["storage"]["requests"] > first["storage"]["requests"] + 5
    # A record of an earlier version has no such field.
    old = {k: v for k, v in record(config.out).items() if k != "storage"}
    storage.put(f"{config.out}/run.json", json.dumps(old).encode())
    score(config)
    (tmp_path / "slide").mkdir()
    (tmp_path / "slide" / "a.jpg").write_bytes(images[0].data)
    score(
        ScoreConfig(
            store=(str(tmp_path / "slide"),), out=str(tmp_path / "run"), scorers="1", site="none"
        )
    )
    assert record(str(tmp_path / "run"))["storage"] == {}


def test_a_store_that_was_cut_and_grows_is_scored_on_exactly(
    ordered_s3: S3Server, images: list[ImageFile]
) -> None:
    """Cut by names at first, elsewhere the second time and not at all the third time."""
    lab, env = f"{ordered_s3.uri}/growing", ordered_s3.env
    store = f"{lab}/store"

    def put(numbers: range, folder: str = "") -> set[str]:
        uris = {f"{store}/{folder}cell-{number:03d}.jpg" for number in numbers}
        for uri, image in zip(sorted(uris), images, strict=False):
            storage.put(uri, image.data)
        return uris

    first = put(range(100, 140)) | put(range(6), "sub/")
    job(store, f"{lab}/runs/first", env=env, cut=(5, 1, 1))
    assert set(rows(f"{lab}/runs/first")["image_uri"].to_pylist()) == first
    sources = {name.split("-")[0] for name in plan_names(f"{lab}/runs/first")}
    assert len(sources) > 3
    # Before, between and after what was there, and one of the old ones anew.
    second = put(range(95, 100)) | put(range(140, 150)) | put(range(6, 9), "sub/")
    second |= put(range(3), "a/")
    storage.put(f"{store}/cell-120.jpg", images[50].data)
    second.add(f"{store}/cell-120.jpg")
    more = {"since": "latest", "shard_size": 5}
    _, said = job(store, f"{lab}/runs/second", env=env, cut=(7, 2, 1), **more)
    assert f"{lab}/runs/first" in said
    assert set(rows(f"{lab}/runs/second")["image_uri"].to_pylist()) == second
    third = put(range(2), "zz/")
    job(store, f"{lab}/runs/third", env=env, **more)
    assert set(rows(f"{lab}/runs/third")["image_uri"].to_pylist()) == third
    assert record(f"{lab}/runs/third")["settings"]["since"] == f"{lab}/runs/second"


def plan_names(run_uri: str) -> list[str]:
    return [entry.name for entry in storage.listdir(f"{run_uri}/plan")]
