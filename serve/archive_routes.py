"""The routes of archive runs: ask for one, watch it, stop it, take its files.

Knows nothing of how a run is done. All that waits for storage runs in threads.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import IO, Annotated, Any, Final

from fastapi import APIRouter, Depends, Header, Path, Query, Request
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response, StreamingResponse

from serve.archive_desk import ArchiveDesk
from serve.archive_records import OPEN
from serve.archive_uploads import ending_of
from serve.archive_view import (
    ArchiveAsked,
    ArchiveDetail,
    ArchiveFile,
    ArchiveFiles,
    ArchiveList,
    ArchiveView,
)
from serve.bodies import read_body
from serve.doors import Doors, Person
from serve.errors import ApiError

ASKED_BYTES: Final = 256 * 1024
"""Most bytes of a request that names stores."""

EVENT_EVERY_S: Final = 1.0
ALIVE_EVERY_S: Final = 10.0
WATCHED_S: Final = 3600.0
"""Longest that one client is told of a run without asking anew; browsers do that by themselves."""

WATCHERS: Final = 256
"""Clients that a replica tells of runs at a time."""

PIECE: Final = 2**18

REPORT_POLICY: Final = (
    "sandbox allow-scripts; default-src 'none'; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; img-src data:; font-src data:; form-action 'none'; "
    "base-uri 'none'; frame-ancestors 'self'"
)
"""A report brings its own styles and scripts and nothing else; sandboxed, it is of no origin, so
that it could not use the session even if something in it were not as it should be."""

_MEDIA: Final = {
    ".json": "application/json",
    ".html": "text/html; charset=utf-8",
    ".parquet": "application/vnd.apache.parquet",
}

ArchiveId = Annotated[str, Path(pattern=r"^[0-9a-f]{32}$", description="The run's id.")]

_BODY: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": ArchiveAsked.model_json_schema()},
            **{
                kind: {"schema": {"type": "string", "format": "binary"}}
                for kind in ("application/x-tar", "application/gzip", "application/zip")
            },
        },
    }
}


def archive_router(desk: ArchiveDesk, doors: Doors) -> APIRouter:
    """Return the routes of archive runs.

    Args:
        desk: where runs are asked for.
        doors: who may come in.
    """
    router = APIRouter(prefix="/v1/archives", tags=["archives"])
    asker = Annotated[Person, Depends(doors.require("archives"))]
    reader = Annotated[Person, Depends(doors.require("archives", "review"))]
    watchers = asyncio.Semaphore(WATCHERS)

    @router.post(
        "",
        status_code=202,
        response_model=ArchiveView,
        openapi_extra=_BODY,
        summary="Score an archive",
    )
    async def ask(
        person: asker,
        request: Request,
        name: Annotated[str, Query(max_length=255)] = "upload",
        idempotency_key: Annotated[str | None, Header(min_length=1, max_length=255)] = None,
    ) -> Response:
        """Score the stores that a JSON body names, or the tar, tar.gz or zip that the body is.

        The answer comes at once. The same ``Idempotency-Key`` gives the same run, not another one.
        """
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        archive_id = desk.new_id(person.name, idempotency_key)
        found = await run_in_threadpool(desk.found, archive_id)
        if media_type == "application/json":
            asked = _asked(
                await read_body(request, most_bytes=ASKED_BYTES, seconds=desk.limits.body_seconds)
            )
            if found is not None:
                shown = [asked.store] if isinstance(asked.store, str) else asked.store
                view = await run_in_threadpool(desk.same, found, person.name, shown)
            else:
                await run_in_threadpool(desk.require_room)
                view = await run_in_threadpool(desk.ask, person.name, archive_id, asked)
        else:
            ending_of(request)
            if found is not None:
                await desk.uploads.discard(request)
                view = await run_in_threadpool(desk.same, found, person.name, [name])
            else:
                await run_in_threadpool(desk.require_room)
                uri = await desk.uploads.receive(request, archive_id=archive_id, name=name)
                view = await run_in_threadpool(
                    desk.ask_for_upload, person.name, archive_id, uri, name
                )
        await desk.poke()
        return _accepted(view)

    @router.get("", response_model=ArchiveList, summary="List archive runs, newest first")
    def archives(
        person: reader,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
        before: Annotated[str | None, Query(pattern=r"^[0-9a-f]{32}$")] = None,
    ) -> ArchiveList:
        """Return the newest runs; ``before`` goes on after the last one of a list."""
        return ArchiveList(archives=desk.views(limit=limit, before=before))

    @router.get("/{archive_id}", response_model=ArchiveDetail, summary="One run, with its slides")
    def archive(person: reader, archive_id: ArchiveId) -> ArchiveDetail:
        """Return how a run stands, and its slides so far."""
        return desk.detail(archive_id)

    @router.get("/{archive_id}/events", summary="A run's progress as server-sent events")
    async def events(person: reader, archive_id: ArchiveId) -> Response:
        """Tell of a run as it goes on: ``progress`` events, at last one ``end``."""
        first = await run_in_threadpool(desk.view, archive_id)
        if watchers.locked():
            raise ApiError(
                503,
                "too_many_watchers",
                "Too many follow runs here; ask for the run itself now and then.",
                headers={"Retry-After": "30"},
            )
        return StreamingResponse(
            _events(desk, first, watchers),
            media_type="text/event-stream",
            headers={"X-Accel-Buffering": "no"},
        )

    @router.post(
        "/{archive_id}/cancel", status_code=202, response_model=ArchiveView, summary="Stop a run"
    )
    async def cancel(person: asker, archive_id: ArchiveId) -> Response:
        """Let a run stop after the shards that are being scored; what is done stays."""
        view = await run_in_threadpool(desk.cancel, archive_id)
        await desk.poke()
        return _accepted(view)

    @router.post(
        "/{archive_id}/resume",
        status_code=202,
        response_model=ArchiveView,
        summary="Go on with a run",
    )
    async def resume(
        person: asker,
        archive_id: ArchiveId,
        max_quarantine: Annotated[float | None, Query(ge=0, le=1)] = None,
    ) -> Response:
        """Go on with a run that was cancelled, failed, or is incomplete."""
        view = await run_in_threadpool(
            lambda: desk.resume(archive_id, max_quarantine=max_quarantine)
        )
        await desk.poke()
        return _accepted(view)

    @router.get("/{archive_id}/files", response_model=ArchiveFiles, summary="List a run's files")
    def files(person: reader, archive_id: ArchiveId) -> ArchiveFiles:
        """Return what may be taken of a run folder."""
        found: list[ArchiveFile] = desk.files(archive_id)
        return ArchiveFiles(files=found)

    @router.get("/{archive_id}/files/{name:path}", summary="Take one file of a run")
    def file(person: reader, archive_id: ArchiveId, name: str) -> Response:
        """Return a file: Parquet, JSON, or the report."""
        opened, size = desk.open_file(archive_id, name)
        ending = name[name.rindex(".") :]
        headers = {"Content-Length": str(size)}
        if ending == ".html":
            headers["Content-Security-Policy"] = REPORT_POLICY
        else:
            plain = name.replace("/", "-")
            headers["Content-Disposition"] = f'attachment; filename="{plain}"'
        return StreamingResponse(_pieces(opened), media_type=_MEDIA[ending], headers=headers)

    return router


def _asked(body: bytes) -> ArchiveAsked:
    """Read a JSON body.

    Raises:
        ApiError: 422 ``invalid``.
    """
    try:
        return ArchiveAsked.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(str(part) for part in ("body", *first["loc"]))
        raise ApiError(422, "invalid", f"{place}: {first['msg']}.") from error


def _accepted(view: ArchiveView) -> Response:
    return JSONResponse(
        view.model_dump(mode="json"), 202, headers={"Location": f"/v1/archives/{view.id}"}
    )


async def _events(
    desk: ArchiveDesk, view: ArchiveView, watchers: asyncio.Semaphore
) -> AsyncIterator[str]:
    loop = asyncio.get_running_loop()
    async with watchers:
        told, told_at, ends_at = "", loop.time(), loop.time() + WATCHED_S
        while True:
            data = json.dumps(view.model_dump(mode="json"))
            if data != told:
                told, told_at = data, loop.time()
                yield f"event: progress\ndata: {data}\n\n"
            elif loop.time() - told_at >= ALIVE_EVERY_S:
                told_at = loop.time()
                yield ": alive\n\n"
            if view.status not in OPEN:
                yield f"event: end\ndata: {data}\n\n"
                return
            if loop.time() > ends_at:
                return
            await asyncio.sleep(EVENT_EVERY_S)
            view = await run_in_threadpool(desk.view, view.id)


def _pieces(file: IO[bytes]) -> Iterator[bytes]:
    with file:
        while piece := file.read(PIECE):
            yield piece
