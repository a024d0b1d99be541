"""What people say of a run's cells: reviews that are added and never changed.

A review is one small file in ``RUN/reviews``, named after its cell and its revision, and created
only where no file of that name is: of two people who correct one cell at once, one wins and the
other is told. Nothing is ever written over or deleted, so that every earlier word stays readable.
Knows nothing of who may review, of images, or of how a review reaches it.
"""

from __future__ import annotations

import datetime
import hashlib
import re
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from bloodcells import storage
from bloodcells.cells import CLASSES
from bloodcells.errors import NotFoundError, ReviewConflictError, RunError
from bloodcells.publish import PART_SUFFIX, parquet_bytes
from bloodcells.records import REVIEWS_SCHEMA

REVIEWS: Final = "reviews"
NOT_A_CELL: Final = "not_a_cell"
VERDICTS: Final = (*CLASSES, NOT_A_CELL)
"""What a person may call a picture."""

MAX_REVISION: Final = 9999
FILES_AT_ONCE: Final = 16

_NAME: Final = re.compile(r"([0-9a-f]{32})-([0-9]{4})\.parquet")
_READS: Final = 5
_READ_PAUSE_S: Final = 0.05
"""A mount without hard links may for a moment show a new file empty: it is read again."""


@dataclass(frozen=True, kw_only=True)
class Review:
    """One person's word on one cell.

    Attributes:
        image_uri: the cell.
        slide_id: its slide.
        revision: 1 for the first review of the cell, and one more for each that follows.
        before: what it was called until then, by the machine or by an earlier review.
        after: what the person calls it, of ``VERDICTS``.
        reviewed_by: who.
        reviewed_at: when, in UTC.
        bundle_digest: the model whose call they saw.
        shard_id: the shard the cell was scored in; another one has read another file.
    """

    image_uri: str
    slide_id: str
    revision: int
    before: str
    after: str
    reviewed_by: str
    reviewed_at: datetime.datetime
    bundle_digest: str
    shard_id: str

    def __post_init__(self) -> None:
        """Check what a file of reviews must never hold."""
        if self.before not in VERDICTS or self.after not in VERDICTS:
            raise ValueError(f"a review says one of {', '.join(VERDICTS)}, not {self.after!r}")
        if not 1 <= self.revision <= MAX_REVISION:
            raise ValueError(f"a revision is 1 to {MAX_REVISION}, not {self.revision}")
        if self.reviewed_at.utcoffset() is None:
            raise ValueError("reviewed_at must say its time zone")


@dataclass(frozen=True, kw_only=True)
class ReviewedCell:
    """The cell that a review is about, as its score row has it."""

    image_uri: str
    slide_id: str
    predicted_class: str
    bundle_digest: str
    shard_id: str


def add_review(
    run_uri: str, cell: ReviewedCell, *, after: str, reviewed_by: str, revision_seen: int
) -> Review:
    """Publish a person's word on a cell, unless somebody said something since they looked.

    The same word of the same person on the same revision may be sent again: the first counts.

    Args:
        run_uri: the run folder.
        cell: what is reviewed.
        after: what the person calls it, of ``VERDICTS``.
        reviewed_by: who.
        revision_seen: the revision they looked at, 0 where nobody had reviewed the cell.

    Returns:
        The review that is in the run folder.

    Raises:
        ValueError: ``after`` is none of ``VERDICTS``, or the revision is out of range.
        ReviewConflictError: somebody reviewed the cell since, or the revision seen does not exist;
            it carries the review that stands now.
        StorageError: the run folder cannot be read or written.
    """
    before = cell.predicted_class
    if revision_seen:
        seen = read_review(run_uri, cell.image_uri, revision_seen)
        if seen is None:
            raise _conflict(run_uri, cell.image_uri)
        before = seen.after
    review = Review(
        image_uri=cell.image_uri,
        slide_id=cell.slide_id,
        revision=revision_seen + 1,
        before=before,
        after=after,
        reviewed_by=reviewed_by,
        reviewed_at=datetime.datetime.now(datetime.UTC),
        bundle_digest=cell.bundle_digest,
        shard_id=cell.shard_id,
    )
    uri = _review_uri(run_uri, review.image_uri, review.revision)
    storage.put_if_absent(uri, parquet_bytes(_table([review])))
    # Read back even where this call created it: some S3 look-alikes let two calls do so.
    standing = read_review(run_uri, review.image_uri, review.revision)
    if standing is None or _said(standing) != _said(review):
        raise _conflict(run_uri, cell.image_uri)
    return standing


