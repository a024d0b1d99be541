"""From a shard to what its pictures say: read, hash, decode once, measure, extract features.

Knows nothing of Ray, of other shards, or of what counts as too little or too much.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from bloodcells.errors import ImageError
from bloodcells.features import Extractor, Features
from bloodcells.grouping import Listed
from bloodcells.imaging import Picture, content_hash, decode_batch
from bloodcells.loading import RECORDS_AT_ONCE, BatchDecoder
from bloodcells.quality import VIEW, measure
from bloodcells.records import MANIFEST_SCHEMA, Fault, Record
from bloodcells.stores import read_shard

MEASURED_SCHEMA: Final = pa.schema(
    [
        *(
            MANIFEST_SCHEMA.field(name)
            for name in ("image_uri", "content_hash", "slide_id", "group", "label")
        ),
        pa.field("own_split", pa.string()),
        pa.field("fault", pa.string()),
        pa.field("fingerprint", pa.binary(32)),
        pa.field("spread", pa.float32()),
        pa.field("sharpness", pa.float32()),
        *(
            MANIFEST_SCHEMA.field(name)
            for name in ("width_px", "height_px", "source_uri", "kind", "name", "offset")
        ),
        *(MANIFEST_SCHEMA.field(name) for name in ("size", "tag")),
    ]
)
"""One row an image, in member order, as one shard's task hands it to the driver.

``own_split`` is null where the store brings no split, see ``grouping.IN_NO_SPLIT``; ``fault`` is a
sentence where the image cannot be read or decoded; the measurements are null there, and where
pictures were not looked at.
"""


def measure_shard(
    listed: Listed, extractor: Extractor | None, decoder: BatchDecoder = decode_batch
) -> tuple[pa.Table, Features]:
    """Read a shard's images once and measure them.

    Args:
        listed: the shard.
        extractor: what sees features; ``None`` to read and hash only, without decoding.
        decoder: decodes a few images; faults stand in their place.

    Returns:
        Rows in ``MEASURED_SCHEMA``, one a member in order, and features ``float16 (n, D)``, one row
        for each image that has a fingerprint (none without an extractor).

    Raises:
        StorageError: the store cannot be reached; nothing is said about any image.
    """
    records = read_shard(listed.shard)
    rows: list[dict[str, Any]] = []
    features: list[Features] = []
    while some := list(itertools.islice(records, RECORDS_AT_ONCE)):
        if extractor is None:
            rows += [_known(record) for record in some]
            continue
        found, pixels = _looked_at(some, decoder)
        rows += found
        if pixels:
            features.append(extractor(np.stack(pixels)))
    for row, group, own_split in zip(rows, listed.groups, listed.own_splits, strict=True):
        row["group"] = group or row["content_hash"] or row["image_uri"]
        row["own_split"] = own_split
        row["source_uri"], row["kind"] = listed.shard.source_uri, listed.shard.kind
    table = pa.Table.from_pylist(rows, schema=MEASURED_SCHEMA)
    width = 0 if extractor is None else extractor.width
    return table, np.concatenate([np.empty((0, width), np.float16), *features])


def _looked_at(
    records: Sequence[Record], decoder: BatchDecoder
) -> tuple[list[dict[str, Any]], list[npt.NDArray[np.uint8]]]:
    """Decode and measure some images; returns their rows, and the pixels of those that decode."""
    rows = [_known(record) for record in records]
    readable = [(row, record.data) for row, record in zip(rows, records, strict=True)]
    sound = [(row, data) for row, data in readable if not isinstance(data, Fault)]
    pixels = []
    pictures = decoder([data for _, data in sound], VIEW)
    for (row, _), picture in zip(sound, pictures, strict=True):
        if isinstance(picture, Picture):
            said = measure(picture.pixels)
            row |= {"fingerprint": said.fingerprint, "spread": said.spread}
            row |= {"sharpness": said.sharpness}
            row |= {"width_px": picture.width_px, "height_px": picture.height_px}
            pixels.append(picture.pixels)
        else:
            row["fault"] = _sentence(picture)
    return rows, pixels


def _known(record: Record) -> dict[str, Any]:
    """Return what is known of an image without decoding it."""
    member, data = record.member, record.data
    return {
        "image_uri": member.image_uri,
        "content_hash": None if isinstance(data, Fault) else content_hash(data),
        "slide_id": member.slide_id,
        "label": member.label,
        "fault": _sentence(data) if isinstance(data, Fault) else None,
        "name": member.name,
        "offset": member.offset,
        "size": member.size,
        "tag": member.tag,
    }


def _sentence(fault: Fault | ImageError) -> str:
    return f"{fault.reason.replace('_', ' ')}: {fault.detail}"
