"""The table of slides with people's reviews counted in.

What the counts then say about the blood is left to ``bloodcells.corrected``. Knows nothing of how a
review came about.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from bloodcells.cells import CLASSES
from bloodcells.corrected import corrected_differential
from bloodcells.parts import read_parts
from bloodcells.publish import published_shards
from bloodcells.records import SLIDES_SCHEMA
from bloodcells.reviews import NOT_A_CELL
from bloodcells.slides import slide_table

if TYPE_CHECKING:
    from bloodcells.bundle import Calibration

_COLUMNS: Final = [
    *("image_uri", "shard_id", "slide_id", "predicted_class", "out_of_domain", "needs_review"),
]

IntArray = npt.NDArray[np.int64]


def corrected_slides(
    run_uri: str,
    calibration: Calibration,
    reviews: pa.Table,
    *,
    machine: pa.Table | None = None,
) -> pa.Table:
    """Return the table of slides with reviewed cells counted as the person called them.

    ``num_out_of_domain`` counts what the differential leaves out: cells unlike the training data
    that nobody gave a class, and what a person called no cell. ``num_review`` counts cells that
    still wait for a person. The other columns are as in :func:`~bloodcells.slides.slide_table`,
    ``mean_confidence`` is the machine's, and for estimates and intervals see
    ``bloodcells.corrected``. A review counts where its cell stands in the same shard as when it was
    made: a shard's id changes with the files in it.

    Args:
        run_uri: the run folder.
        calibration: of the bundle that scored it.
        reviews: of :func:`read_reviews`.
        machine: the table of slides as the machine has it; read from the run where it is not given.

    Returns:
        A table in ``SLIDES_SCHEMA``, sorted by ``slide_id``.

    Raises:
        RunError: a part of the run cannot be read as a table of this project.
        StorageError: the run folder cannot be read.
    """
    table = slide_table(run_uri, calibration) if machine is None else machine
    changes = _changes(run_uri, reviews)
    slide_ids = table["slide_id"].to_pylist()
    rows = [row for row, slide_id in enumerate(slide_ids) if slide_id in changes]
    if not rows:
        return table
    changed = [changes[slide_ids[row]] for row in rows]
    seen, joined, gone, marks = (
        np.stack([getattr(change, kind) for change in changed])
        for kind in ("seen", "joined", "gone", "marks")
    )
    counts = np.array([table[f"count_{name}"].to_numpy()[rows] for name in CLASSES]).T
    unseen = counts - seen.sum(axis=1) - gone
    found = corrected_differential(unseen, seen, joined, np.asarray(calibration.confusion))
    counts = unseen + seen.sum(axis=2) + joined
    new = {
        "num_out_of_domain": table["num_out_of_domain"].to_numpy()[rows] + marks[:, 0],
        "num_review": table["num_review"].to_numpy()[rows] - marks[:, 1],
        "erythroblasts_per_100_wbc": found.percent[:, CLASSES.index("erythroblast")],
    }
    for place, name in enumerate(CLASSES):
        new[f"count_{name}"] = counts[:, place]
        for kind in ("percent", "estimate", "low", "high"):
            new[f"{kind}_{name}"] = getattr(found, kind)[:, place]
    return _replaced(table, rows, new)


class _Changes:
    """What people said of one slide's cells.

    Attributes:
        seen: cells that were counted and are of the eight, ``(8, 8)``, rows the person's class,
            columns the machine's.
        joined: cells that were out of domain and have a class now, ``(8,)``.
        gone: cells that were counted and are none, by the machine's class, ``(8,)``.
        marks: by how much more cells are left out, and how many fewer wait for a person.
    """

    def __init__(self) -> None:
        num = len(CLASSES)
        self.seen: IntArray = np.zeros((num, num), np.int64)
        self.joined: IntArray = np.zeros(num, np.int64)
        self.gone: IntArray = np.zeros(num, np.int64)
        self.marks: IntArray = np.zeros(2, np.int64)

    def add(self, cell: dict[str, Any]) -> None:
        """Add a reviewed cell: its score row, with ``after``."""
        called = CLASSES.index(cell["predicted_class"])
        is_cell, is_alien = cell["after"] != NOT_A_CELL, bool(cell["out_of_domain"])
        if is_cell and is_alien:
            self.joined[CLASSES.index(cell["after"])] += 1
        elif is_cell:
            self.seen[CLASSES.index(cell["after"]), called] += 1
        elif not is_alien:
            self.gone[called] += 1
        self.marks += (int(not is_cell) - int(is_alien), int(cell["needs_review"]))


def _changes(run_uri: str, reviews: pa.Table) -> dict[str, _Changes]:
    """Return by slide what its reviews change; reads no parts but those of reviewed shards."""
    changes: dict[str, _Changes] = {}
    shard_ids = published_shards(run_uri).intersection(pc.unique(reviews["shard_id"]).to_pylist())
    for part in read_parts(run_uri, "scores", sorted(shard_ids), _COLUMNS):
        for cell in _reviewed(part, reviews).to_pylist():
            changes.setdefault(cell["slide_id"], _Changes()).add(cell)
    return changes


def _reviewed(part: pa.Table, reviews: pa.Table) -> pa.Table:
    """Return the rows of a part that were reviewed in this very shard, with ``after``."""
    place = pc.index_in(part["image_uri"], value_set=reviews["image_uri"].combine_chunks())
    part = part.append_column("after", reviews["after"].take(place))
    same = pc.equal(reviews["shard_id"].take(place), part["shard_id"])
    return part.filter(pc.fill_null(same, False))


def _replaced(
    table: pa.Table, rows: list[int], new: dict[str, npt.NDArray[np.generic]]
) -> pa.Table:
    columns = []
    for field in SLIDES_SCHEMA:
        column = table[field.name]
        if field.name in new:
            values = column.to_numpy().copy()
            values[rows] = new[field.name]
            column = pa.array(values, field.type, from_pandas=True)  # NaN becomes null
        columns.append(column)
    return pa.table(columns, SLIDES_SCHEMA)
