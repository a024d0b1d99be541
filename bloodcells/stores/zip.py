"""Zip archives: listed by their central directory (``zipfile``), read by range.

A member is listed with the place of its local header and, as its tag, what the directory says of
its content: checksum, inflated size, time. Reading inflates no more than that size.
"""

from __future__ import annotations

import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from typing import Final

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
_ENCRYPTED_FLAG = 0x1
_SLACK_BYTES = 512  # for an extra field; a local header that needs more is read again
_UNREADABLE = (zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError, struct.error, EOFError)


def list_zip(source: Source, naming: Naming, shard_size: int) -> Iterator[Listed]:
    """List the images of a zip archive from its central directory, in the order of their bytes."""
    del shard_size
    ignored, unique = IgnoredFiles(uri=source.uri), UniqueNames()
    folder, slide = naming.below_root(source.uri).rpartition("/")[0], stem_of(source.uri)
    try:
        with storage.open_read(source.uri) as file, zipfile.ZipFile(file) as archive:
            infos = sorted(archive.infolist(), key=lambda info: info.header_offset)
    except _UNREADABLE as error:
        yield ListingProblem(uri=source.uri, detail=f"the zip has no sound directory: {error}")
        return
    for info in infos:
        if info.is_dir() or is_hidden(info.filename):
            continue
        if not is_image(info.filename):
            ignored.add(info.filename)
            continue
        image_uri = f"{source.uri}#{unique.of(info.filename, info.header_offset)}"
        time = "".join(f"{number:02d}" for number in info.date_time)
        yield Member(
            image_uri=image_uri,
            name=info.filename,
            offset=info.header_offset,
            size=info.compress_size,
            tag=f"{info.CRC:08x}-{info.file_size}-{time}",
            slide_id=naming.slide_of(image_uri, slide),
            label=naming.label_of(f"{folder}/{info.filename}"),
        )
    yield from ignored.summary()


def read_zip(shard: Shard) -> Iterator[Record]:
    """Read the members by range, local headers included, and inflate them."""
    ranges = [
        (m.offset, _LOCAL_HEADER.size + 4 * len(m.name) + _SLACK_BYTES + m.size)
        if m.size <= MAX_IMAGE_BYTES
        else (m.offset, 0)
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
    if max(member.size, inflated_size) > MAX_IMAGE_BYTES:
        return too_large(member, max(member.size, inflated_size))
    if len(block) < _LOCAL_HEADER.size or block[:4] != _SIGNATURE:
        return fault(member, "missing_object", CHANGED)
    _, _, flags, method, *_, name_length, extra_length = _LOCAL_HEADER.unpack_from(block)
    if flags & _ENCRYPTED_FLAG:
        return fault(member, "encrypted", "the member is encrypted; pack it without a password")
    start = _LOCAL_HEADER.size + name_length + extra_length
    data: bytes | memoryview = block[start : start + member.size]
    if len(data) < member.size:
        data = storage.read_range(source_uri, member.offset + start, member.size)
    try:
        content = _inflated(method, data, inflated_size)
    except zlib.error as error:
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
    return None


def _expected(member: Member) -> tuple[int, int]:
    """Return checksum and inflated size from a member's tag."""
    match = re.match(r"([0-9a-f]{8})-(\d+)-", member.tag)
    if match is None:
        raise ValueError(f"{member.image_uri}: the plan's tag {member.tag!r} is not one of a zip")
    return int(match[1], 16), int(match[2])


KIND: Final = Kind(list_source=list_zip, read=read_zip)
