"""Bytes to pixels: the one room of the project that decodes, crops and resizes an image.

Training, bulk scoring and the endpoint all call :func:`decode` with the bundle's
:class:`Preprocess`. It knows nothing of where bytes come from, of models, of normalisation or of
augmentation.

**What comes out.** The RGB that a person sees in a picture viewer, as ``uint8``. Containers are a
closed list (JPEG, PNG, BMP, TIFF, WebP), told by their first bytes and never by their name; the
first frame counts. EXIF orientation is applied, transparency laid on white, grey of 16 bits scaled
by its full range (``colour.py`` has the rules for every depth). An embedded RGB profile other than
sRGB is converted to sRGB, after the resize, where that costs a tenth; grey and CMYK profiles, PNG
gamma and XMP are ignored.

**What is refused.** Nothing is allocated before the header's dimensions are known to be at most
``MAX_PIXELS``. A file that is cut short is never scored with its missing part filled in: libjpeg's
warnings count as errors, PNG checksums are verified and its data must fill every row.

**Crop and resize.** The crop is a centred square of ``crop`` times the shorter side. With ``r``
the largest of 8, 4, 2, 1 that leaves it at least ``size`` pixels wide, the crop lies on whole
multiples of ``r`` pixels, is averaged over ``r`` x ``r`` pixels, then resized with an antialiased
triangle filter. An ordinary JPEG comes out of libjpeg-turbo reduced by ``r`` already (a smaller
inverse DCT); any other image is averaged here. So a cell's pixels are nearly the same in every
container, and depend on nothing but the image's own bytes: not on its batch, not on threads.

MEASURED
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from bloodcells.errors import ImageError
from bloodcells.imaging import containers, jpeg
from bloodcells.imaging.colour import rgb_of_array, to_srgb
from bloodcells.imaging.window import MAX_PIXELS, Pixels, Preprocess, Raster, Window, resize

__all__ = [
    "MAX_PIXELS",
    "Picture",
    "Preprocess",
    "Window",
    "content_hash",
    "decode",
    "decode_batch",
]

_PIECE: Final = 32
"""Images that a thread takes at a time, so that handing them over costs nothing beside decoding."""


@dataclass(frozen=True, slots=True)
class Picture:
    """One decoded image.

    Attributes:
        pixels: ``uint8 (size, size, 3)``, RGB, 0-255, contiguous.
        width_px: width of the whole picture as a person sees it, before crop and resize.
        height_px: its height.
    """

    pixels: Pixels
    width_px: int
    height_px: int


def decode(data: bytes | npt.NDArray[np.generic], preprocess: Preprocess) -> Picture:
    """Turn one image into the square of pixels that a model sees.

    Args:
        data: an encoded file (JPEG, PNG, BMP, TIFF or WebP), or pixels ``uint8`` of shape
            ``(H, W)``, ``(H, W, 1)``, ``(H, W, 3)`` or ``(H, W, 4)`` (the fourth is alpha).
        preprocess: crop and size.

    Raises:
        ImageError: ``too_large`` above ``MAX_PIXELS``; ``undecodable`` for everything else that
            is wrong with the data.
    """
    raster = _read(data, preprocess)
    window = preprocess.window(raster.width_px, raster.height_px)
    is_reduced = raster.reduction == window.reduction
    kept = window.cut(raster.pixels) if is_reduced else window.cut_and_reduce(raster.pixels)
    pixels = to_srgb(resize(kept, preprocess.size), raster.profile)
    return Picture(pixels, raster.width_px, raster.height_px)


def decode_batch(
    images: Sequence[bytes | npt.NDArray[np.generic]],
    preprocess: Preprocess,
    *,
    num_threads: int = 1,
) -> list[Picture | ImageError]:
    """Decode many images, each exactly as :func:`decode` would; faults stand in their place.

    libjpeg, zlib and the resize release the GIL, so threads share one process's work well.
    """

    def decode_piece(start: int) -> list[Picture | ImageError]:
        return [_decode_or_fault(data, preprocess) for data in images[start : start + _PIECE]]

    starts = range(0, len(images), _PIECE)
    if num_threads == 1 or len(starts) <= 1:
        pieces = [decode_piece(start) for start in starts]
    else:
        with ThreadPoolExecutor(num_threads, thread_name_prefix="decode") as pool:
            pieces = list(pool.map(decode_piece, starts))
    return [picture for piece in pieces for picture in piece]


def content_hash(data: bytes | npt.NDArray[np.generic]) -> str:
    """Return the sha256 (64 hex digits) of encoded bytes, or of an array's dtype, shape, pixels."""
    if not isinstance(data, np.ndarray):
        return hashlib.sha256(data).hexdigest()
    digest = hashlib.sha256(f"{data.dtype.str} {data.shape}\n".encode())
    digest.update(data.tobytes())
    return digest.hexdigest()


def _decode_or_fault(
    data: bytes | npt.NDArray[np.generic], preprocess: Preprocess
) -> Picture | ImageError:
    try:
        return decode(data, preprocess)
    except ImageError as fault:
        return fault


def _read(data: bytes | npt.NDArray[np.generic], preprocess: Preprocess) -> Raster:
    if isinstance(data, np.ndarray):
        return Raster.whole(rgb_of_array(data))
    if data.startswith(jpeg.MAGIC):
        return jpeg.read(data, preprocess)
    return containers.read(data)
