"""RandAugment and AugMix: torchvision's own, with the magnitudes of the published method."""

from __future__ import annotations

import numpy as np
import torch
from torchvision.transforms import v2

from bloodcells.augment import Augmentation, augment
from bloodcells.augment.keys import Draw, integers
from bloodcells.augment.policies import _magnitude_bins, _rim_colour
from tests.augmented import FIELD, cells, keys


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
