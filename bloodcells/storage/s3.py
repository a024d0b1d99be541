"""Objects on S3 and its look-alikes, through s3fs. Knows nothing of what the bytes mean.

Endpoint, region and credentials come the way every S3 tool takes them (``AWS_ENDPOINT_URL``,
``AWS_ACCESS_KEY_ID``, ``AWS_PROFILE``, instance roles …). Requests are made through s3fs's own
event loop, but with keys passed verbatim (s3fs's path functions give ``?versionId=`` and trailing
slashes a meaning of their own) and without its and botocore's retries: one layer retries, ours.
"""

from __future__ import annotations

import asyncio
import functools
import io
import os
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import IncompleteRead
from typing import IO, TYPE_CHECKING, Any, TypeVar

import aiohttp
import botocore.exceptions
import botocore.parsers
import fsspec.asyn
import s3fs

from bloodcells.errors import (
    AccessDeniedError,
    NotFoundError,
    StorageError,
    StorageFullError,
    UnavailableError,
)
from bloodcells.storage.entry import READ_COUNTER, Entry
from bloodcells.storage.retry import retrying

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_R = TypeVar("_R")

_CONNECT_TIMEOUT_SECONDS = 10
_READ_TIMEOUT_SECONDS = 30  # between two pieces of an answer, not for the whole of it
_MAX_CONNECTIONS = 64
_PARALLEL_DELETES = 16
_SMALLEST_BLOCK = 64 * 1024
_LARGEST_BLOCK = 8 * 1024 * 1024

_DENIED_CODES = {
    "AccessDenied",
    "AuthorizationHeaderMalformed",
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidToken",
    "SignatureDoesNotMatch",
}
_TRANSIENT_CODES = {
    "BadDigest",  # the bytes were damaged on their way
    "ConditionalRequestConflict",
    "OperationAborted",
    "RequestTimeout",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "TooManyRequestsException",
    "XAmzContentSHA256Mismatch",
}
_FULL_CODES = {"InsufficientStorage", "XMinioStorageFull", "QuotaExceeded"}
_CREDENTIAL_ERRORS = (
    botocore.exceptions.NoCredentialsError,
    botocore.exceptions.PartialCredentialsError,
    botocore.exceptions.ProfileNotFound,
    botocore.exceptions.UnauthorizedSSOTokenError,
    botocore.exceptions.SSOTokenLoadError,
)
_TRANSIENT_ERRORS = (
    aiohttp.ClientError,
    botocore.exceptions.ConnectionError,
    botocore.exceptions.HTTPClientError,
    botocore.exceptions.CredentialRetrievalError,
    botocore.exceptions.MetadataRetrievalError,
    botocore.parsers.ResponseParserError,
    botocore.exceptions.FlexibleChecksumError,
    botocore.exceptions.ResponseStreamingError,
    IncompleteRead,
    ConnectionError,
    TimeoutError,
)


def stat(uri: str) -> Entry:
    """Describe an object, or the folder that keys below ``uri`` make."""
    bucket, key = _split(uri)
    if key and (entry := _object(uri)):
        return entry
    page = _request(uri, "list_objects_v2", Bucket=bucket, Prefix=_prefix(key), MaxKeys=1)
    if key and not page.get("Contents"):
        raise NotFoundError(f"{uri} does not exist; check the bucket and key.")
    return _folder(uri)


def listdir(uri: str) -> Iterator[Entry]:
    """List one level below ``uri``, in key order (a folder's key ends in a slash)."""
    yield from _list(uri, delimiter="/")


def walk(uri: str) -> Iterator[Entry]:
    """List all objects below ``uri``, in key order, a page in memory at a time."""
    yield from _list(uri, delimiter="")


def read_range(uri: str, offset: int, length: int | None) -> bytes:
    """Read ``length`` bytes from ``offset`` on, fewer where the object ends before."""
    return _get(uri, offset, length)[0]


def open_read(uri: str) -> IO[bytes]:
    """Open an object for reading; seekable; see :class:`_RangeReader` for its requests."""
    entry = stat(uri)
    if entry.is_folder:
        raise StorageError(f"{uri} is a folder where a file is needed.")
    return io.BufferedReader(_RangeReader(entry))


