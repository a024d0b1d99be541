"""The same images as a store of every kind; no picture in them, as stores look into none."""

from __future__ import annotations

import io
import random
import tarfile
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bloodcells import storage
from bloodcells.records import Fault, Record, Shard
from bloodcells.stores import Ignored, ListingProblem, open_store, plan_source, read_shard
from tests.s3 import S3Server

ENDINGS = {
    "folder": "",
    "tar": ".tar",
    "targz": ".tar.gz",
    "zip": ".zip",
    "parquet": ".parquet",
    "npz": ".npz",
}


def some_images(num: int, seed: int = 0, folder: str = "neutrophil") -> dict[str, bytes]:
    """Return bytes of 0 to 3,000 by name, in the order of their names."""
    rng = random.Random(seed)
    return {
        f"{folder}/cell-{number:04d}.jpg": rng.randbytes(rng.randrange(3_000))
        for number in range(num)
    }


def write(path: Path, kind: str, images: Mapping[str, bytes]) -> None:
    """Write images as a store of a kind that keeps names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "folder":
        for name, data in images.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(data)
    elif kind in ("tar", "targz"):
        path.write_bytes(tar_bytes(images.items(), "w:gz" if kind == "targz" else "w"))
    elif kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for number, (name, data) in enumerate(images.items()):
                method = zipfile.ZIP_DEFLATED if number % 2 else zipfile.ZIP_STORED
                archive.writestr(zipfile.ZipInfo(name), data, method)
    elif kind == "parquet":
        write_parquet(path, image=list(images.values()), label=["SNE"] * len(images))
    else:
        raise ValueError(kind)


def place(path: Path, s3: S3Server, prefix: str) -> str:
    """Copy a store to S3; returns its URI there."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    for file in files:
        storage.put(f"{s3.uri}/{prefix}/{file.relative_to(path.parent)}", file.read_bytes())
    return f"{s3.uri}/{prefix}/{path.name}"


def tar_bytes(
    images: Iterable[tuple[str, bytes]], mode: Any = "w", format: int = tarfile.GNU_FORMAT
) -> bytes:
    """Return a tar archive."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode, format=format) as archive:
        for name, data in images:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def write_parquet(path: Path, row_group_size: int = 40, **columns: Any) -> None:
    """Write a table."""
    arrays = {
        name: pa.array(values, pa.binary()) if name == "image" else pa.array(values)
        for name, values in columns.items()
    }
    pq.write_table(pa.table(arrays), path, row_group_size=row_group_size)


def some_pixels(num: int, size: int = 8) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return ``uint8 (num, size, size, 3)``."""
    return np.random.default_rng(0).integers(0, 256, (num, size, size, 3), np.uint8)


class Planned:
    """All that planning a store yields."""

    def __init__(self, uris: Any, **options: Any) -> None:
        self.shards: list[Shard] = []
        self.problems: list[ListingProblem] = []
        self.ignored: list[Ignored] = []
        store = open_store(uris, slide_pattern=options.get("slide_pattern"))
        for source in store.sources():
            for item in plan_source(source, **options):
                if isinstance(item, Shard):
                    self.shards.append(item)
                elif isinstance(item, ListingProblem):
                    self.problems.append(item)
                else:
                    self.ignored.append(item)
        self.members = [member for shard in self.shards for member in shard.members]

    def read(self) -> list[Record]:
        """Read all shards; holds that there is one record a member, in order."""
        records = []
        for shard in self.shards:
            found = list(read_shard(shard))
            assert [record.member for record in found] == list(shard.members)
            records += found
        return records

    def contents(self) -> list[tuple[str, Any]]:
        """Return name and content, or the reason why there is none, of each image."""
        return [
            (
                record.member.name,
                record.data.reason if isinstance(record.data, Fault) else record.data,
            )
            for record in self.read()
        ]
