"""Augmentation: every image is varied on its own, reproducibly, and stays a picture of its cell."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from bloodcells.augment import Augmentation, augment, bend, image_keys, mix
from bloodcells.augment.blur import Blur
from bloodcells.augment.colour import Colour
from bloodcells.augment.keys import Draw, integers, normal, uniform
from bloodcells.augment.policies import _magnitude_bins, _rim_colour
from bloodcells.augment.views import _changed
from bloodcells.synthetic import draw_cell

SIZE, FIELD = 32, 50
EVERYTHING = "default,colour=0.4,randaugment=2:3:1.5,augmix=2"
few = hypothesis_settings(max_examples=25, deadline=None)


def keys(num: int, seed: int = 0) -> np.ndarray:
    ids = np.arange(num, dtype=np.uint64) * np.uint64(0x1234567890ABCDEF)
    return image_keys(seed, 0, ids, np.zeros(num, np.int64))


def discs(num: int) -> torch.Tensor:
    """The same picture over and over: a dark disc in the middle of a light field."""
    along = torch.arange(FIELD) - (FIELD - 1) / 2
    inside = along[:, None] ** 2 + along[None, :] ** 2 < 10**2
    picture = torch.where(inside[:, :, None], torch.tensor([90, 40, 130]), torch.tensor(230))
    return picture.to(torch.uint8).expand(num, FIELD, FIELD, 3)


@functools.cache
def cells(num: int) -> torch.Tensor:
    drawn = [draw_cell("neutrophil", seed, size_px=FIELD) for seed in range(num)]
    return torch.from_numpy(np.stack(drawn))


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


def test_bending_raises_densities_to_a_power() -> None:
    grey = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(200, 16, 16, 3)
    bent = bend(grey, 235.0, Augmentation.parse("power=0.5"), keys(200)).view(200, 256, 3)
    assert torch.equal(bent[..., 0], bent[..., 2])
    levels = bent[..., 0].double().numpy()
    assert (np.diff(levels) >= 0).all()
    assert (levels[:, 235:] == np.arange(235, 256)).all(), "an empty field stays empty"
    powers = np.exp(0.5 * normal(keys(200), Draw.POWER)[:, 0]).clip(1 / 3, 3)
    assert 0.3 < powers.min() < 0.5 < 2 < powers.max() <= 3
    shown = slice(20, 230)
    before = -np.log(np.arange(256)[shown] / 235)
    expected = 0.8 * (before / 0.8) ** powers[:, None]
    assert np.allclose(levels[:, shown], 235 * np.exp(-expected), atol=0.51)


def test_bending_goes_less_far_for_mildly_changed_images_and_not_at_all_unasked() -> None:
    grey = torch.full((100, 8, 8, 3), 60, dtype=torch.uint8)
    assert bend(grey, 235.0, Augmentation(), keys(100)) is grey
    far, mild = (
        (bend(grey, 235.0, Augmentation.parse(f"power=0.5,mild={share}"), keys(100)).float() - 60)
        .abs()
        .mean()
        for share in (0, 1)
    )
    assert 0 < mild < 0.6 * far


# torchvision's policies


def test_the_published_magnitudes_are_drawn_for_each_operation() -> None:
    bins = _magnitude_bins(Augmentation.parse("report"), keys(3000))
    assert bins.shape == (3000, 4)
    # 0.3 and 0.15 of torchvision's 30, cut at 0.
    assert abs(np.median(bins) - 9) < 0.5
    assert abs(bins.std() - 4.5) < 0.3
    assert bins.min() == 0
    assert bins.max() <= 30
    assert (bins.std(1) > 0).mean() > 0.95


def test_randaugment_and_augmix_are_torchvisions() -> None:
    picture = cells(1)
    planes = picture.permute(0, 3, 1, 2)[0]
    fill = _rim_colour(planes)
    for text, draw, transform in (
        (
            "randaugment=1:5",
            Draw.RANDAUGMENT,
            v2.RandAugment(1, 15, 31, v2.InterpolationMode.BILINEAR, fill),
        ),
        ("augmix=4", Draw.AUGMIX, v2.AugMix(4, fill=fill)),
    ):
        for seed in range(12):
            key = keys(1, seed)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(int(integers(key, draw, 1)[0, 0]))
                expected = transform(planes)
            view = augment(picture, FIELD, Augmentation.parse(text), key)
            assert torch.equal(view[0].permute(2, 0, 1), expected)


# CutMix and MixUp


def flat_batch(num: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures that are all of one value, which is 20 times their place; and their targets."""
    levels = torch.arange(num, dtype=torch.uint8) * 20
    return levels.view(-1, 1, 1, 1).expand(num, SIZE, SIZE, 3).contiguous(), torch.eye(num)


@few
@given(
    key=st.integers(0, 2**64 - 1),
    num=st.integers(2, 12),
    alpha=st.sampled_from([0.01, 0.2, 1.0, 5.0, 10.0]),
    name=st.sampled_from(["cutmix", "mixup"]),
)
def test_a_target_has_the_share_that_the_picture_shows(
    key: int, num: int, alpha: float, name: str
) -> None:
    pixels, targets = flat_batch(num)
    mixed, shares = mix(pixels, targets, Augmentation.parse(f"{name}={alpha}"), key)
    assert mixed.dtype == torch.uint8
    assert mixed.shape == pixels.shape
    assert shares.dtype == torch.float32
    assert torch.allclose(shares.sum(1), torch.ones(num), atol=1e-6)
    # The mean grey level of pictures and of targets is the same mixture.
    shown = mixed.double().mean((1, 2, 3))
    told = (shares.double() * torch.arange(num) * 20).sum(1)
    assert (shown - told).abs().max() <= (0.5 if name == "mixup" else 1e-3) + 1e-4
    for row in range(num):
        assert set(shares[row].nonzero().flatten().tolist()) <= {row, (row - 1) % num}


def test_each_image_of_a_batch_mixes_in_its_own_way() -> None:
    pixels, targets = flat_batch(12)
    for text in ("cutmix=1", "mixup=1"):
        _, shares = mix(pixels, targets, Augmentation.parse(text), 5)
        assert len(set(shares.diagonal().tolist())) >= 10
    both, _ = mix(pixels, targets, Augmentation.parse("cutmix=1,mixup=1"), 5)
    kinds = [len(picture.unique()) for picture in both]
    assert {1, 2} <= set(kinds)
    again, _ = mix(pixels, targets, Augmentation.parse("cutmix=1,mixup=1"), 5)
    assert torch.equal(both, again)
    other, _ = mix(pixels, targets, Augmentation.parse("cutmix=1,mixup=1"), 6)
    assert not torch.equal(both, other)


def test_mixup_shares_are_beta_distributed() -> None:
    num = 500
    pixels = torch.zeros((num, 8, 8, 3), dtype=torch.uint8)
    _, shares = mix(pixels, torch.eye(num), Augmentation.parse("mixup=0.4"), 1)
    kept = shares.diagonal()
    assert abs(kept.mean() - 0.5) < 0.05
    assert abs(kept.var() - 1 / (4 * (2 * 0.4 + 1))) < 0.02


def test_without_mixing_a_batch_stays_as_it_is() -> None:
    pixels, targets = flat_batch(4)
    mixed, shares = mix(pixels, targets, Augmentation(), 0)
    assert torch.equal(mixed, pixels)
    assert torch.equal(shares, targets)
