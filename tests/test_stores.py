from __future__ import annotations

import pickle
import shutil
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from bloodcells import storage
from bloodcells.errors import (
    AccessDeniedError,
    ConfigurationError,
    NotFoundError,
    StoreError,
    UnavailableError,
)
from bloodcells.records import Fault, Shard
from bloodcells.storage import retry
from bloodcells.stores import ListingProblem, folder, listing, open_store, plan_source, read_shard
from tests.s3 import S3Server, faulty_proxy
from tests.store_kinds import (
    ENDINGS,
    Planned,
    place,
    some_images,
    some_pixels,
    tar_bytes,
    write,
)

NAMED = ["folder", "tar", "targz", "zip", "parquet"]


@pytest.mark.parametrize("where", ["disk", "s3"])
@pytest.mark.parametrize("kind", NAMED)
def test_every_kind_hands_out_the_same_images(
    kind: str, where: str, s3: S3Server, tmp_path: Path
) -> None:
    images = some_images(130)
    path = tmp_path / f"slide-7{ENDINGS[kind]}"
    write(path, kind, images)
    uri = str(path) if where == "disk" else place(path, s3, f"kinds-{kind}")
    planned = Planned(uri, shard_size=50)
    assert [record.data for record in planned.read()] == list(images.values())
    assert not planned.problems
    assert not planned.ignored
    assert {member.slide_id for member in planned.members} == {"slide-7"}
    assert {member.label for member in planned.members} == {"neutrophil"}
    assert len({member.image_uri for member in planned.members}) == 130
    assert max(len(shard.members) for shard in planned.shards) <= (130 if kind == "targz" else 50)
    again = Planned(uri, shard_size=50)
    assert again.shards == planned.shards
    assert pickle.loads(pickle.dumps(planned.shards)) == planned.shards


def test_a_dataset_of_many_kinds_is_one_store(tmp_path: Path) -> None:
    images = some_images(5)
    write(tmp_path / "data" / "slideA", "folder", images)
    for kind in ("tar", "zip", "parquet", "targz"):
        write(tmp_path / "data" / f"top{ENDINGS[kind]}", kind, images)
        write(tmp_path / "data" / "batch" / f"deep{ENDINGS[kind]}", kind, images)
    (tmp_path / "data" / "labels.csv").write_text("x")
    (tmp_path / "data" / "loose.PNG").write_bytes(b"png")
    (tmp_path / "data" / ".hidden.jpg").write_bytes(b"x")
    planned = Planned(str(tmp_path / "data"))
    assert len(planned.read()) == len({m.image_uri for m in planned.members}) == 5 * 9 + 1
    assert [ignored.examples for ignored in planned.ignored] == [("labels.csv",)]
    assert not planned.problems
    slides = {
        member.image_uri.removeprefix(f"{tmp_path}/"): member.slide_id for member in planned.members
    }
    assert slides["data/slideA/neutrophil/cell-0000.jpg"] == "slideA"
    assert slides["data/loose.PNG"] == "data"
    assert slides["data/top.tar#neutrophil/cell-0000.jpg"] == "top"
    assert slides["data/batch/deep.tar.gz#neutrophil/cell-0000.jpg"] == "deep"


def test_a_tree_plans_alike_on_disk_and_on_s3(s3: S3Server, tmp_path: Path) -> None:
    for name in ("b", "a-b", "a", "a.b"):
        write(tmp_path / "tree" / name, "folder", some_images(3, folder="x"))
    local = Planned(str(tmp_path / "tree"), shard_size=2)
    remote = Planned(place(tmp_path / "tree", s3, "tree"), shard_size=2)
    assert [m.name for m in local.members] == [m.name for m in remote.members]
    assert [m.slide_id for m in local.members] == [m.slide_id for m in remote.members]


