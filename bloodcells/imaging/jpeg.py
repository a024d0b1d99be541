"""JPEG to pixels by libjpeg-turbo, reduced while it decodes where that is possible.

Every JPEG goes this way: unlike Pillow, simplejpeg can be told to stop where libjpeg would only
warn and fill what is missing with grey. The GIL is released meanwhile.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Self

import simplejpeg
from PIL import Image

from bloodcells.errors import ImageError
from bloodcells.imaging.colour import orientation_of, rgb_of_image, upright
from bloodcells.imaging.window import Pixels, Preprocess, Raster, check_size

MAGIC: Final = b"\xff\xd8"

_MAX_SCANS: Final = 200
"""Most scans of a progressive JPEG; encoders write about ten, each costs a pass over the image."""

_FRAMES: Final = {0xC0, 0xC1, 0xC2, 0xC9, 0xCA}
"""Baseline, extended and progressive, with Huffman and arithmetic coding."""

_PROGRESSIVE: Final = {0xC2, 0xCA}


def read(data: bytes, preprocess: Preprocess) -> Raster:
    """Decode a JPEG, no larger than ``preprocess`` needs it.

    Raises:
        ImageError: it is damaged, cut short, too large or of an uncommon kind.
    """
    header = _Header.parse(data)
    width, height = header.width, header.height
    check_size(width, height)
    if header.frame not in _FRAMES or header.precision != 8:
        kind = f"{header.precision} bits, SOF{header.frame - 0xC0}"
        raise ImageError("undecodable", f"JPEG of an uncommon kind: {kind}")
    if header.frame in _PROGRESSIVE and (num_scans := data.count(b"\xff\xda")) > _MAX_SCANS:
        raise ImageError("undecodable", f"JPEG of {num_scans} scans; the limit is {_MAX_SCANS}")
    if header.num_components == 4:
        inks = _decode(data, "CMYK", width, height)  # YCCK too
        if header.is_adobe:
            inks = 255 - inks  # Adobe writes how much white is left, not how much ink there is
        rgb = rgb_of_image(Image.frombytes("CMYK", (width, height), inks.tobytes()))
        return Raster.whole(upright(rgb, header.orientation))
    if header.num_components not in (1, 3):
        raise ImageError("undecodable", f"JPEG of {header.num_components} colour components")
    if header.orientation != 1:
        # The crop lies on the upright picture's grid, the inverse DCT on the stored one's.
        rgb = _decode(data, "RGB", width, height)
        return Raster.whole(upright(rgb, header.orientation), header.profile)
    r = preprocess.window(width, height).reduction
    return Raster(
        pixels=_decode(data, "RGB", math.ceil(width / r), math.ceil(height / r)),
        width_px=width,
        height_px=height,
        reduction=r,
        profile=header.profile,
    )


def _decode(data: bytes, colorspace: str, width: int, height: int) -> Pixels:
    """Decode to exactly ``width`` x ``height``, which is the JPEG's size over 1, 2, 4 or 8."""
    try:
        pixels: Pixels = simplejpeg.decode_jpeg(
            data, colorspace, min_width=width, min_height=height, strict=True
        )
    except ValueError as error:
        cause = str(error)
        if "subsampling" in cause:  # simplejpeg's word for most of what a header can lack
            cause = "damaged header, or an uncommon chroma subsampling"
        kind = "truncated JPEG" if "premature end" in cause.lower() else "JPEG"
        raise ImageError("undecodable", f"{kind}: {cause}") from error
    if pixels.shape[:2] != (height, width):
        raise ImageError("undecodable", f"JPEG: decoded to a shape of {pixels.shape}")
    return pixels


@dataclass(slots=True)
class _Header:
    """What the segments before a JPEG's first scan say."""

    frame: int = 0
    precision: int = 0
    width: int = 0
    height: int = 0
    num_components: int = 0
    orientation: int = 1
    is_adobe: bool = False
    profile: bytes | None = None

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Walk the segments. Source: ITU-T T.81, annex B; Adobe TN 5116; ICC.1:2022, annex B.4."""
        header = cls()
        profile: dict[int, bytes] = {}
        for marker, body in _segments(data):
            if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
                if header.frame or len(body) < 6:
                    raise ImageError("undecodable", "JPEG: damaged frame header")
                header.frame = marker
                header.precision, header.height, header.width, header.num_components = (
                    struct.unpack_from(">BHHB", body)
                )
            elif marker == 0xE1 and body.startswith(b"Exif\0\0"):
                header.orientation = orientation_of(body)
            elif marker == 0xE2 and body.startswith(b"ICC_PROFILE\0") and len(body) > 14:
                profile[body[12]] = body[14:]
            elif marker == 0xEE and body.startswith(b"Adobe"):
                header.is_adobe = True
        if not header.frame:
            raise ImageError("undecodable", "JPEG: no frame header before the first scan")
        if profile:
            header.profile = b"".join(profile[part] for part in sorted(profile))
        return header


def _segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield marker and body of each segment before the first scan."""
    at = len(MAGIC)
    while at + 4 <= len(data):
        if data[at] != 0xFF:
            raise ImageError("undecodable", f"JPEG: damaged header, no marker at byte {at}")
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker == 0xDA:
            return
        size = (data[at + 2] << 8) | data[at + 3]
        if size < 2 or marker < 0xC0 or 0xD0 <= marker <= 0xD9:
            raise ImageError("undecodable", f"JPEG: damaged header at byte {at}")
        yield marker, data[at + 4 : at + 2 + size]
        at += 2 + size
    raise ImageError("undecodable", f"truncated JPEG: its {len(data):,} bytes end in the header")
