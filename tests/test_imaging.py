"""From an image to the pixels that a model sees: the window, the roads to it, and arrays."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import simplejpeg
import torch
from hypothesis import given
from hypothesis import strategies as st

from bloodcells.errors import ConfigurationError, ImageError
from bloodcells.imaging import (
    MAX_PIXELS,
    Picture,
    Preprocess,
    content_hash,
    decode,
    decode_batch,
)
from bloodcells.synthetic import draw_cell
from tests.image_files import HEIGHT, PLAIN, WIDTH, Pixels, encode, fault_of, painting, seen


@pytest.mark.parametrize(
    "fields",
    [
        {"size": 4},
        {"size": 4096},
        {"size": 96.0},
        {"size": True},
        {"crop": 0},
        {"crop": 2.01},
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
    with pytest.raises(ConfigurationError, match="takes size, crop and"):
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
