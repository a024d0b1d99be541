"""A damaged image is an ``ImageError`` that says what is wrong, and never another picture."""

from __future__ import annotations

import struct
import warnings
import zlib
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from bloodcells.errors import ImageError
from bloodcells.imaging import (
    MAX_PIXELS,
    decode,
)
from bloodcells.synthetic.damage import make_png
from tests.image_files import (
    HEIGHT,
    PLAIN,
    assert_shows,
    encode,
    fault_of,
    interlaced_png,
    painting,
    png_chunk,
    rows,
    tags_first,
    tiff,
)


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
