"""What killed workers left half-written in a run folder is taken away, and nothing else."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from bloodcells import publish, storage
from bloodcells.storage import TEMPORARY_PREFIX
from bloodcells.storage.s3_client import request, split
from tests.s3 import S3Server


def test_temporary_files_go_wherever_they_lie(tmp_path: Path) -> None:
    run = tmp_path / "run"
    begun_at = time.time() - 1000
    for folder in (run, run / "plan", run / "scores", run / "quarantine"):
        folder.mkdir()
        (folder / f"{TEMPORARY_PREFIX}old").write_bytes(b"PAR1")
        os.utime(folder / f"{TEMPORARY_PREFIX}old", (begun_at - 10, begun_at - 10))
        (folder / f"{TEMPORARY_PREFIX}new").write_bytes(b"PAR1")
    (run / "run.json").write_text("{}")
    os.utime(run / "run.json", (begun_at - 10, begun_at - 10))
    publish.sweep(str(run), set(), begun_at=begun_at)
    left = sorted(path.name for path in run.rglob("*") if path.is_file())
    assert left == [f"{TEMPORARY_PREFIX}new", "run.json"]  # the heartbeat of this session, maybe
    assert (run / f"{TEMPORARY_PREFIX}new").exists()


def begin_upload(uri: str) -> str:
    """Send the first part of a file, as a process does that is killed then."""
    bucket, key = split(uri)
    where = {"Bucket": bucket, "Key": key}
    upload = {**where, "UploadId": request(uri, "create_multipart_upload", **where)["UploadId"]}
    request(uri, "upload_part", **upload, PartNumber=1, Body=bytes(1000))
    return uri


def uploads(server: S3Server) -> set[str]:
    page = request(server.uri, "list_multipart_uploads", Bucket=server.bucket)
    return {f"{server.uri}/{upload['Key']}" for upload in page.get("Uploads", ())}


def test_uploads_below_a_run_are_aborted_and_no_others(ordered_s3: S3Server) -> None:
    lab = f"{ordered_s3.uri}/lab"
    inside = {begin_upload(f"{lab}/run/{name}") for name in ("slides.parquet", "scores/all é.pq")}
    begin_upload(f"{lab}/run/slides.parquet")  # killed twice
    outside = {begin_upload(f"{lab}/{name}") for name in ("run2/slides.parquet", "run.tar", "run")}
    storage.put(f"{lab}/run/run.json", b"{}")
    assert uploads(ordered_s3) >= inside | outside
    publish.sweep(f"{lab}/run", set())
    assert uploads(ordered_s3) & (inside | outside) == outside
    assert storage.read(f"{lab}/run/run.json") == b"{}"
    publish.sweep(f"{lab}/run", set())
    publish.sweep(f"{lab}/nothing", set())


def test_who_may_not_list_uploads_may_run_all_the_same(
    ordered_s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bloodcells.errors import AccessDeniedError
    from bloodcells.storage import s3

    def refused(uri: str) -> None:
        raise AccessDeniedError(f"{uri} refuses access")

    monkeypatch.setattr(s3, "abort_uploads", refused)
    publish.sweep(f"{ordered_s3.uri}/lab/run", set())
