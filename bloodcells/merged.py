"""Files that hold the rows of many shards: which shards are in which, and how one is read.

``scores/merged-<id>.parquet`` and ``quarantine/merged-<id>.parquet`` have a row group for each
shard that has rows there. ``merged/<id>.json`` says which shards those are, and is the commit mark
of a merge: without it the two files are nobody's, and the shards' own parts count. Where a shard is
in a merged file and has parts as well, both say the same. Knows nothing of why files are merged.
"""

from __future__ import annotations

import functools
import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from bloodcells import storage
from bloodcells.errors import NotFoundError, RunError
from bloodcells.records import QUARANTINE_SCHEMA, SCORES_SCHEMA

MERGED: Final = "merged"
"""Folder of the records in a run folder."""

MERGED_PREFIX: Final = "merged-"
SCHEMAS: Final = {"scores": SCORES_SCHEMA, "quarantine": QUARANTINE_SCHEMA}

_RECORD_SUFFIX: Final = ".json"
_RECORDS_AT_ONCE: Final = 16
_FOOTERS_KEPT: Final = 8
"""Footers that are kept between reads; each takes some megabytes. Shards are read in the order of
their files, by several threads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MergedFile:
    """The shards of one merged file, the same in both tables.

    Attributes:
        merged_id: follows from the shards.
        shard_ids: in the order of their row groups.
        scored, quarantined: rows of each shard in the one table and in the other.
        tag: tells its record from an earlier one at the same place; empty before it is written.
    """

    merged_id: str
    shard_ids: tuple[str, ...]
    scored: tuple[int, ...]
    quarantined: tuple[int, ...]
    tag: str = ""

    def rows_of(self, table: str) -> tuple[int, ...]:
        """Return how many rows each shard has in ``scores`` or ``quarantine``."""
        return self.scored if table == "scores" else self.quarantined


def merged_id_of(shard_ids: Sequence[str]) -> str:
    """Return the id of the merged file of these shards, in this order: 16 hex digits."""
    return hashlib.sha256("\0".join(shard_ids).encode()).hexdigest()[:16]


def merged_uri(run_uri: str, table: str, merged_id: str) -> str:
    """Return the URI of a merged file of ``table``."""
    return storage.join(run_uri, table, f"{MERGED_PREFIX}{merged_id}.parquet")


def record_uri(run_uri: str, merged_id: str) -> str:
    """Return the URI of a merged file's record."""
    return storage.join(run_uri, MERGED, f"{merged_id}{_RECORD_SUFFIX}")


def record_bytes(file: MergedFile) -> bytes:
    """Encode a merged file's record; the same shards and rows always give the same bytes."""
    content = {
        "shard_ids": file.shard_ids,
        "scored": file.scored,
        "quarantined": file.quarantined,
    }
    return json.dumps(content).encode() + b"\n"


def merged_files(run_uri: str) -> list[MergedFile]:
    """Read which shards are in the run's merged files, sorted by the files' ids.

    Raises:
        RunError: a record is damaged.
        StorageError: the run folder cannot be reached.
    """
    try:
        entries = list(storage.listdir(storage.join(run_uri, MERGED)))
    except NotFoundError:
        return []
    records = [entry for entry in entries if entry.name.endswith(_RECORD_SUFFIX)]
    with ThreadPoolExecutor(_RECORDS_AT_ONCE) as readers:
        return list(readers.map(lambda record: _read_record(record.uri, record.tag), records))


