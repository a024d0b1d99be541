"""Bytes at URIs, on disks and on S3: list, read, read a range, write atomically, with retries.

Knows nothing of images, archives or runs. A URI is an absolute path or ``s3://bucket/key``. Errors
are the ``StorageError`` branch of ``bloodcells.errors``. Timeouts, throttling, server errors and
lost connections are tried again for about three minutes and then raise ``UnavailableError``;
refused access raises ``AccessDeniedError`` at once. Safe in threads and in forked processes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO
from urllib.parse import unquote

from bloodcells.errors import ConfigurationError, NotFoundError
from bloodcells.storage import local, s3
from bloodcells.storage.entry import Backend, Entry
from bloodcells.storage.local import TEMPORARY_PREFIX
from bloodcells.storage.traffic import TRAFFIC, Traffic

__all__ = [
    "TEMPORARY_PREFIX",
    "Entry",
    "Traffic",
    "abort_uploads",
    "bytes_read",
    "delete",
    "exists",
    "join",
    "listdir",
    "lists_from_anywhere",
    "name_of",
    "next_name",
    "normalise",
    "open_read",
    "put",
    "put_file",
    "put_if_absent",
    "read",
    "read_range",
    "stat",
    "take_traffic",
    "walk",
]


def normalise(uri: str) -> str:
    """Return the one spelling of a URI: an absolute real path, or ``s3://bucket/key``.

    Raises:
        ConfigurationError: it is empty, names no bucket, or has an unknown scheme.
    """
    if uri.startswith("s3://"):
        if not uri.removeprefix("s3://").strip("/"):
            raise ConfigurationError(f"{uri} names no bucket; write s3://BUCKET/KEY.")
        return uri.rstrip("/")
    if uri.startswith("file://"):
        uri = unquote(uri.removeprefix("file://"))
    elif scheme := re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", uri):
        raise ConfigurationError(
            f"{uri}: storage of kind {scheme[0]} is not supported; use a local path or s3://."
        )
    if not uri:
        raise ConfigurationError("An empty path was given; name a file, a folder or s3://….")
    return os.path.realpath(uri)


def join(uri: str, *parts: str) -> str:
    """Return the URI of something below ``uri``."""
    return "/".join([uri.rstrip("/"), *(part.strip("/") for part in parts)])


def name_of(uri: str) -> str:
    """Return the last component of a URI."""
    return uri.rstrip("/").rsplit("/", 1)[-1]


def stat(uri: str) -> Entry:
    """Describe the file or folder at ``uri``; a link is followed.

    Raises:
        NotFoundError: nothing is there.
    """
    return _backend(uri).stat(uri)


def exists(uri: str) -> bool:
    """Return whether a file or folder is at ``uri``."""
    try:
        stat(uri)
    except NotFoundError:
        return False
    return True


def listdir(uri: str, *, ordered: bool = True) -> Iterator[Entry]:
    """List one level of a folder, sorted as S3 sorts keys (UTF-8, a folder ending in a slash).

    Args:
        uri: the folder.
        ordered: whether order matters. A disk's folder is sorted in memory; without order it
            streams, however many files are in it.

    Raises:
        NotFoundError: there is no such folder (S3 knows no empty ones).
    """
    return _backend(uri).listdir(uri, ordered)


def walk(uri: str, *, after: str = "", upto: str = "") -> Iterator[Entry]:
    """List all files below a folder, sorted likewise, streaming.

    Links are listed (``is_link``), never followed, so a loop of links does no harm.

    Args:
        uri: the folder.
        after: list only what has a greater name (its path below the folder) than this.
        upto: list only what has this or a lesser name; empty for all.

    Raises:
        NotFoundError: there is no such folder (S3 knows no empty ones).
        StorageError: a part is asked for of an S3 look-alike that lists keys in no order.
    """
    return _backend(uri).walk(uri, after, upto)


def lists_from_anywhere(uri: str) -> bool:
    """Return whether a listing below ``uri`` can begin amid the names, as S3's can.

    Not in its directory buckets, which list keys in no order.
    """
    return uri.startswith("s3://") and not uri.split("/")[2].endswith("--x-s3")


def next_name(uri: str, after: str) -> str | None:
    """Return the least name below a folder on S3 that is greater than ``after``, if there is one.

    One small request. A look-alike that does not know ``StartAfter`` may answer a lesser one.
    """
    return s3.next_name(uri, after)


def read(uri: str) -> bytes:
    """Read a whole file."""
    return _backend(uri).read_range(uri, 0, None)


def read_range(uri: str, offset: int, length: int) -> bytes:
    """Read ``length`` bytes from byte ``offset`` on, fewer where the file ends before."""
    return _backend(uri).read_range(uri, offset, length)


def open_read(uri: str) -> AbstractContextManager[IO[bytes]]:
    """Open a file for reading: seekable, buffered, and on S3 with a read-ahead that adapts."""
    return _backend(uri).open_read(uri)


def put(uri: str, data: bytes) -> None:
    """Write a whole file atomically: a reader sees the old one, or the new one, never a part.

    Folders above it are created. On disk the bytes have reached it when this returns.

    Raises:
        StorageFullError: there is no space left.
    """
    _backend(uri).put(uri, data)


def put_file(uri: str, path: Path) -> None:
    """Move a finished local file to ``uri``, atomically; the file is gone afterwards.

    On disk it should lie below the same mount, or it is copied. On S3 it is sent in parts.

    Raises:
        StorageFullError: there is no space left.
    """
    _backend(uri).put_file(uri, path)


def put_if_absent(uri: str, data: bytes) -> bool:
    """Create a file with ``data`` unless one is there; return whether this call did.

    Of several that try at once, one succeeds. An S3 look-alike that ignores ``If-None-Match``
    leaves a race of milliseconds, so ``data`` should name its writer, and be read back later.
    """
    return _backend(uri).put_if_absent(uri, data)


def delete(uri: str, recursive: bool = False) -> None:
    """Remove a file, or with ``recursive`` a folder and all below it; absence is no error."""
    _backend(uri).delete(uri, recursive)


def abort_uploads(uri: str) -> None:
    """Take away what S3 still holds of files below ``uri`` that were never sent to their end.

    Nobody else may be sending any. On a disk there are none; temporary files are listed there.
    """
    _backend(uri).abort_uploads(uri)


def bytes_read() -> int:
    """Return how many bytes of file content this process has read so far."""
    return TRAFFIC.bytes_read


def take_traffic() -> Traffic:
    """Return what this process has asked of storage since this was called last, by anyone."""
    return TRAFFIC.take()


def _backend(uri: str) -> Backend:
    return s3 if uri.startswith("s3://") else local
