"""The cells of a run that wait for a person, page by page, whatever the run's size.

Rows stay in Arrow's columns; of a run, only the cells that need a look are kept in memory between
requests. Knows nothing of HTTP or of who may review.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from bloodcells.cells import CLASSES
from bloodcells.merged import MergedShards, merged_files
from bloodcells.parts import read_parts
from bloodcells.publish import part_entries
from bloodcells.records import SCORES_SCHEMA
from bloodcells.reviews import read_reviews

RUNS_KEPT: Final = 4
ROWS_KEPT: Final = 500_000
"""Most waiting cells of a run that are kept, about 100 MB; of a run with more, each request reads
the run's scores anew."""

PARTS_TOGETHER: Final = 16

_COLUMNS: Final = [
    "image_uri",
    "slide_id",
    "predicted_class",
    "confidence",
    *(f"prob_{name}" for name in CLASSES),
    "out_of_domain",
    "needs_review",
    "shard_id",
]
_ORDER: Final = [
    ("is_reviewed", "ascending"),
    ("confidence", "ascending"),
    ("image_uri", "ascending"),
]


@dataclass(kw_only=True)
class _Waiting:
    """What is kept of a run: the waiting cells of the shards that were read, by id and tag."""

    shards: dict[str, str] = field(default_factory=dict)
    cells: pa.Table = field(
        default_factory=lambda: pa.schema(
            [SCORES_SCHEMA.field(name) for name in _COLUMNS]
        ).empty_table()
    )


class ReviewQueue:
    """Pages of cells, and the reviews of runs; keeps what it read of the last runs asked for."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: OrderedDict[str, _Waiting] = OrderedDict()
        self._reviews: OrderedDict[str, pa.Table] = OrderedDict()

    def reviews(self, run_uri: str) -> pa.Table:
        """Return the latest review of each cell, in ``REVIEWS_SCHEMA``.

        Raises:
            RunError: a file of the reviews cannot be read.
            StorageError: the run folder cannot be reached.
        """
        with self._lock:
            known = self._reviews.get(run_uri)
        table = read_reviews(run_uri, known=known)
        with self._lock:
            _keep(self._reviews, run_uri, table)
        return table

    def page(
        self, run_uri: str, *, slide: str | None, offset: int, limit: int, every: bool
    ) -> tuple[int, list[dict[str, Any]]]:
        """Return how many cells there are, and some of them as rows.

        Cells that nobody reviewed come first, then those of least confidence.

        Args:
            run_uri: the run folder.
            slide: only this slide's, or ``None``.
            offset: cells to pass over.
            limit: most rows.
            every: all cells, and not those alone that need a look.

        Raises:
            RunError: a file of the run cannot be read.
            StorageError: the run folder cannot be reached.
        """
        reviews = self.reviews(run_uri)
        parts = _parts(run_uri, _listed(run_uri)) if every else self._waiting_cells(run_uri)
        total, best = 0, None
        for part in parts:
            if slide is not None:
                part = part.filter(pc.equal(part["slide_id"], slide))
            total += len(part)
            if not len(part):
                continue
            part = _with_reviews(part, reviews)
            part = part if best is None else pa.concat_tables([best, part])
            best = part.sort_by(_ORDER).slice(0, offset + limit).combine_chunks()
        return total, [] if best is None else best.slice(offset, limit).to_pylist()

    def _waiting_cells(self, run_uri: str) -> Iterator[pa.Table]:
        listed = _listed(run_uri)
        with self._lock:
            kept = self._waiting.get(run_uri, _Waiting())
        if any(listed.get(shard_id) != tag for shard_id, tag in kept.shards.items()):
            kept = _Waiting()  # the run was started anew, or its files are being merged
        new = {shard_id: tag for shard_id, tag in listed.items() if shard_id not in kept.shards}
        if not new:
            return iter([kept.cells])
        fresh = []
        num_rows = len(kept.cells)
        waiting = (_needing_a_look(part) for part in _parts(run_uri, new))
        for part in waiting:
            fresh.append(part)
            num_rows += len(part)
            if num_rows > ROWS_KEPT:
                return _chain(kept.cells, fresh, waiting)
        cells = pa.concat_tables([kept.cells, *fresh]).combine_chunks()
        with self._lock:
            _keep(self._waiting, run_uri, _Waiting(shards={**kept.shards, **new}, cells=cells))
        return iter([cells])


def _keep(kept: OrderedDict[str, Any], run_uri: str, value: Any) -> None:
    kept[run_uri] = value
    kept.move_to_end(run_uri)
    while len(kept) > RUNS_KEPT:
        kept.popitem(last=False)


def _chain(cells: pa.Table, fresh: list[pa.Table], more: Iterator[pa.Table]) -> Iterator[pa.Table]:
    yield cells
    yield from fresh
    yield from more


def _needing_a_look(part: pa.Table) -> pa.Table:
    return part.filter(pc.or_(part["needs_review"], part["out_of_domain"]))


def _with_reviews(part: pa.Table, reviews: pa.Table) -> pa.Table:
    """Lay the reviews beside the cells; one made in another shard says nothing of this file."""
    place = pc.index_in(part["image_uri"], value_set=reviews["image_uri"].combine_chunks())
    same = pc.equal(reviews["shard_id"].take(place), part["shard_id"])
    is_reviewed = pc.fill_null(same, False)
    said = {
        "is_reviewed": is_reviewed,
        "revision": pc.fill_null(reviews["revision"].take(place), 0),
    }
    for name, column in (("reviewed_class", "after"), ("reviewed_by", "reviewed_by")):
        said[name] = pc.if_else(
            is_reviewed, reviews[column].take(place), pa.scalar(None, pa.string())
        )
    for name, values in said.items():
        part = part.append_column(name, values)
    return part


def _listed(run_uri: str) -> dict[str, str]:
    """Return what tells each published shard's file from an earlier one, by shard id."""
    tags = {part.shard_id: part.tag for part in part_entries(run_uri, "scores")}
    for file in merged_files(run_uri):
        tags |= dict.fromkeys(file.shard_ids, file.tag)
    return tags


def _parts(run_uri: str, shard_ids: Collection[str]) -> Iterator[pa.Table]:
    """Read shards' scores, some together: sorting them one by one costs the most."""
    in_order = MergedShards(run_uri).ordered(shard_ids)
    parts = read_parts(run_uri, "scores", in_order, _COLUMNS)
    while some := list(islice(parts, PARTS_TOGETHER)):
        yield pa.concat_tables(some)
