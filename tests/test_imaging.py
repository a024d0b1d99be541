"""Every image comes out as a person sees it, or as an ``ImageError``, and as nothing else."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import simplejpeg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from bloodcells.errors import ConfigurationError, ImageError
from bloodcells.imaging import (
    MAX_PIXELS,
    Picture,
    Preprocess,
    content_hash,
    decode,
    decode_batch,
)
from bloodcells.synthetic import damaged_files, draw_cell
from bloodcells.synthetic.damage import make_png

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


# Preprocess ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {"size": 4},
        {"size": 4096},
        {"size": 96.0},
        {"size": True},
        {"crop": 0},
        {"crop": 1.01},
        {"crop": float("nan")},
        {"crop": "0.8"},
    ],
    ids=str,
)
def test_preprocess_refuses_what_cannot_work(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(fields))):
        Preprocess(**fields)


def test_preprocess_travels_as_a_dict() -> None:
    preprocess = Preprocess(size=64, crop=0.58)
    assert Preprocess.from_dict(preprocess.to_dict()) == preprocess
    with pytest.raises(ConfigurationError, match="mean"):
        Preprocess.from_dict({"size": 96, "crop": 1.0, "mean": 0.5})
    with pytest.raises(ConfigurationError, match="exactly size and crop"):
        Preprocess.from_dict({"size": 96})


@given(
    width=st.integers(1, 6000),
    height=st.integers(1, 6000),
    size=st.integers(8, 512),
    crop=st.floats(0.01, 1.0),
)
def test_the_window_is_the_centred_square(width: int, height: int, size: int, crop: float) -> None:
    window = Preprocess(size=size, crop=crop).window(width, height)
    r, side = window.reduction, window.side
    wanted = crop * min(width, height)
    assert abs(side * r - wanted) < r + 1
    for before, length in ((window.left, width), (window.top, height)):
        assert before >= 0
        assert (before + side) * r <= length
        assert abs(before * r - (length - side * r) / 2) <= r / 2
    assert r == 1 or side >= size
    assert r == 8 or round(wanted) // (2 * r) < size


# What a person sees --------------------------------------------------------------------------


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


# Roads ---------------------------------------------------------------------------------------


@cache
def cells() -> list[tuple[Pixels, bytes]]:
    pictures = [draw_cell(kind, 5) for kind in ("neutrophil", "lymphocyte", "platelet")]
    return [(p, encode(p, "JPEG", quality=92, subsampling=0)) for p in pictures]


@pytest.mark.parametrize("crop", [1.0, 0.8, 0.58])
def test_a_reduced_jpeg_is_as_good_as_a_full_one(crop: float) -> None:
    preprocess = Preprocess(size=96, crop=crop)
    for picture, jpeg in cells():
        full = simplejpeg.decode_jpeg(jpeg)
        window = preprocess.window(picture.shape[1], picture.shape[0])
        assert window.reduction == 2
        same_place = seen(encode(full, "PNG"), preprocess) - seen(jpeg, preprocess)
        assert np.abs(same_place).mean() < 0.7
        assert np.abs(same_place).max() <= 8
        top, left, side = (2 * v for v in (window.top, window.left, window.side))
        kept = torch.from_numpy(full[top : top + side, left : left + side].copy())
        reference = torch.nn.functional.interpolate(
            kept.permute(2, 0, 1)[None].double(), size=(96, 96), mode="bilinear", antialias=True
        )
        difference = reference[0].permute(1, 2, 0).numpy() - seen(jpeg, preprocess)
        assert np.abs(difference).mean() < 1.2


def test_containers_without_loss_agree_exactly() -> None:
    preprocess = Preprocess(size=96, crop=0.8)
    for picture, _ in cells():
        for kind in ("PNG", "BMP", "TIFF"):
            found = decode(encode(picture, kind), preprocess).pixels
            assert np.array_equal(found, decode(picture, preprocess).pixels)


def test_an_image_does_not_depend_on_its_batch_or_on_threads() -> None:
    preprocess = Preprocess(size=96, crop=0.8)
    images: list[bytes | npt.NDArray[Any]] = []
    for picture, jpeg in cells() * 8:
        images += [jpeg, picture, picture[:200], encode(picture[:90, :80], "PNG"), b"no image"]
    threads = torch.get_num_threads()
    alone = decode_batch(images[:15], preprocess)
    try:
        for num_threads in (1, 2, 5):
            torch.set_num_threads(num_threads)
            found = decode_batch(images, preprocess, num_threads=num_threads)
            assert len(found) == len(images)
            for number, result in enumerate(found):
                expected = alone[number % 15]
                assert isinstance(result, ImageError) == (number % 5 == 4)
                if isinstance(expected, Picture):
                    assert isinstance(result, Picture)
                    assert np.array_equal(result.pixels, expected.pixels)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("crop", [1.0, 0.3])
@pytest.mark.parametrize("size", [8, 97, 224])
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (7, 2), (96, 96), (97, 300), (1031, 911)])
def test_any_shape_gives_the_size_asked_for(shape: tuple[int, int], size: int, crop: float) -> None:
    even = np.full((*shape, 3), (10, 150, 201), np.uint8)
    preprocess = Preprocess(size=size, crop=crop)
    for data in (even, encode(even, "PNG"), encode(even, "JPEG", quality=100, subsampling=0)):
        picture = decode(data, preprocess)
        assert picture.pixels.shape == (size, size, 3)
        assert np.abs(picture.pixels.astype(int) - (10, 150, 201)).max() <= 2


# Arrays --------------------------------------------------------------------------------------


def test_arrays_of_all_four_shapes() -> None:
    rgb = painting()
    grey = np.ascontiguousarray(rgb[:, :, 0])
    rgba = np.dstack([rgb, np.full_like(grey, 128)])
    assert np.array_equal(seen(grey), seen(grey[:, :, None]))
    assert np.array_equal(seen(grey), seen(encode(grey, "PNG")))
    assert np.array_equal(seen(rgba), seen(encode(rgba, "PNG")))
    assert np.array_equal(seen(rgb), seen(np.asfortranarray(rgb)))
    assert np.array_equal(seen(rgb), seen(rgb[::-1][::-1]))


def test_an_array_is_neither_changed_nor_kept() -> None:
    rgb = painting(32, 32)
    rgb.flags.writeable = False
    picture = decode(rgb, PLAIN)
    assert np.array_equal(picture.pixels, rgb)
    assert not np.shares_memory(picture.pixels, rgb)
    assert picture.pixels.flags.writeable


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((9, 9, 3), np.float32),
        np.zeros((9, 9), np.uint16),
        np.zeros((9, 9, 2), np.uint8),
        np.zeros((9, 9, 9, 3), np.uint8),
        np.zeros(9, np.uint8),
        np.zeros((0, 9, 3), np.uint8),
        np.array([["a"]], dtype=object),
    ],
    ids=lambda pixels: f"{pixels.dtype} {pixels.shape}",
)
def test_arrays_that_are_no_pixels(pixels: npt.NDArray[Any]) -> None:
    assert fault_of(pixels).reason == "undecodable"


def test_an_array_too_large_is_refused() -> None:
    view = np.broadcast_to(np.zeros(3, np.uint8), (MAX_PIXELS // 1024 + 1, 1024, 3))
    assert fault_of(view).reason == "too_large"


def test_content_hash() -> None:
    assert content_hash(b"abc").startswith("ba7816bf8f01cfea")  # FIPS 180-2, appendix B.1
    a = painting()
    assert content_hash(a) == content_hash(np.asfortranarray(a)) == content_hash(a.copy())
    others: list[npt.NDArray[Any]] = [
        a[:, :, 0],
        a.reshape(HEIGHT * WIDTH, 3),
        a.astype(np.int16),
        a.view(np.int8),
        a + 1,
    ]
    assert len({content_hash(other) for other in [a, *others]}) == len(others) + 1
    assert content_hash(a[:0]) != content_hash(a[:0, :0])


# Damage --------------------------------------------------------------------------------------


def huge() -> dict[str, bytes]:
    """Small files whose headers claim more pixels than are allowed."""
    webp = encode(painting(), "WEBP")
    flat = encode(painting(), "WEBP", lossless=True)
    extended = encode(painting(), "WEBP", icc_profile=b"a profile")
    bmp = encode(painting(), "BMP")
    jpeg = encode(painting(), "JPEG")
    frame = jpeg.index(b"\xff\xc0") + 5
    side = struct.pack(">HH", 30_000, 30_000)
    pixel = np.zeros((1, 1, 3), np.uint8)
    tiles = ((322, 4, 60_000), (323, 4, 60_000), (324, 4, 8), (325, 4, 9))
    return {
        "PNG": make_png(30_000, 30_000, 8, 2, rows(painting())),
        "JPEG": jpeg[:frame] + side + jpeg[frame + 4 :],
        "BMP": bmp[:18] + struct.pack("<ii", 30_000, 30_000) + bmp[26:],
        "TIFF": tiff(pixel, 2, (256, 4, 30_000), (257, 4, 30_000)),
        "TIFF tiles": tiff(pixel, 2, *tiles),
        "WebP lossy": webp[:26] + struct.pack("<HH", 16_000, 16_000) + webp[30:],
        "WebP lossless": flat[:21] + struct.pack("<I", 15_999 | 15_999 << 14) + flat[25:],
        "WebP extended": extended[:24] + b"\x2f\x75\0\x2f\x75\0" + extended[30:],
    }


@pytest.mark.parametrize("kind", huge())
def test_too_large_is_said_with_size_and_limit(kind: str) -> None:
    fault = fault_of(huge()[kind])
    assert fault.reason == "too_large"
    assert f"{MAX_PIXELS:,}" in fault.detail
    side = {"TIFF tiles": 60_000, "WebP lossy": 16_000, "WebP lossless": 16_000}.get(kind, 30_000)
    assert f"{side} x {side} px" in fault.detail


@pytest.mark.parametrize(
    ("data", "detail"),
    [
        (b"", "empty"),
        (b"Slide 12\n", "not a JPEG, PNG, BMP, TIFF or WebP: 9 bytes that begin with b'Slide 12"),
        (b"\xff\xd8\xff\xe0", "truncated JPEG"),
        (b"\xff\xd8\xff\xd9\0\0", "JPEG: damaged header at byte 2"),
        (b"%PDF-1.7\n", "not a JPEG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "not a JPEG"),
        (encode(Image.new("L", (9, 9)), "GIF"), "not a JPEG"),
        (encode(Image.new("RGB", (9, 9)), "PPM"), "not a JPEG"),
        (b"BMW series 3, and nothing else in it", "BMP"),
        (b"\x89PNG\r\n\x1a\n", "truncated PNG"),
    ],
    ids=lambda value: repr(value[:20]),
)
def test_the_detail_says_what_is_wrong(data: bytes, detail: str) -> None:
    fault = fault_of(data)
    assert fault.reason == "undecodable"
    assert detail in fault.detail
    assert fault.detail.isprintable()


def rle8_bmp() -> bytes:
    """A run-length encoded BMP, which Pillow reads but cannot write."""
    body = b"".join(bytes([40, row + 100]) + b"\0\0" for row in range(30)) + b"\0\1"
    colours = b"".join(bytes([i, i, i, 0]) for i in range(256))
    start = 14 + 40 + len(colours)
    info = struct.pack("<IiiHHIIiiII", 40, 40, 30, 1, 8, 1, len(body), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", start + len(body), 0, 0, start) + info + colours + body


@cache
def sound_files() -> dict[str, bytes]:
    rgb = painting()
    turned = Image.Exif()
    turned[0x0112] = 6
    cmyk = Image.fromarray(rgb).convert("CMYK")
    return {
        "JPEG": encode(rgb, "JPEG", quality=90),
        "progressive JPEG": encode(rgb, "JPEG", quality=90, progressive=True),
        "grey JPEG": encode(rgb[:, :, 0], "JPEG", restart_marker_blocks=2),
        "turned JPEG": encode(rgb, "JPEG", exif=turned),
        "CMYK JPEG": encode(cmyk, "JPEG"),
        "large JPEG": encode(painting(150, 130), "JPEG"),
        "PNG": encode(rgb, "PNG"),
        "palette PNG": encode(Image.fromarray(rgb).quantize(16), "PNG", transparency=2),
        "black PNG": encode(np.zeros_like(rgb), "PNG"),
        "interlaced PNG": interlaced_png(rgb),
        "BMP": encode(rgb, "BMP"),
        "run-length BMP": rle8_bmp(),
        "TIFF": encode(rgb, "TIFF"),
        "TIFF, tags first": tiff(rgb, 2),
        "float TIFF": tiff((rgb[:, :, :1] / 255).astype(np.float32), 1, (339, 3, 3)),
        "LZW TIFF": encode(rgb, "TIFF", compression="tiff_lzw"),
        "fax TIFF": tags_first(
            encode(Image.fromarray(rgb).convert("1"), "TIFF", compression="group4")
        ),
        "deflated TIFF": tags_first(encode(rgb, "TIFF", compression="tiff_deflate")),
        "WebP": encode(rgb, "WEBP"),
        "lossless WebP": encode(rgb, "WEBP", lossless=True),
        "animated WebP": encode(
            rgb, "WEBP", save_all=True, append_images=[Image.fromarray(rgb[::-1])]
        ),
    }


@settings(max_examples=400, deadline=None)
@given(kind=st.sampled_from(sorted(sound_files())), share=st.floats(0, 1, exclude_max=True))
def test_a_cut_file_never_shows_another_picture(kind: str, share: float) -> None:
    whole = sound_files()[kind]
    try:
        picture = decode(whole[: int(share * len(whole))], PLAIN)
    except ImageError as fault:
        assert fault.reason == "undecodable"
        assert fault.detail.isprintable()
    else:
        assert np.array_equal(picture.pixels, decode(whole, PLAIN).pixels)


@pytest.mark.parametrize(
    "kind", [kind for kind in sound_files() if "JPEG" in kind and "TIFF" not in kind]
)
def test_a_cut_jpeg_that_is_given_a_new_end(kind: str) -> None:
    whole = sound_files()[kind]
    for share in (0.55, 0.75, 0.9, 0.97):
        assert "JPEG" in fault_of(whole[: int(share * len(whole))] + b"\xff\xd9").detail


@pytest.mark.parametrize("kind", [kind for kind in sound_files() if "PNG" in kind])
def test_a_png_whose_data_end_early_behind_sound_checksums(kind: str) -> None:
    png = sound_files()[kind]
    start = png.index(b"IDAT") - 4
    (size,) = struct.unpack_from(">I", png, start)
    raw = zlib.decompress(png[start + 8 : start + 8 + size])
    short = png_chunk(b"IDAT", zlib.compress(raw[: len(raw) - 3]))
    fault = fault_of(png[:start] + short + png[start + 12 + size :])
    assert "truncated PNG" in fault.detail


def test_a_tiff_whose_strips_do_not_cover_it() -> None:
    lies = tiff(painting(), 2, (257, 4, 200), (278, 4, HEIGHT))
    assert "do not cover" in fault_of(lies).detail


def test_a_png_with_a_flipped_bit() -> None:
    png = bytearray(sound_files()["PNG"])
    png[-40] ^= 4
    assert "checksum of b'IDAT'" in fault_of(bytes(png)).detail


def test_a_jpeg_of_endless_scans_is_refused() -> None:
    jpeg = encode(painting(), "JPEG", progressive=True)
    last = jpeg.rindex(b"\xff\xda")
    assert "scans" in fault_of(jpeg[:-2] + jpeg[last:-2] * 300 + b"\xff\xd9").detail


@settings(max_examples=800, deadline=None)
@given(
    kind=st.sampled_from(sorted(sound_files())),
    edits=st.lists(
        st.tuples(st.floats(0, 1), st.binary(max_size=6), st.integers(0, 6)), max_size=5
    ),
)
def test_a_mutated_file_decodes_or_is_an_image_error(
    kind: str, edits: list[tuple[float, bytes, int]]
) -> None:
    data = sound_files()[kind]
    for place, insert, num_removed in edits:
        # Squared: most edits go where the headers are.
        at = int(place * place * len(data))
        data = data[:at] + insert + data[at + num_removed :]
    decodes_or_is_an_image_error(data)


@settings(max_examples=300, deadline=None)
@given(
    head=st.sampled_from(
        [
            b"",
            b"\xff\xd8",
            b"\x89PNG\r\n\x1a\n",
            b"BM",
            b"II*\0\x08\0\0\0",
            b"MM\0+",
            b"RIFF0000WEBP",
        ]
    ),
    rest=st.binary(max_size=300),
)
def test_any_bytes_decode_or_are_an_image_error(head: bytes, rest: bytes) -> None:
    decodes_or_is_an_image_error(head + rest)


def decodes_or_is_an_image_error(data: bytes) -> None:
    try:
        picture = decode(data, PLAIN)
    except ImageError as fault:
        assert fault.reason in ("undecodable", "too_large")
    else:
        assert picture.pixels.shape == (32, 32, 3)


def test_odd_tags_leave_no_warning_and_no_filter_behind() -> None:
    filters = list(warnings.filters)
    odd = tiff(painting(), 2, (306, 2, 9_999_999), (40_000, 12, 77), (34_665, 4, 5))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert_shows(odd, painting())
    assert not caught
    assert warnings.filters == filters
