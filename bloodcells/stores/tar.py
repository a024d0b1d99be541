"""Tar archives: listed by their headers, read by range. Python's ``tarfile`` parses the headers.

A member is listed with the place and a digest of its 512-byte header, so that reading needs nothing
but its range, sees when the archive was replaced, and an archive that grows keeps its old members'
identity. Damaged headers are skipped, as ``tar`` does, and reported. Nothing is unpacked to disk.
"""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterator
from tarfile import EOFHeaderError, InvalidHeaderError  # type: ignore[attr-defined]
from typing import IO, Final, cast

from bloodcells import storage
from bloodcells.errors import NotFoundError
from bloodcells.records import Member, Record, Shard
from bloodcells.stores.faults import CHANGED, fault, faults, too_large
from bloodcells.stores.listing import (
    MAX_IMAGE_BYTES,
    IgnoredFiles,
    Kind,
    Listed,
    ListingProblem,
    Source,
    stem_of,
)
from bloodcells.stores.naming import Naming, UniqueNames, is_hidden, is_image
from bloodcells.stores.ranges import read_ranges

BLOCK: Final = tarfile.BLOCKSIZE
_MAX_EXTENSION_BYTES = 2**20  # of a long name or pax header; more is an attack on memory
_EXTENSION_TYPES = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)
_TYPE_FLAG = slice(156, 157)


class _Header(tarfile.TarInfo):
    """A header that keeps its block, refuses absurd sizes, and tells its archive of damage."""

    block: bytes

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str | None, errors: str) -> _Header:
        header = super().frombuf(buf, encoding, errors)  # type: ignore[arg-type]
        if header.size < 0 or (
            header.type in _EXTENSION_TYPES and header.size > _MAX_EXTENSION_BYTES
        ):
            raise InvalidHeaderError("absurd size")
        header.block = bytes(buf)
        return header

    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> _Header:
        archive = cast(_Archive, tarfile)
        try:
            header = super().fromtarfile(archive)
        except EOFHeaderError:
            archive.has_end = True
            raise
        except InvalidHeaderError:
            archive.note_damage()
            raise
        archive.has_end = False
        return header


class _Archive(tarfile.TarFile):
    """An archive that is read on past damage and past its end mark, to the end of the file."""

    tarinfo = _Header
    has_end = False
    num_damaged = 0
    first_damaged = 2**63

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        super().__init__(
            fileobj=file, mode="r", ignore_zeros=True, encoding="utf-8", errors="backslashreplace"
        )

    def headers(self) -> Iterator[_Header]:
        """Yield all headers, in order.

        Raises:
            tarfile.ReadError: the archive is cut short.
        """
        while True:
            try:
                header = cast("_Header | None", self.next())
            except (tarfile.ReadError, ValueError) as error:  # odd numbers in a pax header
                # An extension header that is followed by damage: go on behind it, if there is more.
                self.offset += BLOCK
                if not self._reaches(self.offset):
                    raise tarfile.ReadError(str(error)) from error
                self.note_damage()
                continue
            if header is None:
                return
            if self.offset <= header.offset:
                raise tarfile.ReadError("a header points backwards")
            self.members.clear()  # type: ignore[attr-defined]  # else tarfile would keep them all
            yield header

    def note_damage(self) -> None:
        """Count a block that is no header where one should be."""
        self.num_damaged += 1
        self.first_damaged = min(self.first_damaged, self.offset)

    def _reaches(self, offset: int) -> bool:
        self._file.seek(offset - 1)
        return bool(self._file.read(1))


def list_tar(source: Source, naming: Naming, shard_size: int) -> Iterator[Listed]:
    """List the images of a tar archive by its headers, skipping over the data."""
    del shard_size
    with storage.open_read(source.uri) as file:
        yield from list_headers(source, naming, file)


def list_headers(source: Source, naming: Naming, file: IO[bytes]) -> Iterator[Listed]:
    """List the images in an open tar stream, up to where it ends or breaks off."""
    ignored, unique = IgnoredFiles(uri=source.uri), UniqueNames()
    root_path, slide = naming.below_root(source.uri), stem_of(source.uri)
    position = 0
    try:
        archive = _Archive(file)
        for header in archive.headers():
            position = archive.offset
            if header.isdir() or is_hidden(header.name):
                continue
            if not header.isreg() or not is_image(header.name):
                ignored.add(header.name)
                continue
            offset = header.offset_data - BLOCK
            image_uri = f"{source.uri}#{unique.of(header.name, offset)}"
            yield Member(
                image_uri=image_uri,
                name=header.name,
                offset=offset,
                size=header.size,
                tag=_digest(header.block),
                slide_id=naming.slide_of(image_uri, slide),
                label=naming.label_of(f"{root_path.rpartition('/')[0]}/{header.name}"),
            )
    except tarfile.ReadError as error:
        yield ListingProblem(
            uri=source.uri,
            detail=f"it is cut short or no tar: it ends before byte {position:,} ({error})",
        )
    else:
        if archive.num_damaged:
            yield ListingProblem(
                uri=source.uri,
                detail=f"{archive.num_damaged:,} blocks, the first at byte "
                f"{archive.first_damaged:,}, are no tar headers; images in them are not listed",
            )
        elif not archive.has_end:
            yield ListingProblem(
                uri=source.uri,
                detail=f"it has no end mark and may have been cut off at byte {position:,}",
            )
    yield from ignored.summary()


def read_tar(shard: Shard) -> Iterator[Record]:
    """Read the members by range, headers included."""
    blocks = read_ranges(
        shard.source_uri,
        [(m.offset, BLOCK + m.size if m.size <= MAX_IMAGE_BYTES else 0) for m in shard.members],
    )
    for number, member in enumerate(shard.members):
        try:
            yield record_of(member, next(blocks))
        except NotFoundError:
            detail = "the archive is no longer there"
            yield from faults(shard.members[number:], "missing_object", detail)
            return


def record_of(member: Member, block: bytes | memoryview) -> Record:
    """Return the record of a member, given its header block and data as they were found."""
    if member.size > MAX_IMAGE_BYTES:
        return too_large(member, member.size)
    header, data = block[:BLOCK], block[BLOCK:]
    if _digest(header) != member.tag:
        return fault(member, "missing_object", CHANGED)
    if header[_TYPE_FLAG] == tarfile.GNUTYPE_SPARSE:
        return fault(member, "undecodable", "the member is stored sparse, which is not supported")
    if len(data) < member.size:
        return fault(
            member,
            "undecodable",
            f"the archive breaks off {len(data):,} bytes into this image of {member.size:,}",
        )
    return Record(member=member, data=bytes(data))


def _digest(block: bytes | memoryview) -> str:
    return hashlib.blake2b(block, digest_size=8).hexdigest()


KIND: Final = Kind(list_source=list_tar, read=read_tar)
