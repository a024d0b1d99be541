"""Uploaded archives: taken in piece by piece within bounds, looked at, and put in their place.

An upload lies in ``ROOT/uploads/<id>/NAME``, whole or not at all, and is never unpacked: images are
read from it as from any archive. Its name is kept because it is the slide's.
"""

from __future__ import annotations

import asyncio
import os
import re
import tempfile
import threading
import time
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO, Final

from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request

from bloodcells import storage
from bloodcells.errors import NotFoundError
from serve.archive_records import ArchiveRecords
from serve.errors import ApiError
from serve.settings import Limits

TYPES: Final = {
    "application/x-tar": ".tar",
    "application/tar": ".tar",
    "application/gzip": ".tar.gz",
    "application/x-gzip": ".tar.gz",
    "application/zip": ".zip",
    "application/x-zip-compressed": ".zip",
}
"""Media types of uploads, and how a file of each ends."""

FOLDER: Final = "uploads"
PIECE: Final = 2**20
"""Bytes that are gathered before a thread writes them."""

ORPHANED_S: Final = 24 * 3600.0
"""An upload that belongs to no run after a day never will."""

TAR_BLOCK: Final = 512
LONGEST_NAME: Final = 100

_ENDINGS: Final = re.compile(r"(\.tar\.gz|\.tgz|\.tar|\.zip)+$", re.IGNORECASE)
_UNSAFE: Final = re.compile(r"[^\w. -]+")


class Uploads:
    """Takes uploads in, some at a time.

    Args:
        root_uri: the root.
        limits: how much, how slow, how many.
    """

    def __init__(self, root_uri: str, limits: Limits) -> None:
        self._root_uri = root_uri
        self._limits = limits
        self._places = threading.Semaphore(limits.uploads_at_once)

    async def receive(self, request: Request, *, archive_id: str, name: str) -> str:
        """Take the body of a request in; returns the URI at which it lies then.

        Args:
            request: its body is the archive, its ``Content-Type`` says of which kind.
            archive_id: the run that it is for.
            name: what the client calls it, such as ``slide-17.tar``.

        Raises:
            ApiError: 408 ``body_too_slow``, 413 ``body_too_large``, 415 ``not_an_archive``, 503
                ``too_many_uploads``, or 400 ``body_cut_short``.
        """
        ending = ending_of(request)
        stated = request.headers.get("content-length", "")
        if stated.isdecimal() and int(stated) > self._limits.upload_bytes:
            raise self._too_large()
        async with self._place(), self._temporary() as (file, path):
            await self._fill(request, file)
            await run_in_threadpool(_require_kind, path, ending)
            uri = storage.join(self._root_uri, FOLDER, archive_id, f"{slide_name(name)}{ending}")
            await run_in_threadpool(storage.put_file, uri, path)
            return uri

    async def discard(self, request: Request) -> None:
        """Read a body that is not needed, so that its sender gets to read the answer."""
        async with self._place():
            await self._fill(request, None)

    async def _fill(self, request: Request, file: IO[bytes] | None) -> None:
        """Write a body to a file, in pieces."""
        num_bytes, gathered = 0, bytearray()
        try:
            async with asyncio.timeout(self._limits.upload_seconds):
                pieces = aiter(request.stream())
                while True:
                    try:
                        async with asyncio.timeout(self._limits.body_seconds):
                            piece = await anext(pieces)
                    except StopAsyncIteration:
                        break
                    num_bytes += len(piece)
                    if num_bytes > self._limits.upload_bytes:
                        raise self._too_large()
                    gathered += piece
                    if file is not None and len(gathered) >= PIECE:
                        await run_in_threadpool(file.write, gathered)
                    if len(gathered) >= PIECE:
                        gathered = bytearray()
        except TimeoutError as error:
            raise ApiError(
                408,
                "body_too_slow",
                f"The upload has {self._limits.upload_seconds:g} s in all, and "
                f"{self._limits.body_seconds:g} s for each piece; send it over a faster line, or "
                "name a store instead.",
                headers={"Connection": "close"},
            ) from error
        except ClientDisconnect as error:
            raise ApiError(400, "body_cut_short", "The body ended early; send it again.") from error
        if file is not None:
            await run_in_threadpool(file.write, gathered)
            await run_in_threadpool(file.flush)

    @asynccontextmanager
    async def _place(self) -> AsyncIterator[None]:
        if not self._places.acquire(blocking=False):
            raise ApiError(
                503,
                "too_many_uploads",
                f"{self._limits.uploads_at_once} uploads are on their way; send it later.",
                headers={"Retry-After": "30"},
            )
        try:
            yield
        finally:
            self._places.release()

    @asynccontextmanager
    async def _temporary(self) -> AsyncIterator[tuple[IO[bytes], Path]]:
        """Make a file to fill: on the root's own disk where it is one, so that it is only moved."""
        folder = None
        if not self._root_uri.startswith("s3://"):
            folder = storage.join(self._root_uri, FOLDER)
            await run_in_threadpool(Path(folder).mkdir, parents=True, exist_ok=True)
        descriptor, name = await run_in_threadpool(
            tempfile.mkstemp, dir=folder, prefix=storage.TEMPORARY_PREFIX
        )
        path = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as file:
                yield file, path
        finally:
            path.unlink(missing_ok=True)

    def _too_large(self) -> ApiError:
        return ApiError(
            413,
            "body_too_large",
            f"An upload may have {self._limits.upload_bytes:,} bytes; name a store instead.",
            headers={"Connection": "close"},
        )


