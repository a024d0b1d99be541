"""Files on this machine's disks and mounts. Knows nothing of S3 or of what the bytes mean."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

from bloodcells.errors import (
    AccessDeniedError,
    NotFoundError,
    StorageError,
    StorageFullError,
    UnavailableError,
)
from bloodcells.storage.entry import Entry
from bloodcells.storage.retry import retrying
from bloodcells.storage.traffic import TRAFFIC

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_FULL = {errno.ENOSPC, errno.EDQUOT}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}
_MISSING = {errno.ENOENT, errno.ENOTDIR}
# What network mounts answer while their server is away.
_TRANSIENT = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.ECONNRESET}
_NO_HARD_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS}

TEMPORARY_PREFIX = ".tmp-"
"""What unfinished files are called; a killed process may leave one behind."""


def stat(uri: str) -> Entry:
    """Describe the file or folder at a path."""
    with _translated(uri):
        found = Path(_path(uri)).stat()
    is_folder = Path(_path(uri)).is_dir()
    return _entry(uri, found, is_folder=is_folder, is_link=False)


def listdir(uri: str, ordered: bool = True) -> Iterator[Entry]:
    """List one level of a folder, in S3's order (see :func:`_scan`) or as it comes."""
    for entry in _scan(uri) if ordered else _stream(uri):
        found = f"{uri.rstrip('/')}/{_text(entry.name)}"
        try:
            with _translated(found):
                is_folder = entry.is_dir(follow_symlinks=False)
                is_link = entry.is_symlink()
                is_listed = is_folder or is_link or entry.is_file(follow_symlinks=False)
                facts = entry.stat(follow_symlinks=False)
        except NotFoundError:
            continue  # deleted since it was listed
        if is_listed:
            yield _entry(found, facts, is_folder=is_folder, is_link=is_link)


def walk(uri: str, after: str = "", upto: str = "") -> Iterator[Entry]:
    """List all files below a folder, in S3's order, one folder in memory at a time."""
    start = len(uri.rstrip("/")) + 1
    for entry in _walk(uri):
        name = entry.uri[start:]
        if upto and name > upto:
            return
        if name > after:
            yield entry


def _walk(uri: str) -> Iterator[Entry]:
    for entry in listdir(uri):
        if entry.is_folder:
            yield from _walk(entry.uri)
        else:
            yield entry


@retrying
def read_range(uri: str, offset: int, length: int | None) -> bytes:
    """Read ``length`` bytes from ``offset`` on, fewer where the file ends before."""
    with _translated(uri), Path(_path(uri)).open("rb", buffering=0) as file:
        file.seek(offset)
        if length is None:
            data = file.readall()
        else:
            # A size that somebody's archive claims must not be allocated before it is there.
            length = max(0, min(length, os.fstat(file.fileno()).st_size - offset))
            parts = []
            while length and (part := file.read(length)):
                parts.append(part)
                length -= len(part)
            data = parts[0] if len(parts) == 1 else b"".join(parts)
    TRAFFIC.add_bytes(len(data))
    return data


def open_read(uri: str) -> IO[bytes]:
    """Open a file for reading; seekable. The system reads ahead."""
    with _translated(uri):
        return io.BufferedReader(_CountedFile(_path(uri)))


@retrying
def put(uri: str, data: bytes) -> None:
    """Write a whole file atomically: temporary file, fsync, rename, fsync of the folder."""
    with _translated(uri), _temporary(uri, data) as temporary:
        temporary.replace(_path(uri))
        _sync_folder(temporary.parent)


