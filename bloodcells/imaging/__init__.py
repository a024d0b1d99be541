"""Bytes to pixels: the one room of the project that decodes, crops and resizes an image.

Training, bulk scoring and the endpoint all call :func:`decode` with the bundle's
:class:`Preprocess`. It knows nothing of where bytes come from, of models, of normalisation or of
augmentation.

**What comes out.** The RGB that a person sees in a picture viewer, as ``uint8``. Containers are a
closed list (JPEG, PNG, BMP, TIFF, WebP), told by their first bytes and never by their name; the
first frame counts. EXIF orientation is applied, transparency laid on white, grey of 16 bits scaled
by its full range (``colour.py`` has the rules for every depth). An embedded RGB profile other than
sRGB is converted to sRGB, after the resize, where there is less to convert; grey and CMYK
profiles, PNG gamma and XMP are ignored.

**What is refused.** Nothing is allocated before the header's dimensions are known to be at most
``MAX_PIXELS``. A file that is cut short is never scored with its missing part filled in: libjpeg's
warnings count as errors, PNG checksums are verified and its data must fill every row.

**Crop and resize.** The crop is a centred square of ``crop`` times the shorter side. With ``r``
the largest of 8, 4, 2, 1 that leaves it at least ``size`` pixels wide, the crop lies on whole
multiples of ``r`` pixels, is averaged over ``r`` x ``r`` pixels, then resized with an antialiased
triangle filter. An ordinary JPEG comes out of libjpeg-turbo reduced by ``r`` already (a smaller
inverse DCT); any other image is averaged here. So a cell's pixels are nearly the same in every
container, and depend on nothing but the image's own bytes: not on its batch, not on threads.

A crop larger than the picture mirrors it at its edges. A :class:`Tone` then maps each channel by
the picture's own background, by a table of 256 levels.

**Measured** on an AMD EPYC (AVX2; simplejpeg 1.9.0 with libjpeg-turbo 3.1.2, torch 2.14.1) whose
two cores were busy with other work: CPU time an image in one thread, lowest of 84 passes over 32
PBC cells (JPEG 4:4:4, 360 x 363 px, 16.5 kB) to 96 px with crop 0.8, so that ``r`` is 2:

- ``decode_batch`` 0.47 ms, ``decode`` 0.53 ms; Pillow's own decode and resize 1.18 ms
- libjpeg-turbo alone: halved 0.38 ms, in full 0.74 ms; torchvision's decoder, in full, 0.75 ms
- ``decode`` of the same as PNG 4.8 ms, BMP 0.7 ms, LZW TIFF 2.5 ms, lossy WebP 2.0 ms; of its
  pixels 0.35 ms, of 96 x 96 pixels whole 0.01 ms

Over 300 PBC cells the halved JPEG differs from the same JPEG decoded in full and averaged by
0.24 grey levels on average (99 % of them by at most 1, the worst by 10), and from a full decode
resized in one antialiased step by 0.52 (99 %: 3.5, the worst 14).

libtiff writes its complaints about damaged TIFFs to standard error; nothing here can stop it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from bloodcells.errors import ImageError
from bloodcells.imaging import containers, jpeg
from bloodcells.imaging.colour import rgb_of_array, to_srgb
from bloodcells.imaging.tone import Tone
from bloodcells.imaging.window import MAX_PIXELS, Pixels, Preprocess, Raster, Window, resize

__all__ = [
    "MAX_PIXELS",
    "Picture",
    "Preprocess",
    "Tone",
    "Window",
    "content_hash",
    "decode",
    "decode_batch",
    "decode_small",
    "decode_whole",
]

_PIECE: Final = 8
"""Images that are resized together, and that a thread takes at a time: few enough to stay in
cache. 0.47 ms an image, as with 16; 0.49 ms with 32, 0.53 ms with one."""


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
    square = _read(data, preprocess)
    one = square.pixels.reshape(1, *square.pixels.shape)
    return square.finished(resize(one, preprocess.size)[0], preprocess)


def decode_batch(
    images: Sequence[bytes | npt.NDArray[np.generic]],
    preprocess: Preprocess,
    *,
    num_threads: int = 1,
) -> list[Picture | ImageError]:
    """Decode many images, each to the very pixels of :func:`decode`; faults stand in their place.

    A tenth faster than one by one, because images are resized together. libjpeg, zlib and
    the resize release the GIL, so that threads can share the work.
    """

    def decode_piece(start: int) -> list[Picture | ImageError]:
        return _decode_together(images[start : start + _PIECE], preprocess)

    starts = range(0, len(images), _PIECE)
    if num_threads == 1 or len(starts) <= 1:
        pieces = [decode_piece(start) for start in starts]
    else:
        with ThreadPoolExecutor(num_threads, thread_name_prefix="decode") as pool:
            pieces = list(pool.map(decode_piece, starts))
    return [picture for piece in pieces for picture in piece]


def decode_small(data: bytes | npt.NDArray[np.generic], size: int) -> Pixels:
    """Decode the centred square of a picture, for one who measures it and does without torch.

    Pillow resizes it, with the same filter: no pixel differs from :func:`decode`'s by more than a
    grey level or two.

    Args:
        data: as of :func:`decode`.
        size: side of the square, in px.

    Returns:
        ``uint8 (size, size, 3)``, RGB.

    Raises:
        ImageError: as :func:`decode`.
    """
    square = _read(data, Preprocess(size=size))
    small = Image.fromarray(square.pixels).resize((size, size), Image.Resampling.BILINEAR)
    return to_srgb(np.array(small), square.profile)


def decode_whole(data: bytes | npt.NDArray[np.generic], longest_px: int) -> Pixels:
    """Decode a whole picture in its own proportions, for a person to look at and no model.

    Args:
        data: as of :func:`decode`.
        longest_px: most pixels of its longer side; a smaller picture stays as it is.

    Returns:
        ``uint8 (H, W, 3)``, RGB.

    Raises:
        ImageError: as :func:`decode`.
    """
    raster = _raster(data, Preprocess(size=longest_px))
    picture = Image.fromarray(np.ascontiguousarray(raster.pixels))
    picture.thumbnail((longest_px, longest_px))
    return to_srgb(np.asarray(picture), raster.profile)


def content_hash(data: bytes | npt.NDArray[np.generic]) -> str:
    """Return the sha256 (64 hex digits) of encoded bytes, or of an array's dtype, shape, pixels."""
    if not isinstance(data, np.ndarray):
        return hashlib.sha256(data).hexdigest()
    digest = hashlib.sha256(f"{data.dtype.str} {data.shape}\n".encode())
    digest.update(data.tobytes())
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class _Square:
    """The part of a picture that is kept, ``uint8 (S, S, 3)``, with all else that matters of it."""

    pixels: Pixels
    width_px: int
    height_px: int
    profile: bytes | None

    def finished(self, resized: Pixels, preprocess: Preprocess) -> Picture:
        pixels = to_srgb(resized, self.profile)
        if preprocess.tone is not None:
            pixels = preprocess.tone.apply(pixels)
        return Picture(pixels, self.width_px, self.height_px)


