"""What a listing yields, and the seam between the public verbs and each kind of storage.

Knows nothing of disks, S3 or images.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One file or folder as a listing shows it.

    Attributes:
        uri: normalised URI.
        name: last component of the URI.
        size: bytes; 0 for a folder.
        tag: changes when the file's content does: the ETag on S3, ``mtime_ns`` on disk; empty for
            a folder.
        is_folder: whether other entries lie below it.
        is_link: whether it is a symbolic link (which no listing follows).
    """

    uri: str
    name: str
    size: int
    tag: str
    is_folder: bool
    is_link: bool = False


class Backend(Protocol):
    """What a kind of storage can do; every URI is normalised, every error a ``StorageError``.

    The modules ``local`` and ``s3`` are the implementations.
    """

    def stat(self, uri: str) -> Entry:
        """Describe the file or folder at ``uri``."""

    def listdir(self, uri: str, ordered: bool) -> Iterator[Entry]:
        """List one level, in order or as it comes."""

    def walk(self, uri: str, after: str, upto: str) -> Iterator[Entry]:
        """List all files below, of which the names are after one and up to another."""

    def read_range(self, uri: str, offset: int, length: int | None) -> bytes:
        """Read bytes; to the end where ``length`` is ``None``."""

    def open_read(self, uri: str) -> IO[bytes]:
        """Open for reading."""

    def put(self, uri: str, data: bytes) -> None:
        """Write a whole file atomically."""

    def put_file(self, uri: str, path: Path) -> None:
        """Move a local file there atomically."""

    def put_if_absent(self, uri: str, data: bytes) -> bool:
        """Create a file unless it is there."""

    def delete(self, uri: str, recursive: bool) -> None:
        """Remove what is there, if anything."""

    def abort_uploads(self, uri: str) -> None:
        """Take away what was sent of files below that were never finished."""
