"""A dataset's manifest made by hand, for tests of training that need no preparation."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
from PIL import Image

from bloodcells.cells import CLASSES
from bloodcells.imaging import content_hash
from bloodcells.records import MANIFEST_SCHEMA, Shard
from bloodcells.stores import open_store, plan_source, read_shard
from bloodcells.synthetic import draw_cell


def jpeg(cell_type: str, seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(draw_cell(cell_type, seed)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def write_cells(folder: Path, per_class: int) -> Path:
    """Write drawn cells as ``<class>/<number>.jpg``."""
    for cell_type in CLASSES:
        (folder / cell_type).mkdir(parents=True)
        for i in range(per_class):
            (folder / cell_type / f"{i:03d}.jpg").write_bytes(jpeg(cell_type, i))
    return folder


def manifest_of(
    store: Path,
    split: Callable[[str], str] = lambda name: "val" if name.endswith("3.jpg") else "train",
) -> pa.Table:
    """Return the manifest of a store, its splits given by the images' names."""
    rows = []
    for source in open_store(str(store)).sources():
        for shard in plan_source(source):
            if isinstance(shard, Shard):
                rows += [
                    {
                        **{name: getattr(record.member, name) for name in _OF_MEMBER},
                        "content_hash": content_hash(record.data),
                        "group": content_hash(record.data),
                        "split": split(record.member.name),
                        "used": True,
                        "findings": [],
                        "detail": "",
                        "source_uri": shard.source_uri,
                        "kind": shard.kind,
                    }
                    for record in read_shard(shard)
                ]
    return pa.Table.from_pylist(rows, schema=MANIFEST_SCHEMA)


_OF_MEMBER = ("image_uri", "name", "offset", "size", "tag", "slide_id", "label")
