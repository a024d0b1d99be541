"""Tar archives: listed by their headers, read by range. Python's ``tarfile`` parses the headers.

A member is listed with the place and a digest of its 512-byte header, so that reading needs nothing
but its range, sees when the archive was replaced, and an archive that grows keeps its old members'
identity. Damaged headers are skipped, as ``tar`` does, and reported. Nothing is unpacked to disk.

A hard link to an image that came before is an image of its own, with the place of the other.
"""

from __future__ import annotations

import errno
import hashlib
import tarfile
from collections.abc import Iterator, Mapping
from tarfile import (  # type: ignore[attr-defined]
    EmptyHeaderError,
    EOFHeaderError,
    HeaderError,
    InvalidHeaderError,
    TruncatedHeaderError,
)
from typing import IO, Any, Final, cast

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
_MAX_NESTED = 16  # headers of one member: each extension is one, and two or three are usual
_MAX_MEMBER_BYTES = 2**44  # 16 TiB: the largest file on common disks; more is no size
_EXTENSION_TYPES = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)
_TYPE_FLAG = slice(156, 157)
_Place = tuple[int, int, str]  # offset, size and tag of a member
# Besides bad headers: odd numbers in pax headers, and sparse maps that break off.
_DAMAGE = (HeaderError, ValueError, IndexError)


class _Header(tarfile.TarInfo):
    """A header that keeps its block and refuses absurd sizes."""

    block: bytes

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str | None, errors: str) -> _Header:
        return _checked(super().frombuf(buf, encoding, errors), buf)  # type: ignore[arg-type]

    @classmethod
    def _frombuf(cls, buf: bytes | bytearray, *args: Any, **options: Any) -> _Header:
        # Newer Pythons read headers by this one (Ubuntu's 3.12.3 does), older ones have not got it.
        return _checked(super()._frombuf(buf, *args, **options), buf)  # type: ignore[misc]

    def _proc_member(self, tarfile: tarfile.TarFile) -> _Header:
        archive = cast(_Archive, tarfile)
        archive.num_nested += 1
        if archive.num_nested > _MAX_NESTED:
            raise InvalidHeaderError("extensions of extensions without end")
        return cast(_Header, super()._proc_member(tarfile))  # type: ignore[misc]


def _checked(header: tarfile.TarInfo, block: bytes | bytearray) -> _Header:
    """Keep the block of a header whose size can be one.

    Raises:
        InvalidHeaderError: it cannot.
    """
    own = cast(_Header, header)
    most = _MAX_EXTENSION_BYTES if own.type in _EXTENSION_TYPES else _MAX_MEMBER_BYTES
    if not 0 <= own.size <= most:
        raise InvalidHeaderError("absurd size")
    own.block = bytes(block)
    return own


class _GlobalFields(dict[str, str]):
    """Fields of global pax headers, without those that can be true of one member only."""

    def __setitem__(self, keyword: str, value: str) -> None:
        if keyword != "size" and not keyword.startswith("GNU.sparse."):
            super().__setitem__(keyword, value)


class _Archive:
    """An archive that is read on past damage and past its end mark, to the end of the file.

    Has what ``tarfile.TarInfo`` uses of a ``TarFile``, which would itself keep every header, and
    break off where a number in one is absurd.
    """

    encoding = "utf-8"
    errors = "backslashreplace"

    def __init__(self, file: IO[bytes]) -> None:
        self.fileobj = file
        self.offset = 0
        self.pax_headers: dict[str, str] = _GlobalFields()
        self.has_end = False
        self.num_nested = 0
        self.num_damaged = 0
        self.first_damaged = 0

    def headers(self) -> Iterator[_Header]:
        """Yield all headers, in order.

        Raises:
            tarfile.ReadError: the archive is cut short.
        """
        while True:
            start = self.offset
            if not self._reaches(start):
                raise tarfile.ReadError("unexpected end of data")
            self.num_nested = 0
            try:
                header = _Header.fromtarfile(cast(tarfile.TarFile, self))
            except EOFHeaderError:
                self.has_end = True
                self.offset = start + BLOCK
            except (EmptyHeaderError, TruncatedHeaderError) as error:
                if start == 0:
                    raise tarfile.ReadError(str(error)) from None
                return
            except _DAMAGE:
                self.note_damage(start)
            else:
                # A pax header may have replaced the size that the header's own block says.
                if 0 <= header.size <= _MAX_MEMBER_BYTES and header.offset_data <= self.offset:
                    self.has_end = False
                    yield header
                else:
                    self.note_damage(start)

    def note_damage(self, start: int) -> None:
        """Count a block that is no header where one should be, and go on behind it."""
        self.first_damaged = self.first_damaged if self.num_damaged else start
        self.num_damaged += 1
        self.offset = start + BLOCK

    def _reaches(self, offset: int) -> bool:
        """Go to a place, if the file has it."""
        if offset == self.fileobj.tell():
            return True
        try:
            self.fileobj.seek(offset - 1)
        except OSError as error:
            if error.errno != errno.EINVAL:  # beyond what this system's files can have
                raise
            return False
        return bool(self.fileobj.read(1))


def list_tar(source: Source, naming: Naming, shard_size: int) -> Iterator[Listed]:
    """List the images of a tar archive by its headers, skipping over the data."""
    del shard_size
    with storage.open_read(source.uri) as file:
        yield from list_headers(source, naming, file)


def list_headers(source: Source, naming: Naming, file: IO[bytes]) -> Iterator[Listed]:
    """List the images in an open tar stream, up to where it ends or breaks off."""
    ignored, unique = IgnoredFiles(uri=source.uri), UniqueNames()
    root_path, slide = naming.below_root(source.uri), stem_of(source.uri)
    places: dict[str, _Place] = {}
    position = 0
    try:
        archive = _Archive(file)
        for header in archive.headers():
            position = archive.offset
            if header.isdir() or is_hidden(header.name):
                continue
            place = _place(header, places) if is_image(header.name) else None
            if place is None:
                ignored.add(header.name)
                continue
            places[header.name] = place
            offset, size, tag = place
            image_uri = f"{source.uri}#{unique.of(header.name, header.offset_data - BLOCK)}"
            yield Member(
                image_uri=image_uri,
                name=header.name,
                offset=offset,
                size=size,
                tag=tag,
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


def _place(header: _Header, places: Mapping[str, _Place]) -> _Place | None:
    """Return where the image of a header lies; ``None`` if it has none, or none that is known."""
    if header.islnk():
        return places.get(header.linkname)
    if header.isreg():
        return header.offset_data - BLOCK, header.size, _digest(header.block)
    return None


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