def put(uri: str, data: bytes) -> None:
    """Write a whole object with one request: it is there as a whole or not at all."""
    bucket, key = _split(uri)
    _request(uri, "put_object", Bucket=bucket, Key=key, Body=data)


def put_if_absent(uri: str, data: bytes) -> bool:
    """Create an object unless it exists; return whether ``data`` is what is there now.

    The server decides by ``If-None-Match``. One that ignores or lacks it is asked before and after
    instead, which leaves a race of milliseconds between two writers.
    """
    if _object(uri):
        return False
    bucket, key = _split(uri)
    try:
        _request(uri, "put_object", Bucket=bucket, Key=key, Body=data, IfNoneMatch="*")
    except _PreconditionError:
        pass  # maybe by our own first try, whose answer was lost: what is there decides
    except _NotImplementedError:
        put(uri, data)
    return read_range(uri, 0, None) == data


def delete(uri: str, recursive: bool) -> None:
    """Remove an object, and with ``recursive`` all below it; nothing there is no error."""
    bucket, key = _split(uri)
    if key and _object(uri):
        _request(uri, "delete_object", Bucket=bucket, Key=key)
    if recursive:
        # One request an object: the API's bulk request is XML, which cannot carry every key.
        with ThreadPoolExecutor(_PARALLEL_DELETES) as pool:
            for page in _pages(uri, delimiter=""):
                keys = [item["Key"] for item in page.get("Contents", ())]
                list(pool.map(lambda k: _request(uri, "delete_object", Bucket=bucket, Key=k), keys))


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
        self._block, tag = _get(self._entry.uri, self._position, length)
        if tag != self._entry.tag:
            raise UnavailableError(
                f"{self._entry.uri} was replaced while it was being read; start the command again "
                "when nothing writes to it."
            )


class _PreconditionError(StorageError):
    """A conditional request whose condition did not hold."""


class _NotImplementedError(StorageError):
    """The server does not know what it was asked for."""


class _RangeError(StorageError):
    """The range starts behind the object's end."""


def _split(uri: str) -> tuple[str, str]:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key


def _prefix(key: str) -> str:
    return f"{key}/" if key else ""


def _entry(uri: str, size: int, etag: str) -> Entry:
    return Entry(
        uri=uri, name=uri.rsplit("/", 1)[-1], size=size, tag=etag.strip('"'), is_folder=False
    )


def _object(uri: str) -> Entry | None:
    bucket, key = _split(uri)
    try:
        found = _request(uri, "head_object", Bucket=bucket, Key=key)
    except NotFoundError:
        return None
    return _entry(uri, found["ContentLength"], found.get("ETag", ""))


def _folder(uri: str) -> Entry:
    return Entry(uri=uri, name=uri.rsplit("/", 1)[-1], size=0, tag="", is_folder=True)


def _list(uri: str, delimiter: str) -> Iterator[Entry]:
    bucket, key = _split(uri)
    found = not key
    for page in _pages(uri, delimiter):
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


def _pages(uri: str, delimiter: str) -> Iterator[dict[str, Any]]:
    bucket, key = _split(uri)
    params = {"Bucket": bucket, "Prefix": _prefix(key)}
    if delimiter:
        params["Delimiter"] = delimiter
    while True:
        page = _request(uri, "list_objects_v2", **params)
        yield page
        if not page.get("IsTruncated"):
            return
        params["ContinuationToken"] = page["NextContinuationToken"]


@retrying
def _request(uri: str, method: str, **params: Any) -> dict[str, Any]:
    """Make one request of the S3 API."""
    return _run(uri, _call(method, params))


@retrying
def _get(uri: str, offset: int, length: int | None) -> tuple[bytes, str]:
    """Read bytes and the ETag of the object that they come from."""
    bucket, key = _split(uri)
    params: dict[str, Any] = {"Bucket": bucket, "Key": key}
    if offset or length is not None:
        end = "" if length is None else offset + length - 1
        params["Range"] = f"bytes={offset}-{end}"
    if length == 0:
        return b"", ""
    try:
        data, tag = _run(uri, _call_and_read(params))
    except _RangeError:
        return b"", ""
    READ_COUNTER.add(len(data))
    return data, tag


