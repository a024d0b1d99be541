"""Image files that are damaged, or sound but out of the ordinary, with what should become of each.

For tests of everything that reads images. Knows nothing of how images are read.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import numpy as np
from PIL import Image

from bloodcells.synthetic.cells import draw_cell
from bloodcells.synthetic.optics import ByteArray
from bloodcells.synthetic.slides import ImageFile, encode_jpeg

HUGE_PX: Final = 30_000
"""Side of the pictures that are too large: 2.7 GB as RGB."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DamagedFile(ImageFile):
    """An image file and what should become of it.

    Attributes:
        expected_reason: the quarantine reason of ``records.REASONS``; ``None`` where the image is
            sound and must be scored.
        why: what is the matter with it, for a person.
        shows: the RGB a person would see, uint8 (H, W, 3), for sound images; lossy formats come
            within a few grey levels. ``None`` for damaged ones.
        archive_only: whether no folder on disk can hold it, because of its name.
    """

    expected_reason: str | None
    why: str
    shows: ByteArray | None = None
    archive_only: bool = False


@cache
def damaged_files() -> tuple[DamagedFile, ...]:
    """Return one file for every kind of damage, and one for every unusual but sound image.

    All are labelled neutrophil. The same on every call.
    """
    return (*_damaged(), *_unusual_formats(), *_unusual_names())