@pytest.mark.parametrize("where", ["disk", "s3"])
def test_globs_and_lists(where: str, s3: S3Server, tmp_path: Path) -> None:
    for name in ("a1", "a2", "b1"):
        write(tmp_path / "lab" / "x" / f"{name}.tar", "tar", some_images(2))
        write(tmp_path / "lab" / "y" / f"{name}.tar", "tar", some_images(2))
    write(tmp_path / "lab" / "[z]*.tar", "tar", some_images(2))
    root = str(tmp_path / "lab") if where == "disk" else place(tmp_path / "lab", s3, "globs")

    def found(*uris: str) -> list[str]:
        return [uri.removeprefix(f"{root}/") for uri in open_store(uris).uris]

    assert found(f"{root}/x/a*.tar") == ["x/a1.tar", "x/a2.tar"]
    assert found(f"{root}/?/a1.tar") == ["x/a1.tar", "y/a1.tar"]
    assert found(f"{root}/[xz]/*1.tar") == ["x/a1.tar", "x/b1.tar"]
    assert found(f"{root}/[z]*.tar") == ["[z]*.tar"]  # a file of that very name
    assert found(f"{root}/y/", f"{root}/x/*2.tar") == ["x/a2.tar", "y"]
    for overlapping in (
        [f"{root}/x", f"{root}/x/a1.tar"],
        [f"{root}/x", f"{root}/?"],
        [f"{root}/x/a1.tar", f"{root}/x/*.tar"],
        [root, f"{root}/y/"],
    ):
        with pytest.raises(StoreError, match="name"):
            open_store(overlapping)
    open_store([f"{root}/x/a1.tar", f"{root}/x/a2.tar"])
    for nothing in (f"{root}/nothing", f"{root}/z*", f"{root}/*/none*"):
        with pytest.raises(NotFoundError, match="--store"):
            open_store(nothing)


def test_what_is_no_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(StoreError, match="no store"):
        open_store(str(tmp_path / "notes.txt")).sources()
    (tmp_path / "empty").mkdir()
    with pytest.raises(StoreError, match="empty"):
        open_store(str(tmp_path / "empty")).sources()
    with pytest.raises(ConfigurationError, match="slide-pattern"):
        open_store(str(tmp_path), slide_pattern="(")
    with pytest.raises(ConfigurationError, match="--store"):
        open_store([])


def test_links_neither_loop_nor_lead_out(tmp_path: Path) -> None:
    write(tmp_path / "store" / "slide", "folder", some_images(2))
    (tmp_path / "outside.jpg").write_bytes(b"x")
    (tmp_path / "store" / "slide" / "up").symlink_to(tmp_path / "store")
    (tmp_path / "store" / "slide" / "link.jpg").symlink_to(tmp_path / "outside.jpg")
    (tmp_path / "store" / "link.tar").symlink_to(tmp_path / "outside.jpg")
    planned = Planned(str(tmp_path / "store"))
    assert len(planned.members) == 2
    assert sum(ignored.count for ignored in planned.ignored) == 3
    # The store itself may be a link: that is what the user named.
    (tmp_path / "linked").symlink_to(tmp_path / "store")
    assert Planned(str(tmp_path / "linked")).shards == planned.shards


