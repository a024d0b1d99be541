"""Labelled cells of a lab: from stores whose folders or columns name classes, or from reviews.

Few cells, so they are held in memory, encoded. Knows nothing of models.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from bloodcells import publish, storage
from bloodcells.cells import CLASSES
from bloodcells.errors import ImageError, RunError, StoreError
from bloodcells.imaging import content_hash, decode_small
from bloodcells.parts import read_parts, run_record
from bloodcells.records import Fault, Record, Shard
from bloodcells.reviews import NOT_A_CELL, read_reviews
from bloodcells.run_labels import plan_of
from bloodcells.sites import SIDE_PX
from bloodcells.stores import ListingProblem, open_store, plan_source, read_shard

MOST_A_CLASS: Final = 60
"""Cells of a class that are used: with more of them, ``jobs.train`` makes a better bundle."""

_MOST_HELD: Final = 4 * MOST_A_CLASS
"""Cells of a class that are held in memory before those of the greatest hashes are let go."""

Encoded = bytes | npt.NDArray[np.generic]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelledCells:
    """Cells that a person gave a class, each content once, sorted by content.

    Attributes:
        images: encoded bytes, or pixels ``uint8 (H, W, 3)`` or ``(H, W)``; N of them.
        labels: index into ``CLASSES``, ``int64 (N,)``.
        groups: the slide of each, N strings.
        sources: names of the stores, or of the run, that they come from.
        left_out: cells that were not taken, by reason.
    """

    images: tuple[Encoded, ...] = field(repr=False)
    labels: IntArray = field(repr=False)
    groups: tuple[str, ...] = field(repr=False)
    sources: tuple[str, ...] = ()
    left_out: dict[str, int] = field(default_factory=dict)


def cells_of_stores(uris: Sequence[str], *, slide_pattern: str | None = None) -> LabelledCells:
    """Read the labelled cells of stores.

    Args:
        uris: of folders, archives or tables, as for ``open_store``.
        slide_pattern: as for ``open_store``.

    Raises:
        StoreError: a store cannot be listed in full, or one picture has two labels.
        StorageError: a store is out of reach.
    """
    store = open_store(uris, slide_pattern=slide_pattern)
    store.sources()  # an empty store is refused here

    def records() -> Iterator[tuple[Record, str | None]]:
        for source in store.sources():
            for item in plan_source(source, slide_pattern=slide_pattern):
                if isinstance(item, ListingProblem):
                    raise StoreError(
                        f"{item.uri}: {item.detail}; few labelled cells should all be there: mend "
                        "it, or leave it out of --store"
                    )
                if isinstance(item, Shard):
                    for record in read_shard(item):
                        yield record, record.member.label

    sources = tuple(map(storage.name_of, store.uris))
    found = _gathered(records(), sources, "delete one")
    if not len(found.labels):
        raise StoreError(
            f"{', '.join(store.uris)} has no labelled cell: put cells into folders named after "
            f"their classes ({', '.join(CLASSES)}), or give a table with a column label"
        )
    return found


def cells_of_run(run_uri: str) -> LabelledCells:
    """Read the cells of a run that people reviewed, with the classes that they gave.

    Args:
        run_uri: the run folder; its stores must still hold the pictures that were scored.

    Raises:
        RunError: there is no run, or none of its cells was given a class.
        StoreError: one picture has two labels.
        StorageError: the run or its store is out of reach.
    """
    run_uri = storage.normalise(run_uri)
    run_record(run_uri)
    reviews = read_reviews(run_uri)
    said = {row["image_uri"]: row for row in reviews.to_pylist() if row["after"] != NOT_A_CELL}
    sources = (f"reviews of the run {storage.name_of(run_uri)}",)
    found = _gathered(_reviewed(run_uri, said), sources, "review one of them again on its page")
    found.left_out.update(
        {
            name: number
            for name, number in (
                ("no cell, by a person", len(reviews) - len(said)),
                ("changed since it was reviewed", len(said) - _num_seen(found)),
            )
            if number
        }
    )
    if not len(found.labels):
        raise RunError(
            f"{run_uri} has no cell that a person gave a class and that can still be read: review "
            "some cells of each class on its page first, or give labelled cells with --store"
        )
    return found


def _num_seen(found: LabelledCells) -> int:
    return len(found.labels) + sum(found.left_out.values())


def _reviewed(run_uri: str, said: dict[str, dict[str, Any]]) -> Iterator[tuple[Record, str | None]]:
    """Yield the reviewed cells that are still what was scored, with the person's class."""
    plan = plan_of(run_uri)
    shard_ids = sorted({row["shard_id"] for row in said.values()} & set(plan))
    columns = ["image_uri", "content_hash", "shard_id", "slide_id"]
    published = publish.published_shards(run_uri)
    wanted = [shard_id for shard_id in shard_ids if shard_id in published]
    for shard_id, part in zip(wanted, read_parts(run_uri, "scores", wanted, columns), strict=True):
        mine = part.filter(pc.is_in(part["image_uri"], pa.array(sorted(said), pa.string())))
        scored = {row["image_uri"]: row for row in mine.to_pylist()}
        planned = plan[shard_id]
        shard = publish.read_planned(planned.plan_uri, planned.plan_row)
        members = tuple(
            member
            for member in shard.members
            if member.image_uri in scored and said[member.image_uri]["shard_id"] == shard_id
        )
        for record in read_shard(Shard.make(shard.source_uri, shard.kind, members)):
            uri = record.member.image_uri
            same = (
                isinstance(record.data, Fault)
                or content_hash(record.data) == scored[uri]["content_hash"]
            )
            if same:
                yield record, said[uri]["after"]


