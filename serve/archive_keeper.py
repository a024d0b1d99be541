"""The keeper of archive runs: one process that sees to it that what was asked for gets done.

It looks at the requests below the root, drives the runs that are wanted and not finished, some at a
time, oldest first, and sends their shards to the archive scorers. All that it knows is in storage:
when it dies, or the whole cluster does, the next keeper goes on. Knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from typing import Any, Final

from ray.exceptions import RayError

from bloodcells.accounting import PlannedShard
from bloodcells.bundle import ModelBundle, shipped_bundle_uri
from bloodcells.errors import (
    BloodcellsError,
    QuarantineLimitError,
    RunIncompleteError,
    RunLockedError,
    StorageFullError,
    UnavailableError,
)
from bloodcells.pipeline.run_drive import drive_run
from bloodcells.pipeline.run_request import SHIPPED, Crew, RunRequest
from bloodcells.precision import MICRO_BATCH
from bloodcells.publish import ShardOutcome
from bloodcells.runs import Run, open_run
from serve.archive_dispatch import Dispatcher, FairSlots
from serve.archive_model import model_of
from serve.archive_notes import NoteTaker
from serve.archive_records import OPEN, ArchiveRecords, ArchiveRequest
from serve.archive_scorer import SHARDS_AT_ONCE
from serve.archive_site import site_of
from serve.archive_uploads import sweep_uploads
from serve.errors import ApiError
from serve.places import Places
from serve.settings import ServeSettings
from serve.standing_back import lower_thread

LOOK_EVERY_S: Final = 2.0
RUNS_AT_ONCE: Final = 4
NICENESS: Final = 10
WAIT_FOR_LEASE_S: Final = 5.0
CLOSING_S: Final = 10.0
PLANNING_CPUS: Final = 0.1
"""What listing an archive books: little, for replicas have booked most of a small machine."""

SHARDS_PER_REPLICA: Final = SHARDS_AT_ONCE + 1
"""Shards in flight for each scorer there may be: those it works on, and one on its way."""

LOGGER: Final = logging.getLogger("ray.serve.bloodcells")


class _CancelledError(RunIncompleteError):
    """Somebody cancelled the run."""


class _ClosingError(RunIncompleteError):
    """This keeper goes; the next one takes the run up."""


class ArchiveKeeper:
    """Drives archive runs.

    Args:
        settings: what the operator decided, as plain values.
        scorers: Serve's handle of the archive scorers.
    """

    def __init__(self, settings: dict[str, Any], scorers: Any) -> None:
        self._settings = ServeSettings(**settings)
        scale, root = self._settings.archives, self._settings.root_uri
        self._records = ArchiveRecords(root)
        self._places = Places(read=self._settings.read, write=(*self._settings.write, root))
        self._device = "cuda" if scale.num_gpus else "cpu"
        self._bundle_uri = self._settings.bundle or shipped_bundle_uri()
        self._bundle = ModelBundle.load(self._bundle_uri)
        self._dispatcher = Dispatcher(
            scorers,
            asyncio.get_running_loop(),
            FairSlots(SHARDS_PER_REPLICA * scale.max_replicas),
        )
        self._wanted: dict[str, ArchiveRequest] = {}
        self._driven: dict[str, Future[None]] = {}
        self._drivers = ThreadPoolExecutor(
            RUNS_AT_ONCE, thread_name_prefix="run", initializer=_step_aside
        )
        self._not_before: dict[str, float] = {}
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="keeper", daemon=True)
        self._watcher.start()

    async def poke(self) -> None:
        """Look at the requests now: one of them is new."""
        self._wake.set()

    def check_health(self) -> None:
        """Tell Serve whether the keeper still looks after its runs; if not, it is replaced."""
        if not self._watcher.is_alive():
            raise RuntimeError("the keeper's thread has ended")

    async def __del__(self) -> None:
        """Leave the runs to the next keeper, and their leases free; Serve waits for it."""
        if not hasattr(self, "_watcher"):  # its start failed
            return
        self._closing.set()
        self._wake.set()
        await asyncio.to_thread(wait, list(self._driven.values()), CLOSING_S)
        self._drivers.shutdown(wait=False)

    def _watch(self) -> None:
        try:
            sweep_uploads(self._records, self._settings.limits.upload_seconds)
        except BloodcellsError as error:
            LOGGER.warning("uploads were not swept: %s", error)
        while not self._closing.is_set():
            self._wake.clear()
            try:
                self._look()
            except BloodcellsError as error:  # an outage: look again later
                LOGGER.warning("requests cannot be read: %s", error)
            self._wake.wait(LOOK_EVERY_S)

    def _look(self) -> None:
        """Begin to drive what is wanted, oldest first, while there is room."""
        requests = self._records.requests()
        self._wanted = {request.id: request for request in requests}
        notes = self._records.notes()
        for request in requests:
            note = notes.get(request.id)
            is_settled = note is not None and (
                note.status == "complete"
                or (note.status not in OPEN and note.asked >= request.asked)
            )
            with self._lock:
                if (
                    is_settled
                    or request.wanted == "cancelled"
                    or request.id in self._driven
                    or len(self._driven) >= RUNS_AT_ONCE
                    or self._not_before.get(request.id, 0.0) > time.monotonic()
                ):
                    continue
                driven = self._drivers.submit(self._drive, request)
                self._driven[request.id] = driven
            driven.add_done_callback(partial(self._ended, request))

    def _ended(self, request: ArchiveRequest, driven: Future[None]) -> None:
        """Make room for the next run; an error that nobody foresaw is noted as the run's end."""
        error = driven.exception()
        try:
            if isinstance(error, BloodcellsError):  # its note cannot be read or written: an outage
                LOGGER.warning("archive %s: %s", request.id, error)
                self._not_before[request.id] = time.monotonic() + WAIT_FOR_LEASE_S
            elif error is not None:
                LOGGER.error("archive %s", request.id, exc_info=error)
                self._taker(request).end(
                    "failed", f"something failed here; tell the operator the run's id {request.id}"
                )
        finally:
            with self._lock:
                del self._driven[request.id]
            self._wake.set()

    def _taker(self, request: ArchiveRequest) -> NoteTaker:
        return NoteTaker(self._records, request, lambda: self._stop(request.id))

    def _drive(self, request: ArchiveRequest) -> None:
        """Drive one run to its end, and note how it ended."""
        taker = self._taker(request)
        try:
            run_request, pinned = self._run_request(request)
            drive_run(run_request, lambda: self._hire(pinned, taker), taker)
            taker.end("complete")
        except _ClosingError:
            pass  # its note stays as it is: the next keeper reads it
        except _CancelledError:
            taker.end("cancelled")
        except RunLockedError as error:
            self._not_before[request.id] = time.monotonic() + WAIT_FOR_LEASE_S
            taker.end("queued", f"{error}. This run waits for it")
        except (RunIncompleteError, QuarantineLimitError) as error:
            taker.end("incomplete", str(error))
        except (UnavailableError, StorageFullError) as error:
            taker.end("incomplete", f"{error} Resume the run when that is over")
        except RayError as error:
            LOGGER.warning("archive %s", request.id, exc_info=error)
            taker.end("incomplete", "the cluster lost a process; resume the run")
        except (BloodcellsError, ApiError) as error:
            taker.end("failed", str(error))

    def _stop(self, archive_id: str) -> None:
        """Raise what is to end a run, if anything."""
        if self._closing.is_set():
            raise _ClosingError("the keeper goes")
        wanted = self._wanted.get(archive_id)
        if wanted is not None and wanted.wanted == "cancelled":
            raise _CancelledError("somebody cancelled the run")

    def _run_request(self, request: ArchiveRequest) -> tuple[RunRequest, str]:
        """Return a run as the engine takes it, and its model's URI, pinned."""
        for uri in request.stores:  # once more: a folder may have become a link since
            self._places.require_readable(uri)
        self._places.require_writable(request.out)
        bundle, uri = self._bundle, self._bundle_uri
        found = open_run(request.out)
        ours = None if request.out_given else found  # another's record names no model here
        if ours is not None and ours.settings.bundle_digest != bundle.digest:
            bundle, uri = model_of(ours)
        pinned = uri if "@sha256:" in uri else f"{uri}@{bundle.digest}"
        asked = RunRequest(
            site=request.site,
            profile=site_of(found, request.site, self._settings.sites, bundle.digest),
            stores=request.stores,
            out=request.out,
            bundle=bundle,
            bundle_uri=pinned,
            bundle_origin=SHIPPED if uri == shipped_bundle_uri() else uri,
            shard_size=request.shard_size,
            slide_pattern=request.slide_pattern,
            max_quarantine=request.max_quarantine,
        )
        return asked, pinned

    def _hire(self, bundle_uri: str, taker: NoteTaker) -> Crew:
        """Return the archive scorers as the engine's crew."""

        def score_wave(run: Run, wave: Sequence[PlannedShard]) -> Iterator[ShardOutcome]:
            return self._dispatcher.score(run, wave, bundle_uri=bundle_uri, check=taker.check)

        return Crew(
            device=self._device,
            micro_batch=MICRO_BATCH[self._device],
            compiled=self._device == "cuda",
            planning_cpus=PLANNING_CPUS,
            description=f"archive replicas on {self._device}",
            score=score_wave,
        )


def _step_aside() -> None:
    """Lower the priority of a driving thread: slides and reports of large runs are work as well.

    Not to the lowest: a thread that waits for a core while it holds the interpreter's lock keeps
    all others waiting.
    """
    lower_thread(NICENESS)
