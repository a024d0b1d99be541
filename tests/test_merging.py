"""Merged score files hold every row once, whatever moment a merge is killed at."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from bloodcells import publish, storage
from bloodcells.accounting import published_counts, require_all_accounted
from bloodcells.bundle_facts import Calibration
from bloodcells.cells import CLASSES
from bloodcells.errors import NotFoundError, RunError, RunSupersededError
from bloodcells.merged import MergedShards, merged_files, merged_uri, record_uri
from bloodcells.merging import groups_to_merge, merge_group
from bloodcells.parts import read_part, read_parts
from bloodcells.records import QUARANTINE_SCHEMA, SCORES_SCHEMA, Member, Shard
from bloodcells.report.data import gather
from bloodcells.runs import Run, RunSettings, open_run, require_ownership
from bloodcells.slides import SlideSums, slide_table
from serve.cells import RunCells
from serve.review_queue import ReviewQueue

NUM_SHARDS = 9
IMAGES_A_SHARD = 4
CALIBRATION = Calibration(
    temperature=1.0,
    confusion=np.eye(len(CLASSES), dtype=np.int64) * 100,
    train_counts=np.full(len(CLASSES), 100),
    review_below=0.5,
)


def make_run(root: Path) -> Run:
    """Write a run whose shards are all published: shard k has k % 3 quarantined images of four."""
    run = Run(uri=str(root / "run"), settings=settings(), bundle={}, status="running", merging=True)
    shards = [shard(number) for number in range(NUM_SHARDS)]
    for number in range(0, NUM_SHARDS, 5):
        file = f"{run.uri}/plan/a-{number:06}.parquet"
        storage.put(file, publish.plan_bytes(shards[number : number + 5]))
    for number, one in enumerate(shards):
        split = IMAGES_A_SHARD - number % 3 if number != 4 else 0  # one has no score at all
        publish.publish_shard(
            run.uri, one.shard_id, scores(one, one.members[:split]), quarantine(one, split)
        )
    run.counts = {"listed": NUM_SHARDS * IMAGES_A_SHARD, "shards": NUM_SHARDS}
    run.save()
    return run


def settings() -> RunSettings:
    return RunSettings(
        stores=("/s",),
        bundle_digest="d",
        site_digest=None,
        precision="float32",
        micro_batch=32,
        compiled=False,
        shard_size=IMAGES_A_SHARD,
        slide_pattern=None,
        since=None,
    )


def shard(number: int) -> Shard:
    members = tuple(
        Member(
            image_uri=f"/s/{number}.tar#{k}.jpg",
            name=f"{k}.jpg",
            offset=512 * k,
            size=10,
            tag="",
            slide_id=f"slide-{number % 2}",
            label=None,
        )
        for k in range(IMAGES_A_SHARD)
    )
    return Shard.make(f"/s/{number}.tar", "tar", members)


def scores(of: Shard, members: tuple[Member, ...]) -> pa.Table:
    confidence = np.linspace(0.3, 0.9, len(members), dtype=np.float32)
    known = {
        "image_uri": [member.image_uri for member in members],
        "slide_id": [member.slide_id for member in members],
        "content_hash": [member.image_uri[::-1] for member in members],
        "predicted_class": ["monocyte"] * len(members),
        "confidence": confidence,
        "needs_review": confidence < 0.5,
        "shard_id": [of.shard_id] * len(members),
        "bundle_digest": ["d"] * len(members),
        "precision": ["float32"] * len(members),
    }
    blank = {"float": 0.1, "bool": False, "int32": 96, "string": None}
    columns = [
        pa.array(known.get(field.name, [blank[str(field.type)]] * len(members)), field.type)
        for field in SCORES_SCHEMA
    ]
    return pa.table(columns, SCORES_SCHEMA)


def quarantine(of: Shard, split: int) -> pa.Table:
    rows = [
        {
            "image_uri": member.image_uri,
            "slide_id": member.slide_id,
            "reason": "undecodable",
            "detail": "no image",
            "shard_id": of.shard_id,
        }
        for member in of.members[split:]
    ]
    return pa.Table.from_pylist(rows, QUARANTINE_SCHEMA)


def merge(run: Run, merged_bytes: int) -> None:
    for group in list(groups_to_merge(run.uri, merged_bytes)):
        merge_group(run.uri, run.run_id, group)


def two_shards(run: Run) -> int:
    """Return a size of merged files that two parts reach, and one does not."""
    sizes = [part.size for part in publish.part_entries(run.uri, "scores")]
    return max(sizes) + 1


def all_rows(run: Run, table: str) -> list[dict[str, object]]:
    """Read a table as anybody would: the plain glob."""
    rows = ds.dataset(Path(run.uri) / table).to_table().sort_by("image_uri").to_pylist()
    return list(rows)


def contents(run: Run) -> dict[str, bytes]:
    root = Path(run.uri)
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name != "run.json"
    }


def test_every_row_is_in_the_merged_files_once(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    before = {table: all_rows(run, table) for table in ("scores", "quarantine")}
    slides = slide_table(run.uri, CALIBRATION)
    merge(run, two_shards(run))
    assert {table: all_rows(run, table) for table in before} == before
    assert not list(Path(run.uri).rglob("part-*"))
    files = merged_files(run.uri)
    assert 1 < len(files) <= NUM_SHARDS // 2
    for file in files:
        parquet = pq.ParquetFile(merged_uri(run.uri, "scores", file.merged_id))
        assert parquet.schema_arrow.equals(SCORES_SCHEMA)
        assert parquet.num_row_groups == sum(count > 0 for count in file.scored)
    assert publish.published_shards(run.uri) == {shard(k).shard_id for k in range(NUM_SHARDS)}
    counts = require_all_accounted(run.uri)
    assert counts.scored + counts.quarantined == NUM_SHARDS * IMAGES_A_SHARD
    assert published_counts(run.uri, publish.published_shards(run.uri)) == counts
    assert slide_table(run.uri, CALIBRATION).equals(slides)


def test_a_shard_is_found_wherever_it_lies(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    ids = [shard(number).shard_id for number in range(NUM_SHARDS)]
    before = {
        table: list(read_parts(run.uri, table, ids, None)) for table in ("scores", "quarantine")
    }
    groups = list(groups_to_merge(run.uri, two_shards(run)))
    for group in groups[1:3]:  # as in the middle of a merge
        merge_group(run.uri, run.run_id, group)
    for table, parts in before.items():
        assert list(read_parts(run.uri, table, ids, None)) == parts
        assert [read_part(run.uri, table, one, None) for one in ids] == parts
        narrow = list(read_parts(run.uri, table, ids, ["shard_id", "image_uri"]))
        assert narrow == [part.select(["shard_id", "image_uri"]) for part in parts]
    with pytest.raises(NotFoundError):
        read_part(run.uri, "scores", "nowhere", None)
    for number in range(NUM_SHARDS):
        cell = shard(number).members[0]
        if number == 4:  # quarantined
            continue
        row = RunCells().score_row(run.uri, cell.image_uri, ["slide_id", "shard_id"])
        assert (row["slide_id"], row["shard_id"]) == (cell.slide_id, ids[number])


def test_the_last_file_is_not_a_small_one(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    sizes = {part.shard_id: part.size for part in publish.part_entries(run.uri, "scores")}
    total = sum(sizes.values())
    assert list(groups_to_merge(run.uri, 2 * total + 2)) == []
    (whole,) = groups_to_merge(run.uri, 2 * total)
    assert whole == [shard(number).shard_id for number in range(NUM_SHARDS)]
    for merged_bytes in range(1, total, 997):
        groups = list(groups_to_merge(run.uri, merged_bytes))
        left = [one for one in whole if not any(one in group for group in groups)]
        assert [one for group in groups for one in group] + left == sorted(
            whole, key=lambda one: (one in left, whole.index(one))
        )
        assert all(sizes[one] >= merged_bytes for one in left)
        for group in groups:
            assert len(group) > 1
            assert 2 * sum(sizes[one] for one in group) >= merged_bytes


def test_what_is_left_of_a_merge_is_grouped_as_before(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    groups = list(groups_to_merge(run.uri, two_shards(run)))
    assert len(groups) > 2
    for done, group in enumerate(groups):
        if done % 2:
            merge_group(run.uri, run.run_id, group)
    assert list(groups_to_merge(run.uri, two_shards(run))) == groups[::2]


KILLED = """
import os, signal, sys
from bloodcells import publish, storage
from bloodcells.merging import merge_group

