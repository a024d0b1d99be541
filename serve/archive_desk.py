"""The desk where archive runs are asked for, looked at, cancelled and taken up again.

It writes requests and reads what became of them; the work is the keeper's, elsewhere. Every method
waits for storage: call them in a thread. Of HTTP it knows errors alone.
"""

from __future__ import annotations

import datetime
import hashlib
import re
import uuid
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import replace
from typing import IO, Any, Final

from bloodcells import storage
from bloodcells.bundle import Calibration, ModelBundle
from bloodcells.errors import BundleError, NotFoundError
from bloodcells.runs import open_run, run_json_uri
from bloodcells.sites import AUTO, NONE
from serve.archive_model import Calibrations
from serve.archive_records import OPEN, ArchiveRecords, ArchiveRequest
from serve.archive_slides import SlidesSoFar
from serve.archive_uploads import Uploads
from serve.archive_view import (
    ArchiveAsked,
    ArchiveDetail,
    ArchiveFile,
    ArchiveView,
    status_of,
    view_of,
)
from serve.errors import ApiError
from serve.places import Places
from serve.settings import ServeSettings

SLIDES_SHOWN: Final = 1000
MOST_FILES: Final = 10_000

_FILE: Final = re.compile(
    r"run\.json|report\.html|slides\.parquet"
    r"|(?:scores|quarantine)/(?:part|merged)-[0-9A-Za-z_-]{1,80}\.parquet"
    r"|reviews/[0-9A-Za-z_-][0-9A-Za-z._-]{0,120}\.parquet"
)
"""Names of a run folder's files that clients may have; no other name leads anywhere."""


