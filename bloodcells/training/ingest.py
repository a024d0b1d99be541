"""From a dataset's manifest to images that training can take, decoded on the road of scoring.

Ray Data decodes every image once, a task a shard, and keeps the pixels in the object store, where
the workers of a node map them without a copy. What does not fit there is read and decoded anew in
every epoch (:class:`StoredPixels`). The driver looks at labels and ids, never at pixels.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import ray

from bloodcells.augment.geometry import with_margin
from bloodcells.cells import CLASSES
from bloodcells.errors import BloodcellsError, ImageError, StoreError
from bloodcells.imaging import Preprocess, content_hash, decode
from bloodcells.records import Fault, Member, Shard, ShardKind
from bloodcells.stores import read_shard

SHARD_SIZE: Final = 500
"""Images that one task decodes: 33 MB of pixels at 148 px."""

STORE_SHARE: Final = 0.6
"""Share of a node's object store that the pixels of a training may fill; batches need the rest."""

TESTED_SHARE: Final = 0.1
"""Share of it that one more set of images, only tested on, may fill."""

IntArray = npt.NDArray[np.int64]
Pixels = npt.NDArray[np.uint8]


class PixelSource(Protocol):
    """Where the pixels of numbered images are."""

    def take(self, rows: IntArray) -> Pixels:
        """Return some rows, ``uint8 (len(rows), M, M, 3)``."""


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """Labelled images of one purpose.

    Attributes:
        labels: index into ``CLASSES``, ``int64 (N,)``.
        image_ids: first 8 bytes of each content hash, ``uint64 (N,)``.
        pixels: where their pixels are.
    """

    labels: IntArray
    image_ids: npt.NDArray[np.uint64]
    pixels: PixelSource

    def counts(self) -> IntArray:
        """Return the number of images a class, ``int64 (8,)``."""
        return np.bincount(self.labels, minlength=len(CLASSES)).astype(np.int64)


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """What training works on.

    Attributes:
        preprocess: how the model will see images.
        train: images with a margin around the model's crop, at its scale (see `with_margin`).
        validation: images as scoring will see them.
        train_rows, validation_rows: their rows of the manifest, in the same order.
    """

    preprocess: Preprocess
    train: ImageSet
    validation: ImageSet
    train_rows: pa.Table
    validation_rows: pa.Table


@dataclass(kw_only=True)
class MaterialisedPixels:
    """Decoded images in the object store.

    Who calls :meth:`hold` keeps all of them on its node for as long as it has this object.

    Attributes:
        blocks: references to Arrow tables with a row a shard.
        places: block and row of each shard, ``(int, int)``.
        ends: where each shard's images end among all, ``int64``.
    """

    blocks: list[ray.ObjectRef[pa.Table]]
    places: list[tuple[int, int]]
    ends: IntArray
    _mapped: dict[int, Pixels] = field(default_factory=dict, repr=False)

    def take(self, rows: IntArray) -> Pixels:
        """Return some rows, ``uint8 (len(rows), M, M, 3)``."""
        shards = np.searchsorted(self.ends, rows, side="right")
        taken: Pixels | None = None
        for i, (row, shard) in enumerate(zip(rows, shards, strict=True)):
            pixels = self._shard(int(shard))
            if taken is None:
                taken = np.empty((len(rows), *pixels.shape[1:]), np.uint8)
            taken[i] = pixels[row - self.ends[shard]]
        return np.empty((0, 1, 1, 3), np.uint8) if taken is None else taken

    def hold(self) -> None:
        """Keep every image on this node too, so that none is lost with another one.

        Ray would decode lost images anew in a task that asks for a core, and wait for ever where
        every core trains.
        """
        for shard in range(len(self.places)):
            self._shard(shard)

    def _shard(self, shard: int) -> Pixels:
        if shard not in self._mapped:
            block, row = self.places[shard]
            table = ray.get(self.blocks[block])
            side = table["side"][row].as_py()
            buffer = table["pixels"][row].as_buffer()
            self._mapped[shard] = np.frombuffer(buffer, np.uint8).reshape(-1, side, side, 3)
        return self._mapped[shard]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_mapped": {}}


