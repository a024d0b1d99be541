"""One cell of a run: its score row, and its picture for a person to look at.

Finds a cell through the run's plan, reads its one member from the store, and draws it anew as a
small PNG: the store's own bytes never leave. What is asked for is only ever compared with what the
plan lists, and never opened as a path. Knows nothing of HTTP routes or of reviews.
"""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from bloodcells import storage
from bloodcells.accounting import PlannedShard
from bloodcells.errors import ImageError, NotFoundError
from bloodcells.imaging import content_hash, decode_whole
from bloodcells.parts import read_part, readable
from bloodcells.publish import PART_SUFFIX, read_planned
from bloodcells.records import Fault
from bloodcells.stores import read_shard
from serve.errors import ApiError

PICTURE_PX: Final = 360
"""Most pixels of a picture's longer side: as cells come from the common analysers."""

PICTURES_AT_ONCE: Final = 4
"""Pictures that are read and decoded at once: each may take the store's largest image in memory."""

WAIT_S: Final = 10.0
RUNS_KEPT: Final = 8

_PLACES: Final = pa.schema(
    [
        pa.field("shard_id", pa.string()),
        pa.field("plan_uri", pa.dictionary(pa.int32(), pa.string())),
        pa.field("plan_row", pa.int32()),
        pa.field("num_images", pa.int64()),
        pa.field("first", pa.string()),
        pa.field("last", pa.string()),
    ]
)
"""Where each shard stands in the plan, and between which image URIs its members lie; null where the
plan's file does not say."""


class RunCells:
    """Finds cells in run folders; keeps the index of the plans of the last ``RUNS_KEPT`` runs."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._places: OrderedDict[str, tuple[object, pa.Table]] = OrderedDict()
        self._slots = threading.BoundedSemaphore(PICTURES_AT_ONCE)

    def score_row(
        self, run_uri: str, image_uri: str, columns: Iterable[str], *, shard_id: str | None = None
    ) -> dict[str, Any]:
        """Return columns of a cell's score row.

        Args:
            run_uri: the run folder.
            image_uri: the cell.
            columns: of ``SCORES_SCHEMA``.
            shard_id: its shard, where it is known: then the plan need not be searched.

        Raises:
            ApiError: 404, the run has no such cell, or has not scored it yet; 422, the image was
                quarantined.
            RunError: a file of the run cannot be read.
            StorageError: the run folder cannot be reached.
        """
        return self._scored(run_uri, image_uri, columns, shard_id)[1]

    def picture(self, run_uri: str, image_uri: str, *, shard_id: str | None = None) -> bytes:
        """Return a cell's picture as a PNG of at most ``PICTURE_PX`` a side.

        Only an image that was scored is decoded: it has been decoded before and did no harm.

        Raises:
            ApiError: as of :meth:`score_row`; 422 where the image cannot be read any more or is no
                longer the one that was scored; 503 where too many pictures are asked for.
            StorageError: the store or the run folder cannot be reached.
        """
        place, row = self._scored(run_uri, image_uri, ["content_hash"], shard_id)
        with self._slot():
            return _png(_read(place, image_uri, row["content_hash"]))

    def _scored(
        self, run_uri: str, image_uri: str, columns: Iterable[str], shard_id: str | None
    ) -> tuple[PlannedShard, dict[str, Any]]:
        place = self._place_of(run_uri, image_uri, shard_id)
        wanted = list(dict.fromkeys(["image_uri", *columns]))
        try:
            part = read_part(run_uri, "scores", place.shard_id, wanted)
        except NotFoundError as error:
            raise ApiError(
                404, "not_scored_yet", "This cell is not scored yet; try again later."
            ) from error
        rows = part.filter(pc.equal(part["image_uri"], image_uri))
        if len(rows):
            return place, rows.slice(0, 1).to_pylist()[0]
        raise ApiError(422, "not_scored", "This image was quarantined, so that it has no class.")

    def _place_of(self, run_uri: str, image_uri: str, shard_id: str | None) -> PlannedShard:
        """Find the shard that a cell is in."""
        places = self._places_of(run_uri)
        if shard_id is not None:
            candidates = places.filter(pc.equal(places["shard_id"], shard_id))
        else:
            after = pc.fill_null(pc.less_equal(places["first"], image_uri), True)
            before = pc.fill_null(pc.greater_equal(places["last"], image_uri), True)
            candidates = places.filter(pc.and_(after, before))
        for row in candidates.drop_columns(["first", "last"]).to_pylist():
            place = PlannedShard(**row)
            if _lists(place, image_uri):
                return place
        raise ApiError(404, "no_such_cell", "This run has no such cell.")

    def _places_of(self, run_uri: str) -> pa.Table:
        entries = _plan_entries(run_uri)
        state = tuple((entry.name, entry.size, entry.tag) for entry in entries)
        with self._lock:
            kept = self._places.get(run_uri)
        if kept is not None and kept[0] == state:
            return kept[1]
        tables = [_index(entry.uri) for entry in entries]
        places = pa.concat_tables([_PLACES.empty_table(), *tables]).unify_dictionaries()
        with self._lock:
            self._places[run_uri] = (state, places)
            self._places.move_to_end(run_uri)
            while len(self._places) > RUNS_KEPT:
                self._places.popitem(last=False)
        return places

    @contextmanager
    def _slot(self) -> Iterator[None]:
        if not self._slots.acquire(timeout=WAIT_S):
            raise ApiError(
                503,
                "too_many_pictures",
                "Too many pictures are asked for at once; try again.",
                headers={"Retry-After": "5"},
            )
        try:
            yield
        finally:
            self._slots.release()


def _plan_entries(run_uri: str) -> list[storage.Entry]:
    try:
        entries = list(storage.listdir(storage.join(run_uri, "plan")))
    except NotFoundError:
        return []
    return [entry for entry in entries if entry.name.endswith(PART_SUFFIX) and not entry.is_folder]


def _index(plan_uri: str) -> pa.Table:
    """Read where a plan file's shards stand; of their members only what its footer says."""
    with readable(plan_uri), storage.open_read(plan_uri) as file:
        plan = pq.ParquetFile(file)
        leaf = _image_uri_leaf(plan)
        index = plan.read(columns=["shard_id", "num_images"])
        bounds = [
            plan.metadata.row_group(row).column(leaf).statistics
            for row in range(plan.num_row_groups)
        ]
    known = [found is not None and found.has_min_max for found in bounds]
    return pa.table(
        {
            "shard_id": index["shard_id"],
            "plan_uri": pa.array([plan_uri] * len(index)).dictionary_encode(),
            "plan_row": pa.array(range(len(index)), pa.int32()),
            "num_images": index["num_images"],
            "first": pa.array([b.min if k else None for b, k in zip(bounds, known, strict=True)]),
            "last": pa.array([b.max if k else None for b, k in zip(bounds, known, strict=True)]),
        }
    ).cast(_PLACES)