class ArchiveDesk:
    """The archive runs below a root.

    Args:
        settings: what the operator decided.
        bundle: the endpoint's model.
        poke: tells the keeper that a request is new or has changed; raises nothing, for where the
            keeper cannot be told it looks by itself before long.
    """

    def __init__(
        self, settings: ServeSettings, bundle: ModelBundle, poke: Callable[[], Awaitable[Any]]
    ) -> None:
        root = settings.root_uri
        self.limits = settings.limits
        self._sites = settings.sites
        self.places = Places(read=settings.read, write=settings.write)  # the root is not theirs
        self.records = ArchiveRecords(root)
        self.uploads = Uploads(root, settings.limits)
        self._calibrations = Calibrations(bundle)
        self._slides = SlidesSoFar(self._calibrations)
        self.poke = poke

    def new_id(self, person: str, key: str | None) -> str:
        """Return the id of a new run: random, or the same for the same key of the same person."""
        if key is None:
            return uuid.uuid4().hex
        return hashlib.sha256(f"{person}\0{key}".encode()).hexdigest()[:32]

    def found(self, archive_id: str) -> ArchiveRequest | None:
        """Return the request of an id, if there is one."""
        return self.records.request(archive_id)

    def ask(self, person: str, archive_id: str, asked: ArchiveAsked) -> ArchiveView:
        """Keep the request for a run over stores.

        Raises:
            ApiError: a place is not allowed (403) or no URI (422), the folder is in use (409), too
                many runs are open (429), or the id's key was used for something else (409).
        """
        shown = (asked.store,) if isinstance(asked.store, str) else tuple(asked.store)
        stores = tuple(self.places.require_readable(uri) for uri in shown)
        out = self.records.run_folder(archive_id)
        if asked.out is not None:
            out = self.places.require_writable(asked.out)
            self._require_apart(out)
        _require_pattern(asked.slide_pattern)
        self._require_site(asked.site)
        return self._keep(
            self._request(
                person,
                archive_id,
                stores=stores,
                shown=shown,
                out=out,
                out_given=asked.out is not None,
                slide_pattern=asked.slide_pattern,
                shard_size=asked.shard_size,
                max_quarantine=asked.max_quarantine,
                site=asked.site,
            )
        )

    def _require_site(self, site: str) -> None:
        known = [AUTO, NONE, *sorted(self._sites)]
        if site not in known:
            raise ApiError(
                404,
                "unknown_site",
                f"There is no site profile {site!r}; there is: {', '.join(known)}.",
            )

    def ask_for_upload(self, person: str, archive_id: str, uri: str, name: str) -> ArchiveView:
        """Keep the request for a run over an upload that lies in its place."""
        defaults = ArchiveAsked(store=uri)
        return self._keep(
            self._request(
                person,
                archive_id,
                stores=(uri,),
                shown=(name,),
                out=self.records.run_folder(archive_id),
                out_given=False,
                slide_pattern=None,
                shard_size=defaults.shard_size,
                max_quarantine=defaults.max_quarantine,
                site=defaults.site,
            )
        )

    def require_room(self) -> None:
        """Make sure that one more run may be open.

        Raises:
            ApiError: 429 ``too_many_runs``.
        """
        notes = self.records.notes()
        requests = self.records.requests()
        num_open = sum(status_of(request, notes.get(request.id)) in OPEN for request in requests)
        if num_open >= self.limits.open_runs:
            raise ApiError(
                429,
                "too_many_runs",
                f"{num_open} runs are not finished; wait for one, or cancel one.",
                headers={"Retry-After": "60"},
            )

    def views(self, *, limit: int, before: str | None) -> list[ArchiveView]:
        """Return the newest runs, those before the run with id ``before``.

        Raises:
            ApiError: 404, there is no run ``before``.
        """
        requests = self.records.requests()[::-1]
        if before is not None:
            ids = [request.id for request in requests]
            if before not in ids:
                raise _unknown()
            requests = requests[ids.index(before) + 1 :]
        notes = self.records.notes()
        root = self.records.root_uri
        return [view_of(request, notes.get(request.id), root) for request in requests[:limit]]

    def view(self, archive_id: str) -> ArchiveView:
        """Return one run.

        Raises:
            ApiError: 404.
        """
        request = self.request(archive_id)
        return view_of(request, self.records.note(request.id), self.records.root_uri)

    def detail(self, archive_id: str) -> ArchiveDetail:
        """Return one run with its slides so far.

        Raises:
            ApiError: 404.
        """
        request = self.request(archive_id)
        view = self.view(archive_id)
        slides, num_slides = self._slides.rows(request.out, most=SLIDES_SHOWN)
        return ArchiveDetail(**view.model_dump(), slides=slides, num_slides=num_slides)

    def cancel(self, archive_id: str) -> ArchiveView:
        """Let a run stop between two shards; one that is finished stays as it is.

        Raises:
            ApiError: 404.
        """
        request = self.request(archive_id)
        if request.wanted != "cancelled":
            self.records.save(replace(request, wanted="cancelled"))
        return self.view(archive_id)

    def resume(self, archive_id: str, *, max_quarantine: float | None = None) -> ArchiveView:
        """Let a run that was cancelled, failed or is incomplete go on; others stay as they are.

        Raises:
            ApiError: 404, or 429 where too many runs are open.
        """
        request = self.request(archive_id)
        status = status_of(request, self.records.note(archive_id))
        if status not in OPEN and status != "complete":
            self.require_room()
            self.records.save(
                replace(
                    request,
                    wanted="complete",
                    asked=request.asked + 1,
                    max_quarantine=(
                        request.max_quarantine if max_quarantine is None else max_quarantine
                    ),
                )
            )
        return self.view(archive_id)

    def files(self, archive_id: str) -> list[ArchiveFile]:
        """Return the files of a run that clients may have, at most ``MOST_FILES``.

        Raises:
            ApiError: 404.
        """
        request = self.request(archive_id)
        found: list[ArchiveFile] = []
        for name, size in _files_in(request.out):
            if _FILE.fullmatch(name) and len(found) < MOST_FILES:
                url = f"/v1/archives/{archive_id}/files/{name}"
                found.append(ArchiveFile(name=name, bytes=size, url=url))
        return found

    def open_file(self, archive_id: str, name: str) -> tuple[IO[bytes], int]:
        """Open a file of a run; returns it and its size.

        Raises:
            ApiError: 404, also for any name that is not one of a run folder's.
        """
        request = self.request(archive_id)
        if not _FILE.fullmatch(name):
            raise _unknown("There is no such file; GET …/files lists what there is.")
        uri = storage.join(request.out, name)
        try:
            entry = storage.stat(uri)
            if entry.is_folder:
                raise _unknown()
            return storage.open_read(uri).__enter__(), entry.size
        except NotFoundError as error:
            raise _unknown("That file is not there yet; GET …/files lists what is.") from error

    def request(self, archive_id: str) -> ArchiveRequest:
        """Return a run's request.

        Raises:
            ApiError: 404.
        """
        found = self.records.request(archive_id)
        if found is None:
            raise _unknown()
        return found

    def run_uri(self, archive_id: str) -> str:
        """Return a run's folder.

        Raises:
            ApiError: 404.
        """
        return self.request(archive_id).out

    def calibration_of(self, run_uri: str) -> Calibration | None:
        """Return what is known of the bundle that scored a run, if that is at hand."""
        run = open_run(run_uri)
        try:
            return None if run is None else self._calibrations.of(run)
        except BundleError:
            return None

    def same(self, found: ArchiveRequest, person: str, shown: Sequence[str]) -> ArchiveView:
        """Return the run that an idempotency key stands for.

        Raises:
            ApiError: 409 ``key_used``, the key was used for other stores.
        """
        if found.created_by != person or found.shown != tuple(shown):
            raise ApiError(
                409,
                "key_used",
                "This Idempotency-Key was used for another archive; send another key.",
            )
        return self.view(found.id)

    def _request(self, person: str, archive_id: str, **what: Any) -> ArchiveRequest:
        created = datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds")
        return ArchiveRequest(id=archive_id, created=created, created_by=person, **what)

    def _keep(self, request: ArchiveRequest) -> ArchiveView:
        kept = self.records.create(request)
        return self.same(kept, request.created_by, request.shown)

    def _require_apart(self, out: str) -> None:
        """Refuse a folder among the endpoint's own, or one that is a run's already."""
        root = self.records.root_uri.rstrip("/")
        if f"{out}/".startswith(f"{root}/") or f"{root}/".startswith(f"{out}/"):
            raise ApiError(
                403, "place_not_allowed", "Leave 'out' out: the endpoint keeps the run then."
            )
        if storage.exists(run_json_uri(out)):
            raise ApiError(
                409, "out_in_use", "There is a run in that folder already; name another."
            )


def _files_in(run_uri: str) -> Iterator[tuple[str, int]]:
    for folder in ("", "reviews", "scores", "quarantine"):
        uri = storage.join(run_uri, folder) if folder else run_uri
        try:
            for entry in storage.listdir(uri):
                if not entry.is_folder and not entry.is_link:
                    yield (f"{folder}/{entry.name}" if folder else entry.name), entry.size
        except NotFoundError:
            continue


def _require_pattern(pattern: str | None) -> None:
    try:
        re.compile(pattern or "")
    except re.error as error:
        raise ApiError(
            422, "bad_pattern", f"slide_pattern is no regular expression: {error}."
        ) from error


def _unknown(
    message: str = "There is no such archive run; GET /v1/archives lists them.",
) -> ApiError:
    return ApiError(404, "not_found", message)
