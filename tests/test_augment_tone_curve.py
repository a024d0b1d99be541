"""Tone after augmentation: even as when scored, then densities raised to a power."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bloodcells.augment import Augmentation, augment, toned
from bloodcells.augment.keys import Draw, normal
from bloodcells.augment.tone_curve import bend
from bloodcells.imaging import Tone
from tests.augmented import SIZE, cells, keys


@pytest.mark.parametrize("tone", [None, Tone(), Tone(white=200.0)])
def test_views_are_evened_first_and_bent_then(tone: Tone | None) -> None:
    views = augment(cells(8), SIZE, Augmentation.parse("default,strangers=0"), keys(8))
    even = views
    if tone:
        even = torch.from_numpy(np.stack([tone.apply(view) for view in views.numpy()]))
    assert torch.equal(toned(views, tone, Augmentation(), keys(8)), even)
    settings = Augmentation.parse("veiled")
    bent = toned(views, tone, settings, keys(8))
    assert torch.equal(bent, bend(even, tone.white if tone else 255.0, settings, keys(8)))
    assert not torch.equal(bent, even)


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
