"""Pixels of any kind to the RGB that a person sees: depth, transparency, rotation, profile.

Knows nothing of files, crops and sizes.
"""

from __future__ import annotations

import functools
import struct
from io import BytesIO

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms, TiffImagePlugin

from bloodcells.errors import ImageError
from bloodcells.imaging.window import Pixels, check_size


def rgb_of_array(pixels: npt.NDArray[np.generic]) -> Pixels:
    """Return ``uint8 (H, W, 3)`` of pixels ``uint8 (H, W)`` or ``(H, W, 1 | 3 | 4)``.

    Raises:
        ImageError: another dtype or shape, or a size that ``check_size`` refuses.
    """
    shape = pixels.shape
    if (
        pixels.dtype != np.uint8
        or len(shape) not in (2, 3)
        or shape[2:] not in ((), (1,), (3,), (4,))
    ):
        raise ImageError(
            "undecodable",
            f"an array of {pixels.dtype} {shape}; pixels are uint8 (H, W) or (H, W, 1 | 3 | 4)",
        )
    check_size(shape[1], shape[0])
    levels = pixels.astype(np.uint8, copy=False)
    if shape[2:] == (3,):
        return levels
    if shape[2:] == (4,):
        return rgb_of_image(Image.fromarray(np.ascontiguousarray(levels)))
    return _grey_as_rgb(levels.reshape(shape[:2]))


def rgb_of_image(image: Image.Image) -> Pixels:
    """Return ``uint8 (H, W, 3)`` of a loaded image of any mode, transparency laid on white.

    Raises:
        ImageError: a colour space that viewers do not show, or grey without a fixed white.
    """
    if image.mode.startswith("I") or image.mode == "F":
        return _grey_as_rgb(_deep_grey(image))
    if image.mode in ("LAB", "HSV"):
        raise ImageError("undecodable", f"colours in {image.mode}, which viewers do not show")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return np.asarray(image.convert("RGB"))


def _grey_as_rgb(grey: Pixels) -> Pixels:
    return np.repeat(grey[:, :, None], 3, axis=2)


def _deep_grey(image: Image.Image) -> Pixels:
    """Scale grey of more than 8 bits ``(H, W)`` to 0-255.

    White is the largest value of the 16 bits (or of the 12 that a TIFF says it uses); of float and
    32-bit values, which have no agreed white, the smallest of 1 (float only), 255, 65,535 and
    2**32 - 1 that holds the image's maximum.
    """
    tags = getattr(image, "tag_v2", {})
    values = np.asarray(image).astype(np.float32)
    if image.mode.startswith("I;16"):
        white = 2.0 ** tags.get(TiffImagePlugin.BITSPERSAMPLE, (16,))[0] - 1
    else:
        lowest, highest = float(values.min()), float(values.max())
        whites = (1.0, 255.0, 65535.0, 2.0**32 - 1)[image.mode != "F" :]
        if not (lowest >= 0 and highest <= whites[-1]):  # NaN fails as well
            raise ImageError(
                "undecodable", f"grey values from {lowest:g} to {highest:g} have no agreed white"
            )
        white = next(w for w in whites if highest <= w)
    grey: Pixels = np.rint(np.minimum(values, white) * (255 / white)).astype(np.uint8)
    if tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0:  # white is zero
        np.subtract(255, grey, out=grey)
    if "transparency" in image.info:
        grey[values == image.info["transparency"]] = 255
    return grey


def upright(pixels: Pixels, orientation: int) -> Pixels:
    """Turn and mirror ``(H, W, 3)`` as EXIF says. Source: CIPA DC-008 (Exif 2.32), tag 0x0112.

    Args:
        pixels: as stored.
        orientation: 1-8; 1 is upright already.
    """
    if orientation in (2, 3, 7, 8):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 6, 7):
        pixels = pixels[::-1]
    return pixels.transpose(1, 0, 2) if orientation >= 5 else pixels


def orientation_of(exif: bytes) -> int:
    """Return the orientation (1-8) in an EXIF block, and 1 where it says nothing sensible."""
    tiff = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(f"{order}I", tiff, 4)
        (num_tags,) = struct.unpack_from(f"{order}H", tiff, start)
        for i in range(num_tags):
            tag, kind, _, value = struct.unpack_from(f"{order}HHIH", tiff, start + 2 + 12 * i)
            if tag == 0x0112:
                return int(value) if kind == 3 and 1 <= value <= 8 else 1
    except struct.error:
        pass  # a damaged block says nothing; the picture itself may be whole
    return 1


def to_srgb(pixels: Pixels, profile: bytes | None) -> Pixels:
    """Convert ``uint8 (H, W, 3)`` from an embedded ICC profile; unusable profiles are ignored."""
    transform = _srgb_transform(profile) if profile else None
    return pixels if transform is None else np.array(transform.apply(Image.fromarray(pixels)))


@functools.lru_cache(maxsize=16)
def _srgb_transform(profile: bytes) -> ImageCms.ImageCmsTransform | None:
    """Return the conversion of an RGB profile to sRGB; ``None`` where there is nothing to do."""
    if profile[16:20] != b"RGB ":
        return None
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        if "srgb" in ImageCms.getProfileDescription(source).lower():
            return None
        return ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), "RGB", "RGB")
    except (ImageCms.PyCMSError, OSError):
        return None  # as browsers do: a broken profile is no profile
