"""NumPy archives with ``images (N, H, W, 3)`` and maybe ``labels``: one image a row.

Read without pickle, and without the array as a whole: by range where it is stored plainly, streamed
as one shard where it is compressed.
"""

from __future__ import annotations

import contextlib
import math
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any, Final

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy_format

from bloodcells import storage
from bloodcells.errors import NoImagesError, StoreError
from bloodcells.records import Member, Record, Shard
from bloodcells.stores.faults import faults, why_gone
from bloodcells.stores.listing import (
    MAX_IMAGE_BYTES,
    MAX_SHARD_BYTES,
    MAX_STREAMED_BYTES,
    MAX_STREAMED_IMAGES,
    Cut,
    Kind,
    Listed,
    ListingProblem,
    Source,
    stem_of,
)
from bloodcells.stores.naming import Naming, label_from
from bloodcells.stores.ranges import read_ranges

_LOCAL_HEADER_BYTES = 30
_ENCRYPTED_FLAG = 0x1
_MAX_OFFSET = 2**44  # 16 TiB: the largest file on common disks
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    NotImplementedError,
    UnicodeDecodeError,
)


@dataclass(frozen=True, kw_only=True)
class _Array:
    """An array of images inside the archive.

    Attributes:
        num_rows: images that its header announces.
        shape: of one image, in px: ``(H, W, 3)`` or ``(H, W)``.
        offset: first byte of the first image, inside the inflated ``.npy`` file.
        size: bytes of the inflated ``.npy`` file.
        is_compressed: whether it must be streamed.
    """

    num_rows: int
    shape: tuple[int, ...]
    offset: int
    size: int
    is_compressed: bool

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape)


