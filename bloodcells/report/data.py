"""The facts of a run folder that a report shows, gathered in one streaming pass.

Memory grows with the number of shards (an id each), never with the number of images: score files
are read a few at a time and leave running counts, and of the cells themselves only the least
certain stay. Knows nothing of HTML.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from bloodcells import publish, storage
from bloodcells.cells import CLASSES
from bloodcells.errors import NotFoundError
from bloodcells.evaluation import Evaluation, Selective, SelectiveTally, Tally, bin_of
from bloodcells.parts import class_indices, read_parts, readable, run_record
from bloodcells.records import SLIDES_SCHEMA

SLIDES_SHOWN: Final = 50
CELLS_SHOWN: Final = 24
EXAMPLES_SHOWN: Final = 3
CONFIDENCE_BINS: Final = 20

_SCORE_COLUMNS: Final = [
    "image_uri",
    "slide_id",
    "predicted_class",
    "confidence",
    *(f"prob_{name}" for name in CLASSES),
    "out_of_domain",
    "needs_review",
    "label",
    "shard_id",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A scored image that is shown by itself. ``probabilities`` are in the order of ``CLASSES``."""

    image_uri: str
    shard_id: str
    slide_id: str
    predicted_class: str
    confidence: float
    probabilities: tuple[float, ...]
    label: str | None


@dataclass(slots=True, kw_only=True)
class Quarantined:
    """The images quarantined for one reason: how many, and the first few as rows."""

    count: int = 0
    examples: list[dict[str, Any]] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class Missing:
    """What a source still owes: its shards without a score file, and the images in them."""

    num_shards: int = 0
    num_images: int = 0


@dataclass(slots=True, kw_only=True)
class Facts:
    """Everything that a report shows, but the thumbnails.

    Attributes:
        run: what ``run.json`` says.
        num_listed: images in the plan.
        num_shards: shards in the plan.
        num_shards_done: shards whose score file is there.
        missing: by source, what was planned and not scored.
        num_scored: rows of the score files.
        num_review: scored images that a person should look at.
        num_out_of_domain: scored images unlike the training data.
        class_counts: scored images by predicted class, ``int64 (8,)``.
        confidence: scored images by confidence, ``int64 (CONFIDENCE_BINS,)`` over 0–1.
        confidence_review: of those, the ones to be reviewed, same shape.
        least_certain: the ``CELLS_SHOWN`` cells of lowest confidence, lowest first.
        alien: the ``CELLS_SHOWN`` cells out of domain of highest confidence, highest first: those
            that would have passed for sure.
        quarantine: by reason, most frequent first.
        slides: the first ``SLIDES_SHOWN`` rows of ``slides.parquet`` by ``slide_id``.
        num_slides: rows of ``slides.parquet``, or ``None`` where it is not there.
        evaluation: figures against the labels, or ``None`` where no scored image has one.
        selective: how right those are that no person is asked to look at; ``None`` likewise.
    """

    run: dict[str, Any]
    num_listed: int = 0
    num_shards: int = 0
    num_shards_done: int = 0
    missing: dict[str, Missing] = field(default_factory=dict)
    num_scored: int = 0
    num_review: int = 0
    num_out_of_domain: int = 0
    class_counts: npt.NDArray[np.int64] = field(
        default_factory=lambda: np.zeros(len(CLASSES), np.int64)
    )
    confidence: npt.NDArray[np.int64] = field(
        default_factory=lambda: np.zeros(CONFIDENCE_BINS, np.int64)
    )
    confidence_review: npt.NDArray[np.int64] = field(
        default_factory=lambda: np.zeros(CONFIDENCE_BINS, np.int64)
    )
    least_certain: list[Cell] = field(default_factory=list)
    alien: list[Cell] = field(default_factory=list)
    quarantine: dict[str, Quarantined] = field(default_factory=dict)
    slides: list[dict[str, Any]] = field(default_factory=list)
    num_slides: int | None = None
    evaluation: Evaluation | None = None
    selective: Selective | None = None

    @property
    def num_quarantined(self) -> int:
        """Rows of the quarantine files whose shard is done."""
        return sum(q.count for q in self.quarantine.values())

    @property
    def num_missing(self) -> int:
        """Images that were listed and have neither a score nor a reason why not."""
        return sum(m.num_images for m in self.missing.values())


def gather(run_uri: str) -> Facts:
    """Gather the facts of the run folder at ``run_uri``; reads no image.

    Raises:
        RunError: there is no run folder, or a file of it cannot be read as what it should be.
        StorageError: the folder cannot be reached.
    """
    facts = Facts(run=run_record(run_uri))
    done = _count_plan(run_uri, publish.published_shards(run_uri), facts)
    tally, selective = Tally(), SelectiveTally()
    for table in read_parts(run_uri, "scores", done, _SCORE_COLUMNS):
        _count_scores(table, facts, tally, selective)
    for table in read_parts(run_uri, "quarantine", done, None):
        _count_quarantine(table, facts)
    facts.evaluation, facts.selective = tally.evaluation(), selective.selective()
    _read_slides(run_uri, facts)
    return facts


