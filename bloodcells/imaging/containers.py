"""PNG, BMP, TIFF and WebP to pixels by Pillow, through the plugins of these four alone.

``Image.open`` is not used: it tries every plugin there is, and warns of sizes on its own terms.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from io import BytesIO
from typing import Final

from PIL import BmpImagePlugin, Image, TiffImagePlugin, WebPImagePlugin

from bloodcells.errors import ImageError
from bloodcells.imaging import png
from bloodcells.imaging.colour import orientation_of, rgb_of_image, upright
from bloodcells.imaging.window import Raster, check_size

_WARNINGS_LOCK: Final = threading.Lock()


def read(data: bytes) -> Raster:
    """Decode a file that is no JPEG.

    Raises:
        ImageError: it is damaged, cut short, too large, or none of the four.
    """
    kind, load = _kind_of(data)
    try:
        image = load(data)
        exif: bytes = image.info.get("exif") or b""
        profile: bytes | None = image.info.get("icc_profile")
        return Raster.whole(upright(rgb_of_image(image), orientation_of(exif)), profile)
    except (ImageError, MemoryError):
        raise  # the size was checked: too little memory is no fault of the image
    except Exception as error:  # Pillow answers damage with exceptions of every type
        cause = (
            str(error) if " " in str(error) else repr(error)
        )  # '320' says less than KeyError(320)
        kind = f"truncated {kind}" if "truncated" in cause.lower() else kind
        raise ImageError("undecodable", f"{kind}: {cause}") from error


def _kind_of(data: bytes) -> tuple[str, Callable[[bytes], Image.Image]]:
    if data.startswith(png.MAGIC):
        return "PNG", png.load
    if data.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "TIFF", _load_tiff
    if data.startswith(b"BM"):
        return "BMP", _load_bmp
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WebP", _load_webp
    if not data:
        raise ImageError("undecodable", "the file is empty (0 bytes)")
    raise ImageError(
        "undecodable",
        f"not a JPEG, PNG, BMP, TIFF or WebP: {len(data):,} bytes that begin with {data[:12]!r}",
    )


def _load_bmp(data: bytes) -> Image.Image:
    image = BmpImagePlugin.BmpImageFile(BytesIO(data))
    check_size(*image.size)
    image.load()
    return image


def _load_tiff(data: bytes) -> Image.Image:
    # Pillow warns of odd tags while it opens and loads a TIFF. The lock keeps two threads from
    # restoring each other's warning filters, at the price of one TIFF at a time in a process.
    with _WARNINGS_LOCK, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")
        image = TiffImagePlugin.TiffImageFile(BytesIO(data))
        check_size(*image.size)
        tags = image.tag_v2
        check_size(tags.get(TiffImagePlugin.TILEWIDTH, 1), tags.get(TiffImagePlugin.TILELENGTH, 1))
        _check_coverage(image)
        image.load()  # turns it upright as well
    return image


def _check_coverage(image: TiffImagePlugin.TiffImageFile) -> None:
    """Refuse a TIFF whose strips leave a part of the picture bare; Pillow would leave it black."""
    parts, tags = image.tile, image.tag_v2
    if parts and parts[0].codec_name == "libtiff":
        return  # which finds this itself
    is_planar = tags.get(TiffImagePlugin.PLANAR_CONFIGURATION) == 2
    num_planes = tags.get(TiffImagePlugin.SAMPLESPERPIXEL, 1) if is_planar else 1
    boxes = (part.extents for part in parts if part.extents is not None)
    covered = sum((right - left) * (bottom - top) for left, top, right, bottom in boxes)
    if covered < image.width * image.height * num_planes:
        raise ImageError("undecodable", "truncated TIFF: its strips do not cover the picture")


def _load_webp(data: bytes) -> Image.Image:
    # Opening allocates the canvas, so its size is read from the first chunk beforehand.
    # Source: RFC 9649 (WebP), sections 2.5 to 2.7 and 3.4; RFC 6386 (VP8), section 9.1.
    chunk, body = data[12:16], data[20:30]
    if chunk == b"VP8X":
        width, height = (int.from_bytes(body[i : i + 3], "little") + 1 for i in (4, 7))
    elif chunk == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    else:  # "VP8 "; Pillow refuses any other
        width, height = (int.from_bytes(body[i : i + 2], "little") & 0x3FFF for i in (6, 8))
    check_size(width, height)
    image = WebPImagePlugin.WebPImageFile(BytesIO(data))
    check_size(*image.size)
    image.load()
    return image