class MergedShards:
    """Finds shards in a run's merged files, as they are when this is made. Safe in threads.

    Args:
        run_uri: the run folder.

    Raises:
        RunError: a record is damaged.
        StorageError: the run folder cannot be reached.
    """

    def __init__(self, run_uri: str) -> None:
        self._run_uri = run_uri
        self.files = merged_files(run_uri)
        self._places = {
            shard_id: (file_number, position)
            for file_number, file in enumerate(self.files)
            for position, shard_id in enumerate(file.shard_ids)
        }
        self._groups: dict[tuple[int, str], list[int]] = {}
        self._footers: OrderedDict[str, Any] = OrderedDict()
        self._lock = threading.Lock()

    def __contains__(self, shard_id: object) -> bool:
        return shard_id in self._places

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def ordered(self, shard_ids: Collection[str]) -> list[str]:
        """Return shards in the order in which reading them is quickest; it is always the same."""
        nowhere = (len(self.files), 0)
        return sorted(
            shard_ids, key=lambda shard_id: (self._places.get(shard_id, nowhere), shard_id)
        )

    def num_rows(self, table: str, shard_id: str) -> int:
        """Return how many rows a shard has; ``KeyError`` where it is in no merged file."""
        number, position = self._places[shard_id]
        return self.files[number].rows_of(table)[position]

    def read(self, table: str, shard_id: str, columns: Sequence[str] | None) -> pa.Table:
        """Read a shard's rows; ``KeyError`` where it is in no merged file.

        Raises:
            RunError: the merged file is not what its record says.
            StorageError: it cannot be reached.
        """
        number, position = self._places[shard_id]
        file = self.files[number]
        if not file.rows_of(table)[position]:
            empty = SCHEMAS[table].empty_table()
            return empty if columns is None else empty.select(list(columns))
        uri = merged_uri(self._run_uri, table, file.merged_id)
        with _told(self._run_uri, uri, file.merged_id), storage.open_read(uri) as opened:
            parquet = pq.ParquetFile(opened, metadata=self._footer(uri), pre_buffer=True)
            self._keep(uri, parquet.metadata)
            rows = parquet.read_row_group(self._group(number, table, position), columns=columns)
        if len(rows) != file.rows_of(table)[position]:
            raise RunError(_remedy(self._run_uri, uri, file.merged_id, "it holds other shards"))
        return rows

    def _group(self, number: int, table: str, position: int) -> int:
        """Return a shard's row group: those without rows have none."""
        groups = self._groups.get((number, table))
        if groups is None:
            counts = self.files[number].rows_of(table)
            groups = list(accumulate((int(count > 0) for count in counts), initial=0))
            self._groups[number, table] = groups
        return groups[position]

    def _footer(self, uri: str) -> Any:
        with self._lock:
            return self._footers.get(uri)

    def _keep(self, uri: str, footer: Any) -> None:
        with self._lock:
            self._footers[uri] = footer
            self._footers.move_to_end(uri)
            while len(self._footers) > _FOOTERS_KEPT:
                self._footers.popitem(last=False)


def require_whole(run_uri: str, file: MergedFile) -> None:
    """Make sure that both tables of a merged file are there with all their rows, by their footers.

    Raises:
        RunError: one is not; the message says how to have its shards scored anew.
        StorageError: the run folder cannot be reached.
    """
    for table in SCHEMAS:
        uri = merged_uri(run_uri, table, file.merged_id)
        with _told(run_uri, uri, file.merged_id), storage.open_read(uri) as opened:
            num_rows = pq.read_metadata(opened).num_rows
        if num_rows != sum(file.rows_of(table)):
            raise RunError(_remedy(run_uri, uri, file.merged_id, f"it has {num_rows:,} rows"))


@functools.lru_cache(maxsize=4096)
def _read_record(uri: str, tag: str) -> MergedFile:
    try:
        content = json.loads(storage.read(uri))
        columns = [tuple(content[name]) for name in ("shard_ids", "scored", "quarantined")]
        if len(set(map(len, columns))) != 1:
            raise ValueError("its columns are not of one length")
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"{uri} is damaged ({error}); delete it and run the same command again to score its "
            "shards anew"
        ) from error
    return MergedFile(
        merged_id=storage.name_of(uri).removesuffix(_RECORD_SUFFIX),
        shard_ids=columns[0],
        scored=columns[1],
        quarantined=columns[2],
        tag=tag,
    )


@contextmanager
def _told(run_uri: str, uri: str, merged_id: str) -> Iterator[None]:
    """Turn what is wrong with a merged file into a sentence with its remedy."""
    try:
        yield
    except (NotFoundError, pa.ArrowException, KeyError, OSError) as error:
        raise RunError(_remedy(run_uri, uri, merged_id, str(error))) from error


def _remedy(run_uri: str, uri: str, merged_id: str, why: str) -> str:
    return (
        f"{uri} is missing or damaged ({why}); delete {record_uri(run_uri, merged_id)} and run the "
        "same command again to score its shards anew"
    )