async def _call(method: str, params: dict[str, Any]) -> dict[str, Any]:
    # Names with an underscore are fsspec's asynchronous twins of its public methods.
    answer: dict[str, Any] = await _filesystem()._call_s3(method, **params)
    return answer


async def _call_and_read(params: dict[str, Any]) -> tuple[bytes, str]:
    answer = await _filesystem()._call_s3("get_object", **params)
    async with answer["Body"] as body:
        data: bytes = await body.read()
    if len(data) != answer["ContentLength"]:
        raise ConnectionError("the answer was cut short")
    return data, answer.get("ETag", "").strip('"')


def _filesystem() -> s3fs.S3FileSystem:
    """Return this process's client for the credentials and endpoint that now apply."""
    settings = tuple((k, v) for k, v in sorted(os.environ.items()) if k.startswith("AWS_"))
    return _client(os.getpid(), settings)


@functools.lru_cache(maxsize=8)
def _client(pid: int, settings: tuple[tuple[str, str], ...]) -> s3fs.S3FileSystem:
    del pid, settings  # a forked process and changed credentials need a client of their own
    filesystem = s3fs.S3FileSystem(
        skip_instance_cache=True,
        use_listings_cache=False,
        config_kwargs={
            "connect_timeout": _CONNECT_TIMEOUT_SECONDS,
            "read_timeout": _READ_TIMEOUT_SECONDS,
            "max_pool_connections": _MAX_CONNECTIONS,
            "retries": {"total_max_attempts": 1},
            # Some look-alikes answer a range with the whole object's checksum.
            "response_checksum_validation": "when_required",
        },
    )
    filesystem.retries = 1
    return filesystem


def _run(uri: str, request: Coroutine[Any, Any, _R]) -> _R:
    """Run a coroutine on fsspec's event loop and translate what goes wrong."""
    try:
        return asyncio.run_coroutine_threadsafe(request, fsspec.asyn.get_loop()).result()
    except StorageError:
        raise
    except _CREDENTIAL_ERRORS as error:
        raise AccessDeniedError(
            f"{uri} needs credentials ({error}); set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
            "or AWS_PROFILE."
        ) from error
    except (OSError, botocore.exceptions.BotoCoreError, *_TRANSIENT_ERRORS) as error:
        raise _translate(error, uri) from error


def _translate(error: Exception, uri: str) -> StorageError:
    response = getattr(error.__cause__, "response", None)
    if not isinstance(response, dict):
        kind = type(error).__name__
        if isinstance(error, _TRANSIENT_ERRORS):
            return UnavailableError(f"{uri} does not answer ({kind}: {error}).")
        return StorageError(f"{uri} cannot be used ({kind}: {error}); check bucket and endpoint.")
    code = str(response.get("Error", {}).get("Code", ""))
    status = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    reason = f"{status} {code}: {error}"
    if code in _FULL_CODES or status == 507:
        return StorageFullError(f"{uri} cannot be written ({reason}); free space there.")
    if code in _TRANSIENT_CODES or status in (408, 429) or status in (500, 502, 503, 504):
        return UnavailableError(f"{uri} does not answer ({reason}).")
    if code in _DENIED_CODES or status in (401, 403):
        return AccessDeniedError(
            f"{uri} refuses access ({reason}); check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, "
            "AWS_PROFILE, AWS_ENDPOINT_URL, and that the key exists."
        )
    if status == 404:
        return NotFoundError(f"{uri} does not exist; check the bucket and key.")
    if status == 412:
        return _PreconditionError(f"{uri} exists already.")
    if status == 416:
        return _RangeError(f"{uri} ends before the range asked for.")
    if status == 501:
        return _NotImplementedError(f"{uri}: the server does not support this ({reason}).")
    return StorageError(f"{uri} cannot be used ({reason}); check bucket, region and endpoint.")