def _raster(data: bytes | npt.NDArray[np.generic], preprocess: Preprocess) -> Raster:
    if isinstance(data, np.ndarray):
        return Raster.whole(rgb_of_array(data))
    if data.startswith(jpeg.MAGIC):
        return jpeg.read(data, preprocess)
    return containers.read(data)


def _read(data: bytes | npt.NDArray[np.generic], preprocess: Preprocess) -> _Square:
    raster = _raster(data, preprocess)
    window = preprocess.window(raster.width_px, raster.height_px)
    return _Square(window.cut(raster), raster.width_px, raster.height_px, raster.profile)


def _decode_together(
    images: Sequence[bytes | npt.NDArray[np.generic]], preprocess: Preprocess
) -> list[Picture | ImageError]:
    results: dict[int, Picture | ImageError] = {}
    by_side: dict[int, dict[int, _Square]] = {}
    for place, data in enumerate(images):
        try:
            square = _read(data, preprocess)
            by_side.setdefault(len(square.pixels), {})[place] = square
        except ImageError as fault:
            results[place] = fault
    for squares in by_side.values():
        stack = np.stack([square.pixels for square in squares.values()])
        resized = resize(stack, preprocess.size)
        for (place, square), pixels in zip(squares.items(), resized, strict=True):
            results[place] = square.finished(pixels, preprocess)
    return [results[place] for place in range(len(images))]