def _image_uri_leaf(plan: Any) -> int:
    paths = [plan.schema.column(leaf).path for leaf in range(len(plan.schema))]
    return next(leaf for leaf, path in enumerate(paths) if path.endswith(".image_uri"))


def _lists(place: PlannedShard, image_uri: str) -> bool:
    """Return whether a shard of the plan has this member; reads its URIs alone."""
    with readable(place.plan_uri), storage.open_read(place.plan_uri) as file:
        plan = pq.ParquetFile(file)
        path = plan.schema.column(_image_uri_leaf(plan)).path
        members = plan.read_row_group(place.plan_row, columns=[path])["members"]
        listed = pc.struct_field(pc.list_flatten(members), "image_uri")
        return bool(pc.any(pc.equal(listed, image_uri)).as_py())


def _read(place: PlannedShard, image_uri: str, scored: str) -> bytes | npt.NDArray[np.generic]:
    """Read one image from its store."""
    shard = read_planned(place.plan_uri, place.plan_row)
    member = next(member for member in shard.members if member.image_uri == image_uri)
    (record,) = read_shard(replace(shard, members=(member,)))
    if isinstance(record.data, Fault):
        raise ApiError(
            422, record.data.reason, f"The image cannot be read any more: {record.data.detail}."
        )
    if content_hash(record.data) != scored:
        raise ApiError(
            422,
            "image_changed",
            "The image has changed since it was scored: what is there now is another.",
        )
    return record.data


def _png(data: bytes | npt.NDArray[np.generic]) -> bytes:
    """Draw an image anew, whole and in its own proportions, with nothing but its pixels."""
    try:
        pixels = decode_whole(data, PICTURE_PX)
    except ImageError as fault:
        raise ApiError(422, fault.reason, f"The image cannot be shown: {fault.detail}.") from fault
    drawn = io.BytesIO()
    Image.fromarray(pixels).save(drawn, "PNG")
    return drawn.getvalue()
