"""Records of images that could not be read, and what several kinds of store check alike."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from bloodcells import storage
from bloodcells.errors import NotFoundError
from bloodcells.records import Fault, Member, Record
from bloodcells.stores.listing import MAX_IMAGE_BYTES

CHANGED = "the archive has changed since it was listed: something else lies at this place now"


def fault(member: Member, reason: str, detail: str) -> Record:
    """Return the record of an image that cannot be scored."""
    return Record(member=member, data=Fault(reason=reason, detail=detail))


def faults(members: Iterable[Member], reason: str, detail: str) -> Iterator[Record]:
    """Yield the records of images that share a fault."""
    return (fault(member, reason, detail) for member in members)


def too_large(member: Member, size: int) -> Record:
    """Return the record of an image whose encoded bytes are beyond the limit."""
    detail = f"{size:,} encoded bytes; the limit is {MAX_IMAGE_BYTES:,}"
    return fault(member, "too_large", detail)


def why_gone(source_uri: str, tag: str) -> str | None:
    """Say why a file that was listed can no longer be read as listed; ``None`` if it can."""
    try:
        if storage.stat(source_uri).tag == tag:
            return None
    except NotFoundError:
        return "the archive is no longer there"
    return "the file has changed since it was listed"