run_uri, run_id, instant, *shard_ids = sys.argv[1:]
left = [int(instant)]

def killed_before(operation):
    def counted(*args, **more):
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1
        return operation(*args, **more)
    return counted

storage.put, storage.delete = killed_before(storage.put), killed_before(storage.delete)
publish._FILES_AT_ONCE = 1
merge_group(run_uri, run_id, shard_ids)
"""


def killed_at(instant: int, run: Run, group: list[str]) -> int:
    """Merge a group in a process that kills itself before its ``instant``-th change to a disk."""
    command = [sys.executable, "-c", KILLED, run.uri, run.run_id, str(instant), *group]
    root = Path(__file__).parents[1]
    return subprocess.run(command, check=False, cwd=root, env=dict(os.environ)).returncode


def test_killed_at_every_instant_a_merge_goes_on(tmp_path: Path) -> None:
    expected = make_run(tmp_path / "expected")
    merge(expected, two_shards(expected))
    before = None
    for instant in range(100):
        run = make_run(tmp_path / str(instant))
        before = before or (all_rows(run, "scores"), slide_table(run.uri, CALIBRATION))
        target = two_shards(run)
        group = list(groups_to_merge(run.uri, target))[1]
        code = killed_at(instant, run, group)
        # As it lies there, our own readers count each shard once; so does the report.
        assert slide_table(run.uri, CALIBRATION).equals(before[1])
        facts = gather(run.uri)
        assert facts.num_scored + facts.num_quarantined == NUM_SHARDS * IMAGES_A_SHARD
        total, _ = ReviewQueue().page(run.uri, slide=None, offset=0, limit=1, every=True)
        assert total == facts.num_scored
        # The next session checks the books and merges what is left.
        require_all_accounted(run.uri)
        merge(run, target)
        assert all_rows(run, "scores") == before[0]
        assert contents(run) == contents(expected)
        if code == 0:
            break
        assert code == -signal.SIGKILL
    assert instant == 3 + 2 * len(group)  # two files, a record, and two parts a shard


def test_a_shard_that_is_taken_back_leaves_the_others(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    parts = contents(run)
    merge(run, two_shards(run))
    taken = merged_files(run.uri)[0].shard_ids[0]
    publish.withdraw_shard(run.uri, taken)
    assert taken not in publish.published_shards(run.uri)
    assert len(publish.published_shards(run.uri)) == NUM_SHARDS - 1
    publish.withdraw_shards(run.uri, [])
    for file in merged_files(run.uri):
        publish.unmerge(run.uri, file)
    left = {name: data for name, data in parts.items() if taken not in name}
    assert contents(run) == left, "a part that comes back is the part that it was"


def test_an_unmerging_that_was_killed_leaves_the_merged_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path)
    merge(run, two_shards(run))
    whole = contents(run)

    def killed(uri: str, recursive: bool = False) -> None:
        raise KeyboardInterrupt(uri)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "delete", killed)
        with pytest.raises(KeyboardInterrupt):
            publish.unmerge(run.uri, merged_files(run.uri)[0])
    assert contents(run) != whole
    require_all_accounted(run.uri)
    assert contents(run) == whole


def test_nothing_is_published_beside_a_merged_file(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    with pytest.raises(RunSupersededError, match="has all its shards"):
        require_ownership(run.uri, run.run_id)
    run.merging = False
    run.save()
    require_ownership(run.uri, run.run_id)
    with pytest.raises(RunSupersededError, match="not merged"):
        merge_group(run.uri, run.run_id, [shard(0).shard_id, shard(1).shard_id])
    run.merging = True
    run.save()
    with pytest.raises(RunSupersededError, match="not merged"):
        merge_group(run.uri, "another", [shard(0).shard_id, shard(1).shard_id])
    assert not merged_files(run.uri)
    found = open_run(run.uri)
    assert found is not None and found.merging


def test_a_damaged_merged_file_is_named_with_its_remedy(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    merge(run, two_shards(run))
    file = merged_files(run.uri)[0]
    damaged = Path(merged_uri(run.uri, "scores", file.merged_id))
    sound = damaged.read_bytes()
    record = record_uri(run.uri, file.merged_id)
    damaged.write_bytes(sound[:-5])
    for reading in (require_all_accounted, gather, lambda uri: SlideSums().read(uri)):
        with pytest.raises(RunError, match=f"{damaged} is missing or damaged.*delete {record}"):
            reading(run.uri)
    Path(record).unlink()
    assert publish.published_shards(run.uri).isdisjoint(file.shard_ids)
    Path(merged_uri(run.uri, "quarantine", file.merged_id)).write_bytes(b"nobody's")
    with pytest.raises(RunError, match="is missing or damaged"):
        require_all_accounted(run.uri)  # these shards are not there, and nobody's files are swept
    assert not damaged.exists()


def test_sums_of_a_run_that_is_merged_meanwhile(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    sums = SlideSums()
    sums.read(run.uri)
    table = sums.table(CALIBRATION)
    merge(run, two_shards(run))
    sums.read(run.uri)
    assert sums.table(CALIBRATION).equals(table)
    assert len(MergedShards(run.uri)) == NUM_SHARDS
