"""Compressed tar archives: one shard each, streamed from front to back.

A gzip stream cannot be entered in the middle. The rest is as in ``tar``.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import zlib
from collections.abc import Iterator
from typing import IO, Final, cast

from bloodcells import storage
from bloodcells.errors import NotFoundError, StoreError
from bloodcells.records import Member, Record, Shard
from bloodcells.stores.faults import faults, too_large
from bloodcells.stores.listing import (
    MAX_IMAGE_BYTES,
    MAX_STREAMED_BYTES,
    MAX_STREAMED_IMAGES,
    Kind,
    Listed,
    ListingProblem,
    Source,
)
from bloodcells.stores.naming import Naming
from bloodcells.stores.tar import BLOCK, list_headers, record_of

MAX_INFLATED_BYTES: Final = 16 * MAX_STREAMED_BYTES
"""Where listing stops: images hardly shrink under gzip, so what grows beyond this is a bomb."""

_DAMAGE = (EOFError, gzip.BadGzipFile, zlib.error)
_REMEDY = "cannot be read in parallel; unpack it with gunzip and score the .tar"


class _BombError(Exception):
    """The stream inflates beyond all measure."""


class _Stream(gzip.GzipFile):
    """An inflating stream that stops at ``MAX_INFLATED_BYTES``."""

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if offset > MAX_INFLATED_BYTES:
            raise _BombError
        return super().seek(offset, whence)


def list_targz(source: Source, naming: Naming, shard_size: int) -> Iterator[Listed]:
    """List the images of a compressed tar archive by inflating all of it.

    Raises:
        StoreError: it is too large for one shard.
    """
    del shard_size
    if source.size > MAX_STREAMED_BYTES:
        raise StoreError(
            f"{source.uri}: a .tar.gz of {source.size:,} bytes (the limit is "
            f"{MAX_STREAMED_BYTES:,}) {_REMEDY}."
        )
    members: list[Member] = []
    try:
        with storage.open_read(source.uri) as file, _Stream(fileobj=file) as stream:
            for item in list_headers(source, naming, cast(IO[bytes], stream)):
                if isinstance(item, Member):
                    members.append(item)
                else:
                    yield item
                if len(members) > MAX_STREAMED_IMAGES:
                    raise StoreError(
                        f"{source.uri}: a .tar.gz of more than {MAX_STREAMED_IMAGES:,} images "
                        f"{_REMEDY}."
                    )
    except _BombError:
        yield ListingProblem(
            uri=source.uri,
            detail=f"listing stopped where it inflates beyond {MAX_INFLATED_BYTES:,} bytes",
        )
    except _DAMAGE as error:
        yield ListingProblem(uri=source.uri, detail=f"the gzip stream is damaged: {error}")
    # A hard link lies where its image does: so sorted, the stream is read forwards only.
    yield from sorted(members, key=lambda member: member.offset)


def read_targz(shard: Shard) -> Iterator[Record]:
    """Read the members by inflating the archive up to the last of them."""
    number = 0
    offset, block = -1, b""
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(storage.open_read(shard.source_uri))
            stream = stack.enter_context(gzip.GzipFile(fileobj=file))
            for member in shard.members:
                if member.size > MAX_IMAGE_BYTES:
                    record = too_large(member, member.size)
                else:
                    if member.offset != offset:
                        stream.seek(member.offset)
                        offset, block = member.offset, stream.read(BLOCK + member.size)
                    record = record_of(member, block)
                yield record
                number += 1
        except NotFoundError:
            detail = "the archive is no longer there"
            yield from faults(shard.members[number:], "missing_object", detail)
        except _DAMAGE as error:
            detail = f"the gzip stream is damaged: {error}"
            yield from faults(shard.members[number:], "undecodable", detail)


KIND: Final = Kind(list_source=list_targz, read=read_targz, cuts_itself=True)
