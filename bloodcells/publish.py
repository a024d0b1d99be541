"""Publication of shards: atomic, deterministic, idempotent. The commit mark is the scores part.

Quarantine is written first and ``scores/part-<shard>.parquet`` last, even where it is empty: a
shard is finished exactly when that file exists, or a merged file holds it (see ``merged``).
Publishing a shard twice writes the same bytes twice. Knows nothing of models, of Ray, or of how a
run is composed.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bloodcells import storage
from bloodcells.errors import NotFoundError, RunError, StorageError
from bloodcells.merged import (
    MERGED,
    MERGED_PREFIX,
    SCHEMAS,
    MergedFile,
    MergedShards,
    merged_files,
    merged_uri,
    record_uri,
)
from bloodcells.records import MEMBER_TYPE, PLAN_SCHEMA, Member, Shard, ShardKind
from bloodcells.storage import Traffic

PART_PREFIX: Final = "part-"
PART_SUFFIX: Final = ".parquet"

_FILES_AT_ONCE: Final = 16


@dataclass(frozen=True, kw_only=True)
class ShardOutcome:
    """What became of one shard: its row counts, or why it could not be finished.

    Attributes:
        shard_id: the shard.
        num_scored: rows in its scores part.
        num_quarantined: rows in its quarantine part.
        bytes_read: what reading it took from the store, in bytes.
        begun_at, published_at: when it was begun to be read and when it was published, in seconds
            since the epoch, by the clocks of the nodes that did it.
        error: empty where the shard was published, else a sentence for a person.
        is_fatal: whether the same error awaits every other shard: a full disk, or a folder that is
            another run's by now.
        traffic: what reading and publishing it asked of storage. Where a process works on several
            shards at once, they share what it asked.
    """

    shard_id: str
    num_scored: int = 0
    num_quarantined: int = 0
    bytes_read: int = 0
    begun_at: float = 0.0
    published_at: float = 0.0
    error: str = ""
    is_fatal: bool = False
    traffic: Traffic = field(default_factory=Traffic)


def part_uri(run_uri: str, table: str, shard_id: str) -> str:
    """Return the URI of a shard's part of ``table`` (``scores`` or ``quarantine``)."""
    return storage.join(run_uri, table, f"{PART_PREFIX}{shard_id}{PART_SUFFIX}")


def parquet_bytes(table: pa.Table, *, row_group_size: int | None = None) -> bytes:
    """Encode a table as Parquet; the same rows always give the same bytes."""
    sink = io.BytesIO()
    pq.write_table(
        table, sink, compression="zstd", row_group_size=row_group_size or max(len(table), 1)
    )
    return sink.getvalue()


def publish_shard(run_uri: str, shard_id: str, scores: pa.Table, quarantine: pa.Table) -> None:
    """Publish one shard's two parts, the scores last, each atomically.

    Args:
        run_uri: the run folder.
        shard_id: the shard.
        scores: rows in ``SCORES_SCHEMA``.
        quarantine: rows in ``QUARANTINE_SCHEMA``.

    Raises:
        StorageError: the run folder cannot be written.
    """
    storage.put(part_uri(run_uri, "quarantine", shard_id), parquet_bytes(quarantine))
    storage.put(part_uri(run_uri, "scores", shard_id), parquet_bytes(scores))


def published_shards(run_uri: str) -> set[str]:
    """List the shards that are finished: by a commit mark of their own, or in a merged file."""
    found = {entry.shard_id for entry in part_entries(run_uri, "scores")}
    # Records are read after the parts are listed: a shard that is merged meanwhile is in one.
    return found.union(*(file.shard_ids for file in merged_files(run_uri)))


@dataclass(frozen=True, slots=True, kw_only=True)
class PartEntry:
    """A part as a listing shows it: its shard, its size in bytes, and its file's fingerprint."""

    shard_id: str
    size: int
    tag: str


def part_entries(run_uri: str, table: str) -> Iterator[PartEntry]:
    """List the parts of ``table``, in any order; shards in merged files have none."""
    for entry in _entries(storage.join(run_uri, table)):
        if _is_part(entry.name) and not entry.is_folder:
            yield PartEntry(shard_id=_shard_of(entry.name), size=entry.size, tag=entry.tag)