def ending_of(request: Request) -> str:
    """Return how the file of a request's media type ends.

    Raises:
        ApiError: 415 ``unsupported_type``.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type not in TYPES:
        raise ApiError(
            415,
            "unsupported_type",
            "Send application/json that names a store, or an archive as application/x-tar, "
            "application/gzip (a tar.gz) or application/zip.",
        )
    return TYPES[media_type]


def slide_name(name: str) -> str:
    """Return what an upload's file is called, without its ending: a plain name, no path."""
    last = _ENDINGS.sub("", name.replace("\\", "/").rpartition("/")[2])
    plain = _UNSAFE.sub("_", last).strip(". ")[:LONGEST_NAME].strip(". ")
    return plain or "upload"


def sweep_uploads(records: ArchiveRecords, upload_seconds: float) -> None:
    """Take away what uploads left that were cut off, and uploads that became no run.

    Raises:
        StorageError: the root cannot be read or written.
    """
    known = {request.id for request in records.requests()}
    try:
        entries = list(storage.listdir(storage.join(records.root_uri, FOLDER)))
    except NotFoundError:
        return
    for entry in entries:
        if entry.is_folder and entry.name not in known:
            files = list(storage.listdir(entry.uri))
            if all(_age(file) > ORPHANED_S for file in files):
                storage.delete(entry.uri, recursive=True)
        elif entry.name.startswith(storage.TEMPORARY_PREFIX) and _age(entry) > 2 * upload_seconds:
            storage.delete(entry.uri)


def _age(entry: storage.Entry) -> float:
    """Return how old a file on a disk is, in seconds; S3 does not tell in a listing: 0."""
    return time.time() - int(entry.tag) / 1e9 if entry.tag.isdecimal() else 0.0


def _require_kind(path: Path, ending: str) -> None:
    """Look at a file's first bytes.

    Raises:
        ApiError: 415 ``not_an_archive``.
    """
    with path.open("rb") as file:
        head = file.read(64 * 1024)
    if ending == ".tar.gz":
        head = _unzipped(head)
    is_zip = head.startswith((b"PK\x03\x04", b"PK\x05\x06"))
    is_right = is_zip if ending == ".zip" else _is_tar(head)
    if not is_right:
        raise ApiError(
            415,
            "not_an_archive",
            f"The body is no {ending.removeprefix('.')} archive; check the file and Content-Type.",
        )


def _unzipped(head: bytes) -> bytes:
    """Return the first block of what is compressed; empty if it is no gzip."""
    try:
        return zlib.decompressobj(wbits=zlib.MAX_WBITS | 16).decompress(head, TAR_BLOCK)
    except zlib.error:
        return b""


def _is_tar(head: bytes) -> bool:
    """Whether 512 bytes are a tar header: its checksum, in octal, is of all other bytes."""
    block = head[:TAR_BLOCK]
    if len(block) < TAR_BLOCK:
        return False
    try:
        stated = int(block[148:156].strip(b" \0"), 8)
    except ValueError:
        return False
    return stated == sum(block[:148]) + 8 * ord(" ") + sum(block[156:])
