"""Augmentation: every image is varied on its own, reproducibly, and stays a picture of its cell."""

from __future__ import annotations

import pytest
import torch

from bloodcells.augment import Augmentation, augment

SIZE, FIELD = 32, 50
STILL = Augmentation(zoom=1, shift=0, stain=0, lamp=0, blur=0)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def discs(num: int) -> torch.Tensor:
    """The same picture over and over: a dark disc in the middle of a light field."""
    along = torch.arange(FIELD) - (FIELD - 1) / 2
    inside = along[:, None] ** 2 + along[None, :] ** 2 < 10**2
    picture = torch.where(inside[:, :, None], torch.tensor([90, 40, 130]), torch.tensor(230))
    return picture.to(torch.uint8).expand(num, FIELD, FIELD, 3)


def test_shape_and_type() -> None:
    views = augment(discs(3), SIZE, Augmentation(), generator())
    assert views.shape == (3, SIZE, SIZE, 3)
    assert views.dtype == torch.uint8


def test_each_image_is_varied_on_its_own_and_reproducibly() -> None:
    views = augment(discs(6), SIZE, Augmentation(), generator())
    assert len({view.numpy().tobytes() for view in views}) == 6
    assert torch.equal(views, augment(discs(6), SIZE, Augmentation(), generator()))
    assert not torch.equal(views, augment(discs(6), SIZE, Augmentation(), generator(1)))


def test_with_all_else_off_a_disc_only_turns() -> None:
    views = augment(discs(8), SIZE, STILL, generator()).float()
    edge = (FIELD - SIZE) // 2
    middle = discs(1)[0, edge : edge + SIZE, edge : edge + SIZE].float()
    # A rotated disc differs along its rim, and only there.
    assert (views - middle).abs().mean() < 4
    assert torch.equal(views[:, SIZE // 2, SIZE // 2], middle[SIZE // 2, SIZE // 2].expand(8, 3))


def test_zoom_changes_the_apparent_size_both_ways() -> None:
    settings = Augmentation(zoom=1.4, shift=0, stain=0, lamp=0, blur=0)
    views = augment(discs(64), SIZE, settings, generator())
    areas = (views[..., 0] < 160).sum((1, 2)).float() / (torch.pi * 100)
    assert areas.min() < 0.7
    assert areas.max() > 1.4
    assert areas.min() > 1 / 1.4**2 - 0.1
    assert areas.max() < 1.4**2 + 0.1


def test_black_and_white_stay_in_range() -> None:
    for level in (0, 255):
        flat = torch.full((16, FIELD, FIELD, 3), level, dtype=torch.uint8)
        views = augment(flat, SIZE, Augmentation(stain=0.2, lamp=0.2), generator())
        assert (views.float() - level).abs().mean() < 40


@pytest.mark.parametrize(
    "wrong", [{"zoom": 0.5}, {"shift": 0.6}, {"stain": -1}, {"lamp": 2}, {"blur": 9}], ids=str
)
def test_settings_are_checked(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Augmentation(**wrong)