def withdraw_shard(run_uri: str, shard_id: str) -> None:
    """Take a shard's rows away, so that a run does it again."""
    withdraw_shards(run_uri, {shard_id})


def withdraw_shards(run_uri: str, shard_ids: Collection[str]) -> None:
    """Take some shards' rows away, the commit marks first, so that a run does them again.

    A merged file that holds one of them becomes parts again.
    """
    wanted = frozenset(shard_ids)
    for file in merged_files(run_uri):
        if not wanted.isdisjoint(file.shard_ids):
            unmerge(run_uri, file)
    delete_parts(run_uri, sorted(wanted))


def unmerge(run_uri: str, file: MergedFile) -> None:
    """Turn a merged file into its shards' parts again; until all are there the merged file counts.

    Raises:
        RunError: the merged file is not what its record says.
        StorageError: the run folder cannot be read or written.
    """
    merged = MergedShards(run_uri)

    def publish_again(shard_id: str) -> None:
        rows = {table: merged.read(table, shard_id, None) for table in SCHEMAS}
        publish_shard(run_uri, shard_id, rows["scores"], rows["quarantine"])

    with ThreadPoolExecutor(_FILES_AT_ONCE) as writers:
        list(writers.map(publish_again, file.shard_ids))
    storage.delete(record_uri(run_uri, file.merged_id))
    for table in SCHEMAS:
        storage.delete(merged_uri(run_uri, table, file.merged_id))


def delete_parts(run_uri: str, shard_ids: Collection[str]) -> None:
    """Delete shards' parts, those of the scores before those of the quarantine."""
    with ThreadPoolExecutor(_FILES_AT_ONCE) as deleters:
        for table in ("scores", "quarantine"):
            uris = [part_uri(run_uri, table, shard_id) for shard_id in shard_ids]
            list(deleters.map(storage.delete, uris))


def sweep(run_uri: str, planned: Collection[str], *, begun_at: float = math.inf) -> None:
    """Take away what killed and superseded workers left in a run folder.

    That is, unfinished files and uploads, parts of shards that are not in the plan or are merged
    already, and merged files without a record.

    Args:
        run_uri: the run folder.
        planned: the shards in the plan.
        begun_at: when the session that asks was begun, in seconds since the epoch. Beside
            ``run.json`` only older files are unfinished: the lease is written there meanwhile.
    """
    merged = MergedShards(run_uri)
    known = {file.merged_id for file in merged.files}
    for table in ("scores", "quarantine"):
        strays = []
        for entry in _entries(storage.join(run_uri, table)):
            if _is_part(entry.name):
                shard_id = _shard_of(entry.name)
                is_stray = shard_id in merged or shard_id not in planned
            elif entry.name.startswith(MERGED_PREFIX):
                is_stray = _merged_id_of(entry.name) not in known
            else:
                is_stray = _is_unfinished(entry, math.inf)
            if is_stray:
                strays.append(entry.uri)
        with ThreadPoolExecutor(_FILES_AT_ONCE) as deleters:
            list(deleters.map(storage.delete, strays))
    folders = [storage.join(run_uri, name) for name in ("plan", MERGED)]
    for folder, before in (*((folder, math.inf) for folder in folders), (run_uri, begun_at)):
        for entry in _entries(folder):
            if _is_unfinished(entry, before):
                storage.delete(entry.uri)
    # Not everybody may list uploads, nor can every look-alike; no result depends on it.
    with contextlib.suppress(StorageError):
        storage.abort_uploads(run_uri)


def part_rows(run_uri: str, table: str, shard_id: str) -> int:
    """Return the number of rows in a shard's published part, from the file's footer.

    Raises:
        RunError: the part is missing or is not a Parquet file.
    """
    uri = part_uri(run_uri, table, shard_id)
    try:
        with storage.open_read(uri) as file:
            return int(pq.read_metadata(file).num_rows)
    except (NotFoundError, pa.ArrowException, OSError) as error:
        raise RunError(
            f"{uri} is missing or damaged ({error}); delete {part_uri(run_uri, 'scores', shard_id)}"
            " and run the same command again to score its shard anew"
        ) from error


