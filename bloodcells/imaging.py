"""Bytes to pixels: the one place of the project that decodes, crops and resizes an image.

Training, bulk scoring and the endpoint all call :func:`decode` with the bundle's
:class:`Preprocess`. It knows nothing of where bytes come from, of models, of normalisation or of
augmentation.

**What comes out.** The RGB that a person sees in a picture viewer, as ``uint8``. Containers are a
closed list (JPEG, PNG, BMP, TIFF, WebP), told by their first bytes and never by their name; the
first frame counts. EXIF orientation is applied. Transparency is laid on white. Greys of 16 bits
are scaled by their full range (12 bits where a TIFF says so); float and 32-bit greys by the
smallest of 1, 255, 65,535 and 2**32 - 1 that holds their maximum. CMYK is converted without its
profile. An embedded RGB profile other than sRGB is converted to sRGB, after the resize, because
that is as good and costs a hundredth; grey and CMYK profiles, PNG gamma and XMP are ignored.

**What is refused.** Nothing is allocated before the header's dimensions are known to be at most
``MAX_PIXELS``. A file that is cut short is never scored with its missing part filled in: libjpeg's
warnings count as errors, PNG checksums are verified and its data must fill every row.

**Crop and resize.** The crop is a centred square of ``crop`` times the shorter side. With
``r`` the largest of 8, 4, 2, 1 that leaves it at least ``size`` pixels wide, the crop lies on
whole multiples of ``r`` pixels, is averaged over ``r`` x ``r`` pixels, then resized with an
antialiased triangle filter. An ordinary JPEG comes out of libjpeg-turbo already reduced by ``r``
(a smaller inverse DCT); every other image is averaged here. So the same cell gives nearly the same
pixels in any container, and an image's pixels depend on nothing but its own bytes.

**Measured** on one core of an AMD EPYC (AVX2; libjpeg-turbo 3.1.2, torch 2.14.1), best of 7 passes
over 400 PBC cells (JPEG 4:4:4, 360x363 px, 16.5 kB) to 96 px with crop 0.8, so ``r`` = 2:
MEASURED_TABLE
"""

from __future__ import annotations

import functools
import hashlib
import math
import struct
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from io import BytesIO
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt
import simplejpeg
import torch
from PIL import BmpImagePlugin, Image, ImageCms, PngImagePlugin, TiffImagePlugin, WebPImagePlugin
from torch.nn import functional

from bloodcells.errors import ConfigurationError, ImageError

Pixels = npt.NDArray[np.uint8]

MAX_PIXELS: Final = 2**25
"""Largest image that is decoded: 33,554,432 px, about 5,800 x 5,800, 100 MB as RGB."""

_MAX_SCANS: Final = 200
"""Most scans of a progressive JPEG; encoders write about ten, each costs a pass over the image."""

_REDUCTIONS: Final = (8, 4, 2, 1)
"""The scales at which libjpeg-turbo has a fast inverse DCT (3/8 and 6/8 are slower than 4/8)."""

