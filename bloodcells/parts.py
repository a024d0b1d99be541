"""A run folder as others read it: its record, and its shards' rows, some shards at a time.

A shard's rows are found wherever they lie: in its own part, or in a merged file. Knows nothing of
what is done with the rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bloodcells import publish, storage
from bloodcells.cells import CLASSES
from bloodcells.errors import NotFoundError, RunError
from bloodcells.merged import MergedShards

READ_AHEAD: Final = 16
"""Shards read at once: on S3 each costs a round trip, and a thousand images take about 100 KB."""

_REMEDY: Final = "score again with --restart"


def run_record(run_uri: str) -> dict[str, Any]:
    """Return what ``run.json`` says, whatever version of this project wrote it.

    Raises:
        RunError: there is no run folder, or its record is damaged.
    """
    uri = storage.join(run_uri, "run.json")
    try:
        content = json.loads(storage.read(uri))
    except NotFoundError as error:
        raise RunError(
            f"{run_uri} is not a run folder: it has no run.json. "
            "Give the folder that jobs.score was given as --out."
        ) from error
    except ValueError as error:
        raise RunError(f"{uri} is not valid JSON ({error}); {_REMEDY}") from error
    if not isinstance(content, dict):
        raise RunError(f"{uri} does not hold a JSON object; {_REMEDY}")
    return content


def read_parts(
    run_uri: str, table: str, shard_ids: Iterable[str], columns: list[str] | None
) -> Iterator[pa.Table]:
    """Yield the shards' rows of a table in order, reading ``READ_AHEAD`` shards at once.

    Args:
        run_uri: the run folder.
        table: ``scores`` or ``quarantine``.
        shard_ids: the shards. Those of one merged file are best named one after the other, as in
            the plan or by :meth:`MergedShards.ordered`.
        columns: those to read; ``None`` for all.

    Raises:
        NotFoundError: a shard is not published.
        RunError: a shard's rows cannot be read as what they should be.
    """
    waiting = iter(shard_ids)
    some = list(islice(waiting, READ_AHEAD))
    if not some:
        return
    merged = MergedShards(run_uri)
    with ThreadPoolExecutor(READ_AHEAD) as pool:
        while some:
            yield from pool.map(lambda one: _read(run_uri, table, one, columns, merged), some)
            some = list(islice(waiting, READ_AHEAD))


def read_part(run_uri: str, table: str, shard_id: str, columns: list[str] | None) -> pa.Table:
    """Read one shard's rows of a table; see :func:`read_parts`."""
    try:
        return _read_own(run_uri, table, shard_id, columns)  # what a run that goes on has
    except NotFoundError:
        merged = MergedShards(run_uri)
        if shard_id not in merged:
            raise
        return merged.read(table, shard_id, columns)


def _read(
    run_uri: str, table: str, shard_id: str, columns: list[str] | None, merged: MergedShards
) -> pa.Table:
    if shard_id in merged:
        try:
            return merged.read(table, shard_id, columns)
        except RunError:  # turned into parts again meanwhile, or really damaged
            if shard_id in MergedShards(run_uri):
                raise
    return read_part(run_uri, table, shard_id, columns)


def _read_own(run_uri: str, table: str, shard_id: str, columns: list[str] | None) -> pa.Table:
    uri = publish.part_uri(run_uri, table, shard_id)
    mark = publish.part_uri(run_uri, "scores", shard_id)
    with readable(uri, f"delete {mark} and run the same command again to score its shard anew"):
        return pq.read_table(pa.BufferReader(storage.read(uri)), columns=columns)


def class_indices(names: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    """Return each class name's index in ``CLASSES``, and -1 for null or a name that is none."""
    index = pc.fill_null(pc.index_in(names, value_set=pa.array(CLASSES)), -1)
    return np.asarray(index.to_numpy(), np.int64)


@contextmanager
def readable(uri: str, remedy: str = _REMEDY) -> Iterator[None]:
    """Turn what pyarrow says of a file that is no such table into a sentence with its URI."""
    try:
        yield
    except (pa.ArrowException, KeyError, OSError) as error:
        raise RunError(
            f"{uri} cannot be read as Parquet of this project ({error}); {remedy}"
        ) from error
