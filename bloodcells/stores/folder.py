"""Folders of image files, on disk and on S3. Archives found in one are sources of their own."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Final

from bloodcells import storage
from bloodcells.errors import NotFoundError
from bloodcells.records import Member, Record, Shard
from bloodcells.stores.cutting import cut
from bloodcells.stores.faults import fault, too_large
from bloodcells.stores.listing import (
    MAX_IMAGE_BYTES,
    IgnoredFiles,
    Kind,
    Listed,
    Source,
    kind_of,
)
from bloodcells.stores.naming import Naming, is_hidden, is_image

PARALLEL_REQUESTS: Final = 16
"""Objects asked for at once: an image of 15 kB is nearly all latency."""


def archive_source(entry: storage.Entry, root: str) -> Source | None:
    """Return the source that a file is, if it is an archive or a table."""
    kind = kind_of(entry.name)
    if kind is None or is_hidden(entry.name):
        return None
    return Source(uri=entry.uri, kind=kind, size=entry.size, tag=entry.tag, root=root)


def list_folder(source: Source, naming: Naming, shard_size: int) -> Iterator[Listed]:
    """List the images of a folder. Links are not followed: they count as no images.

    After ``source.at_most`` files, what is left is handed on in parts.
    """
    del shard_size
    ignored = IgnoredFiles(uri=source.uri)
    last, is_in_order = "", True
    for number, entry in enumerate(_entries(source), start=1):
        yield from _sorted_out(entry, source, naming, ignored)
        # What comes after the last name is all that is left only where names come in order.
        is_in_order = is_in_order and entry.uri > last
        last = entry.uri
        if number == source.at_most and is_in_order:
            left = cut(replace(source, after=last[len(source.uri) + 1 :]))
            if left is not None:
                yield from left
                break
    yield from ignored.summary()


def _entries(source: Source) -> Iterator[storage.Entry]:
    if source.recursive:
        return storage.walk(source.uri, after=source.after, upto=source.upto)
    return storage.listdir(source.uri)


def _sorted_out(
    entry: storage.Entry, source: Source, naming: Naming, ignored: IgnoredFiles
) -> Iterator[Member | Source]:
    """Yield what a file is to the store, if anything."""
    name = entry.uri[len(source.root.rstrip("/")) + 1 :]
    if entry.is_folder or is_hidden(name):
        return
    if entry.is_link:
        ignored.add(name)
    elif is_image(name):
        yield Member(
            image_uri=entry.uri,
            name=name,
            offset=0,
            size=entry.size,
            tag=entry.tag,
            slide_id=naming.slide_of_file(entry.uri),
            label=naming.label_of(naming.below_root(entry.uri)),
        )
    elif (archive := archive_source(entry, source.root)) is not None:
        # Archives right in the root are sources of the store already.
        if source.recursive:
            yield archive
    else:
        ignored.add(name)


def read_folder(shard: Shard) -> Iterator[Record]:
    """Read the images one by one; on S3, several at once."""
    if not shard.source_uri.startswith("s3://"):
        yield from map(_read_file, shard.members)
        return
    with ThreadPoolExecutor(PARALLEL_REQUESTS) as pool:
        waiting: deque[Future[Record]] = deque()
        try:
            for member in shard.members:
                waiting.append(pool.submit(_read_file, member))
                if len(waiting) >= 2 * PARALLEL_REQUESTS:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for request in waiting:
                request.cancel()


def _read_file(member: Member) -> Record:
    if member.size > MAX_IMAGE_BYTES:
        return too_large(member, member.size)
    try:
        data = storage.read_range(member.image_uri, 0, MAX_IMAGE_BYTES + 1)
    except NotFoundError:
        return fault(member, "missing_object", "the file is no longer there")
    if len(data) > MAX_IMAGE_BYTES:
        return too_large(member, len(data))
    return Record(member=member, data=data)


KIND: Final = Kind(list_source=list_folder, read=read_folder)
