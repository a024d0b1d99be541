"""Strangers are told by what the classifier sees of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bloodcells.bundle import ModelBundle, shipped_bundle_uri
from bloodcells.detector import FALSE_ALARMS, Detector, FeatureTap, InspectingClassifier
from bloodcells.errors import BundleError
from bloodcells.imaging import decode
from bloodcells.scoring import Scorer
from bloodcells.synthetic import BALANCED, draw_slide
from bloodcells.verdicts import Outputs, judge


def clusters(num: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return features around a centre for each class, and their classes."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).normal(size=(8, 32))
    labels = np.arange(num) % 8
    return (centres[labels] + 0.1 * rng.normal(size=(num, 32))).astype(np.float32), labels


def fitted() -> tuple[Detector, float, float]:
    features, labels = clusters(400, 1)
    return Detector.fit(features, labels, clusters(1000, 2)[0])


def test_strangers_lie_beyond_what_home_pictures_reach() -> None:
    detector, typical, limit = fitted()
    assert 0 < typical < limit
    at_home = detector.strangeness(torch.from_numpy(clusters(1000, 2)[0]))
    assert float((at_home > limit).float().mean()) == pytest.approx(FALSE_ALARMS, abs=0.002)
    rng = np.random.default_rng(5)
    strangers = torch.from_numpy(rng.normal(size=(200, 32)).astype(np.float32))
    assert (detector.strangeness(strangers) > limit).all()


def test_length_of_the_features_does_not_matter() -> None:
    detector, _, _ = fitted()
    features = torch.from_numpy(clusters(20, 3)[0])
    assert torch.allclose(
        detector.strangeness(features), detector.strangeness(7 * features), atol=1e-5
    )


def test_a_detector_travels_with_its_bundle(tmp_path: Path) -> None:
    bundle = ModelBundle.load(shipped_bundle_uri())
    width = FeatureTap(bundle.build()).last.shape  # nothing was seen yet
    assert width == (0,)
    bank = torch.nn.functional.normalize(torch.randn(20, 1280)).half()
    calibration = replace(bundle.calibration, strange_above=0.3, strange_typical=0.1)
    strange = replace(bundle, detector=Detector(bank=bank), calibration=calibration)
    assert strange.digest != bundle.digest
    strange.save(str(tmp_path))
    loaded = ModelBundle.load(str(tmp_path))
    assert loaded.digest == strange.digest
    assert loaded.calibration.strange_above == 0.3
    assert loaded.detector is not None
    assert torch.equal(loaded.detector.bank, bank)
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
    assert found.shape == (2, 9)
    assert not found[:, 8].any()


def test_out_of_domain_is_reviewed() -> None:
    calibration = replace(
        ModelBundle.load(shipped_bundle_uri()).calibration, strange_above=0.5, review_below=0.0
    )
    outputs = Outputs(
        logits=np.eye(8, dtype=np.float32)[:2] * 20, strangeness=np.array([0.4, 0.6], np.float32)
    )
    verdicts = judge(outputs, calibration)
    assert verdicts.out_of_domain.tolist() == [False, True]
    assert verdicts.needs_review.tolist() == [False, True]


def test_a_threshold_of_one_sends_every_cell_to_review() -> None:
    calibration = replace(ModelBundle.load(shipped_bundle_uri()).calibration, review_below=1.0)
    outputs = Outputs(
        logits=np.eye(8, dtype=np.float32)[:2] * 90, strangeness=np.zeros(2, np.float32)
    )
    verdicts = judge(outputs, calibration)
    assert (verdicts.confidence == 1).all()
    assert verdicts.needs_review.all()
    calibration = replace(calibration, review_below=1 - 1e-9)  # 1 in float32
    assert not judge(outputs, calibration).needs_review.any()


BFLOAT16_STEP = 2**-8
"""Of a likeness between 0.5 and 1."""


def test_the_distance_is_not_rounded_by_autocast() -> None:
    detector, typical, _ = fitted()
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
    bundle = replace(bundle, detector=Detector.of(tap.last.numpy(), np.arange(48) % 8))
    exact, rounded = (
        Scorer(bundle, device="cpu", precision=precision).outputs(pixels[48:]).strangeness
        for precision in ("float32", "bfloat16")
    )
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
