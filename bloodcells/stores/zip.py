"""Zip archives: listed by their central directory (``zipfile``), read by range.

A member is listed with the place of its local header and, as its tag, what the directory says of
its content: checksum, inflated size, time, and whether it is encrypted. Reading inflates no more
than that size. A member that the directory places outside the archive is listed at ``_OUTSIDE``.
"""

from __future__ import annotations

import bz2
import lzma
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
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

_LOCAL_HEADER = struct.Struct("<4s5H3I2H")
"""Signature, version, flags, method, time, date, CRC, two sizes, lengths of name and extra field.
Source: PKWARE, APPNOTE.TXT 6.3.10, section 4.3.7."""
_SIGNATURE = b"PK\x03\x04"
_ENTRY = struct.Struct("<4s6H3I5H2I")
"""The same of an entry of the central directory, section 4.3.12. Flags are its fourth field, the
lengths of name, extra field and comment its 11th to 13th."""
_ENTRY_SIGNATURE = b"PK\x01\x02"
_ENCRYPTED_FLAG = 0x1
_UTF8_FLAG = 0x800
_SPARE_FLAG = 0x8000  # reserved, and always zero
_FLAGS_OFFSET = 8
_LZMA_PROPERTIES_BYTES = 5
_ENCRYPTED = "-encrypted"
_TIME = "%02d" * 6
_OUTSIDE: Final = -1
_MAX_SIZE = 2**63 - 1  # a plan holds no larger number; a directory may
_SLACK_BYTES = 512  # for an extra field; a local header that needs more is read again
_UNREADABLE = (zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError, struct.error, EOFError)


def list_zip(source: Source, naming: Naming, shard_size: int) -> Iterator[Listed]:
    """List the images of a zip archive from its central directory, in the order of their bytes."""
    del shard_size
    ignored, unique = IgnoredFiles(uri=source.uri), UniqueNames()
    folder, slide = naming.below_root(source.uri).rpartition("/")[0], stem_of(source.uri)
    try:
        with storage.open_read(source.uri) as file:
            infos = sorted(_directory(file), key=lambda info: info.header_offset)
    except _UNREADABLE as error:
        yield ListingProblem(uri=source.uri, detail=f"the zip has no sound directory: {error}")
        return
    num_outside = 0
    listed: set[tuple[str, int]] = set()
    for info in infos:
        name = info.filename
        if name.endswith("/") or is_hidden(name):
            continue
        if not is_image(name):
            ignored.add(name)
            continue
        if (name, info.header_offset) in listed:
            continue  # an entry that is there twice is one image
        listed.add((name, info.header_offset))
        is_outside = not 0 <= info.header_offset < source.size
        num_outside += is_outside
        image_uri = f"{source.uri}#{unique.of(name, info.header_offset)}"
        time = _TIME % info.date_time
        encrypted = _ENCRYPTED if info.flag_bits & _ENCRYPTED_FLAG else ""
        yield Member(
            image_uri=image_uri,
            name=name,
            offset=_OUTSIDE if is_outside else info.header_offset,
            size=min(info.compress_size, _MAX_SIZE),
            tag=f"{info.CRC:08x}-{info.file_size}-{time}{encrypted}",
            slide_id=naming.slide_of(image_uri, slide),
            label=naming.label_of(f"{folder}/{name}"),
        )
    if num_outside:
        yield ListingProblem(
            uri=source.uri,
            detail=f"the directory places {num_outside:,} images outside the archive, which may "
            "have lost its beginning",
        )
    yield from ignored.summary()


def _directory(file: IO[bytes]) -> list[zipfile.ZipInfo]:
    """Return the entries of the central directory, whatever is in their names."""
    try:
        with zipfile.ZipFile(file) as archive:
            return archive.infolist()
    except UnicodeDecodeError:
        pass
    with zipfile.ZipFile(cast(IO[bytes], _AnyNames(file))) as archive:
        infos = archive.infolist()
    for info in infos:
        if info.flag_bits & _SPARE_FLAG:
            name = info.orig_filename.encode("cp437").decode("utf-8", "backslashreplace")
            info.filename = name.partition("\0")[0]  # as zipfile does
    return infos


