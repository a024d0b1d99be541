"""Request bodies, read within bounds: bytes, seconds, number of parts. Nothing touches a disk.

Knows nothing of images.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from email.message import Message
from typing import ClassVar, Final

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from serve.errors import ApiError

PIECE: Final = 2**18
"""Bytes of a multipart body that are parsed before other requests get their turn."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """A file of a multipart body: its name as the client gave it, and its bytes."""

    name: str
    data: bytes


async def read_body(request: Request, *, most_bytes: int, seconds: float) -> bytes:
    """Read a whole body.

    Raises:
        ApiError: 413 ``body_too_large``; 408 ``body_too_slow``; 400 where the client has gone.
    """
    stated = request.headers.get("content-length", "")
    if stated.isdecimal() and int(stated) > most_bytes:
        raise too_large(most_bytes)
    pieces: list[bytes] = []
    num_bytes = 0
    try:
        async with asyncio.timeout(seconds):
            async for piece in request.stream():
                num_bytes += len(piece)
                if num_bytes > most_bytes:
                    raise too_large(most_bytes)
                pieces.append(piece)
    except TimeoutError as error:
        raise too_slow(seconds) from error
    except ClientDisconnect as error:
        raise ApiError(400, "body_cut_short", "The body ended early; send it again.") from error
    return b"".join(pieces)


async def split_multipart(request: Request, body: bytes, *, most_parts: int) -> list[Part]:
    """Return the files of a ``multipart/form-data`` body, in order.

    Raises:
        ApiError: 400 ``bad_multipart``; 413 ``too_many_images``; 422 ``no_images``.
    """
    parser = _InMemory(
        request.headers, _in_pieces(body), max_files=most_parts + 1, max_fields=most_parts
    )
    try:
        _require_whole(request, body)
        form = await parser.parse()
    except (MultiPartException, ValueError, KeyError, LookupError) as error:
        if "Too many" in str(error):
            raise _too_many(most_parts) from error
        raise ApiError(
            400,
            "bad_multipart",
            "The body is no valid multipart/form-data; most HTTP clients write it for you from a "
            "list of files.",
        ) from error
    try:
        files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
        if len(files) > most_parts:
            raise _too_many(most_parts)
        if not files:
            raise ApiError(
                422, "no_images", "The body holds no file; send each image as a part with a name."
            )
        return [Part(name=file.filename or "", data=await file.read()) for file in files]
    finally:
        await form.close()


def too_large(most_bytes: int) -> ApiError:
    """Return the answer to a body of too many bytes."""
    return ApiError(
        413,
        "body_too_large",
        f"The body has more than {most_bytes:,} bytes; send less at a time.",
        headers={"Connection": "close"},
    )


def too_slow(seconds: float) -> ApiError:
    """Return the answer to a body that does not arrive."""
    return ApiError(
        408,
        "body_too_slow",
        f"The body did not arrive within {seconds:g} s; send less at a time.",
        headers={"Connection": "close"},
    )


def _too_many(most_parts: int) -> ApiError:
    return ApiError(
        413,
        "too_many_images",
        f"The body has more than {most_parts} files; send fewer at a time, or an archive to "
        "/v1/archives.",
    )


def _require_whole(request: Request, body: bytes) -> None:
    """Refuse a body without its closing line: the parser would leave out what is cut."""
    message = Message()
    message["content-type"] = request.headers.get("content-type", "")
    boundary = message.get_boundary()
    if not boundary or not body.rstrip(b"\r\n\t ").endswith(f"--{boundary}--".encode()):
        raise ValueError("no closing boundary")


class _InMemory(MultiPartParser):
    """Starlette's parser, but for its habit of putting large files on disk."""

    spool_max_size: ClassVar[int] = 2**62  # type: ignore[misc]


async def _in_pieces(body: bytes) -> AsyncGenerator[bytes, None]:
    view = memoryview(body)
    for start in range(0, len(body), PIECE):
        yield bytes(view[start : start + PIECE])
        await asyncio.sleep(0)
    yield b""