def read_review(run_uri: str, image_uri: str, revision: int) -> Review | None:
    """Return one review of a cell; ``None`` where there is none of that revision.

    Raises:
        RunError: the file is there but is no review of ours.
    """
    if not 1 <= revision <= MAX_REVISION:
        return None
    try:
        (row,) = _read(_review_uri(run_uri, image_uri, revision)).to_pylist()
    except NotFoundError:
        return None
    return Review(**row)


def current_review(run_uri: str, image_uri: str) -> Review | None:
    """Return the latest review of a cell, ``None`` where nobody reviewed it."""
    latest = None
    for revision in range(1, MAX_REVISION + 1):
        review = read_review(run_uri, image_uri, revision)
        if review is None:
            break
        latest = review
    return latest


def read_reviews(run_uri: str, *, known: pa.Table | None = None) -> pa.Table:
    """Read the latest review of every cell that was reviewed.

    Args:
        run_uri: the run folder.
        known: an earlier answer for the same run folder; as reviews never change, what is in it is
            not read again.

    Returns:
        A table in ``REVIEWS_SCHEMA``, one row a cell, sorted by ``image_uri``.

    Raises:
        RunError: a file is no review of ours.
        StorageError: the run folder cannot be read.
    """
    latest: dict[str, str] = {}
    for entry in _entries(run_uri):
        found = _NAME.fullmatch(entry.name)
        if found and not entry.is_folder:
            latest[found[1]] = max(found[2], latest.get(found[1], ""))
    names = {f"{key}-{revision}{PART_SUFFIX}" for key, revision in latest.items()}
    tables = [REVIEWS_SCHEMA.empty_table()]
    if known is not None and len(known):
        rows = zip(known["image_uri"].to_pylist(), known["revision"].to_pylist(), strict=True)
        known_names = [_name(uri, revision) for uri, revision in rows]
        tables.append(known.filter(pa.array([name in names for name in known_names])))
        names.difference_update(known_names)
    uris = [storage.join(run_uri, REVIEWS, name) for name in sorted(names)]
    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        tables.extend(pool.map(_read, uris))
    return pa.concat_tables(tables).combine_chunks().sort_by("image_uri")


def _said(review: Review) -> dict[str, Any]:
    """Return what two sendings of one review have in common."""
    return {**asdict(review), "reviewed_at": None}


def _conflict(run_uri: str, image_uri: str) -> ReviewConflictError:
    current = current_review(run_uri, image_uri)
    stands = (
        "nobody has reviewed it"
        if current is None
        else f"{current.reviewed_by} called it {current.after} (revision {current.revision})"
    )
    return ReviewConflictError(
        f"{image_uri} is not as you saw it: {stands}. Look at it again and review that revision",
        current,
    )


def _name(image_uri: str, revision: int) -> str:
    key = hashlib.sha256(image_uri.encode()).hexdigest()[:32]
    return f"{key}-{revision:04d}{PART_SUFFIX}"


def _review_uri(run_uri: str, image_uri: str, revision: int) -> str:
    return storage.join(run_uri, REVIEWS, _name(image_uri, revision))


def _table(reviews: list[Review]) -> pa.Table:
    return pa.Table.from_pylist([asdict(review) for review in reviews], schema=REVIEWS_SCHEMA)


def _entries(run_uri: str) -> list[storage.Entry]:
    try:
        return list(storage.listdir(storage.join(run_uri, REVIEWS), ordered=False))
    except NotFoundError:
        return []


def _read(uri: str) -> pa.Table:
    table = _read_table(uri, REVIEWS_SCHEMA.names)
    if len(table) != 1 or not table.schema.equals(REVIEWS_SCHEMA):
        raise RunError(f"{uri} is no review of this project; move it out of the run folder")
    return table


def _read_table(uri: str, columns: list[str]) -> pa.Table:
    data = b""
    for _ in range(_READS):
        data = storage.read(uri)
        if data:
            break
        time.sleep(_READ_PAUSE_S)
    try:
        return pq.read_table(pa.BufferReader(data), columns=columns)
    except (pa.ArrowException, OSError) as error:
        raise RunError(
            f"{uri} cannot be read as a table of this project ({error}); restore it from a backup,"
            " or move it out of the run folder"
        ) from error
