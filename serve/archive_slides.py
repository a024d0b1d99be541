"""The slides of a run so far: what is new is added to what was read before.

Knows nothing of requests or of HTTP.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from bloodcells import storage
from bloodcells.errors import BloodcellsError, NotFoundError
from bloodcells.runs import Run, open_run
from bloodcells.slides import SLIDES_NAME, SlideSums
from serve.archive_model import Calibrations

RUNS_KEPT: Final = 32
"""Runs whose sums stay in memory; a slide takes 150 bytes of them."""


class SlidesSoFar:
    """Sums runs up as they go on; safe in threads.

    Args:
        calibrations: of the bundles that runs were begun with.
    """

    def __init__(self, calibrations: Calibrations) -> None:
        self._calibrations = calibrations
        self._sums: OrderedDict[str, tuple[SlideSums, threading.Lock]] = OrderedDict()
        self._lock = threading.Lock()

    def rows(self, run_uri: str, *, most: int) -> tuple[list[dict[str, Any]], int]:
        """Return a run's first slides, as rows of ``SLIDES_SCHEMA``, and how many there are.

        Raises:
            BundleError: the run's model, whose calibration the estimates need, is gone.
            StorageError: the run folder cannot be read.
        """
        run = open_run(run_uri)
        if run is None:
            return [], 0
        if run.status == "complete":
            try:
                table = pq.read_table(
                    pa.BufferReader(storage.read(storage.join(run_uri, SLIDES_NAME)))
                )
                return table.slice(0, most).to_pylist(), len(table)
            except NotFoundError:
                pass  # it is about to be written anew
        sums, lock = self._of(run)
        with lock:
            try:
                sums.read(run_uri)
            except BloodcellsError:
                self._forget(run)  # some parts may be in it and others not
                raise
            return sums.table(self._calibrations.of(run), most=most).to_pylist(), sums.num_slides

    def _of(self, run: Run) -> tuple[SlideSums, threading.Lock]:
        with self._lock:
            kept = self._sums.setdefault(run.run_id, (SlideSums(), threading.Lock()))
            self._sums.move_to_end(run.run_id)
            while len(self._sums) > RUNS_KEPT:
                self._sums.popitem(last=False)
            return kept

    def _forget(self, run: Run) -> None:
        with self._lock:
            self._sums.pop(run.run_id, None)
