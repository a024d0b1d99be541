"""What travels through Ray Data, one row a shard: planned, then loaded, then its outcome.

Pixels travel as one buffer, so that the only copy is the one into the object store.
"""

from __future__ import annotations

import pickle
from dataclasses import asdict
from typing import Final

import numpy as np
import pyarrow as pa

from bloodcells import storage
from bloodcells.errors import (
    BloodcellsError,
    RunSupersededError,
    StorageFullError,
)
from bloodcells.loading import LoadedShard
from bloodcells.publish import ShardOutcome
from bloodcells.storage import Traffic

PLANNED_FIELDS: Final = ["shard_id", "plan_uri", "plan_row", "num_images"]


def failed(
    shard_id: str, error: BloodcellsError, *, read_with: Traffic | None = None
) -> ShardOutcome:
    """Return the outcome of a shard that an error kept from being finished.

    Args:
        shard_id: the shard.
        error: what kept it.
        read_with: what reading it asked of storage, where another process read it.
    """
    return ShardOutcome(
        shard_id=shard_id,
        error=str(error),
        is_fatal=isinstance(error, (StorageFullError, RunSupersededError)),
        traffic=(read_with or Traffic()) + storage.take_traffic(),
    )


def loaded_row(loaded: LoadedShard) -> pa.Table:
    """Return a loaded shard as a row, with what this process asked of storage for it."""
    pixels = np.ascontiguousarray(loaded.pixels)
    # Built from the buffer itself: the only copy is the one into the object store.
    offsets = pa.py_buffer(np.array([0, pixels.nbytes], np.int64))
    column = pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), 1, [None, offsets, pa.py_buffer(pixels.reshape(-1))]
    )
    return pa.table(
        {
            "shard_id": [loaded.shard_id],
            "begun_at": [loaded.begun_at],
            "bytes_read": [loaded.bytes_read],
            "size": [pixels.shape[1]],
            "pixels": column,
            "identity": [_ipc_bytes(loaded.identity)],
            "quarantine": [_ipc_bytes(loaded.quarantine)],
            "traffic": [asdict(storage.take_traffic())],
            "failure": pa.array([None], pa.binary()),
        }
    )


def failure_row(outcome: ShardOutcome) -> pa.Table:
    """Return, in place of a loaded shard, why it could not be loaded."""
    return pa.table(
        {
            "shard_id": [outcome.shard_id],
            "begun_at": [0.0],
            "bytes_read": [0],
            "size": [1],
            "pixels": pa.array([b""], pa.large_binary()),
            "identity": [b""],
            "quarantine": [b""],
            "traffic": [asdict(Traffic())],  # the outcome has it
            "failure": pa.array([pickle.dumps(outcome)], pa.binary()),
        }
    )


def loaded_from(row: pa.Table) -> LoadedShard:
    """Return the loaded shard that a row carries; its pixels stay where they are."""
    size = row["size"][0].as_py()
    pixels = np.frombuffer(row["pixels"][0].as_buffer(), np.uint8).reshape(-1, size, size, 3)
    return LoadedShard(
        shard_id=row["shard_id"][0].as_py(),
        begun_at=row["begun_at"][0].as_py(),
        bytes_read=row["bytes_read"][0].as_py(),
        pixels=pixels,
        identity=pa.ipc.open_stream(row["identity"][0].as_py()).read_all(),
        quarantine=pa.ipc.open_stream(row["quarantine"][0].as_py()).read_all(),
        traffic=Traffic(**row["traffic"][0].as_py()),
    )


def outcome_row(outcome: ShardOutcome) -> pa.Table:
    """Return a shard's outcome as a row."""
    return pa.table({"outcome": pa.array([pickle.dumps(outcome)], pa.binary())})


def _ipc_bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())