def _count_plan(run_uri: str, published: set[str], facts: Facts) -> list[str]:
    """Count what was planned and what is missing; return the shards that are done, in order.

    A published shard that was never planned is another plan's leftover and no part of this run.
    """
    done: list[str] = []
    for plan_uri in _plan_files(run_uri):
        with readable(plan_uri), storage.open_read(plan_uri) as file:
            rows = pq.read_table(file, columns=["shard_id", "source_uri", "num_images"])
        for row in rows.to_pylist():
            facts.num_shards += 1
            facts.num_listed += row["num_images"]
            if row["shard_id"] in published:
                done.append(row["shard_id"])
            else:
                owed = facts.missing.setdefault(row["source_uri"], Missing())
                owed.num_shards += 1
                owed.num_images += row["num_images"]
    facts.num_shards_done = len(done)
    return done


def _plan_files(run_uri: str) -> list[str]:
    try:
        return publish.plan_files(run_uri)
    except NotFoundError:
        return []


def _count_scores(table: pa.Table, facts: Facts, tally: Tally, selective: SelectiveTally) -> None:
    """Add the rows of one score file to the counts."""
    if len(table) == 0:
        return
    predicted = class_indices(table["predicted_class"])
    confidence = table["confidence"].to_numpy()
    review = table["needs_review"].to_numpy()
    alien = table["out_of_domain"].to_numpy()
    bins = bin_of(confidence, CONFIDENCE_BINS)
    facts.num_scored += len(table)
    facts.num_review += int(review.sum())
    facts.num_out_of_domain += int(alien.sum())
    facts.class_counts += np.bincount(predicted, minlength=len(CLASSES))
    facts.confidence += np.bincount(bins, minlength=CONFIDENCE_BINS)
    facts.confidence_review += np.bincount(bins[review], minlength=CONFIDENCE_BINS)

    labels = class_indices(table["label"])
    known = labels >= 0
    wrong = (labels != predicted)[known]
    tally.add(labels[known], predicted[known], confidence[known])
    selective.add(wrong, confidence[known], review[known], alien[known])

    facts.least_certain = _first(facts.least_certain, table, confidence)
    strange = np.flatnonzero(alien)
    facts.alien = _first(facts.alien, table.take(strange), confidence[strange], sign=-1)


def _first(
    cells: list[Cell], table: pa.Table, confidence: npt.NDArray[np.floating], sign: int = 1
) -> list[Cell]:
    """Return the ``CELLS_SHOWN`` cells of lowest confidence, highest where ``sign`` is -1."""
    rank = sign * confidence
    first = np.argsort(rank, kind="stable")[:CELLS_SHOWN]
    if len(cells) == CELLS_SHOWN:  # of a large run, few shards have one
        first = first[rank[first] <= sign * cells[-1].confidence]
    if not len(first):
        return cells
    candidates = (_cell(row) for row in table.take(first).to_pylist())
    return heapq.nsmallest(
        CELLS_SHOWN,
        (*cells, *candidates),
        key=lambda cell: (sign * cell.confidence, cell.image_uri),
    )


def _cell(row: Mapping[str, Any]) -> Cell:
    return Cell(
        image_uri=row["image_uri"],
        shard_id=row["shard_id"],
        slide_id=row["slide_id"],
        predicted_class=row["predicted_class"],
        confidence=row["confidence"],
        probabilities=tuple(row[f"prob_{name}"] for name in CLASSES),
        label=row["label"],
    )


def _count_quarantine(table: pa.Table, facts: Facts) -> None:
    for row in table.to_pylist():
        reason = facts.quarantine.setdefault(row["reason"], Quarantined())
        reason.count += 1
        if len(reason.examples) < EXAMPLES_SHOWN:
            reason.examples.append(row)


def _read_slides(run_uri: str, facts: Facts) -> None:
    """Keep the first rows of ``slides.parquet`` by ``slide_id``, where the file is there."""
    uri = storage.join(run_uri, "slides.parquet")
    try:
        with readable(uri), storage.open_read(uri) as file:
            slides = pq.ParquetFile(file)
            facts.num_slides = slides.metadata.num_rows
            rows = (
                row
                for batch in slides.iter_batches(1024, columns=SLIDES_SCHEMA.names)
                for row in batch.to_pylist()
            )
            facts.slides = heapq.nsmallest(SLIDES_SHOWN, rows, key=lambda row: row["slide_id"])
    except NotFoundError:
        return