@dataclass(frozen=True, kw_only=True)
class StoredPixels:
    """Images that stay where they are, and are read and decoded whenever they are taken.

    Attributes:
        shards: reference to their shards, in order.
        ends: where each shard's images end among all, ``int64``.
        field: what is decoded of each.
    """

    shards: ray.ObjectRef[list[_Expected]]
    ends: IntArray
    field: Preprocess

    def take(self, rows: IntArray) -> Pixels:
        """Return some rows, ``uint8 (len(rows), M, M, 3)``."""
        taken = np.empty((len(rows), self.field.size, self.field.size, 3), np.uint8)
        shards = ray.get(self.shards)
        numbers = np.searchsorted(self.ends, rows, side="right")
        for number in np.unique(numbers):
            own = np.flatnonzero(numbers == number)
            # A store is read forwards, and each image once.
            members, back = np.unique(rows[own] - self.ends[number], return_inverse=True)
            taken[own] = np.stack(list(_read(shards[number].part(members), self.field)))[back]
        return taken


@dataclass(frozen=True, kw_only=True)
class _Expected:
    """A shard and the content hashes that its images had when the dataset was prepared."""

    shard: Shard
    content_hashes: tuple[str, ...]

    def part(self, members: IntArray) -> _Expected:
        """Return some of its members."""
        own = self.shard
        return _Expected(
            shard=Shard.make(own.source_uri, own.kind, tuple(own.members[i] for i in members)),
            content_hashes=tuple(self.content_hashes[i] for i in members),
        )


def load_training_data(manifest: pa.Table, preprocess: Preprocess, uri: str) -> TrainingData:
    """Decode what a manifest uses for training and validation; Ray must be running.

    Args:
        manifest: rows in ``MANIFEST_SCHEMA``.
        preprocess: how the model will see images.
        uri: the dataset, for messages.

    Raises:
        StoreError: a class has nothing to train or to validate on, or an image is no longer what
            it was when the dataset was prepared.
        StorageError: a store is out of reach.
    """
    used = manifest.filter(pc.field("used"))
    parts = {name: used.filter(pc.field("split") == name) for name in ("train", "val")}
    require_every_class(parts["train"], parts["val"], uri)
    field = with_margin(preprocess)
    num_bytes = 3 * (len(parts["train"]) * field.size**2 + len(parts["val"]) * preprocess.size**2)
    fits = num_bytes <= STORE_SHARE * _smallest_store()
    train = _image_set(parts["train"], field, uri, fits=fits)
    validation = _image_set(parts["val"], preprocess, uri, fits=fits)
    return TrainingData(
        preprocess=preprocess,
        train=train[0],
        train_rows=train[1],
        validation=validation[0],
        validation_rows=validation[1],
    )


def require_every_class(train: pa.Table, validation: pa.Table, uri: str) -> None:
    """Refuse to train where a class has no image to learn from, or none to be checked by.

    Raises:
        StoreError: names the classes.
    """
    for rows, purpose in ((train, "training"), (validation, "validation")):
        present = set(rows["label"].to_pylist())
        absent = [name for name in CLASSES if name not in present]
        if absent:
            raise StoreError(
                f"{uri}: no {purpose} image of {', '.join(absent)}; every class needs at least "
                "two different images, one to train on and one to validate by: add some"
            )


def digest_of(manifest: pa.Table) -> str:
    """Return ``sha256:…`` of what a manifest gives to training: contents, labels, splits."""
    used = manifest.filter(pc.field("used")).select(["content_hash", "label", "split"])
    lines = sorted("\t".join(map(str, row.values())) for row in used.to_pylist())
    return f"sha256:{hashlib.sha256(chr(10).join(lines).encode()).hexdigest()}"


def load_images(rows: pa.Table, preprocess: Preprocess, uri: str) -> tuple[ImageSet, pa.Table]:
    """Decode some rows of a manifest as scoring does; returns them, and their rows, in order."""
    fits = 3 * len(rows) * preprocess.size**2 <= TESTED_SHARE * _smallest_store()
    return _image_set(rows, preprocess, uri, fits=fits)


def _smallest_store() -> float:
    """Return the smallest object store of a node, in bytes: each may have to hold all pixels."""
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    return min((float(r.get("object_store_memory", 0)) for r in alive), default=0.0)


