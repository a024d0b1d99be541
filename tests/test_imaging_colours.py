"""Every image comes out in the colours, and the right way up, that a person sees."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageCms

from bloodcells.synthetic import damaged_files
from bloodcells.synthetic.damage import make_png
from tests.image_files import (
    HEIGHT,
    WIDTH,
    Pixels,
    assert_shows,
    encode,
    fault_of,
    interlaced_png,
    painting,
    rows,
    seen,
    tiff,
    with_chunk,
)


@pytest.mark.parametrize("file", damaged_files(), ids=lambda file: file.why)
def test_every_kind_of_file_ends_as_it_should(file: Any) -> None:
    if file.expected_reason is not None:
        assert fault_of(file.data).reason == file.expected_reason
    elif file.shows is not None:
        difference = np.abs(seen(file.data) - seen(file.shows))
        assert difference.mean() < 1.5
        assert np.percentile(difference, 99) <= 12


def unusual() -> dict[str, tuple[bytes, Pixels]]:
    """Files of every depth and colour model, and the RGB that each shows, exactly."""
    rgb = painting()
    image = Image.fromarray(rgb)
    grey = rgb[:, :, 0]
    grey3 = np.repeat(grey[:, :, None], 3, axis=2)
    half = np.full_like(grey, 128)
    on_white = np.rint(rgb * (128 / 255) + 255 * (127 / 255)).astype(np.uint8)
    grey_on_white = np.rint(grey3 * (128 / 255) + 255 * (127 / 255)).astype(np.uint8)
    bits = image.convert("1")
    palette = image.quantize(16)
    entries = np.array(palette.getpalette(), np.uint8).reshape(-1, 3)[np.asarray(palette)]
    clear3 = np.where(np.asarray(palette)[:, :, None] == 3, 255, entries).astype(np.uint8)
    deep = rgb.astype(np.uint16) * 257
    four = grey // 17  # 4 bits a sample, two to a byte
    pairs = np.pad(four, ((0, 0), (0, WIDTH % 2))).reshape(HEIGHT, -1, 2)
    packed = (pairs[:, :, 0] << 4 | pairs[:, :, 1]).astype(np.uint8)
    four3 = np.repeat((four * 17)[:, :, None], 3, axis=2)
    cmyk = image.convert("CMYK")
    ink = np.asarray(cmyk).astype(np.int32)
    inked = np.rint((255 - ink[:, :, :3]) * (255 - ink[:, :, 3:]) / 255).astype(np.uint8)
    first_page = {"save_all": True, "append_images": [Image.new("RGB", image.size, "red")]}
    return {
        "1-bit PNG": (encode(bits, "PNG"), np.asarray(bits.convert("RGB"))),
        "1-bit TIFF": (encode(bits, "TIFF", compression="group4"), np.asarray(bits.convert("RGB"))),
        "1-bit BMP": (encode(bits, "BMP"), np.asarray(bits.convert("RGB"))),
        "grey PNG": (encode(grey, "PNG"), grey3),
        "grey BMP": (encode(grey, "BMP"), grey3),
        "grey TIFF, white is zero": (tiff(255 - grey[:, :, None], 0), grey3),
        "interlaced PNG": (interlaced_png(rgb), rgb),
        "4-bit PNG": (make_png(WIDTH, HEIGHT, 4, 0, rows(packed)), four3),
        "4-bit PNG with a clear level": (
            with_chunk(make_png(WIDTH, HEIGHT, 4, 0, rows(packed)), b"tRNS", b"\0\7"),
            np.where(four3 == 7 * 17, 255, four3).astype(np.uint8),
        ),
        "grey with alpha": (encode(np.dstack([grey, half]), "PNG"), grey_on_white),
        "RGBA PNG": (encode(np.dstack([rgb, half]), "PNG"), on_white),
        "RGBA TIFF": (encode(np.dstack([rgb, half]), "TIFF"), on_white),
        "RGBA WebP": (encode(np.dstack([rgb, half]), "WEBP", lossless=True), on_white),
        "RGB PNG with a clear colour": (
            encode(image, "PNG", transparency=tuple(rgb[30, 20].tolist())),
            np.where((rgb == rgb[30, 20]).all(2, keepdims=True), 255, rgb).astype(np.uint8),
        ),
        "palette PNG": (encode(palette, "PNG"), entries),
        "palette PNG with a clear colour": (encode(palette, "PNG", transparency=3), clear3),
        "palette PNG with half-clear colours": (
            encode(palette, "PNG", transparency=bytes([128] * 16)),
            np.rint(entries * (128 / 255) + 255 * (127 / 255)).astype(np.uint8),
        ),
        "palette BMP": (encode(palette, "BMP"), entries),
        "palette TIFF": (encode(palette, "TIFF"), entries),
        "16-bit grey PNG": (encode(deep[:, :, 0], "PNG"), grey3),
        "16-bit grey PNG with a clear level": (
            with_chunk(
                make_png(WIDTH, HEIGHT, 16, 0, rows(deep[:, :, 0].astype(">u2"))),
                b"tRNS",
                struct.pack(">H", deep[0, 20, 0]),
            ),
            np.where(grey3 == grey[0, 20], 255, grey3).astype(np.uint8),
        ),
        "16-bit RGB PNG": (make_png(WIDTH, HEIGHT, 16, 2, rows(deep.astype(">u2"))), rgb),
        "16-bit RGBA PNG": (
            make_png(
                WIDTH,
                HEIGHT,
                16,
                6,
                rows(np.dstack([deep, deep[:, :, 0] * 0 + 65535]).astype(">u2")),
            ),
            rgb,
        ),
        "16-bit grey TIFF": (tiff(deep[:, :, :1], 1), grey3),
        "16-bit grey TIFF, white is zero": (tiff(65535 - deep[:, :, :1], 0), grey3),
        "16-bit big-endian TIFF": (
            encode(Image.fromarray(deep[:, :, 0].astype(">u2")), "TIFF"),
            grey3,
        ),
        "16-bit RGB TIFF": (tiff(deep, 2), rgb),
        "32-bit grey TIFF": (tiff(deep[:, :, :1].astype(np.uint32), 1), grey3),
        "float TIFF to 1": (
            tiff((grey[:, :, None] / 255).astype(np.float32), 1, (339, 3, 3)),
            grey3,
        ),
        "float TIFF to 255": (tiff(grey[:, :, None].astype(np.float32), 1, (339, 3, 3)), grey3),
        "float TIFF to 65535": (tiff(deep[:, :, :1].astype(np.float32), 1, (339, 3, 3)), grey3),
        "CMYK TIFF": (encode(cmyk, "TIFF"), inked),
        "LZW TIFF": (encode(image, "TIFF", compression="tiff_lzw"), rgb),
        "deflated TIFF": (encode(image, "TIFF", compression="tiff_deflate"), rgb),
        "big-endian BigTIFF": (encode(image, "TIFF", big_tiff=True), rgb),
        "TIFF of two pages": (encode(image, "TIFF", **first_page), rgb),
        "animated WebP": (encode(image, "WEBP", lossless=True, **first_page), rgb),
        "animated PNG": (encode(image, "PNG", **first_page), rgb),
        "lossless WebP": (encode(image, "WEBP", lossless=True, exact=True), rgb),
    }


@pytest.mark.parametrize("name", unusual())
def test_colours_are_those_a_person_sees(name: str) -> None:
    data, rgb = unusual()[name]
    assert_shows(data, rgb, within=1)


def test_a_tiff_of_12_bits_is_scaled_by_its_own_range() -> None:
    levels = np.linspace(0, 4095, 64 * 64).astype(np.uint16).reshape(64, 32, 2)
    low, high = levels[:, :, 0], levels[:, :, 1]
    packed = np.stack([low >> 4, (low & 15) << 4 | high >> 8, high & 255], axis=-1)
    grey = np.rint(levels.reshape(64, 64) * (255 / 4095)).astype(np.uint8)
    data = tiff(packed.astype(np.uint8).reshape(64, 96, 1), 1, (256, 4, 64), bits=12)
    assert_shows(data, np.repeat(grey[:, :, None], 3, axis=2), within=1)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, 1e12])
def test_float_pixels_without_an_agreed_white_are_refused(value: float) -> None:
    pixels = np.full((20, 20, 1), value, np.float32)
    assert "white" in fault_of(tiff(pixels, 1, (339, 3, 3))).detail


def without_segment(jpeg: bytes, marker: int) -> bytes:
    start = jpeg.index(bytes([0xFF, marker]))
    return jpeg[:start] + jpeg[start + 2 + int.from_bytes(jpeg[start + 2 : start + 4], "big") :]


def test_cmyk_jpegs_of_all_three_conventions() -> None:
    rgb = painting()
    cmyk = Image.fromarray(rgb).convert("CMYK")
    ink = np.ascontiguousarray(cmyk)
    adobe = encode(cmyk, "JPEG", quality=100, subsampling=0)
    ycck = simplejpeg.encode_jpeg(np.ascontiguousarray(255 - ink), 100, "CMYK", "444")
    plain = encode(Image.frombytes("CMYK", cmyk.size, (255 - ink).tobytes()), "JPEG", quality=100)
    assert simplejpeg.decode_jpeg_header(adobe)[2] == "CMYK"
    assert simplejpeg.decode_jpeg_header(ycck)[2] == "YCCK"
    for jpeg in (adobe, ycck, without_segment(plain, 0xEE)):
        assert_shows(jpeg, rgb, within=6)


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0", "4:1:1"])
@pytest.mark.parametrize("progressive", [False, True])
def test_ordinary_jpegs(subsampling: str, progressive: bool) -> None:
    rgb = painting()
    options = {"quality": 98, "subsampling": subsampling, "progressive": progressive}
    assert_shows(encode(rgb, "JPEG", **options), rgb, within=10)


def test_an_rgb_jpeg_is_not_taken_for_ycbcr() -> None:
    assert_shows(encode(painting(), "JPEG", quality=98, keep_rgb=True), painting(), within=5)


TURNS: dict[int, Callable[[Pixels], Pixels]] = {  # how a camera stores an upright picture
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a),
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("orientation", TURNS)
def test_a_turned_picture_is_seen_upright(orientation: int) -> None:
    upright = painting(150, 209)
    stored = np.ascontiguousarray(TURNS[orientation](upright))
    exif = Image.Exif()
    exif[0x0112] = orientation
    lossless: dict[str, dict[str, Any]] = {
        "PNG": {},
        "TIFF": {"compression": "tiff_lzw"},
        "WEBP": {"lossless": True},
    }
    for kind, options in lossless.items():
        assert_shows(encode(stored, kind, exif=exif, **options), upright)
    assert_shows(tiff(stored, 2, (274, 3, orientation)), upright)
    turned = encode(stored, "JPEG", quality=97, subsampling=0, exif=exif)
    assert_shows(turned, upright, within=4)


@pytest.mark.parametrize(
    "exif",
    [
        b"",
        b"II",
        b"II*\0\xff\xff\xff\xff",
        b"II*\0\x08\0\0\0\xff\xff\x12\x01",
        b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x09\0\0",  # orientation 9
        b"no TIFF header",
    ],
)
def test_an_exif_block_that_makes_no_sense_is_ignored(exif: bytes) -> None:
    jpeg = encode(painting(), "JPEG", quality=98, subsampling=0)
    segment = b"\xff\xe1" + struct.pack(">H", 8 + len(exif)) + b"Exif\0\0" + exif
    assert_shows(jpeg[:2] + segment + jpeg[2:], painting(), within=5)


def test_an_embedded_profile_is_converted_unless_it_is_srgb() -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    # The same profile with the red and the blue primary exchanged, under another name.
    swapped = srgb.replace("sRGB".encode("utf-16-be"), "gBRs".encode("utf-16-be"))
    swapped = swapped.replace(b"rXYZ", b"....").replace(b"bXYZ", b"rXYZ").replace(b"....", b"bXYZ")
    rgb = painting()
    for kind, within in (("PNG", 3), ("TIFF", 3), ("JPEG", 8)):
        options = {"quality": 98, "subsampling": 0} if kind == "JPEG" else {}
        assert_shows(encode(rgb, kind, icc_profile=srgb, **options), rgb, within=within)
        assert_shows(encode(rgb, kind, icc_profile=b"broken" * 30, **options), rgb, within=within)
        converted = seen(encode(rgb, kind, icc_profile=swapped, **options))
        assert np.abs(converted - seen(rgb)[:, :, ::-1]).max() <= within
