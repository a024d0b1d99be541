"""The table of slides: one row a slide, from a run folder's scores and quarantine.

Reads the run shard by shard, so memory grows with the number of slides, and an id a shard, but not
with the images. What the counts say about the blood is left to ``bloodcells.differential``. Knows
nothing of images or of how a score came about.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from bloodcells import storage
from bloodcells.cells import CLASSES
from bloodcells.differential import differential
from bloodcells.merged import MergedShards
from bloodcells.parts import read_parts
from bloodcells.publish import parquet_bytes, published_shards
from bloodcells.records import SLIDES_SCHEMA

if TYPE_CHECKING:
    from bloodcells.bundle import Calibration

SLIDES_NAME: Final = "slides.parquet"

_SCORE_COLUMNS: Final = [
    "slide_id",
    "predicted_class",
    "confidence",
    "out_of_domain",
    "needs_review",
]
_SUMMED: Final = (
    "num_scored",
    "num_quarantined",
    "num_out_of_domain",
    "num_review",
    "confidence",
    *(f"count_{name}" for name in CLASSES),
)
"""What is added up over a slide's images, one number each."""

FloatArray = npt.NDArray[np.float64]


def write_slides(run_uri: str, calibration: Calibration) -> pa.Table:
    """Publish ``RUN/slides.parquet`` and return it; the same run always gives the same bytes.

    Args:
        run_uri: the run folder.
        calibration: of the bundle that scored it.

    Raises:
        RunError: a part of the run cannot be read as a table of this project.
        StorageError: the run folder cannot be read or written.
    """
    table = slide_table(run_uri, calibration)
    storage.put(storage.join(run_uri, SLIDES_NAME), parquet_bytes(table))
    return table


def slide_table(run_uri: str, calibration: Calibration) -> pa.Table:
    """Sum up a run by slide.

    ``num_images`` counts all of a slide's images, scored or quarantined, and ``mean_confidence`` is
    over all that were scored. ``count_<class>`` and all that follows from it leave out the cells
    that are ``out_of_domain``. ``erythroblasts_per_100_wbc`` is as counted, not corrected; the
    correction and its interval are ``estimate_``, ``low_`` and ``high_erythroblast``.

    Args:
        run_uri: the run folder, with ``scores/*.parquet`` and ``quarantine/*.parquet``.
        calibration: of the bundle that scored it; its ``confusion`` corrects the estimates.

    Returns:
        A table in ``SLIDES_SCHEMA``, sorted by ``slide_id``.

    Raises:
        RunError: a part of the run cannot be read as a table of this project.
        StorageError: the run folder cannot be read.
    """
    sums = SlideSums()
    sums.read(run_uri)
    return sums.table(calibration)


class SlideSums:
    """A run's sums by slide, shard by shard: of a run that still goes on, what is new is added.

    The order in which shards are added does not matter: a confidence is a float32 of at least an
    eighth, so that a float64 holds the sum of a hundred million of them without rounding.
    """

    def __init__(self) -> None:
        self._by_slide: dict[str, FloatArray] = {}
        self._seen: set[str] = set()

    @property
    def num_slides(self) -> int:
        """How many slides were seen."""
        return len(self._by_slide)

    def read(self, run_uri: str) -> None:
        """Add the shards that were published since the last time.

        Where one that was added before is gone, all are added anew.

        Args:
            run_uri: the run folder.

        Raises:
            RunError: a part of the run cannot be read as a table of this project; these sums are of
                no use any more.
            StorageError: the run folder cannot be read; the same.
        """
        published = published_shards(run_uri)
        if not self._seen <= published:
            self._seen.clear()
            self._by_slide.clear()
        new = MergedShards(run_uri).ordered(published - self._seen)
        for part in read_parts(run_uri, "scores", new, _SCORE_COLUMNS):
            _add(self._by_slide, part["slide_id"], _scored(part))
        for part in read_parts(run_uri, "quarantine", new, ["slide_id"]):
            ones = np.ones(len(part))
            _add(self._by_slide, part["slide_id"], _summands(len(part), num_quarantined=ones))
        self._seen = published

    def table(self, calibration: Calibration, *, most: int | None = None) -> pa.Table:
        """Return the slides in ``SLIDES_SCHEMA``, sorted; see :func:`slide_table`.

        Args:
            calibration: of the bundle that scored them.
            most: return no more than the first so many.
        """
        slide_ids = sorted(self._by_slide)[:most]
        totals = np.array([self._by_slide[slide_id] for slide_id in slide_ids])
        sums = dict(zip(_SUMMED, totals.reshape(-1, len(_SUMMED)).T, strict=True))
        counts = np.stack([sums[f"count_{name}"] for name in CLASSES], axis=1).astype(np.int64)
        found = differential(counts, np.asarray(calibration.confusion))

        columns: dict[str, Sequence[str] | FloatArray] = {
            "slide_id": slide_ids,
            "num_images": sums["num_scored"] + sums["num_quarantined"],
            **sums,
            "erythroblasts_per_100_wbc": found.percent[:, CLASSES.index("erythroblast")],
            "mean_confidence": sums["confidence"]
            / np.where(sums["num_scored"], sums["num_scored"], np.nan),
        }
        for kind in ("percent", "estimate", "low", "high"):
            for name, values in zip(CLASSES, getattr(found, kind).T, strict=True):
                columns[f"{kind}_{name}"] = values
        return pa.table(
            [_column(columns[field.name], field.type) for field in SLIDES_SCHEMA], SLIDES_SCHEMA
        )


def _scored(part: pa.Table) -> FloatArray:
    """Return what each scored image adds to its slide, ``(N, len(_SUMMED))``."""
    predicted = pc.index_in(part["predicted_class"], value_set=pa.array(CLASSES))
    alien = part["out_of_domain"].to_numpy()
    counted = (predicted.to_numpy()[:, np.newaxis] == np.arange(len(CLASSES))) & ~alien[
        :, np.newaxis
    ]
    return _summands(
        len(part),
        num_scored=np.ones(len(part)),
        num_out_of_domain=alien,
        num_review=part["needs_review"].to_numpy(),
        confidence=part["confidence"].to_numpy(),
        **{f"count_{name}": counted[:, i] for i, name in enumerate(CLASSES)},
    )


def _summands(num_images: int, **columns: npt.NDArray[np.generic]) -> FloatArray:
    """Lay columns out in the order of ``_SUMMED``, with zeros for those not given."""
    summands = np.zeros((num_images, len(_SUMMED)))
    for name, values in columns.items():
        summands[:, _SUMMED.index(name)] = values
    return summands


def _add(by_slide: dict[str, FloatArray], slide_ids: pa.ChunkedArray, summands: FloatArray) -> None:
    """Add the images' summands to their slides' totals."""
    encoded = slide_ids.combine_chunks().dictionary_encode()
    sums = np.zeros((len(encoded.dictionary), len(_SUMMED)))
    np.add.at(sums, encoded.indices.to_numpy(), summands)
    for slide_id, row in zip(encoded.dictionary.to_pylist(), sums, strict=True):
        by_slide[slide_id] = by_slide.get(slide_id, 0) + row


def _column(values: Sequence[str] | FloatArray, kind: pa.DataType) -> pa.Array:
    if isinstance(values, np.ndarray) and pa.types.is_integer(kind):
        values = values.astype(np.int64)
    return pa.array(values, kind, from_pandas=True)  # NaN becomes null
