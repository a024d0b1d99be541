"""Stores of images: from a URI to shards, and from a shard to records.

``open_store(uri).sources()`` finds what can be planned in parallel, ``plan_source`` lists one
source and cuts it into shards (``plan_part`` hands on what others can list beside it), and
``read_shard`` hands out the records of one. Folders, tar and zip
archives, Parquet and ``.npz``, on disk and on S3; each kind is one module. Nothing here decodes an
image, and nothing is unpacked to disk; names are data and never paths.

Faults of the data become a record's ``Fault`` or a ``ListingProblem``; faults of the surroundings
raise ``StorageError``; stores that cannot be used as they are raise ``StoreError``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from bloodcells.errors import NoImagesError
from bloodcells.records import Member, Record, Shard, ShardKind
from bloodcells.stores import folder, npz, parquet, tar, targz, zip
from bloodcells.stores.listing import (
    MAX_SHARD_BYTES,
    Cut,
    Ignored,
    Kind,
    Listed,
    ListingProblem,
    Source,
    stem_of,
)
from bloodcells.stores.naming import Naming
from bloodcells.stores.opening import Store, open_store
from bloodcells.stores.sizing import grown_size

__all__ = [
    "Ignored",
    "ListingProblem",
    "Source",
    "Store",
    "open_store",
    "plan_part",
    "plan_source",
    "read_shard",
    "stem_of",
]

KINDS: Final[dict[ShardKind, Kind]] = {
    "folder": folder.KIND,
    "tar": tar.KIND,
    "targz": targz.KIND,
    "zip": zip.KIND,
    "parquet": parquet.KIND,
    "npz": npz.KIND,
}


def plan_source(
    source: Source,
    *,
    shard_size: int = 1000,
    slide_pattern: str | None = None,
    known: Callable[[Member], bool] | None = None,
    largest_shard: int | None = None,
) -> Iterator[Shard | ListingProblem | Ignored]:
    """List a source and cut it into shards; streams, and reads no image where the kind allows it.

    The same source gives the same shards with the same ids. Archives found in a folder come after
    the folder's own images.

    Args:
        source: one of ``Store.sources()``.
        shard_size: images a shard, where the kind can be cut there; a shard also ends at
            ``MAX_SHARD_BYTES`` encoded bytes.
        slide_pattern: as for ``open_store``.
        known: says of a listed member whether to leave it out.
        largest_shard: images up to which shards grow as a source turns out to be large (see
            ``sizing``); ``None`` where they do not grow.

    Yields:
        Shards; a ``ListingProblem`` where the source could not be listed to its end, or is a table
        without images that lies in a folder which the user named; at most one
        ``Ignored`` for each source, about files that are no images.

    Raises:
        StoreError: the source cannot be used as it is; the message says what to do.
        StorageError: it is out of reach.
    """
    for item in plan_part(
        source,
        shard_size=shard_size,
        slide_pattern=slide_pattern,
        known=known,
        largest_shard=largest_shard,
    ):
        if isinstance(item, Source):
            yield from plan_source(
                item,
                shard_size=shard_size,
                slide_pattern=slide_pattern,
                known=known,
                largest_shard=largest_shard,
            )
        else:
            yield item


def plan_part(
    source: Source,
    *,
    shard_size: int = 1000,
    slide_pattern: str | None = None,
    known: Callable[[Member], bool] | None = None,
    largest_shard: int | None = None,
) -> Iterator[Shard | ListingProblem | Ignored | Source]:
    """List a source as :func:`plan_source` does, but hand on what can be planned by itself.

    Yields:
        What :func:`plan_source` yields of the source itself, and at the end a ``Source`` for each
        archive that was found in it and for each part of it that ``Source.at_most`` left.

    Raises:
        StoreError: the source cannot be used as it is; the message says what to do.
        StorageError: it is out of reach.
    """
    kind = KINDS[source.kind]
    naming = Naming(root=source.root, slide_pattern=slide_pattern)
    handed_on: list[Source] = []
    members: list[Member] = []
    num_bytes = num_listed = 0
    most = shard_size

    def close() -> Iterator[Shard]:
        nonlocal num_bytes, num_listed, most
        if members:
            yield Shard.make(source.uri, source.kind, tuple(members))
        num_listed += len(members)
        most = grown_size(shard_size, num_listed, largest_shard)
        members.clear()
        num_bytes = 0

    for item in _listed(kind, source, naming, shard_size):
        if isinstance(item, Member):
            if known is not None and known(item):
                continue
            if not kind.cuts_itself and (
                len(members) == most or (members and num_bytes + item.size > MAX_SHARD_BYTES)
            ):
                yield from close()
            members.append(item)
            num_bytes += item.size
        elif isinstance(item, Cut):
            yield from close()
        elif isinstance(item, Source):
            handed_on.append(item)
        else:
            yield item
    yield from close()
    yield from handed_on


def _listed(kind: Kind, source: Source, naming: Naming, shard_size: int) -> Iterator[Listed]:
    """List a source; a table of something else that lies among images is only spoken of."""
    try:
        yield from kind.list_source(source, naming, shard_size)
    except NoImagesError as error:
        if source.uri == source.root:
            raise
        why = str(error).removeprefix(f"{source.uri} ")
        yield ListingProblem(uri=source.uri, detail=f"it is left out, as it {why}")


def read_shard(shard: Shard) -> Iterator[Record]:
    """Yield one record for every member of a shard, in member order.

    A record's data are encoded bytes, pixels for ``.npz``, or a ``Fault`` of the data.

    Raises:
        StorageError: the store is out of reach or refuses access; nothing is known about the rest.
    """
    if not shard.members:
        return iter(())
    return KINDS[shard.kind].read(shard)
