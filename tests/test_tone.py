"""Every picture is measured against its own background."""

from __future__ import annotations

import numpy as np
import pytest

from bloodcells.errors import ConfigurationError
from bloodcells.imaging import Preprocess, Tone, decode, decode_batch
from bloodcells.imaging.tone import background
from bloodcells.synthetic import draw_cell


def test_another_lamp_makes_no_difference() -> None:
    picture = draw_cell("neutrophil", 3)
    dimmed = np.rint(picture * np.array([0.7, 0.9, 0.8])).astype(np.uint8)
    tone = Preprocess(size=64, tone=Tone())
    apart = decode(picture, tone).pixels.astype(int) - decode(dimmed, tone).pixels
    assert np.abs(apart).mean() < 1.5
    plain = Preprocess(size=64)
    assert (
        np.abs(decode(picture, plain).pixels.astype(int) - decode(dimmed, plain).pixels).mean() > 15
    )


def test_the_background_becomes_white() -> None:
    pixels = decode(draw_cell("monocyte", 1), Preprocess(size=64, tone=Tone(white=200))).pixels
    assert background(pixels) == pytest.approx([200, 200, 200], abs=2)


def test_density_darkens_what_is_stained() -> None:
    picture = draw_cell("lymphocyte", 2)
    means = [
        decode(picture, Preprocess(size=64, tone=Tone(density=density))).pixels.mean()
        for density in (0.7, 1.0, 1.4)
    ]
    assert means[0] > means[1] > means[2]


def test_one_by_one_or_together_is_the_same() -> None:
    pictures = [draw_cell("eosinophil", seed) for seed in range(11)]
    preprocess = Preprocess(size=48, crop=1.3, tone=Tone(density=1.2))
    together = decode_batch(pictures, preprocess)
    for picture, found in zip(pictures, together, strict=True):
        assert np.array_equal(decode(picture, preprocess).pixels, found.pixels)  # type: ignore[union-attr]


def test_a_black_picture_stays_black() -> None:
    assert not Tone().apply(np.zeros((32, 32, 3), np.uint8)).any()


@pytest.mark.parametrize("crop", [1.0, 1.2, 1.7, 2.0])
@pytest.mark.parametrize("shape", [(90, 120), (121, 87), (500, 360)])
def test_a_wide_crop_mirrors_the_picture(crop: float, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (*shape, 3)).astype(np.uint8)
    pixels = decode(picture, Preprocess(size=32, crop=crop)).pixels
    assert pixels.shape == (32, 32, 3)
    assert abs(pixels.mean() - picture.mean()) < 8


def test_a_wider_crop_shows_cells_smaller() -> None:
    picture = draw_cell("lymphocyte", 4)
    dark = [
        (decode(picture, Preprocess(size=96, crop=crop)).pixels[..., 1] < 130).mean()
        for crop in (0.6, 1.0, 1.6)
    ]
    assert dark[0] > dark[1] > dark[2]


@pytest.mark.parametrize("fields", [{"white": 50}, {"density": 9}, {"density": "1"}], ids=str)
def test_a_tone_refuses_what_cannot_work(fields: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(fields))):
        Tone(**fields)  # type: ignore[arg-type]


def test_it_travels_as_a_dict() -> None:
    preprocess = Preprocess(size=64, crop=1.5, tone=Tone(white=220, density=0.9))
    assert Preprocess.from_dict(preprocess.to_dict()) == preprocess
    assert "tone" not in Preprocess().to_dict()