def list_npz(source: Source, naming: Naming, shard_size: int) -> Iterator[Listed]:
    """List the rows of ``images``; only headers and ``labels`` are read.

    Raises:
        NoImagesError: it has no ``images``.
        StoreError: they are of no known shape, or too large to be streamed.
    """
    try:
        with storage.open_read(source.uri) as file, zipfile.ZipFile(file) as archive:
            array = _find_images(source.uri, archive)
            num_rows = _num_rows(source, array)
            labels = _read_labels(source.uri, archive, array.num_rows)
    except _DAMAGE as error:
        yield ListingProblem(uri=source.uri, detail=f"the .npz file is damaged: {error}")
        return
    if num_rows < array.num_rows:
        yield ListingProblem(
            uri=source.uri,
            detail=f"images has {num_rows:,} rows where its header announces {array.num_rows:,}",
        )
    folder_label = naming.label_of(naming.below_root(source.uri))
    rows = min(shard_size, max(1, MAX_SHARD_BYTES // max(1, array.row_bytes)))
    for index in range(num_rows):
        if index and index % rows == 0 and not array.is_compressed:
            yield Cut()
        image_uri = f"{source.uri}#{index}"
        yield Member(
            image_uri=image_uri,
            name=str(index),
            offset=index,
            size=array.row_bytes,
            tag=source.tag,
            slide_id=naming.slide_of(image_uri, stem_of(source.uri)),
            label=folder_label if labels is None else label_from(labels[index].item()),
        )


def read_npz(shard: Shard) -> Iterator[Record]:
    """Read rows of ``images``, by range or streamed: pixels, uint8 (H, W, 3) or (H, W)."""
    if gone := why_gone(shard.source_uri, shard.members[0].tag):
        yield from faults(shard.members, "missing_object", gone)
        return
    number = 0
    try:
        for pixels in _rows(shard):
            yield Record(member=shard.members[number], data=pixels)
            number += 1
    except _DAMAGE as error:
        detail = f"the .npz file is damaged: {error}"
        yield from faults(shard.members[number:], "undecodable", detail)


def _rows(shard: Shard) -> Iterator[npt.NDArray[np.uint8]]:
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(storage.open_read(shard.source_uri))
        archive = stack.enter_context(zipfile.ZipFile(file))
        array = _find_images(shard.source_uri, archive)
        ranges = [
            (array.offset + m.offset * array.row_bytes, array.row_bytes) for m in shard.members
        ]
        blocks: Iterator[bytes | memoryview]
        if array.is_compressed:
            stream = stack.enter_context(archive.open("images.npy"))
            blocks = (_read_at(stream, offset, length) for offset, length in ranges)
        else:
            start = _data_offset(file, archive.getinfo("images.npy"))
            blocks = read_ranges(
                shard.source_uri, [(start + offset, length) for offset, length in ranges]
            )
        for block in blocks:
            if len(block) < array.row_bytes:
                raise EOFError("the file breaks off")
            yield np.frombuffer(bytes(block), np.uint8).reshape(array.shape)


def _find_images(uri: str, archive: zipfile.ZipFile) -> _Array:
    """Return where the images are."""
    if not all(0 <= info.header_offset < _MAX_OFFSET for info in archive.infolist()):
        raise zipfile.BadZipFile("its directory gives arrays a place outside the file")
    if "images.npy" not in archive.namelist():
        raise NoImagesError(
            f"{uri} has no array called images (it has {', '.join(archive.namelist()[:10])}); "
            "save it with numpy.savez(file, images=…, labels=…)."
        )
    info = archive.getinfo("images.npy")
    if info.flag_bits & _ENCRYPTED_FLAG:
        raise StoreError(f"{uri} is encrypted; save it without a password.")
    with archive.open(info) as stream:
        shape, dtype, is_fortran = _read_header(uri, "images", stream)
        offset = stream.tell()
    pixel_shape = shape[1:-1] if len(shape) == 4 and shape[-1] == 1 else shape[1:]
    if dtype != np.uint8 or is_fortran:
        raise StoreError(
            f"{uri}: images is {dtype}{' in Fortran order' if is_fortran else ''}; save it as "
            "uint8, 0–255, in C order."
        )
    if not (len(pixel_shape) == 2 or (len(pixel_shape) == 3 and pixel_shape[2] == 3)):
        raise StoreError(f"{uri}: images has the shape {shape}; save it as (N, H, W, 3).")
    row_bytes = math.prod(pixel_shape)
    if not 0 < row_bytes <= MAX_IMAGE_BYTES:
        raise StoreError(
            f"{uri}: images of {row_bytes:,} bytes each; the limit is {MAX_IMAGE_BYTES:,}."
        )
    return _Array(
        num_rows=shape[0],
        shape=pixel_shape,
        offset=offset,
        size=info.file_size,
        is_compressed=info.compress_type != zipfile.ZIP_STORED,
    )


def _num_rows(source: Source, array: _Array) -> int:
    """Return how many images are really there."""
    size = array.size if array.is_compressed else min(array.size, source.size)
    num_rows = max(0, min(array.num_rows, (size - array.offset) // array.row_bytes))
    if array.is_compressed and (source.size > MAX_STREAMED_BYTES or num_rows > MAX_STREAMED_IMAGES):
        raise StoreError(
            f"{source.uri}: a compressed .npz of {num_rows:,} images, {source.size:,} bytes (the "
            f"limits are {MAX_STREAMED_IMAGES:,} and {MAX_STREAMED_BYTES:,}) cannot be read in "
            "parallel; save it with numpy.savez instead of savez_compressed."
        )
    return num_rows


def _read_labels(uri: str, archive: zipfile.ZipFile, num_rows: int) -> npt.NDArray[Any] | None:
    if "labels.npy" not in archive.namelist():
        return None
    with archive.open("labels.npy") as stream:
        shape, dtype, _ = _read_header(uri, "labels", stream)
    if shape not in ((num_rows,), (num_rows, 1)) or dtype.kind not in "iuU" or dtype.itemsize > 400:
        raise StoreError(
            f"{uri}: labels is {dtype} of shape {shape}; save one class number or name an image, "
            f"({num_rows},) or ({num_rows}, 1)."
        )
    with archive.open("labels.npy") as stream:
        labels: npt.NDArray[Any] = npy_format.read_array(stream, allow_pickle=False)
    return labels.reshape(-1)


def _read_header(
    uri: str, name: str, stream: IO[bytes]
) -> tuple[tuple[int, ...], np.dtype[Any], bool]:
    try:
        version = npy_format.read_magic(stream)
        read = (
            npy_format.read_array_header_1_0
            if version == (1, 0)
            else npy_format.read_array_header_2_0
        )
        shape, is_fortran, dtype = read(stream)
    except ValueError as error:
        raise StoreError(f"{uri}: {name} is no NumPy array ({error}).") from error
    if dtype.hasobject:
        raise StoreError(f"{uri}: {name} holds Python objects, which are never loaded.")
    return shape, dtype, is_fortran


def _data_offset(file: IO[bytes], info: zipfile.ZipInfo) -> int:
    """Return where a member's data begin: behind its local header."""
    file.seek(info.header_offset + _LOCAL_HEADER_BYTES - 4)
    lengths = file.read(4)
    return (
        info.header_offset
        + _LOCAL_HEADER_BYTES
        + int.from_bytes(lengths[:2], "little")
        + int.from_bytes(lengths[2:], "little")
    )


def _read_at(stream: IO[bytes], offset: int, length: int) -> bytes:
    """Read from a stream that goes forward only (a zip member would seek back by starting anew)."""
    while (gap := offset - stream.tell()) > 0:
        if not stream.read(min(gap, 2**20)):
            return b""
    return stream.read(length)


KIND: Final = Kind(list_source=list_npz, read=read_npz, cuts_itself=True)
