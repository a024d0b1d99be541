"""Augmentation: every image is varied on its own, reproducibly, and stays a picture of its cell."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional as tv

from bloodcells.augment import Augmentation, augment, image_keys
from bloodcells.augment.blur import Blur
from bloodcells.augment.colour import Colour
from bloodcells.augment.keys import Draw, integers, uniform
from bloodcells.augment.views import _changed
from tests.augmented import FIELD, SIZE, cells, discs, keys

EVERYTHING = "default,colour=0.4,randaugment=2:3:1.5,augmix=2"
few = hypothesis_settings(max_examples=25, deadline=None)


def spots(num: int, text: str) -> np.ndarray:
    """Where a spot that lay 8 px to the right and 4 px above the middle goes; (x, y), y upwards."""
    field = torch.full((num, FIELD, FIELD, 3), 200, dtype=torch.uint8)
    field[:, 19:23, 31:35] = 0
    dark = 200 - augment(field, SIZE, Augmentation.parse(text), keys(num))[..., 0].double()
    dark /= dark.sum((1, 2), keepdim=True)
    along = torch.arange(SIZE) - (SIZE - 1) / 2
    return torch.stack([(dark.sum(1) * along).sum(1), -(dark.sum(2) * along).sum(1)], 1).numpy()


# What a view depends on


def test_shape_and_type() -> None:
    views = augment(discs(3), SIZE, Augmentation(), keys(3))
    assert views.shape == (3, SIZE, SIZE, 3)
    assert views.dtype == torch.uint8
    assert views.is_contiguous()
    assert augment(discs(0), SIZE, Augmentation.parse(EVERYTHING), keys(0)).shape[0] == 0


def test_two_images_of_one_batch_get_different_augmentations() -> None:
    for text in ("default", "report", "colour=0.3", "randaugment=3:5", "augmix=5", "rotation"):
        views = augment(cells(1).expand(8, -1, -1, -1), SIZE, Augmentation.parse(text), keys(8))
        assert len({view.numpy().tobytes() for view in views}) >= 7, text


def test_seed_epoch_and_showing_change_a_view_and_nothing_else_does() -> None:
    ids = np.array([7], np.uint64)
    shown = np.zeros(1, np.int64)
    settings = Augmentation.parse(EVERYTHING)

    def view(seed: int, epoch: int, occurrence: int) -> bytes:
        key = image_keys(seed, epoch, ids, shown + occurrence)
        return augment(cells(1), SIZE, settings, key).numpy().tobytes()

    assert view(0, 0, 0) == view(0, 0, 0)
    assert len({view(0, 0, 0), view(1, 0, 0), view(0, 1, 0), view(0, 0, 1)}) == 4


@few
@given(rows=st.lists(st.integers(0, 7), min_size=1, max_size=16))
@pytest.mark.parametrize("text", ["default", "veiled", "report", EVERYTHING, "none"])
def test_a_view_depends_on_its_image_and_key_and_not_on_its_company(
    text: str, rows: list[int]
) -> None:
    settings = Augmentation.parse(text)
    pixels, own = cells(8), keys(8)
    alone = torch.cat(
        [augment(pixels[i : i + 1], SIZE, settings, own[i : i + 1]) for i in range(8)]
    )
    assert torch.equal(augment(pixels[rows], SIZE, settings, own[rows]), alone[rows])


def test_a_whole_batch_at_once_as_on_a_gpu_gives_the_same_within_a_grey_level() -> None:
    settings = Augmentation.parse("default,colour=0.4")
    one, all_of_them = (_changed(cells(8), SIZE, settings, keys(8), n) for n in (1, 8))
    assert (one.int() - all_of_them.int()).abs().max() <= 1


def test_torchs_own_generator_is_left_as_it_was() -> None:
    before = torch.random.get_rng_state()
    first = augment(cells(4), SIZE, Augmentation.parse(EVERYTHING), keys(4))
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(1)
    assert torch.equal(augment(cells(4), SIZE, Augmentation.parse(EVERYTHING), keys(4)), first)


def test_switching_one_change_on_leaves_the_others_as_they_were() -> None:
    base = augment(cells(6), SIZE, Augmentation.parse("rotation,zoom=1.2"), keys(6))
    more = augment(cells(6), SIZE, Augmentation.parse("rotation,zoom=1.2,blur=1"), keys(6))
    same = [torch.equal(a, b) for a, b in zip(base, more, strict=True)]
    assert any(same)
    assert not all(same)


def test_wrong_input_is_refused() -> None:
    for pixels, size, own in (
        (cells(2).float(), SIZE, keys(2)),
        (cells(2)[:, :-1], SIZE, keys(2)),
        (cells(2), FIELD + 1, keys(2)),
        (cells(2), SIZE, keys(3)),
        (cells(2), SIZE, keys(2).astype(np.int64)),
    ):
        with pytest.raises(ValueError, match="must be"):
            augment(pixels, size, Augmentation(), own)


# Random numbers


def test_the_numbers_are_splitmix64s() -> None:
    # Source: the first outputs of the C version for the state 0, as in the test suites of others.
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert integers(np.zeros(1, np.uint64), 0, 3)[0].tolist() == expected


def test_keys_are_unrelated() -> None:
    ids = np.arange(50, dtype=np.uint64)
    every = [
        image_keys(seed, epoch, ids, np.full(50, showing))
        for seed in range(4)
        for epoch in range(4)
        for showing in range(4)
    ]
    assert len(np.unique(np.concatenate(every))) == 50 * 64
    bits = np.unpackbits(np.concatenate(every).view(np.uint8))
    assert abs(bits.mean() - 0.5) < 0.005
    numbers = uniform(np.concatenate(every), Draw.ZOOM)[:, 0]
    assert abs(np.corrcoef(numbers[:-50], numbers[50:])[0, 1]) < 0.05


@few
@given(seed=st.integers(), epoch=st.integers(0, 2**40), image=st.integers(0, 2**64 - 1))
def test_a_key_follows_from_the_image_alone(seed: int, epoch: int, image: int) -> None:
    one = image_keys(seed, epoch, np.array([image], np.uint64), np.array([3]))
    two = image_keys(seed, epoch, np.array([5, image], np.uint64), np.array([0, 3]))
    assert one[0] == two[1]


# Geometry


def test_with_nothing_on_a_view_is_the_middle_of_the_field() -> None:
    edge = (FIELD - SIZE) // 2
    middle = cells(4)[:, edge : edge + SIZE, edge : edge + SIZE]
    assert torch.equal(augment(cells(4), SIZE, Augmentation.parse("none"), keys(4)), middle)
    nearly = Augmentation.parse("shift=0.000001")
    assert torch.equal(augment(cells(4), SIZE, nearly, keys(4)), middle)


def test_rotation_goes_both_ways_as_far_as_it_says() -> None:
    places = spots(200, "rotation=40")
    turned = np.degrees(np.arctan2(places[:, 1], places[:, 0]) - np.arctan2(4, 8))
    assert np.abs(turned).max() < 40.5
    assert turned.max() > 38
    assert turned.min() < -38
    assert np.allclose(np.hypot(*places.T), np.hypot(4, 8), atol=0.1)


def test_flips_and_mirror() -> None:
    def quarters(text: str) -> set[tuple[int, int]]:
        return {(int(x), int(y)) for x, y in np.sign(spots(40, text))}

    assert quarters("mirror") == {(1, 1), (-1, 1)}
    assert quarters("flips") == {(1, 1), (-1, 1), (1, -1), (-1, -1)}
    # Chances: 0.5 of each.
    assert 80 < (spots(200, "mirror")[:, 0] < 0).sum() < 120


def test_shift_goes_along_both_axes_as_far_as_it_says() -> None:
    moved = spots(200, "shift=0.2") - [8, 4]
    assert np.abs(moved).max() < 0.2 * SIZE + 0.1
    assert (moved.max(0) > 0.18 * SIZE).all()
    assert (moved.min(0) < -0.18 * SIZE).all()


def test_zoom_changes_the_apparent_size_both_ways() -> None:
    views = augment(discs(64), SIZE, Augmentation.parse("zoom=1.4"), keys(64))
    areas = (views[..., 0] < 160).sum((1, 2)).float() / (torch.pi * 100)
    assert areas.min() < 0.6
    assert areas.max() > 1.8
    assert areas.min() > 1 / 1.4**2 - 0.1
    assert areas.max() < 1.4**2 + 0.1


def test_turned_and_flipped_a_disc_stays_a_disc() -> None:
    views = augment(discs(8), SIZE, Augmentation.parse("flips,rotation"), keys(8)).float()
    edge = (FIELD - SIZE) // 2
    middle = discs(1)[0, edge : edge + SIZE, edge : edge + SIZE].float()
    # It differs along its rim, and only there.
    assert (views - middle).abs().mean() < 4
    assert torch.equal(views[:, SIZE // 2, SIZE // 2], middle[SIZE // 2, SIZE // 2].expand(8, 3))


# Colour and blur


def test_black_and_white_stay_in_range() -> None:
    settings = Augmentation.parse("stain=0.2,lamp=0.2,colour=0.1,blur=1")
    for level in (0, 255):
        flat = torch.full((16, FIELD, FIELD, 3), level, dtype=torch.uint8)
        views = augment(flat, SIZE, settings, keys(16))
        assert (views.float() - level).abs().mean() < 60


def test_a_lamp_is_a_gain_of_each_channel() -> None:
    flat = torch.tensor([50, 100, 150], dtype=torch.uint8).expand(200, FIELD, FIELD, 3)
    views = augment(flat, SIZE, Augmentation.parse("lamp=0.1"), keys(200)).double()[:, 0, 0]
    densities = -torch.log((views + 1) / torch.tensor([51, 101, 151]))
    assert torch.allclose(densities.std(0), torch.tensor(0.1).double(), atol=0.015)
    assert densities.mean(0).abs().max() < 0.03


def test_colour_is_torchvisions_brightness_contrast_and_saturation() -> None:
    strength = 0.3
    factors = 1 + strength * (2 * uniform(keys(8), Draw.COLOUR, 4) - 1)
    # Of low contrast and mid-grey, so that nothing is cut off at 0 or 255.
    pictures = cells(8).permute(0, 3, 1, 2).float() * 0.3 + 60
    change = Colour(Augmentation.parse(f"colour={strength}"), keys(8), torch.device("cpu"))
    luma = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    for row, (brightness, contrast, saturation, _) in enumerate(factors):
        expected = tv.adjust_brightness(pictures[row] / 255, brightness)
        expected = tv.adjust_contrast(expected, contrast)
        expected = tv.adjust_saturation(expected, saturation) * 255
        part = slice(row, row + 1)
        found = change.apply(pictures[part], part)[0]
        assert ((found - expected) * luma).sum(0).abs().max() < 0.5  # hue leaves luma alone
        grey = pictures[part].mean(1, keepdim=True).expand(-1, 3, -1, -1)
        greys = tv.adjust_contrast(tv.adjust_brightness(grey[0] / 255, brightness), contrast) * 255
        assert (change.apply(grey, part)[0] - greys).abs().max() < 0.5


def test_colour_turns_hues_by_a_tenth_of_a_circle_at_most() -> None:
    flat = torch.tensor([160, 100, 100], dtype=torch.uint8).expand(200, FIELD, FIELD, 3)
    views = augment(flat, SIZE, Augmentation.parse("colour=0.5"), keys(200)).double()[:, 0, 0]
    red, green, blue = views.unbind(1)
    hues = torch.rad2deg(torch.atan2((green - blue) * 3**0.5, 2 * red - green - blue))
    # 18 degrees at constant luma, and rounding.
    assert hues.abs().max() < 30
    assert hues.max() > 10
    assert hues.min() < -10


def test_half_the_images_are_blurred_and_none_gets_brighter() -> None:
    views = augment(
        cells(8)[:1].expand(100, -1, -1, -1), SIZE, Augmentation.parse("blur=1.5"), keys(100)
    )
    sharp = augment(cells(1), SIZE, Augmentation.parse("none"), keys(1))
    same = sum(torch.equal(view, sharp[0]) for view in views)
    assert 40 <= same <= 70
    assert (views.float().mean((1, 2, 3)) - sharp.float().mean()).abs().max() < 2


def test_a_wide_blur_is_a_gaussian_of_that_width() -> None:
    blur = Blur(Augmentation.parse("blur=3"), keys(64), torch.device("cpu"))
    dot = torch.zeros(64, 1, 41, 41)
    dot[:, :, 20, 20] = 1
    spread = blur.apply(dot, slice(None))[:, 0]
    along = torch.arange(41.0) - 20
    widths = (spread.sum(1) * along**2).sum(1).sqrt().numpy()
    drawn = (2 * uniform(keys(64), Draw.BLUR)[:, 0] - 1) * 3
    wide = drawn > 0.5
    assert torch.allclose(spread.sum((1, 2)), torch.ones(64))
    assert drawn[wide].max() > 2.8
    assert np.allclose(widths[wide], drawn[wide], rtol=0.25), "cut off at twice the width and more"
    assert (np.argsort(widths[wide]) == np.argsort(drawn[wide])).all()