@retrying
def put_file(uri: str, path: Path) -> None:
    """Move a file there atomically; from another mount it is copied beside its place first."""
    target = Path(_path(uri))
    with _translated(uri):
        target.parent.mkdir(parents=True, exist_ok=True)
        with path.open("rb") as file:
            os.fsync(file.fileno())
        try:
            path.replace(target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            _copy_in(path, target)
        _sync_folder(target.parent)


def _copy_in(path: Path, target: Path) -> None:
    temporary = target.parent / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}"
    try:
        shutil.copyfile(path, temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    path.unlink(missing_ok=True)


@retrying
def put_if_absent(uri: str, data: bytes) -> bool:
    """Create a file atomically; return whether this call created it."""
    with _translated(uri), _temporary(uri, data) as temporary:
        path = Path(_path(uri))
        try:
            path.hardlink_to(temporary)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS:
                raise
            # A mount without hard links: creation is still exclusive, though a reader may for a
            # moment see the file empty.
            try:
                with path.open("xb") as file:
                    file.write(data)
                    os.fsync(file.fileno())
            except FileExistsError:
                return False
        _sync_folder(path.parent)
        return True


@retrying
def delete(uri: str, recursive: bool) -> None:
    """Remove a file, or a folder with all that is in it; nothing there is no error."""
    path = Path(_path(uri))
    with _translated(uri), contextlib.suppress(FileNotFoundError):
        if path.is_dir() and not path.is_symlink():
            if not recursive:
                raise StorageError(f"{uri} is a folder; delete it with recursive=True.")
            _remove_tree(path)
        else:
            path.unlink()


def abort_uploads(uri: str) -> None:
    """Do nothing: what is unfinished on a disk is a file, and is listed as one."""
    del uri


def _remove_tree(path: Path) -> None:
    """Remove a folder that others may write into and delete from meanwhile."""
    while path.exists():
        # Ends early where a file vanishes while it looks; then there is more to remove.
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(path)


class _CountedFile(io.FileIO):
    """A file whose reads are counted, and whose errors are ours: an outage is not data."""

    def readinto(self, buffer: WriteableBuffer) -> int:
        with _translated(str(self.name)):
            count = super().readinto(buffer) or 0
        TRAFFIC.add_bytes(count)
        return count

    def readall(self) -> bytes:
        with _translated(str(self.name)):
            data = super().readall() or b""
        TRAFFIC.add_bytes(len(data))
        return data


@retrying
def _scan(uri: str) -> list[os.DirEntry[str]]:
    """List a folder in the order in which S3 lists keys, so that a copied tree plans alike."""
    with _translated(uri), os.scandir(_path(uri)) as entries:
        return sorted(
            entries,
            key=lambda e: os.fsencode(e.name) + b"/" * e.is_dir(follow_symlinks=False),
        )


def _stream(uri: str) -> Iterator[os.DirEntry[str]]:
    """List a folder in the system's own order, an entry in memory at a time."""
    with _translated(uri), os.scandir(_path(uri)) as entries:
        yield from entries


def _entry(uri: str, found: os.stat_result, *, is_folder: bool, is_link: bool) -> Entry:
    return Entry(
        uri=uri,
        name=uri.rsplit("/", 1)[-1],
        size=0 if is_folder else found.st_size,
        tag="" if is_folder else str(found.st_mtime_ns),
        is_folder=is_folder,
        is_link=is_link,
    )


def _text(name: str) -> str:
    r"""Show a name that is not UTF-8 with ``\xNN`` for its stray bytes: URIs are proper text."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _path(uri: str) -> str:
    """Undo :func:`_text`, where there is no file whose name has a real backslash there."""
    if "\\x" not in uri or os.path.lexists(uri):
        return uri
    raw = re.sub(
        rb"\\x([89a-f][0-9a-f])", lambda match: bytes.fromhex(match[1].decode()), uri.encode()
    )
    return os.fsdecode(raw)


@contextlib.contextmanager
def _temporary(uri: str, data: bytes) -> Iterator[Path]:
    """Write ``data`` beside its destination, on disk for good, and clean up afterwards."""
    folder = Path(_path(uri)).parent
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}"
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut, where the file system lets a folder be synced."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _translated(uri: str) -> Iterator[None]:
    """Turn the system's errors into ours."""
    try:
        yield
    except OSError as error:
        raise _translate(error, uri) from error


def _translate(error: OSError, uri: str) -> StorageError:
    code, reason = error.errno, error.strerror or str(error)
    if code in _MISSING:
        return NotFoundError(f"{uri} does not exist; check the path.")
    if code in _DENIED:
        return AccessDeniedError(f"{uri} cannot be accessed ({reason}); check its permissions.")
    if code in _FULL:
        return StorageFullError(
            f"{uri} cannot be written ({reason}); free space there or choose another folder, "
            "then start the command again: finished work is kept."
        )
    if code in _TRANSIENT:
        return UnavailableError(f"{uri} does not answer ({reason}).")
    if code == errno.EISDIR:
        return StorageError(f"{uri} is a folder where a file is needed.")
    return StorageError(f"{uri} cannot be used: {reason}.")
