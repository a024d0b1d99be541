"""The desk, its records and its routes, without Ray: who may ask for what, what is kept of it."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import os
import tarfile
import time
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from bloodcells.bundle import ModelBundle, shipped_bundle_uri
from bloodcells.synthetic import NORMAL, draw_slide, write_archive
from serve.api import create_api
from serve.archive_desk import ArchiveDesk
from serve.archive_notes import NoteTaker
from serve.archive_records import ArchiveRecords, Note
from serve.archive_routes import archive_router
from serve.archive_uploads import FOLDER, slide_name, sweep_uploads
from serve.doors import Doors, read_tokens
from serve.settings import Limits, ServeSettings

TOKENS = """
ann archives the-token-of-ann-the-asker
rob review   the-token-of-rob-the-reader
cat classify the-token-of-cat-the-other
"""
ANN, ROB, CAT = (
    {"Authorization": f"Bearer {line.split()[2]}"} for line in TOKENS.strip().splitlines()
)


@pytest.fixture(scope="module")
def bundle() -> ModelBundle:
    return ModelBundle.load(shipped_bundle_uri())


@pytest.fixture
def settings(tmp_path: Path) -> ServeSettings:
    (tmp_path / "tokens").write_text(TOKENS)
    (tmp_path / "lab").mkdir()
    return ServeSettings(
        root=str(tmp_path / "root"),
        read=(str(tmp_path / "lab"), "s3://lab"),
        write=(str(tmp_path / "out"),),
        tokens_file=str(tmp_path / "tokens"),
        limits=Limits(upload_bytes=200_000, upload_seconds=2, body_seconds=1, open_runs=8),
    )


@pytest.fixture
def desk(settings: ServeSettings, bundle: ModelBundle) -> ArchiveDesk:
    async def poke() -> None:
        """No keeper is there; nothing depends on it."""

    return ArchiveDesk(settings, bundle, poke)


@pytest.fixture
def client(desk: ArchiveDesk, settings: ServeSettings) -> Iterator[TestClient]:
    doors = Doors(read_tokens(settings.tokens_file))
    with TestClient(create_api([archive_router(desk, doors)], doors), headers=ANN) as client:
        yield client


@pytest.fixture
def tar(tmp_path: Path) -> bytes:
    write_archive(tmp_path / "cells.tar", list(draw_slide(NORMAL, 3, seed=1)), "tar")
    return (tmp_path / "cells.tar").read_bytes()


def code(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def ask(client: TestClient, store: object, **more: Any) -> Any:
    headers = more.pop("headers", {})
    return client.post("/v1/archives", json={"store": store, **more}, headers=headers)


@pytest.mark.parametrize(
    "store",
    [
        "/etc/passwd",
        "s3://lab-evil/x",
        "s3://lab/../lab-evil/x",
        "file:///etc/passwd",
        "http://169.254.169.254/latest/meta-data",
        "simplecache::s3://lab/x",
        "zip://x::s3://lab/x",
        "lab/x",
        "{lab}/../root",
        "{lab}/link/x",
        "{lab}/*.tar",
        "{lab}/a\x00b",
        "{lab}/a\nb",
    ],
)
def test_places_that_are_not_allowed(client: TestClient, tmp_path: Path, store: str) -> None:
    (tmp_path / "lab" / "link").symlink_to("/etc")
    given = store.format(lab=tmp_path / "lab")
    for body in (given, [str(tmp_path / "lab" / "good"), given]):
        answer = ask(client, body)
        assert code(answer) in ((403, "place_not_allowed"), (422, "bad_uri")), answer.text
    assert not (tmp_path / "root" / "archives").exists()


def test_where_runs_may_be_written(client: TestClient, tmp_path: Path) -> None:
    store = str(tmp_path / "lab" / "a.tar")
    for out in ("/tmp/else", str(tmp_path / "lab" / "run"), "s3://lab/run", "../x"):
        assert ask(client, store, out=out).status_code in (403, 422), out
    for out in ("root", "root/archives", "root/runs/x"):
        assert code(ask(client, store, out=str(tmp_path / out))) == (403, "place_not_allowed")
    assert ask(client, store, out=str(tmp_path / "out" / "a")).status_code == 202
    (tmp_path / "out" / "b").mkdir(parents=True)
    (tmp_path / "out" / "b" / "run.json").write_text("{}")
    assert code(ask(client, store, out=str(tmp_path / "out" / "b"))) == (409, "out_in_use")


def test_who_may_what(client: TestClient, tmp_path: Path) -> None:
    store = str(tmp_path / "lab" / "a.tar")
    made = ask(client, store).json()
    url = f"/v1/archives/{made['id']}"
    for headers, asks, reads in ((ANN, 202, 200), (ROB, 403, 200), (CAT, 403, 403)):
        assert ask(client, store, headers=headers).status_code == asks
        assert client.post(f"{url}/cancel", headers=headers).status_code == asks
        assert client.post(f"{url}/resume", headers=headers).status_code == asks
        for path in ("/v1/archives", url, f"{url}/files"):
            assert client.get(path, headers=headers).status_code == reads
    assert client.get(url, headers={"Authorization": "Bearer nobody"}).status_code == 401
    assert code(client.get(f"/v1/archives/{'0' * 32}")) == (404, "not_found")
    assert client.get("/v1/archives/..%2f..%2ftokens").status_code in (404, 422)


def test_a_body_that_is_not_right(client: TestClient, tmp_path: Path) -> None:
    store = str(tmp_path / "lab" / "a.tar")
    for body in (
        {},
        {"store": []},
        {"store": ""},
        {"store": 3},
        {"store": store, "shard_size": 0},
        {"store": store, "max_quarantine": 2},
        {"store": store, "what": 1},
    ):
        answer = client.post("/v1/archives", json=body)
        assert code(answer) == (422, "invalid"), body
    assert code(ask(client, store, slide_pattern="(")) == (422, "bad_pattern")
    answer = client.post("/v1/archives", content=b"[", headers={"Content-Type": "application/json"})
    assert code(answer) == (422, "invalid")
    answer = client.post("/v1/archives", content=b"x", headers={"Content-Type": "text/plain"})
    assert code(answer) == (415, "unsupported_type")


def test_one_key_is_one_run(client: TestClient, tmp_path: Path) -> None:
    store, other = (str(tmp_path / "lab" / name) for name in ("a.tar", "b.tar"))
    once = {"Idempotency-Key": "once"}
    made = ask(client, store, headers=once).json()
    assert ask(client, store, headers=once).json()["id"] == made["id"]
    assert ask(client, store).json()["id"] != made["id"]
    assert code(ask(client, other, headers=once)) == (409, "key_used")
    listed = client.get("/v1/archives").json()["archives"]
    assert len(listed) == 2
    assert (
        listed[-1]
        == client.get("/v1/archives", params={"before": listed[0]["id"]}).json()["archives"][0]
    )
    assert made["created_by"] == "ann"


def test_open_runs_are_bounded_and_finished_ones_are_not(
    client: TestClient, desk: ArchiveDesk, tmp_path: Path
) -> None:
    store = str(tmp_path / "lab" / "a.tar")
    made = [ask(client, store).json()["id"] for _ in range(8)]
    answer = ask(client, store)
    assert code(answer) == (429, "too_many_runs")
    assert answer.headers["retry-after"]
    desk.records.save_note(made[0], Note(status="complete", asked=0))
    assert ask(client, store).status_code == 202
    assert client.post(f"/v1/archives/{made[1]}/cancel").json()["status"] == "cancelled"
    assert ask(client, store).status_code == 202
    assert code(client.post(f"/v1/archives/{made[1]}/resume")) == (429, "too_many_runs")


def test_how_a_run_stands(client: TestClient, desk: ArchiveDesk, tmp_path: Path) -> None:
    made = ask(client, str(tmp_path / "lab" / "a.tar")).json()["id"]
    url = f"/v1/archives/{made}"

    def status() -> str:
        return str(client.get(url).json()["status"])

    assert status() == "queued"
    for noted in ("planning", "running", "incomplete", "failed"):
        desk.records.save_note(made, Note(status=noted, asked=0, message="why"))  # type: ignore[arg-type]
        assert status() == noted
    assert client.get(url).json()["message"] == "why"
    assert client.post(f"{url}/resume").json()["status"] == "queued"
    assert client.get(url).json()["message"] is None
    desk.records.save_note(made, Note(status="running", asked=1))
    assert client.post(f"{url}/resume").json()["status"] == "running"
    assert client.post(f"{url}/cancel").json()["status"] == "cancelled"
    desk.records.save_note(made, Note(status="complete", asked=1))
    assert client.post(f"{url}/cancel").json()["status"] == "complete"
    assert client.post(f"{url}/resume").json()["status"] == "complete"


def test_an_upload_is_kept_whole(client: TestClient, tar: bytes, tmp_path: Path) -> None:
    def pieces() -> Iterator[bytes]:
        for start in range(0, len(tar), 1000):
            yield tar[start : start + 1000]

    for kind, body, ending in (
        ("application/x-tar", tar, ".tar"),
        ("application/gzip", gzip.compress(tar), ".tar.gz"),
        ("application/zip", zipped(tar), ".zip"),
    ):
        answer = client.post(
            "/v1/archives",
            params={"name": f"Fall 17{ending}"},
            content=pieces() if ending == ".tar" else body,
            headers={"Content-Type": kind},
        )
        assert answer.status_code == 202, answer.text
        (kept,) = (tmp_path / "root" / FOLDER / answer.json()["id"]).iterdir()
        assert (kept.name, kept.read_bytes()) == (f"Fall 17{ending}", body)
    assert not list((tmp_path / "root" / FOLDER).glob(".tmp*"))


def zipped(data: bytes) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        archive.writestr("a.jpg", data)
    return sink.getvalue()


@pytest.mark.parametrize("kind", ["application/x-tar", "application/gzip", "application/zip"])
def test_what_is_no_archive(client: TestClient, kind: str, tmp_path: Path) -> None:
    link = tarfile.TarInfo("x")
    bodies = [b"", b"x", b"\x00" * 1024, gzip.compress(b"text"), b"\x1f\x8b\x00", b"GIF89a" * 200]
    bodies.append(link.tobuf() if kind != "application/x-tar" else zipped(b""))
    for body in bodies:
        answer = client.post("/v1/archives", content=body, headers={"Content-Type": kind})
        assert code(answer) == (415, "not_an_archive"), body[:20]
    assert not list((tmp_path / "root" / FOLDER).iterdir())
    assert not (tmp_path / "root" / "archives").exists()


def test_an_upload_that_is_too_large_or_too_slow(
    client: TestClient, tar: bytes, tmp_path: Path
) -> None:
    headers = {"Content-Type": "application/x-tar"}
    stated = client.post("/v1/archives", content=b"x" * 200_001, headers=headers)
    assert code(stated) == (413, "body_too_large")

    def unstated() -> Iterator[bytes]:
        yield tar[:512]
        for _ in range(10):
            yield b"x" * 50_000

    assert code(client.post("/v1/archives", content=unstated(), headers=headers)) == (
        413,
        "body_too_large",
    )
    assert not list((tmp_path / "root" / FOLDER).iterdir())


def test_slow_uploads_end_and_free_their_places(desk: ArchiveDesk, tmp_path: Path) -> None:
    """Two kinds of slowness: a silent client, and one that dribbles."""

    class Slow:
        def __init__(self, pause: float) -> None:
            self.headers = {"content-type": "application/x-tar"}
            self.pause = pause

        async def stream(self) -> Any:
            while True:
                await asyncio.sleep(self.pause)
                yield b"x"

    async def everybody() -> list[Any]:
        begun = [
            desk.uploads.receive(Slow(pause), archive_id="a", name="x")  # type: ignore[arg-type]
            for pause in (0.1, 0.1, 30, 30, 30)
        ]
        return await asyncio.gather(*begun, return_exceptions=True)

    started = time.monotonic()
    told = [error.code for error in asyncio.run(everybody())]
    assert told == ["body_too_slow"] * 4 + ["too_many_uploads"]
    assert time.monotonic() - started < 4
    assert not list((tmp_path / "root" / FOLDER).iterdir())


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("slide-17.tar", "slide-17"),
        ("Fall 17.tar.gz", "Fall 17"),
        ("../../etc/passwd", "passwd"),
        ("..\\..\\x.zip", "x"),
        ("Präparat Ü.zip", "Präparat Ü"),
        ("<img src=x onerror=alert(1)>.tar", "_img src_x onerror_alert_1"),
        (".tmp-x", "tmp-x"),
        ("...", "upload"),
        ("", "upload"),
        ("a" * 300, "a" * 100),
        ("a#b?c*d\n.tar", "a_b_c_d"),
    ],
)
def test_an_uploads_name_is_a_plain_one(given: str, kept: str) -> None:
    assert slide_name(given).rstrip("_") == kept


def test_what_uploads_leave_is_swept(tmp_path: Path) -> None:
    folder = tmp_path / FOLDER
    for name in ("fresh", "old", "kept"):
        path = folder / (name[0] * 32) / "slide.tar"
        path.parent.mkdir(parents=True)
        path.write_bytes(b"x")
    (folder / ".tmp-old").write_bytes(b"x")
    (folder / ".tmp-new").write_bytes(b"x")
    for path in (folder / ("o" * 32) / "slide.tar", folder / ("k" * 32) / "slide.tar"):
        os.utime(path, (0, 0))
    os.utime(folder / ".tmp-old", (0, 0))
    records = ArchiveRecords(str(tmp_path))
    sweep_uploads(records, 600)
    assert {path.name for path in folder.iterdir()} == {"f" * 32, ".tmp-new"}


def test_records_survive_damage_and_are_read_once(
    desk: ArchiveDesk, client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = ask(client, str(tmp_path / "lab" / "a.tar")).json()["id"]
    folder = tmp_path / "root" / "archives"
    (folder / f"{'0' * 32}.json").write_text("{ half")
    (folder / f"{'1' * 32}.json").write_text('{"id": 1}')
    (folder / "notes.txt").write_text("x")
    records = ArchiveRecords(str(tmp_path / "root"))
    assert [request.id for request in records.requests()] == [made]
    reads: list[str] = []
    monkeypatch.setattr("bloodcells.storage.read", lambda uri: reads.append(uri) or b"{}")
    assert [request.id for request in records.requests()] == [made]
    assert not reads


def test_notes_are_in_a_clients_words(
    desk: ArchiveDesk, client: TestClient, tmp_path: Path
) -> None:
    made = ask(client, str(tmp_path / "lab" / "a.tar")).json()["id"]
    request = desk.request(made)
    taker = NoteTaker(desk.records, request, lambda: None)
    taker.end("incomplete", f"What is finished stays in {request.out}; run the same command again")
    view = client.get(f"/v1/archives/{made}").json()
    assert view["message"] == f"What is finished stays in runs/{made}; resume the run"
    later = replace(request, asked=1)
    desk.records.save(later)
    assert client.get(f"/v1/archives/{made}").json()["status"] == "queued"
    NoteTaker(desk.records, later, lambda: None).end("failed", "no")
    assert client.get(f"/v1/archives/{made}").json()["status"] == "failed"


def test_the_open_api_says_what_a_body_may_be(client: TestClient) -> None:
    described = client.get("/openapi.json").json()
    body = described["paths"]["/v1/archives"]["post"]["requestBody"]["content"]
    assert set(body) == {
        "application/json",
        "application/x-tar",
        "application/gzip",
        "application/zip",
    }
    assert json.dumps(body["application/json"]["schema"]["examples"])
