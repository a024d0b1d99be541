"""Objects on S3 and its look-alikes. Knows nothing of requests' failures or of what bytes mean."""

from __future__ import annotations

import contextlib
import io
import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from bloodcells.errors import NotFoundError, StorageError, UnavailableError
from bloodcells.storage import s3_client
from bloodcells.storage.entry import Entry
from bloodcells.storage.s3_client import PreconditionError, UnsupportedError, request, split

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

PART_BYTES = 32 * 1024 * 1024
"""A part of a large object; 10,000 of them are the most, so 312 GiB."""

_PARALLEL_DELETES = 16
_SMALLEST_BLOCK = 64 * 1024
_LARGEST_BLOCK = 8 * 1024 * 1024


def stat(uri: str) -> Entry:
    """Describe an object, or the folder that keys below ``uri`` make."""
    bucket, key = split(uri)
    if key and (entry := _object(uri)):
        return entry
    page = request(uri, "list_objects_v2", Bucket=bucket, Prefix=_prefix(key), MaxKeys=1)
    if key and not page.get("Contents"):
        raise NotFoundError(f"{uri} does not exist; check the bucket and key.")
    return _folder(uri)


def listdir(uri: str, ordered: bool = True) -> Iterator[Entry]:
    """List one level below ``uri``, in key order (a folder's key ends in a slash), which S3 has."""
    del ordered
    yield from _list(uri, delimiter="/")


def walk(uri: str, after: str = "", upto: str = "") -> Iterator[Entry]:
    """List all objects below ``uri``, in key order, a page in memory at a time."""
    if not after and not upto:
        yield from _list(uri, delimiter="")
        return
    start = len(uri) + 1
    for entry in _list(uri, delimiter="", after=after, is_part=True):
        if upto and entry.uri[start:] > upto:
            return
        yield entry


def next_name(uri: str, after: str) -> str | None:
    """Return the name of the first object below ``uri`` whose name is greater than ``after``."""
    bucket, key = split(uri)
    prefix = _prefix(key)
    page = request(
        uri,
        "list_objects_v2",
        **{"Bucket": bucket, "Prefix": prefix, "StartAfter": prefix + after, "MaxKeys": 1},
    )
    found = page.get("Contents")
    return str(found[0]["Key"])[len(prefix) :] if found else None


def read_range(uri: str, offset: int, length: int | None) -> bytes:
    """Read ``length`` bytes from ``offset`` on, fewer where the object ends before."""
    return s3_client.read(uri, offset, length)[0]


def open_read(uri: str) -> IO[bytes]:
    """Open an object for reading; seekable; see :class:`_RangeReader` for its requests."""
    entry = stat(uri)
    if entry.is_folder:
        raise StorageError(f"{uri} is a folder where a file is needed.")
    return io.BufferedReader(_RangeReader(entry))


def put(uri: str, data: bytes) -> None:
    """Write a whole object with one request: it is there as a whole or not at all."""
    bucket, key = split(uri)
    request(uri, "put_object", Bucket=bucket, Key=key, Body=data)


def put_file(uri: str, path: Path) -> None:
    """Send a file in parts; the object is there once the last request has joined them."""
    bucket, key = split(uri)
    if path.stat().st_size <= PART_BYTES:
        put(uri, path.read_bytes())
    else:
        where = {"Bucket": bucket, "Key": key}
        upload = {**where, "UploadId": request(uri, "create_multipart_upload", **where)["UploadId"]}
        try:
            parts = []
            with path.open("rb") as file:
                for number in itertools.count(1):
                    if not (data := file.read(PART_BYTES)):
                        break
                    answer = request(uri, "upload_part", **upload, PartNumber=number, Body=data)
                    parts.append({"PartNumber": number, "ETag": answer["ETag"]})
            joined = {"Parts": parts}
            request(uri, "complete_multipart_upload", **upload, MultipartUpload=joined)
        except StorageError:
            with contextlib.suppress(StorageError):
                request(uri, "abort_multipart_upload", **upload)
            raise
    path.unlink(missing_ok=True)


def put_if_absent(uri: str, data: bytes) -> bool:
    """Create an object unless it exists; return whether ``data`` is what is there now.

    The server decides by ``If-None-Match``. One that ignores or lacks it is asked before and after
    instead, which leaves a race of milliseconds between two writers.
    """
    if _object(uri):
        return False
    bucket, key = split(uri)
    try:
        request(uri, "put_object", Bucket=bucket, Key=key, Body=data, IfNoneMatch="*")
    except PreconditionError:
        pass  # maybe by our own first try, whose answer was lost: what is there decides
    except UnsupportedError:
        put(uri, data)
    return read_range(uri, 0, None) == data


def delete(uri: str, recursive: bool) -> None:
    """Remove an object, and with ``recursive`` all below it; nothing there is no error."""
    bucket, key = split(uri)
    if key and _object(uri):
        request(uri, "delete_object", Bucket=bucket, Key=key)
    if recursive:
        # One request an object: the API's bulk request is XML, which cannot carry every key.
        with ThreadPoolExecutor(_PARALLEL_DELETES) as pool:
            for page in _pages(uri, delimiter=""):
                keys = [item["Key"] for item in page.get("Contents", ())]
                list(pool.map(lambda k: request(uri, "delete_object", Bucket=bucket, Key=k), keys))