def _image_set(
    rows: pa.Table, field: Preprocess, uri: str, *, fits: bool
) -> tuple[ImageSet, pa.Table]:
    shards, rows = _shards_of(rows)
    ends = np.cumsum([len(each.content_hashes) for each in shards])
    pixels: PixelSource
    if fits:
        pixels = _materialise(shards, ends, field, uri)
    else:
        pixels = StoredPixels(shards=ray.put(shards), ends=ends, field=field)
    labels = np.array([CLASSES.index(name) for name in rows["label"].to_pylist()], np.int64)
    ids = np.array([int(text[:16], 16) for text in rows["content_hash"].to_pylist()], np.uint64)
    return ImageSet(labels=labels, image_ids=ids, pixels=pixels), rows


def _shards_of(rows: pa.Table) -> tuple[list[_Expected], pa.Table]:
    """Cut rows into shards of one source each; returns them, and the rows in the same order."""
    rows = rows.sort_by([(name, "ascending") for name in ("source_uri", "offset", "name")])
    shards, start = [], 0
    listed = rows.to_pylist()
    for end in range(1, len(listed) + 1):
        is_last = end == len(listed) or listed[end]["source_uri"] != listed[start]["source_uri"]
        if is_last or end - start == SHARD_SIZE:
            shards.append(_expected(listed[start:end]))
            start = end
    return shards, rows


def _expected(rows: Sequence[dict[str, Any]]) -> _Expected:
    kind: ShardKind = rows[0]["kind"]
    members = tuple(
        Member(**{name: row[name] for name in Member.__dataclass_fields__}) for row in rows
    )
    return _Expected(
        shard=Shard.make(rows[0]["source_uri"], kind, members),
        content_hashes=tuple(row["content_hash"] for row in rows),
    )


def _materialise(
    shards: Sequence[_Expected], ends: IntArray, field: Preprocess, uri: str
) -> MaterialisedPixels:
    """Decode all shards with Ray Data, one row a shard; the pixels stay in the object store."""
    tasks = [{"number": i, "expected": pickle.dumps(each)} for i, each in enumerate(shards)]
    decoded = (
        ray.data.from_items(tasks, override_num_blocks=len(tasks))
        .map_batches(
            _decode_row,  # type: ignore[arg-type]  # an Arrow table is a batch
            batch_size=1,
            batch_format="pyarrow",
            fn_kwargs={"field": field},
        )
        .materialize()
    )
    blocks = decoded.to_arrow_refs()
    places: dict[int, tuple[int, int]] = {}
    for i, block in enumerate(blocks):
        rows = ray.get(block).select(["number", "failure"]).to_pylist()
        for j, row in enumerate(rows):
            if row["failure"] is not None:
                error: BloodcellsError = pickle.loads(row["failure"])
                raise type(error)(f"{uri}: {error}") from error
            places[row["number"]] = (i, j)
    found = MaterialisedPixels(
        blocks=blocks, places=[places[i] for i in range(len(shards))], ends=ends
    )
    found.hold()
    return found


def _decode_row(row: pa.Table, field: Preprocess) -> pa.Table:
    expected: _Expected = pickle.loads(row["expected"][0].as_py())
    pixels, failure = np.empty((0, field.size, field.size, 3), np.uint8), None
    try:
        pixels = np.stack(list(_read(expected, field)))
    except BloodcellsError as error:
        failure = pickle.dumps(error)
    offsets = pa.py_buffer(np.array([0, pixels.nbytes], np.int64))
    column = pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), 1, [None, offsets, pa.py_buffer(pixels.reshape(-1))]
    )
    return pa.table(
        {
            "number": row["number"],
            "side": [field.size],
            "pixels": column,
            "failure": pa.array([failure], pa.binary()),
        }
    )


def _read(expected: _Expected, field: Preprocess) -> Iterator[Pixels]:
    """Read and decode the images of a shard; each must still be what it was."""
    for record, known in zip(read_shard(expected.shard), expected.content_hashes, strict=True):
        name = record.member.image_uri
        if isinstance(record.data, Fault):
            raise StoreError(f"{name} can no longer be read ({record.data.detail}); {_PREPARE}")
        if content_hash(record.data) != known:
            raise StoreError(f"{name} has changed since the dataset was prepared; {_PREPARE}")
        try:
            yield decode(record.data, field).pixels
        except ImageError as error:
            raise StoreError(f"{name} cannot be decoded ({error.detail}); {_PREPARE}") from error


_PREPARE: Final = "prepare the dataset again with python -m jobs.prepare"
