"""Publication of shards: atomic, deterministic, idempotent. The commit mark is the scores part.

Quarantine is written first and ``scores/part-<shard>.parquet`` last, even where it is empty: a
shard is finished exactly when that file exists. Publishing a shard twice writes the same
bytes twice. Knows nothing of models, of Ray, or of how a run is composed.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from bloodcells import storage
from bloodcells.errors import NotFoundError, RunError, StorageError
from bloodcells.records import MEMBER_TYPE, PLAN_SCHEMA, Member, Shard, ShardKind
from bloodcells.storage import Traffic

PART_PREFIX: Final = "part-"
PART_SUFFIX: Final = ".parquet"


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
    """List the shards whose commit mark is in the run folder."""
    names = (entry.name for entry in _entries(storage.join(run_uri, "scores")))
    return {_shard_of(name) for name in names if _is_part(name)}


def withdraw_shard(run_uri: str, shard_id: str) -> None:
    """Take a shard's parts away, the commit mark first, so that a run does the shard again."""
    for table in ("scores", "quarantine"):
        storage.delete(part_uri(run_uri, table, shard_id))


def sweep(run_uri: str, planned: Collection[str], *, begun_at: float = math.inf) -> None:
    """Take away what killed and superseded workers left in a run folder.

    That is, unfinished files and uploads, and parts of shards that are not in the plan.

    Args:
        run_uri: the run folder.
        planned: the shards in the plan.
        begun_at: when the session that asks was begun, in seconds since the epoch. Beside
            ``run.json`` only older files are unfinished: the lease is written there meanwhile.
    """
    for shard_id in published_shards(run_uri) - set(planned):
        withdraw_shard(run_uri, shard_id)
    for table in ("scores", "quarantine"):
        for entry in _entries(storage.join(run_uri, table)):
            is_stray = _is_part(entry.name) and _shard_of(entry.name) not in planned
            if is_stray or _is_unfinished(entry, math.inf):
                storage.delete(entry.uri)
    for folder, before in ((storage.join(run_uri, "plan"), math.inf), (run_uri, begun_at)):
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
    rows = [
        {
            "shard_id": shard.shard_id,
            "source_uri": shard.source_uri,
            "kind": shard.kind,
            "num_images": len(shard.members),
            "num_bytes": sum(member.size for member in shard.members),
        }
        for shard in shards
    ]
    columns = {
        field.name: pa.array([row[field.name] for row in rows], field.type)
        for field in PLAN_SCHEMA
        if field.name != "members"
    }
    fields = [field.name for field in MEMBER_TYPE]
    columns["members"] = pa.array(
        [[{name: getattr(m, name) for name in fields} for m in shard.members] for shard in shards],
        pa.list_(MEMBER_TYPE),
    )
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
        return _shard_from(pq.ParquetFile(file).read_row_group(row).to_pylist()[0])


def read_plan(plan_uri: str) -> Iterator[Shard]:
    """Read a plan file's shards one by one."""
    with storage.open_read(plan_uri) as file:
        plan = pq.ParquetFile(file)
        for row in range(plan.num_row_groups):
            yield _shard_from(plan.read_row_group(row).to_pylist()[0])


def _shard_from(row: dict[str, object]) -> Shard:
    members = row["members"]
    kind: ShardKind = row["kind"]  # type: ignore[assignment]
    return Shard(
        shard_id=str(row["shard_id"]),
        source_uri=str(row["source_uri"]),
        kind=kind,
        members=tuple(Member(**member) for member in members),  # type: ignore[attr-defined]
    )


def _entries(folder: str) -> Iterator[storage.Entry]:
    try:
        yield from storage.listdir(folder)
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