def _damaged() -> Iterator[DamagedFile]:
    picture = _picture(0)
    jpeg, png = encode_jpeg(picture), _saved(Image.fromarray(picture), "PNG")
    contents = {
        "truncated.jpg": (jpeg[: len(jpeg) // 2], "a JPEG cut off in the middle"),
        "header-only.jpg": (jpeg[:160], "a JPEG cut off before its first pixel"),
        "truncated.png": (png[: len(png) // 2], "a PNG cut off in the middle"),
        "empty.jpg": (b"", "a file of no bytes"),
        "text.jpg": (b"Slide 12 was broken in transport.\n", "text that is named .jpg"),
        "page.png": (b"<!doctype html><title>404</title>", "an error page saved as an image"),
        "zeros.tif": (bytes(20_000), "a file that was allocated and never written"),
        "no-pixels.png": (make_png(0, 0, 8, 2, zlib.compress(b"")), "a PNG 0 px wide"),
    }
    for name, (data, why) in contents.items():
        yield _file(name, data, "undecodable", why)
    huge = {
        "huge.png": (
            make_png(HUGE_PX, HUGE_PX, 8, 2, zlib.compress(bytes(HUGE_PX * 100), 9)),
            "a PNG of few bytes whose header claims 30,000×30,000 px",
        ),
        "huge-whole.png": (_huge_png(), "a sound PNG of 110 kB with 30,000×30,000 px of 1 bit"),
        "huge.jpg": (_claim_size(jpeg, HUGE_PX), "a JPEG whose header claims 30,000×30,000 px"),
    }
    for name, (data, why) in huge.items():
        yield _file(name, data, "too_large", why)


def _unusual_formats() -> Iterator[DamagedFile]:
    picture = _picture(1)
    image = Image.fromarray(picture)
    grey = np.asarray(image.convert("L"))
    as_grey = np.repeat(grey[..., None], 3, axis=2)
    paletted = image.quantize(64)
    turned = Image.Exif()
    turned[0x0112] = 6  # "rotate by 90° clockwise to view"
    on_its_side = image.transpose(Image.Transpose.ROTATE_90)
    wide = grey.astype(np.uint16) * 257
    rows = (picture.astype(">u2") * 257).reshape(len(picture), -1).view(np.uint8)
    deep = zlib.compress(np.pad(rows, ((0, 0), (1, 0))).tobytes())  # filter 0 before each row
    transparent = Image.merge("RGBA", (*image.split(), Image.new("L", image.size, 255)))
    contents: dict[str, tuple[bytes, str, ByteArray]] = {
        "progressive.jpg": (
            _saved(image, "JPEG", quality=95, progressive=True),
            "a progressive JPEG",
            picture,
        ),
        "grey.jpg": (_saved(Image.fromarray(grey), "JPEG", quality=95), "a grey JPEG", as_grey),
        "cmyk.jpg": (
            _saved(image.convert("CMYK"), "JPEG", quality=95),
            "a JPEG in printing colours",
            picture,
        ),
        "turned.jpg": (
            _saved(on_its_side, "JPEG", quality=95, exif=turned),
            "a JPEG that EXIF says to rotate",
            picture,
        ),
        "palette.png": (
            _saved(paletted, "PNG"),
            "a PNG with a palette",
            np.asarray(paletted.convert("RGB")),
        ),
        "alpha.png": (_saved(transparent, "PNG"), "a PNG with an alpha channel", picture),
        "grey-16-bit.png": (_saved(Image.fromarray(wide), "PNG"), "a grey 16-bit PNG", as_grey),
        "grey-16-bit.tif": (_saved(Image.fromarray(wide), "TIFF"), "a grey 16-bit TIFF", as_grey),
        "colour-16-bit.png": (
            make_png(picture.shape[1], picture.shape[0], 16, 2, deep),
            "a colour 16-bit PNG",
            picture,
        ),
        "plain.bmp": (_saved(image, "BMP"), "a BMP", picture),
        "packed.tiff": (_saved(image, "TIFF", compression="tiff_lzw"), "an LZW TIFF", picture),
        "lossless.webp": (_saved(image, "WEBP", lossless=True), "a WebP", picture),
        "really-a-png.jpg": (_saved(image, "PNG"), "a PNG that is named .jpg", picture),
        "SHOUTING.JPG": (_saved(image, "JPEG", quality=95), "an ending in capitals", picture),
        "one-pixel.png": (_saved(image.crop((0, 0, 1, 1)), "PNG"), "one pixel", picture[:1, :1]),
    }
    for name, (data, why, shows) in contents.items():
        yield _file(name, data, None, why, shows=shows)


def _unusual_names() -> Iterator[DamagedFile]:
    names = {
        "<img src=x onerror=alert(1)>.jpg": "HTML in its name",
        '"><script>alert(1)<script>.jpg': "HTML that ends an attribute in its name",
        "\x1b[2J\x1b[31mred\x07.jpg": "terminal escapes in its name",
        "two\nlines.jpg": "a line break in its name",
        "a#b@1?c=%20&d.jpg": "the punctuation of URIs in its name",
        "[ab]*{c}.jpg": "the punctuation of patterns in its name",
        "-rf.jpg": "a name that looks like an option",
        " spaces  .jpg": "spaces in its name",
        "dots..dots.jpg": "two dots in its name",
        "=1+1,'quoted;.jpg": "the punctuation of tables in its name",
        "zelle-мазок-血液-🩸.jpg": "a name in several scripts",
        "\u202egpj.exe.jpg": "a name that is written from right to left",
        "e\u0301.jpg": "an accent as a character of its own",
        "l" + "o" * 240 + "ng.jpg": "the longest name that a disk takes",
    }
    outside = {
        "../outside.jpg": "a name that leads out of its folder",
        "../../../../etc/outside.jpg": "a name that leads out of everything",
        "/".join(["deep" * 10] * 60) + ".jpg": "a path of 2,400 characters",
    }
    for number, (name, why) in enumerate((names | outside).items(), start=2):
        picture = _picture(number)
        data, away = encode_jpeg(picture, 95), name in outside
        yield _file(name, data, None, why, shows=picture, archive_only=away)


def _file(name: str, data: bytes, reason: str | None, why: str, **more: Any) -> DamagedFile:
    return DamagedFile(
        name=name, label="neutrophil", data=data, expected_reason=reason, why=why, **more
    )


def _picture(seed: int) -> ByteArray:
    """Draw a neutrophil in a frame that is higher than wide, so that a wrong turn shows."""
    return draw_cell("neutrophil", seed)[:, 30:330]


def _saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def make_png(width: int, height: int, bit_depth: int, colour_type: int, packed: bytes) -> bytes:
    """Assemble a PNG from a header that may lie and a zlib stream of rows.

    Args:
        width: what the header claims, in px.
        height: what the header claims, in px.
        bit_depth: bits a channel, 1–16.
        colour_type: 0 grey, 2 RGB, 3 palette, 6 RGBA.
        packed: compressed rows, each after its filter byte.

    Source: W3C, Portable Network Graphics (PNG) Specification, section 5.
    """

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, bit_depth, colour_type, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def _huge_png() -> bytes:
    """Pack 30,000 black rows of 1 bit a pixel without holding them: 112 MB become 110 kB."""
    packer = zlib.compressobj(9)
    rows = bytes(100 * (1 + HUGE_PX // 8))
    packed = b"".join(packer.compress(rows) for _ in range(HUGE_PX // 100)) + packer.flush()
    return make_png(HUGE_PX, HUGE_PX, 1, 0, packed)


def _claim_size(jpeg: bytes, side_px: int) -> bytes:
    """Write another size into the frame header (SOF0) of a baseline JPEG."""
    start = jpeg.index(b"\xff\xc0") + 5
    return jpeg[:start] + struct.pack(">HH", side_px, side_px) + jpeg[start + 4 :]
