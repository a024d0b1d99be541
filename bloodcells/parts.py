"""A run folder as others read it: its record, and the parts of its tables, some at a time.

Knows nothing of what is done with the rows.
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

READ_AHEAD: Final = 16
"""Score files read at once: on S3 each costs a round trip, and a file is about 100 KB."""

_REMEDY: Final = "Score again with --restart."


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
        raise RunError(f"{uri} is not valid JSON ({error}). {_REMEDY}") from error
    if not isinstance(content, dict):
        raise RunError(f"{uri} does not hold a JSON object. {_REMEDY}")
    return content


def read_parts(
    run_uri: str, table: str, shard_ids: Iterable[str], columns: list[str] | None
) -> Iterator[pa.Table]:
    """Yield the shards' parts of a table in order, reading ``READ_AHEAD`` of them at once.

    Args:
        run_uri: the run folder.
        table: ``scores`` or ``quarantine``.
        shard_ids: the shards.
        columns: those to read; ``None`` for all.

    Raises:
        RunError: a part cannot be read as what it should be.
    """

    def read(shard_id: str) -> pa.Table:
        uri = publish.part_uri(run_uri, table, shard_id)
        with readable(uri):
            return pq.read_table(pa.BufferReader(storage.read(uri)), columns=columns)

    waiting = iter(shard_ids)
    with ThreadPoolExecutor(READ_AHEAD) as pool:
        while some := list(islice(waiting, READ_AHEAD)):
            yield from pool.map(read, some)


def class_indices(names: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    """Return each class name's index in ``CLASSES``, and -1 for null or a name that is none."""
    index = pc.fill_null(pc.index_in(names, value_set=pa.array(CLASSES)), -1)
    return np.asarray(index.to_numpy(), np.int64)


@contextmanager
def readable(uri: str) -> Iterator[None]:
    """Turn what pyarrow says of a file that is no such table into a sentence with its URI."""
    try:
        yield
    except (pa.ArrowException, KeyError, OSError) as error:
        raise RunError(
            f"{uri} cannot be read as Parquet of this project ({error}). {_REMEDY}"
        ) from error