def abort_uploads(uri: str) -> None:
    """Abort the uploads in parts below ``uri``: they are stored, and paid for, until then."""
    bucket, key = split(uri)
    params = {"Bucket": bucket, "Prefix": _prefix(key)}
    while True:
        page = request(uri, "list_multipart_uploads", **params)
        for upload in page.get("Uploads", ()):
            # A server that knows no prefix here tells of other folders' uploads as well.
            if upload["Key"].startswith(_prefix(key)):
                with contextlib.suppress(NotFoundError):
                    which = {"Key": upload["Key"], "UploadId": upload["UploadId"]}
                    request(uri, "abort_multipart_upload", Bucket=bucket, **which)
        if not page.get("IsTruncated"):
            return
        params["KeyMarker"] = page["NextKeyMarker"]
        params["UploadIdMarker"] = page["NextUploadIdMarker"]


class _RangeReader(io.RawIOBase):
    """An object as a seekable file that reads ahead while its reader goes forward in small steps.

    A request costs tens of milliseconds, in which one connection brings some megabytes. So a reader
    that skips 15 kB from header to header gets ever larger blocks and pays for few requests; one
    that leaps over more than the last block gets small ones and does not pay for what it skips.
    """

    def __init__(self, entry: Entry) -> None:
        self._entry = entry
        self._position = 0
        self._block = b""
        self._block_start = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._entry.size}
        self._position = max(0, start[whence] + offset)
        return self._position

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        if not 0 <= self._position - self._block_start < len(self._block):
            self._fetch(len(view))
        start = self._position - self._block_start
        data = self._block[start : start + len(view)]
        view[: len(data)] = data
        self._position += len(data)
        return len(data)

    def _fetch(self, wanted: int) -> None:
        leap = self._position - self._block_start
        ahead = 2 * len(self._block) if 0 <= leap <= 2 * len(self._block) else 0
        ahead = min(max(ahead, _SMALLEST_BLOCK), _LARGEST_BLOCK)
        length = min(max(wanted, ahead), self._entry.size - self._position)
        self._block, self._block_start = b"", self._position
        if length <= 0:
            return
        self._block, tag = s3_client.read(self._entry.uri, self._position, length)
        if tag != self._entry.tag:
            raise UnavailableError(
                f"{self._entry.uri} was replaced while it was being read; start the command again "
                "when nothing writes to it."
            )


def _prefix(key: str) -> str:
    return f"{key}/" if key else ""


def _entry(uri: str, size: int, etag: str) -> Entry:
    return Entry(
        uri=uri, name=uri.rsplit("/", 1)[-1], size=size, tag=etag.strip('"'), is_folder=False
    )


def _object(uri: str) -> Entry | None:
    bucket, key = split(uri)
    try:
        found = request(uri, "head_object", Bucket=bucket, Key=key)
    except NotFoundError:
        return None
    return _entry(uri, found["ContentLength"], found.get("ETag", ""))


def _folder(uri: str) -> Entry:
    return Entry(uri=uri, name=uri.rsplit("/", 1)[-1], size=0, tag="", is_folder=True)


def _list(uri: str, delimiter: str, after: str = "", *, is_part: bool = False) -> Iterator[Entry]:
    bucket, key = split(uri)
    found = not key or is_part  # what a part held may be gone since
    last = _prefix(key) + after if after else ""
    for page in _pages(uri, delimiter, after):
        if is_part:
            last = _require_order(uri, last, page)
        entries = {
            item["Key"]: _entry(f"s3://{bucket}/{item['Key']}", item["Size"], item.get("ETag", ""))
            for item in page.get("Contents", ())
        }
        entries |= {
            item["Prefix"]: _folder(f"s3://{bucket}/{item['Prefix'].rstrip('/')}")
            for item in page.get("CommonPrefixes", ())
        }
        found = found or bool(entries)
        for name in sorted(entries, key=str.encode):
            # A key that ends in a slash is a marker by which browsers show an empty folder.
            if entries[name].is_folder or not name.endswith("/"):
                yield entries[name]
    if not found:
        raise NotFoundError(f"{uri} does not exist; check the bucket and key.")


def _require_order(uri: str, last: str, page: dict[str, Any]) -> str:
    """Make sure that keys come in order, as all but S3's directory buckets give them."""
    for item in page.get("Contents", ()):
        if item["Key"] <= last:
            raise StorageError(
                f"{uri} is listed out of order by its server ({item['Key']} after {last}), so that "
                "several tasks cannot share the listing; name smaller folders as stores, or pack "
                "the images into archives"
            )
        last = item["Key"]
    return last


def _pages(uri: str, delimiter: str, after: str = "") -> Iterator[dict[str, Any]]:
    bucket, key = split(uri)
    params = {"Bucket": bucket, "Prefix": _prefix(key)}
    if after:
        params["StartAfter"] = _prefix(key) + after
    if delimiter:
        params["Delimiter"] = delimiter
    while True:
        page = request(uri, "list_objects_v2", **params)
        yield page
        if not page.get("IsTruncated"):
            return
        params["ContinuationToken"] = page["NextContinuationToken"]
