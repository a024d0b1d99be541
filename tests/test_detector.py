"""Strangers are told by what the classifier sees of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bloodcells.bundle import ModelBundle, shipped_bundle_uri
from bloodcells.detector import (
    Detector,
    FeatureTap,
    InspectingClassifier,
    Limits,
    Seen,
)
from bloodcells.errors import BundleError
from bloodcells.false_alarms import FALSE_ALARMS
from bloodcells.imaging import decode
from bloodcells.models import create_model, for_inference
from bloodcells.models.classifier import early_blocks
from bloodcells.novelty import DISCOUNT, KnownTypes, pooled
from bloodcells.scoring import Scorer
from bloodcells.sites import SiteProfile
from bloodcells.synthetic import BALANCED, draw_slide
from bloodcells.verdicts import Outputs, judge


def clusters(num: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return features around a centre for each class, and their classes."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).normal(size=(8, 32))
    labels = np.arange(num) % 8
    return (centres[labels] + 0.1 * rng.normal(size=(num, 32))).astype(np.float32), labels


def seen(num: int, seed: int) -> Seen:
    """Return the same clusters as last and as early features."""
    features, _ = clusters(num, seed)
    return Seen(features, features)


def fitted() -> tuple[Detector, Limits]:
    return Detector.fit(seen(400, 1), clusters(400, 1)[1], seen(1000, 2))


def test_strangers_lie_beyond_what_home_pictures_reach() -> None:
    detector, (typical, limit, _) = fitted()
    assert 0 < typical < limit
    at_home = detector.strangeness(torch.from_numpy(clusters(1000, 2)[0]))
    assert float((at_home > limit).float().mean()) == pytest.approx(FALSE_ALARMS, abs=0.002)
    rng = np.random.default_rng(5)
    strangers = torch.from_numpy(rng.normal(size=(200, 32)).astype(np.float32))
    assert (detector.strangeness(strangers) > limit).all()


def test_a_type_that_was_never_seen_is_novel() -> None:
    """Strange to every class, and no further from all of them than the classes are."""
    left_out = 3
    features, labels = clusters(800, 1)
    known = labels != left_out
    types = KnownTypes.fit(features[known], labels[known])
    fresh, kinds = clusters(800, 2)
    novelty = types.novelty(torch.from_numpy(fresh)).numpy()
    assert novelty[kinds == left_out].min() > novelty[kinds != left_out].max()
    centres = np.stack([features[labels == k].mean(0) for k in range(8) if k != left_out])
    assert np.allclose(types.centres.numpy(), centres, atol=1e-5)


def test_novelty_is_a_difference_of_squared_mahalanobis_distances() -> None:
    """In one dimension, where shrinking towards a sphere changes nothing."""
    early = np.array([[-1.0], [1.0], [9.0], [11.0]], np.float32)
    types = KnownTypes.fit(early, np.array([0, 0, 1, 1]))
    # Within classes the variance is 1, over all it is 26; the centre is 5.
    (novelty,) = types.novelty(torch.tensor([[6.0]])).tolist()
    assert novelty == pytest.approx(4**2 / 1 - DISCOUNT * 1**2 / 26)


def test_home_pictures_are_rarely_novel_and_the_limit_says_how_rarely() -> None:
    detector, limits = fitted()
    assert detector.types is not None
    assert limits.novel_above is not None
    novelty = detector.types.novelty(torch.from_numpy(seen(1000, 2).early))
    share = float((novelty > limits.novel_above).float().mean())
    assert share == pytest.approx(FALSE_ALARMS, abs=0.002)


def test_a_model_without_blocks_has_no_early_ones() -> None:
    model = create_model("vgg16")
    assert early_blocks(model.backbone) == ()
    assert FeatureTap(model).seen().early.shape == (0, 0)
    features, labels = clusters(80, 1)
    nothing = np.empty((80, 0), np.float32)
    detector, limits = Detector.fit(Seen(features, nothing), labels, Seen(features, nothing))
    assert detector.types is None
    assert limits.novel_above is None


@pytest.mark.parametrize("name", ["custom_cnn", "tf_efficientnet_lite0", "test_convnext"])
def test_early_features_are_the_same_however_the_model_is_made_faster(name: str) -> None:
    model = create_model(name).eval()
    pixels = torch.randint(0, 256, (4, 64, 64, 3), dtype=torch.uint8)
    found = []
    for each in (model, for_inference(model)):
        tap = FeatureTap(each)
        with torch.inference_mode():
            each(pixels)
        found.append(tap.seen().early)
    assert found[0].shape[1] > 0
    assert np.allclose(found[0], found[1], atol=1e-3 * np.abs(found[0]).max())


def test_early_features_of_a_transformer_are_pooled_over_its_tokens() -> None:
    tokens = torch.arange(12.0).reshape(1, 6, 2)
    assert pooled(tokens)[0, :2].tolist() == [5.0, 6.0]
    planes = tokens.transpose(1, 2).reshape(1, 2, 2, 3)
    assert torch.equal(pooled(planes), pooled(tokens))


def test_novelty_decides_at_home_and_strangeness_elsewhere() -> None:
    calibration = replace(
        ModelBundle.load(shipped_bundle_uri()).calibration,
        strange_above=0.5,
        novel_above=-2.0,
        review_below=0.0,
    )
    outputs = Outputs(
        logits=np.eye(8, dtype=np.float32)[:2],
        strangeness=np.array([0.6, 0.4], np.float32),
        novelty=np.array([-3.0, -1.0], np.float32),
    )
    assert judge(outputs, calibration).out_of_domain.tolist() == [False, True]
    home = SiteProfile(bundle_digest="sha256:0")
    assert judge(outputs, calibration.at(home)).out_of_domain.tolist() == [False, True]
    away = replace(home, crop=1.5, strange_above=0.5)
    assert judge(outputs, calibration.at(away)).out_of_domain.tolist() == [True, False]


def test_what_leaves_a_classifier_cold_is_strange() -> None:
    detector, (_, limit, _) = fitted()
    features = torch.from_numpy(clusters(200, 3)[0])
    features *= detector.length / features.norm(dim=1, keepdim=True)
    plain = detector.strangeness(features)
    assert torch.allclose(detector.strangeness(7 * features), plain, atol=1e-5)
    cold = detector.strangeness(features / 4)
    assert torch.allclose(1 - cold, (1 - plain) / 2, atol=1e-5)
    assert (cold > limit).all()
    assert detector.strangeness(torch.zeros(1, 32)).tolist() == [1.0]


def test_a_detector_travels_with_its_bundle(tmp_path: Path) -> None:
    bundle = ModelBundle.load(shipped_bundle_uri())
    width = FeatureTap(bundle.build()).last.shape  # nothing was seen yet
    assert width == (0,)
    bank = torch.nn.functional.normalize(torch.randn(20, 1280)).half()
    calibration = replace(
        bundle.calibration, strange_above=0.3, strange_typical=0.1, novel_above=None
    )
    strange = replace(
        bundle, detector=Detector(bank=bank, length=torch.tensor(1.0)), calibration=calibration
    )
    assert strange.digest != bundle.digest
    strange.save(str(tmp_path))
    loaded = ModelBundle.load(str(tmp_path))
    assert loaded.digest == strange.digest
    assert loaded.calibration.strange_above == 0.3
    assert loaded.detector is not None
    assert torch.equal(loaded.detector.bank, bank)
    assert loaded.detector.types is None
    pixels = np.random.default_rng(0).integers(0, 256, (5, 96, 96, 3)).astype(np.uint8)
    outputs = Scorer(loaded, device="cpu", micro_batch=8).outputs(pixels)
    # Random directions are about at right angles to anything.
    assert (outputs.strangeness > 0.5).all()
    assert judge(outputs, loaded.calibration).out_of_domain.all()
    assert judge(outputs, loaded.calibration).needs_review.all()


def test_without_a_detector_nothing_is_strange() -> None:
    bundle = replace(ModelBundle.load(shipped_bundle_uri()), detector=None)
    model = InspectingClassifier(bundle.build().eval(), None)
    with torch.inference_mode():
        found = model(torch.zeros((2, 96, 96, 3), dtype=torch.uint8))
    assert found.shape == (2, 10)
    assert not found[:, 8:].any()


def test_out_of_domain_is_reviewed() -> None:
    calibration = replace(
        ModelBundle.load(shipped_bundle_uri()).calibration, novel_above=0.5, review_below=0.0
    )
    outputs = Outputs(
        logits=np.eye(8, dtype=np.float32)[:2] * 20,
        strangeness=np.zeros(2, np.float32),
        novelty=np.array([0.4, 0.6], np.float32),
    )
    verdicts = judge(outputs, calibration)
    assert verdicts.out_of_domain.tolist() == [False, True]
    assert verdicts.needs_review.tolist() == [False, True]


def test_a_threshold_of_one_sends_every_cell_to_review() -> None:
    calibration = replace(
        ModelBundle.load(shipped_bundle_uri()).calibration, review_below=1.0, novel_above=None
    )
    nothing = np.zeros(2, np.float32)
    outputs = Outputs(
        logits=np.eye(8, dtype=np.float32)[:2] * 90, strangeness=nothing, novelty=nothing
    )
    verdicts = judge(outputs, calibration)
    assert (verdicts.confidence == 1).all()
    assert verdicts.needs_review.all()
    calibration = replace(calibration, review_below=1 - 1e-9)  # 1 in float32
    assert not judge(outputs, calibration).needs_review.any()


BFLOAT16_STEP = 2**-8
"""Of a likeness between 0.5 and 1."""


def test_the_distance_is_not_rounded_by_autocast() -> None:
    detector, (typical, _, _) = fitted()
    assert typical < 4 * BFLOAT16_STEP
    features = torch.from_numpy(clusters(200, 3)[0])
    exact = detector.strangeness(features)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(detector.strangeness(features), exact)
        rounded = detector.strangeness(features.bfloat16())
    assert (rounded - exact).abs().max() < BFLOAT16_STEP / 4


def test_bfloat16_finds_the_same_things_strange() -> None:
    bundle = ModelBundle.load(shipped_bundle_uri())
    cells = draw_slide(BALANCED, 96, seed=5)
    pixels = np.stack([decode(cell.data, bundle.preprocess).pixels for cell in cells])
    exact, rounded = (
        Scorer(bundle, device="cpu", precision=precision).outputs(pixels)
        for precision in ("float32", "bfloat16")
    )
    limit, novel_above = bundle.calibration.strange_above, bundle.calibration.novel_above
    assert limit is not None
    assert novel_above is not None
    assert np.median(np.abs(exact.strangeness - rounded.strangeness)) < limit / 50
    spread = exact.novelty.std()
    assert np.median(np.abs(exact.novelty - rounded.novelty)) < spread / 10
    same = (exact.novelty > novel_above) == (rounded.novelty > novel_above)
    assert same.mean() > 0.97


def test_a_detector_of_other_tensors_is_refused(tmp_path: Path) -> None:
    import safetensors.torch

    bundle = ModelBundle.load(shipped_bundle_uri())
    bundle.save(str(tmp_path))
    weights = safetensors.torch.load_file(tmp_path / "weights.safetensors")
    weights["detector.other"] = torch.zeros(3)
    safetensors.torch.save_file(weights, tmp_path / "weights.safetensors")
    with pytest.raises(BundleError):
        ModelBundle.load(str(tmp_path))
