"""Strangers are told by what the classifier sees of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bloodcells.bundle import ModelBundle, shipped_bundle_uri
from bloodcells.detector import (
    FALSE_ALARMS,
    Detector,
    FeatureTap,
    InspectingClassifier,
    Limits,
    Seen,
)
from bloodcells.errors import BundleError
from bloodcells.imaging import decode
from bloodcells.models import create_model, for_inference
from bloodcells.models.classifier import middle_block
from bloodcells.novelty import KnownTypes, pooled
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
    """Return the same clusters as last and as middle features."""
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
    middle = np.array([[-1.0], [1.0], [9.0], [11.0]], np.float32)
    types = KnownTypes.fit(middle, np.array([0, 0, 1, 1]))
    # Within classes the variance is 1, over all it is 26; the centre is 5.
    (novelty,) = types.novelty(torch.tensor([[6.0]])).tolist()
    assert novelty == pytest.approx(4**2 / 1 - 1**2 / 26)


def test_home_pictures_are_rarely_novel_and_the_limit_says_how_rarely() -> None:
    detector, limits = fitted()
    assert detector.types is not None
    assert limits.novel_above is not None
    novelty = detector.types.novelty(torch.from_numpy(seen(1000, 2).middle))
    share = float((novelty > limits.novel_above).float().mean())
    assert share == pytest.approx(FALSE_ALARMS, abs=0.002)


def test_a_model_without_blocks_has_no_middle() -> None:
    model = create_model("vgg16")
    assert middle_block(model.backbone) is None
    assert FeatureTap(model).seen().middle.shape == (0, 0)
    features, labels = clusters(80, 1)
    nothing = np.empty((80, 0), np.float32)
    detector, limits = Detector.fit(Seen(features, nothing), labels, Seen(features, nothing))
    assert detector.types is None
    assert limits.novel_above is None


@pytest.mark.parametrize("name", ["custom_cnn", "tf_efficientnet_lite0", "test_convnext"])
def test_the_middle_is_the_same_however_the_model_is_made_faster(name: str) -> None:
    model = create_model(name).eval()
    pixels = torch.randint(0, 256, (4, 64, 64, 3), dtype=torch.uint8)
    found = []
    for each in (model, for_inference(model)):
        tap = FeatureTap(each)
        with torch.inference_mode():
            each(pixels)
        found.append(tap.seen().middle)
    assert found[0].shape[1] > 0
    assert np.allclose(found[0], found[1], atol=1e-3 * np.abs(found[0]).max())


def test_the_middle_of_a_transformer_is_pooled_over_its_tokens() -> None:
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


def test_length_of_the_features_does_not_matter() -> None:
    detector, _ = fitted()
    features = torch.from_numpy(clusters(20, 3)[0])
    assert torch.allclose(
        detector.strangeness(features), detector.strangeness(7 * features), atol=1e-5
    )


def test_a_detector_travels_with_its_bundle(tmp_path: Path) -> None:
    bundle = ModelBundle.load(shipped_bundle_uri())
    width = FeatureTap(bundle.build()).last.shape  # nothing was seen yet
    assert width == (0,)
    bank = torch.nn.functional.normalize(torch.randn(20, 1280)).half()
    calibration = replace(
        bundle.calibration, strange_above=0.3, strange_typical=0.1, novel_above=None
    )
    strange = replace(bundle, detector=Detector(bank=bank), calibration=calibration)
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
    model = bundle.build().eval()
    tap = FeatureTap(model)
    with torch.inference_mode():
        model(torch.from_numpy(pixels[:48]))
    types = KnownTypes.fit(tap.seen().middle, np.arange(48) % 8)
    detector = replace(Detector.of(tap.last.numpy(), np.arange(48) % 8), types=types)
    bundle = replace(bundle, detector=detector)
    (_, exact, novel), (_, rounded, novel_rounded) = (
        Scorer(bundle, device="cpu", precision=precision).outputs(pixels[48:])
        for precision in ("float32", "bfloat16")
    )
    assert np.corrcoef(novel, novel_rounded)[0, 1] > 0.999
    # The network's own rounding moves features that lie far off by more.
    near = exact < 0.05
    assert near.sum() > 5
    limit = ModelBundle.load(shipped_bundle_uri()).calibration.strange_above
    assert limit is not None
    assert np.median(np.abs(exact - rounded)[near]) < limit / 100
    assert np.abs(exact - rounded)[near].max() < limit / 10


def test_a_detector_of_other_tensors_is_refused(tmp_path: Path) -> None:
    import safetensors.torch

    bundle = ModelBundle.load(shipped_bundle_uri())
    bundle.save(str(tmp_path))
    weights = safetensors.torch.load_file(tmp_path / "weights.safetensors")
    weights["detector.other"] = torch.zeros(3)
    safetensors.torch.save_file(weights, tmp_path / "weights.safetensors")
    with pytest.raises(BundleError):
        ModelBundle.load(str(tmp_path))
