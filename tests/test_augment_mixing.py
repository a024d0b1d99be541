"""CutMix and MixUp: what a target says is what its picture shows."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from bloodcells.augment import Augmentation, mix
from tests.augmented import SIZE

few = hypothesis_settings(max_examples=25, deadline=None)


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
