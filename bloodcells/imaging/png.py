"""PNG to pixels by Pillow, with the checks that Pillow leaves out.

Pillow does not verify the checksums of pixel data, does without the end of a file, and leaves rows
that the data does not reach at zero.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator
from io import BytesIO
from typing import Final

import numpy as np
from PIL import Image, PngImagePlugin

from bloodcells.errors import ImageError
from bloodcells.imaging.window import check_size

MAGIC: Final = b"\x89PNG\r\n\x1a\n"

_CHUNKS: Final = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"eXIf", b"iCCP", b"sRGB")
"""What makes up the first frame; animation, texts and the rest never reach Pillow."""

_CHANNELS: Final = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Samples a pixel by colour type: grey, RGB, palette, grey and alpha, RGBA."""

_WHOLE: Final = ((0, 0, 1, 1),)
_ADAM7: Final = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)
"""First column and row, column and row step of each pass. Source: PNG (W3C 2003), section 8.2."""


def load(data: bytes) -> Image.Image:
    """Decode a PNG; ``image.info`` has its ``exif`` and ``icc_profile``.

    Raises:
        ImageError: it is damaged, cut short or too large. Pillow may raise others.
    """
    chunks = list(_chunks(data))
    name, header = chunks[0]
    if name != b"IHDR" or len(header) != 25:
        raise ImageError("undecodable", f"PNG: begins with {name!r} instead of its header")
    width, height, depth, colour, _, _, interlaced = struct.unpack_from(">IIBBBBB", header, 8)
    check_size(width, height)
    image = PngImagePlugin.PngImageFile(BytesIO(MAGIC + b"".join(chunk for _, chunk in chunks)))
    image.load()
    # Rows come from top to bottom unless interlaced, so one level above zero in the last row
    # shows that all are there. Counting the bytes would take another third of the time.
    if interlaced or not np.asarray(image)[-1].any():
        bits = depth * _CHANNELS[colour]
        passes = _ADAM7 if interlaced else _WHOLE
        stream = b"".join(chunk[8:-4] for name, chunk in chunks if name == b"IDAT")
        if not _holds(stream, sum(_pass_size(width, height, bits, *p) for p in passes)):
            raise ImageError("undecodable", "truncated PNG: its data end before the last row")
    # tRNS counts in the file's own depth, Pillow's pixels have 8 bits (16-bit grey stays as it is).
    clear = image.info.get("transparency")
    if isinstance(clear, int) and depth < 8 and colour == 0:
        image.info["transparency"] = clear * 255 // (2**depth - 1)
    elif isinstance(clear, tuple) and depth == 16:
        image.info["transparency"] = tuple(level >> 8 for level in clear)
    return image


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield name and whole bytes of each chunk that matters, to the end; checksums are verified."""
    at = len(MAGIC)
    while at + 12 <= len(data):
        (size,) = struct.unpack_from(">I", data, at)
        name, chunk = data[at + 4 : at + 8], data[at : at + 12 + size]
        if len(chunk) < 12 + size:
            break
        if name in _CHUNKS:
            if zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], "big"):
                yield name, chunk
            elif name.isupper():  # the picture cannot do without it
                raise ImageError("undecodable", f"PNG: wrong checksum of {name!r} at byte {at}")
        if name == b"IEND":
            return
        at += 12 + size
    raise ImageError("undecodable", f"truncated PNG: its {len(data):,} bytes end before IEND")


def _pass_size(width: int, height: int, bits: int, x: int, y: int, dx: int, dy: int) -> int:
    """Return the bytes of one pass: its rows, each after a byte that names its filter."""
    columns, rows = math.ceil((width - x) / dx), math.ceil((height - y) / dy)
    return rows * (1 + math.ceil(columns * bits / 8)) if columns > 0 and rows > 0 else 0


def _holds(stream: bytes, expected: int) -> bool:
    """Whether a zlib stream holds at least ``expected`` bytes; holds no more than 64 MiB itself."""
    inflator, size = zlib.decompressobj(), 0
    for start in range(0, len(stream), 2**16):
        size += len(inflator.decompress(stream[start : start + 2**16]))
        if size >= expected:
            return True
    return False