class _AnyNames:
    """A zip file whose names can all be decoded: names in UTF-8 pass for names in code page 437.

    ``zipfile`` refuses a directory for one bad byte in one name. Code page 437 has a character for
    each byte, so that nothing is lost; the spare flag marks these names.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, size: int = -1) -> bytes:
        data = bytearray(self._file.read(size))
        at = 0
        while data[at : at + 4] == _ENTRY_SIGNATURE and len(data) - at >= _ENTRY.size:
            fields = _ENTRY.unpack_from(data, at)
            flags = fields[3] & ~_SPARE_FLAG
            if flags & _UTF8_FLAG:
                flags = flags & ~_UTF8_FLAG | _SPARE_FLAG
            struct.pack_into("<H", data, at + _FLAGS_OFFSET, flags)
            at += _ENTRY.size + sum(fields[10:13])
        return bytes(data)


def read_zip(shard: Shard) -> Iterator[Record]:
    """Read the members by range, local headers included, and inflate them."""
    ranges = [
        (m.offset, _LOCAL_HEADER.size + 4 * len(m.name) + _SLACK_BYTES + m.size)
        if m.offset != _OUTSIDE and m.size <= MAX_IMAGE_BYTES
        else (max(0, m.offset), 0)
        for m in shard.members
    ]
    blocks = read_ranges(shard.source_uri, ranges)
    for number, member in enumerate(shard.members):
        try:
            yield _record_of(shard.source_uri, member, next(blocks))
        except NotFoundError:
            detail = "the archive is no longer there"
            yield from faults(shard.members[number:], "missing_object", detail)
            return


def _record_of(source_uri: str, member: Member, block: memoryview) -> Record:
    crc, inflated_size = _expected(member)
    if member.offset == _OUTSIDE:
        detail = "the archive's directory gives it a place that lies outside the archive"
        return fault(member, "undecodable", detail)
    if max(member.size, inflated_size) > MAX_IMAGE_BYTES:
        return too_large(member, max(member.size, inflated_size))
    if len(block) < _LOCAL_HEADER.size or block[:4] != _SIGNATURE:
        return fault(member, "missing_object", CHANGED)
    _, _, flags, method, *_, name_length, extra_length = _LOCAL_HEADER.unpack_from(block)
    if flags & _ENCRYPTED_FLAG or member.tag.endswith(_ENCRYPTED):
        return fault(member, "encrypted", "the member is encrypted; pack it without a password")
    start = _LOCAL_HEADER.size + name_length + extra_length
    data: bytes | memoryview = block[start : start + member.size]
    if len(data) < member.size:
        data = storage.read_range(source_uri, member.offset + start, member.size)
    try:
        content = _inflated(method, data, inflated_size)
    except (zlib.error, lzma.LZMAError, OSError) as error:  # OSError is what bz2 has
        return fault(member, "undecodable", f"the compressed bytes are damaged: {error}")
    if content is None:
        return fault(
            member,
            "undecodable",
            f"compression method {method} is not supported; pack with deflate, or store",
        )
    if len(content) != inflated_size or zlib.crc32(content) != crc:
        return fault(member, "undecodable", "the bytes do not match their size and checksum")
    return Record(member=member, data=content)


def _inflated(method: int, data: bytes | memoryview, size: int) -> bytes | None:
    """Return the inflated bytes, at most one more than ``size``; ``None`` for unknown methods."""
    if method == zipfile.ZIP_STORED:
        return bytes(data)
    if method == zipfile.ZIP_DEFLATED:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, size + 1)
    if method == zipfile.ZIP_BZIP2:
        return bz2.BZ2Decompressor().decompress(data, size + 1)
    if method == zipfile.ZIP_LZMA:
        return lzma.LZMADecompressor(lzma.FORMAT_ALONE).decompress(
            _lzma_alone(data, size), size + 1
        )
    return None


def _lzma_alone(data: bytes | memoryview, size: int) -> bytes:
    """Return a zip's LZMA data as a file of LZMA. Source: APPNOTE.TXT 6.3.10, section 5.8.8.

    Both begin with the same properties: a byte of parameters, and the size of the dictionary, which
    is memory that an archive may ask for; it is never more than there is to inflate.
    """
    if len(data) < 4 or int.from_bytes(data[2:4], "little") != _LZMA_PROPERTIES_BYTES:
        raise lzma.LZMAError("unknown properties")
    dictionary = min(int.from_bytes(data[5:9], "little"), max(size + 1, 4096))
    size_unknown = b"\xff" * 8
    return bytes(data[4:5]) + dictionary.to_bytes(4, "little") + size_unknown + bytes(data[9:])


def _expected(member: Member) -> tuple[int, int]:
    """Return checksum and inflated size from a member's tag."""
    match = re.match(r"([0-9a-f]{8})-(\d+)-", member.tag)
    if match is None:
        raise ValueError(f"{member.image_uri}: the plan's tag {member.tag!r} is not one of a zip")
    return int(match[1], 16), int(match[2])


KIND: Final = Kind(list_source=list_zip, read=read_zip)