_PIECE: Final = 32
"""Images a thread takes at a time: enough to make handing them over cost nothing."""


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """How a picture of any size becomes the square that a model sees. It travels with the bundle.

    Attributes:
        size: side of the square that comes out, in px.
        crop: side of the centred square that is kept, as a fraction of the shorter side, in (0, 1].
    """

    size: int = 96
    crop: float = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.size, bool) or not isinstance(self.size, int):
            raise ConfigurationError(f"preprocess size must be a whole number, not {self.size!r}")
        if not 8 <= self.size <= 1024:
            raise ConfigurationError(f"preprocess size must be 8 to 1024 px, not {self.size}")
        if isinstance(self.crop, bool) or not isinstance(self.crop, (int, float)):
            raise ConfigurationError(f"preprocess crop must be a number, not {self.crop!r}")
        if not 0 < self.crop <= 1:
            raise ConfigurationError(f"preprocess crop must be above 0 and at most 1: {self.crop}")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        """Build from :meth:`to_dict`'s result.

        Raises:
            ConfigurationError: a field is unknown, missing or out of range.
        """
        if set(fields) != {"size", "crop"}:
            raise ConfigurationError(f"preprocess needs size and crop, and has {sorted(fields)}")
        return cls(**fields)

    def window(self, width_px: int, height_px: int) -> Window:
        """Return which square of a ``width_px`` x ``height_px`` image is kept, and how reduced."""
        side_px = max(1, round(self.crop * min(width_px, height_px)))
        r = next((r for r in _REDUCTIONS if side_px // r >= self.size), 1)
        side = side_px // r
        return Window(
            reduction=r,
            left=(width_px - side * r + r) // (2 * r),
            top=(height_px - side * r + r) // (2 * r),
            side=side,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A square of an image that was reduced by a whole factor; lengths in reduced pixels."""

    reduction: int
    left: int
    top: int
    side: int

    def cut(self, pixels: Pixels) -> Pixels:
        """Return the window's part of ``pixels``, which are reduced already."""
        return pixels[self.top : self.top + self.side, self.left : self.left + self.side]

    def cut_and_reduce(self, pixels: Pixels) -> Pixels:
        """Return the window's part of full-size ``pixels (H, W, 3)``, averaged to its scale."""
        r = self.reduction
        top, left, side = self.top * r, self.left * r, self.side * r
        kept = pixels[top : top + side, left : left + side]
        return kept if r == 1 else np.asarray(Image.fromarray(np.array(kept)).reduce(r))


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
    if isinstance(data, np.ndarray):
        return _fit(_rgb_of_array(data), preprocess)
    if data.startswith(b"\xff\xd8"):
        return _decode_jpeg(data, preprocess)
    return _decode_with_pillow(data, preprocess)


def decode_batch(
    images: Sequence[bytes | npt.NDArray[np.generic]],
    preprocess: Preprocess,
    *,
    num_threads: int = 1,
) -> list[Picture | ImageError]:
    """Decode many images, each exactly as :func:`decode` would; faults stand in their place.

    Decoders and the resize release the GIL, so threads share the work of one process well.
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
    digest.update(np.ascontiguousarray(data).data if data.size else b"")
    return digest.hexdigest()


def _decode_or_fault(
    data: bytes | npt.NDArray[np.generic], preprocess: Preprocess
) -> Picture | ImageError:
    try:
        return decode(data, preprocess)
    except ImageError as fault:
        return fault


# Pixels --------------------------------------------------------------------------------------


def _check_size(width: int, height: int) -> None:
    if width < 1 or height < 1:
        raise ImageError("undecodable", f"the image has no pixels: {width} x {height} px")
    if width * height > MAX_PIXELS:
        raise ImageError(
            "too_large",
            f"{width} x {height} px are {width * height:,} pixels; the limit is {MAX_PIXELS:,}",
        )


def _fit(rgb: Pixels, preprocess: Preprocess, profile: bytes | None = None) -> Picture:
    """Crop and resize a whole decoded picture ``(H, W, 3)``, then convert it to sRGB."""
    height, width = rgb.shape[:2]
    kept = preprocess.window(width, height).cut_and_reduce(rgb)
    return Picture(_to_srgb(_resize(kept, preprocess.size), profile), width, height)


def _resize(pixels: Pixels, size: int) -> Pixels:
    """Resize a square ``(S, S, 3)`` to ``(size, size, 3)``, antialiased; always a fresh array."""
    kept = np.array(pixels, order="C")  # torch wants it writable, callers keep their own pixels
    if len(kept) == size:
        return kept
    # With the batch axis added before the permutation the strides say channels-last beyond doubt,
    # and torch takes its AVX2 path for uint8 RGB: 50 µs; without, 140 µs. It is integer
    # arithmetic in one thread, whatever torch.set_num_threads says.
    nchw = torch.from_numpy(kept[None]).permute(0, 3, 1, 2)
    resized = functional.interpolate(nchw, size=(size, size), mode="bilinear", antialias=True)
    return np.ascontiguousarray(resized.permute(0, 2, 3, 1).numpy()[0])


def _rgb_of_array(pixels: npt.NDArray[np.generic]) -> Pixels:
    shape, dtype = pixels.shape, pixels.dtype
    if (
        dtype != np.uint8
        or len(shape) not in (2, 3)
        or (len(shape) == 3 and shape[2] not in (1, 3, 4))
    ):
        raise ImageError(
            "undecodable",
            f"an array of {dtype} {shape}; pixels must be uint8 (H, W) or (H, W, 1, 3 or 4)",
        )
    _check_size(shape[1], shape[0])
    values = pixels.astype(np.uint8, copy=False)
    if len(shape) == 3 and shape[2] == 3:
        return values
    if len(shape) == 3 and shape[2] == 4:
        return _rgb_of_image(Image.fromarray(np.ascontiguousarray(values)))
    return np.repeat(values.reshape(shape[0], shape[1], 1), 3, axis=2)


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    """Undo an EXIF orientation (1-8). Source: CIPA DC-008 (Exif 2.32), tag 0x0112."""
    turned: dict[int, Callable[[Pixels], Pixels]] = {
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: a[::-1].transpose(1, 0, 2),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: a[:, ::-1].transpose(1, 0, 2),
    }
    return turned[orientation](pixels) if orientation in turned else pixels


def _orientation(exif: bytes) -> int:
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
                return value if kind == 3 and 1 <= value <= 8 else 1
    except struct.error:
        pass  # a damaged EXIF block says nothing; the picture itself may be whole
    return 1


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


def _to_srgb(pixels: Pixels, profile: bytes | None) -> Pixels:
    transform = _srgb_transform(profile) if profile else None
    if transform is None:
        return pixels
    return np.array(transform.apply(Image.fromarray(pixels)))


# JPEG ----------------------------------------------------------------------------------------


@dataclass(slots=True)
class _JpegHeader:
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
    def parse(cls, data: bytes) -> _JpegHeader:
        """Walk the segments. Source: ITU-T T.81, annex B; Adobe TN 5116; ICC.1:2022, annex B.4."""
        header = cls()
        profile: dict[int, bytes] = {}
        for marker, body in _jpeg_segments(data):
            if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
                if header.frame or len(body) < 6:
                    raise ImageError("undecodable", "JPEG: a damaged frame header")
                header.frame = marker
                (header.precision, header.height, header.width, header.num_components) = (
                    struct.unpack_from(">BHHB", body)
                )
            elif marker == 0xE1 and body.startswith(b"Exif\0\0"):
                header.orientation = _orientation(body)
            elif marker == 0xE2 and body.startswith(b"ICC_PROFILE\0") and len(body) > 14:
                profile[body[12]] = body[14:]
            elif marker == 0xEE and body.startswith(b"Adobe"):
                header.is_adobe = True
        if not header.frame:
            raise ImageError("undecodable", "JPEG: no frame header before the first scan")
        if profile:
            header.profile = b"".join(profile[i] for i in sorted(profile))
        return header


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield marker and body of each segment before the first scan."""
    at, end = 2, len(data)
    while at + 4 <= end:
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
    raise ImageError("undecodable", f"truncated JPEG: its {end:,} bytes end inside the header")


def _decode_jpeg(data: bytes, preprocess: Preprocess) -> Picture:
    header = _JpegHeader.parse(data)
    width, height = header.width, header.height
    _check_size(width, height)
    # Baseline, extended and progressive, Huffman or arithmetic: what viewers show.
    if header.frame not in (0xC0, 0xC1, 0xC2, 0xC9, 0xCA) or header.precision != 8:
        raise ImageError(
            "undecodable",
            f"JPEG of an uncommon kind: {header.precision} bits, SOF{header.frame - 0xC0}",
        )
    if header.frame in (0xC2, 0xCA) and (scans := data.count(b"\xff\xda")) > _MAX_SCANS:
        raise ImageError("undecodable", f"JPEG of {scans} scans; the limit is {_MAX_SCANS}")
    if header.num_components == 4:
        inks = _libjpeg(data, "CMYK", width, height)
        # Adobe writes inks inverted; libjpeg has already made YCCK into CMYK.
        image = Image.frombytes(
            "CMYK", (width, height), (255 - inks if header.is_adobe else inks).tobytes()
        )
        return _fit(_upright(_rgb_of_image(image), header.orientation), preprocess)
    if header.num_components not in (1, 3):
        raise ImageError("undecodable", f"JPEG of {header.num_components} colour components")
    if header.orientation != 1:
        # The crop lies on the upright picture's grid, the inverse DCT on the stored one's.
        rgb = _upright(_libjpeg(data, "RGB", width, height), header.orientation)
        return _fit(rgb, preprocess, header.profile)
    window = preprocess.window(width, height)
    r = window.reduction
    reduced = _libjpeg(data, "RGB", math.ceil(width / r), math.ceil(height / r))
    pixels = _resize(window.cut(reduced), preprocess.size)
    return Picture(_to_srgb(pixels, header.profile), width, height)


def _libjpeg(data: bytes, colorspace: str, width: int, height: int) -> Pixels:
    """Decode to exactly ``width`` x ``height``, which must be the JPEG's size over 1, 2, 4 or 8."""
    try:
        # Strict: what libjpeg merely warns of, such as a premature end, it fills with grey.
        pixels: Pixels = simplejpeg.decode_jpeg(
            data, colorspace, min_width=width, min_height=height, strict=True
        )
    except ValueError as error:
        cause = str(error)
        if "subsampling" in cause:
            cause = "damaged, or of an uncommon chroma subsampling"
        kind = "truncated JPEG" if "premature end" in cause.lower() else "JPEG"
        raise ImageError("undecodable", f"{kind}: {cause}") from error
    if pixels.shape[:2] != (height, width):
        raise ImageError(
            "undecodable", f"JPEG: decoded to {pixels.shape[1]} x {pixels.shape[0]} px"
        )
    return pixels


# PNG, BMP, TIFF, WebP ------------------------------------------------------------------------

_PNG: Final = b"\x89PNG\r\n\x1a\n"
_TIFF: Final = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PILLOW_LOCK: Final = threading.Lock()


def _decode_with_pillow(data: bytes, preprocess: Preprocess) -> Picture:
    if not data:
        raise ImageError("undecodable", "the file is empty (0 bytes)")
    reader: Callable[[bytes], Image.Image]
    if data.startswith(_PNG):
        kind, reader = "PNG", _open_png
    elif data.startswith(_TIFF):
        kind, reader = "TIFF", _open_tiff
    elif data.startswith(b"BM"):
        kind, reader = "BMP", _open_bmp
    elif data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        kind, reader = "WebP", _open_webp
    else:
        raise ImageError(
            "undecodable",
            f"not a JPEG, PNG, BMP, TIFF or WebP: its {len(data):,} bytes begin with {data[:12]!r}",
        )
    try:
        image = reader(data)
        rgb = _upright(_rgb_of_image(image), _orientation(image.info.get("exif") or b""))
        profile = image.info.get("icc_profile")
    except (ImageError, MemoryError):
        raise  # too little memory is no fault of the image, whose size was checked
    except Exception as error:  # Pillow meets damage with any exception there is
        kind = f"truncated {kind}" if "truncated" in str(error) else kind
        raise ImageError("undecodable", f"{kind}: {error or type(error).__name__}") from error
    return _fit(rgb, preprocess, profile)


def _rgb_of_image(image: Image.Image) -> Pixels:
    """Return ``(H, W, 3)`` of a loaded image of any mode, transparency laid on white."""
    if image.mode.startswith("I") or image.mode == "F":
        return np.repeat(_deep_grey(image)[:, :, None], 3, axis=2)
    if image.mode in ("LAB", "HSV"):
        raise ImageError("undecodable", f"colours in {image.mode}, which viewers do not show")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return np.asarray(image.convert("RGB"))


def _deep_grey(image: Image.Image) -> Pixels:
    """Scale grey of more than 8 bits ``(H, W)`` to 0-255 by the range it was written for."""
    tags = getattr(image, "tag_v2", {})
    values = np.asarray(image).astype(np.float32)
    if image.mode.startswith("I;16"):
        white = 2.0 ** tags.get(TiffImagePlugin.BITSPERSAMPLE, (16,))[0] - 1
    else:
        lowest, highest = float(values.min()), float(values.max())
        whites = (1.0, 255.0, 65535.0, 2.0**32) if image.mode == "F" else (255.0, 65535.0, 2.0**32)
        if not (lowest >= 0 and highest <= whites[-1]):  # NaN fails both
            raise ImageError(
                "undecodable", f"grey values from {lowest:g} to {highest:g} have no fixed white"
            )
        white = next(w for w in whites if highest <= w)
    grey: Pixels = np.rint(values * (255 / white)).astype(np.uint8)
    if tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0:
        np.subtract(255, grey, out=grey)
    if "transparency" in image.info:
        grey[values == image.info["transparency"]] = 255
    return grey


def _open_bmp(data: bytes) -> Image.Image:
    image = BmpImagePlugin.BmpImageFile(BytesIO(data))
    _check_size(*image.size)
    image.load()
    return image


def _open_webp(data: bytes) -> Image.Image:
    # Opening allocates the canvas, so its size is read from the first chunk beforehand.
    # Source: RFC 9649 (WebP), sections 2.5 to 2.7; RFC 6386 (VP8), section 9.1.
    chunk, body = data[12:16], data[20:30]
    if chunk == b"VP8X":
        width, height = (int.from_bytes(body[i : i + 3], "little") + 1 for i in (4, 7))
    elif chunk == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    else:  # "VP8 "; libwebp refuses any other
        width, height = (int.from_bytes(body[i : i + 2], "little") & 0x3FFF for i in (6, 8))
    _check_size(width, height)
    image = WebPImagePlugin.WebPImageFile(BytesIO(data))
    _check_size(*image.size)
    image.load()
    return image


def _open_tiff(data: bytes) -> Image.Image:
    # Pillow warns of odd tags while it opens and loads a TIFF. The lock keeps two threads from
    # restoring each other's warning filters, at the price of one TIFF at a time in a process.
    with _PILLOW_LOCK, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")
        image = TiffImagePlugin.TiffImageFile(BytesIO(data))
        _check_size(*image.size)
        tags = image.tag_v2
        _check_size(tags.get(TiffImagePlugin.TILEWIDTH, 1), tags.get(TiffImagePlugin.TILELENGTH, 1))
        image.load()  # applies the orientation
    return image


_PNG_CHUNKS: Final = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"eXIf", b"iCCP", b"sRGB")
"""What makes up the first frame; animation, texts and the rest never reach Pillow."""

_ADAM7: Final = (
    (0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2),
)  # fmt: skip
"""First column and row, column and row step of each pass. Source: PNG (W3C 2003), section 8.2."""


def _open_png(data: bytes) -> Image.Image:
    chunks: list[tuple[bytes, bytes]] = []
    for name, chunk in _png_chunks(data):
        if not chunks:
            if name != b"IHDR" or len(chunk) != 25:
                raise ImageError("undecodable", f"PNG: begins with {name!r}, not with its header")
            width, height, depth, colour, *_, interlaced = struct.unpack_from(">IIBBBBB", chunk, 8)
            _check_size(width, height)
        chunks.append((name, chunk))
    image = PngImagePlugin.PngImageFile(BytesIO(_PNG + b"".join(chunk for _, chunk in chunks)))
    image.load()
    # Pillow leaves rows that the data does not reach at zero without a word.
    if interlaced or not np.asarray(image)[-1].any():
        bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
        expected = 0
        for x, y, dx, dy in _ADAM7 if interlaced else ((0, 0, 1, 1),):
            columns, rows = -(-(width - x) // dx), -(-(height - y) // dy)
            expected += rows * (1 + (columns * bits + 7) // 8) if columns > 0 < rows else 0
        if not _inflates_to(expected, b"".join(c[8:-4] for name, c in chunks if name == b"IDAT")):
            raise ImageError("undecodable", "truncated PNG: its data end before the last row")
    # tRNS counts in the file's own depth, Pillow's pixels have 8 bits (grey of 16 keeps them).
    grey_or_rgb = image.info.get("transparency")
    if depth < 8 and isinstance(grey_or_rgb, int) and colour == 0:
        image.info["transparency"] = grey_or_rgb * 255 // (2**depth - 1)
    elif depth == 16 and isinstance(grey_or_rgb, tuple):
        image.info["transparency"] = tuple(level >> 8 for level in grey_or_rgb)
    return image


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield name and whole bytes of each chunk that matters, checksums verified."""
    at = len(_PNG)
    while at + 12 <= len(data):
        (size,) = struct.unpack_from(">I", data, at)
        name, chunk = data[at + 4 : at + 8], data[at : at + 12 + size]
        if len(chunk) < 12 + size:
            break
        if name in _PNG_CHUNKS:
            if zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], "big"):
                yield name, chunk
            elif name.isupper():  # the others are dispensable
                raise ImageError("undecodable", f"PNG: wrong checksum of {name!r} at byte {at}")
        if name == b"IEND":
            return
        at += 12 + size
    raise ImageError("undecodable", f"truncated PNG: its {len(data):,} bytes end before IEND")


def _inflates_to(expected: int, stream: bytes) -> bool:
    """Whether a zlib stream holds at least ``expected`` bytes; never holds more than 64 MiB."""
    inflator, total = zlib.decompressobj(), 0
    for start in range(0, len(stream), 2**16):
        total += len(inflator.decompress(stream[start : start + 2**16]))
    return total >= expected
