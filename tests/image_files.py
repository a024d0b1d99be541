"""Pictures to be decoded: painted, written in every way, and what should be seen of them."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from bloodcells.errors import ImageError
from bloodcells.imaging import (
    Preprocess,
    decode,
)

Pixels = npt.NDArray[np.uint8]

WIDTH, HEIGHT = 45, 61
PLAIN = Preprocess(size=32)


def painting(width: int = WIDTH, height: int = HEIGHT) -> Pixels:
    """A smooth picture in which every place has its own colour, so that a wrong turn shows."""
    y, x = np.mgrid[0:height, 0:width]
    channels = (x * 250 // width, y * 250 // height, 40 + (x + y) * 150 // (width + height))
    return np.stack(channels, axis=-1).astype(np.uint8)


def encode(pixels: npt.NDArray[Any] | Image.Image, kind: str, **options: Any) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def seen(data: bytes | npt.NDArray[Any], preprocess: Preprocess = PLAIN) -> npt.NDArray[np.int16]:
    return decode(data, preprocess).pixels.astype(np.int16)


def assert_shows(data: bytes, rgb: Pixels, *, within: int = 0) -> None:
    picture = decode(data, PLAIN)
    assert (picture.width_px, picture.height_px) == (rgb.shape[1], rgb.shape[0])
    assert picture.pixels.dtype == np.uint8
    assert picture.pixels.shape == (32, 32, 3)
    assert picture.pixels.flags.c_contiguous
    difference = np.abs(seen(data) - seen(rgb))
    assert difference.max() <= within


def fault_of(data: bytes | npt.NDArray[Any]) -> ImageError:
    with pytest.raises(ImageError) as caught:
        decode(data, PLAIN)
    return caught.value


def tiff(
    pixels: npt.NDArray[Any], photometric: int, *more: tuple[int, int, int], bits: int = 0
) -> bytes:
    """An uncompressed TIFF with its tags in front; ``more`` are tags of (number, type, value)."""
    height, width, num_samples = pixels.shape
    body: bytes = pixels.tobytes()
    tags: dict[int, tuple[int, int]] = {
        256: (4, width),
        257: (4, height),
        259: (3, 1),
        262: (3, photometric),
        277: (3, num_samples),
        278: (4, height),
        279: (4, len(body)),
    }
    tags |= {number: (kind, value) for number, kind, value in more}
    start = 8 + 2 + 12 * (len(tags) + 2) + 4
    tags[273] = (4, start + 2 * num_samples)
    entries = {
        number: struct.pack("<HHII", number, kind, 1, v) for number, (kind, v) in tags.items()
    }
    depth = bits or pixels.itemsize * 8
    if num_samples == 1:
        entries[258] = struct.pack("<HHII", 258, 3, 1, depth)
    else:
        entries[258] = struct.pack("<HHII", 258, 3, num_samples, start)
    table = b"".join(entries[number] for number in sorted(entries))
    depths: bytes = struct.pack("<H", depth) * num_samples
    head = struct.pack("<4sIH", b"II*\0", 8, len(entries))
    return head + table + bytes(4) + depths + body


def tags_first(data: bytes) -> bytes:
    """Lay out a one-strip TIFF of Pillow's anew, tags in front, so that a cut hits its pixels."""
    (at,) = struct.unpack_from("<I", data, 4)
    (num_tags,) = struct.unpack_from("<H", data, at)
    sizes = {2: 1, 3: 2, 4: 4, 5: 8}
    table, values = [], b""
    for i in range(num_tags):
        number, kind, count, value = struct.unpack_from("<HHI4s", data, at + 2 + 12 * i)
        place = int.from_bytes(value, "little")
        if number == 273:
            assert count == 1
            strip = place
        elif sizes[kind] * count > 4:
            value = struct.pack("<I", 8 + 2 + 12 * num_tags + 4 + len(values))
            values += data[place : place + sizes[kind] * count]
        table.append((number, kind, count, value))
    start = struct.pack("<I", 8 + 2 + 12 * num_tags + 4 + len(values))
    entries = b"".join(
        struct.pack("<HHI4s", n, k, c, start if n == 273 else v) for n, k, c, v in table
    )
    head = struct.pack("<4sIH", b"II*\0", 8, num_tags)
    return head + entries + bytes(4) + values + data[strip:at]


def png_chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def rows(pixels: npt.NDArray[Any]) -> bytes:
    """Pack ``(H, …)`` samples as PNG rows without a filter."""
    return zlib.compress(b"".join(b"\0" + row.tobytes() for row in pixels))


def interlaced_png(rgb: Pixels) -> bytes:
    """An Adam7 PNG, which Pillow reads but cannot write."""
    starts_and_steps = ["0088", "4088", "0448", "2044", "0224", "1022", "0112"]
    passes = [rgb[y::dy, x::dx] for x, y, dx, dy in (map(int, p) for p in starts_and_steps)]
    data = zlib.compress(b"".join(zlib.decompress(rows(part)) for part in passes))
    header = struct.pack(">IIBBBBB", rgb.shape[1], rgb.shape[0], 8, 2, 0, 0, 1)
    chunks = ((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)


def with_chunk(png: bytes, name: bytes, body: bytes) -> bytes:
    return png[:33] + png_chunk(name, body) + png[33:]
