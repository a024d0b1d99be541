"""From a shard to pixels: read, decode, and put aside what cannot be decoded.

Runs on any CPU, and imports no model library: a reading worker starts quickly. Knows nothing of
models or of Ray.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from bloodcells import storage
from bloodcells.errors import ImageError
from bloodcells.imaging import Picture, Preprocess, content_hash, decode_batch
from bloodcells.isolated import ISOLATE_FROM, IsolatedDecoder
from bloodcells.records import QUARANTINE_SCHEMA, SCORES_SCHEMA, Fault, Record, Shard
from bloodcells.storage import Traffic
from bloodcells.stores import read_shard

IDENTITY_FIELDS: Final = ("image_uri", "content_hash", "slide_id", "label", "width_px", "height_px")

RECORDS_AT_ONCE: Final = 32
"""Images that are decoded together; their bytes are all that is held beside the pixels."""

BatchDecoder = Callable[
    [list[bytes | npt.NDArray[np.generic]], Preprocess], list[Picture | ImageError]
]


@dataclass(frozen=True, kw_only=True)
class LoadedShard:
    """A shard read and decoded, ready to be scored.

    Attributes:
        shard_id: the shard.
        begun_at: when reading it began, in seconds since the epoch.
        bytes_read: what reading it took from the store, in bytes.
        pixels: ``uint8 (N, S, S, 3)``, RGB, one for each row of ``identity``.
        identity: the columns of ``SCORES_SCHEMA`` in ``IDENTITY_FIELDS``, N rows.
        quarantine: rows in ``QUARANTINE_SCHEMA`` for the images that could not be decoded.
        traffic: what reading it asked of storage, where another process read it.
    """

    shard_id: str
    begun_at: float
    bytes_read: int
    pixels: npt.NDArray[np.uint8]
    identity: pa.Table
    quarantine: pa.Table
    traffic: Traffic = field(default_factory=Traffic)


def load_shard(shard: Shard, preprocess: Preprocess, *, attempt: int = 1) -> LoadedShard:
    """Read a shard and decode its images; faults of the data become quarantine rows.

    Args:
        shard: what to read.
        preprocess: how an image becomes pixels.
        attempt: how often the shard was begun, this time included. One that has ended two workers
            is decoded in a process of its own, image by image.

    Raises:
        StorageError: the store cannot be reached; nothing is said about any image.
    """
    if attempt < ISOLATE_FROM:
        return load_records(read_shard(shard), shard, preprocess, decode_batch)
    with IsolatedDecoder() as decoder:
        return load_records(read_shard(shard), shard, preprocess, decoder.decode_batch)


def load_records(
    records: Iterator[Record], shard: Shard, preprocess: Preprocess, decoder: BatchDecoder
) -> LoadedShard:
    """Decode the records of a shard with ``decoder``, in member order, some at a time."""
    begun_at, bytes_before = time.time(), storage.bytes_read()
    size = preprocess.size
    pixels = np.empty((len(shard.members), size, size, 3), np.uint8)
    identity: list[tuple[Any, ...]] = []
    quarantine: list[tuple[Any, ...]] = []
    while some := list(itertools.islice(records, RECORDS_AT_ONCE)):
        for record, picture in zip(some, _decode(some, preprocess, decoder), strict=True):
            member, data = record.member, record.data
            digest = None if isinstance(data, Fault) else content_hash(data)
            known = (member.image_uri, digest, member.slide_id)
            if isinstance(picture, Picture):
                pixels[len(identity)] = picture.pixels
                identity.append((*known, member.label, picture.width_px, picture.height_px))
            else:
                quarantine.append((*known, picture.reason, picture.detail))
    return LoadedShard(
        shard_id=shard.shard_id,
        begun_at=begun_at,
        bytes_read=storage.bytes_read() - bytes_before,
        pixels=pixels[: len(identity)],
        identity=_identity_table(identity),
        quarantine=_quarantine_table(quarantine, shard.shard_id),
    )


def _decode(
    records: list[Record], preprocess: Preprocess, decoder: BatchDecoder
) -> Iterator[Picture | ImageError | Fault]:
    """Decode what could be read; what could not keeps its fault, in its place."""
    readable = [record.data for record in records if not isinstance(record.data, Fault)]
    pictures = iter(decoder(readable, preprocess))
    for record in records:
        yield record.data if isinstance(record.data, Fault) else next(pictures)


def _identity_table(rows: list[tuple[Any, ...]]) -> pa.Table:
    schema = pa.schema([SCORES_SCHEMA.field(name) for name in IDENTITY_FIELDS])
    return _table(rows, schema)


def _quarantine_table(rows: list[tuple[Any, ...]], shard_id: str) -> pa.Table:
    return _table([(*row, shard_id) for row in rows], QUARANTINE_SCHEMA)


def _table(rows: list[tuple[Any, ...]], schema: pa.Schema) -> pa.Table:
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(schema)
    return pa.table(
        [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)],
        schema=schema,
    )
