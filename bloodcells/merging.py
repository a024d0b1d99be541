"""Many small score files become few large ones, and no row is lost or doubled at any moment.

A group of shards is merged by writing its quarantine file, its scores file, and then its record,
which is the commit mark: from then on the group's own parts are deleted. Whatever moment it ends
at, each shard is found in its part or in the merged file, and doing the same again comes to the
same files. ``bloodcells.merged`` says what they look like. Knows nothing of Ray.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import Final

import pyarrow.parquet as pq

from bloodcells import storage
from bloodcells.accounting import planned_shards
from bloodcells.merged import (
    SCHEMAS,
    MergedFile,
    MergedShards,
    merged_id_of,
    merged_uri,
    record_bytes,
    record_uri,
)
from bloodcells.parts import read_parts
from bloodcells.publish import delete_parts, part_entries
from bloodcells.runs import require_merging

MERGED_BYTES: Final = 256 * 2**20
"""What a merged file has at least, and the last one at least half of it: large enough for any
reader, and small enough to be made in memory."""


def groups_to_merge(run_uri: str, merged_bytes: int = MERGED_BYTES) -> Iterator[list[str]]:
    """Yield the shards that should be in one file, in the order of the plan, group by group.

    A group is closed at ``merged_bytes``, and a last one of less than half of that, or of one
    shard, joins the one before it. So the groups that are left of a merge that was cut short are
    the same as before. A run of less than half of ``merged_bytes`` in all stays as it is, and so
    does a shard that is a group by itself.

    Args:
        run_uri: the run folder; all shards of its plan are published.
        merged_bytes: what a merged file should have.
    """
    merged = MergedShards(run_uri)
    sizes = {part.shard_id: part.size for part in part_entries(run_uri, "scores")}
    if not merged.files and 2 * sum(sizes.values()) < merged_bytes:
        return
    for stretch in _unmerged_stretches(run_uri, merged):
        yield from _grouped(stretch, sizes, merged_bytes)


def _unmerged_stretches(run_uri: str, merged: MergedShards) -> Iterator[Iterator[str]]:
    """Yield what lies between merged shards in the plan, each as an iterator to be used up."""
    planned = (shard.shard_id for shard in planned_shards(run_uri))
    for first in planned:
        if first in merged:
            continue

        def stretch(first: str = first) -> Iterator[str]:
            yield first
            for shard_id in planned:
                if shard_id in merged:
                    return
                yield shard_id

        yield stretch()


def _grouped(
    shard_ids: Iterator[str], sizes: dict[str, int], merged_bytes: int
) -> Iterator[list[str]]:
    closed: list[str] = []
    group: list[str] = []
    num_bytes = 0
    for shard_id in shard_ids:
        group.append(shard_id)
        num_bytes += sizes[shard_id]
        if num_bytes >= merged_bytes:
            if len(closed) > 1:
                yield closed
            closed, group, num_bytes = group, [], 0
    if 2 * num_bytes < merged_bytes or len(group) == 1:
        closed, group = closed + group, []
    yield from (some for some in (closed, group) if len(some) > 1)


def merge_group(run_uri: str, run_id: str, shard_ids: Sequence[str]) -> None:
    """Merge the parts of some shards into one file of each table, and delete them.

    The same shards always give the same bytes.

    Args:
        run_uri: the run folder.
        run_id: the run that must own it.
        shard_ids: the shards, in the order of the file.

    Raises:
        RunSupersededError: the folder is another run's by now.
        RunError: a shard's part cannot be read; nothing is deleted.
        StorageError: the run folder cannot be read or written.
    """
    merged_id = merged_id_of(shard_ids)
    require_merging(run_uri, run_id)
    num_rows = {}
    for table in ("quarantine", "scores"):
        content, num_rows[table] = _merged(run_uri, table, shard_ids)
        require_merging(run_uri, run_id)
        storage.put(merged_uri(run_uri, table, merged_id), content)
    file = MergedFile(
        merged_id=merged_id,
        shard_ids=tuple(shard_ids),
        scored=num_rows["scores"],
        quarantined=num_rows["quarantine"],
    )
    storage.put(record_uri(run_uri, merged_id), record_bytes(file))
    require_merging(run_uri, run_id)
    delete_parts(run_uri, shard_ids)


def _merged(run_uri: str, table: str, shard_ids: Sequence[str]) -> tuple[bytes, tuple[int, ...]]:
    """Return a merged file and how many rows each shard has in it, some shards in memory."""
    sink = io.BytesIO()
    num_rows = []
    with pq.ParquetWriter(sink, SCHEMAS[table], compression="zstd") as writer:
        for rows in read_parts(run_uri, table, shard_ids, None):
            num_rows.append(len(rows))
            if len(rows):
                writer.write_table(rows, row_group_size=len(rows))
    return sink.getvalue(), tuple(num_rows)