@pytest.mark.parametrize("kind", NAMED)
def test_what_has_vanished_is_missing(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"slide{ENDINGS[kind]}"
    write(path, kind, some_images(30))
    planned = Planned(str(path))
    if kind == "folder":
        (path / "neutrophil" / "cell-0003.jpg").unlink()
        assert [
            i for i, (_, data) in enumerate(planned.contents()) if data == "missing_object"
        ] == [3]
        shutil.rmtree(path)
    else:
        path.unlink()
    assert {data for _, data in planned.contents()} == {"missing_object"}


@pytest.mark.parametrize("kind", ["tar", "zip", "targz", "parquet"])
def test_an_archive_that_was_replaced_is_seen(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"slide{ENDINGS[kind]}"
    write(path, kind, some_images(30, folder="monocyte"))
    planned = Planned(str(path))
    write(path, kind, some_images(30, seed=1, folder="platelet"))
    assert all(isinstance(record.data, Fault) for record in planned.read())


@pytest.mark.parametrize("kind", ["tar", "zip", "targz"])
def test_an_archive_that_grew_keeps_its_members(kind: str, tmp_path: Path) -> None:
    path, images = tmp_path / f"slide{ENDINGS[kind]}", some_images(30)
    write(path, kind, dict(list(images.items())[:20]))
    before = set(Planned(str(path)).members)
    write(path, kind, images)
    new = Planned(str(path), known=lambda member: member in before)
    assert [name for name, _ in new.contents()] == list(images)[20:]
    assert [data for _, data in new.contents()] == list(images.values())[20:]


def test_shards_are_cut_by_bytes_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bloodcells.stores.MAX_SHARD_BYTES", 10_000)
    write(tmp_path / "slide.tar", "tar", some_images(50))
    planned = Planned(str(tmp_path / "slide.tar"))
    assert len(planned.shards) > 5
    assert all(sum(m.size for m in shard.members) <= 10_000 for shard in planned.shards)


def test_ids_follow_from_what_is_in_a_shard(tmp_path: Path) -> None:
    write(tmp_path / "slide.tar", "tar", some_images(50))
    planned = Planned(str(tmp_path / "slide.tar"), shard_size=10)
    assert len({shard.shard_id for shard in planned.shards}) == 5
    for shard in planned.shards:
        assert Shard.make(shard.source_uri, shard.kind, shard.members) == shard


def test_few_large_reads(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    images = [(f"{number}.jpg", bytes(15_000)) for number in range(1000)]
    storage.put(f"{s3.uri}/large.tar", tar_bytes(images))
    with faulty_proxy(s3) as (endpoint, faults):
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        planned = Planned(f"{s3.uri}/large.tar")
        assert len(faults.seen) < 16
        faults.seen.clear()
        before = storage.bytes_read()
        assert len(planned.read()) == 1000
        assert len(faults.seen) <= 3
        assert storage.bytes_read() - before < 1.05 * 1000 * 15_512


def test_planning_a_tar_on_disk_skips_the_images(tmp_path: Path) -> None:
    images = [(f"{number}.jpg", bytes(200_000)) for number in range(50)]
    (tmp_path / "slide.tar").write_bytes(tar_bytes(images))
    before = storage.bytes_read()
    Planned(str(tmp_path / "slide.tar"))
    assert storage.bytes_read() - before < 0.06 * 50 * 200_000


@pytest.mark.parametrize("kind", [*NAMED, "npz"])
def test_an_outage_is_not_data(
    kind: str, s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / f"slide{ENDINGS[kind]}"
    if kind == "npz":
        np.savez(path, images=some_pixels(20))
    else:
        write(path, kind, some_images(20))
    uri = place(path, s3, f"outage-{kind}")
    with faulty_proxy(s3) as (endpoint, faults):
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        faults.rate = 0.3
        planned = Planned(uri)
        assert len(planned.read()) == 20
        assert not [r for r in planned.read() if isinstance(r.data, Fault)]
        faults.rate = 1.0
        monkeypatch.setattr(retry, "RETRY_SECONDS", 0.5)
        with pytest.raises(UnavailableError):
            planned.read()
        with pytest.raises(UnavailableError):
            Planned(uri)
        faults.rate = 0.0
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        with pytest.raises(AccessDeniedError):
            planned.read()


def test_a_reader_that_is_left_stops_its_requests(s3: S3Server, tmp_path: Path) -> None:
    write(tmp_path / "slide", "folder", some_images(60))
    (shard,) = Planned(place(tmp_path / "slide", s3, "left")).shards
    records = read_shard(shard)
    next(iter(records))
    records.close()  # type: ignore[attr-defined]
    assert not [t for t in threading.enumerate() if t.name.startswith("ThreadPoolExecutor")]


def test_streams_have_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "slide.tar.gz", "targz", some_images(20))
    np.savez_compressed(tmp_path / "slide.npz", images=some_pixels(20))
    for name in ("MAX_STREAMED_IMAGES", "MAX_STREAMED_BYTES"):
        for module, file, remedy in (
            ("targz", "slide.tar.gz", "gunzip"),
            ("npz", "slide.npz", "numpy.savez"),
        ):
            with monkeypatch.context() as patch:
                patch.setattr(f"bloodcells.stores.{module}.{name}", 19)
                with pytest.raises(StoreError, match=remedy):
                    Planned(str(tmp_path / file))


def test_a_shard_of_nothing_is_nothing() -> None:
    assert list(read_shard(Shard.make("/nowhere", "tar", ()))) == []


def test_too_large_files_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "slide", "folder", {"a.jpg": bytes(500), "b.jpg": bytes(501), "c.jpg": b"x"})
    planned = Planned(str(tmp_path / "slide"))
    monkeypatch.setattr(folder, "MAX_IMAGE_BYTES", 500)
    (tmp_path / "slide" / "c.jpg").write_bytes(bytes(900))  # it grew
    assert [data for _, data in planned.contents()] == [bytes(500), "too_large", "too_large"]


def test_sources_are_cheap_to_send(tmp_path: Path) -> None:
    for number in range(20):
        write(tmp_path / f"{number}", "folder", some_images(1))
    sources = open_store(str(tmp_path)).sources()
    assert len(sources) == 20
    assert pickle.loads(pickle.dumps(sources)) == sources
    assert isinstance(
        listing.Source(uri="x", kind="tar", size=0, tag="", root="x"), type(sources[0])
    )
    assert not [x for s in sources for x in plan_source(s) if isinstance(x, ListingProblem)]


def test_finding_sources_takes_no_memory_for_images(tmp_path: Path) -> None:
    for number in range(20_000):
        (tmp_path / f"{number}.jpg").touch()
    tracemalloc.start()
    sources = open_store(str(tmp_path)).sources()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [source.recursive for source in sources] == [False]
    assert peak < 200_000  # bytes; a list of the names alone takes 1.2 million
