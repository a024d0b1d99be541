"""Requests to S3 through s3fs's event loop: credentials, retries, errors. Knows no listing.

Endpoint, region and credentials come the way every S3 tool takes them (``AWS_ENDPOINT_URL``,
``AWS_ACCESS_KEY_ID``, ``AWS_PROFILE``, instance roles …). Keys are passed verbatim (s3fs's path
functions give ``?versionId=`` and trailing slashes a meaning of their own), and neither s3fs nor
botocore retries: one layer does, ours.
"""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import Callable, Coroutine
from http.client import IncompleteRead
from typing import Any, TypeVar

import aiohttp
import botocore.exceptions
import botocore.parsers
import fsspec.asyn
import s3fs

from bloodcells.errors import (
    AccessDeniedError,
    Cause,
    NotFoundError,
    StorageError,
    StorageFullError,
    UnavailableError,
)
from bloodcells.storage.courtesy import request_limit
from bloodcells.storage.retry import retrying
from bloodcells.storage.traffic import TRAFFIC

_R = TypeVar("_R")

_CONNECT_TIMEOUT_SECONDS = 10
_READ_TIMEOUT_SECONDS = 30  # between two pieces of an answer, not for the whole of it
_MAX_CONNECTIONS = 64

LIMIT = request_limit(_MAX_CONNECTIONS)
"""The requests that this process has under way; fewer while a server throttles it."""

_DENIED_CODES = {
    "AccessDenied",
    "AuthorizationHeaderMalformed",
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidToken",
    "SignatureDoesNotMatch",
}
_TRANSIENT_CODES: dict[str, Cause] = {
    "BadDigest": "connection",  # the bytes were damaged on their way
    "ConditionalRequestConflict": "server",
    "OperationAborted": "server",
    "RequestTimeout": "connection",
    "SlowDown": "throttled",
    "Throttling": "throttled",
    "ThrottlingException": "throttled",
    "TooManyRequestsException": "throttled",
    "XAmzContentSHA256Mismatch": "connection",
}
_TRANSIENT_STATUSES: dict[int, Cause] = {
    408: "connection",
    429: "throttled",
    500: "server",
    502: "server",
    503: "throttled",  # S3 says so where it is asked too much, and to HEAD it says no more
    504: "server",
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


class PreconditionError(StorageError):
    """A conditional request whose condition did not hold."""


class UnsupportedError(StorageError):
    """The server does not know what it was asked for."""


class _RangeError(StorageError):
    """The range starts behind the object's end."""


@retrying
def request(uri: str, method: str, **params: Any) -> dict[str, Any]:
    """Make one request of the S3 API."""
    return _run(uri, lambda: _call(method, params))


@retrying
def read(uri: str, offset: int, length: int | None) -> tuple[bytes, str]:
    """Read bytes and the ETag of the object that they come from."""
    bucket, key = split(uri)
    params: dict[str, Any] = {"Bucket": bucket, "Key": key}
    if offset or length is not None:
        end = "" if length is None else offset + length - 1
        params["Range"] = f"bytes={offset}-{end}"
    if length == 0:
        return b"", ""
    try:
        data, tag = _run(uri, lambda: _call_and_read(params))
    except _RangeError:
        return b"", ""
    TRAFFIC.add_bytes(len(data))
    return data, tag


def split(uri: str) -> tuple[str, str]:
    """Return bucket and key."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key


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


def _run(uri: str, ask: Callable[[], Coroutine[Any, Any, _R]]) -> _R:
    """Make one request, when there are not too many under way, and count it."""
    with LIMIT.turn() as began:
        TRAFFIC.add_request()
        try:
            answer = _answer(uri, ask())
        except UnavailableError as error:
            if error.cause == "throttled":
                LIMIT.throttled(began)
            raise
        LIMIT.answered()
        return answer


def _answer(uri: str, coroutine: Coroutine[Any, Any, _R]) -> _R:
    """Run a coroutine on fsspec's event loop and translate what goes wrong."""
    try:
        return asyncio.run_coroutine_threadsafe(coroutine, fsspec.asyn.get_loop()).result()
    except StorageError:
        raise
    except _CREDENTIAL_ERRORS as error:
        raise AccessDeniedError(
            f"{uri} needs credentials ({error}); set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
            "or AWS_PROFILE."
        ) from error
    except (OSError, ValueError, botocore.exceptions.BotoCoreError, *_TRANSIENT_ERRORS) as error:
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
    if cause := _TRANSIENT_CODES.get(code) or _TRANSIENT_STATUSES.get(status):
        return UnavailableError(f"{uri} does not answer ({reason}).", cause=cause)
    if code in _DENIED_CODES or status in (401, 403):
        return AccessDeniedError(
            f"{uri} refuses access ({reason}); check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, "
            "AWS_PROFILE, AWS_ENDPOINT_URL, and that the key exists."
        )
    if status == 404:
        return NotFoundError(f"{uri} does not exist; check the bucket and key.")
    if status == 412:
        return PreconditionError(f"{uri} exists already.")
    if status == 416:
        return _RangeError(f"{uri} ends before the range asked for.")
    if status == 501:
        return UnsupportedError(f"{uri}: the server does not support this ({reason}).")
    return StorageError(f"{uri} cannot be used ({reason}); check bucket, region and endpoint.")