def _gathered(
    records: Iterable[tuple[Record, str | None]], sources: tuple[str, ...], remedy: str
) -> LabelledCells:
    """Keep each content once, of a class at most ``MOST_A_CLASS``, those of the least hashes.

    Two labels of one picture are noticed while it is held under the first: of a class with more
    than ``_MOST_HELD`` cells only those of the least hashes are.
    """
    left_out: Counter[str] = Counter()
    by_class: dict[str, dict[str, Record]] = defaultdict(dict)
    for record, label in records:
        if isinstance(record.data, Fault):
            left_out["unreadable"] += 1
            continue
        if label is None:
            left_out["without a label of the eight classes"] += 1
            continue
        key, uri = content_hash(record.data), record.member.image_uri
        known = next((name for name, own in by_class.items() if key in own), label)
        if known != label:
            other = by_class[known][key].member.image_uri
            raise StoreError(
                f"{uri} is called {label}, and {other}, the same picture, {known}: {remedy}"
            )
        if key in by_class[label]:
            left_out["the same picture again"] += 1
            continue
        by_class[label][key] = record
        if len(by_class[label]) > _MOST_HELD:
            left_out[_TOO_MANY] += _cut(by_class[label])
    kept: dict[str, tuple[Record, str]] = {}
    for label, own in by_class.items():
        for key in sorted(own):
            try:
                decode_small(own[key].data, SIDE_PX)  # type: ignore[arg-type]  # no fault is kept
            except ImageError:
                left_out["unreadable"] += 1
                del own[key]
        left_out[_TOO_MANY] += _cut(own)
        kept.update({key: (record, label) for key, record in own.items()})
    rows = [kept[key] for key in sorted(kept)]
    return LabelledCells(
        images=tuple(record.data for record, _ in rows),  # type: ignore[misc]
        labels=np.array([CLASSES.index(label) for _, label in rows], np.int64),
        groups=tuple(record.member.slide_id for record, _ in rows),
        sources=sources,
        left_out={reason: number for reason, number in left_out.items() if number},
    )


_TOO_MANY: Final = f"more than {MOST_A_CLASS} of a class"


def _cut(own: dict[str, Record]) -> int:
    """Leave only the cells of the least hashes; returns how many went."""
    gone = sorted(own)[MOST_A_CLASS:]
    for key in gone:
        del own[key]
    return len(gone)
