"""Parts are put there whole, the commit mark last, the same bytes each time."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bloodcells import publish, storage
from bloodcells.accounting import pending_waves, published_counts, require_all_accounted
from bloodcells.errors import RunError, StorageFullError
from bloodcells.records import PLAN_SCHEMA, QUARANTINE_SCHEMA, SCORES_SCHEMA, Member, Shard
from bloodcells.storage import TEMPORARY_PREFIX


def shard(name: str, num_images: int = 2) -> Shard:
    members = tuple(
        Member(
            image_uri=f"/s/{name}.tar#{k}.jpg",
            name=f"{k}.jpg",
            offset=512 * k,
            size=10,
            tag="",
            slide_id=name,
            label=None,
        )
        for k in range(num_images)
    )
    return Shard.make(f"/s/{name}.tar", "tar", members)


def rows(schema: pa.Schema, num_rows: int) -> pa.Table:
    def column(field: pa.Field) -> pa.Array:
        value = {"string": "x", "float": 0.5, "bool": False, "int32": 1}[str(field.type)]
        return pa.array([value] * num_rows, field.type)

    return pa.table([column(field) for field in schema], schema=schema)


def publish_rows(run: Path, of: Shard, scored: int, quarantined: int) -> None:
    publish.publish_shard(
        str(run),
        of.shard_id,
        rows(SCORES_SCHEMA, scored),
        rows(QUARANTINE_SCHEMA, quarantined),
    )


def plan(run: Path, *shards: Shard) -> None:
    storage.put(f"{run}/plan/a-000000.parquet", publish.plan_bytes(list(shards)))


def test_a_plan_comes_back_as_it_was(tmp_path: Path) -> None:
    shards = [shard("a"), shard("b", 3)]
    plan(tmp_path, *shards)
    (plan_uri,) = publish.plan_files(str(tmp_path))
    assert pq.read_schema(plan_uri).equals(PLAN_SCHEMA)
    assert pq.read_metadata(plan_uri).num_row_groups == 2
    assert list(publish.read_plan(plan_uri)) == shards
    assert publish.read_planned(plan_uri, 1) == shards[1]


def test_a_shard_id_follows_from_its_content() -> None:
    assert shard("a").shard_id == shard("a").shard_id
    assert len({shard("a").shard_id, shard("b").shard_id, shard("a", 3).shard_id}) == 3


def test_publishing_twice_writes_the_same_bytes(tmp_path: Path) -> None:
    publish_rows(tmp_path, shard("a"), 1, 1)
    first = {path: path.read_bytes() for path in tmp_path.rglob("*.parquet")}
    publish_rows(tmp_path, shard("a"), 1, 1)
    assert first == {path: path.read_bytes() for path in tmp_path.rglob("*.parquet")}


def test_an_empty_part_is_a_commit_mark_too(tmp_path: Path) -> None:
    publish_rows(tmp_path, shard("a"), 0, 2)
    assert publish.published_shards(str(tmp_path)) == {shard("a").shard_id}


def test_the_commit_mark_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put = storage.put

    def full(uri: str, data: bytes) -> None:
        if "/scores/" in uri:
            raise StorageFullError(uri)
        put(uri, data)

    monkeypatch.setattr(storage, "put", full)
    with pytest.raises(StorageFullError):
        publish_rows(tmp_path, shard("a"), 2, 0)
    assert (tmp_path / "quarantine").exists()
    assert publish.published_shards(str(tmp_path)) == set()


def test_pending_shards_come_in_waves(tmp_path: Path) -> None:
    shards = [shard(name) for name in "abcde"]
    plan(tmp_path, *shards)
    waves = list(pending_waves(str(tmp_path), {shards[1].shard_id}, 2))
    assert [[s.shard_id for s in wave] for wave in waves] == [
        [shards[0].shard_id, shards[2].shard_id],
        [shards[3].shard_id, shards[4].shard_id],
    ]


def test_the_books_add_up_or_the_shard_is_taken_back(tmp_path: Path) -> None:
    good, bad = shard("a"), shard("b", 3)
    plan(tmp_path, good, bad)
    publish_rows(tmp_path, good, 1, 1)
    publish_rows(tmp_path, bad, 2, 0)
    with pytest.raises(RunError, match="3 images were listed"):
        require_all_accounted(str(tmp_path))
    assert publish.published_shards(str(tmp_path)) == {good.shard_id}
    publish_rows(tmp_path, bad, 2, 1)
    counts = require_all_accounted(str(tmp_path))
    assert (counts.scored, counts.quarantined) == (3, 2)
    assert published_counts(str(tmp_path), {good.shard_id}).quarantined == 1


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    plan(tmp_path, shard("a"))
    publish_rows(tmp_path, shard("a"), 2, 0)
    part = tmp_path / "scores" / f"part-{shard('a').shard_id}.parquet"
    part.write_bytes(part.read_bytes()[:-5])
    with pytest.raises(RunError, match=str(part)):
        require_all_accounted(str(tmp_path))


def test_what_killed_workers_left_is_swept_away(tmp_path: Path) -> None:
    planned, stray = shard("planned"), shard("stray")
    plan(tmp_path, planned)
    for one in (planned, stray):
        publish_rows(tmp_path, one, scored=2, quarantined=0)
    (tmp_path / "scores" / f"part-{stray.shard_id}.parquet").unlink()  # as one killed amid it
    kept = sorted(path for path in tmp_path.rglob("*") if stray.shard_id not in path.name)
    for table in ("scores", "quarantine"):
        (tmp_path / table / f"{TEMPORARY_PREFIX}half").write_bytes(b"PAR1")
    require_all_accounted(str(tmp_path))
    assert sorted(tmp_path.rglob("*")) == kept
