"""The scorer's promises: bit-equal on repetition, the same for any batch size, honest precision."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch

from bloodcells.bundle import ModelBundle, shipped_bundle_uri
from bloodcells.detector import Detector
from bloodcells.errors import ConfigurationError
from bloodcells.imaging import decode
from bloodcells.models.early_norm import statistics_at, to_text
from bloodcells.scoring import Scorer
from bloodcells.sites import SiteProfile
from bloodcells.synthetic import BALANCED, draw_slide
from bloodcells.training.adapting_fit import seen_by


@pytest.fixture(scope="module")
def bundle() -> ModelBundle:
    return ModelBundle.load(shipped_bundle_uri())


@pytest.fixture(scope="module")
def pixels(bundle: ModelBundle) -> npt.NDArray[np.uint8]:
    cells = draw_slide(BALANCED, 40, seed=5)
    return np.stack([decode(cell.data, bundle.preprocess).pixels for cell in cells])


@pytest.fixture(scope="module")
def reference(bundle: ModelBundle, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    return Scorer(bundle, device="cpu").probabilities(pixels)


def disagreements(
    a: npt.NDArray[np.float32], b: npt.NDArray[np.float32], margin: float
) -> npt.NDArray[np.bool_]:
    """Return where the classes differ although the best two are further apart than ``margin``."""
    best = np.sort(a, axis=1)
    return (a.argmax(1) != b.argmax(1)) & (best[:, -1] - best[:, -2] > margin)


def test_scored_twice_is_bit_equal(
    bundle: ModelBundle, pixels: npt.NDArray[np.uint8], reference: npt.NDArray[np.float32]
) -> None:
    again = Scorer(bundle, device="cpu").probabilities(pixels)
    assert np.array_equal(again, reference)
    assert np.allclose(reference.sum(axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("micro_batch", [1, 7, 64])
def test_the_batch_size_does_not_matter(
    micro_batch: int,
    bundle: ModelBundle,
    pixels: npt.NDArray[np.uint8],
    reference: npt.NDArray[np.float32],
) -> None:
    other = Scorer(bundle, device="cpu", micro_batch=micro_batch).probabilities(pixels)
    assert np.abs(other - reference).max() <= 1e-5
    assert not disagreements(reference, other, 1e-4).any()


def test_bfloat16_stays_within_its_own_tolerance(
    bundle: ModelBundle, pixels: npt.NDArray[np.uint8]
) -> None:
    scorer = Scorer(bundle, device="cpu", precision="bfloat16")
    assert scorer.precision == "bfloat16"
    one = Scorer(bundle, device="cpu", precision="bfloat16", micro_batch=8).probabilities(pixels)
    other = scorer.probabilities(pixels)
    assert np.abs(one - other).max() <= 0.02
    assert not disagreements(one, other, 0.04).any()


def test_a_site_has_its_own_network_or_shares_one(
    bundle: ModelBundle, pixels: npt.NDArray[np.uint8]
) -> None:
    """A score is a function of bytes, bundle and site, whatever was scored before."""
    home = Scorer(bundle, device="cpu")
    moved = statistics_at(bundle.build().eval(), torch.from_numpy(pixels // 2), 0.5)
    there = SiteProfile(bundle_digest=bundle.digest, crop=1.26, statistics=to_text(moved))
    at_first, after = Scorer(bundle, site=there, device="cpu"), home.at(there)
    assert np.array_equal(at_first.outputs(pixels).logits, after.outputs(pixels).logits)
    assert np.abs(at_first.outputs(pixels).logits - home.outputs(pixels).logits).max() > 0.1
    assert np.array_equal(after.at(None).outputs(pixels).logits, home.outputs(pixels).logits)
    assert (home.site, home.seen.crop, after.seen.crop) == (None, 0.65, pytest.approx(0.819))
    # Where only the crop differs there is one network.
    near = home.at(replace(there, statistics=None))
    assert near._forward is home._forward and near.seen == after.seen


def test_other_labs_are_seen_by_the_network_for_them(
    bundle: ModelBundle, pixels: npt.NDArray[np.uint8]
) -> None:
    """Its features, its detector: as if it were the bundle."""
    features, _ = seen_by(bundle.build().eval(), pixels)
    weights = {n: t * 1.1 if t.ndim > 1 else t for n, t in bundle.state_dict.items()}
    detector = Detector.of(features[:9] * 0.7, np.arange(9) % 8)
    alone = replace(bundle, state_dict=weights, detector=detector, elsewhere=None)
    home = Scorer(replace(bundle, elsewhere=alone), device="cpu")
    there = SiteProfile(bundle_digest=home.bundle.digest, network="elsewhere")
    for mine, theirs in zip(
        home.at(there).outputs(pixels), Scorer(alone, device="cpu").outputs(pixels), strict=True
    ):
        assert np.array_equal(mine, theirs)
    at_home, plain = home.outputs(pixels), Scorer(bundle, device="cpu").outputs(pixels)
    assert np.array_equal(at_home.logits, plain.logits)
    assert np.abs(at_home.logits - home.at(there).outputs(pixels).logits).max() > 0.1


def test_no_images_are_no_rows(bundle: ModelBundle) -> None:
    none = np.empty((0, 96, 96, 3), np.uint8)
    assert Scorer(bundle, device="cpu").probabilities(none).shape == (0, 8)


def test_what_cannot_work_is_said(bundle: ModelBundle) -> None:
    with pytest.raises(ConfigurationError, match="no GPU"):
        Scorer(bundle, device="cuda")
    with pytest.raises(ConfigurationError, match="float32 or bfloat16"):
        Scorer(bundle, device="cpu", precision="float16")
