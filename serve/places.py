"""Where archives may be read and runs be written: allow-lists of URI prefixes.

A URI is brought to its one spelling first (links resolved, ``..`` gone), then compared component by
component, so that ``s3://lab-evil`` is not below ``s3://lab``. Knows nothing of stores or runs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from bloodcells import storage
from bloodcells.errors import ConfigurationError
from serve.errors import ApiError

_BUCKET: Final = re.compile(r"[a-z0-9][a-z0-9.-]{1,62}")
_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")


class Places:
    """The two allow-lists.

    Args:
        read: URI prefixes from which archives may be read.
        write: URI prefixes below which runs may be written; may be read as well.

    Raises:
        ConfigurationError: a prefix is no local path or ``s3://`` URI.
    """

    def __init__(self, *, read: Iterable[str], write: Iterable[str]) -> None:
        self._write = [storage.normalise(prefix) for prefix in write]
        self._read = [storage.normalise(prefix) for prefix in read]

    def require_readable(self, uri: str) -> str:
        """Return a store's URI in its one spelling.

        Raises:
            ApiError: 403 ``place_not_allowed``, or 422 ``bad_uri``.
        """
        return _require(uri, self._read + self._write, "read")

    def require_writable(self, uri: str) -> str:
        """Return a run folder's URI in its one spelling.

        Raises:
            ApiError: 403 ``place_not_allowed``, or 422 ``bad_uri``.
        """
        return _require(uri, self._write, "written")


def _require(given: str, prefixes: list[str], verb: str) -> str:
    uri = _canonical(given)
    if any(_is_below(uri, prefix) for prefix in prefixes):
        return uri
    raise ApiError(
        403,
        "place_not_allowed",
        f"{given!r} is not below a place that may be {verb}; name another, or ask the operator to "
        "add its prefix to the configuration.",
    )


def _canonical(given: str) -> str:
    """Return the one spelling; refuses what is spelt so that two readers could disagree."""
    if not given.isprintable() or "::" in given or any(c in given for c in "*?[]#\\"):
        raise _bad(given, "leave out wildcards, '#', '::', backslashes and control characters")
    if given.startswith("s3://"):
        bucket, *keys = given.removeprefix("s3://").rstrip("/").split("/")
        if not _BUCKET.fullmatch(bucket) or any(key in ("", ".", "..") for key in keys):
            raise _bad(given, "write s3://BUCKET/KEY, without '.', '..' or '//'")
        return storage.normalise(given)
    if _SCHEME.match(given) or not given.startswith("/"):
        raise _bad(given, "give an absolute path or an s3:// URI")
    try:
        return storage.normalise(given)
    except (ConfigurationError, ValueError, OSError) as error:
        raise _bad(given, "it is no path") from error


def _is_below(uri: str, prefix: str) -> bool:
    return f"{uri}/".startswith(f"{prefix.rstrip('/')}/")


def _bad(given: str, why: str) -> ApiError:
    return ApiError(422, "bad_uri", f"{given[:200]!r} cannot be used: {why}.")