def plan_bytes(shards: list[Shard]) -> bytes:
    """Encode shards as a plan file: one row and one row group a shard."""
    members = [member for shard in shards for member in shard.members]
    ends = list(accumulate((len(shard.members) for shard in shards), initial=0))
    fields = [
        pa.array([getattr(member, field.name) for member in members], field.type)
        for field in MEMBER_TYPE
    ]
    columns = {
        "shard_id": [shard.shard_id for shard in shards],
        "source_uri": [shard.source_uri for shard in shards],
        "kind": [shard.kind for shard in shards],
        "num_images": [len(shard.members) for shard in shards],
        "num_bytes": [sum(member.size for member in shard.members) for shard in shards],
        "members": pa.ListArray.from_arrays(
            pa.array(ends, pa.int32()),
            pa.StructArray.from_arrays(fields, fields=list(MEMBER_TYPE)),
            type=pa.list_(MEMBER_TYPE),
        ),
    }
    return parquet_bytes(pa.table(columns, schema=PLAN_SCHEMA), row_group_size=1)


def plan_files(run_uri: str) -> list[str]:
    """List the URIs of a run's plan files, in order; none where nothing was listed."""
    try:
        entries = list(storage.listdir(storage.join(run_uri, "plan")))
    except NotFoundError:
        return []
    return [entry.uri for entry in entries if entry.name.endswith(PART_SUFFIX)]


def plan_index(plan_uri: str) -> pa.Table:
    """Read ``shard_id``, ``num_images`` and ``num_bytes`` of a plan file, without its members."""
    with storage.open_read(plan_uri) as file:
        return pq.read_table(file, columns=["shard_id", "num_images", "num_bytes"])


def read_planned(plan_uri: str, row: int) -> Shard:
    """Read one shard, with its members, from a plan file."""
    with storage.open_read(plan_uri) as file:
        return _shard_from(pq.ParquetFile(file).read_row_group(row))


def read_plan(plan_uri: str) -> Iterator[Shard]:
    """Read a plan file's shards one by one."""
    with storage.open_read(plan_uri) as file:
        plan = pq.ParquetFile(file)
        for row in range(plan.num_row_groups):
            yield _shard_from(plan.read_row_group(row))


def _shard_from(table: pa.Table) -> Shard:
    """Build a shard from its one row; column by column, for it may have ten thousand members."""
    members = pc.list_flatten(table["members"]).combine_chunks()
    columns = [pc.struct_field(members, field.name).to_pylist() for field in MEMBER_TYPE]
    names = [field.name for field in MEMBER_TYPE]
    kind: ShardKind = table["kind"][0].as_py()
    return Shard(
        shard_id=table["shard_id"][0].as_py(),
        source_uri=table["source_uri"][0].as_py(),
        kind=kind,
        members=tuple(
            Member(**dict(zip(names, values, strict=True))) for values in zip(*columns, strict=True)
        ),
    )


def _entries(folder: str) -> Iterator[storage.Entry]:
    try:
        yield from storage.listdir(folder, ordered=False)
    except NotFoundError:
        return


def _is_unfinished(entry: storage.Entry, before: float) -> bool:
    """Return whether an entry is a temporary file last written before a moment, in s since 1970."""
    if entry.is_folder or not entry.name.startswith(storage.TEMPORARY_PREFIX):
        return False
    return entry.tag.isdecimal() and int(entry.tag) < 1e9 * before  # S3 has none, and other tags


def _is_part(name: str) -> bool:
    return name.startswith(PART_PREFIX) and name.endswith(PART_SUFFIX)


def _shard_of(name: str) -> str:
    return name.removeprefix(PART_PREFIX).removesuffix(PART_SUFFIX)


def _merged_id_of(name: str) -> str:
    return name.removeprefix(MERGED_PREFIX).removesuffix(PART_SUFFIX)
